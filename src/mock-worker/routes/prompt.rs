//! From a request's messages to the tokens of its prompt.
//!
//! A message is a role mark, its text, an end mark; the answer's role mark ends the prompt. So the prompt of a later
//! turn begins with the prompt and the answer of the turn before, as it does with a real chat template.

use serde_json::Value;
use smg_base::hash;

use crate::tokens::{self, SPECIAL, Token};

const END: Token = SPECIAL;
const ROLE: Token = SPECIAL + 1;
const IMAGE: Token = SPECIAL + 16;
/// Tokens that an image or a sound takes.
const MEDIA_TOKENS: u64 = 64;

/// Collects a prompt.
#[derive(Debug, Default)]
pub(crate) struct Prompt {
    pub(crate) tokens: Vec<Token>,
    pub(crate) last_user: String,
    pub(crate) ends_with_tool_result: bool,
}

impl Prompt {
    /// The tools, which stand before everything else.
    pub(crate) fn tools(&mut self, tools: &Value) {
        if tools.as_array().is_some_and(|tools| !tools.is_empty()) {
            self.tokens.push(ROLE + 5);
            tokens::encode(&tools.to_string(), &mut self.tokens);
            self.tokens.push(END);
        }
    }

    /// A message of `role` with `content` in whatever shape: text, or a list of parts.
    pub(crate) fn message(&mut self, role: &str, content: &Value) {
        self.begin(role);
        let from = self.tokens.len();
        self.content(content);
        if role == "user" {
            self.last_user = String::from_utf8_lossy(&tokens::decode(&self.tokens[from..])).into_owned();
        }
        self.tokens.push(END);
    }

    /// Opens a message of `role`.
    pub(crate) fn begin(&mut self, role: &str) {
        self.ends_with_tool_result = matches!(role, "tool" | "function");
        self.tokens.push(ROLE + role_number(role));
    }

    /// Closes a message.
    pub(crate) fn end(&mut self) {
        self.tokens.push(END);
    }

    /// Adds text to the open message.
    pub(crate) fn text(&mut self, text: &str) {
        tokens::encode(text, &mut self.tokens);
    }

    /// Adds a call of a tool to the open message, as the model would have written it.
    pub(crate) fn call(&mut self, name: &str, arguments: &str) {
        self.text(name);
        self.text(arguments);
    }

    fn content(&mut self, content: &Value) {
        match content {
            Value::String(text) => self.text(text),
            Value::Array(parts) => parts.iter().for_each(|part| self.part(part)),
            Value::Null => {}
            other => self.text(&other.to_string()),
        }
    }

    fn part(&mut self, part: &Value) {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
        match kind {
            "text" | "input_text" | "output_text" => self.text(part["text"].as_str().unwrap_or_default()),
            "tool_use" => self.call(part["name"].as_str().unwrap_or_default(), &part["input"].to_string()),
            "tool_result" => {
                self.content(&part["content"]);
                self.ends_with_tool_result = true;
            }
            "thinking" | "redacted_thinking" | "reasoning" => {}
            _ => self.media(part),
        }
    }

    /// A picture or a sound: tokens that depend on its content.
    fn media(&mut self, part: &Value) {
        let digest = hash::stable64(part.to_string().as_bytes());
        self.tokens.extend((0..MEDIA_TOKENS).map(|place| {
            let id = u32::try_from(hash::mix(digest, place) & 0xff_ffff).expect("masked to 24 bits");
            IMAGE + id
        }));
    }

    /// Ends the prompt with the mark after which the model speaks.
    pub(crate) fn finish(&mut self) {
        self.tokens.push(ROLE + role_number("assistant"));
    }
}

fn role_number(role: &str) -> Token {
    match role {
        "system" | "developer" => 0,
        "user" => 1,
        "assistant" => 2,
        "tool" | "function" => 3,
        _ => 4,
    }
}
