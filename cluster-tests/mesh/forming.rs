//! Coming together: at once, late, again.

use std::time::{Duration, Instant};

use crate::harness::{Lab, Node, agreed, formed, lost, serving_all, stays, took};

/// Nodes that start at once, with the same workers on every command line, are one mesh with each worker once.
#[tokio::test]
async fn nodes_form() {
    let Some(lab) = Lab::open(101) else { return };
    let engines = [lab.engine("e0"), lab.engine("e1")];
    let urls: Vec<&str> = engines.iter().map(|engine| engine.url.as_str()).collect();
    let mut nodes = lab.nodes(5);
    let started = Instant::now();
    for node in &mut nodes {
        node.tell(&[&["--worker-urls"], &urls[..]].concat());
        node.launch();
    }
    for node in &mut nodes {
        node.answers().await;
    }
    let answering = started.elapsed();
    let nodes: Vec<&Node> = nodes.iter().collect();
    formed(&nodes).await;
    let whole = started.elapsed();
    serving_all(&nodes, &urls).await;
    agreed(&nodes).await;
    println!(
        "5 nodes: all answer after {answering:?}, full views after {whole:?}, agreed after {:?}",
        started.elapsed()
    );
    let first = nodes[0].workers().await;
    assert_eq!(first.len(), 2, "each worker once: {first:?}");
    for node in &nodes {
        assert_eq!(node.workers().await, first, "{}", node.name);
    }
    // Added on one, removed on another, it comes and goes everywhere.
    let late = lab.engine("late");
    let asked = Instant::now();
    let id = nodes[4].add(&late.url).await;
    let acknowledged = asked.elapsed();
    let mut seen = acknowledged;
    for node in &nodes {
        took("the new worker to be everywhere", async || node.workers().await.contains_key(&late.url)).await;
        seen = asked.elapsed();
    }
    println!("a new worker: acknowledged after {acknowledged:?}, on all 5 nodes after {seen:?}");
    serving_all(&nodes, &[&late.url]).await;
    nodes[0].remove(&id).await;
    for node in &nodes {
        took("the worker to be gone everywhere", async || node.workers().await == first).await;
    }
    agreed(&nodes).await;
}

/// A node waits for a seed that does not exist yet, serves meanwhile, and joins it when it comes.
#[tokio::test]
async fn a_late_seed_is_found() {
    let Some(lab) = Lab::open(102) else { return };
    let engine = lab.engine("e0");
    let mut nodes = lab.nodes(3);
    let seed = nodes[0].mesh_address();
    for node in &mut nodes {
        node.seeds = vec![seed.clone()];
        node.tell(&["--worker-urls", &engine.url]);
    }
    let [late, early, other] = &mut nodes[..] else { unreachable!() };
    early.start().await;
    other.start().await;
    // Each is alone with a seed that nobody has heard of, and serves all the same.
    serving_all(&[early, other], &[&engine.url]).await;
    late.start().await;
    println!("after the seed came: full views in {:?}", formed(&[late, early, other]).await);
    agreed(&[late, early, other]).await;
    // The seed is nothing special: without it the others still know each other, and it finds them again by itself.
    late.kill().await;
    println!("after the seed was killed: given up in {:?}", lost(&[early, other], "n0").await);
    formed(&[early, other]).await;
    late.start().await;
    println!("after it came back: full views in {:?}", formed(&[late, early, other]).await);
}

/// A second node of the same name is turned away, and the first does not notice.
#[tokio::test]
async fn a_name_is_taken_once() {
    let Some(lab) = Lab::open(103) else { return };
    let engine = lab.engine("e0");
    let mut nodes = lab.nodes(2);
    nodes.iter_mut().for_each(|node| node.tell(&["--worker-urls", &engine.url]));
    for node in &mut nodes {
        node.start().await;
    }
    let [first, second] = &nodes[..] else { unreachable!() };
    formed(&[first, second]).await;
    let mut impostor = lab.node("n0 again");
    impostor.name = "n0".to_owned();
    impostor.seeds = vec![first.mesh_address(), second.mesh_address()];
    impostor.tell(&["--worker-urls", &engine.url]);
    impostor.launch();
    assert!(!impostor.ended().await.success(), "it may not go on");
    assert!(impostor.log().contains("a live node called 'n0'"), "{}", impostor.log());
    assert!(impostor.log().contains("every node needs its own --mesh-server-name"), "{}", impostor.log());
    stays("the others stay as they were", Duration::from_secs(4), async || {
        first.sees().await.len() == 2 && second.sees().await.len() == 2 && first.chat().await.status == 200
    })
    .await;
}

/// All nodes end at once and start again: everything that was registered is there.
#[tokio::test]
async fn a_whole_cluster_starts_again_with_what_it_knew() {
    let Some(lab) = Lab::open(104) else { return };
    let engines = [lab.engine("e0"), lab.engine("e1"), lab.engine("e2")];
    let urls: Vec<&str> = engines.iter().map(|engine| engine.url.as_str()).collect();
    let mut nodes = lab.nodes(3);
    for node in &mut nodes {
        node.start().await;
    }
    formed(&nodes.iter().collect::<Vec<_>>()).await;
    for (node, url) in nodes.iter().zip(&urls) {
        node.add(url).await;
    }
    serving_all(&nodes.iter().collect::<Vec<_>>(), &urls).await;
    let known = nodes[0].workers().await;
    for node in &mut nodes {
        node.kill().await;
    }
    let started = Instant::now();
    for node in &mut nodes {
        node.launch();
    }
    for node in &mut nodes {
        node.answers().await;
    }
    let nodes: Vec<&Node> = nodes.iter().collect();
    formed(&nodes).await;
    serving_all(&nodes, &urls).await;
    println!("after kill -9 of all 3: full views and all workers served after {:?}", started.elapsed());
    for node in &nodes {
        assert_eq!(node.workers().await, known, "{}", node.name);
    }
    agreed(&nodes).await;
}
