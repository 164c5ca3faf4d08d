//! A scriptable fake engine: an HTTP worker that behaves like vLLM, SGLang, or a plain OpenAI or Anthropic API,
//! without a GPU and without a model.
//!
//! It owns its sockets: requests are parsed by [`httparse`] and responses are written byte by byte, because faults
//! that matter (a reset in mid-chunk, a head that never ends, a length that lies) cannot be asked of an HTTP library.
//! A request passes through, in this order:
//!
//! 1. `connection` reads it, enters it in the [`Ledger`], and watches for the caller's disconnect until it is answered;
//! 2. [`Faults`] pick what will go wrong, from rules or from the request itself;
//! 3. `routes` finds what the dialect serves; the prompt is cut into tokens by a reversible toy tokenizer;
//! 4. `scheduler` makes it wait as an engine would: a running slot, the prefill of what the prefix cache lacks, one
//!    decode step per token; `kv_events` tells what that does to the cache, as engines do;
//! 5. `script` decides the text from a hash of the prompt, or from what the prompt asks for;
//! 6. `reply` writes it, applying the faults at the byte they name.
//!
//! Deliberately unknown here: the gateway, its wire types and its parsers. The fake engine is their independent check.

mod args;
mod cache;
mod config;
mod connection;
mod error;
mod faults;
mod http1;
mod kv_events;
mod ledger;
mod reply;
mod routes;
mod scheduler;
mod script;
mod server;
mod store;
mod tokens;
mod worker;

pub use args::{Args, run};
pub use config::{Bench, CacheConfig, Canned, Config, Dialect, EventFraming, KvEventFormat, KvEvents, Limits, Speed};
pub use error::Error;
pub use faults::{Action, BadFault, Fault, Faults, Point, Rule, Step};
pub use kv_events::{EventStreams, KvPublisher};
pub use ledger::{Entry, Ledger, Outcome, Waited};
pub use server::MockWorker;

/// The ids that its tokenizer makes of `text`.
pub fn token_ids(text: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    tokens::encode(text, &mut ids);
    ids
}
