//! What nodes write into their lanes about limits, as keys and bytes. What a newer program wrote, or nobody, decodes to nothing.

use smg_base::Timestamp;

use crate::{
    rules::CounterId,
    stance::{Share, Slot, Stance},
};

/// More nodes than this hold no rights.
pub(super) const SEATS_MAX: usize = 1_024;
/// Whom a node may have lent rights of one counter.
const GRANTS_MAX: usize = SEATS_MAX;
const SNAPSHOT_BYTES_MAX: usize = 4_096;

/// What an entry of a lane is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// A counter: in the lane that may be forgotten how the node stands with it, in the durable one what it must not forget of it.
    Counter(CounterId),
    /// What the node lent of a counter's rights.
    Grants(CounterId),
    /// The node has too little of a counter's rights.
    Wanted(CounterId),
    /// A sign of life, and whose it has seen.
    Beat,
    /// When counters were last told of.
    Stamp,
    /// What the node knows and has promised about views.
    Register,
}

impl Key {
    pub(super) fn bytes(self) -> Vec<u8> {
        match self {
            Self::Counter(counter) => counter.0.to_le_bytes().to_vec(),
            Self::Grants(counter) => [&b"g"[..], &counter.0.to_le_bytes()].concat(),
            Self::Wanted(counter) => [&b"w"[..], &counter.0.to_le_bytes()].concat(),
            Self::Beat => b"b".to_vec(),
            Self::Stamp => b"t".to_vec(),
            Self::Register => b"r".to_vec(),
        }
    }

    pub(super) fn of(key: &[u8]) -> Option<Self> {
        let counter = |bytes: &[u8]| Some(CounterId(u64::from_le_bytes(bytes.try_into().ok()?)));
        match key {
            b"b" => Some(Self::Beat),
            b"t" => Some(Self::Stamp),
            b"r" => Some(Self::Register),
            [b'g', rest @ ..] if rest.len() == 8 => counter(rest).map(Self::Grants),
            [b'w', rest @ ..] if rest.len() == 8 => counter(rest).map(Self::Wanted),
            _ => counter(key).map(Self::Counter),
        }
    }
}

/// One run of one node. Rights belong to runs, for what a run has spent is forgotten with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seat {
    pub(super) node: u64,
    pub(super) run: u64,
}

/// Who divides the rights: agreed upon, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    /// Counts them, from 1.
    pub(super) number: u64,
    /// Who divides, in the order of their nodes.
    pub(super) seats: Vec<Seat>,
    /// Classes of windows in which somebody may have spent more than its part, so that nobody's part grows before they have passed.
    pub(super) waits: u8,
}

impl View {
    pub(super) fn seat(&self, node: u64) -> Option<(usize, Seat)> {
        let at = self.seats.binary_search_by_key(&node, |seat| seat.node).ok()?;
        Some((at, self.seats[at]))
    }

    pub(super) fn holds(&self, seat: Seat) -> bool {
        self.seat(seat.node).is_some_and(|(_, found)| found == seat)
    }

    /// How many of its seats decide.
    pub(super) fn majority(&self) -> usize {
        self.seats.len() / 2 + 1
    }
}

/// Orders attempts to agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ballot {
    pub(super) round: u64,
    /// The run that makes it: two runs of one node never make the same.
    pub(super) run: u64,
}

/// An attempt to agree on the view after the one of the register it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Proposal {
    pub(super) ballot: Ballot,
    /// None while the proposer asks what may have been agreed upon already.
    pub(super) view: Option<View>,
}

/// What a node knows and has promised about views. Survives its runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Register {
    /// Counts its states.
    pub(super) serial: u64,
    /// The run that wrote it.
    pub(super) run: u64,
    /// Whether that run knows what earlier ones promised.
    pub(super) remembers: bool,
    /// The newest view that it has adopted.
    pub(super) view: Option<View>,
    /// Classes in which it may have spent more than its part of that view.
    pub(super) over: u8,
    /// Classes in which its parts may not grow yet.
    pub(super) pending: u8,
    /// Its parts of the rights.
    pub(super) shares: [Option<Share>; Stance::CLASSES],
    /// It takes part in no attempt before this one.
    pub(super) promised: Ballot,
    /// What it agreed to last.
    pub(super) accepted: Option<(Ballot, View)>,
    /// What it proposes.
    pub(super) proposal: Option<Proposal>,
}

/// A sign of life, and whose it has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Beat {
    pub(super) run: u64,
    pub(super) number: u64,
    /// The number of the view in which it holds.
    pub(super) view: u64,
    /// Whether it has agreed to another view, so that it vouches for nobody in this one.
    pub(super) is_moving: bool,
    /// By the order of the seats, the newest beat heard of each; zero for none of its run.
    pub(super) heard: Vec<u64>,
}

/// What a node lent of a counter's rights, each grantee's in total.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Grants {
    pub(super) run: u64,
    pub(super) view: u64,
    pub(super) to: Vec<(u64, u64)>,
}

/// A node has refused a charge for want of rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Counts what this run wanted.
    pub(super) number: u64,
    /// What all nodes together divide, for those that have not met the counter.
    pub(super) rights: u64,
}

impl Value for Wanted {
    fn write(&self, bytes: &mut Writer) {
        bytes.number(self.number);
        bytes.number(self.rights);
    }

    fn read(bytes: &mut Reader<'_>) -> Option<Self> {
        Some(Self { number: bytes.number()?, rights: bytes.number()? })
    }
}

/// A value that is kept in lanes.
pub(super) trait Value: Sized {
    /// What is on the wire is never changed, only followed by another version.
    const VERSION: u8 = 1;

    fn write(&self, bytes: &mut Writer);
    fn read(bytes: &mut Reader<'_>) -> Option<Self>;

    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer(vec![Self::VERSION]);
        self.write(&mut writer);
        writer.0
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first()?;
        let mut reader = Reader(rest);
        let value = (*version == Self::VERSION).then(|| Self::read(&mut reader))??;
        reader.0.is_empty().then_some(value)
    }
}

/// Collects bytes.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    /// Seven bits a byte, the lowest first (LEB128).
    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.0.push((number & 0x7f) as u8);
    }

    fn id(&mut self, id: u64) {
        self.0.extend(id.to_le_bytes());
    }

    fn count(&mut self, count: usize) {
        self.number(count as u64);
    }

    fn option<T>(&mut self, value: Option<&T>, write: impl FnOnce(&mut Self, &T)) {
        self.0.push(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
    }
}

/// Reads bytes that anybody may have written.
pub(super) struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn id(&mut self) -> Option<u64> {
        let (id, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*id))
    }

    /// A length of at most `max`, whose items cannot be more than the bytes that are left.
    fn count(&mut self, max: usize) -> Option<usize> {
        let count = usize::try_from(self.number()?).ok()?;
        (count <= max && count <= self.0.len()).then_some(count)
    }

    fn list<T>(&mut self, max: usize, read: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        (0..self.count(max)?).map(|_| read(self)).collect()
    }

    fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        Some(if self.flag()? { Some(read(self)?) } else { None })
    }
}

impl Value for Slot {
    fn write(&self, bytes: &mut Writer) {
        [self.used, self.shared, self.lasting, self.wants].into_iter().for_each(|number| bytes.number(number));
    }

    fn read(bytes: &mut Reader<'_>) -> Option<Self> {
        let [used, shared, lasting, wants] = [bytes.number()?, bytes.number()?, bytes.number()?, bytes.number()?];
        (shared <= used && lasting <= used).then_some(Self { used, shared, lasting, wants })
    }
}

/// What a durable counter needs: how it stands, for the others, and what the limiter restores it from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) slot: Slot,
    /// What the run may have taken beside that.
    pub(super) pledged: u64,
    /// What all nodes together divide, where nobody may take more than its part.
    pub(super) rights: u64,
    pub(super) snapshot: Vec<u8>,
}

impl Kept {
    /// Reads what was written before anything was pledged, too.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        Self::decode(bytes).or_else(|| {
            let (1, mut reader) = bytes.split_first().map(|(version, rest)| (*version, Reader(rest)))? else {
                return None;
            };
            let slot = Slot::read(&mut reader)?;
            let snapshot = reader.list(SNAPSHOT_BYTES_MAX, Reader::byte)?;
            reader.0.is_empty().then_some(Self { slot, pledged: 0, rights: 0, snapshot })
        })
    }
}

impl Value for Kept {
    const VERSION: u8 = 2;

    fn write(&self, bytes: &mut Writer) {
        self.slot.write(bytes);
        bytes.number(self.pledged);
        bytes.number(self.rights);
        bytes.count(self.snapshot.len());
        bytes.0.extend(&self.snapshot);
    }

    fn read(bytes: &mut Reader<'_>) -> Option<Self> {
        let (slot, pledged, rights) = (Slot::read(bytes)?, bytes.number()?, bytes.number()?);
        let snapshot = bytes.list(SNAPSHOT_BYTES_MAX, Reader::byte)?;
        Some(Self { slot, pledged, rights, snapshot })
    }
}

/// A reading of the wall clock, in milliseconds of Unix time. It orders nothing: what is measured with it is shown to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp(pub(super) u64);

impl Value for Stamp {
    fn write(&self, bytes: &mut Writer) {
        bytes.number(self.0);
    }

    fn read(bytes: &mut Reader<'_>) -> Option<Self> {
        bytes.number().map(Self)
    }
}

impl Value for Seat {
    fn write(&self, bytes: &mut Writer) {
        bytes.id(self.node);
        bytes.id(self.run);
    }

    fn read(bytes: &mut Reader<'_>) -> Option<Self> {
        Some(Self { node: bytes.id()?, run: bytes.id()? })
    }
}

impl Value for View {
    fn write(&self, bytes: &mut Writer) {
        bytes.number(self.number);
        bytes.0.push(self.waits);
        bytes.count(self.seats.len());
        self.seats.iter().for_each(|seat| seat.write(bytes));
    }

    fn read(bytes: &mut Reader<'_>) -> Option<Self> {
        let (number, waits) = (bytes.number()?, bytes.byte()?);
        let seats = bytes.list(SEATS_MAX, Seat::read)?;
        let is_ordered = seats.windows(2).all(|pair| pair[0].node < pair[1].node);
        (number > 0 && !seats.is_empty() && is_ordered).then_some(Self { number, seats, waits })
    }
}

impl Value for Ballot {
    fn write(&self, bytes: &mut Writer) {
        bytes.number(self.round);
        bytes.id(self.run);
    }

    fn read(bytes: &mut Reader<'_>) -> Option<Self> {
        Some(Self { round: bytes.number()?, run: bytes.id()? })
    }
}

impl Value for Register {
    fn write(&self, bytes: &mut Writer) {
        bytes.number(self.serial);
        bytes.id(self.run);
        bytes.0.push(u8::from(self.remembers));
        bytes.option(self.view.as_ref(), |bytes, view| view.write(bytes));
        bytes.0.push(self.over);
        bytes.0.push(self.pending);
        for share in &self.shares {
            bytes.option(share.as_ref(), |bytes, share| {
                bytes.number(u64::from(share.rank));
                bytes.number(u64::from(share.members));
            });
        }
        self.promised.write(bytes);
        bytes.option(self.accepted.as_ref(), |bytes, (ballot, view)| {
            ballot.write(bytes);
            view.write(bytes);
        });
        bytes.option(self.proposal.as_ref(), |bytes, proposal| {
            proposal.ballot.write(bytes);
            bytes.option(proposal.view.as_ref(), |bytes, view| view.write(bytes));
        });
    }

    fn read(bytes: &mut Reader<'_>) -> Option<Self> {
        let (serial, run, remembers) = (bytes.number()?, bytes.id()?, bytes.flag()?);
        let (view, over, pending) = (bytes.option(View::read)?, bytes.byte()?, bytes.byte()?);
        let mut shares = [None; Stance::CLASSES];
        for share in &mut shares {
            *share = bytes.option(|bytes| {
                let [rank, members] = [bytes.number()?, bytes.number()?].map(|number| u32::try_from(number).ok());
                Some(Share { rank: rank?, members: members.filter(|members| *members > 0)? })
            })?;
        }
        let promised = Ballot::read(bytes)?;
        let accepted = bytes.option(|bytes| Some((Ballot::read(bytes)?, View::read(bytes)?)))?;
        let proposal =
            bytes.option(|bytes| Some(Proposal { ballot: Ballot::read(bytes)?, view: bytes.option(View::read)? }))?;
        Some(Self { serial, run, remembers, view, over, pending, shares, promised, accepted, proposal })
    }
}

impl Value for Beat {
    fn write(&self, bytes: &mut Writer) {
        bytes.id(self.run);
        bytes.number(self.number);
        bytes.number(self.view);
        bytes.0.push(u8::from(self.is_moving));
        bytes.count(self.heard.len());
        self.heard.iter().for_each(|beat| bytes.number(*beat));
    }

    fn read(bytes: &mut Reader<'_>) -> Option<Self> {
        let (run, number, view, is_moving) = (bytes.id()?, bytes.number()?, bytes.number()?, bytes.flag()?);
        Some(Self { run, number, view, is_moving, heard: bytes.list(SEATS_MAX, Reader::number)? })
    }
}

impl Value for Grants {
    fn write(&self, bytes: &mut Writer) {
        bytes.id(self.run);
        bytes.number(self.view);
        bytes.count(self.to.len());
        for (node, amount) in &self.to {
            bytes.id(*node);
            bytes.number(*amount);
        }
    }

    fn read(bytes: &mut Reader<'_>) -> Option<Self> {
        let (run, view) = (bytes.id()?, bytes.number()?);
        let to = bytes.list(GRANTS_MAX, |bytes| Some((bytes.id()?, bytes.number()?)))?;
        Some(Self { run, view, to })
    }
}

/// A timestamp that is never reached.
pub(super) const NEVER: Timestamp = Timestamp::from_nanos(u64::MAX);

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use smg_base::{Random, SplitMix, fuzz};

    use super::*;

    fn view(number: u64) -> View {
        View { number, seats: vec![Seat { node: 1, run: 7 }, Seat { node: 5, run: u64::MAX }], waits: 3 }
    }

    fn register() -> Register {
        let mut shares = [None; Stance::CLASSES];
        shares[1] = Some(Share { rank: u32::MAX, members: 2 });
        Register {
            serial: 300,
            run: 9,
            remembers: true,
            view: Some(view(4)),
            over: 1,
            pending: 32,
            shares,
            promised: Ballot { round: 2, run: 5 },
            accepted: Some((Ballot { round: 1, run: 1 }, view(5))),
            proposal: Some(Proposal { ballot: Ballot { round: 2, run: 5 }, view: None }),
        }
    }

    fn samples() -> [Vec<u8>; 5] {
        let slot = Slot { used: u64::MAX, shared: 5, lasting: 1 << 40, wants: 128 };
        [
            slot.encode(),
            Kept { slot, pledged: 300, rights: 5, snapshot: vec![1, 2, 3] }.encode(),
            register().encode(),
            Beat { run: 3, number: 900, view: 4, is_moving: true, heard: vec![0, 12, 899] }.encode(),
            Grants { run: 3, view: 4, to: vec![(5, 1), (9, u64::MAX)] }.encode(),
        ]
    }

    #[test]
    fn what_is_written_is_read_back() {
        fn check<T: Value + Debug + PartialEq>(value: &T) {
            assert_eq!(T::decode(&value.encode()).as_ref(), Some(value));
        }
        check(&register());
        check(&Register::default());
        check(&Beat::default());
        let kept = Kept { slot: Slot::default(), pledged: 0, rights: 0, snapshot: vec![7, 8] };
        check(&kept);
        assert_eq!(Kept::of(&[1, 0, 0, 0, 0, 2, 7, 8]), Some(kept), "as it was written before");
        check(&Grants { run: 1, view: 1, to: vec![(2, 3)] });
        check(&Stamp(1 << 41));
        check(&Wanted { number: 1, rights: u64::MAX });
        for key in [
            Key::Counter(CounterId(7)),
            Key::Grants(CounterId(7)),
            Key::Wanted(CounterId(7)),
            Key::Beat,
            Key::Stamp,
            Key::Register,
        ] {
            assert_eq!(Key::of(&key.bytes()), Some(key));
        }
        assert_eq!(Key::of(b"x"), None);
    }

    #[test]
    fn no_bytes_make_a_reader_fail_or_hold_more_than_they_are() {
        let random = SplitMix::new(fuzz::seed(5));
        let samples = samples();
        for _ in 0..fuzz::inputs(20_000) {
            let mut bytes = samples[random.below(samples.len() as u64) as usize].clone();
            for _ in 0..random.below(4) {
                match random.below(3) {
                    0 if !bytes.is_empty() => {
                        let at = random.below(bytes.len() as u64) as usize;
                        bytes[at] = random.below(256) as u8;
                    }
                    1 => bytes.truncate(random.below(bytes.len() as u64 + 1) as usize),
                    _ => bytes.push(random.below(256) as u8),
                }
            }
            let _ = (Slot::decode(&bytes), Kept::of(&bytes), Beat::decode(&bytes), Stamp::decode(&bytes));
            let _ = (Register::decode(&bytes), Grants::decode(&bytes), Wanted::decode(&bytes), Key::of(&bytes));
            let views = Register::decode(&bytes).into_iter().filter_map(|register| register.view);
            for view in views {
                assert!(view.seats.len() * 16 <= bytes.len());
            }
        }
    }
}
