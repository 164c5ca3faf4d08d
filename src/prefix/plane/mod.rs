//! Who follows which worker, who tells of it, and whom this node goes by: entries and news in, changes and entries out.
//!
//! Of each worker one node, its home, finds out what it holds and tells the others; the next in line, the standby, finds it out
//! too and is silent. A node goes by the best-ranked live node that tells all there is to know, which may be itself. A new home
//! therefore takes nothing away: the others leave the old one when the new one says that it is complete.

mod choice;
mod claims;
mod copy;
mod lane;
mod report;
mod segments;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{Change, Claim, EngineCache, EngineCacheConfig, KvBatch, KvEvent, Predictor, Sequence, Source, Space};
use bytes::Bytes;
use smg_base::{PeerId, Timestamp, WorkerId};

pub use self::{
    lane::Stream,
    report::{Counts, StreamReport, WorkerReport},
    segments::Entry,
};

use self::{
    claims::{Heard, Ring},
    copy::{Copy, News, Use},
    lane::{Header, Key},
    segments::{Segments, cost},
};

/// How often there is news of what workers hold.
const PUBLISH_EVERY: Duration = Duration::from_millis(500);
/// The most that is told at once.
const PUBLISH_BYTES: usize = 16 << 10;

/// The same while there is much to catch up with, as after taking over a worker.
const CATCH_UP_EVERY: Duration = Duration::from_millis(50);
const CATCH_UP_BYTES: usize = 128 << 10;
/// From how many segments on.
const CATCH_UP_FROM: usize = 128;

/// How often there is news of claims.
const CLAIMS_EVERY: Duration = Duration::from_millis(100);

/// How long a new home may take to learn what the old one knows, before it is gone by all the same.
const TAKEOVER_PATIENCE: Duration = Duration::from_secs(10);

/// Workers that are being taken over from a live node at once.
const TAKEOVERS_MAX: usize = 2;

/// Memory of what all others tell.
const COPIES_BYTES_MAX: usize = 512 << 20;

/// Streams of one worker: its models in two spaces.
const STREAMS_MAX: usize = 128;

/// What a predicted worker is taken to have room for until somebody knows better.
const CAPACITY_UNKNOWN: u64 = 1 << 16;

/// How a worker tells what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Events {
    /// It does not.
    None,
    /// To all who listen.
    Published,
    /// To one alone: what it has told it tells nobody else.
    Drained,
}

/// Whether content is shared with other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// There are no other nodes.
    Alone,
    /// This node is one of a mesh.
    Mesh,
}

/// Something that follows.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Policies know a worker in this way from now on.
    SetSource {
        /// The worker.
        worker: WorkerId,
        /// Of which space.
        space: Space,
        /// In which way.
        source: Source,
    },
    /// Policies are to apply this.
    Feed {
        /// Whose content it is.
        stream: Stream,
        /// What became of it.
        change: Change,
    },
    /// An entry of this node's lane.
    Write(Entry),
    /// Begin to follow the events of a worker.
    Follow(WorkerId),
    /// End that.
    Unfollow(WorkerId),
}

/// What one node knows of what workers hold.
pub struct Plane {
    me: PeerId,
    sharing: Sharing,
    seed: u64,
    alive: BTreeSet<PeerId>,
    workers: BTreeMap<WorkerId, Watched>,
    peers: BTreeMap<PeerId, Peer>,
    ring: Ring,
    /// Workers of which there is something to tell, or that wait to be complete.
    open: BTreeSet<WorkerId>,
    published: Timestamp,
    claimed: Timestamp,
    /// With whom the next publication begins.
    turn: WorkerId,
    counts: Counts,
    effects: Vec<Effect>,
}

#[derive(Default)]
struct Peer {
    copies: BTreeMap<Stream, Copy>,
    heard: Heard,
}

struct Watched {
    events: Events,
    home: Option<PeerId>,
    standby: Option<PeerId>,
    cache: Option<EngineCache>,
    own: BTreeMap<Stream, Own>,
    used: BTreeMap<Stream, Used>,
}

/// What this node has found out itself.
struct Own {
    segments: Segments,
    predictor: Option<Predictor>,
    is_complete: bool,
    since: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Used {
    /// Itself.
    Own,
    /// Another node.
    Peer(PeerId),
    /// What it was when its node was last heard.
    Past,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Home,
    Standby,
    Reader,
}

impl Plane {
    /// One that knows nothing yet, of the node `me`. `seed` is the one that prompts are hashed with; `run` tells this run of the node from
    /// those before.
    pub fn new(me: PeerId, sharing: Sharing, seed: u64, run: u32) -> Self {
        Self {
            me,
            sharing,
            seed,
            alive: BTreeSet::from([me]),
            workers: BTreeMap::new(),
            peers: BTreeMap::new(),
            ring: Ring::new(run),
            open: BTreeSet::new(),
            published: Timestamp::ORIGIN,
            claimed: Timestamp::ORIGIN,
            turn: WorkerId::from_u128(0),
            counts: Counts::default(),
            effects: Vec::new(),
        }
    }

    /// What follows from all that was said since the last time.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// What has been counted.
    pub fn counts(&self) -> Counts {
        Counts { claims_sent: self.ring.sent, claims_dropped: self.ring.dropped, ..self.counts }
    }

    /// These are the workers there are.
    pub fn set_workers(&mut self, workers: &BTreeMap<WorkerId, Events>, now: Timestamp) {
        let gone: Vec<WorkerId> = self
            .workers
            .iter()
            .filter(|(worker, watched)| workers.get(worker) != Some(&watched.events))
            .map(|(worker, _)| *worker)
            .collect();
        let mut reach = BTreeMap::new();
        for worker in gone {
            if let Some(watched) = self.remove(worker) {
                reach.insert(worker, (watched.home, watched.standby));
            }
        }
        for (worker, events) in workers {
            if !self.workers.contains_key(worker) {
                let (home, standby) = reach.remove(worker).unwrap_or_default();
                self.workers.insert(*worker, Watched::new(*events, home, standby));
                for (space, source) in self.sources(*events) {
                    self.effects.push(Effect::SetSource { worker: *worker, space, source });
                }
                self.settle(*worker, now);
            }
        }
    }

    /// The mesh says who finds out about a worker.
    pub fn set_reach(&mut self, worker: WorkerId, home: Option<PeerId>, standby: Option<PeerId>, now: Timestamp) {
        let Some(watched) = self.workers.get_mut(&worker) else { return };
        if (watched.home, watched.standby) != (home, standby) {
            (watched.home, watched.standby) = (home, standby);
            self.settle(worker, now);
        }
    }

    /// These nodes live, this one among them.
    pub fn set_alive(&mut self, mut alive: BTreeSet<PeerId>, now: Timestamp) {
        alive.insert(self.me);
        if alive == self.alive {
            return;
        }
        self.alive = alive;
        self.peers.retain(|node, peer| self.alive.contains(node) || !peer.copies.is_empty());
        let workers: Vec<WorkerId> = self.workers.keys().copied().collect();
        workers.into_iter().for_each(|worker| self.settle(worker, now));
    }

    /// Entries of other nodes' lanes have changed.
    pub fn take_entries(&mut self, entries: Vec<(PeerId, Bytes, Option<Bytes>)>, now: Timestamp) {
        let mut news: BTreeMap<(PeerId, Stream), News> = BTreeMap::new();
        let mut claims: BTreeMap<PeerId, Vec<Bytes>> = BTreeMap::new();
        for (writer, key, value) in entries.into_iter().filter(|(writer, ..)| *writer != self.me) {
            match (Key::of(&key), value) {
                (Some(Key::Header(stream)), value) => {
                    let header = value.and_then(|value| Header::of(&value));
                    news.entry((writer, stream)).or_default().header = Some(header);
                }
                (Some(Key::Segment(stream, first)), value) => {
                    news.entry((writer, stream)).or_default().segments.push((first, value));
                }
                (Some(Key::Claims(_)), Some(value)) => claims.entry(writer).or_default().push(value),
                _ => {}
            }
        }
        for ((writer, stream), news) in news {
            self.take_news(writer, stream, news, now);
        }
        for (writer, values) in claims {
            let mut heard = Vec::new();
            let peer = self.peers.entry(writer).or_default();
            self.counts.claims_missed += peer.heard.take(values, &mut |stream, claim| heard.push((stream, claim)));
            for (stream, claim) in heard {
                self.predict(stream, &claim, now);
            }
        }
    }

    fn take_news(&mut self, writer: PeerId, stream: Stream, mut news: News, now: Timestamp) {
        if self.peers.values().flat_map(|peer| peer.copies.values()).map(Copy::bytes).sum::<usize>() > COPIES_BYTES_MAX
        {
            let before = news.segments.len();
            news.segments.retain(|(_, value)| value.is_none());
            self.counts.refused += (before - news.segments.len()) as u64;
        }
        let is_used =
            self.workers.get(&stream.worker).and_then(|watched| watched.used.get(&stream)) == Some(&Used::Peer(writer));
        let use_ = if is_used { Use::Followed } else { Use::Kept };
        let peer = self.peers.entry(writer).or_default();
        if !peer.copies.contains_key(&stream)
            && peer.copies.keys().filter(|other| other.worker == stream.worker).count() >= STREAMS_MAX
        {
            self.counts.refused += 1;
            return;
        }
        let copy = peer.copies.entry(stream).or_default();
        let was_complete = copy.is_complete();
        let mut changes = Vec::new();
        copy.take(news, use_, &mut changes);
        let is_complete = copy.is_complete();
        if copy.is_empty() {
            peer.copies.remove(&stream);
        }
        self.feed(stream, changes);
        if was_complete != is_complete {
            self.settle(stream.worker, now);
        }
    }

    /// This node sent a prompt to a worker whose content somebody predicts.
    pub fn claim(&mut self, stream: Stream, claim: &Claim, now: Timestamp) {
        if self.alive.len() > 1 {
            self.ring.push(stream, claim);
        }
        self.predict(stream, claim, now);
    }

    /// A worker has room for `chunks` of a stream that is predicted.
    pub fn resize(&mut self, stream: Stream, chunks: u64, now: Timestamp) {
        let mut changes = Vec::new();
        if let Some(predictor) = self.predictor(stream) {
            predictor.resize(chunks, &mut changes);
            self.found(stream, changes, now);
        }
    }

    /// The streams that are predicted here.
    pub fn predicted(&self) -> Vec<Stream> {
        let is_predicted = |(stream, own): (&Stream, &Own)| own.predictor.is_some().then_some(*stream);
        self.workers.values().flat_map(|watched| watched.own.iter().filter_map(is_predicted)).collect()
    }

    /// A worker that is followed has told something.
    pub fn take_batch(&mut self, worker: WorkerId, batch: KvBatch, now: Timestamp) {
        self.counts.batches += 1;
        let is_whole = batch.sequence == 0 || batch.events.iter().any(|event| matches!(event, KvEvent::Started));
        let rank = batch.rank;
        let mut changes = Vec::new();
        let Some(cache) = self.workers.get_mut(&worker).and_then(|watched| watched.cache.as_mut()) else { return };
        if matches!(cache.apply(batch, &mut changes), Sequence::Gap { .. }) {
            // Whoever follows a worker asks for what is missing, and says if it is lost. This should not come.
            self.counts.gaps += 1;
            cache.lost(rank, &mut changes);
        }
        self.found(events_of(worker), changes, now);
        if is_whole {
            self.complete(worker, events_of(worker), now);
        }
    }

    /// Some of what a worker told is lost for good.
    pub fn take_lost(&mut self, worker: WorkerId, rank: u32, now: Timestamp) {
        self.counts.lost += 1;
        let mut changes = Vec::new();
        let Some(cache) = self.workers.get_mut(&worker).and_then(|watched| watched.cache.as_mut()) else { return };
        cache.lost(rank, &mut changes);
        self.found(events_of(worker), changes, now);
    }

    /// Appends to the lane what is due, and lets new homes be complete that have waited long enough.
    pub fn tick(&mut self, now: Timestamp) {
        for worker in self.open.clone() {
            self.settle(worker, now);
        }
        let mut entries = Vec::new();
        if !self.ring.is_empty() && self.claimed + CLAIMS_EVERY <= now {
            self.claimed = now;
            self.ring.flush(&mut entries);
        }
        if self.published + self.pace() <= now && self.has_due(now) {
            let mut budget = if self.pace() == PUBLISH_EVERY { PUBLISH_BYTES } else { CATCH_UP_BYTES };
            self.published = now;
            let order: Vec<WorkerId> =
                self.open.range(self.turn..).chain(self.open.range(..self.turn)).copied().collect();
            for worker in order {
                let Some(watched) = self.workers.get_mut(&worker) else { continue };
                for (stream, own) in &mut watched.own {
                    budget = budget.saturating_sub(own.segments.flush(*stream, budget, now, &mut entries));
                }
                if budget == 0 {
                    self.turn = worker;
                    break;
                }
            }
        }
        self.counts.bytes_told += entries.iter().map(|entry| cost(entry) as u64).sum::<u64>();
        self.effects.extend(entries.into_iter().map(Effect::Write));
        let closed: Vec<WorkerId> = self.open.iter().filter(|worker| !self.is_open(**worker)).copied().collect();
        for worker in closed {
            self.open.remove(&worker);
        }
    }

    /// When [`Plane::tick`] has something to do.
    pub fn due(&self, now: Timestamp) -> Option<Timestamp> {
        let claims = (!self.ring.is_empty()).then(|| self.claimed + CLAIMS_EVERY);
        let owns = || self.open.iter().filter_map(|worker| self.workers.get(worker)).flat_map(|one| one.own.values());
        let told = owns().filter_map(|own| own.segments.due()).min().map(|due| due.max(self.published + self.pace()));
        let taken = owns().filter(|own| !own.is_complete).map(|own| own.since + TAKEOVER_PATIENCE).min();
        // Something that was due and waits for another all the same is looked at now and then.
        let taken = taken.map(|due| due.max(now + PUBLISH_EVERY));
        let waits = self.open.iter().any(|worker| self.waits(*worker)).then(|| now + PUBLISH_EVERY);
        [claims, told, taken, waits].into_iter().flatten().min()
    }

    /// How many chunks there are, of all workers.
    pub fn chunks(&self) -> usize {
        let of = |watched: &Watched| {
            let streams = watched.used.iter().map(|(stream, used)| self.report_of(watched, *stream, *used).chunks);
            streams.sum::<usize>()
        };
        self.workers.values().map(of).sum()
    }

    /// Shows how policies know a worker, and all that they are to hold, as for a policy that knows nothing yet.
    pub fn show(&self, worker: WorkerId, visit: &mut dyn FnMut(Effect)) {
        if let Some(watched) = self.workers.get(&worker) {
            for (space, source) in self.sources(watched.events) {
                visit(Effect::SetSource { worker, space, source });
            }
            for (stream, used) in &watched.used {
                let mut held = |after: Option<u64>, chunks: &[u64]| {
                    let change = Change::Held { after, chunks: chunks.to_vec() };
                    visit(Effect::Feed { stream: *stream, change });
                };
                match used {
                    Used::Own => {
                        if let Some(own) = watched.own.get(stream) {
                            own.segments.show(&mut held);
                        }
                    }
                    Used::Peer(node) => {
                        if let Some(copy) = self.copy(*node, *stream) {
                            copy.show(&mut held);
                        }
                    }
                    Used::Past => {}
                }
            }
        }
    }

    fn sources(&self, events: Events) -> [(Space, Source); 2] {
        let predicted = match self.sharing {
            Sharing::Mesh => Source::FedAndClaimed,
            Sharing::Alone => Source::Own,
        };
        let tokens = if events == Events::None { predicted } else { Source::Fed };
        [(Space::Text, predicted), (Space::Tokens, tokens)]
    }

    fn copy(&self, node: PeerId, stream: Stream) -> Option<&Copy> {
        self.peers.get(&node)?.copies.get(&stream)
    }

    /// Whether a live node beside this one tells all of a stream.
    fn is_told(&self, stream: Stream) -> bool {
        self.alive.iter().any(|node| self.copy(*node, stream).is_some_and(Copy::is_complete))
    }

    fn role(&self, watched: &Watched) -> Role {
        match (watched.home, watched.standby) {
            (Some(home), _) if home == self.me => Role::Home,
            (_, Some(standby)) if standby == self.me => Role::Standby,
            (None, _) if self.sharing == Sharing::Alone => Role::Home,
            _ => Role::Reader,
        }
    }

    fn predictor(&mut self, stream: Stream) -> Option<&mut Predictor> {
        self.workers.get_mut(&stream.worker)?.own.get_mut(&stream)?.predictor.as_mut()
    }

    /// Works a claim into what is predicted here.
    fn predict(&mut self, stream: Stream, claim: &Claim, now: Timestamp) {
        let Some(watched) = self.workers.get(&stream.worker) else { return };
        let is_mine = self.role(watched) != Role::Reader || watched.own.contains_key(&stream);
        if self.sharing == Sharing::Alone || !is_mine || is_of_events(watched.events, stream.space) {
            return;
        }
        if !watched.own.contains_key(&stream) {
            if watched.own.len() >= STREAMS_MAX {
                self.counts.refused += 1;
                return;
            }
            self.begin(stream, now);
            self.settle(stream.worker, now);
        }
        let Some(predictor) = self.predictor(stream) else { return };
        let mut changes = Vec::new();
        let is_known = predictor.claim(claim, &mut changes);
        self.counts.claims_unknown += u64::from(!is_known);
        self.found(stream, changes, now);
    }

    /// Begins to find out a stream, from what others tell of it.
    fn begin(&mut self, stream: Stream, now: Timestamp) {
        let is_predicted = self.workers.get(&stream.worker).is_some_and(|one| !is_of_events(one.events, stream.space));
        let mut segments = Segments::default();
        let mut predictor = is_predicted.then(|| Predictor::new(CAPACITY_UNKNOWN));
        if let Some(predictor) = &mut predictor
            && let Some(copy) = self
                .alive
                .iter()
                .filter_map(|node| self.copy(*node, stream))
                .max_by_key(|copy| (copy.is_complete(), copy.chunks()))
        {
            copy.show_all(&mut |change| {
                segments.apply(&change, now);
                predictor.adopt(&change);
            });
        }
        let is_complete = is_predicted || !self.is_told(stream);
        let own = Own { segments, predictor, is_complete, since: now };
        let Some(watched) = self.workers.get_mut(&stream.worker) else { return };
        if let Some(mut before) = watched.own.insert(stream, own) {
            let entries = before.segments.end_telling(stream);
            self.effects.extend(entries.into_iter().map(Effect::Write));
            if watched.used.get(&stream) == Some(&Used::Own) {
                watched.used.insert(stream, Used::Past);
            }
        }
    }

    /// This node has found out changes.
    fn found(&mut self, stream: Stream, changes: Vec<Change>, now: Timestamp) {
        let Some(watched) = self.workers.get_mut(&stream.worker) else { return };
        let Some(own) = watched.own.get_mut(&stream) else { return };
        changes.iter().for_each(|change| own.segments.apply(change, now));
        if own.segments.is_told() && !changes.is_empty() {
            self.open.insert(stream.worker);
        }
        if watched.used.get(&stream) == Some(&Used::Own) {
            self.feed(stream, changes);
        }
    }

    fn feed(&mut self, stream: Stream, changes: Vec<Change>) {
        self.effects.extend(changes.into_iter().map(|change| Effect::Feed { stream, change }));
    }

    /// Puts everything about a worker in order.
    fn settle(&mut self, worker: WorkerId, now: Timestamp) {
        let Some(watched) = self.workers.get(&worker) else { return };
        let role = self.role(watched);
        // Who has told goes on until whoever is to tell now does.
        let is_needed = watched.own.iter().any(|(stream, own)| {
            own.segments.is_told()
                && !watched.home.is_some_and(|home| {
                    self.alive.contains(&home) && self.copy(home, *stream).is_some_and(Copy::is_complete)
                })
        });
        let finds_out = role != Role::Reader || is_needed;
        // A node that is still needed listens as a standby does.
        let listener = if is_needed && role == Role::Reader { Role::Standby } else { role };
        self.settle_cache(worker, listener, now);
        if finds_out && self.sharing == Sharing::Mesh {
            self.settle_predicted(worker, now);
        }
        self.settle_complete(worker, now);
        if let Some(watched) = self.workers.get_mut(&worker)
            && self.sharing == Sharing::Mesh
        {
            for own in watched.own.values_mut() {
                if role == Role::Home {
                    own.segments.begin_telling();
                }
                if own.is_complete {
                    own.segments.complete();
                }
            }
        }
        self.choose_all(worker, role);
        if role != Role::Home && !is_needed {
            self.fall_silent(worker, role);
        }
        if self.is_open(worker) {
            self.open.insert(worker);
        }
    }

    /// Follows the worker's events, or no longer.
    fn settle_cache(&mut self, worker: WorkerId, role: Role, now: Timestamp) {
        let Some(watched) = self.workers.get(&worker) else { return };
        let stream = events_of(worker);
        let wants = match (watched.events, role) {
            (Events::None, _) => false,
            (_, Role::Home) => true,
            (Events::Published, Role::Standby) => true,
            (Events::Published, Role::Reader) => false,
            // What it has told one it tells no other, so the old home must stop at once.
            (Events::Drained, _) => false,
        };
        let is_takeover = self.is_told(stream) && role == Role::Home;
        match (wants, watched.cache.is_some()) {
            (true, false) if !is_takeover || self.takeovers() < TAKEOVERS_MAX => {
                self.begin(stream, now);
                if let Some(watched) = self.workers.get_mut(&worker) {
                    watched.cache = Some(EngineCache::new(self.seed, EngineCacheConfig::default()));
                }
                self.effects.push(Effect::Follow(worker));
            }
            // Others are being taken over; it is looked again when time has passed.
            (true, false) => drop(self.open.insert(worker)),
            (false, true) => {
                if let Some(watched) = self.workers.get_mut(&worker) {
                    watched.cache = None;
                }
                self.effects.push(Effect::Unfollow(worker));
            }
            _ => {}
        }
    }

    fn takeovers(&self) -> usize {
        let is_taken = |watched: &&Watched| {
            watched.cache.is_some()
                && self.role(watched) == Role::Home
                && watched.own.values().any(|own| !own.is_complete)
        };
        self.workers.values().filter(is_taken).count()
    }

    /// Predicts every stream that anybody tells of.
    fn settle_predicted(&mut self, worker: WorkerId, now: Timestamp) {
        let Some(watched) = self.workers.get(&worker) else { return };
        let first = Stream { worker, model: 0, space: Space::Text };
        let told: BTreeSet<Stream> = self
            .peers
            .values()
            .flat_map(|peer| peer.copies.range(first..).take_while(|(stream, _)| stream.worker == worker))
            .filter(|(stream, copy)| {
                copy.is_complete() && !is_of_events(watched.events, stream.space) && !watched.own.contains_key(stream)
            })
            .map(|(stream, _)| *stream)
            .collect();
        told.into_iter().take(STREAMS_MAX).for_each(|stream| self.begin(stream, now));
    }

    /// Lets own streams be complete that nobody else tells better, or that have waited long enough.
    fn settle_complete(&mut self, worker: WorkerId, now: Timestamp) {
        let Some(watched) = self.workers.get(&worker) else { return };
        let known = |stream: &Stream| {
            let copies = self.alive.iter().filter_map(|node| self.copy(*node, *stream));
            copies.filter(|copy| copy.is_complete()).map(Copy::chunks).max()
        };
        let is_ready = |(stream, own): (&Stream, &Own)| match known(stream) {
            None => true,
            Some(chunks) => {
                let has_caught_up = chunks > 0 && own.segments.len() >= chunks - chunks / 16;
                has_caught_up || now.since(own.since) >= TAKEOVER_PATIENCE
            }
        };
        let incomplete = watched.own.iter().filter(|(_, own)| !own.is_complete);
        let ready: Vec<Stream> = incomplete.filter(|one| is_ready(*one)).map(|(stream, _)| *stream).collect();
        if let Some(watched) = self.workers.get_mut(&worker) {
            for stream in ready {
                if let Some(own) = watched.own.get_mut(&stream) {
                    own.is_complete = true;
                }
            }
        }
    }

    fn complete(&mut self, worker: WorkerId, stream: Stream, now: Timestamp) {
        let own = self.workers.get_mut(&worker).and_then(|watched| watched.own.get_mut(&stream));
        if let Some(own) = own.filter(|own| !own.is_complete) {
            own.is_complete = true;
            self.settle(worker, now);
        }
    }

    fn remove(&mut self, worker: WorkerId) -> Option<Watched> {
        self.fall_silent(worker, Role::Reader);
        let watched = self.workers.remove(&worker)?;
        self.open.remove(&worker);
        if watched.cache.is_some() {
            self.effects.push(Effect::Unfollow(worker));
        }
        for peer in self.peers.values_mut() {
            for (_, copy) in peer.copies.iter_mut().filter(|(stream, _)| stream.worker == worker) {
                copy.leave();
            }
        }
        for stream in watched.used.keys() {
            self.effects.push(Effect::Feed { stream: *stream, change: Change::Cleared });
        }
        Some(watched)
    }

    fn is_open(&self, worker: WorkerId) -> bool {
        let Some(watched) = self.workers.get(&worker) else { return false };
        self.waits(worker) || watched.own.values().any(|own| !own.is_complete || own.segments.due().is_some())
    }

    /// Whether a worker is to be taken over when others have been.
    fn waits(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_some_and(|watched| {
            watched.events != Events::None && self.role(watched) == Role::Home && watched.cache.is_none()
        })
    }

    fn pace(&self) -> Duration {
        let owns = self.open.iter().filter_map(|worker| self.workers.get(worker)).flat_map(|one| one.own.values());
        let backlog: usize = owns.map(|own| own.segments.backlog()).sum();
        if backlog >= CATCH_UP_FROM { CATCH_UP_EVERY } else { PUBLISH_EVERY }
    }

    fn has_due(&self, now: Timestamp) -> bool {
        let mut owns = self.open.iter().filter_map(|worker| self.workers.get(worker)).flat_map(|one| one.own.values());
        owns.any(|own| own.segments.due().is_some_and(|due| due <= now))
    }
}

impl Watched {
    fn new(events: Events, home: Option<PeerId>, standby: Option<PeerId>) -> Self {
        Self { events, home, standby, cache: None, own: BTreeMap::new(), used: BTreeMap::new() }
    }
}

/// The stream of what a worker tells itself.
fn events_of(worker: WorkerId) -> Stream {
    Stream { worker, model: 0, space: Space::Tokens }
}

/// Whether this space of a worker is known by its events.
fn is_of_events(events: Events, space: Space) -> bool {
    events != Events::None && space == Space::Tokens
}

#[cfg(test)]
mod tests;
