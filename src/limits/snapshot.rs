//! Counters written down, so that a restart refills nobody.
//!
//! What is written is the number of the newest slot since the Unix epoch, which of the slots before it hold something, and how much. A
//! node that reads it puts each amount into the slot of that number: windows go on over a restart as if there had been none, at whatever
//! moment it came. A clock that was set back makes amounts younger, never older.

use smg_base::Timestamp;

use crate::{
    counter::{Counter, Moment, SLOTS},
    limiter::Limiter,
    rules::CounterId,
    stance::SnapshotError,
};

const VERSION: u8 = 1;
/// What a run may take after its counter was written down is one part of so many of the rights, where that does.
pub(crate) const PLEDGES: u64 = 128;
/// No amount in a snapshot is greater: what a counter can hold.
const AMOUNT_MAX: u64 = 1 << 58;

impl Limiter {
    /// Writes down every durable counter of this node in which something counts.
    pub fn snapshot(&self, now: Timestamp, visit: &mut dyn FnMut(CounterId, &[u8])) {
        let moment = self.moment(now);
        for shard in &self.shards {
            let (mut bytes, mut written) = (Vec::new(), Vec::new());
            for counter in shard.lock().all_mut().filter(|counter| counter.id.is_durable()) {
                let begin = bytes.len();
                if write(counter, moment, &mut bytes) {
                    written.push((counter.id, begin..bytes.len()));
                }
            }
            written.into_iter().for_each(|(counter, part)| visit(counter, &bytes[part]));
        }
    }

    /// Writes down one counter of this node after what is in `bytes`; false if nothing counts in it.
    pub fn snapshot_of(&self, counter: CounterId, now: Timestamp, bytes: &mut Vec<u8>) -> bool {
        let moment = self.moment(now);
        let mut shard = self.shard(counter).lock();
        let place = shard.find(counter);
        place.and_then(|place| shard.at_mut(place)).is_some_and(|counter| write(counter, moment, bytes))
    }

    /// Takes back what was written down, with the age it has by now, and `pledged` beside it, which may have been taken since and so
    /// counts as taken now. What is taken back twice counts once; what there is no room for is counted in
    /// [`Figures::full`](crate::Figures::full).
    pub fn restore(&self, counter: CounterId, bytes: &[u8], pledged: u64, now: Timestamp) -> Result<(), SnapshotError> {
        let window = counter.window().ok_or(SnapshotError)?;
        let moment = self.moment(now);
        let written = if bytes.is_empty() { None } else { Some(read(bytes)?) };
        let aged = written.and_then(|written| written.aged(moment.tick(Some(window))));
        let mut amounts = aged.unwrap_or([0; SLOTS]);
        amounts[0] = amounts[0].saturating_add(pledged.min(AMOUNT_MAX));
        if amounts == [0; SLOTS] {
            return Ok(());
        }
        let mut shard = self.shard(counter).lock();
        let place = match shard.find(counter) {
            Some(place) => Some(place),
            None => self.insert(&mut shard, counter, moment, self.counters_max()),
        };
        let Some(place) = place else { return Ok(()) };
        if let Some(counter) = shard.at_mut(place) {
            counter.advance(moment.short_tick(Some(window)));
            counter.raise(&amounts);
            shard.mark(place, self.telling());
        }
        Ok(())
    }
}

/// What a run may take after its counter was written down. It is written with it, and may be taken when that is on disk: so whatever
/// moment the run ends at, the next one counts no less than was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pledge {
    /// How much.
    pub(crate) amount: u64,
    /// What it is while little is taken.
    pub(crate) least: u64,
    /// What all nodes together divide, if nobody may take more than its part; else zero.
    pub(crate) rights: u64,
    /// The room there was when the counter was written down.
    room: i64,
}

impl Limiter {
    /// Writes down one counter as [`snapshot_of`](Self::snapshot_of) does, and what may be taken after that: one part in [`PLEDGES`] of
    /// the rights, and more while that is used up, up to an eighth. `before` is what was pledged last. None if nothing counts in it and
    /// nothing is asked of it.
    pub(crate) fn pledge(
        &self,
        counter: CounterId,
        before: u64,
        now: Timestamp,
        bytes: &mut Vec<u8>,
    ) -> Option<Pledge> {
        let in_force = self.in_force.load();
        let moment = self.moment(now);
        let mut shard = self.shard(counter).lock();
        let place = shard.find(counter)?;
        let counter = shard.at_mut(place)?;
        let rule = in_force.rules.get(counter.rule).filter(|rule| counter.is_pledged(rule.mode));
        let had_any = write(counter, moment, bytes);
        let lack = counter.lacking();
        if lack == 0 && !had_any {
            counter.set_room(counter.room().min(0));
            return None;
        }
        let (rights, left) = match rule {
            Some(rule) => {
                let own = self.stance.load().allowance(rule, counter.lent(), moment.now).own;
                (rule.rights(), own.saturating_sub(counter.used()))
            }
            None => (0, 0),
        };
        let least = rights.div_ceil(PLEDGES);
        let taken = before.saturating_sub(u64::try_from(counter.room()).unwrap_or(0));
        let amount = match before {
            _ if lack > 0 || taken > before / 2 => before.saturating_mul(2).max(lack),
            _ if taken < before / 8 => before / 2,
            _ => before,
        };
        // What is left of the part is all that can be taken: the row of a counter that is used up says exactly how it stands.
        let amount = amount.clamp(least, (rights / 8).max(least)).max(lack).min(left);
        // Until the row is on disk the one before it holds, and then this one: what may be taken meanwhile is within both.
        let room = counter.room().min(i64::try_from(amount).unwrap_or(i64::MAX));
        counter.set_room(room);
        Some(Pledge { amount, least, rights, room })
    }

    /// What was written down is on disk: it may be taken.
    pub(crate) fn pledged(&self, counter: CounterId, pledge: Pledge) {
        let mut shard = self.shard(counter).lock();
        let place = shard.find(counter);
        let Some(counter) = place.and_then(|place| shard.at_mut(place)) else { return };
        let taken = pledge.room.saturating_sub(counter.room());
        counter.make_room(i64::try_from(pledge.amount).unwrap_or(i64::MAX).saturating_sub(taken));
    }
}

fn write(counter: &mut Counter, moment: Moment, bytes: &mut Vec<u8>) -> bool {
    let Some(window) = counter.id.window() else { return false };
    counter.advance(moment.short_tick(Some(window)));
    if counter.used() == 0 {
        return false;
    }
    let amounts = counter.by_age();
    let holding = (0..).zip(&amounts).filter(|(_, amount)| **amount > 0).fold(0_u32, |bits, (age, _)| bits | 1 << age);
    bytes.push(VERSION);
    put(moment.tick(Some(window)), bytes);
    bytes.extend_from_slice(&holding.to_le_bytes());
    amounts.iter().filter(|amount| **amount > 0).for_each(|&amount| put(amount, bytes));
    true
}

/// A snapshot, read.
#[derive(Debug, PartialEq, Eq)]
struct Written {
    tick: u64,
    /// By age at that tick.
    amounts: [u64; SLOTS],
}

impl Written {
    /// The amounts by their age at `tick`; none if all have passed.
    fn aged(&self, tick: u64) -> Option<[u64; SLOTS]> {
        let older = usize::try_from(tick.saturating_sub(self.tick)).ok().filter(|&older| older < SLOTS)?;
        let mut amounts = [0; SLOTS];
        amounts[older..].copy_from_slice(&self.amounts[..SLOTS - older]);
        Some(amounts)
    }
}

fn read(bytes: &[u8]) -> Result<Written, SnapshotError> {
    let [VERSION, rest @ ..] = bytes else { return Err(SnapshotError) };
    let mut rest = rest;
    let tick = take(&mut rest)?;
    let (holding, amounts) = rest.split_first_chunk::<4>().ok_or(SnapshotError)?;
    let holding = u32::from_le_bytes(*holding);
    let mut written = Written { tick, amounts: [0; SLOTS] };
    rest = amounts;
    for (age, amount) in written.amounts.iter_mut().enumerate() {
        if holding >> age & 1 == 1 {
            *amount = take(&mut rest)?;
            if *amount == 0 || *amount > AMOUNT_MAX {
                return Err(SnapshotError);
            }
        }
    }
    if rest.is_empty() { Ok(written) } else { Err(SnapshotError) }
}

/// Seven bits in a byte, the lowest first; the highest bit says that more follow.
fn put(mut number: u64, bytes: &mut Vec<u8>) {
    while number > 0x7f {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

fn take(bytes: &mut &[u8]) -> Result<u64, SnapshotError> {
    let mut number = 0_u64;
    for shift in (0..u64::BITS).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(SnapshotError)?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if part << shift >> shift != part {
            return Err(SnapshotError);
        }
        number |= part << shift;
        if byte & 0x80 == 0 {
            // One number has one form.
            return if byte == 0 && shift > 0 { Err(SnapshotError) } else { Ok(number) };
        }
    }
    Err(SnapshotError)
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use proptest::prelude::*;
    use smg_base::{Random, SplitMix, fuzz};

    use super::*;
    use crate::{Demand, Dimension, LimiterConfig, Mode, Rule, Rules, Scope, Subject, Window};

    const SUBJECT: Subject<'static> = Subject { tenant: "acme", key: None, model: "m" };
    const UNIX_MS: u64 = 1_760_000_000_000;

    fn node(unix_ms_at_origin: u64) -> Limiter {
        let rule = Rule::new("r", Scope::Tenant, Dimension::Money, 1_000_000).per(Window::Day).mode(Mode::Shared);
        let limiter = Limiter::new(LimiterConfig { unix_ms_at_origin, ..LimiterConfig::default() });
        limiter.reconfigure(Arc::new(Rules::new(vec![rule]).expect("a sound rule")));
        limiter
    }

    fn hours(hours: u64) -> Timestamp {
        Timestamp::ORIGIN + Duration::from_secs(3_600 * hours)
    }

    fn spend(limiter: &Limiter, money: u64, now: Timestamp) {
        let _ = limiter.reserve(&SUBJECT, &Demand { money, ..Demand::default() }, now).expect("room");
    }

    fn used(limiter: &Limiter, now: Timestamp) -> u64 {
        let mut used = 0;
        limiter.standing(&SUBJECT, now, &mut |_, standing| used = standing.limit - standing.remaining);
        used
    }

    fn written(limiter: &Limiter, now: Timestamp) -> (CounterId, Vec<u8>) {
        let mut all = Vec::new();
        limiter.snapshot(now, &mut |counter, bytes| all.push((counter, bytes.to_vec())));
        assert_eq!(all.len(), 1);
        let mut again = Vec::new();
        assert!(limiter.snapshot_of(all[0].0, now, &mut again));
        assert_eq!(again, all[0].1);
        all.swap_remove(0)
    }

    #[test]
    fn a_restart_refills_nobody_and_changes_no_time() {
        let first = node(UNIX_MS);
        spend(&first, 300_000, hours(1));
        spend(&first, 200_000, hours(10));
        let (counter, bytes) = written(&first, hours(10));
        // Three hours later, by another monotonic clock.
        let second = node(UNIX_MS + 13 * 3_600_000);
        for _ in 0..2 {
            second.restore(counter, &bytes, 0, Timestamp::ORIGIN).expect("a snapshot");
        }
        for hour in 13..40 {
            assert_eq!(used(&second, hours(hour - 13)), used(&first, hours(hour)), "hour {hour}");
        }
        assert_eq!(used(&second, hours(27)), 0);
    }

    #[test]
    fn restarts_in_a_row_do_not_keep_anything_for_longer() {
        let mut limiter = node(UNIX_MS);
        spend(&limiter, 500_000, hours(0));
        for restart in 1..=24 {
            let (counter, bytes) = written(&limiter, hours(1));
            limiter = node(UNIX_MS + restart * 3_600_000);
            limiter.restore(counter, &bytes, 0, Timestamp::ORIGIN).expect("a snapshot");
            assert_eq!(used(&limiter, Timestamp::ORIGIN), 500_000);
        }
        assert_eq!(used(&limiter, hours(1)), 0);
    }

    #[test]
    fn a_clock_that_was_set_back_makes_nothing_older() {
        let first = node(UNIX_MS);
        spend(&first, 300_000, hours(1));
        let (counter, bytes) = written(&first, hours(12));
        let second = node(UNIX_MS - 1_000 * 3_600_000);
        second.restore(counter, &bytes, 0, Timestamp::ORIGIN).expect("a snapshot");
        assert_eq!(used(&second, hours(12)), 300_000);
        assert_eq!(used(&second, hours(25)), 0);
    }

    #[test]
    fn what_was_spent_meanwhile_is_not_lost() {
        let first = node(UNIX_MS);
        spend(&first, 300_000, hours(1));
        let (counter, bytes) = written(&first, hours(1));
        spend(&first, 50_000, hours(2));
        first.restore(counter, &bytes, 0, hours(2)).expect("a snapshot");
        assert_eq!(used(&first, hours(2)), 350_000);
    }

    #[test]
    fn what_may_be_taken_is_written_down_before_it_is_taken() {
        const AMOUNT: u64 = 1_000;
        let node = || {
            let limiter =
                Limiter::new(LimiterConfig { unix_ms_at_origin: UNIX_MS, is_meshed: true, counters_max: 100 });
            let rule = Rule::new("r", Scope::Tenant, Dimension::Money, AMOUNT).per(Window::Day).mode(Mode::Strict);
            limiter.reconfigure(Arc::new(Rules::new(vec![rule]).expect("a sound rule")));
            limiter
        };
        let first = node();
        let counter = first.rules().of(&SUBJECT)[0].counter;
        let one = Demand { money: 1, ..Demand::default() };
        let (mut before, mut kept, mut taken) = (0, None, 0);
        loop {
            // As many as go, while what says so is on its way to the disk and when it is there.
            let mut take = || {
                let refused = loop {
                    match first.reserve(&SUBJECT, &one, hours(1)) {
                        Ok(reservation) => first.settle(reservation, &one, hours(1)),
                        Err(refused) => break refused,
                    }
                    taken += 1;
                };
                assert_eq!(refused.is_unwritten, taken < AMOUNT);
            };
            take();
            let mut bytes = Vec::new();
            let pledge = first.pledge(counter, before, hours(1), &mut bytes).expect("something is asked of it");
            assert!(pledge.amount <= AMOUNT / 8);
            take();
            // The next run knows no less, whichever of the last two rows it finds.
            for (bytes, pledged) in kept.iter().chain(&[(bytes.clone(), pledge.amount)]) {
                let next = node();
                next.restore(counter, bytes, *pledged, hours(1)).expect("a snapshot");
                assert!(used(&next, hours(1)) >= taken, "{taken}");
            }
            first.pledged(counter, pledge);
            (before, kept) = (pledge.amount, Some((bytes, pledge.amount)));
            if taken == AMOUNT {
                break;
            }
        }
        assert_eq!(before, 0, "the last row says how it stands");
    }

    #[test]
    fn golden_bytes() {
        let first = node(UNIX_MS);
        spend(&first, 300, hours(0));
        spend(&first, 5, hours(2));
        let (_, bytes) = written(&first, hours(2));
        assert_eq!(bytes, [1, 188, 197, 38, 9, 0, 0, 0, 5, 172, 2]);
    }

    #[test]
    fn bytes_that_are_no_snapshot_change_nothing() {
        let first = node(UNIX_MS);
        for hour in 0..23 {
            spend(&first, 1 + 40_000 * (hour % 2), hours(hour));
        }
        let (counter, bytes) = written(&first, hours(23));
        let random = SplitMix::new(fuzz::seed(5));
        for _ in 0..fuzz::inputs(20_000) {
            let mut mutated = bytes.clone();
            for _ in 0..1 + random.below(4) {
                let at = usize::try_from(random.below(mutated.len() as u64)).expect("an index");
                match random.below(3) {
                    0 => mutated[at] = random.next_u64().to_le_bytes()[0],
                    1 => mutated.truncate(at.max(1)),
                    _ => mutated.insert(at, random.next_u64().to_le_bytes()[0]),
                }
            }
            let second = node(UNIX_MS + 23 * 3_600_000);
            match second.restore(counter, &mutated, 0, Timestamp::ORIGIN) {
                Err(SnapshotError) => assert_eq!(second.figures().counters, 0),
                Ok(()) => {
                    let _ = used(&second, hours(1));
                }
            }
        }
        assert!(first.restore(CounterId(u64::MAX), &bytes, 0, hours(23)).is_err(), "what has no window");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_is_read(amounts in prop::collection::vec(0..1_u64 << 27, SLOTS), tick in any::<u64>()) {
            let written = Written { tick, amounts: amounts.try_into().expect("as many") };
            let mut bytes = vec![VERSION];
            put(written.tick, &mut bytes);
            let holding = (0..SLOTS).filter(|&age| written.amounts[age] > 0).fold(0_u32, |bits, age| bits | 1 << age);
            bytes.extend_from_slice(&holding.to_le_bytes());
            written.amounts.iter().filter(|amount| **amount > 0).for_each(|&amount| put(amount, &mut bytes));
            prop_assert_eq!(read(&bytes), Ok(written));
        }
    }
}
