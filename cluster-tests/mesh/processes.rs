//! Processes that stop, die, come back, or disagree about the time.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::json;
use smg_mock_worker::{Config, Limits};

use crate::harness::{
    Engine, Lab, Load, Node, Plan, Replay, agreed, formed, launched, lost, serving_all, skipped, stays, took,
};

/// Engines whose ledgers forget nothing, and who do not hang up on connections that rest.
fn engines(lab: &Lab, count: usize) -> Vec<Engine> {
    let keep_alive = Duration::from_secs(300);
    let limits = || Limits { ledger_entries_max: 1 << 20, ledger_body_bytes_max: 0, keep_alive, ..Limits::default() };
    (0..count)
        .map(|index| lab.engine_of(&format!("e{index}"), Config { limits: limits(), ..Config::default() }))
        .collect()
}

/// Starts `count` nodes that know `engines`, with `flags`, and waits until each serves from all of them.
async fn mesh(lab: &Lab, count: usize, engines: &[Engine], flags: &[&str]) -> Vec<Node> {
    let urls: Vec<&str> = engines.iter().map(|engine| engine.url.as_str()).collect();
    let mut nodes = lab.nodes(count);
    for node in &mut nodes {
        // No engine fails here, so probes may be as patient as they are by default.
        node.flags.clear();
        node.tell(flags);
        node.tell(&[&["--worker-urls"], &urls[..]].concat());
    }
    launched(&mut nodes).await;
    serving_all(&nodes.iter().collect::<Vec<_>>(), &urls).await;
    nodes
}

/// Clients whose requests may run only once.
fn plan(plain: usize, streams: usize, event_pause_ms: u64) -> Plan {
    let event_pause = Duration::from_millis(event_pause_ms);
    Plan { plain, streams, pause: Duration::from_millis(5), event_pause, replay: Replay::Forbidden }
}

fn all_but(nodes: &[Node], index: usize) -> Vec<&Node> {
    nodes.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, node)| node).collect()
}

/// Asserts that no request of a load ran twice. Engines see the caller's id with a suffix that each attempt of each node on
/// the way adds: the number that comes first tells requests apart.
fn ran_once(engines: &[Engine]) {
    let mut runs = BTreeMap::new();
    for entry in engines.iter().flat_map(|engine| engine.ledger.entries()) {
        let number =
            entry.request_id.as_deref().and_then(|id| id.strip_prefix("load-")?.split('-').next()?.parse::<u64>().ok());
        if let Some(number) = number {
            *runs.entry(number).or_insert(0) += 1;
        }
    }
    assert!(runs.len() > 1_000, "{} requests of the load are in the ledgers", runs.len());
    let twice: Vec<_> = runs.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "ran more than once: {twice:?}");
}

/// A node that stands still for ten seconds is given up, and comes back on its own; the others do not care.
#[tokio::test]
async fn a_paused_node_comes_back() {
    let Some(lab) = Lab::open(401) else { return };
    let engines = engines(&lab, 2);
    let nodes = mesh(&lab, 3, &engines, &[]).await;
    let others = all_but(&nodes, 2);
    nodes[2].signal("STOP");
    let paused = Instant::now();
    lost(&others, "n2").await;
    let given_up = paused.elapsed();
    let rest = Duration::from_secs(10).saturating_sub(given_up);
    stays("the others serve, and keep each other", rest, async || {
        let mut holds = true;
        for node in &others {
            holds &= node.chat().await.status == 200 && node.sees().await.len() == 2;
        }
        holds
    })
    .await;
    nodes[2].signal("CONT");
    let woken = Instant::now();
    let all: Vec<&Node> = nodes.iter().collect();
    formed(&all).await;
    let whole = woken.elapsed();
    agreed(&all).await;
    println!(
        "pause of 10 s: given up after {given_up:?}; woken: full views after {whole:?}, agreed after {:?}",
        woken.elapsed()
    );
    serving_all(&all, &[&engines[0].url]).await;
}

/// Of a node killed under load only its own requests in flight fail.
#[tokio::test]
async fn a_killed_node_takes_only_its_own_requests_with_it() {
    let Some(lab) = Lab::open(402) else { return };
    let engines = engines(&lab, 3);
    let mut nodes = mesh(&lab, 5, &engines, &[]).await;
    let plan = plan(8, 40, 100);
    let load = Load::start(&nodes.iter().collect::<Vec<_>>(), plan);
    took("streams to be open", async || load.open_streams() >= 40 && load.sent() > 500).await;
    nodes[3].kill().await;
    let killed = Instant::now();
    let known = lost(&all_but(&nodes, 3), "n3").await;
    let after = load.sent() + 1_000;
    took("requests to go on", async || load.sent() > after).await;
    let tally = load.finish().await;
    println!("kill -9 of one of 5: known to all after {known:?}; {}", tally.summary());
    let unrelated: Vec<_> = tally.misses.iter().filter(|miss| miss.node != "n3" || miss.started > killed).collect();
    assert!(unrelated.is_empty(), "{unrelated:?}");
    ran_once(&engines);
}

/// All nodes are replaced one after the other, under load and with streams open: nothing fails and nothing is cut.
#[tokio::test]
async fn a_rolling_restart_costs_nothing() {
    let Some(lab) = Lab::open(403) else { return };
    let engines = engines(&lab, 4);
    let mut nodes = mesh(&lab, 5, &engines, &["--drain-delay", "2s"]).await;
    let plan = plan(8, 500, 250);
    let load = Load::start(&nodes.iter().collect::<Vec<_>>(), plan);
    took("streams to be open", async || load.open_streams() >= 500).await;
    let started = Instant::now();
    for node in &mut nodes {
        let begun = Instant::now();
        node.stop().await;
        let stopped = begun.elapsed();
        node.start().await;
        took("the node to be ready again", async || node.is_ready().await).await;
        let again = begun.elapsed() - stopped;
        println!("{}: drained and ended in {stopped:?}, ready again {again:?} later", node.name);
    }
    let restarted = started.elapsed();
    // As many as a machine with time to spare sends meanwhile.
    let enough = async || load.sent() >= 10_000 || started.elapsed() > Duration::from_secs(60);
    took("enough to be tried", enough).await;
    let tally = load.finish().await;
    println!("rolling restart of 5 nodes in {restarted:?}: {}", tally.summary());
    assert!(tally.misses.is_empty());
    assert!(tally.sent > 1_000 && tally.streams > 500, "too little was tried");
    formed(&nodes.iter().collect::<Vec<_>>()).await;
    ran_once(&engines);
}

/// A node that died and starts again under its name is one of all again, with the disk it had and without.
#[tokio::test]
async fn a_node_rejoins_under_its_name() {
    let Some(lab) = Lab::open(404) else { return };
    let engines = engines(&lab, 1);
    let mut nodes = mesh(&lab, 3, &engines, &[]).await;
    // It has something to lose: a worker that only it has asserted.
    let own = lab.engine("own");
    nodes[1].add(&own.url).await;
    serving_all(&nodes.iter().collect::<Vec<_>>(), &[&own.url]).await;
    for disk in ["its disk", "an empty disk"] {
        nodes[1].kill().await;
        if disk == "an empty disk" {
            std::fs::remove_dir_all(&nodes[1].data).unwrap();
        }
        let started = Instant::now();
        nodes[1].start().await;
        formed(&nodes.iter().collect::<Vec<_>>()).await;
        took("the node to serve", async || nodes[1].is_ready().await && nodes[1].chat().await.status == 200).await;
        println!("rejoin with {disk}: sees all, is seen and serves after {:?} (target 3 s)", started.elapsed());
        for node in &nodes {
            took("all workers to be there", async || {
                let workers = node.workers().await;
                workers.len() == 2 && workers.contains_key(&own.url)
            })
            .await;
        }
        agreed(&nodes.iter().collect::<Vec<_>>()).await;
    }
}

/// Debian's package `libfaketime`.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// Nodes whose wall clocks are two hours apart do all that others do.
#[tokio::test]
async fn wall_clocks_do_not_matter() {
    let Some(lab) = Lab::open(405) else { return };
    if !Path::new(FAKETIME).exists() {
        return skipped("libfaketime is not installed");
    }
    let engine = lab.engine("e0");
    let mut nodes = lab.nodes(3);
    for (node, shift) in nodes.iter_mut().zip(["+3600", "-3600", "+0"]) {
        for (name, value) in [("LD_PRELOAD", FAKETIME), ("FAKETIME", shift), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")] {
            node.environment.push((name.to_owned(), value.to_owned()));
        }
        node.tell(&["--worker-urls", &engine.url]);
        node.launch();
    }
    let started = Instant::now();
    for node in &mut nodes {
        node.answers().await;
    }
    let [ahead, behind, right] = &nodes[..] else { unreachable!() };
    let all = [ahead, behind, right];
    formed(&all).await;
    println!("clocks two hours apart: full views after {:?}", started.elapsed());
    serving_all(&all, &[&engine.url]).await;
    // Whoever acts later wins, wherever its clock is.
    for [first, then] in [[ahead, behind], [behind, ahead], [right, behind]] {
        let late = lab.engine(&format!("of {} then {}", first.name, then.name));
        let id = first.add(&late.url).await;
        serving_all(&all, &[&late.url]).await;
        then.remove(&id).await;
        for node in all {
            took("the removal to hold", async || !node.workers().await.contains_key(&late.url)).await;
        }
        first.add(&late.url).await;
        serving_all(&all, &[&late.url]).await;
        for (node, model) in [(first, "one"), (then, "other")] {
            let answer = node.admin("PUT", "/mesh/config/alias/favourite", &json!(model)).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        for node in all {
            took("the later value to hold", async || node.page("config").await.to_string().contains("other")).await;
        }
    }
    println!("removals, additions and settings across the clocks: agreed after {:?}", agreed(&all).await);
}

/// How long a peer stands still under load; by hand `SMG_STALL_SECS=600`.
fn stall() -> Duration {
    let asked = std::env::var("SMG_STALL_SECS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(asked.unwrap_or(60))
}

/// A peer that stands still while much happens does not fill the others' memory.
#[tokio::test]
async fn a_stalled_peer_does_not_grow_the_others() {
    let Some(lab) = Lab::open(406) else { return };
    let engines = engines(&lab, 2);
    let nodes = mesh(&lab, 3, &engines, &[]).await;
    let others = all_but(&nodes, 2);
    let plan = plan(8, 20, 100);
    let load = Load::start(&others, plan);
    // Settings that change all the time are what a peer has to be told.
    let value = "x".repeat(4_000);
    let mut writes = 0_u32;
    let mut write = async || {
        let key = format!("/mesh/config/alias/{}", writes % 50);
        let answer = others[0].admin("PUT", &key, &json!(format!("{writes}{value}"))).await;
        writes += 1;
        assert_eq!(answer.status, 200, "{}", answer.text());
        true
    };
    stays("warm up", Duration::from_secs(8), &mut write).await;
    let resident = || -> Vec<u64> { others.iter().map(|node| node.resident_bytes()).collect() };
    let mut samples = vec![resident()];
    nodes[2].signal("STOP");
    for _ in 0..4 {
        stays("writes go on", stall() / 4, &mut write).await;
        samples.push(resident());
    }
    nodes[2].signal("CONT");
    formed(&nodes.iter().collect::<Vec<_>>()).await;
    let tally = load.finish().await;
    println!("a peer stalled for {:?}: {writes} writes of 4 kB, {}", stall(), tally.summary());
    println!("resident bytes of the others, before and after each quarter: {samples:?}");
    for (before, after) in samples[0].iter().zip(&samples[4]) {
        assert!(*after < before + before / 10 + (8 << 20), "{before} bytes became {after}");
    }
    agreed(&nodes.iter().collect::<Vec<_>>()).await;
}
