use std::{cell::Cell, rc::Rc};

use smg_base::{Random, SplitMix};

use super::*;

/// How often it rang, whether it said to depart, and whether it must not.
#[derive(Clone, Debug, Default)]
struct Rung(Rc<(Cell<u32>, Cell<bool>, Cell<bool>)>);

impl Rung {
    fn rings(&self) -> u32 {
        self.0.0.get()
    }

    fn is_preempted(&self) -> bool {
        self.0.1.get()
    }
}

impl Bell for Rung {
    fn ring(&self) {
        self.0.0.set(self.rings() + 1);
    }

    fn preempt(&self) {
        assert!(!self.is_preempted(), "told once");
        assert!(!self.0.2.get(), "who is being answered keeps its place");
        self.0.1.set(true);
    }
}

fn at(ms: u64) -> Timestamp {
    Timestamp::ORIGIN + Duration::from_secs(1_000) + Duration::from_millis(ms)
}

fn bounds(concurrent_max: usize, queue_max: usize, rate_per_second: Option<f64>) -> Bounds {
    let classes = Classes::one(queue_max, Duration::from_secs(60));
    Bounds { concurrent_max: NonZeroUsize::new(concurrent_max), rate_per_second, classes }
}

fn line(concurrent_max: usize, queue_max: usize) -> Line<Rung> {
    Line::new(bounds(concurrent_max, queue_max, None))
}

fn by(class: Class, tenant: TenantKey) -> Newcomer {
    Newcomer { class, tenant, cost: 100 }
}

fn come(line: &mut Line<Rung>, newcomer: Newcomer, now: Timestamp) -> (Arrival, Rung) {
    let rung = Rung::default();
    (line.arrive(newcomer, now, || rung.clone()), rung)
}

fn queued(line: &mut Line<Rung>, newcomer: Newcomer, now: Timestamp) -> (Ticket, Rung) {
    match come(line, newcomer, now) {
        (Arrival::Queued(ticket), rung) => (ticket, rung),
        (other, _) => panic!("queued, not {other:?}"),
    }
}

fn admitted(line: &mut Line<Rung>, newcomer: Newcomer, now: Timestamp) -> (Pass, Rung) {
    match come(line, newcomer, now) {
        (Arrival::Admitted(pass), rung) => (pass, rung),
        (other, _) => panic!("admitted, not {other:?}"),
    }
}

fn pass(line: &mut Line<Rung>, ticket: Ticket, now: Timestamp) -> Pass {
    match line.look(ticket, now) {
        Look::Admitted(pass) => pass,
        other => panic!("admitted, not {other:?}"),
    }
}

const SOMEBODY: Newcomer = Newcomer { class: Class::Default, tenant: 1, cost: 100 };

#[test]
fn places_go_in_the_order_of_arrival() {
    let mut line = line(1, 2);
    let (inside, _) = admitted(&mut line, SOMEBODY, at(0));
    let (first, first_bell) = queued(&mut line, SOMEBODY, at(1));
    let (second, second_bell) = queued(&mut line, SOMEBODY, at(2));
    assert_eq!(come(&mut line, SOMEBODY, at(3)).0, Arrival::Full);
    line.depart(inside, at(10));
    assert_eq!((first_bell.rings(), second_bell.rings()), (1, 0));
    assert_eq!(line.look(second, at(10)), Look::Wait(None));
    pass(&mut line, first, at(10));
    assert_eq!((line.in_flight(), line.depth()), (1, 1));
}

#[test]
fn the_place_of_one_who_left_goes_to_the_next() {
    let mut line = line(1, 4);
    let (inside, _) = admitted(&mut line, SOMEBODY, at(0));
    let (first, _) = queued(&mut line, SOMEBODY, at(1));
    let (second, _) = queued(&mut line, SOMEBODY, at(1));
    let (third, third_bell) = queued(&mut line, SOMEBODY, at(1));
    line.leave(second, at(2));
    line.depart(inside, at(3));
    line.leave(first, at(4));
    assert_eq!(third_bell.rings(), 1);
    let inside = pass(&mut line, third, at(5));
    line.depart(inside, at(6));
    assert_eq!((line.in_flight(), line.depth()), (0, 0));
}

#[test]
fn one_of_those_who_wait_waits_for_the_bucket_and_hands_the_alarm_on() {
    let mut line = Line::new(bounds(0, 10, Some(1.0)));
    admitted(&mut line, SOMEBODY, at(0));
    let (first, _) = queued(&mut line, SOMEBODY, at(0));
    let (second, second_bell) = queued(&mut line, SOMEBODY, at(0));
    assert_eq!(line.look(first, at(0)), Look::Wait(Some(at(1_000))));
    assert_eq!(line.look(second, at(0)), Look::Wait(None));
    line.leave(first, at(500));
    assert_eq!(second_bell.rings(), 1, "somebody else must set the alarm");
    assert_eq!(line.look(second, at(500)), Look::Wait(Some(at(1_000))));
    assert_eq!(line.look(second, at(500)), Look::Wait(Some(at(1_000))));
    assert_eq!(second_bell.rings(), 1, "looking rings no bell, or it would go on for ever");
    pass(&mut line, second, at(1_000));
}

#[test]
fn new_bounds_are_felt_by_those_who_wait() {
    let mut line = Line::new(bounds(1, 10, Some(1.0)));
    let (inside, _) = admitted(&mut line, SOMEBODY, at(0));
    let (first, first_bell) = queued(&mut line, SOMEBODY, at(0));
    assert_eq!(line.look(first, at(0)), Look::Wait(None), "no alarm while there is no room");
    line.depart(inside, at(10));
    assert_eq!(first_bell.rings(), 1);
    assert_eq!(line.look(first, at(10)), Look::Wait(Some(at(1_000))));
    line.rebound(bounds(1, 10, Some(2.0)), at(20));
    assert_eq!(first_bell.rings(), 2);
    assert_eq!(line.look(first, at(20)), Look::Wait(Some(at(500))), "half a second of slack, and no new burst");
    line.rebound(bounds(0, 0, None), at(30));
    pass(&mut line, first, at(30));
    admitted(&mut line, SOMEBODY, at(30));
}

#[test]
fn the_time_to_come_back_follows_the_pace() {
    let (class, tenant) = (SOMEBODY.class, SOMEBODY.tenant);
    let mut line = line(2, 3);
    let (inside, _) = admitted(&mut line, SOMEBODY, at(0));
    admitted(&mut line, SOMEBODY, at(0));
    assert_eq!(line.retry_after(class, tenant, at(0)), RETRY_MIN);
    let tickets: Vec<_> = (0..3).map(|_| queued(&mut line, SOMEBODY, at(0)).0).collect();
    let after = line.retry_after(class, tenant, at(4_000));
    assert_eq!(after, Duration::from_secs(16), "nobody left in four seconds");
    let other = line.retry_after(class, 2, at(4_000));
    assert_eq!(other, Duration::from_secs(8), "a tenant that has nobody waiting comes after one");
    assert_eq!(line.retry_after(Class::System, 2, at(4_000)), Duration::from_secs(4), "and the urgent at once");
    line.depart(inside, at(10_000));
    pass(&mut line, tickets[0], at(10_000));
    let after = line.retry_after(class, tenant, at(10_500));
    assert_eq!(after, Duration::from_secs(30), "three more at one in ten seconds");
    assert_eq!(line.retry_after(class, tenant, at(1_000_000)), RETRY_MAX);

    let mut line = Line::new(bounds(0, 4, Some(0.5)));
    admitted(&mut line, SOMEBODY, at(0));
    queued(&mut line, SOMEBODY, at(0));
    let after = line.retry_after(class, tenant, at(0));
    assert_eq!(after, Duration::from_secs(4), "one waits, at one in two seconds");
}

#[test]
fn a_full_line_takes_from_whoever_has_most() {
    let mut line = line(1, 4);
    let (inside, _) = admitted(&mut line, by(Class::Default, 1), at(0));
    let crowd: Vec<_> = (0..4).map(|_| queued(&mut line, by(Class::Default, 1), at(1))).collect();
    let (lonely, _) = queued(&mut line, by(Class::Default, 2), at(2));
    assert_eq!(crowd[3].1.rings(), 1);
    assert_eq!(line.look(crowd[3].0, at(2)), Look::Displaced);
    assert_eq!(come(&mut line, by(Class::Default, 1), at(2)).0, Arrival::Full);
    queued(&mut line, by(Class::Default, 2), at(2));
    assert_eq!(line.look(crowd[2].0, at(2)), Look::Displaced);
    assert_eq!(come(&mut line, by(Class::Default, 2), at(2)).0, Arrival::Full, "two each");
    assert_eq!(line.depth(), 4);
    line.depart(inside, at(3));
    let inside = pass(&mut line, crowd[0].0, at(3));
    line.depart(inside, at(4));
    assert!(matches!(line.look(lonely, at(4)), Look::Wait(_) | Look::Admitted(_)));
}

fn scheduled(concurrent_max: usize, change: impl FnOnce(&mut Classes)) -> Line<Rung> {
    let mut classes = Classes::one(100, Duration::from_secs(60));
    change(&mut classes);
    Line::new(Bounds { concurrent_max: NonZeroUsize::new(concurrent_max), rate_per_second: None, classes })
}

#[test]
fn the_more_urgent_go_first_and_the_overdue_in_between() {
    let mut line = scheduled(1, |classes| {
        classes.of_mut(Class::Bulk).passed_over_max = Duration::from_secs(10);
    });
    let (mut inside, _) = admitted(&mut line, SOMEBODY, at(0));
    let bulk: Vec<_> = (0..3).map(|_| queued(&mut line, by(Class::Bulk, 1), at(0)).0).collect();
    let mut order = Vec::new();
    for second in 1..25 {
        let now = at(second * 1_000);
        let (urgent, _) = queued(&mut line, by(Class::Interactive, 2), now);
        line.depart(inside, now);
        let next = bulk.iter().find_map(|ticket| match line.look(*ticket, now) {
            Look::Admitted(pass) => Some(pass),
            _ => None,
        });
        if next.is_some() {
            order.push(second);
        }
        inside = match next {
            Some(pass) => {
                line.leave(urgent, now);
                pass
            }
            None => pass(&mut line, urgent, now),
        };
    }
    assert_eq!(order, [10, 20], "one in ten seconds");
    assert_eq!(line.tally().promoted, [0, 0, 0, 2]);
}

#[test]
fn what_is_reserved_is_lent_and_comes_back() {
    let mut line = scheduled(4, |classes| classes.of_mut(Class::Bulk).reserved_floor = 2);
    let inside: Vec<_> = (0..4).map(|_| admitted(&mut line, by(Class::Interactive, 1), at(0)).0).collect();
    let urgent: Vec<_> = (0..4).map(|_| queued(&mut line, by(Class::Interactive, 1), at(1)).0).collect();
    let bulk: Vec<_> = (0..4).map(|_| queued(&mut line, by(Class::Bulk, 1), at(1)).0).collect();
    for pass in inside {
        line.depart(pass, at(2));
    }
    let inside = |line: &mut Line<Rung>, tickets: &[Ticket]| {
        let looks = tickets.iter().map(|ticket| line.look(*ticket, at(3)));
        looks.filter(|look| matches!(look, Look::Admitted(_))).count()
    };
    assert_eq!((inside(&mut line, &bulk), inside(&mut line, &urgent)), (2, 2));
}

#[test]
fn the_newest_of_the_least_urgent_departs_before_it_is_heard() {
    let mut line = scheduled(4, |classes| {
        classes.of_mut(Class::Interactive).preemption = Preemption::Allowed;
        classes.of_mut(Class::Default).reserved_floor = 1;
    });
    let (_, default_bell) = admitted(&mut line, by(Class::Default, 1), at(0));
    let (heard, heard_bell) = admitted(&mut line, by(Class::Bulk, 1), at(0));
    let (older, older_bell) = admitted(&mut line, by(Class::Bulk, 1), at(0));
    let (newer, newer_bell) = admitted(&mut line, by(Class::Bulk, 1), at(0));
    line.begun(heard, at(1));
    let (bulk, _) = queued(&mut line, by(Class::Bulk, 1), at(1));
    let (urgent, _) = queued(&mut line, by(Class::Interactive, 2), at(2));
    assert_eq!((older_bell.is_preempted(), newer_bell.is_preempted()), (false, true));
    line.depart(newer, at(3));
    pass(&mut line, urgent, at(3));
    let (second, _) = queued(&mut line, by(Class::Interactive, 2), at(4));
    assert!(older_bell.is_preempted());
    line.begun(older, at(5));
    let (third, _) = queued(&mut line, by(Class::Interactive, 2), at(6));
    assert!(!default_bell.is_preempted() && !heard_bell.is_preempted(), "the reserved and the heard stay");
    line.depart(older, at(7));
    pass(&mut line, second, at(7));
    line.leave(third, at(8));
    assert_eq!(line.look(bulk, at(8)), Look::Wait(None));
    assert_eq!(line.tally().preempted[Class::Bulk.index()], [0, 2, 0, 0]);
}

struct Waiter {
    ticket: Ticket,
    bell: Rung,
    seen: u32,
    alarm: Option<Timestamp>,
}

impl Waiter {
    fn is_called(&self, now: Timestamp) -> bool {
        self.bell.rings() >= self.seen || self.alarm.is_some_and(|alarm| alarm <= now)
    }
}

/// A run of random events, with what is expected of the line kept beside it.
struct Run {
    seed: u64,
    random: SplitMix,
    line: Line<Rung>,
    most: usize,
    inside: Vec<(Pass, Rung)>,
    waiting: Vec<Waiter>,
}

impl Run {
    fn bounds(random: &SplitMix, most: usize, rate: Option<f64>) -> Bounds {
        let mut classes = Classes::one(5, Duration::from_secs(60));
        for class in Class::ALL {
            let terms = classes.of_mut(class);
            terms.reserved_floor = random.below(3) as usize;
            terms.passed_over_max = Duration::from_millis(100 + random.below(1_000));
            if class < Class::Default && random.below(2) == 0 {
                terms.preemption = Preemption::Allowed;
            }
        }
        Bounds { concurrent_max: NonZeroUsize::new(most), rate_per_second: rate, classes }
    }

    fn step(&mut self, rate: Option<f64>, now: Timestamp) {
        match self.random.below(20) {
            0..9 => self.arrival(now),
            9..13 if !self.inside.is_empty() => {
                let (pass, _) = self.inside.swap_remove(self.random.below(self.inside.len() as u64) as usize);
                self.line.correct(pass, self.random.below(1_000));
                self.line.depart(pass, now);
            }
            13 if !self.inside.is_empty() => {
                let (pass, bell) = &self.inside[self.random.below(self.inside.len() as u64) as usize];
                bell.0.2.set(true);
                self.line.begun(*pass, now);
            }
            14..18 if !self.waiting.is_empty() => {
                let left = self.waiting.remove(self.random.below(self.waiting.len() as u64) as usize);
                self.line.leave(left.ticket, now);
            }
            18 => {
                self.most = 1 + self.random.below(6) as usize;
                self.line.rebound(Self::bounds(&self.random, self.most, rate), now);
            }
            _ => {}
        }
    }

    fn arrival(&mut self, now: Timestamp) {
        let class = Class::ALL[self.random.below(4) as usize];
        let newcomer = Newcomer { class, tenant: self.random.below(3), cost: self.random.below(1_000) };
        let queue_max = self.line.bounds().classes.of(class).queue_max;
        let depth = self.line.depth_of(class);
        match come(&mut self.line, newcomer, now) {
            (Arrival::Admitted(pass), bell) => {
                assert!(self.waiting.is_empty() && self.inside.len() < self.most, "nobody jumps the line");
                self.inside.push((pass, bell));
            }
            // A newcomer looks at once.
            (Arrival::Queued(ticket), bell) => self.waiting.push(Waiter { ticket, bell, seen: 0, alarm: None }),
            (Arrival::Full, _) => assert!(depth >= queue_max),
        }
    }

    /// Lets those look whose bell rang or whose alarm is due, and only those: a lost wake-up shows as somebody who
    /// waits beside a free place, a livelock as looks without end.
    fn let_look(&mut self, now: Timestamp) {
        for _ in 0..200 {
            let Some(place) = self.waiting.iter().position(|waiter| waiter.is_called(now)) else { return };
            let waiter = &mut self.waiting[place];
            waiter.seen = waiter.bell.rings() + 1;
            match self.line.look(waiter.ticket, now) {
                Look::Wait(alarm) => waiter.alarm = alarm,
                Look::Displaced => drop(self.waiting.remove(place)),
                Look::Admitted(pass) => {
                    let waiter = self.waiting.remove(place);
                    let earlier = |other: &Waiter| {
                        let (a, b) = (&other.ticket, &waiter.ticket);
                        (a.class, a.tenant) == (b.class, b.tenant) && a.number < b.number && !other.is_called(now)
                    };
                    assert!(!self.waiting.iter().any(earlier), "seed {}: in the order of arrival", self.seed);
                    self.inside.push((pass, waiter.bell));
                }
            }
        }
        panic!("looks without end");
    }

    /// Those who were told to depart do so at once, or it was too late to tell them.
    fn heed(&mut self, now: Timestamp) {
        let is_told = |(_, bell): &(Pass, Rung)| bell.is_preempted() && !bell.0.2.get();
        while let Some(place) = self.inside.iter().position(is_told) {
            if self.random.below(4) == 0 {
                let (pass, bell) = &self.inside[place];
                bell.0.2.set(true);
                self.line.begun(*pass, now);
            } else {
                let (pass, _) = self.inside.swap_remove(place);
                self.line.depart(pass, now);
            }
            self.let_look(now);
        }
    }

    fn check(&self, rate: Option<f64>, step: u64) {
        let Self { seed, line, most, inside, waiting, .. } = self;
        let is_timed = waiting.iter().any(|waiter| waiter.alarm.is_some());
        let is_busy = waiting.is_empty() || inside.len() >= *most || is_timed;
        assert!(is_busy, "seed {seed}, step {step}: waits beside a free place");
        assert!(rate.is_some() || !is_timed, "seed {seed}: nothing to wait for");
        assert_eq!((line.in_flight(), line.depth()), (inside.len(), waiting.len()), "seed {seed}, step {step}");
        for class in Class::ALL {
            let count = inside.iter().filter(|(pass, _)| pass.ticket.class == class).count();
            assert_eq!(line.in_flight_of(class), count, "seed {seed}");
        }
    }
}

/// Random arrivals, departures, cancellations and new bounds, with the invariants checked after each.
#[test]
fn the_invariants_hold_whatever_happens() {
    for seed in 0..300 {
        let random = SplitMix::new(seed);
        let rate = [None, Some(20.0), Some(3.0)][random.below(3) as usize];
        let line = Line::new(Run::bounds(&random, 2, rate));
        let mut run = Run { seed, random, line, most: 2, inside: Vec::new(), waiting: Vec::new() };
        for step in 0..300 {
            let now = at(step * 23);
            run.step(rate, now);
            run.let_look(now);
            run.heed(now);
            run.check(rate, step);
        }
    }
}

/// With everybody always waiting, every place given goes where it should.
#[test]
fn reservations_hold_and_nobody_is_passed_over_for_long() {
    for seed in 0..50 {
        let random = SplitMix::new(seed);
        let most = 4 + random.below(20) as usize;
        let mut bounds = Run::bounds(&random, most, None);
        for class in Class::ALL {
            bounds.classes.of_mut(class).preemption = Preemption::Forbidden;
        }
        let reserved = bounds.classes.reserved(most);
        let mut line = Line::new(bounds);
        let mut inside: Vec<Pass> = (0..most).map(|_| admitted(&mut line, by(Class::Bulk, 1), at(0)).0).collect();
        let mut waiting: Vec<Ticket> = Vec::new();
        let mut served = [at(0); 4];
        for step in 1..500 {
            let now = at(step * 17);
            for class in Class::ALL {
                if line.depth_of(class) == 0 {
                    served[class.index()] = now;
                }
                while line.depth_of(class) < 2 {
                    waiting.push(queued(&mut line, by(class, 1), now).0);
                }
            }
            let before = Class::ALL.map(|class| line.in_flight_of(class));
            let gone = inside.swap_remove(random.below(most as u64) as usize);
            let short = |class: Class, extra: usize| before[class.index()] < reserved[class.index()] + extra;
            let was_short = |class: Class| short(class, usize::from(gone.ticket.class == class));
            line.depart(gone, now);
            let place = waiting.iter().position(|ticket| line.granted.contains_key(ticket)).expect("a place came free");
            let ticket = waiting.swap_remove(place);
            inside.push(pass(&mut line, ticket, now));
            let overdue =
                |class: Class| now.since(served[class.index()]) >= line.bounds().classes.of(class).passed_over_max;
            let context = format!("seed {seed}, step {step}: {ticket:?}");
            if !overdue(ticket.class) {
                assert!(!Class::ALL.into_iter().any(overdue), "{context}: somebody was passed over");
                let more_urgent = Class::ALL.into_iter().take_while(|class| *class < ticket.class);
                let anybody = Class::ALL.into_iter().any(was_short);
                assert!(was_short(ticket.class) || !anybody, "{context}: beyond a reservation");
                assert!(was_short(ticket.class) || more_urgent.count() == 0, "{context}: the most urgent waits");
            }
            served[ticket.class.index()] = now;
        }
    }
}
