//! The counters of a node, and the decisions taken from them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;
use smg_base::{Timestamp, map::StableMap};

use crate::{
    counter::{Fit, Moment},
    rule::{Dimension, Rule},
    rules::{Applied, CounterId, Rules, Subject},
    shard::{Shard, Telling},
    stance::Stance,
};

/// Parts of the table: enough that two requests seldom want one lock.
const SHARDS: usize = 64;
/// Counters looked through in each part by one [`Limiter::sweep`].
const SWEPT: usize = 32;
/// When to come back where only others can tell when it will do.
const UNKNOWN: Duration = Duration::from_secs(1);
/// When to come back where others have to hear something first.
const TOLD: Duration = Duration::from_millis(50);
/// When to come back where something has to be written down first.
const WRITTEN: Duration = Duration::from_millis(20);

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
    /// Whether there is enough left, and only has to be written down before: soon.
    pub is_unwritten: bool,
}

/// What a request was charged before it was sent. To be settled, whatever becomes of the request.
#[derive(Debug, Default)]
#[must_use = "what is not settled is never given back"]
pub struct Reservation {
    taken: SmallVec<[Taken; 6]>,
}

impl Reservation {
    /// Whether nothing was taken, because no rule was met.
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }
}

/// What was taken of one counter.
#[derive(Clone, Copy, Debug)]
struct Taken {
    counter: CounterId,
    amount: u64,
    /// Where the counter was.
    place: u32,
    /// The slot it was taken in.
    tick: u32,
    dimension: Dimension,
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

/// What a limiter holds, and what it had no room for.
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

/// The rules in force, and which of all that ever were.
#[derive(Debug, Default)]
pub(crate) struct InForce {
    pub(crate) rules: Arc<Rules>,
    pub(crate) generation: u32,
}

/// The counters of a node.
///
/// A decision takes one short lock for each rule that it meets. A refused request has taken nothing when the answer is there; while it is
/// decided, what its narrower rules granted may keep another request of the same subject out.
#[derive(Debug)]
pub struct Limiter {
    config: LimiterConfig,
    pub(crate) in_force: ArcSwap<InForce>,
    pub(crate) stance: ArcSwap<Stance>,
    pub(crate) shards: Box<[Mutex<Shard>]>,
    counters: AtomicUsize,
    full: AtomicU64,
    /// Other nodes by the numbers that counters keep for them.
    pub(crate) nodes: RwLock<StableMap<u64, u16>>,
    /// The part of the table that is asked first for changes.
    pub(crate) turn: AtomicUsize,
    /// Held by whoever replaces the rules.
    replacing: Mutex<()>,
}

impl Limiter {
    /// A limiter without rules.
    pub fn new(config: LimiterConfig) -> Self {
        Self {
            config,
            in_force: ArcSwap::default(),
            stance: ArcSwap::default(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            counters: AtomicUsize::new(0),
            full: AtomicU64::new(0),
            nodes: RwLock::default(),
            turn: AtomicUsize::new(0),
            replacing: Mutex::new(()),
        }
    }

    /// Puts other rules in force. Counters of rules that are in both stay as they are.
    pub fn reconfigure(&self, rules: Arc<Rules>) {
        let _replacing = self.replacing.lock();
        let before = self.in_force.load_full();
        let generation = before.generation.wrapping_add(1);
        let places: StableMap<_, _> = (0_u16..).zip(rules.all()).map(|(place, rule)| (rule.id, place)).collect();
        let moved = |rule: u16| {
            let known = before.rules.get(rule).and_then(|rule| places.get(&rule.id));
            known.copied().unwrap_or(crate::counter::NO_RULE)
        };
        self.in_force.store(Arc::new(InForce { rules, generation }));
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.generation = generation;
            shard.all_mut().for_each(|counter| counter.rule = moved(counter.rule));
        }
    }

    /// The rules in force.
    pub fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.in_force.load().rules)
    }

    /// Charges all rules that `subject` meets, or none of them. What a rule does not count of a request is not held against it: a charge
    /// of nothing is always granted.
    pub fn reserve(&self, subject: &Subject<'_>, demand: &Demand, now: Timestamp) -> Result<Reservation, Refused> {
        let in_force = self.in_force.load();
        let mut reservation = Reservation::default();
        if in_force.rules.is_empty() {
            return Ok(reservation);
        }
        let stance = self.stance.load();
        let moment = self.moment(now);
        for applied in in_force.rules.of(subject) {
            let Some(rule) = in_force.rules.get(applied.rule) else { continue };
            let amount = demand.of(rule.dimension);
            if amount == 0 {
                continue;
            }
            let charge = Charge { applied, rule, amount, generation: in_force.generation };
            match self.charge(&charge, &stance, moment) {
                Ok(taken) => reservation.taken.push(taken),
                Err(refused) => {
                    self.settle(reservation, &Demand::default(), now);
                    return Err(refused);
                }
            }
        }
        Ok(reservation)
    }

    fn charge(&self, charge: &Charge<'_>, stance: &Stance, moment: Moment) -> Result<Taken, Refused> {
        let Charge { applied, rule, amount, generation } = *charge;
        if amount > rule.amount {
            return Err(Refused { retry_after: Duration::MAX, never: true, ..refused(rule, UNKNOWN) });
        }
        let tick = moment.short_tick(rule.window);
        let mut shard = self.shard(applied.counter).lock();
        let place = match shard.find(applied.counter) {
            Some(place) => place,
            None => {
                self.insert(&mut shard, applied.counter, moment, self.config.counters_max).ok_or_else(|| full(rule))?
            }
        };
        let is_current = shard.generation == generation;
        let Some(counter) = shard.at_mut(place) else { return Err(full(rule)) };
        if is_current {
            counter.rule = applied.rule;
        }
        counter.advance(tick);
        let allowance = stance.allowance(rule, counter.lent(), moment.now);
        let mut fit = counter.fits(amount, allowance, moment);
        if fit == Fit::Fits && self.config.is_meshed && counter.is_pledged(rule.mode) && !counter.has_room(amount) {
            fit = Fit::Unwritten;
        }
        if fit == Fit::Fits {
            counter.take(amount);
            let tick = counter.tick();
            shard.mark(place, self.telling());
            return Ok(Taken { counter: applied.counter, amount, place, tick, dimension: rule.dimension });
        }
        if fit == Fit::Unwritten {
            counter.lack(amount);
            shard.mark(place, self.telling());
            return Err(Refused { is_unwritten: true, ..refused(rule, WRITTEN) });
        }
        let retry_after = match fit {
            Fit::Unwritten => WRITTEN,
            Fit::Untold => TOLD,
            Fit::Fits | Fit::Full => counter.fits_in(amount, allowance, moment).unwrap_or(UNKNOWN),
        };
        let is_wanting = rule.rights() > 0;
        if is_wanting {
            counter.want(amount);
        }
        if is_wanting || !counter.is_as_told() {
            shard.mark(place, self.telling());
        }
        Err(refused(rule, retry_after))
    }

    /// Replaces what was reserved by what was used, in the slot of the reservation if that still counts. More than was reserved is debt:
    /// it may exceed a limit, and later requests wait for it.
    pub fn settle(&self, reservation: Reservation, actual: &Demand, now: Timestamp) {
        let moment = self.moment(now);
        for taken in reservation.taken {
            let mut shard = self.shard(taken.counter).lock();
            let Some(place) = shard.find_at(taken.counter, taken.place) else { continue };
            let Some(counter) = shard.at_mut(place) else { continue };
            let before = counter.used();
            if taken.dimension == Dimension::Concurrency {
                counter.end(taken.amount);
            } else {
                counter.advance(moment.short_tick(taken.counter.window()));
                counter.correct(taken.tick, taken.amount, actual.of(taken.dimension));
            }
            if counter.used() != before {
                shard.mark(place, self.telling());
            }
        }
    }

    /// Shows how the limits stand that `subject` meets.
    pub fn standing(&self, subject: &Subject<'_>, now: Timestamp, visit: &mut dyn FnMut(&Rule, Standing)) {
        let in_force = self.in_force.load();
        let moment = self.moment(now);
        for applied in in_force.rules.of(subject) {
            if let Some(rule) = in_force.rules.get(applied.rule) {
                visit(rule, self.standing_of(rule, applied.counter, moment));
            }
        }
    }

    fn standing_of(&self, rule: &Rule, counter: CounterId, moment: Moment) -> Standing {
        let tick = moment.short_tick(rule.window);
        let mut shard = self.shard(counter).lock();
        let place = shard.find(counter);
        let Some(counter) = place.and_then(|place| shard.at_mut(place)) else {
            return Standing { limit: rule.amount, remaining: rule.amount, reset: Duration::ZERO };
        };
        counter.advance(tick);
        let used = counter.used().saturating_add(counter.others(tick).used);
        Standing {
            limit: rule.amount,
            remaining: rule.amount.saturating_sub(used),
            reset: if used == 0 { Duration::ZERO } else { counter.empty_in(moment) },
        }
    }

    /// Removes counters in which nothing counts any more, looking through some thousands at a call.
    pub fn sweep(&self, now: Timestamp) {
        let moment = self.moment(now);
        for shard in &self.shards {
            let removed = shard.lock().look_through(SWEPT, usize::MAX, moment, self.telling());
            self.counters.fetch_sub(removed, Relaxed);
        }
    }

    /// What is held.
    pub fn figures(&self) -> Figures {
        let mut figures =
            Figures { counters_max: self.config.counters_max, full: self.full.load(Relaxed), ..Figures::default() };
        for shard in &self.shards {
            let shard = shard.lock();
            figures.counters += shard.len();
            figures.bytes += shard.bytes();
        }
        figures
    }

    pub(crate) fn moment(&self, now: Timestamp) -> Moment {
        let origin = self.config.unix_ms_at_origin.saturating_mul(1_000_000);
        Moment { now, nanos: origin.saturating_add(now.as_nanos()) }
    }

    pub(crate) fn counters_max(&self) -> usize {
        self.config.counters_max
    }

    pub(crate) fn telling(&self) -> Telling {
        if self.config.is_meshed { Telling::Others } else { Telling::Nobody }
    }

    #[inline]
    pub(crate) fn shard(&self, counter: CounterId) -> &Mutex<Shard> {
        &self.shards[(counter.0 >> 58) as usize % SHARDS]
    }

    /// Counters that may be made for what others say of subjects that have not come here: some room is left for those that do.
    pub(crate) fn counters_for_others(&self) -> usize {
        self.config.counters_max - self.config.counters_max / 8
    }

    /// Makes a counter, in the place of one in which nothing counts if there are `counters_max` already.
    pub(crate) fn insert(&self, shard: &mut Shard, id: CounterId, moment: Moment, counters_max: usize) -> Option<u32> {
        if self.counters.fetch_add(1, Relaxed) >= counters_max {
            // Either a counter goes and its place is taken, or this one is not made.
            self.counters.fetch_sub(1, Relaxed);
            if !shard.make_room(moment, self.telling()) {
                self.full.fetch_add(1, Relaxed);
                return None;
            }
        }
        let place = shard.insert(id, moment.short_tick(id.window()));
        if place.is_none() {
            self.counters.fetch_sub(1, Relaxed);
        }
        place
    }
}

/// One rule's charge.
#[derive(Clone, Copy)]
struct Charge<'a> {
    applied: Applied,
    rule: &'a Rule,
    amount: u64,
    generation: u32,
}

fn refused(rule: &Rule, retry_after: Duration) -> Refused {
    let (dimension, limit) = (rule.dimension, rule.amount);
    Refused { rule: Arc::clone(&rule.name), dimension, limit, retry_after, never: false, is_unwritten: false }
}

/// All counters are in use.
fn full(rule: &Rule) -> Refused {
    Refused { rule: "all counters are in use".into(), ..refused(rule, UNKNOWN) }
}
