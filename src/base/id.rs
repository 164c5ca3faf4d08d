//! Identifiers. Each is its own type, so that a worker's id cannot be passed where a model's is wanted.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::hash;

/// Identifies a worker: a hash of its normalised URL, and of a scope where the URL means something else on each
/// node (loopback, link-local). It is stable over restarts and equal on all nodes, and is written as a UUID
/// (version 8, RFC 9562 §5.8) because tools that manage workers expect one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(u128);

impl WorkerId {
    /// The id of the worker at `url` (already normalised) within `scope`.
    pub fn of(url: &str, scope: Option<&str>) -> Self {
        let mut keyed = Vec::with_capacity(url.len() + 1 + scope.map_or(0, str::len));
        keyed.extend_from_slice(url.as_bytes());
        if let Some(scope) = scope {
            keyed.push(b'\n');
            keyed.extend_from_slice(scope.as_bytes());
        }
        let version = 0x8_u128 << 76;
        let variant = 0b10_u128 << 62;
        let free = !((0xf_u128 << 76) | (0b11_u128 << 62));
        Self((hash::stable128(&keyed) & free) | version | variant)
    }

    /// The id as a number, for hashing and ordering.
    pub fn as_u128(self) -> u128 {
        self.0
    }

    /// The id that this number is: what another node sent as a number.
    pub const fn from_u128(number: u128) -> Self {
        Self(number)
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = self.0;
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            hex >> 96,
            (hex >> 80) & 0xffff,
            (hex >> 64) & 0xffff,
            (hex >> 48) & 0xffff,
            hex & 0xffff_ffff_ffff
        )
    }
}

impl fmt::Debug for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a worker id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a worker id is a UUID such as 1b4e28ba-2fa1-81d2-883f-0016d3cca427")]
pub struct NotAWorkerId;

impl FromStr for WorkerId {
    type Err = NotAWorkerId;

    fn from_str(text: &str) -> Result<Self, NotAWorkerId> {
        let groups = [8, 4, 4, 4, 12];
        let mut parts = text.split('-');
        let mut id = 0_u128;
        for length in groups {
            let part = parts.next().filter(|part| part.len() == length).ok_or(NotAWorkerId)?;
            if !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(NotAWorkerId);
            }
            let value = u128::from_str_radix(part, 16).map_err(|_| NotAWorkerId)?;
            id = (id << (4 * length)) | value;
        }
        match parts.next() {
            None => Ok(Self(id)),
            Some(_) => Err(NotAWorkerId),
        }
    }
}

impl Serialize for WorkerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WorkerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Identifies another node of the mesh to the parts that send requests through it and know nothing else of the mesh.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u128);

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0 >> 96)
    }
}

/// Declares an id that is a shared, immutable string.
macro_rules! text_id {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer).map(Self::from)
            }
        }
    };
}

text_id! {
    /// The name under which workers serve a model (never an alias).
    ModelId
}

text_id! {
    /// Identifies one request: the caller's `x-request-id` where it is acceptable, else one made here.
    RequestId
}

text_id! {
    /// Names whom limits, usage and stored objects belong to.
    TenantId
}

text_id! {
    /// Names an API key without telling it.
    KeyId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_id_is_a_version_8_uuid_and_survives_a_round_trip() {
        let id = WorkerId::of("http://10.0.0.1:8000", None);
        let text = id.to_string();
        assert_eq!(text.len(), 36);
        assert_eq!(&text[14..15], "8");
        assert!(matches!(&text[19..20], "8" | "9" | "a" | "b"));
        assert_eq!(text.parse(), Ok(id));
    }

    #[test]
    fn the_scope_tells_loopback_workers_of_two_nodes_apart() {
        let url = "http://127.0.0.1:8000";
        assert_eq!(WorkerId::of(url, Some("a")), WorkerId::of(url, Some("a")));
        assert_ne!(WorkerId::of(url, Some("a")), WorkerId::of(url, Some("b")));
        assert_ne!(WorkerId::of(url, None), WorkerId::of(url, Some("")));
    }

    #[test]
    fn text_that_is_no_uuid_is_refused() {
        for bad in [
            "",
            "x",
            "1b4e28ba2fa181d2883f0016d3cca427",
            "1b4e28ba-2fa1-81d2-883f-0016d3cca427-",
            "+b4e28ba-2fa1-81d2-883f-0016d3cca427",
        ] {
            assert_eq!(bad.parse::<WorkerId>(), Err(NotAWorkerId), "{bad}");
        }
    }
}
