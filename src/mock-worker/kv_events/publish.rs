//! The sockets: one that publishes, one that repeats.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use zeromq::{
    Endpoint, PubSocket, RouterSocket, Socket, SocketEvent, SocketRecv, SocketSend, ZmqMessage, util::PeerIdentity,
};

use super::journal::{Batch, Journal};
use crate::{config::KvEvents, error::Error};

/// What the publisher of an engine's KV events is and has done. Clones share it.
#[derive(Clone, Debug)]
pub struct KvPublisher(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    endpoint: String,
    replay: Option<String>,
    topic: String,
    journal: Arc<Journal>,
    streams: Mutex<Open>,
    replays: AtomicU64,
}

#[derive(Debug, Default)]
struct Open {
    peers: HashSet<PeerIdentity>,
    counts: EventStreams,
}

/// How many have listened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventStreams {
    /// Connections that are open.
    pub open: usize,
    /// The most that were open at once.
    pub most: usize,
    /// Connections so far.
    pub accepted: u64,
}

impl KvPublisher {
    /// Where it publishes, with the port that it got.
    pub fn endpoint(&self) -> &str {
        &self.0.endpoint
    }

    /// Where it repeats, if it does.
    pub fn replay(&self) -> Option<&str> {
        self.0.replay.as_deref()
    }

    /// What its messages begin with.
    pub fn topic(&self) -> &str {
        &self.0.topic
    }

    /// Who listens.
    pub fn streams(&self) -> EventStreams {
        self.0.streams.lock().counts
    }

    /// How many batches there were.
    pub fn batches(&self) -> u64 {
        self.0.journal.next_sequence()
    }

    /// How often something was asked for again.
    pub fn replays(&self) -> u64 {
        self.0.replays.load(Ordering::Relaxed)
    }

    pub(crate) fn to_json(&self) -> Value {
        let EventStreams { open, most, accepted } = self.streams();
        json!({
            "endpoint": self.endpoint(),
            "replay": self.replay(),
            "topic": self.topic(),
            "batches": self.batches(),
            "streams": { "open": open, "most": most, "accepted": accepted },
            "replays": self.replays(),
        })
    }

    fn saw(&self, event: SocketEvent) {
        let mut streams = self.0.streams.lock();
        match event {
            SocketEvent::Accepted(_, peer) => {
                streams.peers.insert(peer);
                streams.counts.accepted += 1;
            }
            // It may be told twice of one peer.
            SocketEvent::Disconnected(peer) => {
                streams.peers.remove(&peer);
            }
            _ => return,
        }
        streams.counts.open = streams.peers.len();
        streams.counts.most = streams.counts.most.max(streams.counts.open);
    }
}

/// Listens as `config` says, in tasks that `tasks` owns.
pub(crate) async fn bound(
    config: &KvEvents,
    journal: Arc<Journal>,
    tasks: &mut JoinSet<()>,
) -> Result<KvPublisher, Error> {
    let mut publishes = PubSocket::new();
    let seen = publishes.monitor();
    let endpoint = bind(&mut publishes, &config.endpoint).await?;
    let mut repeats = None;
    let mut replay = None;
    if let Some(asked) = &config.replay {
        let mut socket = RouterSocket::new();
        replay = Some(bind(&mut socket, asked).await?);
        repeats = Some(socket);
    }
    let publisher = KvPublisher(Arc::new(Shared {
        endpoint,
        replay,
        topic: config.topic.clone(),
        journal,
        streams: Mutex::default(),
        replays: AtomicU64::new(0),
    }));
    tasks.spawn(publish(publishes, seen, publisher.clone()));
    if let Some(socket) = repeats {
        tasks.spawn(repeat(socket, publisher.clone()));
    }
    Ok(publisher)
}

/// Binds a socket; where it listens, as a caller on this machine writes it.
async fn bind(socket: &mut impl Socket, endpoint: &str) -> Result<String, Error> {
    let everywhere = endpoint.replacen("//*:", "//0.0.0.0:", 1);
    let bound = socket.bind(&everywhere).await;
    let failed = |source| Error::BindEvents { endpoint: endpoint.to_owned(), source: Box::new(source) };
    match bound.map_err(failed)? {
        Endpoint::Tcp(host, port) => Ok(format!("tcp://{host}:{port}")),
        other => Ok(other.to_string()),
    }
}

/// Sends batches as they are closed.
async fn publish(
    mut socket: PubSocket,
    mut seen: impl futures_util::Stream<Item = SocketEvent> + Unpin,
    publisher: KvPublisher,
) {
    let topic = Bytes::from(publisher.0.topic.clone());
    let mut next = 0;
    loop {
        for Batch { sequence, payload } in publisher.0.journal.since(next) {
            next = sequence + 1;
            let message = frames([topic.clone(), number(sequence), payload]);
            if let Err(error) = socket.send(message).await {
                tracing::warn!(%error, "an event batch was not sent");
            }
        }
        tokio::select! {
            () = publisher.0.journal.changed() => {}
            Some(event) = seen.next() => publisher.saw(event),
        }
    }
}

/// Answers those who missed something with everything that is kept, from the number they name.
async fn repeat(mut socket: RouterSocket, publisher: KvPublisher) {
    loop {
        let asked = match socket.recv().await {
            Ok(message) => message.into_vec(),
            Err(error) => {
                tracing::warn!(%error, "the replay socket failed");
                return;
            }
        };
        let [caller, empty, first] = &asked[..] else { continue };
        let Ok(first) = <[u8; 8]>::try_from(&first[..]) else { continue };
        publisher.0.replays.fetch_add(1, Ordering::Relaxed);
        let batches = publisher.0.journal.since(u64::from_be_bytes(first));
        let topic = publisher.0.journal.repeats_topic().then(|| Bytes::from(publisher.0.topic.clone()));
        let answers = batches.into_iter().map(|batch| (topic.clone(), number(batch.sequence), batch.payload));
        let end = (topic.as_ref().map(|_| Bytes::new()), number(u64::MAX), Bytes::new());
        for (topic, sequence, payload) in answers.chain([end]) {
            let mut message = ZmqMessage::from(caller.clone());
            for frame in [Some(empty.clone()), topic, Some(sequence), Some(payload)].into_iter().flatten() {
                message.push_back(frame);
            }
            // It has gone away.
            if socket.send(message).await.is_err() {
                break;
            }
        }
    }
}

fn frames([first, second, third]: [Bytes; 3]) -> ZmqMessage {
    let mut message = ZmqMessage::from(first);
    message.push_back(second);
    message.push_back(third);
    message
}

/// A number as a frame; the largest reads as -1.
fn number(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}
