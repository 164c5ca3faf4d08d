//! Sending a request to a worker through a peer: another gateway that reaches it.
//!
//! A request has a stream of its own, with one HTTP/1.1 exchange on it; dropping the stream is what tells the peer that nobody
//! waits any more. What the two gateways have to say to each other stands in headers that mean something on such a stream
//! and nowhere else.

use std::{io, sync::Arc};

use futures_util::{FutureExt, future::BoxFuture};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, header, uri::PathAndQuery};
use smg_base::{PeerId, WorkerId};
use smg_fleet::{HealthVote, Path, Worker};
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

/// In a question to the peer itself, what it is about: the id of a request or of a response.
pub const ABOUT: HeaderName = HeaderName::from_static("x-smg-relay-about");

/// In a request, the tenant it is for, percent-encoded.
pub const TENANT: HeaderName = HeaderName::from_static("x-smg-relay-tenant");

/// In a request, the id of the key that its caller presented, percent-encoded.
pub const KEY: HeaderName = HeaderName::from_static("x-smg-relay-key");

/// In a request, the greatest priority class that its caller may claim.
pub const CLASS: HeaderName = HeaderName::from_static("x-smg-relay-class");

/// In a request, the salt under which its prompt is cached.
pub const SALT: HeaderName = HeaderName::from_static("x-smg-relay-salt");

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

    /// Sends a request of this gateway's own about a worker: through the peer that reaches it, where this gateway does not.
    pub(crate) async fn ask(&self, worker: &Worker, outbound: Outbound) -> Result<Response<ResponseBody>, Failure> {
        match worker.via().filter(|_| worker.vote() != Some(HealthVote::Up)) {
            Some(via) => self.send_errand(via.peer, worker, outbound).boxed().await,
            None => self.send(worker, outbound).await,
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
        self.exchange_with(peer, request(Some(worker), outbound)?).await
    }

    /// Asks `peer` something that it answers itself.
    pub async fn ask_peer(&self, peer: PeerId, outbound: Outbound) -> Result<Response<ResponseBody>, Failure> {
        self.exchange_with(peer, request(None, outbound)?).await
    }

    async fn exchange_with(
        &self,
        peer: PeerId,
        request: Request<OutboundBody>,
    ) -> Result<Response<ResponseBody>, Failure> {
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
fn request(worker: Option<WorkerId>, outbound: Outbound) -> Result<Request<OutboundBody>, Failure> {
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
    if let Some(value) = worker.and_then(|worker| HeaderValue::try_from(worker.to_string()).ok()) {
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

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        sync::atomic::{AtomicBool, AtomicU32, Ordering},
        task::{Context, Poll},
        time::Duration,
    };

    use http_body_util::{BodyExt, StreamBody};
    use parking_lot::Mutex;
    use smg_base::Timestamp;
    use smg_fleet::{DirectPath, Fleet, FleetConfig, Reach, Via};
    use tokio::io::{AsyncWriteExt, DuplexStream, ReadBuf};

    use super::*;
    use crate::{
        Config,
        testing::{Server, post, read_request, spec, text, until, upstream},
    };

    /// What the other end of a stream does.
    #[derive(Clone, Copy, Debug)]
    enum Far {
        Absent,
        Silent,
        Gone,
        GoneWhenRead,
        Answers(&'static str),
    }

    /// A peer behind streams in memory.
    struct Peer {
        far: Far,
        failed: AtomicU32,
        asked: Arc<Mutex<Vec<String>>>,
        ended: Arc<AtomicBool>,
    }

    /// A stream that notes whether it was ended before it was dropped.
    struct Watched {
        stream: DuplexStream,
        ended: Arc<AtomicBool>,
    }

    impl AsyncRead for Watched {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Watched {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.stream).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.ended.store(true, Ordering::SeqCst);
            Pin::new(&mut self.stream).poll_shutdown(cx)
        }
    }

    impl Peers for Peer {
        fn open(&self, _: PeerId) -> BoxFuture<'static, io::Result<Box<dyn PeerStream>>> {
            let (far, asked, ended) = (self.far, self.asked.clone(), self.ended.clone());
            async move {
                let (stream, mut there) = tokio::io::duplex(4 << 10);
                match far {
                    Far::Absent => return Err(io::ErrorKind::NotConnected.into()),
                    Far::Silent => return std::future::pending().await,
                    Far::Gone => drop(there),
                    Far::GoneWhenRead | Far::Answers(_) => drop(tokio::spawn(async move {
                        let request = read_request(&mut there).await.unwrap_or_default();
                        asked.lock().push(request);
                        if let Far::Answers(answer) = far {
                            there.write_all(answer.as_bytes()).await.unwrap();
                            // The stream stays open until the asker is done with it.
                            read_request(&mut there).await;
                        }
                    })),
                }
                Ok(Box::new(Watched { stream, ended }) as Box<dyn PeerStream>)
            }
            .boxed()
        }

        fn failed(&self, _: PeerId) {
            self.failed.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn peer(far: Far) -> Arc<Peer> {
        let (failed, asked, ended) = (AtomicU32::new(0), Arc::default(), Arc::default());
        Arc::new(Peer { far, failed, asked, ended })
    }

    fn worker_id() -> WorkerId {
        WorkerId::of("http://w:1", None)
    }

    async fn send(peer: &Arc<Peer>, outbound: Outbound) -> Result<Response<ResponseBody>, Failure> {
        let upstream = upstream(&Config::default()).with_peers(peer.clone());
        upstream.send_via(PeerId(7), worker_id(), outbound).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_says_whether_a_worker_may_have_the_request_and_who_is_to_blame() {
        use Dispatched::{Maybe, No};
        use FailureCode as Code;
        let check = async |far: Far, code: Code, dispatched: Dispatched, blamed: u32| {
            let peer = peer(far);
            let failure = send(&peer, post("{}")).await.map(drop).unwrap_err();
            assert_eq!((failure.code, failure.dispatched), (code, dispatched), "{far:?}: {failure}");
            assert_eq!(peer.failed.load(Ordering::SeqCst), blamed, "{far:?}");
        };
        check(Far::Absent, Code::ConnectFailed, No, 1).await;
        check(Far::Silent, Code::ConnectTimeout, No, 1).await;
        check(Far::Gone, Code::ConnectFailed, No, 1).await;
        check(Far::GoneWhenRead, Code::UpstreamClosed, Maybe, 1).await;
        check(Far::Answers("what?\r\n\r\n"), Code::UpstreamGarbage, Maybe, 1).await;
        let refused = "HTTP/1.1 503 X\r\nx-smg-relay-refused: draining\r\ncontent-length: 0\r\n\r\n";
        check(Far::Answers(refused), Code::NoAvailableWorkers, No, 0).await;
        let failed = "HTTP/1.1 504 X\r\nx-smg-relay-failed: call_upstream_timeout\r\ncontent-length: 0\r\n\r\n";
        check(Far::Answers(failed), Code::UpstreamTimeout, Maybe, 0).await;
        let unknown = "HTTP/1.1 500 X\r\nx-smg-relay-failed: new_words\r\ncontent-length: 0\r\n\r\n";
        check(Far::Answers(unknown), Code::UpstreamClosed, Maybe, 0).await;
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_the_callers_doing() {
        let peer = peer(Far::GoneWhenRead);
        let pieces = [Ok(http_body::Frame::data("half".into())), Err("gone".into())];
        let body = OutboundBody::Stream(Box::pin(StreamBody::new(futures_util::stream::iter(pieces))));
        let failure = send(&peer, Outbound { body, ..post("") }).await.map(drop).unwrap_err();
        assert_eq!((failure.code, failure.dispatched), (FailureCode::ClientClosed, Dispatched::Maybe));
        assert_eq!(peer.failed.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn an_answer_read_to_its_end_ends_the_stream_and_one_that_is_not_leaves_it_to_be_reset() {
        let whole = "HTTP/1.1 200 OK\r\nx-smg-relay-worker: w\r\ncontent-length: 2\r\n\r\nok";
        let peer_done = peer(Far::Answers(whole));
        let response = send(&peer_done, post("{}")).await.unwrap();
        assert_eq!((response.status().as_u16(), &response.headers()[WORKER]), (200, &HeaderValue::from_static("w")));
        assert_eq!(text(response.into_body()).await.unwrap(), "ok");
        assert!(peer_done.ended.load(Ordering::SeqCst));
        let asked = peer_done.asked.lock()[0].to_ascii_lowercase();
        for line in ["post /v1/x http/1.1", "host: peer", "connection: close", "content-length: 2"] {
            assert!(asked.contains(line), "{line} is not in {asked}");
        }
        assert!(asked.contains(&format!("x-smg-relay-worker: {}", worker_id())), "{asked}");

        let part = "HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nok";
        let peer_cut = peer(Far::Answers(part));
        let mut body = send(&peer_cut, post("{}")).await.unwrap().into_body();
        assert!(body.frame().await.unwrap().is_ok());
        drop(body);
        assert!(!peer_cut.ended.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn the_address_of_another_machine_is_never_dialled() {
        let own = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nmine").await;
        let fleet = Fleet::new(FleetConfig::default());
        let mut described = spec(&own.url());
        described.api_key = Some(smg_base::Secret::new("sk-engine"));
        let id = described.url.id(Some("there"));
        let worker = fleet.import(id, described, DirectPath::Forbidden, Timestamp::ORIGIN).unwrap().worker;
        let peer = peer(Far::Answers("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\ntheirs"));
        let upstream = upstream(&Config::default()).with_peers(peer.clone());
        let failure = upstream.send(&worker, post("{}")).await.map(drop).unwrap_err();
        assert_eq!((failure.code, failure.dispatched), (FailureCode::ConnectFailed, Dispatched::No));
        let via = Some(Via { peer: PeerId(7), rtt: Duration::ZERO });
        fleet.set_reach(id, Reach { via, ..Reach::default() });
        let response = upstream.send(&worker, post("{}")).await.unwrap();
        assert_eq!(text(response.into_body()).await.unwrap(), "theirs");
        until("the peer was asked", || peer.asked.lock().len() == 1).await;
        let asked = peer.asked.lock()[0].to_ascii_lowercase();
        assert!(asked.contains("x-smg-relay-errand: 1") && !asked.contains("sk-engine"), "{asked}");
        assert_eq!(own.accepted(), 0);
    }

    #[tokio::test]
    async fn a_worker_that_is_out_of_reach_is_asked_through_a_peer() {
        let own = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nmine").await;
        let fleet = Fleet::new(FleetConfig::default());
        let worker = fleet.add(spec(&own.url()), smg_fleet::Origin::Api, Timestamp::ORIGIN).unwrap().worker;
        let peer = peer(Far::Answers("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\ntheirs"));
        let upstream = upstream(&Config::default()).with_peers(peer);
        let check = async |expected: &str| {
            let response = upstream.ask(&worker, post("{}")).await.unwrap();
            assert_eq!(text(response.into_body()).await.unwrap(), expected);
        };
        check("mine").await;
        let via = Some(Via { peer: PeerId(7), rtt: Duration::ZERO });
        fleet.set_reach(worker.id, Reach { via, ..Reach::default() });
        check("theirs").await;
        fleet.record_probe(worker.id, worker.revision, Ok(()), Timestamp::ORIGIN).unwrap();
        check("mine").await;
    }
}
