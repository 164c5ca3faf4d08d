//! Taking on a changed configuration while the node runs: whole or not at all, the last good one stays.

use std::{sync::Arc, time::Duration};

use prometheus::{IntCounterVec, IntGauge};
use smg_admission::Gate;
use smg_base::Clock;
use smg_fleet::{Fleet, Origin};
use smg_gateway::{Gateway, listener::ServerTls};
use smg_runtime::{Phase, Shutdown, metrics::Registrar};
use smg_telemetry::LevelHandle;
use tokio::{signal::unix::Signal, sync::watch};

use crate::{
    auth::{self, Keys},
    config::{Config, Inputs},
    live::Live,
    mesh::{self, Declared},
    settings,
};

/// What is counted of reloads.
pub(crate) struct ReloadMetrics {
    reloads: IntCounterVec,
    loaded_at: IntGauge,
}

impl ReloadMetrics {
    pub(crate) fn new(registrar: &Registrar) -> Self {
        Self {
            reloads: registrar.counter_vec("smg_config_reloads_total", "Reloads of the configuration", &["result"]),
            loaded_at: registrar.gauge(
                "smg_config_last_load_timestamp_seconds",
                "When the configuration in force was loaded, in seconds since the Unix epoch",
            ),
        }
    }
}

/// Everything a reload reaches.
pub(crate) struct Reloader {
    pub(crate) inputs: Inputs,
    pub(crate) config: Config,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) live: Arc<Live>,
    pub(crate) keys: Arc<Keys>,
    /// Tells the mesh what flags and files say, if there is one.
    pub(crate) declare: Option<watch::Sender<Declared>>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) tls: Option<ServerTls>,
    pub(crate) level: LevelHandle,
    pub(crate) metrics: ReloadMetrics,
    /// SIGHUP. It was listened for before anything could be seen of the node, so that none ends the process.
    pub(crate) hangup: Signal,
    /// What the files held when they were last looked at.
    pub(crate) seen: Content,
}

/// The bytes of each watched file; none where it cannot be read.
pub(crate) type Content = Vec<Option<Vec<u8>>>;

impl Reloader {
    /// Reloads on SIGHUP and when what the files hold has changed.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        self.stamp();
        let interval = self.config.sections.node.config_watch_interval;
        loop {
            let asked = tokio::select! {
                _ = self.hangup.recv() => true,
                () = pause(interval) => false,
                () = shutdown.reached(Phase::Closing) => return,
            };
            let content = content(&self.config).await;
            if asked || content != self.seen {
                self.seen = content;
                self.reload();
            }
        }
    }

    fn stamp(&self) {
        self.metrics.loaded_at.set(i64::try_from(self.clock.unix_ms() / 1_000).unwrap_or(i64::MAX));
    }

    fn reload(&mut self) {
        let new = match Config::load(&self.inputs) {
            Ok(new) => new,
            Err(errors) => {
                self.metrics.reloads.with_label_values(&["refused"]).inc();
                tracing::error!(%errors, "the configuration has problems, the last good one stays in force");
                return;
            }
        };
        let changes = Config::reloadable_changes(&self.config, &new);
        for change in &changes.restart {
            tracing::warn!(key = change.key, before = change.before, after = change.after, "takes effect at a restart");
        }
        for change in &changes.live {
            tracing::info!(key = change.key, before = change.before, after = change.after, "setting changed");
        }
        match self.apply(&new) {
            Ok(()) => {
                self.metrics.reloads.with_label_values(&["applied"]).inc();
                self.stamp();
                tracing::info!("configuration reloaded");
                self.config = new;
            }
            Err(problem) => {
                self.metrics.reloads.with_label_values(&["refused"]).inc();
                tracing::error!(problem, "the configuration cannot be taken on, the last good one stays in force");
            }
        }
    }

    /// What can fail comes first, so that a failure leaves everything as it was.
    fn apply(&self, new: &Config) -> Result<(), String> {
        if let Some(tls) = &self.tls {
            tls.reload().map_err(|error| error.to_string())?;
        }
        let keys = auth::of_file(new)?;
        self.live.take_aliases(new).map_err(|error| format!("model aliases: {error}"))?;
        self.level.set_level(new.sections.logging.log_level.as_str()).map_err(|error| error.to_string())?;
        // The scope is only looked at when the fleet is made.
        let fleet = settings::fleet(new, None);
        self.fleet.reconfigure(fleet.health, fleet.breaker);
        self.replace_workers(new);
        self.gate.reconfigure(settings::admission(new));
        self.keys.take_file(keys);
        self.live.take_config(new);
        Ok(())
    }

    fn replace_workers(&self, new: &Config) {
        for origin in [Origin::Flag, Origin::File] {
            let specs = new.workers.iter().filter(|(_, from)| *from == origin).map(|(spec, _)| spec.clone()).collect();
            let delta = self.fleet.replace_origin(origin, specs, self.clock.now());
            for worker in delta.added {
                tracing::info!(worker = %worker.id, url = %worker.spec.url, "worker declared");
            }
            for worker in delta.removed {
                // Other nodes may declare it as well: the mesh then says whether it goes.
                if self.declare.is_none() {
                    tracing::info!(%worker, "worker no longer declared, draining");
                    self.gateway.retire_worker(worker);
                }
            }
            for (url, error) in delta.refused {
                tracing::error!(%url, %error, "worker cannot be taken");
            }
        }
        if let Some(declare) = &self.declare {
            declare.send_replace(mesh::declared_by(new));
        }
    }
}

/// What the configuration, the certificate, its key and the limits hold. Compared as a whole, because editors and Kubernetes replace
/// files in ways that fool time stamps.
pub(crate) async fn content(config: &Config) -> Content {
    let (tls, auth) = (&config.sections.tls, &config.sections.auth);
    let mut contents = Vec::new();
    for path in
        [&config.file, &auth.keys_file, &tls.tls_cert_path, &tls.tls_key_path, &config.sections.limits.limits_file]
            .into_iter()
            .flatten()
    {
        contents.push(tokio::fs::read(path).await.ok());
    }
    contents
}

async fn pause(interval: Duration) {
    if interval.is_zero() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(interval).await;
}
