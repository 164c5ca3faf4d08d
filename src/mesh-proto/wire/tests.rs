//! Frames as bytes.

use bytes::Bytes;
use smg_base::{Random, SplitMix, fuzz};

use super::{
    AckRow, Answer, Chunk, Confirm, ConfirmReply, Decoded, Echo, Entry, Frame, HaveRow, Heard, Hello, Holds, LaneFrame,
    LaneRow, Last, Leaving, Members, Misbehaviour, NameTaken, Outcome, Pull, Roll, Rows, Seen, SeenState, Start,
    decode, decode_value, encode, encode_value,
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
    let engine = EngineFigures { running: 1, waiting: 2, foreign: 3, kv_usage: 0.5, generation_tokens_per_second: 9.0 };
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
