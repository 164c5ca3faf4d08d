//! One HTTP/1.1 connection, driven by whoever uses it.
//!
//! hyper splits a connection into a driver, a future that does the I/O, and handles that talk to it through
//! channels. The usual way is to give the driver a task of its own, and every piece of a response then costs two
//! wake-ups between tasks. Here the driver is polled by the request that has the connection: no task, and the pace at
//! which a response is read is the pace at which its reader polls. An idle connection is polled by nobody; that its
//! worker has closed it is found out before anything is written, when it is taken from the pool again.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use prometheus::IntGauge;
use tokio::task::unconstrained;

use crate::{connect::Stream, outbound::OutboundBody};

/// An open connection without a request on it.
pub(crate) struct Connection {
    sender: SendRequest<OutboundBody>,
    driver: http1::Connection<TokioIo<Stream>, OutboundBody>,
    _open: Option<OpenGuard>,
}

/// Counts an open connection for as long as it lives.
pub(crate) struct OpenGuard(IntGauge);

impl OpenGuard {
    pub(crate) fn new(open: &IntGauge) -> Self {
        open.inc();
        Self(open.clone())
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The head of an answer, and the connection if there is more to come from it.
pub(crate) struct Answered {
    pub(crate) response: Response<Incoming>,
    pub(crate) connection: Option<Box<Connection>>,
}

/// A connection broke before the head of the answer was there.
pub(crate) enum Broken {
    /// Not a byte of the request was written; here it is again.
    Unsent(Box<Request<OutboundBody>>),
    /// Some of it may have reached the worker.
    Sent(hyper::Error),
}

impl Connection {
    /// Takes over a fresh stream; `open` counts it if it is a connection of its own.
    pub(crate) async fn new(
        builder: &http1::Builder,
        stream: Stream,
        open: Option<OpenGuard>,
    ) -> Result<Box<Self>, hyper::Error> {
        let (sender, driver) = builder.handshake(TokioIo::new(stream)).await?;
        Ok(Box::new(Self { sender, driver, _open: open }))
    }

    /// Sends `request` and waits for the head of the answer. Dropping the future closes the connection.
    pub(crate) async fn exchange(mut self: Box<Self>, request: Request<OutboundBody>) -> Result<Answered, Broken> {
        // Unconstrained, because a future that is polled with a waker that does nothing must not yield for fairness.
        let mut response = pin!(unconstrained(self.sender.try_send_request(request)));
        let mut connection = Some(self);
        let outcome = poll_fn(|cx| {
            for waker in quietly_first(cx.waker()) {
                if connection.as_mut().is_some_and(|open| open.poll_driver(waker).is_ready()) {
                    // It is over. Dropping the driver gives back a request that was not taken yet.
                    connection = None;
                }
                // Only the driver completes the response, and it was just polled: there is no wake-up to wait for.
                if let ready @ Poll::Ready(_) = response.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    return ready;
                }
            }
            Poll::Pending
        })
        .await;
        match outcome {
            Ok(response) => Ok(Answered { response, connection }),
            Err(mut error) => Err(match error.take_message() {
                Some(request) => Broken::Unsent(Box::new(request)),
                None => Broken::Sent(error.into_error()),
            }),
        }
    }

    /// Lets the connection do what it can; `waker` is woken when it can do more. Ready means that it is over, well or
    /// not: whatever went wrong is also told to the response or to its body.
    pub(crate) fn poll_driver(&mut self, waker: &Waker) -> Poll<()> {
        Pin::new(&mut self.driver).poll(&mut Context::from_waker(waker)).map(drop)
    }

    /// Whether it could take another request, as far as is known without asking the other side.
    pub(crate) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }
}

/// The wakers with which to poll a driver and then look at what it produced, in this order. The driver and its handles
/// wake each other although they run in one task; with a waker that does nothing first, a task that finds what it
/// waits for is not woken by itself for nothing, and only one that must wait leaves its true waker behind.
pub(crate) fn quietly_first(waker: &Waker) -> [&Waker; 2] {
    [Waker::noop(), waker]
}
