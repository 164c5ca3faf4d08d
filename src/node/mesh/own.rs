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

/// Most bytes that ledgers may cost each node, per look of a tenth of a second; a row takes about so many.
const LEDGER_BYTES_PER_LOOK: usize = 25_600;
const LEDGER_ROW_BYTES: usize = 64;

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

    /// Tells what has changed, to `company` nodes.
    pub(crate) fn tell(&mut self, snapshot: &Snapshot, company: usize, now: Timestamp, link: &dyn Link) {
        if self.version != Some(snapshot.version) {
            self.renew(snapshot, link);
        }
        let mut ledgers_left = (LEDGER_BYTES_PER_LOOK / LEDGER_ROW_BYTES / company.max(1)).max(1);
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
            if ledgers_left > 0
                && let Some(ledger) = report.ledger_to_tell(now)
            {
                link.post(Op::Ledger { worker: id, ledger });
                ledgers_left -= 1;
                self.first = place + 1;
            }
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
    use smg_fleet::{Fleet, FleetConfig, Origin, WorkerSpec};

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
        let guard = worker.state.begin(1_000);
        assert_eq!(tell(100), ["ledger 1 0 1000"]);
        assert_eq!(tell(200), Vec::<String>::new());
        let mut second = worker.state.begin(10);
        assert_eq!(tell(300), ["ledger 2 0 1010"]);
        second.first_token();
        assert_eq!(tell(400), Vec::<String>::new(), "it is a small change");
        assert_eq!(tell(1_300), Vec::<String>::new());
        assert_eq!(tell(1_500), ["ledger 2 1 1000"], "but it is told in time");
        drop((guard, second));
        assert_eq!(tell(1_600), ["ledger 0 0 0"]);
        let _guard = worker.state.begin(1);
        assert_eq!(tell(1_700), ["ledger 1 0 1"]);
        fleet.remove(worker.id);
        assert_eq!(tell(1_800), ["ledger 0 0 0"]);
    }

    #[test]
    fn more_than_may_be_told_is_told_in_turns() {
        let fleet = Fleet::new(FleetConfig::default());
        let link = FakeLink::new();
        let mut guards = Vec::new();
        for number in 0..100 {
            let spec = WorkerSpec::new(format!("http://10.0.0.{number}").parse().expect("it is a url"));
            let worker = fleet.add(spec, Origin::Api, at(0)).expect("there is room").worker;
            guards.push(worker.state.begin(1_000));
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
