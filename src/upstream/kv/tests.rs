use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use smg_base::{Random, SplitMix};
use smg_fleet::KvEventsSpec;
use smg_prefix::{EngineHash, KvEvent, Stored, Tier};
use smg_runtime::{Receiver, channel, metrics::Registrar};
use tokio::{
    io::AsyncWriteExt,
    task::{AbortHandle, JoinHandle},
};
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use super::*;
use crate::{
    Config,
    rules::UrlRules,
    testing::{self, spec, upstream, worker_of},
};

/// Bytes from text: hexadecimal digits, and `'text'` as it is.
fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (at, piece) in text.split('\'').enumerate() {
        if at % 2 == 1 {
            bytes.extend_from_slice(piece.as_bytes());
            continue;
        }
        let digits: Vec<char> = piece.chars().filter(|digit| !digit.is_whitespace()).collect();
        bytes.extend(digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap()));
    }
    bytes
}

/// `[1.5, [[ "BlockStored", [7, 8], 6, [1, 2, 3, 4], 2, None, "GPU"]]]`, as vLLM wrote it before it had names for all fields.
const LIST: &str = "92 cb3ff8000000000000 91 97 ab'BlockStored' 920708 06 9401020304 02 c0 a3'GPU'";
/// The same with everything that came later, salted, adapted, and of rank 3; the second block has an image in it.
const LONG_LIST: &str = "93 cb3ff8000000000000 91 9d ab'BlockStored' 920708 c0 9401020304 02 01 a3'CPU' a3'sql' \
    92 92a3'sql'a4'acme' 91 92a5'image'00 00 ae'full_attention' c0 c3 03";
/// Named fields and hashes of many bytes, in one map with a field nobody knows.
const MAP: &str = "93 cb3ff8000000000000 91 86 a4'type' ab'BlockStored' ac'block_hashes' 91 c404deadbeef \
    b1'parent_block_hash' c0 a9'token_ids' 920102 aa'block_size' 02 a5'later' 81a1'x'90 c0";
/// The batch a map too, with a removal, a window's blocks and a flush.
const MAPS: &str = "82 a2'ts' 01 a6'events' 93 83a4'type'ac'BlockRemoved'ac'block_hashes'9107a6'medium'c0 \
    97ab'BlockStored'9109c09101019a'x'c0";
const SGLANG_SALTED: &str =
    "92 01 91 98 ab'BlockStored' 91 d3ffffffffffffffff c0 920102 02 c0 c0 81aa'cache_salt'a4'acme'";

fn stored(blocks: &[u64], parent: Option<u64>, tokens: &[u32], block_tokens: u32) -> Stored {
    Stored {
        blocks: blocks.iter().copied().map(EngineHash).collect(),
        parent: parent.map(EngineHash),
        tokens: tokens.to_vec(),
        block_tokens,
        ..Stored::default()
    }
}

#[test]
fn published_batches_are_read_in_every_shape() {
    let check = |text: &str, rank, expected: &[KvEvent]| {
        let read = published::batch(&bytes(text), 9, 5).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!((read.sequence, read.rank, &read.events[..]), (9, rank, expected), "{text}");
    };
    check(LIST, 5, &[KvEvent::Stored(stored(&[7, 8], Some(6), &[1, 2, 3, 4], 2))]);
    let first = Stored {
        lora: Some("sql".to_owned()),
        salt: Some("acme".to_owned()),
        tier: Tier::Host,
        ..stored(&[7], None, &[1, 2], 2)
    };
    let opaque =
        Stored { opaque: true, ..Stored { blocks: vec![EngineHash(8)], parent: Some(EngineHash(7)), ..first.clone() } };
    let second = Stored { tokens: vec![3, 4], ..opaque };
    check(LONG_LIST, 3, &[KvEvent::Stored(first), KvEvent::Stored(second)]);
    let named = Stored { blocks: vec![EngineHash::of_bytes(&bytes("deadbeef"))], ..stored(&[], None, &[1, 2], 2) };
    check(MAP, 5, &[KvEvent::Stored(named)]);
    let salted = Stored { salt: Some("acme".to_owned()), ..stored(&[u64::MAX], None, &[1, 2], 2) };
    check(SGLANG_SALTED, 5, &[KvEvent::Stored(salted)]);
    let maps = "82 a2'ts' 01 a6'events' 94 83a4'type'ac'BlockRemoved'ac'block_hashes'9107a6'medium'c0 \
        94ac'BlockRemoved'9109a3'CPU'02 91b0'AllBlocksCleared' 92a7'Unheard'01";
    let removed = |block, tier, group| KvEvent::Removed { blocks: vec![EngineHash(block)], tier, group };
    check(maps, 5, &[removed(7, Tier::Device, 0), removed(9, Tier::Host, 2), KvEvent::Cleared]);
    let windowed = "92 01 91 85 a4'type' ab'BlockStored' ac'block_hashes' 9107 a9'token_ids' 90 \
        a9'group_idx' 01 b2'kv_cache_spec_kind' ae'sliding_window'";
    let window = Stored { windowed: true, group: 1, ..stored(&[7], None, &[], 0) };
    check(windowed, 5, &[KvEvent::Stored(window)]);
    // A store whose tokens are pairs says nothing; a batch with a removal that cannot be read is not one.
    check("92 01 91 95ab'BlockStored'9107c09192010201", 5, &[]);
    for bad in ["", "c1", "92 01", "92 01 91 92ac'BlockRemoved'07", "92 01 dd ffffffff", "92 01 90 00", MAPS] {
        assert_eq!(published::batch(&bytes(bad), 0, 0), Err(Malformed), "{bad}");
    }
}

#[test]
fn the_fake_engine_and_this_reader_agree_on_lists() {
    let event = ("BlockStored", [u64::MAX], None::<u64>, [1_u32, 70_000], 2_u32, None::<u32>, "GPU");
    let payload = rmp_serde::to_vec(&(1.5_f64, [event], 1_u32)).unwrap();
    let read = published::batch(&payload, 0, 0).unwrap();
    assert_eq!((read.rank, read.events), (1, vec![KvEvent::Stored(stored(&[u64::MAX], None, &[1, 70_000], 2))]));
}

#[test]
fn drained_events_are_read_and_their_numbers_followed() {
    let mut drained = drained::Drained::default();
    let read = |drained: &mut drained::Drained, body: &str| {
        let answer = drained.read(body.as_bytes()).unwrap();
        (answer.lost, answer.batch.map(|batch| (batch.sequence, batch.events)))
    };
    let block = |hash: u64, tokens: &str| {
        let tokens: Vec<String> =
            tokens.split(' ').map(|token| format!(r#"{{"token_id":{token},"token_extra_id":0}}"#)).collect();
        format!(r#"{{"block_hash":{hash},"tokens":[{}],"cache_level":0,"priority":35}}"#, tokens.join(","))
    };
    let event =
        |id: u64, window: u64, data: &str| format!(r#"{{"event_id":{id},"window_size":{window},"data":{data}}}"#);
    let store = |parent: &str, blocks: &[String]| {
        format!(r#"{{"type":"stored","parent_hash":{parent},"blocks":[{}]}}"#, blocks.join(","))
    };
    let first = format!(
        "[{},{},{}]",
        event(0, 64, r#"{"type":"created","num_blocks_per_cache_level":[10,0]}"#),
        // The last block is not whole yet.
        event(1, 64, &store("null", &[block(7, "1 2"), block(8, "3 4"), block(9, "5")])),
        event(2, 16, &store("null", &[block(7, "1 2")])),
    );
    let whole = KvEvent::Stored(stored(&[7, 8], None, &[1, 2, 3, 4], 2));
    assert_eq!(read(&mut drained, &first), (drained::Lost::Nothing, Some((0, vec![KvEvent::Started, whole]))));
    assert_eq!(read(&mut drained, "[]"), (drained::Lost::Nothing, None));
    let removed = |tier| KvEvent::Removed { blocks: vec![EngineHash(8)], tier, group: 0 };
    let body = format!("[{}]", event(3, 64, r#"{"type":"removed","block_hashes":[8]}"#));
    let all = [Tier::Device, Tier::Host, Tier::Storage].map(removed).to_vec();
    assert_eq!(read(&mut drained, &body), (drained::Lost::Nothing, Some((1, all))));
    let updated =
        r#"{"type":"updated","block_hash":7,"cache_level":{"type":"event_diff","old_value":0,"new_value":1}}"#;
    let body = format!("[{}]", event(9, 64, updated));
    let moved = Stored { tier: Tier::Host, ..stored(&[7], None, &[], 0) };
    let gone = KvEvent::Removed { blocks: vec![EngineHash(7)], tier: Tier::Device, group: 0 };
    let expected = (drained::Lost::Something, Some((2, vec![KvEvent::Stored(moved), gone])));
    assert_eq!(read(&mut drained, &body), expected, "five events are missing");
    assert_eq!(drained.read(b"{}"), Err(Malformed));
}

#[test]
fn mutated_messages_never_panic() {
    let random = SplitMix::new(smg_base::fuzz::seed(21));
    let json =
        br#"[{"event_id":1,"window_size":64,"data":{"type":"stored","parent_hash":null,"blocks":[{"block_hash":7,
        "tokens":[{"token_id":1}],"cache_level":0}]}},{"event_id":2,"data":{"type":"removed","block_hashes":["a"]}}]"#;
    let streamed = {
        use prost::Message;
        let block = streamed::KvBlock { block_hash: 7, token_ids: vec![1, 2], block_size: 2, ..Default::default() };
        let stored = streamed::KvBlocksStored { blocks: vec![block], ..Default::default() };
        let event = streamed::KvCacheEvent { data: Some(streamed::Data::Stored(stored)) };
        streamed::KvEventBatch { sequence_number: 3, events: vec![event], ..Default::default() }.encode_to_vec()
    };
    let mut corpus: Vec<Vec<u8>> = [LIST, LONG_LIST, MAP, SGLANG_SALTED].iter().map(|text| bytes(text)).collect();
    corpus.extend([json.to_vec(), streamed, bytes("04 05 05'READY' 01 03'abc' 02 0000000000000002 0102")]);
    let (mut read, mut refused) = (0, 0);
    for turn in 0..usize::try_from(smg_base::fuzz::inputs(50_000)).unwrap() {
        let mut input = corpus[turn % corpus.len()].clone();
        for _ in 0..=random.below(4) {
            let place = usize::try_from(random.below(input.len() as u64)).unwrap();
            let byte = u8::try_from(random.below(256)).unwrap();
            match random.below(4) {
                0 => input.insert(place, byte),
                1 if input.len() > 1 => drop(input.remove(place)),
                2 => input.truncate(place + 1),
                _ => input[place] = byte,
            }
        }
        let outcome = match turn % corpus.len() {
            0..4 => published::batch(&input, 0, 0).map(drop),
            4 => drained::Drained::default().read(&input).map(drop),
            5 => {
                let decoded = <streamed::KvEventBatch as prost::Message>::decode(&input[..]);
                decoded.map(|batch| drop(streamed::events(batch))).map_err(|_| Malformed)
            }
            _ => {
                let mut buffer = BytesMut::from(&input[..]);
                loop {
                    match zmtp::frame(&mut buffer) {
                        Ok(Some(_)) => {}
                        Ok(None) => break Ok(()),
                        Err(_) => break Err(Malformed),
                    }
                }
            }
        };
        match outcome {
            Ok(()) => read += 1,
            Err(Malformed) => refused += 1,
        }
    }
    assert!(read > 1_000 && refused > 1_000, "too few to mean anything: {read} {refused}");
}

#[test]
fn streamed_events_are_read() {
    let key = |text: &str| streamed::KvBlockExtraKey { text: Some(text.to_owned()) };
    let block = |hash, keys: Vec<streamed::KvBlockExtraKey>| streamed::KvBlock {
        block_hash: hash,
        token_ids: vec![1, 2],
        block_size: 2,
        extra_keys: keys,
        ..Default::default()
    };
    let stored_message = streamed::KvBlocksStored {
        blocks: vec![block(-1, vec![key("acme")]), block(8, vec![]), block(9, vec![key("image")])],
        cache_salt: Some("acme".to_owned()),
        medium: Some("CPU_PINNED".to_owned()),
        ..Default::default()
    };
    let removed = streamed::KvBlocksRemoved { block_hashes: vec![8], tier: Some(1), ..Default::default() };
    let shared = streamed::KvBlocksRemoved { block_hashes: vec![8], locality: Some(2), ..Default::default() };
    let event = |data| streamed::KvCacheEvent { data: Some(data) };
    let events = vec![
        event(streamed::Data::Stored(stored_message)),
        event(streamed::Data::Removed(removed)),
        event(streamed::Data::Removed(shared)),
        event(streamed::Data::Cleared(streamed::KvCacheCleared {})),
    ];
    let salted =
        Stored { salt: Some("acme".to_owned()), tier: Tier::Host, ..stored(&[u64::MAX, 8], None, &[1, 2, 1, 2], 2) };
    let opaque = Stored {
        blocks: vec![EngineHash(9)],
        parent: Some(EngineHash(8)),
        tokens: vec![1, 2],
        opaque: true,
        ..salted.clone()
    };
    let gone = KvEvent::Removed { blocks: vec![EngineHash(8)], tier: Tier::Device, group: 0 };
    let expected = [KvEvent::Stored(salted), KvEvent::Stored(opaque), gone, KvEvent::Cleared];
    assert_eq!(streamed::events(streamed::KvEventBatch { events, ..Default::default() }), expected);
}

/// A publisher as engines have one, made with another implementation of the protocol.
struct Publisher {
    socket: PubSocket,
    port: u16,
    kept: Arc<Mutex<VecDeque<(u64, Bytes)>>>,
    asked: Arc<Mutex<Vec<u64>>>,
    repeats: Option<(JoinHandle<()>, u16)>,
}

impl Publisher {
    async fn bound(port: u16) -> Self {
        let mut socket = PubSocket::new();
        let port = bind(&mut socket, port).await;
        Self { socket, port, kept: Arc::default(), asked: Arc::default(), repeats: None }
    }

    async fn repeating(mut self, port: u16) -> Self {
        let mut router = RouterSocket::new();
        let port = bind(&mut router, port).await;
        let (kept, asked) = (self.kept.clone(), self.asked.clone());
        let task = tokio::spawn(async move {
            while let Ok(message) = router.recv().await {
                let [caller, empty, first] = &message.into_vec()[..] else { panic!("not a question") };
                let first = u64::from_be_bytes(first[..].try_into().unwrap());
                asked.lock().push(first);
                let batches: Vec<_> = kept.lock().iter().filter(|(sequence, _)| *sequence >= first).cloned().collect();
                for (sequence, payload) in batches.into_iter().chain([(u64::MAX, Bytes::new())]) {
                    let frames = [caller.clone(), empty.clone(), number(sequence), payload];
                    let _ = router.send(ZmqMessage::try_from(frames.to_vec()).unwrap()).await;
                }
            }
        });
        self.repeats = Some((task, port));
        self
    }

    fn spec(&self) -> KvEventsSpec {
        let replay = self.repeats.as_ref().map(|(_, port)| format!("tcp://*:{port}"));
        KvEventsSpec { replay, topic: "kv".to_owned(), ..KvEventsSpec::new(format!("tcp://*:{}", self.port)) }
    }

    /// Keeps a batch, and publishes it or not.
    fn keep(&self, sequence: u64, payload: &Bytes) {
        self.kept.lock().push_back((sequence, payload.clone()));
    }

    async fn publish(&mut self, sequence: u64, payload: &Bytes) {
        let frames = vec![Bytes::from_static(b"kv-events"), number(sequence), payload.clone()];
        self.socket.send(ZmqMessage::try_from(frames).unwrap()).await.unwrap();
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        if let Some((task, _)) = &self.repeats {
            task.abort();
        }
    }
}

/// Binds a socket, once whoever had the port before has let go of it.
async fn bind(socket: &mut impl Socket, port: u16) -> u16 {
    let bound = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            match socket.bind(&format!("tcp://127.0.0.1:{port}")).await {
                Ok(zeromq::Endpoint::Tcp(_, port)) => return port,
                Ok(other) => panic!("not over tcp: {other}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    });
    bound.await.expect("the port is free in time")
}

fn number(sequence: u64) -> Bytes {
    sequence.to_be_bytes().to_vec().into()
}

/// A batch that stores one block, in one of several lives.
fn payload(life: u64, block: u64) -> Bytes {
    let event = ("BlockStored", [block], None::<u64>, [1_u32], 1_u32, None::<u32>, "GPU");
    rmp_serde::to_vec(&(life, [event])).unwrap().into()
}

struct Following {
    news: Receiver<(WorkerId, KvNews)>,
    task: AbortHandle,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Following {
    fn of(worker: Arc<Worker>, spec: KvEventsSpec, capacity: usize) -> Self {
        let (sender, news) = channel("kv", capacity, &Registrar::new());
        let source = KvSource { worker, spec };
        let task = tokio::spawn(follow(upstream(&Config::default()), source, sender)).abort_handle();
        Self { news, task }
    }

    fn start(spec: KvEventsSpec) -> Self {
        Self::of(testing::worker("http://127.0.0.1:9"), spec, 64)
    }

    async fn next(&mut self) -> KvNews {
        let next = tokio::time::timeout(Duration::from_secs(20), self.news.recv()).await;
        next.expect("something is told in time").expect("somebody tells").1
    }

    /// The next news but for failures, in short.
    async fn told(&mut self) -> String {
        loop {
            return match self.next().await {
                KvNews::Failed(_) => continue,
                KvNews::Connected => "connected".to_owned(),
                KvNews::Lost { rank } => format!("lost {rank}"),
                KvNews::Batch(batch) => {
                    let events = batch.events.iter().map(|event| match event {
                        KvEvent::Stored(stored) => format!(" +{}", stored.blocks[0].0),
                        KvEvent::Started => " started".to_owned(),
                        other => format!(" {other:?}"),
                    });
                    format!("{}:{}{}", batch.rank, batch.sequence, events.collect::<String>())
                }
            };
        }
    }
}

/// Publishes until the subscriber hears: a subscription takes effect when the publisher has read it.
async fn until_heard(publisher: &mut Publisher, following: &mut Following, sequence: u64, payload: &Bytes) -> String {
    loop {
        publisher.publish(sequence, payload).await;
        tokio::select! {
            told = following.told() => return told,
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
}

#[tokio::test]
async fn what_was_published_before_and_in_between_is_asked_for() {
    let mut publisher = Publisher::bound(0).await.repeating(0).await;
    for sequence in 0..3 {
        publisher.keep(sequence, &payload(1, sequence));
    }
    let mut following = Following::start(publisher.spec());
    for expected in ["connected", "0:0 +0", "0:1 +1", "0:2 +2"] {
        assert_eq!(following.told().await, expected);
    }
    // Batches 3 and 4 are never published, but kept; 5 shows that they are missing.
    for sequence in 3..6 {
        publisher.keep(sequence, &payload(1, sequence));
    }
    assert_eq!(until_heard(&mut publisher, &mut following, 5, &payload(1, 5)).await, "0:3 +3");
    for expected in ["0:4 +4", "0:5 +5"] {
        assert_eq!(following.told().await, expected);
    }
    publisher.publish(6, &payload(1, 6)).await;
    assert_eq!(following.told().await, "0:6 +6");
    // What was kept no longer is lost.
    publisher.kept.lock().clear();
    publisher.keep(9, &payload(1, 9));
    publisher.publish(9, &payload(1, 9)).await;
    assert_eq!((following.told().await, following.told().await), ("lost 0".to_owned(), "0:9 +9".to_owned()));
    assert_eq!(publisher.asked.lock()[..2], [0, 2]);
}

#[tokio::test]
async fn a_publisher_that_is_started_anew_is_noticed() {
    for repeats in [true, false] {
        let mut publisher = Publisher::bound(0).await;
        if repeats {
            publisher = publisher.repeating(0).await;
        }
        let spec = publisher.spec();
        let mut following = Following::start(spec.clone());
        assert_eq!(following.told().await, "connected");
        publisher.keep(7, &payload(1, 7));
        assert_eq!(until_heard(&mut publisher, &mut following, 7, &payload(1, 7)).await, "0:7 +7");

        let (port, replay) = (publisher.port, publisher.repeats.as_ref().map(|(_, port)| *port));
        drop(publisher);
        let mut publisher = Publisher::bound(port).await;
        publisher.keep(0, &payload(2, 50));
        if let Some(replay) = replay {
            publisher = publisher.repeating(replay).await;
            for expected in ["connected", "lost 0", "0:0 +50"] {
                assert_eq!(following.told().await, expected);
            }
        } else {
            assert_eq!(following.told().await, "connected");
            let told = until_heard(&mut publisher, &mut following, 0, &payload(2, 50)).await;
            assert_eq!(told, "0:0 started +50");
        }
        publisher.publish(1, &payload(2, 51)).await;
        let mut told = following.told().await;
        while told == "0:0 started +50" {
            told = following.told().await;
        }
        assert_eq!(told, "0:1 +51");
    }
}

#[tokio::test]
async fn who_takes_nothing_holds_up_the_reading() {
    let publisher = Publisher::bound(0).await.repeating(0).await;
    for sequence in 0..5_000 {
        publisher.keep(sequence, &payload(1, sequence));
    }
    let mut following = Following::of(testing::worker("http://127.0.0.1:9"), publisher.spec(), 2);
    testing::until("the channel is full", || following.news.len() == 2).await;
    assert_eq!(following.told().await, "connected");
    for sequence in 0..5_000 {
        assert_eq!(following.told().await, format!("0:{sequence} +{sequence}"));
    }
}

#[tokio::test]
async fn each_rank_has_a_port() {
    // Two neighbouring ports that are free.
    let (mut first, mut second) = loop {
        let first = Publisher::bound(0).await;
        let next = first.port.checked_add(1).map(|port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok());
        if next == Some(true) {
            let port = first.port + 1;
            break (first, Publisher::bound(port).await);
        }
    };
    let mut following = Following::start(KvEventsSpec { ranks: 2, ..first.spec() });
    assert_eq!([following.told().await, following.told().await], ["connected", "connected"]);
    assert_eq!(until_heard(&mut first, &mut following, 4, &payload(1, 1)).await, "0:4 +1");
    let mut told = until_heard(&mut second, &mut following, 8, &payload(1, 2)).await;
    while told.starts_with("0:") {
        told = following.told().await;
    }
    assert_eq!(told, "1:8 +2");
}

#[tokio::test]
async fn addresses_that_rules_forbid_are_not_connected_to() {
    let check = async |origin, endpoint: &str, part: &str| {
        let config = Config {
            api_rules: UrlRules { deny: vec!["127.0.0.0/8".parse().unwrap()], ..UrlRules::default() },
            ..Config::default()
        };
        let (sender, mut news) = channel("kv", 4, &Registrar::new());
        let source =
            KvSource { worker: worker_of(spec("http://127.0.0.1:9"), origin), spec: KvEventsSpec::new(endpoint) };
        let task = tokio::spawn(follow(upstream(&config), source, sender));
        let told = tokio::time::timeout(Duration::from_secs(20), news.recv()).await.unwrap();
        task.abort();
        let Some((_, KvNews::Failed(error))) = told else { panic!("{endpoint}: {told:?}") };
        assert!(error.contains(part), "{endpoint}: {error}");
    };
    check(Origin::Api, "tcp://127.0.0.1:5557", "denied by the url rules").await;
    check(Origin::Api, "grpc://127.0.0.1:5557", "denied by the url rules").await;
    check(Origin::Api, "ipc:///run/kv.sock", "ipc://").await;
    check(Origin::Flag, "tcp://169.254.169.254:5557", "link-local").await;
    check(Origin::Flag, "ipc:///nowhere/kv.sock", "No such file").await;
}

#[tokio::test]
async fn a_peer_that_promises_too_much_is_left() {
    let server = testing::Server::start(|mut stream, _| async move {
        let mut greeting = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3, 0];
        greeting.extend_from_slice(b"NULL");
        greeting.resize(64, 0);
        greeting.extend_from_slice(b"\x04\x06\x05READY");
        // A frame of 2^62 bytes.
        greeting.extend_from_slice(&[2, 0x40, 0, 0, 0, 0, 0, 0, 0]);
        stream.write_all(&greeting).await.unwrap();
        testing::until_closed(&mut stream).await;
    })
    .await;
    let mut following = Following::start(KvEventsSpec::new(format!("tcp://{}", server.address)));
    assert_eq!(following.next().await, KvNews::Connected);
    let KvNews::Failed(error) = following.next().await else { panic!("it goes on") };
    assert!(error.contains("more than"), "{error}");
}

#[tokio::test]
async fn events_are_drained_below_the_workers_url() {
    let event = r#"[{"event_id":4,"data":{"type":"stored","parent_hash":null,"blocks":[{"block_hash":7,"tokens":[{"token_id":1}]}]}}]"#;
    let engine = testing::Engine::start(&[("/kv_cache_events", 200, event)]).await;
    let url = engine.server.url();
    let mut following = Following::of(testing::worker(&url), KvEventsSpec::new(format!("{url}/kv_cache_events")), 64);
    assert_eq!(following.told().await, "connected");
    assert_eq!(following.told().await, "0:0 +7");
    // The same number again: it is another engine's, or ours begins anew.
    assert_eq!(following.told().await, "lost 0");
    engine.set("/kv_cache_events", 500, "");
    loop {
        if let KvNews::Failed(error) = following.next().await {
            assert!(error.contains("status 500"), "{error}");
            break;
        }
    }
}

/// A servicer that has the call under one name, and streams these messages to whoever calls it.
async fn servicer(call: &'static str, messages: Vec<streamed::KvEventBatch>) -> testing::Server {
    use prost::Message;
    let body: Vec<u8> = messages
        .iter()
        .flat_map(|message| {
            let message = message.encode_to_vec();
            [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), &message].concat()
        })
        .collect();
    testing::Server::start(move |stream, _| {
        let body = Bytes::from(body.clone());
        async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            let mut open = Vec::new();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let response = http::Response::builder().header("content-type", "application/grpc");
                if request.uri().path() == call {
                    assert_eq!(request.headers()["authorization"], "Bearer k1");
                    let mut stream = respond.send_response(response.body(()).unwrap(), false).unwrap();
                    stream.send_data(body.clone(), false).unwrap();
                    open.push(stream);
                } else {
                    let unimplemented = response.header("grpc-status", "12").body(()).unwrap();
                    respond.send_response(unimplemented, true).unwrap();
                }
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_servicers_stream_is_followed() {
    let batch = |sequence, rank, block| {
        let block = streamed::KvBlock { block_hash: block, token_ids: vec![1], block_size: 1, ..Default::default() };
        let stored = streamed::KvBlocksStored { blocks: vec![block], ..Default::default() };
        let events = vec![streamed::KvCacheEvent { data: Some(streamed::Data::Stored(stored)) }];
        streamed::KvEventBatch { sequence_number: sequence, dp_rank: Some(rank), events, ..Default::default() }
    };
    let load = streamed::KvEventBatch {
        sequence_number: 41,
        load: Some(streamed::EngineLoad { load_only: true }),
        ..Default::default()
    };
    // Ranks counted together, a heartbeat, a gap, and a snapshot that begins anew.
    let snapshot = streamed::KvEventBatch { snapshot: Some(streamed::KvSnapshotChunk { index: 0 }), ..batch(7, 0, 9) };
    let messages = vec![batch(40, 0, 1), batch(41, 1, 2), load, batch(42, 0, 3), batch(45, 0, 4), snapshot];
    let server = servicer("/sglang.grpc.scheduler.SglangScheduler/SubscribeKvEvents", messages).await;
    let worker = testing::keyed_worker("http://127.0.0.1:9", "k1");
    let spec = KvEventsSpec::new(format!("grpc://{}", server.address));
    let mut following = Following::of(worker, spec, 64);
    for expected in ["connected", "0:0 +1", "1:0 +2", "0:1 +3", "lost 0", "0:2 +4", "0:3 started +9"] {
        assert_eq!(following.told().await, expected);
    }
}
