//! Conversations that go on through what befalls nodes: a kill, a rolling restart, a split.

use std::time::Instant;

use serde_json::json;
use smg_fabric::Host;
use smg_mock_worker::token_ids;

use super::{
    agents::Play,
    figures::{HEAD, print},
    setting::{Mesh, Setting, Size, Tells, agreed_on_caches, chunks_known, is_full},
};
use crate::harness::{Ask, Node, caller_id, formed, lost, serving, took};

/// Says one turn of a conversation of token ids; the prompt of the next turn, and the tokens that were cached.
async fn turn(setting: &Setting, node: usize, id: &str, prompt: Vec<u32>) -> (Vec<u32>, u64) {
    let body = json!({ "model": "demo", "max_tokens": 16, "prompt": prompt });
    let ask = Ask::json("/v1/completions", &body).field("x-request-id", id);
    let answer = setting.nodes[node].ask(&ask).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let text = answer.value()["choices"][0]["text"].as_str().unwrap().to_owned();
    let entry = |engine: &crate::harness::Engine| {
        engine.ledger.select(|entry| serving(entry) && caller_id(entry) == Some(id)).pop()
    };
    let entry = setting.engines.iter().find_map(entry).expect("an engine has it in its ledger");
    let next = prompt.into_iter().chain(token_ids(&text)).collect();
    (next, entry.cached_tokens)
}

/// A conversation that one node began goes on at another, where its cache is.
#[tokio::test]
async fn another_node_goes_on_with_a_conversation() {
    let size = Size::light();
    for (tells, seed) in [(Tells::Yes, 621), (Tells::No, 622)] {
        let Some(setting) = Setting::start(seed, &size, Mesh::Joined, tells, "cache_aware").await else { return };
        let mut hits = 0;
        for number in 0..10_u32 {
            let prompt = (0..1_024).map(|place| 1_000 + number * 1_500 + place).collect();
            let before = chunks_known(&setting.nodes[1]).await;
            let (next, _) = turn(&setting, 0, &format!("first-{number}"), prompt).await;
            let is_heard = async || chunks_known(&setting.nodes[1]).await >= before + 8;
            took("the other node to know of the first turn", is_heard).await;
            let (_, before) = turn(&setting, 1, &format!("second-{number}"), next).await;
            hits += u32::from(before >= 1_024);
        }
        println!("events told: {tells:?}: {hits} of 10 conversations went on at another node where their cache is");
        assert!(hits >= 9);
    }
}

/// The node that served conversations is killed; they go on at others as if nothing had been.
#[tokio::test]
async fn conversations_outlive_the_node_that_served_them() {
    let size = Size::light();
    let Some(mut setting) = Setting::start(623, &size, Mesh::Joined, Tells::Yes, "cache_aware").await else { return };
    let mut prompts = Vec::new();
    for number in 0..20_u32 {
        let prompt = (0..640).map(|place| 1_000 + number * 700 + place).collect();
        let (next, _) = turn(&setting, 0, &format!("first-{number}"), prompt).await;
        prompts.push(next);
    }
    agreed_on_caches(&setting.all()).await;
    setting.nodes[0].kill().await;
    let mut warm = 0;
    for (number, prompt) in prompts.into_iter().enumerate() {
        let (_, cached) = turn(&setting, 1 + number % (size.nodes - 1), &format!("second-{number}"), prompt).await;
        warm += u32::from(cached >= 624);
    }
    println!("kill -9 of the node that served 20 conversations: {warm} went on where their cache is (target 0.95)");
    assert!(warm >= 19);
}

/// All nodes are replaced one after the other while agents work.
#[tokio::test]
async fn a_rolling_restart_keeps_conversations_where_they_are() {
    let mut size = Size::chosen();
    println!("{HEAD}");
    let Some(setting) = Setting::start(624, &size, Mesh::Joined, Tells::Yes, "cache_aware").await else { return };
    let calm = setting.play(&size.script).await;
    print("undisturbed", &calm);
    drop(setting);
    size.script.pause *= 2;
    let Some(mut setting) = Setting::start(624, &size, Mesh::Joined, Tells::Yes, "cache_aware").await else { return };
    let play = Play::start(&size.script, &setting.doors);
    took("agents to be at work", async || setting.requests() > size.script.requests() / 10).await;
    let started = Instant::now();
    for number in 0..size.nodes {
        setting.restart(number).await;
    }
    let restarted = started.elapsed();
    let share = setting.requests() as f64 / size.script.requests() as f64;
    let turns = play.finish().await;
    let figures = setting.figures(&turns);
    print("rolling restart", &figures);
    println!("all {} nodes replaced in {restarted:?}; then {share:.2} of the requests had been made", size.nodes);
    assert_eq!(figures.unanswered, 0, "{:?}", figures.reasons);
    // Few turns tell shares only roughly: what is asked of them is asked of the full size.
    let (least, slack) = if is_full() { (0.95, 0.02) } else { (0.35, 0.25) };
    assert!(figures.warm_share() >= least && figures.hit_share() > calm.hit_share() - slack);
}

/// A node that was killed knows again what engines hold as soon as it is back.
#[tokio::test]
async fn a_restarted_node_knows_the_caches_again() {
    let size = Size::light();
    let Some(mut setting) = Setting::start(625, &size, Mesh::Joined, Tells::Yes, "cache_aware").await else { return };
    setting.play(&size.script).await;
    agreed_on_caches(&setting.all()).await;
    let known = chunks_known(&setting.nodes[0]).await;
    let last = size.nodes - 1;
    setting.nodes[last].kill().await;
    lost(&setting.nodes[..last].iter().collect::<Vec<_>>(), &format!("n{last}")).await;
    let started = Instant::now();
    setting.nodes[last].start().await;
    let answered = started.elapsed();
    let node = &setting.nodes[last];
    took("95 % of the chunks to be back", async || chunks_known(node).await * 100 >= known * 95).await;
    println!("restarted: answers after {answered:?}, knows 95 % of {known} chunks after {:?}", started.elapsed());
    formed(&setting.all()).await;
    println!("  and all nodes the same after {:?}", agreed_on_caches(&setting.all()).await);
}

/// Two halves serve apart; when they meet again, all know the same of every engine.
#[tokio::test]
async fn halves_know_the_same_once_they_meet() {
    let mut size = Size::light();
    size.nodes = size.nodes.max(4);
    let Some(setting) = Setting::start(626, &size, Mesh::Joined, Tells::Yes, "cache_aware").await else { return };
    setting.play(&size.script).await;
    let together = agreed_on_caches(&setting.all()).await;
    let middle = size.nodes / 2;
    let (left, right) = setting.nodes.split_at(middle);
    let hosts = |nodes: &[Node]| -> Vec<Host> { nodes.iter().map(|node| node.host.clone()).collect() };
    let (left_hosts, right_hosts) = (hosts(left), hosts(right));
    setting.lab.fabric.split(&left_hosts.iter().collect::<Vec<_>>(), &right_hosts.iter().collect::<Vec<_>>());
    let names = |nodes: &[Node]| nodes.iter().map(|node| node.name.clone()).collect::<std::collections::BTreeSet<_>>();
    for half in [left, right] {
        let expected = names(half);
        for node in half {
            took("the view to shrink to this side", async || node.sees().await == expected).await;
        }
    }
    setting.forget();
    size.script.seed += 1;
    let apart = setting.play(&size.script).await;
    setting.lab.fabric.heal();
    let healed = Instant::now();
    formed(&setting.all()).await;
    let whole = healed.elapsed();
    agreed_on_caches(&setting.all()).await;
    println!("before the split: equal digests after {together:?}; while split:\n{HEAD}");
    print("two halves", &apart);
    println!("healed: full views after {whole:?}, equal digests of every cache after {:?}", healed.elapsed());
    assert_eq!((apart.unanswered, apart.failed_tries), (0, 0), "{:?}", apart.reasons);
}
