//! What goes between this node's limiter and the lanes of all nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use smg_base::Timestamp;

use super::{
    rows::{Beat, Grants, Kept, Key, NEVER, Register, Stamp, Value, Wanted},
    split::Company,
    views::Views,
};
use crate::{
    limiter::Limiter,
    rule::{Mode, Window},
    rules::{CounterId, Rules},
    snapshot::Pledge,
    stance::{Slot, Stance},
};

/// Time between two looks while counters change, and while they do not.
const PACE: Duration = Duration::from_millis(20);
const REST: Duration = Duration::from_millis(50);
/// Time between two looks without rules.
const IDLE: Duration = Duration::from_secs(1);
/// How long after a change counters count as changing.
const BUSY: Duration = Duration::from_secs(1);
/// Bytes of rows that this node writes in a second, and what may gather of that.
const BYTES_PER_SECOND: u64 = 64_000;
const BYTES_GATHERED: u64 = 16_000;
/// What a row costs beside its key and value: version, lengths, its part of frame and packet.
const ROW_BYTES: u64 = 24;
/// What the row of a counter costs at most.
const SLOT_BYTES: u64 = ROW_BYTES + 8 + 30;
/// Time between two looks at what durable counters are to be remembered of, and how many at once.
const KEEP_EVERY: Duration = Duration::from_millis(250);
const KEPT_AT_ONCE: usize = 256;
/// What the row of a durable counter costs at most, nearly always.
const KEPT_BYTES: u64 = ROW_BYTES + 8 + 128;
/// How long a row that says nothing any more stays: those who were away for a moment read it too.
const EMPTY_FOR: Duration = Duration::from_secs(10);
/// How long a node that wanted more running requests is taken to want them.
const LENT_FOR_RUNNING: Duration = Duration::from_secs(1);
/// Rows of others about rights that are kept.
const HEARD_MAX: usize = 65_536;

/// Which lane a row is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// The one that ends with its writer's run.
    Passing,
    /// The one that outlives it.
    Durable,
}

/// A row of this node's lane is to be set, or to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// In which lane.
    pub lane: Lane,
    /// Its key.
    pub key: Vec<u8>,
    /// Its value; none to remove it.
    pub value: Option<Vec<u8>>,
}

/// Rows of the durable lane. Each has to be kept, by this node's disk and another node, before [`Plane::kept`] is told so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Counts them.
    pub number: u64,
    /// The rows, no two with one key.
    pub writes: Vec<Write>,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of it is kept.
    Kept,
    /// Some of it may not be.
    Failed,
}

/// A batch that is being written.
#[derive(Debug)]
struct Writing {
    number: u64,
    pledges: Vec<(CounterId, Pledge)>,
    counters: Vec<CounterId>,
}

/// Another node, or this one, as membership knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub node: u64,
    /// Changes with each of its starts.
    pub boot: u64,
    /// Whether it is there.
    pub is_alive: bool,
    /// Whether it has said that it leaves.
    pub has_left: bool,
}

/// What the plane has done so far, and where it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rows written, and their bytes.
    pub rows_told: u64,
    /// Bytes of them.
    pub bytes_told: u64,
    /// Rows of others taken in.
    pub rows_heard: u64,
    /// Rows of others that could not be read, or were too many.
    pub rows_skipped: u64,
    /// Times that this node lent rights to another.
    pub lends: u64,
    /// The number of the view that divides rights; zero for none.
    pub view: u64,
    /// How many divide them.
    pub seats: u64,
    /// Classes of windows in which this node's part may not grow yet.
    pub pending: u8,
    /// One of how many parts of what is divided is this node's to spend, by [`Stance::class`]; zero where none is.
    pub parts: [u32; Stance::CLASSES],
}

/// What was told of a counter.
#[derive(Clone, Copy, Debug)]
struct Told {
    slot: Slot,
    empty_since: Option<Timestamp>,
}

/// What another node lent this one.
#[derive(Clone, Copy, Debug)]
struct Granted {
    run: u64,
    view: u64,
    amount: u64,
}

/// The plane of limits of one node.
pub struct Plane {
    limiter: Arc<Limiter>,
    node: u64,
    run: u64,
    views: Views,
    company: Company,
    boots: BTreeMap<u64, u64>,
    alive: BTreeSet<u64>,
    /// The rules of which it is known whether they divide rights.
    rules: Option<Arc<Rules>>,
    has_rights: bool,
    told: BTreeMap<CounterId, Told>,
    /// What this node lent in its view, to whom.
    lent: BTreeMap<CounterId, BTreeMap<u64, u64>>,
    /// What it was lent.
    granted: BTreeMap<(CounterId, u64), Granted>,
    /// What it had lent in earlier views, and may not spend until its part grows.
    owed: BTreeMap<CounterId, i64>,
    /// Who wants what.
    asked: BTreeMap<(CounterId, u64), u64>,
    wanted: u64,
    /// Rows that say what this node wants, since when.
    wanting: BTreeMap<CounterId, Timestamp>,
    /// Durable counters that have changed, and rows of this run.
    to_keep: BTreeSet<CounterId>,
    kept: BTreeSet<CounterId>,
    /// Rights of strict rules that earlier runs have met.
    restored: BTreeMap<CounterId, u64>,
    /// What was pledged last of each that this run has written down, and that of which less is to be.
    pledged: BTreeMap<CounterId, u64>,
    to_lower: BTreeSet<CounterId>,
    kept_at: Timestamp,
    batches: u64,
    batch: Option<Batch>,
    writing: Option<Writing>,
    bytes: u64,
    looked: Timestamp,
    looked_unix_us: u64,
    changed: Option<Timestamp>,
    stamps: Vec<u64>,
    writes: Vec<Write>,
    tally: Tally,
}

impl Plane {
    /// The plane of `node` in its run `run`, a number that no other run has. It holds no rights yet. Where nobody has divided any, it takes
    /// at least `founders` nodes to begin: one that has lost its memory and its way to the others must not do so by itself.
    pub fn new(node: u64, run: u64, founders: usize, limiter: Arc<Limiter>, now: Timestamp) -> Self {
        limiter.set_stance(Stance { shares: [None; Stance::CLASSES], rights_until: Timestamp::ORIGIN, split: None });
        Self {
            limiter,
            node,
            run,
            views: Views::new(node, run, founders, now),
            company: Company::default(),
            boots: BTreeMap::new(),
            alive: BTreeSet::from([node]),
            rules: None,
            has_rights: false,
            told: BTreeMap::new(),
            lent: BTreeMap::new(),
            granted: BTreeMap::new(),
            owed: BTreeMap::new(),
            asked: BTreeMap::new(),
            wanted: 0,
            wanting: BTreeMap::new(),
            to_keep: BTreeSet::new(),
            kept: BTreeSet::new(),
            restored: BTreeMap::new(),
            pledged: BTreeMap::new(),
            to_lower: BTreeSet::new(),
            kept_at: now,
            batches: 0,
            batch: None,
            writing: None,
            bytes: BYTES_GATHERED,
            looked: now,
            looked_unix_us: 0,
            changed: None,
            stamps: Vec::new(),
            writes: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// Who is there, this node included; none before it has joined, or after it has left.
    pub fn set_members(&mut self, members: Option<&[Member]>, now: Timestamp) {
        let Some(members) = members else { return self.views.set_alive(None, now) };
        let mut alive = BTreeSet::from([self.node]);
        let mut left = BTreeSet::new();
        for member in members.iter().filter(|member| member.node != self.node) {
            let before = self.boots.insert(member.node, member.boot);
            if member.is_alive {
                alive.insert(member.node);
            }
            if member.has_left {
                left.insert(member.node);
            }
            let is_anew = before.is_some_and(|before| before != member.boot);
            if is_anew || (!member.is_alive && self.alive.contains(&member.node)) {
                self.limiter.forget_node(member.node);
            }
        }
        self.boots.retain(|node, _| members.iter().any(|member| member.node == *node));
        self.company.set(&alive, &left, now);
        self.views.set_alive(Some(&alive), now);
        self.alive = alive;
    }

    /// Takes a row of a lane, this node's own durable ones included.
    pub fn take(&mut self, writer: u64, lane: Lane, key: &[u8], value: Option<&[u8]>, now: Timestamp) {
        // A row that is gone tells nothing: what it said passes by itself, and lanes also end with their writers.
        let Some(value) = value else { return };
        if writer == self.node && lane == Lane::Passing {
            return;
        }
        let taken = match (lane, Key::of(key)) {
            (Lane::Passing, Some(Key::Counter(counter))) => Slot::decode(value).map(|slot| {
                self.limiter.hear(writer, counter, slot, now);
            }),
            (Lane::Passing, Some(Key::Grants(counter))) => {
                Grants::decode(value).and_then(|grants| self.take_grants(writer, counter, &grants, now))
            }
            (Lane::Passing, Some(Key::Wanted(counter))) => {
                let has_room = self.asked.len() < HEARD_MAX;
                let wanted = Wanted::decode(value).filter(|_| has_room);
                wanted.map(|wanted| {
                    self.asked.insert((counter, writer), wanted.rights);
                })
            }
            (Lane::Passing, Some(Key::Beat)) => Beat::decode(value).map(|beat| self.views.take_beat(writer, beat, now)),
            (Lane::Passing, Some(Key::Stamp)) => Stamp::decode(value).map(|stamp| {
                if self.stamps.len() < HEARD_MAX {
                    self.stamps.push(stamp.0);
                }
            }),
            (Lane::Durable, Some(Key::Register)) => {
                Register::decode(value).map(|register| self.views.take_register(writer, register))
            }
            (Lane::Durable, Some(Key::Counter(counter))) => {
                Kept::of(value).and_then(|kept| self.take_kept(writer, counter, &kept, now))
            }
            _ => None,
        };
        match taken {
            Some(()) => self.tally.rows_heard += 1,
            None => self.tally.rows_skipped += 1,
        }
    }

    /// Does what there is to do. `unix_us` is the wall clock, which nothing is decided by.
    pub fn tick(&mut self, now: Timestamp, unix_us: u64) {
        self.look_at_rules();
        let gained = now.since(self.looked).as_millis() * u128::from(BYTES_PER_SECOND) / 1_000;
        self.bytes = self.bytes.saturating_add(u64::try_from(gained).unwrap_or(u64::MAX)).min(BYTES_GATHERED);
        if self.has_rights {
            self.agree(now);
        }
        self.stand(now);
        self.tell(now, unix_us);
        self.lend(now);
        // As many as there are bytes for, and some from time to time though there are none.
        let is_time = now.since(self.kept_at) >= KEEP_EVERY;
        if is_time {
            self.kept_at = now;
            self.to_keep.append(&mut self.to_lower);
            self.tidy(now);
        }
        let room = usize::try_from(self.bytes / KEPT_BYTES).unwrap_or(usize::MAX);
        self.keep(if is_time { KEPT_AT_ONCE } else { room.min(KEPT_AT_ONCE) }, now);
        self.looked = now;
        self.looked_unix_us = unix_us;
    }

    /// When [`Self::tick`] is to be called again, if nothing comes before.
    pub fn due(&self) -> Timestamp {
        let is_busy = self.changed.is_some_and(|changed| self.looked.since(changed) < BUSY);
        let pace = match self.rules.as_ref().is_none_or(|rules| rules.is_empty()) {
            true => IDLE,
            false if is_busy => PACE,
            false => REST,
        };
        let beat = if self.has_rights { self.views.beat_due() } else { NEVER };
        (self.looked + pace).min(beat)
    }

    /// What is to be written, in this order.
    pub fn take_writes(&mut self) -> Vec<Write> {
        std::mem::take(&mut self.writes)
    }

    /// What is to be kept, if that is another than the last one. There is none before [`Self::kept`] was told of the one before.
    pub fn take_batch(&mut self) -> Option<Batch> {
        self.batch.take()
    }

    /// What became of a batch.
    pub fn kept(&mut self, number: u64, outcome: Outcome) {
        let Some(writing) = self.writing.take_if(|writing| writing.number == number) else { return };
        if outcome == Outcome::Failed {
            for counter in writing.counters {
                // A row that was to be removed may still be there.
                self.pledged.entry(counter).or_insert(0);
                self.to_lower.insert(counter);
            }
            return;
        }
        for (counter, pledge) in writing.pledges {
            self.limiter.pledged(counter, pledge);
            if pledge.amount > pledge.least {
                self.to_lower.insert(counter);
            }
        }
    }

    /// Since when what was just heard may have been counted at the node that told it: readings of its wall clock in microseconds.
    pub fn take_stamps(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.stamps)
    }

    /// What was done so far.
    pub fn tally(&self) -> Tally {
        let view = self.views.view();
        Tally {
            view: view.map_or(0, |view| view.number),
            seats: view.map_or(0, |view| view.seats.len() as u64),
            pending: if self.views.seated().is_some() { self.views.pending() } else { 0 },
            parts: self.limiter.stance().parts(self.looked),
            ..self.tally
        }
    }

    fn look_at_rules(&mut self) {
        let rules = self.limiter.rules();
        if self.rules.as_ref().is_some_and(|known| Arc::ptr_eq(known, &rules)) {
            return;
        }
        self.has_rights |= rules.all().iter().any(|rule| rule.mode != Mode::Shared);
        self.rules = Some(rules);
    }

    /// Agrees with the others on who divides the rights.
    fn agree(&mut self, now: Timestamp) {
        let before = self.views.pending();
        if self.views.advance(now) {
            self.adopted(now);
            // Alone, or the last of all, it need not wait for anybody.
            self.views.advance(now);
        }
        let grown = before & !self.views.pending();
        let grown: Vec<CounterId> =
            self.owed.keys().copied().filter(|counter| grown & 1 << class(*counter) != 0).collect();
        for counter in grown {
            self.owed.remove(&counter);
            self.set_lent(counter, now);
        }
        if let Some(register) = self.views.take_register_to_write() {
            self.write(Lane::Durable, Key::Register, Some(register.encode()));
        }
        if let Some(beat) = self.views.take_beat_to_write(now) {
            self.write(Lane::Passing, Key::Beat, Some(beat.encode()));
        }
    }

    /// Another view divides the rights: what was lent in the last one is over, and what was spent may be too much.
    fn adopted(&mut self, now: Timestamp) {
        let touched: BTreeSet<CounterId> =
            self.lent.keys().copied().chain(self.granted.keys().map(|(counter, _)| *counter)).collect();
        let before = std::mem::take(&mut self.lent);
        for counter in before.keys() {
            self.write(Lane::Passing, Key::Grants(*counter), None);
        }
        for &counter in &touched {
            let lent = self.limiter.own(counter, now).map_or(0, |own| own.lent);
            // Also of what this node has not met: to have lent is to owe.
            let away: u64 = before.get(&counter).map_or(0, |to| to.values().sum());
            let lent = if lent == 0 { i64::try_from(away).unwrap_or(i64::MAX).saturating_neg() } else { lent };
            if lent < 0 {
                self.owed.insert(counter, lent);
            } else {
                self.owed.remove(&counter);
            }
        }
        let number = self.views.view().map_or(0, |view| view.number);
        self.granted.retain(|_, granted| granted.view >= number);
        // First the limiter is told what it may spend no more; then it is asked what it has spent.
        self.stand(now);
        let counters: BTreeSet<CounterId> = touched.into_iter().chain(self.owed.keys().copied()).collect();
        for counter in counters {
            self.set_lent(counter, now);
        }
        self.gather(usize::MAX, now);
        let shares = self.views.shares();
        let mut over = 0;
        for counter in self.told.keys() {
            let Some(own) = self.limiter.own(*counter, now) else { continue };
            let rights = match own.mode {
                Some(Mode::Strict) => own.rights,
                Some(_) => continue,
                // What an earlier run took of a rule that this one has not met.
                None => match self.restored.get(counter) {
                    Some(rights) => *rights,
                    None => continue,
                },
            };
            let class = class(*counter);
            let part = shares[class].map_or(0, |share| share.of(rights).saturating_add_signed(own.lent));
            if own.used > part {
                over |= 1 << class;
            }
        }
        self.views.set_over(over);
    }

    /// Tells the limiter where this node stands.
    fn stand(&mut self, now: Timestamp) {
        let stance = Stance {
            shares: self.views.shares(),
            rights_until: self.views.rights_until(),
            split: self.company.split(now),
        };
        if stance != self.limiter.stance() {
            self.limiter.set_stance(stance);
        }
    }

    /// Tells the others of the counters that have changed.
    fn tell(&mut self, now: Timestamp, unix_us: u64) {
        let max = usize::try_from(self.bytes / SLOT_BYTES).unwrap_or(usize::MAX);
        let max = if self.looked_unix_us == 0 { 0 } else { max };
        if max == 0 || !self.gather(max, now) {
            return;
        }
        self.changed = Some(now);
        // What is told now was counted after the last look, unless nobody looked for long.
        let pace = u64::try_from(PACE.as_micros()).unwrap_or(u64::MAX);
        let since = self.looked_unix_us.max(unix_us.saturating_sub(pace.saturating_mul(5)));
        self.write(Lane::Passing, Key::Stamp, Some(Stamp(since).encode()));
    }

    /// Writes down at most so many counters that have changed; whether there were any.
    fn gather(&mut self, max: usize, now: Timestamp) -> bool {
        let mut changed = Vec::new();
        self.limiter.changed(max, now, &mut |counter, slot| changed.push((counter, slot)));
        for (counter, slot) in &changed {
            let empty_since = (*slot == Slot::default()).then_some(now);
            self.told.insert(*counter, Told { slot: *slot, empty_since });
            self.write(Lane::Passing, Key::Counter(*counter), Some(slot.encode()));
            if counter.is_durable() {
                self.to_keep.insert(*counter);
            }
            if slot.wants > 0 && is_lendable(*counter) && self.views.seated().is_some() {
                self.want(*counter, now);
            }
        }
        !changed.is_empty()
    }

    fn want(&mut self, counter: CounterId, now: Timestamp) {
        let Some(own) = self.limiter.own(counter, now).filter(|own| own.rights > 0) else { return };
        self.wanted += 1;
        self.wanting.insert(counter, now);
        let wanted = Wanted { number: self.wanted, rights: own.rights };
        self.write(Lane::Passing, Key::Wanted(counter), Some(wanted.encode()));
    }

    /// Lends what this node does not need of what others want.
    fn lend(&mut self, now: Timestamp) {
        let Some(view) = self.views.seated().filter(|_| now < self.views.rights_until()) else {
            self.asked.clear();
            return;
        };
        for ((counter, node), rights) in std::mem::take(&mut self.asked) {
            let Some(share) = self.views.shares()[class(counter)].filter(|_| is_lendable(counter)) else { continue };
            let has_seat = self.views.view().is_some_and(|view| view.seat(node).is_some());
            let own = self.limiter.own(counter, now).unwrap_or_default();
            let rights = if own.mode.is_some() { own.rights } else { rights };
            let part = share.of(rights).saturating_add_signed(own.lent);
            let spare = part.saturating_sub(own.used);
            let give = if own.used == 0 { spare } else { spare / 2 };
            // Who wants more itself keeps what is its part, so that rights do not wander between those who are all busy.
            let window = counter.window().map_or(LENT_FOR_RUNNING, Window::length);
            let is_wanting = self.wanting.get(&counter).is_some_and(|since| now.since(*since) < window);
            let give = if is_wanting { give.min(part.saturating_sub(share.of(rights))) } else { give };
            if !has_seat || give == 0 || give < part / 16 {
                continue;
            }
            let Some(left) = i64::try_from(give).ok().and_then(|give| own.lent.checked_sub(give)) else { continue };
            // The part is less before it is looked what was spent of it meanwhile, and only then is anybody told.
            if !self.limiter.lend(counter, left, now) {
                continue;
            }
            let used = self.limiter.own(counter, now).map_or(0, |own| own.used);
            if used > part - give {
                self.limiter.lend(counter, own.lent, now);
                continue;
            }
            *self.lent.entry(counter).or_default().entry(node).or_default() += give;
            self.tally.lends += 1;
            let to = self.lent[&counter].iter().map(|(node, amount)| (*node, *amount)).collect();
            let grants = Grants { run: self.run, view, to };
            self.write(Lane::Passing, Key::Grants(counter), Some(grants.encode()));
        }
    }

    fn take_grants(&mut self, writer: u64, counter: CounterId, grants: &Grants, now: Timestamp) -> Option<()> {
        if self.granted.len() >= HEARD_MAX || !is_lendable(counter) {
            return None;
        }
        let Some((_, amount)) = grants.to.iter().find(|(node, _)| *node == self.node) else { return Some(()) };
        let granted = Granted { run: grants.run, view: grants.view, amount: *amount };
        self.granted.insert((counter, writer), granted);
        self.set_lent(counter, now);
        Some(())
    }

    /// Tells the limiter what this node has lent and was lent of a counter, in the view that holds.
    fn set_lent(&mut self, counter: CounterId, now: Timestamp) {
        let away: u64 = self.lent.get(&counter).map_or(0, |to| to.values().sum());
        let view = self.views.seated();
        let granted = self.granted.range((counter, 0)..=(counter, u64::MAX));
        let holds = |node: u64, granted: &Granted| Some(granted.view) == view && self.views.is_seat(node, granted.run);
        let here: u64 = granted.filter(|((_, node), granted)| holds(*node, granted)).map(|(_, one)| one.amount).sum();
        let [here, away] = [here, away].map(|amount| i64::try_from(amount).unwrap_or(i64::MAX));
        let lent = here.saturating_sub(away).saturating_add(self.owed.get(&counter).copied().unwrap_or(0));
        self.limiter.lend(counter, lent, now);
    }

    fn take_kept(&mut self, writer: u64, counter: CounterId, kept: &Kept, now: Timestamp) -> Option<()> {
        if writer == self.node {
            // What this run has written comes back too, and is older than what it knows.
            if !self.kept.contains(&counter) {
                self.limiter.restore(counter, &kept.snapshot, kept.pledged, now).ok()?;
                if kept.rights > 0 {
                    self.restored.insert(counter, kept.rights);
                }
            }
        } else if !self.alive.contains(&writer) {
            self.limiter.hear(writer, counter, kept.slot, now);
        }
        Some(())
    }

    /// Writes down what at most so many durable counters are to be remembered of: one batch after the other.
    fn keep(&mut self, max: usize, now: Timestamp) {
        if self.to_keep.is_empty() || self.writing.is_some() || max == 0 {
            return;
        }
        let looked_at: Vec<CounterId> = self.to_keep.iter().copied().take(max).collect();
        let (mut pledges, mut counters, mut writes) = (Vec::new(), Vec::new(), Vec::new());
        for counter in looked_at {
            self.to_keep.remove(&counter);
            let slot = self.told.get(&counter).map_or(Slot::default(), |told| told.slot);
            let before = self.pledged.get(&counter).copied();
            let mut snapshot = Vec::new();
            let value = match self.limiter.pledge(counter, before.unwrap_or(0), now, &mut snapshot) {
                Some(pledge) => {
                    self.kept.insert(counter);
                    self.pledged.insert(counter, pledge.amount);
                    pledges.push((counter, pledge));
                    let (pledged, rights) = (pledge.amount, pledge.rights);
                    Some(Kept { slot, pledged, rights, snapshot }.encode())
                }
                // What this run has not written is of an earlier one, of which more may be heard yet. It is not this run's to remove.
                None if before.is_none() => continue,
                None => {
                    self.pledged.remove(&counter);
                    None
                }
            };
            counters.push(counter);
            writes.push(self.told_of(Lane::Durable, Key::Counter(counter), value));
        }
        if writes.is_empty() {
            return;
        }
        self.batches += 1;
        self.batch = Some(Batch { number: self.batches, writes });
        self.writing = Some(Writing { number: self.batches, pledges, counters });
    }

    /// Removes rows that say nothing any more.
    fn tidy(&mut self, now: Timestamp) {
        let is_old = |since: Timestamp| now.since(since) >= EMPTY_FOR;
        let empty =
            |(counter, told): (&CounterId, &Told)| told.empty_since.filter(|since| is_old(*since)).map(|_| *counter);
        for counter in self.told.iter().filter_map(empty).take(KEPT_AT_ONCE).collect::<Vec<_>>() {
            self.told.remove(&counter);
            self.restored.remove(&counter);
            // What this run wrote has come back by now. A pledge that nobody used ends.
            self.kept.remove(&counter);
            if self.pledged.contains_key(&counter) {
                self.to_keep.insert(counter);
            }
            self.write(Lane::Passing, Key::Counter(counter), None);
        }
        let old = self.wanting.iter().filter(|(_, since)| is_old(**since)).map(|(counter, _)| *counter);
        for counter in old.collect::<Vec<_>>() {
            self.wanting.remove(&counter);
            self.write(Lane::Passing, Key::Wanted(counter), None);
        }
    }

    fn write(&mut self, lane: Lane, key: Key, value: Option<Vec<u8>>) {
        let write = self.told_of(lane, key, value);
        self.writes.push(write);
    }

    fn told_of(&mut self, lane: Lane, key: Key, value: Option<Vec<u8>>) -> Write {
        let key = key.bytes();
        let bytes = key.len() as u64 + value.as_ref().map_or(0, |value| value.len() as u64) + ROW_BYTES;
        self.bytes = self.bytes.saturating_sub(bytes);
        self.tally.rows_told += 1;
        self.tally.bytes_told += bytes;
        Write { lane, key, value }
    }
}

fn class(counter: CounterId) -> usize {
    Stance::class(counter.window())
}

/// Whether rights of a counter may be lent: what is lent is forgotten with a run, as is what such counters count.
fn is_lendable(counter: CounterId) -> bool {
    matches!(counter.window(), None | Some(Window::Second | Window::Minute))
}
