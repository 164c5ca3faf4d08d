//! One counter: what this node took in the window, and what others said that they did.

use std::time::Duration;

use smg_base::Timestamp;

use crate::{
    compact::Compact,
    rule::{Mode, Window},
    rules::CounterId,
    stance::{Allowance, Share, Slot},
};

/// A window is cut into one slot less than a ring has: a window that begins inside a slot touches one more, and that counts
/// whole. So nothing passes too early, and a lone client waits for at most a thirty-first of a window longer than it had to.
pub(crate) const SLOTS: usize = 32;
const SLOTS_OF_A_WINDOW: u64 = SLOTS as u64 - 1;
/// Slots after which a node's word counts by its lasting part only.
const HALF: u32 = SLOTS as u32 / 2 + 1;
/// Stands for all nodes that went and left something that still counts.
pub(crate) const GONE: u16 = u16::MAX;
/// A counter whose rule is not known here.
pub(crate) const NO_RULE: u16 = u16::MAX;

/// A time, as the slots of each window count it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// The reading of the monotonic clock.
    pub(crate) now: Timestamp,
    /// Nanoseconds since the Unix epoch by the clock read at the start, moved by the monotonic one.
    pub(crate) nanos: u64,
}

const fn slot_nanos(window: Window) -> u64 {
    (window.length().as_secs() * 1_000_000_000).div_ceil(SLOTS_OF_A_WINDOW)
}

impl Moment {
    /// The number of the slot it lies in. What has no window has one slot.
    #[inline]
    pub(crate) const fn tick(self, window: Option<Window>) -> u64 {
        // Written out so that each division is by a constant.
        match window {
            None => 0,
            Some(Window::Second) => self.nanos / const { slot_nanos(Window::Second) },
            Some(Window::Minute) => self.nanos / const { slot_nanos(Window::Minute) },
            Some(Window::Hour) => self.nanos / const { slot_nanos(Window::Hour) },
            Some(Window::Day) => self.nanos / const { slot_nanos(Window::Day) },
            Some(Window::Month) => self.nanos / const { slot_nanos(Window::Month) },
        }
    }

    /// The low bits of [`Moment::tick`], which are what counters keep.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "ticks are compared by their distance, which is small")]
    pub(crate) const fn short_tick(self, window: Option<Window>) -> u32 {
        self.tick(window) as u32
    }

    /// How long until the slot that begins `slots` after the current one.
    fn until(self, slots: usize, window: Window) -> Duration {
        let begins = (self.tick(Some(window)) + slots as u64) * slot_nanos(window);
        Duration::from_nanos(begins.saturating_sub(self.nanos))
    }
}

/// Slots from `earlier` to `later`; none if that is before.
#[inline]
const fn passed(earlier: u32, later: u32) -> u32 {
    let distance = later.wrapping_sub(earlier);
    // More than half the circle ahead is behind.
    if distance > u32::MAX / 2 { 0 } else { distance }
}

/// The last word of another node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    node: u16,
    /// How much of `used` lasts for more than half a window, in parts of 65 535, rounded up.
    lasting: u16,
    tick: u32,
    used: Compact,
    shared: Compact,
}

/// What of a word still counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counting {
    pub(crate) used: u64,
    pub(crate) shared: u64,
}

impl Heard {
    pub(crate) fn new(node: u16, slot: Slot, tick: u32) -> Self {
        let used = slot.used.max(slot.shared);
        let parts = (u128::from(slot.lasting.min(used)) * u128::from(u16::MAX)).div_ceil(u128::from(used.max(1)));
        Self {
            node,
            lasting: u16::try_from(parts).unwrap_or(u16::MAX),
            tick,
            used: Compact::up(used),
            shared: Compact::up(slot.shared),
        }
    }

    #[inline]
    fn at(&self, tick: u32) -> Counting {
        let age = passed(self.tick, tick);
        if age < HALF {
            return Counting { used: self.used.amount(), shared: self.shared.amount() };
        }
        if age < SLOTS as u32 { self.lasting() } else { Counting::default() }
    }

    fn lasting(&self) -> Counting {
        let used = self.used.amount();
        let later = (u128::from(used) * u128::from(self.lasting)).div_ceil(u128::from(u16::MAX));
        let later = u64::try_from(later).unwrap_or(used);
        Counting { used: later, shared: self.shared.amount().saturating_sub(used - later) }
    }

    /// Both together, as one that passes when the later one would.
    fn with(&self, other: &Self, node: u16) -> Self {
        let later = if passed(self.tick, other.tick) > 0 { other.tick } else { self.tick };
        Self {
            node,
            lasting: self.lasting.max(other.lasting),
            tick: later,
            used: Compact::up(self.used.amount() + other.used.amount()),
            shared: Compact::up(self.shared.amount() + other.shared.amount()),
        }
    }
}

/// What this node took in a window, and the last words of others. The parts that a decision reads come first, so that they share a
/// line of the processor's cache.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Counter {
    pub(crate) id: CounterId,
    /// The sum of the ring; for what has no window, what runs now.
    total: u64,
    /// [`Counter::lent`] or [`Counter::room`], whichever its window has.
    lent_or_room: i64,
    heard: Box<[Heard]>,
    /// The newest slot of the ring.
    tick: u32,
    /// `used` as the others heard it last.
    told: Compact,
    pub(crate) rule: u16,
    /// One more than the binary logarithm of the greatest charge refused for want of rights; zero if none was.
    wants: u8,
    /// The same of what was refused for want of room.
    lacks: u8,
    pub(crate) state: State,
    /// By the low bits of a slot's number, what was taken in it.
    ring: [Compact; SLOTS],
}

/// Whether a charge fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    Fits,
    /// It does when the others have heard what this node took before it.
    Untold,
    /// It does when it is written down that so much may be taken.
    Unwritten,
    /// It does not.
    Full,
}

/// What a place in the table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing.
    Free,
    /// A counter of which there is nothing to tell.
    Quiet,
    /// A counter that waits to be told of.
    Changed,
}

impl Counter {
    pub(crate) fn free() -> Self {
        Self::new(CounterId(0), 0, State::Free)
    }

    pub(crate) fn new(id: CounterId, tick: u32, state: State) -> Self {
        Self {
            id,
            total: 0,
            lent_or_room: 0,
            heard: Box::default(),
            tick,
            told: Compact::ZERO,
            rule: NO_RULE,
            wants: 0,
            lacks: 0,
            state,
            ring: [Compact::ZERO; SLOTS],
        }
    }

    /// What this node took and still counts. [`Counter::advance`] first.
    #[inline]
    pub(crate) const fn used(&self) -> u64 {
        self.total
    }

    pub(crate) const fn tick(&self) -> u32 {
        self.tick
    }

    /// Lets go of the slots that have passed by `tick`.
    #[inline]
    pub(crate) fn advance(&mut self, tick: u32) {
        let slots = passed(self.tick, tick);
        if slots == 0 {
            return;
        }
        if self.total == 0 || slots as usize >= SLOTS {
            self.ring = [Compact::ZERO; SLOTS];
            self.total = 0;
        } else {
            for ahead in 1..=slots {
                let slot = &mut self.ring[place(self.tick.wrapping_add(ahead))];
                self.total -= slot.amount();
                *slot = Compact::ZERO;
            }
        }
        self.tick = tick;
    }

    /// Whether `charge` fits.
    #[inline]
    pub(crate) fn fits(&self, charge: u64, allowance: Allowance, moment: Moment) -> Fit {
        let others = if self.heard.is_empty() { 0 } else { self.others(moment.short_tick(self.id.window())).shared };
        let left = allowance.shared.saturating_sub(others);
        let total = self.total.saturating_add(charge);
        if total > allowance.own.saturating_add(left) {
            return Fit::Full;
        }
        match allowance.portion {
            Some(portion) if total > allowance.own => self.fits_portion(total, left, allowance.own, portion, moment),
            _ => Fit::Fits,
        }
    }

    /// Whether what would be taken of `left` before the others hear of it is no more than a portion.
    fn fits_portion(&self, total: u64, left: u64, own: u64, portion: Share, moment: Moment) -> Fit {
        // Before anybody can have heard of this node it takes all of them for busy, later those of which it heard.
        let unheard = if self.told.is_zero() { u64::from(portion.members) } else { 1 };
        let nodes = unheard.max(self.heard.len() as u64 + 1);
        // What the others know that this node took counts for them already, also while it has passed here.
        let known = self.told.amount().max(own);
        let portion_of_left = left.saturating_sub(known - own) / nodes;
        let untold = total.saturating_sub(known);
        // What is too little to be portioned, or too large a charge, goes to one of them after the other.
        if untold <= portion_of_left || nodes == 1 || self.total <= known && portion.has_turn(moment.nanos) {
            Fit::Fits
        } else {
            Fit::Untold
        }
    }

    /// Whether what may be taken has to be written down first: what counts for so long that a run of the process may end meanwhile,
    /// and may not be exceeded.
    #[inline]
    pub(crate) const fn is_pledged(&self, mode: Mode) -> bool {
        matches!(mode, Mode::Strict) && self.id.outlives_runs()
    }

    /// What was added to this node's base right. Rights that outlive a run are not lent.
    #[inline]
    pub(crate) const fn lent(&self) -> i64 {
        if self.id.outlives_runs() { 0 } else { self.lent_or_room }
    }

    /// So much was added to this node's base right.
    pub(crate) const fn set_lent(&mut self, lent: i64) {
        if !self.id.outlives_runs() {
            self.lent_or_room = lent;
        }
    }

    /// What may still be taken before more of it is written down, where that is needed; less than nothing after debts. What does not
    /// outlive a run has none.
    #[inline]
    pub(crate) const fn room(&self) -> i64 {
        if self.id.outlives_runs() { self.lent_or_room } else { 0 }
    }

    #[inline]
    pub(crate) const fn set_room(&mut self, room: i64) {
        if self.id.outlives_runs() {
            self.lent_or_room = room;
        }
    }

    /// Whether there is room for `charge` in what was written down.
    #[inline]
    pub(crate) fn has_room(&self, charge: u64) -> bool {
        u64::try_from(self.room()).is_ok_and(|room| charge <= room)
    }

    /// Takes `amount` in the newest slot.
    #[inline]
    pub(crate) fn take(&mut self, amount: u64) {
        self.set_room(self.room().saturating_sub_unsigned(amount));
        if self.id.window().is_none() {
            self.total += amount;
        } else {
            self.change(self.tick, |slot| slot.saturating_add(amount));
        }
    }

    /// Puts `actual` in the place of `reserved` in the slot of the reservation. Nothing happens if that has passed.
    #[inline]
    pub(crate) fn correct(&mut self, tick: u32, reserved: u64, actual: u64) {
        if passed(tick, self.tick) as usize >= SLOTS {
            return;
        }
        if actual < reserved {
            // Makes no room: what is given back in one slot may be taken in another, which passes later.
            self.change(tick, |slot| slot.saturating_sub(reserved - actual));
        } else {
            self.set_room(self.room().saturating_sub_unsigned(actual - reserved));
            self.change(tick, |slot| slot.saturating_add(actual - reserved));
        }
    }

    /// Gives back what ran and had no window.
    #[inline]
    pub(crate) fn end(&mut self, amount: u64) {
        self.total = self.total.saturating_sub(amount);
    }

    #[inline]
    fn change(&mut self, tick: u32, change: impl FnOnce(u64) -> u64) {
        let slot = &mut self.ring[place(tick)];
        let before = slot.amount();
        *slot = Compact::up(change(before));
        self.total = self.total - before + slot.amount();
    }

    /// What the others' last words still count for.
    pub(crate) fn others(&self, tick: u32) -> Counting {
        self.heard.iter().fold(Counting::default(), |sum, heard| {
            let counting = heard.at(tick);
            Counting { used: sum.used + counting.used, shared: sum.shared + counting.shared }
        })
    }

    /// When `charge` fits, if nobody takes anything before that; `None` if no slot that passes makes room for it.
    pub(crate) fn fits_in(&self, charge: u64, allowance: Allowance, now: Moment) -> Option<Duration> {
        let window = self.id.window()?;
        let tick = now.short_tick(Some(window));
        let mut others = self.others(tick).shared;
        // What the others' words lose when so many slots have passed.
        let mut losses = [0_u64; SLOTS + 1];
        for heard in &self.heard {
            let age = passed(heard.tick, tick);
            let counting = heard.at(tick).shared;
            let lasting = heard.lasting().shared.min(counting);
            if age < HALF {
                losses[(HALF - age) as usize] += counting - lasting;
            }
            if age < SLOTS as u32 {
                losses[SLOTS - age as usize] += lasting;
            }
        }
        let mut used = self.total;
        for (slots, loss) in losses.iter().enumerate().skip(1) {
            let passing = tick.wrapping_add(u32::try_from(slots).unwrap_or_default());
            // The counter may be ahead of a clock that was read early.
            if passed(self.tick, passing) > 0 {
                used -= self.ring[place(passing)].amount();
            }
            others -= loss;
            let room = allowance.own.saturating_add(allowance.shared.saturating_sub(others));
            if used.saturating_add(charge) <= room {
                return Some(now.until(slots, window));
            }
        }
        None
    }

    /// When nothing counts any more, if nothing is taken.
    pub(crate) fn empty_in(&self, now: Moment) -> Duration {
        let Some(window) = self.id.window() else { return Duration::ZERO };
        let tick = now.short_tick(Some(window));
        let own = (0..SLOTS as u32).find(|&age| !self.ring[place(self.tick.wrapping_sub(age))].is_zero());
        let own = own.map(|age| self.tick.wrapping_sub(age));
        let newest = own.into_iter().chain(self.heard.iter().map(|heard| heard.tick));
        let left = newest.filter_map(|slot| SLOTS.checked_sub(passed(slot, tick) as usize)).max().unwrap_or(0);
        if left == 0 { Duration::ZERO } else { now.until(left, window) }
    }

    /// A charge was refused for want of rights.
    pub(crate) fn want(&mut self, charge: u64) {
        self.wants = self.wants.max(logarithm(charge));
    }

    /// A charge was refused for want of room.
    pub(crate) fn lack(&mut self, charge: u64) {
        self.lacks = self.lacks.max(logarithm(charge));
    }

    /// The greatest charge refused for want of room since some was made, rounded up to a power of two; zero if none was.
    pub(crate) fn lacking(&self) -> u64 {
        power(self.lacks)
    }

    /// There is room for so much.
    pub(crate) fn make_room(&mut self, room: i64) {
        self.set_room(room);
        self.lacks = 0;
    }

    /// What to tell the others, who hold it for told from now on.
    pub(crate) fn tell(&mut self, right: u64) -> Slot {
        let wants = power(std::mem::take(&mut self.wants));
        let lasting = if self.id.window().is_none() {
            self.total
        } else {
            (0..SLOTS as u32 / 2).map(|age| self.ring[place(self.tick.wrapping_sub(age))].amount()).sum()
        };
        self.told = Compact::up(self.total);
        Slot { used: self.total, shared: self.total.saturating_sub(right), lasting, wants }
    }

    /// Takes another node's word in place of its last one; returns how many more words are held now.
    pub(crate) fn hear(&mut self, word: Heard) -> isize {
        let known = self.heard.iter().position(|heard| heard.node == word.node);
        let is_empty = word.used.is_zero();
        match known {
            Some(at) if !is_empty => {
                self.heard[at] = word;
                0
            }
            Some(at) => {
                let mut heard = std::mem::take(&mut self.heard).into_vec();
                heard.swap_remove(at);
                self.heard = heard.into_boxed_slice();
                -1
            }
            None if is_empty => 0,
            None => {
                let mut heard = Vec::with_capacity(self.heard.len() + 1);
                heard.extend_from_slice(&self.heard);
                heard.push(word);
                self.heard = heard.into_boxed_slice();
                1
            }
        }
    }

    /// A node has gone: what ran there does not run any more; what it took passes with the window under no name. A durable counter
    /// is taken up again by the node itself. Returns how many more words are held now.
    pub(crate) fn forget(&mut self, node: u16) -> isize {
        let is_durable = self.id.is_durable();
        let Some(at) = self.heard.iter().position(|heard| heard.node == node).filter(|_| !is_durable) else { return 0 };
        let word = self.heard[at];
        let change = self.hear(Heard::new(node, Slot::default(), word.tick));
        if self.id.window().is_none() {
            return change;
        }
        let gone = self.heard.iter().find(|heard| heard.node == GONE);
        let word = gone.map_or(Heard { node: GONE, ..word }, |gone| gone.with(&word, GONE));
        change + self.hear(word)
    }

    /// Drops words that count no more; returns how many more are held now.
    pub(crate) fn drop_passed(&mut self, tick: u32) -> isize {
        let before = self.heard.len();
        let counts = |heard: &Heard| passed(heard.tick, tick) < SLOTS as u32;
        if !self.heard.iter().all(counts) {
            let mut heard = std::mem::take(&mut self.heard).into_vec();
            heard.retain(counts);
            self.heard = heard.into_boxed_slice();
        }
        self.heard.len().cast_signed() - before.cast_signed()
    }

    /// Whether the others know how much is used.
    pub(crate) fn is_as_told(&self) -> bool {
        self.told == Compact::up(self.total)
    }

    /// Whether nothing is lost when it goes.
    pub(crate) fn is_idle(&self) -> bool {
        self.total == 0
            && self.heard.is_empty()
            && self.lent() == 0
            && self.room() <= 0
            && self.lacks == 0
            && self.told.is_zero()
            && self.state == State::Quiet
    }

    /// What was taken in each slot, the newest first.
    pub(crate) fn by_age(&self) -> [u64; SLOTS] {
        let mut amounts = [0; SLOTS];
        for (age, amount) in (0_u32..).zip(&mut amounts) {
            *amount = self.ring[place(self.tick.wrapping_sub(age))].amount();
        }
        amounts
    }

    /// Raises what was taken so that of the newest slots no number holds less than the same number of `amounts`, which are the newest
    /// first: what both know of counts once.
    pub(crate) fn raise(&mut self, amounts: &[u64; SLOTS]) {
        let own = self.by_age();
        let (mut sums, mut highest) = ([0_u64; 2], 0);
        for (age, (own, amount)) in (0_u32..).zip(own.iter().zip(amounts)) {
            sums = [sums[0].saturating_add(*own), sums[1].saturating_add(*amount)];
            let higher = sums[0].max(sums[1]);
            self.change(self.tick.wrapping_sub(age), |_| higher - highest);
            highest = higher;
        }
    }
}

/// One more than the binary logarithm, rounded up.
fn logarithm(charge: u64) -> u8 {
    let logarithm = u64::BITS - charge.saturating_sub(1).leading_zeros();
    u8::try_from(logarithm).unwrap_or(u8::MAX) + 1
}

/// The power of two that this is one more than the logarithm of; zero for zero.
fn power(logarithm: u8) -> u64 {
    match logarithm {
        0 => 0,
        more => 1_u64.checked_shl(u32::from(more) - 1).unwrap_or(u64::MAX),
    }
}

#[inline]
const fn place(tick: u32) -> usize {
    tick as usize % SLOTS
}
