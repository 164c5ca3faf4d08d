//! What operators see of the plane of prefixes, as JSON.

use std::sync::Arc;

use serde_json::{Value, json};
use smg_base::{ModelId, PeerId};
use smg_fleet::Fleet;
use smg_prefix::{
    Space,
    plane::{Events, WorkerReport},
};
use smg_routing::Policy;

use super::{driver::model_hash, metrics::PrefixMetrics};

/// What a page is made from.
pub(super) struct Look<'a> {
    pub(super) fleet: &'a Fleet,
    pub(super) metrics: &'a PrefixMetrics,
    pub(super) policies: &'a [(ModelId, Arc<Policy>)],
    pub(super) name: &'a dyn Fn(PeerId) -> String,
}

/// Every worker, with each model and space of which anything is known.
pub(super) fn page(reports: &[WorkerReport], look: &Look<'_>) -> Value {
    json!({ "prefixes": reports.iter().flat_map(|report| rows(report, look)).collect::<Vec<_>>() })
}

fn rows(report: &WorkerReport, look: &Look<'_>) -> Vec<Value> {
    let snapshot = look.fleet.snapshot();
    let url = snapshot.worker(report.worker).map(|worker| worker.spec.url.to_string());
    let name = |node: Option<PeerId>| node.map(look.name);
    let mut rows = Vec::new();
    for (model, policy) in look.policies {
        let serves =
            snapshot.pool(model.as_str()).is_some_and(|pool| pool.workers.iter().any(|one| one.id == report.worker));
        for space in [Space::Tokens, Space::Text].into_iter().filter(|_| serves) {
            let is_of_events = report.events != Events::None && space == Space::Tokens;
            let is_about = |model_of: u64| model_of == if is_of_events { 0 } else { model_hash(model) };
            let stream = report.streams.iter().find(|one| one.stream.space == space && is_about(one.stream.model));
            let chunks = policy.chunks_held(report.worker, space);
            if chunks == 0 && stream.is_none() && !is_of_events {
                continue;
            }
            let source = report.sources.iter().find(|(of, _)| *of == space).map(|(_, source)| source.as_str());
            rows.push(json!({
                "worker": report.worker.to_string(),
                "url": url,
                "model": model.as_str(),
                "space": match space { Space::Text => "text", Space::Tokens => "tokens" },
                "source": source,
                "home": name(report.home),
                "standby": name(report.standby),
                "by": name(stream.and_then(|stream| stream.by)),
                "complete": stream.map(|stream| stream.is_complete),
                "chunks": chunks,
                "told": stream.map(|stream| stream.chunks),
                "digest": format!("{:016x}", policy.digest(report.worker, space)),
                "events": is_of_events.then(|| events(report, look)),
                "cache": report.cache.filter(|_| is_of_events).map(|stats| json!({
                    "blocks": stats.blocks,
                    "parked": stats.parked,
                    "opaque": stats.opaque,
                    "unknown_removed": stats.unknown_removed,
                    "ignored": stats.ignored,
                    "refused": stats.refused,
                    "bytes": stats.bytes,
                })),
            }));
        }
    }
    rows
}

/// How this node stands with a worker's events.
fn events(report: &WorkerReport, look: &Look<'_>) -> &'static str {
    match (report.cache.is_some(), look.metrics.is_connected(report.worker)) {
        (true, true) => "followed here",
        (true, false) => "connecting",
        (false, _) => "followed elsewhere",
    }
}
