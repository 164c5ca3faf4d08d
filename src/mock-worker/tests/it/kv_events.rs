//! Events of the prefix cache, as a subscriber gets them.

use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use smg_mock_worker::{CacheConfig, Config, Dialect, KvEventFormat, KvEvents, MockWorker};
use tokio::time::timeout;
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqMessage};

use crate::{
    client::{PATIENCE, get, post},
    worker,
};

fn publishing(format: KvEventFormat) -> Config {
    let kv_events = KvEvents { format, topic: "kv@demo".to_owned(), ..KvEvents::on([127, 0, 0, 1].into()) };
    Config { kv_events: Some(kv_events), ..Config::default() }
}

/// A subscriber whom the worker knows of.
async fn subscribed(worker: &MockWorker) -> SubSocket {
    let publisher = worker.kv_events().unwrap();
    let open = publisher.streams().open;
    let mut socket = SubSocket::new();
    socket.connect(publisher.endpoint()).await.unwrap();
    socket.subscribe("kv@").await.unwrap();
    until(|| publisher.streams().open == open + 1).await;
    socket
}

async fn until(holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, wait).await.expect("in time");
}

async fn received(socket: &mut SubSocket) -> Vec<Bytes> {
    timeout(PATIENCE, socket.recv()).await.expect("a message in time").unwrap().into_vec()
}

async fn complete(worker: &MockWorker, tokens: std::ops::Range<u32>, more: &Value) {
    let body = json!({ "model": "demo", "max_tokens": 4, "prompt": tokens.collect::<Vec<_>>() });
    let answer = post(worker.address(), "/v1/completions", "", &crate::with(body, more)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test]
async fn a_subscriber_gets_numbered_batches_under_the_topic() {
    let worker = worker(publishing(KvEventFormat::VllmArray)).await;
    // What a subscription has not reached the publisher by now is repeated by the other socket.
    let mut socket = subscribed(&worker).await;
    let mut frames = Vec::new();
    for round in 0..50 {
        complete(&worker, round * 100..round * 100 + 40, &json!({})).await;
        if let Ok(message) = timeout(Duration::from_millis(100), socket.recv()).await {
            frames = message.unwrap().into_vec();
            break;
        }
    }
    assert_eq!((frames.len(), &frames[0][..], frames[1].len()), (3, &b"kv@demo"[..], 8));
    let batch: Value = rmp_serde::from_slice(&frames[2]).unwrap();
    let event = &batch[1][0];
    assert!(batch[0].as_f64().unwrap() > 1e9 && batch[2] == 0);
    assert_eq!((&event[0], &event[4], &event[6]), (&json!("BlockStored"), &json!(16), &json!("GPU")));
    assert_eq!(event[3].as_array().unwrap().len(), 32, "two blocks of forty tokens are full");
    let page = get(worker.address(), "/mock/kv-events").await.json();
    assert_eq!((&page["streams"]["open"], &page["streams"]["accepted"]), (&json!(1), &json!(1)));
    drop(socket);
    until(|| worker.kv_events().unwrap().streams().open == 0).await;
    assert_eq!(worker.kv_events().unwrap().streams().most, 1);
}

#[tokio::test]
async fn what_was_missed_is_repeated() {
    for (format, frames) in [(KvEventFormat::VllmArray, 3), (KvEventFormat::VllmMap, 4), (KvEventFormat::Sglang, 3)] {
        repeated(worker(publishing(format)).await, frames).await;
    }
}

/// Checks what is repeated, in answers of `count` frames: what vLLM repeats has its topic since its events are maps.
async fn repeated(worker: MockWorker, count: usize) {
    for first in [0, 1_000, 2_000] {
        complete(&worker, first..first + 20, &json!({})).await;
    }
    let publisher = worker.kv_events().unwrap();
    assert_eq!(publisher.batches(), 3);
    let mut socket = DealerSocket::new();
    socket.connect(publisher.replay().unwrap()).await.unwrap();
    let mut ask = ZmqMessage::from(Bytes::new());
    ask.push_back(Bytes::copy_from_slice(&1_u64.to_be_bytes()));
    socket.send(ask).await.unwrap();
    let mut sequences = Vec::new();
    loop {
        let frames = timeout(PATIENCE, socket.recv()).await.expect("an answer").unwrap().into_vec();
        assert!(frames.len() == count && frames[0].is_empty());
        let [.., sequence, payload] = &frames[..] else { unreachable!() };
        let sequence = i64::from_be_bytes(sequence[..].try_into().unwrap());
        if sequence == -1 {
            assert!(payload.is_empty());
            break;
        }
        let batch: Value = rmp_serde::from_slice(payload).unwrap();
        let event = &batch[1][0];
        let tokens = if event.is_array() { &event[3] } else { &event["token_ids"] };
        assert_eq!(tokens[0], sequence * 1_000);
        sequences.push(sequence);
    }
    assert_eq!((sequences, publisher.replays()), (vec![1, 2], 1));
}

/// A batch in maps, with names that are bytes.
#[derive(Deserialize)]
struct MapBatch(serde::de::IgnoredAny, Vec<MapEvent>, u32);

#[derive(Deserialize)]
struct MapEvent {
    r#type: String,
    block_hashes: Vec<bytes_name::Name>,
    parent_block_hash: Option<bytes_name::Name>,
    token_ids: Vec<u32>,
    lora_name: Option<String>,
    extra_keys: Vec<Option<Vec<String>>>,
}

mod bytes_name {
    /// Thirty-two bytes.
    #[derive(Debug, PartialEq)]
    pub(super) struct Name(pub(super) Vec<u8>);

    impl<'de> serde::Deserialize<'de> for Name {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl serde::de::Visitor<'_> for Visitor {
                type Value = Name;
                fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    formatter.write_str("bytes")
                }
                fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Name, E> {
                    Ok(Name(bytes.to_vec()))
                }
            }
            deserializer.deserialize_bytes(Visitor)
        }
    }
}

#[tokio::test]
async fn maps_name_blocks_by_bytes_and_tell_what_keeps_them_apart() {
    let config = Config { models: vec!["demo".into(), "adapter".into()], ..publishing(KvEventFormat::VllmMapBytes) };
    let worker = worker(config).await;
    let mut socket = subscribed(&worker).await;
    let more = json!({ "model": "adapter", "cache_salt": "tenant" });
    // The subscription itself may still be on its way when the first batches leave.
    let mut first = 0;
    let payload = loop {
        complete(&worker, first..first + 40, &more).await;
        first += 100;
        match timeout(Duration::from_millis(100), received(&mut socket)).await {
            Ok(frames) => break frames[2].clone(),
            Err(_) => continue,
        }
    };
    let MapBatch(_, events, rank) = rmp_serde::from_slice(&payload).unwrap();
    let event = &events[0];
    assert_eq!((rank, event.r#type.as_str(), event.token_ids.len()), (0, "BlockStored", 32));
    assert_eq!((event.block_hashes.len(), event.block_hashes[0].0.len()), (2, 32));
    assert_eq!((&event.parent_block_hash, event.lora_name.as_deref()), (&None, Some("adapter")));
    let keys = |keys: &[&str]| Some(keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>());
    assert_eq!(event.extra_keys, vec![keys(&["adapter", "tenant"]), keys(&["adapter"])]);
}

#[tokio::test]
async fn sglang_says_where_it_publishes() {
    let config = Config { dialect: Dialect::Sglang, ..publishing(KvEventFormat::Sglang) };
    let worker = worker(config).await;
    let text = get(worker.address(), "/server_info").await.json()["kv_events_config"].as_str().unwrap().to_owned();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["endpoint"], worker.kv_events().unwrap().endpoint());
}

#[tokio::test]
async fn trtllm_gives_its_events_away_once() {
    let cache = CacheConfig { block_tokens: 16, blocks: 4 };
    let worker = worker(Config { dialect: Dialect::Trtllm, cache, ..Config::default() }).await;
    let drained = async || post(worker.address(), "/kv_cache_events", "", &json!({})).await.json();
    let first = drained().await;
    assert_eq!((&first[0]["event_id"], &first[0]["data"]["type"]), (&json!(0), &json!("created")));
    assert_eq!(drained().await, json!([]));
    complete(&worker, 0..40, &json!({})).await;
    complete(&worker, 100..140, &json!({})).await;
    let events = drained().await;
    let kinds: Vec<&str> =
        events.as_array().unwrap().iter().map(|event| event["data"]["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["stored", "stored", "removed"], "{events}");
    let block = &events[0]["data"]["blocks"][1];
    assert_eq!((&block["tokens"][15]["token_id"], &events[0]["data"]["parent_hash"]), (&json!(31), &Value::Null));
    assert_eq!(get(worker.address(), "/v1/models").await.json()["data"][0]["owned_by"], "tensorrt_llm");
}
