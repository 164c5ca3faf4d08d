//! Streams that carry requests to a peer and answers back, on a connection of their own, so that bodies never delay probes.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use prometheus::IntGauge;
use quinn::{RecvStream, SendStream, StoppedError, VarInt};
use smg_mesh_proto::{CloseCode, MemberState, NodeId};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OnceCell,
    time::timeout,
};

use crate::{
    DialError,
    endpoint::{Endpoint, Purpose, close_code},
};

/// How long the opening of a stream may take, the connection included.
const OPEN_MAX: Duration = Duration::from_millis(1_500);

/// Sweeps after which an unused connection is closed; one a second.
const UNUSED_SWEEPS_MAX: u32 = 60;

/// Sweeps without a packet from a peer that is taken for dead, after which its streams are given up. A peer that is wrongly
/// taken for dead is heard more often: its end of the connection is kept alive.
const SILENT_SWEEPS_MAX: u32 = 5;

/// A stream was dropped before its end.
const CANCELLED: VarInt = VarInt::from_u32(1);

/// A stream to or from a peer, both ways. To drop it before it was shut down cancels it: the other side sees an error,
/// never an end.
pub struct RelayStream {
    send: SendStream,
    receive: RecvStream,
    /// Ends when the other side wants no more, even while nothing is written.
    unwanted: Option<Unwanted>,
    role: Role,
    /// Whether our end was sent.
    finished: bool,
    /// Whether the other side's end was seen.
    ended: bool,
    _counted: Counted,
}

/// Ends with the code with which the other side stopped reading; with none if it read everything.
type Unwanted = Pin<Box<dyn Future<Output = Result<Option<VarInt>, StoppedError>> + Send + Sync>>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// We sent the request: an answer that is not read to its end is cancelled.
    Opener,
    /// We sent the answer: a request need not be read to its end.
    Acceptor,
}

impl RelayStream {
    fn new(send: SendStream, receive: RecvStream, role: Role, counted: Counted) -> Self {
        let unwanted: Unwanted = Box::pin(send.stopped());
        Self { send, receive, unwanted: Some(unwanted), role, finished: false, ended: false, _counted: counted }
    }

    /// Whether the other side has cancelled. Wakes the reader when it does.
    fn is_cancelled(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(unwanted) = &mut self.unwanted else { return false };
        let Poll::Ready(outcome) = unwanted.as_mut().poll(cx) else { return false };
        self.unwanted = None;
        outcome == Ok(Some(CANCELLED))
    }
}

impl AsyncRead for RelayStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.receive).poll_read(cx, buffer) {
            Poll::Ready(Ok(())) => {
                self.ended |= buffer.filled().len() == before && buffer.remaining() > 0;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending if self.is_cancelled(cx) => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, "the peer cancelled the stream")))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for RelayStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        self.finished = true;
        Poll::Ready(self.send.finish().map_err(Into::into))
    }
}

impl Drop for RelayStream {
    fn drop(&mut self) {
        let cancelled = !self.finished || (self.role == Role::Opener && !self.ended);
        if cancelled {
            // Errors say that the stream has ended by itself.
            let _ = self.send.reset(CANCELLED);
            let _ = self.receive.stop(CANCELLED);
        }
    }
}

impl std::fmt::Debug for RelayStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RelayStream").field("id", &self.send.id()).finish_non_exhaustive()
    }
}

/// A peer opened a stream.
#[derive(Debug)]
pub struct Relayed {
    /// Who.
    pub peer: NodeId,
    /// The stream.
    pub stream: RelayStream,
}

/// The next stream that a peer opens on `connection`; an error once the connection is gone.
pub(crate) async fn accept(
    connection: &quinn::Connection,
    open: &IntGauge,
) -> Result<RelayStream, quinn::ConnectionError> {
    let pair = connection.accept_bi().await?;
    Ok(RelayStream::new(pair.0, pair.1, Role::Acceptor, Counted::new(open.clone(), Arc::default())))
}

/// Connections on which this node opens streams: at most one to a peer.
pub(crate) struct Pool {
    endpoint: Arc<Endpoint>,
    peers: Mutex<BTreeMap<NodeId, Peer>>,
    slots: Mutex<BTreeMap<NodeId, Arc<Slot>>>,
    open: IntGauge,
}

/// What the members say of a peer.
#[derive(Clone, Copy)]
struct Peer {
    address: SocketAddr,
    state: MemberState,
}

#[derive(Default)]
struct Slot {
    connection: OnceCell<quinn::Connection>,
    streams: Arc<AtomicUsize>,
    /// Sweeps since a stream was last seen.
    unused: AtomicU32,
    /// Packets heard on the connection at the last sweep.
    heard: AtomicU64,
    /// Sweeps since one was heard.
    silent: AtomicU32,
}

impl Slot {
    /// Whether a peer that is taken for dead has been silent for so long that nothing more is to be waited for; to be asked
    /// once a sweep.
    fn is_dead(&self, state: MemberState) -> bool {
        let heard = self.connection.get().map_or(0, |connection| connection.stats().udp_rx.datagrams);
        if self.heard.swap(heard, Ordering::Relaxed) != heard {
            self.silent.store(0, Ordering::Relaxed);
            return false;
        }
        let silent = self.silent.fetch_add(1, Ordering::Relaxed) + 1;
        !state.is_alive() && silent >= SILENT_SWEEPS_MAX
    }
}

impl Pool {
    /// No connections yet.
    pub(crate) fn new(endpoint: Arc<Endpoint>, open: IntGauge) -> Self {
        Self { endpoint, peers: Mutex::default(), slots: Mutex::default(), open }
    }

    /// Says where `peer` is, and whether it is taken for dead.
    pub(crate) fn locate(&self, peer: NodeId, address: SocketAddr, state: MemberState) {
        self.peers.lock().insert(peer, Peer { address, state });
    }

    /// Forgets `peer`.
    pub(crate) fn forget(&self, peer: NodeId) {
        self.peers.lock().remove(&peer);
    }

    /// Opens a stream to `peer`. The peer sees it once something is written to it.
    pub(crate) async fn open(&self, peer: NodeId) -> Result<RelayStream, DialError> {
        timeout(OPEN_MAX, self.opened(peer)).await.unwrap_or(Err(DialError::Timeout))
    }

    async fn opened(&self, peer: NodeId) -> Result<RelayStream, DialError> {
        loop {
            let slot = self.slot(peer);
            // Counted before the connection is looked at, so that a sweep does not close it meanwhile.
            let counted = Counted::new(self.open.clone(), Arc::clone(&slot.streams));
            let is_new = !slot.connection.initialized();
            let connection = slot.connection.get_or_try_init(|| self.connect(peer)).await?;
            match connection.open_bi().await {
                Ok(pair) => return Ok(RelayStream::new(pair.0, pair.1, Role::Opener, counted)),
                // It had ended before it was noticed here: nothing was sent on it.
                Err(_) if !is_new => self.drop_slot(peer, &slot),
                Err(error) => {
                    self.drop_slot(peer, &slot);
                    return Err(crate::endpoint::explained(&error));
                }
            }
        }
    }

    fn slot(&self, peer: NodeId) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        let slot = slots.entry(peer).or_default();
        if slot.connection.get().is_some_and(|connection| connection.close_reason().is_some()) {
            *slot = Arc::default();
        }
        slot.unused.store(0, Ordering::Relaxed);
        Arc::clone(slot)
    }

    fn drop_slot(&self, peer: NodeId, slot: &Arc<Slot>) {
        let mut slots = self.slots.lock();
        if slots.get(&peer).is_some_and(|present| Arc::ptr_eq(present, slot)) {
            slots.remove(&peer);
        }
    }

    async fn connect(&self, peer: NodeId) -> Result<quinn::Connection, DialError> {
        let address = self.peers.lock().get(&peer).map(|peer| peer.address).ok_or(DialError::NoAddress)?;
        let found = self.endpoint.dial(address, Purpose::Relay).await?;
        if found.identity.node() != peer {
            found.connection.close(close_code(CloseCode::Other), b"another node was expected");
            return Err(DialError::OtherNode { found: found.identity.name });
        }
        Ok(found.connection)
    }

    /// Closes connections that have not been used for long (only this side opens streams on them, so none can be under way),
    /// and those to the dead, long before they time out by themselves; to be called once a second.
    pub(crate) fn sweep(&self) {
        let peers = self.peers.lock().clone();
        self.slots.lock().retain(|peer, slot| {
            let state = peers.get(peer).map_or(MemberState::Alive, |peer| peer.state);
            if slot.is_dead(state)
                && let Some(connection) = slot.connection.get()
            {
                connection.close(close_code(CloseCode::Other), b"silent, and taken for dead");
                return false;
            }
            // One more holder is a stream being opened; its count may not be there yet.
            if slot.streams.load(Ordering::Acquire) > 0 || Arc::strong_count(slot) > 1 {
                slot.unused.store(0, Ordering::Relaxed);
                return true;
            }
            let unused = slot.unused.fetch_add(1, Ordering::Relaxed) >= UNUSED_SWEEPS_MAX;
            if unused && let Some(connection) = slot.connection.get() {
                connection.close(close_code(CloseCode::Other), b"not used");
            }
            !unused
        });
    }
}

/// Counts a stream as long as it lives.
struct Counted {
    open: IntGauge,
    of_connection: Arc<AtomicUsize>,
}

impl Counted {
    fn new(open: IntGauge, of_connection: Arc<AtomicUsize>) -> Self {
        open.inc();
        of_connection.fetch_add(1, Ordering::AcqRel);
        Self { open, of_connection }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.open.dec();
        self.of_connection.fetch_sub(1, Ordering::AcqRel);
    }
}
