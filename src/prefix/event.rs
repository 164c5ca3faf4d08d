//! What engines report of their KV caches, in one form for all of them.

use smg_base::hash;

/// Everything beside its tokens that a prompt must share with another one to share its blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespace<'a> {
    /// The adapter's name.
    pub lora: Option<&'a str>,
    /// The tenant's salt (`cache_salt`).
    pub salt: Option<&'a str>,
}

impl Namespace<'_> {
    /// The salt for [`crate::Chunker`]. All nodes of a cluster take the same `seed`, which outsiders cannot know.
    pub fn root(&self, seed: u64) -> u64 {
        let part = |seed: u64, part: Option<&str>| match part {
            Some(part) => hash::stable64_seeded(part.as_bytes(), hash::mix(seed, 1)),
            None => hash::mix(seed, 0),
        };
        part(part(seed, self.lora), self.salt)
    }
}

/// The name an engine gives a block. It means something to that engine only, until it restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EngineHash(
    /// An integer as it came, or the hash of longer bytes.
    pub u64,
);

impl EngineHash {
    /// The name given as bytes.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(hash::stable64(bytes))
    }
}

/// Where an engine keeps a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// On the device that computes.
    #[default]
    Device,
    /// In the host's memory.
    Host,
    /// On a disk, or on another machine.
    Storage,
}

/// What one message of an engine reports.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KvBatch {
    /// Counts the messages of one rank.
    pub sequence: u64,
    /// The data-parallel rank; each has a cache of its own.
    pub rank: u32,
    /// What happened, in order.
    pub events: Vec<KvEvent>,
}

/// Something happened in a cache.
#[derive(Clone, Debug, PartialEq)]
pub enum KvEvent {
    /// Blocks were filled.
    Stored(
        /// Which.
        Stored,
    ),
    /// Blocks are gone from a tier.
    Removed {
        /// Their names.
        blocks: Vec<EngineHash>,
        /// The tier.
        tier: Tier,
        /// The attention group; see [`Stored::group`].
        group: u32,
    },
    /// All blocks are gone.
    Cleared,
    /// The engine has just started: what it held before is gone.
    Started,
}

/// Blocks that were filled, each after the one before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    /// Their names.
    pub blocks: Vec<EngineHash>,
    /// The block that the first of them follows; none if it begins a prompt.
    pub parent: Option<EngineHash>,
    /// Their tokens, [`Stored::block_tokens`] for each.
    pub tokens: Vec<u32>,
    /// Tokens in a block.
    pub block_tokens: u32,
    /// The adapter's name.
    pub lora: Option<String>,
    /// The tenant's salt.
    pub salt: Option<String>,
    /// Whether the engine made the names from something else too that is not understood here (images, prompt embeddings):
    /// nobody may take such a block for one that has the same tokens.
    pub opaque: bool,
    /// Where they are.
    pub tier: Tier,
    /// The attention group of a model that has several: only blocks of the group with full attention can be reused by prefix.
    pub group: u32,
    /// Whether the group attends to a window only.
    pub windowed: bool,
}
