//! Why a worker was chosen.

use serde::{Serialize, Serializer, ser::SerializeSeq};
use smallvec::SmallVec;
use smg_base::{PeerId, Timestamp, WorkerId};
use smg_fleet::{Path, Pool, Way, Worker, WorkerState};

use crate::{
    Ask, NoChoice, PolicyKind, Terms,
    candidates::{Candidate, Candidates, Offers, standing},
    cost::{Cost, Costs},
    pick::Choice,
};

/// One decision, with the workers it was made between. It fits no more than [`Explanation::CONSIDERED_MAX`] of them: the
/// chosen one, then those as good as the best, then others.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Explanation {
    policy: Option<PolicyKind>,
    reason: Option<Reason>,
    text: &'static str,
    chosen: Option<WorkerId>,
    refused: Option<&'static str>,
    input_tokens: u64,
    predicted_tokens: u64,
    counts: Counts,
    #[serde(serialize_with = "sequence")]
    workers: SmallVec<[Considered; Explanation::CONSIDERED_MAX]>,
}

/// How many workers took part and how many were left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    /// Took part.
    pub(crate) considered: usize,
    /// Not ready, or left alone by their breaker.
    pub(crate) unavailable: usize,
    /// Had failed the request.
    pub(crate) excluded: usize,
    /// Known not to offer what it needs.
    pub(crate) not_offered: usize,
    /// Could have taken it, but one of higher priority could too.
    pub(crate) lower_priority: usize,
}

impl Counts {
    pub(crate) fn leave_out(&mut self, standing: Standing) {
        match standing {
            Standing::Considered => self.considered += 1,
            Standing::LowerPriority => self.lower_priority += 1,
            Standing::Unavailable => self.unavailable += 1,
            Standing::Excluded => self.excluded += 1,
            Standing::NotOffered => self.not_offered += 1,
        }
    }
}

/// One worker in a decision.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Considered {
    /// Which.
    pub worker: WorkerId,
    /// Whether it took part, or why not.
    pub standing: Standing,
    /// How a request would get there; absent if it cannot now.
    pub path: Option<PathTaken>,
    /// This gateway's requests there.
    pub in_flight: u32,
    /// Those of the other gateways.
    pub peers_in_flight: u32,
    /// Prompt tokens waiting there.
    pub pending_tokens: u64,
    /// Prompt tokens its cache is taken to hold; zero where the policy does not look.
    pub matched_tokens: u32,
    /// Seconds until its first token, in parts; absent where the policy does not estimate them.
    pub seconds: Option<Terms>,
    /// Their sum, divided by the worker's share relative to the mean where shares differ.
    pub cost: Option<f32>,
}

/// The path to a worker, as an explanation names it: `direct`, or the peer's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathTaken {
    /// From here.
    Direct,
    /// Through a peer.
    Via(PeerId),
}

impl From<Path> for PathTaken {
    fn from(path: Path) -> Self {
        match path {
            Path::Direct => Self::Direct,
            Path::Via(via) => Self::Via(via.peer),
        }
    }
}

impl Serialize for PathTaken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Direct => serializer.serialize_str("direct"),
            Self::Via(peer) => serializer.collect_str(peer),
        }
    }
}

/// A worker's part in a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It could have been chosen.
    Considered,
    /// It could have taken the request, but one of higher priority could too.
    LowerPriority,
    /// It is not ready, or its breaker leaves it alone.
    Unavailable,
    /// It has failed this request already.
    Excluded,
    /// It is known not to offer what the request needs.
    NotOffered,
}

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The request named the worker.
    Target,
    /// The routing key was given the worker by an operator, for all gateways.
    Override,
    /// The routing key had the worker before.
    Sticky,
    /// The routing key got a worker, because it had none that can be used.
    Assigned,
    /// The routing key's hash.
    RoutingKey,
    /// The session's hash.
    Session,
    /// The hash of the prompt's beginning.
    PrefixHash,
    /// The hash of the prompt's beginning named an overloaded worker; the next took its place.
    PrefixSpilled,
    /// The size of the prompt.
    Size,
    /// Loads differed too much; the least loaded was taken.
    Rebalanced,
    /// It was the first.
    First,
    /// It was its turn.
    Turn,
    /// Chance.
    Chance,
    /// The less loaded of two.
    BetterOfTwo,
    /// The soonest expected first token.
    LeastLoad,
    /// Among those with the soonest expected first token, one whose cache holds part of the prompt.
    CacheHit,
    /// Among those with the soonest expected first token, by hash of the conversation; its cache holds nothing of it.
    CachePlaced,
    /// Among those with the soonest expected first token, the better of two; nothing is known that ties the request to
    /// others.
    CacheUnkeyed,
}

impl Reason {
    /// The name in metrics and headers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Target => "target",
            Self::Override => "override",
            Self::Sticky => "sticky",
            Self::Assigned => "assigned",
            Self::RoutingKey => "routing_key",
            Self::Session => "session",
            Self::PrefixHash => "prefix_hash",
            Self::PrefixSpilled => "prefix_spilled",
            Self::Size => "size",
            Self::Rebalanced => "rebalanced",
            Self::First => "first",
            Self::Turn => "turn",
            Self::Chance => "chance",
            Self::BetterOfTwo => "better_of_two",
            Self::LeastLoad => "least_load",
            Self::CacheHit => "cache_hit",
            Self::CachePlaced => "cache_placed",
            Self::CacheUnkeyed => "cache_unkeyed",
        }
    }

    /// The reason in a sentence.
    pub fn text(self) -> &'static str {
        match self {
            Self::Target => "the request named this worker",
            Self::Override => "an operator has given the routing key this worker",
            Self::Sticky => "the routing key has had this worker before",
            Self::Assigned => "the routing key had no worker that can be used and was given this one",
            Self::RoutingKey => "the routing key's hash falls to this worker",
            Self::Session => "the session's hash falls to this worker",
            Self::PrefixHash => "the hash of the prompt's beginning falls to this worker",
            Self::PrefixSpilled => "the worker to which the prompt's beginning falls is overloaded; this one is next",
            Self::Size => "prompts of this size go to this worker",
            Self::Rebalanced => "loads differ too much and this worker has the least",
            Self::First => "this worker is the first that can be used",
            Self::Turn => "it is this worker's turn",
            Self::Chance => "drawn by chance",
            Self::BetterOfTwo => "the less loaded of two drawn by chance",
            Self::LeastLoad => "the first token is expected soonest from this worker",
            Self::CacheHit => "its cache holds part of the prompt and its first token is among the soonest expected",
            Self::CachePlaced => {
                "its first token is among the soonest expected, and the conversation's hash falls to this worker"
            }
            Self::CacheUnkeyed => "the cheaper of two drawn from those whose first token is expected soonest",
        }
    }
}

impl Explanation {
    /// How many workers an explanation fits.
    pub const CONSIDERED_MAX: usize = 16;

    /// The policy that decided.
    pub fn policy(&self) -> Option<PolicyKind> {
        self.policy
    }

    /// What decided. [`Reason::Chance`] before there was a decision.
    pub fn reason(&self) -> Reason {
        self.reason.unwrap_or(Reason::Chance)
    }

    /// The worker chosen, if one was.
    pub fn chosen(&self) -> Option<WorkerId> {
        self.chosen
    }

    /// How many workers took part.
    pub fn considered(&self) -> usize {
        self.counts.considered
    }

    /// The workers, the chosen one first; no more than fit.
    pub fn workers(&self) -> &[Considered] {
        &self.workers
    }

    /// Prompt tokens the chosen worker's cache is taken to hold.
    pub fn predicted_tokens(&self) -> u64 {
        self.predicted_tokens
    }

    /// The rest of the prompt: what the chosen worker has to prefill. This is what to charge to its load.
    pub fn uncached_tokens(&self) -> u64 {
        self.input_tokens.saturating_sub(self.predicted_tokens)
    }

    /// Starts anew.
    pub(crate) fn begin(&mut self, policy: PolicyKind, ask: &Ask<'_>) {
        self.workers.clear();
        self.policy = Some(policy);
        (self.reason, self.text) = (None, "");
        (self.chosen, self.refused) = (None, None);
        (self.input_tokens, self.predicted_tokens) = (ask.input_tokens, 0);
        self.counts = Counts::default();
    }

    /// Nobody was chosen.
    pub(crate) fn refuse(&mut self, pool: &Pool, ask: &Ask<'_>, why: NoChoice) {
        self.refused = Some(why.as_str());
        for worker in &pool.workers {
            let standing = standing(worker, ask, Offers::Checked);
            self.counts.leave_out(standing);
            self.push(Considered { standing, ..aside(worker, ask.now) });
        }
    }

    /// A worker was chosen without comparing it to others.
    pub(crate) fn settle(&mut self, worker: &Worker, reason: Reason, now: Timestamp) {
        self.decided(worker, reason);
        self.push(aside(worker, now));
    }

    /// A worker was chosen among `candidates`, by `costs` if there are any.
    pub(crate) fn compare(&mut self, pool: &Pool, candidates: &Candidates<'_>, choice: Choice, costs: &Costs) {
        self.counts = candidates.counts;
        self.decided(&pool.workers[choice.position], choice.reason);
        self.predicted_tokens = costs.of(choice.index).map_or(0, |cost| u64::from(cost.matched_tokens));
        let considered = |candidate: Candidate<'_>| {
            let path = match candidate.way {
                Way::Direct => Some(PathTaken::Direct),
                Way::Via => pool.workers[candidate.position as usize].via().map(|via| PathTaken::Via(via.peer)),
            };
            considered(candidate.member.id, candidate.state(), path, costs.of(candidate.index()))
        };
        self.push(considered(candidates.at(choice.index)));
        let room = Self::CONSIDERED_MAX - self.workers.len();
        for index in costs.in_order(candidates.len()).filter(|index| *index != choice.index).take(room) {
            self.push(considered(candidates.at(index)));
        }
    }

    /// Adds those that took no part, where there is room for them.
    pub(crate) fn others(&mut self, pool: &Pool, candidates: &Candidates<'_>, ask: &Ask<'_>) {
        if candidates.len() == pool.workers.len() {
            return;
        }
        let mut next = candidates.iter().peekable();
        for (worker, position) in pool.workers.iter().zip(0_u32..) {
            if self.workers.len() >= Self::CONSIDERED_MAX {
                return;
            }
            if next.next_if(|candidate| candidate.position == position).is_none() {
                let standing = match standing(worker, ask, Offers::Checked) {
                    Standing::Considered => Standing::LowerPriority,
                    other => other,
                };
                self.push(Considered { standing, ..aside(worker, ask.now) });
            }
        }
    }

    fn decided(&mut self, worker: &Worker, reason: Reason) {
        self.chosen = Some(worker.id);
        (self.reason, self.text) = (Some(reason), reason.text());
    }

    fn push(&mut self, considered: Considered) {
        if self.workers.len() < Self::CONSIDERED_MAX {
            self.workers.push(considered);
        }
    }
}

fn aside(worker: &Worker, now: Timestamp) -> Considered {
    considered(worker.id, &worker.state, worker.path(now).map(PathTaken::from), None)
}

fn considered(worker: WorkerId, state: &WorkerState, path: Option<PathTaken>, cost: Option<Cost>) -> Considered {
    let load = &state.load;
    Considered {
        worker,
        standing: Standing::Considered,
        path,
        in_flight: load.in_flight(),
        peers_in_flight: state.beyond(Way::Direct).load.requests,
        pending_tokens: load.pending_tokens(),
        matched_tokens: cost.map_or(0, |cost| cost.matched_tokens),
        seconds: cost.map(|cost| cost.terms),
        cost: cost.map(|cost| cost.total),
    }
}

fn sequence<S: Serializer>(
    workers: &SmallVec<[Considered; Explanation::CONSIDERED_MAX]>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut sequence = serializer.serialize_seq(Some(workers.len()))?;
    for worker in workers {
        sequence.serialize_element(worker)?;
    }
    sequence.end()
}
