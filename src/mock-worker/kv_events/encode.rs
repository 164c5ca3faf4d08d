//! How events look on the wire, by engine.

use bytes::Bytes;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use smg_base::hash;

use super::journal::Happening;
use crate::{config::KvEventFormat, tokens::Token, worker::unix_seconds};

/// The attention window that TensorRT-LLM names: that of a model without one.
pub(super) const WINDOW: u32 = 131_072;

/// A batch in msgpack: `[time, events, data_parallel_rank]`.
pub(super) fn payload(happened: &[Happening], format: KvEventFormat, block_tokens: u32) -> Bytes {
    let events: Vec<Event<'_>> = happened.iter().map(|happening| event(happening, format, block_tokens)).collect();
    let batch = (unix_seconds(), events, 0_u32);
    rmp_serde::to_vec_named(&batch).expect("msgpack takes texts, numbers and lists").into()
}

/// An event as TensorRT-LLM lists it, without its frame.
pub(super) fn drained(happening: &Happening, block_tokens: u32) -> Value {
    match happening {
        Happening::Stored { blocks, parent, tokens, namespace } => {
            let block = |(name, tokens): (&u64, &[Token])| {
                let tokens: Vec<Value> = tokens
                    .iter()
                    .map(|token| json!({ "type": "unique_token", "token_id": token, "token_extra_id": 0 }))
                    .collect();
                let mut block = json!({
                    "type": "stored_block", "block_hash": name, "tokens": tokens, "cache_level": 0, "priority": 35,
                });
                if let Some(salt) = &namespace.salt {
                    block["cache_salt"] = json!(**salt);
                }
                block
            };
            let blocks: Vec<Value> = blocks.iter().zip(tokens.chunks(block_tokens as usize)).map(block).collect();
            json!({ "type": "stored", "parent_hash": parent, "blocks": blocks })
        }
        Happening::Removed { blocks } => json!({ "type": "removed", "block_hashes": blocks }),
        // It has no such event, nor an endpoint that empties its cache.
        Happening::Cleared => json!({ "type": "removed", "block_hashes": [] }),
    }
}

/// An event on the wire: a list that begins with its kind, or a map.
#[derive(Serialize)]
#[serde(untagged)]
enum Event<'a> {
    List(Vec<Field<'a>>),
    Stored(StoredMap<'a>),
    Removed(RemovedMap),
    Cleared(ClearedMap),
}

#[derive(Serialize)]
#[serde(untagged)]
enum Field<'a> {
    Text(&'a str),
    Name(Name),
    Names(Vec<Name>),
    Tokens(&'a [Token]),
    Number(u32),
    Keys(Vec<Keys<'a>>),
    Salt(SaltMap<'a>),
    Nothing,
}

/// What beside its tokens decided the name of a block.
type Keys<'a> = Option<Vec<&'a str>>;

#[derive(Serialize)]
struct StoredMap<'a> {
    r#type: &'static str,
    block_hashes: Vec<Name>,
    parent_block_hash: Option<Name>,
    token_ids: &'a [Token],
    block_size: u32,
    lora_id: Option<u32>,
    medium: &'static str,
    lora_name: Option<&'a str>,
    /// One for each block.
    extra_keys: Vec<Keys<'a>>,
    group_idx: u32,
    kv_cache_spec_kind: &'static str,
}

#[derive(Serialize)]
struct RemovedMap {
    r#type: &'static str,
    block_hashes: Vec<Name>,
    medium: &'static str,
    group_idx: u32,
}

#[derive(Serialize)]
struct ClearedMap {
    r#type: &'static str,
}

#[derive(Serialize)]
struct SaltMap<'a> {
    cache_salt: &'a str,
}

/// The name of a block.
enum Name {
    Unsigned(u64),
    Signed(i64),
    Bytes([u8; 32]),
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unsigned(name) => serializer.serialize_u64(*name),
            Self::Signed(name) => serializer.serialize_i64(*name),
            Self::Bytes(name) => serializer.serialize_bytes(name),
        }
    }
}

fn name(block: u64, format: KvEventFormat) -> Name {
    match format {
        KvEventFormat::VllmArray | KvEventFormat::VllmMap => Name::Unsigned(block),
        KvEventFormat::Sglang => Name::Signed(block.cast_signed()),
        KvEventFormat::VllmMapBytes => {
            let mut bytes = [0; 32];
            for (part, place) in bytes.chunks_exact_mut(8).zip(0..) {
                part.copy_from_slice(&hash::mix(block, place).to_be_bytes());
            }
            Name::Bytes(bytes)
        }
    }
}

/// Whether events are maps.
pub(super) fn is_map(format: KvEventFormat) -> bool {
    matches!(format, KvEventFormat::VllmMap | KvEventFormat::VllmMapBytes)
}

fn event(happening: &Happening, format: KvEventFormat, block_tokens: u32) -> Event<'_> {
    let names = |blocks: &[u64]| blocks.iter().map(|block| name(*block, format)).collect::<Vec<_>>();
    let is_map = is_map(format);
    match happening {
        Happening::Stored { .. } => stored(happening, format, block_tokens),
        Happening::Removed { blocks } if is_map => Event::Removed(RemovedMap {
            r#type: "BlockRemoved",
            block_hashes: names(blocks),
            medium: "GPU",
            group_idx: 0,
        }),
        Happening::Removed { blocks } => {
            Event::List(vec![Field::Text("BlockRemoved"), Field::Names(names(blocks)), Field::Text("GPU")])
        }
        Happening::Cleared if is_map => Event::Cleared(ClearedMap { r#type: "AllBlocksCleared" }),
        Happening::Cleared => Event::List(vec![Field::Text("AllBlocksCleared")]),
    }
}

fn stored(happening: &Happening, format: KvEventFormat, block_tokens: u32) -> Event<'_> {
    let Happening::Stored { blocks, parent, tokens, namespace } = happening else { return Event::List(Vec::new()) };
    let names: Vec<Name> = blocks.iter().map(|block| name(*block, format)).collect();
    let is_first = parent.is_none();
    let parent = parent.map(|parent| name(parent, format));
    let (lora, salt) = (namespace.lora.as_deref(), namespace.salt.as_deref());
    // The adapter counts in every block, the salt in the first of a prompt.
    let keys = || -> Vec<Keys<'_>> {
        let of = |place: usize| {
            let salt = salt.filter(|_| place == 0 && is_first);
            let keys: Vec<&str> = lora.into_iter().chain(salt).collect();
            (!keys.is_empty()).then_some(keys)
        };
        (0..blocks.len()).map(of).collect()
    };
    if is_map(format) {
        return Event::Stored(StoredMap {
            r#type: "BlockStored",
            block_hashes: names,
            parent_block_hash: parent,
            token_ids: tokens,
            block_size: block_tokens,
            lora_id: None,
            medium: "GPU",
            lora_name: lora,
            extra_keys: keys(),
            group_idx: 0,
            kv_cache_spec_kind: "full_attention",
        });
    }
    let extra = match (format, lora, salt) {
        (_, None, None) => Vec::new(),
        (KvEventFormat::Sglang, _, Some(cache_salt)) => vec![Field::Salt(SaltMap { cache_salt })],
        (KvEventFormat::Sglang, _, None) => Vec::new(),
        (_, lora, _) => vec![lora.map_or(Field::Nothing, Field::Text), Field::Keys(keys())],
    };
    let mut fields = vec![
        Field::Text("BlockStored"),
        Field::Names(names),
        parent.map_or(Field::Nothing, Field::Name),
        Field::Tokens(tokens),
        Field::Number(block_tokens),
        Field::Nothing,
        Field::Text("GPU"),
    ];
    // What is as it is by default is left out at the end.
    fields.extend(extra);
    Event::List(fields)
}
