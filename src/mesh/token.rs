//! What follows from the secret that nodes share: the cluster's authority, and the key under which secrets are sealed.

use aws_lc_rs::{
    aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest,
    hkdf::{HKDF_SHA256, KeyType, Prk, Salt},
    hmac, rand,
    signature::Ed25519KeyPair,
};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use smg_base::Secret;

/// Fewest characters of a token: 128 bits in base 64.
pub const TOKEN_CHARS_MIN: usize = 22;

/// Bytes that [`Keys::reset`] and the others give.
const KEY_BYTES: usize = 32;

/// Format of what [`Keys::seal`] gives.
const SEALED_VERSION: u8 = 1;

/// Makes a token: 256 bits from the operating system.
pub fn new_token() -> Secret {
    let mut bytes = [0_u8; KEY_BYTES];
    rand::fill(&mut bytes).expect("the system's source of randomness works");
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Secret::new(format!("smg1_{digits}"))
}

/// Keys that follow from a secret (HKDF with SHA-256, RFC 5869).
pub(crate) struct Keys {
    source: Prk,
}

impl Keys {
    /// Those of `secret`.
    pub(crate) fn of(secret: &[u8]) -> Self {
        Self { source: Salt::new(HKDF_SHA256, b"smg-mesh/1").extract(secret) }
    }

    /// The authority that signs the nodes of everybody with this secret. Every node derives the same one: Ed25519 keys and
    /// signatures have no randomness of their own.
    pub(crate) fn authority(&self) -> Authority {
        let seed = self.derive(&[b"authority"]);
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("32 bytes are a seed");
        let document = pair.to_pkcs8().expect("a key of this kind has this form");
        let der = PrivatePkcs8KeyDer::from(document.as_ref().to_vec());
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519).expect("the key was just made");
        Authority::new(key)
    }

    /// The key by which a restarted node tells its peers that it has forgotten their connections.
    pub(crate) fn reset(&self, node: &str) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.derive(&[b"reset", b"/", node.as_bytes()]))
    }

    /// Encrypts so that every node with this secret makes the same bytes of the same text: what is replicated must not
    /// change each time that it is written.
    pub(crate) fn seal(&self, plain: &[u8]) -> Vec<u8> {
        let mut sealed = vec![SEALED_VERSION];
        let mut nonce = [0_u8; NONCE_LEN];
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.derive(&[b"seal nonce"]));
        nonce.copy_from_slice(&hmac::sign(&key, plain).as_ref()[..NONCE_LEN]);
        sealed.extend_from_slice(&nonce);
        let mut text = plain.to_vec();
        let tag = self
            .sealing()
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from([SEALED_VERSION]), &mut text)
            .expect("the text is shorter than the cipher's limit");
        sealed.extend_from_slice(&text);
        sealed.extend_from_slice(tag.as_ref());
        sealed
    }

    /// What was sealed; none if it was with another secret, or changed since.
    pub(crate) fn unseal(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        let (&version, rest) = sealed.split_first()?;
        let (nonce, text) = rest.split_first_chunk::<NONCE_LEN>()?;
        if version != SEALED_VERSION {
            return None;
        }
        let mut text = text.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = self.sealing().open_in_place(nonce, Aad::from([version]), &mut text).ok()?;
        Some(plain.to_vec())
    }

    /// Its nonce is a keyed hash of the text, so this cipher's resistance to repeated nonces is a second line only.
    fn sealing(&self) -> LessSafeKey {
        LessSafeKey::new(
            UnboundKey::new(&AES_256_GCM_SIV, &self.derive(&[b"seal"])).expect("the key has the right length"),
        )
    }

    fn derive(&self, purpose: &[&[u8]]) -> [u8; KEY_BYTES] {
        let mut key = [0; KEY_BYTES];
        let derived = self.source.expand(purpose, Length).expect("the length is allowed");
        derived.fill(&mut key).expect("the length is the one asked for");
        key
    }
}

struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        KEY_BYTES
    }
}

/// One that signs certificates of nodes.
pub(crate) struct Authority {
    /// Its own certificate.
    pub(crate) certificate: Certificate,
    /// What signs.
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The one with this key.
    pub(crate) fn new(key: KeyPair) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // Two authorities must not have one name: a certificate by the other would look forged, not foreign.
        let public = digest::digest(&digest::SHA256, key.public_key_raw());
        let mark: String = public.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        params.distinguished_name.push(DnType::CommonName, format!("smg mesh {mark}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).expect("the parameters are complete");
        Self { certificate, issuer: Issuer::new(params, key) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_long_and_differ() {
        let (one, other) = (new_token(), new_token());
        assert_ne!(one, other);
        assert!(one.expose().len() >= TOKEN_CHARS_MIN && one.expose().starts_with("smg1_"));
    }

    #[test]
    fn the_same_token_makes_the_same_authority_everywhere() {
        let spki = |token: &str| Keys::of(token.as_bytes()).authority().issuer.key().public_key_raw().to_vec();
        assert_eq!(spki("a"), spki("a"));
        assert_ne!(spki("a"), spki("b"));
    }

    #[test]
    fn what_is_sealed_opens_with_the_same_token_only_and_only_unchanged() {
        let keys = Keys::of(b"a");
        for plain in [&b""[..], b"sk-1", &[7; 1_000]] {
            let sealed = keys.seal(plain);
            assert_eq!(sealed, Keys::of(b"a").seal(plain), "the same bytes on every node");
            assert_eq!(keys.unseal(&sealed).as_deref(), Some(plain));
            assert_eq!(Keys::of(b"b").unseal(&sealed), None);
            for at in 0..sealed.len() {
                let mut changed = sealed.clone();
                changed[at] ^= 1;
                assert_eq!(keys.unseal(&changed), None, "byte {at}");
                assert_eq!(keys.unseal(&sealed[..at]), None, "cut at {at}");
            }
        }
        assert_ne!(keys.seal(b"a")[1..], keys.seal(b"b")[1..]);
    }
}
