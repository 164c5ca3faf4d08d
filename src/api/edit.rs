//! Small changes to a JSON body in place, so that everything else in it stays as the client sent it.

use std::ops::Range;

use crate::peek::Peek;

/// One change: the bytes at `span` become `text`. An empty span inserts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// What is replaced.
    pub span: Range<usize>,
    /// What comes in its place.
    pub text: Vec<u8>,
}

impl Edit {
    /// Puts `text` in the place of the bytes at `span`.
    pub fn replace(span: Range<usize>, text: impl Into<Vec<u8>>) -> Self {
        Self { span, text: text.into() }
    }

    /// Puts the JSON string `value` in the place of the value at `span`.
    pub fn replace_string(span: Range<usize>, value: &str) -> Self {
        Self::replace(span, json_string(value))
    }

    /// Adds a member to the body's object. `value` is JSON text. Correct only if the object has no member of that name.
    pub fn insert_member(peek: &Peek<'_>, name: &str, value: &str) -> Self {
        let mut text = Vec::with_capacity(name.len() + value.len() + 4);
        if peek.members > 0 {
            text.push(b',');
        }
        text.extend_from_slice(&json_string(name));
        text.push(b':');
        text.extend_from_slice(value.as_bytes());
        Self { span: peek.object_end..peek.object_end, text }
    }

    /// What makes the engine report usage at the end of a stream (`stream_options.include_usage`), or `None` if the body
    /// asks for it already.
    pub fn include_usage(body: &[u8], peek: &Peek<'_>) -> Option<Self> {
        if peek.include_usage == Some(true) {
            return None;
        }
        let Some(span) = peek.stream_options.clone() else {
            return Some(Self::insert_member(peek, "stream_options", r#"{"include_usage":true}"#));
        };
        let mut options: serde_json::Map<String, serde_json::Value> =
            body.get(span.clone()).and_then(|raw| serde_json::from_slice(raw).ok()).unwrap_or_default();
        options.insert("include_usage".to_owned(), true.into());
        Some(Self::replace(span, serde_json::Value::from(options).to_string()))
    }
}

/// `body` with `edits` made. Their spans must lie in the body and must not overlap; an edit that breaks this is left out.
pub fn apply(body: &[u8], edits: &mut [Edit]) -> Vec<u8> {
    edits.sort_by_key(|edit| (edit.span.start, edit.span.end));
    let added: usize = edits.iter().map(|edit| edit.text.len()).sum();
    let mut out = Vec::with_capacity(body.len() + added);
    let mut done = 0;
    for edit in edits.iter() {
        let Some(kept) =
            body.get(done..edit.span.start).filter(|_| (edit.span.start..=body.len()).contains(&edit.span.end))
        else {
            debug_assert!(false, "edits overlap or reach past the body: {edit:?}");
            continue;
        };
        out.extend_from_slice(kept);
        out.extend_from_slice(&edit.text);
        done = edit.span.end;
    }
    out.extend_from_slice(&body[done..]);
    out
}

fn json_string(value: &str) -> Vec<u8> {
    serde_json::to_vec(value).expect("a str always serialises")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Endpoint, peek};

    fn peek(body: &str) -> Peek<'_> {
        peek::peek(Endpoint::ChatCompletions, body.as_bytes(), None).expect("a sound body")
    }

    #[test]
    fn only_what_is_edited_changes() {
        let check = |body: &str, expected: &str| {
            let peek = peek(body);
            let mut edits = vec![Edit::insert_member(&peek, "x", "{\"y\":1}")];
            edits.extend(peek.model.as_ref().map(|model| Edit::replace_string(model.span.clone(), "new \"name\"")));
            assert_eq!(String::from_utf8(apply(body.as_bytes(), &mut edits)).expect("UTF-8"), expected);
        };
        check("{}", r#"{"x":{"y":1}}"#);
        check(" { } ", r#" { "x":{"y":1}} "#);
        check(r#"{"model" : "old", "odd":1e2 }"#, r#"{"model" : "new \"name\"", "odd":1e2 ,"x":{"y":1}}"#);
        check(
            r#"{"a":{"model":"no"},"model":"a\u00e9"}"#,
            r#"{"a":{"model":"no"},"model":"new \"name\"","x":{"y":1}}"#,
        );
    }

    #[test]
    fn usage_is_asked_for_once() {
        let check = |body: &str, expected: Option<&str>| {
            let edit = Edit::include_usage(body.as_bytes(), &peek(body));
            let edited = edit.map(|edit| String::from_utf8(apply(body.as_bytes(), &mut [edit])).expect("UTF-8"));
            assert_eq!(edited.as_deref(), expected, "{body}");
        };
        check(r#"{"a":1}"#, Some(r#"{"a":1,"stream_options":{"include_usage":true}}"#));
        check(r#"{"stream_options":null}"#, Some(r#"{"stream_options":{"include_usage":true}}"#));
        check(
            r#"{"stream_options": {"include_usage":false,"b":[1]} }"#,
            Some(r#"{"stream_options": {"b":[1],"include_usage":true} }"#),
        );
        check(r#"{"stream_options":{"include_usage":true}}"#, None);
    }

    #[test]
    fn edits_may_come_in_any_order() {
        let replace = |span, text: &str| Edit::replace(span, text);
        assert_eq!(apply(b"abcdef", &mut [replace(4..6, "X"), replace(0..1, "YY"), replace(2..2, "-")]), b"YYb-cdX");
        assert_eq!(apply(b"abc", &mut []), b"abc");
    }
}
