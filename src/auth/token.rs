//! Tokens: what may be read in one before its signature is checked, and what must hold of its claims after.

use std::time::Duration;

use jsonwebtoken::{Algorithm, Validation};
use serde_json::{Map, Value};

use crate::jwks::{Key, KeySet, NoKey};

/// Longest token that is looked at: no shorter than what a header of a request can carry in practice.
const BYTES_MAX: usize = 16 << 10;

/// Latest time that is believed, so that sums stay in range: the year 33658.
const SECONDS_MAX: f64 = 1e12;

/// The algorithms that are taken: those with a public key. With a shared secret, whoever can check can also make.
const TAKEN: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// What a token says once it is believed.
pub(crate) type Claims = Map<String, Value>;

/// Why a token is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFault {
    /// It is no token, or not signed in a way that is taken.
    Malformed,
    /// It is for something else than calling.
    Type,
    /// It wants something understood that is not.
    Critical,
    /// It is not signed in a way that is taken, or not in one that its key is for.
    Algorithm,
    /// The provider has no such key.
    UnknownKey,
    /// Somebody else made it, or changed it.
    Signature,
    /// It is past its time, or has none.
    Expired,
    /// Its time has not come.
    NotYet,
    /// Another provider made it.
    Issuer,
    /// It is meant for somebody else.
    Audience,
    /// It does not say whose it is.
    Tenant,
}

impl TokenFault {
    /// The label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "token_malformed",
            Self::Type => "token_type",
            Self::Critical => "token_critical",
            Self::Algorithm => "token_algorithm",
            Self::UnknownKey => "token_unknown_key",
            Self::Signature => "token_signature",
            Self::Expired => "token_expired",
            Self::NotYet => "token_not_yet",
            Self::Issuer => "token_issuer",
            Self::Audience => "token_audience",
            Self::Tenant => "token_tenant",
        }
    }
}

/// Whether a credential claims to be a token: three parts, of which the first is the head of one. It is then never tried as a
/// key.
pub(crate) fn is_token(offered: &str) -> bool {
    // The beginning of every JSON object in base64, if no space stands in front of its first name.
    offered.starts_with("ey") && offered.bytes().filter(|byte| *byte == b'.').count() == 2
}

/// What may be believed of a token before its signature is checked: which key would prove it.
#[derive(Debug)]
pub(crate) struct Head {
    kid: Option<String>,
    algorithm: Algorithm,
}

impl Head {
    /// Reads the head of a token. Keys that a token brings along or points to (`jwk`, `jku`, `x5c`, `x5u`) are not looked at.
    pub(crate) fn read(token: &str) -> Result<Self, TokenFault> {
        if token.len() > BYTES_MAX {
            return Err(TokenFault::Malformed);
        }
        // An algorithm that is not known, "none" among them, fails here.
        let head = jsonwebtoken::decode_header(token).map_err(|_| TokenFault::Malformed)?;
        if head.crit.is_some() {
            return Err(TokenFault::Critical);
        }
        // RFC 8725 §3.11: what providers sign for other ends, such as logout, must not pass for a login.
        let kind = head.typ.as_deref().map(|kind| kind.rsplit('/').next().unwrap_or(kind));
        if kind.is_some_and(|kind| !kind.eq_ignore_ascii_case("jwt") && !kind.eq_ignore_ascii_case("at+jwt")) {
            return Err(TokenFault::Type);
        }
        if !TAKEN.contains(&head.alg) {
            return Err(TokenFault::Algorithm);
        }
        Ok(Self { kid: head.kid, algorithm: head.alg })
    }

    /// Whether the provider may have a newer key that would prove the token: where the one that it names is not known, or where
    /// it names none and the only key there is did not sign it.
    pub(crate) fn may_have_newer_key(&self, fault: TokenFault) -> bool {
        match self.kid {
            Some(_) => fault == TokenFault::UnknownKey,
            None => fault == TokenFault::Signature,
        }
    }

    /// What the token claims, if a key of the set signed it.
    pub(crate) fn verify(&self, token: &str, keys: &KeySet) -> Result<Claims, TokenFault> {
        let key = keys.find(self.kid.as_deref(), self.algorithm).map_err(|missing| match missing {
            NoKey::Unknown | NoKey::Ambiguous => TokenFault::UnknownKey,
            NoKey::OtherAlgorithm => TokenFault::Algorithm,
        })?;
        self.verify_with(token, key)
    }

    fn verify_with(&self, token: &str, key: &Key) -> Result<Claims, TokenFault> {
        // Only the signature; the claims are judged below, by our own clock.
        let mut signature_only = Validation::new(self.algorithm);
        signature_only.required_spec_claims.clear();
        signature_only.validate_exp = false;
        signature_only.validate_aud = false;
        let found = jsonwebtoken::decode::<Claims>(token, &key.decoding, &signature_only);
        found.map(|token| token.claims).map_err(|error| match error.kind() {
            jsonwebtoken::errors::ErrorKind::InvalidSignature => TokenFault::Signature,
            _ => TokenFault::Malformed,
        })
    }
}

/// What must hold of the claims of a token.
#[derive(Clone, Debug)]
pub(crate) struct Expected<'a> {
    pub(crate) issuer: &'a str,
    pub(crate) audiences: &'a [String],
    pub(crate) leeway: Duration,
}

impl Expected<'_> {
    /// Checks the claims at this time since the Unix epoch.
    pub(crate) fn check(&self, claims: &Claims, now: Duration) -> Result<(), TokenFault> {
        let time = |name: &str| match claims.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let seconds = value.as_f64().filter(|seconds| (0.0..=SECONDS_MAX).contains(seconds));
                seconds.map(|seconds| Some(Duration::from_secs_f64(seconds))).ok_or(TokenFault::Malformed)
            }
        };
        // What tells of a logout or the like is told by this claim, whatever its head says (RFC 8417 §2.2).
        if claims.contains_key("events") {
            return Err(TokenFault::Type);
        }
        if claims.get("iss").and_then(Value::as_str) != Some(self.issuer) {
            return Err(TokenFault::Issuer);
        }
        if !self.is_for_us(claims.get("aud")) {
            return Err(TokenFault::Audience);
        }
        // A token that never ends is one that nobody can take back.
        let expires = time("exp")?.ok_or(TokenFault::Expired)?;
        if expires + self.leeway <= now {
            return Err(TokenFault::Expired);
        }
        let latest = now + self.leeway;
        if [time("nbf")?, time("iat")?].into_iter().flatten().any(|begins| begins > latest) {
            return Err(TokenFault::NotYet);
        }
        Ok(())
    }

    fn is_for_us(&self, audience: Option<&Value>) -> bool {
        let is_ours = |one: &Value| one.as_str().is_some_and(|one| self.audiences.iter().any(|ours| ours == one));
        match audience {
            Some(Value::Array(several)) => several.iter().any(is_ours),
            Some(one) => is_ours(one),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use smg_base::{Random, SplitMix, fuzz};

    use super::*;
    use crate::testing::{Signer, base64};

    #[test]
    fn tokens_are_told_from_keys() {
        let check = |offered: &str, expected: bool| assert_eq!(is_token(offered), expected, "{offered}");
        check("eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJ4In0.c2ln", true);
        check("eyJhbGciOiJub25lIn0.eyJpc3MiOiJ4In0.", true);
        check("eyJ..", true);
        check("eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJ4In0", false);
        check("eyJhbGciOiJSU0EtT0FFUCJ9.a.b.c.d", false);
        check("smg-0123456789", false);
        check("sk-a.b.c", false);
        check("", false);
    }

    #[test]
    fn mutated_tokens_are_refused_or_say_what_was_signed() {
        let signer = Signer::p256("ec");
        let document = json!({ "keys": [signer.jwk()] }).to_string();
        let keys = KeySet::read(document.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
        let head = json!({ "alg": "ES256", "kid": "ec", "typ": "JWT", "crit": null, "x5c": ["AA"] });
        let claims = json!({ "iss": "i", "aud": ["smg"], "exp": 500.5, "nbf": 10, "iat": 10, "org": { "id": 1 } });
        let good = signer.token_with(&head, &claims);
        let parts: Vec<&str> = good.split('.').collect();
        let audiences = ["smg".to_owned()];
        let expected = Expected { issuer: "i", audiences: &audiences, leeway: Duration::from_secs(30) };
        let random = SplitMix::new(fuzz::seed(7));
        let below = |bound: usize| usize::try_from(random.next_u64() % bound as u64).unwrap_or(0);
        let mutated = |text: &str| {
            let mut bytes = text.as_bytes().to_vec();
            for _ in 0..=below(4) {
                let at = below(bytes.len());
                match below(4) {
                    0 => bytes[at] = random.next_u64().to_le_bytes()[0],
                    1 => bytes[at] = b"{}[]\":,.0eE-_=A"[below(15)],
                    2 if bytes.len() > 1 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, bytes[below(bytes.len())]),
                }
            }
            bytes
        };
        let mut believed = 0;
        for _ in 0..fuzz::inputs(20_000) {
            // The text as it is sent, or what stands in its first or second part.
            let token = match below(3) {
                0 => String::from_utf8_lossy(&mutated(&good)).into_owned(),
                1 => format!("{}.{}.{}", base64(&mutated(&head.to_string())), parts[1], parts[2]),
                _ => format!("{}.{}.{}", parts[0], base64(&mutated(&claims.to_string())), parts[2]),
            };
            let _looks_like_one = is_token(&token);
            if let Ok(found) = Head::read(&token).and_then(|head| head.verify(&token, &keys)) {
                assert_eq!((token == good, Value::Object(found)), (true, claims.clone()), "{token}");
                believed += 1;
            }
            // Claims are also judged when they are odd: a provider may sign anything.
            if let Ok(Value::Object(odd)) = serde_json::from_slice(&mutated(&claims.to_string())) {
                let _judged = expected.check(&odd, Duration::from_secs(100));
            }
        }
        assert_eq!(expected.check(claims.as_object().expect("it is one"), Duration::from_secs(100)), Ok(()));
        assert!(believed < fuzz::inputs(20_000), "some are changed");
    }
}
