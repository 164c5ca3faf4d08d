//! One generation, from the queue to the last token, whatever the dialect.

use serde_json::Value;

use super::Invalid;
use crate::{
    reply::{Cut, Reply},
    scheduler::{Grant, Place},
    script::{self, Answer, Ask, Part, Voice},
    tokens::{Namespace, Token},
    worker::Worker,
};

/// A generation that has a place in the queue.
pub(crate) struct Generation {
    pub(crate) answers: Vec<Answer>,
    pub(crate) usage: Usage,
    place: Option<Place>,
    grant: Option<Grant>,
    /// How many parts of each answer have been told.
    told: Vec<usize>,
    /// Whose turn it is.
    turn: usize,
    /// Whether the next part begins a new decode step.
    is_step_due: bool,
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: u64,
    pub(crate) cached: u64,
    pub(crate) output: u64,
}

impl Usage {
    /// Counts `other` too.
    pub(crate) fn add(&mut self, other: Self) {
        self.prompt += other.prompt;
        self.cached += other.cached;
        self.output += other.output;
    }

    /// Enters the tokens in the ledger.
    pub(crate) fn settle(self, reply: &Reply<'_, '_>) {
        reply.record.note(|entry| {
            entry.prompt_tokens = self.prompt;
            entry.cached_tokens = self.cached;
            entry.output_tokens = self.output;
        });
    }
}

/// What happens next in a stream.
pub(crate) enum Step<'a> {
    /// A part of the answer of this number, with the id of the call it belongs to, if any.
    Part(usize, &'a Part, &'a str),
    /// The answer of this number is over.
    Finished(usize, &'a Answer),
    /// All answers are over.
    Over,
}

impl Generation {
    /// Enters the queue.
    pub(crate) fn enter(worker: &Worker, ask: Ask) -> Result<Self, Invalid> {
        let prompt = ask.prompt.len() as u64;
        let room = u64::from(worker.config.context_length).saturating_sub(prompt);
        if room == 0 {
            let length = worker.config.context_length;
            return Err(Invalid::new(format!(
                "This model's maximum context length is {length} tokens. However, your request has {prompt} input tokens."
            )));
        }
        let voice = Voice {
            seed: worker.config.seed,
            output_tokens: worker.config.output_tokens,
            room_tokens: u32::try_from(room).unwrap_or(u32::MAX),
        };
        let answers = script::answers(&ask, voice);
        let output = answers.first().map(Answer::output).unwrap_or_default();
        let usage = Usage { prompt, cached: 0, output: answers.iter().map(|answer| answer.tokens).sum() };
        let place = worker.scheduler.enter(ask.prompt, output, ask.namespace)?;
        let told = vec![0; answers.len()];
        Ok(Self { answers, usage, place: Some(place), grant: None, told, turn: 0, is_step_due: false })
    }

    /// Waits for a running slot and for the prefill.
    pub(crate) async fn start(&mut self, reply: &mut Reply<'_, '_>) -> Result<(), Cut> {
        let Some(mut place) = self.place.take() else { return Ok(()) };
        let grant = match place.take_ready() {
            Some(grant) => Some(grant),
            None => {
                // What has been written must not wait with us.
                reply.flush().await?;
                place.granted().await
            }
        };
        if let Some(mut grant) = grant {
            if grant.prefill_takes_time() {
                reply.flush().await?;
            }
            grant.prefill().await;
            self.usage.cached = grant.cached_tokens();
            self.grant = Some(grant);
        }
        Ok(())
    }

    /// The next thing to send, when it is due. The choices take turns; one round is one decode step.
    pub(crate) async fn step(&mut self, reply: &mut Reply<'_, '_>) -> Result<Step<'_>, Cut> {
        for _ in 0..self.answers.len() {
            let choice = self.turn;
            self.turn = (self.turn + 1) % self.answers.len();
            self.is_step_due |= choice == 0;
            let place = self.told[choice];
            if place > self.answers[choice].parts.len() {
                continue;
            }
            self.told[choice] += 1;
            let Some(tokens) = self.answers[choice].parts.get(place).map(|part| part.tokens) else {
                return Ok(Step::Finished(choice, &self.answers[choice]));
            };
            if std::mem::take(&mut self.is_step_due) {
                self.decode(tokens, reply).await?;
            }
            let answer = &self.answers[choice];
            let part = &answer.parts[place];
            return Ok(Step::Part(choice, part, answer.call_id(part)));
        }
        // Before the last bytes leave, so that a caller's next request finds the blocks in the cache.
        self.grant = None;
        Ok(Step::Over)
    }

    async fn decode(&mut self, tokens: u32, reply: &mut Reply<'_, '_>) -> Result<(), Cut> {
        let Some(grant) = &mut self.grant else { return Ok(()) };
        if let Some(due) = grant.next_due() {
            reply.flush().await?;
            tokio::time::sleep_until(due).await;
        }
        grant.generated(tokens);
        Ok(())
    }

    /// Generates everything.
    pub(crate) async fn complete(&mut self, reply: &mut Reply<'_, '_>) -> Result<(), Cut> {
        self.start(reply).await?;
        while !matches!(self.step(reply).await?, Step::Over) {}
        Ok(())
    }
}

/// Lets a model that generates nothing (it embeds, it ranks) read `prompts`.
pub(crate) async fn read_only(
    worker: &Worker,
    prompts: Vec<Vec<Token>>,
    reply: &mut Reply<'_, '_>,
) -> Result<Result<Usage, Invalid>, Cut> {
    let mut usage = Usage::default();
    for prompt in prompts {
        usage.prompt += prompt.len() as u64;
        let place = match worker.scheduler.enter(prompt, Vec::new(), Namespace::default()) {
            Ok(place) => place,
            Err(full) => return Ok(Err(full.into())),
        };
        if let Some(mut grant) = place.granted().await {
            grant.prefill().await;
            usage.cached += grant.cached_tokens();
        }
    }
    usage.settle(reply);
    Ok(Ok(usage))
}

/// What keeps the cache entries of a request apart: the adapter it names, and its salt.
pub(crate) fn namespace(worker: &Worker, json: &Value) -> Namespace {
    let text = |name: &str| json[name].as_str().filter(|text| !text.is_empty());
    // A model beside the base model is an adapter.
    let adapter = text("model").filter(|model| worker.config.models.iter().skip(1).any(|served| served == model));
    Namespace { lora: text("lora_path").or(adapter).map(Into::into), salt: text("cache_salt").map(Into::into) }
}

/// The number called `name`, which must be a whole one of at least `least` if it is there.
pub(crate) fn number(json: &Value, name: &str, least: u64) -> Result<Option<u32>, Invalid> {
    match json.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let number = value.as_u64().filter(|number| *number >= least);
            let number = number.map(|number| u32::try_from(number).unwrap_or(u32::MAX));
            number.map(Some).ok_or_else(|| Invalid::new(format!("`{name}` must be a whole number of at least {least}")))
        }
    }
}

/// How many choices are wanted.
pub(crate) fn choices(json: &Value) -> Result<u32, Invalid> {
    match number(json, "n", 1)?.unwrap_or(1) {
        choices @ 1..=128 => Ok(choices),
        _ => Err(Invalid::new("`n` must be at most 128")),
    }
}

/// The stop texts: one, or a list.
pub(crate) fn stops(json: &Value, name: &str) -> Vec<String> {
    match json.get(name) {
        Some(Value::String(stop)) => vec![stop.clone()],
        Some(Value::Array(stops)) => stops.iter().filter_map(Value::as_str).take(16).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// Prompts as the completion and embedding endpoints take them: a text, token ids, or a list of either.
pub(crate) fn prompts(input: &Value) -> Result<Vec<Written>, Invalid> {
    let invalid = || Invalid::new("the input must be a text, a list of token ids, or a list of these");
    match input {
        Value::String(_) => Ok(vec![written(input).ok_or_else(invalid)?]),
        Value::Array(parts) if parts.first().is_some_and(Value::is_u64) => {
            Ok(vec![written(input).ok_or_else(invalid)?])
        }
        Value::Array(parts) if !parts.is_empty() => {
            parts.iter().map(written).collect::<Option<Vec<_>>>().ok_or_else(invalid)
        }
        _ => Err(invalid()),
    }
}

/// A prompt as text and as tokens.
pub(crate) struct Written {
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
}

fn written(input: &Value) -> Option<Written> {
    match input {
        Value::String(text) => {
            let mut tokens = Vec::new();
            crate::tokens::encode(text, &mut tokens);
            Some(Written { text: text.clone(), tokens })
        }
        Value::Array(ids) => {
            let tokens = ids.iter().map(|id| id.as_u64().and_then(|id| Token::try_from(id).ok()));
            let tokens = tokens.collect::<Option<Vec<Token>>>()?;
            let text = String::from_utf8_lossy(&crate::tokens::decode(&tokens)).into_owned();
            Some(Written { text, tokens })
        }
        _ => None,
    }
}
