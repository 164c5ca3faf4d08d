//! Reading a request body: whole, bounded in size, memory and time.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body::Body;
use http_body_util::BodyExt;
use smg_infer::{Failure, FailureCode};
use tokio::time::{Instant, timeout_at};

use crate::budget::BodyShare;

/// The slowest sustained rate at which a body may arrive, in bytes per second.
const RATE_MIN: u64 = 16 << 10;

/// A body that is too large is still read, up to this much and this long, so that a client which writes before it
/// reads gets to see the refusal instead of a broken connection.
const LINGER_BYTES_MAX: u64 = 256 << 20;
const LINGER: Duration = Duration::from_secs(5);

/// Bounds on one body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) bytes_max: u64,
    /// Longest pause between two pieces; also added to the time the body may take at [`RATE_MIN`].
    pub(crate) pause_max: Duration,
}

/// The length the client announced, if it did.
pub(crate) fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Refuses a body that is announced too large before its client, which waits for a word, has sent any of it.
pub(crate) fn expect_fit(headers: &HeaderMap, limits: Limits) -> Result<(), Failure> {
    let waits = headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    match announced(headers) {
        Some(length) if waits && length > limits.bytes_max => Err(too_large(limits.bytes_max)),
        _ => Ok(()),
    }
}

/// Reads the whole of `body`. A body that came in one piece is not copied.
pub(crate) async fn collect(
    mut body: axum::body::Body,
    announced: Option<u64>,
    limits: Limits,
    share: &mut BodyShare,
) -> Result<Bytes, Failure> {
    if announced.is_some_and(|length| length > limits.bytes_max) {
        linger(&mut body).await;
        return Err(too_large(limits.bytes_max));
    }
    let mut clock = Pace::start(limits);
    let Some(first) = clock.next(&mut body).await? else {
        return Ok(Bytes::new());
    };
    grow_for(first.len(), 0, limits, share)?;
    if body.is_end_stream() {
        return Ok(first);
    }
    let Some(second) = clock.next(&mut body).await? else {
        return Ok(first);
    };
    let expected = announced.and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    let mut whole = BytesMut::with_capacity(expected.min(1 << 20).max(first.len() + second.len()));
    whole.extend_from_slice(&first);
    drop(first);
    let mut piece = Some(second);
    while let Some(bytes) = piece {
        if let Err(failure) = grow_for(bytes.len(), whole.len() as u64, limits, share) {
            drop(whole);
            linger(&mut body).await;
            return Err(failure);
        }
        if whole.capacity() - whole.len() < bytes.len() && expected > whole.len() {
            // One growth to the announced size instead of a doubling that copies again and again.
            whole.reserve(expected - whole.len());
        }
        whole.extend_from_slice(&bytes);
        piece = clock.next(&mut body).await?;
    }
    Ok(whole.freeze())
}

fn grow_for(bytes: usize, so_far: u64, limits: Limits, share: &mut BodyShare) -> Result<(), Failure> {
    let bytes = bytes as u64;
    if so_far + bytes > limits.bytes_max {
        return Err(too_large(limits.bytes_max));
    }
    share.grow(bytes)
}

/// The refusal of a body above `bytes_max`.
pub(crate) fn too_large(bytes_max: u64) -> Failure {
    Failure::new(
        FailureCode::PayloadTooLarge,
        format!("the request body is larger than the limit of {}", smg_base::ByteSize(bytes_max)),
    )
}

/// Reads and forgets, within bounds.
pub(crate) async fn linger(body: &mut axum::body::Body) {
    let deadline = Instant::now() + LINGER;
    let mut left = LINGER_BYTES_MAX;
    while let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await {
        let length = frame.data_ref().map_or(0, Bytes::len) as u64;
        match left.checked_sub(length) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

/// Holds a client to a minimum pace.
pub(crate) struct Pace {
    started: Instant,
    received: u64,
    pause_max: Duration,
}

impl Pace {
    pub(crate) fn start(limits: Limits) -> Self {
        Self { started: Instant::now(), received: 0, pause_max: limits.pause_max }
    }

    /// The next piece; none at the end.
    pub(crate) async fn next(&mut self, body: &mut axum::body::Body) -> Result<Option<Bytes>, Failure> {
        loop {
            let earned = Duration::from_secs(self.received / RATE_MIN);
            let deadline = (self.started + self.pause_max + earned).min(Instant::now() + self.pause_max);
            let frame = timeout_at(deadline, body.frame())
                .await
                .map_err(|_| Failure::new(FailureCode::ClientTooSlow, "the request body arrived too slowly"))?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(broken(&error)),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => {
                        self.received += data.len() as u64;
                        return Ok(Some(data));
                    }
                    Err(_trailers) => {}
                },
            }
        }
    }
}

/// A body that is framed wrongly is the client's fault; one that ends early means that the client has gone.
fn broken(error: &axum::Error) -> Failure {
    let mut causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    let is_malformed = causes.any(|cause| {
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        matches!(kind, Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData))
    });
    if is_malformed {
        Failure::new(FailureCode::InvalidRequest, "the request body is not framed as HTTP wants it")
    } else {
        Failure::new(FailureCode::ClientClosed, "the request body broke off")
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use prometheus::IntGauge;

    use super::*;
    use crate::budget::BodyBudget;

    const LIMITS: Limits = Limits { bytes_max: 10, pause_max: Duration::from_secs(5) };

    async fn read(pieces: &[&'static [u8]], announced: Option<u64>) -> Result<Bytes, FailureCode> {
        let budget = BodyBudget::new(1_000, IntGauge::new("g", "g").unwrap());
        let pieces: Vec<Result<Bytes, Infallible>> = pieces.iter().map(|piece| Ok(Bytes::from_static(piece))).collect();
        let body = axum::body::Body::from_stream(stream::iter(pieces));
        collect(body, announced, LIMITS, &mut budget.share()).await.map_err(|failure| failure.code)
    }

    #[tokio::test]
    async fn bodies_are_read_whole_up_to_the_limit() {
        assert_eq!(read(&[], None).await, Ok(Bytes::new()));
        assert_eq!(read(&[b"abc"], Some(3)).await, Ok(Bytes::from_static(b"abc")));
        assert_eq!(read(&[b"abc", b"def", b"ghij"], None).await, Ok(Bytes::from_static(b"abcdefghij")));
        assert_eq!(read(&[b"abc", b"def", b"ghij", b"k"], None).await, Err(FailureCode::PayloadTooLarge));
        assert_eq!(read(&[b"abcdefghijk"], None).await, Err(FailureCode::PayloadTooLarge));
        assert_eq!(read(&[b"abc"], Some(11)).await, Err(FailureCode::PayloadTooLarge));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_sending_is_refused() {
        let budget = BodyBudget::new(1_000, IntGauge::new("g", "g").unwrap());
        let pieces = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"{"))]);
        let body = axum::body::Body::from_stream(futures_util::StreamExt::chain(pieces, stream::pending()));
        let failure = collect(body, None, LIMITS, &mut budget.share()).await.unwrap_err();
        assert_eq!(failure.code, FailureCode::ClientTooSlow);
    }
}
