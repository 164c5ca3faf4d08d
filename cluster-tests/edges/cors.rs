//! Web pages: only those of listed origins are told that they may call.

use super::chat;
use crate::harness::{Answer, Ask, Cluster};

const PAGE: &str = "https://app.test";

fn preflight(origin: &str) -> Ask {
    Ask::new("OPTIONS", "/v1/chat/completions", "")
        .field("origin", origin)
        .field("access-control-request-method", "POST")
        .field("access-control-request-headers", "authorization,content-type")
}

fn allowed(answer: &Answer) -> Option<&str> {
    answer.field("access-control-allow-origin")
}

#[tokio::test]
async fn no_page_may_call_unless_its_origin_is_listed() {
    let silent = Cluster::start(1, &[]).await;
    let answer = silent.gateway.ask(&preflight(PAGE)).await;
    assert_eq!((answer.status, allowed(&answer)), (405, None), "{answer:?}");
    let answer = silent.gateway.ask(&chat().field("origin", PAGE)).await;
    assert_eq!((answer.status, allowed(&answer)), (200, None), "{answer:?}");

    let listed =
        Cluster::start(1, &["--cors-allowed-origins", PAGE, "https://other.test:8443", "--api-key", "sk"]).await;
    for (origin, expected) in [
        (PAGE, Some(PAGE)),
        ("https://other.test:8443", Some("https://other.test:8443")),
        ("https://other.test", None),
        ("http://app.test", None),
        ("https://app.test.evil.test", None),
        ("https://evil-app.test", None),
        ("null", None),
    ] {
        let answer = listed.gateway.ask(&preflight(origin)).await;
        assert_eq!((answer.status, allowed(&answer)), (200, expected), "{origin}: {answer:?}");
        assert_eq!(answer.field("access-control-allow-credentials"), None);
        assert!(answer.field("vary").is_some_and(|vary| vary.contains("origin")), "{answer:?}");
        let answer = listed.gateway.ask(&chat().field("origin", origin).field("x-api-key", "sk")).await;
        assert_eq!((answer.status, allowed(&answer)), (200, expected), "{origin}: {answer:?}");
        // A refusal is readable for the page too, or it could not tell a wrong key from a network problem.
        let answer = listed.gateway.ask(&chat().field("origin", origin)).await;
        assert_eq!((answer.status, allowed(&answer)), (401, expected), "{origin}: {answer:?}");
    }
    let answer = listed.gateway.ask(&preflight(PAGE)).await;
    assert!(answer.field("access-control-allow-methods").is_some_and(|methods| methods.contains("POST")));
    let headers = answer.field("access-control-allow-headers").unwrap().to_ascii_lowercase();
    assert!(headers.contains("authorization") && headers.contains("content-type") && headers.contains("x-api-key"));
}

#[tokio::test]
async fn every_page_may_call_where_the_operator_says_so() {
    let cluster = Cluster::start(1, &["--cors-allowed-origins", "*"]).await;
    let answer = cluster.gateway.ask(&chat().field("origin", PAGE)).await;
    assert_eq!((answer.status, allowed(&answer)), (200, Some("*")));
    assert_eq!(answer.field("access-control-allow-credentials"), None);
}
