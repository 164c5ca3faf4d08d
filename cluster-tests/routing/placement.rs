//! Shares, tiers, targets and loads.

use serde_json::{Value, json};
use smg_mock_worker::{Config, MockWorker, Rule};

use crate::harness::{Ask, Cluster, Gateway, Stream, engine, on, serving};

const CHAT: &str = "/v1/chat/completions";

/// A gateway that was told of `count` engines by its admin API, with what `spec` adds for each.
async fn told(count: usize, flags: &[&str], spec: impl Fn(usize) -> Value) -> Cluster {
    let mut engines: Vec<MockWorker> = Vec::new();
    let gateway = Gateway::start(flags, &[]).await;
    for number in 0..count {
        let engine = engine(Config { name: format!("engine-{number}"), ..Config::default() }).await;
        let mut body = spec(number);
        body["url"] = engine.url().into();
        let added = gateway.admin("POST", "/workers", &body).await;
        assert_eq!(added.status, 202, "{}", added.text());
        engines.push(engine);
    }
    for engine in &engines {
        gateway.worker_is(engine.url(), "ready").await;
    }
    Cluster { gateway, engines }
}

async fn ask_times(cluster: &Cluster, times: usize, request: &Ask) {
    for _ in 0..times {
        let answer = cluster.gateway.ask(request).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

#[tokio::test]
async fn every_policy_serves() {
    let policies = [
        "random",
        "round_robin",
        "power_of_two",
        "least_load",
        "consistent_hashing",
        "prefix_hash",
        "manual",
        "bucket",
        "passthrough",
        "cache_aware",
    ];
    let engines = [engine(Config::default()).await, engine(Config::default()).await];
    for policy in policies {
        let gateway = Gateway::start(&["--policy", policy], &[engines[0].url(), engines[1].url()]).await;
        for number in 0..12 {
            let body = json!({"model": "demo", "messages": [{"role": "user", "content": format!("{number} hello")}]});
            let request = Ask::json(CHAT, &body).field("x-smg-routing-key", &number.to_string());
            assert_eq!(gateway.ask(&request).await.status, 200, "{policy}");
        }
        let chosen = gateway.metric("smg_worker_selection_total", &[("policy", policy), ("model", "demo")]).await;
        assert_eq!(chosen, 12.0, "{policy}");
    }
}

#[tokio::test]
async fn turns_are_taken_and_weights_and_costs_honoured() {
    let cases: [(Value, Value, [usize; 2]); 4] = [
        (json!({}), json!({}), [12, 12]),
        (json!({"weight": 3.0}), json!({"weight": 1.0}), [18, 6]),
        (json!({"cost": 3.0}), json!({"cost": 1.0}), [6, 18]),
        (json!({"weight": 2.0, "cost": 2.0}), json!({"weight": 5.0}), [4, 20]),
    ];
    for (first, second, shares) in cases {
        let cluster = told(2, &[], |number| if number == 0 { first.clone() } else { second.clone() }).await;
        ask_times(&cluster, 24, &on(CHAT, "demo", Stream::No)).await;
        let got = cluster.shares();
        let is_equal = shares[0] == shares[1];
        assert!(got[0].abs_diff(shares[0]) <= usize::from(!is_equal), "{first} {second}: {got:?}, not {shares:?}");
    }
}

#[tokio::test]
async fn lower_tiers_serve_only_when_no_higher_one_can() {
    let policies = ["round_robin", "random", "least_load", "cache_aware", "consistent_hashing"];
    for policy in policies {
        let cluster =
            told(3, &["--policy", policy], |number| json!({"priority": if number == 2 { 10 } else { 60 }})).await;
        let request = on(CHAT, "demo", Stream::No);
        ask_times(&cluster, 8, &request).await;
        assert_eq!(cluster.shares()[2], 0, "{policy}");
        // The higher tier is too busy: the lower one helps out, request by request.
        for engine in &cluster.engines[..2] {
            engine.faults().add(Rule::always("status=429".parse().unwrap()).on_path("/v1/*"));
        }
        ask_times(&cluster, 3, &request).await;
        assert_eq!(cluster.shares()[2], 3, "{policy}");
        for engine in &cluster.engines[..2] {
            engine.faults().clear();
            let id = cluster.gateway.worker(engine.url()).await["id"].as_str().unwrap().to_owned();
            cluster.gateway.admin("POST", &format!("/workers/{id}/drain"), &Value::Null).await;
        }
        ask_times(&cluster, 3, &request).await;
        assert_eq!(cluster.shares()[2], 6, "{policy}");
    }
}

#[tokio::test]
async fn a_named_worker_serves_or_nobody_does() {
    let cluster = Cluster::start(3, &["--policy=random"]).await;
    let chosen = &cluster.engines[1];
    let worker = cluster.gateway.worker(chosen.url()).await;
    let names = [chosen.url().to_owned(), chosen.address().to_string(), worker["id"].as_str().unwrap().to_owned()];
    for (done, name) in names.iter().enumerate() {
        ask_times(&cluster, 4, &on(CHAT, "demo", Stream::Yes).field("x-smg-target-worker", name)).await;
        assert_eq!(cluster.shares(), [0, 4 * (done + 1), 0], "{name}");
    }
    // By its place: always the same one.
    for place in ["0", "1", "2"] {
        let before = cluster.shares();
        ask_times(&cluster, 3, &on(CHAT, "demo", Stream::No).field("x-smg-target-worker", place)).await;
        let changed = cluster.shares().iter().zip(&before).filter(|(now, then)| now != then).count();
        assert_eq!(changed, 1, "{place}");
    }
    for entry in cluster.entries() {
        assert_eq!(entry.field("x-smg-target-worker"), None, "the header is the gateway's own");
    }
    let before = cluster.shares();
    for name in ["9", "http://127.0.0.1:1", "nonsense"] {
        let answer = cluster.gateway.ask(&on(CHAT, "demo", Stream::No).field("x-smg-target-worker", name)).await;
        let got = (answer.status, answer.field("x-smg-error-code"));
        assert_eq!(got, (503, Some("target_worker_unavailable")), "{name}: {}", answer.text());
    }
    // A named worker that fails is not replaced.
    let request = on("/v1/embeddings", "demo", Stream::No).field("x-smg-target-worker", &names[0]);
    assert_eq!(cluster.gateway.ask(&request.fault("status=503,retry-after=9")).await.status, 503);
    assert_eq!([cluster.shares()[0], cluster.shares()[2]], [before[0], before[2]]);
}

#[tokio::test]
async fn load_is_seen_by_those_who_look_at_it() {
    for policy in ["least_load", "power_of_two", "cache_aware"] {
        let cluster = Cluster::start(2, &["--policy", policy]).await;
        let busy = cluster.engines[0].url();
        let mut held = Vec::new();
        for _ in 0..12 {
            let request = on(CHAT, "demo", Stream::Yes).field("x-smg-target-worker", busy).fault("stall@event:3");
            let mut connection = cluster.gateway.begin(&request).await;
            connection.head().await;
            held.push(connection);
        }
        for number in 0..10 {
            let body = json!({"model": "demo", "messages": [{"role": "user", "content": format!("{number}")}]});
            ask_times(&cluster, 1, &Ask::json(CHAT, &body)).await;
        }
        let free = cluster.engines[1].ledger().count(serving);
        // Two that are drawn may both be the busy one.
        let least = if policy == "power_of_two" { 5 } else { 10 };
        assert!(free >= least, "{policy}: {:?}", cluster.shares());
        assert_eq!(cluster.gateway.worker(busy).await["load"], 12, "{policy}");
        drop(held);
        cluster.idle().await;
        assert_eq!(cluster.gateway.worker(busy).await["load"], 0, "{policy}");
    }
}

#[tokio::test]
async fn the_gateway_tells_why() {
    let cluster = Cluster::start(2, &["--policy=cache_aware"]).await;
    let request = on(CHAT, "demo", Stream::No).field("x-request-id", "mine-1").field("x-smg-debug", "1");
    let answer = cluster.gateway.ask(&request).await;
    let entry = &cluster.entries()[0];
    let serving_engine = &cluster.engines[usize::from(cluster.shares()[1] == 1)];
    let worker = cluster.gateway.worker(serving_engine.url()).await;
    assert_eq!(answer.field("x-smg-worker"), worker["id"].as_str());
    assert!(answer.field("x-smg-route").unwrap().starts_with("cache_aware "), "{answer:?}");
    assert_eq!(answer.field("x-smg-attempts"), Some("1"));
    assert_eq!(answer.field("x-request-id"), Some("mine-1"));
    assert!(entry.request_id.as_deref().unwrap().starts_with("mine-1-"), "{entry:?}");
    let told = cluster.gateway.admin("GET", "/explain/mine-1", &Value::Null).await;
    assert_eq!(told.status, 200, "{}", told.text());
    assert!(told.text().contains(worker["id"].as_str().unwrap()), "{}", told.text());
    let nobody = cluster.gateway.ask(&on(CHAT, "demo", Stream::No)).await;
    assert_eq!(nobody.field("x-smg-worker"), None, "only who asks is told");
}
