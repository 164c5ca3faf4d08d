//! Settings that all nodes of a cluster share. They come before a node's own.

use std::{collections::BTreeSet, fmt, str::FromStr};

use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use smg_base::{ModelId, map::StableMap};
use smg_routing::{Overrides, PolicyKind};

/// What holds on every node, besides aliases, which the fleet knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SharedSettings {
    /// The policies of models; their parameters stay each node's own.
    pub policies: StableMap<ModelId, PolicyKind>,
    /// Routing keys that an operator has given a worker.
    pub sticky: Overrides,
    /// Keys that open nothing any more, whoever else says that they do.
    pub revoked: BTreeSet<KeyHash>,
}

/// The SHA-256 of a key, written in hexadecimal: it can be told around without telling the key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// The hash of a key.
    pub fn of(key: &str) -> Self {
        let suite = TLS13_AES_128_GCM_SHA256.tls13().expect("it is a suite of TLS 1.3");
        let mut hash = [0; 32];
        hash.copy_from_slice(suite.common.hash_provider.hash(key.as_bytes()).as_ref());
        Self(hash)
    }

    /// The hash that these bytes are.
    pub const fn from_bytes(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    /// Its bytes.
    pub const fn bytes(self) -> [u8; 32] {
        self.0
    }
}

/// The text is no hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key is revoked by its SHA-256 in 64 hexadecimal digits: printf %s \"$KEY\" | sha256sum")]
pub struct NotAKeyHash;

impl FromStr for KeyHash {
    type Err = NotAKeyHash;

    fn from_str(text: &str) -> Result<Self, NotAKeyHash> {
        let digits = text.as_bytes();
        let mut hash = [0; 32];
        if digits.len() != 2 * hash.len() {
            return Err(NotAKeyHash);
        }
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |digit: u8| char::from(digit).to_digit(16).ok_or(NotAKeyHash);
            let value = digit(pair[0])? << 4 | digit(pair[1])?;
            *byte = u8::try_from(value).map_err(|_| NotAKeyHash)?;
        }
        Ok(Self(hash))
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_by_its_sha_256() {
        // FIPS 180-2, appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(KeyHash::of("abc").to_string(), abc);
        assert_eq!(abc.to_uppercase().parse(), Ok(KeyHash::of("abc")));
        for text in ["", "abc", &abc[1..], &format!("{abc}0"), &abc.replace('b', "ü"), &abc.replace('b', "g")] {
            assert_eq!(text.parse::<KeyHash>(), Err(NotAKeyHash), "{text}");
        }
    }
}
