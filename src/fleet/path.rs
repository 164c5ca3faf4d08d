//! The ways to a worker: directly, or through a peer that reaches it.
//!
//! A gateway without peers knows only the direct path, and everything else here stays as it begins: it costs a decision one
//! atomic read. Each path has a breaker of its own, because a peer that cannot be reached says nothing about the worker.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use arc_swap::ArcSwapOption;

use smg_base::PeerId;

use crate::{Breaker, BreakerConfig};

/// How a request gets to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// From here.
    Direct,
    /// Through a peer.
    Via(Via),
}

/// A peer that reaches a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Via {
    /// Which.
    pub peer: PeerId,
    /// The time to it and back.
    pub rtt: Duration,
}

/// Whether a request may be handed to a peer. One that a peer has handed on itself may not: it would wander.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Relaying {
    /// It may.
    #[default]
    Allowed,
    /// Only the direct path counts.
    Forbidden,
}

/// What the nodes of a cluster together know of a worker, and what follows for this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Their judgement.
    pub verdict: ClusterVerdict,
    /// The peer through which it is best reached.
    pub via: Option<Via>,
    /// How often this node probes it.
    pub duty: ProbeDuty,
}

/// What all nodes together found out about a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClusterVerdict {
    /// Nobody says anything; this gateway's own probes decide.
    #[default]
    Unknown,
    /// Who reaches it may use it.
    Up,
    /// Nobody is to use it.
    Down,
}

/// How often a node probes a worker. Each probes a new one until it has answered once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProbeDuty {
    /// At the worker's interval.
    #[default]
    Full,
    /// At [`ProbeDuty::LIGHT`] times that, because others probe it.
    Light,
}

impl ProbeDuty {
    /// How many intervals lie between two probes of a node that leaves a worker to others.
    pub const LIGHT: u32 = 10;
}

/// Whether this node may use a worker itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirectPath {
    /// It may.
    #[default]
    Allowed,
    /// Its URL means something only on another machine: it is neither probed nor used from here.
    Forbidden,
}

/// Where the figures of a worker's engine come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineSource {
    /// This node asks the engine.
    #[default]
    Asked,
    /// Another node asks it and tells.
    Heard,
}

/// What a node has found out about a worker, for others to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthVote {
    /// It answers well.
    Up,
    /// It answers, and badly.
    Sick,
    /// It cannot be reached from here, which says nothing about the worker.
    Unreachable,
}

/// The paths to a worker. Who reads while they change may see the old ones, which is no worse than to have come a moment
/// earlier.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Paths {
    word: AtomicU64,
    via: ArcSwapOption<Via>,
    /// The breaker of the path through the peer. Kept elsewhere: see [`crate::WorkerState`].
    pub(crate) breaker: Box<Breaker>,
}

/// What a decision needs to know of all paths, in one word; zero where there are no peers. Its lower half is the round-trip
/// time to the peer, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outlook(u64);

const DOWN: u64 = 1 << 63;
const UP: u64 = 1 << 62;
const VIA: u64 = 1 << 61;
const LIGHT: u64 = 1 << 60;
const NOT_DIRECT: u64 = 1 << 59;
const HEARD: u64 = 1 << 58;
const RTT: u64 = (1 << 32) - 1;
/// The bits that [`Reach`] sets.
const REACH: u64 = DOWN | UP | VIA | LIGHT | RTT;

impl Outlook {
    /// Whether all nodes together say that nobody is to use the worker.
    #[inline]
    pub(crate) fn is_down(self) -> bool {
        self.0 & DOWN != 0
    }

    /// Whether there is a peer that reaches it.
    #[inline]
    pub(crate) fn has_via(self) -> bool {
        self.0 & VIA != 0
    }

    /// Whether this node may use it itself.
    #[inline]
    pub(crate) fn direct(self) -> DirectPath {
        if self.0 & NOT_DIRECT == 0 { DirectPath::Allowed } else { DirectPath::Forbidden }
    }

    /// How often it is probed.
    pub(crate) fn duty(self) -> ProbeDuty {
        if self.0 & LIGHT == 0 { ProbeDuty::Full } else { ProbeDuty::Light }
    }

    pub(crate) fn engine_source(self) -> EngineSource {
        if self.0 & HEARD == 0 { EngineSource::Asked } else { EngineSource::Heard }
    }

    pub(crate) fn verdict(self) -> ClusterVerdict {
        match self.0 & (UP | DOWN) {
            0 => ClusterVerdict::Unknown,
            UP => ClusterVerdict::Up,
            _ => ClusterVerdict::Down,
        }
    }

    /// The time to the peer and back; none without a peer.
    pub(crate) fn rtt(self) -> Option<Duration> {
        self.has_via().then(|| Duration::from_micros(self.0 & RTT))
    }
}

impl Paths {
    pub(crate) fn new(breaker: BreakerConfig) -> Self {
        Self { word: AtomicU64::new(0), via: ArcSwapOption::empty(), breaker: Box::new(Breaker::new(breaker)) }
    }

    #[inline]
    pub(crate) fn outlook(&self) -> Outlook {
        Outlook(self.word.load(Ordering::Acquire))
    }

    /// The peer through which the worker is best reached.
    pub(crate) fn via(&self) -> Option<Via> {
        self.via.load().as_deref().copied()
    }

    /// Takes on a new reach. Called by one at a time.
    pub(crate) fn set_reach(&self, reach: Reach) {
        let before = self.via();
        if before != reach.via {
            if before.map(|via| via.peer) != reach.via.map(|via| via.peer) {
                // Another path: what is known of the old one says nothing about it.
                self.breaker.reset();
            }
            self.via.store(reach.via.map(std::sync::Arc::new));
        }
        let verdict = match reach.verdict {
            ClusterVerdict::Unknown => 0,
            ClusterVerdict::Up => UP,
            ClusterVerdict::Down => DOWN,
        };
        let via = reach.via.map_or(0, |via| VIA | u64::try_from(via.rtt.as_micros()).unwrap_or(RTT).min(RTT));
        let duty = if reach.duty == ProbeDuty::Light { LIGHT } else { 0 };
        self.change(REACH, verdict | via | duty);
    }

    pub(crate) fn set_direct(&self, direct: DirectPath) {
        self.change(NOT_DIRECT, if direct == DirectPath::Forbidden { NOT_DIRECT } else { 0 });
    }

    pub(crate) fn set_engine_source(&self, source: EngineSource) {
        self.change(HEARD, if source == EngineSource::Heard { HEARD } else { 0 });
    }

    fn change(&self, mask: u64, bits: u64) {
        let replaced = |word: u64| Some(word & !mask | bits);
        // It always gives a new word, so it cannot fail.
        let _ = self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, replaced);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use smg_base::{Timestamp, WorkerId};

    use super::*;
    use crate::{
        EngineLoad, Fleet, FleetConfig, Origin, Outcome, PeerLoad, ProbeFailure, Worker,
        testing::{at, spec, trusting_fleet},
    };

    const PEER: PeerId = PeerId(7);
    const VIA: Via = Via { peer: PEER, rtt: Duration::from_micros(1_500) };

    fn fleet() -> (Fleet, Arc<Worker>) {
        let fleet = trusting_fleet(BreakerConfig { failure_threshold: 2, ..BreakerConfig::default() });
        let worker = fleet.add(spec("w", &["m"]), Origin::Api, at(0)).unwrap().worker;
        (fleet, worker)
    }

    fn reach(verdict: ClusterVerdict, via: Option<Via>) -> Reach {
        Reach { verdict, via, duty: ProbeDuty::Full }
    }

    fn fail(worker: &Worker, now: Timestamp) {
        for _ in 0..2 {
            worker.admit(now).unwrap().record(Outcome::Failure, now);
        }
    }

    #[test]
    fn the_path_follows_from_what_is_known() {
        use ClusterVerdict::{Down, Unknown, Up};
        let (fleet, worker) = fleet();
        let check = |verdict, via, expected: Option<Path>| {
            fleet.set_reach(worker.id, reach(verdict, via));
            assert_eq!(worker.path(at(1)), expected, "{verdict:?} {via:?}");
            assert_eq!(worker.is_available(at(1)), expected.is_some());
            let is_direct = expected == Some(Path::Direct);
            assert_eq!(worker.can_take(Relaying::Forbidden, at(1)), is_direct);
            let seconds = if matches!(expected, Some(Path::Via(_))) { 0.0015 } else { 0.0 };
            assert_eq!(worker.beyond(at(1)).path_seconds, seconds);
            assert_eq!(worker.admit(at(1)).map(|ticket| ticket.path()), expected);
            assert_eq!(worker.admit_by(Relaying::Forbidden, at(1)).is_some(), is_direct);
        };
        check(Unknown, None, Some(Path::Direct));
        check(Up, Some(VIA), Some(Path::Direct));
        check(Down, Some(VIA), None);
        fleet.import(worker.id, spec("w", &["m"]), DirectPath::Forbidden, at(1)).unwrap();
        check(Unknown, None, None);
        check(Up, None, None);
        check(Up, Some(VIA), Some(Path::Via(VIA)));
        check(Down, Some(VIA), None);
        check(Unknown, Some(VIA), Some(Path::Via(VIA)));
        fleet.drain(worker.id);
        check(Up, Some(VIA), None);
    }

    #[test]
    fn each_path_has_a_breaker_of_its_own() {
        let (fleet, worker) = fleet();
        fleet.set_reach(worker.id, reach(ClusterVerdict::Up, Some(VIA)));
        fail(&worker, at(1));
        assert_eq!(worker.path(at(1)), Some(Path::Via(VIA)), "the direct path is left alone");
        fail(&worker, at(1));
        assert_eq!(worker.path(at(1)), None);
        assert_eq!(worker.path(at(61)), Some(Path::Direct), "it is probed first");
        let nearer = Via { rtt: Duration::from_micros(900), ..VIA };
        fleet.set_reach(worker.id, reach(ClusterVerdict::Up, Some(nearer)));
        assert_eq!(worker.path(at(1)), None, "the same peer");
        let other = Via { peer: PeerId(8), ..VIA };
        fleet.set_reach(worker.id, reach(ClusterVerdict::Up, Some(other)));
        assert_eq!(worker.path(at(1)), Some(Path::Via(other)), "another peer is another path");
    }

    #[test]
    fn a_peer_that_goes_between_look_and_ticket_leaves_no_ticket() {
        let (fleet, worker) = fleet();
        fleet.import(worker.id, spec("w", &["m"]), DirectPath::Forbidden, at(1)).unwrap();
        fleet.set_reach(worker.id, reach(ClusterVerdict::Up, Some(VIA)));
        let ticket = worker.admit(at(1)).unwrap();
        fleet.set_reach(worker.id, reach(ClusterVerdict::Up, None));
        assert!(worker.admit(at(1)).is_none());
        assert_eq!(ticket.record(Outcome::Failure, at(1)), None);
    }

    #[test]
    fn votes_tell_a_sick_worker_from_one_out_of_reach() {
        let check = |probes: &[Result<(), ProbeFailure>], expected: Option<HealthVote>| {
            let fleet = Fleet::new(FleetConfig::default());
            let worker = fleet.add(spec("w", &["m"]), Origin::Api, at(0)).unwrap().worker;
            for (second, result) in probes.iter().enumerate() {
                fleet.record_probe(worker.id, worker.revision, *result, at(second as u64));
            }
            assert_eq!(worker.vote(), expected, "{probes:?}");
            fleet.drain(worker.id);
            assert_eq!(worker.vote(), None, "nobody looks any more");
        };
        let (ok, gone, bad) = (Ok(()), Err(ProbeFailure::Unreachable), Err(ProbeFailure::Status(500)));
        check(&[], None);
        check(&[gone], None);
        check(&[ok], Some(HealthVote::Up));
        check(&[ok, gone, gone], Some(HealthVote::Up));
        check(&[ok, gone, gone, gone], Some(HealthVote::Unreachable));
        check(&[ok, bad, bad, bad], Some(HealthVote::Sick));
        check(&[ok, gone, gone, Err(ProbeFailure::Timeout)], Some(HealthVote::Sick));
        check(&[ok, bad, bad, bad, ok, ok], Some(HealthVote::Up));
    }

    #[test]
    fn a_worker_of_another_machine_is_neither_probed_nor_voted_on() {
        let fleet = Fleet::new(FleetConfig { scope: Some("here".to_owned()), ..FleetConfig::default() });
        let described = spec("http://127.0.0.1:8000", &["m"]);
        let own = fleet.add(described.clone(), Origin::Flag, at(0)).unwrap().worker;
        let foreign = described.url.id(Some("there"));
        let added = fleet.import(foreign, described, DirectPath::Forbidden, at(0)).unwrap();
        assert_eq!((added.worker.id, added.worker.origin), (foreign, Origin::Mesh));
        let due: Vec<WorkerId> = fleet.due_probes(at(1)).iter().map(|worker| worker.id).collect();
        assert_eq!(due, [own.id]);
        assert_eq!(added.worker.vote(), None);
    }

    #[test]
    fn who_leaves_a_worker_to_others_looks_rarely_once_it_has_answered() {
        let fleet = Fleet::new(FleetConfig::default());
        let worker = fleet.add(spec("w", &["m"]), Origin::Api, at(0)).unwrap().worker;
        let light = Reach { verdict: ClusterVerdict::Up, via: None, duty: ProbeDuty::Light };
        fleet.set_reach(worker.id, light);
        let next = |second| {
            fleet.record_probe(worker.id, worker.revision, Ok(()), at(second));
            fleet.next_probe_at(at(second)).unwrap().since(at(second)).as_secs()
        };
        fleet.record_probe(worker.id, worker.revision, Err(ProbeFailure::Timeout), at(1));
        assert!(fleet.next_probe_at(at(1)).unwrap().since(at(1)) < Duration::from_secs(2));
        next(2);
        assert!((540..=660).contains(&next(3)));
        fleet.set_reach(worker.id, Reach { duty: ProbeDuty::Full, ..light });
        assert_eq!(fleet.next_probe_at(at(4)), Some(at(4)), "nobody else may be looking");
        assert!((54..=66).contains(&next(5)));
    }

    #[test]
    fn a_rule_removes_no_worker_that_others_find_well() {
        let fleet = Fleet::new(FleetConfig::default());
        let worker = fleet.add(spec("w", &["m"]), Origin::Api, at(0)).unwrap().worker;
        fleet.record_probe(worker.id, worker.revision, Ok(()), at(0));
        for second in 1..=12 {
            fleet.record_probe(worker.id, worker.revision, Err(ProbeFailure::Unreachable), at(second));
        }
        let check = |verdict, expected: usize| {
            fleet.set_reach(worker.id, reach(verdict, None));
            assert_eq!(fleet.unhealthy_for_removal(at(13)).len(), expected, "{verdict:?}");
        };
        check(ClusterVerdict::Up, 0);
        check(ClusterVerdict::Down, 1);
        check(ClusterVerdict::Unknown, 1);
    }

    #[test]
    fn an_import_describes_a_known_worker_and_leaves_its_origin() {
        let (fleet, worker) = fleet();
        let mut described = spec("w", &["n"]);
        described.priority = 9;
        let added = fleet.import(worker.id, described.clone(), DirectPath::Allowed, at(1)).unwrap();
        assert_eq!((added.change, added.worker.origin), (crate::Change::Replaced, Origin::Api));
        let again = fleet.import(worker.id, described, DirectPath::Allowed, at(2)).unwrap();
        assert_eq!(again.change, crate::Change::Unchanged);
    }

    #[test]
    fn what_the_peers_sent_is_not_foreign() {
        let (fleet, worker) = fleet();
        let load = &worker.state.load;
        let said = EngineLoad { running: 6, waiting: 4, kv_usage: 0.5, generation_tokens_per_second: 1.0, at: at(1) };
        let _own = worker.state.begin(10, at(0));
        let peers = PeerLoad { requests: 5, decoding: 2, pending_tokens: 300 };
        fleet.set_peer_load(worker.id, peers, at(0));
        assert_eq!((worker.requests(), worker.pending_tokens(), load.peers()), (6, 310, peers));
        load.set_engine(said);
        assert_eq!(load.foreign_requests(), 4);
        fleet.set_engine_source(worker.id, EngineSource::Heard);
        assert_eq!(load.engine(), None, "what was known was asked for here");
        fleet.set_engine_heard(worker.id, said, 3);
        assert_eq!((load.engine(), load.foreign_requests()), (Some(said), 3));
        fleet.set_engine_source(worker.id, EngineSource::Heard);
        assert_eq!(load.engine(), Some(said));
        fleet.clear_engine(worker.id);
        assert_eq!(load.engine(), None);
        let behind = worker.state.begin(1, at(0));
        assert_eq!(behind.tokens_ahead(), 310, "the engine has the peers' prompts to prefill too");
    }

    #[test]
    fn a_request_for_a_peer_is_in_no_ledger_here_and_holds_a_drain() {
        let (_, worker) = fleet();
        let load = &worker.state.load;
        let mut relayed = worker.state.begin_relayed();
        relayed.first_token(at(0));
        assert_eq!((load.relayed(), load.in_flight(), load.decoding(), load.pending_tokens()), (1, 0, 0, 0));
        assert!(!worker.is_idle());
        drop(relayed);
        assert!(worker.is_idle());
    }

    #[test]
    fn a_moved_request_counts_at_one_worker() {
        let (_, from) = fleet();
        let (_, to) = fleet();
        let mut guard = from.state.begin(10, at(0));
        guard.hold_key(1);
        guard.first_token(at(0));
        guard = guard.moved_to(&to.state, at(0));
        let counts = |worker: &Worker| {
            let load = &worker.state.load;
            (load.in_flight(), load.decoding(), load.pending_tokens(), load.active_keys())
        };
        assert_eq!((counts(&from), counts(&to)), ((0, 0, 0, 0), (1, 1, 0, 1)));
        drop(guard);
        assert_eq!(counts(&to), (0, 0, 0, 0));
    }
}
