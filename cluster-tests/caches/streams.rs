//! How many listen to an engine, and what listening is worth.

use std::{collections::BTreeSet, net::IpAddr};

use smg_mock_worker::{Config, Dialect};

use super::{
    agents::Play,
    figures::{HEAD, print},
    setting::{Mesh, Setting, Size, Tells, is_full, streams},
};
use crate::harness::{Stream, on, took};

/// However many nodes there are, at most two listen to an engine: its home, and who stands by.
#[tokio::test]
async fn at_most_two_nodes_listen_to_an_engine() {
    let mut size = Size::light();
    size.nodes = size.nodes.max(5);
    size.engines = 4;
    size.script.conversations = 12;
    let Some(mut setting) = Setting::start(611, &size, Mesh::Joined, Tells::Yes, "cache_aware").await else { return };
    took("a home and a standby for each engine", async || {
        setting.engines.iter().all(|engine| streams(engine).open == 2)
    })
    .await;
    setting.play(&size.script).await;
    // A node that ends, and again when it is back, makes others take over what it listened to: who takes over begins before who
    // gives up ends.
    setting.restart(1).await;
    took("two again for each engine", async || setting.engines.iter().all(|engine| streams(engine).open == 2)).await;
    let seen: Vec<_> = setting.engines.iter().map(streams).collect();
    println!("{} nodes: event streams by engine {seen:?}", size.nodes);
    assert!(seen.iter().all(|streams| streams.most <= 4), "{seen:?}");
}

/// A list of events that gives itself away when it is read has one reader.
#[tokio::test]
async fn a_list_that_gives_itself_away_has_one_reader() {
    let mut size = Size::light();
    size.nodes = 3;
    size.engines = 1;
    let Some(setting) = Setting::start(612, &size, Mesh::Joined, Tells::No, "cache_aware").await else { return };
    let config = Config { dialect: Dialect::Trtllm, ..Config::default() };
    let engine = setting.lab.engine_of("drained", config);
    let spec = serde_json::json!({ "url": engine.url, "kv_events": { "endpoint": format!("{}/kv_cache_events", engine.url) } });
    setting.nodes[1].add_spec(&spec).await;
    let is_drain = |entry: &smg_mock_worker::Entry| entry.path == "/kv_cache_events";
    took("the list to be read", async || engine.ledger.count(is_drain) > 8).await;
    engine.ledger.clear();
    for node in &setting.nodes {
        let answer = node.ask(&on("/v1/chat/completions", "demo", Stream::No)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    took("the list to be read", async || engine.ledger.count(is_drain) > 8).await;
    let readers: BTreeSet<IpAddr> =
        engine.ledger.select(is_drain).iter().filter_map(|entry| Some(entry.caller?.ip())).collect();
    println!("a draining list was read by {readers:?}");
    assert_eq!(readers.len(), 1);
}

/// Working out what an engine holds is nearly as good as hearing it.
#[tokio::test]
async fn prediction_is_nearly_as_good_as_events() {
    let size = Size::chosen();
    println!("{HEAD}");
    let mut hits = Vec::new();
    for (name, tells) in [("events", Tells::Yes), ("prediction", Tells::No)] {
        let Some(setting) = Setting::start(613, &size, Mesh::Joined, tells, "cache_aware").await else { return };
        let turns = Play::start(&size.script, &setting.doors).finish().await;
        let figures = setting.figures(&turns);
        print(name, &figures);
        hits.push(figures.hit_share());
    }
    println!("prediction has {:.3} of the events' hit share (target 0.90)", hits[1] / hits[0]);
    // Few turns tell shares only roughly.
    assert!(hits[1] > if is_full() { 0.9 } else { 0.6 } * hits[0]);
}
