//! What the gateways know of each other's requests, some time later.

use std::{
    collections::VecDeque,
    ops::{AddAssign, Sub},
    time::Duration,
};

use smg_base::Timestamp;

/// What gateways have at an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Busy {
    /// Requests sent and not finished.
    pub(super) requests: i64,
    /// Of those, how many decode.
    pub(super) decoding: i64,
    /// Prompt tokens to be computed of those whose first token has not come.
    pub(super) pending_tokens: i64,
    /// Prompt tokens of all.
    pub(super) context_tokens: i64,
}

impl AddAssign for Busy {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.decoding += other.decoding;
        self.pending_tokens += other.pending_tokens;
        self.context_tokens += other.context_tokens;
    }
}

impl Sub for Busy {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            requests: self.requests - other.requests,
            decoding: self.decoding - other.decoding,
            pending_tokens: self.pending_tokens - other.pending_tokens,
            context_tokens: self.context_tokens - other.context_tokens,
        }
    }
}

/// The ledgers of all gateways, as each of them knows them.
#[derive(Debug)]
pub(super) struct Ledgers {
    delay: Duration,
    /// For each gateway, by engine: what it has, and what the others have heard of that.
    own: Vec<Vec<Busy>>,
    told: Vec<Vec<Busy>>,
    /// By engine: what all gateways have told.
    told_by_all: Vec<Busy>,
    on_the_way: VecDeque<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    due: Timestamp,
    gateway: usize,
    engine: usize,
    change: Busy,
}

impl Ledgers {
    pub(super) fn new(gateways: usize, engines: usize, delay: Duration) -> Self {
        let empty = vec![Busy::default(); engines];
        Self {
            delay,
            own: vec![empty.clone(); gateways],
            told: vec![empty.clone(); gateways],
            told_by_all: empty,
            on_the_way: VecDeque::new(),
        }
    }

    /// A gateway's requests at an engine change by `change`.
    pub(super) fn write(&mut self, gateway: usize, engine: usize, change: Busy, now: Timestamp) {
        self.own[gateway][engine] += change;
        self.on_the_way.push_back(Entry { due: now + self.delay, gateway, engine, change });
    }

    /// Lets arrive what has been told by now; says to each of the other gateways what it now knows of all others.
    pub(super) fn advance(&mut self, now: Timestamp, mut hear: impl FnMut(usize, usize, Busy, Timestamp)) {
        while let Some(Entry { due, gateway, engine, change }) = self.on_the_way.pop_front_if(|entry| entry.due <= now)
        {
            self.told[gateway][engine] += change;
            self.told_by_all[engine] += change;
            for other in (0..self.own.len()).filter(|other| *other != gateway) {
                hear(other, engine, self.peers(other, engine), due);
            }
        }
    }

    /// What the other gateways have at an engine, as far as `gateway` has heard.
    pub(super) fn peers(&self, gateway: usize, engine: usize) -> Busy {
        self.told_by_all[engine] - self.told[gateway][engine]
    }

    /// The same and its own.
    pub(super) fn all(&self, gateway: usize, engine: usize) -> Busy {
        let mut all = self.peers(gateway, engine);
        all += self.own[gateway][engine];
        all
    }

    /// Whether everybody's requests have ended.
    #[cfg(test)]
    pub(super) fn are_settled(&self) -> bool {
        self.own.iter().flatten().all(|busy| *busy == Busy::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_requests_count_at_once_and_others_later() {
        let mut ledgers = Ledgers::new(2, 1, Duration::from_secs(1));
        let at = |seconds| Timestamp::ORIGIN + Duration::from_secs(seconds);
        ledgers.write(0, 0, Busy { requests: 1, ..Busy::default() }, at(5));
        ledgers.advance(at(5), |_, _, _, _| panic!("nothing is due"));
        assert_eq!((ledgers.all(0, 0).requests, ledgers.all(1, 0).requests), (1, 0));
        let mut heard = Vec::new();
        ledgers.advance(at(6), |gateway, engine, busy, due| heard.push((gateway, engine, busy.requests, due)));
        assert_eq!(heard, [(1, 0, 1, at(6))]);
        assert_eq!((ledgers.all(0, 0).requests, ledgers.all(1, 0).requests), (1, 1));
        assert_eq!((ledgers.peers(0, 0).requests, ledgers.peers(1, 0).requests), (0, 1));
        ledgers.write(0, 0, Busy { requests: -1, ..Busy::default() }, at(7));
        assert!(ledgers.are_settled());
    }
}
