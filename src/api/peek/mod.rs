//! What routing and limits need from a request's body, in one pass that borrows from it.
//!
//! The pass checks that the body is JSON, refuses a field that is given twice if it is one of those read (two parsers could
//! choose differently) and says where values stand, so that [`crate::edit`] can change them in place. Fields that are not
//! read are left to the engine, whatever they hold.

mod gather;
mod render;

use std::{borrow::Cow, ops::Range};

use crate::{
    Endpoint,
    json::{Broken, Cursor, Kind, Numbers, Text},
};

use gather::{Gathered, Section};

/// What a body says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peek<'a> {
    /// The model asked for.
    pub model: Option<Field<Cow<'a, str>>>,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    /// Where the value of `stream_options` stands.
    pub stream_options: Option<Range<usize>>,
    /// `stream_options.include_usage`.
    pub include_usage: Option<bool>,
    /// The most tokens to generate, under whatever name.
    pub max_tokens: Option<u64>,
    /// How many answers are asked for.
    pub n: Option<u64>,
    /// The response that this one follows.
    pub previous_response_id: Option<Cow<'a, str>>,
    /// The conversation that this request belongs to.
    pub conversation: Option<Cow<'a, str>>,
    /// OpenAI's `user`.
    pub user: Option<Cow<'a, str>>,
    /// OpenAI's `prompt_cache_key`.
    pub prompt_cache_key: Option<Cow<'a, str>>,
    /// Anthropic's `metadata.user_id`.
    pub metadata_user_id: Option<Cow<'a, str>>,
    /// How many messages, input items, prompts or documents there are.
    pub messages_or_input_items: usize,
    /// Bytes of text that the model will read.
    pub text_bytes: usize,
    /// How many token ids were given in place of text.
    pub token_ids: usize,
    /// The ids, if they are all that there is for the model to read, and of one prompt.
    pub tokens: Option<TokenIds<'a>>,
    /// What keeps the caches of tenants apart.
    pub cache_salt: Option<Cow<'a, str>>,
    /// Where the value of `cache_salt` stands, whatever it is.
    pub cache_salt_span: Option<Range<usize>>,
    /// The adapter asked for beside the model.
    pub adapter: Option<Cow<'a, str>>,
    /// How many members the body's object has.
    pub members: usize,
    /// Where the closing brace of the body's object stands.
    pub object_end: usize,
}

/// A value and where it stands in the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field<T> {
    /// The value.
    pub value: T,
    /// Where its JSON stands, quotes included.
    pub span: Range<usize>,
}

/// The ids of a prompt's tokens as they stand in the body. They are read when they are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenIds<'a> {
    /// A JSON array of whole numbers.
    array: &'a str,
    count: usize,
}

impl TokenIds<'_> {
    /// The ids; nothing if one is none that a token has.
    pub fn read(&self) -> Option<Vec<u32>> {
        let mut ids = Vec::with_capacity(self.count);
        let inside = self.array.trim_matches(['[', ']', ' ', '\n', '\r', '\t']);
        for id in inside.split(',') {
            ids.push(id.trim_ascii().parse().ok()?);
        }
        Some(ids)
    }
}

/// A body that was read, from which its text can be had.
#[derive(Debug)]
pub struct Reading<'a> {
    /// What it says.
    pub peek: Peek<'a>,
    gathered: Gathered<'a>,
}

impl Reading<'_> {
    /// Gives `text` the canonical rendering of everything the model will read: tools, then the system prompt, then each message
    /// with its role, whatever the dialect and the order of fields. What it is given for a later turn of a conversation begins
    /// with what it was given for an earlier one. A rendering ends early when a body has tens of thousands of parts.
    pub fn render(&self, text: &mut dyn FnMut(&str)) {
        render::render(&self.gathered, text);
    }
}

/// Why a body is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PeekError {
    /// A sentence for the client.
    pub message: Cow<'static, str>,
    /// The field at fault.
    pub param: Option<&'static str>,
}

/// Reads `body`, the body of a request to `endpoint`.
pub fn read(endpoint: Endpoint, body: &[u8]) -> Result<Reading<'_>, PeekError> {
    let body = str::from_utf8(body)
        .map_err(|error| PeekError::new(format!("the body is not UTF-8 at byte {}", error.valid_up_to())))?;
    let mut cursor = Cursor::new(body, Numbers::Strict);
    if !matches!(cursor.kind(), Ok(Kind::Object)) {
        return Err(PeekError::new("the body is not a JSON object"));
    }
    let (peek, gathered) = (Peek::default(), Gathered::default());
    let mut reader = Reader { endpoint, seen: [""; NAMES_MAX], names: 0, peek, gathered };
    let closed = cursor.object(|cursor, name| reader.member(cursor, name))?;
    cursor.end()?;
    let Reader { mut peek, gathered, .. } = reader;
    peek.members = closed.members;
    peek.object_end = closed.end;
    peek.messages_or_input_items = gathered.items;
    peek.token_ids = gathered.token_ids;
    peek.tokens = gathered.only_ids().map(|array| TokenIds { array, count: gathered.token_ids });
    peek.text_bytes = gathered.text_bytes;
    Ok(Reading { peek, gathered })
}

/// [`read`], then [`Reading::render`] to `text`, which is called only if the body is sound.
pub fn peek<'a>(endpoint: Endpoint, body: &'a [u8], text: Option<&mut dyn FnMut(&str)>) -> Result<Peek<'a>, PeekError> {
    let reading = read(endpoint, body)?;
    if let Some(sink) = text {
        reading.render(sink);
    }
    Ok(reading.peek)
}

/// No endpoint reads more fields than this.
const NAMES_MAX: usize = 24;

struct Reader<'a> {
    endpoint: Endpoint,
    /// The names of the fields read so far, the first `names` of these.
    seen: [&'static str; NAMES_MAX],
    names: usize,
    peek: Peek<'a>,
    gathered: Gathered<'a>,
}

/// A field of the body that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Model,
    Stream,
    StreamOptions,
    MaxTokens,
    MaxCompletionTokens,
    SamplingParams,
    N,
    PreviousResponseId,
    Conversation,
    User,
    CacheKey,
    Metadata,
    /// Names a part of the cache apart from others.
    Salt,
    Adapter,
    Tools,
    Functions,
    Instructions,
    Messages,
    Input,
    Prompt,
    TokenIds,
    Query,
    Documents,
    Media,
}

impl Known {
    /// The key of a field's name at an endpoint, with the name as it is told to clients.
    fn of(endpoint: Endpoint, name: &str) -> Option<(Self, &'static str)> {
        if let Some(key) = Self::of_every_endpoint(name) {
            return Some(key);
        }
        match endpoint {
            Endpoint::ChatCompletions => Self::of_openai(name).or_else(|| Self::of_chat(name)),
            Endpoint::Completions => Self::of_openai(name).or_else(|| Self::of_prompts(name)),
            Endpoint::Responses => Self::of_responses(name),
            Endpoint::Messages | Endpoint::CountTokens => Self::of_messages(name),
            Endpoint::Generate => Self::of_generate(name),
            Endpoint::Embeddings | Endpoint::Classify => Self::of_chat(name).or_else(|| Self::of_prompts(name)),
            Endpoint::Tokenize | Endpoint::Detokenize => Self::of_chat(name).or_else(|| Self::of_prompts(name)),
            Endpoint::RerankV1 | Endpoint::Rerank | Endpoint::Score => Self::of_pairs(name),
            Endpoint::Transcriptions => None,
        }
    }

    fn of_every_endpoint(name: &str) -> Option<(Self, &'static str)> {
        Some(match name {
            "model" => (Self::Model, "model"),
            "user" => (Self::User, "user"),
            "cache_salt" => (Self::Salt, "cache_salt"),
            "lora_path" => (Self::Adapter, "lora_path"),
            _ => return None,
        })
    }

    fn of_openai(name: &str) -> Option<(Self, &'static str)> {
        Some(match name {
            "stream" => (Self::Stream, "stream"),
            "stream_options" => (Self::StreamOptions, "stream_options"),
            "max_tokens" => (Self::MaxTokens, "max_tokens"),
            "max_completion_tokens" => (Self::MaxCompletionTokens, "max_completion_tokens"),
            "n" => (Self::N, "n"),
            "prompt_cache_key" => (Self::CacheKey, "prompt_cache_key"),
            _ => return None,
        })
    }

    fn of_chat(name: &str) -> Option<(Self, &'static str)> {
        Some(match name {
            "messages" => (Self::Messages, "messages"),
            "tools" => (Self::Tools, "tools"),
            "functions" => (Self::Functions, "functions"),
            _ => return None,
        })
    }

    fn of_prompts(name: &str) -> Option<(Self, &'static str)> {
        Some(match name {
            "prompt" => (Self::Prompt, "prompt"),
            "input" => (Self::Prompt, "input"),
            "text" => (Self::Prompt, "text"),
            "content" => (Self::Prompt, "content"),
            "input_ids" => (Self::TokenIds, "input_ids"),
            "tokens" => (Self::TokenIds, "tokens"),
            _ => return None,
        })
    }

    fn of_responses(name: &str) -> Option<(Self, &'static str)> {
        Some(match name {
            "stream" => (Self::Stream, "stream"),
            "max_output_tokens" => (Self::MaxTokens, "max_output_tokens"),
            "previous_response_id" => (Self::PreviousResponseId, "previous_response_id"),
            "conversation" => (Self::Conversation, "conversation"),
            "prompt_cache_key" => (Self::CacheKey, "prompt_cache_key"),
            "tools" => (Self::Tools, "tools"),
            "instructions" => (Self::Instructions, "instructions"),
            "input" => (Self::Input, "input"),
            _ => return None,
        })
    }

    fn of_messages(name: &str) -> Option<(Self, &'static str)> {
        Some(match name {
            "stream" => (Self::Stream, "stream"),
            "max_tokens" => (Self::MaxTokens, "max_tokens"),
            "metadata" => (Self::Metadata, "metadata"),
            "tools" => (Self::Tools, "tools"),
            "system" => (Self::Instructions, "system"),
            "messages" => (Self::Messages, "messages"),
            _ => return None,
        })
    }

    fn of_generate(name: &str) -> Option<(Self, &'static str)> {
        Some(match name {
            "stream" => (Self::Stream, "stream"),
            "sampling_params" => (Self::SamplingParams, "sampling_params"),
            "text" => (Self::Prompt, "text"),
            "input_ids" => (Self::TokenIds, "input_ids"),
            "image_data" => (Self::Media, "image_data"),
            _ => return None,
        })
    }

    fn of_pairs(name: &str) -> Option<(Self, &'static str)> {
        Some(match name {
            "query" => (Self::Query, "query"),
            "queries" => (Self::Query, "queries"),
            "text_1" => (Self::Query, "text_1"),
            "documents" => (Self::Documents, "documents"),
            "items" => (Self::Documents, "items"),
            "text_2" => (Self::Documents, "text_2"),
            _ => return None,
        })
    }
}

impl<'a> Reader<'a> {
    fn member(&mut self, cursor: &mut Cursor<'a>, name: Text<'a>) -> Result<(), PeekError> {
        let Some((key, param)) = Known::of(self.endpoint, &name.decode()) else {
            cursor.skip()?;
            return Ok(());
        };
        self.see(param)?;
        if cursor.kind()? == Kind::Null && key != Known::StreamOptions {
            cursor.skip()?;
            return Ok(());
        }
        match key {
            Known::Model => self.peek.model = Some(model(cursor)?),
            Known::Stream => self.peek.stream = boolean(cursor, param)?,
            Known::StreamOptions => self.stream_options(cursor)?,
            Known::MaxTokens if self.seen.contains(&"max_completion_tokens") => drop(count(cursor, param)?),
            Known::MaxTokens | Known::MaxCompletionTokens => self.peek.max_tokens = count(cursor, param)?,
            Known::SamplingParams => self.sampling_params(cursor)?,
            Known::N => self.peek.n = count(cursor, param)?,
            Known::PreviousResponseId => self.peek.previous_response_id = Some(string(cursor, param)?.decode()),
            Known::Conversation => self.peek.conversation = conversation(cursor)?,
            Known::User => self.peek.user = Some(string(cursor, param)?.decode()),
            Known::CacheKey => self.peek.prompt_cache_key = Some(string(cursor, param)?.decode()),
            Known::Metadata => self.peek.metadata_user_id = metadata_user_id(cursor)?,
            _ => self.text(key, cursor, param)?,
        }
        Ok(())
    }

    /// Refuses a field that was there before.
    fn see(&mut self, param: &'static str) -> Result<(), PeekError> {
        if self.seen[..self.names].contains(&param) {
            return Err(PeekError::at(param, format!("'{param}' is given twice")));
        }
        self.seen[self.names] = param;
        self.names += 1;
        Ok(())
    }

    /// The fields whose values the model reads.
    fn text(&mut self, key: Known, cursor: &mut Cursor<'a>, param: &'static str) -> Result<(), PeekError> {
        let gathered = &mut self.gathered;
        match key {
            Known::Salt => {
                let start = cursor.position();
                self.peek.cache_salt = cursor.string_or_skip()?.map(Text::decode);
                self.peek.cache_salt_span = Some(start..cursor.position());
            }
            Known::Adapter => self.peek.adapter = gathered.label(cursor)?,
            Known::Tools | Known::Functions => gathered.tools(cursor)?,
            Known::Instructions => gathered.instructions(cursor)?,
            Known::Messages => {
                expect(cursor, Kind::Array, param, "must be an array")?;
                gathered.messages(cursor, param)?;
            }
            Known::Input => gathered.input(cursor, param)?,
            Known::Prompt | Known::TokenIds => gathered.prompts(Section::Conversation, cursor)?,
            Known::Query => gathered.prompts(Section::System, cursor)?,
            Known::Documents => gathered.prompts(Section::Conversation, cursor)?,
            Known::Media => gathered.media(Section::System, cursor)?,
            _ => cursor.skip()?,
        }
        Ok(())
    }

    fn stream_options(&mut self, cursor: &mut Cursor<'a>) -> Result<(), PeekError> {
        let start = cursor.position();
        if cursor.kind()? == Kind::Null {
            self.peek.stream_options = Some(cursor.span()?);
            return Ok(());
        }
        expect(cursor, Kind::Object, "stream_options", "must be an object")?;
        let mut include_usage = None;
        let closed = cursor.object(|cursor, name| {
            if name.decode() != "include_usage" || cursor.kind()? == Kind::Null {
                cursor.skip()?;
                return Ok(());
            }
            let param = "stream_options.include_usage";
            if include_usage.is_some() {
                return Err(PeekError::at(param, format!("'{param}' is given twice")));
            }
            include_usage = Some(boolean(cursor, param)?);
            Ok(())
        })?;
        self.peek.include_usage = include_usage;
        self.peek.stream_options = Some(start..closed.end + 1);
        Ok(())
    }

    /// SGLang's settings; a list of them, one for each prompt, is left to the engine.
    fn sampling_params(&mut self, cursor: &mut Cursor<'a>) -> Result<(), PeekError> {
        if cursor.kind()? != Kind::Object {
            cursor.skip()?;
            return Ok(());
        }
        cursor.object(|cursor, name| {
            match &*name.decode() {
                "max_new_tokens" => self.peek.max_tokens = cursor.count_or_skip()?,
                "n" => self.peek.n = cursor.count_or_skip()?,
                _ => cursor.skip()?,
            }
            Ok::<(), Broken>(())
        })?;
        Ok(())
    }
}

fn expect(cursor: &mut Cursor<'_>, kind: Kind, param: &'static str, must: &str) -> Result<(), PeekError> {
    if cursor.kind()? == kind { Ok(()) } else { Err(PeekError::at(param, format!("'{param}' {must}"))) }
}

fn model<'a>(cursor: &mut Cursor<'a>) -> Result<Field<Cow<'a, str>>, PeekError> {
    let text = string(cursor, "model")?;
    let end = cursor.position();
    Ok(Field { span: end - text.raw().len() - 2..end, value: text.decode() })
}

fn string<'a>(cursor: &mut Cursor<'a>, param: &'static str) -> Result<Text<'a>, PeekError> {
    expect(cursor, Kind::String, param, "must be a string")?;
    Ok(cursor.string()?)
}

fn boolean(cursor: &mut Cursor<'_>, param: &'static str) -> Result<bool, PeekError> {
    expect(cursor, Kind::Bool, param, "must be true or false")?;
    let span = cursor.span()?;
    Ok(cursor.slice(span) == "true")
}

/// A count; one that is no whole number or below zero is left to the engine, for some give these a meaning.
fn count(cursor: &mut Cursor<'_>, param: &'static str) -> Result<Option<u64>, PeekError> {
    expect(cursor, Kind::Number, param, "must be an integer")?;
    Ok(cursor.count_or_skip()?)
}

/// A conversation is named by its id or by an object with that id.
fn conversation<'a>(cursor: &mut Cursor<'a>) -> Result<Option<Cow<'a, str>>, PeekError> {
    if cursor.kind()? == Kind::String {
        return Ok(Some(cursor.string()?.decode()));
    }
    expect(cursor, Kind::Object, "conversation", "must be a string or an object")?;
    string_member(cursor, "id", "conversation.id")
}

fn metadata_user_id<'a>(cursor: &mut Cursor<'a>) -> Result<Option<Cow<'a, str>>, PeekError> {
    expect(cursor, Kind::Object, "metadata", "must be an object")?;
    string_member(cursor, "user_id", "metadata.user_id")
}

fn string_member<'a>(
    cursor: &mut Cursor<'a>,
    wanted: &str,
    param: &'static str,
) -> Result<Option<Cow<'a, str>>, PeekError> {
    let mut found = None;
    cursor.object(|cursor, name| {
        if name.decode() != wanted || cursor.kind()? == Kind::Null {
            cursor.skip()?;
            return Ok(());
        }
        if found.is_some() {
            return Err(PeekError::at(param, format!("'{param}' is given twice")));
        }
        found = Some(string(cursor, param)?.decode());
        Ok(())
    })?;
    Ok(found)
}

impl PeekError {
    fn new(message: impl Into<Cow<'static, str>>) -> Self {
        Self { message: message.into(), param: None }
    }

    fn at(param: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { message: message.into(), param: Some(param) }
    }
}

impl From<Broken> for PeekError {
    fn from(broken: Broken) -> Self {
        Self::new(match broken {
            Broken::Syntax(at) => format!("the body is not valid JSON at byte {at}"),
            Broken::TooDeep(at) => {
                format!("the body is nested deeper than {} levels at byte {at}", crate::json::DEPTH_MAX)
            }
        })
    }
}

#[cfg(test)]
mod tests;
