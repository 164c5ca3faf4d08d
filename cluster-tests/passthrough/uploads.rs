//! Audio: forms that are sent on while they arrive.

use smg_mock_worker::{Config, Dialect};

use crate::harness::{Ask, Cluster, ask, serving};

/// An upload with fields before the file, of so many bytes of audio.
fn upload(fields: &[(&str, &str)], bytes: usize) -> Ask {
    let part = |name: &str| format!("--edge\r\nContent-Disposition: form-data; name=\"{name}\"");
    let mut body = Vec::new();
    for (name, value) in fields {
        body.extend_from_slice(format!("{}\r\n\r\n{value}\r\n", part(name)).as_bytes());
    }
    body.extend_from_slice(
        format!("{}; filename=\"a.wav\"\r\ncontent-type: audio/wav\r\n\r\n", part("file")).as_bytes(),
    );
    body.extend((0..bytes).map(|place| (place * 31 % 251) as u8));
    body.extend_from_slice(b"\r\n--edge--\r\n");
    Ask::new("POST", "/v1/audio/transcriptions", body).field("content-type", "multipart/form-data; boundary=edge")
}

#[tokio::test]
async fn uploads_are_answered_as_they_are_directly() {
    let cases: &[&[(&str, &str)]] = &[
        &[("model", "demo")],
        &[("model", "demo"), ("response_format", "text")],
        &[("response_format", "verbose_json"), ("model", "demo")],
        &[("model", "demo"), ("stream", "true")],
    ];
    for dialect in [Dialect::Vllm, Dialect::Openai] {
        let cluster = Cluster::of(vec![Config { dialect, ..Config::default() }], &[]).await;
        for fields in cases {
            for bytes in [1_000, 400_000] {
                let request = upload(fields, bytes);
                let through = cluster.gateway.ask(&request).await;
                let direct = ask(cluster.engines[0].address(), &request).await;
                assert_eq!((through.status, through.is_whole), (200, true), "{fields:?}: {}", through.text());
                assert_eq!(through.field("content-type"), direct.field("content-type"));
                if through.field("content-type").is_some_and(|value| value.starts_with("text/event-stream")) {
                    assert_eq!(through.events().len(), direct.events().len(), "{dialect:?}: {}", through.text());
                } else {
                    assert_eq!(through.text(), direct.text());
                }
                assert_eq!(
                    cluster.engines[0].ledger().select(serving).pop().unwrap().request_bytes,
                    request.body.len() as u64
                );
            }
        }
        cluster.idle().await;
        assert_eq!(cluster.gateway.metric("smg_router_stream_failures_total", &[]).await, 0.0);
    }
}

#[tokio::test]
async fn an_upload_survives_an_engine_that_is_not_there() {
    let mut cluster = Cluster::start(2, &[]).await;
    cluster.engines.remove(0).stop().await;
    for bytes in [1_000, 400_000] {
        for _ in 0..2 {
            let answer = cluster.gateway.ask(&upload(&[("model", "demo")], bytes)).await;
            assert_eq!(answer.status, 200, "{bytes}: {}", answer.text());
        }
    }
}

#[tokio::test]
async fn an_upload_that_breaks_off_is_not_taken_for_the_whole() {
    let cluster = Cluster::start(1, &[]).await;
    let request = upload(&[("model", "demo")], 400_000).bytes();
    for sent in [2_000, request.len() - 1] {
        let mut connection = cluster.gateway.connect().await;
        connection.write(&request[..sent]).await;
        connection.close();
    }
    cluster.idle().await;
    for entry in cluster.entries() {
        assert_ne!(entry.status, Some(200), "{entry:?}");
    }
}
