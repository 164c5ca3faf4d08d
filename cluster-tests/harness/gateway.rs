//! The gateway under test, as a process of its own.

use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::Value;
use smg_fabric::Host;
use tempfile::TempDir;

use super::{
    client::{Answer, Ask, Connection, ask},
    wait::wait_for,
};

/// A gateway process. Dropping it kills it; if the test has failed, its log is printed.
#[derive(Debug)]
pub(crate) struct Gateway {
    child: Child,
    address: SocketAddr,
    metrics_address: SocketAddr,
    /// What opens its admin API, if the flags say so.
    key: Option<String>,
    /// Its working folder, with the log.
    folder: TempDir,
}

/// Flags that a test gets unless it says otherwise.
const DEFAULTS: &[(&str, &str)] = &[
    ("--host", "127.0.0.1"),
    ("--prometheus-host", "127.0.0.1"),
    ("--policy", "round_robin"),
    ("--drain-delay", "0s"),
    ("--drain-settle-secs", "0"),
    ("--worker-startup-check-interval", "50ms"),
    ("--load-monitor-interval", "0"),
    ("--log-level", "info"),
];

impl Gateway {
    /// Starts a gateway with `flags` beyond the defaults, and waits until it is ready and knows what all `workers` serve.
    pub(crate) async fn start(flags: &[&str], workers: &[&str]) -> Self {
        let gateway = Self::launch(flags, workers).await;
        gateway.described(workers).await;
        gateway
    }

    /// Starts a gateway and waits only until it answers.
    pub(crate) async fn launch(flags: &[&str], workers: &[&str]) -> Self {
        Self::launch_in(flags, workers, &[], &[]).await
    }

    /// The same with these variables in the environment, and without a default for the flags named in `bare`.
    pub(crate) async fn launch_in(
        flags: &[&str],
        workers: &[&str],
        environment: &[(&str, &str)],
        bare: &[&str],
    ) -> Self {
        for _ in 0..8 {
            let mut gateway = Self::spawn(flags, workers, environment, bare);
            if gateway.listens().await {
                return gateway;
            }
            // Somebody else took a port in the meantime.
            assert!(gateway.log().contains("in use"), "the gateway ended at once: {}", gateway.log());
        }
        panic!("no free ports");
    }

    fn spawn(flags: &[&str], workers: &[&str], environment: &[(&str, &str)], bare: &[&str]) -> Self {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (address, metrics_address) = (local(free_port()), local(free_port()));
        let mut command = Command::new(env!("CARGO_BIN_EXE_smg"));
        configure(&mut command, &[flags, &workers_flag(workers)].concat(), environment, bare);
        Self::started(command, [address, metrics_address], flags, Command::spawn)
    }

    /// Starts a gateway on a host of a test's network, where its ports are the usual ones, and does not wait for it.
    pub(crate) fn on_host(host: &Host, flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let own = host.address().to_string();
        let flags = [&["--host", &own, "--prometheus-host", &own], flags].concat();
        let mut command = host.command(env!("CARGO_BIN_EXE_smg"));
        configure(&mut command, &flags, environment, &[]);
        let place = |port| SocketAddr::from((host.address(), port));
        Self::started(command, [place(30_000), place(29_000)], &flags, |command| {
            host.spawn(std::mem::replace(command, Command::new("true")))
        })
    }

    fn started(
        mut command: Command,
        [address, metrics_address]: [SocketAddr; 2],
        flags: &[&str],
        spawn: impl FnOnce(&mut Command) -> io::Result<Child>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        command.args(["--port", &address.port().to_string()]);
        command.args(["--prometheus-port", &metrics_address.port().to_string()]);
        command.current_dir(folder.path());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let key = ["--admin-api-key", "--api-key"].iter().find_map(|flag| value_of(flags, flag));
        Self { child: spawn(&mut command).unwrap(), address, metrics_address, key, folder }
    }

    /// Waits until it listens; whether it does, rather than having ended.
    pub(crate) async fn listens(&mut self) -> bool {
        wait_for("the gateway to listen or to end", async || {
            if self.child.try_wait().unwrap().is_some() {
                return Some(false);
            }
            if tokio::net::TcpStream::connect(self.address).await.is_err() {
                return None;
            }
            // What is answered, or closed, was taken out of the queue: no connection of ours turns up later.
            let mut connection = Connection::open(self.address).await;
            connection.send(&Ask::get("/livez").field("connection", "close")).await;
            connection.drain().await;
            Some(true)
        })
        .await
    }

    /// Waits until it is ready and each of `workers` is described and may be used.
    pub(crate) async fn described(&self, workers: &[&str]) {
        if workers.is_empty() {
            return;
        }
        self.ready().await;
        for url in workers {
            self.worker_is(url, "ready").await;
        }
    }

    /// Waits until it says that it is ready.
    pub(crate) async fn ready(&self) {
        wait_for("readiness", async || (self.ask(&Ask::get("/readyz")).await.status == 200).then_some(())).await;
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL, without a trailing slash.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it shows its metrics.
    pub(crate) fn metrics_address(&self) -> SocketAddr {
        self.metrics_address
    }

    /// Its working folder.
    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// The id of its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Opens a connection.
    pub(crate) async fn connect(&self) -> Connection {
        Connection::open(self.address).await
    }

    /// Asks on a connection of its own.
    pub(crate) async fn ask(&self, request: &Ask) -> Answer {
        ask(self.address, request).await
    }

    /// Sends a request on a connection of its own, for the answer to be read bit by bit.
    pub(crate) async fn begin(&self, request: &Ask) -> Connection {
        let mut connection = self.connect().await;
        connection.send(request).await;
        connection
    }

    /// Asks the admin API, with the key if there is one.
    pub(crate) async fn admin(&self, method: &str, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let ask = Ask::new(method, path, body).field("content-type", "application/json");
        let ask = self.key.iter().fold(ask, |ask, key| ask.field("x-api-key", key));
        self.ask(&ask).await
    }

    /// What the admin API says of the worker at `url`; null if there is none.
    pub(crate) async fn worker(&self, url: &str) -> Value {
        let list = self.admin("GET", "/workers", &Value::Null).await.value();
        let workers = list["workers"].as_array().cloned().unwrap_or_default();
        workers.into_iter().find(|worker| worker["url"] == url).unwrap_or_default()
    }

    /// Waits until the worker at `url` has this status and, if it is `ready`, its models are known.
    pub(crate) async fn worker_is(&self, url: &str, status: &str) {
        wait_for(&format!("{url} to be {status}"), async || {
            let worker = self.worker(url).await;
            let is_known = status != "ready" || worker["model_id"] != "unknown";
            (worker["status"] == status && is_known).then_some(())
        })
        .await;
    }

    /// All metrics, as text.
    pub(crate) async fn metrics(&self) -> String {
        ask(self.metrics_address, &Ask::get("/metrics").field("connection", "close")).await.text()
    }

    /// The sum of the series called `name` that have all of `labels`; zero if there is none.
    pub(crate) async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let text = self.metrics().await;
        let fits = |line: &&str| {
            let series = line.split(['{', ' ']).next() == Some(name);
            series && labels.iter().all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")))
        };
        let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        text.lines().filter(fits).filter_map(value).sum()
    }

    /// Waits until [`Gateway::metric`] is `expected`.
    pub(crate) async fn metric_is(&self, name: &str, labels: &[(&str, &str)], expected: f64) {
        let mut seen = f64::NAN;
        let outcome = tokio::time::timeout(super::PATIENCE, async {
            while seen != expected {
                seen = self.metric(name, labels).await;
                tokio::task::yield_now().await;
            }
        });
        assert!(outcome.await.is_ok(), "{name}{labels:?} is {seen}, not {expected}");
    }

    /// Sends a signal, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.child.id())]).status().unwrap();
        assert!(sent.success(), "cannot send SIG{name}");
    }

    /// Waits until the process has ended.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        wait_for("the gateway to end", async || self.child.try_wait().unwrap()).await
    }

    /// Whether the process still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Everything it wrote.
    pub(crate) fn log(&self) -> String {
        let bytes = fs::read(self.folder.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
        let log = self.log();
        if std::thread::panicking() {
            eprintln!("--- log of the gateway ---\n{log}--- end of the log ---");
        } else {
            assert!(!log.contains("panicked at"), "the gateway panicked: {log}");
        }
    }
}

/// Everything about a gateway's process but its ports, folder and output.
fn configure(command: &mut Command, flags: &[&str], environment: &[(&str, &str)], bare: &[&str]) {
    command.arg("launch");
    for (flag, value) in DEFAULTS {
        let is_given = flags.iter().any(|given| given.split('=').next() == Some(flag));
        if !is_given && !bare.contains(flag) {
            command.args([flag, value]);
        }
    }
    command.args(flags);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SMG_") || name.starts_with("OTEL_")) {
        command.env_remove(name);
    }
    command.env_remove("RUST_LOG").envs(environment.iter().copied());
}

fn workers_flag<'a>(workers: &[&'a str]) -> Vec<&'a str> {
    if workers.is_empty() { Vec::new() } else { [&["--worker-urls"], workers].concat() }
}

/// What follows `flag`.
fn value_of(flags: &[&str], flag: &str) -> Option<String> {
    let place = flags.iter().position(|given| *given == flag)?;
    flags.get(place + 1).map(|value| (*value).to_owned())
}

/// A port that nobody listens on, below those that the system hands out to clients, so that it stays free.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    // Tests may run in processes of their own: each begins elsewhere.
    let start = std::process::id().wrapping_mul(7_919);
    for _ in 0..COUNT {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + start.wrapping_add(number) % COUNT;
        let port = u16::try_from(port).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}
