//! The client: takes a connection, sends, and says truthfully what may have happened when that fails.

#[cfg(test)]
mod tests;

use std::{error::Error as _, fmt, sync::Arc, time::Duration};

use futures_util::FutureExt;
use http::{Request, Response, StatusCode};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
    rt::Executor,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use smg_base::WorkerId;
use smg_fleet::{DirectPath, Origin, Worker, WorkerUrl};
use smg_infer::{Dispatched, Failure, FailureCode};
use smg_runtime::{Phase, Shutdown, metrics::Registrar};
use tokio::time::{Instant, MissedTickBehavior};

use crate::{
    Error,
    body::ResponseBody,
    config::Config,
    connect::{ConnectError, Connector, Stream},
    connection::{Broken, Connection, OpenGuard},
    destination::{Destination, Destinations, Protocol},
    metrics::Metrics,
    outbound::{Outbound, OutboundBody},
    pool::{Limits, Pool},
    relay::Peers,
    resolve::Resolver,
    rules::{RefusedUrl, UrlRules},
    tls::Tls,
};

/// After so many idle connections that turned out to be closed, a new one is opened: the worker was restarted.
const STALE_CONNECTIONS_MAX: usize = 3;

/// How often idle connections are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Pings on HTTP/2 connections with requests on them, and how long the answer may take.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// The way to workers: for traffic, probes, detection and admin calls alike, so that what a probe finds out holds for
/// the traffic too. Clones share their connections.
///
/// Redirects are not followed and proxies not used: a worker is where its URL says.
#[derive(Clone)]
pub struct Upstream {
    pub(crate) inner: Arc<Inner>,
    pub(crate) peers: Option<Arc<dyn Peers>>,
}

pub(crate) struct Inner {
    pub(crate) connector: Connector,
    pub(crate) http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    limits: Limits,
    operator_rules: Arc<UrlRules>,
    api_rules: Arc<UrlRules>,
    destinations: Destinations,
    pub(crate) metrics: Metrics,
}

/// A connection with room for one request.
enum Lease {
    Own { connection: Box<Connection>, reused: Reused },
    Shared { sender: http2::SendRequest<OutboundBody>, reused: Reused },
}

/// Whether a connection carried a request before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reused {
    Yes,
    No,
}

impl Upstream {
    /// Reads certificates and checks settings; opens nothing.
    pub fn new(config: &Config, registrar: &Registrar) -> Result<Self, Error> {
        Self::with_resolver(config, registrar, Resolver::System)
    }

    pub(crate) fn with_resolver(config: &Config, registrar: &Registrar, resolver: Resolver) -> Result<Self, Error> {
        let least = 8 << 10;
        if config.response_head_bytes_max < least {
            return Err(Error::TooSmall { setting: "response_head_bytes_max", least });
        }
        let protocols: &[&[u8]] = if config.http2 { &[b"h2", b"http/1.1"] } else { &[b"http/1.1"] };
        let connector = Connector { resolver, tls: Tls::new(&config.tls, protocols)?, timeout: config.connect_timeout };
        let mut http1 = http1::Builder::new();
        // The most headers are left at hyper's hundred: any other number costs it two allocations per response.
        http1.max_header_size(config.response_head_bytes_max);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .max_header_list_size(u32::try_from(config.response_head_bytes_max).unwrap_or(u32::MAX));
        let inner = Inner {
            connector,
            http1,
            http2,
            limits: Limits { connections_max: config.pool_idle_per_worker, idle: config.pool_idle_timeout },
            operator_rules: Arc::new(config.operator_rules.clone()),
            api_rules: Arc::new(config.api_rules.clone()),
            destinations: Destinations::new(),
            metrics: Metrics::new(registrar),
        };
        Ok(Self { inner: Arc::new(inner), peers: None })
    }

    /// Sends a request and waits for the head of the answer, whatever its status.
    ///
    /// A failure says whether the worker may have got the request: `no` if not a byte was sent, `maybe` otherwise. A
    /// request that found its connection closed before anything was written is sent again here, over another one.
    ///
    /// A worker whose URL means something only on another machine is asked through the peer that reaches it.
    pub async fn send(&self, worker: &Worker, outbound: Outbound) -> Result<Response<ResponseBody>, Failure> {
        if worker.direct() == DirectPath::Forbidden {
            let via =
                worker.via().ok_or_else(|| Failure::new(FailureCode::ConnectFailed, "no peer reaches the worker"))?;
            return self.send_errand(via.peer, worker, outbound).boxed().await;
        }
        let destination = self.destination(worker);
        let request = destination.request(outbound, worker.engine())?;
        self.inner.send(&destination, request).await
    }

    /// The rules for workers registered through the admin API.
    pub fn rules(&self) -> Arc<UrlRules> {
        self.inner.api_rules.clone()
    }

    /// Whether a worker brought in by `origin` may be at `url`.
    pub async fn check(&self, url: &WorkerUrl, origin: Origin) -> Result<(), RefusedUrl> {
        self.inner.rules(origin).check_with(url, &self.inner.connector.resolver).await
    }

    /// Closes the idle connections to a worker that is gone.
    pub fn forget(&self, id: WorkerId) {
        self.inner.destinations.forget(id);
    }

    /// Closes connections that have been idle for too long, until the process has drained.
    pub async fn run_sweeper(self, shutdown: Shutdown) {
        let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.reached(Phase::Closing) => return,
                _ = ticks.tick() => self.inner.destinations.sweep(),
            }
        }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    fn destination(&self, worker: &Worker) -> Arc<Destination> {
        let inner = &self.inner;
        let pool = || Pool::new(inner.limits, inner.metrics.connections_idle.clone());
        inner.destinations.of(worker, |origin| inner.rules(origin).clone(), pool)
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").finish_non_exhaustive()
    }
}

impl Inner {
    pub(crate) fn rules(&self, origin: Origin) -> &Arc<UrlRules> {
        match origin {
            Origin::Flag | Origin::File => &self.operator_rules,
            // Another node's worker may have come through its admin API, and a name may resolve to something else here.
            Origin::Api | Origin::Mesh => &self.api_rules,
        }
    }

    async fn send(
        &self,
        destination: &Arc<Destination>,
        mut request: Request<OutboundBody>,
    ) -> Result<Response<ResponseBody>, Failure> {
        let mut stale = 0;
        loop {
            let lease = match self.idle(destination).filter(|_| stale < STALE_CONNECTIONS_MAX) {
                Some(lease) => lease,
                // On the heap: a request that finds an idle connection should not carry this future's size around.
                None => self.open(destination).boxed().await.map_err(|error| not_connected(destination, &error))?,
            };
            let (broken, reused) = match self.exchange(destination, lease, request).await {
                Ok(response) => return accept(response),
                Err(broken) => broken,
            };
            match (broken, reused) {
                (Broken::Unsent(unsent), Reused::Yes) => {
                    stale += 1;
                    self.metrics.resent.inc();
                    request = *unsent;
                }
                (Broken::Unsent(_), Reused::No) => {
                    let message = "the worker closed the connection at once";
                    return Err(Failure::new(FailureCode::ConnectFailed, message));
                }
                (Broken::Sent(error), _) => return Err(broken_off(&destination.target.url, &error)),
            }
        }
    }

    /// A connection that is open already.
    fn idle(&self, destination: &Destination) -> Option<Lease> {
        let reused = Reused::Yes;
        let lease = match destination.pool.take() {
            Some(connection) => Some(Lease::Own { connection, reused }),
            None if destination.speaks_http1() => None,
            None => destination.pool.share().map(|sender| Lease::Shared { sender, reused }),
        };
        if lease.is_some() {
            self.metrics.reused.inc();
        }
        lease
    }

    /// A new connection. Where it may turn out to be one that requests share, only one is opened at a time, and who
    /// waited for it uses it.
    async fn open(&self, destination: &Destination) -> Result<Lease, ConnectError> {
        if destination.speaks_http1() {
            return self.connect(destination).await;
        }
        let limit = self.connector.timeout;
        let opening = tokio::time::timeout(limit, destination.opening.lock()).await;
        let _opening = opening.map_err(|_| ConnectError::Timeout(limit))?;
        match destination.pool.share() {
            Some(sender) => Ok(Lease::Shared { sender, reused: Reused::Yes }),
            None => self.connect(destination).await,
        }
    }

    async fn connect(&self, destination: &Destination) -> Result<Lease, ConnectError> {
        let started = Instant::now();
        let connected = match self.connector.connect(&destination.target).await {
            Ok(stream) => self.handshake(destination, stream).await,
            Err(error) => Err(error),
        };
        let label = connected.as_ref().err().map_or("connected", ConnectError::label);
        self.metrics.connects.with_label_values(&[label]).inc();
        self.metrics.connect_seconds.observe(started.elapsed().as_secs_f64());
        connected
    }

    async fn handshake(&self, destination: &Destination, stream: Stream) -> Result<Lease, ConnectError> {
        let open = OpenGuard::new(&self.metrics.connections_open);
        let reused = Reused::No;
        if !stream.speaks_http2() {
            destination.agreed_on(Protocol::Http1);
            let connection = Connection::new(&self.http1, stream, Some(open)).await.map_err(ConnectError::Handshake)?;
            return Ok(Lease::Own { connection, reused });
        }
        destination.agreed_on(Protocol::Http2);
        let (sender, driver) = self.http2.handshake(TokioIo::new(stream)).await.map_err(ConnectError::Handshake)?;
        // The task is owned by the handles on the connection: it ends when they and their streams are gone.
        TokioExecutor::new().execute(driver.map(|ended| {
            if let Err(error) = ended {
                tracing::debug!(%error, "http/2 connection ended");
            }
        }));
        destination.pool.set_shared(sender.clone(), open);
        Ok(Lease::Shared { sender, reused })
    }

    async fn exchange(
        &self,
        destination: &Destination,
        lease: Lease,
        mut request: Request<OutboundBody>,
    ) -> Result<Response<ResponseBody>, (Broken, Reused)> {
        let body =
            |incoming: Incoming, connection| ResponseBody::new(incoming, connection, Some(destination.pool.clone()));
        match lease {
            Lease::Own { connection, reused } => {
                destination.address(&mut request, Protocol::Http1);
                let answered = connection.exchange(request).await.map_err(|broken| (broken, reused))?;
                Ok(answered.response.map(|incoming| body(incoming, answered.connection)))
            }
            Lease::Shared { mut sender, reused } => {
                destination.address(&mut request, Protocol::Http2);
                let answered = sender.try_send_request(request).await.map_err(|mut error| {
                    let broken = match error.take_message() {
                        Some(unsent) => Broken::Unsent(Box::new(unsent)),
                        None => Broken::Sent(error.into_error()),
                    };
                    (broken, reused)
                })?;
                Ok(answered.map(|incoming| body(incoming, None)))
            }
        }
    }
}

/// A worker has no business switching protocols: nobody asked it to.
fn accept(response: Response<ResponseBody>) -> Result<Response<ResponseBody>, Failure> {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    let message = "the worker switched to another protocol";
    Err(Failure::new(FailureCode::UpstreamGarbage, message).dispatched(Dispatched::Yes))
}

fn not_connected(destination: &Destination, error: &ConnectError) -> Failure {
    tracing::debug!(worker = %destination.target.url, %error, "cannot connect to worker");
    error.failure()
}

/// What a connection that broke after something may have been sent means.
pub(crate) fn broken_off(to: &dyn fmt::Display, error: &hyper::Error) -> Failure {
    let cause = error.source().map(ToString::to_string);
    tracing::debug!(%to, %error, cause, "request broke off");
    if error.is_user() {
        return Failure::new(FailureCode::ClientClosed, "the request body broke off").dispatched(Dispatched::Maybe);
    }
    if error.is_parse() {
        let message = "the worker's answer is not http, or its head is too large";
        return Failure::new(FailureCode::UpstreamGarbage, message).dispatched(Dispatched::Maybe);
    }
    let dispatched = if was_refused(error) { Dispatched::No } else { Dispatched::Maybe };
    Failure::new(FailureCode::UpstreamClosed, "the worker broke off before it answered").dispatched(dispatched)
}

/// Whether the worker said that it did not process the stream: it reset it as refused, or it announced that the
/// connection closes, which ends only the streams it has not taken (RFC 9113 §8.7 and §6.8).
fn was_refused(error: &hyper::Error) -> bool {
    let Some(error) = error.source().and_then(|source| source.downcast_ref::<h2::Error>()) else {
        return false;
    };
    let reason = error.reason();
    error.is_remote()
        && (error.is_reset() && reason == Some(h2::Reason::REFUSED_STREAM)
            || error.is_go_away() && reason == Some(h2::Reason::NO_ERROR))
}
