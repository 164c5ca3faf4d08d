//! Finding out what a worker is: which engine, which models, how much context and cache, which paths.
//!
//! `/v1/models` comes first: every engine has it, and most say in `owned_by` who they are. Where that does not tell,
//! paths that only one engine has are tried, all at once. Then the engine's own paths are read for the rest. Each
//! answer is bounded in bytes and time, and so is the whole: a worker that stalls delays nobody but itself.

mod facts;
#[cfg(test)]
pub(crate) mod tests;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use smg_fleet::{Engine, EngineProfile, KvEndpoint, KvEventsSpec, ModelCard, Worker, WorkerUrl};
use smg_infer::Failure;
use tokio::time::timeout;

use crate::{
    Upstream,
    fetch::{Answer, Bounds, FetchError, fetch},
    outbound::Outbound,
};

/// The longest time a detection takes.
const DETECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A list of models may be long, and a busy engine slow to make it.
const LISTING: Bounds = Bounds { bytes_max: 4 << 20, timeout: Duration::from_secs(5) };
/// Small answers about the engine.
const FACT: Bounds = Bounds { bytes_max: 1 << 20, timeout: Duration::from_secs(2) };
/// Descriptions of the whole API, and metrics.
const DESCRIPTION: Bounds = Bounds { bytes_max: 8 << 20, timeout: Duration::from_secs(3) };

/// What nobody but clouds is called, and what they speak.
const CLOUDS: [(&str, Engine); 4] = [
    ("openai.com", Engine::OpenAi),
    ("x.ai", Engine::OpenAi),
    ("googleapis.com", Engine::OpenAi),
    ("anthropic.com", Engine::Anthropic),
];

/// Why it is not known what a worker is. Nothing was changed; a later try may succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DetectError {
    /// It cannot be reached, or broke off.
    #[error("the worker cannot be asked: {0}")]
    Unreachable(Failure),
    /// It took too long.
    #[error("the worker took too long to say what it is")]
    Timeout,
    /// It wants a key, or another one.
    #[error("the worker answered /v1/models with status {0}: its api_key is missing or wrong")]
    Unauthorized(u16),
    /// It is there, but not ready to say.
    #[error("the worker answered /v1/models with status {0}")]
    NotReady(u16),
    /// Its list of models broke off or is too large.
    #[error("the worker's list of models cannot be read: {0}")]
    Unreadable(FetchError),
}

impl DetectError {
    /// The label in metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Timeout => "timeout",
            Self::Unauthorized(_) => "unauthorized",
            Self::NotReady(_) => "not_ready",
            Self::Unreadable(_) => "unreadable",
        }
    }
}

/// Asks a worker what it is. An engine named in the worker's settings is believed; the rest is asked all the same.
pub async fn detect(upstream: &Upstream, worker: &Worker) -> Result<EngineProfile, DetectError> {
    let asked = timeout(DETECT_TIMEOUT, Detection { upstream, worker }.run()).await;
    let found = asked.unwrap_or(Err(DetectError::Timeout));
    let label = found.as_ref().map_or_else(DetectError::as_str, |profile| profile.engine.as_str());
    upstream.metrics().detections.with_label_values(&[label]).inc();
    found
}

struct Detection<'a> {
    upstream: &'a Upstream,
    worker: &'a Worker,
}

impl Detection<'_> {
    async fn run(&self) -> Result<EngineProfile, DetectError> {
        let listing = self.listing().await?;
        let cloud = cloud_of(self.worker.spec.url.host());
        let told = self.worker.spec.runtime_type.filter(|engine| *engine != Engine::Unknown).or(cloud);
        let engine = match told.or_else(|| listing.as_ref()?.engine) {
            Some(engine) => engine,
            None => self.fingerprint().await.unwrap_or(match listing {
                Some(_) => Engine::OpenAi,
                None => Engine::Unknown,
            }),
        };
        let models = listing.map(|listing| listing.models).unwrap_or_default();
        let mut profile = EngineProfile { engine, models, ..EngineProfile::default() };
        match engine {
            Engine::Vllm => self.describe_vllm(&mut profile).await,
            Engine::Sglang => self.describe_sglang(&mut profile).await,
            Engine::TrtLlm => (profile.version, profile.offers) = tokio::join!(self.version(), self.offers()),
            Engine::LlamaCpp => self.describe_llama_cpp(&mut profile).await,
            Engine::Ollama => self.describe_ollama(&mut profile).await,
            Engine::OpenAi | Engine::Unknown if cloud.is_none() => profile.offers = self.offers().await,
            Engine::OpenAi | Engine::Unknown | Engine::Anthropic => {}
        }
        Ok(profile)
    }

    async fn listing(&self) -> Result<Option<facts::Listing>, DetectError> {
        let answer = match self.get("/v1/models", LISTING).await {
            Ok(answer) => answer,
            Err(FetchError::Failed(failure)) => return Err(DetectError::Unreachable(failure)),
            Err(FetchError::Timeout(_)) => return Err(DetectError::Timeout),
            Err(other) => return Err(DetectError::Unreadable(other)),
        };
        match answer.status.as_u16() {
            200 => Ok(facts::listing(&answer.body)),
            status @ (401 | 403) => Err(DetectError::Unauthorized(status)),
            501 => Ok(None),
            status @ (408 | 429 | 500..) => Err(DetectError::NotReady(status)),
            _ => Ok(None),
        }
    }

    /// Tries what only one engine has. SGLang also speaks Ollama's API, so it is looked for first.
    async fn fingerprint(&self) -> Option<Engine> {
        let (sglang, llama, ollama) =
            tokio::join!(self.sglang_server(), self.fact("/props"), self.fact("/api/version"));
        if sglang.is_some() {
            return Some(Engine::Sglang);
        }
        if llama.is_some_and(|body| facts::llama_props(&body).is_some()) {
            return Some(Engine::LlamaCpp);
        }
        ollama.and_then(|body| facts::version(&body)).map(|_| Engine::Ollama)
    }

    async fn describe_vllm(&self, profile: &mut EngineProfile) {
        let (version, offers, metrics) =
            tokio::join!(self.version(), self.offers(), self.body("/metrics", DESCRIPTION));
        profile.version = version;
        profile.offers = offers;
        let cache = metrics.and_then(|text| facts::vllm_cache(std::str::from_utf8(&text).ok()?));
        if let Some(cache) = cache {
            profile.kv_capacity_tokens = cache.capacity_tokens;
            profile.block_size = cache.block_size;
        }
    }

    async fn describe_sglang(&self, profile: &mut EngineProfile) {
        let (server, model, offers) =
            tokio::join!(self.sglang_server(), self.fact_under("/model_info", "/get_model_info"), self.offers());
        profile.offers = offers;
        let server = server.unwrap_or_default();
        profile.version = server.version;
        profile.context_length = server.context_length;
        profile.kv_capacity_tokens = server.kv_capacity_tokens;
        profile.block_size = server.block_size;
        profile.max_running_requests = server.max_running_requests;
        profile.kv_events = server.kv_events.filter(|events| is_own(events, &self.worker.spec.url));
        if profile.models.is_empty() {
            profile.models.extend(server.model.map(ModelCard::new));
        }
        // The first is the base model; the others are its adapters.
        if let (Some(card), Some(body)) = (profile.models.first_mut(), model) {
            facts::add_sglang_model(&body, card);
        }
    }

    async fn describe_llama_cpp(&self, profile: &mut EngineProfile) {
        let props = self.fact("/props").await.and_then(|body| facts::llama_props(&body)).unwrap_or_default();
        profile.version = props.version;
        profile.context_length = props.context_length;
        profile.max_running_requests = props.slots;
        let slots = props.slots.map(u64::from);
        profile.kv_capacity_tokens = props.context_length.zip(slots).map(|(context, slots)| context * slots);
        if profile.models.is_empty() {
            profile.models.extend(props.model.map(ModelCard::new));
        }
        for card in &mut profile.models {
            // The list has the length the model was trained for in some versions; what was set up counts.
            card.context_length = props.context_length.or(card.context_length);
        }
    }

    async fn describe_ollama(&self, profile: &mut EngineProfile) {
        let (version, loaded) = tokio::join!(self.fact("/api/version"), self.fact("/api/ps"));
        profile.version = version.and_then(|body| facts::version(&body));
        let contexts = loaded.map(|body| facts::ollama_contexts(&body)).unwrap_or_default();
        for card in &mut profile.models {
            let loaded = contexts.iter().find(|(name, _)| name == card.id.as_str());
            card.context_length = loaded.map(|(_, context)| *context).or(card.context_length);
            // Ollama takes a name without a tag for the tag `latest`.
            if let Some(bare) = card.id.as_str().strip_suffix(":latest") {
                card.aliases.push(bare.into());
            }
        }
    }

    async fn sglang_server(&self) -> Option<facts::SglangServer> {
        facts::sglang_server(&self.fact_under("/server_info", "/get_server_info").await?)
    }

    async fn version(&self) -> Option<String> {
        facts::version(&self.fact("/version").await?)
    }

    async fn offers(&self) -> Option<std::collections::BTreeSet<String>> {
        facts::offers(&self.body("/openapi.json", DESCRIPTION).await?)
    }

    /// A fact under its present path, or the one it had in older versions.
    async fn fact_under(&self, path: &'static str, older: &'static str) -> Option<Bytes> {
        match self.fact(path).await {
            Some(body) => Some(body),
            None => self.fact(older).await,
        }
    }

    async fn fact(&self, path: &'static str) -> Option<Bytes> {
        self.body(path, FACT).await
    }

    async fn body(&self, path: &'static str, bounds: Bounds) -> Option<Bytes> {
        let answer = self.get(path, bounds).await.ok()?;
        (answer.status == http::StatusCode::OK).then_some(answer.body)
    }

    async fn get(&self, path: &'static str, bounds: Bounds) -> Result<Answer, FetchError> {
        let mut outbound = Outbound::get(path);
        // Anthropic refuses requests that do not name a version; nobody else minds.
        let version = HeaderValue::from_static("2023-06-01");
        outbound.headers.insert(HeaderName::from_static("anthropic-version"), version);
        fetch(self.upstream, self.worker, outbound, bounds).await
    }
}

/// Whether a worker names sockets of its own host: what else it names is where it sends to, or not its to name.
fn is_own(events: &KvEventsSpec, url: &WorkerUrl) -> bool {
    let own = |endpoint: &KvEndpoint| matches!(endpoint, KvEndpoint::Zmq(place) if place.host() == url.host());
    let replay = events.replay_source(url);
    events.check(url).is_ok()
        && events.source(url).is_ok_and(|endpoint| own(&endpoint))
        && replay.is_ok_and(|replay| replay.as_ref().is_none_or(own))
}

fn cloud_of(host: &str) -> Option<Engine> {
    let is_under = |domain: &str| host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    CLOUDS.iter().find(|(domain, _)| is_under(domain)).map(|(_, engine)| *engine)
}
