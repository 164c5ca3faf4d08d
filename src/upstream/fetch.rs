//! Small requests of the gateway's own to workers: bounded in bytes and in time, whatever the worker does.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body_util::BodyExt;
use smg_fleet::Worker;
use smg_infer::Failure;
use tokio::time::timeout;

use crate::{Upstream, outbound::Outbound};

/// How much an answer may hold, and how long all of it may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) bytes_max: usize,
    pub(crate) timeout: Duration,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

/// Why there is no whole answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The request failed before the head of an answer was there.
    #[error("{0}")]
    Failed(#[from] Failure),
    /// The answer was not complete in time.
    #[error("the worker did not answer within {0:?}")]
    Timeout(Duration),
    /// The answer broke off.
    #[error("the worker broke off its answer")]
    Cut,
    /// The answer is larger than any sensible one.
    #[error("the worker's answer has more than {0} bytes")]
    TooLarge(usize),
}

/// Sends a request and reads the whole answer.
pub(crate) async fn fetch(
    upstream: &Upstream,
    worker: &Worker,
    outbound: Outbound,
    bounds: Bounds,
) -> Result<Answer, FetchError> {
    let fetched = timeout(bounds.timeout, fetch_whole(upstream, worker, outbound, bounds.bytes_max)).await;
    fetched.unwrap_or(Err(FetchError::Timeout(bounds.timeout)))
}

async fn fetch_whole(
    upstream: &Upstream,
    worker: &Worker,
    outbound: Outbound,
    bytes_max: usize,
) -> Result<Answer, FetchError> {
    let (head, mut body) = upstream.ask(worker, outbound).await?.into_parts();
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(|_| FetchError::Cut)?.into_data() else {
            continue;
        };
        if whole.len() + piece.len() > bytes_max {
            return Err(FetchError::TooLarge(bytes_max));
        }
        whole.extend_from_slice(&piece);
    }
    Ok(Answer { status: head.status, body: whole.freeze() })
}
