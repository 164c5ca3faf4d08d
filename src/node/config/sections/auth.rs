//! Settings of who callers and operators are.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use http::HeaderName;
use smg_base::Secret;
use smg_upstream::rules::Network;

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
