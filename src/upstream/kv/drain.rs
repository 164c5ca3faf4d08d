//! Fetching events from an engine that gives each away once. One node only may ask.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use tokio::time::sleep;

use super::{
    BACKOFF, End, KvNews, KvSource, News,
    drained::{Answer, Drained, Lost},
};
use crate::{
    Upstream,
    fetch::{Bounds, fetch},
    outbound::{Outbound, OutboundBody},
};

const ANSWER: Bounds = Bounds { bytes_max: 32 << 20, timeout: Duration::from_secs(10) };

/// Between questions: soon after events, later while nothing happens.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
const INTERVAL_MAX: Duration = Duration::from_secs(1);

pub(super) async fn follow(upstream: &Upstream, source: &KvSource, path: String, news: &News<'_>) {
    let random = smg_runtime::entropy();
    let mut drained = Drained::default();
    let mut attempt = 0;
    let mut is_connected = false;
    let mut interval = INTERVAL_MIN;
    loop {
        match ask(upstream, source, &path, &mut drained).await {
            Ok(answer) => {
                if !std::mem::replace(&mut is_connected, true) && news.tell(KvNews::Connected).await.is_err() {
                    return;
                }
                attempt = 0;
                interval = if answer.batch.is_some() { INTERVAL_MIN } else { (interval * 2).min(INTERVAL_MAX) };
                if tell(answer, news).await.is_err() {
                    return;
                }
                sleep(interval).await;
            }
            Err(End::Unwanted) => return,
            Err(End::Failed(error)) => {
                is_connected = false;
                if news.tell(KvNews::Failed(error)).await.is_err() {
                    return;
                }
                sleep(BACKOFF.delay(attempt, &random)).await;
                attempt = attempt.saturating_add(1);
            }
        }
    }
}

async fn tell(answer: Answer, news: &News<'_>) -> Result<(), super::Unwanted> {
    if answer.lost == Lost::Something {
        news.tell(KvNews::Lost { rank: 0 }).await?;
    }
    match answer.batch {
        Some(batch) => news.tell(KvNews::Batch(batch)).await,
        None => Ok(()),
    }
}

async fn ask(upstream: &Upstream, source: &KvSource, path: &str, drained: &mut Drained) -> Result<Answer, End> {
    let body = OutboundBody::Full(Bytes::new());
    let path_and_query = path.to_owned().into();
    let outbound = Outbound { method: Method::POST, path_and_query, headers: HeaderMap::new(), body };
    // An answer that breaks off took its events along: the numbers of the next ones tell.
    let answer = fetch(upstream, &source.worker, outbound, ANSWER).await.map_err(End::failed)?;
    if answer.status != StatusCode::OK {
        return Err(End::Failed(format!("the worker answered {path} with status {}", answer.status.as_u16())));
    }
    drained.read(&answer.body).map_err(End::failed)
}
