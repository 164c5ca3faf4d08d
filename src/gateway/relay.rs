//! Handing a worker's answer to the caller, unchanged, with back-pressure: the caller's pace is the worker's pace.
//!
//! Streams of events are forwarded in whole events only, so that an error event of the gateway's own never lands in the
//! middle of one. A stream that breaks off, falls silent or turns to garbage ends with the error event of its API
//! family and without the mark of a finished stream.

use std::{
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, response};
use http_body::{Body, Frame, SizeHint};
use smg_api::{
    Endpoint, Usage,
    sse::{Garbage, Scanned, Scanner, Terminal},
};
use smg_base::Timestamp;
use smg_fleet::Outcome;
use smg_infer::{Dispatched, Failure, FailureCode};
use smg_routing::Seen;
use smg_upstream::ResponseBody;
use tokio::time::{Instant, Sleep};

use crate::{
    app::Gateway,
    dispatch::{Begun, Routed, WorkerRefusal, is_event_stream},
    edge,
    prepare::{Payload, Prepared},
    reply::{self, Refusal},
    trail::Trail,
};

/// A request whose answer has begun.
pub(crate) struct Streaming {
    pub(crate) prepared: Prepared,
    pub(crate) settled: Settled,
}

/// What became of the attempts.
pub(crate) enum Settled {
    /// A worker answers.
    Begun(Box<Begun>, Routed),
    /// A worker refused, and no other may be tried.
    Refused(Box<WorkerRefusal>),
}

/// Builds the caller's response.
pub(crate) fn answer(streaming: Streaming, trail: Trail) -> Response {
    let Streaming { prepared, settled } = streaming;
    match settled {
        Settled::Refused(refusal) => refused(&prepared, *refusal, trail),
        Settled::Begun(begun, routed) => {
            let Begun { head, first, rest, opening } = *begun;
            let response = response_of(head, &prepared, &trail);
            let answering = Answering { prepared, routed, trail };
            match rest {
                None => whole(response, first.unwrap_or_default(), answering),
                Some(rest) => flowing(response, RelayBody::new(first, rest, opening, answering)),
            }
        }
    }
}

/// An answer in progress, with everything that ends when it does.
struct Answering {
    prepared: Prepared,
    routed: Routed,
    trail: Trail,
}

fn refused(prepared: &Prepared, refusal: WorkerRefusal, mut trail: Trail) -> Response {
    let WorkerRefusal { head, body } = refusal;
    let status = head.status.as_u16();
    trail.status(status);
    trail.answered();
    let mut response = response_of(head, prepared, &trail);
    if is_json(response.headers()) {
        *response.body_mut() = body.into();
        return response;
    }
    // A framework's or proxy's own error page is no use to a client library: word it in the API's shape.
    let text: String = String::from_utf8_lossy(&body).chars().take(500).collect();
    let message = match text.trim() {
        "" => format!("the worker answered with status {status}"),
        text => format!("the worker answered with status {status}: {text}"),
    };
    let failure = Failure::new(FailureCode::UpstreamStatus, message);
    let family = prepared.endpoint.family();
    let mut worded = Refusal { family, request_id: Some(trail.request_id()), failure: &failure }.into_response();
    *worded.status_mut() = response.status();
    if let Some(wait) = response.headers_mut().remove(header::RETRY_AFTER) {
        worded.headers_mut().insert(header::RETRY_AFTER, wait);
    }
    worded
}

fn is_json(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| {
        let value = value.as_bytes();
        value.starts_with(b"application/json") || value.starts_with(b"application/problem+json")
    })
}

fn response_of(mut head: response::Parts, prepared: &Prepared, trail: &Trail) -> Response {
    edge::to_client(&mut head.headers);
    // The body's own length is set again where it is known.
    head.headers.remove(header::CONTENT_LENGTH);
    let mut response = Response::new(axum::body::Body::empty());
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    let headers = response.headers_mut();
    reply::stamp(headers, prepared.endpoint.family(), trail.request_id());
    if is_event_stream(headers) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        // Keeps nginx and its like from holding events back.
        headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    }
    if prepared.answer.debug_headers {
        debug(headers, prepared, trail);
    }
    if let Some(worker) = trail.last_worker().filter(|_| trail.is_relayed()) {
        headers.insert(smg_upstream::relay::WORKER, edge::header_value(&worker.to_string()));
    }
    response
}

fn debug(headers: &mut HeaderMap, prepared: &Prepared, trail: &Trail) {
    if let Some(worker) = trail.last_worker() {
        headers.insert(HeaderName::from_static("x-smg-worker"), edge::header_value(&worker.to_string()));
    }
    if let Some(decision) = trail.last_decision() {
        let route = format!("{} {}", prepared.plan.policy_kind().as_str(), decision.reason().as_str());
        headers.insert(HeaderName::from_static("x-smg-route"), edge::header_value(&route));
    }
    headers.insert(HeaderName::from_static("x-smg-attempts"), HeaderValue::from(trail.attempts()));
}

/// An answer that is here already, all of it.
fn whole(mut response: Response, body: Bytes, mut answering: Answering) -> Response {
    let status = response.status();
    answering.trail.status(status.as_u16());
    answering.trail.answered();
    if status == StatusCode::OK && is_json(response.headers()) {
        let endpoint = answering.prepared.endpoint;
        if endpoint == Endpoint::Responses
            && let Some(id) = smg_api::response_id_of(&body)
        {
            answering.learn(&id);
        }
        answering.observe(smg_api::usage_of(endpoint, &body));
    }
    let now = answering.gateway().now();
    let gateway = answering.gateway().clone();
    answering.routed.settle(&gateway, Outcome::Success, now);
    *response.body_mut() = body.into();
    response
}

fn flowing(mut response: Response, mut relay: RelayBody) -> Response {
    relay.answering.trail.status(response.status().as_u16());
    *response.body_mut() = axum::body::Body::new(relay);
    response
}

impl Answering {
    fn gateway(&self) -> &Arc<Gateway> {
        self.trail.gateway()
    }

    /// Remembers where a response lives.
    fn learn(&self, response_id: &str) {
        let gateway = self.gateway();
        gateway.affinity.learn(&self.prepared.principal.tenant, response_id, self.routed.worker.id, gateway.now());
    }

    /// Learns from what the worker reports at the end.
    fn observe(&mut self, usage: Option<Usage>) {
        let cached = usage.as_ref().and_then(|usage| usage.cached_tokens);
        let input = usage.as_ref().map_or(self.prepared.hints.input_tokens, |usage| usage.input_tokens);
        let rates = &self.routed.worker.state.rates;
        if let Some(ttft) = self.trail.engine_ttft().filter(|_| self.prepared.hints.stream) {
            let ttft = ttft.saturating_sub(self.routed.path_rtt());
            // Where the engine does not say, the prediction is nearer than nothing.
            let uncached = input.saturating_sub(cached.unwrap_or(self.routed.predicted_tokens));
            rates.observe_ttft(uncached, self.routed.load.tokens_ahead(), ttft);
        }
        if let Some(gap) = self.trail.gap_mean() {
            rates.observe_gap(gap);
        }
        let seen = Seen {
            predicted_tokens: self.routed.predicted_tokens,
            input_tokens: usage.as_ref().map(|usage| usage.input_tokens),
            cached_tokens: cached,
            text_bytes: self.prepared.hints.prompt.as_ref().map_or(0, |text| text.bytes),
            space: self.prepared.hints.prompt.as_ref().map(|key| key.space).unwrap_or_default(),
        };
        self.prepared.plan.policy.observed(&self.routed.worker, &seen);
        self.trail.usage(usage);
    }

    fn settle(&mut self, outcome: Outcome) {
        let gateway = self.gateway().clone();
        let now = gateway.now();
        self.routed.settle(&gateway, outcome, now);
    }
}

/// The answer went wrong where its beginning was already with the caller and its dialect has no words for that.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off: {0}")]
pub(crate) struct BrokenOff(Failure);

/// The rest of an answer, on its way.
struct RelayBody {
    /// Dropping it ends the connection to the worker.
    source: Option<ResponseBody>,
    first: Option<Bytes>,
    events: Option<Events>,
    last_words: Option<Bytes>,
    /// How an answer without last words ends.
    broken: Option<BrokenOff>,
    quiet: Quiet,
    answering: Answering,
}

/// The state of a stream of events.
struct Events {
    scanner: Scanner,
    /// The beginning of an event whose end has not come.
    held: Bytes,
    /// What the scanner said of the first piece, which was looked at before the head went out.
    opening: Option<Scanned>,
    sequence: u64,
    hide_usage: bool,
}

impl RelayBody {
    fn new(
        first: Option<Bytes>,
        rest: ResponseBody,
        opening: Option<(Scanner, Scanned)>,
        mut answering: Answering,
    ) -> Self {
        let gateway = answering.gateway().clone();
        if opening.is_some() {
            gateway.metrics.open_streams.inc();
        }
        // From here on nothing is sent again, so the request need not be kept: its headers alone would hold the buffer
        // they were read into.
        answering.prepared.payload = Payload::Once(None);
        answering.prepared.headers = HeaderMap::new();
        answering.routed.first_byte(&gateway);
        let hide_usage = answering.prepared.answer.hide_usage;
        Self {
            source: Some(rest),
            first,
            events: opening.map(|(scanner, scanned)| Events {
                scanner,
                held: Bytes::new(),
                opening: Some(scanned),
                sequence: 0,
                hide_usage,
            }),
            last_words: None,
            broken: None,
            quiet: Quiet::new(answering.prepared.plan.timeouts.stall, answering.prepared.deadline, gateway.now()),
            answering,
        }
    }

    /// Takes a piece from the worker; returns what of it may go on.
    fn pass(&mut self, data: Bytes) -> Option<Bytes> {
        let now = self.answering.gateway().now();
        self.quiet.heard(now);
        let Some(events) = &mut self.events else {
            return Some(data);
        };
        let scanned = match events.opening.take() {
            Some(scanned) => scanned,
            None => match events.scanner.push(&data) {
                Ok(scanned) => scanned,
                Err(garbage) => {
                    self.fail(no_event(garbage));
                    return None;
                }
            },
        };
        let out = events.release(data, &scanned);
        self.answering.trail.relayed(scanned.events);
        if scanned.content {
            self.answering.routed.load.first_token(now);
            self.answering.trail.output(now, scanned.events);
        }
        if let Some(garbage) = scanned.garbage {
            self.fail(no_event(garbage));
        }
        (!out.is_empty()).then(|| on_its_own(out))
    }

    /// The worker's answer ended without an error. Returns a last event that was not closed by a blank line.
    fn end(&mut self) -> Option<Bytes> {
        self.source = None;
        let last = match self.events.as_mut().map(Events::finish) {
            Some(Err(())) => {
                let message = "the worker ended its stream before the answer was finished";
                self.fail(Failure::new(FailureCode::UpstreamCut, message));
                return None;
            }
            Some(Ok(last)) => (!last.is_empty()).then_some(last),
            None => None,
        };
        self.settle_end();
        last
    }

    fn settle_end(&mut self) {
        if let Some(events) = &self.events {
            let terminal = events.scanner.terminal();
            let usage = events.scanner.usage();
            if let Some(id) = events.scanner.response_id() {
                self.answering.learn(id);
            }
            self.answering.observe(usage);
            if terminal == Some(Terminal::Failed) {
                // The engine told the caller itself.
                self.answering.settle(Outcome::Failure);
                self.answering.trail.fail(&Failure::new(FailureCode::UpstreamStatus, "the engine reported an error"));
                return;
            }
        }
        self.answering.settle(Outcome::Success);
        self.answering.trail.answered();
    }

    /// Fails. Where only a broken connection can tell the caller, what is there already goes out first: an error at
    /// once would take even the head with it, and a caller who saw nothing of an answer tries again.
    fn break_off(&mut self, failure: Failure, cx: &Context<'_>) -> Poll<()> {
        self.fail(failure.clone());
        if self.events.is_some() {
            return Poll::Ready(());
        }
        self.broken = Some(BrokenOff(failure));
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Breaks off, and says so in the dialect of the stream.
    fn fail(&mut self, failure: Failure) {
        if self.events.as_ref().is_some_and(|events| events.scanner.terminal().is_some()) {
            // The caller has the whole answer, and nothing may follow the event that says so.
            self.source = None;
            return self.settle_end();
        }
        let failure = failure.dispatched(Dispatched::Yes);
        self.source = None;
        self.answering.settle(Outcome::Failure);
        let trail = &mut self.answering.trail;
        trail.attempt_ended(failure.code.as_str(), failure.dispatched);
        trail.fail(&failure);
        let endpoint = trail.endpoint();
        let labels = [endpoint.label(), failure.code.as_str()];
        let gateway = trail.gateway();
        gateway.metrics.stream_failures.with_label_values(&labels).inc();
        tracing::warn!(
            request_id = trail.request_id().as_str(),
            worker = %self.answering.routed.worker.id,
            code = failure.code.as_str(),
            error = %failure.message,
            "stream broke off"
        );
        if let Some(events) = &self.events {
            let event = reply::stream_event(endpoint, trail.request_id(), &failure, events.sequence);
            self.last_words = Some(event.into());
        }
    }
}

impl Events {
    /// What of the held bytes and `data` makes whole events.
    fn release(&mut self, data: Bytes, scanned: &Scanned) -> Bytes {
        self.sequence += u64::from(scanned.events);
        let complete = scanned.complete;
        let out = if self.held.is_empty() {
            self.held = data.slice(complete..);
            data.slice(..complete)
        } else {
            let mut joined = BytesMut::with_capacity(self.held.len() + data.len());
            joined.extend_from_slice(&self.held);
            joined.extend_from_slice(&data);
            let out = joined.split_to(complete).freeze();
            self.held = joined.freeze();
            out
        };
        match &scanned.usage_only {
            Some(span) if self.hide_usage => without(&out, span.clone()),
            _ => out,
        }
    }

    /// The end of the worker's stream: the last event if it was not closed, or an error if something is missing.
    fn finish(&mut self) -> Result<Bytes, ()> {
        let scanned = self.scanner.finish().map_err(drop)?;
        if !self.scanner.is_finished() {
            return Err(());
        }
        Ok(self.release(Bytes::new(), &scanned))
    }
}

/// Largest piece that is copied rather than kept as a slice of the buffer it was read into.
const COPIED_BYTES_MAX: usize = 2 << 10;

/// A small piece in memory of its own. As a slice it would hold the whole read buffer for as long as a slow reader lets
/// it wait, and the next read would need a new one.
fn on_its_own(piece: Bytes) -> Bytes {
    if piece.len() <= COPIED_BYTES_MAX { Bytes::copy_from_slice(&piece) } else { piece }
}

fn no_event(garbage: Garbage) -> Failure {
    Failure::new(FailureCode::UpstreamGarbage, format!("the worker sent something that is no event: {garbage}"))
}

/// `bytes` without those of `span`.
fn without(bytes: &Bytes, span: Range<usize>) -> Bytes {
    let mut kept = BytesMut::with_capacity(bytes.len());
    kept.extend_from_slice(bytes.get(..span.start).unwrap_or_default());
    kept.extend_from_slice(bytes.get(span.end..).unwrap_or_default());
    kept.freeze()
}

impl Body for RelayBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let this = &mut *self;
        loop {
            if let Some(words) = this.last_words.take() {
                return Poll::Ready(Some(Ok(Frame::data(words))));
            }
            if let Some(broken) = this.broken.take() {
                return Poll::Ready(Some(Err(broken)));
            }
            let piece = match this.first.take() {
                Some(first) => Some(Ok(first)),
                None => match this.source.as_mut() {
                    None => return Poll::Ready(None),
                    Some(source) => match Pin::new(source).poll_frame(cx) {
                        Poll::Ready(piece) => {
                            piece.map(|frame| frame.map(|frame| frame.into_data().unwrap_or_default()))
                        }
                        Poll::Pending => match this.quiet.poll(cx, this.answering.trail.gateway()) {
                            Poll::Pending => return Poll::Pending,
                            Poll::Ready(failure) => {
                                if this.break_off(failure, cx).is_pending() {
                                    return Poll::Pending;
                                }
                                continue;
                            }
                        },
                    },
                },
            };
            match piece {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    if let Some(out) = this.pass(data) {
                        return Poll::Ready(Some(Ok(Frame::data(out))));
                    }
                }
                Some(Err(_)) => {
                    let failure = Failure::new(FailureCode::UpstreamCut, "the worker broke off its answer");
                    if this.break_off(failure, cx).is_pending() {
                        return Poll::Pending;
                    }
                }
                None => {
                    if let Some(last) = this.end() {
                        return Poll::Ready(Some(Ok(Frame::data(last))));
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_none() && self.first.is_none() && self.last_words.is_none() && self.broken.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Drop for RelayBody {
    fn drop(&mut self) {
        if let Some(events) = &self.events {
            // A caller that went away is charged what was counted until then.
            self.answering.trail.usage_so_far(events.scanner.usage());
            self.answering.gateway().metrics.open_streams.dec();
        }
    }
}

/// Notices when a worker falls silent. The timer is armed when the first pause comes and then only moved when it fires,
/// so that a busy stream pays nothing for it.
struct Quiet {
    stall: Option<Duration>,
    deadline: Timestamp,
    last: Timestamp,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Quiet {
    fn new(stall: Option<Duration>, deadline: Timestamp, now: Timestamp) -> Self {
        Self { stall, deadline, last: now, timer: None }
    }

    fn heard(&mut self, now: Timestamp) {
        self.last = now;
    }

    fn due(&self) -> Timestamp {
        self.stall.map_or(self.deadline, |stall| (self.last + stall).min(self.deadline))
    }

    fn poll(&mut self, cx: &mut Context<'_>, gateway: &Gateway) -> Poll<Failure> {
        let due = self.due();
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(due.since(gateway.now()))));
        loop {
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = gateway.now();
            if now >= due {
                return Poll::Ready(if now >= self.deadline {
                    Failure::new(FailureCode::UpstreamTimeout, "the request took longer than it may")
                } else {
                    let silence = now.since(self.last).as_secs_f32();
                    Failure::new(FailureCode::StallTimeout, format!("the worker fell silent for {silence:.1} s"))
                });
            }
            timer.as_mut().reset(Instant::now() + due.since(now));
        }
    }
}
