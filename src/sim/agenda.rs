//! What is going to happen, in order of time and, within a moment, in the order in which it was decided.

use std::{cmp::Reverse, collections::BinaryHeap};

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

/// The queue of happenings. The heap holds only when and which, so that it moves little.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    heap: BinaryHeap<Reverse<Entry>>,
    happenings: Vec<Option<Happening>>,
    free: Vec<usize>,
    decided: u64,
}

/// When, in which order, and where the happening is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    at: Timestamp,
    order: u64,
    place: usize,
}

impl Agenda {
    pub(crate) fn at(&mut self, at: Timestamp, what: Happening) {
        self.decided += 1;
        let place = self.free.pop().unwrap_or(self.happenings.len());
        if place == self.happenings.len() {
            self.happenings.push(None);
        }
        self.happenings[place] = Some(what);
        self.heap.push(Reverse(Entry { at, order: self.decided, place }));
    }

    /// The next happening that is not later than `until`.
    pub(crate) fn next(&mut self, until: Timestamp) -> Option<(Timestamp, Happening)> {
        if self.heap.peek()?.0.at > until {
            return None;
        }
        let Reverse(entry) = self.heap.pop()?;
        self.free.push(entry.place);
        self.happenings[entry.place].take().map(|what| (entry.at, what))
    }
}
