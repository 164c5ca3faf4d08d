//! Who may go on, who waits and who is turned away: pure arithmetic, told the time.
//!
//! Invariants, which hold between any two calls:
//! - nobody waits while there is room, except for the next token of the bucket;
//! - a token is waited for by the first in line, who was told to set an alarm for it;
//! - places are given in the order of arrival, and a place given to somebody who left meanwhile goes to the next.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
    time::Duration,
};

use smg_base::Timestamp;

use crate::{bucket::Bucket, pace::Pace};

/// A place in the line. Later arrivals have greater ones.
pub(crate) type Ticket = u64;

/// Calls somebody who waits to [`Line::look`] again.
pub(crate) trait Bell {
    /// Must not block, and must not be lost if it comes before the waiting starts.
    fn ring(&self);
}

/// The bounds of a line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) concurrent_max: Option<NonZeroUsize>,
    pub(crate) queue_max: usize,
    pub(crate) rate_per_second: Option<f64>,
}

/// What became of a newcomer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It is in flight.
    Admitted,
    /// It waits, and must [`Line::look`] now and whenever its bell rings.
    Queued(Ticket),
    /// The line is full; it counts nowhere.
    Full,
}

/// What somebody who waits finds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// It is in flight; its ticket is void.
    Admitted,
    /// It goes on waiting, and must look again at this time if there is one.
    Wait(Option<Timestamp>),
}

#[derive(Debug)]
pub(crate) struct Line<B> {
    bounds: Bounds,
    bucket: Option<Bucket>,
    pace: Pace,
    /// Those in flight, those in `granted` included.
    in_flight: usize,
    waiting: BTreeMap<Ticket, B>,
    /// Those who were given a place and have not looked yet.
    granted: BTreeSet<Ticket>,
    /// Who has set an alarm for the bucket's next token.
    alarm: Option<Ticket>,
    next: Ticket,
}

enum Room {
    Free,
    /// None until somebody departs.
    None,
    /// There is, but the bucket is empty until then.
    At(Timestamp),
}

impl<B: Bell> Line<B> {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            bucket: bounds.rate_per_second.and_then(Bucket::new),
            pace: Pace::default(),
            in_flight: 0,
            waiting: BTreeMap::new(),
            granted: BTreeSet::new(),
            alarm: None,
            next: 0,
        }
    }

    pub(crate) fn bounds(&self) -> Bounds {
        self.bounds
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(crate) fn depth(&self) -> usize {
        self.waiting.len()
    }

    /// Somebody comes. `bell` is called for only if it has to wait.
    pub(crate) fn arrive(&mut self, now: Timestamp, bell: impl FnOnce() -> B) -> Arrival {
        if self.waiting.is_empty() && matches!(self.room(now), Room::Free) {
            self.enter(now);
            return Arrival::Admitted;
        }
        if self.waiting.len() >= self.bounds.queue_max {
            return Arrival::Full;
        }
        let ticket = self.next;
        self.next += 1;
        self.waiting.insert(ticket, bell());
        Arrival::Queued(ticket)
    }

    /// Somebody who waits wants to know.
    pub(crate) fn look(&mut self, ticket: Ticket, now: Timestamp) -> Look {
        let first = self.is_first(ticket);
        if first && !self.is_full() {
            self.alarm = Some(ticket);
        }
        self.serve(now);
        if self.granted.remove(&ticket) {
            return Look::Admitted;
        }
        match self.room(now) {
            Room::At(ready) if first => Look::Wait(Some(ready)),
            _ => Look::Wait(None),
        }
    }

    /// Somebody who waits, or was given a place without having looked, goes away.
    pub(crate) fn leave(&mut self, ticket: Ticket, now: Timestamp) {
        if self.granted.remove(&ticket) {
            // The place was never used, so it tells nothing about the pace.
            self.in_flight -= 1;
        } else {
            self.waiting.remove(&ticket);
        }
        self.serve(now);
        self.settle();
    }

    /// Somebody who was in flight has finished.
    pub(crate) fn depart(&mut self, now: Timestamp) {
        if self.is_full() {
            self.pace.departed(now);
        }
        self.in_flight -= 1;
        self.serve(now);
        self.settle();
    }

    /// The bounds are others from now on. Those in flight stay, and so do those who wait, even if they are too many.
    pub(crate) fn rebound(&mut self, bounds: Bounds, now: Timestamp) {
        let bucket = bounds.rate_per_second.and_then(Bucket::new);
        self.bucket = match (bucket, self.bucket.take()) {
            (Some(bucket), Some(earlier)) => Some(bucket.continued_from(&earlier)),
            (bucket, _) => bucket,
        };
        self.bounds = bounds;
        // Whoever set an alarm set it for the old rate.
        self.alarm = None;
        self.settle();
        self.serve(now);
        if self.is_full() {
            self.pace.full(now);
        }
    }

    /// After how long somebody who is turned away now would find the present line served.
    pub(crate) fn retry_after(&self, now: Timestamp) -> Duration {
        let by_rate = self.bucket.as_ref().map_or(Duration::ZERO, Bucket::interval);
        let by_departures = if self.is_full() { self.departure_interval(now) } else { Duration::ZERO };
        let ahead = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX).saturating_add(1);
        by_rate.max(by_departures).saturating_mul(ahead).clamp(RETRY_MIN, RETRY_MAX)
    }

    fn departure_interval(&self, now: Timestamp) -> Duration {
        self.pace.interval(now).unwrap_or_default().max(RETRY_MIN)
    }

    fn is_first(&self, ticket: Ticket) -> bool {
        self.waiting.first_key_value().is_some_and(|(first, _)| *first == ticket)
    }

    fn is_full(&self) -> bool {
        self.bounds.concurrent_max.is_some_and(|most| self.in_flight >= most.get())
    }

    fn room(&self, now: Timestamp) -> Room {
        if self.is_full() {
            return Room::None;
        }
        match self.bucket.as_ref().map(Bucket::ready_at) {
            Some(ready) if ready > now => Room::At(ready),
            _ => Room::Free,
        }
    }

    fn enter(&mut self, now: Timestamp) {
        if let Some(bucket) = &mut self.bucket {
            bucket.take(now);
        }
        self.in_flight += 1;
        if self.is_full() {
            self.pace.full(now);
        }
    }

    /// Gives places to those first in line while there is room, and sees to it that a token is waited for.
    fn serve(&mut self, now: Timestamp) {
        while let Some((&first, bell)) = self.waiting.first_key_value() {
            match self.room(now) {
                Room::None => return,
                Room::At(_) => {
                    if self.alarm != Some(first) {
                        bell.ring();
                    }
                    return;
                }
                Room::Free => {
                    bell.ring();
                    self.waiting.remove(&first);
                    self.granted.insert(first);
                    self.enter(now);
                }
            }
        }
    }

    fn settle(&mut self) {
        if !self.is_full() {
            self.pace.roomy();
        }
    }
}

/// The bounds of a promise: below, coming back would only cost; above, nobody believes it.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use smg_base::{Random, SplitMix};

    use super::*;

    impl Bell for Rc<Cell<u32>> {
        fn ring(&self) {
            self.set(self.get() + 1);
        }
    }

    fn at(ms: u64) -> Timestamp {
        Timestamp::ORIGIN + Duration::from_secs(1_000) + Duration::from_millis(ms)
    }

    fn bounds(concurrent_max: usize, queue_max: usize, rate_per_second: Option<f64>) -> Bounds {
        Bounds { concurrent_max: NonZeroUsize::new(concurrent_max), queue_max, rate_per_second }
    }

    fn line(concurrent_max: usize, queue_max: usize) -> Line<Rc<Cell<u32>>> {
        Line::new(bounds(concurrent_max, queue_max, None))
    }

    fn queued(line: &mut Line<Rc<Cell<u32>>>, now: Timestamp) -> (Ticket, Rc<Cell<u32>>) {
        let bell = Rc::new(Cell::new(0));
        match line.arrive(now, || Rc::clone(&bell)) {
            Arrival::Queued(ticket) => (ticket, bell),
            other => panic!("queued, not {other:?}"),
        }
    }

    fn arrive(line: &mut Line<Rc<Cell<u32>>>, now: Timestamp) -> Arrival {
        line.arrive(now, Rc::default)
    }

    #[test]
    fn places_go_in_the_order_of_arrival() {
        let mut line = line(1, 2);
        assert_eq!(arrive(&mut line, at(0)), Arrival::Admitted);
        let (first, first_bell) = queued(&mut line, at(1));
        let (second, second_bell) = queued(&mut line, at(2));
        assert_eq!(arrive(&mut line, at(3)), Arrival::Full);
        line.depart(at(10));
        assert_eq!((first_bell.get(), second_bell.get()), (1, 0));
        assert_eq!(line.look(second, at(10)), Look::Wait(None));
        assert_eq!(line.look(first, at(10)), Look::Admitted);
        assert_eq!((line.in_flight(), line.depth()), (1, 1));
    }

    #[test]
    fn the_place_of_one_who_left_goes_to_the_next() {
        let mut line = line(1, 4);
        arrive(&mut line, at(0));
        let (first, _) = queued(&mut line, at(1));
        let (second, _) = queued(&mut line, at(1));
        let (third, third_bell) = queued(&mut line, at(1));
        line.leave(second, at(2));
        line.depart(at(3));
        line.leave(first, at(4));
        assert_eq!(third_bell.get(), 1);
        assert_eq!(line.look(third, at(5)), Look::Admitted);
        line.depart(at(6));
        assert_eq!((line.in_flight(), line.depth()), (0, 0));
    }

    #[test]
    fn the_first_in_line_waits_for_the_bucket_and_hands_the_alarm_on() {
        let mut line: Line<Rc<Cell<u32>>> = Line::new(bounds(0, 10, Some(1.0)));
        assert_eq!(arrive(&mut line, at(0)), Arrival::Admitted);
        let (first, _) = queued(&mut line, at(0));
        let (second, second_bell) = queued(&mut line, at(0));
        assert_eq!(line.look(first, at(0)), Look::Wait(Some(at(1_000))));
        assert_eq!(line.look(second, at(0)), Look::Wait(None));
        line.leave(first, at(500));
        assert_eq!(second_bell.get(), 1, "the new first must set the alarm");
        assert_eq!(line.look(second, at(500)), Look::Wait(Some(at(1_000))));
        assert_eq!(line.look(second, at(500)), Look::Wait(Some(at(1_000))));
        assert_eq!(second_bell.get(), 1, "looking rings no bell, or it would go on for ever");
        assert_eq!(line.look(second, at(1_000)), Look::Admitted);
    }

    #[test]
    fn new_bounds_are_felt_by_those_who_wait() {
        let mut line: Line<Rc<Cell<u32>>> = Line::new(bounds(1, 10, Some(1.0)));
        arrive(&mut line, at(0));
        let (first, first_bell) = queued(&mut line, at(0));
        assert_eq!(line.look(first, at(0)), Look::Wait(None), "no alarm while there is no room");
        line.depart(at(10));
        assert_eq!(first_bell.get(), 1);
        assert_eq!(line.look(first, at(10)), Look::Wait(Some(at(1_000))));
        line.rebound(bounds(1, 10, Some(2.0)), at(20));
        assert_eq!(first_bell.get(), 2);
        assert_eq!(line.look(first, at(20)), Look::Wait(Some(at(500))), "half a second of slack, and no new burst");
        line.rebound(bounds(0, 0, None), at(30));
        assert_eq!(line.look(first, at(30)), Look::Admitted);
        assert_eq!(arrive(&mut line, at(30)), Arrival::Admitted);
    }

    #[test]
    fn the_time_to_come_back_follows_the_pace() {
        let mut line = line(2, 3);
        arrive(&mut line, at(0));
        arrive(&mut line, at(0));
        assert_eq!(line.retry_after(at(0)), RETRY_MIN);
        let tickets: Vec<_> = (0..3).map(|_| queued(&mut line, at(0)).0).collect();
        assert_eq!(line.retry_after(at(4_000)), Duration::from_secs(16), "nobody left in four seconds");
        line.depart(at(10_000));
        assert_eq!(line.look(tickets[0], at(10_000)), Look::Admitted);
        assert_eq!(line.retry_after(at(10_500)), Duration::from_secs(30), "three more at one in ten seconds");
        assert_eq!(line.retry_after(at(1_000_000)), RETRY_MAX);

        let mut line: Line<Rc<Cell<u32>>> = Line::new(bounds(0, 4, Some(0.5)));
        arrive(&mut line, at(0));
        queued(&mut line, at(0));
        assert_eq!(line.retry_after(at(0)), Duration::from_secs(4), "one waits, at one in two seconds");
    }

    struct Waiter {
        ticket: Ticket,
        bell: Rc<Cell<u32>>,
        alarm: Option<Timestamp>,
    }

    /// Lets those look whose bell rang or whose alarm is due, and only those: a lost wake-up shows as somebody who
    /// waits beside a free place, a livelock as looks without end.
    fn let_look(line: &mut Line<Rc<Cell<u32>>>, waiting: &mut Vec<Waiter>, now: Timestamp) -> usize {
        let mut admitted = 0;
        for _ in 0..100 {
            let is_called = |waiter: &Waiter| waiter.bell.get() > 0 || waiter.alarm.is_some_and(|alarm| alarm <= now);
            let Some(place) = waiting.iter().position(is_called) else { return admitted };
            waiting[place].bell.set(0);
            match line.look(waiting[place].ticket, now) {
                Look::Wait(alarm) => waiting[place].alarm = alarm,
                Look::Admitted => {
                    assert_eq!(place, 0, "the first in line goes first");
                    waiting.remove(0);
                    admitted += 1;
                }
            }
        }
        panic!("looks without end");
    }

    /// Random arrivals, departures, cancellations and new bounds, with the invariants checked after each.
    #[test]
    fn the_invariants_hold_whatever_happens() {
        for seed in 0..300 {
            let random = SplitMix::new(seed);
            let rate = [None, Some(20.0), Some(3.0)][random.below(3) as usize];
            let mut most = 1 + random.below(4) as usize;
            let mut line = Line::new(bounds(most, 5, rate));
            let mut in_flight = 0_usize;
            let mut waiting: Vec<Waiter> = Vec::new();
            for step in 0..300 {
                let now = at(step * 23);
                match random.below(20) {
                    0..9 => {
                        let bell = Rc::new(Cell::new(1)); // a newcomer looks at once
                        match line.arrive(now, || Rc::clone(&bell)) {
                            Arrival::Admitted => {
                                assert!(waiting.is_empty() && in_flight < most, "seed {seed}: nobody jumps the line");
                                in_flight += 1;
                            }
                            Arrival::Queued(ticket) => waiting.push(Waiter { ticket, bell, alarm: None }),
                            Arrival::Full => assert!(waiting.len() >= 5, "seed {seed}"),
                        }
                    }
                    9..14 if in_flight > 0 => {
                        line.depart(now);
                        in_flight -= 1;
                    }
                    14..18 if !waiting.is_empty() => {
                        let left = waiting.remove(random.below(waiting.len() as u64) as usize);
                        line.leave(left.ticket, now);
                    }
                    18 => {
                        most = 1 + random.below(4) as usize;
                        line.rebound(bounds(most, 5, rate), now);
                    }
                    _ => {}
                }
                in_flight += let_look(&mut line, &mut waiting, now);
                let is_timed = waiting.first().is_some_and(|first| first.alarm.is_some());
                assert!(waiting.is_empty() || in_flight >= most || is_timed, "seed {seed}: waits beside a free place");
                assert!(rate.is_some() || !is_timed, "seed {seed}: nothing to wait for");
                assert_eq!((line.in_flight(), line.depth()), (in_flight, waiting.len()), "seed {seed}, step {step}");
            }
        }
    }
}
