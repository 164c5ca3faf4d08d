//! The tokens of prompts, by the tokenizer whose files the operator named.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use smg_api::Endpoint;
use smg_base::{Clock, ModelId};
use smg_gateway::PromptTokens;
use smg_tokenizer::{FILE_NAMES, Form, Tokenizer};

use crate::{config::Config, error::Error};

/// One tokenizer, for every model that is served: a node whose models differ names none.
struct Prompts {
    tokenizer: Tokenizer,
    clock: Arc<dyn Clock>,
}

impl PromptTokens for Prompts {
    fn tokens(&self, _model: &ModelId, endpoint: Endpoint, body: &[u8]) -> Option<Vec<u32>> {
        let now = i64::try_from(self.clock.unix_ms() / 1_000).ok()?;
        self.tokenizer.prompt_tokens(form(endpoint)?, body, now)
    }

    fn knows(&self, _model: &ModelId, endpoint: Endpoint) -> bool {
        form(endpoint).is_some_and(|form| form != Form::Chat || self.tokenizer.has_chat_template())
    }
}

fn form(endpoint: Endpoint) -> Option<Form> {
    match endpoint {
        Endpoint::ChatCompletions => Some(Form::Chat),
        Endpoint::Completions => Some(Form::Completion),
        Endpoint::Generate => Some(Form::Generate),
        _ => None,
    }
}

/// The tokenizer that the configuration names, if it names one.
pub(crate) fn load(config: &Config, clock: &Arc<dyn Clock>) -> Result<Option<Arc<dyn PromptTokens>>, Error> {
    let fleet = &config.sections.fleet;
    let Some(given) = fleet.tokenizer_path.as_ref().or(fleet.model_path.as_ref()) else { return Ok(None) };
    if !given.exists() {
        // The reference gateway takes the name of a model there, whose files it fetches.
        tracing::warn!(path = %given.display(), "there is no such folder here; prompts are compared by their text");
        return Ok(None);
    }
    let folder = if given.is_dir() { given.as_path() } else { given.parent().unwrap_or(Path::new(".")) };
    let [tokenizer, settings, template] = FILE_NAMES.map(|name| folder.join(name));
    let tokenizer = if given.is_dir() { tokenizer } else { given.clone() };
    let unusable = |path: &PathBuf, reason: String| Error::Tokenizer { path: path.clone(), reason };
    let bytes = std::fs::read(&tokenizer).map_err(|error| unusable(&tokenizer, error.to_string()))?;
    let settings = std::fs::read(settings).ok();
    let template = match &fleet.chat_template {
        Some(path) => Some(std::fs::read_to_string(path).map_err(|error| unusable(path, error.to_string()))?),
        None => std::fs::read_to_string(template).ok(),
    };
    let made = Tokenizer::from_files(&bytes, settings.as_deref(), template.as_deref());
    let made = made.map_err(|error| unusable(&tokenizer, error.to_string()))?;
    tracing::info!(path = %tokenizer.display(), chats = made.has_chat_template(), "tokenizer");
    Ok(Some(Arc::new(Prompts { tokenizer: made, clock: clock.clone() })))
}
