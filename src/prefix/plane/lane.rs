//! How a node's lane of prefixes is written. Version 1: the first byte of a key says what the entry is and how it is written, and
//! entries with other first bytes are skipped, so that nodes of different versions can live together.
//!
//! | key | value |
//! |---|---|
//! | `1` stream | how often the stream began anew (1), whether it is complete (1) |
//! | `2` stream, first chunk (8) | that number doubled, plus one if something comes before (1); the segment and the chunk that it follows (8 + 8); its further chunks (8 each) |
//! | `3` slot (2) | run (4), number (4), claims by stream |
//!
//! A stream is a worker (16), a model (8, 0 for all of the worker) and a space (1). All numbers are little-endian.

use crate::{Claim, Space};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use smg_base::WorkerId;

/// The most chunks of one segment: short, so that what is given up at a segment's end costs little to say.
pub(super) const SEGMENT_CHUNKS_MAX: usize = 32;

/// The most chunks of a segment that somebody else may write.
const SEGMENT_CHUNKS_READ_MAX: usize = 64;

/// The most chunks of one claim; longer ones are cut.
pub(super) const CLAIM_CHUNKS_MAX: usize = 256;

/// The most bytes of one entry of claims, but for the last claim in it.
pub(super) const CLAIMS_BYTES_MAX: usize = 4 << 10;

/// How many entries of claims a node keeps; the oldest are overwritten.
pub(super) const SLOTS: u16 = 256;

const HEADER: u8 = 1;
const SEGMENT: u8 = 2;
const CLAIMS: u8 = 3;

const COMPLETE: u8 = 1;

/// What chunks are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stream {
    /// Whose content it is.
    pub worker: WorkerId,
    /// The hash of the model's name; 0 where it is about all models of the worker.
    pub model: u64,
    /// In which space.
    pub space: Space,
}

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Header(Stream),
    Segment(Stream, u64),
    Claims(u16),
}

/// What is said of a stream as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// Counts how often it began anew; only segments of the same number count.
    pub(super) incarnation: u8,
    /// Whether it says all that the worker is known to hold.
    pub(super) is_complete: bool,
}

/// Chunks, each after the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) incarnation: u8,
    pub(super) parent: Option<Parent>,
    /// Its chunks; the first is in the key.
    pub(super) chunks: Vec<u64>,
}

/// What a segment follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parent {
    /// The first chunk of the segment.
    pub(super) first: u64,
    /// The chunk, which need not be that segment's last.
    pub(super) after: u64,
}

/// An entry of claims.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    /// Drawn at the writer's start.
    pub(super) run: u32,
    /// Counts the entries of this run.
    pub(super) number: u32,
    pub(super) claims: Vec<(Stream, Claim)>,
}

impl Key {
    pub(super) fn bytes(self) -> Bytes {
        let mut out = BytesMut::with_capacity(34);
        match self {
            Self::Header(stream) => {
                out.put_u8(HEADER);
                put_stream(&mut out, stream);
            }
            Self::Segment(stream, first) => {
                out.put_u8(SEGMENT);
                put_stream(&mut out, stream);
                out.put_u64_le(first);
            }
            Self::Claims(slot) => {
                out.put_u8(CLAIMS);
                out.put_u16_le(slot);
            }
        }
        out.freeze()
    }

    /// Reads one; none if another version wrote it.
    pub(super) fn of(mut key: &[u8]) -> Option<Self> {
        let key = &mut key;
        let read = match key.try_get_u8().ok()? {
            HEADER => Self::Header(stream(key)?),
            SEGMENT => Self::Segment(stream(key)?, key.try_get_u64_le().ok()?),
            CLAIMS => Self::Claims(key.try_get_u16_le().ok()?),
            _ => return None,
        };
        key.is_empty().then_some(read)
    }
}

impl Header {
    pub(super) fn bytes(self) -> Bytes {
        Bytes::copy_from_slice(&[self.incarnation, if self.is_complete { COMPLETE } else { 0 }])
    }

    pub(super) fn of(value: &[u8]) -> Option<Self> {
        let [incarnation, flags, ..] = *value else { return None };
        Some(Self { incarnation: incarnation & 0x7f, is_complete: flags & COMPLETE != 0 })
    }
}

impl Segment {
    pub(super) fn bytes(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(17 + 8 * self.chunks.len());
        out.put_u8(self.incarnation << 1 | u8::from(self.parent.is_some()));
        if let Some(parent) = self.parent {
            out.put_u64_le(parent.first);
            out.put_u64_le(parent.after);
        }
        for chunk in self.chunks.iter().skip(1) {
            out.put_u64_le(*chunk);
        }
        out.freeze()
    }

    /// Reads the segment that begins with `first`.
    pub(super) fn of(first: u64, mut value: &[u8]) -> Option<Self> {
        let flags = value.try_get_u8().ok()?;
        let parent = match flags & 1 {
            0 => None,
            _ => Some(Parent { first: value.try_get_u64_le().ok()?, after: value.try_get_u64_le().ok()? }),
        };
        let further = value.chunks_exact(8);
        if !further.remainder().is_empty() || further.len() >= SEGMENT_CHUNKS_READ_MAX {
            return None;
        }
        let further = further.map(|chunk| u64::from_le_bytes(chunk.try_into().expect("there are eight bytes")));
        Some(Self { incarnation: flags >> 1, parent, chunks: std::iter::once(first).chain(further).collect() })
    }
}

impl Batch {
    /// Claims about one stream that follow each other share its name.
    pub(super) fn bytes(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u32_le(self.run);
        out.put_u32_le(self.number);
        for group in self.claims.chunk_by(|one, next| one.0 == next.0) {
            for group in group.chunks(usize::from(u8::MAX)) {
                put_stream(&mut out, group[0].0);
                out.put_u8(u8::try_from(group.len()).unwrap_or(u8::MAX));
                for (_, claim) in group {
                    let count = u16::try_from(claim.chunks.len().min(CLAIM_CHUNKS_MAX)).unwrap_or_default();
                    out.put_u16_le(count << 1 | u16::from(claim.after.is_some()));
                    if let Some(after) = claim.after {
                        out.put_u64_le(after);
                    }
                    claim.chunks.iter().take(CLAIM_CHUNKS_MAX).for_each(|chunk| out.put_u64_le(*chunk));
                }
            }
        }
        out.freeze()
    }

    pub(super) fn of(mut value: &[u8]) -> Option<Self> {
        let value = &mut value;
        let mut batch =
            Self { run: value.try_get_u32_le().ok()?, number: value.try_get_u32_le().ok()?, claims: Vec::new() };
        while !value.is_empty() {
            let stream = stream(value)?;
            for _ in 0..value.try_get_u8().ok()? {
                let head = value.try_get_u16_le().ok()?;
                let after = match head & 1 {
                    0 => None,
                    _ => Some(value.try_get_u64_le().ok()?),
                };
                let count = usize::from(head >> 1);
                if count > CLAIM_CHUNKS_MAX || value.remaining() < count * 8 {
                    return None;
                }
                let chunks = (0..count).map(|_| value.get_u64_le()).collect();
                batch.claims.push((stream, Claim { after, chunks }));
            }
        }
        Some(batch)
    }
}

fn put_stream(out: &mut BytesMut, stream: Stream) {
    out.put_u128_le(stream.worker.as_u128());
    out.put_u64_le(stream.model);
    out.put_u8(match stream.space {
        Space::Text => 0,
        Space::Tokens => 1,
    });
}

fn stream(bytes: &mut &[u8]) -> Option<Stream> {
    let worker = WorkerId::from_u128(bytes.try_get_u128_le().ok()?);
    let model = bytes.try_get_u64_le().ok()?;
    let space = match bytes.try_get_u8().ok()? {
        0 => Space::Text,
        1 => Space::Tokens,
        _ => return None,
    };
    Some(Stream { worker, model, space })
}

#[cfg(test)]
mod tests {
    use smg_base::{Random, SplitMix, fuzz};

    use super::*;

    fn stream(number: u128) -> Stream {
        Stream { worker: WorkerId::from_u128(number), model: 7, space: Space::Tokens }
    }

    fn batch() -> Batch {
        let claim = |after, chunks: &[u64]| Claim { after, chunks: chunks.to_vec() };
        Batch {
            run: 1,
            number: 2,
            claims: vec![
                (stream(1), claim(None, &[5, 6])),
                (stream(1), claim(Some(6), &[])),
                (stream(2), claim(Some(3), &[9])),
            ],
        }
    }

    #[test]
    fn the_bytes_stay_as_they_are() {
        let check = |bytes: &[u8], expected: &str| {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, expected);
        };
        let name = "01000000000000000000000000000000070000000000000001";
        check(&Key::Header(stream(1)).bytes(), &format!("01{name}"));
        check(&Key::Segment(stream(1), 0x1122).bytes(), &format!("02{name}2211000000000000"));
        check(&Key::Claims(0x0102).bytes(), "030201");
        check(&Header { incarnation: 3, is_complete: true }.bytes(), "0301");
        let segment = Segment { incarnation: 3, parent: None, chunks: vec![1, 2] };
        check(&segment.bytes(), "060200000000000000");
        let segment = Segment { parent: Some(Parent { first: 4, after: 5 }), ..segment };
        check(&segment.bytes(), "07040000000000000005000000000000000200000000000000");
        let second = "0200000000000000000000000000000007000000000000000101";
        check(
            &batch().bytes(),
            &format!(
                "0100000002000000{name}020400050000000000000006000000000000000100\
                 0600000000000000{second}030003000000000000000900000000000000"
            )
            .replace(' ', ""),
        );
    }

    #[test]
    fn what_was_written_is_read_and_mutated_bytes_do_no_harm() {
        let segment =
            Segment { incarnation: 127, parent: Some(Parent { first: 4, after: 5 }), chunks: (9..41).collect() };
        assert_eq!(Segment::of(9, &segment.bytes()), Some(segment.clone()));
        assert_eq!(Batch::of(&batch().bytes()), Some(batch()));
        for key in [Key::Header(stream(1)), Key::Segment(stream(2), 3), Key::Claims(9)] {
            assert_eq!(Key::of(&key.bytes()), Some(key));
        }
        assert_eq!(Header::of(&[5, 1, 9]), Some(Header { incarnation: 5, is_complete: true }));
        let seeds = [segment.bytes(), batch().bytes(), Key::Segment(stream(1), 5).bytes(), Bytes::new()];
        let random = SplitMix::new(fuzz::seed(3));
        for _ in 0..fuzz::inputs(20_000) {
            let mut bytes = seeds[usize::try_from(random.below(4)).unwrap()].to_vec();
            for _ in 0..=random.below(4) {
                let at = usize::try_from(random.below(bytes.len() as u64 + 1)).unwrap();
                match random.below(3) {
                    0 => bytes.truncate(at),
                    1 => bytes.insert(at, random.next_u64().to_le_bytes()[0]),
                    _ if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
                    _ => {}
                }
            }
            if let Some(segment) = Segment::of(1, &bytes) {
                assert!(segment.chunks.len() <= SEGMENT_CHUNKS_READ_MAX);
                assert_eq!(segment.bytes(), bytes);
            }
            if let Some(batch) = Batch::of(&bytes) {
                assert_eq!(Batch::of(&batch.bytes()), Some(batch));
            }
            if let Some(key) = Key::of(&bytes) {
                assert_eq!(key.bytes(), bytes);
            }
            Header::of(&bytes);
        }
    }
}
