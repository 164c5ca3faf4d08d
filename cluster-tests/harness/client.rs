//! A small HTTP/1.1 client that sends exactly the bytes it is given, shows exactly those that come back, and can hang
//! up in every way.

use std::{io, net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::wait::{PATIENCE, within, within_time};

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Ask {
    /// A POST of JSON text, sent as it is.
    pub(crate) fn post(path: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::new("POST", path, body).field("content-type", "application/json")
    }

    /// A POST of a JSON value.
    pub(crate) fn json(path: &str, body: &Value) -> Self {
        Self::post(path, body.to_string())
    }

    /// A GET.
    pub(crate) fn get(path: &str) -> Self {
        Self::new("GET", path, "")
    }

    /// A request of any kind, without header fields beyond the length and the host.
    pub(crate) fn new(method: &str, path: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { method: method.to_owned(), path: path.to_owned(), fields: Vec::new(), body: body.into() }
    }

    /// The same request with one more header field.
    #[must_use]
    pub(crate) fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same request, which will suffer `fault` at the fake engine.
    #[must_use]
    pub(crate) fn fault(self, fault: &str) -> Self {
        self.field("x-mock-fault", fault)
    }

    /// As it goes over the wire.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\nhost: smg.test\r\n", self.method, self.path);
        for (name, value) in &self.fields {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if self.method != "GET" {
            text.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        text.push_str("\r\n");
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// The head of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
}

impl Head {
    /// The first field called `name`.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn has(&self, name: &str, word: &str) -> bool {
        self.field(name).is_some_and(|value| value.to_ascii_lowercase().contains(word))
    }
}

/// A piece of an answer's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Bytes of it.
    Data(Vec<u8>),
    /// Its end, as HTTP tells it.
    End,
    /// The connection ended first.
    Broken,
}

/// A whole answer, or what came of it.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    /// Whether the body came to the end that HTTP announced.
    pub(crate) is_whole: bool,
}

impl Answer {
    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub(crate) fn value(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The first header field called `name`.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head.field(name)
    }

    /// The body as server-sent events.
    pub(crate) fn events(&self) -> Vec<Event> {
        events(&self.text())
    }
}

/// One server-sent event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) name: Option<String>,
    pub(crate) data: String,
}

impl Event {
    /// The data as JSON.
    pub(crate) fn value(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// The whole events in `text`; what follows the last blank line is none.
pub(crate) fn events(text: &str) -> Vec<Event> {
    let text = text.replace("\r\n", "\n");
    let Some(end) = text.rfind("\n\n") else { return Vec::new() };
    let field = |block: &str, name: &str| -> Vec<String> {
        let of_line = |line: &str| line.strip_prefix(name).map(|value| value.trim_start().to_owned());
        block.lines().filter_map(of_line).collect()
    };
    let event = |block: &str| Event { name: field(block, "event:").pop(), data: field(block, "data:").join("\n") };
    text[..end].split("\n\n").filter(|block| !block.trim().is_empty()).map(event).collect()
}

/// What is still to come of a body.
#[derive(Clone, Copy, Debug)]
enum Rest {
    Nothing,
    Length(usize),
    ChunkSize,
    Chunk(usize),
    UntilClose,
}

/// A connection to a server.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    rest: Rest,
    /// Longest wait for the next bytes.
    patience: Duration,
}

/// Who tries to connect has a patience of its own for whole answers, which is shorter.
const LONG_PATIENCE: Duration = Duration::from_secs(300);

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Self {
        let stream = within("a connection", TcpStream::connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new(), rest: Rest::Nothing, patience: PATIENCE }
    }

    /// The same, or why there is none.
    pub(crate) async fn try_open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::new(), rest: Rest::Nothing, patience: LONG_PATIENCE })
    }

    /// Sends `bytes` as they are.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        within("room to write", self.stream.write_all(bytes)).await.unwrap();
    }

    /// Sends `bytes`; whether the other side still took them.
    pub(crate) async fn try_write(&mut self, bytes: &[u8]) -> bool {
        within_time(self.patience, "room to write", self.stream.write_all(bytes)).await.is_ok()
    }

    /// Sends a request.
    pub(crate) async fn send(&mut self, ask: &Ask) {
        self.write(&ask.bytes()).await;
    }

    /// The next head; interim ones are passed over.
    pub(crate) async fn head(&mut self) -> Head {
        match self.try_head().await {
            Some(head) => head,
            None => panic!("the connection ended before an answer: {:?}", String::from_utf8_lossy(&self.buffer)),
        }
    }

    /// The next head, or none if the connection ends first.
    pub(crate) async fn try_head(&mut self) -> Option<Head> {
        loop {
            while let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                let text = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 4);
                let head = parsed(&text);
                if head.status >= 200 {
                    self.rest = rest_of(&head);
                    return Some(head);
                }
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// The next piece of the body, as it comes.
    pub(crate) async fn piece(&mut self) -> Piece {
        loop {
            match self.rest {
                Rest::Nothing | Rest::Length(0) => {
                    self.rest = Rest::Nothing;
                    return Piece::End;
                }
                Rest::ChunkSize => {
                    if let Some(end) = find(&self.buffer, b"\r\n") {
                        let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                        let size = usize::from_str_radix(line.trim(), 16).unwrap_or_else(|_| panic!("chunk {line:?}"));
                        if size > 0 {
                            self.buffer.drain(..end + 2);
                            self.rest = Rest::Chunk(size);
                            continue;
                        }
                        if self.buffer.len() >= end + 4 {
                            self.buffer.drain(..end + 4);
                            self.rest = Rest::Nothing;
                            return Piece::End;
                        }
                    }
                }
                Rest::Chunk(size) if self.buffer.len() >= size + 2 => {
                    let data = self.buffer.drain(..size).collect();
                    self.buffer.drain(..2);
                    self.rest = Rest::ChunkSize;
                    return Piece::Data(data);
                }
                Rest::Length(left) if !self.buffer.is_empty() => {
                    let size = left.min(self.buffer.len());
                    self.rest = Rest::Length(left - size);
                    return Piece::Data(self.buffer.drain(..size).collect());
                }
                Rest::UntilClose if !self.buffer.is_empty() => return Piece::Data(std::mem::take(&mut self.buffer)),
                _ => {}
            }
            if !self.fill().await {
                return if matches!(self.rest, Rest::UntilClose) { Piece::End } else { Piece::Broken };
            }
        }
    }

    /// Reads until the body so far contains `text`; the body so far.
    pub(crate) async fn read_until(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        loop {
            match self.piece().await {
                Piece::Data(data) => seen.extend(data),
                end => panic!("{end:?} before {text:?} in {:?}", String::from_utf8_lossy(&seen)),
            }
            if find(&seen, text.as_bytes()).is_some() {
                return String::from_utf8_lossy(&seen).into_owned();
            }
        }
    }

    /// The rest of the body; whether it came to its end.
    pub(crate) async fn rest(&mut self) -> (Vec<u8>, bool) {
        let mut body = Vec::new();
        loop {
            match self.piece().await {
                Piece::Data(data) => body.extend(data),
                end => return (body, end == Piece::End),
            }
        }
    }

    /// Head and body.
    pub(crate) async fn answer(&mut self) -> Answer {
        let head = self.head().await;
        let (body, is_whole) = self.rest().await;
        Answer { status: head.status, head, body, is_whole }
    }

    /// Whether the other side closes without sending another byte.
    pub(crate) async fn is_closed_by_peer(&mut self) -> bool {
        self.buffer.is_empty() && !self.fill().await
    }

    /// Reads until the other side closes; everything that came.
    pub(crate) async fn until_closed(&mut self) -> Vec<u8> {
        while self.fill().await {}
        std::mem::take(&mut self.buffer)
    }

    /// Says that nothing more will be sent.
    pub(crate) async fn half_close(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Reads until the other side closes, whatever it sends.
    pub(crate) async fn drain(&mut self) {
        while self.fill().await {
            self.buffer.clear();
        }
    }

    /// Hangs up abruptly: the other side gets a reset.
    pub(crate) fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }

    /// Hangs up in the regular way.
    pub(crate) fn close(self) {
        drop(self.stream);
    }

    /// Reads more; whether there was more.
    async fn fill(&mut self) -> bool {
        self.buffer.reserve(16 * 1024);
        let read = self.stream.read_buf(&mut self.buffer);
        let read = within_time(self.patience, "bytes from the other side", read).await;
        matches!(read, Ok(size) if size > 0)
    }
}

/// Asks on a connection of its own.
pub(crate) async fn ask(address: SocketAddr, ask: &Ask) -> Answer {
    let mut connection = Connection::open(address).await;
    connection.send(ask).await;
    connection.answer().await
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

fn parsed(text: &str) -> Head {
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default().split(' ').nth(1).and_then(|status| status.parse().ok());
    let fields = lines.filter_map(|line| line.split_once(':'));
    Head {
        status: status.unwrap_or_else(|| panic!("no status in {text:?}")),
        fields: fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect(),
    }
}

fn rest_of(head: &Head) -> Rest {
    match head.field("content-length").and_then(|length| length.parse().ok()) {
        _ if matches!(head.status, 204 | 304) => Rest::Nothing,
        _ if head.has("transfer-encoding", "chunked") => Rest::ChunkSize,
        Some(length) => Rest::Length(length),
        None => Rest::UntilClose,
    }
}
