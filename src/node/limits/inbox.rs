//! What the bridge to the mesh has for the limits, until their driver takes it.

use std::collections::BTreeMap;

use bytes::Bytes;
use parking_lot::Mutex;
use smg_mesh_proto::{Kind, NodeId};
use tokio::sync::Notify;

/// An entry of a lane that changed: its new value, or none if it is gone.
pub(crate) type Entry = (NodeId, Kind, Bytes, Option<Bytes>);

/// Entries of lanes. It is as large as the lanes at most, for what is newer of one entry takes the place of what is older.
#[derive(Default)]
pub(crate) struct Inbox {
    entries: Mutex<BTreeMap<(NodeId, Kind, Bytes), Option<Bytes>>>,
    wake: Notify,
}

impl Inbox {
    /// An entry of a lane of limits or budgets has changed.
    pub(crate) fn put(&self, writer: NodeId, kind: Kind, key: Bytes, value: Option<Bytes>) {
        self.entries.lock().insert((writer, kind, key), value);
        self.wake.notify_one();
    }

    /// Who lives has changed.
    pub(crate) fn moved(&self) {
        self.wake.notify_one();
    }

    /// Everything since the last time.
    pub(super) fn take(&self) -> Vec<Entry> {
        let entries = std::mem::take(&mut *self.entries.lock());
        entries.into_iter().map(|((writer, kind, key), value)| (writer, kind, key, value)).collect()
    }

    /// Waits until there is something.
    pub(super) async fn filled(&self) {
        self.wake.notified().await;
    }
}
