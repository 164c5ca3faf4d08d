//! Workers that all nodes share: who may use them, by which way, and that what was removed stays away.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use smg_mock_worker::Outcome;
use tokio::task::JoinSet;

use crate::harness::{
    Engine, Lab, Node, Piece, Stream, agreed, ask, formed, launched, lost, on, serving, serving_all, stays, took,
};

const CHAT: &str = "/v1/chat/completions";

async fn started(lab: &Lab, count: usize, flags: &[&str]) -> Vec<Node> {
    let mut nodes = lab.nodes(count);
    for node in &mut nodes {
        node.tell(flags);
    }
    launched(&mut nodes).await;
    nodes
}

/// Every node sends a key to the same worker.
#[tokio::test]
async fn nodes_agree_where_keys_go() {
    for policy in ["consistent_hashing", "manual"] {
        let Some(lab) = Lab::open(501) else { return };
        let engines: Vec<Engine> = (0..4).map(|index| lab.engine(&format!("e{index}"))).collect();
        let urls: Vec<&str> = engines.iter().map(|engine| engine.url.as_str()).collect();
        let nodes = started(&lab, 3, &["--policy", policy]).await;
        let all: Vec<&Node> = nodes.iter().collect();
        // Each node learns of the workers in another order.
        for (index, url) in urls.iter().enumerate() {
            nodes[index % 3].add(url).await;
        }
        serving_all(&all, &urls).await;
        let mut used = BTreeSet::new();
        for number in 0..24 {
            let key = format!("key-{number}");
            let place = nodes[number % 3].place(&key).await;
            for node in &all {
                assert_eq!(node.place(&key).await, place, "{policy}: {key} at {}", node.name);
            }
            used.insert(place);
        }
        println!("{policy}: 24 keys on {} of 4 workers, the same from each of 3 nodes", used.len());
        assert!(used.len() > 1);
    }
}

/// A worker that one node reaches serves requests that come to any node: whole, as a stream, and cancelled.
#[tokio::test]
async fn a_worker_that_one_node_reaches_serves_all() {
    let Some(lab) = Lab::open(502) else { return };
    let engine = lab.engine("e0");
    let mut nodes = started(&lab, 3, &[]).await;
    lab.fabric.split(&[&engine.host], &[&nodes[1].host, &nodes[2].host]);
    nodes[0].add(&engine.url).await;
    relays(&nodes, &engine).await;
    // A worker on a node's own machine is such a worker too, once the first is gone.
    let id = nodes[0].workers().await[&engine.url].clone();
    nodes[2].remove(&id).await;
    let beside = lab.engine_beside(&nodes[1], "beside n1");
    nodes[1].add(&beside.url).await;
    relays(&[nodes.swap_remove(1), nodes.pop().unwrap(), nodes.pop().unwrap()], &beside).await;
}

/// Checks the ways through the first of `nodes`, which alone reaches `engine`, the only worker.
async fn relays(nodes: &[Node], engine: &Engine) {
    for node in &nodes[1..] {
        took("the relayed worker to be used", async || node.is_ready().await && node.chat().await.status == 200).await;
        let direct = nodes[0].chat().await;
        let relayed = node.chat().await;
        assert_eq!((direct.status, relayed.status), (200, 200));
        assert_eq!(direct.field("x-smg-worker"), relayed.field("x-smg-worker"));
        assert_eq!(relayed.field("x-smg-relay-worker"), None, "what nodes tell each other stays between them");

        // A stream comes event by event, not at its end.
        let mut stream = node.begin(&on(CHAT, "demo", Stream::Yes).fault("delay=100ms@event:*")).await;
        assert_eq!(stream.head().await.status, 200);
        stream.read_until("data: ").await;
        let running = engine.ledger.count(|entry| serving(entry) && entry.outcome == Outcome::Running);
        assert_eq!(running, 1, "the stream has begun and has not ended");
        let (body, is_whole) = stream.rest().await;
        assert!(is_whole && body.ends_with(b"data: [DONE]\n\n"));

        // A client that hangs up is felt by the worker.
        let aborted = |engine: &Engine| engine.ledger.count(|entry| entry.outcome == Outcome::Aborted);
        let before = aborted(engine);
        let mut stream = node.begin(&on(CHAT, "demo", Stream::Yes).fault("delay=200ms@event:*,endless")).await;
        stream.head().await;
        assert!(matches!(stream.piece().await, Piece::Data(_)));
        stream.close();
        let felt = took("the worker to feel the hang-up", async || aborted(engine) > before).await;
        println!("{}: relayed through {}; a hang-up reached the worker after {felt:?}", node.name, nodes[0].name);
    }
}

/// A worker removed through any node does not come back with the node that brought it, whether by flag or by API.
#[tokio::test]
async fn what_was_removed_stays_away() {
    let Some(lab) = Lab::open(503) else { return };
    let (declared, added, kept) = (lab.engine("declared"), lab.engine("added"), lab.engine("kept"));
    let mut nodes = started(&lab, 3, &[]).await;
    // Everything of the first node: one worker by flag, one by its API.
    nodes[0].kill().await;
    nodes[0].tell(&["--worker-urls", &declared.url, &kept.url]);
    nodes[0].start().await;
    formed(&nodes.iter().collect::<Vec<_>>()).await;
    let id = nodes[0].add(&added.url).await;
    serving_all(&nodes.iter().collect::<Vec<_>>(), &[&declared.url, &added.url, &kept.url]).await;
    // One is removed on another node while its own lives, the other while its own is away.
    nodes[1].remove(&id).await;
    for node in &nodes {
        took("the removal to be everywhere", async || !node.workers().await.contains_key(&added.url)).await;
    }
    nodes[0].kill().await;
    lost(&[&nodes[1], &nodes[2]], "n0").await;
    let id = nodes[1].workers().await[&declared.url].clone();
    nodes[2].remove(&id).await;
    nodes[0].start().await;
    let all: Vec<&Node> = nodes.iter().collect();
    formed(&all).await;
    serving_all(&all, &[&kept.url]).await;
    for node in &nodes {
        took("only what was not removed to be there", async || node.workers().await.keys().eq([&kept.url])).await;
    }
    agreed(&all).await;
    let span = Duration::from_secs(4);
    stays("nothing comes back", span, async || {
        let mut holds = true;
        for node in &all {
            holds &= node.workers().await.len() == 1;
        }
        holds
    })
    .await;
    println!("removed elsewhere, once while its node lived and once while it was away: gone for {span:?}");
    // Adding it again is a new decision.
    nodes[2].add(&declared.url).await;
    serving_all(&all, &[&declared.url, &kept.url]).await;
}

/// Of two nodes through which a worker is reached one dies: the other is used at once.
#[tokio::test]
async fn a_dead_relay_is_left_at_once() {
    let Some(lab) = Lab::open(504) else { return };
    let engine = lab.engine("e0");
    let mut nodes = started(&lab, 3, &[]).await;
    lab.fabric.split(&[&engine.host], &[&nodes[2].host]);
    nodes[0].add(&engine.url).await;
    for node in &nodes {
        took("the worker to be used", async || node.is_ready().await && node.chat().await.status == 200).await;
    }
    for index in [0, 1] {
        // Both ways are known, so one can stand in for the other.
        serving_all(&[&nodes[0], &nodes[1]], &[&engine.url]).await;
        nodes[index].kill().await;
        let answers = asked_again_and_again(nodes[2].address()).await;
        let slow = |(_, took): &&(Duration, Duration)| *took > Duration::from_millis(500);
        let chosen_until = answers.iter().filter(slow).map(|(asked, _)| *asked).max().unwrap_or_default();
        let slowest = answers.iter().map(|(_, took)| *took).max().unwrap_or_default();
        println!(
            "a relay died: {} requests, all answered; it was chosen for {chosen_until:?} (target 1.5 s)",
            answers.len()
        );
        println!("  the slowest answer, of one that was on its way, took {slowest:?}");
        assert!(chosen_until < Duration::from_secs(3), "{answers:?}");
        nodes[index].start().await;
        formed(&nodes.iter().collect::<Vec<_>>()).await;
    }
}

/// Asks for four seconds, twenty times a second whatever becomes of it. When each request was sent, and how long it took.
async fn asked_again_and_again(address: SocketAddr) -> Vec<(Duration, Duration)> {
    let started = Instant::now();
    let mut requests = JoinSet::new();
    let mut beat = tokio::time::interval(Duration::from_millis(50));
    while started.elapsed() < Duration::from_secs(4) {
        beat.tick().await;
        requests.spawn(async move {
            let sent = Instant::now();
            let answer = ask(address, &on(CHAT, "demo", Stream::Yes).field("x-smg-allow-replay", "true")).await;
            assert_eq!(answer.status, 200, "{:?} after the kill: {}", sent - started, answer.text());
            (sent - started, sent.elapsed())
        });
    }
    requests.join_all().await
}
