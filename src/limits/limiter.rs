//! The counters of a node, and the decisions taken from them.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use smallvec::SmallVec;
use smg_base::Timestamp;

use crate::{
    rule::{Dimension, Rule},
    rules::{CounterId, Rules, Subject},
    stance::{Own, Slot, SnapshotError, Stance},
};

/// How large a limiter may become, and where its time begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimiterConfig {
    /// The greatest number of counters.
    pub counters_max: usize,
    /// Unix time, in milliseconds, at [`Timestamp::ORIGIN`]: read once, so that windows go on where they were before a restart. Between
    /// starts only the monotonic clock moves them.
    pub unix_ms_at_origin: u64,
    /// Whether changes are kept for [`Limiter::changed`].
    pub is_meshed: bool,
}

impl Default for LimiterConfig {
    fn default() -> Self {
        Self { counters_max: 1_000_000, unix_ms_at_origin: 0, is_meshed: false }
    }
}

/// What a request takes, or took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Requests.
    pub requests: u64,
    /// Tokens of the prompt.
    pub input_tokens: u64,
    /// Tokens of the answer.
    pub output_tokens: u64,
    /// Money, in millionths.
    pub money: u64,
}

impl Demand {
    /// What of it a rule about `dimension` counts. A request is one of those that run, whatever it demands.
    pub const fn of(&self, dimension: Dimension) -> u64 {
        match dimension {
            Dimension::Requests => self.requests,
            Dimension::InputTokens => self.input_tokens,
            Dimension::OutputTokens => self.output_tokens,
            Dimension::Tokens => self.input_tokens.saturating_add(self.output_tokens),
            Dimension::Concurrency => 1,
            Dimension::Money => self.money,
        }
    }
}

/// A request may not run now. Nothing was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The name of the rule.
    pub rule: Arc<str>,
    /// What it counts.
    pub dimension: Dimension,
    /// Its amount.
    pub limit: u64,
    /// When the charge fits if nobody else comes; one second where only others can tell, [`Duration::MAX`] for never.
    pub retry_after: Duration,
    /// Whether the charge alone is more than the limit.
    pub never: bool,
}

/// What a request was charged before it was sent. To be settled, whatever becomes of the request.
#[derive(Debug, Default)]
#[must_use = "what is not settled is never given back"]
pub struct Reservation {
    taken: SmallVec<[(); 4]>,
}

impl Reservation {
    /// Whether no rule was met.
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }
}

/// How a limit stands, over all nodes that were heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The amount.
    pub limit: u64,
    /// What is left of it.
    pub remaining: u64,
    /// When all of it is back if nothing more is taken.
    pub reset: Duration,
}

/// What a limiter holds and has refused for want of room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Counters held.
    pub counters: usize,
    /// The greatest number of them.
    pub counters_max: usize,
    /// Bytes they take.
    pub bytes: usize,
    /// Charges refused, and words of other nodes not kept, because all counters were in use.
    pub full: u64,
}

/// The counters of a node.
#[derive(Debug)]
pub struct Limiter {
    config: LimiterConfig,
    rules: ArcSwap<Rules>,
    stance: ArcSwap<Stance>,
}

impl Limiter {
    /// A limiter without rules.
    pub fn new(config: LimiterConfig) -> Self {
        Self { config, rules: ArcSwap::default(), stance: ArcSwap::default() }
    }

    /// Puts other rules in force. Counters of rules that are in both stay as they are.
    pub fn reconfigure(&self, rules: Arc<Rules>) {
        self.rules.store(rules);
    }

    /// The rules in force.
    pub fn rules(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    /// Charges all rules that `subject` meets, or none of them.
    pub fn reserve(&self, subject: &Subject<'_>, demand: &Demand, now: Timestamp) -> Result<Reservation, Refused> {
        let _ = (subject, demand, now);
        Ok(Reservation::default())
    }

    /// Replaces what was reserved by what was used, in the slot of the reservation if that still counts. More than was reserved is debt:
    /// it may exceed a limit, and later requests wait for it.
    pub fn settle(&self, reservation: Reservation, actual: &Demand, now: Timestamp) {
        let _ = (reservation, actual, now);
    }

    /// Shows how the limits stand that `subject` meets.
    pub fn standing(&self, subject: &Subject<'_>, now: Timestamp, visit: &mut dyn FnMut(&Rule, Standing)) {
        let _ = (subject, now, visit);
    }

    /// Removes counters in which nothing counts any more, some thousands at a call.
    pub fn sweep(&self, now: Timestamp) {
        let _ = now;
    }

    /// What is held.
    pub fn figures(&self) -> Figures {
        Figures { counters_max: self.config.counters_max, ..Figures::default() }
    }

    /// How this node stands among others, from now on.
    pub fn set_stance(&self, stance: Stance) {
        self.stance.store(Arc::new(stance));
    }

    /// How this node stands among others.
    pub fn stance(&self) -> Stance {
        **self.stance.load()
    }

    /// Sets what is added to this node's base right in a counter. Stays until it is set again; zero forgets it.
    pub fn lend(&self, counter: CounterId, lent: i64, now: Timestamp) {
        let _ = (counter, lent, now);
    }

    /// How this node stands with a counter, if it has it.
    pub fn own(&self, counter: CounterId, now: Timestamp) -> Option<Own> {
        let _ = (counter, now);
        None
    }

    /// Tells at most `max` of this node's counters whose [`Slot`] is not the one told last, those that changed first before others.
    /// Called often: it also looks through some thousands of counters for what has passed out of its window.
    pub fn changed(&self, max: usize, now: Timestamp, visit: &mut dyn FnMut(CounterId, Slot)) {
        let _ = (max, now, visit);
    }

    /// Takes another node's word. It counts for a window from now, its fading part for half of one.
    pub fn hear(&self, node: u64, counter: CounterId, slot: Slot, now: Timestamp) {
        let _ = (node, counter, slot, now);
    }

    /// A node is gone: nothing of it runs any more. What it used in windows stays until these pass, so tell its end with this and not with
    /// zeros.
    pub fn forget_node(&self, node: u64) {
        let _ = node;
    }

    /// Writes down every durable counter of this node in which something counts.
    pub fn snapshot(&self, now: Timestamp, visit: &mut dyn FnMut(CounterId, &[u8])) {
        let _ = (now, visit);
    }

    /// Writes down one counter of this node after what is in `bytes`; false if nothing counts in it.
    pub fn snapshot_of(&self, counter: CounterId, now: Timestamp, bytes: &mut Vec<u8>) -> bool {
        let _ = (counter, now, bytes);
        false
    }

    /// Takes back what was written down, with the age it has by now. What is taken back twice counts once.
    pub fn restore(&self, counter: CounterId, bytes: &[u8], now: Timestamp) -> Result<(), SnapshotError> {
        let _ = (counter, bytes, now);
        Ok(())
    }
}
