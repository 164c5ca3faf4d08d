//! Which worker holds the key-value cache of which prefix.
//!
//! A prompt's text is cut into chunks and hashed into a chain ([`Chunker`]): the hash of a chunk covers everything
//! before it, so two prompts share a chunk's hash exactly when they share the whole text up to its end. The
//! [`PrefixIndex`] remembers, per worker, the chains dispatched to it, and forgets the least recently used chunks once
//! they exceed what the worker's engine can hold, as the engine itself does. It is a prediction: it never claims more
//! than was dispatched, and [`PrefixIndex::calibrate`] says how far engines bear it out.
//!
//! The index is a radix tree over the hashes, compressed to runs. Because a chained hash names its whole path, the table from
//! a run's first hash to the run is the tree: there are no child pointers, and a lookup costs one probe and one comparison a
//! run, not one probe a chunk. Who holds a run whole is a mask of bits; who holds its beginning only, a short list. Readers
//! neither wait nor allocate: runs are replaced, not changed, and freed when nobody looks at them. Writers take turns.
//!
//! This crate does not know what a worker is beyond its id, nor what a prompt is beyond its text.

mod change;
mod chunk;
mod directory;
mod engine;
mod event;
mod index;
mod ledger;
mod lookup;
mod memory;
mod places;
pub mod plane;
mod predictor;
mod recency;
mod record;
mod run;
mod source;

pub use change::{Change, Claim};
pub use chunk::{CHUNK_BYTES, CHUNK_TOKENS, CHUNKS_MAX, Chunker, HEAD_BYTES, PromptKey, Space, TOKEN_BYTES};
pub use engine::{EngineCache, EngineCacheConfig, EngineCacheStats, Sequence};
pub use event::{EngineHash, KvBatch, KvEvent, Namespace, Stored, Tier};
pub use index::{IndexSize, PrefixIndex};
pub use lookup::{Found, Held};
pub use predictor::Predictor;
pub use source::Source;
