//! The body of an answer.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::{
    connection::{Connection, quietly_first},
    pool::Pool,
};

/// The body of a worker's answer, as it comes. Reading it drives the connection; read to its end, it gives the
/// connection back to the pool; dropped before that, it closes the connection at once, which tells the engine to stop.
#[must_use = "dropping the body of an answer aborts the request"]
pub struct ResponseBody {
    incoming: Incoming,
    source: Source,
}

/// Where the rest comes from.
enum Source {
    /// A connection of its own, which goes back to the pool after use if it has one.
    Own(Box<Connection>, Option<Arc<Pool>>),
    /// A connection that others share, or none because all that comes is here already. The pool is kept for as long
    /// as its connection is used.
    Elsewhere { _pool: Option<Arc<Pool>> },
}

/// How often a body that is dropped is asked whether its end is here already.
const LAST_LOOKS: usize = 4;

impl ResponseBody {
    pub(crate) fn new(incoming: Incoming, connection: Option<Box<Connection>>, pool: Option<Arc<Pool>>) -> Self {
        let source = match connection {
            Some(connection) => Source::Own(connection, pool),
            None => Source::Elsewhere { _pool: pool },
        };
        let mut body = Self { incoming, source };
        if body.incoming.is_end_stream() {
            body.settle();
        }
        body
    }

    /// The answer is complete: gives the connection back if it is fit for another request.
    fn settle(&mut self) {
        let Source::Own(connection, pool) = &mut self.source else {
            return;
        };
        // One more turn takes in the end of the message and makes the connection idle.
        let over = connection.poll_driver(Waker::noop()).is_ready();
        let reusable = !over && connection.is_ready();
        let pool = pool.clone();
        let source = std::mem::replace(&mut self.source, Source::Elsewhere { _pool: pool.clone() });
        if let (Source::Own(connection, _), true, Some(pool)) = (source, reusable, pool) {
            pool.put(connection);
        }
    }

    /// What is here already, without waking anybody.
    fn poll_arrived(&mut self) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.incoming).poll_frame(&mut Context::from_waker(Waker::noop()));
        match &polled {
            Poll::Ready(None) => self.settle(),
            Poll::Ready(Some(Ok(_))) if self.incoming.is_end_stream() => self.settle(),
            _ => {}
        }
        polled
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        if let Source::Elsewhere { .. } = this.source {
            return Pin::new(&mut this.incoming).poll_frame(cx);
        }
        // Asking first also tells the driver that the next piece is wanted.
        if let ready @ Poll::Ready(_) = this.poll_arrived() {
            return ready;
        }
        for waker in quietly_first(cx.waker()) {
            if let Source::Own(connection, pool) = &mut this.source
                && connection.poll_driver(waker).is_ready()
            {
                // It is over. What it had to say last, an error included, is read without it.
                this.source = Source::Elsewhere { _pool: pool.clone() };
            }
            if let ready @ Poll::Ready(_) = this.poll_arrived() {
                return ready;
            }
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for ResponseBody {
    /// A reader that knows its format often stops at the last event, one empty chunk before the end of the message.
    /// If that chunk is here, the connection is as good as after reading it.
    fn drop(&mut self) {
        for _ in 0..LAST_LOOKS {
            let Source::Own(connection, _) = &mut self.source else {
                return;
            };
            if connection.poll_driver(Waker::noop()).is_ready() || self.poll_arrived().is_pending() {
                return;
            }
        }
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("incoming", &self.incoming).finish_non_exhaustive()
    }
}
