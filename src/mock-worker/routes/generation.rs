//! One generation, from the queue to the last token, whatever the dialect.

use serde_json::Value;

use super::Invalid;
use crate::{
    reply::{Cut, Reply},
    script::{self, Answer, Ask, Part, Voice},
    worker::Worker,
};

/// A generation that has a place in the queue.
pub(crate) struct Generation {
    pub(crate) answers: Vec<Answer>,
    pub(crate) usage: Usage,
    /// Where each choice stands, and whose turn it is.
    next: Vec<usize>,
    turn: usize,
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: u64,
    pub(crate) cached: u64,
    pub(crate) output: u64,
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
    pub(crate) fn enter(worker: &Worker, ask: &Ask, reply: &Reply<'_, '_>) -> Result<Self, Invalid> {
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
        let answers = script::answers(ask, voice);
        let usage = Usage { prompt, cached: 0, output: answers.iter().map(|answer| answer.tokens).sum() };
        reply.record.note(|entry| entry.prompt_tokens = prompt);
        let next = vec![0; answers.len()];
        Ok(Self { answers, usage, next, turn: 0 })
    }

    /// Waits for a running slot and for the prefill.
    pub(crate) async fn start(&mut self, reply: &mut Reply<'_, '_>) -> Result<(), Cut> {
        let _ = reply;
        Ok(())
    }

    /// The next thing to send. The choices take turns.
    pub(crate) async fn step(&mut self, reply: &mut Reply<'_, '_>) -> Result<Step<'_>, Cut> {
        let _ = reply;
        for _ in 0..self.answers.len() {
            let choice = self.turn;
            self.turn = (self.turn + 1) % self.answers.len();
            let place = self.next[choice];
            let answer = &self.answers[choice];
            if place > answer.parts.len() {
                continue;
            }
            self.next[choice] += 1;
            return Ok(match answer.parts.get(place) {
                Some(part) => Step::Part(choice, part, answer.call_id(part)),
                None => Step::Finished(choice, answer),
            });
        }
        Ok(Step::Over)
    }

    /// Generates everything.
    pub(crate) async fn complete(&mut self, reply: &mut Reply<'_, '_>) -> Result<(), Cut> {
        self.start(reply).await?;
        while !matches!(self.step(reply).await?, Step::Over) {}
        Ok(())
    }

    /// Enters the tokens in the ledger.
    pub(crate) fn settle(&self, reply: &Reply<'_, '_>) {
        let usage = self.usage;
        reply.record.note(|entry| {
            entry.cached_tokens = usage.cached;
            entry.output_tokens = usage.output;
        });
    }
}

/// The number called `name`, which must be a whole one in `range` if it is there.
pub(crate) fn number(json: &Value, name: &str, range: std::ops::RangeInclusive<u64>) -> Result<Option<u32>, Invalid> {
    match json.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let number =
                value.as_u64().filter(|number| range.contains(number)).and_then(|number| u32::try_from(number).ok());
            number.map(Some).ok_or_else(|| Invalid::new(format!("`{name}` must be a whole number in {range:?}")))
        }
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
