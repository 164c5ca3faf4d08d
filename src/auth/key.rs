//! Keys as they are kept: everything about one but the key itself.

use std::fmt;

use aws_lc_rs::{digest, rand};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use smg_base::{KeyId, Secret, TenantId, hash};

use crate::{
    principal::{Models, Role},
    scope::Scopes,
};

/// Whether a key may still open anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    /// It may, until it expires.
    #[default]
    Active,
    /// Never again.
    Revoked,
}

/// What is kept of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Names it.
    pub id: KeyId,
    /// What people call it.
    pub name: String,
    /// Whose it is.
    pub tenant: TenantId,
    /// The SHA-256 of the key. A key made here has more than 200 random bits, so nobody finds it by trying, however fast the
    /// hash is.
    #[serde(serialize_with = "hex", deserialize_with = "unhex")]
    pub hash: [u8; 32],
    /// How the key begins, for people.
    #[serde(default)]
    pub prefix: String,
    /// What its holder may do at the admin API.
    pub role: Role,
    /// Which models its holder may use.
    #[serde(default)]
    pub models: Models,
    /// Which families of endpoints its holder may use. Records of versions that knew of none say nothing here: all.
    #[serde(default, skip_serializing_if = "Scopes::is_all")]
    pub scopes: Scopes,
    /// The greatest priority class that its holder may claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Box<str>>,
    /// When it was made, in seconds since the Unix epoch.
    #[serde(default)]
    pub created: u64,
    /// From when on it opens nothing, in seconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// Whether it may open anything.
    #[serde(default)]
    pub state: KeyState,
    /// The key in whose place it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<KeyId>,
}

/// The record is not one that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    /// Its id.
    #[error("an id has 1 to 64 letters, digits, dots, dashes or underscores")]
    Id,
    /// Its name.
    #[error("a name has 1 to 128 bytes and no control characters")]
    Name,
    /// Its tenant.
    #[error("a tenant's name has 1 to 128 bytes and no control characters")]
    Tenant,
    /// Its models.
    #[error("there are at most {} names of models, each of 1 to 256 bytes", Models::LISTED_MAX)]
    Models,
    /// Its class.
    #[error("a priority class is system, interactive, default or bulk")]
    Class,
}

/// The system has no randomness to give. No key was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random bytes")]
pub struct NoRandomness;

const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// How every key made here begins, so that scanners find one that was published.
const BEGINNING: &str = "smg-";

/// Random characters of a key: 238 bits.
const RANDOM_CHARS: usize = 40;

/// Characters after them, by which a key that was mistyped or made up is told.
const CHECK_CHARS: usize = 6;

/// Characters of a key that are kept for people.
const PREFIX_CHARS: usize = 12;

impl KeyRecord {
    /// The priority classes that one may name.
    pub const CLASSES: &'static [&'static str] = &["system", "interactive", "default", "bulk"];

    /// The record of a key of `tenant` that is yet to be made, for a caller that may use everything.
    pub fn new(name: String, tenant: &str, created: u64) -> Self {
        Self {
            id: KeyId::from(""),
            name,
            tenant: TenantId::from(tenant),
            hash: [0; 32],
            prefix: String::new(),
            role: Role::Caller,
            models: Models::All,
            scopes: Scopes::All,
            class: None,
            created,
            expires: None,
            state: KeyState::Active,
            replaces: None,
        }
    }

    /// Makes a key for this record, with an id of its own.
    pub fn with_new_key(mut self) -> Result<(Secret, Self), NoRandomness> {
        let body = random_text(RANDOM_CHARS)?;
        let key = Secret::new(format!("{BEGINNING}{body}{}", check_of(&body)));
        self.id = KeyId::from(format!("key_{}", random_text(12)?));
        Ok((key.clone(), self.of_key(&key)))
    }

    /// The record of this key.
    #[must_use]
    pub fn of_key(mut self, key: &Secret) -> Self {
        self.hash = hash_of(key.expose());
        // Of a short key, much less is shown.
        let shown = PREFIX_CHARS.min(key.expose().len() / 4);
        self.prefix = key.expose().chars().take(shown).collect();
        self
    }

    /// Whether the key opens anything at this time, in seconds since the Unix epoch.
    pub fn is_active(&self, now: u64) -> bool {
        self.state == KeyState::Active && self.expires.is_none_or(|expires| now < expires)
    }

    /// Whether the record is one that is kept.
    pub fn check(&self) -> Result<(), BadRecord> {
        let is_name = |text: &str| (1..=128).contains(&text.len()) && !text.chars().any(char::is_control);
        let is_of_id = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        let id = self.id.as_str();
        let wrong = match () {
            () if !(1..=64).contains(&id.len()) || !id.bytes().all(is_of_id) => BadRecord::Id,
            () if !is_name(&self.name) => BadRecord::Name,
            () if !is_name(self.tenant.as_str()) => BadRecord::Tenant,
            () if !self.models.is_sensible() => BadRecord::Models,
            () if self.class.as_deref().is_some_and(|class| !Self::CLASSES.contains(&class)) => BadRecord::Class,
            () => return Ok(()),
        };
        Err(wrong)
    }
}

/// Whether a text is a key as they are made here, and not mistyped.
pub fn is_well_formed(key: &str) -> bool {
    let body = key.strip_prefix(BEGINNING).filter(|body| body.is_ascii() && body.len() == RANDOM_CHARS + CHECK_CHARS);
    body.is_some_and(|body| check_of(&body[..RANDOM_CHARS]) == body[RANDOM_CHARS..])
}

/// The hash by which a key is known.
pub(crate) fn hash_of(key: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, key.as_bytes()).as_ref());
    hash
}

fn check_of(body: &str) -> String {
    let mut rest = hash::stable64(body.as_bytes());
    let mut digit = || {
        let digit = ALPHABET[(rest % 62) as usize];
        rest /= 62;
        char::from(digit)
    };
    (0..CHECK_CHARS).map(|_| digit()).collect()
}

fn random_text(chars: usize) -> Result<String, NoRandomness> {
    let mut text = String::with_capacity(chars);
    let mut bytes = [0; 64];
    while text.len() < chars {
        rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
        // 248 is four times 62: what lies above would make some characters likelier.
        let digits = bytes.iter().filter(|byte| **byte < 248).map(|byte| char::from(ALPHABET[usize::from(byte % 62)]));
        text.extend(digits.take(chars - text.len()));
    }
    Ok(text)
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn hex<S: Serializer>(hash: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&Hex(hash))
}

fn unhex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
    let text = String::deserialize(deserializer)?;
    let wrong = || de::Error::custom("a hash has 64 hexadecimal digits");
    let mut hash = [0; 32];
    if text.len() != 2 * hash.len() {
        return Err(wrong());
    }
    for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16).ok_or_else(wrong);
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).map_err(|_| wrong())?;
    }
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use smg_base::{Random, SplitMix, fuzz};

    use super::*;

    fn made() -> (Secret, KeyRecord) {
        KeyRecord::new("batch".to_owned(), "acme", 7).with_new_key().expect("the system has randomness")
    }

    #[test]
    fn a_key_is_long_checked_and_known_by_its_hash() {
        let (key, record) = made();
        let text = key.expose();
        assert_eq!(text.len(), BEGINNING.len() + RANDOM_CHARS + CHECK_CHARS);
        assert!(is_well_formed(text));
        assert_eq!(record.hash, hash_of(text));
        assert_eq!(record.prefix, text[..PREFIX_CHARS]);
        assert_eq!(record.check(), Ok(()));
        let mut mistyped = text.to_owned().into_bytes();
        mistyped[20] = if mistyped[20] == b'A' { b'B' } else { b'A' };
        assert!(!is_well_formed(&String::from_utf8(mistyped).expect("it is ascii")));
        assert!(
            !is_well_formed("smg-") && !is_well_formed("sk-1") && !is_well_formed(&format!("smg-{}", "ü".repeat(23)))
        );
        assert_ne!(made().0, key);
    }

    #[test]
    fn a_record_reads_back_and_does_not_hold_the_key() {
        let (key, record) = made();
        let text = serde_json::to_string(&record).expect("it is a value");
        assert!(!text.contains(key.expose()));
        assert_eq!(serde_json::from_str::<KeyRecord>(&text).expect("it was written"), record);
        assert_eq!(record.of_key(&Secret::new("sk-short")).prefix, "sk");
    }

    #[test]
    fn records_of_versions_without_scopes_are_read_and_written_as_they_were() {
        let old = concat!(
            r#"{"id":"key_1","name":"batch","tenant":"acme","hash":""#,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            r#"","prefix":"smg-abcdefgh","role":"caller","models":["llama-*"],"class":"bulk","created":7,"expires":9,"#,
            r#""state":"active","replaces":"key_0"}"#
        );
        let mut record: KeyRecord = serde_json::from_str(old).expect("it was written once");
        assert_eq!(record.scopes, Scopes::All);
        assert_eq!(serde_json::to_string(&record).expect("it is a value"), old);
        record.scopes = Scopes::named(["models", "chat"]).expect("they are known");
        let new = old.replace(r#""class""#, r#""scopes":["chat","models"],"class""#);
        assert_eq!(serde_json::to_string(&record).expect("it is a value"), new);
        assert_eq!(serde_json::from_str::<KeyRecord>(&new).expect("it was written"), record);
    }

    #[test]
    fn odd_records_are_told() {
        let check = |change: fn(&mut KeyRecord), expected: BadRecord| {
            let mut record = made().1;
            change(&mut record);
            assert_eq!(record.check(), Err(expected));
        };
        check(|record| record.id = "a/b".into(), BadRecord::Id);
        check(|record| record.name = "a\nb".into(), BadRecord::Name);
        check(|record| record.tenant = "".into(), BadRecord::Tenant);
        check(|record| record.class = Some("royal".into()), BadRecord::Class);
    }

    #[test]
    fn a_key_ends_when_it_expires_or_is_revoked() {
        let mut record = made().1;
        assert!(record.is_active(u64::MAX));
        record.expires = Some(10);
        assert!(record.is_active(9) && !record.is_active(10));
        record.state = KeyState::Revoked;
        assert!(!record.is_active(9));
    }

    #[test]
    fn records_of_others_are_read_or_refused() {
        let limited = KeyRecord { scopes: Scopes::named(["chat", "models"]).expect("they are known"), ..made().1 };
        let seed = serde_json::to_vec(&limited).expect("it is a value");
        let random = SplitMix::new(fuzz::seed(5));
        for _ in 0..fuzz::inputs(20_000) {
            let mut bytes = seed.clone();
            for _ in 0..=random.next_u64() % 4 {
                let at = usize::try_from(random.next_u64()).unwrap_or(0) % bytes.len();
                bytes[at] = random.next_u64().to_le_bytes()[0];
            }
            if let Ok(record) = serde_json::from_slice::<KeyRecord>(&bytes) {
                let _judged = record.check();
            }
        }
    }
}
