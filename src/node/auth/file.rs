//! Keys in files: the one that an operator writes, and the one in which a node without a mesh keeps what the admin API makes.

use std::path::Path;

use serde::Deserialize;
use smg_auth::{KeyRecord, Models, Role, Scopes};
use smg_base::calendar::{NotAMoment, unix_seconds};

use crate::config::{Secret, resolve_secret};

/// Largest file that is read.
const BYTES_MAX: u64 = 16 << 20;

/// The operator's file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    keys: Vec<WrittenKey>,
}

/// One key there: by its hash, or by itself.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenKey {
    name: String,
    /// By default the name.
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    tenant: Option<String>,
    /// The key's SHA-256, in hexadecimal.
    #[serde(default)]
    hash: Option<String>,
    /// `${NAME}`, `file:/path`, or the key.
    #[serde(default)]
    key: Option<Secret>,
    #[serde(default)]
    role: Option<Role>,
    #[serde(default)]
    models: Option<Models>,
    #[serde(default)]
    scopes: Option<Vec<Box<str>>>,
    #[serde(default)]
    class: Option<String>,
    /// A moment as TOML writes it, the same in quotes, or seconds since the Unix epoch.
    #[serde(default)]
    expires: Option<toml::Value>,
}

/// Reads the operator's file. The reason never holds a key.
pub(crate) fn read(path: &Path) -> Result<Vec<KeyRecord>, String> {
    let named = |reason: String| format!("{}: {reason}", path.display());
    let text = contents(path).map_err(named)?.ok_or_else(|| named("there is no such file".to_owned()))?;
    parse(&text).map_err(named)
}

pub(super) fn contents(path: &Path) -> Result<Option<String>, String> {
    match std::fs::metadata(path) {
        Ok(about) if about.len() > BYTES_MAX => return Err(format!("it has more than {BYTES_MAX} bytes")),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    }
    std::fs::read_to_string(path).map(Some).map_err(|error| error.to_string())
}

fn written(text: &str) -> Result<Vec<WrittenKey>, String> {
    // What toml says of an error quotes the line, which may hold a key.
    let written: Written = toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| text[..span.start.min(text.len())].lines().count().max(1));
        let place = line.map_or_else(String::new, |line| format!("line {line}: "));
        format!("{place}{}", without_value(error.message()))
    })?;
    Ok(written.keys)
}

/// What is wrong, without the value that is: who forgets `key =` has put a key where something else is expected.
fn without_value(message: &str) -> String {
    match message.rsplit_once(", expected ") {
        Some((_, expected)) if message.starts_with("invalid ") => format!("expected {expected}"),
        _ => message.to_owned(),
    }
}

/// The ids in a text, each of which is there once; what it refers to is not looked up.
pub(super) fn ids(text: &str) -> Result<Vec<String>, String> {
    let mut ids = Vec::new();
    for key in written(text)? {
        let id = key.id.unwrap_or_else(|| key.name.clone());
        if ids.contains(&id) {
            return Err(twice(&key.name));
        }
        ids.push(id);
    }
    Ok(ids)
}

fn twice(name: &str) -> String {
    format!("the key '{name}' is there twice")
}

fn parse(text: &str) -> Result<Vec<KeyRecord>, String> {
    let written = written(text)?;
    let mut records = Vec::with_capacity(written.len());
    for key in written {
        let name = key.name.clone();
        let record = key.record().map_err(|reason| format!("the key '{name}': {reason}"))?;
        if records.iter().any(|known: &KeyRecord| known.id == record.id || known.hash == record.hash) {
            return Err(twice(&name));
        }
        records.push(record);
    }
    Ok(records)
}

impl WrittenKey {
    fn record(self) -> Result<KeyRecord, String> {
        let tenant = self.tenant.as_deref().unwrap_or("default");
        let mut record = KeyRecord::new(self.name.clone(), tenant, 0);
        record.id = self.id.as_deref().unwrap_or(&self.name).into();
        match (self.hash, self.key) {
            (Some(hash), None) => {
                record.hash = hash.parse::<smg_gateway::KeyHash>().map_err(|bad| bad.to_string())?.bytes();
            }
            (None, Some(key)) => {
                let key = resolve_secret(key.expose()).map_err(|fault| format!("its key: {fault}"))?;
                record = record.of_key(&key);
            }
            _ => return Err("it has either a hash or a key".to_owned()),
        }
        record.role = self.role.unwrap_or(Role::Caller);
        record.models = self.models.unwrap_or(Models::All);
        if let Some(names) = &self.scopes {
            record.scopes = Scopes::named(names.iter().map(|name| &**name)).map_err(|unknown| unknown.to_string())?;
        }
        record.class = self.class.map(Into::into);
        record.expires = self.expires.as_ref().map(moment).transpose()?;
        record.check().map_err(|wrong| wrong.to_string())?;
        Ok(record)
    }
}

fn moment(value: &toml::Value) -> Result<u64, String> {
    let seconds = match value {
        toml::Value::Integer(seconds) => u64::try_from(*seconds).map_err(|_| NotAMoment),
        toml::Value::Datetime(moment) => unix_seconds(&moment.to_string()),
        toml::Value::String(text) => unix_seconds(text),
        _ => Err(NotAMoment),
    };
    seconds.map_err(|error| format!("expires: {error}"))
}

/// The key of an operator as the reference gateway writes it: `id:name:role:key`.
pub(crate) fn of_flag(text: &Secret) -> Result<KeyRecord, String> {
    let parts: Vec<&str> = text.expose().splitn(4, ':').collect();
    let &[id, name, role, key] = &parts[..] else { return Err("a key is given as id:name:role:key".to_owned()) };
    let mut record = KeyRecord::new(name.to_owned(), "default", 0).of_key(&Secret::new(key));
    record.id = id.into();
    record.role = match role {
        "admin" => Role::Admin,
        "viewer" | "user" => Role::Viewer,
        _ => return Err(format!("the key '{id}': a role is admin or viewer")),
    };
    record.check().map_err(|wrong| format!("the key '{id}': {wrong}"))?;
    Ok(record)
}

/// Reads what [`save`] wrote; nothing if it never did.
pub(crate) fn load(path: &Path) -> Result<Vec<KeyRecord>, String> {
    let named = |reason: String| format!("{}: {reason}", path.display());
    let Some(text) = contents(path).map_err(named)? else { return Ok(Vec::new()) };
    serde_json::from_str(&text).map_err(|error| named(error.to_string()))
}

/// Writes the records, whole or not at all; they are on disk when this returns.
pub(crate) async fn save(path: &Path, records: &[KeyRecord]) -> Result<(), std::io::Error> {
    use tokio::io::AsyncWriteExt;

    let text = serde_json::to_vec_pretty(records)?;
    let beside = path.with_extension("new");
    let mut options = tokio::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&beside).await?;
    file.write_all(&text).await?;
    file.sync_all().await?;
    drop(file);
    tokio::fs::rename(&beside, path).await?;
    if let Some(folder) = path.parent() {
        tokio::fs::File::open(folder).await?.sync_all().await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use smg_auth::Scope;

    use super::*;

    #[test]
    fn keys_are_written_by_their_hash_or_by_themselves() {
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let text = format!(
            "[[keys]]\nname = \"a\"\ntenant = \"acme\"\nhash = \"{hash}\"\nmodels = [\"llama-*\"]\nscopes = [\"models\"]\n\
             [[keys]]\nname = \"b\"\nkey = \"sk-a-key-of-some-length\"\nrole = \"admin\"\nexpires = 5\n"
        );
        let records = parse(&text).unwrap_or_else(|error| panic!("{error}"));
        let told = |record: &KeyRecord| (record.id.to_string(), record.tenant.to_string(), record.role, record.expires);
        assert_eq!(told(&records[0]), ("a".to_owned(), "acme".to_owned(), Role::Caller, None));
        assert_eq!(told(&records[1]), ("b".to_owned(), "default".to_owned(), Role::Admin, Some(5)));
        assert!(records[0].models.allows("llama-3") && !records[0].models.allows("qwen"));
        assert!(records[0].scopes.allows(Scope::Models) && !records[0].scopes.allows(Scope::Chat));
        assert_eq!(records[1].scopes, Scopes::All);
    }

    #[test]
    fn a_key_ends_at_a_moment_written_in_any_way() {
        let check = |written: &str, expected: Result<u64, &str>| {
            let text = format!("[[keys]]\nname = \"a\"\nkey = \"sk-a-key-of-some-length\"\nexpires = {written}\n");
            let found = parse(&text).map(|records| records[0].expires.expect("it is there"));
            assert_eq!(found, expected.map_err(|reason| format!("the key 'a': expires: {reason}")), "{written}");
        };
        let reason = "a moment is written as 2026-11-25 or 2026-11-25T18:30:00Z";
        check("1795564800", Ok(1_795_564_800));
        check("2026-11-25", Ok(1_795_564_800));
        check("2026-11-25T02:00:00+02:00", Ok(1_795_564_800));
        check("\"2026-11-25T00:00:00Z\"", Ok(1_795_564_800));
        for wrong in ["2026-11-25T00:00:00", "10:00:00", "\"90d\"", "-1", "true", "1.5"] {
            check(wrong, Err(reason));
        }
    }

    #[test]
    fn what_is_wrong_is_told_without_the_key() {
        let check = |text: &str, expected: &str| {
            let error = parse(text).map(|_| ()).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
            assert!(!error.contains("sk-very-secret"), "{error}");
        };
        check("[[keys]]\nname = \"a\"", "either a hash or a key");
        check("[[keys]]\nname = \"a\"\nhash = \"00\"", "64 hexadecimal digits");
        let scoped = "[[keys]]\nname = \"a\"\nkey = \"sk-very-secret-one-1\"\nscopes = [\"chat\", \"chit\"]";
        check(scoped, "the key 'a': there is no scope 'chit'; the scopes are chat, completions, ");
        check("[[keys]]\nname = \"a\"\nkey = \"sk-very-secret-one-1\"\ncolour = \"red\"", "colour");
        check("[[keys]]\nname = \"a\"\nkey = sk-very-secret-one-1", "line 3");
        check("keys = [\"sk-very-secret-one-1\"]", "line 1: expected ");
        check("keys = [\"a, expected sk-very-secret-one-1\"]", "line 1: expected ");
        check("keys = \"sk-very-secret-one-1\"", "line 1: expected a sequence");
        check("[[keys]]\nname = \"a\"\nmodels = \"sk-very-secret-one-1\"", "line 3: expected a sequence");
        let twice = "[[keys]]\nname = \"a\"\nkey = \"sk-very-secret-one-1\"\n";
        check(&twice.repeat(2), "twice");
        check("[[keys]]\nname = \"a\"\nkey = \"${NO_SUCH_VARIABLE_AT_ALL}\"", "NO_SUCH_VARIABLE_AT_ALL");
    }

    #[test]
    fn flags_of_the_reference_gateway_are_understood() {
        let record = of_flag(&Secret::new("ops:Operators:admin:sk:with:colons-and-length")).expect("it is one");
        assert_eq!((record.id.as_str(), &*record.name, record.role), ("ops", "Operators", Role::Admin));
        assert_eq!(of_flag(&Secret::new("a:b:user:sk-0123456789abcdef")).map(|key| key.role), Ok(Role::Viewer));
        assert!(of_flag(&Secret::new("a:b:root:sk-0123456789abcdef")).is_err());
        assert!(of_flag(&Secret::new("a:b:admin")).is_err());
    }

    #[tokio::test]
    async fn what_is_saved_is_loaded() {
        let folder = tempfile::tempdir().expect("the folder for temporary files takes one");
        let path = folder.path().join("keys.json");
        assert_eq!(load(&path).map(|records| records.len()), Ok(0));
        let records = vec![of_flag(&Secret::new("a:b:admin:sk-0123456789abcdef")).expect("it is one")];
        save(&path, &records).await.expect("there is room");
        let loaded = load(&path).expect("it was saved");
        assert_eq!((loaded.len(), &loaded[0].id, loaded[0].hash), (1, &records[0].id, records[0].hash));
    }
}
