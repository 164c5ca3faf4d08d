//! What keeps the caches of tenants apart: a salt for each, which nobody outside can make.
//!
//! The salt becomes part of how a prompt is known here, and engines that take one get it in the body's `cache_salt`. A salt of
//! the caller's own is not used as it is, for anybody could send it: it is hashed together with the tenant, so that it divides
//! a tenant's cache and opens nobody else's.

use std::fmt::Write as _;

use aws_lc_rs::hmac;
use smg_api::Endpoint;
use smg_base::TenantId;
use smg_fleet::Engine;

/// Makes the salts of tenants: the same on every node with the same secret.
pub(crate) struct Salts(hmac::Key);

/// Bytes of a salt; twice as many characters.
const BYTES: usize = 16;

impl Salts {
    pub(crate) fn new(secret: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The salt of a tenant, or of what it divides its cache into.
    pub(crate) fn of(&self, tenant: &TenantId, asked: Option<&str>) -> String {
        let tenant = tenant.as_str().as_bytes();
        let mut context = hmac::Context::with_key(&self.0);
        // With its length before it, so that no tenant's name and salt read like those of another.
        context.update(&u64::try_from(tenant.len()).unwrap_or(u64::MAX).to_be_bytes());
        context.update(tenant);
        if let Some(asked) = asked {
            context.update(asked.as_bytes());
        }
        let tag = context.sign();
        tag.as_ref().iter().take(BYTES).fold(String::with_capacity(2 * BYTES), |mut salt, byte| {
            let _infallible = write!(salt, "{byte:02x}");
            salt
        })
    }
}

/// The field in which an engine takes a salt with a request to `endpoint`, if it takes one.
pub(crate) fn salt_field(engine: Engine, endpoint: Endpoint) -> Option<&'static str> {
    match (engine, endpoint) {
        (Engine::Vllm | Engine::Sglang, Endpoint::ChatCompletions | Endpoint::Completions | Endpoint::Responses) => {
            Some("cache_salt")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_share_no_salt_whatever_they_send() {
        let salts = Salts::new(&[7; 32]);
        let salt = |tenant: &str, asked: Option<&str>| salts.of(&TenantId::from(tenant), asked);
        assert_eq!(salt("a", None), salt("a", None));
        let all = [salt("a", None), salt("b", None), salt("a", Some("b")), salt("ab", None), salt("b", Some("a"))];
        for (index, one) in all.iter().enumerate() {
            assert_eq!(one.len(), 2 * BYTES);
            assert!(!all[..index].contains(one), "{all:?}");
        }
        let anothers = salt("b", None);
        assert_ne!(salt("a", Some(&anothers)), anothers, "another's salt opens nothing");
        assert_ne!(Salts::new(&[8; 32]).of(&TenantId::from("a"), None), salt("a", None));
    }
}
