//! `/v1/completions`.

use serde_json::{Value, json};

use super::{
    Answered, Invalid, Request,
    chat::{finish_reason, usage_json},
    checked_model,
    generation::{Generation, Step, Usage, Written, choices, namespace, number, prompts, stops},
    send, sse,
};
use crate::{
    reply::{Cut, Reply},
    script::Ask,
    worker::{Worker, unix_now},
};

/// Answers a text completion. The prompts of a batch run one after the other.
pub(super) async fn answer(worker: &Worker, request: &Request, reply: &mut Reply<'_, '_>) -> Answered {
    let json = &request.body.json;
    let read = checked_model(worker, &request.body).and_then(|model| Ok((model, asks(worker, json)?)));
    let (model, asks) = match read {
        Ok(read) => read,
        Err(invalid) => return Ok(Err(invalid)),
    };
    let streams_usage = json["stream_options"]["include_usage"] == true;
    let frame = Frame { worker, id: worker.fresh_id("cmpl-"), created: unix_now(), model, streams_usage };
    if request.body.is_stream() {
        return stream(&frame, asks, reply).await;
    }
    let (mut listed, mut usage) = (Vec::new(), Usage::default());
    for (echo, ask) in asks {
        let mut generation = match Generation::enter(worker, ask) {
            Ok(generation) => generation,
            Err(invalid) => return Ok(Err(invalid)),
        };
        generation.complete(reply).await?;
        usage.add(generation.usage);
        for answer in &generation.answers {
            let text = format!("{echo}{}", answer.text);
            listed.push(choice(listed.len(), &text, &json!(finish_reason(&answer.finish))));
        }
    }
    usage.settle(reply);
    let mut body = frame.json(json!(listed));
    body["usage"] = usage_json(usage);
    send(worker, &body, reply).await
}

struct Frame<'w> {
    worker: &'w Worker,
    id: String,
    created: u64,
    model: String,
    /// Whether a stream ends with an event that has the usage.
    streams_usage: bool,
}

impl Frame<'_> {
    fn json(&self, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.worker.config.name,
            "choices": choices,
        })
    }

    fn event(&self, index: usize, text: &str, reason: Value) -> Vec<u8> {
        sse::data(&self.json(json!([choice(index, text, &reason)])))
    }
}

async fn stream(frame: &Frame<'_>, asks: Vec<(String, Ask)>, reply: &mut Reply<'_, '_>) -> Answered {
    let mut usage = Usage::default();
    let (mut first, mut is_open) = (0, false);
    for (echo, ask) in asks {
        let mut generation = match Generation::enter(frame.worker, ask) {
            Ok(generation) => generation,
            Err(invalid) if !is_open => return Ok(Err(invalid)),
            Err(Invalid(status, message)) => {
                // The head has left: what remains is to say it in the stream.
                reply.event(&frame.worker.error_event(status, &message)).await?;
                return reply.end().await.map(Ok);
            }
        };
        if !std::mem::replace(&mut is_open, true) {
            let worker = frame.worker;
            reply.stream(worker.stream_head(worker.error_event(500, "a scripted failure"))).await?;
        }
        one(frame, &mut generation, (first, &echo), reply).await?;
        first += generation.answers.len();
        usage.add(generation.usage);
    }
    usage.settle(reply);
    if frame.streams_usage {
        let mut last = frame.json(json!([]));
        last["usage"] = usage_json(usage);
        reply.event(&sse::data(&last)).await?;
    }
    reply.terminal(sse::DONE).await?;
    reply.end().await.map(Ok)
}

/// Streams the choices of one prompt, numbered from `first`.
async fn one(
    frame: &Frame<'_>,
    generation: &mut Generation,
    (first, echo): (usize, &str),
    reply: &mut Reply<'_, '_>,
) -> Result<(), Cut> {
    generation.start(reply).await?;
    if !echo.is_empty() {
        for choice in 0..generation.answers.len() {
            reply.event(&frame.event(first + choice, echo, Value::Null)).await?;
        }
    }
    loop {
        let event = match generation.step(reply).await? {
            Step::Part(choice, part, _) => frame.event(first + choice, &part.text, Value::Null),
            Step::Finished(choice, answer) => frame.event(first + choice, "", json!(finish_reason(&answer.finish))),
            Step::Over => return Ok(()),
        };
        reply.event(&event).await?;
    }
}

fn choice(index: usize, text: &str, reason: &Value) -> Value {
    json!({ "index": index, "text": text, "logprobs": null, "finish_reason": reason })
}

/// What to repeat in front, and the neutral form, for each prompt.
fn asks(worker: &Worker, json: &Value) -> Result<Vec<(String, Ask)>, Invalid> {
    let choices = choices(json)?;
    // The API's own default; zero means that only the prompt is wanted.
    let tokens_max = Some(number(json, "max_tokens", 0)?.unwrap_or(16));
    let ask = |Written { text, tokens }: Written| {
        let echo = if json["echo"] == true { text.clone() } else { String::new() };
        let ask = Ask {
            prompt: tokens,
            last_user: text,
            tokens_max,
            stops: stops(json, "stop"),
            choices,
            ignores_end: json["ignore_eos"] == true,
            namespace: namespace(worker, json),
            ..Ask::default()
        };
        (echo, ask)
    };
    Ok(prompts(&json["prompt"])?.into_iter().map(ask).collect())
}
