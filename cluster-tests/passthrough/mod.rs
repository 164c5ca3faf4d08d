//! Bytes that must come through unchanged.

use crate::harness::{Cluster, Stream, on};

#[tokio::test]
async fn a_request_comes_through() {
    let cluster = Cluster::start(2, &[]).await;
    let answer = cluster.gateway.ask(&on("/v1/chat/completions", "demo", Stream::Yes)).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.events().last().unwrap().data, "[DONE]");
    assert_eq!(cluster.entries().len(), 1);
    cluster.idle().await;
}
