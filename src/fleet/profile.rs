//! What an engine says of itself.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{Engine, KvEventsSpec, ModelCard};

/// What detection found behind a worker's URL. The worker's specification wins where both say something.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineProfile {
    /// The engine.
    pub engine: Engine,
    /// Its version, as it writes it.
    pub version: Option<String>,
    /// The models it serves; none if it does not say, which makes the worker take every model.
    pub models: Vec<ModelCard>,
    /// The context length that holds for models that state none.
    pub context_length: Option<u64>,
    /// How many tokens its KV cache holds.
    pub kv_capacity_tokens: Option<u64>,
    /// Tokens per block of its KV cache.
    pub block_size: Option<u32>,
    /// How many requests it runs at once.
    pub max_running_requests: Option<u32>,
    /// The paths it serves, if it says so.
    pub offers: Option<BTreeSet<String>>,
    /// Where it tells what its KV cache holds, if it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_events: Option<KvEventsSpec>,
}

/// Whether a worker serves a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// It says so.
    Yes,
    /// It lists what it serves, and this is not there.
    No,
    /// It does not say; the request will tell.
    Unknown,
}
