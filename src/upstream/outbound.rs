//! A request on its way to a worker.

use std::{
    borrow::Cow,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Method};
use http_body::{Body, Frame, SizeHint};

/// Why a streamed request body broke off. What it says stays inside the gateway.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A request for a worker. The client adds `host`, the body's length and the worker's key.
#[derive(Debug)]
pub struct Outbound {
    /// The method.
    pub method: Method,
    /// The path below the worker's base URL, with its slash, and the query.
    pub path_and_query: Cow<'static, str>,
    /// The headers. Those that frame the body are replaced; where the worker has a key of its own, so are
    /// `authorization` and `x-api-key`.
    pub headers: HeaderMap,
    /// The body.
    pub body: OutboundBody,
}

impl Outbound {
    /// A request without headers and body.
    pub fn get(path_and_query: impl Into<Cow<'static, str>>) -> Self {
        let path_and_query = path_and_query.into();
        let body = OutboundBody::Full(Bytes::new());
        Self { method: Method::GET, path_and_query, headers: HeaderMap::new(), body }
    }
}

/// The body of a request.
pub enum OutboundBody {
    /// All of it, in memory.
    Full(Bytes),
    /// As it comes. Its errors end the request; they are taken for the caller's.
    Stream(Pin<Box<dyn Body<Data = Bytes, Error = BodyError> + Send>>),
}

impl fmt::Debug for OutboundBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(bytes) => write!(f, "Full({} bytes)", bytes.len()),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

impl Body for OutboundBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream(stream) => stream.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_empty(),
            Self::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(stream) => stream.size_hint(),
        }
    }
}
