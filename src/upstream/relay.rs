//! Sending a request to a worker through a peer: another gateway that reaches it.
//!
//! A request has a stream of its own, with one HTTP/1.1 exchange on it; dropping the stream is what tells the peer that nobody
//! waits any more. What the two gateways have to say to each other stands in headers that mean something on such a stream
//! and nowhere else.

use std::{io, sync::Arc};

use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, header, uri::PathAndQuery};
use smg_base::{PeerId, WorkerId};
use smg_fleet::{Path, Worker};
use smg_infer::{Dispatched, Failure, FailureCode};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

use crate::{
    Upstream,
    body::ResponseBody,
    client::broken_off,
    connect::Stream,
    connection::{Broken, Connection},
    destination::frame,
    outbound::{Outbound, OutboundBody},
};

/// In a request, the worker that the sender would take; in the answer, the one that was taken.
pub const WORKER: HeaderName = HeaderName::from_static("x-smg-relay-worker");

/// In a request, how many milliseconds its answer may take.
pub const DEADLINE_MS: HeaderName = HeaderName::from_static("x-smg-relay-deadline-ms");

/// In an answer, the code of the failure for which the peer sent the request to nobody.
pub const REFUSED: HeaderName = HeaderName::from_static("x-smg-relay-refused");

/// In an answer, the code of the failure after the peer had sent the request to a worker.
pub const FAILED: HeaderName = HeaderName::from_static("x-smg-relay-failed");

/// In a request, that it is meant for the worker as it is, and not for an endpoint of the peer's.
pub const ERRAND: HeaderName = HeaderName::from_static("x-smg-relay-errand");

/// The way to the peers.
pub trait Peers: Send + Sync {
    /// Opens a stream to a peer. Dropped before both directions have ended, it is reset, which must never look like an end.
    fn open(&self, peer: PeerId) -> BoxFuture<'static, io::Result<Box<dyn PeerStream>>>;

    /// A request through this peer failed, and not by its word.
    fn failed(&self, peer: PeerId);
}

/// The bytes of one request and its answer.
pub trait PeerStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> PeerStream for S {}

impl Upstream {
    /// The same client, with the peers through which workers may be reached.
    #[must_use]
    pub fn with_peers(mut self, peers: Arc<dyn Peers>) -> Self {
        self.peers = Some(peers);
        self
    }

    /// Sends a request to a worker on a path; a peer passes it on as it is, to that worker or to none.
    pub async fn send_on(
        &self,
        path: Path,
        worker: &Worker,
        outbound: Outbound,
    ) -> Result<Response<ResponseBody>, Failure> {
        match path {
            Path::Direct => self.send(worker, outbound).await,
            Path::Via(via) => self.send_errand(via.peer, worker, outbound).await,
        }
    }

    pub(crate) async fn send_errand(
        &self,
        peer: PeerId,
        worker: &Worker,
        mut outbound: Outbound,
    ) -> Result<Response<ResponseBody>, Failure> {
        outbound.headers.insert(ERRAND, HeaderValue::from_static("1"));
        self.send_via(peer, worker.id, outbound).await
    }

    /// Hands a request to `peer`, to be sent to `worker` or to another that it takes for better, and waits for the head of
    /// the answer. The outbound path is one of this gateway's own. The answer's headers may hold [`WORKER`].
    ///
    /// A failure says whether a worker may have got the request: `no` if the peer has not, or says that it sent it to nobody.
    pub async fn send_via(
        &self,
        peer: PeerId,
        worker: WorkerId,
        outbound: Outbound,
    ) -> Result<Response<ResponseBody>, Failure> {
        let request = request(worker, outbound)?;
        let Some(peers) = &self.peers else {
            return Err(Failure::new(FailureCode::ConnectFailed, "this gateway has no peers"));
        };
        let limit = self.inner.connector.timeout;
        let stream = match timeout(limit, peers.open(peer)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(not_opened(&**peers, peer, FailureCode::ConnectFailed, &error)),
            Err(late) => return Err(not_opened(&**peers, peer, FailureCode::ConnectTimeout, &late)),
        };
        let connection = Connection::new(&self.inner.http1, Stream::Peer(stream), None)
            .await
            .map_err(|error| not_opened(&**peers, peer, FailureCode::ConnectFailed, &error))?;
        match connection.exchange(request).await {
            Ok(answered) => {
                let response = answered.response.map(|body| ResponseBody::new(body, answered.connection, None));
                said_no(response.headers()).map_or(Ok(response), Err)
            }
            Err(Broken::Unsent(_)) => {
                peers.failed(peer);
                Err(Failure::new(FailureCode::ConnectFailed, "the peer that reaches the worker broke off at once"))
            }
            Err(Broken::Sent(error)) => {
                if !error.is_user() {
                    peers.failed(peer);
                }
                Err(broken_off(&peer, &error))
            }
        }
    }
}

/// The request as the peer gets it.
fn request(worker: WorkerId, outbound: Outbound) -> Result<Request<OutboundBody>, Failure> {
    let Outbound { method, path_and_query, headers, body } = outbound;
    let path = PathAndQuery::try_from(path_and_query.as_ref())
        .map_err(|_| Failure::new(FailureCode::InvalidRequest, "the path cannot be sent to a peer"))?;
    let mut request = Request::new(body);
    *request.uri_mut() = Uri::from(path);
    *request.headers_mut() = headers;
    frame(&method, &mut request);
    *request.method_mut() = method;
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_static("peer"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    if let Ok(value) = HeaderValue::try_from(worker.to_string()) {
        headers.insert(WORKER, value);
    }
    Ok(request)
}

fn not_opened(peers: &dyn Peers, peer: PeerId, code: FailureCode, error: &dyn std::error::Error) -> Failure {
    tracing::debug!(%peer, %error, "cannot hand a request to a peer");
    peers.failed(peer);
    Failure::new(code, "the peer that reaches the worker cannot be reached")
}

/// The failure that the peer itself reports, if it does.
fn said_no(headers: &HeaderMap) -> Option<Failure> {
    if let Some(code) = headers.get(REFUSED) {
        // Whatever its reason, another worker, or the same on another path, may do.
        let code = code.to_str().unwrap_or_default();
        let message = format!("the peer that reaches the worker refused the request: {code}");
        return Some(Failure::new(FailureCode::NoAvailableWorkers, message));
    }
    let name = headers.get(FAILED)?.as_bytes();
    let code = FailureCode::ALL.iter().find(|code| code.as_str().as_bytes() == name);
    let code = code.copied().unwrap_or(FailureCode::UpstreamClosed);
    let message = format!("the peer sent the request on, and that failed: {}", code.as_str());
    Some(Failure::new(code, message).dispatched(Dispatched::Maybe))
}
