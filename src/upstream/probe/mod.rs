//! Asking workers whether they are well, over the very client that carries their traffic.

mod prober;
#[cfg(test)]
mod tests;

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use http_body_util::BodyExt;
use smg_fleet::{Engine, ProbeFailure, Worker};
use smg_infer::{Failure, FailureCode};
use tokio::time::{Instant, timeout_at};

use crate::{Upstream, outbound::Outbound};

pub use prober::{Hooks, run_prober};

/// The path that is asked where nobody says otherwise.
const USUAL_ENDPOINT: &str = "/health";

/// An answer up to this size is read to its end, so that the connection can be used again.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What one probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The worker is well.
    Well,
    /// It is not.
    Ill(ProbeFailure),
    /// The gateway could not ask, for want of its own resources. That says nothing about the worker.
    Unknown,
}

/// Asks a worker once, within the time its settings give a probe.
pub async fn probe(upstream: &Upstream, worker: &Worker) -> Result<(), ProbeFailure> {
    match examine(upstream, worker).await {
        Verdict::Well => Ok(()),
        Verdict::Ill(failure) => Err(failure),
        Verdict::Unknown => Err(ProbeFailure::Unreachable),
    }
}

pub(crate) async fn examine(upstream: &Upstream, worker: &Worker) -> Verdict {
    let deadline = Instant::now() + worker.health.timeout;
    let (endpoint, instead) = endpoints(worker);
    let verdict = ask(upstream, worker, endpoint, deadline).await;
    match (verdict, instead) {
        (Verdict::Ill(ProbeFailure::Status(404 | 405)), Some(instead)) => {
            ask(upstream, worker, instead.to_owned(), deadline).await
        }
        (verdict, _) => verdict,
    }
}

/// The path to ask, and the one to ask instead if it turns out not to exist. Ollama and the clouds have no health
/// endpoint, but all have one that costs nothing and works only if they do.
fn endpoints(worker: &Worker) -> (String, Option<&'static str>) {
    let endpoint = &worker.health.endpoint;
    if endpoint != USUAL_ENDPOINT {
        return (endpoint.clone(), None);
    }
    match worker.engine() {
        Engine::Vllm | Engine::Sglang | Engine::TrtLlm | Engine::LlamaCpp => (endpoint.clone(), None),
        Engine::Ollama => ("/api/version".to_owned(), None),
        Engine::Anthropic => ("/v1/models".to_owned(), None),
        Engine::OpenAi | Engine::Unknown => (endpoint.clone(), Some("/v1/models")),
    }
}

async fn ask(upstream: &Upstream, worker: &Worker, endpoint: String, deadline: Instant) -> Verdict {
    let mut outbound = Outbound::get(endpoint);
    let version = HeaderValue::from_static("2023-06-01");
    outbound.headers.insert(HeaderName::from_static("anthropic-version"), version);
    let response = match timeout_at(deadline, upstream.send(worker, outbound)).await {
        Ok(Ok(response)) => response,
        Ok(Err(failure)) => return verdict_of(&failure),
        Err(_) => return Verdict::Ill(ProbeFailure::Timeout),
    };
    let status = response.status();
    // The verdict is in the head; what follows it is only read out of thrift.
    let drained = http_body_util::Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect();
    let _ = timeout_at(deadline.min(Instant::now() + Duration::from_secs(1)), drained).await;
    match status {
        status if status.is_success() => Verdict::Well,
        status => Verdict::Ill(ProbeFailure::Status(status.as_u16())),
    }
}

fn verdict_of(failure: &Failure) -> Verdict {
    match failure.code {
        FailureCode::Internal => Verdict::Unknown,
        FailureCode::ConnectFailed | FailureCode::ConnectTimeout => Verdict::Ill(ProbeFailure::Unreachable),
        _ => Verdict::Ill(ProbeFailure::Broken),
    }
}
