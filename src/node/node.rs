//! Building a node, running it, and stopping it in order.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use smg_admission::Gate;
use smg_base::Clock;
use smg_fleet::Fleet;
use smg_gateway::{
    Gateway, Identity, Parts, TraceHooks,
    listener::{Listener, ListenerMetrics, ServerTls},
    router, serve_probes as serve_probes_on,
};
use smg_runtime::{Phase, Shutdown, SystemClock, TaskKind, Tasks, entropy, metrics::Registrar, systemd, vitals};
use smg_telemetry::Telemetry;
use smg_upstream::{Upstream, load, probe};
use tokio::{net::TcpListener, signal::unix::Signal};

use crate::{
    auth::{self, Opened},
    capacity,
    config::{Config, Inputs},
    error::Error,
    fleet_metrics::{self, EngineLoads},
    limits::Limits,
    live::Live,
    mesh::{self, Mesh},
    prefixes::{Prefixes, prompts, seed},
    reload, settings, signals, usage,
};

/// A node that has bound its ports and knows its workers, but has not begun to serve.
pub struct Node {
    config: Config,
    inputs: Inputs,
    services: Services,
    registrar: Registrar,
    telemetry: Telemetry,
    tls: Option<ServerTls>,
    sockets: Sockets,
    mesh: Option<Mesh>,
    auth: Opened,
    /// Where usage is kept.
    usage_file: Option<PathBuf>,
    files: reload::Content,
    hangup: Signal,
}

/// What the tasks of a node share.
#[derive(Clone)]
struct Services {
    gateway: Arc<Gateway>,
    gate: Arc<Gate>,
    fleet: Arc<Fleet>,
    upstream: Upstream,
    live: Arc<Live>,
    clock: Arc<dyn Clock>,
    prefixes: Prefixes,
    limits: Limits,
    shutdown: Shutdown,
    tasks: Tasks,
}

/// What services are built on.
struct Given<'a> {
    fleet: Arc<Fleet>,
    clock: Arc<dyn Clock>,
    mesh: Option<&'a Mesh>,
    auth: &'a Opened,
}

/// What is left to look after while the tasks run.
struct Running {
    telemetry: Telemetry,
    mesh: Option<mesh::Running>,
}

/// How long the announcement waits for a worker.
const ANNOUNCE_PATIENCE: Duration = Duration::from_secs(3);

/// How long other nodes may take to learn that this one drains.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// How long other nodes may take to learn that this one leaves.
const LEAVE_PATIENCE: Duration = Duration::from_secs(3);

/// The ports of a node.
struct Sockets {
    traffic: TcpListener,
    metrics: TcpListener,
    probes: Option<std::net::TcpListener>,
}

impl Node {
    /// Builds every part and binds the ports. Nothing is served before [`Node::run`].
    ///
    /// `inherited` are the sockets that a service supervisor opened; the first becomes the traffic port.
    pub async fn build(config: Config, inputs: Inputs, inherited: Vec<systemd::Inherited>) -> Result<Self, Error> {
        // Before anything can be seen of the node: a change that somebody makes from then on is noticed.
        let files = reload::content(&config).await;
        let hangup = signals::reload().map_err(Error::io("listen for signals"))?;
        let host_name = host_name();
        let name = match config.sections.mesh.enable_mesh {
            true => mesh::name(&config, &host_name),
            false => config.sections.node.node_name.clone().unwrap_or_else(|| host_name.clone()),
        };
        let telemetry = smg_telemetry::init(&settings::telemetry(&config, &name))?;
        for warning in &config.warnings {
            tracing::warn!(%warning, "configuration");
        }
        let registrar = match config.sections.metrics.prometheus_duration_buckets.as_slice() {
            [] => Registrar::new(),
            buckets => Registrar::with_duration_buckets(buckets),
        };
        let tls = load_tls(&config)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let scope = mesh::scope(&config, &host_name);
        let fleet = Arc::new(Fleet::new(settings::fleet(&config, scope.clone())));
        add_workers(&fleet, &config, &*clock)?;
        let provider = auth::provider::open(&config, clock.clone(), &registrar).await?;
        let sockets = bind(&config, inherited).await?;
        let usage_file = usage::path(&config, &inputs.env, &name);
        let mesh = if config.sections.mesh.enable_mesh {
            let around = mesh::Surroundings {
                env: &inputs.env,
                host_name,
                traffic: sockets.traffic.local_addr().map_err(Error::io("read the traffic port's address"))?,
                clock: clock.clone(),
                registrar: &registrar,
            };
            let parts = mesh::open(&config, around).await?;
            Some(Mesh::new(parts, fleet.clone(), clock.clone(), scope.unwrap_or_default()))
        } else {
            None
        };
        let cluster = mesh.as_ref().map(Mesh::cluster);
        let auth = auth::open(&config, provider, cluster, clock.clone(), &registrar).await?;
        let given = Given { fleet, clock, mesh: mesh.as_ref(), auth: &auth };
        let services = Services::build(&config, &telemetry, &registrar, given)?;
        if let Some(path) = &usage_file {
            usage::take(&services.gateway, path);
        }
        Ok(Self { config, inputs, services, registrar, telemetry, tls, sockets, mesh, auth, usage_file, files, hangup })
    }

    /// The address of the traffic port.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.sockets.traffic.local_addr()
    }

    /// The order of stopping, for whoever runs the node inside another program.
    pub fn shutdown(&self) -> &Shutdown {
        &self.services.shutdown
    }

    /// Serves until a signal, or a part that cannot be done without, ends it. Returns when everything has stopped.
    /// `on_ready` is told the traffic address when a worker can be used, or after a few seconds.
    pub async fn run(self, on_ready: impl FnOnce(SocketAddr) + Send) -> Result<(), Error> {
        let grace = self.config.sections.node.shutdown_grace_period_secs;
        let delay = self.config.sections.node.drain_delay.min(grace / 2);
        let Services { shutdown, tasks, fleet, clock, gateway, limits, .. } = self.services.clone();
        let usage_file = self.usage_file.clone();
        let notifier = Arc::new(systemd::Notifier::from_env());
        let mut signals = signals::Stop::listen().map_err(Error::io("listen for signals"))?;
        let address = self.address().map_err(Error::io("read the traffic port's address"))?;
        let Running { telemetry, mesh } = self.start(&notifier)?;
        let announced = async {
            let _late = tokio::time::timeout(ANNOUNCE_PATIENCE, some_worker(&fleet, &*clock)).await;
            on_ready(address);
            std::future::pending::<()>().await;
        };
        let cause = tokio::select! {
            signal = signals.next() => signal,
            () = shutdown.reached(Phase::Draining) => "request",
            () = announced => "never",
        };
        tracing::info!(cause, drain_delay_s = delay.as_secs_f32(), grace_s = grace.as_secs_f32(), "draining");
        shutdown.advance(Phase::Draining);
        log_refused(notifier.stopping());
        let told = async {
            if let Some(mesh) = &mesh {
                let _late = tokio::time::timeout(DRAIN_PATIENCE, mesh.cluster.drain()).await;
            }
        };
        // Load balancers need time to see that this node is not ready; a second signal cuts it short.
        let passed = async {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
        };
        let waited = async { tokio::join!(told, passed) };
        tokio::select! {
            // Where there is nothing to wait for, a second signal is meant for what comes next.
            biased;
            _ = waited => {}
            _ = signals.next() => {}
            () = shutdown.reached(Phase::Closing) => {}
        }
        shutdown.advance(Phase::Closing);
        let ended = async {
            tasks.settle(grace - delay).await;
            // Only now: requests that peers had sent here, and that this node had sent through them, went on until here.
            if let Some(mesh) = &mesh {
                let _late = tokio::time::timeout(LEAVE_PATIENCE, mesh.cluster.leave()).await;
            }
            let stragglers = tasks.finish(Duration::ZERO).await;
            if let Some(path) = &usage_file {
                usage::save(&gateway, path).await;
            }
            limits.save().await;
            stragglers
        };
        let stragglers = tokio::select! {
            stragglers = ended => stragglers,
            _ = signals.next() => vec!["a second signal came".to_owned()],
        };
        if !stragglers.is_empty() {
            tracing::warn!(?stragglers, "stopped before everything had ended");
        }
        shutdown.advance(Phase::Stopped);
        tracing::info!("stopped");
        telemetry.shutdown();
        match (tasks.fault(), mesh.and_then(|mesh| mesh.refusal())) {
            (Some(fault), _) => Err(Error::Task(fault)),
            (None, Some(refusal)) => Err(Error::Refused(refusal)),
            (None, None) => Ok(()),
        }
    }

    /// Starts every task.
    fn start(self, notifier: &Arc<systemd::Notifier>) -> Result<Running, Error> {
        let Self {
            config,
            inputs,
            services,
            registrar,
            telemetry,
            tls,
            sockets,
            mesh,
            auth,
            usage_file,
            files,
            hangup,
        } = self;
        let Services { gateway, live, shutdown, tasks, .. } = services.clone();
        let address = sockets.traffic.local_addr().map_err(Error::io("read the traffic port's address"))?;
        tasks.observe(&registrar);
        telemetry.observe(&registrar);
        services.register(&config, &registrar);
        services.start_upkeep(&config, &registrar);
        let inboxes = mesh::Inboxes { prefixes: services.prefixes.inbox(), limits: services.limits.inbox() };
        services.start_prefixes(&registrar);
        services.limits.clone().start(&tasks);
        if let Some(path) = usage_file {
            tasks.spawn(TaskKind::Background, "usage", usage::keep(gateway.clone(), path, shutdown.clone()));
        }
        if let Some(provider) = auth.provider {
            tasks.spawn(TaskKind::Background, "identity provider", async move { provider.keep_fresh().await });
        }
        if let Some(writer) = auth.writer {
            tasks.spawn(TaskKind::Background, "audit log", writer.run());
        }
        services.follow_workers(mesh.as_ref().map(Mesh::cluster));
        let mesh = mesh.map(|mesh| mesh.start(&gateway, &live, &config, inboxes, &tasks));
        let reload_metrics = reload::ReloadMetrics::new(&registrar);
        let listener_metrics = ListenerMetrics::new(&registrar);
        let serve_metrics = smg_telemetry::serve_metrics(sockets.metrics, registrar, shutdown.clone());
        tasks.spawn(TaskKind::MetricsServer, "metrics server", async move {
            if let Err(error) = serve_metrics.await {
                tracing::error!(%error, "metrics server ended");
            }
        });
        if let Some(socket) = sockets.probes {
            serve_probes(socket, gateway.clone(), shutdown.clone())?;
        }
        let reloader = reload::Reloader {
            inputs,
            gateway: gateway.clone(),
            live,
            keys: auth.keys,
            declare: mesh.as_ref().map(|mesh| mesh.declare.clone()),
            gate: services.gate,
            fleet: services.fleet,
            clock: services.clock,
            tls: tls.clone(),
            level: telemetry.handle(),
            metrics: reload_metrics,
            seen: files,
            hangup,
            config: config.clone(),
        };
        tasks.spawn(TaskKind::ConfigWatcher, "configuration watcher", reloader.run(shutdown.clone()));
        if notifier.is_supervised() {
            let notifier = notifier.clone();
            let shutdown = shutdown.clone();
            tasks.spawn(TaskKind::Watchdog, "service watchdog", async move { notifier.keep_alive(shutdown).await });
        }
        let scheme = if tls.is_some() { "https" } else { "http" };
        let listener = Listener {
            router: router(gateway),
            config: settings::listener(&config),
            tls,
            metrics: listener_metrics,
            shutdown,
            tasks: tasks.clone(),
        };
        tasks.spawn(TaskKind::Listener, "traffic listener", listener.run(sockets.traffic));
        tracing::info!(
            url = format!("{scheme}://{address}"),
            workers = config.workers.len(),
            policy = config.sections.routing.policy.as_str(),
            version = env!("CARGO_PKG_VERSION"),
            "serving"
        );
        log_refused(notifier.ready());
        Ok(Running { telemetry, mesh })
    }
}

impl Services {
    fn build(config: &Config, telemetry: &Telemetry, registrar: &Registrar, given: Given<'_>) -> Result<Self, Error> {
        let Given { fleet, clock, mesh, auth } = given;
        let shutdown = Shutdown::new();
        let upstream = Upstream::new(&settings::upstream(config), registrar)?;
        let upstream = match mesh {
            Some(mesh) => upstream.with_peers(mesh.peers()),
            None => upstream,
        };
        let gate = Arc::new(Gate::new(settings::admission(config), clock.clone(), registrar));
        let hash_seed = seed::of(config, mesh.map(Mesh::others).as_ref());
        let prefixes = Prefixes::new(hash_seed, fleet.clone(), mesh.map(Mesh::others), registrar);
        let page = prefixes.clone();
        let prefix_page: smg_gateway::PrefixPage = Arc::new(move |policies| page.page(policies));
        let limits = Limits::new(config, clock.clone(), mesh.map(Mesh::others), registrar);
        let parts = Parts {
            fleet: fleet.clone(),
            upstream: upstream.clone(),
            gate: gate.clone(),
            clock: clock.clone(),
            random: Arc::new(entropy()),
            shutdown: shutdown.clone(),
            registrar: registrar.clone(),
            cluster: mesh.map(Mesh::cluster),
            hash_seed,
            prompt_tokens: prompts::load(config, &clock)?,
            prefix_page: Some(prefix_page),
            limiter: limits.limiter(),
            identity: auth.identity(seed::of_salts(mesh.map(Mesh::others).as_ref(), hash_seed)),
        };
        let trace = telemetry.trace_hooks();
        let enabled = config.sections.tracing.enable_trace;
        let hooks = TraceHooks { enabled, adopt: trace.adopt, inject: trace.inject };
        let gateway = Gateway::new(settings::gateway_start(config, hooks), settings::gateway(config), parts);
        let live = Arc::new(Live::new(gateway.clone(), fleet.clone(), auth.keys.clone(), config));
        let tasks = Tasks::new(shutdown.clone());
        Ok(Self { gateway, gate, fleet, upstream, live, clock, prefixes, limits, shutdown, tasks })
    }

    fn register(&self, config: &Config, registrar: &Registrar) {
        let engine_loads = if config.sections.fleet.engine_metrics { EngineLoads::Shown } else { EngineLoads::Hidden };
        fleet_metrics::register(registrar, &self.fleet, &self.gateway, self.clock.clone(), engine_loads);
    }

    fn start_prefixes(&self, registrar: &Registrar) {
        let Self { prefixes, gateway, upstream, clock, tasks, .. } = self.clone();
        prefixes.start(gateway, upstream, clock, registrar, &tasks);
    }

    /// Keeps the number of requests in progress what the workers can take.
    fn follow_workers(&self, cluster: Option<Arc<dyn smg_gateway::Cluster>>) {
        let Self { fleet, gate, clock, shutdown, tasks, .. } = self.clone();
        let parts = capacity::Parts { fleet, cluster, gate, clock };
        tasks.spawn(TaskKind::Background, "capacity", capacity::follow(parts, shutdown));
    }

    /// Starts what keeps the node's view of its workers fresh, and itself tidy.
    fn start_upkeep(&self, config: &Config, registrar: &Registrar) {
        let Self { gateway, fleet, upstream, clock, shutdown, tasks, .. } = self.clone();
        let hooks = probe::Hooks {
            remove_unhealthy: config.sections.health.remove_unhealthy_workers,
            on_removed: {
                let gateway = gateway.clone();
                Box::new(move |worker| gateway.forget_worker(worker))
            },
        };
        tasks.spawn(
            TaskKind::Prober,
            "prober",
            probe::run_prober(fleet.clone(), upstream.clone(), clock.clone(), shutdown.clone(), hooks),
        );
        tasks.spawn(TaskKind::Sweeper, "connection sweeper", upstream.clone().run_sweeper(shutdown.clone()));
        let interval = config.sections.fleet.load_monitor_interval;
        if !interval.is_zero() {
            let monitor = load::run_load_monitor(fleet, upstream, clock, shutdown.clone(), interval);
            tasks.spawn(TaskKind::LoadMonitor, "load monitor", monitor);
        }
        let drain_patience = config.sections.health.worker_drain_timeout;
        tasks.spawn(TaskKind::Sweeper, "sweeper", sweep(gateway, drain_patience, shutdown.clone()));
        let registrar = registrar.clone();
        tasks.spawn(TaskKind::Background, "vitals", async move { vitals::beat(&registrar, shutdown).await });
    }
}

/// What the system calls this machine.
fn host_name() -> String {
    let name =
        std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::fs::read_to_string("/etc/hostname"));
    let name = name.map(|name| name.trim().to_owned()).ok().filter(|name| !name.is_empty());
    name.unwrap_or_else(|| "smg".to_owned())
}

/// Waits until a worker can be used.
async fn some_worker(fleet: &Fleet, clock: &dyn Clock) {
    while fleet.snapshot().any().available(clock.now()) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn log_refused(result: Result<(), smg_runtime::Error>) {
    if let Err(error) = result {
        tracing::warn!(%error, "cannot tell the service supervisor");
    }
}

fn load_tls(config: &Config) -> Result<Option<ServerTls>, Error> {
    let tls = &config.sections.tls;
    match (&tls.tls_cert_path, &tls.tls_key_path) {
        (Some(certificate), Some(key)) => Ok(Some(ServerTls::load(certificate.clone(), key.clone())?)),
        // One without the other is refused by the configuration's own check.
        _ => Ok(None),
    }
}

fn add_workers(fleet: &Fleet, config: &Config, clock: &dyn Clock) -> Result<(), Error> {
    for (spec, origin) in &config.workers {
        let url = spec.url.clone();
        let refused = |source| Error::Worker { url: url.to_string(), source };
        let added = fleet.add(spec.clone(), *origin, clock.now()).map_err(refused)?;
        tracing::info!(worker = %added.worker.id, url = %added.worker.spec.url, "worker declared");
    }
    fleet.set_aliases(config.aliases.clone()).map_err(Error::Aliases)
}

async fn bind(config: &Config, inherited: Vec<systemd::Inherited>) -> Result<Sockets, Error> {
    let listener = &config.sections.listener;
    let traffic = match inherited.into_iter().next() {
        Some(inherited) => {
            TcpListener::from_std(inherited.listener).map_err(Error::io("adopt the inherited socket"))?
        }
        None => bind_port("traffic", listener.host, listener.port).await?,
    };
    let metrics = &config.sections.metrics;
    let metrics = bind_port("metrics", metrics.prometheus_host, metrics.prometheus_port).await?;
    let probes = match listener.health_check_port {
        Some(port) => {
            let socket = bind_port("health check", listener.host, port).await?;
            Some(socket.into_std().map_err(Error::io("hand over the health check port"))?)
        }
        None => None,
    };
    Ok(Sockets { traffic, metrics, probes })
}

async fn bind_port(name: &'static str, host: IpAddr, port: u16) -> Result<TcpListener, Error> {
    let address = SocketAddr::new(host, port);
    TcpListener::bind(address).await.map_err(|source| Error::Bind { name, address, source })
}

/// Serves the probe port on a thread and runtime of its own, where load cannot starve it.
fn serve_probes(socket: std::net::TcpListener, gateway: Arc<Gateway>, shutdown: Shutdown) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::io("start the health check runtime"))?;
    let serve = move || {
        runtime.block_on(async move {
            let served = async {
                let socket = TcpListener::from_std(socket)?;
                let stopped = async move { shutdown.reached(Phase::Stopped).await };
                serve_probes_on(socket, gateway, stopped).await
            };
            if let Err(error) = served.await {
                tracing::error!(%error, "health check server ended");
            }
        });
    };
    std::thread::Builder::new()
        .name("health-check".to_owned())
        .spawn(serve)
        .map(drop)
        .map_err(Error::io("start the health check thread"))
}

/// Expires what is old and removes workers that have drained.
async fn sweep(gateway: Arc<Gateway>, drain_patience: Duration, shutdown: Shutdown) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = shutdown.reached(Phase::Closing) => return,
        }
        gateway.remove_retired(drain_patience);
        gateway.sweep();
    }
}

/// Every metric a node can show, for the reference page.
pub fn metrics_reference() -> Vec<smg_runtime::metrics::Description> {
    let registrar = Registrar::new();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let shutdown = Shutdown::new();
    let fleet = Arc::new(Fleet::new(smg_fleet::FleetConfig::default()));
    let Ok(upstream) = Upstream::new(&smg_upstream::Config::default(), &registrar) else {
        return Vec::new();
    };
    let gate = Arc::new(Gate::new(smg_admission::Config::default(), clock.clone(), &registrar));
    let limiter = Arc::new(smg_limits::Limiter::new(smg_limits::LimiterConfig::default()));
    crate::limits::describe(&registrar, &limiter);
    let parts = Parts {
        fleet: fleet.clone(),
        upstream,
        gate,
        clock: clock.clone(),
        random: Arc::new(entropy()),
        shutdown: shutdown.clone(),
        registrar: registrar.clone(),
        cluster: None,
        hash_seed: 0,
        prompt_tokens: None,
        prefix_page: None,
        identity: Identity::of_nobody(clock.clone()),
        limiter,
    };
    let gateway = Gateway::new(smg_gateway::Config::default(), smg_gateway::Settings::default(), parts);
    fleet_metrics::register(&registrar, &fleet, &gateway, clock, EngineLoads::Shown);
    let _listener = ListenerMetrics::new(&registrar);
    let _prefixes = Prefixes::new(0, fleet, None, &registrar);
    let _channel = smg_runtime::channel::<()>("reference", 1, &registrar);
    smg_mesh::describe(&registrar);
    let _provider = smg_auth::describe(&registrar);
    let _reload = reload::ReloadMetrics::new(&registrar);
    Tasks::new(shutdown).observe(&registrar);
    vitals::observe(&registrar);
    smg_telemetry::dropped_lines(&registrar);
    smg_telemetry::process_metrics(&registrar);
    registrar.descriptions()
}
