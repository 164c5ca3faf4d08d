//! Gateways in one process, joined by streams in memory.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{body::Body, response::Response};
use futures_util::{FutureExt, future::BoxFuture};
use http::Request;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use smg_auth::Authenticator;
use smg_base::{Clock, PeerId, SplitMix, WorkerId};
use smg_fleet::{
    ClusterVerdict, DirectPath, Fleet, FleetConfig, HealthConfig, Origin, ProbeDuty, Reach, Via, WorkerSpec,
};
use smg_gateway::{AdminAccess, Cluster, Config, Gateway, Parts, PromptTokens, Settings, router, serve_relayed};
use smg_mock_worker::MockWorker;
use smg_runtime::{Shutdown, SystemClock, metrics::Registrar};
use smg_upstream::{PeerStream, Peers, Upstream};
use tokio::io::AsyncReadExt;
use tower::ServiceExt;

/// The longest that a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// How a peer takes what is opened to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Manner {
    /// It serves it.
    #[default]
    Serves,
    /// It is not there.
    Absent,
    /// It is gone as soon as the stream is open.
    GoneAtOnce,
    /// It is gone when it has read some of the request.
    GoneWhenRead,
}

/// The way from one node to the others.
#[derive(Default)]
pub(crate) struct Link {
    own: Mutex<Option<PeerId>>,
    far: Mutex<Vec<(PeerId, Arc<Gateway>)>>,
    manner: Mutex<Manner>,
    failed: AtomicU32,
}

impl Link {
    pub(crate) fn behave(&self, manner: Manner) {
        *self.manner.lock() = manner;
    }

    /// How often a peer was said to have failed.
    pub(crate) fn failures(&self) -> u32 {
        self.failed.load(Ordering::SeqCst)
    }
}

impl Peers for Link {
    fn open(&self, peer: PeerId) -> BoxFuture<'static, io::Result<Box<dyn PeerStream>>> {
        let far = self.far.lock().iter().find(|(id, _)| *id == peer).map(|(_, gateway)| gateway.clone());
        let own = self.own.lock().unwrap();
        let manner = *self.manner.lock();
        async move {
            let Some(far) = far.filter(|_| manner != Manner::Absent) else {
                return Err(io::ErrorKind::NotConnected.into());
            };
            let (near, mut there) = tokio::io::duplex(16 << 10);
            match manner {
                Manner::Serves | Manner::Absent => drop(tokio::spawn(serve_relayed(far, own, there))),
                Manner::GoneAtOnce => drop(there),
                Manner::GoneWhenRead => drop(tokio::spawn(async move { there.read(&mut [0; 16]).await })),
            }
            Ok(Box::new(near) as Box<dyn PeerStream>)
        }
        .boxed()
    }

    fn failed(&self, _: PeerId) {
        self.failed.fetch_add(1, Ordering::SeqCst);
    }
}

/// A node without its sockets.
pub(crate) struct Node {
    pub(crate) id: PeerId,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) link: Arc<Link>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) authenticator: Arc<Authenticator>,
    registrar: Registrar,
}

impl Node {
    pub(crate) fn new(name: &str, change: impl FnOnce(&mut Settings)) -> Self {
        Self::within(name, None, change)
    }

    /// The same as part of a cluster.
    pub(crate) fn within(name: &str, cluster: Option<Arc<dyn Cluster>>, change: impl FnOnce(&mut Settings)) -> Self {
        Self::build(name, cluster, None, change)
    }

    /// The same with somebody who computes tokens.
    pub(crate) fn with_tokens(name: &str, tokens: Arc<dyn PromptTokens>) -> Self {
        Self::build(name, None, Some(tokens), |_| {})
    }

    fn build(
        name: &str,
        cluster: Option<Arc<dyn Cluster>>,
        prompt_tokens: Option<Arc<dyn PromptTokens>>,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let id = PeerId(smg_base::hash::stable128(name.as_bytes()));
        let registrar = Registrar::new();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let health = HealthConfig { enabled: false, ..HealthConfig::default() };
        let scope = Some(name.to_owned());
        let fleet = Arc::new(Fleet::new(FleetConfig { health, scope, ..FleetConfig::default() }));
        let link = Arc::new(Link { own: Mutex::new(Some(id)), ..Link::default() });
        let upstream = Upstream::new(&smg_upstream::Config::default(), &registrar).unwrap().with_peers(link.clone());
        let gate = smg_admission::Gate::new(smg_admission::Config::default(), clock.clone(), &registrar);
        let identity = smg_gateway::Identity::of_nobody(clock.clone());
        let authenticator = identity.authenticator.clone();
        let parts = Parts {
            fleet: fleet.clone(),
            upstream,
            gate: Arc::new(gate),
            clock: clock.clone(),
            random: Arc::new(SplitMix::new(1)),
            shutdown: Shutdown::new(),
            registrar: registrar.clone(),
            cluster,
            hash_seed: 7,
            prompt_tokens,
            prefix_page: None,
            identity,
            limiter: Arc::new(smg_limits::Limiter::new(smg_limits::LimiterConfig::default())),
        };
        let mut settings = Settings { admin_access: AdminAccess::Anyone, ..Settings::default() };
        change(&mut settings);
        let gateway = Gateway::new(Config::default(), settings, parts);
        Self { id, gateway, fleet, link, clock, authenticator, registrar }
    }

    /// Lets this node open streams to `other`.
    pub(crate) fn meet(&self, other: &Self) {
        self.link.far.lock().push((other.id, other.gateway.clone()));
    }

    /// Adds a worker that this node reaches itself.
    pub(crate) fn adopt(&self, worker: &MockWorker) -> WorkerId {
        self.fleet.add(spec(worker), Origin::Api, self.clock.now()).unwrap().worker.id
    }

    /// Makes known a worker that only `peer` reaches.
    pub(crate) fn import(&self, id: WorkerId, spec: WorkerSpec, peer: &Self) {
        self.fleet.import(id, spec, DirectPath::Forbidden, self.clock.now()).unwrap();
        let via = Some(Via { peer: peer.id, rtt: Duration::from_millis(1) });
        self.fleet.set_reach(id, Reach { verdict: ClusterVerdict::Up, via, duty: ProbeDuty::Light });
    }

    /// One request; the answer as soon as its head is there.
    pub(crate) async fn call(&self, request: Request<Body>) -> Response {
        let answer = router(self.gateway.clone()).oneshot(request);
        tokio::time::timeout(PATIENCE, answer).await.expect("no answer in time").unwrap()
    }

    pub(crate) async fn chat(&self, fields: Value, headers: &[(&str, &str)]) -> Response {
        let mut body = json!({ "model": "demo", "messages": [{ "role": "user", "content": "hello" }] });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        self.call(post("/v1/chat/completions", &body, headers)).await
    }

    pub(crate) async fn explain(&self, request_id: &str) -> Value {
        let request = Request::get(format!("/explain/{request_id}")).body(Body::empty()).unwrap();
        json_of(self.call(request).await).await
    }

    /// The value of the metric of this name and these labels.
    pub(crate) fn metric(&self, line: &str) -> f64 {
        let text = self.registrar.encode();
        let found = text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
        found.unwrap_or(0.0)
    }

    pub(crate) fn in_flight(&self, worker: WorkerId) -> u32 {
        self.fleet.snapshot().worker(worker).unwrap().state.load.in_flight()
    }
}

/// A worker as an operator describes it.
pub(crate) fn spec(worker: &MockWorker) -> WorkerSpec {
    let models = vec![smg_fleet::ModelCard::new("demo")];
    WorkerSpec { models, ..WorkerSpec::new(worker.url().parse().unwrap()) }
}

pub(crate) fn post(path: &str, body: &Value, headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::post(path).header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.to_string().into()).unwrap()
}

pub(crate) async fn text_of(response: Response) -> String {
    let body = tokio::time::timeout(PATIENCE, response.into_body().collect()).await.expect("no end in time").unwrap();
    String::from_utf8(body.to_bytes().to_vec()).unwrap()
}

pub(crate) async fn json_of(response: Response) -> Value {
    serde_json::from_str(&text_of(response).await).unwrap()
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, holds).await.unwrap_or_else(|_| panic!("{what}"));
}
