//! Streams that carry requests to a peer.

use std::io::ErrorKind;

use prometheus::IntGauge;
use smg_mesh_proto::{MemberState, NodeId};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Duration, timeout},
};

use super::*;
use crate::{
    RelayStream,
    relay::{self, Pool},
};

/// Two nodes, and the pool by which the first opens streams to the second.
struct Pair {
    pool: Pool,
    far: Arc<Endpoint>,
    open: IntGauge,
}

impl Pair {
    fn new() -> Self {
        let far = endpoint("b", tokens(&["one"]));
        let open = IntGauge::new("open", "Open.").expect("a gauge");
        let pool = Pool::new(endpoint("a", tokens(&["one"])), open.clone());
        pool.locate(NodeId::of("b"), far.address(), MemberState::Alive);
        Self { pool, far, open }
    }

    /// A stream, both ends of it, after one byte went each way.
    async fn streams(&self) -> Streams {
        let accepted = async {
            let incoming = self.far.accept().await.expect("the endpoint is open");
            let connection = self.far.admit(incoming).await.expect("it is let in").peer.connection;
            let mut stream = relay::accept(&connection, &self.open).await.expect("a stream");
            assert_eq!(stream.read_u8().await.expect("a byte"), 1);
            stream.write_u8(2).await.expect("written");
            (stream, connection)
        };
        let opened = async {
            let mut stream = self.pool.open(NodeId::of("b")).await.expect("a stream");
            stream.write_u8(1).await.expect("written");
            assert_eq!(stream.read_u8().await.expect("a byte"), 2);
            stream
        };
        let (opener, (acceptor, connection)) = tokio::join!(opened, accepted);
        Streams { opener, acceptor, connection }
    }
}

struct Streams {
    opener: RelayStream,
    acceptor: RelayStream,
    connection: quinn::Connection,
}

#[tokio::test]
async fn what_is_sent_comes_back_and_both_ends_are_seen() {
    let pair = Pair::new();
    let Streams { mut opener, mut acceptor, connection } = pair.streams().await;
    let echo = async {
        let mut all = Vec::new();
        acceptor.read_to_end(&mut all).await.expect("read");
        acceptor.write_all(&all).await.expect("written");
        acceptor.shutdown().await.expect("ended");
        drop(acceptor);
    };
    let sent = vec![7; 1 << 20];
    let ask = async {
        opener.write_all(&sent).await.expect("written");
        opener.shutdown().await.expect("ended");
        let mut back = Vec::new();
        opener.read_to_end(&mut back).await.expect("read");
        back
    };
    let (back, ()) = tokio::join!(ask, echo);
    assert!(back == sent);
    assert_eq!(pair.open.get(), 1);
    drop(opener);
    assert_eq!(pair.open.get(), 0);
    let mut again = pair.pool.open(NodeId::of("b")).await.expect("a stream");
    again.write_u8(1).await.expect("written");
    relay::accept(&connection, &pair.open).await.expect("the same connection serves the next one");
}

#[tokio::test]
async fn a_dropped_stream_is_an_error_on_the_other_side_never_an_end() {
    type Act = fn(Streams) -> (RelayStream, Option<RelayStream>);
    let cases: [(&str, Act); 2] = [
        ("the caller went away", |streams| (streams.acceptor, Some(streams.opener))),
        ("the one who answers went away", |streams| (streams.opener, Some(streams.acceptor))),
    ];
    for (what, split) in cases {
        let pair = Pair::new();
        let streams = pair.streams().await;
        let connection = streams.connection.clone();
        let (mut left, dropped) = split(streams);
        drop(dropped);
        let read = left.read_u8().await.expect_err(what);
        assert_eq!(read.kind(), ErrorKind::ConnectionReset, "{what}");
        let write = loop {
            if let Err(error) = left.write_all(&[0; 100]).await {
                break error;
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(write.kind(), ErrorKind::ConnectionReset, "{what}");
        assert_eq!(connection.close_reason(), None, "other streams are not touched");
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_after_its_whole_request_is_noticed_even_while_nothing_is_written() {
    let pair = Pair::new();
    let Streams { mut opener, mut acceptor, connection: _connection } = pair.streams().await;
    opener.shutdown().await.expect("ended");
    let mut rest = Vec::new();
    acceptor.read_to_end(&mut rest).await.expect("the request ends well");
    drop(opener);
    let error = loop {
        if let Err(error) = acceptor.write_all(b"data: an answer\n\n").await {
            break error;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_answer_may_come_before_the_request_was_read() {
    let pair = Pair::new();
    let Streams { mut opener, mut acceptor, connection: _connection } = pair.streams().await;
    acceptor.write_all(b"413").await.expect("written");
    acceptor.shutdown().await.expect("ended");
    drop(acceptor);
    let mut answer = String::new();
    opener.read_to_string(&mut answer).await.expect("the answer is whole");
    assert_eq!(answer, "413");
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_holds_its_writer_back() {
    let pair = Pair::new();
    let Streams { mut opener, mut acceptor, connection: _connection } = pair.streams().await;
    let chunk = vec![1; 64 << 10];
    let mut written = 0;
    while timeout(Duration::from_secs(2), opener.write_all(&chunk)).await.is_ok() {
        written += chunk.len();
        assert!(written < 16 << 20, "nothing holds the writer back");
    }
    assert!(written >= 128 << 10, "{written}");
    let read = async {
        let mut total = 0;
        let mut buffer = vec![0; 64 << 10];
        while total < 4 << 20 {
            total += acceptor.read(&mut buffer).await.expect("read");
        }
        total
    };
    let write = async { while opener.write_all(&chunk).await.is_ok() {} };
    tokio::select! {
        total = read => assert!(total >= 4 << 20),
        () = write => panic!("the stream broke"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_unused_connection_is_closed_and_a_used_one_is_not() {
    let pair = Pair::new();
    let Streams { opener, acceptor, connection } = pair.streams().await;
    for _ in 0..200 {
        pair.pool.sweep();
    }
    assert_eq!(connection.close_reason(), None);
    drop((opener, acceptor));
    for _ in 0..62 {
        pair.pool.sweep();
    }
    assert!(matches!(connection.closed().await, quinn::ConnectionError::ApplicationClosed(_)));
    let streams = pair.streams().await;
    assert_eq!(streams.connection.close_reason(), None, "a new one is made");
}

#[tokio::test]
async fn the_streams_of_a_silent_peer_are_given_up_once_it_is_taken_for_dead_and_no_sooner() {
    let pair = Pair::new();
    let Streams { mut opener, mut acceptor, connection: _connection } = pair.streams().await;
    for _ in 0..20 {
        pair.pool.sweep();
    }
    pair.pool.locate(NodeId::of("b"), pair.far.address(), MemberState::Down);
    acceptor.write_u8(3).await.expect("a peer that is alive all the same");
    assert_eq!(opener.read_u8().await.expect("is heard"), 3);
    pair.pool.sweep();
    assert_eq!(pair.open.get(), 2);
    acceptor.write_u8(4).await.expect("and keeps its streams");
    assert_eq!(opener.read_u8().await.expect("which go on"), 4);
    for _ in 0..10 {
        pair.pool.sweep();
    }
    assert_eq!(opener.read_u8().await.expect_err("no packet came").kind(), ErrorKind::NotConnected);
}

#[tokio::test]
async fn a_peer_that_cannot_be_reached_or_is_another_is_an_error_at_once() {
    let pair = Pair::new();
    assert_eq!(pair.pool.open(NodeId::of("c")).await.expect_err("unknown"), DialError::NoAddress);
    pair.pool.locate(NodeId::of("c"), pair.far.address(), MemberState::Alive);
    let admitted = async {
        let incoming = pair.far.accept().await.expect("the endpoint is open");
        pair.far.admit(incoming).await
    };
    let (opened, _admitted) = tokio::join!(pair.pool.open(NodeId::of("c")), admitted);
    assert_eq!(opened.expect_err("another"), DialError::OtherNode { found: "b".to_owned() });
}
