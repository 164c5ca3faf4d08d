//! Telling who presents a credential.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use smg_base::{Clock, map::StableMap};
use subtle::ConstantTimeEq;

use crate::{
    denied::Denied,
    key::{KeyRecord, KeyState, hash_of},
    principal::{Principal, Via},
    provider::Provider,
    token,
};

/// Where keys come from. Where a key is there twice, the later of these is the last word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The admin API, on this node or another.
    Shared,
    /// The file that the node's settings name.
    File,
    /// Flags and variables.
    Flags,
}

/// Knows whose credentials are whose. A look-up takes no lock.
pub struct Authenticator {
    known: ArcSwap<Known>,
    origins: Mutex<BTreeMap<Origin, Vec<KeyRecord>>>,
    provider: Option<Arc<Provider>>,
    clock: Arc<dyn Clock>,
}

/// Keys by their hash. Where a hash stands in the map follows from the key, so how long a look-up takes tells nobody how much of
/// a guess was right.
type Known = StableMap<[u8; 32], Entry>;

struct Entry {
    hash: [u8; 32],
    expires: Option<u64>,
    state: KeyState,
    principal: Arc<Principal>,
}

/// Longest key that is looked at.
const KEY_BYTES_MAX: usize = 4_096;

impl Authenticator {
    /// One that knows nobody yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { known: ArcSwap::default(), origins: Mutex::default(), provider: None, clock }
    }

    /// The same, which also believes what this provider signs.
    #[must_use]
    pub fn with_provider(self, provider: Arc<Provider>) -> Self {
        Self { provider: Some(provider), ..self }
    }

    /// Replaces the keys of one origin.
    pub fn set_keys(&self, origin: Origin, records: Vec<KeyRecord>) {
        let mut origins = self.origins.lock();
        origins.insert(origin, records);
        let known: Known = origins.values().flatten().map(|record| (record.hash, Entry::new(record))).collect();
        self.known.store(Arc::new(known));
    }

    /// Whether it knows nobody, so that there is nothing to ask callers for.
    pub fn is_open(&self) -> bool {
        self.provider.is_none() && self.known.load().is_empty()
    }

    /// Whether a token can make somebody an operator.
    pub fn believes_operators(&self) -> bool {
        self.provider.as_ref().is_some_and(|provider| provider.names_operators())
    }

    /// Who presents this credential. Nothing is waited for, unless a token names a key that the provider may have made since it
    /// was last asked.
    pub async fn identify(&self, offered: &str) -> Result<Arc<Principal>, Denied> {
        match &self.provider {
            Some(provider) if token::is_token(offered) => provider.identify(offered).await,
            _ => self.by_key(offered),
        }
    }

    fn by_key(&self, offered: &str) -> Result<Arc<Principal>, Denied> {
        if offered.len() > KEY_BYTES_MAX {
            return Err(Denied::Unknown);
        }
        let hash = hash_of(offered);
        let known = self.known.load();
        let entry = known.get(&hash).filter(|entry| entry.hash.ct_eq(&hash).into()).ok_or(Denied::Unknown)?;
        let now = self.clock.unix_ms() / 1_000;
        match entry.state {
            KeyState::Revoked => Err(Denied::Revoked),
            KeyState::Active if entry.expires.is_some_and(|expires| expires <= now) => Err(Denied::Expired),
            KeyState::Active => Ok(entry.principal.clone()),
        }
    }
}

impl Entry {
    fn new(record: &KeyRecord) -> Self {
        let principal = Principal {
            tenant: record.tenant.clone(),
            key: Some(record.id.clone()),
            name: record.name.as_str().into(),
            role: record.role,
            models: record.models.clone(),
            scopes: record.scopes.clone(),
            class: record.class.clone(),
            via: Via::Key,
        };
        Self { hash: record.hash, expires: record.expires, state: record.state, principal: Arc::new(principal) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use smg_base::{ManualClock, Secret};

    use super::*;

    fn record(key: &str) -> KeyRecord {
        KeyRecord { id: key.into(), ..KeyRecord::new(key.to_owned(), "acme", 0) }.of_key(&Secret::new(key))
    }

    #[tokio::test]
    async fn keys_are_known_until_they_expire_or_are_revoked() {
        let clock = Arc::new(ManualClock::default());
        let authenticator = Authenticator::new(clock.clone());
        assert!(authenticator.is_open());
        let now = clock.unix_ms() / 1_000;
        let expiring = KeyRecord { expires: Some(now + 5), ..record("b") };
        authenticator.set_keys(Origin::File, vec![record("a"), expiring]);
        assert!(!authenticator.is_open());
        let denied = async |key: &str| authenticator.identify(key).await.map(|who| who.key.clone()).err();
        assert_eq!(denied("a").await, None);
        assert_eq!(denied("b").await, None);
        assert_eq!(denied("c").await, Some(Denied::Unknown));
        assert_eq!(denied(&"a".repeat(KEY_BYTES_MAX + 1)).await, Some(Denied::Unknown));
        clock.advance(Duration::from_secs(5));
        assert_eq!(denied("b").await, Some(Denied::Expired));
        authenticator.set_keys(Origin::Shared, vec![record("c")]);
        assert_eq!(denied("c").await, None);
        authenticator.set_keys(Origin::Shared, vec![KeyRecord { state: KeyState::Revoked, ..record("c") }]);
        assert_eq!(denied("c").await, Some(Denied::Revoked));
        authenticator.set_keys(Origin::File, Vec::new());
        assert_eq!(denied("a").await, Some(Denied::Unknown));
    }
}
