//! A fleet to choose from, and requests.

use std::{sync::Arc, time::Duration};

use smg_base::{Random, Timestamp, WorkerId};
use smg_fleet::{EngineProfile, Fleet, FleetConfig, HealthConfig, Origin, Outcome, Pool, Relaying, Worker, WorkerSpec};
use smg_prefix::{PromptKey, Space};
use smg_routing::{Ask, Explanation, Policy, PolicyConfig, PolicyKind};

pub(crate) fn at(seconds: u64) -> Timestamp {
    Timestamp::ORIGIN + Duration::from_secs(seconds)
}

/// A fleet of workers believed healthy.
pub(crate) fn fleet(workers: usize) -> Fleet {
    fleet_with(workers, |_, _| {})
}

pub(crate) fn fleet_with(workers: usize, change: impl Fn(usize, &mut WorkerSpec)) -> Fleet {
    let health = HealthConfig { enabled: false, ..HealthConfig::default() };
    let fleet = Fleet::new(FleetConfig { health, ..FleetConfig::default() });
    for number in 0..workers {
        let mut spec = WorkerSpec::new(url(number).parse().unwrap());
        change(number, &mut spec);
        fleet.add(spec, Origin::Flag, at(0)).unwrap();
    }
    fleet
}

pub(crate) fn url(number: usize) -> String {
    format!("http://worker-{number}:8000")
}

pub(crate) fn pool(fleet: &Fleet) -> Arc<Pool> {
    Arc::clone(fleet.snapshot().any())
}

/// The place in the pool of the worker that was added as number `number`.
pub(crate) fn place(pool: &Pool, number: usize) -> usize {
    pool.workers.iter().position(|worker| worker.spec.url.as_str() == url(number)).unwrap()
}

/// Says which paths the worker in a place offers.
pub(crate) fn offer(fleet: &Fleet, place: usize, paths: &[&str]) {
    let worker = Arc::clone(&pool(fleet).workers[place]);
    let offers = Some(paths.iter().map(|path| (*path).to_owned()).collect());
    assert!(fleet.describe(worker.id, worker.revision, EngineProfile { offers, ..EngineProfile::default() }));
}

/// Makes a worker's breaker open at `now`.
pub(crate) fn trip(worker: &Worker, now: Timestamp) {
    for _ in 0..10 {
        worker.admit(now).unwrap().record(Outcome::Failure, now);
    }
    assert!(!worker.is_available(now));
}

pub(crate) fn policy(kind: PolicyKind) -> Policy {
    Policy::new(kind, &PolicyConfig::default())
}

/// A request that says nothing of itself.
pub(crate) fn ask(random: &dyn Random) -> Ask<'_> {
    Ask {
        prompt: None,
        input_tokens: 0,
        routing_key: None,
        target: None,
        session: None,
        excluded: &[],
        paths: &[],
        relaying: Relaying::Allowed,
        now: at(1),
        random,
    }
}

/// The request's text and its length in tokens.
pub(crate) fn with_text<'a>(ask: Ask<'a>, text: &'a PromptKey) -> Ask<'a> {
    Ask { prompt: Some(text), input_tokens: text.bytes as u64 / 4, ..ask }
}

/// `bytes` of text that differs from every other `name`'s from the first byte on.
pub(crate) fn text(name: u64, bytes: usize) -> Vec<u8> {
    format!("{name:016x} and so on. ").into_bytes().into_iter().cycle().take(bytes).collect()
}

pub(crate) fn key(policy: &Policy, texts: &[Vec<u8>]) -> PromptKey {
    let mut chunker = policy.chunker(Space::Text, 0);
    for text in texts {
        chunker.push(text);
    }
    chunker.finish()
}

/// The worker chosen, which must be one.
pub(crate) fn choose(policy: &Policy, pool: &Pool, ask: &Ask<'_>) -> usize {
    policy.choose(pool, ask, &mut Explanation::default()).unwrap()
}

pub(crate) fn id(pool: &Pool, place: usize) -> WorkerId {
    pool.workers[place].id
}
