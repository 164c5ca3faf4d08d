//! Accepting connections: bounded in number, in the size of heads, and in the patience with slow clients.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::Router;
use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use parking_lot::Mutex;
use prometheus::{IntCounterVec, IntGauge};
use smg_base::{ByteSize, map::StableMap};
use smg_runtime::{Phase, Shutdown, TaskKind, Tasks, metrics::Registrar};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep, timeout},
};
use tower::ServiceExt;

use crate::access::PeerAddress;

mod strict;
mod tls;

pub use tls::{ServerTls, TlsError};

/// Header fields in one head, at most.
pub const HEADERS_MAX: usize = 128;

/// How connections are accepted and bounded.
#[derive(Clone, Debug)]
pub struct Config {
    /// Connections at a time; more are closed at once. None means no limit but the system's.
    pub connections_max: Option<NonZeroUsize>,
    /// Connections at a time from one address.
    pub connections_per_address_max: Option<NonZeroUsize>,
    /// How long a new connection may take over TLS and its first request's head.
    pub head_timeout: Duration,
    /// How long a connection may idle between two requests, the next one's head included.
    pub idle_timeout: Duration,
    /// How long a client may take nothing of an answer that waits for it.
    pub write_stall_timeout: Option<Duration>,
    /// Largest head of a request; also what an unread answer may hold in memory.
    pub head_bytes_max: ByteSize,
    /// Header fields in one head.
    pub headers_max: usize,
    /// Requests at a time on one HTTP/2 connection.
    pub http2_streams_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connections_max: NonZeroUsize::new(16_384),
            connections_per_address_max: None,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_stall_timeout: Some(Duration::from_secs(300)),
            head_bytes_max: ByteSize(64 << 10),
            headers_max: HEADERS_MAX,
            http2_streams_max: 256,
        }
    }
}

/// What is counted of connections.
#[derive(Clone)]
pub struct ListenerMetrics {
    active: IntGauge,
    connections: IntCounterVec,
}

impl ListenerMetrics {
    /// Registers the metrics.
    pub fn new(registrar: &Registrar) -> Self {
        Self {
            active: registrar.gauge("smg_http_connections_active", "Open client connections"),
            connections: registrar.counter_vec(
                "smg_http_connections_total",
                "Client connections by how they ended (refused: over a limit; tls: failed handshake; mute: no request in time)",
                &["result"],
            ),
        }
    }
}

/// A listener: what it serves and what bounds it.
pub struct Listener {
    /// What answers.
    pub router: Router,
    /// Bounds.
    pub config: Config,
    /// TLS, if the port speaks it.
    pub tls: Option<ServerTls>,
    /// Counters.
    pub metrics: ListenerMetrics,
    /// The order of stopping.
    pub shutdown: Shutdown,
    /// Where connection tasks live.
    pub tasks: Tasks,
}

impl Listener {
    /// Accepts until the node closes its listeners. Open connections go on: they finish their requests, are told that
    /// no more are taken, and end by themselves.
    pub async fn run(self, socket: TcpListener) {
        let limit = self.config.connections_max.map_or(Semaphore::MAX_PERMITS, NonZeroUsize::get);
        let slots = Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
        let addresses = Arc::new(Addresses::new(self.config.connections_per_address_max));
        let servers = Arc::new(Servers { http1: self.server().http1_only(), http2: self.server().http2_only() });
        let shared = Arc::new(self);
        loop {
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                () = shared.shutdown.reached(Phase::Closing) => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Mostly "too many open files": give connections time to end.
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let slot = slots.clone().try_acquire_owned().ok();
            let Some((slot, seat)) = slot.zip(addresses.seat(peer.ip().to_canonical())) else {
                shared.metrics.connections.with_label_values(&["refused"]).inc();
                continue;
            };
            let bounds = (slot, seat);
            let connection = Connection { peer, bounds, shared: shared.clone(), servers: servers.clone() };
            shared.tasks.spawn(TaskKind::Connection, "connection", connection.serve(stream));
        }
    }

    fn server(&self) -> auto::Builder<TokioExecutor> {
        let config = &self.config;
        let head_bytes_max = config.head_bytes_max.as_usize().max(8 << 10);
        let mut server = auto::Builder::new(TokioExecutor::new());
        server
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(config.idle_timeout)
            .max_buf_size(head_bytes_max)
            .max_headers(config.headers_max)
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(config.idle_timeout)
            .max_concurrent_streams(config.http2_streams_max)
            .max_header_list_size(u32::try_from(head_bytes_max).unwrap_or(u32::MAX))
            .max_send_buf_size(64 << 10);
        server
    }
}

struct Connection {
    peer: SocketAddr,
    /// Held for as long as the connection is open.
    bounds: (OwnedSemaphorePermit, Seat),
    shared: Arc<Listener>,
    servers: Arc<Servers>,
}

/// One server for each version of HTTP. They are told apart before either begins: a server that does so itself reads the
/// first head into twice the memory.
struct Servers {
    http1: auto::Builder<TokioExecutor>,
    http2: auto::Builder<TokioExecutor>,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        let shared = self.shared.clone();
        let _open = OpenConnection::new(&shared.metrics);
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set nodelay");
        }
        let limit = shared.config.write_stall_timeout;
        let patience = shared.config.head_timeout;
        let servers = self.servers.clone();
        let Some(tls) = &shared.tls else {
            let server = match self.begun(timeout(patience, begins_http2(&stream))).await {
                Some(Ok(true)) => &servers.http2,
                Some(Ok(false)) => &servers.http1,
                Some(Err(_)) => return self.end("mute"),
                None => return self.end("closed"),
            };
            return self.speak(Paced::new(stream, limit), server).await;
        };
        // On the heap: connections without TLS should not carry its size around.
        let handshake = Box::pin(timeout(patience, tls.accept(Paced::new(stream, limit))));
        match self.begun(handshake).await {
            Some(Ok(Ok(stream))) => {
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let server = if is_http2 { &servers.http2 } else { &servers.http1 };
                Box::pin(self.speak(stream, server)).await;
            }
            Some(Ok(Err(error))) => self.failed_handshake(&error),
            Some(Err(_)) => self.failed_handshake(&io::ErrorKind::TimedOut.into()),
            None => self.end("closed"),
        }
    }

    /// What the client begins with; none if it has not when the node closes, which need not wait for it.
    async fn begun<T>(&self, first: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            first = first => Some(first),
            () = self.shared.shutdown.reached(Phase::Closing) => None,
        }
    }

    fn failed_handshake(&self, error: &io::Error) {
        self.end("tls");
        tracing::debug!(peer = %self.peer, %error, "tls handshake failed");
    }

    /// Counts how the connection ended.
    fn end(&self, result: &str) {
        self.shared.metrics.connections.with_label_values(&[result]).inc();
    }

    async fn speak<S>(self, stream: S, server: &auto::Builder<TokioExecutor>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { peer, bounds, shared, .. } = self;
        let router = shared.router.clone();
        let spoke = Arc::new(AtomicBool::new(false));
        let speaking = spoke.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            speaking.store(true, Ordering::Relaxed);
            let refusal = strict::refuse(&request);
            request.extensions_mut().insert(PeerAddress(peer));
            let router = router.clone();
            async move {
                match refusal {
                    Some(refusal) => Ok(refusal),
                    None => router.oneshot(request.map(axum::body::Body::new)).await,
                }
            }
        });
        let mut connection = std::pin::pin!(server.serve_connection(TokioIo::new(stream), service));
        // The server's own limit also covers the idle time between requests, so it is too long for the first head.
        let mute = async {
            sleep(shared.config.head_timeout).await;
            if spoke.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = mute => {
                shared.metrics.connections.with_label_values(&["mute"]).inc();
                return;
            }
            () = shared.shutdown.reached(Phase::Closing) => {
                connection.as_mut().graceful_shutdown();
                connection.as_mut().await
            }
        };
        let label = if result.is_ok() { "closed" } else { "broken" };
        shared.metrics.connections.with_label_values(&[label]).inc();
        if let Err(error) = result {
            tracing::debug!(%peer, %error, "connection ended with an error");
        }
        drop(bounds);
    }
}

/// Whether the client's first bytes are those of HTTP/2 without TLS (RFC 9113 §3.4). Nothing is taken from the stream.
async fn begins_http2(stream: &TcpStream) -> bool {
    const PREFACE: &[u8; 4] = b"PRI ";
    let mut first = [0; 4];
    let mut pause = Duration::from_millis(1);
    loop {
        match stream.peek(&mut first).await {
            Ok(4) => return first == *PREFACE,
            Ok(0) | Err(_) => return false,
            Ok(read) if first[..read] != PREFACE[..read] => return false,
            // What is there keeps the socket readable, so there is nothing to wait on but time; and many who stop
            // here must cost little.
            Ok(_) => sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Counts connections by address.
struct Addresses {
    open: Mutex<StableMap<IpAddr, usize>>,
    each_max: Option<NonZeroUsize>,
}

/// A connection's place in the count of its address.
struct Seat(Option<(Arc<Addresses>, IpAddr)>);

impl Addresses {
    fn new(each_max: Option<NonZeroUsize>) -> Self {
        Self { open: Mutex::default(), each_max }
    }

    fn seat(self: &Arc<Self>, address: IpAddr) -> Option<Seat> {
        let Some(max) = self.each_max else {
            return Some(Seat(None));
        };
        let mut open = self.open.lock();
        let count = open.entry(address).or_default();
        if *count >= max.get() {
            return None;
        }
        *count += 1;
        Some(Seat(Some((self.clone(), address))))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some((addresses, address)) = self.0.take() {
            let mut open = addresses.open.lock();
            if let Some(count) = open.get_mut(&address) {
                *count -= 1;
                if *count == 0 {
                    open.remove(&address);
                }
            }
        }
    }
}

struct OpenConnection(IntGauge);

impl OpenConnection {
    fn new(metrics: &ListenerMetrics) -> Self {
        metrics.active.inc();
        Self(metrics.active.clone())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A stream whose writes must make progress. Without this a client that stops reading would hold an engine's slot for
/// as long as it likes.
struct Paced<S> {
    stream: S,
    limit: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl<S> Paced<S> {
    fn new(stream: S, limit: Option<Duration>) -> Self {
        Self { stream, limit, timer: None, waiting: false }
    }

    /// Turns the result of a write into an error once it has been pending for too long.
    fn pace(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let limit = match self.limit {
            Some(limit) if written.is_pending() => limit,
            _ => {
                self.waiting = false;
                return written;
            }
        };
        let due = Instant::now() + limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if !self.waiting {
            self.waiting = true;
            timer.as_mut().reset(due);
        }
        timer.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.pace(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.pace(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_is_given_up() {
        let (near, _far) = tokio::io::duplex(16);
        let mut paced = Paced::new(near, Some(Duration::from_secs(7)));
        let error = paced.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_that_makes_progress_is_not() {
        let (near, mut far) = tokio::io::duplex(16);
        let mut paced = Paced::new(near, Some(Duration::from_secs(7)));
        let reading = async {
            let mut byte = [0; 8];
            for _ in 0..8 {
                sleep(Duration::from_secs(6)).await;
                tokio::io::AsyncReadExt::read_exact(&mut far, &mut byte).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(paced.write_all(&[0; 64]), reading);
        written.unwrap();
    }
}
