//! Who may call: one key for callers, one for operators.

use std::net::SocketAddr;

use http::{HeaderMap, header};
use smg_base::Secret;
use smg_infer::{Failure, FailureCode};

use crate::{
    config::{AdminAccess, Settings},
    edge::Credentials,
    shared::KeyHash,
};

/// The address of the client's side of the connection, set by the listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerAddress(pub(crate) SocketAddr);

/// Lets a caller of the serving endpoints in, and says whose its credentials are.
pub(crate) fn serving(headers: &HeaderMap, settings: &Settings) -> Result<Credentials, Failure> {
    refuse_revoked(headers, settings)?;
    let Some(key) = &settings.api_key else {
        return Ok(Credentials::Workers);
    };
    if offers(headers, key) {
        return Ok(Credentials::Gateways);
    }
    Err(unauthorized(headers))
}

/// Lets an operator in.
pub(crate) fn admin(headers: &HeaderMap, peer: Option<PeerAddress>, settings: &Settings) -> Result<(), Failure> {
    refuse_revoked(headers, settings)?;
    if let Some(key) = settings.admin_key.as_ref().or(settings.api_key.as_ref()) {
        return if offers(headers, key) { Ok(()) } else { Err(unauthorized(headers)) };
    }
    let near = peer.is_some_and(|PeerAddress(address)| address.ip().to_canonical().is_loopback());
    if near || settings.admin_access == AdminAccess::Anyone {
        return Ok(());
    }
    Err(Failure::new(
        FailureCode::Forbidden,
        "without a key the admin API answers callers on the gateway's own machine only; \
         start the gateway with --api-key or --admin-api-key",
    ))
}

/// Whether a web page sent the request that is not among those which may call. Without a key nothing else keeps the pages
/// that somebody visits on this machine from administering the gateway; that every page may call (`*`) does not say
/// that every page may do this.
pub(crate) fn is_of_foreign_page(headers: &HeaderMap, origins: &[String]) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return false;
    };
    !origins.iter().any(|allowed| allowed != "*" && allowed.as_bytes() == origin.as_bytes())
}

fn unauthorized(headers: &HeaderMap) -> Failure {
    let message = if offered(headers).next().is_some() {
        "the API key is not valid"
    } else {
        "an API key is required: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
    };
    Failure::new(FailureCode::Unauthorized, message)
}

/// A key that was revoked opens nothing, even where this node's own settings still name it.
fn refuse_revoked(headers: &HeaderMap, settings: &Settings) -> Result<(), Failure> {
    let revoked = &settings.shared.revoked;
    if revoked.is_empty() || !offered(headers).any(|key| revoked.contains(&KeyHash::of(key))) {
        return Ok(());
    }
    Err(Failure::new(FailureCode::Unauthorized, "the API key has been revoked"))
}

fn offers(headers: &HeaderMap, key: &Secret) -> bool {
    // Every offered key is compared, so that the time does not tell which header was right.
    offered(headers).fold(false, |found, offered| key.matches(offered) | found)
}

fn offered(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    let api_key = headers.get("x-api-key").and_then(|value| value.to_str().ok());
    bearer.into_iter().chain(api_key)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        [(HeaderName::from_static(name), HeaderValue::from_static(value))].into_iter().collect()
    }

    #[test]
    fn both_dialects_ways_of_sending_the_key_work() {
        let settings = Settings { api_key: Some(Secret::new("sk-1")), ..Settings::default() };
        let check = |name, value, expected: bool| {
            assert_eq!(serving(&headers(name, value), &settings).is_ok(), expected, "{name}: {value}");
        };
        check("authorization", "Bearer sk-1", true);
        check("authorization", "bearer  sk-1", true);
        check("x-api-key", "sk-1", true);
        check("authorization", "Bearer sk-2", false);
        check("authorization", "sk-1", false);
        check("x-api-key", "", false);
    }

    #[test]
    fn without_a_key_only_this_machine_administers() {
        let settings = Settings::default();
        let check = |address: &str, expected: bool| {
            let peer = Some(PeerAddress(address.parse().unwrap()));
            assert_eq!(admin(&HeaderMap::new(), peer, &settings).is_ok(), expected, "{address}");
        };
        check("127.0.0.1:1", true);
        check("[::1]:1", true);
        check("[::ffff:127.0.0.1]:1", true);
        check("10.0.0.1:1", false);
        assert!(admin(&HeaderMap::new(), None, &settings).is_err());
        let open = Settings { admin_access: AdminAccess::Anyone, ..Settings::default() };
        assert!(admin(&HeaderMap::new(), None, &open).is_ok());
    }

    #[test]
    fn the_admin_key_takes_the_place_of_the_callers_key() {
        let settings = Settings {
            api_key: Some(Secret::new("caller")),
            admin_key: Some(Secret::new("operator")),
            ..Settings::default()
        };
        assert!(admin(&headers("x-api-key", "operator"), None, &settings).is_ok());
        assert!(admin(&headers("x-api-key", "caller"), None, &settings).is_err());
    }
}
