//! A changed `smg.toml` while requests are served: taken on whole, or not at all.

use std::{fs, path::PathBuf};

use serde_json::Value;
use smg_mock_worker::{Config, MockWorker};
use tempfile::TempDir;

use super::{CHAT, chat};
use crate::harness::{Ask, Gateway, Stream, engine, on, settled};

/// A gateway whose settings are in a file.
struct Filed {
    gateway: Gateway,
    path: PathBuf,
    _folder: TempDir,
}

impl Filed {
    async fn start(text: &str, watch: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("smg.toml");
        fs::write(&path, text).unwrap();
        let flags = ["--config", path.to_str().unwrap(), "--config-watch-interval", watch];
        let bare = ["--policy", "--log-level"];
        let gateway = Gateway::launch_in(&flags, &[], &[], &bare).await;
        Self { gateway, path, _folder: folder }
    }

    /// Replaces the file in one step, as editors and Kubernetes do.
    fn write(&self, text: &str) {
        let next = self.path.with_extension("next");
        fs::write(&next, text).unwrap();
        fs::rename(&next, &self.path).unwrap();
    }

    async fn reloads(&self, result: &str) -> f64 {
        self.gateway.metric("smg_config_reloads_total", &[("result", result)]).await
    }

    /// Replaces the file and waits until that has been noticed.
    async fn change(&self, text: &str, result: &str) {
        let before = self.reloads(result).await;
        self.write(text);
        settled(&format!("a reload, {result}"), async || self.reloads(result).await > before).await;
    }

    async fn route(&self) -> String {
        let answer = self.gateway.ask(&chat().field("x-smg-debug", "1")).await;
        answer.field("x-smg-route").unwrap_or_else(|| panic!("{answer:?}")).to_owned()
    }
}

fn workers(engines: &[&MockWorker]) -> String {
    engines.iter().map(|engine| format!("[[workers]]\nurl = \"{}\"\n", engine.url())).collect()
}

#[tokio::test]
async fn policies_take_effect_at_once() {
    let engine = engine(Config::default()).await;
    let text = |policy: &str| format!("[routing]\npolicy = \"{policy}\"\n{}", workers(&[&engine]));
    let filed = Filed::start(&text("round_robin"), "20ms").await;
    filed.gateway.described(&[engine.url()]).await;
    assert_eq!(filed.route().await, "round_robin turn");
    filed.change(&text("random"), "applied").await;
    assert_eq!(filed.route().await, "random chance");
    let own = format!("{}[[models]]\nid = \"demo\"\npolicy = \"power_of_two\"\n", text("random"));
    filed.change(&own, "applied").await;
    assert!(filed.route().await.starts_with("power_of_two"));
    assert_eq!(filed.reloads("refused").await, 0.0);
}

#[tokio::test]
async fn workers_come_and_go_without_a_lost_request() {
    let (first, second) = (engine(Config::default()).await, engine(Config::default()).await);
    let filed = Filed::start(&workers(&[&first]), "20ms").await;
    filed.gateway.described(&[first.url()]).await;
    let mut stream = filed.gateway.begin(&on(CHAT, "demo", Stream::Yes).fault("delay=30ms@event:*")).await;
    assert_eq!(stream.head().await.status, 200);

    filed.change(&workers(&[&first, &second]), "applied").await;
    filed.gateway.worker_is(second.url(), "ready").await;
    filed.change(&workers(&[&second]), "applied").await;
    for _ in 0..5 {
        assert_eq!(filed.gateway.ask(&chat()).await.status, 200);
    }
    assert_eq!(first.ledger().count(|entry| entry.path == CHAT), 1, "it gets nothing new");
    let (body, is_whole) = stream.rest().await;
    assert!(is_whole && body.ends_with(b"data: [DONE]\n\n"), "and finishes what it has");
    settled("the first worker to be gone", async || filed.gateway.worker(first.url()).await.is_null()).await;
}

#[tokio::test]
async fn workers_of_the_admin_api_stay() {
    let (filed_engine, added) = (engine(Config::default()).await, engine(Config::default()).await);
    let filed = Filed::start(&workers(&[&filed_engine]), "20ms").await;
    let spec = serde_json::json!({ "url": added.url() });
    assert_eq!(filed.gateway.admin("POST", "/workers", &spec).await.status, 202);
    filed.change("", "applied").await;
    filed.gateway.worker_is(added.url(), "ready").await;
    settled("the other to be gone", async || filed.gateway.worker(filed_engine.url()).await.is_null()).await;
}

#[tokio::test]
async fn keys_and_aliases_take_effect_at_once() {
    let engine = engine(Config::default()).await;
    let text = |more: &str| format!("{more}{}", workers(&[&engine]));
    let filed = Filed::start(&text(""), "20ms").await;
    filed.gateway.described(&[engine.url()]).await;
    let nick = on(CHAT, "nick", Stream::No);
    assert_eq!(filed.gateway.ask(&nick).await.status, 404);

    let aliased = "[fleet]\nmodel_alias = [\"nick=demo\"]\n";
    filed.change(&text(aliased), "applied").await;
    assert_eq!(filed.gateway.ask(&nick).await.status, 200);

    filed.change(&text(&format!("{aliased}[security]\napi_key = \"sk-new-51\"\n")), "applied").await;
    assert_eq!(filed.gateway.ask(&nick).await.status, 401);
    assert_eq!(filed.gateway.ask(&nick.clone().field("x-api-key", "sk-new-51")).await.status, 200);
    assert!(!filed.gateway.log().contains("sk-new-51"), "changes are logged without secrets");

    filed.change(&text(""), "applied").await;
    assert_eq!(filed.gateway.ask(&chat()).await.status, 200);
    assert_eq!(filed.gateway.ask(&nick).await.status, 404);
}

#[tokio::test]
async fn limits_and_log_levels_take_effect_at_once() {
    let engine = engine(Config::default()).await;
    let filed = Filed::start(&workers(&[&engine]), "20ms").await;
    filed.gateway.described(&[engine.url()]).await;
    let text =
        format!("[limits]\nmax_payload_size = \"1KiB\"\n[logging]\nlog_level = \"error\"\n{}", workers(&[&engine]));
    filed.change(&text, "applied").await;
    let large = Ask::post(CHAT, format!("{{\"model\":\"demo\",\"messages\":[],\"x\":\"{}\"}}", "a".repeat(2_000)));
    assert_eq!(filed.gateway.ask(&large.field("x-request-id", "unlogged")).await.status, 413);
    assert!(!filed.gateway.log().contains("unlogged"));
}

#[tokio::test]
async fn a_bad_file_keeps_the_last_good_one() {
    let engine = engine(Config::default()).await;
    let good = format!("[routing]\npolicy = \"random\"\n{}", workers(&[&engine]));
    let filed = Filed::start(&good, "20ms").await;
    filed.gateway.described(&[engine.url()]).await;
    for bad in [
        "[routing\npolicy = 7",
        "[routing]\npolicy = \"nonsense\"\n",
        "[routing]\npolicies = \"random\"\n",
        "[[workers]]\nurl = \"ftp://nowhere\"\n",
        "[[workers]]\nurl = \"http://127.0.0.1:9\"\ncolour = \"blue\"\n",
        "[security]\napi_key = \"${NO_SUCH_VARIABLE}\"\n",
        "[fleet]\nmodel_alias = [\"a=b\", \"a=c\"]\n",
        "\0\0\0",
    ] {
        filed.change(bad, "refused").await;
        assert_eq!(filed.route().await, "random chance", "{bad}");
        assert_eq!(filed.gateway.worker(engine.url()).await["status"], "ready", "{bad}");
    }
    let log = filed.gateway.log();
    assert!(log.contains("routing.policies") && log.contains("did you mean routing.policy"), "{log}");
    assert_eq!(filed.reloads("applied").await, 0.0);
    filed.change(&good.replace("random", "round_robin"), "applied").await;
    assert_eq!(filed.route().await, "round_robin turn");
    fs::remove_file(&filed.path).unwrap();
    settled("the missing file to be noticed", async || filed.reloads("refused").await >= 9.0).await;
    assert_eq!(filed.route().await, "round_robin turn");
}

#[tokio::test]
async fn what_needs_a_restart_is_said() {
    let filed = Filed::start("", "20ms").await;
    filed.change("[listener]\nidle_timeout = \"5s\"\n[retries]\ndisable_retries = true\n", "applied").await;
    settled("the log", async || filed.gateway.log().contains("takes effect at a restart")).await;
    let log = filed.gateway.log();
    let line = log.lines().find(|line| line.contains("takes effect at a restart")).unwrap();
    assert!(line.contains("listener.idle_timeout") && line.contains("5s"), "{line}");
    let line = log.lines().find(|line| line.contains("setting changed")).unwrap();
    assert!(line.contains("retries.disable_retries"), "{line}");
}

#[tokio::test]
async fn a_signal_reloads_where_the_file_is_not_watched() {
    let filed = Filed::start("", "0").await;
    let engine = engine(Config::default()).await;
    filed.write(&workers(&[&engine]));
    assert_eq!(filed.gateway.admin("GET", "/workers", &Value::Null).await.value()["total"], 0);
    filed.gateway.signal("HUP");
    filed.gateway.worker_is(engine.url(), "ready").await;
    assert_eq!(filed.reloads("applied").await, 1.0);
}
