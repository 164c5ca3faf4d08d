//! What nodes have at workers, and what engines say of themselves through their homes.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};
use smg_base::WorkerId;

use super::worker_of;
use crate::{EngineFigures, Ledger, NodeId, lanes::Change, wire::decode_value};

const LEDGER: u8 = b'l';
const ENGINE: u8 = b'e';

/// What an entry of the load plane is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoadKey {
    /// What its writer has at a worker.
    Ledger(WorkerId),
    /// What a worker's engine says.
    Engine(WorkerId),
}

impl LoadKey {
    /// As bytes.
    pub(crate) fn bytes(self) -> Bytes {
        let tag = match self {
            Self::Ledger(_) => LEDGER,
            Self::Engine(_) => ENGINE,
        };
        let mut bytes = BytesMut::with_capacity(17);
        bytes.put_u8(tag);
        bytes.put_u128_le(self.worker().as_u128());
        bytes.freeze()
    }

    /// Reads one; none if a newer program made it.
    pub(crate) fn of(key: &[u8]) -> Option<Self> {
        let (tag, worker) = key.split_first()?;
        match *tag {
            LEDGER => Some(Self::Ledger(worker_of(worker)?)),
            ENGINE => Some(Self::Engine(worker_of(worker)?)),
            _ => None,
        }
    }

    /// The worker.
    pub(crate) fn worker(self) -> WorkerId {
        match self {
            Self::Ledger(worker) | Self::Engine(worker) => worker,
        }
    }
}

/// The fold.
#[derive(Debug, Default)]
pub(crate) struct LoadPlane {
    ledgers: BTreeMap<WorkerId, BTreeMap<NodeId, Ledger>>,
    engines: BTreeMap<WorkerId, BTreeMap<NodeId, EngineFigures>>,
}

impl LoadPlane {
    /// Takes a change in; says what it is about.
    pub(crate) fn change(&mut self, writer: NodeId, change: &Change) -> Option<LoadKey> {
        let key = LoadKey::of(&change.key)?;
        let new = change.new.as_deref();
        match key {
            LoadKey::Ledger(worker) => put(&mut self.ledgers, worker, writer, new.and_then(decode_value)),
            LoadKey::Engine(worker) => put(&mut self.engines, worker, writer, new.and_then(decode_value)),
        }
        Some(key)
    }

    /// What all alive nodes but `me` have at a worker.
    pub(crate) fn others(&self, me: NodeId, worker: WorkerId, alive: &BTreeSet<NodeId>) -> Ledger {
        let ledgers = self.ledgers.get(&worker).into_iter().flatten();
        let counted = ledgers.filter(|(node, _)| **node != me && alive.contains(node));
        counted.fold(Ledger::default(), |sum, (_, ledger)| sum.plus(*ledger))
    }

    /// What `home` says of an engine.
    pub(crate) fn engine(&self, home: NodeId, worker: WorkerId) -> Option<EngineFigures> {
        self.engines.get(&worker)?.get(&home).copied()
    }

    /// Every worker of whose engine somebody speaks.
    pub(crate) fn engines(&self) -> impl Iterator<Item = WorkerId> {
        self.engines.keys().copied()
    }
}

fn put<V>(rows: &mut BTreeMap<WorkerId, BTreeMap<NodeId, V>>, worker: WorkerId, writer: NodeId, value: Option<V>) {
    let row = rows.entry(worker).or_default();
    match value {
        Some(value) => row.insert(writer, value),
        None => row.remove(&writer),
    };
    if row.is_empty() {
        rows.remove(&worker);
    }
}
