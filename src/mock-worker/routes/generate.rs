//! SGLang's native `/generate`.

use serde_json::{Value, json};

use super::{
    Answered, Invalid, Request,
    generation::{Generation, Step, Usage, Written, namespace, number, prompts, stops},
    send, sse,
};
use crate::{
    reply::{Cut, Reply},
    script::{Answer, Ask, Finish},
    worker::Worker,
};

/// Answers a native request. The prompts of a batch run one after the other.
pub(super) async fn answer(worker: &Worker, request: &Request, reply: &mut Reply<'_, '_>) -> Answered {
    let json = &request.body.json;
    let asks = match asks(worker, json) {
        Ok(asks) => asks,
        Err(invalid) => return Ok(Err(invalid)),
    };
    let is_batch = asks.len() > 1 || json["text"].is_array() || json["input_ids"][0].is_array();
    let rid = json["rid"].as_str().map_or_else(|| worker.fresh_id(""), str::to_owned);
    let (mut outputs, mut usage) = (Vec::new(), Usage::default());
    let (is_stream, mut is_open) = (request.body.is_stream(), false);
    for (index, ask) in asks.into_iter().enumerate() {
        let mut generation = match Generation::enter(worker, ask) {
            Ok(generation) => generation,
            Err(invalid) if !is_open => return Ok(Err(invalid)),
            Err(Invalid(_, message)) => {
                reply.event(&sse::data(&json!({ "error": { "message": message } }))).await?;
                break;
            }
        };
        if is_stream {
            if !std::mem::replace(&mut is_open, true) {
                let error = json!({ "error": { "message": "a scripted failure" } });
                reply.stream(worker.stream_head(sse::data(&error))).await?;
            }
            one(&mut generation, &rid, is_batch.then_some(index), reply).await?;
        } else {
            generation.complete(reply).await?;
            outputs.extend(
                generation.answers.iter().map(|answer| output(&rid, &answer.text, generation.usage, Some(answer))),
            );
        }
        usage.add(generation.usage);
    }
    usage.settle(reply);
    if is_stream {
        reply.terminal(sse::DONE).await?;
        return reply.end().await.map(Ok);
    }
    let body = if is_batch { json!(outputs) } else { outputs.into_iter().next().unwrap_or_default() };
    send(worker, &body, reply).await
}

/// Streams one prompt's answer; as the engine does, each event has the whole text so far.
async fn one(
    generation: &mut Generation,
    rid: &str,
    index: Option<usize>,
    reply: &mut Reply<'_, '_>,
) -> Result<(), Cut> {
    generation.start(reply).await?;
    let mut so_far = Usage { output: 0, ..generation.usage };
    let mut text = String::new();
    loop {
        let mut event = match generation.step(reply).await? {
            Step::Part(_, part, _) => {
                text.push_str(&part.text);
                so_far.output += u64::from(part.tokens);
                output(rid, &text, so_far, None)
            }
            Step::Finished(_, answer) => output(rid, &text, so_far, Some(answer)),
            Step::Over => return Ok(()),
        };
        if let Some(index) = index {
            event["index"] = json!(index);
        }
        reply.event(&sse::data(&event)).await?;
    }
}

fn output(rid: &str, text: &str, usage: Usage, finished: Option<&Answer>) -> Value {
    let reason = finished.map(|answer| match &answer.finish {
        Finish::Length => json!({ "type": "length", "length": usage.output }),
        Finish::StopText(stop) => json!({ "type": "stop", "matched": stop }),
        Finish::End | Finish::ToolCalls => json!({ "type": "stop", "matched": 2 }),
    });
    let mut ids = Vec::new();
    crate::tokens::encode(text, &mut ids);
    json!({
        "text": text,
        "output_ids": ids,
        "meta_info": {
            "id": rid,
            "finish_reason": reason,
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.output,
            "cached_tokens": usage.cached,
            "weight_version": "default",
        },
    })
}

fn asks(worker: &Worker, json: &Value) -> Result<Vec<Ask>, Invalid> {
    if !json.is_object() {
        return Err(Invalid::new("the body must be a JSON object"));
    }
    let input = json.get("input_ids").filter(|ids| !ids.is_null()).unwrap_or(&json["text"]);
    let sampling = &json["sampling_params"];
    let tokens_max = Some(number(sampling, "max_new_tokens", 0)?.unwrap_or(128));
    let ask = |Written { text, tokens }: Written| Ask {
        prompt: tokens,
        last_user: text,
        tokens_max,
        stops: stops(sampling, "stop"),
        choices: 1,
        ignores_end: sampling["ignore_eos"] == true,
        namespace: namespace(worker, json),
        ..Ask::default()
    };
    Ok(prompts(input)?.into_iter().map(ask).collect())
}
