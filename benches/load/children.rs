//! The processes that are measured: started here, watched here, ended here whatever happens.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::control;
use super::failure::{Failure, Tried as _};
use super::options::Shape;
use super::procfs::{self, Usage};
use super::request;

const READY_WITHIN: Duration = Duration::from_secs(20);
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// A server in a process of its own, ended when dropped.
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Where smg shows its metrics.
    pub(crate) metrics: Option<SocketAddr>,
    /// From its start until it passed on an answer.
    pub(crate) ready_after: Duration,
    child: Child,
}

impl Server {
    /// What it and its children use now.
    pub(crate) fn usage(&self) -> Usage {
        procfs::usage(self.child.id())
    }

    fn start(name: &str, address: SocketAddr, mut command: Command, output: &Path) -> Result<Server, Failure> {
        let what = format!("starting {name}");
        let log = fs::File::create(output).tried(&what)?;
        let errors = log.try_clone().tried(&what)?;
        let started = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().tried(&what)?;
        let mut server = Server { address, metrics: None, ready_after: Duration::ZERO, child };
        while !server.answers() {
            let ended = server.child.try_wait().tried(&what)?.is_some();
            if ended || started.elapsed() > READY_WITHIN {
                let said = fs::read_to_string(output).unwrap_or_default();
                let tail: String = said.lines().rev().take(8).collect::<Vec<_>>().join(" | ");
                return Err(Failure::Child { child: name.to_owned(), said: tail });
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        server.ready_after = started.elapsed();
        Ok(server)
    }

    /// Whether a request gets through to an engine and back.
    fn answers(&self) -> bool {
        let request = request::request(Shape::Plain, 256, 0);
        let body = String::from_utf8_lossy(&request);
        let body = body.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        control::call(self.address, "POST", request::PATH, body).is_ok_and(|(status, _)| status == 200)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // nginx must end its workers itself, so it is asked first. A process that has ended already is no error.
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let deadline = Instant::now() + GONE_WITHIN;
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How the fake engine answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Canned {
    pub(crate) body_bytes: usize,
    pub(crate) events: usize,
    pub(crate) event_bytes: usize,
    pub(crate) event_interval: Duration,
    /// As `--event-framing` says it: `chunk` lets events that are due together share a write, `write` does not.
    pub(crate) framing: &'static str,
}

/// One node of a mesh.
pub(crate) struct Node<'a> {
    pub(crate) name: &'a str,
    /// Workers on this machine count as reachable only for nodes of the same scope.
    pub(crate) scope: &'a str,
    pub(crate) token: &'a str,
    /// Where its mesh port is.
    pub(crate) mesh: SocketAddr,
    /// Where those of others are.
    pub(crate) seeds: &'a [SocketAddr],
    pub(crate) engines: &'a [SocketAddr],
}

/// Where programs are and where they may write.
pub(crate) struct Programs {
    pub(crate) smg: PathBuf,
    pub(crate) engine: PathBuf,
    pub(crate) nginx: PathBuf,
    /// A folder of this run, removed afterwards.
    pub(crate) folder: tempfile::TempDir,
}

impl Programs {
    /// Starts a fake engine.
    pub(crate) fn engine(&self, canned: Canned) -> Result<Server, Failure> {
        let address = control::free_address()?;
        let mut command = Command::new(&self.engine);
        command.args(["mock-worker", "--bench", "--port", &address.port().to_string()]);
        command.args(["--bench-body-bytes", &canned.body_bytes.to_string()]);
        command.args(["--bench-events", &canned.events.to_string()]);
        command.args(["--bench-event-bytes", &canned.event_bytes.to_string()]);
        command.args(["--bench-event-interval-ms", &canned.event_interval.as_millis().to_string()]);
        command.args(["--event-framing", canned.framing]);
        Server::start("engine", address, command, &self.log("engine", address))
    }

    /// Starts smg in front of engines. Access lines are off, as nginx's are.
    pub(crate) fn smg(&self, engines: &[SocketAddr], policy: &str) -> Result<Server, Failure> {
        let (address, metrics) = (control::free_address()?, control::free_address()?);
        let mut command = Command::new(&self.smg);
        command.current_dir(self.folder.path()).arg("--worker-urls");
        command.args(engines.iter().map(|engine| format!("http://{engine}")));
        command.args(["--policy", policy, "--host", "127.0.0.1", "--port", &address.port().to_string()]);
        command.args(["--prometheus-host", "127.0.0.1", "--prometheus-port", &metrics.port().to_string()]);
        command.args(["--log-level", "warn", "--access-log", "off"]);
        command.args(["--drain-delay", "0s", "--shutdown-grace-period-secs", "1"]);
        let mut server = Server::start("smg", address, command, &self.log("smg", address))?;
        server.metrics = Some(metrics);
        Ok(server)
    }

    /// Starts a node of a mesh. It counts as started when a request gets through it, be it through a peer.
    pub(crate) fn node(&self, node: &Node<'_>) -> Result<Server, Failure> {
        let (address, metrics) = (control::free_address()?, control::free_address()?);
        let mut command = Command::new(&self.smg);
        command.current_dir(self.folder.path()).args(["--enable-mesh", "--mesh-host", "127.0.0.1"]);
        command.args(["--mesh-advertise-host", "127.0.0.1", "--mesh-port", &node.mesh.port().to_string()]);
        command.args(["--mesh-server-name", node.name, "--host-scope", node.scope]).env("SMG_MESH_TOKEN", node.token);
        command.arg("--data-dir").arg(self.folder.path().join("data"));
        if !node.seeds.is_empty() {
            command.arg("--mesh-peer-urls").args(node.seeds.iter().map(SocketAddr::to_string));
        }
        if !node.engines.is_empty() {
            command.arg("--worker-urls").args(node.engines.iter().map(|engine| format!("http://{engine}")));
        }
        command.args(["--policy", "round_robin", "--host", "127.0.0.1", "--port", &address.port().to_string()]);
        command.args(["--prometheus-host", "127.0.0.1", "--prometheus-port", &metrics.port().to_string()]);
        command.args(["--log-level", "warn", "--access-log", "off"]);
        command.args(["--drain-delay", "0s", "--shutdown-grace-period-secs", "1"]);
        let mut server = Server::start("smg", address, command, &self.log(node.name, address))?;
        server.metrics = Some(metrics);
        Ok(server)
    }

    /// A secret for the nodes of one mesh.
    pub(crate) fn token(&self) -> Result<String, Failure> {
        let output = Command::new(&self.smg).args(["mesh", "token"]).output().tried("making a token")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Starts nginx in front of an engine.
    pub(crate) fn nginx(&self, engine: SocketAddr) -> Result<Server, Failure> {
        let address = control::free_address()?;
        let folder = self.folder.path().join(format!("nginx-{}", address.port()));
        fs::create_dir_all(&folder).tried("making nginx's folder")?;
        let configuration = folder.join("nginx.conf");
        fs::write(&configuration, nginx_configuration(&folder, address, engine)).tried("writing nginx.conf")?;
        let mut command = Command::new(&self.nginx);
        command.arg("-p").arg(&folder).arg("-c").arg(&configuration).args([OsStr::new("-e"), OsStr::new("stderr")]);
        Server::start("nginx", address, command, &self.log("nginx", address))
    }

    fn log(&self, name: &str, address: SocketAddr) -> PathBuf {
        self.folder.path().join(format!("{name}-{}.log", address.port()))
    }
}

/// nginx as one would put it before an engine: kept connections on both sides, streams passed on at once, no access log.
fn nginx_configuration(folder: &Path, address: SocketAddr, engine: SocketAddr) -> String {
    let folder = folder.display();
    format!(
        "daemon off;
worker_processes auto;
worker_rlimit_nofile 20000;
pid {folder}/pid;
error_log stderr error;
events {{ worker_connections 9000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 64m;
    client_body_buffer_size 2m;
    keepalive_requests 100000000;
    tcp_nodelay on;
    upstream engine {{
        server {engine};
        keepalive 256;
        keepalive_requests 100000000;
    }}
    server {{
        listen {address} backlog=4096;
        location / {{
            proxy_pass http://engine;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
"
    )
}

/// This program again, in another role. Ends when its input ends.
pub(crate) struct Role {
    name: &'static str,
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Role {
    /// Starts a role with its job.
    pub(crate) fn start(name: &'static str, job: &impl Serialize) -> Result<Role, Failure> {
        let program = std::env::current_exe().tried("finding this program")?;
        let mut child = Command::new(program)
            .arg(name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .tried("starting the load")?;
        let mut input = child.stdin.take().expect("the input was piped above");
        let output = BufReader::new(child.stdout.take().expect("the output was piped above"));
        writeln!(input, "{}", serde_json::to_string(job)?).tried("handing over a job")?;
        Ok(Role { name, child, input: Some(input), output })
    }

    /// The next line it says.
    pub(crate) fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        self.output.read_line(&mut line).tried("hearing the load")?;
        if line.is_empty() {
            return Err(Failure::Child { child: self.name.to_owned(), said: String::new() });
        }
        Ok(line.trim_end().to_owned())
    }

    /// The next line, which must be this one.
    pub(crate) fn expect(&mut self, expected: &str) -> Result<(), Failure> {
        let said = self.line()?;
        if said == expected { Ok(()) } else { Err(Failure::Child { child: self.name.to_owned(), said }) }
    }

    /// The next line, read as what it reports.
    pub(crate) fn report<T: DeserializeOwned>(&mut self) -> Result<T, Failure> {
        Ok(serde_json::from_str(&self.line()?)?)
    }

    /// Ends it at once: every connection it has is dropped.
    pub(crate) fn end(mut self) -> Result<(), Failure> {
        drop(self.input.take());
        self.child.wait().tried("ending the load").map(|_| ())
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
