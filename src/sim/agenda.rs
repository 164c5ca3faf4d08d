//! What is going to happen, in order of time and, within a moment, in the order in which it was decided.

use std::{cmp::Ordering, collections::BinaryHeap};

use bytes::Bytes;
use smg_base::Timestamp;
use smg_mesh_proto::{Class, Gone, Input, NodeId};

/// Something that happens at a moment.
#[derive(Debug)]
pub(crate) enum Happening {
    /// A process is started for the first time.
    Start { place: usize },
    /// A process ends because it left or was refused.
    Quit { place: usize, generation: u32 },
    /// A process is given something, if it is still the same process.
    Give { place: usize, generation: u32, input: Input },
    /// The time a process asked for.
    Tick { place: usize, generation: u32 },
    /// A process is told what its connections are like.
    Vitals { place: usize, generation: u32 },
    /// A batch reaches the disk.
    Written { place: usize, generation: u32 },
    /// The answer to a dial comes back.
    Handshake(Dial),
    /// The other side of a handshake is done as well.
    Accepted { connection: usize },
    /// A frame reaches one side of a connection.
    Arrive { connection: usize, side: usize, frame: Frame },
    /// One side learns that its connection has ended.
    Ended { connection: usize, side: usize, gone: Gone },
    /// One side has heard nothing since a moment.
    Idle { connection: usize, side: usize, since: Timestamp },
    /// The other end says that it knows nothing of the connection.
    Reset { connection: usize, side: usize },
    /// A fault of the plan begins.
    FaultBegins { fault: usize },
    /// It is over.
    FaultEnds { fault: usize },
    /// An operation of the plan.
    Asked { operation: usize },
    /// A process in hostile hands sends something.
    Mischief { fault: usize },
    /// The whole cluster is looked at.
    Look,
}

/// A connection being made.
#[derive(Clone, Debug)]
pub(crate) struct Dial {
    pub(crate) place: usize,
    pub(crate) generation: u32,
    pub(crate) target: usize,
    pub(crate) expect: Option<NodeId>,
    pub(crate) begun: Timestamp,
}

/// A frame under way.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) class: Class,
    /// Counts the frames of the long stream; nothing elsewhere.
    pub(crate) number: u64,
    pub(crate) bytes: Bytes,
}

/// The queue of happenings.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    heap: BinaryHeap<Entry>,
    decided: u64,
}

impl Agenda {
    pub(crate) fn at(&mut self, at: Timestamp, what: Happening) {
        self.decided += 1;
        self.heap.push(Entry { at, order: self.decided, what });
    }

    /// The next happening that is not later than `until`.
    pub(crate) fn next(&mut self, until: Timestamp) -> Option<(Timestamp, Happening)> {
        if self.heap.peek()?.at > until {
            return None;
        }
        self.heap.pop().map(|entry| (entry.at, entry.what))
    }
}

#[derive(Debug)]
struct Entry {
    at: Timestamp,
    order: u64,
    what: Happening,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    // The heap keeps the greatest on top.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}
