//! Canned answers, made once and written in one piece.
//!
//! A request may ask for other sizes by the headers `x-mock-body-bytes`, `x-mock-events` and `x-mock-event-bytes`.

use super::Request;
use crate::{
    config::{Bench, EventFraming},
    reply::{Cut, Reply, open_chunk},
};

/// Bytes of an answer that a header may ask for.
const BYTES_MAX: usize = 64 * 1024 * 1024;
/// The part of the content of a body that differs between endpoints does not matter here: only its size does.
const PLAIN: &str = r#"{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"demo","choices":[{"index":0,"message":{"role":"assistant","content":"~"},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":16,"completion_tokens":16,"total_tokens":32,"prompt_tokens_details":{"cached_tokens":0}}}"#;
const EVENT: &str = r#"{"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"demo","choices":[{"index":0,"delta":{"content":"~"},"logprobs":null,"finish_reason":null}]}"#;
/// For bodies and events too small for the above.
const SMALL: &str = r#"{"a":"~"}"#;
const USAGE: &str = r#"data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"demo","choices":[],"usage":{"prompt_tokens":16,"completion_tokens":16,"total_tokens":32}}

"#;
const DONE: &str = "data: [DONE]\n\n";

/// The answers of the bench mode.
pub(crate) struct Prepared {
    bench: Bench,
    framing: EventFraming,
    identity: String,
    plain: Vec<u8>,
    stream: Stream,
}

/// A stream, ready to be written.
struct Stream {
    head: Vec<u8>,
    /// The events, framed; all but the last, which ends the message, are alike in length.
    event: Vec<u8>,
    events: usize,
    end: Vec<u8>,
    /// Everything in one piece, if it may leave so.
    whole: Option<Vec<u8>>,
    body_bytes: usize,
}

impl Prepared {
    pub(crate) fn new(bench: &Bench, framing: EventFraming, identity: &str) -> Self {
        let bench = bench.clone();
        let stream = Stream::new(&bench, framing, identity);
        Self { plain: plain(bench.body_bytes, identity), stream, framing, identity: identity.to_owned(), bench }
    }

    pub(super) async fn answer(&self, request: &Request, reply: &mut Reply<'_, '_>) -> Result<(), Cut> {
        let wants_stream = wants_stream(&request.body.bytes);
        reply.record.note(|entry| entry.stream = wants_stream);
        let asked = |name: &str| {
            request.head.field(name).and_then(|text| text.parse::<usize>().ok()).map(|bytes| bytes.min(BYTES_MAX))
        };
        match (wants_stream, asked("x-mock-body-bytes"), asked("x-mock-events"), asked("x-mock-event-bytes")) {
            (false, None, ..) => reply.prepared(&self.plain, (self.bench.body_bytes, 0)).await,
            (false, Some(bytes), ..) => reply.prepared(&plain(bytes, &self.identity), (bytes, 0)).await,
            (true, _, None, None) => self.stream.send(&self.bench, reply).await,
            (true, _, events, event_bytes) => {
                let mut bench = self.bench.clone();
                bench.event_bytes = event_bytes.unwrap_or(bench.event_bytes);
                bench.events = events.unwrap_or(bench.events).min(BYTES_MAX / bench.event_bytes.max(1));
                Stream::new(&bench, self.framing, &self.identity).send(&bench, reply).await
            }
        }
    }
}

impl Stream {
    fn new(bench: &Bench, framing: EventFraming, identity: &str) -> Self {
        let head = format!(
            "HTTP/1.1 200 OK\r\n{identity}content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        let payload = format!("data: {}\n\n", padded(EVENT, bench.event_bytes.saturating_sub(8)));
        let mut event = Vec::new();
        chunk(&mut event, payload.as_bytes());
        let mut end = Vec::new();
        chunk(&mut end, USAGE.as_bytes());
        chunk(&mut end, DONE.as_bytes());
        end.extend_from_slice(b"0\r\n\r\n");
        let body_bytes = payload.len() * bench.events + USAGE.len() + DONE.len();
        let whole = match framing {
            _ if !bench.event_interval.is_zero() => None,
            EventFraming::Write => None,
            EventFraming::Chunk => Some([head.as_bytes(), &event.repeat(bench.events), &end].concat()),
            EventFraming::Coalesce => {
                let mut whole = head.clone().into_bytes();
                chunk(&mut whole, [payload.repeat(bench.events).as_str(), USAGE, DONE].concat().as_bytes());
                whole.extend_from_slice(b"0\r\n\r\n");
                Some(whole)
            }
        };
        Self { head: head.into_bytes(), event, events: bench.events, end, whole, body_bytes }
    }

    async fn send(&self, bench: &Bench, reply: &mut Reply<'_, '_>) -> Result<(), Cut> {
        let size = (self.body_bytes, self.events + 2);
        if let Some(whole) = &self.whole {
            return reply.prepared(whole, size).await;
        }
        reply.prepared(&self.head, size).await?;
        for _ in 0..self.events {
            reply.prepared(&self.event, size).await?;
            reply.pause(bench.event_interval).await?;
        }
        reply.prepared(&self.end, size).await
    }
}

fn plain(bytes: usize, identity: &str) -> Vec<u8> {
    let body = padded(PLAIN, bytes);
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\n{identity}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// `template`, or a smaller one, with its `~` replaced by so much text that it has `bytes` bytes.
fn padded(template: &str, bytes: usize) -> String {
    let template = if template.len() > bytes { SMALL } else { template };
    let room = (bytes + 1).saturating_sub(template.len());
    template.replace('~', &"lorem ".repeat(room.div_ceil(6))[..room])
}

fn chunk(out: &mut Vec<u8>, payload: &[u8]) {
    open_chunk(out, payload.len());
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

/// Whether the start or the end of a body asks for a stream.
fn wants_stream(body: &[u8]) -> bool {
    let Some(at) = memchr::memmem::find(body, b"\"stream\"") else { return false };
    let rest = body[at + 8..].iter().skip_while(|byte| byte.is_ascii_whitespace() || **byte == b':');
    rest.take(4).eq(b"true")
}
