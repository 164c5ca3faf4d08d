//! Following the gRPC call `SubscribeKvEvents`.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use http::{Uri, uri::PathAndQuery};
use hyper_util::rt::TokioIo;
use smg_fleet::Engine;
use smg_prefix::{KvBatch, KvEvent};
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc,
    metadata::AsciiMetadataValue,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::{
    BACKOFF, End, KvNews, KvSource, News,
    streamed::{self, KvEventBatch, SubscribeKvEventsRequest},
};
use crate::{Upstream, connect::Target};

/// The largest message.
const MESSAGE_BYTES_MAX: usize = 32 << 20;

/// Pings on a stream that may be silent for long, and how long the answer may take.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// The most ranks that are told apart.
const RANKS_MAX: usize = 256;

/// The call, by the engine whose service it belongs to.
const CALLS: [(Engine, &str); 3] = [
    (Engine::Vllm, "/vllm.grpc.engine.VllmEngine/SubscribeKvEvents"),
    (Engine::Sglang, "/sglang.grpc.scheduler.SglangScheduler/SubscribeKvEvents"),
    (Engine::TrtLlm, "/trtllm.TrtllmService/SubscribeKvEvents"),
];

pub(super) async fn follow(upstream: &Upstream, source: &KvSource, target: Target, news: &News<'_>) {
    let random = smg_runtime::entropy();
    let mut attempt = 0;
    let mut ranks = BTreeMap::new();
    loop {
        let Err(end) = listen(upstream, source, &target, (news, &mut ranks, &mut attempt)).await;
        let End::Failed(error) = end else { return };
        if news.tell(KvNews::Failed(error)).await.is_err() {
            return;
        }
        tokio::time::sleep(BACKOFF.delay(attempt, &random)).await;
        attempt = attempt.saturating_add(1);
    }
}

/// The numbers of one rank's batches: the servicer's last, and ours to come. Servicers count all their ranks together or each
/// apart, so the numbers that are handed on are ours.
#[derive(Debug, Default)]
struct Counted {
    last: u64,
    next: u64,
}

type State<'a, 'b> = (&'a News<'b>, &'a mut BTreeMap<u32, Counted>, &'a mut u32);

async fn listen(
    upstream: &Upstream,
    source: &KvSource,
    target: &Target,
    (news, ranks, attempt): State<'_, '_>,
) -> Result<Infallible, End> {
    let channel = connect(upstream, target).await?;
    let mut stream = subscribe(channel, source).await?;
    *attempt = 0;
    news.tell(KvNews::Connected).await?;
    // What happened in between is not repeated.
    for rank in ranks.keys() {
        news.tell(KvNews::Lost { rank: *rank }).await?;
    }
    let mut last_of_all = None;
    loop {
        let message = stream.message().await.map_err(End::failed)?;
        let batch = message.ok_or_else(|| End::failed("the stream ended"))?;
        if batch.load.as_ref().is_some_and(|load| load.load_only) {
            continue;
        }
        let rank = batch.dp_rank.and_then(|rank| u32::try_from(rank).ok()).unwrap_or(0);
        if !ranks.contains_key(&rank) && ranks.len() >= RANKS_MAX {
            continue;
        }
        let sequence = batch.sequence_number;
        let begins_snapshot = batch.snapshot.as_ref().is_some_and(|chunk| chunk.index == 0);
        let counted = ranks.entry(rank).or_default();
        let follows = |last: u64| sequence == last.saturating_add(1);
        let is_next = last_of_all.is_none_or(follows) || follows(counted.last) || begins_snapshot;
        if !is_next {
            news.tell(KvNews::Lost { rank }).await?;
        }
        last_of_all = Some(sequence);
        counted.last = sequence;
        let mut events = streamed::events(batch);
        if begins_snapshot {
            events.insert(0, KvEvent::Started);
        }
        let batch = KvBatch { sequence: counted.next, rank, events };
        counted.next += 1;
        news.tell(KvNews::Batch(batch)).await?;
    }
}

/// A channel over a connection of ours, so that the rules on addresses and the settings of TLS hold here too.
async fn connect(upstream: &Upstream, target: &Target) -> Result<Channel, End> {
    let connector = {
        let (inner, target) = (Arc::clone(&upstream.inner), target.clone());
        tower::service_fn(move |_: Uri| {
            let (inner, target) = (Arc::clone(&inner), target.clone());
            async move { inner.connector.connect(&target).await.map(TokioIo::new) }
        })
    };
    let endpoint = Endpoint::from_shared(format!("http://{}", target.url.authority())).map_err(End::failed)?;
    let endpoint =
        endpoint.http2_keep_alive_interval(PING_INTERVAL).keep_alive_timeout(PING_TIMEOUT).keep_alive_while_idle(true);
    endpoint.connect_with_connector(connector).await.map_err(|error| {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        End::Failed(source.unwrap_or_else(|| error.to_string()))
    })
}

async fn subscribe(channel: Channel, source: &KvSource) -> Result<Streaming<KvEventBatch>, End> {
    let engine = source.worker.engine();
    let (own, others): (Vec<_>, Vec<_>) = CALLS.into_iter().partition(|(of, _)| *of == engine);
    let mut refused = None;
    for (_, call) in own.into_iter().chain(others) {
        match try_subscribe(channel.clone(), source, call).await {
            Ok(stream) => return Ok(stream),
            Err(status) if status.code() == Code::Unimplemented => refused = Some(status),
            Err(status) => return Err(End::failed(status)),
        }
    }
    Err(End::Failed(refused.map_or_else(String::new, |status| status.to_string())))
}

async fn try_subscribe(
    channel: Channel,
    source: &KvSource,
    call: &'static str,
) -> Result<Streaming<KvEventBatch>, Status> {
    let mut client = Grpc::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = Request::new(SubscribeKvEventsRequest { start_sequence_number: 0 });
    if let Some(key) = &source.worker.spec.api_key {
        let bearer = format!("Bearer {}", key.expose()).parse::<AsciiMetadataValue>();
        let mut bearer = bearer.map_err(|_| Status::unauthenticated("the key cannot be sent"))?;
        bearer.set_sensitive(true);
        request.metadata_mut().insert("authorization", bearer);
    }
    let codec: ProstCodec<SubscribeKvEventsRequest, KvEventBatch> = ProstCodec::default();
    let response = client.server_streaming(request, PathAndQuery::from_static(call), codec).await?;
    Ok(response.into_inner())
}
