//! The command line: configuration without a gateway, and a running gateway's workers.

use std::{fs, net::TcpListener, path::Path};

use serde_json::Value;
use smg_mock_worker::Config;

use super::{CHAT, chat, complained, said, smg_in};
use crate::harness::{Cluster, Gateway, Stream, engine, free_port, on};

async fn code(folder: &Path, arguments: &[&str]) -> Option<i32> {
    smg_in(folder, arguments, &[]).await.status.code()
}

#[tokio::test]
async fn a_configuration_is_judged_without_a_gateway() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    assert_eq!(code(folder, &["config", "validate"]).await, Some(0));
    fs::write(folder.join("smg.toml"), "[routing]\npolicy = \"random\"\n[[workers]]\nurl = \"http://a:1\"\n").unwrap();
    let valid = smg_in(folder, &["config", "validate"], &[]).await;
    assert!(valid.status.success() && said(&valid).contains("1 workers"), "{valid:?}");

    fs::write(folder.join("smg.toml"), "[routing]\npolicy = \"randem\"\nprefix_tokens = 3\n\n[[workers]]\nurl = 7\n")
        .unwrap();
    let bad = smg_in(folder, &["config", "validate"], &[]).await;
    assert_eq!(bad.status.code(), Some(2));
    let words = complained(&bad);
    // Everything that is wrong is named at once, with its line.
    for part in ["smg.toml:2", "random", "smg.toml:3", "smg.toml:6"] {
        assert!(words.contains(part), "{part} in {words}");
    }
    assert_eq!(code(folder, &["config", "validate", "--config", "nowhere.toml"]).await, Some(2));
    assert_eq!(code(folder, &["config", "validate", "--config", "", "--policy", "nonsense"]).await, Some(2));
    assert_eq!(code(folder, &["launch"]).await, Some(2), "a gateway does not start with it");
    for wrong in [&["nonsense"][..], &["--no-such-flag"], &["config"], &["workers", "list", "--no-such-flag"]] {
        assert_eq!(code(folder, wrong).await, Some(2), "{wrong:?}");
    }
    for right in
        [&["--help"][..], &["--version"], &["launch", "--help"], &["config", "schema"], &["config", "reference"]]
    {
        assert_eq!(code(folder, right).await, Some(0), "{right:?}");
    }
}

#[tokio::test]
async fn a_configuration_is_shown_with_where_it_comes_from() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("smg.toml"), "[limits]\nqueue_size = 7\n[security]\napi_key = \"sk-hidden-12\"\n")
        .unwrap();
    let environment = [("SMG_QUEUE_TIMEOUT_SECS", "9"), ("SMG_ADMIN_API_KEY", "sk-hidden-13")];
    let shown = smg_in(folder.path(), &["config", "show", "--port", "1234"], &environment).await;
    assert!(shown.status.success(), "{}", complained(&shown));
    let text = said(&shown);
    let line = |key: &str| text.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{key} in {text}"));
    assert!(line("queue_size").contains('7') && line("queue_size").contains("file, line 2"), "{}", line("queue_size"));
    assert!(line("queue_timeout_secs").contains("SMG_QUEUE_TIMEOUT_SECS"), "{}", line("queue_timeout_secs"));
    assert!(line("port").contains("1234") && line("port").contains("--port"), "{}", line("port"));
    let json = smg_in(folder.path(), &["config", "show", "--output", "json"], &environment).await;
    serde_json::from_slice::<Value>(&json.stdout).unwrap();
    for output in [shown, json] {
        assert!(!said(&output).contains("sk-hidden") && !complained(&output).contains("sk-hidden"));
    }
}

#[tokio::test]
async fn the_schema_knows_every_section() {
    let folder = tempfile::tempdir().unwrap();
    let schema: Value =
        serde_json::from_slice(&smg_in(folder.path(), &["config", "schema"], &[]).await.stdout).unwrap();
    for section in ["listener", "routing", "security", "tls", "upstream", "workers", "models"] {
        assert!(schema["properties"].get(section).is_some(), "{section}");
    }
    assert_eq!(schema["properties"]["routing"]["additionalProperties"], false);
}

#[tokio::test]
async fn completions_exist_for_every_shell() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = smg_in(folder.path(), &["completions", shell], &[]).await;
        assert!(script.status.success());
        let script = said(&script);
        assert!(script.contains("worker-urls") && script.contains("drain"), "{shell}");
    }
    assert_eq!(code(folder.path(), &["completions", "nonsense"]).await, Some(2));
}

#[tokio::test]
async fn workers_of_a_running_gateway_are_listed_added_drained_and_removed() {
    let cluster = Cluster::start(1, &["--api-key", "sk-callers", "--admin-api-key", "sk-operators"]).await;
    let more = engine(Config::default()).await;
    let (folder, url) = (cluster.gateway.folder(), cluster.gateway.url());
    let environment = [("SMG_URL", url.as_str()), ("SMG_ADMIN_API_KEY", "sk-operators")];
    let run = async |arguments: &[&str]| smg_in(&folder, arguments, &environment).await;

    let listed = run(&["workers", "list"]).await;
    assert!(said(&listed).contains(cluster.engines[0].url()) && said(&listed).contains("ready"), "{listed:?}");
    let added = run(&["workers", "add", more.url(), "--priority", "60", "--label", "rack=b2", "--cost", "2.5"]).await;
    assert!(added.status.success(), "{}", complained(&added));
    cluster.gateway.worker_is(more.url(), "ready").await;
    let worker = cluster.gateway.worker(more.url()).await;
    assert_eq!(
        (&worker["priority"], &worker["labels"]["rack"], &worker["cost"]),
        (&60.into(), &"b2".into(), &2.5.into())
    );

    let list = run(&["workers", "list", "--output", "json"]).await;
    let list: Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!(list["total"], 2);
    let of_model = run(&["workers", "list", "--model", "nobodys", "--output", "json"]).await;
    assert_eq!(serde_json::from_slice::<Value>(&of_model.stdout).unwrap()["total"], 0);
    assert_eq!(run(&["workers", "add", more.url()]).await.status.code(), Some(1), "it is there already");

    let drained = run(&["workers", "drain", more.url(), "--wait", "10s"]).await;
    assert!(drained.status.success(), "{}", complained(&drained));
    assert_eq!(cluster.gateway.worker(more.url()).await["status"], "draining");
    assert_eq!(cluster.gateway.ask(&chat().field("x-api-key", "sk-callers")).await.status, 200);
    let removed = run(&["workers", "remove", worker["id"].as_str().unwrap()]).await;
    assert!(removed.status.success(), "{}", complained(&removed));
    crate::harness::settled("it to be gone", async || cluster.gateway.worker(more.url()).await.is_null()).await;
    assert_eq!(run(&["workers", "remove", "http://127.0.0.1:1"]).await.status.code(), Some(2));

    let refused = smg_in(&folder, &["workers", "list", "--url", &url, "--api-key", "sk-callers"], &[]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(complained(&refused).contains("--api-key") && !complained(&refused).contains("sk-callers"), "{refused:?}");
}

#[tokio::test]
async fn a_drain_that_takes_too_long_is_told() {
    let cluster = Cluster::start(1, &[]).await;
    let mut stream = cluster.gateway.begin(&on(CHAT, "demo", Stream::Yes).fault("stall@event:2")).await;
    stream.head().await;
    let url = cluster.gateway.url();
    let arguments = ["workers", "drain", cluster.engines[0].url(), "--wait", "200ms", "--url", &url];
    let drained = smg_in(&cluster.gateway.folder(), &arguments, &[]).await;
    assert_eq!(drained.status.code(), Some(1));
    assert!(complained(&drained).contains("still has 1 request"), "{}", complained(&drained));
}

#[tokio::test]
async fn a_gateway_that_cannot_be_reached_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("http://127.0.0.1:{}", free_port());
    let output = smg_in(folder.path(), &["workers", "list", "--url", &url], &[]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(complained(&output).contains(&url) && complained(&output).contains("--url"), "{}", complained(&output));
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (taken, free) = (taken.local_addr().unwrap().port().to_string(), free_port().to_string());
    for (traffic, metrics, what) in [(&taken, &free, "traffic"), (&free, &taken, "metrics")] {
        let ports =
            ["--host", "127.0.0.1", "--port", traffic, "--prometheus-host", "127.0.0.1", "--prometheus-port", metrics];
        let output = smg_in(folder.path(), &ports, &[]).await;
        assert_eq!(output.status.code(), Some(1));
        let words = complained(&output);
        for part in [&format!("127.0.0.1:{taken}"), what, "another process has the port", "--port"] {
            assert!(words.contains(part), "{part} in {words}");
        }
    }
}

#[tokio::test]
async fn files_that_cannot_be_used_stop_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let nonsense = folder.path().join("nonsense.pem");
    fs::write(&nonsense, "nonsense").unwrap();
    let nonsense = nonsense.to_str().unwrap();
    for flags in [
        &["--tls-cert-path", nonsense, "--tls-key-path", nonsense][..],
        &["--tls-cert-path", nonsense],
        &["--ca-cert-paths", nonsense],
        &["--client-cert-path", nonsense, "--client-key-path", nonsense],
        &["--ca-cert-paths", "nowhere.pem"],
    ] {
        let ports = ["--port", "0", "--prometheus-port", "0"];
        let output = smg_in(folder.path(), &[&ports[..], flags].concat(), &[]).await;
        assert!(matches!(output.status.code(), Some(1 | 2)), "{flags:?}: {output:?}");
        assert!(complained(&output).contains("error:"), "{flags:?}: {output:?}");
    }
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let mut cluster = Cluster::start(1, &[]).await;
    let mut stream = cluster.gateway.begin(&on(CHAT, "demo", Stream::Yes).fault("stall@event:2")).await;
    stream.head().await;
    cluster.gateway.signal("TERM");
    crate::harness::settled("the drain", async || cluster.gateway.log().contains("draining")).await;
    assert!(cluster.gateway.runs());
    cluster.gateway.signal("TERM");
    assert!(cluster.gateway.ended().await.success());
    assert!(cluster.gateway.log().contains("a second signal came"));
}

#[tokio::test]
async fn variables_are_flags_by_another_name() {
    let engine = engine(Config::default()).await;
    let environment = [("SMG_API_KEY", "sk-env"), ("SMG_POLICY", "random"), ("SMG_WORKER_URLS", engine.url())];
    let gateway = Gateway::launch_in(&[], &[], &environment, &["--policy"]).await;
    gateway.ready().await;
    assert_eq!(gateway.ask(&chat()).await.status, 401);
    let answer = gateway.ask(&chat().field("x-api-key", "sk-env").field("x-smg-debug", "1")).await;
    assert_eq!((answer.status, answer.field("x-smg-route")), (200, Some("random chance")), "{answer:?}");
}
