//! Following a stream of server-sent events whose bytes pass on unchanged.
//!
//! The scanner says how many bytes end whole events, so that a relay never forwards half of one, and reads on the way what
//! the gateway must know: whether something was generated, usage, ids, and whether the stream came to its end. Every event
//! is checked to be one, its data to be JSON: what is garbage is stopped here, before a client's parser meets it.
//!
//! An event that arrives whole is read in place, without a copy or an allocation; the rest of a chunk is held until it
//! is whole, up to a bound. Framing follows the WHATWG HTML standard, §9.2, with two exceptions: a lone carriage return does
//! not end a line (no engine writes one, and parsers disagree about it), and unknown fields are not ignored.

mod event;
mod frame;
mod template;

use std::ops::Range;

use crate::{Endpoint, Usage, json::Text, usage::Tally};

use event::Facts;
use frame::Frame;
use template::Template;

/// How many bytes of an unfinished event are held; more is garbage.
pub const EVENT_BYTES_MAX: usize = 1 << 20;

/// The same where one event may repeat the whole answer: Responses ends with all of it, and an engine's native stream is
/// cumulative.
pub const LONG_EVENT_BYTES_MAX: usize = 16 << 20;

/// A buffer larger than this is given back once its event is through.
const IDLE_BYTES_MAX: usize = 16 << 10;

/// Ids and reasons longer than this are not kept.
const WORD_BYTES_MAX: usize = 256;

/// Follows one stream.
#[derive(Debug)]
pub struct Scanner {
    held: Vec<u8>,
    held_max: usize,
    /// Enough of what is held was seen to know that it begins like an event.
    vetted: bool,
    events: u64,
    terminal: Option<Terminal>,
    tally: Tally,
    response_id: Option<String>,
    finish_reason: Option<String>,
    choices: Choices,
    template: Template,
    poison: Option<Garbage>,
}

/// How a stream said that it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terminal {
    /// The answer is complete.
    Done,
    /// The engine reported an error.
    Failed,
}

/// What a chunk brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scanned {
    /// How many bytes of what was held and the chunk together end whole events. The rest is held for the next chunk.
    pub complete: usize,
    /// How many events with data these are.
    pub events: u32,
    /// Whether one of them carried something generated.
    pub content: bool,
    /// Where, in what was held and the chunk together, the event is that carries only usage (OpenAI's last chunk before the
    /// end, with no choices). A relay that asked for usage on its own account takes it out.
    pub usage_only: Option<Range<usize>>,
    /// What comes after `complete` is garbage; another chunk will not help.
    pub garbage: Option<Garbage>,
}

/// Why bytes are no stream of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Garbage {
    /// A line begins with no field of the format.
    #[error("a line does not begin with a known field")]
    UnknownField,
    /// A carriage return that no line feed follows.
    #[error("a lone carriage return")]
    LoneCarriageReturn,
    /// Not UTF-8.
    #[error("an event is not UTF-8")]
    NotUtf8,
    /// The data of an event is not JSON.
    #[error("the data of an event is not JSON")]
    NotJson,
    /// The event does not end.
    #[error("an event is too long")]
    TooLong,
    /// The stream ended in the middle of an event.
    #[error("the last event is cut")]
    Cut,
}

impl Scanner {
    /// A scanner for a stream of `endpoint`.
    pub fn new(endpoint: Endpoint) -> Self {
        let held_max = match endpoint {
            Endpoint::Responses | Endpoint::Generate => LONG_EVENT_BYTES_MAX,
            _ => EVENT_BYTES_MAX,
        };
        Self {
            held: Vec::new(),
            held_max,
            vetted: false,
            events: 0,
            terminal: None,
            tally: Tally::default(),
            response_id: None,
            finish_reason: None,
            choices: Choices::default(),
            template: Template::default(),
            poison: None,
        }
    }

    /// Takes the next bytes of the stream. Whole events in front of garbage are still reported, with
    /// [`Scanned::garbage`] set; if there are none, and from then on, the garbage is an error.
    pub fn push(&mut self, chunk: &[u8]) -> Result<Scanned, Garbage> {
        if let Some(garbage) = self.poison {
            return Err(garbage);
        }
        let mut scanned = Scanned::default();
        let outcome = if self.held.is_empty() {
            let outcome = self.scan(chunk, &mut scanned);
            self.held.extend_from_slice(&chunk[scanned.complete..]);
            outcome
        } else {
            self.push_to_held(chunk, &mut scanned)
        };
        match outcome.and_then(|()| self.check_held(&scanned)) {
            Ok(()) => Ok(scanned),
            Err(garbage) => {
                self.poison = Some(garbage);
                self.held = Vec::new();
                scanned.garbage = Some(garbage);
                if scanned.complete > 0 { Ok(scanned) } else { Err(garbage) }
            }
        }
    }

    /// The stream's bytes are over. An event without its blank line is taken if it is whole otherwise; then `complete` covers
    /// what was held.
    pub fn finish(&mut self) -> Result<Scanned, Garbage> {
        if let Some(garbage) = self.poison {
            return Err(garbage);
        }
        let mut last = std::mem::take(&mut self.held);
        let held = last.len();
        if held == 0 {
            return Ok(Scanned::default());
        }
        last.extend_from_slice(b"\n\n");
        let mut scanned = Scanned::default();
        let outcome = self.scan(&last, &mut scanned);
        if outcome.is_err() || scanned.complete < held {
            self.poison = Some(Garbage::Cut);
            return Err(Garbage::Cut);
        }
        scanned.complete = held;
        scanned.usage_only = scanned.usage_only.map(|span| span.start..span.end.min(held));
        Ok(scanned)
    }

    /// How the stream said that it is over, if it did.
    pub fn terminal(&self) -> Option<Terminal> {
        self.terminal
    }

    /// Whether the stream may end here without anything missing: it said that it is over, or every choice gave its reason
    /// for finishing and no event is cut (some engines leave out the mark of the end).
    pub fn is_finished(&self) -> bool {
        self.terminal.is_some() || (self.choices.all_finished() && self.is_at_boundary())
    }

    /// The usage reported so far.
    pub fn usage(&self) -> Option<Usage> {
        self.tally.usage()
    }

    /// The id of the answer.
    pub fn response_id(&self) -> Option<&str> {
        self.response_id.as_deref()
    }

    /// Why generation ended, in the engine's word.
    pub fn finish_reason(&self) -> Option<&str> {
        self.finish_reason.as_deref()
    }

    /// How many events with data came.
    pub fn events_total(&self) -> u64 {
        self.events
    }

    /// Whether the bytes so far end with a whole event.
    pub fn is_at_boundary(&self) -> bool {
        self.held.is_empty() && self.poison.is_none()
    }

    fn push_to_held(&mut self, chunk: &[u8], scanned: &mut Scanned) -> Result<(), Garbage> {
        let mut joined = std::mem::take(&mut self.held);
        joined.extend_from_slice(chunk);
        // Without the end of a line nothing can have become whole; and a long line is not searched again and again.
        if memchr::memchr2(b'\n', b'\r', chunk).is_none() {
            self.held = joined;
            return Ok(());
        }
        let outcome = self.scan(&joined, scanned);
        joined.drain(..scanned.complete);
        if joined.is_empty() && joined.capacity() > IDLE_BYTES_MAX {
            joined = Vec::new();
        }
        self.held = joined;
        outcome
    }

    /// A partial event must be able to become one.
    fn check_held(&mut self, scanned: &Scanned) -> Result<(), Garbage> {
        if self.held.is_empty() {
            self.vetted = false;
            return Ok(());
        }
        self.vetted &= scanned.complete == 0;
        if self.held.len() > self.held_max {
            return Err(Garbage::TooLong);
        }
        if !self.vetted {
            frame::check_opening(&self.held)?;
            self.vetted = self.held.len() > frame::OPENING_BYTES;
        }
        Ok(())
    }

    /// Reads the whole events at the start of `bytes`, adding to `scanned`.
    fn scan(&mut self, bytes: &[u8], scanned: &mut Scanned) -> Result<(), Garbage> {
        while scanned.complete < bytes.len() {
            let rest = &bytes[scanned.complete..];
            if let Some(fit) = self.template.fit(rest) {
                scanned.content |= fit.content;
                self.count(fit.len, scanned);
                continue;
            }
            let Some(frame) = Frame::next(rest)? else {
                return Ok(());
            };
            // All of it: a client decodes names and comments too.
            let text = str::from_utf8(&rest[..frame.len]).map_err(|_| Garbage::NotUtf8)?;
            match frame.data(text) {
                Some(data) => {
                    self.take(&frame, text, &data, scanned)?;
                    self.count(frame.len, scanned);
                }
                None => scanned.complete += frame.len,
            }
        }
        Ok(())
    }

    fn count(&mut self, len: usize, scanned: &mut Scanned) {
        scanned.complete += len;
        scanned.events += 1;
        self.events += 1;
    }

    /// Reads an event that has data; `text` is the whole of it.
    fn take(&mut self, frame: &Frame, text: &str, data: &str, scanned: &mut Scanned) -> Result<(), Garbage> {
        if data.starts_with("[DONE]") {
            self.settle(Terminal::Done);
            return Ok(());
        }
        let mut facts = Facts::default();
        facts.read(data, frame.name(text)).map_err(|_| Garbage::NotJson)?;
        scanned.content |= facts.content;
        if facts.is_usage_only() && scanned.usage_only.is_none() {
            scanned.usage_only = Some(scanned.complete..scanned.complete + frame.len);
        }
        self.learn(&facts);
        if let Some(data_start) = frame.single_data_start().filter(|_| facts.is_plain()) {
            self.template.learn(text.as_bytes(), data_start, &facts);
        }
        Ok(())
    }

    fn learn(&mut self, facts: &Facts<'_>) {
        if let Some(tally) = &facts.tally {
            self.tally.merge(tally);
        }
        self.choices.note(facts);
        let is_word = |text: &Text<'_>| (1..=WORD_BYTES_MAX).contains(&text.raw().len());
        if let Some(id) = facts.id.filter(|id| self.response_id.is_none() && is_word(id)) {
            self.response_id = Some(id.decode().into_owned());
        }
        if let Some(reason) = facts.finish_reason.filter(is_word) {
            self.finish_reason = Some(reason.decode().into_owned());
        }
        if let Some(terminal) = facts.terminal {
            self.settle(terminal);
        }
    }

    /// A failure stays one, also where the engine writes the mark of the end after it.
    fn settle(&mut self, terminal: Terminal) {
        if self.terminal != Some(Terminal::Failed) {
            self.terminal = Some(terminal);
        }
    }
}

/// Which of the answer's choices were seen, and which have finished, as bits.
#[derive(Clone, Copy, Debug, Default)]
struct Choices {
    seen: u64,
    finished: u64,
}

impl Choices {
    fn note(&mut self, facts: &Facts<'_>) {
        self.seen |= facts.choices_seen;
        self.finished |= facts.choices_finished;
    }

    fn all_finished(self) -> bool {
        self.seen != 0 && self.seen == self.finished
    }
}

#[cfg(test)]
mod tests;
