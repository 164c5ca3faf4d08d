//! `/v1/chat/completions`.

use serde_json::{Value, json};
use smg_base::hash;

use super::{
    Invalid, Request,
    generation::{Generation, Step, Usage, number, stops},
    prompt::Prompt,
};
use crate::{
    config::Dialect,
    reply::{Cut, Reply},
    script::{Answer, Ask, Call, Finish, Part, PartKind, Tool, ToolChoice},
    worker::{Worker, unix_now},
};

/// Choices of one request.
const CHOICES_MAX: u64 = 128;

/// Answers a chat completion.
pub(crate) async fn answer(worker: &Worker, request: &Request, reply: &mut Reply<'_, '_>) -> Result<(), Cut> {
    let json = &request.body.json;
    let entered = super::checked_model(worker, json).and_then(|model| {
        let ask = ask(json)?;
        Ok((model, Generation::enter(worker, &ask, reply)?))
    });
    let (model, generation) = match entered {
        Ok(entered) => entered,
        Err(Invalid(status, message)) => return reply.plain(worker.error(status, &message)).await,
    };
    let chat = Chat { worker, id: worker.fresh_id("chatcmpl-"), created: unix_now(), model };
    if request.body.is_stream() {
        let options = &json["stream_options"];
        let wants_usage = options["include_usage"].as_bool().unwrap_or(false);
        chat.stream(generation, wants_usage, reply).await
    } else {
        chat.whole(generation, reply).await
    }
}

struct Chat<'w> {
    worker: &'w Worker,
    id: String,
    created: u64,
    model: String,
}

impl Chat<'_> {
    async fn whole(&self, mut generation: Generation, reply: &mut Reply<'_, '_>) -> Result<(), Cut> {
        generation.complete(reply).await?;
        generation.settle(reply);
        let choices: Vec<Value> =
            generation.answers.iter().enumerate().map(|(index, answer)| self.choice(index, answer)).collect();
        let body = json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.worker.config.name,
            "choices": choices,
            "usage": usage_json(generation.usage),
        });
        reply.plain(self.worker.json(200, &body)).await
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

    async fn stream(
        &self,
        mut generation: Generation,
        wants_usage: bool,
        reply: &mut Reply<'_, '_>,
    ) -> Result<(), Cut> {
        let error = self.worker.error_body(500, "a scripted failure");
        reply.stream("text/event-stream; charset=utf-8", format!("data: {error}\n\n").into_bytes()).await?;
        generation.start(reply).await?;
        let prefix = self.prefix();
        for index in 0..generation.answers.len() {
            let delta = json!({ "role": "assistant", "content": "" });
            reply.event(&chunk(&prefix, index, &delta.to_string(), "null")).await?;
        }
        loop {
            match generation.step(reply).await? {
                Step::Part(index, part, id) => {
                    reply.event(&chunk(&prefix, index, &delta(part, id), "null")).await?;
                }
                Step::Finished(index, answer) => {
                    let reason = format!("\"{}\"", finish_reason(&answer.finish));
                    reply.event(&chunk(&prefix, index, "{}", &reason)).await?;
                }
                Step::Over => break,
            }
        }
        generation.settle(reply);
        if wants_usage {
            let usage = usage_json(generation.usage);
            reply.event(format!("{prefix}],\"usage\":{usage}}}\n\n").as_bytes()).await?;
        }
        reply.terminal(b"data: [DONE]\n\n").await?;
        reply.end().await
    }

    /// What all events begin with, up to the list of choices.
    fn prefix(&self) -> String {
        let start = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.worker.config.name,
        })
        .to_string();
        format!("data: {},\"choices\":[", start.trim_end_matches('}'))
    }
}

fn chunk(prefix: &str, index: usize, delta: &str, reason: &str) -> Vec<u8> {
    format!("{prefix}{{\"index\":{index},\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{reason}}}]}}\n\n")
        .into_bytes()
}

fn delta(part: &Part, call_id: &str) -> String {
    let text = &part.text;
    match part.kind {
        PartKind::Text => json!({ "content": text }),
        PartKind::Reasoning => json!({ "reasoning_content": text }),
        PartKind::Call(place) => json!({ "tool_calls": [{
            "index": place, "id": call_id, "type": "function", "function": { "name": text, "arguments": "" },
        }] }),
        PartKind::Arguments(place) => json!({ "tool_calls": [{ "index": place, "function": { "arguments": text } }] }),
    }
    .to_string()
}

fn call_json(call: &Call) -> Value {
    json!({ "id": call.id, "type": "function", "function": { "name": call.name, "arguments": call.arguments } })
}

/// The neutral form of a chat request.
fn ask(json: &Value) -> Result<Ask, Invalid> {
    let messages = json["messages"].as_array().filter(|messages| !messages.is_empty());
    let messages = messages.ok_or_else(|| Invalid::new("`messages` must be a list with at least one message"))?;
    let mut prompt = Prompt::default();
    prompt.tools(&json["tools"]);
    for message in messages {
        let role = message["role"].as_str().ok_or_else(|| Invalid::new("a message needs a `role`"))?;
        match message["tool_calls"].as_array() {
            Some(calls) if !calls.is_empty() => {
                prompt.begin(role);
                for call in calls {
                    let function = &call["function"];
                    prompt.call(
                        function["name"].as_str().unwrap_or_default(),
                        function["arguments"].as_str().unwrap_or_default(),
                    );
                }
                prompt.end();
            }
            _ => prompt.message(role, &message["content"]),
        }
    }
    prompt.finish();
    let tokens_max = match number(json, "max_completion_tokens", 1..=u64::from(u32::MAX))? {
        None => number(json, "max_tokens", 1..=u64::from(u32::MAX))?,
        given => given,
    };
    Ok(Ask {
        prompt: prompt.tokens,
        last_user: prompt.last_user,
        ends_with_tool_result: prompt.ends_with_tool_result,
        tools: tools(json),
        tool_choice: tool_choice(&json["tool_choice"]),
        tokens_max,
        stops: stops(json, "stop"),
        choices: number(json, "n", 1..=CHOICES_MAX)?.unwrap_or(1),
        ignores_end: json["ignore_eos"].as_bool().unwrap_or(false),
        may_think: json["reasoning_effort"].is_string() || json["chat_template_kwargs"]["enable_thinking"] == true,
        schema: schema(&json["response_format"]),
        salt: salt(json),
    })
}

/// What keeps the cache entries of a request apart: the adapter it names, and its salt.
pub(crate) fn salt(json: &Value) -> u64 {
    let text = |name: &str| json[name].as_str().unwrap_or_default();
    let salt = hash::stable64(text("cache_salt").as_bytes());
    hash::mix(salt, hash::stable64(text("lora_path").as_bytes()))
}

fn tools(json: &Value) -> Vec<Tool> {
    let tools = json["tools"].as_array().into_iter().flatten();
    let functions = tools.map(|tool| tool.get("function").unwrap_or(tool));
    let named = functions.filter_map(|function| {
        let name = function["name"].as_str()?.to_owned();
        Some(Tool { name, schema: function["parameters"].clone() })
    });
    named.collect()
}

fn tool_choice(choice: &Value) -> ToolChoice {
    match (choice.as_str(), choice["function"]["name"].as_str()) {
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

fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::End | Finish::StopText(_) => "stop",
        Finish::Length => "length",
        Finish::ToolCalls => "tool_calls",
    }
}

/// The `usage` of the OpenAI family.
pub(crate) fn usage_json(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.output,
        "total_tokens": usage.prompt + usage.output,
        "prompt_tokens_details": { "cached_tokens": usage.cached },
    })
}
