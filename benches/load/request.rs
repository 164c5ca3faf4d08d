//! The requests that are sent: chat completions of an exact size.

use super::options::Shape;

/// Where every request goes.
pub(crate) const PATH: &str = "/v1/chat/completions";

/// A whole request, head and body. Different `number`s are different conversations from their first word.
pub(crate) fn request(shape: Shape, body_bytes: usize, number: usize) -> Vec<u8> {
    let body = body(shape, body_bytes, number);
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: engine.example\r\ncontent-type: application/json\r\naccept: */*\r\n\
         user-agent: overhead\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body.into_bytes()].concat()
}

fn body(shape: Shape, body_bytes: usize, number: usize) -> String {
    let stream = match shape {
        Shape::Plain => "",
        Shape::Streamed => "\"stream\":true,",
    };
    let open = format!(
        "{{\"model\":\"demo\",{stream}\"max_tokens\":128,\"messages\":[{{\"role\":\"system\",\"content\":\"Conversation \
         {number}. Answer in one sentence.\"}},{{\"role\":\"user\",\"content\":\""
    );
    let close = "\"}]}";
    let mut body = open;
    // Text as people paste it: lines, with the escapes that JSON needs for them.
    let words =
        ["the ", "quick ", "brown ", "fox ", "jumps ", "over ", "a ", "lazy ", "dog ", "again,\\n", "\\\"so\\\" "];
    let mut at = number;
    while body.len() + close.len() + 16 < body_bytes {
        body.push_str(words[(at * 7 + at / 11) % words.len()]);
        at += 1;
    }
    while body.len() + close.len() < body_bytes {
        body.push('.');
    }
    body + close
}
