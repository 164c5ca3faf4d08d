//! What TensorRT-LLM gives away when it is asked: a list of events in JSON, each once.

use serde::Deserialize;
use serde_json::Value;
use smg_prefix::{EngineHash, KvBatch, KvEvent, Stored, Tier};

use super::Malformed;

/// The longest salt.
const SALT_BYTES_MAX: usize = 1_024;

/// What must be remembered between two answers.
#[derive(Debug, Default)]
pub(crate) struct Drained {
    /// The number of the event to come.
    expected: Option<u64>,
    /// The largest attention window seen; a model with several reports each block for each.
    window: u64,
    /// Tokens of a whole block. The last one of a prompt may be reported before it is whole.
    block_tokens: usize,
    sequence: u64,
}

/// What an answer means.
#[derive(Debug, PartialEq)]
pub(crate) struct Answer {
    /// Whether events before these are missing: somebody else took them, or the engine's buffer ran over.
    pub(crate) lost: Lost,
    /// What happened; none if nothing did.
    pub(crate) batch: Option<KvBatch>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    Nothing,
    Something,
}

#[derive(Deserialize)]
struct Event {
    event_id: u64,
    #[serde(default)]
    window_size: Option<u64>,
    data: Data,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Data {
    Created {},
    Stored {
        #[serde(default)]
        parent_hash: Value,
        blocks: Vec<Block>,
    },
    Removed {
        block_hashes: Vec<Value>,
    },
    Updated {
        block_hash: Value,
        #[serde(default)]
        cache_level: Option<Diff>,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Block {
    block_hash: Value,
    tokens: Vec<Token>,
    #[serde(default)]
    lora_id: Option<u64>,
    #[serde(default)]
    cache_salt: Option<String>,
    #[serde(default)]
    cache_level: u64,
    #[serde(default)]
    mm_keys: Vec<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Token {
    token_id: u32,
    #[serde(default)]
    token_extra_id: u64,
}

#[derive(Deserialize)]
struct Diff {
    old_value: u64,
    new_value: u64,
}

impl Drained {
    /// Reads an answer.
    pub(crate) fn read(&mut self, body: &[u8]) -> Result<Answer, Malformed> {
        let listed: Vec<Event> = serde_json::from_slice(body).map_err(|_| Malformed)?;
        let mut lost = Lost::Nothing;
        let mut events = Vec::new();
        for Event { event_id, window_size, data } in listed {
            let is_start = event_id == 0 && matches!(data, Data::Created {});
            if is_start {
                events.push(KvEvent::Started);
            } else if self.expected.is_some_and(|expected| expected != event_id) {
                // What came before it is of no use any more, for something between is missing.
                events.clear();
                lost = Lost::Something;
            }
            self.expected = Some(event_id.saturating_add(1));
            let window = window_size.unwrap_or(self.window);
            if window > self.window {
                if self.window > 0 {
                    events.push(KvEvent::Started);
                }
                self.window = window;
            }
            if window == self.window {
                self.event(data, &mut events)?;
            }
        }
        if events.is_empty() {
            return Ok(Answer { lost, batch: None });
        }
        let batch = KvBatch { sequence: self.sequence, rank: 0, events };
        self.sequence += 1;
        Ok(Answer { lost, batch: Some(batch) })
    }

    fn event(&mut self, data: Data, events: &mut Vec<KvEvent>) -> Result<(), Malformed> {
        match data {
            Data::Created {} | Data::Other => {}
            Data::Stored { parent_hash, blocks } => {
                let mut parent = if parent_hash.is_null() { None } else { Some(name(&parent_hash)?) };
                for block in blocks {
                    let Some(stored) = self.stored(&block, parent, events)? else { return Ok(()) };
                    parent = stored.blocks.first().copied();
                    extend(events, stored);
                }
            }
            Data::Removed { block_hashes } => {
                let blocks = block_hashes.iter().map(name).collect::<Result<Vec<_>, _>>()?;
                // Where blocks are removed from is not said: they leave the last tier.
                events.extend([Tier::Device, Tier::Host, Tier::Storage].map(|tier| {
                    let blocks = blocks.clone();
                    KvEvent::Removed { blocks, tier, group: 0 }
                }));
            }
            Data::Updated { block_hash, cache_level: Some(levels) } => {
                let blocks = vec![name(&block_hash)?];
                let now = Stored { blocks: blocks.clone(), tier: tier(levels.new_value), ..Stored::default() };
                events.push(KvEvent::Stored(now));
                events.push(KvEvent::Removed { blocks, tier: tier(levels.old_value), group: 0 });
            }
            Data::Updated { .. } => {}
        }
        Ok(())
    }

    /// A block that is whole; none if it is not yet.
    fn stored(
        &mut self,
        block: &Block,
        parent: Option<EngineHash>,
        events: &mut Vec<KvEvent>,
    ) -> Result<Option<Stored>, Malformed> {
        let length = block.tokens.len();
        if length < self.block_tokens {
            return Ok(None);
        }
        if length > self.block_tokens {
            if self.block_tokens > 0 {
                // What was taken for a whole block was not.
                events.push(KvEvent::Started);
            }
            self.block_tokens = length;
        }
        let salt = block.cache_salt.clone().filter(|salt| salt.len() <= SALT_BYTES_MAX);
        let has_images = !block.mm_keys.is_empty() || block.tokens.iter().any(|token| token.token_extra_id != 0);
        Ok(Some(Stored {
            blocks: vec![name(&block.block_hash)?],
            parent,
            tokens: block.tokens.iter().map(|token| token.token_id).collect(),
            block_tokens: u32::try_from(length).map_err(|_| Malformed)?,
            lora: block.lora_id.map(|id| format!("#{id}")),
            opaque: has_images || salt != block.cache_salt,
            salt,
            tier: tier(block.cache_level),
            ..Stored::default()
        }))
    }
}

/// Adds a block, to the stretch before it where it continues that.
fn extend(events: &mut Vec<KvEvent>, stored: Stored) {
    if let Some(KvEvent::Stored(last)) = events.last_mut()
        && stored.parent.is_some()
        && last.blocks.last().copied() == stored.parent
        && (last.block_tokens, last.tier, last.opaque) == (stored.block_tokens, stored.tier, stored.opaque)
        && (&last.lora, &last.salt) == (&stored.lora, &stored.salt)
    {
        last.blocks.extend(stored.blocks);
        last.tokens.extend(stored.tokens);
        return;
    }
    events.push(KvEvent::Stored(stored));
}

/// A number, or the text of a longer hash.
fn name(value: &Value) -> Result<EngineHash, Malformed> {
    match value {
        Value::Number(number) => {
            let bits = number.as_u64().or_else(|| number.as_i64().map(i64::cast_unsigned));
            bits.map(EngineHash).ok_or(Malformed)
        }
        Value::String(text) => Ok(EngineHash::of_bytes(text.as_bytes())),
        _ => Err(Malformed),
    }
}

fn tier(level: u64) -> Tier {
    match level {
        0 => Tier::Device,
        1 => Tier::Host,
        _ => Tier::Storage,
    }
}
