//! An identity provider without a network: keys that sign whatever they are told to, and documents by their addresses.

use std::{collections::BTreeMap, sync::Arc};

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeySize,
    signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaEncoding, RsaKeyPair},
};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::fetch::{Fetch, FetchError};

/// A key of the provider.
pub(crate) struct Signer {
    kid: Option<&'static str>,
    pair: Pair,
}

enum Pair {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl Signer {
    pub(crate) fn rsa(kid: &'static str) -> Self {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).expect("the system has randomness");
        Self { kid: Some(kid), pair: Pair::Rsa(pair) }
    }

    pub(crate) fn p256(kid: &'static str) -> Self {
        let pair = EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING);
        Self { kid: Some(kid), pair: Pair::P256(pair.expect("the system has randomness")) }
    }

    pub(crate) fn p384(kid: &'static str) -> Self {
        let pair = EcdsaKeyPair::generate(&signature::ECDSA_P384_SHA384_FIXED_SIGNING);
        Self { kid: Some(kid), pair: Pair::P384(pair.expect("the system has randomness")) }
    }

    pub(crate) fn ed25519(kid: &'static str) -> Self {
        Self { kid: Some(kid), pair: Pair::Ed25519(Ed25519KeyPair::generate().expect("the system has randomness")) }
    }

    /// The same, without a name.
    pub(crate) fn nameless(self) -> Self {
        Self { kid: None, ..self }
    }

    /// What it publishes.
    pub(crate) fn jwk(&self) -> Value {
        let of_curve = |point: &[u8], name: &str| {
            let (x, y) = point[1..].split_at(point.len() / 2);
            json!({ "kty": "EC", "crv": name, "x": base64(x), "y": base64(y), "use": "sig" })
        };
        let mut jwk = match &self.pair {
            Pair::Rsa(pair) => {
                // A sequence of two integers; with 2048 bits and the exponent 65537 each is where it always is.
                let der = pair.public_key().as_ref();
                json!({ "kty": "RSA", "n": base64(&der[9..265]), "e": base64(&der[267..]), "use": "sig" })
            }
            Pair::P256(pair) => of_curve(pair.public_key().as_ref(), "P-256"),
            Pair::P384(pair) => of_curve(pair.public_key().as_ref(), "P-384"),
            Pair::Ed25519(pair) => json!({ "kty": "OKP", "crv": "Ed25519", "x": base64(pair.public_key().as_ref()) }),
        };
        if let Some(kid) = self.kid {
            jwk["kid"] = kid.into();
        }
        jwk
    }

    /// A token in this algorithm.
    pub(crate) fn token_in(&self, algorithm: &str, claims: &Value) -> String {
        let mut head = json!({ "typ": "JWT", "alg": algorithm });
        if let Some(kid) = self.kid {
            head["kid"] = kid.into();
        }
        self.token_with(&head, claims)
    }

    /// A token in the algorithm that is usual for the key.
    pub(crate) fn token(&self, claims: &Value) -> String {
        let algorithm = match &self.pair {
            Pair::Rsa(_) => "RS256",
            Pair::P256(_) => "ES256",
            Pair::P384(_) => "ES384",
            Pair::Ed25519(_) => "EdDSA",
        };
        self.token_in(algorithm, claims)
    }

    /// A token with this head, signed as it says; as is usual for the key if that cannot be done.
    pub(crate) fn token_with(&self, head: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", base64(head.to_string().as_bytes()), base64(claims.to_string().as_bytes()));
        let signature = self.sign(head["alg"].as_str().unwrap_or_default(), message.as_bytes());
        format!("{message}.{}", base64(&signature))
    }

    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Rsa(pair) => {
                let encoding: &'static dyn RsaEncoding = match algorithm {
                    "RS384" => &signature::RSA_PKCS1_SHA384,
                    "RS512" => &signature::RSA_PKCS1_SHA512,
                    "PS256" => &signature::RSA_PSS_SHA256,
                    "PS384" => &signature::RSA_PSS_SHA384,
                    "PS512" => &signature::RSA_PSS_SHA512,
                    _ => &signature::RSA_PKCS1_SHA256,
                };
                let mut signed = vec![0; pair.public_modulus_len()];
                pair.sign(encoding, &random, message, &mut signed).expect("the key is whole");
                signed
            }
            Pair::P256(pair) | Pair::P384(pair) => {
                pair.sign(&random, message).expect("the key is whole").as_ref().to_vec()
            }
            Pair::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }
}

/// Base64 as tokens have it: for addresses, without padding.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        let digit = |index: usize| char::from(ALPHABET[(bits >> (18 - 6 * index)) as usize % 64]);
        text.extend((0..=group.len()).map(digit));
    }
    text
}

/// The documents of a provider.
pub(crate) struct Site {
    documents: Mutex<BTreeMap<String, Vec<u8>>>,
    /// Requests that came.
    asked: watch::Sender<usize>,
    /// Whether requests are answered at all; they wait until they are.
    answers: watch::Sender<Answers>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answers {
    /// At once.
    Now,
    /// When it is told to.
    Later,
}

pub(crate) const ISSUER: &str = "https://id.test/realm";
pub(crate) const DISCOVERY: &str = "https://id.test/realm/.well-known/openid-configuration";
pub(crate) const KEYS: &str = "https://keys.test/jwks?v=1";

impl Site {
    /// One with a description and these keys.
    pub(crate) fn with(signers: &[&Signer]) -> Arc<Self> {
        let site = Self {
            documents: Mutex::default(),
            asked: watch::Sender::new(0),
            answers: watch::Sender::new(Answers::Now),
        };
        site.put(DISCOVERY, json!({ "issuer": ISSUER, "jwks_uri": KEYS }));
        site.publish(signers);
        Arc::new(site)
    }

    pub(crate) fn publish(&self, signers: &[&Signer]) {
        let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
        self.put(KEYS, json!({ "keys": keys }));
    }

    pub(crate) fn put(&self, url: &str, document: impl ToString) {
        self.documents.lock().insert(url.to_owned(), document.to_string().into_bytes());
    }

    pub(crate) fn remove(&self, url: &str) {
        self.documents.lock().remove(url);
    }

    pub(crate) fn set_answers(&self, answers: Answers) {
        self.answers.send_replace(answers);
    }

    pub(crate) fn asked(&self) -> usize {
        *self.asked.borrow()
    }

    /// Waits until this many requests came.
    pub(crate) async fn is_asked(&self, times: usize) {
        let mut asked = self.asked.subscribe();
        asked.wait_for(|asked| *asked >= times).await.expect("the site is there");
    }
}

impl Fetch for Site {
    fn get(&self, url: &str, _bytes_max: usize) -> BoxFuture<'static, Result<Vec<u8>, FetchError>> {
        self.asked.send_modify(|asked| *asked += 1);
        let document = self.documents.lock().get(url).cloned();
        let mut answers = self.answers.subscribe();
        Box::pin(async move {
            let _open = answers.wait_for(|answers| *answers == Answers::Now).await;
            document.ok_or_else(|| FetchError::new("it answers with status 404"))
        })
    }
}
