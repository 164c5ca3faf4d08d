//! How long tenants wait beside each other, in virtual time: the line, requests that arrive by chance and take what they
//! take, and no clock.

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    num::NonZeroUsize,
    rc::Rc,
    time::Duration,
};

use smg_base::{Random, SplitMix, Timestamp};

use crate::{
    class::{Class, Classes},
    line::{Arrival, Bell, Bounds, Line, Look, Newcomer, Pass, Ticket},
};

/// Who was called since the last look.
type Calls = Rc<RefCell<Vec<usize>>>;

/// Notes who is called.
#[derive(Clone, Debug)]
struct Noted {
    number: usize,
    calls: Calls,
}

impl Bell for Noted {
    fn ring(&self) {
        self.calls.borrow_mut().push(self.number);
    }

    fn preempt(&self) {}
}

/// A tenant's requests.
#[derive(Clone, Copy)]
struct Load {
    per_second: f64,
    /// Mean time that one runs; it costs as many tokens as milliseconds.
    seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives(usize),
    Departs(usize),
}

/// How long the requests of one tenant waited, in seconds, and how many were refused.
#[derive(Default)]
struct Waits {
    seconds: Vec<f64>,
    refused: usize,
}

impl Waits {
    fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let place = (part * (sorted.len() - 1) as f64) as usize;
        sorted[place]
    }
}

struct Waiter {
    ticket: Ticket,
    tenant: usize,
    since: Timestamp,
}

struct World {
    random: SplitMix,
    line: Line<Noted>,
    loads: Vec<Load>,
    /// Who they are to the line.
    tenants: [u64; 2],
    events: BinaryHeap<Reverse<(Timestamp, Event)>>,
    waiting: BTreeMap<usize, Waiter>,
    running: BTreeMap<usize, Pass>,
    waits: Vec<Waits>,
    calls: Calls,
    arrived: usize,
}

impl World {
    /// The waits of each tenant until the first one has sent `requests`.
    fn run(seed: u64, places: usize, loads: &[Load], requests: usize) -> Vec<Waits> {
        Self::new(seed, places, loads).until(requests)
    }

    fn new(seed: u64, places: usize, loads: &[Load]) -> Self {
        let classes = Classes::one(1_000, Duration::from_secs(60));
        let bounds = Bounds { concurrent_max: NonZeroUsize::new(places), rate_per_second: None, classes };
        let mut world = Self {
            random: SplitMix::new(seed),
            line: Line::new(bounds),
            loads: loads.to_vec(),
            tenants: [0, 1],
            events: BinaryHeap::new(),
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            waits: loads.iter().map(|_| Waits::default()).collect(),
            calls: Calls::default(),
            arrived: 0,
        };
        for tenant in 0..loads.len() {
            world.expect(tenant, Timestamp::ORIGIN);
        }
        world
    }

    fn until(mut self, requests: usize) -> Vec<Waits> {
        while let Some(Reverse((now, event))) = self.events.pop() {
            match event {
                Event::Arrives(tenant) => self.arrive(tenant, now),
                Event::Departs(number) => {
                    let pass = self.running.remove(&number).expect("it runs");
                    self.line.depart(pass, now);
                }
            }
            self.look(now);
            if self.waits[0].seconds.len() + self.waits[0].refused >= requests {
                break;
            }
        }
        self.waits
    }

    fn chance(&self, mean: f64) -> Duration {
        Duration::from_secs_f64(-mean * (1.0 - self.random.unit()).ln())
    }

    /// The tenant's next request will come.
    fn expect(&mut self, tenant: usize, now: Timestamp) {
        let gap = self.chance(self.loads[tenant].per_second.recip());
        self.events.push(Reverse((now + gap, Event::Arrives(tenant))));
    }

    fn arrive(&mut self, tenant: usize, now: Timestamp) {
        self.expect(tenant, now);
        self.arrived += 1;
        let number = self.arrived;
        let cost = (self.loads[tenant].seconds * 1_000.0) as u64;
        let newcomer = Newcomer { class: Class::Default, tenant: self.tenants[tenant], cost };
        let bell = Noted { number, calls: self.calls.clone() };
        match self.line.arrive(newcomer, now, || bell) {
            Arrival::Admitted(pass) => self.start(number, tenant, pass, Duration::ZERO, now),
            Arrival::Queued(ticket) => drop(self.waiting.insert(number, Waiter { ticket, tenant, since: now })),
            Arrival::Full => self.waits[tenant].refused += 1,
        }
    }

    fn start(&mut self, number: usize, tenant: usize, pass: Pass, waited: Duration, now: Timestamp) {
        self.waits[tenant].seconds.push(waited.as_secs_f64());
        let time = self.chance(self.loads[tenant].seconds);
        self.running.insert(number, pass);
        self.events.push(Reverse((now + time, Event::Departs(number))));
    }

    /// Those who were called look.
    fn look(&mut self, now: Timestamp) {
        for number in self.calls.take() {
            let Waiter { ticket, tenant, since } = self.waiting.remove(&number).expect("it waits");
            match self.line.look(ticket, now) {
                Look::Admitted(pass) => self.start(number, tenant, pass, now.since(since), now),
                Look::Displaced => self.waits[tenant].refused += 1,
                Look::Wait(_) => unreachable!("nobody is called for nothing where there is no rate"),
            }
        }
    }
}

/// The 99th percentiles of the waits of a tenant: with half the places for itself, and beside one that sends a hundred times
/// as much in requests of so many seconds.
fn compare(places: usize, busy: f64, seconds: f64) -> [f64; 2] {
    const REQUESTS: usize = 3_000;
    let light = Load { per_second: busy * places as f64 / 2.0, seconds: 1.0 };
    let heavy = Load { per_second: light.per_second * 100.0 / seconds, seconds };
    let waits = |places: usize, loads: &[Load]| {
        let mut sum = Waits::default();
        for seed in 1..=3 {
            let waits = World::run(seed, places, loads, REQUESTS).swap_remove(0);
            sum.seconds.extend(waits.seconds);
            sum.refused += waits.refused;
        }
        sum
    };
    let alone = waits(places / 2, &[light]);
    let beside = waits(places, &[light, heavy]);
    assert_eq!(beside.refused, 0, "the other's crowd gives way");
    let [alone, beside] = [&alone, &beside].map(|waits| (waits.quantile(0.5), waits.quantile(0.99)));
    println!(
        "{places} places, own half {:.0} % busy, the other's requests {seconds} times as long: alone p50 {:.3} s \
         p99 {:.3} s, beside the other p50 {:.3} s p99 {:.3} s, ratio {:.2}",
        busy * 100.0,
        alone.0,
        alone.1,
        beside.0,
        beside.1,
        beside.1 / alone.1,
    );
    [alone.1, beside.1]
}

/// The bound is for requests of equal length. Where a tenant's own half would hardly ever be full, there is next to nothing to
/// compare with: the other has taken the places that were free, and they come back as its requests end; a few ends of requests
/// are granted. Longer requests keep them longer, which no order can change: how much that is, is printed.
#[test]
fn a_hundred_times_the_load_pushes_nobody_beyond_twice_what_its_share_would_give() {
    const ENDS: f64 = 8.0;
    for places in [8, 32] {
        for busy in [0.5, 0.7, 0.9] {
            let [alone, beside] = compare(places, busy, 1.0);
            let granted = ENDS / places as f64;
            assert!(beside <= (2.0 * alone).max(granted), "{beside} beside, {alone} alone");
            compare(places, busy, 4.0);
        }
    }
}

/// That the figures above are the doing of turns: where both are one tenant to the line, the few are lost in the crowd.
#[test]
fn without_turns_the_crowd_takes_everything() {
    let light = Load { per_second: 2.8, seconds: 1.0 };
    let heavy = Load { per_second: 280.0, ..light };
    let mut world = World::new(1, 8, &[light, heavy]);
    world.tenants = [7, 7];
    let waits = world.until(1_000).swap_remove(0);
    println!("one queue for both: {} of 1000 refused, p99 {:.1} s", waits.refused, waits.quantile(0.99));
    assert!(waits.refused > 900, "{} refused", waits.refused);
}
