//! How the plane stands, for metrics and operators.

use smg_base::{PeerId, WorkerId};

use super::{Events, Plane, Stream, Used, Watched, copy::Copy};
use crate::{EngineCache, EngineCacheStats, Source, Space};

/// What has been counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages of engines taken in.
    pub batches: u64,
    /// Of those, such that came after one that was missed.
    pub gaps: u64,
    /// Times that messages were missed for good.
    pub lost: u64,
    /// Times that this node went over to another node's word.
    pub switches: u64,
    /// Claims written for others.
    pub claims_sent: u64,
    /// Claims for which there was no room.
    pub claims_dropped: u64,
    /// Entries of claims that were overwritten before they were heard.
    pub claims_missed: u64,
    /// Claims that go on from something that is not held.
    pub claims_unknown: u64,
    /// Bytes written for others.
    pub bytes_told: u64,
    /// What others told beyond the bounds.
    pub refused: u64,
}

/// How one stream stands.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamReport {
    /// Which.
    pub stream: Stream,
    /// Whom this node goes by.
    pub by: Option<PeerId>,
    /// Chunks that are told to be held.
    pub chunks: usize,
    /// Whether whoever tells of it says that this is all.
    pub is_complete: bool,
}

/// How one worker stands.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerReport {
    /// Which.
    pub worker: WorkerId,
    /// How it tells what it holds.
    pub events: Events,
    /// How policies know what it holds.
    pub sources: [(Space, Source); 2],
    /// Who finds out what it holds and tells the others.
    pub home: Option<PeerId>,
    /// Who finds it out too, and is silent.
    pub standby: Option<PeerId>,
    /// Whether this node follows its events, and what came of it.
    pub cache: Option<EngineCacheStats>,
    /// Its content, by model and space.
    pub streams: Vec<StreamReport>,
}

impl Plane {
    /// How all workers stand.
    pub fn report(&self) -> Vec<WorkerReport> {
        let of = |(worker, watched): (&WorkerId, &Watched)| WorkerReport {
            worker: *worker,
            events: watched.events,
            sources: self.sources(watched.events),
            home: watched.home,
            standby: watched.standby,
            cache: watched.cache.as_ref().map(EngineCache::stats),
            streams: watched.used.iter().map(|(stream, used)| self.report_of(watched, *stream, *used)).collect(),
        };
        self.workers.iter().map(of).collect()
    }

    pub(super) fn report_of(&self, watched: &Watched, stream: Stream, used: Used) -> StreamReport {
        let (by, chunks, is_complete) = match used {
            Used::Own => {
                let own = watched.own.get(&stream);
                let (chunks, is_complete) = own.map_or((0, false), |own| (own.segments.len(), own.is_complete));
                (Some(self.me), chunks, is_complete)
            }
            Used::Peer(node) => {
                let copy = self.copy(node, stream);
                (Some(node), copy.map_or(0, Copy::chunks), copy.is_some_and(Copy::is_complete))
            }
            Used::Past => (None, 0, false),
        };
        StreamReport { stream, by, chunks, is_complete }
    }
}
