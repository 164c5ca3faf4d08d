//! Requests that two servers might read differently: refused, or read in the one way that the engine gets to see.

use std::fmt::Debug;

use crate::harness::{Connection, Gateway, Head, Piece, RawEngine};

/// What must come of a sequence of bytes.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// Refused with this status; the connection ends and the engine sees nothing.
    Refused(u16),
    /// Answered with this status by the gateway itself; the engine sees nothing.
    Own(u16),
    /// One request reaches the engine, with the body; the connection goes on.
    One,
    /// The same, but the connection ends, and with it whatever was sent after the request.
    OneAndClosed,
}
use Fate::{One, OneAndClosed, Own, Refused};

const BODY: &str = r#"{"model":"demo","messages":[]}"#;
const LINE: &str = "POST /v1/chat/completions HTTP/1.1";

fn request(line: &str, fields: &str, body: &str) -> String {
    format!("{line}\r\nhost: a\r\ncontent-type: application/json\r\n{fields}\r\n{body}")
}

/// A request whose length is given by `fields`.
fn plain(fields: &str) -> String {
    request(LINE, fields, BODY)
}

/// A request with a right length and other fields.
fn with(fields: &str) -> String {
    plain(&format!("content-length: {}\r\n{fields}", BODY.len()))
}

/// A request with `fields`, one of which says that it comes in chunks.
fn chunked(fields: &str) -> String {
    request(LINE, fields, &format!("{:x}\r\n{BODY}\r\n0\r\n\r\n", BODY.len()))
}

/// A request in chunks, written as they are.
fn chunks(text: &str) -> String {
    request(LINE, "transfer-encoding: chunked\r\n", text)
}

/// What a front server would have taken for part of the first request's body.
const SMUGGLED: &str = "GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n";

async fn next(connection: &mut Connection) -> Option<(Head, String)> {
    let head = connection.try_head().await?;
    let mut body = Vec::new();
    while let Piece::Data(data) = connection.piece().await {
        body.extend(data);
    }
    Some((head, String::from_utf8_lossy(&body).into_owned()))
}

/// Sends `bytes`, and another request behind them.
async fn check(gateway: &Gateway, engine: &RawEngine, name: &str, bytes: &str, fate: Fate) {
    let what: &dyn Debug = &(name, fate);
    let mut connection = gateway.connect().await;
    connection.write(format!("{bytes}{SMUGGLED}").as_bytes()).await;
    let first = next(&mut connection).await;
    let status = first.as_ref().map(|(head, _)| head.status);
    let seen = engine.taken().await;
    let expected = match fate {
        Refused(status) | Own(status) => {
            assert!(seen.is_empty(), "{what:?}: {seen:?}");
            status
        }
        One | OneAndClosed => {
            assert_eq!(seen.len(), 1, "{what:?}: {first:?}");
            assert_eq!(String::from_utf8_lossy(&seen[0].body), BODY, "{what:?}");
            assert_eq!(seen[0].field("content-length"), Some(BODY.len().to_string().as_str()), "{what:?}");
            assert_eq!(seen[0].field("transfer-encoding"), None, "{what:?}");
            200
        }
    };
    assert_eq!(status, Some(expected), "{what:?}: {first:?}");
    let second = next(&mut connection).await.map(|(head, _)| head.status);
    let goes_on = matches!(fate, One | Own(_));
    assert_eq!(second, goes_on.then_some(200), "{what:?}");
}

async fn check_all(cases: &[(&str, String, Fate)]) {
    let engine = RawEngine::start().await;
    let gateway = Gateway::start(&[], &[&engine.url()]).await;
    for (name, bytes, fate) in cases {
        check(&gateway, &engine, name, bytes, *fate).await;
    }
    // Nothing of it did harm.
    check(&gateway, &engine, "afterwards", &with(""), One).await;
}

#[tokio::test]
async fn lengths() {
    let n = BODY.len();
    check_all(&[
        ("two equal", plain(&format!("content-length: {n}\r\ncontent-length: {n}\r\n")), One),
        ("two different", plain(&format!("content-length: {n}\r\ncontent-length: 3\r\n")), Refused(400)),
        ("a list", plain(&format!("content-length: {n}, {n}\r\n")), Refused(400)),
        ("a sign", plain(&format!("content-length: +{n}\r\n")), Refused(400)),
        ("negative", plain("content-length: -1\r\n"), Refused(400)),
        ("hexadecimal", plain("content-length: 0x1e\r\n"), Refused(400)),
        ("a fraction", plain("content-length: 30.0\r\n"), Refused(400)),
        ("beyond 64 bits", plain("content-length: 99999999999999999999999\r\n"), Refused(400)),
        ("empty", plain("content-length:\r\n"), Refused(400)),
        ("a space before the colon", plain(&format!("content-length : {n}\r\n")), Refused(400)),
        ("spaces around", plain(&format!("content-length: \t {n} \t\r\n")), One),
    ])
    .await;
}

#[tokio::test]
async fn codings() {
    let te = "transfer-encoding: chunked\r\n";
    check_all(&[
        ("chunked", chunked(te), One),
        ("in capitals", chunked("TRANSFER-ENCODING: CHUNKED\r\n"), One),
        ("after a tab", chunked("transfer-encoding:\tchunked\r\n"), One),
        // RFC 9112 §6.1: the coding wins, and the connection is not trusted any more.
        ("with a length", chunked(&format!("content-length: 4\r\n{te}")), OneAndClosed),
        ("before a length", chunked(&format!("{te}content-length: 4\r\n")), OneAndClosed),
        ("twice", chunked(&format!("{te}{te}")), Refused(400)),
        ("twice in one", chunked("transfer-encoding: chunked, chunked\r\n"), Refused(400)),
        ("and identity", chunked(&format!("{te}transfer-encoding: identity\r\n")), Refused(400)),
        ("identity", with("transfer-encoding: identity\r\n"), Refused(400)),
        ("then identity", chunked("transfer-encoding: chunked, identity\r\n"), Refused(400)),
        ("compressed", chunked("transfer-encoding: gzip, chunked\r\n"), Refused(400)),
        ("unknown", chunked("transfer-encoding: xchunked\r\n"), Refused(400)),
        ("quoted", chunked("transfer-encoding: \"chunked\"\r\n"), Refused(400)),
        ("with a parameter", chunked("transfer-encoding: chunked;q=1\r\n"), Refused(400)),
        ("after a vertical tab", chunked("transfer-encoding: \u{b}chunked\r\n"), Refused(400)),
        ("after a space", chunked(" transfer-encoding: chunked\r\n"), Refused(400)),
        ("before a space", chunked("transfer-encoding : chunked\r\n"), Refused(400)),
        ("on a line of its own", chunked("transfer-encoding:\r\n chunked\r\n"), Refused(400)),
        ("in HTTP/1.0", chunked(te).replace("HTTP/1.1", "HTTP/1.0"), Refused(400)),
    ])
    .await;
}

#[tokio::test]
async fn sizes_of_chunks() {
    let n = BODY.len();
    let good = |size: &str| chunks(&format!("{size}\r\n{BODY}\r\n0\r\n\r\n"));
    check_all(&[
        ("leading zeros", good("0000001e"), One),
        ("an extension", good("1e;name=value"), One),
        ("trailers", chunks(&format!("{n:x}\r\n{BODY}\r\n0\r\ncontent-length: 3\r\nx-smg-a: b\r\n\r\n")), One),
        ("no number", good("zz"), Refused(400)),
        ("empty", good(""), Refused(400)),
        ("negative", good("-1e"), Refused(400)),
        ("a sign", good("+1e"), Refused(400)),
        ("a prefix", good("0x1e"), Refused(400)),
        ("beyond 64 bits", good("fffffffffffffffff"), Refused(400)),
        ("a bare line feed", chunks(&format!("{n:x}\n{BODY}\r\n0\r\n\r\n")), Refused(400)),
        ("a line feed in an extension", chunks(&format!("{n:x};a\nb\r\n{BODY}\r\n0\r\n\r\n")), Refused(400)),
        ("longer than it says", chunks(&format!("{:x}\r\n{BODY}\r\n0\r\n\r\n", n - 2)), Refused(400)),
    ])
    .await;
}

#[tokio::test]
async fn lines_and_fields() {
    check_all(&[
        ("a folded field", with("x-a: b\r\n c\r\n"), Refused(400)),
        ("a field that begins folded", format!("{LINE}\r\n x: y\r\nhost: a\r\n\r\n"), Refused(400)),
        ("NUL in a value", with("x-a: b\0c\r\n"), Refused(400)),
        ("NUL in a name", with("x\0a: b\r\n"), Refused(400)),
        ("a carriage return in a value", with("x-a: b\rc\r\n"), Refused(400)),
        ("a name that is none", with("x a: b\r\n"), Refused(400)),
        ("no name", with(": b\r\n"), Refused(400)),
        ("no colon", with("nonsense\r\n"), Refused(400)),
        // RFC 9112 §2.2 lets a line feed end a line. What matters is that the engine reads the same fields.
        ("a bare line feed", with("x-a: b\nx-c: d\r\n"), One),
        ("no host", with("").replace("host: a\r\n", ""), Refused(400)),
        ("two hosts", with("host: b\r\n"), Refused(400)),
        ("an odd line for NTLM", format!("\r\n{}", with("")), One),
    ])
    .await;
}

#[tokio::test]
async fn targets_methods_and_versions() {
    let length = format!("content-length: {}\r\n", BODY.len());
    let to = |line: &str| request(line, &length, BODY);
    check_all(&[
        ("absolute", to("POST http://b/v1/chat/completions HTTP/1.1"), One),
        ("absolute with credentials", to("POST http://u:p@b/v1/chat/completions HTTP/1.1"), Refused(400)),
        ("with dots", to("POST /v1/../v1/chat/completions HTTP/1.1"), Own(404)),
        ("encoded", to("POST /v1/chat%2fcompletions HTTP/1.1"), Own(404)),
        ("two slashes", to("POST //v1/chat/completions HTTP/1.1"), Own(404)),
        ("of a proxy", "CONNECT b:80 HTTP/1.1\r\nhost: b:80\r\n\r\n".to_owned(), Own(404)),
        ("of a server", "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), Own(404)),
        ("a method in small letters", to("post /v1/chat/completions HTTP/1.1"), Own(405)),
        ("a method that is none", to("PO(ST /v1/chat/completions HTTP/1.1"), Refused(400)),
        ("two spaces", to("POST  /v1/chat/completions  HTTP/1.1"), Refused(400)),
        ("a space in the path", to("POST /v1/chat completions HTTP/1.1"), Refused(400)),
        ("HTTP/1.0", to("POST /v1/chat/completions HTTP/1.0"), OneAndClosed),
        ("HTTP/0.9", "GET /v1/models\r\n".to_owned(), Refused(400)),
        ("HTTP/1.2", to("POST /v1/chat/completions HTTP/1.2"), Refused(400)),
        ("HTTP/2 in words", to("POST /v1/chat/completions HTTP/2.0"), Refused(400)),
        ("no protocol", to("POST /v1/chat/completions"), Refused(400)),
        (
            "an upgrade",
            with("connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"),
            One,
        ),
        ("TLS", "\u{16}\u{3}\u{1}\u{2}".to_owned(), Refused(400)),
    ])
    .await;
}

#[tokio::test]
async fn requests_in_a_row_are_answered_in_order() {
    let engine = RawEngine::start().await;
    let gateway = Gateway::start(&[], &[&engine.url()]).await;
    let mut connection = gateway.connect().await;
    let bodies: Vec<String> =
        (0..5).map(|number| format!(r#"{{"model":"demo","messages":[],"n{number}":1}}"#)).collect();
    let mut bytes = String::new();
    for body in &bodies {
        bytes += &request(LINE, &format!("content-length: {}\r\n", body.len()), body);
        bytes += "GET /v1/models HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nGET ";
    }
    connection.write(bytes.as_bytes()).await;
    for _ in &bodies {
        let (head, body) = next(&mut connection).await.unwrap();
        assert_eq!((head.status, body.as_str()), (200, "{}"));
        let (head, body) = next(&mut connection).await.unwrap();
        assert_eq!(head.status, 200);
        assert!(body.contains("\"demo\""), "{body}");
    }
    let seen: Vec<String> =
        engine.taken().await.iter().map(|request| String::from_utf8_lossy(&request.body).into_owned()).collect();
    assert_eq!(seen, bodies);
}
