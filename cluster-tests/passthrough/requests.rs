//! What engines receive.

use std::net::SocketAddr;

use super::JSON_ENDPOINTS;
use crate::harness::{Ask, Gateway, RawEngine, ask};

/// Bodies that say what the endpoints need, written as no serialiser would write them.
const BODIES: &[&str] = &[
    // Odd spacing and order, fields that nobody knows, a field after the one that matters.
    "\n\t{ \"zz\" :[ 1 ,2.50,  -0, 1E+2, 1e-7, {\"a\" : null}] ,\r\n  \"model\"  :\"demo\" ,\"messages\":[ {\"content\" : \"Hi\" , \
     \"role\":\"user\"}],\"input\":\"Hi\",\"prompt\":\"Hi\",\"text\":\"Hi\",\"query\":\"Hi\",\"documents\":[\"a\"],\"text_1\":\"a\",\
     \"text_2\":\"b\",\"tokens\":[1,2] } \n\n",
    // Escapes of every kind in names and values, an escaped name of a field that is read, characters beyond the BMP.
    r#"{"mo\u0064el":"d\u0065mo","messages":[{"role":"user","content":"\u00e9\/\ud83d\ude00😀\u0000\t\"\\"}],"input":"\u00e9","prompt":"é","text":"é","query":"é","documents":["é"],"text_1":"é","text_2":"é","tokens":[0],"\u0000":"","unknown":{"model":"other","stream":true}}"#,
    // Numbers beyond what doubles hold, and repeated fields that are not read.
    r#"{"model":"demo","messages":[],"input":[],"prompt":"","text":"","query":"","documents":[],"text_1":"","text_2":"","tokens":[],"seed":123456789012345678901234567890,"x":0.1000000000000000055511151231257827,"x":2,"stop":null}"#,
];

async fn check(gateway: SocketAddr, engine: &RawEngine, path: &str, body: &[u8], field: (&str, &str)) {
    let request = Ask::new("POST", path, body).field("Content-Type", field.1).field(field.0, "kept");
    let answer = ask(gateway, &request).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    let seen = engine.taken().await;
    assert_eq!(seen.len(), 1, "{path}");
    let differs = seen[0].body != body;
    assert!(
        !differs,
        "{path} sent {:?}\n got {:?}",
        String::from_utf8_lossy(body),
        String::from_utf8_lossy(&seen[0].body)
    );
    // A form is sent on while it arrives, so its length may be told by its end.
    let length = seen[0].field("content-length").map(|length| length.parse().unwrap());
    assert_eq!(length.unwrap_or(body.len()), body.len(), "{path}");
    assert_eq!(seen[0].field("content-type"), Some(field.1), "{path}");
    assert_eq!(seen[0].field(field.0), Some("kept"), "{path}");
}

#[tokio::test]
async fn json_reaches_the_engine_byte_for_byte() {
    let engine = RawEngine::start().await;
    for policy in ["round_robin", "cache_aware"] {
        let gateway = Gateway::start(&["--policy", policy], &[&engine.url()]).await;
        for path in JSON_ENDPOINTS {
            for body in BODIES {
                let field = ("x-custom", "application/json; charset=utf-8");
                check(gateway.address(), &engine, path, body.as_bytes(), field).await;
            }
        }
    }
}

#[tokio::test]
async fn large_bodies_reach_the_engine_byte_for_byte() {
    let engine = RawEngine::start().await;
    let gateway = Gateway::start(&["--policy", "cache_aware"], &[&engine.url()]).await;
    for kilobytes in [1, 64, 3_000] {
        let text = "0123456789é\\u00e9\\n ".repeat(kilobytes * 1024 / 20);
        let body = format!(r#"{{"messages":[{{"role":"user","content":"{text}"}}],"model":"demo"}}"#);
        check(gateway.address(), &engine, "/v1/chat/completions", body.as_bytes(), ("x-a", "application/json")).await;
    }
}

#[tokio::test]
async fn a_body_that_comes_in_chunks_arrives_whole() {
    let engine = RawEngine::start().await;
    let gateway = Gateway::start(&[], &[&engine.url()]).await;
    let body = BODIES[1].as_bytes();
    let mut connection = gateway.connect().await;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
                transfer-encoding: chunked\r\n\r\n";
    connection.write(head.as_bytes()).await;
    for part in body.chunks(7) {
        connection.write(&[format!("{:X};x=y\r\n", part.len()).as_bytes(), part, b"\r\n"].concat()).await;
    }
    connection.write(b"0\r\nx-trailer: 1\r\n\r\n").await;
    assert_eq!(connection.answer().await.status, 200);
    assert_eq!(engine.taken().await[0].body, body);
}

#[tokio::test]
async fn a_form_is_passed_on_byte_for_byte() {
    let engine = RawEngine::start().await;
    let gateway = Gateway::start(&[], &[&engine.url()]).await;
    // One is small enough to be kept for another try, one is sent on while it arrives.
    for bytes in [300_000, 6_000_000] {
        check_form(&gateway, &engine, bytes).await;
    }
}

async fn check_form(gateway: &Gateway, engine: &RawEngine, bytes: u32) {
    let audio: Vec<u8> = (0..bytes).map(|place| (place.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for model_comes_first in ["yes", "no"] {
        let model = b"--b0und\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\ndemo\r\n".to_vec();
        let file = [
            b"--b0und\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav\r\n\r\n",
            audio.as_slice(),
            b"\r\n",
        ]
        .concat();
        let parts = if model_comes_first == "yes" { [model, file] } else { [file, model] };
        let body = [parts.concat().as_slice(), b"--b0und--\r\n"].concat();
        let field = ("x-a", "multipart/form-data; boundary=b0und");
        check(gateway.address(), engine, "/v1/audio/transcriptions", &body, field).await;
    }
}

#[tokio::test]
async fn an_alias_rewrites_the_model_and_nothing_else() {
    let engine = RawEngine::start().await;
    let gateway = Gateway::start(&["--model-alias", "nick=demo"], &[&engine.url()]).await;
    let cases = [
        (
            r#"{"model":"nick","messages":[{"role":"user","content":"\"model\":\"nick\" nick"}],"x":{"model":"nick"}}"#,
            r#""nick""#,
        ),
        (r#"{"x":{"model":"nick"}, "messages":[] ,"model" : "\u006eic\u006B" , "user":"nick"}"#, r#""\u006eic\u006B""#),
    ];
    for (body, place) in cases {
        for path in JSON_ENDPOINTS.iter().filter(|path| path.contains("chat") || path.contains("messages")) {
            let answer = gateway.ask(&Ask::post(path, body)).await;
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
            let at = body.rfind(&format!("\"model\":{place}")).map(|at| at + 8).filter(|at| *at < 12);
            let at = at.or_else(|| body.find(place)).unwrap();
            let expected = format!("{}\"demo\"{}", &body[..at], &body[at + place.len()..]);
            let seen = engine.taken().await;
            assert_eq!(String::from_utf8_lossy(&seen[0].body), expected, "{path}");
        }
    }
}
