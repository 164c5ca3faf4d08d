//! Choosing a worker and sending the request to it, again elsewhere where that is safe.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, StatusCode, header, response};
use http_body_util::BodyExt;
use smallvec::SmallVec;
use smg_api::{
    Endpoint,
    sse::{Scanned, Scanner},
};
use smg_base::{Timestamp, WorkerId, hash};
use smg_fleet::{BreakerState, BreakerTransition, LoadGuard, Offer, Outcome, Path, Ticket, Via, Worker};
use smg_infer::{Dispatched, Failure, FailureCode};
use smg_routing::{Ask, Explanation, NoChoice};
use smg_upstream::{Outbound, OutboundBody, ResponseBody, relay};
use tokio::time::timeout;

use crate::{
    access,
    app::Gateway,
    edge, isolation,
    metrics::EndpointMeters,
    prepare::{Payload, Prepared},
    relay::{Settled, Streaming},
    trail::{Trail, status_text},
};

/// Longest `Retry-After` that is waited for here instead of being passed on.
const RETRY_AFTER_WAIT_MAX: Duration = Duration::from_secs(2);

/// When a caller may come back that found no worker it could use.
const SOON: Duration = Duration::from_secs(2);

/// Largest body of a worker's refusal that is passed on.
const REFUSAL_BYTES_MAX: usize = 256 << 10;

/// A worker with the guards that say a request is on its way to it.
pub(crate) struct Routed {
    pub(crate) worker: Arc<Worker>,
    pub(crate) ticket: Option<Ticket>,
    /// The way to it.
    pub(crate) path: Path,
    pub(crate) load: LoadGuard,
    /// Prompt tokens the policy expected in the worker's cache.
    pub(crate) predicted_tokens: u64,
}

/// A worker's answer that is not what the caller hoped for. It is passed on if no other worker does better.
pub(crate) struct WorkerRefusal {
    pub(crate) head: response::Parts,
    pub(crate) body: Bytes,
}

/// An attempt that led to nothing.
struct Rejected {
    failure: Failure,
    answer: Option<Box<WorkerRefusal>>,
}

impl From<Failure> for Rejected {
    fn from(failure: Failure) -> Self {
        Self { failure, answer: None }
    }
}

/// Tries workers until one answers, within the model's attempts, budget and deadline.
pub(crate) async fn dispatch(
    gateway: &Arc<Gateway>,
    mut prepared: Prepared,
    trail: &mut Trail,
) -> Result<Streaming, Failure> {
    let mut excluded: SmallVec<[WorkerId; 8]> = SmallVec::new();
    let mut attempt = 0;
    if prepared.hop.is_none() {
        prepared.plan.budget.deposit(gateway.now());
    }
    loop {
        let routed = match route(gateway, &prepared, &excluded, trail) {
            // Every worker has failed once: whoever comes back first may have it.
            Err(NoChoice::AllExcluded) if !excluded.is_empty() => {
                trail.undecided();
                excluded.clear();
                route(gateway, &prepared, &excluded, trail)
            }
            other => other,
        };
        let routed = routed.map_err(|reason| no_worker(gateway, &prepared, reason))?;
        let worker = routed.worker.clone();
        let rejected = match send(gateway, &mut prepared, routed, trail).await {
            Ok(settled) => return Ok(Streaming { prepared, settled }),
            Err(rejected) => rejected,
        };
        attempt += 1;
        trail.attempt_ended(rejected.failure.code.as_str(), rejected.failure.dispatched);
        EndpointMeters::worker_error(&gateway.metrics, rejected.failure.code.as_str());
        excluded.push(worker.id);
        let wait = match may_try_again(gateway, &prepared, &rejected, &excluded, attempt) {
            Ok(wait) => wait,
            Err(reason) => return give_up(gateway, prepared, rejected, reason),
        };
        if !wait.is_zero() {
            gateway.metrics.retry_backoff.with_label_values(&[attempt_label(attempt)]).observe(wait.as_secs_f64());
            tokio::time::sleep(wait).await;
        }
        gateway.metrics.retries.with_label_values(&["regular", prepared.endpoint.label()]).inc();
    }
}

/// Waits are counted by attempt; the label must stay bounded.
fn attempt_label(attempt: u32) -> &'static str {
    match attempt {
        1 => "1",
        2 => "2",
        3 => "3",
        4 => "4",
        _ => "5+",
    }
}

/// How long to wait before the next attempt, or why there is none. The first retry goes to another worker at once; where
/// every worker has failed, the time the last one asked for is kept, or left to the caller if it is long.
fn may_try_again(
    gateway: &Gateway,
    prepared: &Prepared,
    rejected: &Rejected,
    excluded: &[WorkerId],
    attempt: u32,
) -> Result<Duration, &'static str> {
    let retry = &prepared.plan.retry;
    let now = gateway.now();
    // Where a peer hands a request on, that peer tries again.
    if prepared.hop.is_some() || !rejected.failure.may_retry(prepared.replay) {
        return Err("not_safe");
    }
    if matches!(prepared.payload, Payload::Once(_)) {
        return Err("body_not_kept");
    }
    if attempt >= retry.attempts_max {
        return Err("attempts");
    }
    let mut elsewhere = prepared.pool.workers.iter().filter(|other| !excluded.contains(&other.id));
    let elsewhere = elsewhere.any(|other| other.can_take(prepared.relaying(), now));
    let backoff = retry.backoff.delay(attempt - 1, &*gateway.random);
    let wait = match rejected.failure.retry_after {
        _ if elsewhere && attempt == 1 => Duration::ZERO,
        _ if elsewhere => backoff,
        Some(asked) if asked > backoff.max(RETRY_AFTER_WAIT_MAX) => return Err("retry_after"),
        Some(asked) => backoff.max(asked),
        None => backoff,
    };
    if now + wait >= prepared.deadline {
        return Err("deadline");
    }
    if !prepared.plan.budget.withdraw(now) {
        return Err("budget");
    }
    Ok(wait)
}

fn give_up(
    gateway: &Gateway,
    prepared: Prepared,
    rejected: Rejected,
    reason: &'static str,
) -> Result<Streaming, Failure> {
    if reason != "not_safe" {
        let labels = ["regular", prepared.endpoint.label(), reason];
        gateway.metrics.retries_exhausted.with_label_values(&labels).inc();
    }
    match rejected.answer {
        Some(refusal) => Ok(Streaming { prepared, settled: Settled::Refused(refusal) }),
        None => Err(with_hope(rejected.failure)),
    }
}

/// Tells the caller of a peer that refused when to come back, as where no worker can be used.
fn with_hope(failure: Failure) -> Failure {
    match failure.code {
        FailureCode::NoAvailableWorkers => failure.retry_after(SOON),
        _ => failure,
    }
}

/// Chooses a worker and takes what says so: the breaker's ticket and the load.
fn route(gateway: &Gateway, prepared: &Prepared, excluded: &[WorkerId], trail: &mut Trail) -> Result<Routed, NoChoice> {
    let started = gateway.now();
    let mut decision = Box::<Explanation>::default();
    let mut passed_over: SmallVec<[WorkerId; 8]> = SmallVec::from_slice(excluded);
    // A breaker that is half open admits one request: between the look and the ticket another may have taken it.
    for _ in 0..=prepared.pool.workers.len().min(8) {
        let now = gateway.now();
        let ask = ask(gateway, prepared, &passed_over, now);
        let chosen = match choose(prepared, &ask, &mut decision) {
            Ok(chosen) => chosen,
            Err(reason) => {
                trail.not_chosen(reason, decision);
                return Err(reason);
            }
        };
        let worker = &prepared.pool.workers[chosen];
        let Some(ticket) = worker.admit_by(prepared.relaying(), now) else {
            passed_over.push(worker.id);
            continue;
        };
        let path = ticket.path();
        if let Some(change) = ticket.transition() {
            breaker_changed(gateway, worker, path, change);
        }
        let mut load = match prepared.hop {
            None => worker.state.begin(decision.uncached_tokens(), now),
            Some(_) => worker.state.begin_relayed(),
        };
        if let Some(key) = &prepared.hints.routing_key {
            load.hold_key(hash::stable64(key.as_bytes()));
        }
        let predicted_tokens = decision.predicted_tokens();
        prepared.plan.policy.dispatched(worker, &ask);
        if let Some(meters) = trail.meters() {
            meters.selections.inc();
            meters.route.observe(gateway.now().since(started).as_secs_f64());
        }
        let labels = [prepared.plan.policy_kind().as_str(), decision.reason().as_str()];
        gateway.metrics.policy_branches.with_label_values(&labels).inc();
        trail.chosen(worker.id, path, decision);
        return Ok(Routed { worker: worker.clone(), ticket: Some(ticket), path, load, predicted_tokens });
    }
    trail.not_chosen(NoChoice::NoneAvailable, decision);
    Err(NoChoice::NoneAvailable)
}

/// Asks the policy; the worker that a peer would take comes first, as long as it can be used.
fn choose(prepared: &Prepared, ask: &Ask<'_>, decision: &mut Explanation) -> Result<usize, NoChoice> {
    let policy = &prepared.plan.policy;
    let preferred = prepared.hop.and_then(|hop| hop.preferred).filter(|_| ask.target.is_none());
    if let Some(preferred) = preferred {
        let target = preferred.to_string();
        if let Ok(chosen) = policy.choose(&prepared.pool, &Ask { target: Some(&target), ..*ask }, decision) {
            return Ok(chosen);
        }
    }
    policy.choose(&prepared.pool, ask, decision)
}

/// The question put to the policy.
fn ask<'a>(gateway: &'a Gateway, prepared: &'a Prepared, excluded: &'a [WorkerId], now: Timestamp) -> Ask<'a> {
    let hints = &prepared.hints;
    Ask {
        prompt: hints.prompt.as_ref(),
        input_tokens: hints.input_tokens,
        routing_key: hints.routing_key.as_deref(),
        target: hints.target.as_deref(),
        session: hints.session,
        excluded,
        paths: prepared.endpoint.engine_paths(),
        relaying: prepared.relaying(),
        now,
        random: &*gateway.random,
    }
}

fn no_worker(gateway: &Gateway, prepared: &Prepared, reason: NoChoice) -> Failure {
    let labels = [prepared.pool.model.as_str(), reason.as_str()];
    gateway.metrics.no_candidate.with_label_values(&labels).inc();
    let model = &prepared.pool.model;
    match reason {
        NoChoice::TargetUnavailable => Failure::new(
            FailureCode::TargetUnavailable,
            "the worker named by x-smg-target-worker (or the one that holds the previous response) cannot be used now",
        )
        .retry_after(SOON),
        NoChoice::NotOffered => Failure::new(
            FailureCode::Unsupported,
            format!("no worker of '{model}' offers {}", prepared.endpoint.path()),
        ),
        NoChoice::Empty | NoChoice::AllExcluded | NoChoice::NoneAvailable => {
            Failure::new(FailureCode::NoAvailableWorkers, format!("no worker of '{model}' can be used now"))
                .retry_after(SOON)
        }
    }
}

/// Sends the request to one worker and waits for the first byte of its answer.
async fn send(
    gateway: &Arc<Gateway>,
    prepared: &mut Prepared,
    mut routed: Routed,
    trail: &mut Trail,
) -> Result<Settled, Rejected> {
    let now = gateway.now();
    trail.dispatching(now);
    let outbound = outbound(prepared, &routed, trail);
    let limit = first_byte_limit(prepared, now);
    let reading = Reading {
        endpoint: prepared.endpoint,
        bytes_max: prepared.answer.buffer_bytes_max,
        stall: prepared.plan.timeouts.stall,
    };
    let begun = timeout(limit, begin(gateway, &routed, outbound, reading)).await;
    let begun = begun.unwrap_or_else(|_| Err(too_slow(prepared, limit).into()));
    let now = gateway.now();
    count_relayed(gateway, routed.path, begun.as_ref().err());
    match begun {
        Ok(begun) => {
            routed.correct(gateway, prepared, &begun.head.headers, trail);
            trail.first_byte(now);
            if begun.head.status == StatusCode::OK {
                if let Some(meters) = trail.meters() {
                    meters.ok_upstream.inc();
                }
            } else {
                EndpointMeters::upstream(&gateway.metrics, status_text(begun.head.status.as_u16()).as_str(), "");
            }
            Ok(Settled::Begun(Box::new(begun), routed))
        }
        Err(rejected) => {
            let status = rejected.answer.as_ref().map_or(0, |answer| answer.head.status.as_u16());
            let status = (status != 0).then(|| status_text(status));
            let label = status.as_ref().map_or("", |status| status.as_str());
            EndpointMeters::upstream(&gateway.metrics, label, rejected.failure.code.as_str());
            if routed.path == Path::Direct || rejected.answer.is_some() {
                routed.settle(gateway, verdict(&rejected), now);
            } else {
                // What goes wrong on the way says nothing about the worker.
                routed.settle_path(gateway, verdict(&rejected), now);
            }
            Err(rejected)
        }
    }
}

/// Counts an attempt that went to a peer.
fn count_relayed(gateway: &Gateway, path: Path, rejected: Option<&Rejected>) {
    if path != Path::Direct {
        let outcome = match rejected.filter(|rejected| rejected.answer.is_none()) {
            None => "answered",
            Some(rejected) => rejected.failure.code.as_str(),
        };
        gateway.metrics.relayed.with_label_values(&["out", outcome]).inc();
    }
}

/// What an attempt's failure says about the worker: busy is not dead, and an error of the caller's is none of its.
fn verdict(rejected: &Rejected) -> Outcome {
    match rejected.answer.as_ref().map(|answer| answer.head.status.as_u16()) {
        Some(429 | 503) => Outcome::Neutral,
        Some(408 | 500..) | None => Outcome::Failure,
        Some(_) => Outcome::Success,
    }
}

impl Routed {
    /// The worker has begun to answer. A breaker that is half open need not wait for the end of a long stream to learn
    /// that the worker is back.
    pub(crate) fn first_byte(&mut self, gateway: &Gateway) {
        if self.ticket.as_ref().is_some_and(|ticket| ticket.breaker().state() != BreakerState::Closed) {
            self.settle(gateway, Outcome::Success, gateway.now());
        }
    }

    /// Tells the breaker and the error rate how it went. Only the first call counts.
    pub(crate) fn settle(&mut self, gateway: &Gateway, outcome: Outcome, now: Timestamp) {
        if self.ticket.is_some() {
            self.settle_path(gateway, outcome, now);
            self.worker.state.rates.observe_outcome(outcome, now);
        }
    }

    /// Tells only the breaker of the path.
    fn settle_path(&mut self, gateway: &Gateway, outcome: Outcome, now: Timestamp) {
        let Some(ticket) = self.ticket.take() else {
            return;
        };
        if self.path == Path::Direct {
            let labels = [self.worker.spec.url.as_str(), outcome_label(outcome)];
            gateway.metrics.breaker_outcomes.with_label_values(&labels).inc();
        }
        if let Some(change) = ticket.record(outcome, now) {
            breaker_changed(gateway, &self.worker, self.path, change);
        }
    }

    /// The peer says which worker it took. If that is another than the one chosen here, the request counts there from now
    /// on, and what is learned from it is learned of that one. The way to the peer has proved itself.
    fn correct(&mut self, gateway: &Gateway, prepared: &Prepared, headers: &HeaderMap, trail: &mut Trail) {
        let told = headers.get(relay::WORKER).filter(|_| self.path != Path::Direct);
        let Some(id) = told.and_then(|id| id.to_str().ok()?.parse::<WorkerId>().ok()) else {
            return;
        };
        if id == self.worker.id {
            return;
        }
        let now = gateway.now();
        trail.corrected(id);
        if let Some(worker) = gateway.fleet.snapshot().worker(id) {
            self.settle_path(gateway, Outcome::Success, now);
            self.load = self.load.moved_to(&worker.state, now);
            self.worker = worker.clone();
            self.predicted_tokens = 0;
            prepared.plan.policy.dispatched(worker, &ask(gateway, prepared, &[], now));
        }
    }

    /// The time that the way there takes of an answer's.
    pub(crate) fn path_rtt(&self) -> Duration {
        match self.path {
            Path::Direct => Duration::ZERO,
            Path::Via(via) => via.rtt,
        }
    }
}

fn outcome_label(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Success => "success",
        Outcome::Failure => "failure",
        Outcome::Neutral => "neutral",
    }
}

fn breaker_changed(gateway: &Gateway, worker: &Worker, path: Path, change: BreakerTransition) {
    let (from, to) = (change.from.as_str(), change.to.as_str());
    if let Path::Via(Via { peer, .. }) = path {
        tracing::warn!(worker = %worker.id, url = %worker.spec.url, %peer, from, to, "circuit breaker of a relay changed");
        return;
    }
    gateway.metrics.breaker_transitions.with_label_values(&[worker.spec.url.as_str(), from, to]).inc();
    tracing::warn!(worker = %worker.id, url = %worker.spec.url, from, to, "circuit breaker changed");
}

fn first_byte_limit(prepared: &Prepared, now: Timestamp) -> Duration {
    let left = prepared.deadline.since(now);
    // The first byte of an answer that does not stream is its last one too, so only the request's own limit holds.
    match prepared.plan.timeouts.first_byte.filter(|_| prepared.hints.stream) {
        Some(limit) => limit.min(left),
        None => left,
    }
}

fn too_slow(prepared: &Prepared, limit: Duration) -> Failure {
    let (code, what) = match prepared.plan.timeouts.first_byte {
        Some(first_byte) if prepared.hints.stream && limit == first_byte => {
            (FailureCode::FirstByteTimeout, "send its first byte")
        }
        _ => (FailureCode::UpstreamTimeout, "answer"),
    };
    Failure::new(code, format!("the worker did not {what} within {} s", limit.as_secs_f32()))
        .dispatched(Dispatched::Maybe)
}

fn outbound(prepared: &mut Prepared, routed: &Routed, trail: &Trail) -> Outbound {
    let mut headers = prepared.headers.clone();
    let path = match routed.path {
        Path::Direct => {
            trail.mark(&mut headers);
            engine_path(&routed.worker, prepared.endpoint)
        }
        Path::Via(_) => {
            trail.mark_for_peer(&mut headers);
            tell_peer(prepared, routed, trail, &mut headers);
            prepared.endpoint.path()
        }
    };
    let body = match &mut prepared.payload {
        Payload::Whole { body, unsalted, .. } => {
            let takes_salt = isolation::salt_field(routed.worker.engine(), prepared.endpoint).is_some();
            let body = unsalted.as_ref().filter(|_| !takes_salt).unwrap_or(body);
            OutboundBody::Full(body.clone())
        }
        Payload::Once(body) => body.take().unwrap_or(OutboundBody::Full(Bytes::new())),
    };
    Outbound { method: http::Method::POST, path_and_query: path.into(), headers, body }
}

/// Tells a peer what this node knows of the caller's wishes.
fn tell_peer(prepared: &Prepared, routed: &Routed, trail: &Trail, headers: &mut HeaderMap) {
    let left = prepared.deadline.since(trail.now()).as_millis();
    headers.insert(relay::DEADLINE_MS, HeaderValue::from(u64::try_from(left).unwrap_or(u64::MAX)));
    access::tell_peer(&prepared.principal, headers);
    if let Some(salt) = &prepared.salt {
        headers.insert(relay::SALT, edge::header_value(salt));
    }
    if let Some(key) = &prepared.hints.routing_key {
        headers.insert("x-smg-routing-key", edge::header_value(key));
    }
    if prepared.hints.target.is_some() {
        // The caller insists: a place in the pool, or a URL, may mean another worker there.
        headers.insert("x-smg-target-worker", edge::header_value(&routed.worker.id.to_string()));
    }
}

/// Where this worker offers the endpoint: the first path it says it has, else the usual one.
pub(crate) fn engine_path(worker: &Worker, endpoint: Endpoint) -> &'static str {
    let paths = endpoint.engine_paths();
    paths.iter().copied().find(|path| worker.offers(path) == Offer::Yes).unwrap_or(paths[0])
}

/// An answer whose first byte is here.
pub(crate) struct Begun {
    pub(crate) head: response::Parts,
    pub(crate) first: Option<Bytes>,
    /// What follows; none if `first` is all.
    pub(crate) rest: Option<ResponseBody>,
    /// For a stream of events, what was found in `first`.
    pub(crate) opening: Option<(Scanner, Scanned)>,
}

/// How an answer is read.
#[derive(Clone, Copy)]
struct Reading {
    endpoint: Endpoint,
    /// Largest answer that is held back until it is whole.
    bytes_max: usize,
    /// Longest silence once it has begun.
    stall: Option<Duration>,
}

async fn begin(gateway: &Gateway, routed: &Routed, outbound: Outbound, reading: Reading) -> Result<Begun, Rejected> {
    let worker = &routed.worker;
    let response = match routed.path {
        Path::Direct => gateway.upstream.send(worker, outbound).await?,
        Path::Via(via) => gateway.upstream.send_via(via.peer, worker.id, outbound).boxed().await?,
    };
    let (head, body) = response.into_parts();
    if is_refusal(head.status) {
        return Err(refusal(head, body, reading.stall).await);
    }
    if head.status == StatusCode::OK && is_event_stream(&head.headers) {
        return open_stream(head, body, reading.endpoint).await;
    }
    let begun = buffer(head, body, reading).await?;
    check_whole(&begun, reading.endpoint)?;
    Ok(begun)
}

/// Waits for the first piece of a stream and looks at it, so that one that begins with garbage, or with nothing, becomes
/// an error with a status.
async fn open_stream(head: response::Parts, mut body: ResponseBody, endpoint: Endpoint) -> Result<Begun, Rejected> {
    let Some(first) = next_piece(&mut body).await? else {
        return Err(garbage("the worker's stream ended before its first event").into());
    };
    let mut scanner = Scanner::new(endpoint);
    let scanned = scanner
        .push(&first)
        .map_err(|error| garbage(format!("the worker sent something that is no event: {error}")))?;
    Ok(Begun { head, first: Some(first), rest: Some(body), opening: Some((scanner, scanned)) })
}

/// A whole answer that claims to be JSON must be JSON, and an error page is no answer.
fn check_whole(begun: &Begun, endpoint: Endpoint) -> Result<(), Failure> {
    if begun.rest.is_some() || begun.head.status != StatusCode::OK || endpoint == Endpoint::Transcriptions {
        return Ok(());
    }
    let media = begun.head.headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    let body = begun.first.as_deref().unwrap_or_default();
    if media.starts_with(b"text/html") {
        return Err(garbage("the worker answered with a web page"));
    }
    if media.starts_with(b"application/json") && !smg_api::is_json(body) {
        return Err(garbage("the worker's answer is not the JSON it claims to be"));
    }
    Ok(())
}

fn garbage(message: impl Into<std::borrow::Cow<'static, str>>) -> Failure {
    Failure::new(FailureCode::UpstreamGarbage, message).dispatched(Dispatched::Yes)
}

/// Errors a worker answers with that another worker might not. Other errors are the caller's and go back as they are.
fn is_refusal(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500..=599)
}

/// Whether the answer is a stream of events.
pub(crate) fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

async fn refusal(mut head: response::Parts, mut body: ResponseBody, stall: Option<Duration>) -> Rejected {
    let status = head.status.as_u16();
    let mut bytes = BytesMut::new();
    while let Ok(Some(piece)) = next_piece_within(&mut body, stall).await {
        if bytes.len() + piece.len() > REFUSAL_BYTES_MAX {
            break;
        }
        bytes.extend_from_slice(&piece);
    }
    head.headers.remove(header::CONTENT_LENGTH);
    // A worker that is too busy says so before it runs the request; after any other error it may have run.
    let dispatched = if matches!(status, 429 | 503) { Dispatched::No } else { Dispatched::Yes };
    let mut failure = Failure::new(FailureCode::UpstreamStatus, format!("the worker answered with status {status}"))
        .dispatched(dispatched);
    failure.retry_after = retry_after(&head.headers);
    Rejected { failure, answer: Some(Box::new(WorkerRefusal { head, body: bytes.freeze() })) }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.min(86_400)))
}

/// Holds an answer back until it is whole, so that one that breaks off becomes a clean error; a long one goes on as it
/// comes.
async fn buffer(head: response::Parts, mut body: ResponseBody, reading: Reading) -> Result<Begun, Rejected> {
    let announced = crate::body::announced(&head.headers);
    if announced.is_some_and(|length| length > reading.bytes_max as u64) {
        let first = next_piece(&mut body).await?;
        return Ok(Begun { head, first, rest: Some(body), opening: None });
    }
    let Some(first) = next_piece(&mut body).await? else {
        return Ok(Begun { head, first: None, rest: None, opening: None });
    };
    if http_body::Body::is_end_stream(&body) || announced == Some(first.len() as u64) {
        return Ok(Begun { head, first: Some(first), rest: None, opening: None });
    }
    let mut whole = BytesMut::from(first);
    while whole.len() <= reading.bytes_max {
        match next_piece_within(&mut body, reading.stall).await? {
            Some(piece) => whole.extend_from_slice(&piece),
            None => return Ok(Begun { head, first: Some(whole.freeze()), rest: None, opening: None }),
        }
    }
    Ok(Begun { head, first: Some(whole.freeze()), rest: Some(body), opening: None })
}

/// The next piece of an answer that has begun, unless the worker falls silent.
async fn next_piece_within(body: &mut ResponseBody, stall: Option<Duration>) -> Result<Option<Bytes>, Failure> {
    let Some(limit) = stall else {
        return next_piece(body).await;
    };
    timeout(limit, next_piece(body)).await.unwrap_or_else(|_| {
        let message = format!("the worker fell silent for {:.1} s", limit.as_secs_f32());
        Err(Failure::new(FailureCode::StallTimeout, message).dispatched(Dispatched::Yes))
    })
}

/// The next piece of an answer; none at its end.
async fn next_piece(body: &mut ResponseBody) -> Result<Option<Bytes>, Failure> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Ok(Some(data)),
                Err(_trailers) => {}
            },
            Some(Err(_)) => {
                return Err(Failure::new(FailureCode::UpstreamCut, "the worker broke off its answer")
                    .dispatched(Dispatched::Yes));
            }
        }
    }
}
