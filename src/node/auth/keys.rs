//! The keys of a node: those of its flags and its file, and those that the admin API made, here or on another node.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use smg_auth::{Authenticator, KeyRecord, KeyState, Origin};
use smg_base::KeyId;
use smg_gateway::{Cluster, ClusterError, Keeper, Kept, KeyHash, KeyShelf, SharedKey};
use tokio::sync::watch;

use super::file;

/// How long a change may take from the mesh's word that all will know of it until it is in force here.
const PATIENCE: Duration = Duration::from_secs(2);

/// Keys by id.
type ById = BTreeMap<KeyId, Arc<KeyRecord>>;

/// The keys of a node.
pub(crate) struct Keys {
    authenticator: Arc<Authenticator>,
    place: Place,
    held: Mutex<Held>,
    /// One change at a time, where they go to a file.
    writing: tokio::sync::Mutex<()>,
    changed: watch::Sender<()>,
}

/// Where keys are kept that the admin API makes.
pub(crate) enum Place {
    /// On every node.
    Mesh(Arc<dyn Cluster>),
    /// In a file of this node's.
    File(PathBuf),
    /// Nowhere: none can be made.
    None,
}

#[derive(Default)]
struct Held {
    of_flags: ById,
    of_file: ById,
    made: ById,
}

impl Keys {
    pub(crate) fn new(authenticator: Arc<Authenticator>, place: Place) -> Self {
        let (held, writing) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { authenticator, place, held, writing, changed: watch::Sender::new(()) }
    }

    /// For a node without any.
    #[cfg(test)]
    pub(crate) fn of_nobody(clock: Arc<dyn smg_base::Clock>) -> Arc<Self> {
        Arc::new(Self::new(Arc::new(Authenticator::new(clock)), Place::None))
    }

    /// What knows their holders.
    pub(crate) fn authenticator(&self) -> Arc<Authenticator> {
        self.authenticator.clone()
    }

    /// Puts the keys of flags in force.
    pub(crate) fn take_flags(&self, records: Vec<KeyRecord>) {
        self.authenticator.set_keys(Origin::Flags, records.clone());
        self.held.lock().of_flags = by_id(records);
    }

    /// Puts the keys of the operator's file in force.
    pub(crate) fn take_file(&self, records: Vec<KeyRecord>) {
        self.authenticator.set_keys(Origin::File, records.clone());
        self.held.lock().of_file = by_id(records);
    }

    /// Puts the keys in force that the admin API has made.
    pub(crate) fn take_made(&self, records: Vec<KeyRecord>) {
        self.authenticator.set_keys(Origin::Shared, records.clone());
        self.held.lock().made = by_id(records);
        self.changed.send_replace(());
    }

    fn made(&self, id: &KeyId) -> Option<Arc<KeyRecord>> {
        self.held.lock().made.get(id).cloned()
    }

    /// Whether the record says of a revoked key that it is not. It was then read before another change took the key away,
    /// which is for good.
    fn would_revive(&self, record: &KeyRecord) -> bool {
        let is_revoked = |record: &KeyRecord| record.state == KeyState::Revoked;
        !is_revoked(record) && self.made(&record.id).is_some_and(|known| is_revoked(&known))
    }

    async fn share(&self, cluster: &dyn Cluster, record: KeyRecord) -> Result<(), ClusterError> {
        if self.would_revive(&record) {
            return Err(ClusterError::Revoked);
        }
        let mut changed = self.changed.subscribe();
        let value = serde_json::to_value(&record).map_err(|_| ClusterError::Invalid("the key cannot be written"))?;
        // First, because it stands whatever another node says of the key at the same time.
        if record.state == KeyState::Revoked {
            let name = KeyHash::from_bytes(record.hash).to_string();
            let revoked = SharedKey { section: "revoked".to_owned(), name };
            cluster.set_shared(revoked, Some(true.into())).await?;
        }
        let key = SharedKey { section: "key".to_owned(), name: record.id.to_string() };
        cluster.set_shared(key, Some(value)).await?;
        let in_force = async {
            while self.made(&record.id).as_deref() != Some(&record) {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(PATIENCE, in_force).await.is_err() {
            tracing::warn!(key = %record.id, "the mesh knows of a changed key and this node does not yet");
        }
        Ok(())
    }

    async fn write(&self, path: &std::path::Path, record: KeyRecord) -> Result<(), ClusterError> {
        let _one_at_a_time = self.writing.lock().await;
        if self.would_revive(&record) {
            return Err(ClusterError::Revoked);
        }
        let mut records: ById = self.held.lock().made.clone();
        records.insert(record.id.clone(), Arc::new(record));
        let records: Vec<KeyRecord> = records.into_values().map(Arc::unwrap_or_clone).collect();
        file::save(path, &records).await.map_err(|error| {
            tracing::error!(path = %path.display(), %error, "keys cannot be saved, nothing was changed");
            ClusterError::NotKept
        })?;
        self.take_made(records);
        Ok(())
    }
}

fn by_id(records: Vec<KeyRecord>) -> ById {
    records.into_iter().map(|record| (record.id.clone(), Arc::new(record))).collect()
}

/// The keys as the gateway sees them.
pub(crate) struct Shelf(pub(crate) Arc<Keys>);

impl KeyShelf for Shelf {
    fn all(&self) -> Vec<Kept> {
        let held = self.0.held.lock();
        // Where an id is there twice, the node's own settings are the last word.
        let sources = [(&held.made, Keeper::Api), (&held.of_file, Keeper::File), (&held.of_flags, Keeper::Flags)];
        let kept = sources.into_iter().flat_map(|(records, keeper)| {
            records.iter().map(move |(id, record)| (id.clone(), Kept { record: record.clone(), keeper }))
        });
        kept.collect::<BTreeMap<_, _>>().into_values().collect()
    }

    fn has_room(&self) -> bool {
        !matches!(self.0.place, Place::None)
    }

    fn keep(&self, record: KeyRecord) -> BoxFuture<'static, Result<(), ClusterError>> {
        let keys = self.0.clone();
        Box::pin(async move {
            match &keys.place {
                Place::Mesh(cluster) => keys.share(&**cluster, record).await,
                Place::File(path) => keys.write(path, record).await,
                Place::None => Err(ClusterError::NotKept),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use smg_base::ManualClock;

    use super::*;

    #[tokio::test]
    async fn a_change_that_was_under_way_does_not_bring_a_revoked_key_back() {
        let folder = tempfile::tempdir().expect("the folder for temporary files takes one");
        let path = folder.path().join("keys.json");
        let authenticator = Arc::new(Authenticator::new(Arc::new(ManualClock::default())));
        let keys = Arc::new(Keys::new(authenticator, Place::File(path.clone())));
        let shelf = Shelf(keys.clone());
        let (key, record) =
            KeyRecord::new("a".to_owned(), "acme", 0).with_new_key().expect("the system has randomness");
        shelf.keep(record.clone()).await.expect("there is room");
        assert!(keys.authenticator().identify(key.expose()).await.is_ok());
        let revoked = KeyRecord { state: KeyState::Revoked, ..record.clone() };
        // Both were made of the record as it was.
        let later = KeyRecord { expires: Some(u64::MAX), ..record.clone() };
        shelf.keep(revoked.clone()).await.expect("there is room");
        assert_eq!(shelf.keep(later).await, Err(ClusterError::Revoked));
        assert!(keys.authenticator().identify(key.expose()).await.is_err());
        assert_eq!(file::load(&path), Ok(vec![revoked.clone()]));
        let renamed = KeyRecord { name: "b".to_owned(), ..revoked };
        shelf.keep(renamed.clone()).await.expect("what is told of it may change");
        assert_eq!(file::load(&path), Ok(vec![renamed]));
    }
}
