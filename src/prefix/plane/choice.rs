//! Whom this node goes by, and when it falls silent itself.

use std::collections::BTreeSet;

use crate::{Change, Space};
use smg_base::{PeerId, WorkerId};

use super::{Effect, Plane, Role, Used, is_of_events};
use super::{copy::Copy, lane::Stream, segments::cost};

impl Plane {
    /// Goes by the best node for each stream.
    pub(super) fn choose_all(&mut self, worker: WorkerId, role: Role) {
        let Some(watched) = self.workers.get(&worker) else { return };
        let first = Stream { worker, model: 0, space: Space::Text };
        let told = self.peers.values().flat_map(|peer| {
            peer.copies.range(first..).map(|(stream, _)| *stream).take_while(|stream| stream.worker == worker)
        });
        let streams: BTreeSet<Stream> = watched.own.keys().chain(watched.used.keys()).copied().chain(told).collect();
        for stream in streams {
            self.choose(stream, role);
        }
    }

    fn choose(&mut self, stream: Stream, role: Role) {
        let Some(watched) = self.workers.get(&stream.worker) else { return };
        let ranked = [watched.home, watched.standby].into_iter().flatten().chain(self.alive.iter().copied());
        let is_good = |node: &PeerId| match *node == self.me {
            true => watched
                .own
                .get(&stream)
                .is_some_and(|own| own.is_complete && (role == Role::Home || own.segments.is_told())),
            false => self.alive.contains(node) && self.copy(*node, stream).is_some_and(Copy::is_complete),
        };
        let best = ranked.chain([self.me]).find(is_good);
        let used = watched.used.get(&stream).copied();
        let next = match (best, used) {
            (Some(node), _) if node == self.me => Used::Own,
            (Some(node), _) => Used::Peer(node),
            (None, None) => return,
            // It stays what it was, and what a dead node's lane loses is not lost here.
            (None, Some(Used::Peer(node))) if !self.alive.contains(&node) => Used::Past,
            (None, Some(_)) => return,
        };
        if Some(next) == used {
            return;
        }
        if let Some(Used::Peer(node)) = used
            && let Some(copy) = self.peers.get_mut(&node).and_then(|peer| peer.copies.get_mut(&stream))
        {
            copy.leave();
        }
        if let Some(watched) = self.workers.get_mut(&stream.worker) {
            watched.used.insert(stream, next);
        }
        if next == Used::Past {
            return;
        }
        let mut changes = Vec::new();
        if used.is_some() {
            self.counts.switches += 1;
            changes.push(Change::Cleared);
        }
        self.content(stream, next, &mut changes);
        self.feed(stream, changes);
    }

    fn content(&mut self, stream: Stream, used: Used, out: &mut Vec<Change>) {
        match used {
            Used::Own => {
                if let Some(own) = self.workers.get(&stream.worker).and_then(|watched| watched.own.get(&stream)) {
                    own.segments.show(&mut |after, chunks| out.push(Change::Held { after, chunks: chunks.to_vec() }));
                }
            }
            Used::Peer(node) => {
                if let Some(copy) = self.peers.get_mut(&node).and_then(|peer| peer.copies.get_mut(&stream)) {
                    copy.follow(out);
                }
            }
            Used::Past => {}
        }
    }

    /// Tells nothing of a worker any more; who only reads no longer finds anything out either.
    pub(super) fn fall_silent(&mut self, worker: WorkerId, role: Role) {
        let Some(watched) = self.workers.get_mut(&worker) else { return };
        let mut entries = Vec::new();
        for (stream, own) in &mut watched.own {
            entries.append(&mut own.segments.end_telling(*stream));
        }
        let is_followed = watched.cache.is_some();
        watched
            .own
            .retain(|stream, _| role == Role::Standby && (is_followed || !is_of_events(watched.events, stream.space)));
        for (stream, used) in &mut watched.used {
            if *used == Used::Own && !watched.own.contains_key(stream) {
                *used = Used::Past;
            }
        }
        self.counts.bytes_told += entries.iter().map(|entry| cost(entry) as u64).sum::<u64>();
        self.effects.extend(entries.into_iter().map(Effect::Write));
    }
}
