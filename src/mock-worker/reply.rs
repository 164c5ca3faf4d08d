//! Answers as they leave: heads, chunks, events, and the faults that befall them.

use std::{
    future::pending,
    io::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{io::AsyncWriteExt, net::tcp::WriteHalf, time::Instant};

use crate::{
    config::EventFraming,
    faults::{Action, Fault, Point},
    http1::Head,
    ledger::{Outcome, Record},
};

/// Bytes that may be held before they are written.
const HELD_BYTES_MAX: usize = 32 * 1024;

const EVENT_STREAM: &str = "text/event-stream; charset=utf-8";

/// Why an answer stops before its end.
#[derive(Debug)]
pub(crate) enum Cut {
    /// The caller went away.
    Gone,
    /// A fault closes the connection.
    Close(Ending),
    /// A fault ended the answer; the connection lives on.
    Ended,
}

/// How a connection closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Fin,
    Rst,
}

/// What becomes of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Sent,
    Garbled,
    Dropped,
}

/// How the end of the body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length,
    Chunks,
    Close,
}

/// A plain answer.
#[derive(Debug, Default)]
pub(crate) struct Plain {
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    /// Further fields of the head.
    pub(crate) fields: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
}

/// The head of a stream.
#[derive(Debug)]
pub(crate) struct StreamHead {
    /// Further fields of the head.
    pub(crate) fields: Vec<(&'static str, String)>,
    /// What the engine would send if it failed midway.
    pub(crate) error_event: Vec<u8>,
}

/// Writes one answer.
pub(crate) struct Reply<'a, 's> {
    socket: &'a mut WriteHalf<'s>,
    /// Bytes that wait to be written; the connection's own, so that it is allocated once.
    out: &'a mut Vec<u8>,
    pub(crate) record: Record,
    fault: Fault,
    event_framing: EventFraming,
    /// Fields that every answer of this worker has, with their line ends.
    identity: &'a str,
    framing: Framing,
    is_http11: bool,
    is_head: bool,
    keeps_alive: bool,
    status: Option<u16>,
    /// Events that will share a chunk.
    shared: Vec<u8>,
    error_event: Vec<u8>,
    events: u64,
    body_bytes: u64,
    first_byte: Option<Instant>,
}

impl<'a, 's> Reply<'a, 's> {
    pub(crate) fn new(socket: &'a mut WriteHalf<'s>, out: &'a mut Vec<u8>, record: Record, head: &Head) -> Self {
        out.clear();
        Self {
            socket,
            out,
            record,
            fault: Fault::default(),
            event_framing: EventFraming::Chunk,
            identity: "",
            framing: Framing::Length,
            is_http11: head.is_http11,
            is_head: head.method() == "HEAD",
            keeps_alive: head.keeps_alive(),
            status: None,
            shared: Vec::new(),
            error_event: Vec::new(),
            events: 0,
            body_bytes: 0,
            first_byte: None,
        }
    }

    /// Sets what the worker adds to every head, and how its events leave.
    pub(crate) fn dress(&mut self, identity: &'a str, event_framing: EventFraming) {
        self.identity = identity;
        self.event_framing = event_framing;
    }

    /// Lets `fault` befall this answer.
    pub(crate) fn suffer(&mut self, fault: Fault) {
        if !fault.is_none() {
            self.fault.join(fault);
            let text = self.fault.to_string();
            self.record.note(|entry| entry.fault = Some(text));
        }
    }

    pub(crate) fn fault(&self) -> &Fault {
        &self.fault
    }

    /// No further request on this connection.
    pub(crate) fn close_after(&mut self) {
        self.keeps_alive = false;
    }

    /// Tells a caller who waits with the body to send it.
    pub(crate) async fn allow_body(&mut self) -> Result<(), Cut> {
        self.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        self.flush().await
    }

    /// Does what is due at `point`.
    pub(crate) async fn reach(&mut self, point: Point) -> Result<(), Cut> {
        if self.fault.steps.is_empty() {
            return Ok(());
        }
        let actions: Vec<Action> = self.fault.at(point).collect();
        for action in actions {
            self.act(action).await?;
        }
        Ok(())
    }

    /// Sends a whole answer.
    pub(crate) async fn plain(&mut self, plain: Plain) -> Result<(), Cut> {
        self.reach(Point::Head).await?;
        self.framing = Framing::Length;
        self.head(&plain, Some(plain.body.len()));
        if self.is_head {
            return self.flush().await;
        }
        if self.fault.acts_at(Point::Body) {
            self.flush().await?;
            self.reach(Point::Body).await?;
        }
        match self.fate_of_event(1).await? {
            Fate::Sent => self.body(&plain.body).await?,
            Fate::Garbled => self.body(&garbled(&plain.body)).await?,
            Fate::Dropped => {}
        }
        self.reach(Point::End).await?;
        self.flush().await
    }

    /// Begins a stream of events.
    pub(crate) async fn stream(&mut self, StreamHead { fields, error_event }: StreamHead) -> Result<(), Cut> {
        self.reach(Point::Head).await?;
        self.framing = if self.is_http11 { Framing::Chunks } else { Framing::Close };
        self.keeps_alive &= self.is_http11;
        self.error_event = error_event;
        if !self.fault.is_none() && self.event_framing == EventFraming::Coalesce {
            self.event_framing = EventFraming::Chunk;
        }
        self.head(&Plain { status: 200, content_type: EVENT_STREAM, fields, body: Vec::new() }, None);
        if self.fault.acts_at(Point::Body) {
            self.flush().await?;
            self.reach(Point::Body).await?;
        }
        if self.fault.garbage {
            self.body(b"\x00\xff\x16\x03 this is not a stream of events\n\x00\n\n").await?;
            self.end().await?;
            return Err(Cut::Ended);
        }
        Ok(())
    }

    /// Sends an event, its empty line included.
    pub(crate) async fn event(&mut self, event: &[u8]) -> Result<(), Cut> {
        self.one_event(event).await?;
        while self.fault.endless {
            self.one_event(event).await?;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Sends the event that ends a stream.
    pub(crate) async fn terminal(&mut self, event: &[u8]) -> Result<(), Cut> {
        if self.fault.no_terminal { Ok(()) } else { self.one_event(event).await }
    }

    /// Ends the stream.
    pub(crate) async fn end(&mut self) -> Result<(), Cut> {
        self.share_chunk();
        self.reach(Point::End).await?;
        if self.framing == Framing::Chunks {
            self.out.extend_from_slice(b"0\r\n\r\n");
        }
        self.flush().await
    }

    /// Lets everything leave, then waits.
    pub(crate) async fn pause(&mut self, duration: Duration) -> Result<(), Cut> {
        self.flush().await?;
        if !duration.is_zero() {
            tokio::time::sleep(duration).await;
        }
        Ok(())
    }

    /// Sends bytes that are framed already; how many bytes and events the body has is for the ledger.
    pub(crate) async fn prepared(&mut self, answer: &[u8], (body_bytes, events): (usize, usize)) -> Result<(), Cut> {
        self.status = Some(200);
        self.first_byte.get_or_insert_with(Instant::now);
        self.body_bytes = body_bytes as u64;
        self.events = events as u64;
        self.socket.write_all(answer).await.map_err(|_| Cut::Gone)
    }

    /// Writes what waits.
    pub(crate) async fn flush(&mut self) -> Result<(), Cut> {
        self.share_chunk();
        if self.out.is_empty() {
            return Ok(());
        }
        if self.body_bytes > 0 && self.first_byte.is_none() {
            let now = Instant::now();
            self.first_byte = Some(now);
            self.record.note(|entry| entry.first_token = Some(now));
        }
        match self.fault.fragment {
            None => self.socket.write_all(self.out).await.map_err(|_| Cut::Gone)?,
            Some(bytes) => {
                for piece in self.out.chunks(bytes) {
                    self.socket.write_all(piece).await.map_err(|_| Cut::Gone)?;
                    tokio::task::yield_now().await;
                }
            }
        }
        self.out.clear();
        Ok(())
    }

    /// Closes the ledger's entry and tells how the connection goes on: `None` if it does.
    pub(crate) fn finish(self, result: Result<(), Cut>) -> Option<Ending> {
        let (outcome, ending) = match result {
            Ok(()) if self.fault.hangup || !self.keeps_alive => (Outcome::Completed, Some(Ending::Fin)),
            Ok(()) => (Outcome::Completed, None),
            Err(Cut::Gone) => (Outcome::Aborted, Some(Ending::Fin)),
            Err(Cut::Close(ending)) => (Outcome::Faulted, Some(ending)),
            Err(Cut::Ended) => (Outcome::Faulted, (!self.keeps_alive).then_some(Ending::Fin)),
        };
        self.record.finish(outcome, |entry| {
            entry.status = self.status;
            entry.events = self.events;
            entry.response_bytes = self.body_bytes;
            entry.first_token = self.first_byte;
        });
        ending
    }

    async fn one_event(&mut self, event: &[u8]) -> Result<(), Cut> {
        let number = self.events + 1;
        let fate = self.fate_of_event(number).await?;
        self.events = number;
        match fate {
            Fate::Sent => self.body(event).await?,
            Fate::Garbled => self.body(&garbled(event)).await?,
            Fate::Dropped => {}
        }
        if self.event_framing == EventFraming::Write || self.out.len() + self.shared.len() >= HELD_BYTES_MAX {
            self.flush().await?;
        }
        Ok(())
    }

    async fn fate_of_event(&mut self, number: u64) -> Result<Fate, Cut> {
        let mut fate = Fate::Sent;
        if self.fault.steps.is_empty() {
            return Ok(fate);
        }
        let actions: Vec<Action> = self.fault.at_event(number).collect();
        for action in actions {
            match action {
                Action::Garble => fate = Fate::Garbled,
                Action::Drop => fate = Fate::Dropped,
                other => self.act(other).await?,
            }
        }
        Ok(fate)
    }

    async fn act(&mut self, action: Action) -> Result<(), Cut> {
        match action {
            Action::Delay(duration) => return self.pause(duration).await,
            Action::Garble | Action::Drop => return Ok(()),
            Action::BadChunk => self.out.extend_from_slice(b"zz\r\nnot a chunk\r\n"),
            Action::Error => {
                let event = std::mem::take(&mut self.error_event);
                self.frame(&event);
                if self.framing == Framing::Chunks {
                    self.out.extend_from_slice(b"0\r\n\r\n");
                }
            }
            Action::Stall | Action::Fin | Action::Rst => {}
        }
        self.flush().await?;
        match action {
            Action::Stall => pending().await,
            Action::Rst => Err(Cut::Close(Ending::Rst)),
            Action::Error if self.framing == Framing::Chunks => Err(Cut::Ended),
            _ => Err(Cut::Close(Ending::Fin)),
        }
    }

    /// Adds bytes of the body, stopping at the bytes that a fault names.
    async fn body(&mut self, payload: &[u8]) -> Result<(), Cut> {
        if self.fault.steps.is_empty() {
            self.frame(payload);
            return Ok(());
        }
        self.open_chunk(payload.len());
        let end = self.body_bytes + payload.len() as u64;
        let mut rest = payload;
        while let Some((at, action)) = self.fault.next_byte_step(self.body_bytes, end) {
            let before = usize::try_from(at - self.body_bytes).expect("the step lies within the payload");
            let (now, later) = rest.split_at(before);
            self.out.extend_from_slice(now);
            self.body_bytes = at;
            rest = later;
            self.act(action).await?;
        }
        self.out.extend_from_slice(rest);
        self.body_bytes = end;
        self.close_chunk();
        Ok(())
    }

    fn frame(&mut self, payload: &[u8]) {
        self.body_bytes += payload.len() as u64;
        if self.framing == Framing::Chunks && self.event_framing == EventFraming::Coalesce {
            self.shared.extend_from_slice(payload);
            return;
        }
        self.open_chunk(payload.len());
        self.out.extend_from_slice(payload);
        self.close_chunk();
    }

    fn open_chunk(&mut self, bytes: usize) {
        if self.framing == Framing::Chunks {
            open_chunk(self.out, bytes);
        }
    }

    fn close_chunk(&mut self) {
        if self.framing == Framing::Chunks {
            self.out.extend_from_slice(b"\r\n");
        }
    }

    fn share_chunk(&mut self) {
        if !self.shared.is_empty() {
            open_chunk(self.out, self.shared.len());
            self.out.extend_from_slice(&self.shared);
            self.out.extend_from_slice(b"\r\n");
            self.shared.clear();
        }
    }

    fn head(&mut self, plain: &Plain, length: Option<usize>) {
        let fault = &self.fault;
        self.status = Some(plain.status);
        if fault.raw_head {
            self.keeps_alive = false;
            self.out.extend_from_slice(b"\x15\x03\x01\x00\x02\x02\x50\r\n\r\n");
        }
        let out = &mut *self.out;
        let mut line = |text: std::fmt::Arguments<'_>| out.write_fmt(text).expect("a vector takes every write");
        line(format_args!("HTTP/1.1 {} {}\r\n", plain.status, reason(plain.status)));
        line(format_args!("date: {}\r\n", http_date()));
        line(format_args!("{}", self.identity));
        let content_type = fault.content_type.as_deref().unwrap_or(plain.content_type);
        if !content_type.is_empty() {
            line(format_args!("content-type: {content_type}\r\n"));
        }
        for (name, value) in &plain.fields {
            line(format_args!("{name}: {value}\r\n"));
        }
        if let Some(seconds) = &fault.retry_after {
            line(format_args!("retry-after: {seconds}\r\n"));
        }
        if fault.header_padding > 0 {
            line(format_args!("x-padding: {}\r\n", "p".repeat(fault.header_padding)));
        }
        match length {
            Some(bytes) => {
                line(format_args!("content-length: {}\r\n", (bytes as u64).saturating_add_signed(fault.length_error)));
            }
            None if self.framing == Framing::Chunks => line(format_args!("transfer-encoding: chunked\r\n")),
            None => {}
        }
        if !self.keeps_alive {
            line(format_args!("connection: close\r\n"));
        }
        self.out.extend_from_slice(b"\r\n");
    }
}

/// Appends the header of a chunk of `bytes` bytes.
pub(crate) fn open_chunk(out: &mut Vec<u8>, bytes: usize) {
    write!(out, "{bytes:x}\r\n").expect("a vector takes every write");
}

/// The same number of bytes, of which none makes sense; the line structure of events stays.
fn garbled(event: &[u8]) -> Vec<u8> {
    let scramble = |byte: &u8| if byte.is_ascii_alphanumeric() || b"\"{}[]".contains(byte) { b'#' } else { *byte };
    match event.strip_prefix(b"data:") {
        Some(rest) => b"data:".iter().copied().chain(rest.iter().map(scramble)).collect(),
        None => event.iter().map(scramble).collect(),
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        422 => "Unprocessable Entity",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        529 => "Overloaded",
        _ => "Status",
    }
}

/// The time as RFC 9110 §5.6.7 wants it. The civil date follows H. Hinnant, "chrono-compatible low-level date
/// algorithms", 2013.
fn http_date() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, second) = (now / 86_400, now % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 2 } else { month_from_march - 10 };
    let year = year_of_era + era * 400 + u64::from(month < 2);
    let name =
        |names: &'static str, index: u64| names.split(' ').nth(usize::try_from(index).unwrap_or(0)).unwrap_or("");
    let weekday = name("Thu Fri Sat Sun Mon Tue Wed", days % 7);
    let month = name("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec", month);
    format!("{weekday}, {day:02} {month} {year} {:02}:{:02}:{:02} GMT", second / 3600, second / 60 % 60, second % 60)
}
