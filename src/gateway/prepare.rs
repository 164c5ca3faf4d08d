//! Reading and understanding a request: the body is parsed once, borrowed, for what routing needs and no more.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, header};
use smg_admission::Permit;
use smg_api::{
    Endpoint,
    edit::{self, Edit},
    peek::{self, Peek, Reading},
};
use smg_auth::{Models, Principal};
use smg_base::{Timestamp, hash};
use smg_fleet::{Pool, Relaying, Snapshot, Worker};
use smg_infer::{Failure, FailureCode, Replay};
use smg_prefix::{Namespace, PromptKey, Space};
use smg_upstream::{OutboundBody, relay};

use crate::{
    app::Gateway,
    body::{self, Limits},
    budget::BodyShare,
    config::{Replays, Settings},
    edge, isolation,
    pipeline::{Admitted, Identified, Received},
    plan::{ModelPlan, Versioned},
    relayed::Hop,
    trail::{Delivery, Trail},
};

/// A request that is understood and may be sent to a worker of `pool`.
pub(crate) struct Prepared {
    pub(crate) endpoint: Endpoint,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Payload,
    pub(crate) pool: Arc<Pool>,
    pub(crate) plan: Arc<ModelPlan>,
    pub(crate) hints: Hints,
    pub(crate) replay: Replay,
    pub(crate) deadline: Timestamp,
    pub(crate) answer: AnswerSettings,
    /// Where it comes from, if a peer hands it on.
    pub(crate) hop: Option<Hop>,
    /// Whom it is for.
    pub(crate) principal: Arc<Principal>,
    /// What keeps its tenant's cache apart, if anything does.
    pub(crate) salt: Option<String>,
    /// Held until the answer has ended.
    pub(crate) _permit: Option<Permit>,
}

/// The body as it goes to workers.
pub(crate) enum Payload {
    /// Whole, so that it can be sent again.
    Whole {
        /// The bytes.
        body: Bytes,
        /// The same without the tenant's salt, where some of the workers do not take one.
        unsalted: Option<Bytes>,
        /// Their part of the budget, given back when no retry can follow.
        _share: BodyShare,
    },
    /// Sent on while it arrives, so once only.
    Once(Option<OutboundBody>),
}

/// What routing goes by.
pub(crate) struct Hints {
    pub(crate) stream: bool,
    pub(crate) prompt: Option<PromptKey>,
    pub(crate) input_tokens: u64,
    /// The most tokens that all answers together may have, if the request says so.
    pub(crate) output_tokens_max: Option<u64>,
    pub(crate) routing_key: Option<String>,
    pub(crate) target: Option<String>,
    pub(crate) session: Option<u64>,
}

/// How the answer is to be handled.
#[derive(Clone, Copy)]
pub(crate) struct AnswerSettings {
    pub(crate) buffer_bytes_max: usize,
    /// Whether the caller asked for debug headers and may have them.
    pub(crate) debug_headers: bool,
    /// Whether usage was asked for on the caller's behalf and is to be taken out of the stream again.
    pub(crate) hide_usage: bool,
}

/// Reads the body, finds the model and what routing needs.
pub(crate) async fn prepare(
    gateway: &Gateway,
    current: &Versioned,
    admitted: Admitted,
    trail: &mut Trail,
) -> Result<Prepared, Failure> {
    let Admitted { identified: Identified { received, credentials, principal }, permit, hop } = admitted;
    let Received { endpoint, head, body } = received;
    let settings = &current.settings;
    expect_json(&head.headers)?;
    let limits = Limits { bytes_max: settings.body_bytes_max.0, pause_max: settings.body_timeout };
    body::expect_fit(&head.headers, limits)?;
    let mut share = gateway.body_budget.share();
    let body = body::collect(body, body::announced(&head.headers), limits, &mut share).await?;
    trail.body_read(body.len());

    let reading = peek::read(endpoint, &body).map_err(|error| invalid(&error))?;
    let peek = &reading.peek;
    let pool = {
        let snapshot = gateway.fleet.snapshot();
        find_pool(&snapshot, endpoint, peek.model.as_ref().map(|model| &*model.value), &principal.models)?.clone()
    };
    let plan = gateway.plans.of(&pool.model, current);
    let salt = salt_of(gateway, settings, &head.headers, hop.as_ref(), &principal, peek);
    let cache_salt = salt.as_deref().or(peek.cache_salt.as_deref());
    let (prompt, input_tokens) = key(gateway, endpoint, &body, &reading, &plan, cache_salt).await;
    let stream = peek.stream;
    let delivery = if stream { Delivery::Stream } else { Delivery::Whole };
    trail.prepared(&plan, delivery, input_tokens);
    let debug_headers = settings.debug_headers && head.headers.contains_key("x-smg-debug");
    // What a peer hands on is as the peer wants it.
    let hide_usage = stream && settings.count_stream_usage && hop.is_none() && asks_for_usage(endpoint, peek);
    let hints = Hints {
        stream,
        prompt,
        input_tokens,
        output_tokens_max: peek.max_tokens.map(|most| most.saturating_mul(peek.n.unwrap_or(1).max(1))),
        routing_key: edge::internal(&head.headers, "x-smg-routing-key").map(str::to_owned),
        target: edge::internal(&head.headers, "x-smg-target-worker").map(str::to_owned),
        session: session_of(peek),
    };
    let replay = replay_of(endpoint, &head.headers, plan.retry.replays);
    let previous = peek.previous_response_id.as_deref().map(str::to_owned);
    let answer =
        AnswerSettings { buffer_bytes_max: settings.buffered_answer_bytes_max.as_usize(), debug_headers, hide_usage };
    let salted = salt.as_deref().filter(|_| hop.is_none());
    let (body, unsalted) = bodies(body.clone(), endpoint, peek, &pool, answer, salted);
    let mut headers = head.headers;
    edge::to_worker(&mut headers, credentials);
    let mut prepared = Prepared {
        endpoint,
        headers,
        payload: Payload::Whole { body, unsalted, _share: share },
        deadline: trail.received() + time_for(&plan, hop.as_ref()),
        pool,
        plan,
        hints,
        replay,
        answer,
        hop,
        principal,
        salt,
        _permit: permit,
    };
    if prepared.hop.is_none() {
        prepared.follow(gateway, settings, previous.as_deref()).await?;
    }
    Ok(prepared)
}

impl Prepared {
    /// Whether a peer may be asked to hand it on.
    pub(crate) fn relaying(&self) -> Relaying {
        Hop::relaying(self.hop.as_ref())
    }

    /// A follow-up goes to the worker that holds the response it builds on, unless the caller names one. Where tenants are kept
    /// apart, what nobody remembers as the tenant's own may be another's.
    async fn follow(
        &mut self,
        gateway: &Gateway,
        settings: &Settings,
        previous_response_id: Option<&str>,
    ) -> Result<(), Failure> {
        let is_apart = gateway.access.isolates(settings);
        let Some(id) = previous_response_id.filter(|_| is_apart || self.hints.target.is_none()) else {
            return Ok(());
        };
        let worker = gateway.worker_of_response(&self.principal.tenant, id).await;
        if worker.is_none() && is_apart {
            let failure = Failure::new(FailureCode::NotFound, "there is no response with this id");
            return Err(failure.param("previous_response_id"));
        }
        if self.hints.target.is_none() {
            let known = worker.filter(|id| self.pool.workers.iter().any(|worker| worker.id == *id));
            self.hints.target = known.map(|id| id.to_string());
        }
        Ok(())
    }
}

/// How long the answer may take: what is left of the time that the node with the caller gives it.
pub(crate) fn time_for(plan: &ModelPlan, hop: Option<&Hop>) -> Duration {
    hop.and_then(|hop| hop.time_left).unwrap_or(plan.timeouts.request)
}

fn expect_json(headers: &HeaderMap) -> Result<(), Failure> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let text = value.to_str().unwrap_or_default();
    let media = text.split(';').next().unwrap_or_default().trim();
    if media.eq_ignore_ascii_case("application/json") || media.to_ascii_lowercase().ends_with("+json") {
        return Ok(());
    }
    Err(Failure::new(FailureCode::UnsupportedMediaType, "this endpoint takes a body of type application/json"))
}

fn invalid(error: &peek::PeekError) -> Failure {
    let failure = Failure::new(FailureCode::InvalidRequest, error.message.to_string());
    match &error.param {
        Some(param) => failure.param(param.to_string()),
        None => failure,
    }
}

/// What the prompt is compared by, if the policy wants it, and how many tokens it has: exactly where its tokens are known.
async fn key(
    gateway: &Gateway,
    endpoint: Endpoint,
    body: &Bytes,
    reading: &Reading<'_>,
    plan: &ModelPlan,
    cache_salt: Option<&str>,
) -> (Option<PromptKey>, u64) {
    let (peek, policy) = (&reading.peek, &plan.policy);
    let estimated = match peek.token_ids {
        0 => policy.tokens_of(peek.text_bytes),
        ids => ids as u64,
    };
    if !policy.wants_text() {
        return (None, estimated);
    }
    // Under another salt, or for another adapter, the same text is another text.
    let namespace = Namespace { lora: peek.adapter.as_deref(), salt: cache_salt };
    let root = namespace.root(gateway.hash_seed);
    let tokens = match peek.tokens {
        Some(ids) => ids.read(),
        None => gateway.tokens.of(&plan.model, endpoint, body, peek.text_bytes).await,
    };
    if let Some(tokens) = tokens {
        let mut chunker = policy.chunker(Space::Tokens, root);
        chunker.push_tokens(&tokens);
        return (Some(chunker.finish()), tokens.len() as u64);
    }
    let mut chunker = policy.chunker(Space::Text, root);
    reading.render(&mut |piece| chunker.push(piece.as_bytes()));
    (Some(chunker.finish()), estimated)
}

/// The workers that serve what was asked for.
pub(crate) fn find_pool<'a>(
    snapshot: &'a Snapshot,
    endpoint: Endpoint,
    model: Option<&str>,
    allowed: &Models,
) -> Result<&'a Arc<Pool>, Failure> {
    let model = model.filter(|model| !model.is_empty());
    // A model that the caller may not use is one that it does not know of.
    if let Some(name) = model {
        if let Some(pool) = snapshot.pool(name).filter(|pool| is_allowed(allowed, name, pool)) {
            return Ok(pool);
        }
        // Workers that do not say what they serve may know it.
        if !snapshot.open().workers.is_empty() && snapshot.pool(name).is_none() && allowed.allows(name) {
            return Ok(snapshot.open());
        }
    }
    if snapshot.workers().is_empty() {
        return Err(Failure::new(FailureCode::NoWorkers, "no worker is registered").retry_after(Duration::from_secs(5)));
    }
    // Engine-native endpoints do not name a model; where there is only one there is nothing to choose. It goes by its name, under
    // which others ask for it and its caches are known.
    if model_is_optional(endpoint, model) && snapshot.models().len() <= 1 {
        let any = snapshot.any();
        let only = snapshot.models().next().filter(|pool| pool.workers.len() == any.workers.len());
        let pool = only.unwrap_or(any);
        if is_allowed(allowed, pool.model.as_str(), pool) {
            return Ok(pool);
        }
    }
    let served = served(snapshot, allowed);
    match model {
        Some(name) => Err(Failure::new(
            FailureCode::ModelNotFound,
            format!("no worker serves the model '{}'; {served}", shortened(name)),
        )
        .param("model")),
        None => {
            Err(Failure::new(FailureCode::ModelRequired, format!("the request names no model; {served}"))
                .param("model"))
        }
    }
}

/// Whether a caller may use a model under this name: it may if it may use the model, or the alias.
pub(crate) fn is_allowed(allowed: &Models, name: &str, pool: &Pool) -> bool {
    allowed.allows(name) || (pool.is_named() && allowed.allows(pool.model.as_str()))
}

fn model_is_optional(endpoint: Endpoint, model: Option<&str>) -> bool {
    use Endpoint::{Classify, Detokenize, Generate, Rerank, RerankV1, Score, Tokenize};
    let native = matches!(endpoint, Generate | Rerank | RerankV1 | Classify | Score | Tokenize | Detokenize);
    native && model.is_none_or(|model| model == NO_MODEL)
}

/// What SGLang's native endpoints say where no model is meant.
const NO_MODEL: &str = "unknown";

/// Names the served models, at most this many.
const MODELS_NAMED_MAX: usize = 20;

fn served(snapshot: &Snapshot, allowed: &Models) -> String {
    let pools = snapshot.models().filter(|pool| is_allowed(allowed, pool.model.as_str(), pool));
    let mut names: Vec<&str> = pools.map(|pool| pool.model.as_str()).collect();
    let more = names.len().saturating_sub(MODELS_NAMED_MAX);
    names.truncate(MODELS_NAMED_MAX);
    match (names.is_empty(), more) {
        (true, _) => "the workers have not said yet which models they serve".to_owned(),
        (false, 0) => format!("served here: {}", names.join(", ")),
        (false, more) => format!("served here: {} and {more} more (GET /v1/models lists them)", names.join(", ")),
    }
}

/// Whether `name` led to `pool` without being the name its workers know the model by.
pub(crate) fn is_alias(pool: &Pool, name: &str) -> bool {
    pool.is_named() && pool.model.as_str() != name && name != NO_MODEL
}

fn shortened(name: &str) -> String {
    name.chars().take(100).collect()
}

fn asks_for_usage(endpoint: Endpoint, peek: &Peek<'_>) -> bool {
    matches!(endpoint, Endpoint::ChatCompletions | Endpoint::Completions) && peek.include_usage != Some(true)
}

/// The salt under which the prompt is cached, if the gateway says so; what a peer hands on has one already.
fn salt_of(
    gateway: &Gateway,
    settings: &Settings,
    headers: &HeaderMap,
    hop: Option<&Hop>,
    principal: &Principal,
    peek: &Peek<'_>,
) -> Option<String> {
    if hop.is_some() {
        return edge::named(headers, &relay::SALT).map(str::to_owned);
    }
    let access = &gateway.access;
    access.isolates(settings).then(|| access.salts.of(&principal.tenant, peek.cache_salt.as_deref()))
}

/// The body as it goes to workers, and without the salt where not all of them take one.
fn bodies(
    body: Bytes,
    endpoint: Endpoint,
    peek: &Peek<'_>,
    pool: &Pool,
    answer: AnswerSettings,
    salt: Option<&str>,
) -> (Bytes, Option<Bytes>) {
    let takes = |worker: &Arc<Worker>| isolation::salt_field(worker.engine(), endpoint).is_some();
    let salt = salt.filter(|_| peek.members > 0 && pool.workers.iter().any(takes));
    let salted = edited(&body, peek, pool, answer, salt);
    let is_mixed = salt.is_some() && !pool.workers.iter().all(takes);
    let unsalted = is_mixed.then(|| edited(&body, peek, pool, answer, None).unwrap_or_else(|| body.clone()));
    (salted.unwrap_or(body), unsalted)
}

/// The body with the few changes the operator's settings need; none if it stays as it is.
fn edited(body: &Bytes, peek: &Peek<'_>, pool: &Pool, answer: AnswerSettings, salt: Option<&str>) -> Option<Bytes> {
    let mut edits: Vec<Edit> = Vec::new();
    if let Some(salt) = salt {
        edits.push(match &peek.cache_salt_span {
            Some(span) => Edit::replace_string(span.clone(), salt),
            None => Edit::insert_member(peek, "cache_salt", &format!("\"{salt}\"")),
        });
    }
    // A name that is not the model's own is an alias: workers know the model by its own name only.
    if let Some(model) = peek.model.as_ref().filter(|model| is_alias(pool, &model.value)) {
        edits.push(Edit::replace_string(model.span.clone(), pool.model.as_str()));
    }
    if answer.hide_usage {
        edits.extend(Edit::include_usage(body, peek));
    }
    (!edits.is_empty()).then(|| Bytes::from(edit::apply(body, &mut edits)))
}

/// What ties requests of one conversation or user together. Only ever a key for choosing between equals.
fn session_of(peek: &Peek<'_>) -> Option<u64> {
    let key = peek
        .prompt_cache_key
        .as_deref()
        .or(peek.conversation.as_deref())
        .or(peek.user.as_deref())
        .or(peek.metadata_user_id.as_deref())?;
    Some(hash::stable64(key.as_bytes()))
}

/// Whether sending the request a second time does harm.
pub(crate) fn replay_of(endpoint: Endpoint, headers: &HeaderMap, replays: Replays) -> Replay {
    let allowed = || {
        headers.contains_key("idempotency-key")
            || edge::internal(headers, "x-smg-allow-replay").is_some_and(|value| value.eq_ignore_ascii_case("true"))
    };
    if !endpoint.is_generation() || replays == Replays::Always || allowed() {
        Replay::Harmless
    } else {
        Replay::Harmful
    }
}
