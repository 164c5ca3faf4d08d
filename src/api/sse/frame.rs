//! Cutting bytes into events.

use std::{borrow::Cow, ops::Range};

use super::Garbage;

/// How many bytes of an event suffice to tell whether it begins like one.
pub(super) const OPENING_BYTES: usize = 64;

/// More lines than this are no event. It keeps the work on an event that comes byte by byte linear.
const LINES_MAX: usize = 256;

/// One event, or a comment that stands alone, as places in its bytes.
#[derive(Debug)]
pub(super) struct Frame {
    /// How many bytes it has, blank line included.
    pub(super) len: usize,
    /// The value of its `event` field.
    name: Option<Range<usize>>,
    /// The values of its `data` fields: the first, and the others.
    data: Option<Range<usize>>,
    more: Vec<Range<usize>>,
}

/// A line, with how many of its bytes come before the value.
enum Field {
    Data(usize),
    Name(usize),
    Comment,
    Other,
}

impl Frame {
    /// The event at the start of `bytes`, or nothing if its end is not there.
    pub(super) fn next(bytes: &[u8]) -> Result<Option<Self>, Garbage> {
        let mut frame = Self { len: 0, name: None, data: None, more: Vec::new() };
        let mut is_empty = true;
        for _ in 0..LINES_MAX {
            let start = frame.len;
            let Some((line, line_len)) = next_line(&bytes[start..])? else {
                return Ok(None);
            };
            frame.len += line_len;
            if line.is_empty() {
                return Ok(Some(frame));
            }
            let end = start + line.len();
            match field(line)? {
                Field::Data(before) if frame.data.is_none() => frame.data = Some(start + before..end),
                Field::Data(before) => frame.more.push(start + before..end),
                Field::Name(before) => frame.name = Some(start + before..end),
                // Goes on at once, for it keeps the connection alive.
                Field::Comment if is_empty => return Ok(Some(frame)),
                Field::Comment | Field::Other => {}
            }
            is_empty = false;
        }
        Err(Garbage::TooLong)
    }

    /// The value of its `event` field; `text` is the whole event.
    pub(super) fn name<'a>(&self, text: &'a str) -> Option<&'a str> {
        self.name.clone().map(|name| &text[name])
    }

    /// Where its data begin, if they are on one line.
    pub(super) fn single_data_start(&self) -> Option<usize> {
        self.data.as_ref().filter(|_| self.more.is_empty()).map(|data| data.start)
    }

    /// The event's data, its lines joined, if it has any.
    pub(super) fn data<'a>(&self, text: &'a str) -> Option<Cow<'a, str>> {
        let mut data = Cow::Borrowed(&text[self.data.clone()?]);
        for line in &self.more {
            let joined = data.to_mut();
            joined.push('\n');
            joined.push_str(&text[line.clone()]);
        }
        (!data.trim_ascii().is_empty()).then_some(data)
    }
}

/// The first line of `bytes` and its length with its end, if the end is there.
#[inline]
fn next_line(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, Garbage> {
    // The blank line after an event is the most common.
    if let [b'\n', ..] = bytes {
        return Ok(Some((&[], 1)));
    }
    let Some(end) = memchr::memchr2(b'\n', b'\r', bytes) else {
        return Ok(None);
    };
    let line = &bytes[..end];
    match &bytes[end..] {
        [b'\n', ..] => Ok(Some((line, end + 1))),
        [b'\r', b'\n', ..] => Ok(Some((line, end + 2))),
        [b'\r'] => Ok(None),
        _ => Err(Garbage::LoneCarriageReturn),
    }
}

#[inline]
fn field(line: &[u8]) -> Result<Field, Garbage> {
    if line.starts_with(b"data:") {
        return Ok(Field::Data(before_value(line, 5)));
    }
    if line.starts_with(b"event:") {
        return Ok(Field::Name(before_value(line, 6)));
    }
    let name_end = memchr::memchr(b':', line).unwrap_or(line.len());
    match &line[..name_end] {
        b"" => Ok(Field::Comment),
        b"id" | b"retry" | b"data" | b"event" => Ok(Field::Other),
        _ => Err(Garbage::UnknownField),
    }
}

/// One space after the colon is not of the value.
#[inline]
fn before_value(line: &[u8], colon: usize) -> usize {
    colon + usize::from(line.get(colon) == Some(&b' '))
}

/// Whether `bytes`, which hold no whole event, can become one: a page of HTML or bare JSON is recognised by its first bytes,
/// not when it is over.
pub(super) fn check_opening(bytes: &[u8]) -> Result<(), Garbage> {
    let mut rest = bytes;
    for _ in 0..LINES_MAX {
        let (line, len) = match next_line(rest)? {
            Some((line, len)) => (line, len),
            None if rest.contains(&b':') => (rest, rest.len()),
            None => return check_name(rest),
        };
        rest = &rest[len..];
        match field(line)? {
            // A line of data begins with an object, an array or the mark of the end; the lines after it may be anything.
            Field::Data(before) => match line[before..].trim_ascii_start().first() {
                None => {}
                Some(b'{' | b'[') => return Ok(()),
                Some(_) => return Err(Garbage::NotJson),
            },
            _ if rest.is_empty() => return Ok(()),
            _ => {}
        }
    }
    Ok(())
}

/// A line that is not yet past its field's name.
fn check_name(line: &[u8]) -> Result<(), Garbage> {
    let name = line.strip_suffix(b"\r").unwrap_or(line);
    let known: [&[u8]; 4] = [b"data", b"event", b"id", b"retry"];
    if known.iter().any(|field| field.starts_with(name)) { Ok(()) } else { Err(Garbage::UnknownField) }
}
