//! Limits on one node: who is refused and what they are told, what is charged and given back, what is counted.

use serde_json::{Value, json};
use smg_mock_worker::Config;

use super::{Files, as_tenant, of};
use crate::harness::{Answer, Ask, Cluster, Gateway, Stream, engine, settled, wait_for};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";

const OPERATOR: &str = "operator-key-for-tests";

async fn start(files: &Files, more: &[&str]) -> Cluster {
    let flags = files.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).chain(["--admin-api-key", OPERATOR]).collect();
    Cluster::start(1, &[&flags[..], more].concat()).await
}

/// How the first of a tenant's limits stands that counts `dimension`.
async fn left(gateway: &Gateway, tenant: &str, dimension: &str) -> f64 {
    let answer = gateway.ask(&as_tenant(tenant, Ask::get("/v1/limits?model=demo"))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let standing = answer.value()["standing"].as_array().unwrap().clone();
    let one = standing.into_iter().find(|one| one["dimension"] == dimension);
    one.unwrap_or_else(|| panic!("no limit of {dimension}"))["remaining"].as_f64().unwrap()
}

fn number(answer: &Answer, field: &str) -> u64 {
    let value = answer.field(field).unwrap_or_else(|| panic!("no {field}"));
    value.parse().unwrap_or_else(|_| panic!("{field}: {value}"))
}

#[tokio::test]
async fn who_has_used_up_a_limit_is_told_so_in_its_own_api() {
    let files = Files::new("[[limits]]\nname = \"hourly\"\nscope = \"tenant\"\nrequests = 3\nper = \"hour\"\n");
    let cluster = start(&files, &[]).await;
    let gateway = &cluster.gateway;
    for (round, path) in [CHAT, MESSAGES, CHAT].into_iter().enumerate() {
        let answer = gateway.ask(&of("acme", path, Stream::No)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let field =
            if path == MESSAGES { "anthropic-ratelimit-requests-remaining" } else { "x-ratelimit-remaining-requests" };
        assert_eq!(number(&answer, field), 2 - round as u64);
    }
    for (path, stream) in
        [(CHAT, Stream::No), (CHAT, Stream::Yes), (MESSAGES, Stream::Yes), ("/v1/embeddings", Stream::No)]
    {
        let answer = gateway.ask(&of("acme", path, stream)).await;
        assert_eq!((answer.status, answer.field("x-smg-error-code")), (429, Some("rate_limit_exceeded")), "{path}");
        let body = answer.value();
        if path == MESSAGES {
            assert_eq!(
                (&body["type"], &body["error"]["type"]),
                (&json!("error"), &json!("rate_limit_error")),
                "{body}"
            );
            assert!(answer.field("anthropic-ratelimit-requests-reset").unwrap().ends_with('Z'));
        } else {
            assert_eq!(body["error"]["code"], "rate_limit_exceeded", "{body}");
            assert_eq!(number(&answer, "x-ratelimit-limit-requests"), 3);
            assert_eq!(number(&answer, "x-ratelimit-remaining-requests"), 0);
        }
        let wait = number(&answer, "retry-after");
        assert!((3_400..=3_720).contains(&wait), "{wait} s until the first request no longer counts");
        assert!(number(&answer, "retry-after-ms").div_ceil(1_000) == wait);
    }
    // Others are not held back, and nothing refused has reached an engine.
    assert_eq!(gateway.ask(&of("zeta", CHAT, Stream::No)).await.status, 200);
    assert_eq!(cluster.entries().len(), 4);
    gateway.metric_is("smg_limit_decisions_total", &[("result", "refused"), ("dimension", "requests")], 4.0).await;
}

#[tokio::test]
async fn what_was_not_used_is_given_back_however_a_request_ends() {
    let files = Files::new(
        "[[limits]]\nname = \"t\"\nscope = \"tenant\"\ntokens = 100000\nrequests = 1000\nconcurrency = 5\nper = \"hour\"\n",
    );
    let cluster = start(&files, &[]).await;
    let gateway = &cluster.gateway;
    let used = async || 100_000.0 - left(gateway, "acme", "tokens").await;
    let paths = [
        (CHAT, Stream::No),
        (CHAT, Stream::Yes),
        (MESSAGES, Stream::No),
        (MESSAGES, Stream::Yes),
        ("/v1/completions", Stream::Yes),
        ("/v1/responses", Stream::No),
        ("/v1/responses", Stream::Yes),
        ("/v1/embeddings", Stream::No),
        ("/generate", Stream::No),
        ("/v1/rerank", Stream::No),
    ];
    let mut expected = 0.0;
    for (path, stream) in paths {
        let before = used().await;
        let answer = gateway.ask(&of("acme", path, stream)).await;
        // Not every engine has every endpoint.
        if answer.status != 200 {
            assert_eq!(used().await, before, "{path}: {}", answer.text());
            continue;
        }
        cluster.idle().await;
        let spent = used().await - before;
        assert!((1.0..100.0).contains(&spent), "{path} {stream:?}: {spent} tokens, not what was reserved");
        expected += 1.0;
    }
    assert!(expected >= 7.0, "{expected}");
    // A caller that goes away pays for what it has got.
    let before = used().await;
    let mut cut = gateway.begin(&of("acme", CHAT, Stream::Yes).fault("stall@event:3")).await;
    cut.head().await;
    assert!(used().await - before > 1_000.0, "while it runs, what it may use is taken");
    cut.close();
    cluster.idle().await;
    let spent = used().await - before;
    assert!((1.0..100.0).contains(&spent), "{spent}");
    // One whose model nobody serves, and one that an engine refuses, pay for no tokens.
    let before = used().await;
    let unknown = as_tenant("acme", crate::harness::on(CHAT, "nobody-has-it", Stream::No));
    assert_eq!(gateway.ask(&unknown).await.status, 404);
    assert_eq!(gateway.ask(&of("acme", CHAT, Stream::No).fault("status=400")).await.status, 400);
    cluster.idle().await;
    assert_eq!(used().await, before);
    assert_eq!(left(gateway, "acme", "concurrency").await, 5.0);
    assert_eq!(left(gateway, "zeta", "tokens").await, 100_000.0);
}

#[tokio::test]
async fn more_at_one_time_than_allowed_have_to_come_again() {
    let files = Files::new("[[limits]]\nname = \"at once\"\nscope = \"key\"\nconcurrency = 1\n");
    let cluster = start(&files, &[]).await;
    let mut first = cluster.gateway.begin(&of("acme", CHAT, Stream::Yes).fault("stall@event:3")).await;
    first.head().await;
    let answer = cluster.gateway.ask(&of("acme", CHAT, Stream::No)).await;
    assert_eq!((answer.status, number(&answer, "retry-after")), (429, 1), "{}", answer.text());
    assert_eq!(cluster.gateway.ask(&of("zeta", CHAT, Stream::No)).await.status, 200);
    first.close();
    wait_for("the place to be free", async || {
        (cluster.gateway.ask(&of("acme", CHAT, Stream::No)).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_request_beyond_the_whole_limit_is_not_worth_trying_again() {
    let files = Files::new("[[limits]]\nname = \"small\"\nscope = \"tenant\"\noutput_tokens = 100\nper = \"minute\"\n");
    let cluster = start(&files, &["--output-tokens-reserved", "10"]).await;
    let body = json!({"model": "demo", "max_tokens": 101, "messages": [{"role": "user", "content": "Hello"}]});
    let answer = cluster.gateway.ask(&as_tenant("acme", Ask::json(CHAT, &body))).await;
    assert_eq!((answer.status, answer.field("x-should-retry")), (429, Some("false")), "{}", answer.text());
    assert_eq!(answer.field("retry-after"), None);
    assert_eq!(cluster.gateway.ask(&of("acme", CHAT, Stream::No)).await.status, 200);
}

#[tokio::test]
async fn money_is_counted_by_price_and_spent_only_once() {
    let limits = "[[limits]]\nname = \"budget\"\nscope = \"tenant\"\nonly = \"acme\"\nmoney = 0.01\nper = \"day\"\n\
                  [prices.\"demo*\"]\ninput = 10.0\ncached_input = 1.0\noutput = 100.0\n";
    let files = Files::new(limits);
    let data = files.path("data");
    let flags = ["--data-dir", &data, "--output-tokens-reserved", "20", "--node-name", "one"];
    let cluster = start(&files, &flags).await;
    let mut served = 0_u64;
    let refused = loop {
        let answer = cluster.gateway.ask(&of("acme", CHAT, Stream::No)).await;
        if answer.status != 200 {
            break answer;
        }
        served += 1;
        assert!(served < 100, "nothing is refused");
    };
    assert_eq!((refused.status, refused.field("x-smg-error-code")), (429, Some("insufficient_quota")));
    assert_eq!(refused.value()["error"]["code"], "insufficient_quota");
    assert!(number(&refused, "retry-after") > 3_600);
    assert_eq!(cluster.gateway.ask(&of("zeta", CHAT, Stream::No)).await.status, 200);
    let usage = cluster.gateway.admin("GET", "/usage?by=tenant,key,model", &Value::Null).await.value();
    let row = |usage: &Value, tenant: &str| {
        let rows = usage["rows"].as_array().unwrap().clone();
        rows.into_iter().find(|row| row["tenant"] == tenant).unwrap_or_else(|| panic!("{usage}"))
    };
    let acme = row(&usage, "acme");
    assert_eq!(
        (&acme["key"], &acme["model"], acme["requests"].as_u64()),
        (&json!("acme-1"), &json!("demo"), Some(served))
    );
    let count = |row: &Value, name: &str| row[name].as_u64().unwrap();
    let [input, cached, output] = ["input_tokens", "cached_tokens", "output_tokens"].map(|name| count(&acme, name));
    let money = count(&acme, "money_millionths");
    let exact = (input - cached) * 10 + cached + output * 100;
    assert!((exact..=exact + served).contains(&money) && money <= 10_000, "{acme}: {exact}");
    // A tenant sees what is its own.
    let own = cluster.gateway.ask(&as_tenant("zeta", Ask::get("/v1/usage?tenant=acme"))).await.value();
    assert_eq!((own["rows"].as_array().unwrap().len(), own["rows"][0]["tenant"].as_str()), (1, Some("zeta")), "{own}");
    assert_eq!(cluster.gateway.ask(&as_tenant("zeta", Ask::get("/usage"))).await.status, 403);

    // After a restart all of that is still known.
    let Cluster { mut gateway, engines } = cluster;
    gateway.signal("TERM");
    assert!(gateway.ended().await.success());
    let more = files.flags();
    let all: Vec<&str> = more.iter().map(String::as_str).chain(["--admin-api-key", OPERATOR]).chain(flags).collect();
    let again = Gateway::start(&all, &[engines[0].url()]).await;
    let after = again.admin("GET", "/usage?by=tenant,key,model", &Value::Null).await.value();
    assert_eq!(row(&after, "acme"), acme);
}

#[tokio::test]
async fn limits_are_read_again_when_the_file_changes() {
    let files = Files::new("");
    let cluster = start(&files, &["--config-watch-interval", "50ms"]).await;
    assert_eq!(cluster.gateway.ask(&of("acme", CHAT, Stream::No)).await.status, 200);
    files.limit("[[limits]]\nname = \"none\"\nscope = \"tenant\"\nrequests = 0\nper = \"hour\"\n");
    settled("the new limit to hold", async || cluster.gateway.ask(&of("acme", CHAT, Stream::No)).await.status == 429)
        .await;
    // A file that makes no sense changes nothing.
    files.limit("[[limits]]\nname = \"none\"\n");
    cluster.gateway.metric_is("smg_config_reloads_total", &[("result", "refused")], 1.0).await;
    assert_eq!(cluster.gateway.ask(&of("acme", CHAT, Stream::No)).await.status, 429);
    let rules = cluster.gateway.admin("GET", "/limits", &Value::Null).await.value();
    assert_eq!((rules["rules"].as_array().unwrap().len(), &rules["rules"][0]["name"]), (1, &json!("none")));
}

#[tokio::test]
async fn without_limits_nobody_is_told_of_any() {
    let engine = engine(Config::default()).await;
    let gateway = Gateway::start(&[], &[engine.url()]).await;
    let answer = gateway.ask(&crate::harness::on(CHAT, "demo", Stream::No)).await;
    assert_eq!(answer.status, 200);
    let told =
        ["x-ratelimit-limit-requests", "x-ratelimit-limit-tokens"].iter().any(|name| answer.field(name).is_some());
    assert!(!told);
    let usage = gateway.admin("GET", "/usage", &Value::Null).await.value();
    assert_eq!((&usage["rows"][0]["tenant"], &usage["total"]["requests"]), (&json!("anonymous"), &json!(1)), "{usage}");
}
