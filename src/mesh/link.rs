//! One connection to a peer: queues by class, what writes them to streams, and what reads the peer's streams.
//!
//! Every stream begins with a byte that says its class, and carries whole frames. Membership and bulk frames have a stream
//! each, so that a lost packet delays one frame only; lane frames share one, because their order matters.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{
    StreamExt,
    future::join3,
    stream::{FuturesUnordered, unfold},
};
use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec};
use quinn::{ConnectionError, RecvStream, SendStream};
use smg_mesh_proto::{Class, CloseCode, ConnectionId, Gone, Input, NodeId};
use smg_runtime::Sender;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};

use crate::{
    DialError,
    driver::Inbound,
    endpoint::{Peer, close_code, explained},
    metrics::{Metrics, class_label},
};

/// Frames that wait to be sent, by class; more are dropped, and replication sends again what matters.
const SWIM_WAITING_MAX: usize = 256;
const LANE_WAITING_MAX: usize = 64;
const BULK_WAITING_MAX: usize = 64;

/// Frames on streams of their own that may be unacknowledged, by class. Together they are fewer than the streams a peer
/// allows, so that bulk never keeps membership from having one.
const SWIM_UNDER_WAY_MAX: usize = 128;
const BULK_UNDER_WAY_MAX: usize = 16;

/// How long what was sent before a close may take to be acknowledged.
const DRAIN_MAX: Duration = Duration::from_secs(1);

/// How long the first frame of a peer may take.
const FIRST_FRAME_MAX: Duration = Duration::from_secs(5);

/// Bytes of the head of a frame: kind, version, length.
const HEAD_BYTES: usize = 6;

/// Bytes that a peer may send in a second for long; more are read later. A frame counts for [`FRAME_COST`] more.
const BYTES_PER_SECOND: u64 = 32 << 20;
const FRAME_COST: u64 = 1 << 10;

/// The driver's end of a connection.
pub(crate) struct Link {
    pub(crate) peer: NodeId,
    pub(crate) name: String,
    pub(crate) connection: quinn::Connection,
    queues: Option<Queues>,
    close: Option<oneshot::Sender<CloseCode>>,
    nacks: IntCounter,
    seen: Seen,
    recent: Recent,
}

struct Queues {
    swim: mpsc::Sender<Bytes>,
    lane: mpsc::Sender<Bytes>,
    bulk: mpsc::Sender<Bytes>,
}

/// What a connection had counted when it was last looked at.
#[derive(Clone, Copy, Default)]
struct Seen {
    sent: u64,
    lost: u64,
    traffic: Traffic,
}

/// UDP payload, QUIC's own included.
#[derive(Clone, Copy, Default)]
pub(crate) struct Traffic {
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) datagrams_sent: u64,
    pub(crate) datagrams_received: u64,
}

/// What a connection has done since it was last looked at.
pub(crate) struct Vitals {
    pub(crate) rtt: Duration,
    pub(crate) loss: f32,
    pub(crate) traffic: Traffic,
}

/// The task's end of a connection.
pub(crate) struct Work {
    id: ConnectionId,
    connection: quinn::Connection,
    swim: mpsc::Receiver<Bytes>,
    lane: mpsc::Receiver<Bytes>,
    bulk: mpsc::Receiver<Bytes>,
    close: oneshot::Receiver<CloseCode>,
    inbound: Sender<Inbound>,
    frame_bytes_max: usize,
    counters: Counters,
    name: String,
}

#[derive(Clone)]
struct Counters {
    frames: IntCounterVec,
    bytes: IntCounterVec,
    acks: IntCounter,
    lost: IntCounter,
    misbehaved: IntCounterVec,
}

impl Counters {
    fn count(&self, class: Class, direction: &str, bytes: usize) {
        self.frames.with_label_values(&[class_label(class), direction]).inc();
        self.bytes.with_label_values(&[class_label(class), direction]).inc_by(bytes as u64);
    }
}

/// Both ends of a connection.
pub(crate) struct Ends {
    pub(crate) link: Link,
    pub(crate) work: Work,
}

impl Ends {
    /// Those of a connection to `peer`.
    pub(crate) fn new(
        id: ConnectionId,
        peer: Peer,
        frame_bytes_max: usize,
        inbound: Sender<Inbound>,
        metrics: &Metrics,
    ) -> Self {
        let (swim, swim_out) = mpsc::channel(SWIM_WAITING_MAX);
        let (lane, lane_out) = mpsc::channel(LANE_WAITING_MAX);
        let (bulk, bulk_out) = mpsc::channel(BULK_WAITING_MAX);
        let (close, asked) = oneshot::channel();
        let name = peer.identity.name.clone();
        let counters = Counters {
            frames: metrics.frames.clone(),
            bytes: metrics.frame_bytes.clone(),
            acks: metrics.peer_acks.with_label_values(&[&name]),
            lost: metrics.peer_nacks.with_label_values(&[name.as_str(), "lost"]),
            misbehaved: metrics.misbehaved.clone(),
        };
        let link = Link {
            peer: peer.identity.node(),
            name: name.clone(),
            connection: peer.connection.clone(),
            queues: Some(Queues { swim, lane, bulk }),
            close: Some(close),
            nacks: metrics.peer_nacks.with_label_values(&[name.as_str(), "queue_full"]),
            seen: Seen::default(),
            recent: Recent::default(),
        };
        let work = Work {
            id,
            connection: peer.connection,
            swim: swim_out,
            lane: lane_out,
            bulk: bulk_out,
            close: asked,
            inbound,
            frame_bytes_max,
            counters,
            name,
        };
        Self { link, work }
    }
}

impl Link {
    /// Queues a frame, or drops it if there is no room or the connection is being closed.
    pub(crate) fn send(&self, class: Class, bytes: Bytes) {
        let Some(queues) = &self.queues else { return };
        let queue = match class {
            Class::Swim => &queues.swim,
            Class::Lane => &queues.lane,
            Class::Bulk => &queues.bulk,
        };
        if queue.try_send(bytes).is_err() {
            self.nacks.inc();
        }
    }

    /// Closes the connection after what was queued is out.
    pub(crate) fn close(&mut self, code: CloseCode) {
        self.queues = None;
        if let Some(close) = self.close.take() {
            // Without a receiver the connection has ended by itself.
            let _ = close.send(code);
        }
    }

    /// What happened since the last call.
    pub(crate) fn vitals(&mut self) -> Vitals {
        let stats = self.connection.stats();
        let seen = Seen {
            sent: stats.path.sent_packets,
            lost: stats.path.lost_packets,
            traffic: Traffic {
                bytes_sent: stats.udp_tx.bytes,
                bytes_received: stats.udp_rx.bytes,
                datagrams_sent: stats.udp_tx.datagrams,
                datagrams_received: stats.udp_rx.datagrams,
            },
        };
        let before = std::mem::replace(&mut self.seen, seen);
        let (sent, lost) = (seen.sent.saturating_sub(before.sent), seen.lost.saturating_sub(before.lost));
        Vitals {
            rtt: self.connection.rtt(),
            loss: self.recent.add(sent, lost),
            traffic: seen.traffic.since(before.traffic),
        }
    }
}

/// Packets of the last twenty measurements or so, older ones counting less and less.
#[derive(Default)]
struct Recent {
    sent: f32,
    lost: f32,
}

/// What of the earlier measurements is kept at each new one.
const RECENT_KEPT: f32 = 0.95;

/// Fewest packets that say something: an idle connection sends few, and one that is lost of three is chance.
const RECENT_MIN: f32 = 40.0;

impl Recent {
    /// Adds a measurement, and gives the share that was lost.
    #[expect(clippy::cast_precision_loss, reason = "a ratio of small counts")]
    fn add(&mut self, sent: u64, lost: u64) -> f32 {
        self.sent = self.sent * RECENT_KEPT + sent as f32;
        self.lost = self.lost * RECENT_KEPT + lost as f32;
        if self.sent < RECENT_MIN { 0.0 } else { (self.lost / self.sent).min(1.0) }
    }
}

impl Traffic {
    fn since(self, before: Self) -> Self {
        Self {
            bytes_sent: self.bytes_sent.saturating_sub(before.bytes_sent),
            bytes_received: self.bytes_received.saturating_sub(before.bytes_received),
            datagrams_sent: self.datagrams_sent.saturating_sub(before.datagrams_sent),
            datagrams_received: self.datagrams_received.saturating_sub(before.datagrams_received),
        }
    }
}

impl Work {
    /// Serves the connection to its end, of which it tells.
    pub(crate) async fn run(self) {
        let Self { id, connection, swim, lane, bulk, mut close, inbound, frame_bytes_max, counters, name } = self;
        let writer = join3(
            write_each(&connection, swim, Class::Swim, SWIM_UNDER_WAY_MAX, &counters),
            write_all(&connection, lane, &counters),
            write_each(&connection, bulk, Class::Bulk, BULK_UNDER_WAY_MAX, &counters),
        );
        let reader = Reader { id, inbound: &inbound, frame_bytes_max, counters: &counters, pace: Pace::new() };
        let reading = reader.run(&connection);
        tokio::pin!(writer, reading);
        let mut writing = true;
        let gone = loop {
            tokio::select! {
                biased;
                asked = &mut close => {
                    let code = asked.unwrap_or(CloseCode::Other);
                    if writing {
                        // What is not out by then is lost with the connection.
                        let _ = timeout(DRAIN_MAX, &mut writer).await;
                    }
                    connection.close(close_code(code), b"");
                    break Gone::Closed(code);
                }
                fault = &mut reading => break ended(&connection, &fault, &name, &counters),
                _ = &mut writer, if writing => writing = false,
            }
        };
        // The driver may be gone, and then nobody wants to know.
        let _ = inbound.send(Inbound::Input(Input::Disconnected { connection: id, gone })).await;
    }
}

fn ended(connection: &quinn::Connection, fault: &Fault, name: &str, counters: &Counters) -> Gone {
    match fault {
        Fault::Misbehaved(what) => {
            tracing::warn!(peer = name, what, "closing a connection because of what came");
            counters.misbehaved.with_label_values(&[name]).inc();
            connection.close(close_code(CloseCode::Misbehaved), what.as_bytes());
            Gone::Closed(CloseCode::Misbehaved)
        }
        Fault::Lost(ConnectionError::ApplicationClosed(theirs)) => {
            Gone::Closed(CloseCode::of(theirs.error_code.into_inner()))
        }
        Fault::Lost(ConnectionError::LocallyClosed) => Gone::Closed(CloseCode::Other),
        Fault::Lost(error) => {
            // Only now does a node that dialled learn that its certificate was refused (TLS 1.3 lets the client go first).
            if explained(error) == DialError::Refused {
                tracing::warn!(peer = name, error = %DialError::Refused, "a peer does not let this node in");
            } else {
                tracing::debug!(peer = name, %error, "connection lost");
            }
            Gone::Lost
        }
    }
}

/// Writes frames, each to a stream of its own.
async fn write_each(
    connection: &quinn::Connection,
    queue: mpsc::Receiver<Bytes>,
    class: Class,
    under_way_max: usize,
    counters: &Counters,
) {
    unfold(queue, |mut queue| async { queue.recv().await.map(|frame| (frame, queue)) })
        .map(|frame| write_one(connection, frame, class, counters))
        .buffer_unordered(under_way_max)
        .for_each(|outcome| async move {
            counters.outcome(outcome);
        })
        .await;
}

impl Counters {
    fn outcome(&self, outcome: Outcome) {
        match outcome {
            Outcome::Acknowledged => self.acks.inc(),
            Outcome::Lost => self.lost.inc(),
        }
    }
}

enum Outcome {
    Acknowledged,
    Lost,
}

async fn write_one(connection: &quinn::Connection, frame: Bytes, class: Class, counters: &Counters) -> Outcome {
    let length = frame.len();
    let Ok(mut stream) = connection.open_uni().await else { return Outcome::Lost };
    if begin(&mut stream, class, frame).await.is_err() || stream.finish().is_err() {
        return Outcome::Lost;
    }
    counters.count(class, "sent", length);
    match stream.stopped().await {
        Ok(None) => Outcome::Acknowledged,
        Ok(Some(_)) | Err(_) => Outcome::Lost,
    }
}

/// Writes frames to one stream, in order.
async fn write_all(connection: &quinn::Connection, mut queue: mpsc::Receiver<Bytes>, counters: &Counters) {
    let Some(first) = queue.recv().await else { return };
    let Ok(mut stream) = connection.open_uni().await else { return };
    let length = first.len();
    if begin(&mut stream, Class::Lane, first).await.is_err() {
        return;
    }
    counters.count(Class::Lane, "sent", length);
    while let Some(frame) = queue.recv().await {
        let length = frame.len();
        if stream.write_chunk(frame).await.is_err() {
            return;
        }
        counters.count(Class::Lane, "sent", length);
    }
    if stream.finish().is_ok() {
        // Whether it was acknowledged, the connection's end shows.
        let _ = stream.stopped().await;
    }
}

/// Writes the class of a stream, and its first frame into the same packet.
async fn begin(stream: &mut SendStream, class: Class, frame: Bytes) -> Result<(), quinn::WriteError> {
    let (priority, mark): (i32, &'static [u8]) = match class {
        Class::Swim => (100, &[0]),
        Class::Lane => (50, &[1]),
        Class::Bulk => (10, &[2]),
    };
    // It fails only for a stream that has ended, and then so does the write.
    let _ = stream.set_priority(priority);
    stream.write_all_chunks(&mut [Bytes::from_static(mark), frame]).await
}

/// Why a connection is no longer read.
enum Fault {
    Lost(ConnectionError),
    Misbehaved(&'static str),
}

struct Reader<'a> {
    id: ConnectionId,
    inbound: &'a Sender<Inbound>,
    frame_bytes_max: usize,
    counters: &'a Counters,
    pace: Pace,
}

impl Reader<'_> {
    async fn run(self, connection: &quinn::Connection) -> Fault {
        // The first stream carries the peer's introduction; what overtakes it would be of a stranger.
        let first = async {
            let stream = connection.accept_uni().await.map_err(Fault::Lost)?;
            self.read(stream).await
        };
        match timeout(FIRST_FRAME_MAX, first).await {
            Ok(Ok(())) => {}
            Ok(Err(fault)) => return fault,
            Err(_) => return Fault::Misbehaved("no introduction in time"),
        }
        let mut streams = FuturesUnordered::new();
        loop {
            tokio::select! {
                stream = connection.accept_uni() => match stream {
                    Ok(stream) => streams.push(self.read(stream)),
                    Err(error) => return Fault::Lost(error),
                },
                Some(outcome) = streams.next() => if let Err(fault) = outcome {
                    return fault;
                },
            }
        }
    }

    /// Reads a stream to its end. That it was given up half way is no fault: its connection is being closed.
    async fn read(&self, mut stream: RecvStream) -> Result<(), Fault> {
        let mut mark = [0];
        if stream.read_exact(&mut mark).await.is_err() {
            return Ok(());
        }
        let class = match mark {
            [0] => Class::Swim,
            [1] => Class::Lane,
            [2] => Class::Bulk,
            // Of a later version. Dropping the stream tells the peer that it is not read.
            _ => return Ok(()),
        };
        while let Some(frame) = self.frame(&mut stream).await? {
            self.counters.count(class, "received", frame.len());
            self.pace.take(frame.len() as u64 + FRAME_COST).await;
            let input = Input::Frame { connection: self.id, bytes: frame };
            if self.inbound.send(Inbound::Input(input)).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The next frame of a stream; none at its end, wherever that is.
    async fn frame(&self, stream: &mut RecvStream) -> Result<Option<Bytes>, Fault> {
        let mut head = [0; HEAD_BYTES];
        match stream.read_exact(&mut head).await {
            Ok(()) => {}
            Err(_) => return Ok(None),
        }
        let [_, _, length @ ..] = head;
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if length > self.frame_bytes_max.saturating_sub(HEAD_BYTES) {
            return Err(Fault::Misbehaved("a frame over the limit"));
        }
        // Grown as bytes come, never by what a peer only announces.
        let mut frame = BytesMut::from(&head[..]);
        let whole = HEAD_BYTES + length;
        while frame.len() < whole {
            match stream.read_chunk(whole - frame.len(), true).await {
                Ok(Some(chunk)) => frame.extend_from_slice(&chunk.bytes),
                Ok(None) | Err(_) => return Ok(None),
            }
        }
        Ok(Some(frame.freeze()))
    }
}

/// Spreads what a peer sends over time.
struct Pace {
    /// When everything taken so far is paid for.
    paid: Mutex<Instant>,
}

impl Pace {
    fn new() -> Self {
        Self { paid: Mutex::new(Instant::now()) }
    }

    /// Takes `cost`, and waits if more than a second's worth was taken ahead.
    async fn take(&self, cost: u64) {
        let until = {
            let mut paid = self.paid.lock();
            let price = Duration::from_nanos(cost.saturating_mul(1_000_000_000 / BYTES_PER_SECOND));
            *paid = (*paid).max(Instant::now()) + price;
            *paid - Duration::from_secs(1)
        };
        if until > Instant::now() {
            sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_lost_packet_is_not_taken_for_a_bad_link_and_a_bad_link_is_seen_soon() {
        let mut recent = Recent::default();
        assert!(recent.add(3, 1).abs() < f32::EPSILON);
        let calm = (0..20).map(|second| recent.add(8, u64::from(second == 5))).fold(0.0, f32::max);
        assert!(calm < 0.05, "{calm}");
        let bad = (0..4).map(|_| recent.add(10, 3)).fold(0.0, |_, last| last);
        assert!(bad > 0.05, "{bad}");
        let healed = (0..60).map(|_| recent.add(8, 0)).fold(0.0, |_, last| last);
        assert!(healed < 0.01, "{healed}");
    }
}
