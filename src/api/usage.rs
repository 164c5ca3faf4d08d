//! Token counts and ids out of answers, in every dialect.

use crate::{
    Endpoint,
    json::{Broken, Cursor, Kind, Numbers},
};

/// The tokens of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the whole prompt, those found in a cache included, also where the dialect leaves them out.
    pub input_tokens: u64,
    /// Tokens generated.
    pub output_tokens: u64,
    /// Tokens of the prompt that came out of the engine's cache; `None` if the engine does not say.
    pub cached_tokens: Option<u64>,
}

/// The usage that a whole answer reports.
pub fn usage_of(endpoint: Endpoint, json_body: &[u8]) -> Option<Usage> {
    let mut cursor = Cursor::new(str::from_utf8(json_body).ok()?, Numbers::Python);
    let mut tally = Tally::default();
    match cursor.kind().ok()? {
        Kind::Object => tally.read_answer(&mut cursor, endpoint).ok()?,
        // One element for each prompt of a batch.
        Kind::Array => {
            let each = |cursor: &mut Cursor<'_>| {
                if cursor.kind()? != Kind::Object {
                    return cursor.skip();
                }
                let mut one = Tally::default();
                one.read_answer(cursor, endpoint)?;
                tally.add(&one);
                Ok(())
            };
            cursor.array::<Broken>(each).ok()?;
        }
        _ => return None,
    }
    cursor.end().ok()?;
    tally.usage()
}

/// The id that a whole answer carries.
pub fn response_id_of(json: &[u8]) -> Option<String> {
    let mut cursor = Cursor::new(str::from_utf8(json).ok()?, Numbers::Python);
    let mut id = None;
    let read = cursor.object::<Broken>(|cursor, name| {
        match name.raw() {
            "id" => id = cursor.string_or_skip()?,
            "meta_info" if id.is_none() && cursor.kind()? == Kind::Object => {
                cursor.object::<Broken>(|cursor, name| {
                    if name.raw() == "id" {
                        id = cursor.string_or_skip()?;
                        return Ok(());
                    }
                    cursor.skip()
                })?;
            }
            _ => cursor.skip()?,
        }
        Ok(())
    });
    read.ok()?;
    id.filter(|id| !id.is_empty()).map(|id| id.decode().into_owned())
}

/// Whether a whole answer is JSON as clients read it: `NaN` and the infinities, which Python's engines write, included.
pub fn is_json(body: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(body) else {
        return false;
    };
    let mut cursor = Cursor::new(text, Numbers::Python);
    cursor.skip().and_then(|()| cursor.end()).is_ok()
}

/// What was read so far of the counts, under whatever names they came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    input: Option<u64>,
    output: Option<u64>,
    total: Option<u64>,
    cached: Option<u64>,
    /// Anthropic counts these apart from `input_tokens`.
    cache_read: Option<u64>,
    cache_created: Option<u64>,
}

impl Tally {
    /// Reads a usage object; any other value is skipped.
    pub(crate) fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Broken> {
        self.read_with(cursor, |cursor, _| cursor.skip())
    }

    /// The same; members that count nothing go to `other`, which must consume them.
    pub(crate) fn read_with<'a>(
        &mut self,
        cursor: &mut Cursor<'a>,
        mut other: impl FnMut(&mut Cursor<'a>, &str) -> Result<(), Broken>,
    ) -> Result<(), Broken> {
        if cursor.kind()? != Kind::Object {
            return cursor.skip();
        }
        let member = |cursor: &mut Cursor<'a>, name: crate::json::Text<'a>| {
            let count = match name.raw() {
                "prompt_tokens" | "input_tokens" => &mut self.input,
                "completion_tokens" | "output_tokens" => &mut self.output,
                "total_tokens" => &mut self.total,
                "cached_tokens" | "prompt_cache_hit_tokens" => &mut self.cached,
                "cache_read_input_tokens" => &mut self.cache_read,
                "cache_creation_input_tokens" => &mut self.cache_created,
                "prompt_tokens_details" | "input_tokens_details" => return read_details(cursor, &mut self.cached),
                name => return other(cursor, name),
            };
            *count = larger(*count, cursor.count_or_skip()?);
            Ok(())
        };
        cursor.object(member).map(|_| ())
    }

    /// Takes in what a later event says. All counts of a stream are cumulative, so the larger one is the later one, and an
    /// event that repeats a count as zero does not undo it.
    pub(crate) fn merge(&mut self, later: &Self) {
        self.combine(later, larger);
    }

    /// The result, if there was any count.
    pub(crate) fn usage(&self) -> Option<Usage> {
        let output_tokens = self.output.unwrap_or(0);
        let alone = self.input.or_else(|| self.total.map(|total| total.saturating_sub(output_tokens)));
        let apart = self.cache_read.or(self.cache_created).map(|_| self.cache_read.unwrap_or(0));
        if alone.is_none() && self.output.is_none() && apart.is_none() {
            return None;
        }
        let outside = apart.unwrap_or(0).saturating_add(self.cache_created.unwrap_or(0));
        Some(Usage {
            input_tokens: alone.unwrap_or(0).saturating_add(outside),
            output_tokens,
            cached_tokens: self.cached.or(self.cache_read),
        })
    }

    /// Reads a whole answer, which must be an object.
    fn read_answer(&mut self, cursor: &mut Cursor<'_>, endpoint: Endpoint) -> Result<(), Broken> {
        let member = |cursor: &mut Cursor<'_>, name: crate::json::Text<'_>| match name.raw() {
            "usage" | "meta_info" => self.read(cursor),
            "input_tokens" if endpoint == Endpoint::CountTokens => {
                self.input = cursor.count_or_skip()?;
                Ok(())
            }
            _ => cursor.skip(),
        };
        cursor.object(member).map(|_| ())
    }

    fn add(&mut self, other: &Self) {
        self.combine(other, |a, b| match (a, b) {
            (Some(a), Some(b)) => Some(a.saturating_add(b)),
            (a, b) => a.or(b),
        });
    }

    fn combine(&mut self, other: &Self, combine: impl Fn(Option<u64>, Option<u64>) -> Option<u64>) {
        self.input = combine(self.input, other.input);
        self.output = combine(self.output, other.output);
        self.total = combine(self.total, other.total);
        self.cached = combine(self.cached, other.cached);
        self.cache_read = combine(self.cache_read, other.cache_read);
        self.cache_created = combine(self.cache_created, other.cache_created);
    }
}

fn read_details(cursor: &mut Cursor<'_>, cached: &mut Option<u64>) -> Result<(), Broken> {
    if cursor.kind()? != Kind::Object {
        return cursor.skip();
    }
    let member = |cursor: &mut Cursor<'_>, name: crate::json::Text<'_>| {
        if name.raw() == "cached_tokens" {
            *cached = larger(*cached, cursor.count_or_skip()?);
            return Ok(());
        }
        cursor.skip()
    };
    cursor.object(member).map(|_| ())
}

// `None` is less than any count.
fn larger(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.max(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn usage(input_tokens: u64, output_tokens: u64, cached_tokens: Option<u64>) -> Option<Usage> {
        Some(Usage { input_tokens, output_tokens, cached_tokens })
    }

    #[test]
    fn every_dialect_is_read() {
        let check = |endpoint: Endpoint, body: &str, expected: Option<Usage>| {
            assert_eq!(usage_of(endpoint, body.as_bytes()), expected, "{body}");
        };
        use Endpoint::{
            ChatCompletions, Classify, CountTokens, Embeddings, Generate, Messages, Rerank, Responses, Transcriptions,
        };
        check(
            ChatCompletions,
            r#"{"id":"c","usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"prompt_tokens_details":{"cached_tokens":8,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":2}}}"#,
            usage(10, 5, Some(8)),
        );
        check(
            ChatCompletions,
            r#"{"usage":{"prompt_tokens":10,"completion_tokens":5,"prompt_tokens_details":null}}"#,
            usage(10, 5, None),
        );
        check(
            ChatCompletions,
            r#"{"usage":{"prompt_tokens":9,"completion_tokens":1,"prompt_cache_hit_tokens":4}}"#,
            usage(9, 1, Some(4)),
        );
        check(
            Responses,
            r#"{"usage":{"input_tokens":36,"input_tokens_details":{"cached_tokens":32},"output_tokens":87,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":123}}"#,
            usage(36, 87, Some(32)),
        );
        check(
            Messages,
            r#"{"usage":{"input_tokens":3,"cache_creation_input_tokens":20,"cache_read_input_tokens":100,"output_tokens":7}}"#,
            usage(123, 7, Some(100)),
        );
        check(
            Messages,
            r#"{"usage":{"input_tokens":3,"cache_read_input_tokens":null,"output_tokens":7}}"#,
            usage(3, 7, None),
        );
        check(CountTokens, r#"{"input_tokens":2095}"#, usage(2095, 0, None));
        check(
            Embeddings,
            r#"{"data":[{"embedding":[0.1,NaN]}],"usage":{"prompt_tokens":8,"total_tokens":8}}"#,
            usage(8, 0, None),
        );
        check(Rerank, r#"{"usage":{"total_tokens":56}}"#, usage(56, 0, None));
        check(Classify, r#"{"usage":{"prompt_tokens":7,"total_tokens":7,"completion_tokens":0}}"#, usage(7, 0, None));
        check(
            Transcriptions,
            r#"{"text":"a","usage":{"type":"tokens","input_tokens":14,"output_tokens":45}}"#,
            usage(14, 45, None),
        );
        check(Transcriptions, r#"{"text":"a","usage":{"type":"duration","seconds":9}}"#, None);
        check(
            Generate,
            r#"{"text":"x","meta_info":{"id":"a","finish_reason":{"type":"stop"},"prompt_tokens":4,"completion_tokens":2,"cached_tokens":1,"e2e_latency":0.2}}"#,
            usage(4, 2, Some(1)),
        );
        check(
            Generate,
            r#"[{"meta_info":{"prompt_tokens":4,"completion_tokens":2,"cached_tokens":1}},{"meta_info":{"prompt_tokens":6,"completion_tokens":3,"cached_tokens":0}}]"#,
            usage(10, 5, Some(1)),
        );
        check(ChatCompletions, r#"{"usage":null}"#, None);
        check(ChatCompletions, r#"{"usage":{}}"#, None);
        check(ChatCompletions, r#"{"usage":{"prompt_tokens":10"#, None);
        check(ChatCompletions, "", None);
        check(ChatCompletions, "[]", None);
    }

    #[test]
    fn what_clients_can_read_is_json() {
        let check = |body: &[u8], expected: bool| assert_eq!(is_json(body), expected, "{}", body.escape_ascii());
        check(b" {\"embedding\":[0.1,NaN,-Infinity]} ", true);
        check(b"\"text\"", true);
        check(b"{\"a\":1}{", false);
        check(b"{\"a\":\"\xff\"}", false);
        check(b"<html>", false);
        check(b"", false);
    }

    #[test]
    fn ids_are_found() {
        let check = |body: &str, expected: Option<&str>| {
            assert_eq!(response_id_of(body.as_bytes()).as_deref(), expected, "{body}");
        };
        check(r#"{"object":"response","id":"resp_1"}"#, Some("resp_1"));
        check(r#"{"text":"x","meta_info":{"id":"abc","prompt_tokens":4}}"#, Some("abc"));
        check(r#"{"id":"a\u0062","meta_info":{"id":"abc"}}"#, Some("ab"));
        check(r#"{"id":7}"#, None);
        check(r#"{"id":""}"#, None);
        check(r#"{"id":"x""#, None);
        check("[]", None);
    }

    #[test]
    fn nothing_makes_it_panic() {
        let corpus = [
            r#"{"id":"x","usage":{"prompt_tokens":10,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":8}}}"#,
            r#"[{"meta_info":{"id":"a","prompt_tokens":18446744073709551615,"cached_tokens":1e9}},{"meta_info":{"prompt_tokens":5}}]"#,
            r#"{"usage":{"input_tokens":18446744073709551615,"cache_creation_input_tokens":18446744073709551615,"output_tokens":7}}"#,
        ];
        testing::mutations(&corpus, 20_000, |input| {
            for endpoint in [Endpoint::ChatCompletions, Endpoint::CountTokens] {
                assert!(is_json(input) || usage_of(endpoint, input).is_none(), "{}", String::from_utf8_lossy(input));
            }
            response_id_of(input);
        });
    }
}
