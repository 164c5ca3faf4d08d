//! What a link does to packets, as a pure function of time and chance.

use std::time::Duration;

use smg_base::{Random, SplitMix, Timestamp};

/// How far a link with a rate may fall behind before it drops packets.
const QUEUE_MAX: Duration = Duration::from_millis(200);

/// How much later than its turn a packet comes that [`Rules::reorder`] picked.
const LATE_BY: Duration = Duration::from_millis(5);

/// What happens to packets on one directed link. The default is a perfect link.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// Share of packets that are lost.
    pub loss: f64,
    /// Mean length of a run of losses, in packets; up to 1, losses are independent. The share stays `loss`.
    pub burst: f64,
    /// Time under way.
    pub delay: Duration,
    /// Greatest deviation from `delay`, either way. Packets overtake each other.
    pub jitter: Duration,
    /// Share of packets that come 5 ms late, so that others overtake them.
    pub reorder: f64,
    /// Share of packets that come twice.
    pub duplicate: f64,
    /// Share of packets with one bit of the payload flipped.
    pub corrupt: f64,
    /// Bits per second, with a queue of 200 ms; packets beyond it are dropped.
    pub rate: Option<u64>,
    /// Longest packet that passes; longer ones vanish without a word, as behind a broken tunnel.
    pub packet_bytes_max: Option<usize>,
}

impl Rules {
    /// Independent loss of this share of packets.
    pub fn loss(share: f64) -> Self {
        Self { loss: share, ..Self::default() }
    }

    /// A constant time under way.
    pub fn delay(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It was, or will be, delivered.
    Carried,
    /// [`Rules::loss`] took it.
    Lost,
    /// The link was cut.
    Cut,
    /// It was longer than [`Rules::packet_bytes_max`].
    TooLong,
    /// The queue of [`Rules::rate`], or of the carrier, was full.
    Overflowed,
}

/// What a link has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets that came to it.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those that it carried.
    pub carried: u64,
    /// Those that it lost by chance.
    pub lost: u64,
    /// Those that came while it was cut.
    pub cut: u64,
    /// Those that were too long.
    pub too_long: u64,
    /// Those that found a full queue.
    pub overflowed: u64,
    /// Those that it carried twice.
    pub doubled: u64,
    /// Those that it damaged.
    pub corrupted: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.carried += other.carried;
        self.lost += other.lost;
        self.cut += other.cut;
        self.too_long += other.too_long;
        self.overflowed += other.overflowed;
        self.doubled += other.doubled;
        self.corrupted += other.corrupted;
    }

    /// Counts a packet; a carried one with what else befell it.
    fn enter(&mut self, bytes: usize, passage: &Passage) {
        self.packets += 1;
        self.bytes += bytes as u64;
        let place = match passage.fate {
            Fate::Carried => &mut self.carried,
            Fate::Lost => &mut self.lost,
            Fate::Cut => &mut self.cut,
            Fate::TooLong => &mut self.too_long,
            Fate::Overflowed => &mut self.overflowed,
        };
        *place += 1;
        self.doubled += u64::from(passage.again.is_some());
        self.corrupted += u64::from(passage.flip.is_some());
    }
}

/// Whether packets pass at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Whole,
    Cut,
}

/// One directed link: its rules and what they have to remember.
#[derive(Debug)]
pub(crate) struct LinkState {
    pub(crate) rules: Rules,
    pub(crate) wire: Wire,
    pub(crate) counts: Counts,
    random: SplitMix,
    /// Whether a run of losses is under way.
    in_burst: bool,
    /// Until when what was accepted keeps a link with a rate busy.
    busy_until: Timestamp,
}

/// The future of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Passage {
    pub(crate) fate: Fate,
    /// When it arrives, if it is carried.
    pub(crate) due: Timestamp,
    /// When it arrives once more.
    pub(crate) again: Option<Timestamp>,
    /// A number that picks the bit to flip.
    pub(crate) flip: Option<u64>,
}

impl LinkState {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            rules: Rules::default(),
            wire: Wire::Whole,
            counts: Counts::default(),
            random: SplitMix::new(seed),
            in_burst: false,
            busy_until: Timestamp::ORIGIN,
        }
    }

    /// Decides and counts what becomes of a packet of `bytes` that enters at `now`.
    pub(crate) fn pass(&mut self, now: Timestamp, bytes: usize) -> Passage {
        let passage = self.decide(now, bytes);
        self.counts.enter(bytes, &passage);
        passage
    }

    fn decide(&mut self, now: Timestamp, bytes: usize) -> Passage {
        let gone = |fate| Passage { fate, due: now, again: None, flip: None };
        if self.wire == Wire::Cut {
            return gone(Fate::Cut);
        }
        if self.rules.packet_bytes_max.is_some_and(|most| bytes > most) {
            return gone(Fate::TooLong);
        }
        if self.loses() {
            return gone(Fate::Lost);
        }
        let Some(leaves) = self.leaves(now, bytes) else { return gone(Fate::Overflowed) };
        let due = leaves + self.under_way();
        let again = self.draws(self.rules.duplicate).then(|| leaves + self.under_way());
        let flip = self.draws(self.rules.corrupt).then(|| self.random.next_u64());
        Passage { fate: Fate::Carried, due, again, flip }
    }

    fn draws(&self, share: f64) -> bool {
        share > 0.0 && self.random.unit() < share
    }

    /// Loss after E. N. Gilbert (1960): a good state that loses nothing and a bad one that loses everything.
    fn loses(&mut self) -> bool {
        let Rules { loss, burst, .. } = self.rules;
        if burst <= 1.0 || loss <= 0.0 || loss >= 1.0 {
            return self.draws(loss);
        }
        let begins = loss / (burst * (1.0 - loss));
        self.in_burst = if self.in_burst { !self.draws(1.0 / burst) } else { self.draws(begins) };
        self.in_burst
    }

    /// When the last bit of the packet is on the wire; none if the queue is full.
    fn leaves(&mut self, now: Timestamp, bytes: usize) -> Option<Timestamp> {
        let Some(rate) = self.rules.rate else { return Some(now) };
        if self.busy_until.since(now) > QUEUE_MAX {
            return None;
        }
        let nanos = (bytes as u64).saturating_mul(8_000_000_000) / rate.max(1);
        self.busy_until = self.busy_until.max(now) + Duration::from_nanos(nanos);
        Some(self.busy_until)
    }

    fn under_way(&self) -> Duration {
        let jitter = u64::try_from(self.rules.jitter.as_nanos()).unwrap_or(u64::MAX / 4);
        let earliest = self.rules.delay.saturating_sub(self.rules.jitter);
        let deviation = if jitter == 0 { 0 } else { self.random.below(2 * jitter) };
        let late = if self.draws(self.rules.reorder) { LATE_BY } else { Duration::ZERO };
        earliest + Duration::from_nanos(deviation) + late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKETS: u64 = 20_000;

    /// Sends [`PACKETS`] packets of 1,000 bytes, one a millisecond; the passages and the counts.
    fn sent(rules: Rules) -> (Vec<Passage>, Counts) {
        let mut link = LinkState::new(7);
        link.rules = rules;
        let at = |index| Timestamp::from_nanos(index * 1_000_000);
        let passages = (0..PACKETS).map(|index| link.pass(at(index), 1_000)).collect();
        (passages, link.counts)
    }

    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    fn near(what: &str, count: u64, share: f64) {
        let found = count as f64 / PACKETS as f64;
        assert!((found - share).abs() < 0.02, "{what}: {found}, not {share}");
    }

    #[test]
    fn shares_are_kept() {
        near("loss", sent(Rules::loss(0.3)).1.lost, 0.3);
        let bursts = Rules { loss: 0.1, burst: 8.0, ..Rules::default() };
        near("loss in bursts", sent(bursts).1.lost, 0.1);
        near("doubles", sent(Rules { duplicate: 0.1, ..Rules::default() }).1.doubled, 0.1);
        near("damage", sent(Rules { corrupt: 0.2, ..Rules::default() }).1.corrupted, 0.2);
        // 8 Mbit/s are offered to 4.
        near("overflow", sent(Rules { rate: Some(4_000_000), ..Rules::default() }).1.overflowed, 0.5);
        near("too long", sent(Rules { packet_bytes_max: Some(999), ..Rules::default() }).1.too_long, 1.0);
        near("fits", sent(Rules { packet_bytes_max: Some(1_000), ..Rules::default() }).1.carried, 1.0);
        near("nothing", sent(Rules::default()).1.carried, 1.0);
    }

    #[test]
    fn losses_in_bursts_come_in_runs_of_the_length_asked_for() {
        let (passages, counts) = sent(Rules { loss: 0.1, burst: 8.0, ..Rules::default() });
        let begins = passages.windows(2).filter(|pair| pair[0].fate != Fate::Lost && pair[1].fate == Fate::Lost);
        let mean = counts.lost / begins.count() as u64;
        assert!((6..=10).contains(&mean), "runs of {mean} losses");
    }

    #[test]
    fn times_are_kept() {
        let delay = Duration::from_millis(50);
        let (passages, _) = sent(Rules::delay(delay));
        for (index, passage) in (0..).zip(&passages) {
            assert_eq!(passage.due, Timestamp::from_nanos(index * 1_000_000) + delay);
        }
        let jitter = Duration::from_millis(20);
        let (passages, _) = sent(Rules { delay, jitter, ..Rules::default() });
        let overtaken = passages.windows(2).filter(|pair| pair[0].due > pair[1].due).count();
        assert!((8_000..12_000).contains(&overtaken), "{overtaken} packets were overtaken");
        let (passages, _) = sent(Rules { reorder: 0.1, ..Rules::default() });
        let overtaken = passages.windows(2).filter(|pair| pair[0].due > pair[1].due).count();
        assert!((1_500..2_300).contains(&overtaken), "{overtaken} packets were overtaken");
    }

    #[test]
    fn the_same_seed_does_the_same() {
        let rules = || Rules { loss: 0.2, jitter: Duration::from_millis(3), duplicate: 0.1, ..Rules::default() };
        assert_eq!(sent(rules()).0, sent(rules()).0);
    }

    #[test]
    fn a_cut_link_carries_nothing_and_forgets_nothing() {
        let mut link = LinkState::new(1);
        link.wire = Wire::Cut;
        assert_eq!(link.pass(Timestamp::ORIGIN, 100).fate, Fate::Cut);
        link.wire = Wire::Whole;
        assert_eq!(link.pass(Timestamp::ORIGIN, 100).fate, Fate::Carried);
        assert_eq!((link.counts.packets, link.counts.cut, link.counts.carried), (2, 1, 1));
    }
}
