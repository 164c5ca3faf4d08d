//! What the engine says: a function of the prompt, so that tests and two runs agree.
//!
//! By default the text is a row of short words drawn from the hash of the prompt. The last user message can ask for more:
//! `echo TEXT` or `say TEXT` is answered by TEXT; one that names a tool, or says `call a tool`, is answered by a call of
//! it, with the JSON object in the message as its arguments, or with arguments made from the tool's schema; `think`
//! puts reasoning in front where the caller allows it.

use serde_json::{Map, Value, json};
use smg_base::{Random, SplitMix, hash};

use crate::tokens::{self, Namespace, Piece, Token};

/// Words of three letters: with its space, each is one token.
const WORDS: [&str; 32] = [
    "sun", "sea", "oak", "red", "fox", "ice", "map", "key", "owl", "sky", "ink", "ray", "fog", "elm", "bay", "fir",
    "jay", "hut", "cup", "ash", "bee", "cod", "dew", "eve", "gem", "hay", "ivy", "kit", "log", "nut", "pen", "yak",
];
/// Words of reasoning.
const REASONING_TOKENS: u32 = 6;
/// Tokens of an answer, whatever is asked.
const OUTPUT_TOKENS_MAX: u32 = 1_000_000;
/// Tools called in one answer.
const CALLS_MAX: usize = 8;
/// Depth to which a schema is followed.
const SCHEMA_DEPTH_MAX: usize = 8;

/// What is asked of the engine, in no dialect.
#[derive(Debug, Default)]
pub(crate) struct Ask {
    pub(crate) prompt: Vec<Token>,
    /// The text of the last user message.
    pub(crate) last_user: String,
    /// Whether the conversation ends with the result of a tool, which asks for text.
    pub(crate) ends_with_tool_result: bool,
    pub(crate) tools: Vec<Tool>,
    pub(crate) tool_choice: ToolChoice,
    /// At most one tool may be called.
    pub(crate) single_call: bool,
    pub(crate) tokens_max: Option<u32>,
    pub(crate) stops: Vec<String>,
    pub(crate) choices: u32,
    /// Generate until `tokens_max`.
    pub(crate) ignores_end: bool,
    /// Whether reasoning may be shown.
    pub(crate) may_think: bool,
    /// The JSON that is wanted, as a schema.
    pub(crate) schema: Option<Value>,
    /// What keeps this prompt's cache entries apart.
    pub(crate) namespace: Namespace,
}

/// A tool the model may call.
#[derive(Debug, Clone)]
pub(crate) struct Tool {
    pub(crate) name: String,
    pub(crate) schema: Value,
}

/// Whether tools are called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    #[default]
    Auto,
    None,
    Required,
    Named(String),
}

/// One answer, cut into the parts in which it is streamed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) parts: Vec<Part>,
    pub(crate) text: String,
    pub(crate) reasoning: String,
    pub(crate) calls: Vec<Call>,
    pub(crate) finish: Finish,
    pub(crate) tokens: u64,
}

/// A part of an answer.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) kind: PartKind,
    pub(crate) text: String,
    pub(crate) tokens: u32,
}

/// What a part belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PartKind {
    Reasoning,
    Text,
    /// The call of this number begins; the text is the tool's name.
    Call(usize),
    /// More arguments of the call of this number.
    Arguments(usize),
}

/// A call of a tool.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) arguments: String,
}

/// Why an answer is over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Finish {
    #[default]
    End,
    Length,
    StopText(String),
    ToolCalls,
}

/// The settings of the worker that the text depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Voice {
    pub(crate) seed: u64,
    pub(crate) output_tokens: u32,
    /// Room in the context after the prompt.
    pub(crate) room_tokens: u32,
}

/// The answers to `ask`, one for each choice.
pub(crate) fn answers(ask: &Ask, voice: Voice) -> Vec<Answer> {
    let root = prompt_hash(&ask.prompt, voice.seed);
    (0..ask.choices.max(1)).map(|choice| answer(ask, voice, hash::mix(root, u64::from(choice)))).collect()
}

fn prompt_hash(prompt: &[Token], seed: u64) -> u64 {
    let mut state = seed;
    for run in prompt.chunks(64) {
        let mut bytes = [0; 256];
        for (slot, token) in bytes.chunks_exact_mut(4).zip(run) {
            slot.copy_from_slice(&token.to_le_bytes());
        }
        state = hash::stable64_seeded(&bytes[..run.len() * 4], state);
    }
    state
}

fn answer(ask: &Ask, voice: Voice, root: u64) -> Answer {
    let mut answer = Answer::default();
    let limit = ask.tokens_max.unwrap_or(u32::MAX).min(voice.room_tokens).min(OUTPUT_TOKENS_MAX);
    let mut left = u64::from(limit);
    for (place, (name, arguments)) in wanted_calls(ask).into_iter().enumerate() {
        let id = format!("call_{:016x}", hash::mix(root, place as u64));
        answer.add_call(Call { id, name, arguments });
        answer.finish = Finish::ToolCalls;
    }
    if !answer.calls.is_empty() {
        return answer;
    }
    if ask.may_think && ask.last_user.contains("think") {
        answer.add(PartKind::Reasoning, words(root ^ 1, REASONING_TOKENS), &mut left);
    }
    let (text, is_scripted) = match (&ask.schema, echoed(&ask.last_user)) {
        (Some(schema), _) => (tokens::pieces(&example(schema, "value", 0).to_string()), true),
        (None, Some(text)) => (tokens::pieces(text), true),
        (None, None) => (Vec::new(), false),
    };
    let text = match (is_scripted, ask.ignores_end) {
        (true, _) => text,
        (false, true) => words(root, u32::try_from(left).unwrap_or(OUTPUT_TOKENS_MAX)),
        (false, false) => words(root, voice.output_tokens.min(limit.saturating_add(1))),
    };
    let (text, stop) = stopped(text, &ask.stops);
    let is_whole = answer.add(PartKind::Text, text, &mut left);
    answer.finish = match stop {
        _ if !is_whole => Finish::Length,
        Some(stop) => Finish::StopText(stop),
        None if ask.ignores_end && !is_scripted => Finish::Length,
        None => Finish::End,
    };
    answer
}

impl Answer {
    /// The id of the call that `part` belongs to.
    pub(crate) fn call_id(&self, part: &Part) -> &str {
        match part.kind {
            PartKind::Call(place) | PartKind::Arguments(place) => self.calls.get(place).map_or("", |call| &call.id),
            PartKind::Text | PartKind::Reasoning => "",
        }
    }

    /// Its tokens, as the next turn's prompt will have them.
    pub(crate) fn output(&self) -> Vec<Token> {
        let mut output = Vec::new();
        tokens::encode(&self.reasoning, &mut output);
        tokens::encode(&self.text, &mut output);
        for call in &self.calls {
            tokens::encode(&call.name, &mut output);
            tokens::encode(&call.arguments, &mut output);
        }
        output
    }

    /// Adds pieces while they fit into `left` tokens; whether all did.
    fn add(&mut self, kind: PartKind, pieces: Vec<Piece>, left: &mut u64) -> bool {
        for Piece { text, tokens } in pieces {
            if u64::from(tokens) > *left {
                return false;
            }
            *left -= u64::from(tokens);
            self.tokens += u64::from(tokens);
            match kind {
                PartKind::Reasoning => self.reasoning.push_str(&text),
                _ => self.text.push_str(&text),
            }
            self.parts.push(Part { kind, text, tokens });
        }
        true
    }

    fn add_call(&mut self, call: Call) {
        let place = self.calls.len();
        self.tokens += tokens::count(&call.name) + tokens::count(&call.arguments);
        let tokens = u32::try_from(tokens::count(&call.name)).unwrap_or(u32::MAX);
        self.parts.push(Part { kind: PartKind::Call(place), text: call.name.clone(), tokens });
        let arguments = tokens::pieces(&call.arguments).into_iter();
        self.parts.extend(arguments.map(|Piece { text, tokens }| Part {
            kind: PartKind::Arguments(place),
            text,
            tokens,
        }));
        self.calls.push(call);
    }
}

fn words(seed: u64, count: u32) -> Vec<Piece> {
    let random = SplitMix::new(seed);
    let word = |place| {
        let word = WORDS[usize::try_from(random.below(WORDS.len() as u64)).unwrap_or(0)];
        let text = if place == 0 { word.to_owned() } else { format!(" {word}") };
        Piece { text, tokens: 1 }
    };
    (0..count).map(word).collect()
}

fn echoed(message: &str) -> Option<&str> {
    let message = message.trim();
    ["echo ", "say "].iter().find_map(|verb| message.strip_prefix(verb))
}

/// Cuts the text before the first stop text that occurs in it; which one it was.
fn stopped(mut pieces: Vec<Piece>, stops: &[String]) -> (Vec<Piece>, Option<String>) {
    let text: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
    let found = stops.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| text.find(stop).map(|at| (at, stop)));
    let Some((at, stop)) = found.min_by_key(|(at, _)| *at) else { return (pieces, None) };
    let mut bytes = 0;
    let mut kept = 0;
    for piece in &mut pieces {
        if bytes >= at {
            break;
        }
        let end = bytes + piece.text.len();
        piece.text.truncate(piece.text.len() - end.saturating_sub(at));
        bytes = end;
        kept += 1;
    }
    pieces.truncate(kept);
    (pieces, Some(stop.clone()))
}

/// The calls that the prompt asks for, by name and arguments.
fn wanted_calls(ask: &Ask) -> Vec<(String, String)> {
    let of = |tool: &Tool| {
        let arguments = object_in(&ask.last_user).unwrap_or_else(|| example(&tool.schema, "value", 0).to_string());
        (tool.name.clone(), arguments)
    };
    match &ask.tool_choice {
        ToolChoice::None => Vec::new(),
        ToolChoice::Named(name) => ask.tools.iter().filter(|tool| tool.name == *name).take(1).map(of).collect(),
        _ if ask.ends_with_tool_result => Vec::new(),
        choice => {
            let wants_any = *choice == ToolChoice::Required || ask.last_user.contains("call a tool");
            let named = ask.tools.iter().filter(|tool| ask.last_user.contains(&tool.name));
            let calls: Vec<_> = named.take(if ask.single_call { 1 } else { CALLS_MAX }).map(of).collect();
            if calls.is_empty() && wants_any { ask.tools.iter().take(1).map(of).collect() } else { calls }
        }
    }
}

/// The JSON object that `message` contains.
fn object_in(message: &str) -> Option<String> {
    let (from, to) = (message.find('{')?, message.rfind('}')?);
    let text = message.get(from..=to)?;
    serde_json::from_str::<Map<String, Value>>(text).ok().map(|_| text.to_owned())
}

/// A value that `schema` allows, for the common part of JSON Schema; `name` flavours strings.
fn example(schema: &Value, name: &str, depth: usize) -> Value {
    if depth > SCHEMA_DEPTH_MAX {
        return Value::Null;
    }
    if let Some(first) = schema.get("enum").and_then(Value::as_array).and_then(|values| values.first()) {
        return first.clone();
    }
    if let Some(constant) = schema.get("const") {
        return constant.clone();
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.first().and_then(Value::as_str).unwrap_or_default(),
        kind => kind.as_str().unwrap_or(if schema.get("properties").is_some() { "object" } else { "" }),
    };
    match kind {
        "object" => {
            let properties = schema.get("properties").and_then(Value::as_object);
            let examples =
                properties.into_iter().flatten().map(|(name, schema)| (name.clone(), example(schema, name, depth + 1)));
            Value::Object(examples.collect())
        }
        "array" => json!([example(&schema["items"], name, depth + 1)]),
        "integer" | "number" => schema.get("minimum").cloned().unwrap_or(json!(1)),
        "boolean" => json!(true),
        "null" => Value::Null,
        _ => json!(format!("mock {name}")),
    }
}
