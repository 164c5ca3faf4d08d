//! What a connection of the mesh carries.

use bytes::Bytes;
use smg_mesh_proto::{Class, CloseCode, ConnectionId, Gone, Input};
use smg_runtime::{Shutdown, TaskKind, Tasks};
use tokio::time::{Duration, sleep};

use super::*;
use crate::{
    link::{Ends, Link},
    metrics::Metrics,
};

const FRAME_BYTES_MAX: usize = 1_000;

/// A frame with `payload` bytes after its head.
fn frame(mark: u8, payload: usize) -> Bytes {
    let mut bytes = vec![mark, 1];
    bytes.extend_from_slice(&u32::try_from(payload).expect("short").to_le_bytes());
    bytes.resize(6 + payload, mark);
    Bytes::from(bytes)
}

/// Serves a connection as a driver would.
fn serve(number: u64, peer: Peer) -> (Link, Receiver<Inbound>) {
    let (sender, receiver) = queue();
    let ends = Ends::new(ConnectionId(number), peer, FRAME_BYTES_MAX, sender, &Metrics::new(&Registrar::new()));
    Tasks::new(Shutdown::new()).spawn(TaskKind::Background, "connection", ends.work.run());
    (ends.link, receiver)
}

async fn next(inbound: &mut Receiver<Inbound>) -> Input {
    match inbound.recv().await {
        Some(Inbound::Input(input)) => input,
        _ => panic!("a connection tells of frames and of its end"),
    }
}

async fn frames(inbound: &mut Receiver<Inbound>, count: usize) -> Vec<Bytes> {
    let mut all = Vec::new();
    while all.len() < count {
        match next(inbound).await {
            Input::Frame { bytes, .. } => all.push(bytes),
            other => panic!("after {} frames: {other:?}", all.len()),
        }
    }
    all
}

async fn gone(inbound: &mut Receiver<Inbound>) -> Gone {
    loop {
        if let Input::Disconnected { gone, .. } = next(inbound).await {
            return gone;
        }
    }
}

#[tokio::test]
async fn frames_arrive_whole_the_introduction_first_and_lanes_in_order() {
    let (a, b) = (endpoint("a", tokens(&["one"])), endpoint("b", tokens(&["one"])));
    let joined = joined(&a, &b, Purpose::Mesh).await.expect("they connect");
    let (mut link, _ours) = serve(1, joined.near);
    let (_theirs, mut inbound) = serve(2, joined.far.peer);
    link.send(Class::Swim, frame(0, 994));
    for mark in 1..50 {
        link.send(Class::Lane, frame(mark, usize::from(mark) * 10));
        link.send(Class::Bulk, frame(100 + mark, 300));
    }
    let all = frames(&mut inbound, 99).await;
    assert_eq!(all[0], frame(0, 994), "the introduction comes before what overtakes it");
    let lanes: Vec<_> = all.iter().filter(|frame| (1..50).contains(&frame[0])).cloned().collect();
    assert_eq!(lanes, (1..50).map(|mark| frame(mark, usize::from(mark) * 10)).collect::<Vec<_>>());
    link.send(Class::Swim, frame(77, 5));
    link.close(CloseCode::Leaving);
    assert_eq!(frames(&mut inbound, 1).await, [frame(77, 5)], "what was sent before the close is out");
    assert_eq!(gone(&mut inbound).await, Gone::Closed(CloseCode::Leaving));
}

#[tokio::test]
async fn what_finds_no_room_is_dropped_and_a_silent_peer_costs_no_more_than_the_queues() {
    let (a, b) = (endpoint("a", tokens(&["one"])), endpoint("b", tokens(&["one"])));
    let joined = joined(&a, &b, Purpose::Mesh).await.expect("they connect");
    let registrar = Registrar::new();
    let (sender, _ours) = queue();
    let ends = Ends::new(ConnectionId(1), joined.near, FRAME_BYTES_MAX, sender, &Metrics::new(&registrar));
    for _ in 0..1_000 {
        ends.link.send(Class::Swim, frame(1, 10));
    }
    let dropped = "router_mesh_peer_nack_total{peer=\"b\",status=\"queue_full\"} 744";
    assert!(registrar.encode().contains(dropped), "{}", registrar.encode());
}

/// Has `hostile` write what it likes to a connection that is served, and gives how that ended.
async fn check<F: Future<Output = ()>>(
    what: &str,
    hostile: impl FnOnce(quinn::Connection) -> F,
    expected: Option<Gone>,
) {
    let (a, b) = (endpoint("a", tokens(&["one"])), endpoint("b", tokens(&["one"])));
    let joined = joined(&a, &b, Purpose::Mesh).await.expect("they connect");
    let connection = joined.near.connection.clone();
    let (_link, mut inbound) = serve(1, joined.far.peer);
    write(&connection, &[&[0][..], &frame(1, 3)].concat()).await;
    assert_eq!(frames(&mut inbound, 1).await, [frame(1, 3)]);
    hostile(connection.clone()).await;
    match expected {
        Some(expected) => {
            assert_eq!(gone(&mut inbound).await, expected, "{what}");
            let told = connection.closed().await;
            let code = quinn::VarInt::from_u32(CloseCode::Misbehaved as u32);
            assert!(
                matches!(&told, quinn::ConnectionError::ApplicationClosed(close) if close.error_code == code),
                "{what}"
            );
        }
        None => {
            write(&connection, &[&[0][..], &frame(2, 3)].concat()).await;
            assert_eq!(frames(&mut inbound, 1).await, [frame(2, 3)], "{what}");
        }
    }
}

/// Writes `bytes` to a stream of their own.
async fn write(connection: &quinn::Connection, bytes: &[u8]) {
    let mut stream = connection.open_uni().await.expect("a stream");
    stream.write_all(bytes).await.expect("written");
    stream.finish().expect("finished");
}

#[tokio::test]
async fn frames_over_the_limit_close_the_connection_and_broken_ones_are_skipped() {
    let misbehaved = Some(Gone::Closed(CloseCode::Misbehaved));
    let over = frame(1, FRAME_BYTES_MAX - 5);
    check(
        "one byte too long",
        async |connection| write(&connection, &[&[0][..], &over].concat()).await,
        misbehaved.clone(),
    )
    .await;
    let endless = [1, 9, 9, 0xff, 0xff, 0xff, 0xff];
    check("a length nobody could send", async |connection| write(&connection, &endless).await, misbehaved).await;
    let whole = [&[2][..], &frame(5, 500)].concat();
    for cut in [0, 1, 4, 7, 400] {
        check("cut short", async |connection| write(&connection, &whole[..cut]).await, None).await;
    }
    check("of an unknown class", async |connection| write(&connection, &[9, 9, 9]).await, None).await;
    check(
        "given up",
        async |connection| {
            let mut stream = connection.open_uni().await.expect("a stream");
            stream.write_all(&whole[..100]).await.expect("written");
            stream.reset(7_u32.into()).expect("reset");
        },
        None,
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_introduce_itself_is_sent_away() {
    let (a, b) = (endpoint("a", tokens(&["one"])), endpoint("b", tokens(&["one"])));
    let joined = joined(&a, &b, Purpose::Mesh).await.expect("they connect");
    let (_link, mut inbound) = serve(1, joined.far.peer);
    assert_eq!(gone(&mut inbound).await, Gone::Closed(CloseCode::Misbehaved));
    drop(joined.near);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_stays_up_at_little_cost() {
    let (a, b) = (endpoint("a", tokens(&["one"])), endpoint("b", tokens(&["one"])));
    let joined = joined(&a, &b, Purpose::Mesh).await.expect("they connect");
    sleep(Duration::from_secs(5)).await;
    let before = joined.near.connection.stats();
    sleep(Duration::from_secs(60)).await;
    let after = joined.near.connection.stats();
    for peer in [&joined.near, &joined.far.peer] {
        assert_eq!(peer.connection.close_reason(), None);
    }
    let bytes = after.udp_tx.bytes - before.udp_tx.bytes;
    assert!((60 * 8..60 * 40).contains(&bytes), "{bytes} bytes in a minute");
}
