//! Bounded waiting.

use std::time::{Duration, Instant};

/// Longest wait for anything that must happen. Far above what it takes, for machines that are busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Longest wait for what several nodes have to find out.
const LONG_PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(4);

/// Looks until `look` finds something, which is returned; fails the test after [`PATIENCE`].
pub(crate) async fn wait_for<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    match found(PATIENCE, look).await {
        Some(found) => found,
        None => panic!("waited {PATIENCE:?} in vain: {what}"),
    }
}

/// The same, for what a mesh may take its time for; how long it took.
pub(crate) async fn took(what: &str, mut holds: impl AsyncFnMut() -> bool) -> Duration {
    let started = Instant::now();
    let found = found(LONG_PATIENCE, async || holds().await.then_some(())).await;
    assert!(found.is_some(), "waited {LONG_PATIENCE:?} in vain: {what}");
    started.elapsed()
}

/// Looks again and again for `span`, and fails the test as soon as `holds` is not true.
pub(crate) async fn stays(what: &str, span: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while started.elapsed() < span {
        assert!(holds().await, "not so after {:?}: {what}", started.elapsed());
        tokio::time::sleep(PAUSE).await;
    }
}

/// Looks until `holds` is true; fails the test after [`PATIENCE`].
pub(crate) async fn settled(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    wait_for(what, async || holds().await.then_some(())).await;
}

async fn found<T>(patience: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return Some(found);
        }
        if started.elapsed() > patience {
            return None;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The output of `future`, which must come within [`PATIENCE`].
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    within_time(PATIENCE, what, future).await
}

/// The output of `future`, which must come within `patience`.
pub(crate) async fn within_time<T>(patience: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(patience, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited {patience:?} in vain: {what}"),
    }
}
