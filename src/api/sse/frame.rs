//! Cutting bytes into events.

use std::borrow::Cow;

use super::Garbage;

/// How many bytes of an event suffice to tell whether it begins like one.
pub(super) const OPENING_BYTES: usize = 64;

/// More lines than this are no event. It keeps the work on an event that comes byte by byte linear.
const LINES_MAX: usize = 256;

/// One event, or a comment that stands alone.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    /// Its bytes, blank line included.
    pub(super) len: usize,
    /// The value of its `event` field.
    pub(super) name: Option<&'a [u8]>,
    /// The values of its `data` fields: the first, and the others.
    data: Option<&'a [u8]>,
    more: Vec<&'a [u8]>,
}

enum Field<'a> {
    Data(&'a [u8]),
    Name(&'a [u8]),
    Comment,
    Other,
}

impl<'a> Frame<'a> {
    /// The event at the start of `bytes`, or nothing if its end is not there.
    pub(super) fn next(bytes: &'a [u8]) -> Result<Option<Self>, Garbage> {
        let mut frame = Self { len: 0, name: None, data: None, more: Vec::new() };
        let mut is_empty = true;
        for _ in 0..LINES_MAX {
            let Some((line, line_len)) = next_line(&bytes[frame.len..])? else {
                return Ok(None);
            };
            frame.len += line_len;
            if line.is_empty() {
                return Ok(Some(frame));
            }
            match field(line)? {
                Field::Data(value) if frame.data.is_none() => frame.data = Some(value),
                Field::Data(value) => frame.more.push(value),
                Field::Name(value) => frame.name = Some(value),
                // Goes on at once, for it keeps the connection alive.
                Field::Comment if is_empty => return Ok(Some(frame)),
                Field::Comment | Field::Other => {}
            }
            is_empty = false;
        }
        Err(Garbage::TooLong)
    }

    /// The event's data, its lines joined, if it has any.
    pub(super) fn data(&self) -> Result<Option<Cow<'a, str>>, Garbage> {
        let Some(data) = self.data else {
            return Ok(None);
        };
        let text = |bytes: &'a [u8]| str::from_utf8(bytes).map_err(|_| Garbage::NotUtf8);
        let mut data = Cow::Borrowed(text(data)?);
        for line in &self.more {
            let joined = data.to_mut();
            joined.push('\n');
            joined.push_str(text(line)?);
        }
        Ok((!data.trim_ascii().is_empty()).then_some(data))
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
fn field(line: &[u8]) -> Result<Field<'_>, Garbage> {
    if let Some(value) = line.strip_prefix(b"data:") {
        return Ok(Field::Data(value.strip_prefix(b" ").unwrap_or(value)));
    }
    if let Some(value) = line.strip_prefix(b"event:") {
        return Ok(Field::Name(value.strip_prefix(b" ").unwrap_or(value)));
    }
    let name_end = memchr::memchr(b':', line).unwrap_or(line.len());
    match &line[..name_end] {
        b"" => Ok(Field::Comment),
        b"id" | b"retry" | b"data" | b"event" => Ok(Field::Other),
        _ => Err(Garbage::UnknownField),
    }
}

/// Whether `bytes`, which hold no whole event, can become one: a page of HTML or bare JSON is recognised by its first bytes,
/// not when it is over.
pub(super) fn check_opening(bytes: &[u8]) -> Result<(), Garbage> {
    let mut rest = bytes;
    for _ in 0..LINES_MAX {
        match next_line(rest)? {
            Some((line, len)) if !line.is_empty() => {
                check_line(line)?;
                rest = &rest[len..];
            }
            _ => break,
        }
    }
    if rest.contains(&b':') {
        return check_line(rest);
    }
    let name = rest.strip_suffix(b"\r").unwrap_or(rest);
    let known: [&[u8]; 4] = [b"data", b"event", b"id", b"retry"];
    if known.iter().any(|field| field.starts_with(name)) { Ok(()) } else { Err(Garbage::UnknownField) }
}

/// A line of data begins with an object, an array or the mark of the end.
fn check_line(line: &[u8]) -> Result<(), Garbage> {
    match field(line)? {
        Field::Data(value) => match value.trim_ascii_start().first() {
            None | Some(b'{' | b'[') => Ok(()),
            Some(_) => Err(Garbage::NotJson),
        },
        _ => Ok(()),
    }
}
