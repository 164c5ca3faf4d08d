//! SIGTERM.

use http_body_util::BodyExt;
use smg_mock_worker::Outcome;

use crate::harness::{Ask, Cluster, Http2, Stream, on, wait_for};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn open_streams_are_finished_and_then_the_process_ends_well() {
    for signal in ["TERM", "INT"] {
        let mut cluster = Cluster::start(1, &[]).await;
        let mut stream = cluster.gateway.begin(&on(CHAT, "demo", Stream::Yes).fault("delay=40ms@event:*")).await;
        let mut plain = cluster.gateway.begin(&on(CHAT, "demo", Stream::No).fault("delay=500ms@head")).await;
        stream.head().await;
        cluster.entry(0, |entry| !entry.stream).await;
        cluster.gateway.signal(signal);
        wait_for("new connections to be refused", async || {
            tokio::net::TcpStream::connect(cluster.gateway.address()).await.err()
        })
        .await;
        assert!(cluster.gateway.runs());
        let answer = plain.answer().await;
        assert_eq!((answer.status, answer.is_whole), (200, true));
        let (body, is_whole) = stream.rest().await;
        assert!(is_whole && body.ends_with(b"data: [DONE]\n\n"), "{signal}");
        assert!(cluster.gateway.ended().await.success(), "{signal}");
        assert!(cluster.entries().iter().all(|entry| entry.outcome == Outcome::Completed));
    }
}

#[tokio::test]
async fn readiness_says_no_while_requests_are_still_taken() {
    let mut cluster = Cluster::start(1, &["--drain-delay=60s"]).await;
    cluster.gateway.signal("TERM");
    let ready = wait_for("readiness to say no", async || {
        let answer = cluster.gateway.ask(&Ask::get("/readyz")).await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert_eq!(ready.value()["reason"], "draining");
    assert_eq!(cluster.gateway.ask(&Ask::get("/livez")).await.status, 200);
    let answer = cluster.gateway.ask(&on(CHAT, "demo", Stream::Yes)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    // A second signal means now.
    cluster.gateway.signal("TERM");
    assert!(cluster.gateway.ended().await.success());
}

#[tokio::test]
async fn streams_without_end_are_cut_off_when_the_grace_is_over() {
    let mut cluster = Cluster::start(1, &["--shutdown-grace-period-secs=1s"]).await;
    let mut stream = cluster.gateway.begin(&on(CHAT, "demo", Stream::Yes).fault("stall@event:3")).await;
    stream.head().await;
    cluster.gateway.signal("TERM");
    let (body, _) = stream.rest().await;
    assert!(!String::from_utf8_lossy(&body).contains("[DONE]"));
    cluster.gateway.ended().await;
    let cut = cluster.entry(0, |entry| entry.finished.is_some()).await;
    assert_eq!(cut.outcome, Outcome::Aborted);
}

#[tokio::test]
async fn idle_connections_do_not_keep_the_process() {
    let mut cluster = Cluster::start(1, &[]).await;
    let idle = cluster.gateway.connect().await;
    let mut used = cluster.gateway.begin(&on(CHAT, "demo", Stream::No)).await;
    assert_eq!(used.answer().await.status, 200);
    cluster.gateway.signal("TERM");
    let started = std::time::Instant::now();
    assert!(cluster.gateway.ended().await.success());
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    drop((idle, used));
}

#[tokio::test]
async fn http2_streams_are_finished_too() {
    let mut cluster = Cluster::start(1, &[]).await;
    let client = Http2::new(&cluster.gateway);
    let open = client.begin(&on(CHAT, "demo", Stream::Yes).fault("delay=30ms@event:*")).await.unwrap();
    cluster.gateway.signal("TERM");
    let body = open.into_body().collect().await.unwrap().to_bytes();
    assert!(body.ends_with(b"data: [DONE]\n\n"), "{body:?}");
    assert!(cluster.gateway.ended().await.success());
}
