//! What clients asked, as it was recorded.

use std::time::Duration;

use serde::Deserialize;

/// Tokens in a block of a trace.
pub(super) const BLOCK_TOKENS: u32 = 512;

/// The most requests of a trace, the longest line of one, and the most tokens of a request.
const REQUESTS_MAX: usize = 1_000_000;
const LINE_BYTES_MAX: usize = 4 << 20;
const TOKENS_MAX: u32 = 1 << 22;

/// A recorded sequence of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// In the order in which they were written down.
    pub requests: Vec<Request>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// When it came, from the beginning of the trace.
    pub at: Duration,
    /// Tokens of its prompt; at least one.
    pub input_tokens: u32,
    /// Tokens of its answer; at least one.
    pub output_tokens: u32,
    /// The blocks of its prompt, the last of which may be incomplete. Equal ids are equal blocks after equal prompts.
    pub blocks: Vec<u64>,
}

/// Why a trace cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// A line is not what it should be.
    #[error("line {line}: {what}")]
    Line {
        /// Counted from one.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// There is nothing in it.
    #[error("the trace has no requests")]
    Empty,
}

/// A line as it is written.
#[derive(Deserialize)]
struct Line {
    timestamp: u64,
    input_length: u32,
    output_length: u32,
    hash_ids: Vec<u64>,
}

impl Trace {
    /// Reads JSON lines of `timestamp` (milliseconds), `input_length`, `output_length` and `hash_ids`, as the Mooncake traces
    /// have them. Other fields are passed over, and so are empty lines.
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        let mut requests = Vec::new();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let wrong = |what: String| TraceError::Line { line: index + 1, what };
            if requests.len() >= REQUESTS_MAX {
                return Err(wrong(format!("more than {REQUESTS_MAX} requests")));
            }
            requests.push(request(line).map_err(wrong)?);
        }
        if requests.is_empty() { Err(TraceError::Empty) } else { Ok(Self { requests }) }
    }

    /// The same, without what comes after the first `count` requests.
    #[must_use]
    pub fn first(mut self, count: usize) -> Self {
        self.requests.truncate(count);
        self
    }
}

fn request(line: &str) -> Result<Request, String> {
    if line.len() > LINE_BYTES_MAX {
        return Err(format!("longer than {LINE_BYTES_MAX} bytes"));
    }
    let line: Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let Line { timestamp, input_length, output_length, hash_ids } = line;
    if input_length == 0 {
        return Err("`input_length` is zero".to_owned());
    }
    if input_length > TOKENS_MAX || output_length > TOKENS_MAX {
        return Err(format!("more than {TOKENS_MAX} tokens"));
    }
    let blocks = input_length.div_ceil(BLOCK_TOKENS) as usize;
    if hash_ids.len() != blocks {
        return Err(format!("{} `hash_ids` for {input_length} tokens, not {blocks}", hash_ids.len()));
    }
    Ok(Request {
        at: Duration::from_millis(timestamp),
        input_tokens: input_length,
        // An answer has at least the token that ends it.
        output_tokens: output_length.max(1),
        blocks: hash_ids,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_request() {
        let text =
            "{\"timestamp\": 3000, \"input_length\": 513, \"output_length\": 7, \"hash_ids\": [0, 4], \"x\": 1}\n\n";
        let at = Duration::from_secs(3);
        let expected = Request { at, input_tokens: 513, output_tokens: 7, blocks: vec![0, 4] };
        assert_eq!(Trace::parse(text), Ok(Trace { requests: vec![expected] }));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let good = "{\"timestamp\":0,\"input_length\":1,\"output_length\":1,\"hash_ids\":[0]}";
        let check = |line: &str, what: &str| {
            let found = Trace::parse(&format!("{good}\n{line}\n")).expect_err(line).to_string();
            assert!(found.starts_with("line 2: ") && found.contains(what), "{line}: {found}");
        };
        check("{", "EOF");
        check("[1]", "invalid");
        check("{\"timestamp\":0,\"input_length\":1,\"output_length\":1}", "hash_ids");
        check("{\"timestamp\":-1,\"input_length\":1,\"output_length\":1,\"hash_ids\":[0]}", "-1");
        check("{\"timestamp\":0,\"input_length\":0,\"output_length\":1,\"hash_ids\":[]}", "zero");
        check("{\"timestamp\":0,\"input_length\":513,\"output_length\":1,\"hash_ids\":[0]}", "not 2");
        check("{\"timestamp\":0,\"input_length\":4294967295,\"output_length\":1,\"hash_ids\":[0]}", "tokens");
        assert_eq!(Trace::parse("\n"), Err(TraceError::Empty));
    }
}
