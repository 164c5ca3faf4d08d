//! Events of a stream.

use serde_json::Value;

/// `data: …`
pub(crate) fn data(json: &Value) -> Vec<u8> {
    format!("data: {json}\n\n").into_bytes()
}

/// `event: …`, `data: …`
pub(crate) fn named(event: &str, json: &Value) -> Vec<u8> {
    format!("event: {event}\ndata: {json}\n\n").into_bytes()
}

/// The end of a stream of the OpenAI family.
pub(crate) const DONE: &[u8] = b"data: [DONE]\n\n";
