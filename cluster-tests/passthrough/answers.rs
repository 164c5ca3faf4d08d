//! What callers receive.

use http_body_util::BodyExt;

use super::JSON_ENDPOINTS;
use crate::harness::{Ask, Cluster, Gateway, Http2, RawAnswer, RawEngine, Stream, ask, on};

const ODD_JSON: &str = "\n{ \"id\" : \"x\",\r\n\"zz\":[1.50 , 1E+2, NaN],\"usage\":{\"prompt_tokens\" :1,\"completion_tokens\":2},\
                        \"t\":\"\\u00e9\\/é😀\" }\n ";

const CHAT: &str = ": a comment\r\n\r\ndata: {\"id\":\"x\", \"choices\":[ {\"delta\":{\"content\":\"\\u00e9é\"}}]}\r\n\r\n\
                    id: 7\nretry: 10\nevent: custom\ndata:{\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
                    data: {\"unknown\":\n data: 1}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}\n\n\
                    data: [DONE]\n\n";
const MESSAGES: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":1}}}\n\n\
                        event: ping\ndata: {\"type\": \"ping\"}\n\nevent: new_thing\ndata: {\"type\":\"new_thing\",\"é\":[]}\n\n\
                        event: content_block_delta\r\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"😀\"}}\r\n\r\n\
                        event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"}}\n\n\
                        event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
const RESPONSES: &str = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\"},\"sequence_number\":0}\n\n\
                         event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"\\u00e9\",\"sequence_number\":1}\n\n\
                         event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"resp_1\"},\"sequence_number\":2}\n\n";
const GENERATE: &str = "data: {\"text\":\"a\",\"meta_info\":{\"finish_reason\":null}}\n\n\
                        data: {\"text\":\"ab\",\"meta_info\":{\"finish_reason\":{\"type\":\"stop\"}}}\n\ndata: [DONE]\n\n";

#[tokio::test]
async fn whole_answers_come_back_byte_for_byte() {
    let engine = RawEngine::start().await;
    let gateway = Gateway::start(&[], &[&engine.url()]).await;
    let large = format!("{{\"a\":\"{}\"}}", "é\\u00e9".repeat(200_000));
    for path in JSON_ENDPOINTS {
        for body in [ODD_JSON, &large, "[]", "{}"] {
            for chunk in
                [None, Some(13), Some(100_000)].into_iter().filter(|chunk| body.len() < 1_000 || *chunk != Some(13))
            {
                engine
                    .next(match chunk {
                        None => RawAnswer::whole("application/json; charset=utf-8", body.as_bytes()),
                        Some(size) => RawAnswer::chunked("application/json", body.as_bytes(), size),
                    })
                    .await;
                let answer = gateway.ask(&on(path, "demo", Stream::No)).await;
                assert_eq!((answer.status, answer.is_whole), (200, true), "{path}");
                assert!(answer.body == body.as_bytes(), "{path}: {:?}", &answer.text()[..100.min(answer.body.len())]);
            }
        }
    }
}

#[tokio::test]
async fn statuses_and_fields_come_back() {
    let engine = RawEngine::start().await;
    let gateway = Gateway::start(&[], &[&engine.url()]).await;
    for status in [201, 202, 400, 401, 403, 404, 409, 422] {
        let body = b"{\"detail\" : [ {\"odd\":1} ]}";
        let head = format!(
            "HTTP/1.1 {status} Odd\r\nContent-Type: application/json\r\nOpenAI-Version: 1\r\nX-RateLimit-Remaining-Requests: 3\r\n\
             x-multi: a\r\nx-multi: b\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        engine.next(RawAnswer(vec![[head.as_bytes(), body].concat()])).await;
        let answer = gateway.ask(&on("/v1/chat/completions", "demo", Stream::No)).await;
        assert_eq!((answer.status, answer.body.as_slice()), (status, body.as_slice()));
        assert_eq!(answer.field("openai-version"), Some("1"));
        assert_eq!(answer.field("x-ratelimit-remaining-requests"), Some("3"));
        assert_eq!(answer.head.fields.iter().filter(|(name, _)| name == "x-multi").count(), 2);
    }
    assert_eq!(engine.taken().await.len(), 8, "none is tried again");
}

#[tokio::test]
async fn streams_come_back_byte_for_byte() {
    let engine = RawEngine::start().await;
    let gateway = Gateway::start(&[], &[&engine.url()]).await;
    let streams = [
        ("/v1/chat/completions", CHAT.replace("\n data: 1}", "\ndata: 1}")),
        ("/v1/completions", CHAT.replace("\n data: 1}", "1}").replace("\"delta\":{\"content\":", "\"text\":{\"x\":")),
        ("/v1/messages", MESSAGES.to_owned()),
        ("/v1/responses", RESPONSES.to_owned()),
        ("/generate", GENERATE.to_owned()),
    ];
    for (path, text) in &streams {
        for size in [1, 7, 64, 100_000] {
            engine.next(RawAnswer::chunked("text/event-stream; charset=utf-8", text.as_bytes(), size)).await;
            let answer = gateway.ask(&on(path, "demo", Stream::Yes)).await;
            assert_eq!((answer.status, answer.is_whole), (200, true), "{path}");
            assert_eq!(answer.text(), *text, "{path} in pieces of {size}");
            assert_eq!(answer.field("content-type"), Some("text/event-stream; charset=utf-8"));
        }
    }
}

#[tokio::test]
async fn an_event_is_passed_on_when_it_comes_and_not_with_the_next() {
    let engine = RawEngine::start().await;
    let gateway = Gateway::start(&[], &[&engine.url()]).await;
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let event = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    // The engine keeps the connection and sends nothing more.
    engine.next(RawAnswer(vec![head.into(), format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()])).await;
    let mut connection = gateway.begin(&on("/v1/chat/completions", "demo", Stream::Yes)).await;
    assert_eq!(connection.head().await.status, 200);
    assert_eq!(connection.read_until("\n\n").await, event);
    connection.close();
}

#[tokio::test]
async fn what_is_not_json_is_passed_on_for_transcriptions() {
    let engine = RawEngine::start().await;
    let gateway = Gateway::start(&[], &[&engine.url()]).await;
    let body = "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\ndemo\r\n--b--\r\n";
    let request =
        Ask::new("POST", "/v1/audio/transcriptions", body).field("content-type", "multipart/form-data; boundary=b");
    let subtitles = "WEBVTT\r\n\r\n00:00.000 --> 00:01.000\né\r\n";
    engine.next(RawAnswer::whole("text/vtt", subtitles.as_bytes())).await;
    let answer = gateway.ask(&request).await;
    assert_eq!((answer.text().as_str(), answer.field("content-type")), (subtitles, Some("text/vtt")));
}

#[tokio::test]
async fn usage_asked_for_on_the_callers_behalf_does_not_reach_the_caller() {
    let cluster = Cluster::start(1, &["--count-stream-usage"]).await;
    for path in ["/v1/chat/completions", "/v1/completions"] {
        let request = on(path, "demo", Stream::Yes);
        let through = cluster.gateway.ask(&request).await;
        let sent = cluster.entries().pop().unwrap().body;
        let mut asked: serde_json::Value = serde_json::from_slice(&sent).unwrap();
        assert_eq!(asked["stream_options"]["include_usage"], true, "{path}");
        asked.as_object_mut().unwrap().remove("stream_options");
        assert_eq!(
            asked,
            serde_json::from_slice::<serde_json::Value>(&request.body).unwrap(),
            "{path}: all else stays"
        );
        let direct = ask(cluster.engines[0].address(), &request).await;
        assert_eq!(through.events().len(), direct.events().len(), "{path}: {}", through.text());
        assert!(!through.text().contains("prompt_tokens"), "{path}: {}", through.text());
    }
    let tokens = cluster.gateway.metric("smg_router_tokens_total", &[("token_type", "output")]).await;
    assert!(tokens >= 16.0, "{tokens}");
}

#[tokio::test]
async fn http2_carries_the_same_bytes() {
    let engine = RawEngine::start().await;
    let gateway = Gateway::start(&[], &[&engine.url()]).await;
    let client = Http2::new(&gateway);
    for (path, text) in
        [("/v1/chat/completions", CHAT.replace("\n data: 1}", "\ndata: 1}")), ("/v1/messages", MESSAGES.to_owned())]
    {
        engine.next(RawAnswer::chunked("text/event-stream", text.as_bytes(), 7)).await;
        let request = on(path, "demo", Stream::Yes);
        let answer = client.begin(&request).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), text.as_bytes(), "{path}");
        assert_eq!(engine.taken().await[0].body, request.body, "{path}");
    }
}
