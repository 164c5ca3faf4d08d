//! Contradictions: what no single value shows.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use smg_base::ModelId;
use smg_upstream::outside::Outside;

use super::{
    Config, Entry, Fault, Place, Problem, Sections, Source,
    sections::{LogFormat, RoleMapping},
};

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// What stops the node from starting.
    pub(super) problems: Vec<Problem>,
    /// What the operator should know.
    pub(super) warnings: Vec<Problem>,
}

impl Findings {
    fn refuse(&mut self, is_wrong: impl Into<Verdict>, keys: &[&str], words: &'static str) {
        if is_wrong.into() == Verdict::Wrong {
            self.problems.push(together(keys, Fault::Contradiction(words)));
        }
    }

    fn warn(&mut self, is_odd: impl Into<Verdict>, keys: &[&str], words: &'static str) {
        if is_odd.into() == Verdict::Wrong {
            self.warnings.push(together(keys, Fault::Contradiction(words)));
        }
    }
}

/// The outcome of one comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Right,
    Wrong,
}

impl From<bool> for Verdict {
    fn from(is_wrong: bool) -> Self {
        if is_wrong { Self::Wrong } else { Self::Right }
    }
}

fn together(keys: &[&str], fault: Fault) -> Problem {
    Problem::new(Place::Together(keys.iter().map(|key| (*key).to_owned()).collect()), fault)
}

/// Looks at everything.
pub(super) fn check(config: &Config, found: &mut Findings) {
    edge(&config.sections, found);
    times(&config.sections, found);
    operation(&config.sections, found);
    tokens(&config.sections, found);
    files(&config.sections, found);
    mesh(config, found);
    for model in &config.models {
        found.refuse(
            model.retries.retry_initial_backoff_ms > model.retries.retry_max_backoff_ms,
            &["models.retry_initial_backoff_ms", "models.retry_max_backoff_ms"],
            "the first wait is longer than the longest",
        );
    }
    names(config, found);
    urls(config, found);
}

fn edge(sections: &Sections, found: &mut Findings) {
    let (listener, limits, tls, upstream) = (&sections.listener, &sections.limits, &sections.tls, &sections.upstream);
    found.refuse(
        tls.tls_cert_path.is_some() != tls.tls_key_path.is_some(),
        &["tls.tls_cert_path", "tls.tls_key_path"],
        "a certificate and its key come together",
    );
    found.refuse(
        upstream.client_cert_path.is_some() != upstream.client_key_path.is_some(),
        &["upstream.client_cert_path", "upstream.client_key_path"],
        "a certificate and its key come together",
    );
    let same = |a: u16, b: u16| a == b && a != 0;
    found.refuse(
        same(listener.port, sections.metrics.prometheus_port),
        &["listener.port", "metrics.prometheus_port"],
        "two listeners cannot share a port",
    );
    if let Some(health) = listener.health_check_port {
        found.refuse(
            same(listener.port, health),
            &["listener.port", "listener.health_check_port"],
            "two listeners cannot share a port",
        );
        found.refuse(
            same(sections.metrics.prometheus_port, health),
            &["metrics.prometheus_port", "listener.health_check_port"],
            "two listeners cannot share a port",
        );
    }
    found.refuse(
        limits.max_payload_size > limits.body_memory_max,
        &["limits.max_payload_size", "limits.body_memory_max"],
        "the largest body allowed does not fit the memory for bodies",
    );
    let admission = &sections.admission;
    found.warn(
        !admission.priority_scheduler_classes.is_empty() && !admission.priority_scheduler_enabled,
        &["admission.priority_scheduler_classes", "admission.priority_scheduler_enabled"],
        "classes have terms, but requests have no classes",
    );
    let origins = &sections.security.cors_allowed_origins;
    found.refuse(
        origins.len() > 1 && origins.iter().any(super::value::WebOrigin::is_any),
        &["security.cors_allowed_origins"],
        "* allows every origin, so it stands alone",
    );
    let auth = &sections.auth;
    found.refuse(
        auth.trust_tenant_header && auth.trusted_proxies.is_empty(),
        &["auth.trust_tenant_header", "auth.trusted_proxies"],
        "a header with the tenant is believed from trusted proxies only, and none is named",
    );
    let asks = auth.keys_file.is_some() || auth.require_key || auth.jwt_issuer.is_some();
    let has_keys = asks || !auth.control_plane_api_keys.is_empty();
    let is_open = sections.security.api_key.is_none() && sections.security.admin_api_key.is_none() && !has_keys;
    found.warn(
        is_open && !listener.host.is_loopback(),
        &["listener.host", "security.api_key"],
        "the gateway listens beyond this machine and asks for no key",
    );
}

fn times(sections: &Sections, found: &mut Findings) {
    let (retries, timeouts, health) = (&sections.retries, &sections.timeouts, &sections.health);
    found.refuse(
        retries.retry_initial_backoff_ms > retries.retry_max_backoff_ms,
        &["retries.retry_initial_backoff_ms", "retries.retry_max_backoff_ms"],
        "the first wait is longer than the longest",
    );
    let exceeds = |part: Option<Duration>| part.is_some_and(|part| part > timeouts.request_timeout_secs);
    found.warn(
        exceeds(timeouts.first_token_timeout.0),
        &["timeouts.first_token_timeout", "timeouts.request_timeout_secs"],
        "the request's own limit ends first",
    );
    found.warn(
        exceeds(timeouts.stall_timeout.0),
        &["timeouts.stall_timeout", "timeouts.request_timeout_secs"],
        "the request's own limit ends first",
    );
    found.refuse(
        health.health_check_timeout_secs > health.health_check_interval_secs,
        &["health.health_check_timeout_secs", "health.health_check_interval_secs"],
        "a probe would outlast the time to the next one",
    );
    found.warn(
        health.disable_health_check && health.remove_unhealthy_workers,
        &["health.disable_health_check", "health.remove_unhealthy_workers"],
        "without probes no worker is ever found unhealthy",
    );
    let node = &sections.node;
    found.refuse(
        node.drain_delay > node.shutdown_grace_period_secs,
        &["node.drain_delay", "node.shutdown_grace_period_secs"],
        "the delay is part of the grace period",
    );
}

fn operation(sections: &Sections, found: &mut Findings) {
    let (logging, tracing) = (&sections.logging, &sections.tracing);
    found.refuse(
        logging.log_json && logging.log_format == LogFormat::Human,
        &["logging.log_json", "logging.log_format"],
        "a log line has one format",
    );
    let buckets = &sections.metrics.prometheus_duration_buckets;
    found.refuse(
        !buckets.is_sorted_by(|a, b| a < b),
        &["metrics.prometheus_duration_buckets"],
        "the bounds must ascend",
    );
    found.warn(
        !tracing.enable_trace && tracing.otlp_traces_endpoint != "http://localhost:4317",
        &["tracing.otlp_traces_endpoint", "tracing.enable_trace"],
        "nothing is exported unless traces are enabled",
    );
}

fn mesh(config: &Config, found: &mut Findings) {
    let mesh = &config.sections.mesh;
    if !mesh.enable_mesh {
        let is_idle = |entry: &&Entry| {
            let own = ["mesh.enable_mesh", "mesh.host_scope", "mesh.data_dir"];
            entry.key.starts_with("mesh.") && entry.source != Source::Default && !own.contains(&entry.key.as_str())
        };
        for entry in config.entries.iter().filter(is_idle) {
            let fault = Fault::NoEffect("the mesh is off; --enable-mesh turns it on".to_owned());
            found.warnings.push(together(&[&entry.key], fault));
        }
        return;
    }
    let parts = [!mesh.mesh_ca.is_empty(), mesh.mesh_cert.is_some(), mesh.mesh_key.is_some()];
    let has_files = parts.iter().all(|part| *part);
    found.refuse(
        !has_files && parts.contains(&true),
        &["mesh.mesh_ca", "mesh.mesh_cert", "mesh.mesh_key"],
        "a node's certificate, its key and the authorities come together",
    );
    let tokens = mesh.mesh_token.iter().map(|token| ("mesh.mesh_token", token));
    let accepted = mesh.mesh_tokens_accepted.iter().map(|token| ("mesh.mesh_tokens_accepted", token));
    for (key, _) in tokens.chain(accepted).filter(|(_, token)| token.expose().len() < smg_mesh::TOKEN_CHARS_MIN) {
        found.refuse(true, &[key], "the secret is too short to keep anybody out; `smg mesh token` makes a good one");
    }
    found.refuse(
        mesh.mesh_token.is_none() && !mesh.mesh_tokens_accepted.is_empty(),
        &["mesh.mesh_tokens_accepted", "mesh.mesh_token"],
        "a node that accepts secrets has one of its own",
    );
    found.refuse(
        mesh.mesh_token.is_none() && !has_files && !mesh.mesh_host.is_loopback(),
        &["mesh.mesh_host", "mesh.mesh_token"],
        "beyond this machine the mesh needs a secret. Type on one machine\n      export SMG_MESH_TOKEN=$(smg mesh token)\n    \
         and set the same SMG_MESH_TOKEN on every node; or try it on this machine alone with\n      --mesh-host 127.0.0.1",
    );
}

/// Longest time that clocks may be apart: more is not a matter of clocks.
const LEEWAY_MAX: Duration = Duration::from_secs(600);

/// The identity provider. A setting that says something of tokens while none are believed stops the node: whoever wrote it does
/// not expect an open gateway.
fn tokens(sections: &Sections, found: &mut Findings) {
    let auth = &sections.auth;
    let Some(issuer) = &auth.jwt_issuer else {
        let said = [
            ("auth.jwt_audience", !auth.jwt_audience.is_empty()),
            ("auth.jwt_jwks_uri", auth.jwt_jwks_uri.is_some()),
            ("auth.jwt_tenant_claim", auth.jwt_tenant_claim.is_some()),
            ("auth.jwt_role_mapping", !auth.jwt_role_mapping.is_empty()),
        ];
        for (key, is_said) in said {
            found.refuse(
                is_said,
                &[key, "auth.jwt_issuer"],
                "tokens are believed of a provider that is named, and none is",
            );
        }
        return;
    };
    found.refuse(
        auth.jwt_audience.is_empty(),
        &["auth.jwt_audience", "auth.jwt_issuer"],
        "a provider makes tokens for many; say whom those must be meant for that open this gateway",
    );
    found.refuse(
        issuer.contains(['?', '#']),
        &["auth.jwt_issuer"],
        "the URL of a provider has no query and no fragment",
    );
    let urls = [("auth.jwt_issuer", Some(issuer)), ("auth.jwt_jwks_uri", auth.jwt_jwks_uri.as_ref())];
    for (key, url) in urls.into_iter().filter_map(|(key, url)| Some((key, url?))) {
        if let Err(error) = Outside::check(url, auth.security()) {
            found.problems.push(together(&[key], Fault::Invalid(format!("{url}: {error}"))));
        }
    }
    found.refuse(
        auth.jwt_keys_kept_for < auth.jwt_refresh_interval,
        &["auth.jwt_keys_kept_for", "auth.jwt_refresh_interval"],
        "the provider's keys would be forgotten before they are fetched again",
    );
    let roles = &auth.jwt_role_mapping;
    let is_other = |role: &RoleMapping| roles.iter().any(|one| one.theirs == role.theirs && one.ours != role.ours);
    found.refuse(
        roles.iter().any(is_other),
        &["auth.jwt_role_mapping"],
        "one of the provider's roles is two roles here",
    );
    found.refuse(auth.jwt_leeway > LEEWAY_MAX, &["auth.jwt_leeway"], "clocks that are more than 10m apart are wrong");
    let is_theirs = auth.jwt_role_mapping.iter().any(|role| role.ours == smg_auth::Role::Admin);
    let is_ours = sections.security.admin_api_key.is_some() || sections.security.api_key.is_some();
    found.warn(
        !is_theirs && !is_ours && auth.control_plane_api_keys.is_empty() && auth.keys_file.is_none(),
        &["auth.jwt_role_mapping", "security.admin_api_key"],
        "nobody is an admin, by a token or by a key of the settings",
    );
}

/// Files that are named must be there; whether their content is right is found out by whoever reads it.
fn files(sections: &Sections, found: &mut Findings) {
    let (tls, upstream) = (&sections.tls, &sections.upstream);
    let named = [
        ("tls.tls_cert_path", &tls.tls_cert_path),
        ("tls.tls_key_path", &tls.tls_key_path),
        ("upstream.client_cert_path", &upstream.client_cert_path),
        ("upstream.client_key_path", &upstream.client_key_path),
        ("auth.keys_file", &sections.auth.keys_file),
        ("mesh.mesh_cert", &sections.mesh.mesh_cert),
        ("mesh.mesh_key", &sections.mesh.mesh_key),
        ("mesh.mesh_peers_file", &sections.mesh.mesh_peers_file),
    ];
    let single = named.iter().filter_map(|(key, path)| Some((*key, path.as_deref()?)));
    let authorities = upstream.ca_cert_paths.iter().map(|path| ("upstream.ca_cert_paths", path.as_path()));
    let of_mesh = sections.mesh.mesh_ca.iter().map(|path| ("mesh.mesh_ca", path.as_path()));
    let of_provider = sections.auth.jwt_ca_cert_paths.iter().map(|path| ("auth.jwt_ca_cert_paths", path.as_path()));
    for (key, path) in single.chain(authorities).chain(of_mesh).chain(of_provider) {
        if let Some(reason) = unreadable(path) {
            let fault = Fault::Invalid(format!("{}: {reason}", path.display()));
            found.problems.push(together(&[key], fault));
        }
    }
}

fn unreadable(path: &Path) -> Option<String> {
    std::fs::File::open(path).err().map(|error| error.to_string())
}

/// A name stands for one model.
fn names(config: &Config, found: &mut Findings) {
    let mut ids = BTreeSet::new();
    for model in &config.models {
        if !ids.insert(model.id.clone()) {
            found.problems.push(together(&["models.id"], Fault::Twice(format!("the model {}", model.id))));
        }
    }
    let flagged = config.sections.fleet.model_alias.iter().map(|one| ("fleet.model_alias", &one.alias, &one.model));
    let listed = config
        .models
        .iter()
        .flat_map(|model| model.aliases.iter().map(move |alias| ("models.aliases", alias, &model.id)));
    let mut models: BTreeMap<&ModelId, &ModelId> = BTreeMap::new();
    for (key, alias, model) in flagged.chain(listed) {
        if ids.contains(alias) {
            let fault = Fault::Invalid(format!("{alias} is the id of a model, so it cannot be an alias of {model}"));
            found.problems.push(together(&[key], fault));
        } else if models.insert(alias, model).is_some_and(|other| other != model) {
            found.problems.push(together(&[key], Fault::Twice(format!("the alias {alias}"))));
        }
    }
}

/// A worker is declared once.
fn urls(config: &Config, found: &mut Findings) {
    let mut seen = BTreeSet::new();
    for (spec, origin) in &config.workers {
        if !seen.insert(spec.url.as_str()) {
            let key = if *origin == smg_fleet::Origin::Flag { "fleet.worker_urls" } else { "workers.url" };
            found.problems.push(together(&[key], Fault::Twice(format!("the worker {}", spec.url))));
        }
    }
}
