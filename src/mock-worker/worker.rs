//! What the connections of one worker share.

use std::{
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use smg_base::hash;

use crate::{
    config::{Config, Dialect},
    faults::Faults,
    http1::BadRequest,
    kv_events::{Journal, KvPublisher},
    ledger::Ledger,
    reply::{Plain, StreamHead},
    routes::Prepared,
    scheduler::Scheduler,
    store::Store,
};

/// One worker.
pub(crate) struct Worker {
    pub(crate) config: Config,
    pub(crate) ledger: Ledger,
    pub(crate) faults: Faults,
    pub(crate) scheduler: Arc<Scheduler>,
    pub(crate) store: Store,
    /// What happens to the cache, if anybody asked for it.
    pub(crate) journal: Option<Arc<Journal>>,
    /// Who is told of it.
    pub(crate) kv_publisher: Option<KvPublisher>,
    /// Canned answers, in the bench mode.
    pub(crate) prepared: Option<Prepared>,
    /// Fields that every head has, with their line ends.
    pub(crate) identity: String,
    ids: AtomicU64,
}

impl Worker {
    pub(crate) fn new(config: Config, journal: Option<Arc<Journal>>, kv_publisher: Option<KvPublisher>) -> Self {
        let server = match config.dialect {
            Dialect::Vllm | Dialect::Sglang | Dialect::Trtllm => "uvicorn",
            Dialect::Openai | Dialect::Anthropic => "cloudflare",
        };
        let name: String = config.name.chars().filter(char::is_ascii_graphic).collect();
        let identity = format!("server: {server}\r\nx-mock-worker: {name}\r\n");
        Self {
            prepared: config.bench.as_ref().map(|bench| Prepared::new(bench, config.framing, &identity)),
            ledger: Ledger::new(config.limits.ledger_entries_max),
            faults: Faults::new(config.faults.clone(), config.limits.rules_max),
            scheduler: Arc::new(Scheduler::new(config.speed.clone(), &config.cache, journal.clone())),
            store: Store::new(config.limits.stored_responses_max),
            journal,
            kv_publisher,
            identity,
            ids: AtomicU64::new(0),
            config,
        }
    }

    /// How much of a body is kept.
    pub(crate) fn body_bytes_kept(&self) -> usize {
        if self.config.bench.is_some() { BENCH_BODY_BYTES_MAX } else { self.config.limits.body_bytes_max }
    }

    /// A fresh id that begins with `prefix`.
    pub(crate) fn fresh_id(&self, prefix: &str) -> String {
        let number = self.ids.fetch_add(1, Ordering::Relaxed);
        let seed = hash::stable64(self.config.name.as_bytes());
        format!("{prefix}{:016x}{number:08x}", hash::mix(seed, number))
    }

    /// An answer in JSON.
    pub(crate) fn json(&self, status: u16, body: &Value) -> Plain {
        Plain { status, content_type: "application/json", fields: self.fields(), body: body.to_string().into_bytes() }
    }

    /// An error in the dialect's shape.
    pub(crate) fn error(&self, status: u16, message: &str) -> Plain {
        self.error_as(self.config.dialect, status, message)
    }

    /// An error in the shape that callers of `path` expect: vLLM and SGLang answer Anthropic's paths in its shape.
    pub(crate) fn error_on(&self, path: &str, status: u16, message: &str) -> Plain {
        let is_messages = path.starts_with("/v1/messages");
        self.error_as(if is_messages { Dialect::Anthropic } else { self.config.dialect }, status, message)
    }

    /// The event that tells of a failure in the middle of a stream of the OpenAI family.
    pub(crate) fn error_event(&self, status: u16, message: &str) -> Vec<u8> {
        let mut body = self.error_body(self.config.dialect, status, message);
        if body.get("error").is_none() {
            body = json!({ "error": body });
        }
        format!("data: {body}\n\n").into_bytes()
    }

    fn error_as(&self, dialect: Dialect, status: u16, message: &str) -> Plain {
        self.json(status, &self.error_body(dialect, status, message))
    }

    fn error_body(&self, dialect: Dialect, status: u16, message: &str) -> Value {
        match dialect {
            Dialect::Vllm => json!({"error": {
                "message": message, "type": python_error(status), "param": null, "code": status,
            }}),
            Dialect::Sglang | Dialect::Trtllm => json!({
                "object": "error", "message": message, "type": python_error(status), "param": null, "code": status,
            }),
            Dialect::Openai => json!({"error": {
                "message": message, "type": openai_error(status), "param": null, "code": null,
            }}),
            Dialect::Anthropic => json!({
                "type": "error",
                "error": {"type": anthropic_error(status), "message": message},
                "request_id": self.fresh_id("req_"),
            }),
        }
    }

    /// The head of a stream. `error_event` is what the engine would send if it failed midway.
    pub(crate) fn stream_head(&self, error_event: Vec<u8>) -> StreamHead {
        let mut fields = self.fields();
        if matches!(self.config.dialect, Dialect::Openai | Dialect::Anthropic) {
            fields.push(("cache-control", "no-cache".to_owned()));
        }
        StreamHead { fields, error_event }
    }

    /// The answer to a request that cannot be read.
    pub(crate) fn refusal(&self, why: BadRequest) -> Plain {
        self.error(why.status(), "the request cannot be read")
    }

    /// The answer to a path that the dialect does not have.
    pub(crate) fn unknown_path(&self, status: u16, path: &str) -> Plain {
        match self.config.dialect {
            Dialect::Vllm | Dialect::Sglang | Dialect::Trtllm => {
                let detail = if status == 405 { "Method Not Allowed" } else { "Not Found" };
                self.json(status, &json!({ "detail": detail }))
            }
            Dialect::Openai => self.error(status, &format!("Invalid URL ({path})")),
            Dialect::Anthropic => self.error(status, "Not found"),
        }
    }

    /// Fields that the dialect adds to its heads.
    fn fields(&self) -> Vec<(&'static str, String)> {
        match self.config.dialect {
            Dialect::Vllm | Dialect::Sglang | Dialect::Trtllm => Vec::new(),
            Dialect::Openai => {
                vec![("x-request-id", self.fresh_id("req_")), ("openai-version", "2020-10-01".to_owned())]
            }
            Dialect::Anthropic => vec![("request-id", self.fresh_id("req_"))],
        }
    }
}

/// Bytes of a body that the bench mode keeps, to find the `stream` field in.
const BENCH_BODY_BYTES_MAX: usize = 4096;

/// Seconds since the Unix epoch, with their fraction.
pub(crate) fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Seconds since the Unix epoch.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn python_error(status: u16) -> &'static str {
    match status {
        400 | 413 | 422 => "BadRequestError",
        401 | 403 => "AuthenticationError",
        404 => "NotFoundError",
        429 => "RateLimitError",
        503 => "ServiceUnavailableError",
        _ => "InternalServerError",
    }
}

fn openai_error(status: u16) -> &'static str {
    match status {
        401 | 403 => "authentication_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        _ => "server_error",
    }
}

fn anthropic_error(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        529 | 503 => "overloaded_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    }
}
