//! What a running node can take over from a new configuration.

use super::{Config, Entry, ModelSettings};

/// The settings, and the sections (with a dot at their end), that take effect without a restart; everything else is
/// fixed when the node starts.
const LIVE: [&str; 44] = [
    "admission.",
    "auth.isolate_caches",
    "auth.keys_file",
    "auth.require_key",
    "auth.tenant_header_name",
    "auth.trust_tenant_header",
    "auth.trusted_proxies",
    "compatibility.",
    "circuit_breaker.",
    "fleet.backend",
    "fleet.model_alias",
    "fleet.worker_api_key",
    "fleet.worker_startup_check_interval",
    "fleet.worker_urls",
    "health.disable_health_check",
    "health.drain_settle_secs",
    "health.health_check_endpoint",
    "health.health_check_interval_secs",
    "health.health_check_timeout_secs",
    "health.health_failure_threshold",
    "health.health_success_threshold",
    "limits.buffered_answer_max",
    "limits.limits_file",
    "limits.max_concurrent_requests",
    "limits.max_payload_size",
    "limits.output_tokens_reserved",
    "limits.queue_size",
    "limits.queue_timeout_secs",
    "limits.rate_limit_tokens_per_second",
    "listener.body_timeout",
    "listener.debug_headers",
    "listener.request_id_headers",
    "logging.access_log",
    "logging.log_level",
    "logging.slow_request",
    "models",
    "retries.",
    "routing.",
    "security.admin_access",
    "security.admin_api_key",
    "security.api_key",
    "timeouts.",
    "upstream.count_stream_usage",
    "workers",
];

/// What differs between two configurations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// What a running node takes over.
    pub live: Vec<Change>,
    /// What waits for a restart.
    pub restart: Vec<Change>,
}

/// One difference. Secrets are not shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key of the setting, or `workers` or `models`.
    pub key: String,
    /// The value before.
    pub before: String,
    /// The value after.
    pub after: String,
}

/// Whether the setting with this key takes effect without a restart.
pub(super) fn is_live(key: &str) -> bool {
    LIVE.iter().any(|one| *one == key || (one.ends_with('.') && key.starts_with(one)))
}

impl Changes {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty() && self.restart.is_empty()
    }

    fn add(&mut self, key: &str, before: String, after: String) {
        let change = Change { key: key.to_owned(), before, after };
        if is_live(key) { self.live.push(change) } else { self.restart.push(change) }
    }
}

impl Config {
    /// What differs between the configuration a node runs with and a new one.
    pub fn reloadable_changes(old: &Self, new: &Self) -> Changes {
        let mut changes = Changes::default();
        for (before, after) in old.entries.iter().zip(&new.entries) {
            if before.value != after.value {
                changes.add(&before.key, before.shown(), after.shown());
            }
        }
        if old.workers != new.workers {
            changes.add("workers", count(old.workers.len()), count(new.workers.len()));
        }
        let overrides = |config: &Self| config.models.iter().map(ModelSettings::identity).collect::<Vec<_>>();
        if overrides(old) != overrides(new) {
            changes.add("models", count(old.models.len()), count(new.models.len()));
        }
        changes
    }
}

impl ModelSettings {
    fn identity(&self) -> (String, Vec<String>, Vec<Entry>) {
        let aliases = self.aliases.iter().map(ToString::to_string).collect();
        let without_source = |entry: &Entry| Entry { source: super::Source::Default, ..entry.clone() };
        (self.id.to_string(), aliases, self.overrides.iter().map(without_source).collect())
    }
}

fn count(entries: usize) -> String {
    format!("{entries} entries")
}

#[cfg(test)]
mod tests {
    use super::{super::setting::Setting, *};

    #[test]
    fn everything_live_exists() {
        let keys: Vec<String> = Setting::all().iter().map(Setting::key).collect();
        for live in LIVE.iter().filter(|live| !matches!(**live, "workers" | "models")) {
            assert!(keys.iter().any(|key| key.starts_with(live)), "{live}");
        }
        assert!(is_live("routing.policy") && !is_live("listener.port"));
    }
}
