//! Metrics: present, well-formed, and right after a known traffic.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use smg_mock_worker::{Outcome, Rule};

use super::{CHAT, chat, said, smg_in};
use crate::harness::{Ask, Cluster, Gateway, Stream, on, settled};

type Labels = BTreeMap<String, String>;

/// A name, labels, and the sum of the series that have them.
type Expected<'a> = (&'a str, &'a [(&'a str, &'a str)], f64);

/// One reading: series with their values, and the families with their kinds.
#[derive(Debug, Default)]
struct Reading {
    series: Vec<(String, Labels, f64)>,
    kinds: BTreeMap<String, String>,
    described: BTreeSet<String>,
}

impl Reading {
    /// Parses the text format strictly.
    fn of(text: &str) -> Self {
        let mut reading = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            match words.as_slice() {
                ["#", "HELP", name, _] => assert!(reading.described.insert((*name).to_owned()), "{name} twice"),
                ["#", "TYPE", name, kind] => {
                    let before = reading.kinds.insert((*name).to_owned(), (*kind).to_owned());
                    assert_eq!(before, None, "{name} twice");
                }
                _ => reading.series.push(series(line)),
            }
        }
        reading
    }

    async fn now(gateway: &Gateway) -> Self {
        Self::of(&gateway.metrics().await)
    }

    /// The sum of the series called `name` that have all of `labels`.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |has: &Labels| labels.iter().all(|(label, value)| has.get(*label).is_some_and(|has| has == value));
        self.series.iter().filter(|(series, has, _)| series == name && fits(has)).map(|(_, _, value)| value).sum()
    }

    fn families(&self) -> BTreeSet<&str> {
        let of = |series: &str| {
            let stem = ["_bucket", "_sum", "_count"].iter().find_map(|end| series.strip_suffix(end));
            let name = stem.filter(|stem| self.kinds.contains_key(*stem)).unwrap_or(series);
            self.kinds.get_key_value(name).map(|(name, _)| name.as_str())
        };
        self.series.iter().map(|(series, ..)| of(series).unwrap_or_else(|| panic!("{series} has no type"))).collect()
    }
}

fn series(line: &str) -> (String, Labels, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no series: {line}"));
    let value = if value == "+Inf" { f64::INFINITY } else { value.parse().unwrap() };
    let Some((name, labels)) = series.split_once('{') else { return (series.to_owned(), Labels::new(), value) };
    let labels = labels.strip_suffix("\"}").unwrap();
    let pairs = labels.split("\",").map(|pair| pair.split_once("=\"").unwrap());
    (name.to_owned(), pairs.map(|(label, value)| (label.to_owned(), value.to_owned())).collect(), value)
}

/// Every histogram's buckets grow, and the last one is its count.
fn assert_histograms_add_up(reading: &Reading) {
    let histograms = reading.kinds.iter().filter(|(_, kind)| *kind == "histogram");
    let mut seen = 0;
    for (name, _) in histograms {
        let mut last: BTreeMap<Labels, f64> = BTreeMap::new();
        let bucket = format!("{name}_bucket");
        for (series, labels, value) in reading.series.iter().filter(|(series, ..)| *series == bucket) {
            let mut key = labels.clone();
            key.remove("le").unwrap_or_else(|| panic!("{series} without a bound"));
            let before = last.insert(key, *value).unwrap_or(0.0);
            assert!(before <= *value, "{name} {labels:?}");
            seen += 1;
        }
        for (labels, value) in last {
            let labels: Vec<(&str, &str)> =
                labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            assert!((reading.sum(&format!("{name}_count"), &labels) - value).abs() < 0.5, "{name} {labels:?}");
        }
    }
    assert!(seen > 100, "{seen} buckets");
}

/// What the traffic amounted to.
#[derive(Default)]
struct Sent {
    input: f64,
    output: f64,
    /// Events of streams that ended well.
    events: f64,
}

async fn send(cluster: &Cluster, request: &Ask, status: u16) -> serde_json::Value {
    let answer = cluster.gateway.ask(request).await;
    assert_eq!(answer.status, status, "{answer:?}");
    serde_json::from_slice(&answer.body).unwrap_or_default()
}

/// A known traffic: 7 plain and 3 streamed chats (one of them after a retry), 2 messages, 1 embedding, and one failure
/// of each kind.
async fn traffic(cluster: &Cluster) -> Sent {
    let mut sent = Sent::default();
    for number in 0..7 {
        if number == 6 {
            let busy = Rule::always("status=503".parse().unwrap()).on_path(CHAT).times(1);
            cluster.engines[0].faults().add(busy);
        }
        let answer = send(cluster, &chat(), 200).await;
        sent.input += answer["usage"]["prompt_tokens"].as_f64().unwrap();
        sent.output += answer["usage"]["completion_tokens"].as_f64().unwrap();
    }
    for _ in 0..3 {
        let answer = cluster.gateway.ask(&on(CHAT, "demo", Stream::Yes)).await;
        assert_eq!(answer.status, 200);
        sent.events += answer.events().len() as f64;
    }
    for _ in 0..2 {
        send(cluster, &on("/v1/messages", "demo", Stream::No), 200).await;
    }
    send(cluster, &on("/v1/embeddings", "demo", Stream::No), 200).await;

    send(cluster, &Ask::post(CHAT, "{"), 400).await;
    send(cluster, &on(CHAT, "nobodys", Stream::No), 404).await;
    send(cluster, &chat().fault("status=418"), 418).await;
    send(cluster, &chat().fault("rst@head"), 502).await;
    let cut = cluster.gateway.ask(&on(CHAT, "demo", Stream::Yes).fault("fin@event:2")).await;
    assert_eq!(cut.status, 200);
    assert_eq!(send(cluster, &Ask::get("/nothing"), 404).await["error"]["code"], "route_not_found");

    let mut leaving = cluster.gateway.begin(&on(CHAT, "demo", Stream::Yes).fault("stall@event:2")).await;
    assert_eq!(leaving.head().await.status, 200);
    leaving.close();
    cluster.entry(0, |entry| entry.outcome == Outcome::Aborted).await;
    sent
}

#[tokio::test]
async fn counts_are_right_after_a_known_traffic() {
    let cluster = Cluster::start(1, &["--max-concurrent-requests", "50", "--retry-max-retries", "3"]).await;
    let sent = traffic(&cluster).await;
    cluster.idle().await;
    let reading = Reading::now(&cluster.gateway).await;
    let worker = ("worker", cluster.engines[0].url());
    let (chat, path) = (("endpoint", "chat"), ("path", CHAT));
    let expected: &[Expected<'_>] = &[
        ("smg_http_requests_total", &[path], 16.0),
        ("smg_http_requests_total", &[("path", "/v1/messages")], 2.0),
        ("smg_http_responses_total", &[path, ("status_code", "200"), ("error_code", "")], 10.0),
        ("smg_http_responses_total", &[path, ("status_code", "400"), ("error_code", "invalid_request")], 1.0),
        ("smg_http_responses_total", &[path, ("status_code", "404"), ("error_code", "model_not_found")], 1.0),
        ("smg_http_responses_total", &[path, ("status_code", "418"), ("error_code", "")], 1.0),
        ("smg_http_responses_total", &[path, ("status_code", "502")], 1.0),
        ("smg_http_responses_total", &[path, ("error_code", "read_response_body_failed")], 1.0),
        ("smg_http_responses_total", &[path, ("error_code", "client_closed_request")], 1.0),
        ("smg_http_responses_total", &[("path", "other"), ("error_code", "route_not_found")], 1.0),
        ("smg_http_request_duration_seconds_count", &[path], 16.0),
        ("smg_http_request_body_bytes_count", &[], 19.0),
        ("smg_http_client_disconnects_total", &[chat, ("phase", "streaming")], 1.0),
        ("smg_http_client_disconnects_total", &[], 1.0),
        ("smg_http_auth_failures_total", &[], 0.0),
        ("smg_http_body_budget_used_bytes", &[], 0.0),
        ("smg_http_rate_limit_total", &[("result", "allowed")], 19.0),
        ("smg_admission_in_flight_max", &[], 50.0),
        ("smg_router_requests_total", &[chat, ("model", "demo"), ("streaming", "false")], 9.0),
        ("smg_router_requests_total", &[chat, ("model", "demo"), ("streaming", "true")], 5.0),
        ("smg_router_requests_total", &[("endpoint", "messages")], 2.0),
        ("smg_router_requests_total", &[("endpoint", "embeddings")], 1.0),
        ("smg_router_request_errors_total", &[chat, ("error_type", "upstream_error")], 1.0),
        ("smg_router_request_errors_total", &[chat, ("error_type", "call_upstream_request_error")], 1.0),
        ("smg_router_request_errors_total", &[chat, ("error_type", "read_response_body_failed")], 1.0),
        ("smg_router_request_errors_total", &[chat, ("error_type", "client_closed_request")], 1.0),
        ("smg_router_request_errors_total", &[chat], 4.0),
        ("smg_router_stream_failures_total", &[chat, ("error_type", "read_response_body_failed")], 1.0),
        ("smg_router_tokens_total", &[chat, ("token_type", "input")], sent.input),
        ("smg_router_tokens_total", &[chat, ("token_type", "output")], sent.output),
        ("smg_router_upstream_responses_total", &[("status_code", "200")], 15.0),
        ("smg_router_upstream_responses_total", &[("status_code", "503")], 1.0),
        ("smg_router_upstream_responses_total", &[("status_code", "418")], 1.0),
        ("smg_router_upstream_responses_total", &[("status_code", "")], 1.0),
        ("smg_router_overhead_seconds_count", &[chat], 14.0),
        ("smg_router_stage_duration_seconds_count", &[("stage", "prepare")], 17.0),
        ("smg_router_stage_duration_seconds_count", &[("stage", "route")], 18.0),
        ("smg_router_policy_branch_total", &[("policy", "round_robin"), ("branch", "turn")], 18.0),
        ("smg_worker_selection_total", &[("policy", "round_robin"), ("model", "demo")], 18.0),
        ("smg_worker_retries_total", &[chat], 1.0),
        ("smg_worker_retry_backoff_seconds_count", &[("attempt", "1")], 1.0),
        ("smg_worker_errors_total", &[("error_type", "upstream_error")], 1.0),
        ("smg_worker_errors_total", &[("error_type", "call_upstream_request_error")], 1.0),
        ("smg_worker_cb_outcomes_total", &[worker, ("outcome", "failure")], 2.0),
        ("smg_worker_cb_state", &[worker], 0.0),
        ("smg_worker_health", &[worker], 1.0),
        ("smg_worker_status", &[worker, ("status", "ready")], 1.0),
        ("smg_worker_requests_active", &[worker], 0.0),
        ("smg_worker_pending_tokens", &[worker], 0.0),
        ("smg_worker_pool_size", &[("model", "demo")], 1.0),
        ("smg_worker_pool_available", &[("model", "demo")], 1.0),
        ("smg_worker_detections_total", &[("result", "vllm")], 1.0),
        ("smg_config_reloads_total", &[], 0.0),
        ("smg_task_panics_total", &[], 0.0),
        ("smg_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0),
    ];
    let wrong: Vec<String> = expected
        .iter()
        .map(|(name, labels, value)| (name, labels, reading.sum(name, labels), *value))
        .filter(|(.., seen, expected)| (seen - expected).abs() > 1e-9)
        .map(|(name, labels, seen, expected)| format!("{name}{labels:?} is {seen}, not {expected}"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    // The two streams that broke off got to their second event.
    let events = reading.sum("smg_router_stream_events_total", &[chat]) - sent.events;
    assert!((2.0..=4.0).contains(&events), "{events} more than {}", sent.events);
    assert!(reading.sum("smg_router_ttft_seconds_count", &[chat]) >= 10.0);
}

#[tokio::test]
async fn there_are_many_and_all_are_well_formed_and_documented() {
    let cluster = Cluster::start(1, &[]).await;
    traffic(&cluster).await;
    cluster.idle().await;
    let reading = Reading::now(&cluster.gateway).await;
    let families = reading.families();
    let own: Vec<&str> = families.iter().copied().filter(|name| name.starts_with("smg_")).collect();
    assert!(own.len() >= 40, "{} metrics: {own:?}", own.len());
    assert_histograms_add_up(&reading);
    for family in &families {
        assert!(reading.described.contains(*family), "{family} has no help");
        let is_counter = reading.kinds[*family] == "counter";
        assert_eq!(is_counter, family.ends_with("_total"), "{family}");
    }
    let page = said(&smg_in(&cluster.gateway.folder(), &["metrics", "reference"], &[]).await);
    for family in families {
        assert!(page.contains(&format!("`{family}`")), "{family} is not on the reference page");
    }
}

#[tokio::test]
async fn what_engines_say_of_themselves_is_shown_where_that_is_wanted() {
    let poll = ["--load-monitor-interval", "50ms"];
    let quiet = Cluster::start(1, &poll).await;
    let shown = Cluster::start(1, &[&poll[..], &["--engine-metrics"]].concat()).await;
    let _running = shown.gateway.begin(&on(CHAT, "demo", Stream::Yes).fault("stall@event:2")).await;
    shown.gateway.metric_is("smg_engine_running_requests", &[("worker", shown.engines[0].url())], 1.0).await;
    settled("a poll", async || quiet.gateway.metric("smg_worker_load_polls_total", &[]).await >= 1.0).await;
    assert!(!quiet.gateway.metrics().await.contains("smg_engine_"));
}

#[tokio::test]
async fn what_is_gone_is_no_longer_shown() {
    let cluster = Cluster::start(2, &[]).await;
    let gone = cluster.engines[1].url();
    cluster.gateway.metric_is("smg_worker_health", &[], 2.0).await;
    let id = cluster.gateway.worker(gone).await["id"].as_str().unwrap().to_owned();
    cluster.gateway.admin("DELETE", &format!("/workers/{id}"), &json!(null)).await;
    cluster.gateway.metric_is("smg_worker_health", &[], 1.0).await;
    settled("it to be gone", async || cluster.gateway.worker(gone).await.is_null()).await;
    let text = cluster.gateway.metrics().await;
    assert!(!text.lines().any(|line| line.starts_with("smg_worker_status") && line.contains(gone)), "{text}");
}
