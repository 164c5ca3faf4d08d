//! Following what engines tell of their KV caches: published over ZMQ, streamed over gRPC, or given away when asked.
//!
//! [`follow`] connects, reads and decodes, and hands on what it understood in the order in which it happened. What it missed
//! it asks for again where the engine can repeat, and otherwise says that it is lost. Nothing waits here: who takes the
//! news slowly slows down the reading, then the sender, which drops what it must, and that shows as a gap.
//!
//! What it deliberately does not know: what a cache holds. That is `prefix::EngineCache`.

mod drain;
mod drained;
#[cfg(test)]
mod engine_tests;
mod grpc;
mod msgpack;
mod published;
mod streamed;
#[cfg(test)]
mod tests;
mod zmq;
mod zmtp;

use std::{sync::Arc, time::Duration};

use smg_base::{Backoff, WorkerId};
use smg_fleet::{FleetError, KvEndpoint, KvEventsSpec, Origin, Worker};
use smg_prefix::KvBatch;
use smg_runtime::Sender;

use crate::{Upstream, connect::Target};

/// Waits between attempts to connect.
const BACKOFF: Backoff =
    Backoff { initial: Duration::from_millis(200), max: Duration::from_secs(15), multiplier: 2.0, jitter: 0.2 };

/// What an engine wrote is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the events cannot be read")]
pub(crate) struct Malformed;

/// Whose events to follow.
#[derive(Clone, Debug)]
pub struct KvSource {
    /// The worker; its URL, its key and who brought it in decide where connections may go.
    pub worker: Arc<Worker>,
    /// Where it tells; usually [`Worker::kv_events`].
    pub spec: KvEventsSpec,
}

/// What is new of an engine's cache.
#[derive(Clone, Debug, PartialEq)]
pub enum KvNews {
    /// It told. Batches of a rank come in order and without gaps; one that begins a new life of the engine says so.
    Batch(KvBatch),
    /// It told something that nobody heard and that it does not repeat.
    Lost {
        /// Of which rank.
        rank: u32,
    },
    /// It is listened to.
    Connected,
    /// It is not listened to; another attempt follows.
    Failed(
        /// Why.
        String,
    ),
}

/// Where news go to, and whose they are.
struct News<'a> {
    out: &'a Sender<(WorkerId, KvNews)>,
    worker: WorkerId,
}

/// Nobody takes the news any more.
#[derive(Debug)]
struct Unwanted;

impl News<'_> {
    async fn tell(&self, news: KvNews) -> Result<(), Unwanted> {
        self.out.send((self.worker, news)).await.map_err(|_| Unwanted)
    }
}

/// Why listening ended.
#[derive(Debug)]
enum End {
    Unwanted,
    Failed(String),
}

impl From<Unwanted> for End {
    fn from(Unwanted: Unwanted) -> Self {
        Self::Unwanted
    }
}

impl End {
    fn failed(error: impl ToString) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Follows a worker's events until the receiver is gone; connects again when a connection is lost. May be dropped at any
/// time.
pub async fn follow(upstream: Upstream, source: KvSource, out: Sender<(WorkerId, KvNews)>) {
    let worker = source.worker.id;
    let news = News { out: &out, worker };
    let following = async {
        match endpoint(&source) {
            Err(error) => drop(news.tell(KvNews::Failed(error.to_string())).await),
            Ok(KvEndpoint::Zmq(_) | KvEndpoint::Ipc(_)) => zmq::follow(&upstream, &source, &news).await,
            Ok(KvEndpoint::Grpc(place)) => {
                let target = target(&upstream, &source, place);
                grpc::follow(&upstream, &source, target, &news).await;
            }
            Ok(KvEndpoint::Drain(path)) => drain::follow(&upstream, &source, path, &news).await,
        }
        // An endpoint that cannot be used does not become usable.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = out.closed() => {}
        () = following => {}
    }
}

/// Why an endpoint is not used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Spec(#[from] FleetError),
    #[error("ipc:// endpoints are for workers from flags and files")]
    Ipc,
}

fn endpoint(source: &KvSource) -> Result<KvEndpoint, Unusable> {
    let url = &source.worker.spec.url;
    let endpoint = source.spec.source(url)?;
    let is_ipc = |endpoint: &KvEndpoint| matches!(endpoint, KvEndpoint::Ipc(_));
    let replay = source.spec.replay_source(url)?;
    let is_operators = matches!(source.worker.origin, Origin::Flag | Origin::File);
    // A path on this machine is not for others to choose.
    if !is_operators && (is_ipc(&endpoint) || replay.as_ref().is_some_and(is_ipc)) {
        return Err(Unusable::Ipc);
    }
    Ok(endpoint)
}

/// A place under the rules for the worker.
fn target(upstream: &Upstream, source: &KvSource, url: smg_fleet::WorkerUrl) -> Target {
    Target { url, rules: upstream.inner.rules(source.worker.origin).clone() }
}
