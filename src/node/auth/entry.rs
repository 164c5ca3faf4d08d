//! Keys made without a node, and their entries in the operator's file: what `smg keys generate` and `smg keys hash` do.

use std::{
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Serialize, de::IntoDeserializer};
use smg_auth::{BadRecord, KeyRecord, Models, NoRandomness, Role, Scope, Scopes, UnknownScope};
use smg_base::{
    Secret,
    calendar::{rfc3339, unix_seconds},
};
use smg_gateway::KeyHash;
use toml::value::Datetime;

use super::file;
use crate::config::value;

/// The names of roles.
pub const ROLES: &[&str] = &["caller", "viewer", "admin"];

/// The names of scopes.
pub const SCOPES: &[&str] = Scope::NAMES;

/// The names of priority classes.
pub const CLASSES: &[&str] = KeyRecord::CLASSES;

/// What a key is for.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// What people call it.
    pub name: String,
    /// Whose it is; by default it is of the tenant `default`.
    pub tenant: Option<String>,
    /// What its holder may do at the admin API; by default nothing.
    pub role: Option<String>,
    /// Which models its holder may use; by default all.
    pub models: Option<Vec<String>>,
    /// Which families of endpoints its holder may use; by default all.
    pub scopes: Option<Vec<String>>,
    /// The greatest priority class that its holder may claim.
    pub class: Option<String>,
    /// From when on it opens nothing, in seconds since the Unix epoch.
    pub expires: Option<u64>,
}

/// A key was not made, hashed or taken down. No file was changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// What it is for is odd.
    #[error(transparent)]
    Record(#[from] BadRecord),
    /// There is no such scope.
    #[error(transparent)]
    Scope(#[from] UnknownScope),
    /// There is no such role.
    #[error("a role is caller, viewer or admin")]
    Role,
    /// The system gives no random bytes.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// Nobody could send it.
    #[error("a key has 1 to {KEY_BYTES_MAX} letters, digits and signs, and no spaces")]
    NotAKey,
    /// The entry cannot be written.
    #[error("the entry cannot be written: {0}")]
    Entry(#[from] toml::ser::Error),
    /// The file cannot be read, or would not be one of keys.
    #[error("{}: {reason}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// When a key is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Not by itself.
    Never,
    /// So long from now.
    In(Duration),
    /// At this moment, in seconds since the Unix epoch.
    At(u64),
}

/// The text is no time. Nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotATime {
    /// It is no moment that can come.
    #[error("say how long from now, such as 90d or 12h, or when, such as 2027-01-31 or 2027-01-31T18:00:00Z, or never")]
    Expiry,
    /// It is no span.
    #[error("a span is a number with a unit, such as 30m, 24h or 7d")]
    Span,
}

impl FromStr for Expiry {
    type Err = NotATime;

    fn from_str(text: &str) -> Result<Self, NotATime> {
        let text = text.trim();
        if text == "never" {
            return Ok(Self::Never);
        }
        let of_span = || span(text).map(Self::In);
        unix_seconds(text).map(Self::At).or_else(|_| of_span()).map_err(|_| NotATime::Expiry)
    }
}

impl Expiry {
    /// In seconds since the Unix epoch, where `now` is counted so too.
    pub fn unix_seconds(self, now: u64) -> Option<u64> {
        match self {
            Self::Never => None,
            Self::In(span) => Some(now.saturating_add(span.as_secs())),
            Self::At(moment) => Some(moment),
        }
    }
}

/// A duration that says what it counts: a bare number could mean days to one and seconds to another.
pub fn span(text: &str) -> Result<Duration, NotATime> {
    let text = text.trim();
    let is_bare = text != "0" && text.ends_with(|last: char| last.is_ascii_digit());
    if is_bare { Err(NotATime::Span) } else { value::seconds(text).map_err(|_| NotATime::Span) }
}

/// Seconds since the Unix epoch as RFC 3339 writes them.
pub fn moment(unix_seconds: u64) -> String {
    rfc3339(unix_seconds.saturating_mul(1_000))
}

/// Longest key that is hashed; nodes look at no longer ones either.
const KEY_BYTES_MAX: usize = 4_096;

/// Bytes that a key has if nobody is to find it by trying.
const KEY_BYTES_SAFE: usize = 20;

/// A new key. Only its hash is in the entry.
#[derive(Debug)]
pub struct Generated {
    /// The key itself.
    pub key: Secret,
    /// What the file is to say of it.
    pub entry: String,
}

/// The entry of a key in the file.
#[derive(Serialize)]
struct Entry<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    tenant: &'a str,
    hash: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<Role>,
    #[serde(skip_serializing_if = "Option::is_none")]
    models: Option<&'a Models>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scopes: Option<&'a Scopes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<Datetime>,
}

#[derive(Serialize)]
struct Entries<'a> {
    keys: [Entry<'a>; 1],
}

/// Makes a key and the entry for it.
pub fn generate(wish: &Wish) -> Result<Generated, KeyError> {
    let tenant = wish.tenant.as_deref().unwrap_or("default");
    let mut record = KeyRecord::new(wish.name.clone(), tenant, 0);
    if let Some(role) = wish.role.as_deref() {
        record.role =
            Role::deserialize(role.into_deserializer()).map_err(|_: serde::de::value::Error| KeyError::Role)?;
    }
    if let Some(models) = &wish.models {
        record.models = Models::listed(models.iter().map(String::as_str));
    }
    if let Some(scopes) = &wish.scopes {
        record.scopes = Scopes::named(scopes.iter().map(String::as_str))?;
    }
    record.class = wish.class.as_deref().map(Into::into);
    record.expires = wish.expires;
    let (key, record) = record.with_new_key()?;
    record.check()?;
    Ok(Generated { key, entry: entry_of(&record)? })
}

/// What is as it is by default is left out.
fn entry_of(record: &KeyRecord) -> Result<String, toml::ser::Error> {
    // Limits and usage name keys by their ids, so that the name is the better one where it can be.
    let is_named = KeyRecord { id: record.name.as_str().into(), ..record.clone() }.check().is_ok();
    let entry = Entry {
        name: &record.name,
        id: (!is_named).then_some(record.id.as_str()),
        tenant: record.tenant.as_str(),
        hash: KeyHash::from_bytes(record.hash).to_string(),
        role: (record.role != Role::Caller).then_some(record.role),
        models: Some(&record.models).filter(|models| **models != Models::All),
        scopes: Some(&record.scopes).filter(|scopes| **scopes != Scopes::All),
        class: record.class.as_deref(),
        expires: record.expires.and_then(|seconds| moment(seconds).parse().ok()),
    };
    toml::to_string(&Entries { keys: [entry] })
}

impl Generated {
    /// Puts the entry at the end of the operator's file, which is made if it is not there. A file that would not be read
    /// afterwards is left as it is.
    pub fn append_to(&self, path: &Path) -> Result<(), KeyError> {
        let failed = |reason: String| KeyError::File { path: path.to_owned(), reason };
        let before = file::contents(path).map_err(failed)?.unwrap_or_default();
        let between = match &*before {
            "" => "",
            text if text.ends_with('\n') => "\n",
            _ => "\n\n",
        };
        let known = file::ids(&before).map_err(failed)?;
        let own = file::ids(&self.entry).map_err(failed)?;
        if let Some(id) = own.iter().find(|id| known.contains(id)) {
            return Err(failed(format!("there is a key '{id}' already; give the new one another name")));
        }
        file::ids(&format!("{before}{between}{}", self.entry)).map_err(failed)?;
        let mut options = std::fs::OpenOptions::new();
        let mut file =
            options.append(true).create(true).mode(0o600).open(path).map_err(|error| failed(error.to_string()))?;
        // In one piece: a node may be about to read it.
        file.write_all(format!("{between}{}", self.entry).as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(|error| failed(error.to_string()))
    }
}

/// A key that somebody else made, as the file wants it.
#[derive(Debug)]
pub struct Hashed {
    /// The line that stands for the key.
    pub line: String,
    /// What speaks against the key.
    pub caution: Option<&'static str>,
}

/// The line that stands for a key in the operator's file.
pub fn hash(key: &str) -> Result<Hashed, KeyError> {
    if !(1..=KEY_BYTES_MAX).contains(&key.len()) || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(KeyError::NotAKey);
    }
    let caution = match key {
        _ if key.starts_with("smg-") && !smg_auth::is_well_formed(key) => {
            Some("the key begins like one that smg made and is none: is it mistyped?")
        }
        _ if key.len() < KEY_BYTES_SAFE => Some(
            "who reads the hash of so short a key can find the key by trying; smg keys generate makes a better one",
        ),
        _ => None,
    };
    Ok(Hashed { line: format!("hash = \"{}\"\n", KeyHash::of(key)), caution })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(name: &str) -> Wish {
        Wish { name: name.to_owned(), ..Wish::default() }
    }

    #[test]
    fn an_entry_is_read_as_what_was_wished_for() {
        let folder = tempfile::tempdir().expect("the folder for temporary files takes one");
        let path = folder.path().join("keys.toml");
        let all = Wish {
            tenant: Some("acme \"and\" sons".to_owned()),
            role: Some("viewer".to_owned()),
            models: Some(vec!["llama-*".to_owned(), "demo".to_owned()]),
            scopes: Some(vec!["models".to_owned(), "chat".to_owned()]),
            class: Some("bulk".to_owned()),
            expires: Some(1_798_761_600),
            ..wish("The team's key")
        };
        let (plain, full) = (generate(&wish("plain")).expect("it is plain"), generate(&all).expect("it is one"));
        assert_eq!(plain.entry.lines().count(), 4, "{}", plain.entry);
        for made in [&plain, &full] {
            made.append_to(&path).expect("there is room");
            assert!(!made.entry.contains(made.key.expose()));
        }
        let records = file::read(&path).expect("it was written");
        let keys = [&plain, &full].map(|made| KeyHash::of(made.key.expose()).bytes());
        assert_eq!([records[0].hash, records[1].hash], keys);
        let expected =
            KeyRecord { id: "plain".into(), hash: keys[0], ..KeyRecord::new("plain".to_owned(), "default", 0) };
        assert_eq!(records[0], expected);
        let full = &records[1];
        assert!(full.id.as_str().starts_with("key_"), "a name with spaces is no id: {}", full.id);
        assert_eq!((&*full.name, full.tenant.as_str()), ("The team's key", "acme \"and\" sons"));
        assert_eq!((full.role, full.class.as_deref(), full.expires), (Role::Viewer, Some("bulk"), Some(1_798_761_600)));
        assert!(full.models.allows("llama-3") && !full.models.allows("qwen"));
        assert!(full.scopes.allows(Scope::Chat) && !full.scopes.allows(Scope::Audio));
    }

    #[test]
    fn a_file_that_would_not_be_read_stays_as_it_is() {
        let folder = tempfile::tempdir().expect("the folder for temporary files takes one");
        let path = folder.path().join("keys.toml");
        let made = generate(&wish("a")).expect("it is one");
        let check = |text: &str, expected: &str| {
            std::fs::write(&path, text).expect("there is room");
            let error = made.append_to(&path).expect_err(text).to_string();
            assert!(error.contains(expected) && error.contains("keys.toml"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).expect("it is there"), text);
        };
        check("[[keys]]\nname = \"a\"\nhash = \"00\"\n", "there is a key 'a' already");
        check("keys = []", "line ");
        check("colour = \"red\"\n", "colour");
        std::fs::write(&path, "# ours\n[[keys]]\nname = \"b\"\nkey = \"${NO_SUCH_VARIABLE}\"").expect("there is room");
        made.append_to(&path).expect("what another key refers to need not be here");
        let text = std::fs::read_to_string(&path).expect("it is there");
        assert!(text.starts_with("# ours\n") && text.ends_with(&format!("}}\"\n\n{}", made.entry)), "{text}");
    }

    #[test]
    fn a_key_ends_in_some_time_at_some_time_or_never() {
        let check = |text: &str, expected: Result<Option<u64>, NotATime>| {
            assert_eq!(text.parse().map(|expiry: Expiry| expiry.unix_seconds(1_000)), expected, "{text}");
        };
        check("never", Ok(None));
        check("90d", Ok(Some(1_000 + 90 * 86_400)));
        check(" 12h ", Ok(Some(1_000 + 12 * 3_600)));
        check("2026-11-25", Ok(Some(1_795_564_800)));
        check("2026-11-25T01:00:00+01:00", Ok(Some(1_795_564_800)));
        for text in ["90", "1798761600", "", "soon", "90 days", "-1d", "2026-13-01", "2026-11-25T10:00"] {
            check(text, Err(NotATime::Expiry));
        }
        assert_eq!(span("0"), Ok(Duration::ZERO));
        assert_eq!(span("24"), Err(NotATime::Span));
    }

    #[test]
    fn what_cannot_be_a_key_is_told() {
        let check = |change: fn(&mut Wish), expected: &str| {
            let mut wish = wish("a");
            change(&mut wish);
            let error = generate(&wish).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(|wish| wish.name = String::new(), "a name has");
        check(|wish| wish.tenant = Some("a\nb".to_owned()), "a tenant's name has");
        check(|wish| wish.role = Some("root".to_owned()), "a role is");
        check(|wish| wish.class = Some("royal".to_owned()), "a priority class is");
        check(|wish| wish.scopes = Some(vec!["chit".to_owned()]), "no scope 'chit'");
    }

    #[test]
    fn the_hash_of_a_key_is_a_line_of_the_file() {
        let made = generate(&wish("a")).expect("it is one");
        let hashed = hash(made.key.expose()).expect("it is a key");
        assert!(made.entry.contains(&hashed.line), "{} {}", made.entry, hashed.line);
        assert_eq!(hashed.caution, None);
        let caution = |key: &str| hash(key).expect("it is a key").caution.unwrap_or_default();
        assert!(caution("smg-0123456789012345678901234567890123456789abcdef").contains("mistyped"));
        assert!(caution("sk-short").contains("by trying"));
        for key in ["", "two words of some length", "sk-with-a-line\nend", "sch\u{fc}ssel-with-some-length"] {
            assert!(hash(key).is_err(), "{key}");
        }
        assert!(hash(&"x".repeat(KEY_BYTES_MAX + 1)).is_err());
    }
}
