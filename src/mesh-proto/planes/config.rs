//! Shared configuration: the last writer wins by (Lamport counter, node); what is revoked stays so.

use std::collections::BTreeMap;

use bytes::Bytes;
use crdts::{CvRDT, LWWReg};

use super::Place;
use crate::{ConfigValue, NodeId, lanes::Change, wire::decode_value};

/// Orders all values of a key: no two have the same.
type Marker = (u64, NodeId);

/// Whether a key can only be set: a revocation that could be taken back by a late message would be none.
pub(crate) fn is_revocation(key: &str) -> bool {
    key.starts_with("revoked/")
}

/// The fold.
#[derive(Debug, Default)]
pub(crate) struct ConfigPlane {
    keys: BTreeMap<String, BTreeMap<Place, ConfigValue>>,
}

impl ConfigPlane {
    /// Takes a change in; says which key it is about.
    pub(crate) fn change(&mut self, place: Place, change: &Change) -> Option<String> {
        let key = std::str::from_utf8(&change.key).ok()?.to_owned();
        let values = self.keys.entry(key.clone()).or_default();
        match change.new.as_deref().and_then(decode_value) {
            Some(value) => values.insert(place, value),
            None => values.remove(&place),
        };
        if values.is_empty() {
            self.keys.remove(&key);
        }
        Some(key)
    }

    /// The value of a key; none if it has none, or it was deleted.
    pub(crate) fn value(&self, key: &str) -> Option<Bytes> {
        self.winner(key)?.val.map(Bytes::copy_from_slice)
    }

    /// The keys that have a value.
    pub(crate) fn keys(&self) -> Vec<String> {
        let set = |key: &&String| self.winner(key).is_some_and(|winner| winner.val.is_some());
        self.keys.keys().filter(set).cloned().collect()
    }

    /// The greatest Lamport counter among the values of a key.
    pub(crate) fn lamport(&self, key: &str) -> u64 {
        self.winner(key).map_or(0, |winner| winner.marker.0)
    }

    fn winner<'a>(&'a self, key: &str) -> Option<LWWReg<Option<&'a [u8]>, Marker>> {
        let mut winner: Option<LWWReg<Option<&[u8]>, Marker>> = None;
        for (place, ConfigValue { lamport, value }) in self.keys.get(key)? {
            if value.is_none() && is_revocation(key) {
                continue;
            }
            let register = LWWReg { val: value.as_deref(), marker: (*lamport, place.author) };
            match &mut winner {
                Some(winner) => winner.merge(register),
                None => winner = Some(register),
            }
        }
        winner
    }
}
