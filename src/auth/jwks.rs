//! The keys with which an identity provider signs, as it publishes them (RFC 7517).

use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;

/// Longest document that is read, and most keys in it.
pub(crate) const BYTES_MAX: usize = 256 << 10;
const KEYS_MAX: usize = 64;

/// Longest name of a key, and bounds of an RSA modulus in bytes: shorter ones are broken, longer ones only cost time.
const KID_BYTES_MAX: usize = 256;
const MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1_024;

const OF_RSA: [Algorithm; 6] =
    [Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];

/// The keys of a provider that can check a signature.
#[derive(Default)]
pub(crate) struct KeySet(Vec<Key>);

/// One of them.
pub(crate) struct Key {
    kid: Option<String>,
    /// What it may be used for. This is the key's word: a token chooses among these and can add nothing.
    algorithms: Vec<Algorithm>,
    pub(crate) decoding: DecodingKey,
}

/// Why a document is not a set of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKeys {
    /// It is too long.
    #[error("it has more than {BYTES_MAX} bytes")]
    TooLong,
    /// It is something else.
    #[error("it is no JSON object with a list of keys")]
    Malformed,
    /// It has too many keys.
    #[error("it has more than {KEYS_MAX} keys")]
    TooMany,
    /// None of its keys can check a signature.
    #[error("none of its keys can check a signature that is taken here")]
    NoneUsable,
}

/// Why no key fits a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoKey {
    /// The set has none of this name.
    Unknown,
    /// The token names none, and the set has several.
    Ambiguous,
    /// The key is not for this algorithm.
    OtherAlgorithm,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Reads a set. Keys that are of no use here are left out, so that a provider may publish more than we know.
    pub(crate) fn read(document: &[u8]) -> Result<Self, BadKeys> {
        if document.len() > BYTES_MAX {
            return Err(BadKeys::TooLong);
        }
        let Document { keys } = serde_json::from_slice(document).map_err(|_| BadKeys::Malformed)?;
        if keys.len() > KEYS_MAX {
            return Err(BadKeys::TooMany);
        }
        let keys: Vec<Key> = keys.into_iter().filter_map(|key| Key::read(serde_json::from_value(key).ok()?)).collect();
        if keys.is_empty() { Err(BadKeys::NoneUsable) } else { Ok(Self(keys)) }
    }

    /// The key that signed a token with this head, if any did.
    pub(crate) fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<&Key, NoKey> {
        let Some(kid) = kid else {
            let [only] = &*self.0 else { return Err(NoKey::Ambiguous) };
            return only.fit_for(algorithm).ok_or(NoKey::OtherAlgorithm);
        };
        let mut named = self.0.iter().filter(|key| key.kid.as_deref() == Some(kid)).peekable();
        if named.peek().is_none() {
            return Err(NoKey::Unknown);
        }
        named.find_map(|key| key.fit_for(algorithm)).ok_or(NoKey::OtherAlgorithm)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Key {
    fn read(jwk: Jwk) -> Option<Self> {
        let signs = jwk.purpose.as_deref().is_none_or(|purpose| purpose == "sig");
        let checks = jwk.key_ops.as_ref().is_none_or(|uses| uses.iter().any(|one| one == "verify"));
        if !signs || !checks || jwk.kid.as_ref().is_some_and(|kid| kid.len() > KID_BYTES_MAX) {
            return None;
        }
        let of_curve = |algorithm, bytes| {
            let (x, y) = (jwk.x.as_deref()?, jwk.y.as_deref()?);
            (decoded_len(x) == bytes && decoded_len(y) == bytes).then_some(())?;
            Some((vec![algorithm], DecodingKey::from_ec_components(x, y).ok()?))
        };
        // A symmetric key ("oct") is nothing to publish, and a token that is "signed" with a public text is anybody's.
        let (mut algorithms, decoding) = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", _) => {
                let (n, e) = (jwk.n.as_deref()?, jwk.e.as_deref()?);
                (MODULUS_BYTES.contains(&decoded_len(n)) && decoded_len(e) <= 8).then_some(())?;
                (OF_RSA.to_vec(), DecodingKey::from_rsa_components(n, e).ok()?)
            }
            ("EC", Some("P-256")) => of_curve(Algorithm::ES256, 32)?,
            ("EC", Some("P-384")) => of_curve(Algorithm::ES384, 48)?,
            ("OKP", Some("Ed25519")) => {
                let x = jwk.x.as_deref().filter(|x| decoded_len(x) == 32)?;
                (vec![Algorithm::EdDSA], DecodingKey::from_ed_components(x).ok()?)
            }
            _ => return None,
        };
        if let Some(name) = &jwk.alg {
            // Ed25519 is what RFC 9864 calls the one curve of EdDSA that is known here.
            let name = if name == "Ed25519" { "EdDSA" } else { name };
            algorithms.retain(|algorithm| name.parse() == Ok::<_, jsonwebtoken::errors::Error>(*algorithm));
        }
        (!algorithms.is_empty()).then_some(Self { kid: jwk.kid, algorithms, decoding })
    }

    fn fit_for(&self, algorithm: Algorithm) -> Option<&Self> {
        self.algorithms.contains(&algorithm).then_some(self)
    }
}

/// Bytes behind a text in unpadded base64.
fn decoded_len(text: &str) -> usize {
    text.len() * 3 / 4
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use smg_base::{Random, SplitMix, fuzz};

    use super::*;
    use crate::testing::{Signer, base64};

    /// A key of the right form, though nobody has its other half.
    fn rsa() -> Value {
        json!({ "kty": "RSA", "kid": "rsa", "use": "sig", "n": base64(&[0xc5; 256]), "e": "AQAB" })
    }

    fn set(keys: &[Value]) -> Result<KeySet, BadKeys> {
        KeySet::read(json!({ "keys": keys }).to_string().as_bytes())
    }

    #[test]
    fn only_keys_that_can_check_a_signature_are_taken() {
        let (rsa, ec, edwards) = (rsa(), Signer::p256("ec").jwk(), Signer::ed25519("ed").jwk());
        let check = |key: &Value, change: Value, expected: &[Algorithm]| {
            let mut key = key.clone();
            for (name, value) in change.as_object().expect("it is an object") {
                key[name] = value.clone();
            }
            let taken = set(&[key.clone()]).map(|set| set.0[0].algorithms.clone()).unwrap_or_default();
            assert_eq!(taken, expected, "{key}");
        };
        check(&rsa, json!({}), &OF_RSA);
        check(&rsa, json!({ "alg": "PS384" }), &[Algorithm::PS384]);
        check(&rsa, json!({ "alg": "RSA-OAEP" }), &[]);
        check(&rsa, json!({ "alg": "HS256" }), &[]);
        check(&rsa, json!({ "use": "enc" }), &[]);
        check(&rsa, json!({ "key_ops": ["verify"] }), &OF_RSA);
        check(&rsa, json!({ "key_ops": ["encrypt"] }), &[]);
        check(&rsa, json!({ "n": base64(&[0xff; 128]) }), &[]);
        check(&rsa, json!({ "n": base64(&[0xff; 2_048]) }), &[]);
        check(&rsa, json!({ "n": "not base64 at all".repeat(20) }), &[]);
        check(&rsa, json!({ "e": base64(&[0xff; 64]) }), &[]);
        check(&rsa, json!({ "e": null }), &[]);
        check(&rsa, json!({ "kid": "x".repeat(257) }), &[]);
        check(&rsa, json!({ "kid": 7 }), &[]);
        check(&ec, json!({}), &[Algorithm::ES256]);
        check(&ec, json!({ "alg": "ES384" }), &[]);
        check(&ec, json!({ "crv": "P-384" }), &[]);
        check(&ec, json!({ "crv": "secp256k1" }), &[]);
        check(&ec, json!({ "y": "AA" }), &[]);
        check(&edwards, json!({}), &[Algorithm::EdDSA]);
        check(&edwards, json!({ "alg": "Ed25519" }), &[Algorithm::EdDSA]);
        check(&edwards, json!({ "crv": "X25519" }), &[]);
        check(&json!({ "kty": "oct", "k": "c2VjcmV0" }), json!({}), &[]);
        check(&json!({}), json!({}), &[]);
    }

    #[test]
    fn keys_of_no_use_are_left_out_beside_others() {
        let read = set(&[
            json!(null),
            json!({ "kty": "new" }),
            Signer::p384("big").jwk(),
            json!("x"),
            Signer::p256("ec").jwk(),
        ]);
        assert_eq!(read.map(|set| set.len()), Ok(2));
    }

    #[test]
    fn two_keys_of_one_name_are_told_by_what_they_are_for() {
        let both = set(&[rsa(), Signer::p256("rsa").jwk()]).unwrap_or_else(|error| panic!("{error}"));
        let found = |algorithm| both.find(Some("rsa"), algorithm).map(|key| key.algorithms.len());
        assert_eq!(found(Algorithm::RS256), Ok(OF_RSA.len()));
        assert_eq!(found(Algorithm::ES256), Ok(1));
        assert_eq!(found(Algorithm::EdDSA), Err(NoKey::OtherAlgorithm));
        assert_eq!(both.find(None, Algorithm::RS256).map(|_| ()), Err(NoKey::Ambiguous));
        assert_eq!(both.find(Some("Rsa"), Algorithm::RS256).map(|_| ()), Err(NoKey::Unknown));
    }

    #[test]
    fn mutated_key_sets_are_read_or_refused() {
        let seed = json!({ "keys": [rsa(), Signer::p256("ec").jwk(), Signer::ed25519("ed").jwk()] }).to_string();
        let random = SplitMix::new(fuzz::seed(6));
        let below = |bound: usize| usize::try_from(random.next_u64() % bound as u64).unwrap_or(0);
        for _ in 0..fuzz::inputs(20_000) {
            let mut bytes = seed.clone().into_bytes();
            for _ in 0..=below(6) {
                let at = below(bytes.len());
                match below(3) {
                    0 => bytes[at] = random.next_u64().to_le_bytes()[0],
                    1 if bytes.len() > 1 => drop(bytes.remove(at)),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            if let Ok(keys) = KeySet::read(&bytes) {
                assert!((1..=KEYS_MAX).contains(&keys.len()));
                let _found = keys.find(Some("rsa"), Algorithm::RS256);
            }
        }
    }
}
