//! `/v1/audio/transcriptions` and translations.

use serde_json::{Value, json};

use super::{
    Answered, Invalid, Request, checked_model,
    form::File,
    generation::{Generation, Step},
    send, sse,
};
use crate::{
    config::Dialect,
    reply::{Cut, Plain, Reply},
    script::Ask,
    tokens::{SPECIAL, Token},
    worker::{Worker, unix_now},
};

/// Bytes of a file that make a token: a tenth of a second of 16 kHz speech of 16 bits.
const BYTES_PER_TOKEN: usize = 3200;
/// Bytes of a second of such speech.
const BYTES_PER_SECOND: usize = 32_000;

/// Answers a transcription.
pub(super) async fn answer(worker: &Worker, request: &Request, reply: &mut Reply<'_, '_>) -> Answered {
    let read = checked_model(worker, &request.body).and_then(|model| {
        let form = request.body.form.as_ref().ok_or_else(|| Invalid::new("the body must be a form"))?;
        let file = form.file.as_ref().ok_or_else(|| Invalid::new("the form needs a `file`"))?;
        let ask = Ask { prompt: sound(file, worker), choices: 1, ..Ask::default() };
        Ok((model, file, form.text("response_format").unwrap_or("json"), Generation::enter(worker, ask)?))
    });
    let (model, file, format, mut generation) = match read {
        Ok(read) => read,
        Err(invalid) => return Ok(Err(invalid)),
    };
    if request.body.is_stream() {
        return stream(worker, &model, generation, reply).await.map(Ok);
    }
    generation.complete(reply).await?;
    generation.usage.settle(reply);
    let text = generation.answers.first().map(|answer| answer.text.clone()).unwrap_or_default();
    let seconds = file.bytes.div_ceil(BYTES_PER_SECOND);
    let body = match format {
        "text" => {
            let body = format!("{text}\n").into_bytes();
            reply
                .plain(Plain { status: 200, content_type: "text/plain; charset=utf-8", body, ..Plain::default() })
                .await?;
            return Ok(Ok(()));
        }
        "verbose_json" => json!({
            "task": "transcribe", "language": "english", "duration": seconds, "text": text,
            "segments": [{ "id": 0, "start": 0.0, "end": seconds, "text": text }],
        }),
        _ => json!({ "text": text, "usage": { "type": "duration", "seconds": seconds } }),
    };
    send(worker, &body, reply).await
}

async fn stream(
    worker: &Worker,
    model: &str,
    mut generation: Generation,
    reply: &mut Reply<'_, '_>,
) -> Result<(), Cut> {
    reply.stream(worker.stream_head(worker.error_event(500, "a scripted failure"))).await?;
    generation.start(reply).await?;
    let (id, created) = (worker.fresh_id("trsc-"), unix_now());
    let is_cloud = worker.config.dialect == Dialect::Openai;
    let chunk = |text: &str, reason: Value| {
        json!({
            "id": id, "object": "transcription.chunk", "created": created, "model": model,
            "choices": [{ "delta": { "content": text }, "finish_reason": reason }],
        })
    };
    loop {
        let event = match generation.step(reply).await? {
            Step::Part(_, part, _) if is_cloud => json!({ "type": "transcript.text.delta", "delta": part.text }),
            Step::Part(_, part, _) => chunk(&part.text, Value::Null),
            Step::Finished(_, answer) if is_cloud => json!({ "type": "transcript.text.done", "text": answer.text }),
            Step::Finished(..) => chunk("", json!("stop")),
            Step::Over => break,
        };
        reply.event(&sse::data(&event)).await?;
    }
    generation.usage.settle(reply);
    reply.terminal(sse::DONE).await?;
    reply.end().await
}

/// The tokens of a sound.
fn sound(file: &File, worker: &Worker) -> Vec<Token> {
    let tokens_max = worker.config.context_length as usize / 2;
    let tokens = file.bytes.div_ceil(BYTES_PER_TOKEN).clamp(1, tokens_max.max(1));
    let first = SPECIAL + 16 + u32::try_from(file.digest & 0xff_ffff).expect("masked to 24 bits");
    (0..tokens).map(|place| first + u32::try_from(place % 1024).expect("below 1024")).collect()
}
