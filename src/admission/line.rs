//! Who may go on, who waits and who is turned away: pure arithmetic, told the time.
//!
//! Invariants, which hold between any two calls:
//! - nobody waits while there is room, except for the next token of the bucket;
//! - a token is waited for by one of those who wait, who was told to set an alarm for it;
//! - no place goes to a class beyond its reservation while somebody waits in one that has not got its own, unless the
//!   other has been passed over for longer than its terms allow;
//! - within a class, places are given by the turns of its tenants, and to each tenant's in the order of arrival;
//! - a place given to somebody who left meanwhile goes to the next.
//!
//! A reservation keeps no place empty: it is borrowed while its class does not need it, and the next that comes free is
//! the class's again.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
    time::Duration,
};

use smg_base::Timestamp;

use crate::{
    bucket::Bucket,
    class::{Class, Classes, Preemption},
    pace::Pace,
    queue::{Charge, Queue, TenantKey},
};

/// Calls somebody.
pub(crate) trait Bell: Clone {
    /// Who waits must [`Line::look`] again. Must not block, and must not be lost if it comes before the waiting starts.
    fn ring(&self);

    /// Who is in flight must depart, if nobody has heard of it yet. The same holds.
    fn preempt(&self);
}

/// The bounds of a line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) concurrent_max: Option<NonZeroUsize>,
    pub(crate) rate_per_second: Option<f64>,
    pub(crate) classes: Classes,
}

/// Who comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Newcomer {
    pub(crate) class: Class,
    pub(crate) tenant: TenantKey,
    pub(crate) cost: u64,
}

/// A place in the line. Later arrivals have greater numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket {
    number: u64,
    class: Class,
    tenant: TenantKey,
}

/// The right to be in flight, which ends with [`Line::depart`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pass {
    ticket: Ticket,
    /// None if nobody waited, so that nobody had to be considered.
    charge: Option<Charge>,
}

impl Pass {
    /// What its tenant was charged, if anything.
    pub(crate) fn cost(&self) -> Option<u64> {
        self.charge.map(|charge| charge.cost)
    }

    /// The same after a correction.
    pub(crate) fn costing(mut self, cost: u64) -> Self {
        if let Some(charge) = &mut self.charge {
            charge.cost = cost;
        }
        self
    }
}

/// What became of a newcomer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It is in flight.
    Admitted(Pass),
    /// It waits, and must [`Line::look`] now and whenever its bell rings.
    Queued(Ticket),
    /// The line is full; it counts nowhere.
    Full,
}

/// What somebody who waits finds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// It is in flight; its ticket is void.
    Admitted(Pass),
    /// The line was full and its place went to somebody of a tenant with fewer; its ticket is void.
    Displaced,
    /// It goes on waiting, and must look again at this time if there is one.
    Wait(Option<Timestamp>),
}

/// What has happened so far, by class.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Turns that a class got because it had been passed over for long.
    pub(crate) promoted: [u64; 4],
    /// Requests told to depart: of this class, for that one.
    pub(crate) preempted: [[u64; 4]; 4],
}

#[derive(Debug)]
pub(crate) struct Line<B> {
    bounds: Bounds,
    reserved: [usize; 4],
    bucket: Option<Bucket>,
    pace: Pace,
    classes: [Standing<B>; 4],
    /// Those who were given a place and have not looked yet.
    granted: BTreeMap<Ticket, Pass>,
    /// Those whose place was taken and who have not looked yet.
    displaced: BTreeSet<Ticket>,
    /// Who has set an alarm for the bucket's next token.
    alarm: Option<Ticket>,
    next: u64,
    tally: Tally,
}

/// How a class stands.
#[derive(Debug)]
struct Standing<B> {
    queue: Queue<B>,
    /// When those who wait were last served, or began to wait.
    served: Timestamp,
    /// Those in flight, those in `granted` included.
    in_flight: usize,
    /// Of those, whom nobody has heard of yet, where somebody may preempt them.
    unheard: BTreeMap<u64, B>,
    /// Of those in flight, who has been told to depart.
    told: BTreeSet<u64>,
}

impl<B> Default for Standing<B> {
    fn default() -> Self {
        Self {
            queue: Queue::default(),
            served: Timestamp::ORIGIN,
            in_flight: 0,
            unheard: BTreeMap::new(),
            told: BTreeSet::new(),
        }
    }
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
            reserved: reserved(&bounds),
            bucket: bounds.rate_per_second.and_then(Bucket::new),
            pace: Pace::default(),
            classes: std::array::from_fn(|_| Standing::default()),
            granted: BTreeMap::new(),
            displaced: BTreeSet::new(),
            alarm: None,
            next: 0,
            tally: Tally::default(),
        }
    }

    pub(crate) fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.classes.iter().map(|class| class.in_flight).sum()
    }

    pub(crate) fn depth(&self) -> usize {
        self.classes.iter().map(|class| class.queue.depth()).sum()
    }

    pub(crate) fn in_flight_of(&self, class: Class) -> usize {
        self.class(class).in_flight
    }

    pub(crate) fn depth_of(&self, class: Class) -> usize {
        self.class(class).queue.depth()
    }

    pub(crate) fn reserved_for(&self, class: Class) -> usize {
        self.reserved[class.index()]
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Somebody comes. `bell` is called for only if it has to wait, or may be preempted.
    pub(crate) fn arrive(&mut self, newcomer: Newcomer, now: Timestamp, bell: impl FnOnce() -> B) -> Arrival {
        let Newcomer { class, tenant, cost } = newcomer;
        let ticket = Ticket { number: self.next, class, tenant };
        if self.depth() == 0 && matches!(self.room(now), Room::Free) {
            self.next += 1;
            let bell = self.may_be_preempted(class).then(bell);
            self.enter(ticket, bell, now);
            return Arrival::Admitted(Pass { ticket, charge: None });
        }
        if self.class(class).queue.depth() >= self.bounds.classes.of(class).queue_max && !self.displace_for(ticket) {
            return Arrival::Full;
        }
        self.next += 1;
        let standing = self.class_mut(class);
        if standing.queue.depth() == 0 {
            standing.served = now;
        }
        standing.queue.push(tenant, ticket.number, cost, bell());
        self.preempt(now);
        Arrival::Queued(ticket)
    }

    /// Somebody who waits wants to know.
    pub(crate) fn look(&mut self, ticket: Ticket, now: Timestamp) -> Look {
        if !self.is_full() && !self.has_alarm() && self.waits(ticket) {
            self.alarm = Some(ticket);
        }
        self.serve(now);
        if let Some(pass) = self.granted.remove(&ticket) {
            return Look::Admitted(pass);
        }
        if self.displaced.remove(&ticket) {
            return Look::Displaced;
        }
        if self.alarm != Some(ticket) {
            return Look::Wait(None);
        }
        match self.room(now) {
            Room::At(ready) => Look::Wait(Some(ready)),
            Room::Free | Room::None => {
                self.alarm = None;
                Look::Wait(None)
            }
        }
    }

    /// Somebody who waits, or was given a place without having looked, goes away.
    pub(crate) fn leave(&mut self, ticket: Ticket, now: Timestamp) {
        if let Some(pass) = self.granted.remove(&ticket) {
            // The place was never used, so it tells nothing about the pace, and costs nothing.
            self.correct(pass, 0);
            self.exit(ticket);
        } else if !self.displaced.remove(&ticket) {
            self.class_mut(ticket.class).queue.remove(ticket.tenant, ticket.number);
        }
        self.serve(now);
        self.settle();
    }

    /// The answer to somebody in flight has begun: from now on it is not preempted.
    pub(crate) fn begun(&mut self, pass: Pass, now: Timestamp) {
        let Ticket { number, class, .. } = pass.ticket;
        let standing = self.class_mut(class);
        standing.unheard.remove(&number);
        if standing.told.remove(&number) {
            // It was too late to tell it; somebody else may do.
            self.preempt(now);
        }
    }

    /// Somebody who was admitted needs `cost`, as is known now.
    pub(crate) fn correct(&mut self, pass: Pass, cost: u64) {
        if let Some(charge) = pass.charge {
            self.class_mut(pass.ticket.class).queue.correct(pass.ticket.tenant, charge, cost);
        }
    }

    /// Somebody who was in flight has finished.
    pub(crate) fn depart(&mut self, pass: Pass, now: Timestamp) {
        if self.is_full() {
            self.pace.departed(now);
        }
        self.exit(pass.ticket);
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
        self.reserved = reserved(&bounds);
        // Whoever set an alarm set it for the old rate.
        self.alarm = None;
        self.settle();
        self.serve(now);
        if self.is_full() {
            self.pace.full(now);
        }
    }

    /// After how long somebody like this who is turned away now would find those before it served.
    pub(crate) fn retry_after(&self, class: Class, tenant: TenantKey, now: Timestamp) -> Duration {
        let by_rate = self.bucket.as_ref().map_or(Duration::ZERO, Bucket::interval);
        let by_departures = if self.is_full() { self.departure_interval(now) } else { Duration::ZERO };
        let more_urgent: usize =
            Class::ALL.into_iter().take_while(|other| *other < class).map(|other| self.depth_of(other)).sum();
        let ahead = more_urgent + self.class(class).queue.ahead_of(tenant);
        let ahead = u32::try_from(ahead).unwrap_or(u32::MAX).saturating_add(1);
        by_rate.max(by_departures).saturating_mul(ahead).clamp(RETRY_MIN, RETRY_MAX)
    }

    fn departure_interval(&self, now: Timestamp) -> Duration {
        self.pace.interval(now).unwrap_or_default().max(RETRY_MIN)
    }

    fn class(&self, class: Class) -> &Standing<B> {
        &self.classes[class.index()]
    }

    fn class_mut(&mut self, class: Class) -> &mut Standing<B> {
        &mut self.classes[class.index()]
    }

    fn waits(&self, ticket: Ticket) -> bool {
        self.class(ticket.class).queue.contains(ticket.tenant, ticket.number)
    }

    fn has_alarm(&self) -> bool {
        self.alarm.is_some_and(|ticket| self.waits(ticket))
    }

    fn is_full(&self) -> bool {
        self.bounds.concurrent_max.is_some_and(|most| self.in_flight() >= most.get())
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

    fn enter(&mut self, ticket: Ticket, bell: Option<B>, now: Timestamp) {
        if let Some(bucket) = &mut self.bucket {
            bucket.take(now);
        }
        let standing = self.class_mut(ticket.class);
        standing.in_flight += 1;
        if let Some(bell) = bell {
            standing.unheard.insert(ticket.number, bell);
        }
        if self.is_full() {
            self.pace.full(now);
        }
    }

    fn exit(&mut self, ticket: Ticket) {
        let standing = self.class_mut(ticket.class);
        standing.in_flight -= 1;
        standing.unheard.remove(&ticket.number);
        standing.told.remove(&ticket.number);
    }

    /// Makes room in the queue of a newcomer's class, if another tenant has most of it.
    fn displace_for(&mut self, ticket: Ticket) -> bool {
        let Some((tenant, number, waiting)) = self.class_mut(ticket.class).queue.displace_for(ticket.tenant) else {
            return false;
        };
        self.displaced.insert(Ticket { number, class: ticket.class, tenant });
        waiting.bell.ring();
        true
    }

    /// Gives places to those whose turn it is while there is room, and sees to it that a token is waited for.
    fn serve(&mut self, now: Timestamp) {
        while let Some(class) = self.next_class(now) {
            match self.room(now) {
                Room::None => break,
                Room::At(_) => {
                    if !self.has_alarm()
                        && let Some(bell) = self.class(class).queue.any()
                    {
                        bell.ring();
                    }
                    break;
                }
                Room::Free => self.grant(class, now),
            }
        }
        self.preempt(now);
    }

    fn grant(&mut self, class: Class, now: Timestamp) {
        let may_be_preempted = self.may_be_preempted(class);
        let standing = self.class_mut(class);
        let Some(next) = standing.queue.take() else { return };
        standing.served = now;
        let ticket = Ticket { number: next.number, class, tenant: next.tenant };
        next.bell.ring();
        self.granted.insert(ticket, Pass { ticket, charge: Some(next.charge) });
        self.enter(ticket, may_be_preempted.then_some(next.bell), now);
    }

    /// The class that the next place goes to: one that has been passed over for too long; one that has not got what is
    /// reserved for it; the most urgent one.
    fn next_class(&mut self, now: Timestamp) -> Option<Class> {
        let waiting = || Class::ALL.into_iter().filter(|class| self.depth_of(*class) > 0);
        let is_short = |class: &Class| self.class(*class).in_flight < self.reserved_for(*class);
        let usual = waiting().find(is_short).or_else(|| waiting().next())?;
        let is_overdue =
            |class: &Class| now.since(self.class(*class).served) >= self.bounds.classes.of(*class).passed_over_max;
        let Some(overdue) = waiting().find(is_overdue).filter(|overdue| *overdue != usual) else {
            return Some(usual);
        };
        if matches!(self.room(now), Room::Free) {
            self.tally.promoted[overdue.index()] += 1;
        }
        Some(overdue)
    }

    fn may_be_preempted(&self, class: Class) -> bool {
        Class::ALL.into_iter().take_while(|other| *other < class).any(|other| self.may_preempt(other))
    }

    fn may_preempt(&self, class: Class) -> bool {
        self.bounds.classes.of(class).preemption == Preemption::Allowed
    }

    /// Where only less urgent requests stand in the way of those who wait, tells as many to depart: the least urgent first, of
    /// those the newest, and nobody within its class's reservation.
    fn preempt(&mut self, now: Timestamp) {
        let is_just_full = self.bounds.concurrent_max.is_some_and(|most| self.in_flight() == most.get());
        let is_token_free = self.bucket.as_ref().is_none_or(|bucket| bucket.ready_at() <= now);
        if !is_just_full || !is_token_free {
            return;
        }
        let mut wanted = 0;
        for class in Class::ALL {
            if !self.may_preempt(class) {
                continue;
            }
            wanted += self.depth_of(class);
            while self.classes.iter().map(|class| class.told.len()).sum::<usize>() < wanted {
                let Some(victim) = class.below().find(|lower| self.can_spare(*lower)) else { break };
                let standing = self.class_mut(victim);
                let Some((number, bell)) = standing.unheard.pop_last() else { break };
                standing.told.insert(number);
                bell.preempt();
                self.tally.preempted[victim.index()][class.index()] += 1;
            }
        }
    }

    fn can_spare(&self, class: Class) -> bool {
        let standing = self.class(class);
        !standing.unheard.is_empty() && standing.in_flight - standing.told.len() > self.reserved_for(class)
    }

    fn settle(&mut self) {
        if !self.is_full() {
            self.pace.roomy();
        }
    }
}

fn reserved(bounds: &Bounds) -> [usize; 4] {
    bounds.concurrent_max.map_or([0; 4], |most| bounds.classes.reserved(most.get()))
}

/// The bounds of a promise: below, coming back would only cost; above, nobody believes it.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(600);

#[cfg(test)]
#[path = "line_tests.rs"]
mod tests;
