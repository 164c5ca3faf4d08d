//! Logs: one valid JSON object a line, or lines for people.

use std::fs;

use serde_json::Value;

use super::{CHAT, chat};
use crate::harness::{Ask, Cluster, Gateway, Stream, on, settled};

fn lines(gateway: &Gateway) -> Vec<Value> {
    let log = gateway.log();
    let value = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    log.lines().map(value).collect()
}

async fn traffic(cluster: &Cluster) {
    for (id, request) in [
        ("good", chat()),
        ("stream", on(CHAT, "demo", Stream::Yes)),
        ("invalid", Ask::post(CHAT, "{")),
        ("cut", on(CHAT, "demo", Stream::Yes).fault("fin@event:2")),
        ("quoted", on(CHAT, "a \"model\"\n\u{1b}[31m with {odd} characters", Stream::No)),
        ("refused", chat().fault("status=503")),
    ] {
        cluster.gateway.ask(&request.field("x-request-id", id)).await;
    }
    cluster.idle().await;
}

#[tokio::test]
async fn every_line_is_an_object_with_time_level_and_message() {
    let mut cluster = Cluster::start(1, &["--log-json=true", "--log-level", "debug", "--retry-max-retries", "1"]).await;
    traffic(&cluster).await;
    cluster.gateway.signal("TERM");
    assert!(cluster.gateway.ended().await.success());
    let lines = lines(&cluster.gateway);
    assert!(lines.len() > 8, "{lines:?}");
    for line in &lines {
        assert!(line["timestamp"].as_str().is_some_and(|time| time.ends_with('Z') && time.contains('T')), "{line}");
        assert!(matches!(line["level"].as_str(), Some("DEBUG" | "INFO" | "WARN" | "ERROR")), "{line}");
        assert!(line["message"].is_string() && line["target"].is_string(), "{line}");
    }
    let of = |id: &str| {
        let fits = |line: &&Value| line["target"] == "smg::access" && line["request_id"] == id;
        lines.iter().find(fits).unwrap_or_else(|| panic!("no line for {id}"))
    };
    let good = of("good");
    assert_eq!(
        (&good["endpoint"], &good["model"], &good["status"]),
        (&"chat".into(), &"demo".into(), &200.into()),
        "{good}"
    );
    assert_eq!(
        (&good["outcome"], &good["stream"], &good["attempts"]),
        (&"answered".into(), &false.into(), &1.into()),
        "{good}"
    );
    assert!(good["worker"].is_string() && good["total_ms"].is_number() && good["input_tokens"].is_number(), "{good}");
    assert_eq!((&of("stream")["stream"], &of("stream")["outcome"]), (&true.into(), &"answered".into()));
    assert_eq!((&of("invalid")["status"], &of("invalid")["outcome"]), (&400.into(), &"invalid_request".into()));
    assert_eq!((&of("cut")["status"], &of("cut")["outcome"]), (&200.into(), &"read_response_body_failed".into()));
    assert_eq!(of("refused")["status"], 503);
    assert!(lines.iter().any(|line| line["message"] == "stopped"));
}

#[tokio::test]
async fn only_what_failed_is_logged_where_that_is_wanted() {
    let cluster = Cluster::start(1, &["--access-log", "errors"]).await;
    traffic(&cluster).await;
    let ids = |gateway: &Gateway| -> Vec<String> {
        let access = lines(gateway).into_iter().filter(|line| line["target"] == "smg::access");
        access.filter_map(|line| line["request_id"].as_str().map(str::to_owned)).collect()
    };
    settled("the log", async || ids(&cluster.gateway).len() >= 4).await;
    assert_eq!(ids(&cluster.gateway), ["invalid", "cut", "quoted", "refused"]);
    let silent = Cluster::start(1, &["--access-log", "off"]).await;
    traffic(&silent).await;
    assert!(ids(&silent.gateway).is_empty());
}

#[tokio::test]
async fn lines_for_people_hold_no_escapes_when_nobody_looks() {
    let cluster = Cluster::start(1, &["--log-format", "human"]).await;
    traffic(&cluster).await;
    settled("the log", async || cluster.gateway.log().contains("refused")).await;
    let log = cluster.gateway.log();
    assert!(!log.contains('\u{1b}'), "{log}");
    assert!(serde_json::from_str::<Value>(log.lines().next().unwrap()).is_err());
}

#[tokio::test]
async fn a_folder_gets_the_log_too() {
    let folder = tempfile::tempdir().unwrap();
    let logs = folder.path().join("logs");
    let mut cluster = Cluster::start(1, &["--log-dir", logs.to_str().unwrap()]).await;
    traffic(&cluster).await;
    cluster.gateway.signal("TERM");
    assert!(cluster.gateway.ended().await.success());
    let files: Vec<_> = fs::read_dir(&logs).unwrap().flatten().collect();
    assert_eq!(files.len(), 1, "{files:?}");
    assert!(files[0].file_name().to_string_lossy().starts_with("smg."));
    let text = fs::read_to_string(files[0].path()).unwrap();
    assert!(text.contains("good") && text.contains("stopped"), "{text}");
}
