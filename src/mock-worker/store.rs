//! Stored responses, by id.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::Mutex;
use serde_json::{Value, json};

/// The responses a worker keeps; the oldest give way.
#[derive(Debug)]
pub(crate) struct Store {
    kept: Mutex<Kept>,
    responses_max: usize,
}

#[derive(Debug, Default)]
struct Kept {
    responses: BTreeMap<String, Stored>,
    order: VecDeque<String>,
}

/// A response with the conversation that led to it.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) response: Value,
    /// The items it was asked with.
    pub(crate) input: Vec<Value>,
    /// Every item of the conversation, its own output included.
    pub(crate) conversation: Vec<Value>,
    /// It runs in the background and nobody has asked for it yet.
    pub(crate) is_pending: bool,
}

/// What became of a wish to cancel.
#[derive(Debug)]
pub(crate) enum Cancelled {
    Yes(Value),
    /// It does not run in the background.
    NotPending,
    Unknown,
}

impl Store {
    pub(crate) fn new(responses_max: usize) -> Self {
        Self { kept: Mutex::default(), responses_max }
    }

    pub(crate) fn keep(&self, id: &str, stored: Stored) {
        let mut kept = self.kept.lock();
        kept.responses.insert(id.to_owned(), stored);
        kept.order.push_back(id.to_owned());
        while kept.order.len() > self.responses_max {
            let Some(oldest) = kept.order.pop_front() else { return };
            kept.responses.remove(&oldest);
        }
    }

    /// The response called `id`; one that was pending is complete from now on.
    pub(crate) fn fetch(&self, id: &str) -> Option<Stored> {
        let mut kept = self.kept.lock();
        let stored = kept.responses.get_mut(id)?;
        stored.is_pending = false;
        Some(stored.clone())
    }

    pub(crate) fn forget(&self, id: &str) -> bool {
        let mut kept = self.kept.lock();
        kept.order.retain(|kept| kept != id);
        kept.responses.remove(id).is_some()
    }

    pub(crate) fn cancel(&self, id: &str) -> Cancelled {
        let mut kept = self.kept.lock();
        let Some(stored) = kept.responses.get_mut(id) else { return Cancelled::Unknown };
        if !std::mem::take(&mut stored.is_pending) {
            return Cancelled::NotPending;
        }
        stored.response["status"] = json!("cancelled");
        stored.response["output"] = json!([]);
        Cancelled::Yes(stored.response.clone())
    }
}
