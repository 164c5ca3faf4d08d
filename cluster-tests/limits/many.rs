//! Limits over many nodes: five of them hold one amount, whatever befalls the network.

use std::time::{Duration, Instant};

use serde_json::Value;
use smg_fabric::Host;
use tokio::task::JoinSet;

use super::{Files, of};
use crate::harness::{Engine, Lab, Node, Stream, ask, formed, launched, took};

const CHAT: &str = "/v1/chat/completions";

const NODES: usize = 5;

/// Requests a second that the limit allows, and how much more is asked for.
const AMOUNT: u64 = 50;
const OVERLOAD: u64 = 10;

/// How long the load lasts of which rates are taken.
const SPAN: Duration = Duration::from_secs(6);

fn limits(mode: &str, per: &str, amount: u64) -> Files {
    Files::new(&format!(
        "[[limits]]\nname = \"shared by all nodes\"\nscope = \"tenant\"\nonly = \"acme\"\nrequests = {amount}\nper = \"{per}\"\nmode = \"{mode}\"\n"
    ))
}

async fn mesh(lab: &Lab, engine: &Engine, files: &Files, count: usize) -> Vec<Node> {
    let mut nodes = lab.nodes(count);
    let flags = files.flags();
    for node in &mut nodes {
        node.tell(&["--worker-urls", &engine.url]);
        node.tell(&flags.each_ref().map(String::as_str));
    }
    launched(&mut nodes).await;
    for node in &nodes {
        node.worker_is(&engine.url, "ready").await;
    }
    nodes
}

/// Waits until each of `nodes` may spend its part of what limits with this window divide.
async fn seated(nodes: &[&Node], window: &str) {
    for node in nodes {
        took("rights to be divided", async || {
            let parts = node.metric("smg_limit_parts", &[("window", window)]).await;
            parts == nodes.len() as f64 && node.metric("smg_limit_seats", &[]).await == parts
        })
        .await;
    }
}

/// Asks `nodes` for `OVERLOAD` times the amount, evenly, for `SPAN`; when those were that were let in.
async fn load(nodes: &[&Node], total: u64) -> Vec<Duration> {
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    let per_node = total / nodes.len() as u64;
    let pause = Duration::from_secs(1) / u32::try_from(per_node).unwrap();
    for (number, node) in nodes.iter().enumerate() {
        let address = node.address();
        let offset = pause * u32::try_from(number).unwrap() / u32::try_from(nodes.len()).unwrap();
        clients.spawn(async move {
            let mut asked = JoinSet::new();
            let mut due = begun + offset;
            while due < begun + SPAN {
                tokio::time::sleep_until(due.into()).await;
                due += pause;
                asked.spawn(async move {
                    let answer = ask(address, &of("acme", CHAT, Stream::No)).await;
                    assert!(matches!(answer.status, 200 | 429), "{}", answer.text());
                    (answer.status == 200).then(|| begun.elapsed())
                });
            }
            asked.join_all().await.into_iter().flatten().collect::<Vec<_>>()
        });
    }
    let mut admitted: Vec<Duration> = clients.join_all().await.into_iter().flatten().collect();
    admitted.sort_unstable();
    admitted
}

/// What was let in a second, over the whole of the load, in parts of what the limit allows. The first second counts too: an
/// amount may be taken at once, so a load of a few seconds sees one amount more than its seconds.
fn share(admitted: &[Duration]) -> f64 {
    let steady = admitted.iter().filter(|at| **at >= Duration::from_secs(1)).count();
    steady as f64 / (AMOUNT as f64 * (SPAN.as_secs_f64() - 1.0))
}

/// How old what nodes heard of each other was: in the mean, and at most for nineteen of twenty rows, in seconds.
struct Staleness {
    mean: f64,
    p95: f64,
}

async fn staleness(nodes: &[&Node]) -> Staleness {
    let of = async |series: &str, labels: &[(&str, &str)]| {
        let mut sum = 0.0;
        for node in nodes {
            sum += node.metric(&format!("smg_limit_staleness_seconds_{series}"), labels).await;
        }
        sum
    };
    let count = of("count", &[]).await.max(1.0);
    let mean = of("sum", &[]).await / count;
    for edge in ["0.005", "0.01", "0.02", "0.03", "0.04", "0.05", "0.06", "0.08", "0.1", "0.15", "0.2", "0.3", "0.5"] {
        if of("bucket", &[("le", edge)]).await >= 0.95 * count {
            return Staleness { mean, p95: edge.parse().unwrap() };
        }
    }
    Staleness { mean, p95: f64::INFINITY }
}

/// The greatest factor by which a mode lets in more than the amount (docs/limits.md).
fn bound(mode: &str, nodes: f64, overload: u64, staleness: f64) -> f64 {
    let shared = (1.0 + overload as f64 * staleness * (nodes - 1.0) / nodes).min(nodes).min(overload as f64);
    match mode {
        "strict" => 1.0,
        "hybrid" => 1.0 + 0.3 * (shared - 1.0),
        _ => shared,
    }
}

async fn holds(seed: u64, mode: &str) {
    let Some(lab) = Lab::open(seed) else { return };
    let engine = lab.engine("e0");
    let files = limits(mode, "second", AMOUNT);
    let nodes = mesh(&lab, &engine, &files, NODES).await;
    let all: Vec<&Node> = nodes.iter().collect();
    if mode != "shared" {
        seated(&all, "second").await;
    }
    let admitted = load(&all, AMOUNT * OVERLOAD).await;
    let Staleness { mean, p95 } = staleness(&all).await;
    // What is let in too much comes from the news that was late, not from the mean of it.
    let (seen, allowed) = (share(&admitted), bound(mode, NODES as f64, OVERLOAD, p95));
    println!(
        "{mode}: {seen:.3} of the amount at {OVERLOAD} x load on {NODES} nodes; staleness {:.0} ms, p95 {:.0} ms, bound {:.3}, with p95 {allowed:.3}",
        mean * 1e3,
        p95 * 1e3,
        bound(mode, NODES as f64, OVERLOAD, mean),
    );
    // A twentieth for requests near the ends of the span: when they were let in is seen a little late.
    assert!(seen <= allowed + 0.05, "{mode}: {seen}");
    if mode == "hybrid" && p95 <= 0.08 {
        assert!(seen <= 1.2, "{seen} while news was at most 80 ms old");
    }
    assert!(seen >= 0.75, "{mode} gives out too little: {seen}");
}

#[tokio::test]
async fn five_nodes_hold_a_shared_limit() {
    holds(501, "shared").await;
}

#[tokio::test]
async fn five_nodes_hold_a_strict_limit() {
    holds(502, "strict").await;
}

#[tokio::test]
async fn five_nodes_hold_a_hybrid_limit() {
    holds(503, "hybrid").await;
}

fn hosts<'a>(nodes: &[&'a Node]) -> Vec<&'a Host> {
    nodes.iter().map(|node| &node.host).collect()
}

/// In a split the side with most nodes goes on with strict limits, and the other refuses; afterwards all is as before.
#[tokio::test]
async fn halves_give_out_no_more_than_their_part() {
    let Some(lab) = Lab::open(504) else { return };
    let engine = lab.engine("e0");
    let files = limits("strict", "second", AMOUNT);
    let nodes = mesh(&lab, &engine, &files, NODES).await;
    let all: Vec<&Node> = nodes.iter().collect();
    seated(&all, "second").await;
    let (few, most) = all.split_at(2);
    lab.fabric.split(&hosts(few), &hosts(most));
    formed(few).await;
    formed(most).await;
    seated(most, "second").await;
    let admitted = load(&all, AMOUNT * OVERLOAD).await;
    let split = share(&admitted);
    lab.fabric.heal();
    let healed = formed(&all).await;
    seated(&all, "second").await;
    let after = share(&load(&all, AMOUNT * OVERLOAD).await);
    println!("strict: {split:.3} of the amount in a split of 2 and 3; healed after {healed:.0?}, then {after:.3}");
    assert!(split <= 1.05, "{split}");
    assert!((0.75..=1.05).contains(&after), "{after}");
}

/// In a split each half gives out the part that belongs to its number; afterwards all is as before.
async fn halves_share(seed: u64, mode: &str) {
    const OVERLOAD_HEALED: u64 = 2;
    let Some(lab) = Lab::open(seed) else { return };
    let engine = lab.engine("e0");
    let files = limits(mode, "second", AMOUNT);
    let nodes = mesh(&lab, &engine, &files, 4).await;
    let all: Vec<&Node> = nodes.iter().collect();
    // A half of four goes on with its rights, but takes no more before all have heard of each other.
    if mode == "hybrid" {
        seated(&all, "second").await;
    }
    let (one, other) = all.split_at(2);
    lab.fabric.split(&hosts(one), &hosts(other));
    formed(one).await;
    formed(other).await;
    let split = share(&load(&all, AMOUNT * OVERLOAD).await);
    let late = staleness(&all).await.p95;
    let allowed_split = bound(mode, 2.0, OVERLOAD, late);
    lab.fabric.heal();
    let healed = formed(&all).await;
    if mode == "hybrid" {
        seated(&all, "second").await;
    }
    let after = share(&load(&all, AMOUNT * OVERLOAD_HEALED).await);
    let late = staleness(&all).await.p95;
    let allowed_after = bound(mode, 4.0, OVERLOAD_HEALED, late);
    println!(
        "{mode}: {split:.3} of the amount at {OVERLOAD} x load in halves of 2, bound {allowed_split:.3}; healed after {healed:.0?}, \
         then {after:.3} at {OVERLOAD_HEALED} x load, bound {allowed_after:.3}; p95 of staleness {:.0} ms",
        late * 1e3
    );
    assert!(split <= allowed_split + 0.05, "{split} of {allowed_split}");
    assert!((0.9..=allowed_after + 0.05).contains(&after), "{after} of {allowed_after}");
}

#[tokio::test]
async fn halves_of_a_shared_limit_give_out_their_parts() {
    halves_share(506, "shared").await;
}

#[tokio::test]
async fn halves_of_a_hybrid_limit_give_out_their_parts() {
    halves_share(507, "hybrid").await;
}

/// Killing a node refills nobody's budget: not while it is away, and not when it is back.
#[tokio::test]
async fn a_killed_node_refills_no_budget() {
    let Some(lab) = Lab::open(505) else { return };
    let engine = lab.engine("e0");
    let files = limits("strict", "hour", 60);
    let mut nodes = mesh(&lab, &engine, &files, 3).await;
    seated(&nodes.iter().collect::<Vec<_>>(), "hour").await;
    // Asks one node after the other until so many were let in, or each of them has refused.
    let spend = async |nodes: &[&Node], most: u64| {
        let (mut served, mut refused) = (0, 0);
        for round in 0.. {
            if served >= most || refused >= nodes.len() {
                break;
            }
            match nodes[round % nodes.len()].ask(&of("acme", CHAT, Stream::No)).await.status {
                200 => (served, refused) = (served + 1, 0),
                429 => refused += 1,
                other => panic!("status {other}"),
            }
        }
        served
    };
    let before = spend(&nodes.iter().collect::<Vec<_>>(), 45).await;
    assert_eq!(before, 45);
    for node in &nodes {
        took("all nodes to know what is left", async || {
            let limits = node.admin("GET", "/limits?tenant=acme&model=demo", &Value::Null).await.value();
            limits["standing"][0]["remaining"] == 15
        })
        .await;
    }
    nodes[0].kill().await;
    nodes[0].start().await;
    formed(&nodes.iter().collect::<Vec<_>>()).await;
    nodes[0].worker_is(&engine.url, "ready").await;
    seated(&nodes.iter().collect::<Vec<_>>(), "hour").await;
    let served = before + spend(&nodes.iter().collect::<Vec<_>>(), u64::MAX).await;
    println!("strict, 60 an hour: {before} before a kill -9, {served} in all");
    // What the killed node had pledged and left, five at most, counts as taken.
    assert!((55..=60).contains(&served), "{served}");
    let usage = nodes[1].admin("GET", "/usage?by=tenant", &Value::Null).await.value();
    assert_eq!(usage["nodes"]["counted"], 3, "{usage}");
}
