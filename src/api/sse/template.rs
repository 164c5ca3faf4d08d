//! The fast path of a stream: most events differ from the one before only in a word of text and a number.
//!
//! After an event was read in full, its bytes are kept with the places of the values that may change without changing what
//! the event means. An event that has the same bytes around sound values at these places is JSON because that one was, and
//! says the same, but for the text generated. So comparing replaces parsing; anything else goes the long way.

use std::ops::Range;

use crate::json;

use super::event::Facts;

/// Longer events are not kept.
const BYTES_MAX: usize = 2 << 10;

const HOLES_MAX: usize = 4;

/// A value that may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hole {
    /// Where it is: a string's text without its quotes, or digits.
    pub(super) span: Range<usize>,
    /// What may stand there.
    pub(super) fill: Fill,
}

/// What may stand in a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// Generated text.
    Generated,
    /// A string that means nothing to the gateway.
    String,
    /// A whole number that means nothing to the gateway.
    Digits,
}

/// The holes of an event, in their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Holes {
    list: [Option<Hole>; HOLES_MAX],
    len: usize,
}

/// An event like which the next ones may be.
#[derive(Debug, Default)]
pub(super) struct Template {
    /// Empty if there is none.
    bytes: Vec<u8>,
    holes: Holes,
    /// Whether the event carries something generated whatever is in its holes.
    content: bool,
}

/// An event that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fit {
    /// Its length.
    pub(super) len: usize,
    /// Whether it carries something generated.
    pub(super) content: bool,
}

impl Holes {
    /// Adds a hole, which must lie behind the others. With one hole too many an event is no template.
    pub(super) fn add(&mut self, span: Range<usize>, fill: Fill) {
        if let Some(free) = self.list.get_mut(self.len) {
            *free = Some(Hole { span, fill });
        }
        self.len += 1;
    }
}

impl Template {
    /// Keeps an event and what was read in it. Its data, which the places of the holes are relative to, begin at `data_start`.
    pub(super) fn learn(&mut self, event: &[u8], data_start: usize, facts: &Facts<'_>) {
        self.bytes.clear();
        if event.len() > BYTES_MAX || facts.holes.len > HOLES_MAX {
            return;
        }
        self.bytes.extend_from_slice(event);
        self.holes = facts.holes.clone();
        for hole in self.holes.list.iter_mut().flatten() {
            hole.span = hole.span.start + data_start..hole.span.end + data_start;
        }
        self.content = facts.content_elsewhere;
    }

    /// Whether `bytes` begin with an event like the one kept.
    #[inline]
    pub(super) fn fit(&self, bytes: &[u8]) -> Option<Fit> {
        if self.bytes.is_empty() {
            return None;
        }
        let mut content = self.content;
        // How far the template and the bytes are compared.
        let (mut from, mut at) = (0, 0);
        for hole in self.holes.list.iter().flatten() {
            at = past(bytes, at, &self.bytes[from..hole.span.start])?;
            let end = match hole.fill {
                Fill::Digits => digits_end(bytes, at)?,
                Fill::String | Fill::Generated => text_end(bytes, at)?,
            };
            content |= hole.fill == Fill::Generated && end > at;
            (from, at) = (hole.span.end, end);
        }
        let len = past(bytes, at, &self.bytes[from..])?;
        Some(Fit { len, content })
    }
}

/// The place behind `literal`, if that is what stands at `at`.
#[inline]
fn past(bytes: &[u8], at: usize, literal: &[u8]) -> Option<usize> {
    bytes[at..].starts_with(literal).then_some(at + literal.len())
}

#[inline]
fn text_end(bytes: &[u8], at: usize) -> Option<usize> {
    let end = json::string_end(bytes, at)?;
    str::from_utf8(&bytes[at..end]).is_ok().then_some(end)
}

/// The place behind a whole number as JSON writes it. That it goes on with a fraction is seen by what must follow.
#[inline]
fn digits_end(bytes: &[u8], at: usize) -> Option<usize> {
    let len = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let is_sound = len == 1 || (len > 1 && bytes[at] != b'0');
    is_sound.then_some(at + len)
}
