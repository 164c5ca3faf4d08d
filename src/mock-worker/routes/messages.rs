//! Anthropic's `/v1/messages` and `/v1/messages/count_tokens`.

use serde_json::{Value, json};

use super::{
    Answered, Invalid, Request, checked_model,
    generation::{Generation, Step, Usage, namespace, number, stops},
    prompt::Prompt,
    send, sse,
};
use crate::{
    config::Dialect,
    reply::{Cut, Reply},
    script::{Answer, Ask, Call, Finish, Part, PartKind, Tool, ToolChoice},
    worker::Worker,
};

/// Answers a message.
pub(super) async fn answer(worker: &Worker, request: &Request, reply: &mut Reply<'_, '_>) -> Answered {
    let json = &request.body.json;
    let entered = checked_version(worker, request)
        .and_then(|()| checked_model(worker, &request.body))
        .and_then(|model| Ok((model, Generation::enter(worker, ask(worker, json)?)?)));
    let (model, mut generation) = match entered {
        Ok(entered) => entered,
        Err(invalid) => return Ok(Err(invalid)),
    };
    let id = worker.fresh_id("msg_");
    if request.body.is_stream() {
        let frame = Frame { worker, id, model };
        return frame.stream(generation, reply).await.map(Ok);
    }
    generation.complete(reply).await?;
    generation.usage.settle(reply);
    let Some(answer) = generation.answers.first() else { return Ok(Err(Invalid::new("nothing was asked for"))) };
    let mut body = message(&id, &model, blocks(answer), &usage_json(generation.usage));
    (body["stop_reason"], body["stop_sequence"]) = stop(&answer.finish);
    send(worker, &body, reply).await
}

/// Counts the tokens of a message.
pub(super) async fn count(worker: &Worker, request: &Request, reply: &mut Reply<'_, '_>) -> Answered {
    let counted = checked_model(worker, &request.body).and_then(|_| prompt(&request.body.json));
    match counted {
        Ok(prompt) => send(worker, &json!({ "input_tokens": prompt.tokens.len() }), reply).await,
        Err(invalid) => Ok(Err(invalid)),
    }
}

struct Frame<'w> {
    worker: &'w Worker,
    id: String,
    model: String,
}

impl Frame<'_> {
    async fn stream(&self, mut generation: Generation, reply: &mut Reply<'_, '_>) -> Result<(), Cut> {
        let error = json!({ "type": "error", "error": { "type": "api_error", "message": "a scripted failure" } });
        reply.stream(self.worker.stream_head(sse::named("error", &error))).await?;
        generation.start(reply).await?;
        let usage = usage_json(Usage { output: 1, ..generation.usage });
        let start = message(&self.id, &self.model, Vec::new(), &usage);
        reply.event(&sse::named("message_start", &json!({ "type": "message_start", "message": start }))).await?;
        let mut open: Option<(PartKind, usize)> = None;
        let mut blocks = 0;
        let finish = loop {
            let (part, call_id) = match generation.step(reply).await? {
                Step::Part(_, part, call_id) => (part, call_id),
                Step::Finished(_, answer) => break answer.finish.clone(),
                Step::Over => break Finish::End,
            };
            if !open.is_some_and(|(kind, _)| continues(kind, part.kind)) {
                close(open, reply).await?;
                open = Some((part.kind, blocks));
                let start =
                    json!({ "type": "content_block_start", "index": blocks, "content_block": opening(part, call_id) });
                reply.event(&sse::named("content_block_start", &start)).await?;
                if blocks == 0 {
                    reply.event(&sse::named("ping", &json!({ "type": "ping" }))).await?;
                }
                blocks += 1;
            }
            if let Some(delta) = delta(part) {
                let delta = json!({ "type": "content_block_delta", "index": blocks - 1, "delta": delta });
                reply.event(&sse::named("content_block_delta", &delta)).await?;
            }
        };
        close(open, reply).await?;
        // Lets go of the running slot before the last bytes leave.
        let _ = generation.step(reply).await?;
        generation.usage.settle(reply);
        let (reason, sequence) = stop(&finish);
        let delta = json!({
            "type": "message_delta",
            "delta": { "stop_reason": reason, "stop_sequence": sequence },
            "usage": usage_json(generation.usage),
        });
        reply.event(&sse::named("message_delta", &delta)).await?;
        reply.terminal(&sse::named("message_stop", &json!({ "type": "message_stop" }))).await?;
        reply.end().await
    }
}

/// Whether a part of kind `next` goes on with the block that `open` began.
fn continues(open: PartKind, next: PartKind) -> bool {
    match (open, next) {
        (PartKind::Call(call), PartKind::Arguments(next)) => call == next,
        (open, next) => open == next,
    }
}

async fn close(open: Option<(PartKind, usize)>, reply: &mut Reply<'_, '_>) -> Result<(), Cut> {
    let Some((_, index)) = open else { return Ok(()) };
    reply.event(&sse::named("content_block_stop", &json!({ "type": "content_block_stop", "index": index }))).await
}

fn opening(part: &Part, call_id: &str) -> Value {
    match part.kind {
        PartKind::Text => json!({ "type": "text", "text": "" }),
        PartKind::Reasoning => json!({ "type": "thinking", "thinking": "", "signature": "" }),
        PartKind::Call(_) | PartKind::Arguments(_) => {
            json!({ "type": "tool_use", "id": tool_use_id(call_id), "name": part.text, "input": {} })
        }
    }
}

fn delta(part: &Part) -> Option<Value> {
    match part.kind {
        PartKind::Text => Some(json!({ "type": "text_delta", "text": part.text })),
        PartKind::Reasoning => Some(json!({ "type": "thinking_delta", "thinking": part.text })),
        PartKind::Call(_) => None,
        PartKind::Arguments(_) => Some(json!({ "type": "input_json_delta", "partial_json": part.text })),
    }
}

fn message(id: &str, model: &str, content: Vec<Value>, usage: &Value) -> Value {
    json!({
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": null,
        "stop_sequence": null,
        "usage": usage,
    })
}

fn blocks(answer: &Answer) -> Vec<Value> {
    let mut blocks = Vec::new();
    if !answer.reasoning.is_empty() {
        blocks.push(json!({ "type": "thinking", "thinking": answer.reasoning, "signature": "mock" }));
    }
    if !answer.text.is_empty() {
        blocks.push(json!({ "type": "text", "text": answer.text }));
    }
    blocks.extend(answer.calls.iter().map(|Call { id, name, arguments }| {
        let input: Value = serde_json::from_str(arguments).unwrap_or_default();
        json!({ "type": "tool_use", "id": tool_use_id(id), "name": name, "input": input })
    }));
    blocks
}

fn tool_use_id(call_id: &str) -> String {
    format!("toolu_{}", call_id.trim_start_matches("call_"))
}

/// Why it stopped, and at which text.
fn stop(finish: &Finish) -> (Value, Value) {
    match finish {
        Finish::End => (json!("end_turn"), Value::Null),
        Finish::Length => (json!("max_tokens"), Value::Null),
        Finish::StopText(stop) => (json!("stop_sequence"), json!(stop)),
        Finish::ToolCalls => (json!("tool_use"), Value::Null),
    }
}

/// Anthropic counts what the cache had apart from the input.
fn usage_json(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt.saturating_sub(usage.cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.output,
    })
}

fn checked_version(worker: &Worker, request: &Request) -> Result<(), Invalid> {
    let is_missing = worker.config.dialect == Dialect::Anthropic && request.head.field("anthropic-version").is_none();
    if is_missing { Err(Invalid::new("anthropic-version: header is required")) } else { Ok(()) }
}

fn prompt(json: &Value) -> Result<Prompt, Invalid> {
    let messages = json["messages"].as_array().filter(|messages| !messages.is_empty());
    let messages = messages.ok_or_else(|| Invalid::new("messages: at least one message is required"))?;
    let mut prompt = Prompt::default();
    prompt.tools(&json["tools"]);
    if !json["system"].is_null() {
        prompt.message("system", &json["system"]);
    }
    for message in messages {
        let role = message["role"].as_str().ok_or_else(|| Invalid::new("messages: Field required: role"))?;
        prompt.message(role, &message["content"]);
    }
    prompt.finish();
    Ok(prompt)
}

fn ask(worker: &Worker, json: &Value) -> Result<Ask, Invalid> {
    let prompt = prompt(json)?;
    let tokens_max = number(json, "max_tokens", 1)?.ok_or_else(|| Invalid::new("max_tokens: Field required"))?;
    Ok(Ask {
        prompt: prompt.tokens,
        last_user: prompt.last_user,
        ends_with_tool_result: prompt.ends_with_tool_result,
        tools: tools(json),
        tool_choice: tool_choice(&json["tool_choice"]),
        single_call: json["tool_choice"]["disable_parallel_tool_use"] == true,
        tokens_max: Some(tokens_max),
        stops: stops(json, "stop_sequences"),
        choices: 1,
        may_think: json["thinking"]["type"] == "enabled",
        namespace: namespace(worker, json),
        ..Ask::default()
    })
}

fn tools(json: &Value) -> Vec<Tool> {
    let tools = json["tools"].as_array().into_iter().flatten();
    let named = tools.filter_map(|tool| {
        let name = tool["name"].as_str()?.to_owned();
        Some(Tool { name, schema: tool["input_schema"].clone() })
    });
    named.collect()
}

fn tool_choice(choice: &Value) -> ToolChoice {
    match (choice["type"].as_str(), choice["name"].as_str()) {
        (Some("none"), _) => ToolChoice::None,
        (Some("any"), _) => ToolChoice::Required,
        (Some("tool"), Some(name)) => ToolChoice::Named(name.to_owned()),
        _ => ToolChoice::Auto,
    }
}
