//! Reads answers off a connection and compares them with what the engine is known to say.
//!
//! HTTP/1.1 by hand, since the load must cost little: no allocation per answer, one comparison of memory per read.

use std::io;
use std::time::Instant;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

const BUFFER_BYTES: usize = 64 * 1024;
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Why an answer does not count.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Wrong {
    /// The connection failed.
    #[error("{0}")]
    Connection(#[from] io::Error),
    /// It ended too soon.
    #[error("the connection ended within an answer")]
    Cut,
    /// It is no answer to the request.
    #[error("status {0}")]
    Status(u16),
    /// It can't be read.
    #[error("an answer that is not HTTP/1.1")]
    Malformed,
    /// It differs from what the engine said.
    #[error("a body that differs from the engine's at byte {0}")]
    Different(usize),
}

/// How the end of a body is known.
#[derive(Clone, Copy)]
enum Length {
    Known(usize),
    Chunked,
}

/// Where the body's reader is.
enum State {
    /// So many bytes of a known length or of a chunk's data are left.
    Data {
        left: usize,
        chunked: bool,
    },
    /// A chunk's size line comes.
    Size,
    /// The line break after a chunk's data comes.
    Break,
    /// The empty line after the last chunk comes.
    Last,
    Done,
}

/// Receives the bytes of a body.
pub(crate) trait Sink {
    /// Takes the next bytes.
    fn take(&mut self, bytes: &[u8]) -> Result<(), Wrong>;
}

/// Keeps a body.
impl Sink for Vec<u8> {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Wrong> {
        self.extend_from_slice(bytes);
        Ok(())
    }
}

/// Compares a body.
pub(crate) struct Compare<'a> {
    pub(crate) expected: &'a [u8],
    pub(crate) at: usize,
}

impl Sink for Compare<'_> {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Wrong> {
        let end = self.at + bytes.len();
        if self.expected.get(self.at..end) != Some(bytes) {
            return Err(Wrong::Different(self.at));
        }
        self.at = end;
        Ok(())
    }
}

/// The reading half of one connection.
pub(crate) struct Reader {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Reader {
    /// A reader with nothing read.
    pub(crate) fn new() -> Reader {
        Reader { buffer: vec![0; BUFFER_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Reads one answer to its end; tells when the first byte of its body was there.
    pub(crate) async fn answer(&mut self, stream: &mut TcpStream, sink: &mut impl Sink) -> Result<Instant, Wrong> {
        let mut state = match self.head(stream).await? {
            Length::Known(left) => State::Data { left, chunked: false },
            Length::Chunked => State::Size,
        };
        if self.start == self.end {
            self.fill(stream).await?;
        }
        let first = Instant::now();
        loop {
            state = self.step(state, sink)?;
            match state {
                State::Done => return Ok(first),
                _ if self.is_hungry(&state) => self.fill(stream).await?,
                _ => {}
            }
        }
    }

    /// Reads a head, and leaves the bytes after it.
    async fn head(&mut self, stream: &mut TcpStream) -> Result<Length, Wrong> {
        loop {
            let unread = &self.buffer[self.start..self.end];
            if let Some(at) = unread.windows(4).position(|window| window == b"\r\n\r\n") {
                let length = length(&unread[..at + 2])?;
                self.start += at + 4;
                return Ok(length);
            }
            if unread.len() > HEAD_BYTES_MAX {
                return Err(Wrong::Malformed);
            }
            self.fill(stream).await?;
        }
    }

    fn step(&mut self, state: State, sink: &mut impl Sink) -> Result<State, Wrong> {
        let unread = &self.buffer[self.start..self.end];
        match state {
            State::Data { left, chunked } => {
                let now = left.min(unread.len());
                sink.take(&unread[..now])?;
                self.start += now;
                Ok(match (left - now, chunked) {
                    (0, true) => State::Break,
                    (0, false) => State::Done,
                    (left, chunked) => State::Data { left, chunked },
                })
            }
            State::Size => {
                let Some(at) = unread.iter().position(|byte| *byte == b'\n') else { return Ok(State::Size) };
                let size = chunk_size(&unread[..at]).ok_or(Wrong::Malformed)?;
                self.start += at + 1;
                Ok(if size == 0 { State::Last } else { State::Data { left: size, chunked: true } })
            }
            State::Break | State::Last => {
                if unread.len() < 2 {
                    return Ok(state);
                }
                if !unread.starts_with(b"\r\n") {
                    return Err(Wrong::Malformed);
                }
                self.start += 2;
                Ok(if matches!(state, State::Last) { State::Done } else { State::Size })
            }
            State::Done => Ok(State::Done),
        }
    }

    /// Whether the next step needs bytes that are not there.
    fn is_hungry(&self, state: &State) -> bool {
        let unread = &self.buffer[self.start..self.end];
        match state {
            State::Data { .. } => unread.is_empty(),
            State::Size => !unread.contains(&b'\n'),
            State::Break | State::Last => unread.len() < 2,
            State::Done => false,
        }
    }

    async fn fill(&mut self, stream: &mut TcpStream) -> Result<(), Wrong> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        match stream.read(&mut self.buffer[self.end..]).await? {
            0 => Err(Wrong::Cut),
            count => {
                self.end += count;
                Ok(())
            }
        }
    }
}

/// The status and framing of a head, which ends with the line break of its last field.
fn length(head: &[u8]) -> Result<Length, Wrong> {
    let mut lines = head.split(|byte| *byte == b'\n');
    let status = lines.next().and_then(|line| line.strip_prefix(b"HTTP/1.1 ")).and_then(|rest| number(rest.get(..3)?));
    match status {
        Some(200) => {}
        Some(other) => return Err(Wrong::Status(u16::try_from(other).unwrap_or(u16::MAX))),
        None => return Err(Wrong::Malformed),
    }
    let mut known = None;
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            known = number(value);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") && value.eq_ignore_ascii_case(b"chunked") {
            return Ok(Length::Chunked);
        }
    }
    known.map(Length::Known).ok_or(Wrong::Malformed)
}

fn number(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn chunk_size(line: &[u8]) -> Option<usize> {
    let line = std::str::from_utf8(line).ok()?.trim_end();
    usize::from_str_radix(line.split(';').next()?, 16).ok()
}
