//! What is remembered of a request on its way, and settled when it ends — however it ends.

use std::{sync::Arc, time::Duration};

use http::HeaderMap;
use smg_admission::Admission;
use smg_api::{Endpoint, Usage};
use smg_base::{PeerId, RequestId, Timestamp, WorkerId};
use smg_fleet::Path;
use smg_infer::{Blame, Dispatched, Failure, FailureCode};
use smg_routing::{Explanation, NoChoice, PathTaken};
use tracing::{Span, field};

use crate::{
    app::Gateway,
    config::{AccessLog, Settings},
    edge::{self, IdOrigin},
    explain::{AttemptRecord, Record, Timing},
    limits::{Account, Spent},
    metrics::EndpointMeters,
    plan::{ModelPlan, Versioned},
};

/// How the caller wants the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// In one piece.
    Whole,
    /// As a stream of events.
    Stream,
}

/// Who sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A client.
    Client,
    /// A peer, which counts the request itself.
    Peer(PeerId),
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Not yet. Dropped in this state, the caller went away.
    Open,
    /// A worker's answer was passed on whole.
    Answered,
    /// The gateway had to say no, or to break off.
    Failed(FailureCode),
}

/// The trail of one request. Dropping it settles metrics, log and explanation.
pub(crate) struct Trail {
    gateway: Arc<Gateway>,
    caller: Caller,
    endpoint: Endpoint,
    request_id: RequestId,
    id_origin: IdOrigin,
    span: Span,
    received: Timestamp,
    admitted: Timestamp,
    /// None where a peer has admitted it.
    admission: Option<Admission>,
    body_read: Timestamp,
    dispatched: Option<Timestamp>,
    first_byte: Option<Timestamp>,
    relayed: u64,
    output: Output,
    target: Option<Target>,
    delivery: Delivery,
    input_tokens: u64,
    attempts: Vec<AttemptRecord>,
    usage: Option<Usage>,
    account: Option<Account>,
    status: u16,
    ending: Ending,
    access_log: AccessLog,
    slow: Duration,
}

/// The model a request goes to.
struct Target {
    plan: Arc<ModelPlan>,
    meters: Arc<EndpointMeters>,
}

/// When a stream said something.
#[derive(Default)]
struct Output {
    first: Option<Timestamp>,
    last: Option<Timestamp>,
    events: u64,
    gap_max: Duration,
}

impl Trail {
    pub(crate) fn begin(
        gateway: &Arc<Gateway>,
        current: &Versioned,
        headers: &HeaderMap,
        endpoint: Endpoint,
        caller: Caller,
    ) -> Self {
        let received = gateway.now();
        let names = match caller {
            Caller::Client => &current.settings.request_id_headers[..],
            Caller::Peer(_) => &[edge::X_REQUEST_ID],
        };
        let (request_id, id_origin) = edge::request_id(headers, names, endpoint.id_prefix(), &*gateway.random);
        if caller == Caller::Client {
            gateway.metrics.http_in_flight.inc();
        }
        Self {
            gateway: gateway.clone(),
            caller,
            endpoint,
            request_id,
            id_origin,
            span: Span::none(),
            received,
            admitted: received,
            admission: None,
            body_read: received,
            dispatched: None,
            first_byte: None,
            relayed: 0,
            output: Output::default(),
            target: None,
            delivery: Delivery::Whole,
            input_tokens: 0,
            attempts: Vec::new(),
            usage: None,
            account: None,
            status: 0,
            ending: Ending::Open,
            access_log: current.settings.access_log,
            slow: current.settings.slow_request,
        }
    }

    /// The span of this request, made only where a tracing backend listens.
    pub(crate) fn span(&mut self, headers: &HeaderMap) -> Span {
        let trace = self.gateway.config.trace;
        if trace.enabled {
            self.span = tracing::info_span!(
                target: "smg::trace",
                "request",
                otel.name = field::Empty,
                otel.kind = "server",
                otel.status_code = field::Empty,
                http.route = self.endpoint.path(),
                http.response.status_code = field::Empty,
                gen_ai.operation.name = self.endpoint.gen_ai_operation(),
                gen_ai.provider.name = field::Empty,
                gen_ai.request.model = field::Empty,
                gen_ai.usage.input_tokens = field::Empty,
                gen_ai.usage.output_tokens = field::Empty,
                error.type = field::Empty,
                smg.request_id = self.request_id.as_str(),
                smg.worker = field::Empty,
                smg.attempts = field::Empty,
            );
            (trace.adopt)(headers, &self.span);
        }
        self.span.clone()
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    pub(crate) fn request_id(&self) -> &RequestId {
        &self.request_id
    }

    pub(crate) fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// Whether a peer sent the request, which counts it and settles it.
    pub(crate) fn is_relayed(&self) -> bool {
        self.caller != Caller::Client
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.gateway.now()
    }

    pub(crate) fn received(&self) -> Timestamp {
        self.received
    }

    pub(crate) fn admitted(&mut self, admission: &Admission) {
        self.admission = Some(admission.clone());
        self.admitted = self.gateway.now();
    }

    pub(crate) fn body_read(&mut self, bytes: usize) {
        self.body_read = self.gateway.now();
        if self.is_relayed() {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "a size for a histogram")]
        self.gateway.metrics.request_bytes.observe(bytes as f64);
    }

    /// The request is understood: this is the model it goes to.
    pub(crate) fn prepared(&mut self, plan: &Arc<ModelPlan>, delivery: Delivery, input_tokens: u64) {
        let meters = plan.meters.of(self.endpoint, &self.gateway.metrics);
        if !self.is_relayed() {
            match delivery {
                Delivery::Stream => meters.streaming.inc(),
                Delivery::Whole => meters.plain.inc(),
            }
            meters.prepare.observe(self.gateway.now().since(self.admitted).as_secs_f64());
        }
        if !self.span.is_disabled() {
            self.span.record("gen_ai.request.model", plan.model.as_str());
            self.span.record("otel.name", format!("{} {}", self.endpoint.gen_ai_operation(), plan.model));
        }
        self.delivery = delivery;
        self.input_tokens = input_tokens;
        self.target = Some(Target { plan: plan.clone(), meters });
    }

    /// Where the request is counted; nowhere if a peer counts it.
    pub(crate) fn meters(&self) -> Option<&EndpointMeters> {
        self.target.as_ref().filter(|_| !self.is_relayed()).map(|target| &*target.meters)
    }

    /// A worker was chosen.
    pub(crate) fn chosen(&mut self, worker: WorkerId, path: Path, decision: Box<Explanation>) {
        if let Some(admission) = &self.admission {
            // By now it is known what a cache will save.
            admission.correct(decision.uncached_tokens());
        }
        let path = Some(PathTaken::from(path));
        let (worker, dispatched) = (Some(worker), Dispatched::No.as_str());
        self.attempts.push(AttemptRecord { worker, path, instead_of: None, result: None, dispatched, decision });
    }

    /// The peer took another worker than the one chosen here.
    pub(crate) fn corrected(&mut self, worker: WorkerId) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.instead_of = attempt.worker.replace(worker);
        }
    }

    /// No worker could be chosen.
    pub(crate) fn not_chosen(&mut self, reason: NoChoice, decision: Box<Explanation>) {
        let (result, dispatched) = (Some(reason.as_str()), Dispatched::No.as_str());
        self.attempts.push(AttemptRecord { worker: None, path: None, instead_of: None, result, dispatched, decision });
    }

    /// The last decision led to no attempt and is made again.
    pub(crate) fn undecided(&mut self) {
        self.attempts.pop();
    }

    /// The last attempt ended so.
    pub(crate) fn attempt_ended(&mut self, result: &'static str, dispatched: Dispatched) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.result = Some(result);
            attempt.dispatched = dispatched.as_str();
        }
    }

    fn attempt_dispatched(&mut self, dispatched: Dispatched) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.dispatched = dispatched.as_str();
        }
    }

    pub(crate) fn attempts(&self) -> usize {
        self.attempts.len()
    }

    pub(crate) fn last_worker(&self) -> Option<WorkerId> {
        self.attempts.last().and_then(|attempt| attempt.worker)
    }

    pub(crate) fn last_decision(&self) -> Option<&Explanation> {
        self.attempts.last().map(|attempt| &*attempt.decision)
    }

    /// The headers under which the next attempt's worker sees the request and its trace.
    pub(crate) fn mark(&self, headers: &mut HeaderMap) {
        let attempt = u32::try_from(self.attempts.len().saturating_sub(1)).unwrap_or(u32::MAX);
        let id = edge::worker_request_id(&self.request_id, self.id_origin, attempt, &*self.gateway.random);
        headers.insert(edge::X_REQUEST_ID, id);
        if self.gateway.config.trace.enabled {
            (self.gateway.config.trace.inject)(&self.span, headers);
        }
    }

    /// The headers under which a peer sees the request and its trace: the id is the caller's own, so that one id leads to what
    /// both nodes know.
    pub(crate) fn mark_for_peer(&self, headers: &mut HeaderMap) {
        headers.insert(edge::X_REQUEST_ID, edge::header_value(self.request_id.as_str()));
        if self.gateway.config.trace.enabled {
            (self.gateway.config.trace.inject)(&self.span, headers);
        }
    }

    /// The request leaves for a worker now.
    pub(crate) fn dispatching(&mut self, now: Timestamp) {
        // Until something is heard, it may have arrived.
        self.attempt_dispatched(Dispatched::Maybe);
        if self.dispatched.is_none() {
            self.dispatched = Some(now);
            if let Some(meters) = self.meters() {
                meters.overhead.observe(now.since(self.body_read).as_secs_f64());
            }
        }
    }

    /// The worker's answer began.
    pub(crate) fn first_byte(&mut self, now: Timestamp) {
        self.first_byte = Some(now);
        self.attempt_dispatched(Dispatched::Yes);
        if let (Some(meters), Some(dispatched)) = (self.meters(), self.dispatched) {
            meters.dispatch.observe(now.since(dispatched).as_secs_f64());
        }
    }

    /// Events went on to the caller, whatever they said.
    pub(crate) fn relayed(&mut self, events: u32) {
        self.relayed += u64::from(events);
    }

    /// The stream said something.
    pub(crate) fn output(&mut self, now: Timestamp, events: u32) {
        let output = &mut self.output;
        match output.last {
            Some(last) => output.gap_max = output.gap_max.max(now.since(last)),
            None => output.first = Some(now),
        }
        output.last = Some(now);
        output.events += u64::from(events);
    }

    /// Time from dispatch to the first output; none before it.
    pub(crate) fn engine_ttft(&self) -> Option<Duration> {
        let first = self.output.first.or(self.first_byte)?;
        Some(first.since(self.dispatched?))
    }

    /// Mean time between two outputs; none where there were fewer than two.
    pub(crate) fn gap_mean(&self) -> Option<Duration> {
        let (first, last) = self.output.first.zip(self.output.last)?;
        let gaps = u32::try_from(self.output.events.checked_sub(1)?).ok().filter(|&gaps| gaps > 0)?;
        Some(last.since(first) / gaps)
    }

    pub(crate) fn usage(&mut self, usage: Option<Usage>) {
        if usage.is_some() {
            self.usage = usage;
        }
    }

    /// What a stream has said of its usage, if nothing was taken down yet.
    pub(crate) fn usage_so_far(&mut self, usage: Option<Usage>) {
        if self.usage.is_none() {
            self.usage = usage;
        }
    }

    /// Whom the request is charged to.
    pub(crate) fn account(&mut self, account: Account) {
        self.account = Some(account);
    }

    /// How the caller's limits stand, in headers.
    pub(crate) fn limits_told(&self, settings: &Settings) -> HeaderMap {
        let family = self.endpoint.family();
        self.account.as_ref().map(|account| account.told(&self.gateway, settings, family)).unwrap_or_default()
    }

    /// The status the caller sees.
    pub(crate) fn status(&mut self, status: u16) {
        self.status = status;
    }

    /// The answer was passed on whole.
    pub(crate) fn answered(&mut self) {
        self.ending = Ending::Answered;
    }

    /// The gateway said no, or broke off in the middle.
    pub(crate) fn fail(&mut self, failure: &Failure) {
        if self.status == 0 {
            self.status = failure.code.status();
        }
        self.ending = Ending::Failed(failure.code);
    }

    fn outcome(&self) -> &'static str {
        match self.ending {
            Ending::Open => FailureCode::ClientClosed.as_str(),
            Ending::Answered => "answered",
            Ending::Failed(code) => code.as_str(),
        }
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        let now = self.gateway.now();
        match self.caller {
            Caller::Client => {
                self.gateway.metrics.http_in_flight.dec();
                self.count(now);
            }
            Caller::Peer(_) => self.gateway.metrics.relayed.with_label_values(&["in", self.outcome()]).inc(),
        }
        self.charge();
        self.settle(now);
        self.trace();
        self.log(now);
        self.explain(now);
    }
}

/// The settling.
impl Trail {
    /// Tells admission what the request did cost its tenant: what an engine had to compute for it.
    fn charge(&self) {
        let Some(admission) = &self.admission else { return };
        let cost = match &self.usage {
            Some(usage) => usage.input_tokens.saturating_sub(usage.cached_tokens.unwrap_or(0)) + usage.output_tokens,
            None if self.dispatched.is_none() => 0,
            None => self.input_tokens + self.output.events,
        };
        admission.correct(cost);
    }

    /// Settles with limits, and counts as its tenant's usage, what the request did use.
    fn settle(&mut self, now: Timestamp) {
        if let Some(account) = self.account.take() {
            account.settle(&self.gateway, self.spent(), now);
        }
    }

    /// What the request used of workers: what the answer says, else what was seen of it.
    fn spent(&self) -> Spent {
        if let Some(usage) = &self.usage {
            // Of an answer that was not heard to its end, more may have been seen than was reported.
            let seen = if self.ending == Ending::Answered { 0 } else { self.output.events };
            return Spent::Tokens {
                input: usage.input_tokens,
                cached: usage.cached_tokens.unwrap_or(0),
                output: usage.output_tokens.max(seen),
            };
        }
        if self.attempts.iter().all(|attempt| attempt.dispatched == Dispatched::No.as_str()) {
            return Spent::Nothing;
        }
        let is_error = match self.ending {
            Ending::Answered => self.status != 200,
            Ending::Failed(_) => true,
            Ending::Open => false,
        };
        if is_error && self.output.events == 0 {
            return Spent::Refused;
        }
        Spent::Tokens { input: self.input_tokens, cached: 0, output: self.output.events }
    }

    fn count(&self, now: Timestamp) {
        let metrics = &self.gateway.metrics;
        let total = now.since(self.received).as_secs_f64();
        let Some(Target { plan, meters }) = &self.target else {
            let path = self.endpoint.path();
            metrics.http_requests.with_label_values(&["POST", path]).inc();
            metrics.http_duration.with_label_values(&["POST", path]).observe(total);
            self.count_answer();
            return;
        };
        meters.http_requests.inc();
        meters.http_duration.observe(total);
        meters.duration.observe(total);
        if self.ending == Ending::Answered && self.status == 200 {
            meters.ok_answers.inc();
        } else {
            self.count_answer();
            let error = if self.ending == Ending::Answered { "upstream_error" } else { self.outcome() };
            EndpointMeters::error(metrics, plan.model.as_str(), self.endpoint, error);
        }
        if let Some(first) = self.output.first.or(self.first_byte).filter(|_| self.status == 200) {
            meters.ttft.observe(first.since(self.received).as_secs_f64());
        }
        if let Some(first) = self.first_byte {
            meters.generation.observe(now.since(first).as_secs_f64());
        }
        if let Some(gap) = self.gap_mean() {
            meters.tpot.observe(gap.as_secs_f64());
            meters.gap_max.observe(self.output.gap_max.as_secs_f64());
        }
        meters.events.inc_by(self.relayed);
        if let Some(usage) = &self.usage {
            meters.input_tokens.inc_by(usage.input_tokens);
            meters.output_tokens.inc_by(usage.output_tokens);
            meters.cached_tokens.inc_by(usage.cached_tokens.unwrap_or(0));
        }
    }

    fn count_answer(&self) {
        let metrics = &self.gateway.metrics;
        let code = match self.ending {
            Ending::Answered => "",
            Ending::Open => {
                let phase = match (self.dispatched, self.first_byte) {
                    (None, _) => "before_dispatch",
                    (Some(_), None) => "before_first_byte",
                    (Some(_), Some(_)) => "streaming",
                };
                metrics.disconnects.with_label_values(&[self.endpoint.label(), phase]).inc();
                FailureCode::ClientClosed.as_str()
            }
            Ending::Failed(code) => code.as_str(),
        };
        let status = if self.status == 0 { FailureCode::ClientClosed.status() } else { self.status };
        metrics.http_responses.with_label_values(&[self.endpoint.path(), status_text(status).as_str(), code]).inc();
    }

    fn trace(&self) {
        if self.span.is_disabled() {
            return;
        }
        let span = &self.span;
        span.record("http.response.status_code", self.status);
        span.record("smg.attempts", self.attempts.len());
        if let Some(worker) = self.last_worker() {
            span.record("smg.worker", field::display(worker));
        }
        if let Some(usage) = &self.usage {
            span.record("gen_ai.usage.input_tokens", usage.input_tokens);
            span.record("gen_ai.usage.output_tokens", usage.output_tokens);
        }
        match self.ending {
            Ending::Failed(code) if code.blame() != Blame::Client => {
                span.record("otel.status_code", "ERROR");
                span.record("error.type", code.as_str());
            }
            Ending::Failed(_) | Ending::Open => drop(span.record("error.type", self.outcome())),
            Ending::Answered => {}
        }
    }

    fn log(&self, now: Timestamp) {
        let is_notable =
            || self.status != 200 || self.ending != Ending::Answered || now.since(self.received) >= self.slow;
        let wanted = match self.access_log {
            AccessLog::All => true,
            AccessLog::Errors => is_notable(),
            AccessLog::Off => false,
        };
        if !wanted {
            return;
        }
        let model = self.target.as_ref().map_or("", |target| target.plan.model.as_str());
        let worker = self.last_worker().map(field::display);
        let from_peer = match self.caller {
            Caller::Client => None,
            Caller::Peer(peer) => Some(field::display(peer)),
        };
        let milliseconds = |since: Timestamp, until: Timestamp| until.since(since).as_secs_f64() * 1_000.0;
        tracing::info!(
            target: "smg::access",
            request_id = self.request_id.as_str(),
            endpoint = self.endpoint.label(),
            from_peer,
            model,
            status = self.status,
            outcome = self.outcome(),
            stream = self.delivery == Delivery::Stream,
            worker,
            attempts = self.attempts.len(),
            input_tokens = self.usage.as_ref().map(|usage| usage.input_tokens),
            output_tokens = self.usage.as_ref().map(|usage| usage.output_tokens),
            cached_tokens = self.usage.as_ref().and_then(|usage| usage.cached_tokens),
            queue_ms = milliseconds(self.received, self.admitted),
            first_byte_ms = self.first_byte.map(|first| milliseconds(self.received, first)),
            total_ms = milliseconds(self.received, now),
            "request"
        );
    }

    fn explain(&mut self, now: Timestamp) {
        if !self.gateway.explanations.is_on() {
            return;
        }
        let outcome = self.outcome();
        if let Some(attempt) = self.attempts.last_mut() {
            // The attempt that was under way ended as the request did.
            attempt.result.get_or_insert(outcome);
        }
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1_000.0;
        let age = now.since(self.received);
        let received_unix_ms = self.gateway.clock.unix_ms().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(0));
        self.gateway.explanations.remember(Box::new(Record {
            request_id: self.request_id.clone(),
            endpoint: self.endpoint.label(),
            from_peer: match self.caller {
                Caller::Client => None,
                Caller::Peer(peer) => Some(PathTaken::Via(peer)),
            },
            model: self.target.as_ref().map_or_else(String::new, |target| target.plan.model.to_string()),
            streaming: self.delivery == Delivery::Stream,
            received_unix_ms,
            input_tokens_estimate: self.input_tokens,
            attempts: std::mem::take(&mut self.attempts),
            status: self.status,
            outcome: self.outcome(),
            timing_ms: Timing {
                queue: milliseconds(self.admitted.since(self.received)),
                overhead: milliseconds(self.dispatched.map_or(Duration::ZERO, |at| at.since(self.body_read))),
                first_byte: self.first_byte.map(|first| milliseconds(first.since(self.received))),
                total: milliseconds(age),
            },
        }));
    }
}

/// A status as a label, without allocation.
pub(crate) fn status_text(status: u16) -> http::StatusCode {
    http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR)
}
