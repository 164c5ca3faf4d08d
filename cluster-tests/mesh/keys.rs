//! Keys that an operator makes at one node, at all of them.

use serde_json::{Value, json};

use crate::harness::{Ask, Lab, Node, Stream, formed, launched, on, took};

const CHAT: &str = "/v1/chat/completions";
const EMBEDDINGS: &str = "/v1/embeddings";

/// What a caller with this key is answered at an endpoint.
async fn status(node: &Node, path: &str, key: &str) -> u16 {
    node.ask(&on(path, "demo", Stream::No).field("x-api-key", key)).await.status
}

/// Waits until each node answers this at chat and embeddings.
async fn everywhere(nodes: &[Node], key: &str, expected: [u16; 2]) {
    for node in nodes {
        let what = format!("{} to answer {expected:?}", node.name);
        took(&what, async || [status(node, CHAT, key).await, status(node, EMBEDDINGS, key).await] == expected).await;
    }
}

/// A key's scopes hold at every node, whichever made it and whichever changed it, and over a restart; so does its end.
#[tokio::test]
async fn scopes_hold_at_every_node() {
    let Some(lab) = Lab::open(506) else { return };
    let engine = lab.engine("e");
    let mut nodes = lab.nodes(3);
    for node in &mut nodes {
        node.tell(&["--worker-urls", &engine.url]);
    }
    launched(&mut nodes).await;
    for node in &nodes {
        node.worker_is(&engine.url, "ready").await;
    }
    let made = nodes[0].admin("POST", "/keys", &json!({ "name": "a", "scopes": ["chat"] })).await;
    assert_eq!((made.status, &made.value()["scopes"]), (201, &json!(["chat"])), "{}", made.text());
    let (key, id) = (made.value()["key"].as_str().unwrap().to_owned(), made.value()["id"].as_str().unwrap().to_owned());
    everywhere(&nodes, &key, [200, 403]).await;

    let changed = nodes[1].admin("PATCH", &format!("/keys/{id}"), &json!({ "scopes": ["embeddings"] })).await;
    assert_eq!(changed.status, 200, "{}", changed.text());
    everywhere(&nodes, &key, [403, 200]).await;
    for node in &mut nodes {
        node.stop().await;
    }
    launched(&mut nodes).await;
    everywhere(&nodes, &key, [403, 200]).await;

    nodes[2].kill().await;
    let revoked = nodes[0].admin("DELETE", &format!("/keys/{id}"), &Value::Null).await;
    assert_eq!(revoked.status, 200, "{}", revoked.text());
    everywhere(&nodes[..2], &key, [401, 401]).await;
    nodes[2].start().await;
    formed(&nodes.iter().collect::<Vec<_>>()).await;
    everywhere(&nodes, &key, [401, 401]).await;
    let models = nodes[2].ask(&Ask::get("/v1/models").field("x-api-key", &key)).await;
    assert_eq!(models.status, 401, "{}", models.text());
}
