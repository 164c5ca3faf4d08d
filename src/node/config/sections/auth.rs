//! Settings of who callers and operators are.

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, ValueEnum};
use http::HeaderName;
use smg_auth::Role;
use smg_base::Secret;
use smg_upstream::{outside::Security, rules::Network};

use super::super::value::{claim, seconds, some_seconds};

/// Who callers and operators are.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Auth")]
pub struct Auth {
    /// File with the keys of callers and operators, in TOML: a list `[[keys]]` with a name, a tenant, and the key's hash
    /// or a reference to the key itself. It is read again when it changes. Keys made through the admin API are kept elsewhere
    /// and come on top.
    #[arg(long)]
    pub keys_file: Option<PathBuf>,
    /// Whether callers need a key even while there are none, so that a gateway which does not know its keys yet is closed.
    #[arg(long)]
    pub require_key: bool,
    /// Keys of operators as `id:name:role:key`, where the role is admin or viewer (user).
    #[arg(long)]
    pub control_plane_api_keys: Vec<Secret>,
    /// The identity provider whose tokens are believed beside keys: the URL by which it calls itself, to the letter. It is
    /// asked for its keys before the gateway listens; if they cannot be had, the gateway does not start.
    #[arg(long, value_name = "URL", value_parser = claim)]
    pub jwt_issuer: Option<String>,
    /// Whom tokens have to be meant for: one of these.
    #[arg(long, value_name = "NAME", value_parser = claim)]
    pub jwt_audience: Vec<String>,
    /// Where the provider's keys are. By default the provider is asked (OpenID Connect Discovery).
    #[arg(long, value_name = "URL", value_parser = claim)]
    pub jwt_jwks_uri: Option<String>,
    /// The claim with the tenant; dots lead into objects. A token without it is refused. By default all tokens are of the tenant
    /// `default`.
    #[arg(long, value_name = "CLAIM", value_parser = claim)]
    pub jwt_tenant_claim: Option<String>,
    /// The claim with the roles, such as `realm_access.roles`.
    #[arg(long, value_name = "CLAIM", default_value = "roles", value_parser = claim)]
    pub jwt_role_claim: String,
    /// What the provider's roles are here, such as `platform-team=admin`: admin, viewer (user) or caller. The greatest counts;
    /// whoever has none of them is a caller.
    #[arg(long, value_name = "THEIRS=OURS")]
    pub jwt_role_mapping: Vec<RoleMapping>,
    /// How far the clocks of the provider and the gateway may be apart.
    #[arg(long, default_value = "30s", value_parser = seconds)]
    pub jwt_leeway: Duration,
    /// How often the provider is asked for its keys. A token that names a new one has it asked at once, if that was not just
    /// done.
    #[arg(long, default_value = "1h", value_parser = some_seconds)]
    pub jwt_refresh_interval: Duration,
    /// How long its keys are believed while it does not answer; after that, tokens are answered with status 503.
    #[arg(long, default_value = "1d", value_parser = some_seconds)]
    pub jwt_keys_kept_for: Duration,
    /// Certificates of authorities that vouch for the provider, PEM; trusted beside the public ones.
    #[arg(long)]
    pub jwt_ca_cert_paths: Vec<PathBuf>,
    /// Networks in which the provider may be although they are private, such as 10.0.0.0/8.
    #[arg(long)]
    pub jwt_allow_networks: Vec<Network>,
    /// Whether the provider may be asked without TLS. Whoever is on the way can then make tokens.
    #[arg(long)]
    pub jwt_allow_http: bool,
    /// Whether the tenant of a request is taken from a header. Only what comes from a trusted proxy counts, and a key
    /// with a tenant of its own comes first.
    #[arg(long)]
    pub trust_tenant_header: bool,
    /// The header with the tenant.
    #[arg(long, default_value = "x-smg-tenant-id")]
    pub tenant_header_name: HeaderName,
    /// Networks of the proxies whose headers are believed, such as 10.0.0.0/8.
    #[arg(long)]
    pub trusted_proxies: Vec<Network>,
    /// Whether engines keep the caches of tenants apart. By default they do as soon as there can be more than one tenant.
    #[arg(long, value_enum, default_value = "auto")]
    pub isolate_caches: Isolation,
    /// File to which a line is appended for every change that operators make or try.
    #[arg(long)]
    pub audit_log: Option<PathBuf>,
}

impl Auth {
    /// Whether the identity provider must be asked over TLS.
    pub fn security(&self) -> Security {
        if self.jwt_allow_http { Security::AllowPlain } else { Security::Tls }
    }
}

/// Whether the caches of tenants are kept apart.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// As soon as there can be more than one tenant.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// What a role of the provider is here, written theirs=ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleMapping {
    /// As the provider calls it.
    pub theirs: String,
    /// What it may do here.
    pub ours: Role,
}

/// The text does not say what a role is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be theirs=ours, where ours is admin, viewer, user (the same as viewer) or caller")]
pub struct NotARole;

impl FromStr for RoleMapping {
    type Err = NotARole;

    fn from_str(text: &str) -> Result<Self, NotARole> {
        let (theirs, ours) = text.rsplit_once('=').ok_or(NotARole)?;
        let theirs = Some(theirs.trim()).filter(|theirs| !theirs.is_empty()).ok_or(NotARole)?;
        let ours = match ours.trim() {
            "admin" => Role::Admin,
            "viewer" | "user" => Role::Viewer,
            "caller" => Role::Caller,
            _ => return Err(NotARole),
        };
        Ok(Self { theirs: theirs.to_owned(), ours })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_of_a_provider_are_named_here() {
        let check = |text: &str, expected: Option<(&str, Role)>| {
            let read = text.parse::<RoleMapping>().ok();
            assert_eq!(read.as_ref().map(|role| (&*role.theirs, role.ours)), expected, "{text}");
        };
        check("platform-team=admin", Some(("platform-team", Role::Admin)));
        check("a b = viewer", Some(("a b", Role::Viewer)));
        check("a=b=user", Some(("a=b", Role::Viewer)));
        check("staff=caller", Some(("staff", Role::Caller)));
        for bad in ["admin", "=admin", " =admin", "a=", "a=root", "a=Admin", ""] {
            check(bad, None);
        }
    }
}
