//! One connection: requests in, answers out, and an eye on the caller while it waits.

use std::{future::pending, net::SocketAddr, sync::Arc};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
};

use crate::{
    config::Limits,
    faults::{Action, Fault, Point, Seen},
    http1::{BadRequest, BodyReader, Head},
    ledger::{Entry, Record},
    reply::{Cut, Ending, Reply},
    routes::{self, Body, Request},
    worker::Worker,
};

/// Bytes that a caller may send ahead while its last request is being answered.
const AHEAD_BYTES_MAX: usize = 64 * 1024;

/// Serves `stream` until either side closes it.
pub(crate) async fn serve(worker: Arc<Worker>, mut stream: TcpStream, number: u64) {
    // Events must leave when they are due.
    let _ = stream.set_nodelay(true);
    let ending = match worker.faults.of_connection() {
        Some(fault) => suffer_at_accept(&fault).await,
        None => None,
    };
    let ending = match ending {
        Some(ending) => ending,
        None => exchanges(&worker, &mut stream, number).await,
    };
    if ending == Ending::Rst {
        let _ = stream.set_zero_linger();
    }
}

async fn suffer_at_accept(fault: &Fault) -> Option<Ending> {
    for action in fault.at(Point::Accept) {
        match action {
            Action::Delay(duration) => tokio::time::sleep(duration).await,
            Action::Stall => pending().await,
            Action::Rst => return Some(Ending::Rst),
            _ => return Some(Ending::Fin),
        }
    }
    None
}

async fn exchanges(worker: &Arc<Worker>, stream: &mut TcpStream, number: u64) -> Ending {
    let caller = stream.peer_addr().ok();
    let (reader, mut writer) = stream.split();
    let mut inlet = Inlet { reader, buffer: BytesMut::new() };
    let mut out = Vec::new();
    let mut is_reused = false;
    loop {
        let head = match inlet.head(&worker.config.limits).await {
            Ok(head) => head,
            Err(Closed::Silently) => return Ending::Fin,
            Err(Closed::Refused(why)) => return refuse(&mut writer, why).await,
        };
        let turn = Turn { worker, connection: number, caller, is_reused };
        if let Some(ending) = turn.exchange(head, &mut inlet, &mut writer, &mut out).await {
            return ending;
        }
        is_reused = true;
    }
}

async fn refuse(writer: &mut WriteHalf<'_>, why: BadRequest) -> Ending {
    let answer = format!("HTTP/1.1 {} Refused\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", why.status());
    let _ = writer.write_all(answer.as_bytes()).await;
    let _ = writer.shutdown().await;
    Ending::Fin
}

/// One request on a connection.
struct Turn<'w> {
    worker: &'w Arc<Worker>,
    connection: u64,
    caller: Option<SocketAddr>,
    is_reused: bool,
}

impl Turn<'_> {
    /// Answers one request; how the connection ends, if it does.
    async fn exchange(
        &self,
        head: Head,
        inlet: &mut Inlet<'_>,
        writer: &mut WriteHalf<'_>,
        out: &mut Vec<u8>,
    ) -> Option<Ending> {
        let worker = self.worker;
        let record = self.enter(&head);
        let mut reply = Reply::new(writer, out, record, &head);
        reply.dress(&worker.identity, worker.config.framing);
        let result = match self.receive(head, inlet, &mut reply).await {
            Ok(request) => {
                tokio::select! {
                    biased;
                    result = routes::answer(worker, &request, &mut reply) => result,
                    () = inlet.gone() => Err(Cut::Gone),
                }
            }
            Err(cut) => Err(cut),
        };
        reply.finish(result)
    }

    fn enter(&self, head: &Head) -> Record {
        let worker = self.worker;
        if routes::is_control(head.path()) {
            return worker.ledger.unlisted();
        }
        worker.ledger.enter(self.connection, self.caller, |entry: &mut Entry| {
            entry.method = head.method().to_owned();
            entry.path = head.path().to_owned();
            if worker.config.bench.is_none() {
                entry.request_id = head.field("x-request-id").map(str::to_owned);
                entry.fields = head.fields().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            }
        })
    }

    /// Reads the rest of the request and decides what will go wrong with it.
    async fn receive(&self, head: Head, inlet: &mut Inlet<'_>, reply: &mut Reply<'_, '_>) -> Result<Request, Cut> {
        let worker = self.worker;
        let seen = Seen { path: head.path(), is_reused: self.is_reused, ..Seen::default() };
        let is_control = routes::is_control(head.path());
        let mut own_fault_text = head.field("x-mock-fault").map(str::to_owned);
        if !is_control && let Some(fault) = worker.faults.of_head(&seen) {
            reply.suffer(fault);
        }
        if let Some(fault) = own_fault_text.take_if(|text| text.contains("@request")).and_then(|text| text.parse().ok())
        {
            reply.suffer(fault);
        }
        // The caller's disconnect must be seen also while a fault keeps us from reading.
        tokio::select! {
            biased;
            reached = reply.reach(Point::Request) => reached?,
            () = inlet.gone() => return Err(Cut::Gone),
        }
        if head.expects_continue() {
            reply.allow_body().await?;
        }
        let body = match inlet.body(&head, worker.body_bytes_kept(), &worker.config.limits).await {
            Ok(body) => body,
            Err(Closed::Silently) => return Err(Cut::Gone),
            Err(Closed::Refused(why)) => {
                reply.close_after();
                reply.plain(worker.refusal(why)).await?;
                return Err(Cut::Close(Ending::Fin));
            }
        };
        if worker.config.bench.is_some() {
            return Ok(Request { head, body: Body::unread(body) });
        }
        let body = Body::read(&head, body);
        let request = Request { head, body };
        if routes::is_control(request.head.path()) {
            return Ok(request);
        }
        self.describe(&request, reply);
        self.befall(&request, own_fault_text.as_deref(), reply).await?;
        Ok(request)
    }

    fn describe(&self, request: &Request, reply: &mut Reply<'_, '_>) {
        let kept = request.body.bytes.len().min(self.worker.config.limits.ledger_body_bytes_max);
        reply.record.note(|entry| {
            entry.request_bytes = request.body.bytes.len() as u64;
            // A copy, so that an entry does not keep a large body alive.
            entry.body = Bytes::copy_from_slice(&request.body.bytes[..kept]);
            entry.model = request.body.model().map(str::to_owned);
            entry.stream = request.body.is_stream();
        });
    }

    async fn befall(&self, request: &Request, header: Option<&str>, reply: &mut Reply<'_, '_>) -> Result<(), Cut> {
        let seen = Seen {
            path: request.head.path(),
            model: request.body.model(),
            body: &request.body.bytes,
            is_reused: self.is_reused,
        };
        if let Some(fault) = self.worker.faults.of_request(&seen) {
            reply.suffer(fault);
        }
        let in_body = request.body.json.get("mock_fault").and_then(|text| text.as_str());
        for text in [header, in_body].into_iter().flatten() {
            match text.parse() {
                Ok(fault) => reply.suffer(fault),
                Err(bad) => {
                    reply.plain(self.worker.error(400, &format!("{bad}"))).await?;
                    return Err(Cut::Ended);
                }
            }
        }
        Ok(())
    }
}

/// Why nothing more is read.
enum Closed {
    /// The caller closed, broke off, or was silent for too long.
    Silently,
    /// What it sent is refused.
    Refused(BadRequest),
}

/// The receiving side of a connection.
struct Inlet<'s> {
    reader: ReadHalf<'s>,
    buffer: BytesMut,
}

impl Inlet<'_> {
    async fn head(&mut self, limits: &Limits) -> Result<Head, Closed> {
        loop {
            if !self.buffer.is_empty()
                && let Some(head) = Head::take(&mut self.buffer, limits.head_bytes_max).map_err(Closed::Refused)?
            {
                return Ok(head);
            }
            self.buffer.reserve(8 * 1024);
            match tokio::time::timeout(limits.keep_alive, self.reader.read_buf(&mut self.buffer)).await {
                Ok(Ok(bytes)) if bytes > 0 => {}
                _ => return Err(Closed::Silently),
            }
        }
    }

    /// Reads a body to its end and keeps at most `kept_max` bytes of it.
    async fn body(&mut self, head: &Head, kept_max: usize, limits: &Limits) -> Result<Bytes, Closed> {
        let mut rest = BodyReader::new(head.length);
        let mut kept = BytesMut::new();
        let mut bytes_total = 0;
        loop {
            while let Some(piece) = rest.take(&mut self.buffer).map_err(Closed::Refused)? {
                bytes_total += piece.len();
                if bytes_total > limits.body_bytes_max {
                    return Err(Closed::Refused(BadRequest::BodyTooLarge));
                }
                if kept.is_empty() {
                    kept = piece;
                } else if kept.len() < kept_max {
                    kept.unsplit(piece);
                }
                kept.truncate(kept_max);
            }
            if rest.is_done() {
                return Ok(kept.freeze());
            }
            self.buffer.reserve(64 * 1024);
            match tokio::time::timeout(limits.body_pause, self.reader.read_buf(&mut self.buffer)).await {
                Ok(Ok(bytes)) if bytes > 0 => {}
                _ => return Err(Closed::Silently),
            }
        }
    }

    /// Returns once the caller has closed its side or the connection is broken.
    async fn gone(&mut self) {
        loop {
            if self.buffer.len() >= AHEAD_BYTES_MAX {
                pending::<()>().await;
            }
            self.buffer.reserve(1024);
            match self.reader.read_buf(&mut self.buffer).await {
                Ok(bytes) if bytes > 0 => {}
                _ => return,
            }
        }
    }
}
