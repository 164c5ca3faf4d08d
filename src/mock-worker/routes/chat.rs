//! `/v1/chat/completions`.

use serde_json::{Value, json};

use super::{
    Answered, Invalid, Request, checked_model,
    generation::{Generation, Step, Usage, choices, namespace, number, stops},
    prompt::Prompt,
    send, sse,
};
use crate::{
    config::Dialect,
    reply::{Cut, Reply},
    script::{Answer, Ask, Call, Finish, Part, PartKind, Tool, ToolChoice},
    worker::{Worker, unix_now},
};

/// Answers a chat completion.
pub(super) async fn answer(worker: &Worker, request: &Request, reply: &mut Reply<'_, '_>) -> Answered {
    let json = &request.body.json;
    let entered = checked_model(worker, &request.body)
        .and_then(|model| Ok((model, Generation::enter(worker, ask(worker, json)?)?)));
    let (model, mut generation) = match entered {
        Ok(entered) => entered,
        Err(invalid) => return Ok(Err(invalid)),
    };
    let streams_usage = json["stream_options"]["include_usage"] == true;
    let chat = Chat { worker, id: worker.fresh_id("chatcmpl-"), created: unix_now(), model, streams_usage };
    if request.body.is_stream() {
        return chat.stream(generation, reply).await.map(Ok);
    }
    generation.complete(reply).await?;
    generation.usage.settle(reply);
    send(worker, &chat.whole(&generation), reply).await
}

struct Chat<'w> {
    worker: &'w Worker,
    id: String,
    created: u64,
    model: String,
    /// Whether a stream ends with an event that has the usage.
    streams_usage: bool,
}

impl Chat<'_> {
    fn whole(&self, generation: &Generation) -> Value {
        let choices = generation.answers.iter().enumerate().map(|(index, answer)| self.choice(index, answer));
        json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.worker.config.name,
            "choices": choices.collect::<Vec<_>>(),
            "usage": usage_json(generation.usage),
        })
    }

    fn choice(&self, index: usize, answer: &Answer) -> Value {
        let mut message = json!({ "role": "assistant", "content": answer.text });
        if !answer.calls.is_empty() {
            message["content"] = Value::Null;
            message["tool_calls"] = answer.calls.iter().map(call_json).collect();
        }
        if !answer.reasoning.is_empty() {
            message["reasoning_content"] = json!(answer.reasoning);
        }
        if self.worker.config.dialect == Dialect::Openai {
            message["refusal"] = Value::Null;
        }
        json!({ "index": index, "message": message, "logprobs": null, "finish_reason": finish_reason(&answer.finish) })
    }

    async fn stream(&self, mut generation: Generation, reply: &mut Reply<'_, '_>) -> Result<(), Cut> {
        let worker = self.worker;
        reply.stream(worker.stream_head(worker.error_event(500, "a scripted failure"))).await?;
        generation.start(reply).await?;
        let prefix = self.prefix();
        // Where the usage will come at the end, OpenAI says in every event that it is not there yet.
        let usage_end = format!("{prefix}],\"usage\":");
        let prefix = self.with_usage_to_come(prefix);
        for index in 0..generation.answers.len() {
            reply.event(&chunk(&prefix, index, "{\"role\":\"assistant\",\"content\":\"\"}", "null")).await?;
        }
        loop {
            match generation.step(reply).await? {
                Step::Part(index, part, call_id) => {
                    reply.event(&chunk(&prefix, index, &delta(part, call_id).to_string(), "null")).await?;
                }
                Step::Finished(index, answer) => {
                    let reason = format!("\"{}\"", finish_reason(&answer.finish));
                    reply.event(&chunk(&prefix, index, "{}", &reason)).await?;
                }
                Step::Over => break,
            }
        }
        generation.usage.settle(reply);
        if self.streams_usage {
            let usage = usage_json(generation.usage);
            reply.event(format!("{usage_end}{usage}}}\n\n").as_bytes()).await?;
        }
        reply.terminal(sse::DONE).await?;
        reply.end().await
    }

    fn with_usage_to_come(&self, prefix: String) -> String {
        let says_so = self.streams_usage && self.worker.config.dialect == Dialect::Openai;
        if says_so { prefix.replace(",\"choices\":[", ",\"usage\":null,\"choices\":[") } else { prefix }
    }

    /// What all events begin with, up to the list of choices.
    fn prefix(&self) -> String {
        let start = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.worker.config.name,
        });
        format!("data: {},\"choices\":[", start.to_string().trim_end_matches('}'))
    }
}

fn chunk(prefix: &str, index: usize, delta: &str, reason: &str) -> Vec<u8> {
    format!("{prefix}{{\"index\":{index},\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{reason}}}]}}\n\n")
        .into_bytes()
}

fn delta(part: &Part, call_id: &str) -> Value {
    let text = &part.text;
    match part.kind {
        PartKind::Text => json!({ "content": text }),
        PartKind::Reasoning => json!({ "reasoning_content": text }),
        PartKind::Call(place) => json!({ "tool_calls": [{
            "index": place, "id": call_id, "type": "function", "function": { "name": text, "arguments": "" },
        }] }),
        PartKind::Arguments(place) => json!({ "tool_calls": [{ "index": place, "function": { "arguments": text } }] }),
    }
}

fn call_json(call: &Call) -> Value {
    json!({ "id": call.id, "type": "function", "function": { "name": call.name, "arguments": call.arguments } })
}

/// The prompt that chat messages make.
pub(super) fn prompt(json: &Value) -> Result<Prompt, Invalid> {
    let messages = json["messages"].as_array().filter(|messages| !messages.is_empty());
    let messages = messages.ok_or_else(|| Invalid::new("`messages` must be a list with at least one message"))?;
    let mut prompt = Prompt::default();
    prompt.tools(&json["tools"]);
    for message in messages {
        let role = message["role"].as_str().ok_or_else(|| Invalid::new("a message needs a `role`"))?;
        match message["tool_calls"].as_array() {
            Some(calls) if !calls.is_empty() => {
                prompt.begin(role);
                for function in calls.iter().map(|call| &call["function"]) {
                    prompt.call(text(&function["name"]), text(&function["arguments"]));
                }
                prompt.end();
            }
            _ => prompt.message(role, &message["content"]),
        }
    }
    prompt.finish();
    Ok(prompt)
}

fn ask(worker: &Worker, json: &Value) -> Result<Ask, Invalid> {
    let prompt = prompt(json)?;
    let tokens_max = match number(json, "max_completion_tokens", 1)? {
        None => number(json, "max_tokens", 1)?,
        given => given,
    };
    Ok(Ask {
        prompt: prompt.tokens,
        last_user: prompt.last_user,
        ends_with_tool_result: prompt.ends_with_tool_result,
        tools: tools(json),
        tool_choice: tool_choice(&json["tool_choice"]),
        single_call: json["parallel_tool_calls"] == false,
        tokens_max,
        stops: stops(json, "stop"),
        choices: choices(json)?,
        ignores_end: json["ignore_eos"] == true,
        may_think: json["reasoning_effort"].is_string() || json["chat_template_kwargs"]["enable_thinking"] == true,
        schema: schema(&json["response_format"]),
        namespace: namespace(worker, json),
    })
}

/// The functions among the tools of a request of the OpenAI family.
pub(super) fn tools(json: &Value) -> Vec<Tool> {
    let functions = json["tools"].as_array().into_iter().flatten().map(|tool| tool.get("function").unwrap_or(tool));
    let named = functions.filter_map(|function| {
        let name = function["name"].as_str()?.to_owned();
        Some(Tool { name, schema: function["parameters"].clone() })
    });
    named.collect()
}

/// The `tool_choice` of a request of the OpenAI family.
pub(super) fn tool_choice(choice: &Value) -> ToolChoice {
    let name = choice["function"]["name"].as_str().or(choice["name"].as_str());
    match (choice.as_str(), name) {
        (Some("none"), _) => ToolChoice::None,
        (Some("required"), _) => ToolChoice::Required,
        (_, Some(name)) => ToolChoice::Named(name.to_owned()),
        _ => ToolChoice::Auto,
    }
}

fn schema(format: &Value) -> Option<Value> {
    match format["type"].as_str()? {
        "json_object" => Some(json!({ "properties": { "ok": { "type": "boolean" } } })),
        "json_schema" => Some(format["json_schema"]["schema"].clone()),
        _ => None,
    }
}

/// Why an answer is over, in the words of the OpenAI family.
pub(super) fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::End | Finish::StopText(_) => "stop",
        Finish::Length => "length",
        Finish::ToolCalls => "tool_calls",
    }
}

/// The `usage` of the OpenAI family.
pub(super) fn usage_json(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.output,
        "total_tokens": usage.prompt + usage.output,
        "prompt_tokens_details": { "cached_tokens": usage.cached },
    })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
