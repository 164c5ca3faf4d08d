//! The subscriber's and the asker's side of ZMTP 3.0 (ZeroMQ RFC 23) without security.
//!
//! It is written out here because what comes is from a worker, which may be anybody's: a frame is as large as what has
//! arrived of it and never as its length promises, and who reads slowly is waited for by the sender.

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The largest message, all frames together.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 << 20;
const FRAMES_MAX: usize = 16;

const GREETING_BYTES: usize = 64;
const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// How many bytes are asked for at once.
const PIECE_BYTES: usize = 64 << 10;

/// Why a connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum ZmtpError {
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
    #[error("the connection was closed")]
    Closed,
    #[error("it does not speak zmtp 3 without security")]
    NotZmtp,
    #[error("it refused: {0}")]
    Refused(String),
    #[error("a message has more than {MESSAGE_BYTES_MAX} bytes or {FRAMES_MAX} frames")]
    TooLarge,
}

/// A frame.
#[derive(Debug, PartialEq)]
pub(super) struct Frame {
    flags: u8,
    body: Bytes,
}

/// Takes the next frame out of `buffer`; none if it is not all there.
pub(super) fn frame(buffer: &mut BytesMut) -> Result<Option<Frame>, ZmtpError> {
    let Some(&flags) = buffer.first() else { return Ok(None) };
    let header = if flags & LONG == 0 { 2 } else { 9 };
    let Some(length) = buffer.get(1..header) else { return Ok(None) };
    let length = length.iter().fold(0, |length: u64, byte| length << 8 | u64::from(*byte));
    let length =
        usize::try_from(length).ok().filter(|length| *length <= MESSAGE_BYTES_MAX).ok_or(ZmtpError::TooLarge)?;
    if buffer.len() - header < length {
        return Ok(None);
    }
    buffer.advance(header);
    Ok(Some(Frame { flags, body: buffer.split_to(length).freeze() }))
}

/// What a socket is to the other side.
#[derive(Clone, Copy, Debug)]
pub(super) enum Role<'a> {
    /// Hears the messages whose first frame begins so.
    Subscriber {
        /// The beginning.
        topic: &'a str,
    },
    /// Asks, and hears answers.
    Dealer,
}

/// A connection that has introduced itself.
#[derive(Debug)]
pub(super) struct Peer<S> {
    stream: S,
    buffer: BytesMut,
    frames: Vec<Bytes>,
    bytes: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    /// Greets, and hears the greeting.
    pub(super) async fn greet(stream: S, role: Role<'_>) -> Result<Self, ZmtpError> {
        let mut peer = Self { stream, buffer: BytesMut::new(), frames: Vec::new(), bytes: 0 };
        let mut greeting = [0; GREETING_BYTES];
        (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
        greeting[12..16].copy_from_slice(b"NULL");
        peer.stream.write_all(&greeting).await?;
        while peer.buffer.len() < GREETING_BYTES {
            peer.fill().await?;
        }
        let theirs = peer.buffer.split_to(GREETING_BYTES);
        let mechanism = &theirs[12..32];
        if theirs[0] != 0xff || theirs[9] & 1 == 0 || theirs[10] < 3 || mechanism != &greeting[12..32] {
            return Err(ZmtpError::NotZmtp);
        }
        let kind: &[u8] = match role {
            Role::Subscriber { .. } => b"SUB",
            Role::Dealer => b"DEALER",
        };
        let mut ready = b"\x05READY\x0bSocket-Type\0\0\0".to_vec();
        ready.push(u8::try_from(kind.len()).unwrap_or_default());
        ready.extend_from_slice(kind);
        peer.write(COMMAND, &ready).await?;
        peer.ready().await?;
        if let Role::Subscriber { topic } = role {
            let subscription = [b"\x01", topic.as_bytes()].concat();
            peer.write(0, &subscription).await?;
        }
        Ok(peer)
    }

    /// The frames of the next message. Safe to cancel.
    pub(super) async fn message(&mut self) -> Result<Vec<Bytes>, ZmtpError> {
        loop {
            while let Some(frame) = frame(&mut self.buffer)? {
                if frame.flags & COMMAND != 0 {
                    continue;
                }
                self.bytes += frame.body.len();
                if self.frames.len() >= FRAMES_MAX || self.bytes > MESSAGE_BYTES_MAX {
                    return Err(ZmtpError::TooLarge);
                }
                self.frames.push(frame.body);
                if frame.flags & MORE == 0 {
                    self.bytes = 0;
                    return Ok(std::mem::take(&mut self.frames));
                }
            }
            self.fill().await?;
        }
    }

    /// Sends a message.
    pub(super) async fn send(&mut self, frames: &[&[u8]]) -> Result<(), ZmtpError> {
        for (at, body) in frames.iter().enumerate() {
            self.write(if at + 1 < frames.len() { MORE } else { 0 }, body).await?;
        }
        Ok(())
    }

    async fn ready(&mut self) -> Result<(), ZmtpError> {
        loop {
            let Some(Frame { flags, body }) = frame(&mut self.buffer)? else {
                self.fill().await?;
                continue;
            };
            return match (flags & COMMAND, &body[..]) {
                (COMMAND, [5, rest @ ..]) if rest.starts_with(b"READY") => Ok(()),
                (COMMAND, [5, rest @ ..]) if rest.starts_with(b"ERROR") => {
                    Err(ZmtpError::Refused(String::from_utf8_lossy(rest.get(6..).unwrap_or_default()).into_owned()))
                }
                _ => Err(ZmtpError::NotZmtp),
            };
        }
    }

    async fn fill(&mut self) -> Result<(), ZmtpError> {
        self.buffer.reserve(PIECE_BYTES);
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(ZmtpError::Closed),
            _ => Ok(()),
        }
    }

    async fn write(&mut self, flags: u8, body: &[u8]) -> Result<(), ZmtpError> {
        let mut bytes = Vec::with_capacity(body.len() + 9);
        match u8::try_from(body.len()) {
            Ok(length) => bytes.extend_from_slice(&[flags, length]),
            Err(_) => {
                bytes.push(flags | LONG);
                bytes.extend_from_slice(&(body.len() as u64).to_be_bytes());
            }
        }
        bytes.extend_from_slice(body);
        Ok(self.stream.write_all(&bytes).await?)
    }
}
