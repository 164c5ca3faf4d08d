use std::{
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
    task::{Context, Poll, Waker},
};

use smg_base::{Random, SplitMix};
use smg_runtime::{Shutdown, SystemClock, TaskKind, Tasks};
use tokio::time::Instant;

use super::*;

fn config(concurrent_max: usize, queue_max: usize) -> Config {
    Config { concurrent_max: NonZeroUsize::new(concurrent_max), queue_max, ..Config::default() }
}

fn gate(config: Config) -> Gate {
    Gate::new(config, Arc::new(SystemClock::new()), &Registrar::new())
}

const SOMEBODY: Ask<'static> = Ask { tenant: "default", class: Class::Default, cost: 100 };

type Arriving<'a> = Pin<Box<dyn Future<Output = Result<Permit, Refusal>> + Send + 'a>>;

/// A request that has come to the gate and, as checked, has to wait.
fn waits(gate: &Gate) -> Arriving<'_> {
    let mut admission: Arriving<'_> = Box::pin(gate.admit(SOMEBODY));
    assert!(poll(&mut admission).is_pending());
    admission
}

fn poll(admission: &mut Arriving<'_>) -> Poll<Result<Permit, Refusal>> {
    admission.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

async fn passes(gate: &Gate) -> Permit {
    gate.admit(SOMEBODY).await.expect("there is room")
}

#[test]
fn a_permit_outlives_its_gate_and_crosses_threads() {
    fn is_mobile<T: Send + 'static>() {}
    is_mobile::<Permit>();
    is_mobile::<Gate>();
}

#[tokio::test]
async fn without_limits_all_pass() {
    let gate = gate(Config::default());
    let mut permits = Vec::new();
    for _ in 0..1_000 {
        permits.push(passes(&gate).await);
    }
    assert_eq!((gate.in_flight(), gate.queue_depth()), (1_000, 0));
    drop(permits);
    assert_eq!(gate.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_pass_in_the_order_of_arrival() {
    let gate = gate(config(1, 3));
    let permit = passes(&gate).await;
    let (first, mut second, mut third) = (waits(&gate), waits(&gate), waits(&gate));
    assert!(matches!(gate.admit(SOMEBODY).await, Err(Refusal::QueueFull { .. })));
    drop(permit);
    assert!(poll(&mut third).is_pending());
    assert!(poll(&mut second).is_pending());
    let permit = first.await.expect("it was the first");
    assert!(poll(&mut second).is_pending());
    drop(permit);
    let permit = second.await.expect("it is the first now");
    assert!(poll(&mut third).is_pending());
    drop(permit);
    drop(third.await.expect("nobody is before it"));
    assert_eq!((gate.in_flight(), gate.queue_depth()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn whoever_gives_up_leaves_no_trace() {
    let gate = gate(config(1, 2));
    let permit = passes(&gate).await;
    let first = waits(&gate);
    let second = waits(&gate);
    drop(first);
    assert_eq!(gate.queue_depth(), 1, "it leaves the queue at once");
    let third = waits(&gate);
    drop(permit);
    assert_eq!((gate.in_flight(), gate.queue_depth()), (1, 1), "the place is the second's, who has not seen it");
    drop(second);
    drop(third.await.expect("the place went on to the third"));
    assert_eq!((gate.in_flight(), gate.queue_depth()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_allowed() {
    let gate = gate(config(1, 5));
    let permit = passes(&gate).await;
    let start = Instant::now();
    let second = waits(&gate);
    let refusal = gate.admit(SOMEBODY).await.expect_err("nobody departs");
    assert_eq!(start.elapsed(), Duration::from_secs(60));
    let retry_after = refusal.retry_after();
    assert_eq!(refusal, Refusal::QueueTimeout { retry_after });
    assert!(retry_after >= Duration::from_secs(60), "nobody departed for a minute: {retry_after:?}");
    assert!(second.await.is_err());
    assert_eq!(gate.queue_depth(), 0);
    drop(permit);
    drop(passes(&gate).await);
}

#[tokio::test(start_paused = true)]
async fn the_time_to_come_back_is_about_what_it_takes() {
    let gate = gate(config(4, 8));
    // Four at a time, two seconds each: one leaves every half second.
    let mut permits: std::collections::VecDeque<_> = std::collections::VecDeque::new();
    for _ in 0..4 {
        permits.push_back(passes(&gate).await);
        time::advance(Duration::from_millis(500)).await;
    }
    let mut line: std::collections::VecDeque<_> = (0..8).map(|_| waits(&gate)).collect();
    for _ in 0..20 {
        permits.pop_front();
        permits.push_back(line.pop_front().expect("eight wait").await.expect("a place is free"));
        line.push_back(waits(&gate));
        time::advance(Duration::from_millis(500)).await;
    }
    let Err(Refusal::QueueFull { retry_after }) = gate.admit(SOMEBODY).await else { panic!("eight wait") };
    let expected = Duration::from_millis(4_500);
    assert!(retry_after.abs_diff(expected) < Duration::from_millis(500), "{retry_after:?}");
}

#[tokio::test(start_paused = true)]
async fn new_limits_hold_at_once() {
    let gate = gate(config(1, 2));
    let permits = [passes(&gate).await];
    let (first, second) = (waits(&gate), waits(&gate));
    gate.reconfigure(config(3, 2));
    let more = [first.await.expect("there is room now"), second.await.expect("there is room now")];
    gate.reconfigure(config(2, 2));
    drop(permits);
    let mut third = waits(&gate);
    assert_eq!(gate.in_flight(), 2);
    gate.reconfigure(Config::default());
    assert!(poll(&mut third).is_ready());
    drop(more);
}

#[tokio::test(start_paused = true)]
async fn starts_are_spread_at_the_rate() {
    let gate = gate(Config { rate_per_second: Some(10.0), queue_max: 1_000, ..Config::default() });
    let tasks = Tasks::new(Shutdown::new());
    let start = Instant::now();
    let passed = Arc::new(AtomicUsize::new(0));
    for _ in 0..60 {
        let (gate, passed) = (gate.clone(), Arc::clone(&passed));
        tasks.spawn(TaskKind::Job, "request", async move {
            drop(gate.admit(SOMEBODY).await.expect("the queue is long"));
            passed.fetch_add(1, Ordering::Relaxed);
        });
    }
    time::sleep(Duration::from_millis(50)).await;
    assert_eq!(passed.load(Ordering::Relaxed), 10, "a second's worth at once");
    time::sleep(Duration::from_secs(1)).await;
    assert_eq!(passed.load(Ordering::Relaxed), 20, "then the rate");
    assert!(tasks.finish(Duration::from_secs(30)).await.is_empty());
    assert_eq!(passed.load(Ordering::Relaxed), 60);
    let elapsed = start.elapsed();
    assert!(elapsed.abs_diff(Duration::from_secs(5)) < Duration::from_millis(150), "{elapsed:?}");
}

/// Threads that race to come, go and give up. A lost wake-up would leave somebody waiting for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_wake_up_is_lost_between_threads() {
    const MOST: usize = 3;
    let limits =
        Config { queue_timeout: Duration::from_secs(600), rate_per_second: Some(50_000.0), ..config(MOST, 64) };
    let gate = gate(limits);
    let tasks = Tasks::new(Shutdown::new());
    // Panics in tasks do not reach the test, so what they see is kept for it.
    let [inside, most_inside, refused, served] = std::array::from_fn(|_| Arc::new(AtomicUsize::new(0)));
    for seed in 0..64 {
        let (gate, inside, most_inside) = (gate.clone(), Arc::clone(&inside), Arc::clone(&most_inside));
        let (refused, served) = (Arc::clone(&refused), Arc::clone(&served));
        tasks.spawn(TaskKind::Job, "client", async move {
            let random = SplitMix::new(seed);
            for _ in 0..300 {
                let patience = random.below(8);
                let admission = gate.admit(SOMEBODY);
                let admitted = if patience < 2 { within(admission, patience).await } else { Some(admission.await) };
                let Some(admitted) = admitted else { continue };
                let Ok(permit) = admitted else {
                    refused.fetch_add(1, Ordering::Relaxed);
                    continue;
                };
                most_inside.fetch_max(1 + inside.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
                for _ in 0..random.below(3) {
                    tokio::task::yield_now().await;
                }
                inside.fetch_sub(1, Ordering::SeqCst);
                drop(permit);
                served.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    assert_eq!(tasks.finish(Duration::from_secs(120)).await, Vec::<String>::new());
    assert_eq!((gate.in_flight(), gate.queue_depth()), (0, 0));
    assert_eq!(refused.load(Ordering::Relaxed), 0, "64 clients fit a queue of 64");
    assert_eq!(most_inside.load(Ordering::SeqCst), MOST);
    assert!(served.load(Ordering::Relaxed) > 64 * 300 / 2);
}

/// The result of `admission` if it comes within so many turns of the executor.
async fn within(
    admission: impl Future<Output = Result<Permit, Refusal>>,
    turns: u64,
) -> Option<Result<Permit, Refusal>> {
    let patience = async {
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        admitted = admission => Some(admitted),
        () = patience => None,
    }
}

#[tokio::test(start_paused = true)]
async fn what_happens_is_counted() {
    let registrar = Registrar::new();
    let gate = Gate::new(config(1, 1), Arc::new(SystemClock::new()), &registrar);
    let permit = passes(&gate).await;
    drop(waits(&gate));
    assert!(gate.admit(SOMEBODY).await.is_err());
    let waiting = waits(&gate);
    assert!(gate.admit(SOMEBODY).await.is_err());
    let check = |lines: &[&str]| {
        let text = registrar.encode();
        for line in lines {
            assert!(text.lines().any(|found| found == *line), "{line} is missing in {text}");
        }
    };
    check(&[
        "smg_admission_in_flight 1",
        "smg_admission_in_flight_max 1",
        "smg_admission_queue_depth 1",
        "smg_admission_queue_max 1",
        "smg_admission_wait_seconds_count 1",
        "smg_admission_wait_seconds_sum 60",
        r#"smg_http_rate_limit_total{result="abandoned"} 1"#,
        r#"smg_http_rate_limit_total{result="allowed"} 1"#,
        r#"smg_http_rate_limit_total{result="rejected"} 1"#,
        r#"smg_http_rate_limit_total{result="timed_out"} 1"#,
    ]);
    drop(permit);
    drop(waiting.await.expect("the place is free"));
    check(&["smg_admission_in_flight 0", "smg_admission_queue_depth 0", "smg_admission_wait_seconds_count 2"]);
}

fn scheduler(change: impl FnOnce(&mut Scheduler)) -> Config {
    let mut scheduler = Scheduler::default();
    change(&mut scheduler);
    Config { scheduler: Some(scheduler), ..Config::default() }
}

const fn ask(class: Class) -> Ask<'static> {
    Ask { class, ..SOMEBODY }
}

#[tokio::test(start_paused = true)]
async fn the_urgent_take_the_place_of_those_nobody_has_heard_of() {
    let registrar = Registrar::new();
    let gate = Gate::new(scheduler(|_| {}), Arc::new(SystemClock::new()), &registrar);
    gate.follow(NonZeroUsize::new(2));
    let heard = gate.admit(ask(Class::Bulk)).await.expect("there is room");
    let unheard = gate.admit(ask(Class::Bulk)).await.expect("there is room");
    heard.admission().begun();
    let mut preempted: [Pin<Box<dyn Future<Output = ()>>>; 2] = [&heard, &unheard].map(|permit| {
        let admission = permit.admission().clone();
        Box::pin(async move { admission.preempted().await }) as Pin<Box<dyn Future<Output = ()>>>
    });
    let mut tell = |index: usize| preempted[index].as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
    assert!(!tell(0) && !tell(1));
    let mut urgent: Arriving<'_> = Box::pin(gate.admit(ask(Class::Interactive)));
    assert!(poll(&mut urgent).is_pending());
    assert!(!tell(0) && tell(1));
    drop(unheard);
    let urgent = urgent.await.expect("a place came free");
    let text = registrar.encode();
    for line in [
        r#"smg_scheduler_preemption_total{by_class="interactive",victim_class="bulk"} 1"#,
        r#"smg_scheduler_admit_total{class="bulk",outcome="admitted"} 2"#,
        r#"smg_scheduler_admit_total{class="interactive",outcome="admitted"} 1"#,
        r#"smg_scheduler_inflight{class="interactive"} 1"#,
        r#"smg_scheduler_queue_wait_seconds_count{class="interactive"} 1"#,
        "smg_scheduler_utilization 1",
        "smg_admission_in_flight_max 2",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in {text}");
    }
    drop(urgent);
}

#[tokio::test(start_paused = true)]
async fn the_capacity_is_the_workers_unless_a_limit_is_set() {
    let gate = gate(scheduler(|_| {}));
    gate.follow(NonZeroUsize::new(1));
    let first = passes(&gate).await;
    let mut second = waits(&gate);
    gate.follow(NonZeroUsize::new(2));
    let Poll::Ready(Ok(second)) = poll(&mut second) else { panic!("another worker came") };
    gate.reconfigure(Config { concurrent_max: NonZeroUsize::new(1), ..scheduler(|_| {}) });
    drop(first);
    drop(waits(&gate));
    gate.reconfigure(Config::default());
    drop(passes(&gate).await);
    drop(second);
}

#[tokio::test]
async fn nobody_gets_a_better_class_by_asking() {
    let plain = gate(Config::default());
    assert_eq!(plain.classify(Some("system"), Some("system")), Class::Default);
    let gate = gate(scheduler(|_| {}));
    let check = |wants, may, expected| assert_eq!(gate.classify(wants, may), expected, "{wants:?} of {may:?}");
    check(None, None, Class::Default);
    check(Some("system"), None, Class::Default);
    check(Some("bulk"), None, Class::Bulk);
    check(Some("Interactive"), Some("system"), Class::Interactive);
    check(Some("system"), Some("interactive"), Class::Interactive);
    check(Some("whatever"), Some("system"), Class::Default);
    check(None, Some("bulk"), Class::Bulk);
    check(Some("system"), Some("whatever"), Class::Default);
}

#[tokio::test(start_paused = true)]
async fn a_crowd_makes_way_for_another_tenant() {
    let gate = gate(config(1, 3));
    let permit = passes(&gate).await;
    let mut crowd = [waits(&gate), waits(&gate), waits(&gate)];
    let mut other: Arriving<'_> = Box::pin(gate.admit(Ask { tenant: "other", ..SOMEBODY }));
    assert!(poll(&mut other).is_pending());
    assert!(matches!(poll(&mut crowd[2]), Poll::Ready(Err(Refusal::QueueFull { .. }))));
    assert_eq!(gate.queue_depth(), 3);
    let admission = permit.admission().clone();
    drop(permit);
    admission.correct(5_000);
}

#[tokio::test(start_paused = true)]
async fn corrections_replace_each_other() {
    for (last, next) in [(100, 1), (5_000_000, 2)] {
        let gate = gate(config(1, 100));
        let permit = passes(&gate).await;
        let ask = |tenant| Ask { tenant, class: Class::Default, cost: 20_000 };
        let arriving = |tenant| -> Arriving<'_> { Box::pin(gate.admit(ask(tenant))) };
        let mut first = arriving("a");
        assert!(poll(&mut first).is_pending());
        let mut queue = ["b", "a", "b"].map(arriving);
        assert!(queue.iter_mut().all(|waiting| poll(waiting).is_pending()));
        drop(permit);
        let permit = first.await.expect("it is the first");
        for cost in [1_000_000, 500, last] {
            permit.admission().correct(cost);
        }
        drop(permit);
        let Poll::Ready(Ok(permit)) = poll(&mut queue[0]) else { panic!("the other has had nothing") };
        drop(permit);
        assert!(poll(&mut queue[next]).is_ready(), "{last}");
    }
}
