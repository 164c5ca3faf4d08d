//! Two places where newer news replace older ones while they wait: events on their way to the node, and writes of the node
//! that nobody waits for. So neither side can make the other hold more than one value for each thing.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use parking_lot::Mutex;
use smg_base::WorkerId;
use smg_mesh_proto::{Event, Kind, NodeId, Op};
use tokio::sync::Notify;

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Member(NodeId),
    Worker(WorkerId),
    Reach(WorkerId),
    PeerLoad(WorkerId),
    Engine(WorkerId),
    Config(String),
    Entry(NodeId, Kind, Bytes),
    Joined,
    Left,
    Refused,
    Written(u64),
}

fn subject(event: &Event) -> Subject {
    match event {
        Event::Member(member) => Subject::Member(member.node),
        Event::Forgotten(node) => Subject::Member(*node),
        Event::Joined { .. } => Subject::Joined,
        Event::Worker { worker, .. } => Subject::Worker(*worker),
        Event::Reach { worker, .. } => Subject::Reach(*worker),
        Event::PeerLoad { worker, .. } => Subject::PeerLoad(*worker),
        Event::Engine { worker, .. } => Subject::Engine(*worker),
        Event::Config { key, .. } => Subject::Config(key.clone()),
        Event::Entry { writer, kind, key, .. } => Subject::Entry(*writer, *kind, key.clone()),
        Event::Written { ticket, .. } => Subject::Written(ticket.0),
        Event::Left => Subject::Left,
        Event::Refused(_) => Subject::Refused,
    }
}

/// Values by what they are about, in the order in which that was first heard of. A newer value takes the place of an older.
#[derive(Debug)]
struct Newest<K, V> {
    order: VecDeque<K>,
    values: BTreeMap<K, V>,
}

impl<K, V> Default for Newest<K, V> {
    fn default() -> Self {
        Self { order: VecDeque::new(), values: BTreeMap::new() }
    }
}

impl<K: Ord + Clone, V> Newest<K, V> {
    fn put(&mut self, key: K, value: V) {
        if self.values.insert(key.clone(), value).is_none() {
            self.order.push_back(key);
        }
    }

    fn front(&self) -> Option<&V> {
        self.order.front().and_then(|key| self.values.get(key))
    }

    fn take(&mut self) -> Option<V> {
        let key = self.order.pop_front()?;
        self.values.remove(&key)
    }
}

/// Events that wait for the node to take them.
#[derive(Debug, Default)]
pub(crate) struct Outbox(Newest<Subject, Event>);

impl Outbox {
    /// Adds an event.
    pub(crate) fn put(&mut self, event: Event) {
        self.0.put(subject(&event), event);
    }

    /// The next one, which stays.
    pub(crate) fn front(&self) -> Option<&Event> {
        self.0.front()
    }

    /// Takes the next one out.
    pub(crate) fn take(&mut self) -> Option<Event> {
        self.0.take()
    }
}

/// What a write is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Assertion(WorkerId),
    Vote(WorkerId),
    Ledger(WorkerId),
    Engine(WorkerId),
    Config(String),
    Draining,
    Entry(Kind, Bytes),
}

fn target(op: &Op) -> Target {
    match op {
        Op::AddWorker { worker, .. } | Op::WithdrawWorker { worker } | Op::RemoveWorker { worker } => {
            Target::Assertion(*worker)
        }
        Op::Vote { worker, .. } => Target::Vote(*worker),
        Op::Ledger { worker, .. } => Target::Ledger(*worker),
        Op::Engine { worker, .. } => Target::Engine(*worker),
        Op::Config { key, .. } => Target::Config(key.clone()),
        Op::Draining(_) => Target::Draining,
        Op::Entry { kind, key, .. } => Target::Entry(*kind, key.clone()),
    }
}

/// Writes nobody waits for.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    waiting: Mutex<Newest<Target, Op>>,
    filled: Notify,
}

/// Things that may be written about before the mesh takes them up.
const POSTS_MAX: usize = 65_536;

/// Writes that the mesh takes up in one go: what comes from peers meanwhile waits for a millisecond or so.
const TAKEN_MAX: usize = 512;

/// Whether a write was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Posted {
    Taken,
    NoRoom,
}

impl Mailbox {
    /// Adds a write, which replaces one about the same.
    pub(crate) fn post(&self, op: Op) -> Posted {
        let target = target(&op);
        let mut waiting = self.waiting.lock();
        if waiting.order.len() >= POSTS_MAX && !waiting.values.contains_key(&target) {
            return Posted::NoRoom;
        }
        waiting.put(target, op);
        drop(waiting);
        self.filled.notify_one();
        Posted::Taken
    }

    /// Waits until there are some, and takes some of them. Safe to cancel.
    pub(crate) async fn taken(&self) -> Vec<Op> {
        loop {
            let some = self.take_some();
            if !some.is_empty() {
                return some;
            }
            self.filled.notified().await;
        }
    }

    fn take_some(&self) -> Vec<Op> {
        let mut waiting = self.waiting.lock();
        std::iter::from_fn(|| waiting.take()).take(TAKEN_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    use smg_mesh_proto::Vote;

    use super::*;

    fn config(key: &str, value: u8) -> Event {
        Event::Config { key: key.to_owned(), value: Some(Bytes::from(vec![value])) }
    }

    #[test]
    fn newer_events_take_the_place_of_older_ones() {
        let mut outbox = Outbox::default();
        for event in [config("a", 1), config("b", 1), Event::Joined { alone: true }, config("a", 2)] {
            outbox.put(event);
        }
        assert_eq!(outbox.front(), Some(&config("a", 2)));
        let all: Vec<_> = std::iter::from_fn(|| outbox.take()).collect();
        assert_eq!(all, [config("a", 2), config("b", 1), Event::Joined { alone: true }]);
        assert!(outbox.front().is_none());
    }

    #[tokio::test]
    async fn posts_are_bounded_and_the_newest_wins() {
        let mailbox = Mailbox::default();
        let worker = |number: usize| WorkerId::from_u128(number as u128);
        let vote = |number, vote| Op::Vote { worker: worker(number), vote: Some(vote) };
        for number in 0..POSTS_MAX {
            assert_eq!(mailbox.post(vote(number, Vote::Up)), Posted::Taken);
        }
        assert_eq!(mailbox.post(vote(POSTS_MAX, Vote::Up)), Posted::NoRoom);
        assert_eq!(mailbox.post(vote(0, Vote::Sick)), Posted::Taken);
        let mut all = mailbox.taken().await;
        assert_eq!(all.len(), TAKEN_MAX);
        while all.len() < POSTS_MAX {
            all.extend(mailbox.taken().await);
        }
        assert_eq!(all.len(), POSTS_MAX);
        assert!(matches!(all[0], Op::Vote { vote: Some(Vote::Sick), .. }));
        assert_eq!(mailbox.post(vote(POSTS_MAX, Vote::Up)), Posted::Taken);
    }
}
