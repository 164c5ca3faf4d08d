//! What the bridge to the mesh has for the plane of prefixes, until that takes it.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use parking_lot::Mutex;
use smg_mesh_proto::NodeId;
use tokio::sync::Notify;

/// Entries of lanes and word of other changes. It is as large as the lanes at most, for what is newer of one entry takes the
/// place of what is older.
#[derive(Default)]
pub(crate) struct Inbox {
    entries: Mutex<BTreeMap<(NodeId, Bytes), Option<Bytes>>>,
    has_moved: AtomicBool,
    wake: Notify,
}

impl Inbox {
    /// An entry of a lane of prefixes has changed.
    pub(crate) fn put(&self, writer: NodeId, key: Bytes, value: Option<Bytes>) {
        self.entries.lock().insert((writer, key), value);
        self.wake.notify_one();
    }

    /// Who lives, or who finds out about a worker, has changed.
    pub(crate) fn moved(&self) {
        self.has_moved.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Whether that was so since this was last asked.
    pub(super) fn take_moved(&self) -> bool {
        self.has_moved.swap(false, Ordering::AcqRel)
    }

    /// Requests are under way.
    pub(crate) fn nudge(&self) {
        self.wake.notify_one();
    }

    /// Everything since the last time.
    pub(super) fn take(&self) -> Vec<(NodeId, Bytes, Option<Bytes>)> {
        let entries = std::mem::take(&mut *self.entries.lock());
        entries.into_iter().map(|((writer, key), value)| (writer, key, value)).collect()
    }

    /// Waits until there is something.
    pub(super) async fn filled(&self) {
        self.wake.notified().await;
    }
}
