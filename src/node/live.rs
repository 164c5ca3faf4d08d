//! The settings in force: this node's own from flags and file, with those on top that all nodes of the mesh share.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use parking_lot::Mutex;
use smg_auth::{KeyRecord, KeyState};
use smg_base::ModelId;
use smg_fleet::{Fleet, FleetError};
use smg_gateway::{Gateway, KeyHash, Settings, SharedSettings};

use crate::{auth::Keys, config::Config, mesh::Shared, settings};

/// Puts settings in force, whichever part of them has changed.
pub(crate) struct Live {
    gateway: Arc<Gateway>,
    fleet: Arc<Fleet>,
    keys: Arc<Keys>,
    parts: Mutex<Parts>,
}

struct Parts {
    settings: Settings,
    aliases: BTreeMap<ModelId, ModelId>,
    /// Models whose policy this node's own file says.
    own_policies: BTreeSet<ModelId>,
    shared: Shared,
}

impl Parts {
    fn of(config: &Config, shared: Shared) -> Self {
        Self {
            settings: settings::gateway(config),
            aliases: config.aliases.clone(),
            own_policies: config.models.iter().map(|model| model.id.clone()).collect(),
            shared,
        }
    }
}

impl Live {
    /// The settings of `config` are in force already.
    pub(crate) fn new(gateway: Arc<Gateway>, fleet: Arc<Fleet>, keys: Arc<Keys>, config: &Config) -> Self {
        Self { gateway, fleet, keys, parts: Mutex::new(Parts::of(config, Shared::default())) }
    }

    /// Puts the aliases of `config` in force. Changes nothing when they cannot be.
    pub(crate) fn take_aliases(&self, config: &Config) -> Result<(), FleetError> {
        let shared = self.parts.lock().shared.aliases.clone();
        set_aliases(&self.fleet, &config.aliases, shared)
    }

    /// Puts everything else of `config` in force.
    pub(crate) fn take_config(&self, config: &Config) {
        let mut parts = self.parts.lock();
        *parts = Parts::of(config, std::mem::take(&mut parts.shared));
        self.gateway.reconfigure(parts.combined());
    }

    /// Puts in force what all nodes share.
    pub(crate) fn take_shared(&self, shared: Shared) {
        let mut parts = self.parts.lock();
        if parts.shared == shared {
            return;
        }
        if parts.shared.aliases != shared.aliases
            && let Err(error) = set_aliases(&self.fleet, &parts.aliases, shared.aliases.clone())
        {
            tracing::warn!(%error, "the shared aliases cannot be used here");
        }
        if parts.shared.keys != shared.keys || parts.shared.revoked != shared.revoked {
            self.keys.take_made(made(&shared));
        }
        parts.shared = shared;
        self.gateway.reconfigure(parts.combined());
    }
}

impl Parts {
    fn combined(&self) -> Settings {
        let shared = &self.shared;
        let policies = shared.policies.iter().filter(|(model, _)| !self.own_policies.contains(*model));
        Settings {
            shared: SharedSettings {
                policies: policies.map(|(model, policy)| (model.clone(), *policy)).collect(),
                sticky: shared.sticky.iter().map(|(key, worker)| (key.as_str(), *worker)).collect(),
                revoked: shared.revoked.clone(),
            },
            ..self.settings.clone()
        }
    }
}

/// The keys that the admin API has made. A revocation stands whatever another node wrote of the key at the same time.
fn made(shared: &Shared) -> Vec<KeyRecord> {
    let is_revoked = |record: &KeyRecord| shared.revoked.contains(&KeyHash::from_bytes(record.hash));
    let in_force = |record: &KeyRecord| match is_revoked(record) {
        true => KeyRecord { state: KeyState::Revoked, ..record.clone() },
        false => record.clone(),
    };
    shared.keys.values().map(in_force).collect()
}

/// Own aliases with the shared ones on top. Of the shared ones, those that contradict what is there are left out: a mistake
/// made elsewhere must not take this node's own away.
fn set_aliases(
    fleet: &Fleet,
    own: &BTreeMap<ModelId, ModelId>,
    mut shared: BTreeMap<ModelId, Option<ModelId>>,
) -> Result<(), FleetError> {
    loop {
        let mut aliases = own.clone();
        for (alias, model) in &shared {
            match model {
                Some(model) => aliases.insert(alias.clone(), model.clone()),
                None => aliases.remove(alias),
            };
        }
        let Err(error) = fleet.set_aliases(aliases) else { return Ok(()) };
        let culprit =
            culprits(&error).into_iter().flatten().find(|name| shared.get(*name).is_some_and(Option::is_some));
        let Some(culprit) = culprit.cloned() else { return Err(error) };
        tracing::warn!(alias = %culprit, %error, "a shared alias cannot be used here");
        shared.remove(&culprit);
    }
}

/// The aliases of which one has to go.
fn culprits(error: &FleetError) -> [Option<&ModelId>; 2] {
    match error {
        FleetError::AliasIsModel(alias) | FleetError::AliasTaken { alias, .. } => [Some(alias), None],
        FleetError::AliasOfAlias { alias, target } => [Some(alias), Some(target)],
        _ => [None, None],
    }
}

#[cfg(test)]
mod tests {
    use smg_fleet::FleetConfig;

    use super::*;

    #[test]
    fn a_key_that_was_revoked_is_so_whatever_its_record_says() {
        let record = |id: &str, byte: u8| KeyRecord {
            id: id.into(),
            hash: [byte; 32],
            ..KeyRecord::new(id.to_owned(), "acme", 0)
        };
        let shared = Shared {
            keys: [("a".to_owned(), record("a", 1)), ("b".to_owned(), record("b", 2))].into(),
            revoked: [KeyHash::from_bytes([2; 32])].into(),
            ..Shared::default()
        };
        let states: Vec<KeyState> = made(&shared).iter().map(|record| record.state).collect();
        assert_eq!(states, [KeyState::Active, KeyState::Revoked]);
    }

    #[test]
    fn shared_aliases_go_over_own_ones_unless_they_contradict() {
        let own = BTreeMap::from([("a".into(), "m".into()), ("b".into(), "m".into())]);
        let check = |shared: &[(&str, Option<&str>)], expected: &[(&str, &str)]| {
            let fleet = Fleet::new(FleetConfig::default());
            let spec = r#"{"url":"http://w","models":["m","n"]}"#;
            let spec = serde_json::from_str(spec).expect("it is a specification");
            fleet.add(spec, smg_fleet::Origin::Api, smg_base::Timestamp::ORIGIN).expect("there is room");
            let map = shared.iter().map(|(alias, model)| ((*alias).into(), model.map(Into::into))).collect();
            set_aliases(&fleet, &own, map).unwrap_or_else(|error| panic!("{shared:?}: {error}"));
            let snapshot = fleet.snapshot();
            for (alias, model) in expected {
                let pool = snapshot.pool(alias).map(|pool| pool.model.to_string());
                assert_eq!(pool.as_deref(), Some(*model).filter(|model| !model.is_empty()), "{shared:?}: {alias}");
            }
        };
        check(&[], &[("a", "m"), ("b", "m")]);
        check(&[("a", Some("n")), ("b", None), ("c", Some("n"))], &[("a", "n"), ("b", ""), ("c", "n")]);
        check(&[("c", Some("a")), ("d", Some("n"))], &[("a", "m"), ("c", ""), ("d", "n")]);
        check(&[("m", Some("n"))], &[("a", "m"), ("b", "m")]);
    }
}
