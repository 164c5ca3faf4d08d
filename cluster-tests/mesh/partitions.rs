//! Networks that break: halves, one direction, one node, lossy links.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use smg_fabric::{Host, Rules};

use crate::harness::{Engine, Lab, Load, Node, Plan, Replay, agreed, formed, launched, lost, serving_all, stays, took};

/// Starts `count` nodes that know `engines`, and waits until each serves from all of them.
async fn mesh(lab: &Lab, count: usize, engines: &[&Engine]) -> Vec<Node> {
    let urls: Vec<&str> = engines.iter().map(|engine| engine.url.as_str()).collect();
    let mut nodes = lab.nodes(count);
    for node in &mut nodes {
        // A stream that a split has swallowed is given up after a second and, as its sender allows, tried elsewhere.
        node.tell(&[&["--first-token-timeout", "1s", "--worker-urls"], &urls[..]].concat());
    }
    launched(&mut nodes).await;
    serving_all(&nodes.iter().collect::<Vec<_>>(), &urls).await;
    nodes
}

fn hosts<'a>(nodes: &[&'a Node]) -> Vec<&'a Host> {
    nodes.iter().map(|node| &node.host).collect()
}

fn names(nodes: &[&Node]) -> BTreeSet<String> {
    nodes.iter().map(|node| node.name.clone()).collect()
}

/// Both halves serve from the workers they reach, take new ones, and are one again afterwards.
#[tokio::test]
async fn halves_serve_from_what_they_reach_and_come_together() {
    let Some(lab) = Lab::open(301) else { return };
    let (left_engine, right_engine) = (lab.engine("left"), lab.engine("right"));
    let nodes = mesh(&lab, 5, &[&left_engine, &right_engine]).await;
    let (left, right): (Vec<&Node>, Vec<&Node>) = nodes.iter().partition(|node| node.name.as_str() < "n2");
    let [mut left_hosts, mut right_hosts] = [hosts(&left), hosts(&right)];
    left_hosts.push(&left_engine.host);
    right_hosts.push(&right_engine.host);

    let all: Vec<&Node> = nodes.iter().collect();
    let plan = Plan {
        plain: 0,
        streams: 20,
        pause: Duration::ZERO,
        event_pause: Duration::from_millis(20),
        replay: Replay::Allowed,
    };
    let load = Load::start(&all, plan);
    took("requests to run", async || load.sent() > 100).await;
    lab.fabric.split(&left_hosts, &right_hosts);
    let split = Instant::now();
    let sides = [(&left, &right_engine), (&right, &left_engine)];
    for (side, beyond) in sides {
        let expected = names(side);
        for node in side {
            took("the view to shrink to this side", async || node.sees().await == expected).await;
            let out_of_use = async || node.worker(&beyond.url).await["is_healthy"] == false;
            took("the worker beyond to be out of use", out_of_use).await;
        }
    }
    println!("split: both sides know after {:?}", split.elapsed());
    // Steady: everything is answered, from this side, and what is registered here is used here.
    let news = [lab.engine("left news"), lab.engine("right news")];
    for ((side, beyond), new) in sides.into_iter().zip(&news) {
        let far = if side[0].name == "n0" { &right_hosts } else { &left_hosts };
        lab.fabric.split(&[&new.host], far);
        side[0].add(&new.url).await;
        for node in side {
            took("the new worker to be used", async || node.worker(&new.url).await["is_healthy"] == true).await;
        }
        let unreachable = side[0].workers().await[&beyond.url].clone();
        for round in 0..20 {
            let answer = side[round % side.len()].chat().await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_ne!(answer.field("x-smg-worker"), Some(&*unreachable), "nothing passes the split");
        }
    }
    lab.fabric.heal();
    let healed = Instant::now();
    formed(&all).await;
    let whole = healed.elapsed();
    // What the split swallowed was tried again on the same side, as its senders allowed.
    let tally = load.finish().await;
    println!("streams before, during and after the split: {}", tally.summary());
    assert!(tally.misses.is_empty() && tally.sent > 100);
    let rest = agreed(&all).await;
    println!("healed: full views after {whole:?}, digests equal {rest:?} after the last request");
    let urls = [&left_engine.url, &right_engine.url, &news[0].url, &news[1].url].map(String::as_str);
    serving_all(&all, &urls).await;
}

/// A link that works in one direction only is no reason to give up a node, nor a worker.
#[tokio::test]
async fn a_link_cut_one_way_evicts_nobody() {
    let Some(lab) = Lab::open(302) else { return };
    let engine = lab.engine("e0");
    let nodes = mesh(&lab, 3, &[&engine]).await;
    let all: Vec<&Node> = nodes.iter().collect();
    lab.fabric.cut_one_way(&nodes[0].host, &nodes[1].host);
    // Longer than the link takes to be lost, and a suspect to be condemned.
    let span = Duration::from_secs(14);
    let mut requests = 0;
    stays("all nodes live for all nodes, and serve", span, async || {
        let mut holds = true;
        for node in &all {
            holds &= node.sees().await.len() == 3 && node.chat().await.status == 200;
            requests += 1;
        }
        holds
    })
    .await;
    println!("one way cut for {span:?}: nobody given up, {requests} requests, 0 failed");
    // What one says reaches the other around the cut.
    let late = lab.engine("late");
    nodes[0].add(&late.url).await;
    let around = took("news to go around", async || nodes[1].workers().await.contains_key(&late.url)).await;
    lab.fabric.heal();
    println!("news around the cut: {around:?}; healed: agreed after {:?}", agreed(&all).await);
}

/// A node that loses all others serves alone, is given up, and comes back by itself.
#[tokio::test]
async fn an_isolated_node_serves_alone_and_comes_back() {
    let Some(lab) = Lab::open(303) else { return };
    let engine = lab.engine("e0");
    let nodes = mesh(&lab, 3, &[&engine]).await;
    let [alone, others @ ..] = &nodes[..] else { unreachable!() };
    let others: Vec<&Node> = others.iter().collect();
    lab.fabric.split(&[&alone.host], &hosts(&others));
    let cut = Instant::now();
    lost(&others, "n0").await;
    let given_up = cut.elapsed();
    took("the lone node to see only itself", async || alone.sees().await.len() == 1).await;
    println!("isolated: given up after {given_up:?}, alone in its own eyes after {:?}", cut.elapsed());
    for node in &nodes {
        for _ in 0..10 {
            assert_eq!(node.chat().await.status, 200, "{} reaches the worker", node.name);
        }
    }
    // What it registers meanwhile is kept and told afterwards.
    let late = lab.engine("late");
    alone.add(&late.url).await;
    lab.fabric.heal();
    let healed = Instant::now();
    let all: Vec<&Node> = nodes.iter().collect();
    formed(&all).await;
    let whole = healed.elapsed();
    agreed(&all).await;
    println!("healed: full views after {whole:?}, digests equal after {:?}", healed.elapsed());
    serving_all(&all, &[&engine.url, &late.url]).await;
}

/// Links that lose three packets in ten carry news and condemn nobody; a crash is still found.
#[tokio::test]
async fn lossy_links_condemn_nobody_and_a_crash_is_found() {
    let Some(lab) = Lab::open(304) else { return };
    let engine = lab.engine("e0");
    let mut nodes = mesh(&lab, 5, &[&engine]).await;
    let all: Vec<&Node> = nodes.iter().collect();
    lab.fabric.set_among(&hosts(&all), &Rules::loss(0.3));
    let span = Duration::from_secs(15);
    stays("nobody is condemned", span, async || {
        let mut holds = true;
        for node in &all {
            holds &= node.sees().await.len() == 5;
        }
        holds
    })
    .await;
    let late = lab.engine("late");
    let asked = Instant::now();
    nodes[0].add(&late.url).await;
    for node in &nodes {
        took("news to pass lossy links", async || node.workers().await.contains_key(&late.url)).await;
    }
    println!(
        "30 % loss each way for {span:?}: nobody condemned; a new worker is everywhere after {:?}",
        asked.elapsed()
    );
    nodes[4].kill().await;
    let [living @ .., _] = &nodes[..] else { unreachable!() };
    println!(
        "kill -9 at 30 % loss: known to all after {:?} (target 12 s)",
        lost(&living.iter().collect::<Vec<_>>(), "n4").await
    );
    let counts = lab.fabric.counts();
    println!("the network lost {} of {} packets", counts.lost, counts.packets);
    assert!(counts.lost > 100);
}
