//! The messages of `SubscribeKvEvents`, the gRPC call that the servicers of several engines share, as far as they are used
//! here, and what they mean. Field numbers are those of the published package `smg-grpc-proto`.

use smg_prefix::{EngineHash, KvEvent, Stored, Tier};

use super::published;

/// The longest adapter's name and salt.
const TEXT_BYTES_MAX: usize = 1_024;

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SubscribeKvEventsRequest {
    #[prost(uint64, tag = "1")]
    pub(crate) start_sequence_number: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct KvEventBatch {
    #[prost(uint64, tag = "1")]
    pub(crate) sequence_number: u64,
    #[prost(message, repeated, tag = "3")]
    pub(crate) events: Vec<KvCacheEvent>,
    #[prost(int32, optional, tag = "4")]
    pub(crate) dp_rank: Option<i32>,
    /// Part of what was there before, not news.
    #[prost(message, optional, tag = "7")]
    pub(crate) snapshot: Option<KvSnapshotChunk>,
    #[prost(message, optional, tag = "8")]
    pub(crate) load: Option<EngineLoad>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct KvSnapshotChunk {
    #[prost(uint32, tag = "1")]
    pub(crate) index: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct EngineLoad {
    #[prost(bool, tag = "9")]
    pub(crate) load_only: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct KvCacheEvent {
    #[prost(oneof = "Data", tags = "2, 3, 4")]
    pub(crate) data: Option<Data>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Data {
    #[prost(message, tag = "2")]
    Stored(KvBlocksStored),
    #[prost(message, tag = "3")]
    Removed(KvBlocksRemoved),
    #[prost(message, tag = "4")]
    Cleared(KvCacheCleared),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct KvBlocksStored {
    #[prost(message, repeated, tag = "1")]
    pub(crate) blocks: Vec<KvBlock>,
    #[prost(int64, optional, tag = "2")]
    pub(crate) parent_block_hash: Option<i64>,
    #[prost(int32, optional, tag = "3")]
    pub(crate) tier: Option<i32>,
    #[prost(string, optional, tag = "4")]
    pub(crate) medium: Option<String>,
    #[prost(uint32, optional, tag = "5")]
    pub(crate) group_idx: Option<u32>,
    #[prost(string, optional, tag = "6")]
    pub(crate) kv_cache_spec_kind: Option<String>,
    #[prost(uint32, optional, tag = "7")]
    pub(crate) kv_cache_spec_sliding_window: Option<u32>,
    #[prost(int32, optional, tag = "8")]
    pub(crate) locality: Option<i32>,
    #[prost(string, optional, tag = "11")]
    pub(crate) lora_name: Option<String>,
    #[prost(string, optional, tag = "12")]
    pub(crate) cache_salt: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct KvBlock {
    #[prost(int64, tag = "1")]
    pub(crate) block_hash: i64,
    #[prost(uint32, repeated, tag = "2")]
    pub(crate) token_ids: Vec<u32>,
    #[prost(int32, tag = "3")]
    pub(crate) block_size: i32,
    #[prost(int64, optional, tag = "4")]
    pub(crate) lora_id: Option<i64>,
    #[prost(int32, optional, tag = "5")]
    pub(crate) cache_level: Option<i32>,
    #[prost(message, repeated, tag = "6")]
    pub(crate) extra_keys: Vec<KvBlockExtraKey>,
}

/// Only a text can be understood; the others' presence is all that counts.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct KvBlockExtraKey {
    #[prost(string, optional, tag = "1")]
    pub(crate) text: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct KvBlocksRemoved {
    #[prost(int64, repeated, tag = "1")]
    pub(crate) block_hashes: Vec<i64>,
    #[prost(int32, optional, tag = "2")]
    pub(crate) cache_level: Option<i32>,
    #[prost(int32, optional, tag = "3")]
    pub(crate) tier: Option<i32>,
    #[prost(string, optional, tag = "4")]
    pub(crate) medium: Option<String>,
    #[prost(uint32, optional, tag = "5")]
    pub(crate) group_idx: Option<u32>,
    #[prost(int32, optional, tag = "6")]
    pub(crate) locality: Option<i32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct KvCacheCleared {}

/// A pool that others share says nothing of this worker's own cache.
const LOCALITY_REMOTE: i32 = 2;

/// What the events of a batch mean.
pub(crate) fn events(batch: KvEventBatch) -> Vec<KvEvent> {
    let mut events = Vec::new();
    for data in batch.events.into_iter().filter_map(|event| event.data) {
        match data {
            Data::Stored(stored) if stored.locality != Some(LOCALITY_REMOTE) => store(stored, &mut events),
            Data::Removed(removed) if removed.locality != Some(LOCALITY_REMOTE) => {
                let tier = tier(removed.tier, removed.medium.as_deref(), removed.cache_level);
                let blocks = removed.block_hashes.into_iter().map(name).collect();
                events.push(KvEvent::Removed { blocks, tier, group: removed.group_idx.unwrap_or(0) });
            }
            Data::Stored(_) | Data::Removed(_) => {}
            Data::Cleared(KvCacheCleared {}) => events.push(KvEvent::Cleared),
        }
    }
    events
}

fn store(stored: KvBlocksStored, events: &mut Vec<KvEvent>) {
    let mut parent = stored.parent_block_hash.map(name);
    let short = |text: &Option<String>| text.clone().filter(|text| text.len() <= TEXT_BYTES_MAX);
    let (lora, salt) = (short(&stored.lora_name), short(&stored.cache_salt));
    let mut opaque = lora != stored.lora_name || salt != stored.cache_salt;
    let windowed = match &stored.kv_cache_spec_kind {
        Some(kind) => published::is_windowed_kind(kind),
        None => stored.kv_cache_spec_sliding_window.is_some(),
    };
    for block in stored.blocks {
        let is_known = |key: &KvBlockExtraKey| key.text.is_some() && (key.text == lora || key.text == salt);
        opaque |= !block.extra_keys.iter().all(is_known);
        let next = Stored {
            blocks: vec![name(block.block_hash)],
            parent,
            tokens: block.token_ids,
            block_tokens: u32::try_from(block.block_size).unwrap_or(0),
            lora: lora.clone().or_else(|| block.lora_id.map(|id| format!("#{id}"))),
            salt: salt.clone(),
            opaque,
            tier: tier(stored.tier, stored.medium.as_deref(), block.cache_level),
            group: stored.group_idx.unwrap_or(0),
            windowed,
        };
        parent = next.blocks.last().copied();
        match events.last_mut() {
            Some(KvEvent::Stored(last)) if continues(last, &next) => {
                last.blocks.extend(next.blocks);
                last.tokens.extend(next.tokens);
            }
            _ => events.push(KvEvent::Stored(next)),
        }
    }
}

fn continues(last: &Stored, next: &Stored) -> bool {
    let alike = |stored: &Stored| (stored.block_tokens, stored.opaque, stored.tier, stored.group, stored.windowed);
    next.parent.is_some()
        && last.blocks.last().copied() == next.parent
        && alike(last) == alike(next)
        && (&last.lora, &last.salt) == (&next.lora, &next.salt)
}

fn name(hash: i64) -> EngineHash {
    EngineHash(hash.cast_unsigned())
}

fn tier(tier: Option<i32>, medium: Option<&str>, level: Option<i32>) -> Tier {
    match (tier, medium, level) {
        (Some(1), ..) => Tier::Device,
        (Some(2), ..) => Tier::Host,
        (Some(3..), ..) => Tier::Storage,
        (_, Some(medium), _) => published::tier(medium),
        (_, None, None | Some(0)) => Tier::Device,
        (_, None, Some(1)) => Tier::Host,
        (_, None, Some(_)) => Tier::Storage,
    }
}
