//! What an operator asks of engines.

use std::time::Duration;

use http::{HeaderMap, Method};
use smg_fleet::{Engine, Worker};
use smg_infer::{Dispatched, Failure, FailureCode};

use crate::{
    Upstream,
    fetch::{Bounds, FetchError, fetch},
    outbound::{Outbound, OutboundBody},
};

/// An engine first finishes the batch it is working on.
const FLUSH: Bounds = Bounds { bytes_max: 64 << 10, timeout: Duration::from_secs(45) };

/// Makes an engine forget its cached prefixes. SGLang refuses while requests run, which is a failure here.
pub async fn flush_cache(upstream: &Upstream, worker: &Worker) -> Result<(), Failure> {
    let path = match worker.engine() {
        Engine::Sglang | Engine::Unknown => "/flush_cache",
        // Exists only if the engine was started in its development mode.
        Engine::Vllm => "/reset_prefix_cache",
        Engine::TrtLlm | Engine::LlamaCpp | Engine::Ollama | Engine::OpenAi | Engine::Anthropic => {
            let message = format!("{} has no way to flush its cache", worker.engine());
            return Err(Failure::new(FailureCode::Unsupported, message));
        }
    };
    let body = OutboundBody::Full(bytes::Bytes::new());
    let outbound = Outbound { method: Method::POST, path_and_query: path.into(), headers: HeaderMap::new(), body };
    let answer = fetch(upstream, worker, outbound, FLUSH).await.map_err(failure_of)?;
    match answer.status.as_u16() {
        200..=299 => Ok(()),
        404 | 405 => Err(Failure::new(FailureCode::Unsupported, format!("the worker does not offer {path}"))),
        status => Err(Failure::new(FailureCode::UpstreamStatus, format!("the worker answered with status {status}"))
            .dispatched(Dispatched::Yes)),
    }
}

fn failure_of(error: FetchError) -> Failure {
    let code = match error {
        FetchError::Failed(failure) => return failure,
        FetchError::Timeout(_) => FailureCode::UpstreamTimeout,
        FetchError::Cut => FailureCode::UpstreamCut,
        FetchError::TooLarge(_) => FailureCode::UpstreamGarbage,
    };
    Failure::new(code, error.to_string()).dispatched(Dispatched::Maybe)
}

#[cfg(test)]
mod tests {
    use smg_fleet::Origin;

    use super::*;
    use crate::{
        Config,
        testing::{self, spec, upstream, worker_of},
    };

    #[tokio::test]
    async fn caches_are_flushed_where_engines_can() {
        let check = async |engine, routes: &[(&str, u16, &str)], expected: Result<(), FailureCode>| {
            let server = testing::Engine::start(routes).await;
            let mut spec = spec(&server.server.url());
            spec.runtime_type = Some(engine);
            let flushed = flush_cache(&upstream(&Config::default()), &worker_of(spec, Origin::Flag)).await;
            assert_eq!(flushed.map_err(|failure| failure.code), expected, "{engine} {:?}", server.asked.lock());
        };
        check(Engine::Sglang, &[("/flush_cache", 200, "")], Ok(())).await;
        check(Engine::Sglang, &[("/flush_cache", 400, "busy")], Err(FailureCode::UpstreamStatus)).await;
        check(Engine::Vllm, &[("/reset_prefix_cache", 200, "")], Ok(())).await;
        check(Engine::Vllm, &[], Err(FailureCode::Unsupported)).await;
        check(Engine::Unknown, &[("/flush_cache", 200, "")], Ok(())).await;
        check(Engine::Ollama, &[("/flush_cache", 200, "")], Err(FailureCode::Unsupported)).await;
    }
}
