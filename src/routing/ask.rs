//! The question put to a policy, and what comes back from the answered request.

use smg_base::{Random, Timestamp, WorkerId};
use smg_fleet::{Offer, Relaying, Worker};
use smg_prefix::{PromptKey, Space};

/// What a policy is told of a request.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    /// The prompt, hashed by [`crate::Policy::chunker`]; absent where the policy does not want it.
    pub prompt: Option<&'a PromptKey>,
    /// The prompt's length in tokens, as far as known: see [`crate::Policy::tokens_of`].
    pub input_tokens: u64,
    /// The caller's `X-SMG-Routing-Key`.
    pub routing_key: Option<&'a str>,
    /// The caller's `X-SMG-Target-Worker`: a worker's id, its URL, or its place in the pool.
    pub target: Option<&'a str>,
    /// Hash of what ties the requests of one conversation or user together. Never of a credential: that would send a
    /// whole tenant to one worker.
    pub session: Option<u64>,
    /// Workers that failed this request already.
    pub excluded: &'a [WorkerId],
    /// The engine's paths for this request; a worker will do unless it is known to offer none of them.
    pub paths: &'a [&'a str],
    /// Whether a peer may be asked to hand the request to a worker.
    pub relaying: Relaying,
    /// The time.
    pub now: Timestamp,
    /// Chance.
    pub random: &'a dyn Random,
}

impl Ask<'_> {
    /// Whether `worker` has what the request needs, as far as is known.
    pub(crate) fn is_offered_by(&self, worker: &Worker) -> bool {
        self.paths.is_empty() || self.paths.iter().any(|path| worker.offers(path) != Offer::No)
    }
}

/// What came back from a request: [`crate::Policy::observed`] learns from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// What [`crate::Explanation::predicted_tokens`] said when the worker was chosen.
    pub predicted_tokens: u64,
    /// The prompt's length as the engine counted it.
    pub input_tokens: Option<u64>,
    /// How much of it the engine found in its cache; absent if it does not say.
    pub cached_tokens: Option<u64>,
    /// Length of the prompt's text; zero if unknown.
    pub text_bytes: usize,
    /// What the prompt was cut from when the worker was chosen.
    pub space: Space,
}

/// Why no worker was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum NoChoice {
    /// The pool has no workers.
    #[error("there are no workers")]
    Empty,
    /// Whoever could take the request has failed it already.
    #[error("every worker that could take the request has failed it already")]
    AllExcluded,
    /// All workers are unhealthy, draining, or left alone by their breakers.
    #[error("no worker can be used now")]
    NoneAvailable,
    /// The worker named by the request does not exist or cannot be used now.
    #[error("the worker named by the request cannot be used now")]
    TargetUnavailable,
    /// No worker that can be used now offers what is asked for.
    #[error("no worker offers what is asked for")]
    NotOffered,
}

impl NoChoice {
    /// The name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::AllExcluded => "all_excluded",
            Self::NoneAvailable => "none_available",
            Self::TargetUnavailable => "target_unavailable",
            Self::NotOffered => "not_offered",
        }
    }
}
