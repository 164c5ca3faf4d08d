//! Settings that all nodes share: aliases, policies, sticky keys, keys of callers and operators, revoked keys. Flags and files only seed them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde_json::Value;
use smg_auth::KeyRecord;
use smg_base::{ModelId, WorkerId};
use smg_gateway::{ClusterError, KeyHash, SharedKey};
use smg_routing::PolicyKind;

/// What all nodes share, as this node understands it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Shared {
    /// Names clients may use, and the models they stand for; none where a name was taken back.
    pub(crate) aliases: BTreeMap<ModelId, Option<ModelId>>,
    /// Policies by model.
    pub(crate) policies: BTreeMap<ModelId, PolicyKind>,
    /// Workers by routing key.
    pub(crate) sticky: BTreeMap<String, WorkerId>,
    /// Keys that the admin API has made, by their ids.
    pub(crate) keys: BTreeMap<String, KeyRecord>,
    /// Hashes of keys that are let in no more.
    pub(crate) revoked: BTreeSet<KeyHash>,
}

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    Alias,
    Policy,
    Sticky,
    Key,
    Revoked,
}

impl Section {
    const ALL: [Self; 5] = [Self::Alias, Self::Policy, Self::Sticky, Self::Key, Self::Revoked];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Alias => "alias",
            Self::Policy => "policy",
            Self::Sticky => "sticky",
            Self::Key => "key",
            Self::Revoked => "revoked",
        }
    }

    fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|section| section.as_str() == name)
    }

    /// What is wrong with a value, if something is.
    fn check(self, name: &str, value: &Value) -> Result<(), ClusterError> {
        let text = value.as_str().unwrap_or_default();
        let wrong = match self {
            Self::Alias if text.is_empty() => "an alias stands for a model, given as a string",
            Self::Alias if text == name => "an alias differs from its model",
            Self::Policy if text.parse::<PolicyKind>().is_err() => {
                "a policy is given by its name, such as \"least_load\""
            }
            Self::Sticky if text.parse::<WorkerId>().is_err() => {
                "a sticky key leads to a worker, given by its id or url"
            }
            Self::Key if key_record(name, value).is_none() => "a key is given by its record; make one at /keys",
            Self::Revoked if value != &Value::Bool(true) => "a revocation is true",
            Self::Revoked if name.parse::<KeyHash>().is_err() => {
                "a revoked key is named by the SHA-256 of it, in 64 hexadecimal digits"
            }
            _ => return Ok(()),
        };
        Err(ClusterError::Invalid(wrong))
    }
}

/// The key and value under which something is shared, if all nodes will understand it.
pub(crate) fn checked(key: &SharedKey, value: Option<&Value>) -> Result<(String, Option<Bytes>), ClusterError> {
    let section = Section::of(&key.section).ok_or(ClusterError::UnknownSection)?;
    if let Some(value) = value {
        section.check(&key.name, value)?;
    } else if section == Section::Revoked {
        return Err(ClusterError::Revoked);
    }
    Ok((format!("{}/{}", key.section, key.name), value.map(|value| value.to_string().into())))
}

/// The record of the key with this id.
fn key_record(id: &str, value: &Value) -> Option<KeyRecord> {
    let record: KeyRecord = serde_json::from_value(value.clone()).ok()?;
    (record.id.as_str() == id && record.check().is_ok()).then_some(record)
}

/// Where an alias is shared.
pub(crate) fn alias_key(alias: &ModelId) -> String {
    format!("{}/{alias}", Section::Alias.as_str())
}

/// A text as a shared value.
pub(crate) fn text(text: &str) -> Bytes {
    Value::from(text).to_string().into()
}

impl Shared {
    /// Reads what is shared. What another version may have written, and is not understood, is left out.
    pub(crate) fn of(config: &BTreeMap<String, Option<Bytes>>) -> Self {
        let mut shared = Self::default();
        for (key, value) in config {
            let Some((section, name)) = split(key) else { continue };
            let value = value.as_ref().and_then(|bytes| serde_json::from_slice::<Value>(bytes).ok());
            if value.as_ref().is_some_and(|value| section.check(name, value).is_err()) {
                tracing::warn!(key, "a shared setting is not understood here");
                continue;
            }
            shared.take(section, name, value.as_ref());
        }
        shared
    }

    fn take(&mut self, section: Section, name: &str, value: Option<&Value>) {
        let text = value.and_then(Value::as_str);
        match section {
            Section::Alias => {
                self.aliases.insert(ModelId::from(name), text.map(ModelId::from));
            }
            Section::Policy => {
                self.policies.extend(text.and_then(|text| text.parse().ok()).map(|kind| (ModelId::from(name), kind)));
            }
            Section::Sticky => {
                self.sticky.extend(text.and_then(|text| text.parse().ok()).map(|worker| (name.to_owned(), worker)));
            }
            Section::Key => {
                self.keys.extend(value.and_then(|value| key_record(name, value)).map(|key| (name.to_owned(), key)));
            }
            Section::Revoked => self.revoked.extend(value.and_then(|_| name.parse::<KeyHash>().ok())),
        }
    }
}

/// What is shared, for people: by section and name.
pub(crate) fn page(config: &BTreeMap<String, Option<Bytes>>) -> Value {
    let mut sections: BTreeMap<&str, BTreeMap<&str, Value>> =
        Section::ALL.into_iter().map(|section| (section.as_str(), BTreeMap::new())).collect();
    for (key, value) in config {
        let value = value.as_ref().and_then(|bytes| serde_json::from_slice(bytes).ok());
        if let (Some((section, name)), Some(value)) = (split(key), value) {
            sections.entry(section.as_str()).or_default().insert(name, value);
        }
    }
    serde_json::json!(sections)
}

fn split(key: &str) -> Option<(Section, &str)> {
    let (section, name) = key.split_once('/')?;
    Some((Section::of(section)?, name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(section: &str, name: &str) -> SharedKey {
        SharedKey { section: section.to_owned(), name: name.to_owned() }
    }

    #[test]
    fn only_what_all_understand_is_shared() {
        let worker = WorkerId::of("http://a", None).to_string();
        let hash = "0f".repeat(32);
        for (section, name, value) in [
            ("alias", "gpt-4", json!("llama")),
            ("policy", "llama", json!("least_load")),
            ("sticky", "user/1", json!(worker)),
            ("revoked", &hash, json!(true)),
        ] {
            let (stored, bytes) =
                checked(&key(section, name), Some(&value)).unwrap_or_else(|error| panic!("{section}: {error}"));
            assert_eq!((stored, bytes), (format!("{section}/{name}"), Some(value.to_string().into())));
        }
        for (section, name, value) in [
            ("alias", "a", json!("a")),
            ("alias", "a", json!(1)),
            ("policy", "llama", json!("fastest")),
            ("sticky", "user/1", json!("http://a")),
            ("revoked", &hash, json!("yes")),
            ("revoked", "sk-1", json!(true)),
        ] {
            let refused = checked(&key(section, name), Some(&value));
            assert!(matches!(refused, Err(ClusterError::Invalid(_))), "{section} {name} {value}: {refused:?}");
        }
        assert_eq!(checked(&key("colour", "a"), Some(&json!("red"))), Err(ClusterError::UnknownSection));
        assert_eq!(checked(&key("revoked", &hash), None), Err(ClusterError::Revoked));
        assert_eq!(checked(&key("alias", "a"), None), Ok(("alias/a".to_owned(), None)));
    }

    #[test]
    fn what_is_shared_reads_back_and_what_is_odd_is_left_out() {
        let worker = WorkerId::of("http://a", None);
        let config = BTreeMap::from([
            ("alias/a".to_owned(), Some(text("m"))),
            ("alias/b".to_owned(), None),
            ("policy/m".to_owned(), Some(text("random"))),
            ("policy/n".to_owned(), Some(text("newer_than_us"))),
            ("sticky/u/1".to_owned(), Some(text(&worker.to_string()))),
            ("revoked/".to_owned() + &"ab".repeat(32), Some(Bytes::from_static(b"true"))),
            ("colour/x".to_owned(), Some(text("red"))),
        ]);
        let shared = Shared::of(&config);
        let aliases = BTreeMap::from([("a".into(), Some("m".into())), ("b".into(), None)]);
        assert_eq!(shared.aliases, aliases);
        assert_eq!(shared.policies, BTreeMap::from([("m".into(), PolicyKind::Random)]));
        assert_eq!(shared.sticky, BTreeMap::from([("u/1".to_owned(), worker)]));
        assert_eq!(shared.revoked.iter().map(ToString::to_string).collect::<Vec<_>>(), ["ab".repeat(32)]);
        assert_eq!(page(&config)["alias"], json!({"a": "m"}));
    }
}
