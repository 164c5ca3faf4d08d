//! Opening a connection to a worker: resolve, ask the rules, connect, and TLS where the URL says so.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::pki_types::ServerName;
use smg_fleet::{Scheme, WorkerUrl};
use smg_infer::{Failure, FailureCode};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use crate::{
    relay::PeerStream,
    resolve::Resolver,
    rules::{RefusedUrl, UrlRules},
    tls::Tls,
};

/// Probes on a silent connection, so that a host that lost power is noticed within a minute although the request
/// itself may rightly be silent for much longer.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;

/// How long what was sent may stay unacknowledged: a host that vanishes under a request is noticed as soon as one that vanishes
/// while it is silent. The system alone would try for a quarter of an hour.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(60);

/// Errors of the process and not of the worker: out of descriptors (`EMFILE`, `ENFILE`), out of local ports
/// (`EADDRNOTAVAIL`).
const OUT_OF_SOCKETS: [i32; 3] = [24, 23, 99];

/// Opens connections.
pub(crate) struct Connector {
    pub(crate) resolver: Resolver,
    pub(crate) tls: Tls,
    pub(crate) timeout: Duration,
}

/// Where to connect to, and under which rules.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) url: WorkerUrl,
    pub(crate) rules: Arc<UrlRules>,
}

/// Why there is no connection. Nothing of a request was sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("the name does not resolve: {0}")]
    Resolve(#[source] io::Error),
    #[error("the name resolves to nothing")]
    NoAddress,
    #[error(transparent)]
    Refused(#[from] RefusedUrl),
    #[error("{address}: {source}")]
    Tcp { address: SocketAddr, source: io::Error },
    #[error("the host {0:?} cannot be in a certificate")]
    ServerName(String),
    #[error("tls: {0}")]
    Tls(#[source] io::Error),
    #[error("http handshake: {0}")]
    Handshake(#[source] hyper::Error),
    #[error("timed out after {0:?}")]
    Timeout(Duration),
}

impl ConnectError {
    /// The failure clients see. It names no address: where workers are is not theirs to know.
    pub(crate) fn failure(&self) -> Failure {
        let (code, message) = match self {
            Self::Resolve(_) | Self::NoAddress => {
                (FailureCode::ConnectFailed, "the worker's host name does not resolve")
            }
            Self::Refused(_) => (FailureCode::ConnectFailed, "the worker's address is not allowed"),
            Self::Tcp { source, .. } if source.raw_os_error().is_some_and(|code| OUT_OF_SOCKETS.contains(&code)) => {
                (FailureCode::Internal, "the gateway is out of sockets")
            }
            Self::Tcp { source, .. } if source.kind() == io::ErrorKind::TimedOut => {
                (FailureCode::ConnectTimeout, "the worker did not accept a connection in time")
            }
            Self::Tcp { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused => {
                (FailureCode::ConnectFailed, "the worker refused the connection")
            }
            Self::Tcp { .. } => (FailureCode::ConnectFailed, "the worker cannot be reached"),
            Self::ServerName(_) | Self::Tls(_) => {
                (FailureCode::ConnectFailed, "no secure connection to the worker could be made")
            }
            Self::Handshake(_) => (FailureCode::ConnectFailed, "the worker closed the connection at once"),
            Self::Timeout(_) => (FailureCode::ConnectTimeout, "the worker did not accept a connection in time"),
        };
        Failure::new(code, message)
    }

    /// The label in metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Resolve(_) | Self::NoAddress => "unresolved",
            Self::Refused(_) => "not_allowed",
            Self::Tcp { .. } => "failed",
            Self::ServerName(_) | Self::Tls(_) => "tls",
            Self::Handshake(_) => "handshake",
            Self::Timeout(_) => "timeout",
        }
    }
}

impl Connector {
    /// A connection to `target`, within the time a connection may take.
    pub(crate) async fn connect(&self, target: &Target) -> Result<Stream, ConnectError> {
        timeout(self.timeout, self.open(target)).await.map_err(|_| ConnectError::Timeout(self.timeout))?
    }

    async fn open(&self, target: &Target) -> Result<Stream, ConnectError> {
        let tcp = self.dial(&self.addresses(target).await?).await?;
        if target.url.scheme() == Scheme::Http {
            return Ok(Stream::Plain(tcp));
        }
        let name = match &self.tls.server_name {
            Some(name) => name.clone(),
            None => server_name(target.url.host())?,
        };
        let tls = self.tls.connector.connect(name, tcp).await.map_err(ConnectError::Tls)?;
        Ok(Stream::Tls(Box::new(tls)))
    }

    /// The addresses that may be used. The rules are asked about these and no others, so a name that resolves anew
    /// to a forbidden place leads nowhere.
    async fn addresses(&self, target: &Target) -> Result<Vec<SocketAddr>, ConnectError> {
        let port = target.url.port();
        if let Some(address) = target.url.address() {
            target.rules.admit(address)?;
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let resolved = self.resolver.resolve(target.url.host(), port).await.map_err(ConnectError::Resolve)?;
        let mut refusal = None;
        let mut allowed = Vec::with_capacity(resolved.len());
        for address in resolved {
            match target.rules.admit(address.ip()) {
                Ok(()) => allowed.push(address),
                Err(refused) => refusal = Some(refused),
            }
        }
        match (allowed.is_empty(), refusal) {
            (true, Some(refused)) => Err(refused.into()),
            (true, None) => Err(ConnectError::NoAddress),
            (false, _) => Ok(allowed),
        }
    }

    /// Tries the addresses in turn. Each but the last gets its share of the time, so that one that swallows packets
    /// leaves some for the others.
    async fn dial(&self, addresses: &[SocketAddr]) -> Result<TcpStream, ConnectError> {
        let share = self.timeout / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
        let mut last = ConnectError::NoAddress;
        for address in addresses {
            match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) => {
                    tune(&tcp);
                    return Ok(tcp);
                }
                Ok(Err(source)) => last = ConnectError::Tcp { address: *address, source },
                Err(_) => last = ConnectError::Timeout(share),
            }
        }
        Err(last)
    }
}

/// Small writes go out at once, and a peer that vanished is noticed. Neither is worth failing a connection for.
fn tune(tcp: &TcpStream) {
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_RETRIES);
    let socket = SockRef::from(tcp);
    let tuned = tcp.set_nodelay(true).and_then(|()| socket.set_tcp_keepalive(&keepalive));
    #[cfg(target_os = "linux")]
    let tuned = tuned.and_then(|()| socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX)));
    if let Err(error) = tuned {
        tracing::debug!(%error, "cannot tune a connection");
    }
}

fn server_name(host: &str) -> Result<ServerName<'static>, ConnectError> {
    ServerName::try_from(host.to_owned()).map_err(|_| ConnectError::ServerName(host.to_owned()))
}

/// A connection's bytes, with or without TLS, or those of one request that a peer relays.
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Peer(Box<dyn PeerStream>),
}

impl Stream {
    /// Whether both sides agreed on HTTP/2.
    pub(crate) fn speaks_http2(&self) -> bool {
        match self {
            Self::Plain(_) | Self::Peer(_) => false,
            Self::Tls(tls) => tls.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Tls(_) => "Tls",
            Self::Peer(_) => "Peer",
        })
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
            Self::Peer(peer) => Pin::new(peer).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
            Self::Peer(peer) => Pin::new(peer).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, pieces),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, pieces),
            Self::Peer(peer) => Pin::new(peer).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(tcp) => tcp.is_write_vectored(),
            Self::Tls(tls) => tls.is_write_vectored(),
            Self::Peer(peer) => peer.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
            Self::Peer(peer) => Pin::new(peer).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
            Self::Peer(peer) => Pin::new(peer).poll_shutdown(cx),
        }
    }
}
