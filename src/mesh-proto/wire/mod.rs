//! The codec of every frame; the only place that names bincode beside the derives of what travels.
//!
//! A frame is `kind u8 | version u8 | length u32 LE | payload`. A kind that is not known, and a version of a known kind that is
//! newer than ours, is skipped and counted, so that old and new nodes live together; what was once sent is never edited, only
//! superseded by a new version. Payloads are bincode 2.0.1, little-endian with variable integers; values inside entries, hashes in
//! bulk among them, are raw bytes.

mod lane;
mod member;

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bytes::{BufMut, Bytes, BytesMut};

use crate::{Kind, NodeId};

#[cfg(test)]
pub(crate) use lane::Entry;
pub(crate) use lane::{AckRow, Chunk, ChunkRef, EntryRef, HaveRow, LaneFrame, LaneRow, Last, Outcome, Pull, Rows};
pub(crate) use member::{
    Answer, Confirm, ConfirmReply, Echo, Heard, Hello, Holds, Leaving, Members, NameTaken, Roll, Seen, SeenState, Start,
};

/// The version of the protocol this node speaks, and the oldest it understands.
pub(crate) const PROTOCOL: u16 = 1;
/// Bytes before the payload.
pub(crate) const HEADER_BYTES: usize = 6;
/// Most that decoding one payload may ask for, in memory. A frame of the greatest length with the smallest entries stays below.
const DECODE_BYTES_MAX: usize = 8 << 20;

type Codec = Configuration<LittleEndian, Varint, Limit<DECODE_BYTES_MAX>>;

/// What one node says to another in one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// The first frame of each side: who it is, and what it knows of the other.
    Hello(Hello),
    /// A message of foca, as it is.
    Swim(Bytes),
    /// What the sender's list of members comes to.
    Roll(Roll),
    /// The sender's list of members.
    Members(Members),
    /// Answer at once.
    Echo(Echo),
    /// The answer.
    EchoReply(Echo),
    /// Do you reach this member?
    Confirm(Confirm),
    /// The answer.
    ConfirmReply(ConfirmReply),
    /// A live node has your name.
    NameTaken(NameTaken),
    /// I leave.
    Leaving(Leaving),
    /// Something about lanes.
    Lane(LaneFrame),
}

/// What became of a frame's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "it lives for one call and is nearly always a frame")]
pub(crate) enum Decoded {
    /// A frame.
    Frame(Frame),
    /// A frame that a newer program sent; it means nothing here.
    Skipped,
}

/// A peer breaks the protocol or its limits. Nothing of the frame was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Misbehaviour {
    /// Shorter or longer than its header says, or longer than allowed.
    #[error("a frame of the wrong length")]
    Length,
    /// The payload is not what its kind and version say.
    #[error("a frame that cannot be read")]
    Payload,
    /// A key, a value, a lane or all lanes of a writer are larger than allowed.
    #[error("over a limit of lanes")]
    Limit,
    /// Versions out of order, or a transfer that nobody asked for.
    #[error("lane changes that break the rules of lanes")]
    Order,
}

/// One row of the table of kinds: its number and the only version of it so far.
struct FrameKind;

impl FrameKind {
    const HELLO: u8 = 1;
    const SWIM: u8 = 2;
    const ROLL: u8 = 3;
    const MEMBERS: u8 = 4;
    const ECHO: u8 = 5;
    const ECHO_REPLY: u8 = 6;
    const CONFIRM: u8 = 7;
    const CONFIRM_REPLY: u8 = 8;
    const NAME_TAKEN: u8 = 9;
    const LEAVING: u8 = 10;
    const HAVE: u8 = 16;
    const CHUNK: u8 = 17;
    const ACK: u8 = 18;
    const ROOT: u8 = 19;
    const EQUAL: u8 = 20;
    const KINDS: u8 = 21;
    const ROWS: u8 = 22;
    const PULL: u8 = 23;
}

/// The version of every kind of frame so far.
const VERSION: u8 = 1;

/// The bytes of a frame.
pub(crate) fn encode(frame: &Frame) -> Bytes {
    match frame {
        Frame::Hello(hello) => framed(FrameKind::HELLO, hello),
        Frame::Swim(message) => raw(FrameKind::SWIM, message),
        Frame::Roll(roll) => framed(FrameKind::ROLL, roll),
        Frame::Members(members) => framed(FrameKind::MEMBERS, members),
        Frame::Echo(echo) => framed(FrameKind::ECHO, echo),
        Frame::EchoReply(echo) => framed(FrameKind::ECHO_REPLY, echo),
        Frame::Confirm(confirm) => framed(FrameKind::CONFIRM, confirm),
        Frame::ConfirmReply(reply) => framed(FrameKind::CONFIRM_REPLY, reply),
        Frame::NameTaken(taken) => framed(FrameKind::NAME_TAKEN, taken),
        Frame::Leaving(leaving) => framed(FrameKind::LEAVING, leaving),
        Frame::Lane(frame) => encode_lane(frame),
    }
}

fn encode_lane(frame: &LaneFrame) -> Bytes {
    match frame {
        LaneFrame::Have(rows) => framed(FrameKind::HAVE, rows),
        LaneFrame::Chunk(chunk) => encode_chunk(&chunk.borrowed()),
        LaneFrame::Ack(rows) => framed(FrameKind::ACK, rows),
        LaneFrame::Root(root) => framed(FrameKind::ROOT, root),
        LaneFrame::Equal(root) => framed(FrameKind::EQUAL, root),
        LaneFrame::Kinds(kinds) => framed(FrameKind::KINDS, kinds),
        LaneFrame::Rows(rows) => framed(FrameKind::ROWS, rows),
        LaneFrame::Pull(pull) => framed(FrameKind::PULL, pull),
    }
}

/// The bytes of a part of a transfer, without copying its entries first.
pub(crate) fn encode_chunk(chunk: &ChunkRef<'_>) -> Bytes {
    framed(FrameKind::CHUNK, chunk)
}

/// Reads a frame of at most `bytes_max` bytes.
pub(crate) fn decode(bytes: &Bytes, bytes_max: usize) -> Result<Decoded, Misbehaviour> {
    if bytes.len() > bytes_max || bytes.len() < HEADER_BYTES {
        return Err(Misbehaviour::Length);
    }
    let length = u32::from_le_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]);
    if usize::try_from(length) != Ok(bytes.len() - HEADER_BYTES) {
        return Err(Misbehaviour::Length);
    }
    if bytes[1] > VERSION {
        return Ok(Decoded::Skipped);
    }
    if bytes[1] != VERSION {
        return Err(Misbehaviour::Payload);
    }
    let payload = bytes.slice(HEADER_BYTES..);
    let frame = match bytes[0] {
        FrameKind::HELLO => Frame::Hello(unframed(&payload)?),
        FrameKind::SWIM => Frame::Swim(payload),
        FrameKind::ROLL => Frame::Roll(unframed(&payload)?),
        FrameKind::MEMBERS => Frame::Members(unframed(&payload)?),
        FrameKind::ECHO => Frame::Echo(unframed(&payload)?),
        FrameKind::ECHO_REPLY => Frame::EchoReply(unframed(&payload)?),
        FrameKind::CONFIRM => Frame::Confirm(unframed(&payload)?),
        FrameKind::CONFIRM_REPLY => Frame::ConfirmReply(unframed(&payload)?),
        FrameKind::NAME_TAKEN => Frame::NameTaken(unframed(&payload)?),
        FrameKind::LEAVING => Frame::Leaving(unframed(&payload)?),
        FrameKind::HAVE => Frame::Lane(LaneFrame::Have(unframed(&payload)?)),
        FrameKind::CHUNK => Frame::Lane(LaneFrame::Chunk(unframed_chunk(&payload)?)),
        FrameKind::ACK => Frame::Lane(LaneFrame::Ack(unframed(&payload)?)),
        FrameKind::ROOT => Frame::Lane(LaneFrame::Root(unframed(&payload)?)),
        FrameKind::EQUAL => Frame::Lane(LaneFrame::Equal(unframed(&payload)?)),
        FrameKind::KINDS => Frame::Lane(LaneFrame::Kinds(unframed(&payload)?)),
        FrameKind::ROWS => Frame::Lane(LaneFrame::Rows(unframed(&payload)?)),
        FrameKind::PULL => Frame::Lane(LaneFrame::Pull(unframed(&payload)?)),
        _ => return Ok(Decoded::Skipped),
    };
    Ok(Decoded::Frame(frame))
}

/// A value of a plane: a version byte, then bincode. Folds pass over what they cannot read: a newer program wrote it.
pub(crate) fn encode_value<T: bincode::Encode>(value: &T) -> Bytes {
    let mut bytes = vec![VERSION];
    bincode::encode_into_std_write(value, &mut bytes, codec()).expect("a vector takes every byte");
    bytes.into()
}

/// Reads what [`encode_value`] wrote; none if it is not a `T` of a version known here.
pub(crate) fn decode_value<T: bincode::Decode<()>>(bytes: &[u8]) -> Option<T> {
    let (VERSION, payload) = bytes.split_first().map(|(version, payload)| (*version, payload))? else { return None };
    let (value, read) = bincode::decode_from_slice(payload, codec()).ok()?;
    (read == payload.len()).then_some(value)
}

fn codec() -> Codec {
    bincode::config::standard().with_limit::<DECODE_BYTES_MAX>()
}

fn framed<T: bincode::Encode>(kind: u8, payload: &T) -> Bytes {
    let mut bytes = vec![kind, VERSION, 0, 0, 0, 0];
    bincode::encode_into_std_write(payload, &mut bytes, codec()).expect("a vector takes every byte");
    let length = u32::try_from(bytes.len() - HEADER_BYTES).expect("frames are far below 4 GiB");
    bytes[2..HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
    bytes.into()
}

fn raw(kind: u8, payload: &Bytes) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEADER_BYTES + payload.len());
    bytes.put_slice(&[kind, VERSION]);
    bytes.put_u32_le(u32::try_from(payload.len()).expect("messages of foca are small"));
    bytes.put_slice(payload);
    bytes.freeze()
}

fn unframed_chunk(payload: &Bytes) -> Result<Chunk, Misbehaviour> {
    let (chunk, read): (ChunkRef<'_>, usize) =
        bincode::borrow_decode_from_slice(payload, codec()).map_err(|_| Misbehaviour::Payload)?;
    if read == payload.len() { Ok(chunk.within(payload)) } else { Err(Misbehaviour::Payload) }
}

fn unframed<T: bincode::Decode<()>>(payload: &[u8]) -> Result<T, Misbehaviour> {
    let (value, read) = bincode::decode_from_slice(payload, codec()).map_err(|_| Misbehaviour::Payload)?;
    if read == payload.len() { Ok(value) } else { Err(Misbehaviour::Payload) }
}

/// The codec alone, for benchmarks: the frames in which a transfer of these changes travels.
#[doc(hidden)]
pub fn encode_changes(writer: NodeId, kind: Kind, changes: &[(Bytes, Bytes)], frame_bytes_max: usize) -> Vec<Bytes> {
    let (mut frames, mut entries, mut weight) = (Vec::new(), Vec::new(), 0);
    let frame = |entries: Vec<EntryRef<'_>>, index: usize, last: Option<Last>| {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        encode_chunk(&ChunkRef { writer, kind: kind as u8, epoch: 1, since: 0, transfer: 1, index, last, entries })
    };
    let mut version = 0;
    for (key, value) in changes {
        version += 1;
        weight += key.len() + value.len();
        entries.push(EntryRef { version, key, value: Some(value) });
        if weight >= frame_bytes_max / 4 {
            frames.push(frame(std::mem::take(&mut entries), frames.len(), None));
            weight = 0;
        }
    }
    frames.push(frame(entries, frames.len(), Some(Last { version, collected: 0, base_epoch: 0, base_version: 0 })));
    frames
}

/// The codec alone, for benchmarks: how many changes such a frame holds; none if it cannot be read.
#[doc(hidden)]
pub fn decode_changes(frame: &Bytes, frame_bytes_max: usize) -> Option<usize> {
    match decode(frame, frame_bytes_max) {
        Ok(Decoded::Frame(Frame::Lane(LaneFrame::Chunk(chunk)))) => Some(chunk.entries.len()),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    //! Frames as bytes.

    use bytes::Bytes;
    use smg_base::{Random, SplitMix, fuzz};

    use super::{
        AckRow, Answer, Chunk, Confirm, ConfirmReply, Decoded, Echo, Entry, Frame, HaveRow, Heard, Hello, Holds,
        LaneFrame, LaneRow, Last, Leaving, Members, Misbehaviour, NameTaken, Outcome, Pull, Roll, Rows, Seen,
        SeenState, Start, decode, decode_value, encode, encode_value,
    };
    use crate::{ConfigValue, EngineFigures, Ledger, NodeId, NodeInfo, Vote, WorkerAdd, membership::Identity};

    const LIMIT: usize = 256 << 10;

    /// An entry with a key of this length.
    pub(crate) fn entry(version: u64, key_bytes: usize) -> Entry {
        let mut key = vec![0; key_bytes];
        key[0] = u8::try_from(version % 251).unwrap();
        Entry { version, key: key.into(), value: Some(Bytes::from_static(&[1, 2, 3])) }
    }

    fn node(number: u128) -> NodeId {
        NodeId::from_u128(number)
    }

    /// One of each frame, with its name.
    fn frames() -> Vec<(&'static str, Frame)> {
        let hello = Hello {
            protocol_min: 1,
            protocol_max: 1,
            capabilities: 5,
            cluster: "smg".to_owned(),
            name: "a".to_owned(),
            node: node(1 << 100),
            instance: 7,
            boot: 300,
            advertise: "10.0.0.1:39527".parse().unwrap(),
            zone: "z".to_owned(),
            region: "r".to_owned(),
            software: "0.1.0".to_owned(),
            start: Start::Joining,
            age_ms: 1_000,
            holds: Some(Holds { boot: 2, epoch: 3 }),
            holds_instance: Some(8),
        };
        let identity =
            Identity { node: node(2), boot: 1, bump: 2, address: "[::1]:9".parse().unwrap(), zone: 3, region: 4 };
        let seen = Seen { identity, incarnation: 5, state: SeenState::Suspect };
        let address = "10.0.0.2:39527".parse().unwrap();
        let chunk = Chunk {
            writer: node(9),
            kind: 3,
            epoch: 70_000,
            since: 4,
            transfer: 11,
            index: 2,
            last: Some(Last { version: 9, collected: 1, base_epoch: 2, base_version: 3 }),
            entries: vec![entry(5, 3), Entry { version: 9, key: Bytes::from_static(b"gone"), value: None }],
        };
        let ack =
            AckRow { writer: node(9), kind: 3, transfer: 11, index: 2, outcome: Outcome::Gap, epoch: 1, version: 250 };
        let row = LaneRow { writer: node(9), epoch: 1, version: 2, hash: u128::MAX };
        vec![
            ("hello", Frame::Hello(hello)),
            ("swim", Frame::Swim(Bytes::from_static(b"\x00foca"))),
            ("roll", Frame::Roll(Roll { hash: Some(77), me: seen, you: None })),
            ("members", Frame::Members(Members { members: vec![seen], answer: Answer::Wanted })),
            ("echo", Frame::Echo(Echo { nonce: 1 })),
            ("echo-reply", Frame::EchoReply(Echo { nonce: 1 })),
            ("confirm", Frame::Confirm(Confirm { about: node(3) })),
            ("confirm-reply", Frame::ConfirmReply(ConfirmReply { about: node(3), heard: Heard::Lost })),
            ("name-taken", Frame::NameTaken(NameTaken { address })),
            ("leaving", Frame::Leaving(Leaving { boot: 3 })),
            ("have", Frame::Lane(LaneFrame::Have(vec![HaveRow { kind: 1, epoch: 2, version: 3, hash: 4 }]))),
            ("chunk", Frame::Lane(LaneFrame::Chunk(chunk))),
            ("ack", Frame::Lane(LaneFrame::Ack(vec![ack]))),
            ("root", Frame::Lane(LaneFrame::Root(1))),
            ("equal", Frame::Lane(LaneFrame::Equal(2))),
            ("kinds", Frame::Lane(LaneFrame::Kinds(vec![(1, 3)]))),
            ("rows", Frame::Lane(LaneFrame::Rows(Rows { kind: 1, rows: vec![row], ask: true }))),
            ("pull", Frame::Lane(LaneFrame::Pull(Pull { writer: node(1), kind: 2, epoch: 3, since: 4 }))),
        ]
    }

    /// Values of planes, with their names.
    fn values() -> Vec<(&'static str, Bytes)> {
        let info = NodeInfo { name: "a".to_owned(), draining: true, ..NodeInfo::default() };
        let engine =
            EngineFigures { running: 1, waiting: 2, foreign: 3, kv_usage: 0.5, generation_tokens_per_second: 9.0 };
        vec![
            ("node-info", encode_value(&info)),
            ("worker-add", encode_value(&WorkerAdd { worker: 5, spec: b"{}".to_vec(), lamport: 6 })),
            ("vote", encode_value(&Vote::Unreachable)),
            ("ledger", encode_value(&Ledger { requests: 1, decoding: 2, pending_tokens: 3 })),
            ("engine", encode_value(&engine)),
            ("config-value", encode_value(&ConfigValue { lamport: 8, value: Some(b"v".to_vec()) })),
            ("retired", encode_value(&crate::lanes::Retired { epoch: 1, version: 2, boot: 3 })),
            ("removal", encode_value(&crate::planes::Removal { worker: 5, authors: vec![node(6)] })),
        ]
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn frames_and_values_have_the_bytes_they_always_had() {
        let frames = frames().into_iter().map(|(name, frame)| (name, encode(&frame)));
        let lines = frames.chain(values()).map(|(name, bytes)| format!("{name} {}\n", hex(&bytes)));
        let now: String = lines.collect();
        let golden = include_str!("../golden/v1.txt");
        // A line that differs is a break between versions of the program: give the frame a new version instead.
        assert_eq!(golden, now, "\nas it now is:\n{now}");
    }

    #[test]
    fn frames_come_back_as_they_were() {
        for (name, frame) in frames() {
            assert_eq!(decode(&encode(&frame), LIMIT), Ok(Decoded::Frame(frame)), "{name}");
        }
    }

    #[test]
    fn what_is_newer_is_passed_over_and_what_is_broken_is_not() {
        let check = |bytes: Vec<u8>, expected: Result<Decoded, Misbehaviour>| {
            assert_eq!(decode(&bytes.clone().into(), LIMIT), expected, "{bytes:?}");
        };
        let echo = encode(&Frame::Echo(Echo { nonce: 1 })).to_vec();
        let with = |at: usize, byte: u8| {
            let mut bytes = echo.clone();
            bytes[at] = byte;
            bytes
        };
        check(with(0, 200), Ok(Decoded::Skipped));
        check(with(1, 2), Ok(Decoded::Skipped));
        check(with(1, 0), Err(Misbehaviour::Payload));
        check(with(2, 9), Err(Misbehaviour::Length));
        check(echo[..5].to_vec(), Err(Misbehaviour::Length));
        let mut longer = echo.clone();
        longer.push(0);
        longer[2] += 1;
        check(longer, Err(Misbehaviour::Payload));
        check(vec![0; LIMIT + 1], Err(Misbehaviour::Length));
        // A length that promises far more than there is asks for no memory.
        let mut huge = vec![16, 1, 9, 0, 0, 0, 253];
        huge.extend([0xff; 8]);
        check(huge, Err(Misbehaviour::Payload));
        assert_eq!(decode_value::<Vote>(&[2, 0]), None, "a value of a newer version");
        assert_eq!(decode_value::<Vote>(&[1, 9]), None);
    }

    #[test]
    fn mutated_frames_are_read_or_refused() {
        let random = SplitMix::new(fuzz::seed(11));
        let originals: Vec<Bytes> = frames().iter().map(|(_, frame)| encode(frame)).collect();
        let below = |bound: usize| usize::try_from(random.below(bound as u64)).unwrap();
        for round in 0..fuzz::inputs(20_000) {
            let mut bytes = originals[below(originals.len())].to_vec();
            for _ in 0..=below(4) {
                let at = below(bytes.len());
                match below(4) {
                    0 => bytes[at] = u8::try_from(below(256)).unwrap(),
                    1 => bytes[at] ^= 1 << below(8),
                    2 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, u8::try_from(below(256)).unwrap()),
                }
            }
            if below(2) == 0 && bytes.len() >= super::HEADER_BYTES {
                // Past the check of the length.
                let length = u32::try_from(bytes.len() - super::HEADER_BYTES).unwrap();
                bytes[2..6].copy_from_slice(&length.to_le_bytes());
            }
            if let Ok(Decoded::Frame(frame)) = decode(&bytes.clone().into(), LIMIT) {
                let again = encode(&frame);
                assert_eq!(decode(&again, LIMIT), Ok(Decoded::Frame(frame)), "round {round}: {bytes:?}");
            }
            for (_, value) in values() {
                let mut value = value.to_vec();
                let at = below(value.len());
                value[at] ^= 1 << below(8);
                let _ = decode_value::<NodeInfo>(&value);
                let _ = decode_value::<WorkerAdd>(&value);
                let _ = decode_value::<ConfigValue>(&value);
            }
        }
    }
}
