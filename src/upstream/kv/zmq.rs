//! Following a ZMQ publisher, one connection for each data-parallel rank.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use smg_base::hash;
use smg_fleet::{KvEndpoint, WorkerUrl};
use smg_prefix::{KvBatch, KvEvent};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
    time::timeout,
};

use super::{
    BACKOFF, End, KvNews, KvSource, News, Unwanted, published, target,
    zmtp::{Peer, Role, ZmtpError},
};
use crate::Upstream;

/// How long the other side may take to greet, and to go on with what it repeats.
const PATIENCE: Duration = Duration::from_secs(10);

/// The sequence that ends a replay.
const REPLAY_END: u64 = u64::MAX;

trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Connection for S {}

type Socket = Peer<Box<dyn Connection>>;

/// Follows all ranks.
pub(super) async fn follow(upstream: &Upstream, source: &KvSource, news: &News<'_>) {
    let rank = |rank| Rank { upstream, source, news, rank, last: None, floor: None };
    join_all((0..source.spec.ranks).map(|number| rank(number).follow())).await;
}

/// One rank's publisher, and how far it was heard.
struct Rank<'a> {
    upstream: &'a Upstream,
    source: &'a KvSource,
    news: &'a News<'a>,
    rank: u32,
    last: Option<Heard>,
    /// The last batch that was published on this connection, not repeated. A publisher never goes back: what has at most this
    /// number begins a new life. None if anything may still be what was already repeated.
    floor: Option<u64>,
}

/// The last batch that was heard. A batch has the time in it, so two lives of a publisher do not make equal ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Heard {
    sequence: u64,
    digest: u64,
}

impl Rank<'_> {
    async fn follow(mut self) {
        let random = smg_runtime::entropy();
        let mut attempt = 0;
        loop {
            let Err(end) = self.listen(&mut attempt).await;
            let End::Failed(error) = end else { return };
            tracing::debug!(worker = %self.source.worker.id, rank = self.rank, %error, "not listening to kv events");
            if self.news.tell(KvNews::Failed(error)).await.is_err() {
                return;
            }
            tokio::time::sleep(BACKOFF.delay(attempt, &random)).await;
            attempt = attempt.saturating_add(1);
        }
    }

    async fn listen(&mut self, attempt: &mut u32) -> Result<std::convert::Infallible, End> {
        let url = &self.source.worker.spec.url;
        let endpoint = self.source.spec.source(url).map_err(End::failed)?;
        let mut socket = self.connect(endpoint, Role::Subscriber { topic: &self.source.spec.topic }).await?;
        *attempt = 0;
        self.news.tell(KvNews::Connected).await?;
        // What is published meanwhile waits in the socket, and what it has no room for shows as a gap.
        self.floor = match self.catch_up().await? {
            Replayed::All => None,
            _ => self.last.map(|last| last.sequence),
        };
        loop {
            let message = socket.message().await.map_err(End::failed)?;
            let Some((sequence, payload)) = batch_of(&message) else {
                return Err(End::failed("a message is not a topic, a sequence and a payload"));
            };
            self.hear(sequence, payload).await?;
            self.floor = Some(sequence);
        }
    }

    /// Takes in a batch as it is published.
    async fn hear(&mut self, sequence: u64, payload: &Bytes) -> Result<(), End> {
        if self.last.is_some_and(|last| sequence > last.sequence.saturating_add(1)) {
            self.catch_up().await?;
        }
        match self.last {
            Some(last) if sequence > last.sequence.saturating_add(1) => {
                self.news.tell(KvNews::Lost { rank: self.rank }).await?;
                self.deliver(sequence, payload, Life::Same).await
            }
            Some(last) if sequence <= last.sequence => match self.floor {
                Some(floor) if sequence <= floor => self.deliver(sequence, payload, Life::New).await,
                _ => Ok(()),
            },
            _ => self.deliver(sequence, payload, Life::Same).await,
        }
    }

    /// Hears what was missed, if it is repeated anywhere.
    async fn catch_up(&mut self) -> Result<Replayed, Unwanted> {
        let known = self.last;
        let replayed = self.replay(known.map_or(0, |last| last.sequence), known).await?;
        if replayed != Replayed::OtherLife {
            return Ok(replayed);
        }
        // The last batch heard is not there any more: the engine was started anew, or too much has happened since.
        self.news.tell(KvNews::Lost { rank: self.rank }).await?;
        self.last = None;
        self.replay(0, None).await
    }

    /// Hears the batches from `first` on, which is `known` if it is still the same.
    async fn replay(&mut self, first: u64, known: Option<Heard>) -> Result<Replayed, Unwanted> {
        match self.try_replay(first, known).await {
            Ok(replayed) => Ok(replayed),
            Err(End::Unwanted) => Err(Unwanted),
            Err(End::Failed(error)) => {
                tracing::debug!(worker = %self.source.worker.id, %error, "kv events cannot be repeated");
                Ok(Replayed::Unavailable)
            }
        }
    }

    async fn try_replay(&mut self, first: u64, mut known: Option<Heard>) -> Result<Replayed, End> {
        let url = &self.source.worker.spec.url;
        let Some(endpoint) = self.source.spec.replay_source(url).map_err(End::failed)? else {
            return Ok(Replayed::Unavailable);
        };
        let mut socket = self.connect(endpoint, Role::Dealer).await?;
        socket.send(&[b"", &first.to_be_bytes()]).await.map_err(End::failed)?;
        loop {
            let message = timeout(PATIENCE, socket.message()).await;
            let message = message.map_err(|_| End::failed("a replay does not go on"))?.map_err(End::failed)?;
            let Some((sequence, payload)) = batch_of(&message) else {
                return Err(End::failed("a repeated message is not a sequence and a payload"));
            };
            if sequence == REPLAY_END {
                return Ok(if known.is_some() { Replayed::OtherLife } else { Replayed::All });
            }
            if let Some(known) = known.take() {
                if known != heard(sequence, payload) {
                    return Ok(Replayed::OtherLife);
                }
                continue;
            }
            match self.last {
                Some(last) if sequence <= last.sequence => continue,
                Some(last) if sequence > last.sequence.saturating_add(1) => {
                    self.news.tell(KvNews::Lost { rank: self.rank }).await?;
                }
                _ => {}
            }
            self.deliver(sequence, payload, Life::Same).await?;
        }
    }

    async fn deliver(&mut self, sequence: u64, payload: &Bytes, life: Life) -> Result<(), End> {
        self.last = Some(heard(sequence, payload));
        let Ok(KvBatch { mut events, .. }) = published::batch(payload, sequence, self.rank) else {
            tracing::warn!(worker = %self.source.worker.id, sequence, "a batch of kv events cannot be read");
            // What it removed is not known.
            return Ok(self.news.tell(KvNews::Lost { rank: self.rank }).await?);
        };
        if life == Life::New {
            events.insert(0, KvEvent::Started);
        }
        // The socket tells the rank: behind one address there may be an engine that counts its ranks from elsewhere.
        let batch = KvBatch { sequence, rank: self.rank, events };
        Ok(self.news.tell(KvNews::Batch(batch)).await?)
    }

    async fn connect(&self, endpoint: KvEndpoint, role: Role<'_>) -> Result<Socket, End> {
        let stream: Box<dyn Connection> = match endpoint {
            KvEndpoint::Ipc(path) => Box::new(UnixStream::connect(path).await.map_err(End::failed)?),
            KvEndpoint::Zmq(place) => {
                let place = of_rank(&place, self.rank).ok_or_else(|| End::failed("a rank has no port"))?;
                let target = target(self.upstream, self.source, place);
                Box::new(self.upstream.inner.connector.connect(&target).await.map_err(End::failed)?)
            }
            KvEndpoint::Grpc(_) | KvEndpoint::Drain(_) => return Err(End::failed("not a zmq endpoint")),
        };
        let greeted = timeout(PATIENCE, Peer::greet(stream, role)).await;
        greeted.map_err(|_| End::failed("the publisher does not greet"))?.map_err(|error: ZmtpError| End::failed(error))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replayed {
    /// To the end.
    All,
    /// What was known is not among it.
    OtherLife,
    /// Nobody answers there.
    Unavailable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Same,
    New,
}

fn heard(sequence: u64, payload: &[u8]) -> Heard {
    Heard { sequence, digest: hash::stable64(payload) }
}

/// The sequence and the payload of a message: its last two frames.
fn batch_of(message: &[Bytes]) -> Option<(u64, &Bytes)> {
    let [.., sequence, payload] = message else { return None };
    Some((u64::from_be_bytes(sequence[..].try_into().ok()?), payload))
}

/// The place of a rank: its port is so much higher.
fn of_rank(first: &WorkerUrl, rank: u32) -> Option<WorkerUrl> {
    let port = u32::from(first.port()).checked_add(rank).filter(|port| *port <= u32::from(u16::MAX))?;
    let host = if first.host().contains(':') { format!("[{}]", first.host()) } else { first.host().to_owned() };
    format!("{}://{host}:{port}", first.scheme()).parse().ok()
}
