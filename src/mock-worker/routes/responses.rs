//! `/v1/responses` and what can be done with a stored one.

use serde_json::{Value, json};

use super::{
    Answered, Invalid, Request,
    chat::{tool_choice, tools},
    checked_model,
    generation::{Generation, Step, Usage, namespace, number},
    prompt::Prompt,
    send, sse,
    table::Route,
};
use crate::{
    reply::{Cut, Reply},
    script::{Answer, Ask, Finish, Part, PartKind},
    store::{Cancelled, Stored},
    worker::{Worker, unix_now},
};

/// Answers a request for a response.
pub(super) async fn answer(worker: &Worker, request: &Request, reply: &mut Reply<'_, '_>) -> Answered {
    let json = &request.body.json;
    let entered = checked_model(worker, &request.body).and_then(|model| {
        let turn = Turn::read(worker, json)?;
        let generation = Generation::enter(worker, ask(worker, json, &turn)?)?;
        Ok((model, turn, generation))
    });
    let (model, turn, mut generation) = match entered {
        Ok(entered) => entered,
        Err(invalid) => return Ok(Err(invalid)),
    };
    let frame = Frame { worker, id: worker.fresh_id("resp_"), created: unix_now(), model, json };
    if request.body.is_stream() {
        return frame.stream(generation, turn, reply).await.map(Ok);
    }
    generation.complete(reply).await?;
    generation.usage.settle(reply);
    let body = frame.finished(&generation);
    let shown = frame.keep(&body, turn);
    send(worker, &shown, reply).await
}

/// Answers a request about the stored response called `id`.
pub(super) async fn stored(worker: &Worker, route: Route, id: &str, reply: &mut Reply<'_, '_>) -> Answered {
    let unknown = || Invalid(404, format!("Response with id '{id}' not found."));
    let body = match route {
        Route::Response => worker.store.fetch(id).map(|stored| stored.response).ok_or_else(unknown),
        Route::ForgetResponse if worker.store.forget(id) => {
            Ok(json!({ "id": id, "object": "response.deleted", "deleted": true }))
        }
        Route::ResponseInputs => worker.store.fetch(id).map(|stored| inputs(&stored.input)).ok_or_else(unknown),
        Route::CancelResponse => match worker.store.cancel(id) {
            Cancelled::Yes(response) => Ok(response),
            Cancelled::NotPending => Err(Invalid::new("Cannot cancel a synchronous response.")),
            Cancelled::Unknown => Err(unknown()),
        },
        _ => Err(unknown()),
    };
    match body {
        Ok(body) => send(worker, &body, reply).await,
        Err(invalid) => Ok(Err(invalid)),
    }
}

fn inputs(items: &[Value]) -> Value {
    let id = |item: Option<&Value>| item.map_or(Value::Null, |item| item["id"].clone());
    json!({
        "object": "list", "data": items, "first_id": id(items.first()), "last_id": id(items.last()), "has_more": false,
    })
}

/// What a request adds to a conversation.
struct Turn {
    /// The items of this request.
    input: Vec<Value>,
    /// The items of the conversation, those included.
    conversation: Vec<Value>,
}

impl Turn {
    fn read(worker: &Worker, json: &Value) -> Result<Self, Invalid> {
        let mut conversation = match json["previous_response_id"].as_str() {
            None => Vec::new(),
            Some(id) => {
                let missing = || Invalid(404, format!("Previous response with id '{id}' not found."));
                worker.store.fetch(id).ok_or_else(missing)?.conversation
            }
        };
        let mut input = match &json["input"] {
            Value::String(text) => vec![json!({ "type": "message", "role": "user", "content": text })],
            Value::Array(items) if !items.is_empty() => items.clone(),
            _ => return Err(Invalid::new("`input` must be a text or a list of items")),
        };
        for item in &mut input {
            if item.is_object() && item["id"].is_null() {
                item["id"] = json!(worker.fresh_id("msg_"));
            }
        }
        conversation.extend(input.iter().cloned());
        Ok(Self { input, conversation })
    }
}

struct Frame<'w> {
    worker: &'w Worker,
    id: String,
    created: u64,
    model: String,
    json: &'w Value,
}

impl Frame<'_> {
    fn response(&self, status: &str, output: Vec<Value>, usage: Value) -> Value {
        let asked = |name: &str, default: Value| self.json.get(name).cloned().unwrap_or(default);
        json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "model": self.model,
            "output": output,
            "usage": usage,
            "error": null,
            "incomplete_details": null,
            "instructions": asked("instructions", Value::Null),
            "metadata": asked("metadata", json!({})),
            "parallel_tool_calls": asked("parallel_tool_calls", json!(true)),
            "previous_response_id": asked("previous_response_id", Value::Null),
            "store": asked("store", json!(true)),
            "temperature": asked("temperature", json!(1.0)),
            "tool_choice": asked("tool_choice", json!("auto")),
            "tools": asked("tools", json!([])),
            "top_p": asked("top_p", json!(1.0)),
            "user": asked("user", Value::Null),
        })
    }

    fn finished(&self, generation: &Generation) -> Value {
        let answer = generation.answers.first().cloned().unwrap_or_default();
        let is_cut = answer.finish == Finish::Length;
        let status = if is_cut { "incomplete" } else { "completed" };
        let mut body = self.response(status, self.items(&answer), usage_json(generation.usage));
        if is_cut {
            body["incomplete_details"] = json!({ "reason": "max_output_tokens" });
        }
        body
    }

    /// Keeps the response if it is to be kept; what the caller is shown.
    fn keep(&self, body: &Value, turn: Turn) -> Value {
        let is_background = self.json["background"] == true;
        if self.json["store"] != false {
            let Turn { input, mut conversation } = turn;
            conversation.extend(body["output"].as_array().into_iter().flatten().cloned());
            let stored = Stored { response: body.clone(), input, conversation, is_pending: is_background };
            self.worker.store.keep(&self.id, stored);
        }
        if is_background { self.response("queued", Vec::new(), Value::Null) } else { body.clone() }
    }

    fn items(&self, answer: &Answer) -> Vec<Value> {
        let mut items = Vec::new();
        if !answer.reasoning.is_empty() {
            items.push(self.item(PartKind::Reasoning, "completed", &answer.reasoning, answer));
        }
        if answer.calls.is_empty() {
            items.push(self.item(PartKind::Text, "completed", &answer.text, answer));
        }
        for (place, call) in answer.calls.iter().enumerate() {
            items.push(self.item(PartKind::Call(place), "completed", &call.arguments, answer));
        }
        items
    }

    /// An output item with the text it has so far.
    fn item(&self, kind: PartKind, status: &str, text: &str, answer: &Answer) -> Value {
        let suffix = self.id.trim_start_matches("resp_");
        match kind {
            PartKind::Reasoning => json!({
                "type": "reasoning", "id": format!("rs_{suffix}"), "status": status, "summary": [],
                "content": if text.is_empty() { json!([]) } else { json!([{ "type": "reasoning_text", "text": text }]) },
            }),
            PartKind::Text => json!({
                "type": "message", "id": format!("msg_{suffix}"), "status": status, "role": "assistant",
                "content": if status == "in_progress" { json!([]) } else { json!([text_part(text)]) },
            }),
            PartKind::Call(place) | PartKind::Arguments(place) => {
                let call = answer.calls.get(place);
                json!({
                    "type": "function_call", "id": format!("fc_{suffix}_{place}"), "status": status,
                    "call_id": call.map(|call| call.id.as_str()), "name": call.map(|call| call.name.as_str()),
                    "arguments": text,
                })
            }
        }
    }

    async fn stream(&self, mut generation: Generation, turn: Turn, reply: &mut Reply<'_, '_>) -> Result<(), Cut> {
        let mut failed = self.response("failed", Vec::new(), Value::Null);
        failed["error"] = json!({ "code": "server_error", "message": "a scripted failure" });
        let failed = json!({ "type": "response.failed", "sequence_number": 1_000_000, "response": failed });
        reply.stream(self.worker.stream_head(sse::named("response.failed", &failed))).await?;
        let started = json!({ "response": self.response("in_progress", Vec::new(), Value::Null) });
        let mut events = Events { frame: self, number: 0, output: 0, open: None };
        events.send("response.created", started.clone(), reply).await?;
        events.send("response.in_progress", started, reply).await?;
        generation.start(reply).await?;
        let answer = generation.answers.first().cloned().unwrap_or_default();
        while let Step::Part(_, part, _) = generation.step(reply).await? {
            events.part(part, &answer, reply).await?;
        }
        events.close(&answer, reply).await?;
        // Lets go of the running slot before the last bytes leave.
        let _ = generation.step(reply).await?;
        generation.usage.settle(reply);
        let body = self.finished(&generation);
        let kind = format!("response.{}", body["status"].as_str().unwrap_or("completed"));
        let _ = self.keep(&body, turn);
        events.terminal(&kind, json!({ "response": body }), reply).await?;
        reply.end().await
    }
}

/// The events of one stream.
struct Events<'f, 'w> {
    frame: &'f Frame<'w>,
    number: u64,
    /// The output item at hand.
    output: usize,
    /// Its kind and what it has so far.
    open: Option<(PartKind, String)>,
}

impl Events<'_, '_> {
    fn event(&mut self, kind: &str, mut body: Value) -> Vec<u8> {
        body["type"] = json!(kind);
        body["sequence_number"] = json!(self.number);
        self.number += 1;
        sse::named(kind, &body)
    }

    async fn send(&mut self, kind: &str, body: Value, reply: &mut Reply<'_, '_>) -> Result<(), Cut> {
        let event = self.event(kind, body);
        reply.event(&event).await
    }

    async fn terminal(&mut self, kind: &str, body: Value, reply: &mut Reply<'_, '_>) -> Result<(), Cut> {
        let event = self.event(kind, body);
        reply.terminal(&event).await
    }

    async fn part(&mut self, part: &Part, answer: &Answer, reply: &mut Reply<'_, '_>) -> Result<(), Cut> {
        let is_new = match (&self.open, part.kind) {
            (Some((PartKind::Call(open), _)), PartKind::Arguments(next)) => *open != next,
            (Some((open, _)), next) => *open != next,
            (None, _) => true,
        };
        if is_new {
            self.close(answer, reply).await?;
            self.open = Some((part.kind, String::new()));
            let item = self.frame.item(part.kind, "in_progress", "", answer);
            self.send("response.output_item.added", json!({ "output_index": self.output, "item": item }), reply)
                .await?;
            if part.kind == PartKind::Text {
                let body = self.of_content(part.kind, answer, json!({ "part": text_part("") }));
                self.send("response.content_part.added", body, reply).await?;
            }
        }
        let kind = match part.kind {
            PartKind::Reasoning => "response.reasoning_text.delta",
            PartKind::Text => "response.output_text.delta",
            PartKind::Arguments(_) => "response.function_call_arguments.delta",
            PartKind::Call(_) => return Ok(()),
        };
        if let Some((_, text)) = &mut self.open {
            text.push_str(&part.text);
        }
        let body = self.of_content(part.kind, answer, json!({ "delta": part.text }));
        self.send(kind, body, reply).await
    }

    async fn close(&mut self, answer: &Answer, reply: &mut Reply<'_, '_>) -> Result<(), Cut> {
        let Some((kind, text)) = self.open.take() else { return Ok(()) };
        let (done, body) = match kind {
            PartKind::Reasoning => ("response.reasoning_text.done", json!({ "text": text })),
            PartKind::Text => ("response.output_text.done", json!({ "text": text, "logprobs": [] })),
            PartKind::Call(_) | PartKind::Arguments(_) => {
                ("response.function_call_arguments.done", json!({ "arguments": text }))
            }
        };
        let body = self.of_content(kind, answer, body);
        self.send(done, body, reply).await?;
        if kind == PartKind::Text {
            let body = self.of_content(kind, answer, json!({ "part": text_part(&text) }));
            self.send("response.content_part.done", body, reply).await?;
        }
        let item = self.frame.item(kind, "completed", &text, answer);
        self.send("response.output_item.done", json!({ "output_index": self.output, "item": item }), reply).await?;
        self.output += 1;
        Ok(())
    }

    /// Adds to `body` which part of the output it is about.
    fn of_content(&self, kind: PartKind, answer: &Answer, mut body: Value) -> Value {
        body["item_id"] = self.frame.item(kind, "in_progress", "", answer)["id"].take();
        body["output_index"] = json!(self.output);
        if matches!(kind, PartKind::Text | PartKind::Reasoning) {
            body["content_index"] = json!(0);
        }
        body
    }
}

fn text_part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [] })
}

fn usage_json(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt,
        "input_tokens_details": { "cached_tokens": usage.cached },
        "output_tokens": usage.output,
        "output_tokens_details": { "reasoning_tokens": 0 },
        "total_tokens": usage.prompt + usage.output,
    })
}

fn ask(worker: &Worker, json: &Value, turn: &Turn) -> Result<Ask, Invalid> {
    let mut prompt = Prompt::default();
    prompt.tools(&json["tools"]);
    if !json["instructions"].is_null() {
        prompt.message("system", &json["instructions"]);
    }
    for item in &turn.conversation {
        let text = |name: &str| item[name].as_str().unwrap_or_default();
        match text("type") {
            "function_call" => {
                prompt.begin("assistant");
                prompt.call(text("name"), text("arguments"));
                prompt.end();
            }
            "function_call_output" => prompt.message("tool", &item["output"]),
            "reasoning" => {}
            _ => prompt.message(item["role"].as_str().unwrap_or("user"), &item["content"]),
        }
    }
    prompt.finish();
    let schema = json["text"]["format"].get("schema").cloned();
    Ok(Ask {
        prompt: prompt.tokens,
        last_user: prompt.last_user,
        ends_with_tool_result: prompt.ends_with_tool_result,
        tools: tools(json),
        tool_choice: tool_choice(&json["tool_choice"]),
        single_call: json["parallel_tool_calls"] == false,
        tokens_max: number(json, "max_output_tokens", 1)?,
        choices: 1,
        may_think: json["reasoning"].is_object(),
        schema,
        namespace: namespace(worker, json),
        ..Ask::default()
    })
}
