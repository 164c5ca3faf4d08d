//! The tokens of prompts that are given as text, where somebody can compute them.

use std::{sync::Arc, thread};

use bytes::Bytes;
use smg_api::Endpoint;
use smg_base::ModelId;
use tokio::sync::Semaphore;

/// Computes the tokens of prompts as engines will.
pub trait PromptTokens: Send + Sync {
    /// The tokens of the prompt in a request's body; nothing if they are not known for certain, for this model, this endpoint or
    /// this body.
    fn tokens(&self, model: &ModelId, endpoint: Endpoint, body: &[u8]) -> Option<Vec<u32>>;

    /// Whether it may know those of a model at an endpoint. A long prompt is not handed over to be told no.
    fn knows(&self, _model: &ModelId, endpoint: Endpoint) -> bool {
        matches!(endpoint, Endpoint::ChatCompletions | Endpoint::Completions | Endpoint::Generate)
    }
}

/// Text that is short enough to be done at once, on the thread that serves other requests too: half a millisecond.
const AT_ONCE_BYTES_MAX: usize = 2 << 10;

/// The computer of tokens, if there is one, kept from taking the machine for itself.
pub(crate) struct Tokens {
    given: Option<Arc<dyn PromptTokens>>,
    /// As many long prompts at once as there are processors; others wait in turn. Each waits with its request, which admission
    /// has counted.
    turns: Semaphore,
}

impl Tokens {
    pub(crate) fn new(given: Option<Arc<dyn PromptTokens>>) -> Self {
        let at_once = thread::available_parallelism().map_or(1, usize::from);
        Self { given, turns: Semaphore::new(at_once) }
    }

    /// The tokens of the prompt in `body`, which has about `text_bytes` of text.
    pub(crate) async fn of(
        &self,
        model: &ModelId,
        endpoint: Endpoint,
        body: &Bytes,
        text_bytes: usize,
    ) -> Option<Vec<u32>> {
        let given = self.given.as_ref().filter(|given| given.knows(model, endpoint))?;
        if text_bytes <= AT_ONCE_BYTES_MAX {
            return given.tokens(model, endpoint, body);
        }
        let _turn = self.turns.acquire().await.ok()?;
        let (given, model, body) = (given.clone(), model.clone(), body.clone());
        match tokio::task::spawn_blocking(move || given.tokens(&model, endpoint, &body)).await {
            Ok(tokens) => tokens,
            Err(error) => {
                tracing::error!(%error, "computing the tokens of a prompt failed");
                None
            }
        }
    }
}
