//! What one event says.
//!
//! One reader serves all dialects, because their names do not clash: `choices` is OpenAI's, `delta` and `message` with a
//! `type` are Anthropic's, `response` is the Responses API's, `meta_info` is SGLang's.

use crate::{
    json::{Broken, Cursor, Kind, Numbers, Text},
    usage::Tally,
};

use super::{
    Terminal,
    template::{Fill, Holes},
};

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Facts<'a> {
    /// The answer's id.
    pub(super) id: Option<Text<'a>>,
    /// Counts, where the event has any.
    pub(super) tally: Option<Tally>,
    /// Why generation ended.
    pub(super) finish_reason: Option<Text<'a>>,
    /// Whether it carries something generated.
    pub(super) content: bool,
    /// Whether it ends the stream.
    pub(super) terminal: Option<Terminal>,
    /// One bit for each choice it speaks of.
    pub(super) choices_seen: u64,
    /// One bit for each choice that is finished now.
    pub(super) choices_finished: u64,
    /// The values that mean nothing, or only that something was generated.
    pub(super) holes: Holes,
    /// Whether it carries something generated apart from what is in the holes.
    pub(super) content_elsewhere: bool,
    choices_empty: bool,
    kind: Option<Text<'a>>,
    index: Option<u64>,
    /// `delta.stop_reason`, or the status of a response.
    outcome: Option<Text<'a>>,
    failed: bool,
}

impl<'a> Facts<'a> {
    /// Reads the data of an event; `name` is its `event` field.
    pub(super) fn read(&mut self, data: &'a str, name: Option<&str>) -> Result<(), Broken> {
        let mut cursor = Cursor::new(data, Numbers::Python);
        match cursor.kind()? {
            Kind::Object => self.members(&mut cursor)?,
            Kind::Array => cursor.skip()?,
            _ => return Err(Broken::Syntax(cursor.position())),
        }
        cursor.end()?;
        self.conclude(name);
        Ok(())
    }

    /// Whether nothing is to be learned from it, nor from another one that differs in its holes only.
    pub(super) fn is_plain(&self) -> bool {
        self.tally.is_none() && self.finish_reason.is_none() && self.terminal.is_none()
    }

    /// Whether it is the chunk that OpenAI's `include_usage` adds.
    pub(super) fn is_usage_only(&self) -> bool {
        self.choices_empty && self.tally.is_some_and(|tally| tally.usage().is_some()) && !self.failed
    }

    fn members(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Broken> {
        cursor.object(|cursor, name| self.member(cursor, name)).map(|_| ())
    }

    fn member(&mut self, cursor: &mut Cursor<'a>, name: Text<'a>) -> Result<(), Broken> {
        match name.raw() {
            "id" => self.id = cursor.string_or_skip()?,
            "type" => self.kind = cursor.string_or_skip()?,
            "choices" => self.choices(cursor)?,
            "usage" => self.usage(cursor)?,
            "delta" => self.delta(cursor)?,
            "message" | "response" => self.answer(cursor)?,
            "error" => {
                self.failed |= cursor.kind()? != Kind::Null;
                cursor.skip()?;
            }
            "object" => self.failed |= cursor.string_or_skip()?.is_some_and(|object| object.raw() == "error"),
            "index" => self.index = cursor.count_or_skip()?,
            "text" | "output_ids" => self.content_elsewhere |= holds_something(cursor)?,
            "sequence_number" | "created" => self.number(cursor)?,
            "obfuscation" => self.words(cursor, Fill::String)?,
            "meta_info" => self.meta_info(cursor)?,
            _ => cursor.skip()?,
        }
        Ok(())
    }

    /// OpenAI's chat and completion chunks.
    fn choices(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Broken> {
        if cursor.kind()? != Kind::Array {
            return cursor.skip();
        }
        let closed = cursor.array(|cursor| self.choice(cursor))?;
        self.choices_empty = closed.members == 0;
        Ok(())
    }

    fn choice(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Broken> {
        if cursor.kind()? != Kind::Object {
            return cursor.skip();
        }
        let (mut index, mut finish_reason) = (None, None);
        cursor.object(|cursor, name| {
            match name.raw() {
                "index" => index = cursor.count_or_skip()?,
                "delta" if cursor.kind()? == Kind::Object => {
                    cursor.object(|cursor, name| self.generated(cursor, name))?;
                }
                "text" => self.words(cursor, Fill::Generated)?,
                "finish_reason" => finish_reason = cursor.string_or_skip()?,
                _ => cursor.skip()?,
            }
            Ok::<(), Broken>(())
        })?;
        self.choice_finished(index, finish_reason);
        Ok(())
    }

    /// A member of a chat choice's `delta`.
    fn generated(&mut self, cursor: &mut Cursor<'a>, name: Text<'a>) -> Result<(), Broken> {
        match name.raw() {
            "content" | "reasoning_content" | "reasoning" | "refusal" => self.words(cursor, Fill::Generated),
            "tool_calls" | "function_call" | "audio" => {
                self.content_elsewhere |= holds_something(cursor)?;
                Ok(())
            }
            _ => cursor.skip(),
        }
    }

    fn choice_finished(&mut self, index: Option<u64>, finish_reason: Option<Text<'a>>) {
        let bit = 1 << index.unwrap_or(0).min(63);
        self.choices_seen |= bit;
        if finish_reason.is_some() {
            self.choices_finished |= bit;
            self.finish_reason = finish_reason;
        }
    }

    fn usage(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Broken> {
        if cursor.kind()? == Kind::Null {
            return cursor.skip();
        }
        self.tally.get_or_insert_default().read(cursor)
    }

    /// Anthropic's `content_block_delta` and `message_delta`; in Responses a string. That either carries something
    /// generated follows from the event's type.
    fn delta(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Broken> {
        if cursor.kind()? != Kind::Object {
            return self.words(cursor, Fill::String);
        }
        cursor.object(|cursor, name| {
            match name.raw() {
                "stop_reason" => self.outcome = cursor.string_or_skip()?,
                "text" | "thinking" | "partial_json" => self.words(cursor, Fill::String)?,
                _ => cursor.skip()?,
            }
            Ok::<(), Broken>(())
        })?;
        Ok(())
    }

    /// A string that makes a hole; any other value is skipped.
    fn words(&mut self, cursor: &mut Cursor<'a>, fill: Fill) -> Result<(), Broken> {
        if let Some(text) = cursor.string_or_skip()? {
            let end = cursor.position() - 1;
            self.holes.add(end - text.raw().len()..end, fill);
            self.content |= fill == Fill::Generated && !text.is_empty();
        }
        Ok(())
    }

    /// A whole number that makes a hole; any other value is skipped.
    fn number(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Broken> {
        let span = cursor.span()?;
        if cursor.slice(span.clone()).bytes().all(|byte| byte.is_ascii_digit()) {
            self.holes.add(span, Fill::Digits);
        }
        Ok(())
    }

    /// The message that Anthropic's `message_start` opens with, or the response in the events of the Responses API.
    fn answer(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Broken> {
        if cursor.kind()? != Kind::Object {
            return cursor.skip();
        }
        cursor.object(|cursor, name| {
            match name.raw() {
                "id" => self.id = cursor.string_or_skip()?,
                "usage" => self.usage(cursor)?,
                "status" => self.outcome = cursor.string_or_skip()?,
                _ => cursor.skip()?,
            }
            Ok::<(), Broken>(())
        })?;
        Ok(())
    }

    /// SGLang's account of a generation.
    fn meta_info(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Broken> {
        let mut tally = Tally::default();
        let (mut id, mut finish_reason) = (None, None);
        tally.read_with(cursor, |cursor, name| {
            match name {
                "id" => id = cursor.string_or_skip()?,
                "finish_reason" => finish_reason = reason(cursor)?,
                _ => cursor.skip()?,
            }
            Ok(())
        })?;
        self.id = id;
        self.tally = Some(tally);
        self.outcome = finish_reason;
        Ok(())
    }

    /// Draws conclusions that need more than one member.
    fn conclude(&mut self, name: Option<&str>) {
        let kind = self.kind.map(Text::raw).or(name);
        match kind {
            Some("message_stop" | "response.completed" | "response.incomplete" | "transcript.text.done") => {
                self.terminal = Some(Terminal::Done);
                self.finish_reason = self.outcome;
            }
            Some("response.failed" | "response.cancelled" | "error") => self.failed = true,
            Some("message_delta") => self.finish_reason = self.outcome,
            Some("content_block_delta") => self.content_elsewhere = true,
            Some(kind) => self.content_elsewhere |= kind.ends_with(".delta"),
            // Only SGLang's stream has neither types nor choices.
            None if self.choices_seen == 0 && self.outcome.is_some() => self.choice_finished(self.index, self.outcome),
            None if self.choices_seen == 0 && self.content_elsewhere => self.choice_finished(self.index, None),
            None => {}
        }
        self.content |= self.content_elsewhere;
        if self.failed || name == Some("error") {
            self.terminal = Some(Terminal::Failed);
        }
    }
}

/// SGLang's `finish_reason` is an object with a `type`, or null.
fn reason<'a>(cursor: &mut Cursor<'a>) -> Result<Option<Text<'a>>, Broken> {
    if cursor.kind()? != Kind::Object {
        return cursor.string_or_skip();
    }
    let mut reason = None;
    cursor.object(|cursor, name| {
        match name.raw() {
            "type" => reason = cursor.string_or_skip()?,
            _ => cursor.skip()?,
        }
        Ok::<(), Broken>(())
    })?;
    Ok(reason)
}

/// Whether a value is neither null nor empty.
#[inline]
fn holds_something(cursor: &mut Cursor<'_>) -> Result<bool, Broken> {
    if cursor.kind()? == Kind::String {
        return Ok(!cursor.string()?.is_empty());
    }
    let span = cursor.span()?;
    Ok(!matches!(cursor.slice(span), "null" | "[]" | "{}" | "false"))
}
