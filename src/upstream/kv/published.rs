//! What vLLM and SGLang publish: batches of events in msgpack, by lists or by maps.
//!
//! Field names and orders are those of the engines' own sources as of late 2026. What stands at the end of a list may be
//! missing, and what is not known is passed over. The effect of every doubt is that less is taken to be held.

use smg_prefix::{EngineHash, KvBatch, KvEvent, Stored, Tier};

use super::{
    Malformed,
    msgpack::{Item, Reader},
};

/// The longest adapter's name and salt.
const TEXT_BYTES_MAX: usize = 1_024;

/// Reads a batch; its sequence and, where the payload has none, its rank come from outside.
pub(crate) fn batch(payload: &[u8], sequence: u64, rank: u32) -> Result<KvBatch, Malformed> {
    let mut reader = Reader::new(payload);
    let (mut events, mut told) = (None, None);
    match reader.item()? {
        Item::List(fields) => {
            for field in 0..fields {
                let began = reader.skip()?;
                match field {
                    1 => events = Some(began),
                    2 => told = Some(began),
                    _ => {}
                }
            }
        }
        Item::Map(fields) => {
            for _ in 0..fields {
                let name = reader.item()?;
                let began = reader.skip()?;
                match name {
                    Item::Text(b"events") => events = Some(began),
                    Item::Text(b"data_parallel_rank" | b"dp_rank") => told = Some(began),
                    _ => {}
                }
            }
        }
        _ => return Err(Malformed),
    }
    if !reader.is_at_end() {
        return Err(Malformed);
    }
    let told = told.map(|mut at| at.item()).transpose()?;
    let rank = match told {
        Some(Item::Int(told)) => u32::try_from(told).map_err(|_| Malformed)?,
        _ => rank,
    };
    let mut read = KvBatch { sequence, rank, events: Vec::new() };
    let mut events = events.ok_or(Malformed)?;
    let Item::List(count) = events.item()? else { return Err(Malformed) };
    for _ in 0..count {
        event(events.skip()?, &mut read.events)?;
    }
    Ok(read)
}

/// Where the fields of an event begin.
#[derive(Default)]
struct Fields<'a> {
    kind: &'a [u8],
    at: [Option<Reader<'a>>; NAMES.len()],
}

/// The fields that are used. As lists have them: a store's in this order, a removal's by [`REMOVED`].
const NAMES: [&[u8]; 11] = [
    b"block_hashes",
    b"parent_block_hash",
    b"token_ids",
    b"block_size",
    b"lora_id",
    b"medium",
    b"lora_name",
    b"extra_keys",
    b"group_idx",
    b"kv_cache_spec_kind",
    b"kv_cache_spec_sliding_window",
];
const BLOCKS: usize = 0;
const PARENT: usize = 1;
const TOKENS: usize = 2;
const BLOCK_TOKENS: usize = 3;
const LORA_ID: usize = 4;
const MEDIUM: usize = 5;
const LORA: usize = 6;
const KEYS: usize = 7;
const GROUP: usize = 8;
const KIND: usize = 9;
const WINDOW: usize = 10;
const REMOVED: [usize; 3] = [BLOCKS, MEDIUM, GROUP];

impl<'a> Fields<'a> {
    fn read(mut reader: Reader<'a>) -> Result<Self, Malformed> {
        let mut fields = Self::default();
        match reader.item()? {
            Item::List(count @ 1..) => {
                let Item::Text(kind) = reader.item()? else { return Err(Malformed) };
                fields.kind = kind;
                for place in 0..count as usize - 1 {
                    let began = reader.skip()?;
                    let name = if kind == b"BlockRemoved" { REMOVED.get(place).copied() } else { Some(place) };
                    if let Some(at) = name.and_then(|name| fields.at.get_mut(name)) {
                        *at = Some(began);
                    }
                }
            }
            Item::Map(count) => {
                for _ in 0..count {
                    let Item::Text(name) = reader.item()? else { return Err(Malformed) };
                    let mut began = reader.skip()?;
                    if name == b"type" {
                        let Item::Text(kind) = began.item()? else { return Err(Malformed) };
                        fields.kind = kind;
                    } else if let Some(place) = NAMES.iter().position(|known| *known == name) {
                        fields.at[place] = Some(began);
                    }
                }
            }
            _ => return Err(Malformed),
        }
        Ok(fields)
    }

    fn item(&self, field: usize) -> Result<Item<'a>, Malformed> {
        self.at[field].map_or(Ok(Item::Nil), |mut at| at.item())
    }

    fn number(&self, field: usize) -> Result<Option<u32>, Malformed> {
        match self.item(field)? {
            Item::Nil => Ok(None),
            Item::Int(number) => u32::try_from(number).map(Some).map_err(|_| Malformed),
            _ => Err(Malformed),
        }
    }

    fn text(&self, field: usize) -> Result<Option<&'a str>, Malformed> {
        match self.item(field)? {
            Item::Text(text) => short(text).map(Some).ok_or(Malformed),
            _ => Ok(None),
        }
    }

    fn blocks(&self) -> Result<Vec<EngineHash>, Malformed> {
        let Some(mut reader) = self.at[BLOCKS] else { return Err(Malformed) };
        let Item::List(count) = reader.item()? else { return Err(Malformed) };
        (0..count).map(|_| name(reader.item()?)?.ok_or(Malformed)).collect()
    }

    fn tier(&self) -> Result<Tier, Malformed> {
        Ok(self.text(MEDIUM)?.map_or(Tier::Device, tier))
    }
}

fn event(reader: Reader<'_>, events: &mut Vec<KvEvent>) -> Result<(), Malformed> {
    let fields = Fields::read(reader)?;
    match fields.kind {
        // One that cannot be read is passed over: what is not known to be held is at worst computed again.
        b"BlockStored" => drop(stored(&fields, events)),
        b"BlockRemoved" => {
            let group = fields.number(GROUP)?.unwrap_or(0);
            events.push(KvEvent::Removed { blocks: fields.blocks()?, tier: fields.tier()?, group });
        }
        b"AllBlocksCleared" => events.push(KvEvent::Cleared),
        _ => {}
    }
    Ok(())
}

fn stored(fields: &Fields<'_>, events: &mut Vec<KvEvent>) -> Result<(), Malformed> {
    let mut stored = Stored {
        blocks: fields.blocks()?,
        parent: name(fields.item(PARENT)?)?,
        tokens: tokens(fields)?,
        block_tokens: fields.number(BLOCK_TOKENS)?.unwrap_or(0),
        tier: fields.tier()?,
        group: fields.number(GROUP)?.unwrap_or(0),
        windowed: is_windowed(fields)?,
        ..Stored::default()
    };
    match fields.item(LORA)? {
        Item::Text(text) => stored.lora = Some(short(text).ok_or(Malformed)?.to_owned()),
        // SGLang has its own there: `{"cache_salt": …}`.
        Item::Map(_) => match salt_map(fields.at[LORA].ok_or(Malformed)?)? {
            Some(salt) => stored.salt = Some(salt.to_owned()),
            None => stored.opaque = true,
        },
        _ => {}
    }
    if let (None, Some(id)) = (&stored.lora, fields.number(LORA_ID)?) {
        stored.lora = Some(format!("#{id}"));
    }
    let clear = understood(fields, &mut stored)?;
    if clear >= stored.blocks.len() {
        events.push(KvEvent::Stored(stored));
        return Ok(());
    }
    // From the first block on whose name was made from something else too, nobody can take it for its tokens.
    let tokens_clear = clear.saturating_mul(stored.block_tokens as usize).min(stored.tokens.len());
    let rest = Stored {
        blocks: stored.blocks.split_off(clear),
        parent: stored.blocks.last().copied().or(stored.parent),
        tokens: stored.tokens.split_off(tokens_clear),
        lora: stored.lora.clone(),
        salt: stored.salt.clone(),
        opaque: true,
        ..stored
    };
    if !stored.blocks.is_empty() {
        events.push(KvEvent::Stored(stored));
    }
    events.push(KvEvent::Stored(rest));
    Ok(())
}

fn tokens(fields: &Fields<'_>) -> Result<Vec<u32>, Malformed> {
    let Some(mut reader) = fields.at[TOKENS] else { return Ok(Vec::new()) };
    let count = match reader.item()? {
        Item::Nil => 0,
        Item::List(count) => count,
        _ => return Err(Malformed),
    };
    let token = |item| match item {
        Item::Int(token) => u32::try_from(token).map_err(|_| Malformed),
        _ => Err(Malformed),
    };
    (0..count).map(|_| token(reader.item()?)).collect()
}

/// How many leading blocks have names made from nothing that is not understood. Takes the salt from the first block of a
/// prompt.
fn understood(fields: &Fields<'_>, stored: &mut Stored) -> Result<usize, Malformed> {
    let Some(mut reader) = fields.at[KEYS] else { return Ok(stored.blocks.len()) };
    let count = match reader.item()? {
        Item::Nil => return Ok(stored.blocks.len()),
        Item::List(count) => count as usize,
        _ => return Ok(0),
    };
    if count != stored.blocks.len() {
        return Ok(0);
    }
    for block in 0..count {
        let keys = match reader.item()? {
            Item::Nil => 0,
            Item::List(keys) => keys,
            _ => return Ok(block),
        };
        let mut salt = None;
        for _ in 0..keys {
            match reader.item()? {
                Item::Text(text) if stored.lora.as_deref().is_some_and(|lora| lora.as_bytes() == text) => {}
                Item::Text(text) if block == 0 && stored.parent.is_none() && salt.is_none() => salt = Some(text),
                _ => return Ok(block),
            }
        }
        if let Some(salt) = salt {
            let Some(salt) = short(salt) else { return Ok(0) };
            stored.salt = Some(salt.to_owned());
        }
    }
    Ok(count)
}

/// The salt in a map that holds nothing else.
fn salt_map(mut reader: Reader<'_>) -> Result<Option<&str>, Malformed> {
    let Item::Map(1) = reader.item()? else { return Ok(None) };
    match (reader.item()?, reader.item()?) {
        (Item::Text(b"cache_salt"), Item::Text(salt)) => Ok(short(salt)),
        _ => Ok(None),
    }
}

/// Whether the blocks are of layers that see a window only, or keep a state instead of a cache.
fn is_windowed(fields: &Fields<'_>) -> Result<bool, Malformed> {
    Ok(match fields.text(KIND)? {
        Some(kind) => is_windowed_kind(kind),
        None => fields.number(WINDOW)?.is_some(),
    })
}

/// The same of a kind's name.
pub(super) fn is_windowed_kind(kind: &str) -> bool {
    let kind = kind.to_ascii_lowercase();
    !kind.contains("full") && !kind.contains("mla")
}

/// The tier of a medium as engines write it.
pub(super) fn tier(medium: &str) -> Tier {
    let is = |prefix: &str| medium.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    match medium {
        "" => Tier::Device,
        _ if is("gpu") || is("device") || is("hbm") => Tier::Device,
        _ if is("cpu") || is("host") => Tier::Host,
        _ => Tier::Storage,
    }
}

fn name(item: Item<'_>) -> Result<Option<EngineHash>, Malformed> {
    match item {
        Item::Nil => Ok(None),
        Item::Int(name) => Ok(Some(EngineHash(name))),
        Item::Bytes(name) | Item::Text(name) => Ok(Some(EngineHash::of_bytes(name))),
        _ => Err(Malformed),
    }
}

fn short(text: &[u8]) -> Option<&str> {
    std::str::from_utf8(text).ok().filter(|text| text.len() <= TEXT_BYTES_MAX)
}
