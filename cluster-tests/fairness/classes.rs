//! Classes of requests: who gives way to whom, and what those are told who do not get their turn.

use smg_mock_worker::{Config, Dialect, Speed};

use crate::harness::{Ask, Cluster, Stream, check_refused, on};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";

/// A gateway that runs one request at once, for callers who may have any class.
const FLAGS: [&str; 3] =
    ["--priority-scheduler-enabled", "--priority-scheduler-default-max-class=system", "--max-concurrent-requests=1"];

fn asking(path: &str, stream: Stream, class: &str) -> Ask {
    on(path, "demo", stream).field("X-SMG-Priority", class)
}

#[tokio::test]
async fn who_has_not_been_answered_gives_way_to_the_urgent() {
    let cluster = Cluster::start(1, &FLAGS).await;
    for (round, path) in [CHAT, MESSAGES].into_iter().enumerate() {
        let victim = asking(path, Stream::Yes, "bulk").fault("stall@head").field("x-cell", path);
        let mut victim = cluster.gateway.begin(&victim).await;
        cluster.entry(0, |entry| entry.field("x-cell") == Some(path)).await;
        let urgent = cluster.gateway.ask(&asking(path, Stream::No, "interactive")).await;
        assert_eq!(urgent.status, 200, "{}", urgent.text());
        let told = victim.answer().await;
        check_refused(&told, path, (503, "scheduler_preempted"));
        assert_eq!((told.field("retry-after"), told.field("x-smg-preempted")), (Some("1"), Some("true")));
        let labels = [("victim_class", "bulk"), ("by_class", "interactive")];
        cluster.gateway.metric_is("smg_scheduler_preemption_total", &labels, (round + 1) as f64).await;
        cluster.idle().await;
    }
    // The engines heard that their callers had gone.
    assert_eq!(cluster.entries().iter().filter(|entry| entry.field("x-cell").is_some()).count(), 2);
}

#[tokio::test]
async fn who_is_being_answered_keeps_its_place() {
    let cluster = Cluster::start(1, &FLAGS).await;
    let mut first = cluster.gateway.begin(&asking(CHAT, Stream::Yes, "bulk").fault("stall@event:3")).await;
    first.head().await;
    let mut bulk = cluster.gateway.begin(&asking(CHAT, Stream::No, "bulk").field("x-cell", "bulk")).await;
    cluster.gateway.metric_is("smg_scheduler_queue_depth", &[("class", "bulk")], 1.0).await;
    let mut urgent = cluster.gateway.begin(&asking(CHAT, Stream::No, "system").field("x-cell", "system")).await;
    cluster.gateway.metric_is("smg_scheduler_queue_depth", &[("class", "system")], 1.0).await;
    assert_eq!(cluster.gateway.metric("smg_scheduler_preemption_total", &[]).await, 0.0);
    first.close();
    assert_eq!(urgent.answer().await.status, 200);
    assert_eq!(bulk.answer().await.status, 200);
    let order: Vec<_> = cluster.entries().iter().filter_map(|entry| entry.field("x-cell").map(str::to_owned)).collect();
    assert_eq!(order, ["system", "bulk"]);
    cluster.idle().await;
}

#[tokio::test]
async fn each_class_has_its_own_queue() {
    let terms = "--priority-scheduler-classes=default queue=1 timeout=150ms,bulk queue=0";
    let cluster = Cluster::start(1, &[&FLAGS[..], &[terms]].concat()).await;
    let mut first = cluster.gateway.begin(&asking(CHAT, Stream::Yes, "system").fault("stall@event:3")).await;
    first.head().await;
    for path in [CHAT, MESSAGES] {
        let answer = cluster.gateway.ask(&asking(path, Stream::No, "bulk")).await;
        check_refused(&answer, path, (429, "scheduler_queue_full"));
        let answer = cluster.gateway.ask(&asking(path, Stream::Yes, "default")).await;
        check_refused(&answer, path, (408, "scheduler_queue_timeout"));
    }
    first.close();
    cluster.idle().await;
}

#[tokio::test]
async fn nobody_gets_a_better_class_by_asking() {
    let cluster = Cluster::start(1, &["--priority-scheduler-enabled", "--max-concurrent-requests=2"]).await;
    for (asked, had) in [("system", "default"), ("interactive", "default"), ("default", ""), ("bulk", ""), ("vip", "")]
    {
        assert_eq!(cluster.gateway.ask(&asking(CHAT, Stream::No, asked)).await.status, 200);
        let labels = [("requested_class", asked), ("effective_class", had)];
        let clamped = if had.is_empty() { 0.0 } else { 1.0 };
        cluster.gateway.metric_is("smg_scheduler_clamp_total", &labels, clamped).await;
    }
    cluster.gateway.metric_is("smg_scheduler_unknown_priority_value_total", &[], 1.0).await;
    cluster.gateway.metric_is("smg_scheduler_admit_total", &[("class", "default")], 4.0).await;
    cluster.gateway.metric_is("smg_scheduler_admit_total", &[("class", "bulk")], 1.0).await;
    // Engines are not told.
    assert!(cluster.entries().iter().all(|entry| entry.field("x-smg-priority").is_none()));
}

#[tokio::test]
async fn as_many_run_as_the_workers_say() {
    let speed = Speed { running_max: 3, ..Speed::default() };
    let engines = vec![Config { dialect: Dialect::Sglang, speed, ..Config::default() }, Config::default()];
    let cluster = Cluster::of(engines, &["--priority-scheduler-enabled"]).await;
    // The second one does not say.
    cluster.gateway.metric_is("smg_admission_in_flight_max", &[], 67.0).await;
    let silent = cluster.gateway.worker(cluster.engines[1].url()).await["id"].as_str().unwrap().to_owned();
    let removed = cluster.gateway.admin("DELETE", &format!("/workers/{silent}"), &serde_json::Value::Null).await;
    assert!(removed.status < 300, "{}", removed.text());
    cluster.gateway.metric_is("smg_admission_in_flight_max", &[], 3.0).await;
}
