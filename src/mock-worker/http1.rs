//! Requests as they come over HTTP/1: heads, lengths, chunks.
//!
//! Stricter than most servers where leniency would hide a gateway's mistake: a request with both a length and chunks,
//! or with two lengths, is refused.

use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};

/// Header fields of one request; more are refused.
const HEADERS_MAX: usize = 100;
/// Bytes of a chunk's size line, extensions included.
const CHUNK_LINE_BYTES_MAX: usize = 4096;

/// Why a request cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadRequest {
    /// Not HTTP, or a head that allows two readings.
    Malformed,
    /// The head is larger than allowed.
    HeadTooLarge,
    /// The body is larger than allowed.
    BodyTooLarge,
}

impl BadRequest {
    pub(crate) fn status(self) -> u16 {
        match self {
            Self::Malformed => 400,
            Self::HeadTooLarge => 431,
            Self::BodyTooLarge => 413,
        }
    }
}

/// A request's head, kept as the bytes that came.
#[derive(Debug)]
pub(crate) struct Head {
    raw: Bytes,
    method: Range<usize>,
    target: Range<usize>,
    fields: Vec<(Range<usize>, Range<usize>)>,
    /// Whether it is HTTP/1.1 rather than 1.0.
    pub(crate) is_http11: bool,
    /// How long the body is.
    pub(crate) length: Length,
}

/// The length of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Length {
    Known(u64),
    Chunked,
}

impl Head {
    /// Takes a head off `buffer` once it is whole.
    pub(crate) fn take(buffer: &mut BytesMut, bytes_max: usize) -> Result<Option<Self>, BadRequest> {
        let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Request::new(&mut fields);
        let bytes = match parsed.parse(buffer) {
            Ok(httparse::Status::Complete(bytes)) if bytes > bytes_max => return Err(BadRequest::HeadTooLarge),
            Ok(httparse::Status::Complete(bytes)) => bytes,
            Ok(httparse::Status::Partial) if buffer.len() > bytes_max => return Err(BadRequest::HeadTooLarge),
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err(BadRequest::HeadTooLarge),
            Err(_) => return Err(BadRequest::Malformed),
        };
        let start = buffer.as_ptr() as usize;
        let span = |part: &[u8]| {
            let from = part.as_ptr() as usize - start;
            from..from + part.len()
        };
        let method = span(parsed.method.unwrap_or_default().as_bytes());
        let target = span(parsed.path.unwrap_or_default().as_bytes());
        let is_http11 = parsed.version == Some(1);
        let length = length_of(parsed.headers)?;
        let fields = parsed.headers.iter().map(|field| (span(field.name.as_bytes()), span(field.value))).collect();
        Ok(Some(Self { raw: buffer.split_to(bytes).freeze(), method, target, fields, is_http11, length }))
    }

    pub(crate) fn method(&self) -> &str {
        self.text(&self.method)
    }

    /// The path, without the query.
    pub(crate) fn path(&self) -> &str {
        let target = self.text(&self.target);
        target.split_once('?').map_or(target, |(path, _)| path)
    }

    /// The value of `name` in the query, undecoded.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        let (_, query) = self.text(&self.target).split_once('?')?;
        query.split('&').find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value))
    }

    /// The first field called `name`, if it is text.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(field, _)| self.text(field).eq_ignore_ascii_case(name))
            .map(|(_, value)| self.text(value))
    }

    /// Every field, as it was written.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(name, value)| (self.text(name), self.text(value)))
    }

    /// Whether the caller allows another request on this connection.
    pub(crate) fn keeps_alive(&self) -> bool {
        let asked = self.field("connection").unwrap_or_default();
        let has = |word: &str| asked.split(',').any(|token| token.trim().eq_ignore_ascii_case(word));
        if self.is_http11 { !has("close") } else { has("keep-alive") }
    }

    /// Whether the caller waits for leave to send the body.
    pub(crate) fn expects_continue(&self) -> bool {
        self.field("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
    }

    fn text(&self, range: &Range<usize>) -> &str {
        std::str::from_utf8(&self.raw[range.clone()]).unwrap_or("\u{fffd}")
    }
}

fn length_of(fields: &[httparse::Header<'_>]) -> Result<Length, BadRequest> {
    let mut known = None;
    let mut is_chunked = false;
    for field in fields {
        if field.name.eq_ignore_ascii_case("content-length") {
            let digits = std::str::from_utf8(field.value).map_err(|_| BadRequest::Malformed)?;
            let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            let length = digits.parse().ok().filter(|_| is_number && known.is_none());
            known = Some(length.ok_or(BadRequest::Malformed)?);
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            if is_chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                return Err(BadRequest::Malformed);
            }
            is_chunked = true;
        }
    }
    match (known, is_chunked) {
        (Some(_), true) => Err(BadRequest::Malformed),
        (None, true) => Ok(Length::Chunked),
        (length, false) => Ok(Length::Known(length.unwrap_or(0))),
    }
}

/// Takes a body off the bytes of a connection, in pieces.
#[derive(Debug)]
pub(crate) enum BodyReader {
    /// So many bytes are still to come.
    Known(u64),
    /// Chunks are still to come.
    Chunks(ChunkReader),
}

/// Where in a chunked body we are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ChunkReader {
    Size,
    Data(u64),
    DataEnd,
    Trailers,
    Done,
}

impl BodyReader {
    pub(crate) fn new(length: Length) -> Self {
        match length {
            Length::Known(bytes) => Self::Known(bytes),
            Length::Chunked => Self::Chunks(ChunkReader::Size),
        }
    }

    /// Whether the body is over.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::Known(0) | Self::Chunks(ChunkReader::Done))
    }

    /// The next piece of the body in `buffer`; `None` if more must be read first, or if the body is over.
    pub(crate) fn take(&mut self, buffer: &mut BytesMut) -> Result<Option<BytesMut>, BadRequest> {
        match self {
            Self::Known(left) => Ok(take_up_to(left, buffer)),
            Self::Chunks(reader) => reader.take(buffer),
        }
    }
}

impl ChunkReader {
    fn take(&mut self, buffer: &mut BytesMut) -> Result<Option<BytesMut>, BadRequest> {
        loop {
            match self {
                Self::Size => {
                    let Some((used, bytes)) = chunk_size(buffer)? else { return Ok(None) };
                    buffer.advance(used);
                    *self = if bytes == 0 { Self::Trailers } else { Self::Data(bytes) };
                }
                Self::Data(0) => *self = Self::DataEnd,
                Self::Data(left) => return Ok(take_up_to(left, buffer)),
                Self::DataEnd => match buffer.get(..2) {
                    None => return Ok(None),
                    Some(b"\r\n") => {
                        buffer.advance(2);
                        *self = Self::Size;
                    }
                    Some(_) => return Err(BadRequest::Malformed),
                },
                Self::Trailers => {
                    let Some(end) = memchr::memchr(b'\n', buffer) else {
                        return if buffer.len() > CHUNK_LINE_BYTES_MAX {
                            Err(BadRequest::HeadTooLarge)
                        } else {
                            Ok(None)
                        };
                    };
                    let is_last = matches!(&buffer[..end], b"" | b"\r");
                    buffer.advance(end + 1);
                    if is_last {
                        *self = Self::Done;
                    }
                }
                Self::Done => return Ok(None),
            }
        }
    }
}

fn chunk_size(buffer: &[u8]) -> Result<Option<(usize, u64)>, BadRequest> {
    match httparse::parse_chunk_size(buffer) {
        Ok(httparse::Status::Complete(size)) => Ok(Some(size)),
        Ok(httparse::Status::Partial) if buffer.len() > CHUNK_LINE_BYTES_MAX => Err(BadRequest::Malformed),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(_) => Err(BadRequest::Malformed),
    }
}

fn take_up_to(left: &mut u64, buffer: &mut BytesMut) -> Option<BytesMut> {
    let bytes = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
    if bytes == 0 {
        return None;
    }
    *left -= bytes as u64;
    Some(buffer.split_to(bytes))
}

#[cfg(test)]
mod tests {
    use smg_base::{Random, SplitMix};

    use super::*;

    const REQUEST: &[u8] = b"POST /v1/x?a=b&c=d HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
        5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nTrailer: t\r\n\r\nGET / HTTP/1.1\r\n\r\n";

    /// The head, the body, and how many bytes are left, if the bytes are a whole request.
    fn read(mut buffer: BytesMut) -> Result<Option<(Head, Vec<u8>, usize)>, BadRequest> {
        let Some(head) = Head::take(&mut buffer, 1000)? else { return Ok(None) };
        let (mut reader, mut body) = (BodyReader::new(head.length), Vec::new());
        while let Some(piece) = reader.take(&mut buffer)? {
            body.extend_from_slice(&piece);
        }
        Ok(reader.is_done().then_some((head, body, buffer.len())))
    }

    #[test]
    fn a_request_is_read_whole_or_not_at_all() {
        let (head, body, left) = read(REQUEST.into()).unwrap().unwrap();
        assert_eq!((head.method(), head.path(), head.query("c")), ("POST", "/v1/x", Some("d")));
        assert_eq!((head.field("HOST"), body.as_slice(), left), (Some("h"), b"hello world".as_slice(), 18));
        for end in 0..REQUEST.len() - 18 {
            assert!(read(REQUEST[..end].into()).unwrap().is_none(), "{end}");
        }
    }

    #[test]
    fn no_bytes_bring_it_down_and_none_are_made_up() {
        let random = SplitMix::new(5);
        for _ in 0..20_000 {
            let mut bytes = REQUEST.to_vec();
            for _ in 0..=random.below(4) {
                let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
                bytes[at] = u8::try_from(random.below(256)).unwrap();
            }
            if let Ok(Some((_, body, left))) = read(bytes.as_slice().into()) {
                assert!(body.len() + left < bytes.len());
            }
        }
    }
}
