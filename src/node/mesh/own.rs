//! What this node finds out about workers, and tells the others: its votes on their health, what it has sent them, and what
//! their engines say where this node is the one that asks.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use smg_base::{PeerId, Timestamp, WorkerId};
use smg_fleet::{EngineLoad, EngineSource, HealthVote, Snapshot, Worker};
use smg_mesh_proto::{EngineFigures, Ledger, NodeId, Op, Vote};

use super::link::Link;

/// Changes of pending tokens up to this are no news.
const TOKENS_SMALL: u64 = 512;

/// How long a change that is no news may stay untold.
const EXACT_AFTER: Duration = Duration::from_secs(1);

/// Most bytes of ledgers that each node is to receive from all others together, per look of a tenth of a second: 256 kB in a second.
/// Each of them therefore tells its share of that, and the rest at its next look.
const LEDGER_BYTES_PER_LOOK: usize = 25_600;

/// What a row costs at most, as it is sent: up to 29 bytes of key, version and lengths, up to 20 of figures, and its part of the
/// datagrams where rows are many; and what the frame and the datagram around the first of them do.
const LEDGER_ROW_BYTES: usize = 64;
const LEDGER_FRAME_BYTES: usize = 128;

/// Peers through which requests are sent that are watched closely.
const CANDIDATES_MAX: usize = 8;

/// What has been told, and what is to be.
#[derive(Default)]
pub(crate) struct Reports {
    /// Of which snapshot the rows are.
    version: Option<u64>,
    rows: Vec<Report>,
    /// Where the next look begins, so that all have their turn when there is more to tell than may be.
    first: usize,
    /// Bytes that ledgers may still cost each node.
    allowance: usize,
    /// Whether the last look saw requests in flight, or something that is still to be told.
    is_busy: bool,
    sources: BTreeMap<WorkerId, EngineSource>,
}

/// What has been told of one worker.
struct Report {
    worker: Arc<Worker>,
    vote: Option<Vote>,
    ledger: Ledger,
    /// Since when the ledger told differs a little from the true one.
    inexact_since: Option<Timestamp>,
    engine: Option<EngineFigures>,
}

impl Reports {
    /// Where a worker's figures come from.
    pub(crate) fn source(&self, worker: WorkerId) -> EngineSource {
        self.sources.get(&worker).copied().unwrap_or_default()
    }

    /// Says so; whether that was news.
    pub(crate) fn set_source(&mut self, worker: WorkerId, source: EngineSource) -> bool {
        self.sources.insert(worker, source) != Some(source)
    }

    /// Whether what there is to tell changes all the time.
    pub(crate) fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Tells what has changed, to `company` nodes.
    pub(crate) fn tell(&mut self, snapshot: &Snapshot, company: usize, now: Timestamp, link: &dyn Link) {
        if self.version != Some(snapshot.version) {
            self.renew(snapshot, link);
        }
        let share = LEDGER_BYTES_PER_LOOK / company.max(1);
        self.allowance = (self.allowance + share).min(share.max(LEDGER_FRAME_BYTES + LEDGER_ROW_BYTES));
        // A look that tells anything sends a frame.
        let mut price = LEDGER_FRAME_BYTES + LEDGER_ROW_BYTES;
        self.is_busy = false;
        let count = self.rows.len();
        let first = self.first.checked_rem(count).unwrap_or(0);
        for place in (first..count).chain(0..first) {
            let report = &mut self.rows[place];
            let id = report.worker.id;
            let vote = report.worker.vote().map(vote);
            if vote != report.vote {
                report.vote = vote;
                link.post(Op::Vote { worker: id, vote });
            }
            if self.allowance >= price
                && let Some(ledger) = report.ledger_to_tell(now)
            {
                link.post(Op::Ledger { worker: id, ledger });
                self.allowance -= price;
                price = LEDGER_ROW_BYTES;
                self.first = place + 1;
            }
            self.is_busy |= report.is_busy();
            let is_asked = self.sources.get(&id).copied().unwrap_or_default() == EngineSource::Asked;
            let engine = report.worker.state.load.engine().filter(|_| is_asked);
            let engine = engine.map(|engine| figures(engine, report.worker.state.load.foreign_requests()));
            if engine != report.engine {
                report.engine = engine;
                link.post(Op::Engine { worker: id, figures: engine });
            }
        }
    }

    /// Takes on the workers of a new snapshot, and takes back what was said of those that are gone.
    fn renew(&mut self, snapshot: &Snapshot, link: &dyn Link) {
        let mut before: BTreeMap<WorkerId, Report> = self.rows.drain(..).map(|row| (row.worker.id, row)).collect();
        for worker in snapshot.workers() {
            let worker = worker.clone();
            self.rows.push(match before.remove(&worker.id) {
                Some(report) => Report { worker, ..report },
                None => Report { worker, vote: None, ledger: Ledger::default(), inexact_since: None, engine: None },
            });
        }
        for (worker, report) in before {
            self.sources.remove(&worker);
            if report.vote.is_some() {
                link.post(Op::Vote { worker, vote: None });
            }
            if report.ledger != Ledger::default() {
                link.post(Op::Ledger { worker, ledger: Ledger::default() });
            }
            if report.engine.is_some() {
                link.post(Op::Engine { worker, figures: None });
            }
        }
        self.version = Some(snapshot.version);
    }

    /// The peers through which this node sends requests, or would: those for workers it does not reach itself.
    pub(crate) fn candidates(&self) -> Vec<NodeId> {
        let mut uses: BTreeMap<PeerId, usize> = BTreeMap::new();
        for report in self.rows.iter().filter(|report| report.vote != Some(Vote::Up)) {
            if let Some(via) = report.worker.via() {
                *uses.entry(via.peer).or_default() += 1;
            }
        }
        let mut peers: Vec<(usize, PeerId)> = uses.into_iter().map(|(peer, uses)| (uses, peer)).collect();
        peers.sort_unstable_by(|a, b| b.cmp(a));
        peers.truncate(CANDIDATES_MAX);
        let mut nodes: Vec<NodeId> = peers.into_iter().map(|(_, peer)| NodeId::from_u128(peer.0)).collect();
        nodes.sort_unstable();
        nodes
    }
}

impl Report {
    /// Whether there is something in flight, or to be told.
    fn is_busy(&self) -> bool {
        let load = &self.worker.state.load;
        self.ledger != Ledger::default() || load.in_flight() > 0 || load.pending_tokens() > 0
    }

    /// What to tell of this node's requests: what is news, and in time everything else.
    fn ledger_to_tell(&mut self, now: Timestamp) -> Option<Ledger> {
        let load = &self.worker.state.load;
        let ledger =
            Ledger { requests: load.in_flight(), decoding: load.decoding(), pending_tokens: load.pending_tokens() };
        if ledger == self.ledger {
            self.inexact_since = None;
            return None;
        }
        let since = *self.inexact_since.get_or_insert(now);
        if !is_news(self.ledger, ledger) && now.since(since) < EXACT_AFTER {
            return None;
        }
        self.inexact_since = None;
        self.ledger = ledger;
        Some(ledger)
    }
}

/// Whether others would decide differently if they knew: something where nothing was or the reverse, or a change of more than
/// a tenth (and of more than 512 pending tokens).
fn is_news(told: Ledger, now: Ledger) -> bool {
    let is_empty = |ledger: Ledger| ledger == Ledger::default();
    let tokens = told.pending_tokens.abs_diff(now.pending_tokens);
    let requests = told.requests.abs_diff(now.requests);
    is_empty(told) != is_empty(now)
        || tokens > TOKENS_SMALL.max(told.pending_tokens / 10)
        || requests > told.requests / 10
}

fn vote(vote: HealthVote) -> Vote {
    match vote {
        HealthVote::Up => Vote::Up,
        HealthVote::Sick => Vote::Sick,
        HealthVote::Unreachable => Vote::Unreachable,
    }
}

fn figures(engine: EngineLoad, foreign: u32) -> EngineFigures {
    EngineFigures {
        running: engine.running,
        waiting: engine.waiting,
        foreign,
        kv_usage: engine.kv_usage,
        generation_tokens_per_second: engine.generation_tokens_per_second,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use smg_fleet::{Fleet, FleetConfig, Origin, WorkerSpec};
    use smg_mesh_proto::Kind;

    use super::*;
    use crate::mesh::testing::FakeLink;

    fn at(millis: u64) -> Timestamp {
        Timestamp::ORIGIN + Duration::from_millis(millis)
    }

    #[test]
    fn small_changes_are_no_news() {
        let ledger = |requests, pending_tokens| Ledger { requests, decoding: 0, pending_tokens };
        let check =
            |told: Ledger, now: Ledger, expected: bool| assert_eq!(is_news(told, now), expected, "{told:?} {now:?}");
        check(ledger(0, 0), ledger(1, 0), true);
        check(ledger(1, 0), ledger(0, 0), true);
        check(ledger(1, 100), ledger(1, 600), false);
        check(ledger(1, 100), ledger(1, 700), true);
        check(ledger(20, 100_000), ledger(20, 105_000), false);
        check(ledger(20, 100_000), ledger(20, 111_000), true);
        check(ledger(20, 0), ledger(22, 0), false);
        check(ledger(20, 0), ledger(23, 0), true);
    }

    #[test]
    fn what_has_changed_is_told_once_and_taken_back_at_the_end() {
        let fleet = Fleet::new(FleetConfig::default());
        let spec = WorkerSpec::new("http://10.0.0.1".parse().expect("it is a url"));
        let worker = fleet.add(spec, Origin::Api, at(0)).expect("there is room").worker;
        let link = FakeLink::new();
        let mut reports = Reports::default();
        let mut tell = |millis| {
            reports.tell(&fleet.snapshot(), 2, at(millis), &*link);
            link.posted()
        };
        assert_eq!(tell(0), Vec::<String>::new(), "nothing is known yet");
        let guard = worker.state.begin(1_000, at(0));
        assert_eq!(tell(100), ["ledger 1 0 1000"]);
        assert_eq!(tell(200), Vec::<String>::new());
        let mut second = worker.state.begin(10, at(0));
        assert_eq!(tell(300), ["ledger 2 0 1010"]);
        second.first_token(at(0));
        assert_eq!(tell(400), Vec::<String>::new(), "it is a small change");
        assert_eq!(tell(1_300), Vec::<String>::new());
        assert_eq!(tell(1_500), ["ledger 2 1 1000"], "but it is told in time");
        drop((guard, second));
        assert_eq!(tell(1_600), ["ledger 0 0 0"]);
        let _guard = worker.state.begin(1, at(0));
        assert_eq!(tell(1_700), ["ledger 1 0 1"]);
        fleet.remove(worker.id);
        assert_eq!(tell(1_800), ["ledger 0 0 0"]);
    }

    #[test]
    fn ledgers_cost_every_node_at_most_a_quarter_of_a_megabyte_in_a_second() {
        const WORKERS: usize = 2_000;
        let check = |company: usize| {
            let fleet = Fleet::new(FleetConfig::default());
            let link = FakeLink::new();
            let mut guards = Vec::new();
            for number in 0..WORKERS {
                let spec = WorkerSpec::new(format!("http://w{number}").parse().expect("it is a url"));
                guards
                    .push(fleet.add(spec, Origin::Api, at(0)).expect("there is room").worker.state.begin(1_000, at(0)));
            }
            let mut reports = Reports::default();
            let told = (0..10).map(|look| {
                reports.tell(&fleet.snapshot(), company, at(look * 100), &*link);
                link.posted().len()
            });
            // As one node of these sends them, all figures as long as they can be, in a frame per look.
            let told: Vec<usize> = told.collect();
            let frames = told.iter().map(|rows| frame_bytes(*rows)).sum::<usize>();
            let received = frames * (company - 1);
            assert!(received <= 256 << 10, "{received} B in a second from {company} nodes: {told:?}");
            assert!(told.iter().sum::<usize>() > 0);
        };
        [2, 3, 16, 64, 256].into_iter().for_each(check);
    }

    /// Bytes of the frame in which a node sends others so many rows, on a datagram for each 1 200 of them.
    fn frame_bytes(rows: usize) -> usize {
        let key = |row: usize| Bytes::from(format!("{row:017}"));
        // A byte of version, and the figures as they are longest.
        let changes: Vec<(Bytes, Bytes)> = (0..rows).map(|row| (key(row), Bytes::from(vec![0xff; 20]))).collect();
        if changes.is_empty() {
            return 0;
        }
        let frames = smg_mesh_proto::encode_changes(NodeId::of("n"), Kind::Load, &changes, 256 << 10);
        frames.iter().map(|frame| frame.len() + frame.len().div_ceil(1_200) * 60).sum()
    }

    #[test]
    fn more_than_may_be_told_is_told_in_turns() {
        let fleet = Fleet::new(FleetConfig::default());
        let link = FakeLink::new();
        let mut guards = Vec::new();
        for number in 0..100 {
            let spec = WorkerSpec::new(format!("http://10.0.0.{number}").parse().expect("it is a url"));
            let worker = fleet.add(spec, Origin::Api, at(0)).expect("there is room").worker;
            guards.push(worker.state.begin(1_000, at(0)));
        }
        let mut reports = Reports::default();
        let mut told = 0;
        for look in 0..10 {
            reports.tell(&fleet.snapshot(), 16, at(look * 100), &*link);
            let now = link.posted().len();
            assert!(now <= 25, "{now} at once");
            told += now;
        }
        assert_eq!(told, 100);
    }
}
