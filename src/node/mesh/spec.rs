//! A worker's specification as nodes tell each other: the same bytes for the same worker on every node that declares it, for
//! the mesh knows a declaration by them.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smg_base::{Secret, WorkerId};
use smg_fleet::WorkerSpec;

use super::link::Link;

/// What goes over the wire. A key that stands behind a worker is sealed: the wire, the disk and whoever lists workers never
/// see it.
#[derive(Debug, Serialize, Deserialize)]
struct Wire {
    spec: WorkerSpec,
    /// The machine that is meant by an address such as 127.0.0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
    /// The key, sealed, in hexadecimal digits; empty where this node cannot seal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

/// A specification that another node, or this one, has told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Told {
    /// The specification, with its key if that could be read.
    pub(crate) spec: WorkerSpec,
    /// The machine that is meant, where the address means another one on each machine.
    pub(crate) scope: Option<String>,
    /// Whether there is a key that only other nodes can read.
    pub(crate) key: KeyState,
}

/// Whether a worker's key is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyState {
    /// It is, or there is none.
    Known,
    /// There is one, sealed so that this node cannot read it.
    Sealed,
}

/// Why bytes are not a specification.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    /// They do not read: a newer node may have written them, or a broken one.
    #[error("the specification cannot be read: {0}")]
    Unreadable(serde_json::Error),
    /// They are about another worker.
    #[error("the specification is that of another worker")]
    OtherWorker,
}

/// The bytes for a worker. `scope` counts only where its address means another machine on each.
pub(crate) fn encode(spec: &WorkerSpec, scope: &str, link: &dyn Link) -> Bytes {
    let wire = Wire {
        scope: spec.url.is_host_local().then(|| scope.to_owned()),
        key: spec.api_key.as_ref().map(|key| hex(&link.seal(key.expose().as_bytes()))),
        spec: spec.clone(),
    };
    serde_json::to_vec(&wire).expect("all keys of a specification are text").into()
}

/// Reads the bytes for `worker`.
pub(crate) fn decode(worker: WorkerId, bytes: &[u8], link: &dyn Link) -> Result<Told, SpecError> {
    let wire: Wire = serde_json::from_slice(bytes).map_err(SpecError::Unreadable)?;
    if wire.spec.url.id(wire.scope.as_deref()) != worker {
        return Err(SpecError::OtherWorker);
    }
    let mut spec = wire.spec;
    // A key in clear is nothing that a node writes.
    spec.api_key = wire.key.as_deref().and_then(|sealed| open(sealed, link));
    let key = if wire.key.is_some() && spec.api_key.is_none() { KeyState::Sealed } else { KeyState::Known };
    Ok(Told { spec, scope: wire.scope, key })
}

fn open(sealed: &str, link: &dyn Link) -> Option<Secret> {
    let plain = link.unseal(&unhex(sealed)?)?;
    String::from_utf8(plain).ok().map(Secret::new)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    digits.chunks_exact(2).map(|pair| Some(value(pair[0])? << 4 | value(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::testing::FakeLink;

    fn spec(url: &str, key: Option<&str>) -> WorkerSpec {
        let mut spec = WorkerSpec::new(url.parse().expect("it is a url"));
        spec.api_key = key.map(Secret::new);
        spec.labels.insert("rack".to_owned(), "b2".to_owned());
        spec
    }

    #[test]
    fn a_specification_comes_back_as_it_was() {
        let link = FakeLink::new();
        let check = |url: &str, key: Option<&str>, scope: Option<&str>| {
            let spec = spec(url, key);
            let id = spec.url.id(Some("here"));
            let bytes = encode(&spec, "here", &*link);
            assert_eq!(bytes, encode(&spec, "here", &*link), "{url}: equal bytes on every node");
            assert!(!String::from_utf8_lossy(&bytes).contains("sk-1"), "{url}: the key is sealed");
            let told = decode(id, &bytes, &*link).unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!((told.spec, told.scope.as_deref(), told.key), (spec, scope, KeyState::Known), "{url}");
        };
        check("http://10.0.0.1:8000", None, None);
        check("http://10.0.0.1:8000", Some("sk-1"), None);
        check("http://127.0.0.1:8000", Some("sk-1"), Some("here"));
    }

    #[test]
    fn what_is_not_about_the_worker_is_refused() {
        let link = FakeLink::new();
        let one = spec("http://127.0.0.1:8000", None);
        let bytes = encode(&one, "here", &*link);
        assert!(matches!(decode(one.url.id(Some("there")), &bytes, &*link), Err(SpecError::OtherWorker)));
        for bad in ["", "{}", "[]", r#"{"spec":{"url":"http://a","colour":1}}"#, r#"{"spec":{"url":"ftp://a"}}"#] {
            let read = decode(one.url.id(None), bad.as_bytes(), &*link);
            assert!(matches!(read, Err(SpecError::Unreadable(_))), "{bad}");
        }
    }

    #[test]
    fn a_key_that_cannot_be_opened_is_told() {
        let link = FakeLink::new();
        let one = spec("http://10.0.0.1", Some("sk-1"));
        let bytes = encode(&one, "here", &*link);
        link.forget_secret();
        let told = decode(one.url.id(None), &bytes, &*link).expect("the rest can be read");
        assert_eq!((told.spec.api_key, told.key), (None, KeyState::Sealed));
    }
}
