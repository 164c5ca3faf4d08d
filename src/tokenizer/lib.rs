//! From a request to the ids of its tokens, as the engine that gets the request will compute them.
//!
//! A [`Tokenizer`] is made of the files that lie beside a model's weights: `tokenizer.json`, `tokenizer_config.json` and
//! `chat_template.jinja`. A chat's messages are put into the form in which engines hand them to the template, the template is
//! rendered as `transformers` renders it, and the text is encoded by the library that the engines use.
//!
//! What is not understood in full is not guessed: [`Tokenizer::prompt_tokens`] then gives nothing, and routing goes by the
//! text. A template is the operator's, what it is rendered with is a caller's: fuel bounds the time and memory of a rendering.
//!
//! This crate reads no files, knows no endpoints beyond the three forms of a prompt, and takes the time as an argument.

mod content;
mod conversation;
mod python;
mod template;

use std::fmt;

use minijinja::Value;
use tokenizers::AddedToken;

use template::{ChatTemplate, Templates};

pub use conversation::{Chat, NotCovered};

/// A model's tokenizer and chat template.
pub struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
    templates: Templates,
    /// What every template can name: the special tokens.
    names: Vec<(String, Value)>,
}

/// The files of a model's folder that matter here, as bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Files<'a> {
    /// `tokenizer.json`.
    pub tokenizer: &'a [u8],
    /// `tokenizer_config.json`.
    pub config: Option<&'a [u8]>,
    /// `chat_template.jinja`, which comes before a template in `tokenizer_config.json`; or what an operator puts in its place.
    pub chat_template: Option<&'a str>,
}

/// The names of [`Files`] in a model's folder.
pub const FILE_NAMES: [&str; 3] = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];

/// How a body gives its prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `messages`, for a template: `/v1/chat/completions`.
    Chat,
    /// `prompt`, as it is: `/v1/completions`.
    Completion,
    /// `text`, as it is: SGLang's `/generate`.
    Generate,
}

/// What becomes of the tokens that begin and end a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpecialTokens {
    /// They are added.
    Added,
    /// Only those are there that the text itself names.
    #[default]
    Left,
}

/// Why there is no tokenizer. Nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The tokenizer's file is not one.
    #[error("tokenizer.json: {0}")]
    Tokenizer(String),
    /// The configuration is not JSON, or not an object.
    #[error("tokenizer_config.json: {0}")]
    Config(String),
    /// A chat template is not one.
    #[error("chat template: {0}")]
    Template(#[from] minijinja::Error),
}

/// Why a chat has no text.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The model has no template.
    #[error("the model has no chat template")]
    NoTemplate,
    /// The template refused, failed, or ran out of fuel.
    #[error("chat template: {0}")]
    Template(#[from] minijinja::Error),
    /// The last message was to be continued, and the template does not show it.
    #[error("the chat template does not show the message that is to be continued")]
    NothingToContinue,
}

impl Tokenizer {
    /// A tokenizer of a model's files.
    pub fn from_files(
        tokenizer_json: &[u8],
        config: Option<&[u8]>,
        chat_template: Option<&str>,
    ) -> Result<Self, LoadError> {
        Self::of(Files { tokenizer: tokenizer_json, config, chat_template })
    }

    /// A tokenizer of a model's files.
    pub fn of(files: Files<'_>) -> Result<Self, LoadError> {
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(files.tokenizer)
            .map_err(|error| LoadError::Tokenizer(error.to_string()))?;
        // What the file says of cutting and filling up is for training; engines switch it off.
        tokenizer.with_truncation(None).map_err(|error| LoadError::Tokenizer(error.to_string()))?;
        tokenizer.with_padding(None);
        let config: Value = match files.config {
            Some(bytes) => serde_json::from_slice(bytes).map_err(|error| LoadError::Config(error.to_string()))?,
            None => Value::from_pairs::<_, String, Value>([]),
        };
        if config.kind() != minijinja::value::ValueKind::Map {
            return Err(LoadError::Config("it is not an object".to_owned()));
        }
        add_tokens(&mut tokenizer, &config);
        Ok(Self { tokenizer, names: special_tokens(&config), templates: Templates::new(&config, files.chat_template)? })
    }

    /// Whether chats can be rendered.
    pub fn has_chat_template(&self) -> bool {
        !self.templates.is_empty()
    }

    /// The ids of a text's tokens. Nothing if the tokenizer cannot encode it.
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Option<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, special == SpecialTokens::Added).ok()?;
        Some(encoding.get_ids().to_vec())
    }

    /// The text of a chat, at a time in seconds since the Unix epoch, which some templates show.
    pub fn render_chat(&self, chat: &Chat, now_unix_s: i64) -> Result<String, RenderError> {
        let template = self.templates.for_chat(chat).ok_or(RenderError::NoTemplate)?;
        template.render(chat, &self.names, now_unix_s)
    }

    /// The ids of the tokens that an engine makes of a request's body; nothing if that is not known for certain.
    pub fn prompt_tokens(&self, form: Form, body: &[u8], now_unix_s: i64) -> Option<Vec<u32>> {
        match form {
            Form::Chat => {
                let template_of = |tools: Option<&Value>| self.templates.of(tools).map(ChatTemplate::content_format);
                let chat = Chat::of_body(body, template_of).ok()?;
                let text = self.render_chat(&chat, now_unix_s).ok()?;
                self.encode(&text, chat.special_tokens)
            }
            Form::Completion | Form::Generate => {
                let prompt = conversation::prompt_of(form, body).ok()?;
                self.encode(&prompt.text, prompt.special_tokens)
            }
        }
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("has_chat_template", &self.has_chat_template()).finish_non_exhaustive()
    }
}

/// A member of an object, if it is there and not null.
fn member(object: &Value, name: &str) -> Option<Value> {
    object.get_attr(name).ok().filter(|value| !value.is_undefined() && !value.is_none())
}

/// A token's text, which the configuration gives as such or with how it is matched.
fn token_text(value: &Value) -> Option<String> {
    let text = value.as_str().map(str::to_owned);
    text.or_else(|| member(value, "content")?.as_str().map(str::to_owned))
}

/// Tokens that stand in the configuration only.
fn add_tokens(tokenizer: &mut tokenizers::Tokenizer, config: &Value) {
    let Some(decoder) = member(config, "added_tokens_decoder") else { return };
    let mut added: Vec<(u32, AddedToken)> = Vec::new();
    for id in decoder.try_iter().into_iter().flatten() {
        let (Some(number), Ok(token)) = (id.as_str().and_then(|id| id.parse().ok()), decoder.get_item(&id)) else {
            continue;
        };
        let Some(text) = token_text(&token) else { continue };
        let flag = |name: &str| member(&token, name).is_some_and(|flag| flag.is_true());
        let is_known = tokenizer.get_added_vocabulary().get_vocab().contains_key(&text);
        if !is_known {
            let token = AddedToken::from(text, flag("special")).single_word(flag("single_word"));
            added.push((number, token.lstrip(flag("lstrip")).rstrip(flag("rstrip")).normalized(flag("normalized"))));
        }
    }
    added.sort_by_key(|(id, _)| *id);
    for (_, token) in added {
        // The text is not empty and the normalizer has taken others: what cannot be added is not matched either.
        let _ = tokenizer.add_tokens([token]);
    }
}

/// The special tokens under the names that templates know.
fn special_tokens(config: &Value) -> Vec<(String, Value)> {
    const NAMES: [&str; 7] =
        ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
    let text = |name: &str| Some((name.to_owned(), Value::from(token_text(&member(config, name)?)?)));
    NAMES.iter().filter_map(|name| text(name)).collect()
}

#[cfg(test)]
mod tests;
