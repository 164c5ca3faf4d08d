//! The QUIC endpoint: one UDP port on which a node dials and is dialled, for the mesh itself and for relayed requests.

use std::{
    net::{SocketAddr, UdpSocket},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use quinn::{
    AsyncUdpSocket, ConnectionError, ConnectionId, ConnectionIdGenerator, EndpointConfig, Incoming, Runtime as _,
    TokioRuntime, TransportConfig, TransportErrorCode, VarInt,
    crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig},
};
use rustls::{AlertDescription, client::Resumption, pki_types::CertificateDer, server::NoServerSessionStorage};
use smg_mesh_proto::CloseCode;
use tokio::time::timeout;

use crate::{
    DialError, Error, Security,
    credentials::{Credentials, Sealing},
    identity::Identity,
    verify,
};

/// How long a handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(1);

/// How long a connection lives without a packet from the other side.
const IDLE_MAX: Duration = Duration::from_secs(8);

/// How long the end of connections is waited for.
const IDLE_WAIT_MAX: Duration = Duration::from_millis(500);

/// How often the side that dialled makes sure that there are packets.
const KEEP_ALIVE: Duration = Duration::from_millis(2_500);

/// The same where there are so many connections that they would cost more than they are worth; two still fit in
/// [`IDLE_MAX`].
const KEEP_ALIVE_OF_MANY: Duration = Duration::from_millis(3_900);

/// How many connections are many.
const MANY: usize = 24;

/// First guess of the round trip time: lost handshake packets are repeated soon enough to meet [`HANDSHAKE_MAX`].
const RTT_GUESS: Duration = Duration::from_millis(100);

/// Handshakes that wait to be looked at.
const INCOMING_MAX: usize = 64;

/// Streams of frames that a peer may have open at once.
const UNI_STREAMS_MAX: u32 = 256;

/// Requests that a peer may relay here at once.
const BIDI_STREAMS_MAX: u32 = 1_024;

/// Bytes of one stream that are buffered for a slow reader.
const STREAM_WINDOW: u32 = 256 << 10;

/// Bytes of all frames of a peer that are buffered.
const MESH_WINDOW: u32 = 8 << 20;

/// Bytes of all relayed requests of a peer that are buffered: a few hundred slow readers must not stop the others.
const RELAY_WINDOW: u32 = 128 << 20;

/// Bytes that may be on their way to a peer.
const SEND_WINDOW: u64 = 8 << 20;

/// Every node's certificate is judged by its own name, so the name of a host means nothing; TLS wants one.
const SERVER_NAME: &str = "smg";

/// What a connection is for, as its protocol (ALPN) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Frames of the mesh.
    Mesh,
    /// Requests on their way to a worker that this node reaches.
    Relay,
}

impl Purpose {
    const ALL: [Self; 2] = [Self::Mesh, Self::Relay];

    const fn protocol(self) -> &'static [u8] {
        match self {
            Self::Mesh => b"smg-mesh/1",
            Self::Relay => b"smg-relay/1",
        }
    }

    const fn receive_window(self) -> VarInt {
        VarInt::from_u32(match self {
            Self::Mesh => MESH_WINDOW,
            Self::Relay => RELAY_WINDOW,
        })
    }
}

/// A connection whose other side has shown who it is.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) connection: quinn::Connection,
    pub(crate) identity: Identity,
}

/// The endpoint.
pub(crate) struct Endpoint {
    endpoint: quinn::Endpoint,
    address: SocketAddr,
    security: Security,
    own: Identity,
    present: ArcSwap<Present>,
}

/// What new connections are made with.
struct Present {
    mesh: Arc<QuicClientConfig>,
    relay: Arc<QuicClientConfig>,
    expires: i64,
    /// The files it was read from, as they were.
    content: Vec<Option<Vec<u8>>>,
}

impl Endpoint {
    /// Binds the port. Must be called on the runtime that is to drive the connections.
    pub(crate) fn bind(bind: SocketAddr, security: Security, own: Identity) -> Result<(Self, Sealing), Error> {
        if matches!(security, Security::Throwaway) && !is_loopback(bind) {
            return Err(Error::NeedsIdentity { bind });
        }
        let unusable = |source| Error::Bind { bind, source };
        let socket = UdpSocket::bind(bind).map_err(unusable)?;
        let socket = TokioRuntime.wrap_udp_socket(socket).map_err(unusable)?;
        Self::over(socket, security, own)
    }

    /// The same over a socket that is there already.
    pub(crate) fn over(
        socket: Arc<dyn AsyncUdpSocket>,
        security: Security,
        own: Identity,
    ) -> Result<(Self, Sealing), Error> {
        let content = content(&security);
        let credentials = Credentials::load(&security, &own)?;
        let sealing = Sealing::new(&security, &credentials, &own.name);
        let mut config = EndpointConfig::new(Arc::new(sealing.reset()));
        // A restarted node must not take packets of its earlier connections for noise, but answer that they are gone.
        config.cid_generator(|| Box::new(RandomIds));
        let unusable = |source| Error::Bind { bind: ([0, 0, 0, 0], 0).into(), source };
        let address = socket.local_addr().map_err(unusable)?;
        let server = Some(server(&credentials)?);
        let endpoint = quinn::Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(TokioRuntime));
        let endpoint = endpoint.map_err(unusable)?;
        let present = ArcSwap::from_pointee(Present::new(&credentials, content)?);
        Ok((Self { endpoint, address, security, own, present }, sealing))
    }

    /// Where it is bound.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// When this node's certificate ends, in seconds since 1970.
    pub(crate) fn expires(&self) -> i64 {
        self.present.load().expires
    }

    /// Reads files of certificates again if they have changed, and says whether they had. Connections that stand, stay;
    /// after an error the last good certificates stay in force. Blocks on files.
    pub(crate) fn reload(&self) -> Result<bool, Error> {
        let content = content(&self.security);
        if content == self.present.load().content {
            return Ok(false);
        }
        let credentials = Credentials::load(&self.security, &self.own)?;
        let present = Present::new(&credentials, content)?;
        self.endpoint.set_server_config(Some(server(&credentials)?));
        self.present.store(Arc::new(present));
        Ok(true)
    }

    /// Connects to `address`. That the other side accepts this node, only its first answer shows.
    pub(crate) async fn dial(&self, address: SocketAddr, purpose: Purpose) -> Result<Peer, DialError> {
        self.check_place(address)?;
        let crypto = match purpose {
            Purpose::Mesh => Arc::clone(&self.present.load().mesh),
            Purpose::Relay => Arc::clone(&self.present.load().relay),
        };
        let mut config = quinn::ClientConfig::new(crypto);
        let many = self.endpoint.open_connections() > MANY;
        config.transport_config(Arc::new(transport(Some(if many { KEEP_ALIVE_OF_MANY } else { KEEP_ALIVE }))));
        let connecting = self.endpoint.connect_with(config, address, SERVER_NAME);
        let connecting = connecting.map_err(|error| DialError::Broken(error.to_string()))?;
        let connected = timeout(HANDSHAKE_MAX, connecting).await.map_err(|_| DialError::Timeout)?;
        let connection = connected.map_err(|error| explained(&error))?;
        connection.set_receive_window(purpose.receive_window());
        identified(connection)
    }

    /// The next one that dials this node; none once the endpoint is closed.
    pub(crate) async fn accept(&self) -> Option<Incoming> {
        self.endpoint.accept().await
    }

    /// Finishes the handshake of one that dialled this node.
    pub(crate) async fn admit(&self, incoming: Incoming) -> Result<Admitted, DialError> {
        self.check_place(incoming.remote_address())?;
        let connecting = incoming.accept().map_err(|error| explained(&error))?;
        let connected = timeout(HANDSHAKE_MAX, connecting).await.map_err(|_| DialError::Timeout)?;
        let connection = connected.map_err(|error| explained(&error))?;
        let protocol = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
        let protocol = protocol.and_then(|data| data.protocol);
        let spoken = |purpose: &Purpose| protocol.as_deref() == Some(purpose.protocol());
        let Some(purpose) = Purpose::ALL.into_iter().find(spoken) else {
            return Err(DialError::Broken("no protocol was agreed on".to_owned()));
        };
        connection.set_receive_window(purpose.receive_window());
        Ok(Admitted { purpose, peer: identified(connection)? })
    }

    /// Whether certificates are in files, which may change.
    pub(crate) fn has_files(&self) -> bool {
        matches!(self.security, Security::Files { .. })
    }

    /// Closes every connection, and waits until that is out.
    pub(crate) async fn close(&self) {
        self.endpoint.close(close_code(CloseCode::Other), b"");
        self.idle().await;
    }

    /// Waits a little until no connection is left, and every close is out.
    pub(crate) async fn idle(&self) {
        // What is not out by then does not matter: the others notice by themselves.
        let _ = timeout(IDLE_WAIT_MAX, self.endpoint.wait_idle()).await;
    }

    fn check_place(&self, address: SocketAddr) -> Result<(), DialError> {
        let open = matches!(self.security, Security::Throwaway) && !is_loopback(address);
        if open { Err(DialError::NotLoopback) } else { Ok(()) }
    }
}

/// A connection that another node made.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) purpose: Purpose,
    pub(crate) peer: Peer,
}

impl Present {
    fn new(credentials: &Credentials, content: Vec<Option<Vec<u8>>>) -> Result<Self, Error> {
        Ok(Self {
            mesh: client(credentials, Purpose::Mesh)?,
            relay: client(credentials, Purpose::Relay)?,
            expires: credentials.expires,
            content,
        })
    }
}

fn client(credentials: &Credentials, purpose: Purpose) -> Result<Arc<QuicClientConfig>, Error> {
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(verify::provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&credentials.verifier) as _)
        .with_client_auth_cert(credentials.chain.clone(), credentials.key.clone_key())?;
    config.alpn_protocols = vec![purpose.protocol().to_vec()];
    // A resumed session would skip the certificates.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(QuicClientConfig::try_from(config).map_err(|error| rustls::Error::General(error.to_string()))?))
}

fn server(credentials: &Credentials) -> Result<quinn::ServerConfig, Error> {
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(verify::provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::clone(&credentials.verifier) as _)
        .with_single_cert(credentials.chain.clone(), credentials.key.clone_key())?;
    config.alpn_protocols = Purpose::ALL.map(|purpose| purpose.protocol().to_vec()).to_vec();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let crypto = QuicServerConfig::try_from(config).map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    server.transport_config(Arc::new(transport(None)));
    server.max_incoming(INCOMING_MAX);
    Ok(server)
}

fn transport(keep_alive: Option<Duration>) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IDLE_MAX.try_into().expect("eight seconds are a QUIC timeout")))
        .keep_alive_interval(keep_alive)
        .initial_rtt(RTT_GUESS)
        .max_concurrent_uni_streams(UNI_STREAMS_MAX.into())
        .max_concurrent_bidi_streams(BIDI_STREAMS_MAX.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(MESH_WINDOW.into())
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(None);
    config
}

fn identified(connection: quinn::Connection) -> Result<Peer, DialError> {
    let chain = connection.peer_identity().and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
    let named = chain.as_ref().and_then(|chain| chain.first()).map(Identity::of);
    match named {
        Some(Ok(identity)) => Ok(Peer { connection, identity }),
        Some(Err(bad)) => Err(DialError::Foreign(format!("the peer's certificate {bad}"))),
        None => Err(DialError::Foreign("the peer showed no certificate".to_owned())),
    }
}

/// What an operator should be told of a handshake that failed.
pub(crate) fn explained(error: &ConnectionError) -> DialError {
    let alert = |code: AlertDescription| TransportErrorCode::crypto(u8::from(code));
    match error {
        ConnectionError::TimedOut => DialError::Timeout,
        ConnectionError::TransportError(ours) if ours.code == alert(AlertDescription::UnknownCA) => {
            DialError::OtherAuthority
        }
        ConnectionError::TransportError(ours) if is_alert(ours.code) => {
            // What rustls puts before a text of our own.
            DialError::Foreign(ours.reason.trim_start_matches("unexpected error: ").to_owned())
        }
        ConnectionError::ConnectionClosed(theirs) if is_alert(theirs.error_code) => DialError::Refused,
        other => DialError::Broken(other.to_string()),
    }
}

/// Whether a connection ended because TLS did not accept something.
fn is_alert(code: TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

/// As QUIC carries it.
pub(crate) fn close_code(code: CloseCode) -> VarInt {
    VarInt::from_u32(code as u32)
}

fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// The bytes of each file that credentials are made of; none where it cannot be read.
fn content(security: &Security) -> Vec<Option<Vec<u8>>> {
    match security {
        Security::Files { ca, cert, key, .. } => {
            let paths = ca.iter().chain([cert, key]);
            paths.map(|path: &PathBuf| std::fs::read(path).ok()).collect()
        }
        Security::Tokens(_) | Security::Throwaway => Vec::new(),
    }
}

/// Connection ids without structure.
struct RandomIds;

const ID_BYTES: usize = 8;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; ID_BYTES];
        aws_lc_rs::rand::fill(&mut bytes).expect("the system's source of randomness works");
        ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
