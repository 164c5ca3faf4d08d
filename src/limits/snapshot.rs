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

    /// Takes back what was written down, with the age it has by now. What is taken back twice counts once; what there is no room for is
    /// counted in [`Figures::full`](crate::Figures::full).
    pub fn restore(&self, counter: CounterId, bytes: &[u8], now: Timestamp) -> Result<(), SnapshotError> {
        let window = counter.window().ok_or(SnapshotError)?;
        let written = read(bytes)?;
        let moment = self.moment(now);
        let Some(amounts) = written.aged(moment.tick(Some(window))) else { return Ok(()) };
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
            second.restore(counter, &bytes, Timestamp::ORIGIN).expect("a snapshot");
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
            limiter.restore(counter, &bytes, Timestamp::ORIGIN).expect("a snapshot");
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
        second.restore(counter, &bytes, Timestamp::ORIGIN).expect("a snapshot");
        assert_eq!(used(&second, hours(12)), 300_000);
        assert_eq!(used(&second, hours(25)), 0);
    }

    #[test]
    fn what_was_spent_meanwhile_is_not_lost() {
        let first = node(UNIX_MS);
        spend(&first, 300_000, hours(1));
        let (counter, bytes) = written(&first, hours(1));
        spend(&first, 50_000, hours(2));
        first.restore(counter, &bytes, hours(2)).expect("a snapshot");
        assert_eq!(used(&first, hours(2)), 350_000);
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
            match second.restore(counter, &mutated, Timestamp::ORIGIN) {
                Err(SnapshotError) => assert_eq!(second.figures().counters, 0),
                Ok(()) => {
                    let _ = used(&second, hours(1));
                }
            }
        }
        assert!(first.restore(CounterId(u64::MAX), &bytes, hours(23)).is_err(), "what has no window");
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
