//! Who a token is about: its claims turned into a principal.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;
use smg_base::TenantId;

use crate::{
    principal::{Models, Principal, Role, Via},
    scope::Scopes,
    token::{Claims, TokenFault},
};

/// Where in a token a claim is: a name, or several joined by dots that lead inwards, such as `realm_access.roles`. A claim whose
/// own name has dots in it, as those of some providers do, comes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimPath(Box<str>);

/// Longest name of a tenant or of who calls.
const NAME_BYTES_MAX: usize = 128;

/// How claims are read.
#[derive(Clone, Debug)]
pub struct ClaimRules {
    /// Where the tenant is. Without it all tokens are of the same tenant; with it a token that names none is refused.
    pub tenant: Option<ClaimPath>,
    /// The tenant of tokens where no claim says it.
    pub tenant_without_claim: TenantId,
    /// Where the roles are: a list, or a text with spaces between them.
    pub roles: ClaimPath,
    /// What the provider's roles are here. Whoever has none of them is a caller.
    pub role_of: BTreeMap<String, Role>,
}

impl ClaimPath {
    /// The claim with this path.
    pub fn new(path: impl Into<Box<str>>) -> Self {
        Self(path.into())
    }

    fn of<'a>(&self, claims: &'a Claims) -> Option<&'a Value> {
        if let Some(whole) = claims.get(&*self.0) {
            return Some(whole);
        }
        let mut names = self.0.split('.');
        let first = claims.get(names.next()?)?;
        names.try_fold(first, |value, name| value.get(name))
    }
}

impl ClaimRules {
    /// Who a token with these claims is about.
    pub(crate) fn principal(&self, claims: &Claims) -> Result<Principal, TokenFault> {
        let tenant = match &self.tenant {
            None => self.tenant_without_claim.clone(),
            Some(path) => {
                let named = path.of(claims).and_then(Value::as_str).filter(|name| is_name(name));
                TenantId::from(named.ok_or(TokenFault::Tenant)?)
            }
        };
        let text = |name: &str| claims.get(name).and_then(Value::as_str).filter(|text| is_name(text));
        let name = ["sub", "client_id", "azp"].into_iter().find_map(text).unwrap_or("a token");
        Ok(Principal {
            tenant,
            key: None,
            name: Arc::from(name),
            role: self.role(claims),
            models: Models::All,
            scopes: Scopes::All,
            class: None,
            via: Via::Token,
        })
    }

    /// The greatest of the roles.
    fn role(&self, claims: &Claims) -> Role {
        let of = |name: &str| self.role_of.get(name).copied();
        let found: Vec<Role> = match self.roles.of(claims) {
            Some(Value::String(names)) => names.split_ascii_whitespace().filter_map(of).collect(),
            Some(Value::Array(names)) => names.iter().filter_map(|name| of(name.as_str()?)).collect(),
            _ => Vec::new(),
        };
        let has = |role| found.contains(&role).then_some(role);
        has(Role::Admin).or(has(Role::Viewer)).unwrap_or(Role::Caller)
    }
}

fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rules(tenant: Option<&str>) -> ClaimRules {
        ClaimRules {
            tenant: tenant.map(ClaimPath::new),
            tenant_without_claim: TenantId::from("default"),
            roles: ClaimPath::new("realm_access.roles"),
            role_of: [("ops".to_owned(), Role::Admin), ("looks".to_owned(), Role::Viewer)].into(),
        }
    }

    fn claims(value: Value) -> Claims {
        value.as_object().expect("it is an object").clone()
    }

    #[test]
    fn roles_are_found_inside_and_the_greatest_counts() {
        let check = |value: Value, expected: Role| {
            let found = rules(None).principal(&claims(value.clone())).expect("no tenant is asked for");
            assert_eq!((found.role, found.via, found.tenant.as_str()), (expected, Via::Token, "default"), "{value}");
        };
        check(json!({"sub": "u"}), Role::Caller);
        check(json!({"realm_access": {"roles": ["looks", "ops"]}}), Role::Admin);
        check(json!({"realm_access": {"roles": "x looks"}}), Role::Viewer);
        check(json!({"realm_access.roles": ["ops"], "realm_access": {"roles": []}}), Role::Admin);
        check(json!({"realm_access": {"roles": [["ops"], {"ops": true}, 1, null, "opsx"]}}), Role::Caller);
        check(json!({"roles": ["ops"]}), Role::Caller);
    }

    #[test]
    fn a_tenant_that_is_asked_for_must_be_there() {
        let check = |value: Value, expected: Result<&str, TokenFault>| {
            let found = rules(Some("org.id")).principal(&claims(value.clone()));
            assert_eq!(found.as_ref().map(|who| who.tenant.as_str()).map_err(|fault| *fault), expected, "{value}");
        };
        check(json!({"org": {"id": "acme"}}), Ok("acme"));
        check(json!({"org": {}}), Err(TokenFault::Tenant));
        check(json!({"org": {"id": 5}}), Err(TokenFault::Tenant));
        check(json!({"org": {"id": ""}}), Err(TokenFault::Tenant));
        check(json!({"org": {"id": "a\nb"}}), Err(TokenFault::Tenant));
        check(json!({"org": {"id": "x".repeat(129)}}), Err(TokenFault::Tenant));
        check(json!({}), Err(TokenFault::Tenant));
    }
}
