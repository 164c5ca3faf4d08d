//! Two tenants beside each other, one of whom asks for everything.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::harness::{Ask, Cluster, Stream, ask, on, wait_for};

const CHAT: &str = "/v1/chat/completions";

/// How long an engine thinks before it answers.
const SERVICE: Duration = Duration::from_millis(100);

/// Requests of the tenant whose waits are measured, and the time between two: seven tenths of what half of four places can
/// do.
const REQUESTS: u32 = 150;
const PACE: Duration = Duration::from_millis(71);

/// Clients of the other, each of whom asks again at once.
const CROWD: usize = 120;

const KEYS: &str = r#"
[[keys]]
name = "light"
tenant = "light"
class = "interactive"
key = "smg-test-key-of-light-4f1b0c77d2a94e31"

[[keys]]
name = "heavy"
tenant = "heavy"
key = "smg-test-key-of-heavy-9c02d5518e7b46aa"
"#;

fn of(tenant: &str) -> Ask {
    let key = KEYS.lines().find_map(|line| line.strip_prefix("key = \"").filter(|key| key.contains(tenant))).unwrap();
    let key = key.trim_end_matches('"');
    let fault = format!("delay={}ms@head", SERVICE.as_millis());
    on(CHAT, "demo", Stream::No).field("authorization", &format!("Bearer {key}")).fault(&fault)
}

/// How long the requests of the tenant `light` took, in order of length.
async fn times(address: SocketAddr) -> Vec<Duration> {
    let mut clients = JoinSet::new();
    let started = Instant::now();
    for number in 0..REQUESTS {
        let due = started + PACE * number;
        clients.spawn(async move {
            tokio::time::sleep_until(due.into()).await;
            let started = Instant::now();
            let answer = ask(address, &of("light")).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            started.elapsed()
        });
    }
    let mut times = clients.join_all().await;
    times.sort_unstable();
    times
}

/// Keeps the gateway busy for the other tenant until dropped.
fn crowd(address: SocketAddr) -> JoinSet<()> {
    let mut crowd = JoinSet::new();
    for _ in 0..CROWD {
        crowd.spawn(async move {
            loop {
                let answer = ask(address, &of("heavy")).await;
                assert!(matches!(answer.status, 200 | 429), "{}", answer.text());
                if answer.status == 429 {
                    tokio::time::sleep(SERVICE).await;
                }
            }
        });
    }
    crowd
}

fn percentile(times: &[Duration], part: f64) -> Duration {
    times[((times.len() - 1) as f64 * part) as usize]
}

async fn start(places: usize, more: &[&str]) -> (Cluster, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    std::fs::write(&file, KEYS).unwrap();
    let places = format!("--max-concurrent-requests={places}");
    let file = format!("--keys-file={}", file.display());
    let flags = [&places, &file, "--queue-size=100", "--admin-api-key", "smg-test-key-of-operators-77ab"];
    (Cluster::start(1, &[&flags[..], more].concat()).await, folder)
}

#[tokio::test]
async fn a_crowd_pushes_nobody_far_beyond_what_its_share_would_give() {
    let (alone, _folder) = start(2, &[]).await;
    let alone = times(alone.gateway.address()).await;
    let (beside, _folder) = start(4, &[]).await;
    let address = beside.gateway.address();
    let crowd = crowd(address);
    wait_for("a full queue", async || {
        let waiting = beside.gateway.metric("smg_admission_queue_depth", &[]).await;
        (waiting > 80.0).then_some(())
    })
    .await;
    let beside = times(address).await;
    drop(crowd);
    let [alone, beside] = [alone, beside].map(|times| [percentile(&times, 0.5), percentile(&times, 0.99)]);
    println!(
        "alone with half the places: p50 {:.0?}, p99 {:.0?}; beside {CROWD} clients of another tenant: p50 {:.0?}, p99 {:.0?}",
        alone[0], alone[1], beside[0], beside[1]
    );
    // In the order of arrival each would wait for a hundred others: 2.5 s.
    assert!(beside[1] < 3 * alone[1].max(2 * SERVICE), "{beside:?} beside, {alone:?} alone");
}

#[tokio::test]
async fn a_key_says_how_urgent_its_requests_may_be() {
    let (cluster, _folder) = start(4, &["--priority-scheduler-enabled"]).await;
    for (tenant, had) in [("light", "interactive"), ("heavy", "default")] {
        let answer = cluster.gateway.ask(&of(tenant).field("x-smg-priority", "system")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let labels = [("requested_class", "system"), ("effective_class", had)];
        cluster.gateway.metric_is("smg_scheduler_clamp_total", &labels, 1.0).await;
        cluster.gateway.metric_is("smg_scheduler_admit_total", &[("class", had)], 1.0).await;
    }
}
