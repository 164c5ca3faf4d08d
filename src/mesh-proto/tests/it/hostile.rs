//! What peers may send without harm.

use std::time::Duration;

use bytes::Bytes;
use smg_base::{Random as _, SplitMix, fuzz};
use smg_mesh_proto::{CloseCode, Input};

use crate::cluster::{Cluster, Crash};

/// The kind of a frame that carries a packet of foca's.
const SWIM: u8 = 2;

#[test]
fn a_packet_in_anothers_name_is_refused() {
    let mut cluster = Cluster::formed(3, 1);
    cluster.tape = Some(Vec::new());
    cluster.run(Duration::from_secs(2));
    let tape = cluster.tape.take().expect("it was kept");
    let (_, packet) = tape.into_iter().find(|(from, bytes)| *from == 1 && bytes[0] == SWIM).expect("probes go on");
    let connection = cluster.connection(0, 2).expect("connected");
    let own = cluster.connection(0, 1).expect("connected");
    cluster.give(0, Input::Frame { connection: own, bytes: packet.clone() });
    assert_eq!(cluster.nodes[0].closes, []);
    cluster.give(0, Input::Frame { connection, bytes: packet });
    assert_eq!(cluster.nodes[0].closes, [CloseCode::Misbehaved]);
}

#[test]
fn garbage_closes_the_connection() {
    for garbage in [&b""[..], b"\x01", &[SWIM, 1, 3, 0, 0, 0, 1, 2, 3], &[1, 1, 0, 0, 0, 0], &[255; 300_000]] {
        let mut cluster = Cluster::formed(2, 2);
        let connection = cluster.connection(0, 1).expect("connected");
        cluster.give(0, Input::Frame { connection, bytes: Bytes::copy_from_slice(garbage) });
        assert_eq!(cluster.nodes[0].closes, [CloseCode::Misbehaved], "{} bytes", garbage.len());
    }
}

#[test]
fn what_is_not_known_is_passed_over() {
    let mut cluster = Cluster::formed(2, 3);
    let connection = cluster.connection(0, 1).expect("connected");
    for newer in [&[200, 1, 1, 0, 0, 0, 7][..], &[SWIM, 9, 1, 0, 0, 0, 7]] {
        cluster.give(0, Input::Frame { connection, bytes: Bytes::copy_from_slice(newer) });
    }
    assert_eq!(cluster.nodes[0].closes, []);
    assert_eq!(cluster.mesh(0).status().skipped.frames, 2);
    cluster.run(Duration::from_secs(1));
    assert!(cluster.all_see_all());
}

/// Everything that a small cluster says in its life.
fn tape(seed: u64) -> Vec<Bytes> {
    let mut cluster = Cluster::new(4, seed);
    cluster.tape = Some(Vec::new());
    cluster = cluster.form();
    cluster.run(Duration::from_secs(3));
    cluster.split(&[0, 1], &[2, 3]);
    cluster.run(Duration::from_secs(15));
    cluster.cuts.clear();
    cluster.run(Duration::from_secs(3));
    cluster.crash(3, Crash::Reset);
    cluster.run(Duration::from_secs(3));
    cluster.start(3);
    cluster.run(Duration::from_secs(3));
    cluster.give(2, Input::Leave);
    cluster.run(Duration::from_secs(2));
    cluster.tape.take().expect("it was kept").into_iter().map(|(_, bytes)| bytes).collect()
}

fn mutated(bytes: &Bytes, random: &SplitMix) -> Bytes {
    let mut bytes = bytes.to_vec();
    let below = |bound: usize| usize::try_from(random.below(bound as u64)).expect("below a length");
    for _ in 0..=below(4) {
        match below(5) {
            _ if bytes.is_empty() => bytes.push(0),
            0 => {
                let at = below(bytes.len());
                bytes[at] ^= 1 << below(8);
            }
            1 => {
                let at = below(bytes.len());
                bytes[at] = [0, 1, 127, 128, 250, 251, 252, 253, 255][below(9)];
            }
            2 => bytes.truncate(below(bytes.len())),
            3 => {
                let at = below(bytes.len());
                let piece = bytes[at..].to_vec();
                bytes.extend(piece);
            }
            _ => {
                let at = below(bytes.len());
                bytes.remove(at);
            }
        }
    }
    // Mostly the length is right, so that what follows is read at all.
    if bytes.len() >= 6 && below(8) > 0 {
        let length = u32::try_from(bytes.len() - 6).expect("short");
        bytes[2..6].copy_from_slice(&length.to_le_bytes());
    }
    bytes.into()
}

#[test]
fn mutated_frames_do_no_harm() {
    let seed = fuzz::seed(5);
    let random = SplitMix::new(seed);
    let tape = tape(seed);
    let mut victim = Cluster::formed(3, seed);
    for count in 0..fuzz::inputs(20_000) {
        let at = usize::try_from(random.below(tape.len() as u64)).expect("below a length");
        let bytes = mutated(&tape[at], &random);
        let from = 1 + usize::from(random.below(2) == 1);
        if let Some(connection) = victim.connection(0, from) {
            victim.give(0, Input::Frame { connection, bytes });
        }
        victim.run(Duration::from_millis(20));
        if count % 2_000 == 1_999 {
            victim = Cluster::formed(3, seed ^ count);
        }
    }
}
