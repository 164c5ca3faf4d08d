//! From an engine's events to the chunks of prompts, with the fake engine, which was written from the same descriptions by
//! other code.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use http::{HeaderMap, Method};
use smg_fleet::{KvEventsSpec, Worker};
use smg_mock_worker::{CacheConfig, Config as EngineConfig, Dialect, KvEventFormat, KvEvents, MockWorker};
use smg_prefix::{Change, Chunker, EngineCache, EngineCacheConfig, Namespace, Sequence};
use smg_runtime::{channel, metrics::Registrar};
use tokio::time::timeout;

use super::{KvNews, KvSource, follow};
use crate::{
    Config, Outbound, OutboundBody, Upstream,
    testing::{self, upstream},
};

const SEED: u64 = 5;

async fn complete(upstream: &Upstream, worker: &Worker, first: u32, tokens: u32, salt: Option<&str>) {
    let prompt: Vec<u32> = (first..first + tokens).collect();
    let mut body = serde_json::json!({ "model": "demo", "max_tokens": 1, "prompt": prompt });
    if let Some(salt) = salt {
        body["cache_salt"] = salt.into();
    }
    let mut headers = HeaderMap::new();
    headers.insert(http::header::CONTENT_TYPE, "application/json".parse().unwrap());
    let body = OutboundBody::Full(body.to_string().into());
    let outbound = Outbound { method: Method::POST, path_and_query: "/v1/completions".into(), headers, body };
    let answer = upstream.send(worker, outbound).await.unwrap();
    assert_eq!(answer.status(), 200);
    testing::text(answer.into_body()).await.unwrap();
}

fn chunks(first: u32, tokens: u32, salt: Option<&str>) -> Vec<u64> {
    let mut chunker = Chunker::of_tokens(Namespace { lora: None, salt }.root(SEED));
    chunker.push_tokens(&(first..first + tokens).collect::<Vec<_>>());
    chunker.finish().chunks
}

async fn holds_what_it_was_sent(config: EngineConfig) {
    let about = format!("{:?} {:?}", config.dialect, config.kv_events);
    let engine = MockWorker::start(config).await.unwrap();
    let (upstream, worker) = (upstream(&Config::default()), testing::worker(engine.url()));
    let spec = match engine.kv_events() {
        Some(publisher) => {
            KvEventsSpec { replay: publisher.replay().map(str::to_owned), ..KvEventsSpec::new(publisher.endpoint()) }
        }
        None => KvEventsSpec::new(format!("{}/kv_cache_events", engine.url())),
    };
    complete(&upstream, &worker, 0, 300, None).await;
    let (sender, mut news) = channel("kv", 16, &Registrar::new());
    let source = KvSource { worker: Arc::clone(&worker), spec };
    let following = tokio::spawn(follow(upstream.clone(), source, sender)).abort_handle();
    // A prompt before anybody listened, its continuation, a tenant's own, and enough of others to push the first ones out.
    complete(&upstream, &worker, 0, 600, None).await;
    complete(&upstream, &worker, 5_000, 300, Some("tenant")).await;
    let wanted: BTreeSet<u64> = chunks(0, 600, None).into_iter().chain(chunks(5_000, 300, Some("tenant"))).collect();
    let gone = chunks(0, 600, None);

    let mut cache = EngineCache::new(SEED, EngineCacheConfig::default());
    let mut held = BTreeSet::new();
    let mut take = async |held: &mut BTreeSet<u64>| {
        let told = timeout(Duration::from_secs(20), news.recv()).await.unwrap_or_else(|_| panic!("{about}: {held:?}"));
        let mut out = Vec::new();
        match told.expect("somebody tells").1 {
            KvNews::Batch(batch) => assert_eq!(cache.apply(batch, &mut out), Sequence::InOrder, "{about}"),
            KvNews::Lost { rank } => cache.lost(rank, &mut out),
            KvNews::Connected | KvNews::Failed(_) => {}
        }
        for change in out {
            match change {
                Change::Held { chunks, .. } => held.extend(chunks),
                Change::Dropped { chunks } => held.retain(|chunk| !chunks.contains(chunk)),
                Change::Cleared => held.clear(),
            }
        }
    };
    while held != wanted {
        take(&mut held).await;
    }
    for round in 1..6 {
        complete(&upstream, &worker, round * 10_000, 600, None).await;
    }
    let last = chunks(50_000, 600, None);
    while !last.iter().all(|chunk| held.contains(chunk)) || gone.iter().any(|chunk| held.contains(chunk)) {
        take(&mut held).await;
    }
    following.abort();
    engine.stop().await;
}

#[tokio::test]
async fn every_dialect_of_events_leads_to_the_chunks_of_prompts() {
    let cache = || CacheConfig { block_tokens: 16, blocks: 120 };
    for format in [KvEventFormat::VllmArray, KvEventFormat::VllmMap, KvEventFormat::Sglang] {
        let kv_events = Some(KvEvents { format, ..KvEvents::on([127, 0, 0, 1].into()) });
        holds_what_it_was_sent(EngineConfig { cache: cache(), kv_events, ..EngineConfig::default() }).await;
    }
    holds_what_it_was_sent(EngineConfig { cache: cache(), dialect: Dialect::Trtllm, ..EngineConfig::default() }).await;
}
