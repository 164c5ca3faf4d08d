//! Probes, and the loop that probes.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use smg_base::{Clock, ManualClock, WorkerId};
use smg_fleet::{Engine, Fleet, FleetConfig, HealthConfig, Origin, ProbeFailure, Status, Worker};
use smg_runtime::{Phase, Shutdown, SystemClock};
use tokio::{net::TcpListener, task::JoinHandle};

use super::{Hooks, probe, run_prober};
use crate::{
    Config,
    testing::{self, Server, read_request, spec, until, until_closed, upstream, worker, worker_of, write},
};

const MODELS: &str = r#"{"data":[{"id":"m","object":"model","owned_by":"vllm","max_model_len":4096}]}"#;

#[tokio::test]
async fn a_worker_is_well_if_it_says_so() {
    let check = async |routes: &[(&str, u16, &str)], expected: Result<(), ProbeFailure>| {
        let engine = testing::Engine::start(routes).await;
        assert_eq!(probe(&upstream(&Config::default()), &worker(&engine.server.url())).await, expected, "{routes:?}");
    };
    check(&[("/health", 200, "")], Ok(())).await;
    check(&[("/health", 204, "")], Ok(())).await;
    check(&[("/health", 200, &"x".repeat(1 << 20))], Ok(())).await;
    check(&[("/health", 302, "")], Err(ProbeFailure::Status(302))).await;
    check(&[("/health", 503, "{}")], Err(ProbeFailure::Status(503))).await;
    check(&[("/health", 401, "{}")], Err(ProbeFailure::Status(401))).await;
    // Not every server has a health endpoint.
    check(&[("/v1/models", 200, "{}")], Ok(())).await;
    check(&[("/v1/models", 401, "{}")], Err(ProbeFailure::Status(401))).await;
    check(&[], Err(ProbeFailure::Status(404))).await;
}

#[tokio::test]
async fn the_path_depends_on_the_settings_and_the_engine() {
    let check = async |engine: Option<Engine>, endpoint: Option<&str>, expected: &[&str]| {
        let server = testing::Engine::start(&[]).await;
        let mut spec = spec(&server.server.url());
        spec.runtime_type = engine;
        spec.health.endpoint = endpoint.map(str::to_owned);
        let found = probe(&upstream(&Config::default()), &worker_of(spec, Origin::Flag)).await;
        assert_eq!(found, Err(ProbeFailure::Status(404)));
        assert_eq!(*server.asked.lock(), expected, "{engine:?} {endpoint:?}");
    };
    check(None, None, &["/health", "/v1/models"]).await;
    check(Some(Engine::OpenAi), None, &["/health", "/v1/models"]).await;
    check(Some(Engine::Vllm), None, &["/health"]).await;
    check(Some(Engine::Ollama), None, &["/api/version"]).await;
    check(Some(Engine::Anthropic), None, &["/v1/models"]).await;
    check(None, Some("/health_generate"), &["/health_generate"]).await;
    check(Some(Engine::Ollama), Some("/healthz"), &["/healthz"]).await;
}

#[tokio::test]
async fn a_worker_that_does_not_answer_is_not_well() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let unbound = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let found = probe(&upstream(&Config::default()), &worker(&unbound)).await;
    assert_eq!(found, Err(ProbeFailure::Unreachable));

    let broken = Server::start(|mut stream, _| async move {
        read_request(&mut stream).await;
        write(&mut stream, "nonsense\r\n\r\n").await;
    })
    .await;
    assert_eq!(probe(&upstream(&Config::default()), &worker(&broken.url())).await, Err(ProbeFailure::Broken));
}

#[tokio::test(start_paused = true)]
async fn a_probe_takes_no_longer_than_it_may() {
    let silent = Server::start(|mut stream, _| async move { until_closed(&mut stream).await }).await;
    let mut spec = spec(&silent.url());
    spec.health.timeout_secs = Some(2);
    let started = tokio::time::Instant::now();
    let found = probe(&upstream(&Config::default()), &worker_of(spec, Origin::Flag)).await;
    assert_eq!(found, Err(ProbeFailure::Timeout));
    assert_eq!(started.elapsed().as_secs(), 2);
}

struct Running {
    fleet: Arc<Fleet>,
    clock: Arc<ManualClock>,
    shutdown: Shutdown,
    removed: Arc<Mutex<Vec<WorkerId>>>,
    prober: JoinHandle<()>,
}

impl Running {
    fn start(health: HealthConfig) -> Self {
        let fleet = Arc::new(Fleet::new(FleetConfig { health, ..FleetConfig::default() }));
        let (clock, shutdown) = (Arc::new(ManualClock::default()), Shutdown::new());
        let removed = Arc::new(Mutex::new(Vec::new()));
        let told = removed.clone();
        let hooks = Hooks { remove_unhealthy: true, on_removed: Box::new(move |id| told.lock().push(id)) };
        let upstream = upstream(&Config::default());
        let clock_of_prober = clock.clone() as Arc<dyn Clock>;
        let prober = run_prober(fleet.clone(), upstream, clock_of_prober, shutdown.clone(), hooks);
        Self { fleet, clock, shutdown, removed, prober: tokio::spawn(prober) }
    }

    fn add(&self, url: &str) -> WorkerId {
        self.fleet.add(spec(url), Origin::Flag, self.clock.now()).unwrap().worker.id
    }

    fn worker(&self, id: WorkerId) -> Option<Arc<Worker>> {
        self.fleet.snapshot().worker(id).cloned()
    }

    fn status(&self, id: WorkerId) -> Option<Status> {
        self.worker(id).map(|worker| worker.status())
    }

    async fn stop(self) {
        self.shutdown.advance(Phase::Closing);
        self.prober.await.unwrap();
    }
}

fn eager() -> HealthConfig {
    let interval = Duration::from_secs(1);
    HealthConfig { interval, failure_threshold: 1, success_threshold: 1, ..HealthConfig::default() }
}

#[tokio::test]
async fn a_worker_that_becomes_ready_has_its_models() {
    let engine = testing::Engine::start(&[("/health", 503, ""), ("/v1/models", 200, MODELS)]).await;
    let running = Running::start(HealthConfig::default());
    let id = running.add(&engine.server.url());
    until("it was probed", || engine.asked.lock().contains(&"/health".to_owned())).await;
    assert_eq!(running.status(id), Some(Status::Pending));
    assert!(!engine.asked.lock().contains(&"/v1/models".to_owned()), "a worker that is not well was asked more");

    engine.set("/health", 200, "");
    let ready = || {
        // A second passes between the probes of a worker that was never ready.
        running.clock.advance(Duration::from_millis(20));
        let worker = running.worker(id).unwrap();
        let (status, models) = (worker.status(), worker.models().len());
        assert!(status != Status::Ready || models == 1, "ready without models");
        status == Status::Ready
    };
    until("it is ready", ready).await;
    let worker = running.worker(id).unwrap();
    assert_eq!((worker.engine(), worker.context_length()), (Engine::Vllm, Some(4096)));
    running.stop().await;
}

#[tokio::test]
async fn a_failed_worker_comes_back_by_itself_and_is_asked_anew_what_it_is() {
    let engine = testing::Engine::start(&[("/health", 200, ""), ("/v1/models", 200, MODELS)]).await;
    let running = Running::start(HealthConfig { interval: Duration::from_secs(1), ..HealthConfig::default() });
    let id = running.add(&engine.server.url());
    let status_is = |wanted| {
        let running = &running;
        move || {
            running.clock.advance(Duration::from_millis(50));
            running.status(id) == Some(wanted)
        }
    };
    until("it is ready", status_is(Status::Ready)).await;
    engine.set("/health", 500, "");
    engine.set("/v1/models", 200, &MODELS.replace("\"m\"", "\"n\""));
    until("it is not", status_is(Status::NotReady)).await;
    engine.set("/health", 200, "");
    until("it is ready again", status_is(Status::Ready)).await;
    assert_eq!(running.worker(id).unwrap().models()[0].id.as_str(), "n");
    running.stop().await;
}

#[tokio::test]
async fn a_worker_that_has_failed_for_long_is_removed_if_the_rule_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let running = Running::start(eager());
    let id = running.add(&url);
    until("it is removed", || {
        running.clock.advance(Duration::from_millis(200));
        running.worker(id).is_none()
    })
    .await;
    assert_eq!(*running.removed.lock(), [id]);
    running.stop().await;
}

#[tokio::test]
async fn a_worker_that_cannot_say_what_it_is_is_asked_again_soon() {
    let engine = testing::Engine::start(&[("/health", 200, ""), ("/v1/models", 503, "")]).await;
    let running = Running::start(HealthConfig::default());
    let id = running.add(&engine.server.url());
    until("it is ready", || running.status(id) == Some(Status::Ready)).await;
    assert!(running.worker(id).unwrap().profile.is_none());
    engine.set("/v1/models", 200, MODELS);
    // Well before the next probe, which is a minute away.
    running.clock.advance(Duration::from_millis(1_001));
    until("it is described", || running.worker(id).unwrap().profile.is_some()).await;
    running.stop().await;
}

#[tokio::test]
async fn a_worker_that_is_never_probed_is_still_asked_what_it_is() {
    let engine = testing::Engine::start(&[("/v1/models", 200, MODELS)]).await;
    let running = Running::start(HealthConfig { enabled: false, ..HealthConfig::default() });
    let id = running.add(&engine.server.url());
    until("it is described", || running.worker(id).unwrap().profile.is_some()).await;
    assert!(!engine.asked.lock().contains(&"/health".to_owned()));
    running.stop().await;
}

#[tokio::test]
async fn a_worker_changed_while_it_is_probed_is_probed_again() {
    // The first probe does not come back before the worker has changed.
    let (changed, wait) = tokio::sync::watch::channel(false);
    let server = Server::start(move |mut stream, _| {
        let mut wait = wait.clone();
        async move {
            while let Some(request) = read_request(&mut stream).await {
                let _ = wait.wait_for(|changed| *changed).await;
                let body = if request.starts_with("GET /v1/models ") { MODELS } else { "{}" };
                write(&mut stream, testing::reply(200, body)).await;
            }
        }
    })
    .await;
    let running = Running::start(HealthConfig::default());
    let id = running.add(&server.url());
    until("it is being probed", || server.accepted() == 1).await;
    let mut other = spec(&server.url());
    other.priority = 7;
    running.fleet.add(other, Origin::Flag, running.clock.now()).unwrap();
    changed.send(true).unwrap();
    until("it is ready", || running.status(id) == Some(Status::Ready)).await;
    assert_eq!(running.worker(id).unwrap().spec.priority, 7);
    running.stop().await;
}

#[tokio::test]
async fn many_workers_are_probed_together_and_none_holds_up_the_others() {
    let silent = Server::start(|mut stream, _| async move { until_closed(&mut stream).await }).await;
    let engine = testing::Engine::start(&[("/health", 200, ""), ("/v1/models", 200, MODELS)]).await;
    let running = Running::start(HealthConfig::default());
    for number in 0..100 {
        running.add(&format!("{}/{number}", silent.url()));
    }
    let id = running.add(&engine.server.url());
    until("the one that answers is ready", || running.status(id) == Some(Status::Ready)).await;
    running.stop().await;
}

#[tokio::test]
async fn the_prober_ends_when_connections_are_closed() {
    let fleet = Arc::new(Fleet::new(FleetConfig::default()));
    let shutdown = Shutdown::new();
    let hooks = Hooks { remove_unhealthy: false, on_removed: Box::new(|_| {}) };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let prober = tokio::spawn(run_prober(fleet, upstream(&Config::default()), clock, shutdown.clone(), hooks));
    shutdown.advance(Phase::Draining);
    assert!(!prober.is_finished());
    shutdown.advance(Phase::Stopped);
    prober.await.unwrap();
}
