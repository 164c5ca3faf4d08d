//! Collecting what the model will read, as pieces that borrow from the body.
//!
//! Pieces are collected in the order in which the body has them, one list for each section, and rendered at the end in the
//! order of the sections: a body may name its messages before its tools.

use std::borrow::Cow;

use crate::json::{Broken, Cursor, Kind, Text};

use super::PeekError;

/// More pieces are not kept. It bounds the memory that a body of many tiny parts costs.
const PIECES_MAX: usize = 1 << 16;

/// A part of the rendering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// The message whose parts follow has this role. Neighbours of one role become one message.
    Role(&'a str),
    /// A message of its own begins, with this role.
    Begin(&'a str),
    /// What follows belongs to the message around the one just ended.
    Back,
    /// A word of ours that says what follows.
    Mark(&'static str),
    /// A string.
    Text(Text<'a>),
    /// JSON in a string.
    Quoted(Text<'a>),
    /// JSON, as it stands.
    Json(&'a str),
    /// The hash of something too large or not to be read.
    Digest(u64),
    /// An array of token ids, as it stands.
    TokenIds(&'a str),
}

/// Where a piece belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    /// What keeps caches apart.
    Salt,
    Tools,
    System,
    Conversation,
}

/// All that was collected.
#[derive(Debug, Default)]
pub(super) struct Gathered<'a> {
    sections: [Vec<Piece<'a>>; 4],
    /// Messages, input items, prompts, documents.
    pub(super) items: usize,
    /// Bytes of text, decoded.
    pub(super) text_bytes: usize,
    pub(super) token_ids: usize,
    /// The array of ids met last.
    last_ids: Option<&'a str>,
    /// Whether there is something beside text and ids.
    has_media: bool,
}

impl<'a> Gathered<'a> {
    /// The pieces in the order of the sections.
    pub(super) fn sections(&self) -> impl Iterator<Item = &[Piece<'a>]> {
        self.sections.iter().map(Vec::as_slice)
    }

    /// The array of token ids, if nothing else was gathered for the model to read.
    pub(super) fn only_ids(&self) -> Option<&'a str> {
        self.last_ids.filter(|_| self.items == 1 && !self.has_media)
    }

    /// A string that is not text but tells apart.
    pub(super) fn label(&mut self, cursor: &mut Cursor<'a>) -> Result<Option<Cow<'a, str>>, Broken> {
        let Some(text) = cursor.string_or_skip()? else { return Ok(None) };
        self.push(Section::Salt, Piece::Begin("salt"));
        self.push(Section::Salt, Piece::Text(text));
        Ok(Some(text.decode()))
    }

    /// Definitions of tools, in all three dialects.
    pub(super) fn tools(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Broken> {
        if cursor.kind()? != Kind::Array {
            return cursor.skip();
        }
        cursor.array(|cursor| self.tool(cursor))?;
        Ok(())
    }

    /// The system prompt where it stands outside the messages: a string or parts.
    pub(super) fn instructions(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Broken> {
        self.push(Section::System, Piece::Role("system"));
        self.content(Section::System, cursor)
    }

    /// Chat's and Anthropic's messages.
    pub(super) fn messages(&mut self, cursor: &mut Cursor<'a>, param: &'static str) -> Result<(), PeekError> {
        let closed = cursor.array(|cursor| {
            if cursor.kind()? != Kind::Object {
                return Err(PeekError::at(param, format!("each element of '{param}' must be an object")));
            }
            Ok(self.item(cursor)?)
        })?;
        self.items += closed.members;
        Ok(())
    }

    /// The input of the Responses API: a string or items.
    pub(super) fn input(&mut self, cursor: &mut Cursor<'a>, param: &'static str) -> Result<(), PeekError> {
        match cursor.kind()? {
            Kind::String => {
                self.items += 1;
                self.push(Section::Conversation, Piece::Role("user"));
                Ok(self.content(Section::Conversation, cursor)?)
            }
            Kind::Array => self.messages(cursor, param),
            _ => Err(PeekError::at(param, format!("'{param}' must be a string or an array"))),
        }
    }

    /// Text, token ids, or many of either; also documents as objects with a text.
    pub(super) fn prompts(&mut self, section: Section, cursor: &mut Cursor<'a>) -> Result<(), Broken> {
        if cursor.kind()? != Kind::Array {
            return self.prompt(section, cursor);
        }
        let start = cursor.position();
        if let Some(count) = cursor.whole_numbers() {
            self.ids(section, cursor.slice(start..cursor.position()), count);
            return Ok(());
        }
        cursor.array(|cursor| self.prompt(section, cursor)).map(|_| ())
    }

    /// Media given apart from the text.
    pub(super) fn media(&mut self, section: Section, cursor: &mut Cursor<'a>) -> Result<(), Broken> {
        let span = cursor.span()?;
        self.has_media = true;
        self.push(section, Piece::Begin("media"));
        self.push(section, Piece::Digest(digest(cursor.slice(span))));
        Ok(())
    }

    fn prompt(&mut self, section: Section, cursor: &mut Cursor<'a>) -> Result<(), Broken> {
        if cursor.kind()? == Kind::Array {
            let start = cursor.position();
            let count = cursor.whole_numbers();
            if count.is_none() {
                cursor.skip()?;
            }
            let ids = cursor.slice(start..cursor.position());
            self.ids(section, ids, count.unwrap_or(0));
            self.last_ids = count.map(|_| ids);
            return Ok(());
        }
        self.items += 1;
        self.push(section, Piece::Begin("prompt"));
        match cursor.kind()? {
            Kind::String => self.content(section, cursor),
            Kind::Object => self.part(section, cursor),
            _ => cursor.skip(),
        }
    }

    fn ids(&mut self, section: Section, ids: &'a str, count: usize) {
        self.items += 1;
        self.token_ids += count;
        self.last_ids = Some(ids);
        self.push(section, Piece::Begin("prompt"));
        self.push(section, Piece::TokenIds(ids));
    }

    fn tool(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Broken> {
        if cursor.kind()? != Kind::Object {
            return cursor.skip();
        }
        let mut tool = Tool::default();
        let start = cursor.position();
        let closed = cursor.object(|cursor, name| tool.member(cursor, name))?;
        self.push(Section::Tools, Piece::Role("tools"));
        self.push(Section::Tools, Piece::Mark("tool"));
        let Some(name) = tool.name else {
            // A hosted tool.
            self.push(Section::Tools, Piece::Json(cursor.slice(start..closed.end + 1)));
            return Ok(());
        };
        self.push(Section::Tools, Piece::Text(name));
        self.extend(Section::Tools, tool.description.map(Piece::Text));
        self.extend(Section::Tools, tool.schema.map(Piece::Json));
        Ok(())
    }

    /// A message of chat or of Anthropic, or an item of Responses.
    fn item(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Broken> {
        let section = Section::Conversation;
        let start = self.sections[section as usize].len();
        let (mut role, mut kind, mut name, mut id) = (None, None, None, None);
        cursor.object(|cursor, member| {
            match member.raw() {
                "role" => role = cursor.string_or_skip()?,
                "type" => kind = cursor.string_or_skip()?,
                "name" => name = cursor.string_or_skip()?,
                "id" => id = cursor.string_or_skip()?,
                "content" | "output" | "summary" | "reasoning_content" | "reasoning" | "refusal" => {
                    self.content(section, cursor)?;
                }
                "arguments" | "input" => self.arguments(section, cursor)?,
                "tool_calls" if cursor.kind()? == Kind::Array => {
                    cursor.array(|cursor| self.call(section, cursor))?;
                }
                "function_call" => self.call(section, cursor)?,
                _ => cursor.skip()?,
            }
            Ok::<(), Broken>(())
        })?;
        let kind = kind.map_or("message", Text::raw);
        if kind == "item_reference" {
            self.extend(section, id.map(Piece::Text));
        }
        if self.sections[section as usize].len() == start {
            return Ok(());
        }
        let (call, result) = (kind.ends_with("_call"), kind.ends_with("_output"));
        let heading = match role.map_or("", Text::raw) {
            "" if call || kind == "reasoning" => Piece::Role("assistant"),
            "" if result => Piece::Begin("tool"),
            "" => Piece::Role("user"),
            "developer" => Piece::Role("system"),
            "tool" | "function" => Piece::Begin("tool"),
            role => Piece::Role(role),
        };
        let called = name.filter(|_| call).map(Piece::Text);
        let opening = [Some(heading), call.then_some(Piece::Mark("call")), called];
        self.insert(section, start, opening.into_iter().flatten());
        self.text_bytes += called.map_or(0, |_| name.map_or(0, Text::decoded_len));
        Ok(())
    }

    /// A string, or parts.
    fn content(&mut self, section: Section, cursor: &mut Cursor<'a>) -> Result<(), Broken> {
        match cursor.kind()? {
            Kind::String => {
                let text = cursor.string()?;
                self.extend(section, (!text.is_empty()).then_some(Piece::Text(text)));
            }
            Kind::Array => {
                cursor.array(|cursor| self.content(section, cursor))?;
            }
            Kind::Object => self.part(section, cursor)?,
            _ => cursor.skip()?,
        }
        Ok(())
    }

    /// A part of a message, or one of its tool calls or results in Anthropic's dialect.
    fn part(&mut self, section: Section, cursor: &mut Cursor<'a>) -> Result<(), Broken> {
        let start = self.sections[section as usize].len();
        let (mut kind, mut name) = (None, None);
        cursor.object(|cursor, member| {
            match member.raw() {
                "type" => kind = cursor.string_or_skip()?,
                "name" => name = cursor.string_or_skip()?,
                "text" | "thinking" | "refusal" | "content" => self.content(section, cursor)?,
                "input" => self.arguments(section, cursor)?,
                "image_url" | "video_url" | "audio_url" | "input_audio" | "source" | "file" | "file_data"
                | "file_url" | "file_id" | "image" | "video" | "audio" => self.medium(section, cursor)?,
                _ => cursor.skip()?,
            }
            Ok::<(), Broken>(())
        })?;
        let kind = kind.map_or("", Text::raw);
        if kind.ends_with("tool_use") {
            let name_len = name.map_or(0, Text::decoded_len);
            let opening = [Some(Piece::Mark("call")), name.map(Piece::Text)];
            self.insert(section, start, opening.into_iter().flatten());
            self.text_bytes += name_len;
        } else if kind.ends_with("tool_result") && self.sections[section as usize].len() > start {
            self.insert(section, start, [Piece::Begin("tool")]);
            self.push(section, Piece::Back);
        }
        Ok(())
    }

    /// A tool call in chat's dialect.
    fn call(&mut self, section: Section, cursor: &mut Cursor<'a>) -> Result<(), Broken> {
        if cursor.kind()? != Kind::Object {
            return cursor.skip();
        }
        let start = self.sections[section as usize].len();
        let mut called = None;
        cursor.object(|cursor, member| {
            match member.raw() {
                "function" | "custom" if cursor.kind()? == Kind::Object => {
                    cursor.object(|cursor, member| self.call_member(section, cursor, member, &mut called))?;
                }
                _ => self.call_member(section, cursor, member, &mut called)?,
            }
            Ok::<(), Broken>(())
        })?;
        self.text_bytes += called.map_or(0, Text::decoded_len);
        self.insert(section, start, [Some(Piece::Mark("call")), called.map(Piece::Text)].into_iter().flatten());
        Ok(())
    }

    fn call_member(
        &mut self,
        section: Section,
        cursor: &mut Cursor<'a>,
        member: Text<'a>,
        called: &mut Option<Text<'a>>,
    ) -> Result<(), Broken> {
        match member.raw() {
            "name" => *called = cursor.string_or_skip()?,
            "arguments" | "input" => self.arguments(section, cursor)?,
            _ => cursor.skip()?,
        }
        Ok(())
    }

    /// What a tool is called with: JSON in a string, or JSON.
    fn arguments(&mut self, section: Section, cursor: &mut Cursor<'a>) -> Result<(), Broken> {
        let piece = match cursor.kind()? {
            Kind::String => Piece::Quoted(cursor.string()?),
            _ => {
                let span = cursor.span()?;
                Piece::Json(cursor.slice(span))
            }
        };
        self.push(section, piece);
        Ok(())
    }

    /// An image, a sound, a document: by a digest of its data or address. A document may be text.
    fn medium(&mut self, section: Section, cursor: &mut Cursor<'a>) -> Result<(), Broken> {
        match cursor.kind()? {
            Kind::String => {
                let text = cursor.string()?;
                self.push(section, Piece::Digest(medium_digest(text)));
            }
            Kind::Object => {
                let (mut kind, mut data) = (None, None);
                let start = cursor.position();
                let closed = cursor.object(|cursor, member| {
                    match member.raw() {
                        "type" => kind = cursor.string_or_skip()?,
                        "data" | "url" | "file_data" | "file_id" => data = cursor.string_or_skip()?,
                        _ => cursor.skip()?,
                    }
                    Ok::<(), Broken>(())
                })?;
                let piece = match data {
                    Some(data) if kind.is_some_and(|kind| kind.raw() == "text") => Piece::Text(data),
                    Some(data) => Piece::Digest(medium_digest(data)),
                    None => Piece::Digest(digest(cursor.slice(start..closed.end + 1))),
                };
                self.push(section, piece);
            }
            _ => cursor.skip()?,
        }
        Ok(())
    }

    fn push(&mut self, section: Section, piece: Piece<'a>) {
        self.text_bytes += match piece {
            Piece::Text(text) | Piece::Quoted(text) => text.decoded_len(),
            Piece::Json(json) => json.len(),
            _ => 0,
        };
        let pieces = &mut self.sections[section as usize];
        if pieces.len() < PIECES_MAX {
            pieces.push(piece);
        }
    }

    fn extend(&mut self, section: Section, piece: Option<Piece<'a>>) {
        if let Some(piece) = piece {
            self.push(section, piece);
        }
    }

    /// Puts pieces before those that were pushed since there were `start`, once it is known what they belong to.
    fn insert(&mut self, section: Section, start: usize, pieces: impl IntoIterator<Item = Piece<'a>>) {
        let list = &mut self.sections[section as usize];
        if list.len() < PIECES_MAX {
            list.splice(start..start, pieces);
        }
    }
}

/// The definition of a tool.
#[derive(Default)]
struct Tool<'a> {
    name: Option<Text<'a>>,
    description: Option<Text<'a>>,
    schema: Option<&'a str>,
}

impl<'a> Tool<'a> {
    fn member(&mut self, cursor: &mut Cursor<'a>, member: Text<'a>) -> Result<(), Broken> {
        match member.raw() {
            "name" => self.name = cursor.string_or_skip()?,
            "description" => self.description = cursor.string_or_skip()?,
            "parameters" | "input_schema" => {
                let span = cursor.span()?;
                self.schema = Some(cursor.slice(span));
            }
            // Chat puts these one level deeper.
            "function" if cursor.kind()? == Kind::Object => {
                cursor.object(|cursor, member| self.member(cursor, member))?;
            }
            _ => cursor.skip()?,
        }
        Ok(())
    }
}

/// The digest of an address, or of the data in a `data:` URL, so that both ways to give the same data give the same digest.
fn medium_digest(text: Text<'_>) -> u64 {
    let decoded = text.decode();
    let data = match decoded.strip_prefix("data:") {
        Some(url) => url.split_once(";base64,").map_or(url, |(_, data)| data),
        None => &decoded,
    };
    digest(data)
}

fn digest(text: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(text.as_bytes())
}
