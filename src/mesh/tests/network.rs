//! A network of sockets in memory, whose datagrams take their time and get lost as a seed has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use smg_base::{Random, SplitMix};
use tokio::time::{Duration, Instant, Sleep, sleep_until};

/// The shortest and the longest time that a datagram takes.
const DELAY: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(2));

/// The network; clones share it.
#[derive(Clone)]
pub(super) struct Network(Arc<Mutex<State>>);

struct State {
    random: SplitMix,
    loss: f64,
    /// Pairs between which nothing passes, in this direction.
    cuts: BTreeSet<(SocketAddr, SocketAddr)>,
    boxes: BTreeMap<SocketAddr, Inbox>,
    sent: u64,
}

/// Datagrams on their way to a socket, by when they arrive.
#[derive(Default)]
struct Inbox {
    coming: BTreeMap<(Instant, u64), Datagram>,
    waker: Option<Waker>,
}

struct Datagram {
    from: SocketAddr,
    bytes: Vec<u8>,
}

impl Network {
    pub(super) fn new(seed: u64, loss: f64) -> Self {
        let random = SplitMix::new(seed);
        let state = State { random, loss, cuts: BTreeSet::new(), boxes: BTreeMap::new(), sent: 0 };
        Self(Arc::new(Mutex::new(state)))
    }

    /// A socket with this address; datagrams to a former one there are lost.
    pub(super) fn socket(&self, address: SocketAddr) -> Arc<dyn AsyncUdpSocket> {
        self.0.lock().boxes.insert(address, Inbox::default());
        Arc::new(Socket { network: self.clone(), address, alarm: Mutex::new(Box::pin(sleep_until(Instant::now()))) })
    }

    /// Lets nothing pass between the two groups any more.
    pub(super) fn split(&self, one: &[SocketAddr], other: &[SocketAddr]) {
        let pairs = one.iter().flat_map(|near| other.iter().flat_map(move |far| [(*near, *far), (*far, *near)]));
        self.0.lock().cuts.extend(pairs);
    }

    /// Lets everything pass again.
    pub(super) fn heal(&self) {
        self.0.lock().cuts.clear();
    }

    fn send(&self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let mut state = self.0.lock();
        state.sent += 1;
        let (number, lost, spread) = (state.sent, state.random.unit() < state.loss, state.random.unit());
        if lost || state.cuts.contains(&(from, to)) {
            return;
        }
        let Some(inbox) = state.boxes.get_mut(&to) else { return };
        let at = Instant::now() + DELAY.0 + (DELAY.1 - DELAY.0).mul_f64(spread);
        inbox.coming.insert((at, number), Datagram { from, bytes: bytes.to_vec() });
        if let Some(waker) = inbox.waker.take() {
            waker.wake();
        }
    }
}

/// A node's socket.
struct Socket {
    network: Network,
    address: SocketAddr,
    /// When the next datagram arrives.
    alarm: Mutex<Pin<Box<Sleep>>>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("address", &self.address).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.network.send(self.address, transmit.destination, transmit.contents);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.network.0.lock();
        let inbox = state.boxes.get_mut(&self.address).expect("it was made with the socket");
        inbox.waker = Some(cx.waker().clone());
        let Some((&(at, _), _)) = inbox.coming.first_key_value() else { return Poll::Pending };
        if at > Instant::now() {
            let mut alarm = self.alarm.lock();
            alarm.as_mut().reset(at);
            if alarm.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        let (_, Datagram { from, bytes }) = inbox.coming.pop_first().expect("it was there");
        buffers[0][..bytes.len()].copy_from_slice(&bytes);
        meta[0] = RecvMeta { addr: from, len: bytes.len(), stride: bytes.len(), ecn: None, dst_ip: None };
        Poll::Ready(Ok(1))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
