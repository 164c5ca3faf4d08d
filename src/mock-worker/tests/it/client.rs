//! A client that sees what an HTTP library would hide: chunks, cuts and resets.

use std::{io, net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// No test waits longer than this for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// An answer, as far as it came.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// The body's chunks, if it came in chunks.
    pub(crate) chunks: Vec<Vec<u8>>,
    pub(crate) end: End,
}

/// How an answer ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// As its framing says.
    Whole,
    /// The connection was closed before.
    #[default]
    Cut,
    /// The connection was reset before.
    Reset,
}

impl Answer {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let pairs = self.head.lines().filter_map(|line| line.split_once(": "));
        pairs.into_iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|bad| panic!("{bad}: {self:?}"))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The data of each event, as JSON; what is none becomes a string.
    pub(crate) fn events(&self) -> Vec<Value> {
        let text = self.text();
        let lines = text.lines().filter_map(|line| line.strip_prefix("data: "));
        lines.map(|data| serde_json::from_str(data).unwrap_or_else(|_| Value::from(data))).collect()
    }
}

/// A connection to a worker.
pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), buffer: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // The worker may close before everything is sent, which is for `answer` to see.
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    pub(crate) async fn request(&mut self, method: &str, path: &str, fields: &str, body: &[u8]) {
        let head = format!("{method} {path} HTTP/1.1\r\nhost: mock\r\n{fields}content-length: {}\r\n\r\n", body.len());
        self.send([head.as_bytes(), body].concat()).await;
    }

    pub(crate) async fn post(&mut self, path: &str, fields: &str, body: &Value) -> Answer {
        self.request("POST", path, fields, body.to_string().as_bytes()).await;
        self.answer().await
    }

    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        self.request("GET", path, "", b"").await;
        self.answer().await
    }

    /// Reads an answer to its end, however it ends.
    pub(crate) async fn answer(&mut self) -> Answer {
        timeout(PATIENCE, self.read_answer()).await.expect("an answer in time")
    }

    async fn read_answer(&mut self) -> Answer {
        let mut answer = Answer::default();
        if let Err(error) = self.read_into(&mut answer).await {
            answer.end = if error.kind() == io::ErrorKind::ConnectionReset { End::Reset } else { End::Cut };
        } else {
            answer.end = End::Whole;
        }
        answer
    }

    async fn read_into(&mut self, answer: &mut Answer) -> io::Result<()> {
        let head = self.read_until(b"\r\n\r\n").await?;
        answer.head = String::from_utf8_lossy(&head).into_owned();
        answer.status = answer.head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        if answer.field("transfer-encoding") == Some("chunked") {
            loop {
                let line = self.read_until(b"\r\n").await?;
                let digits = String::from_utf8_lossy(&line);
                let size = usize::from_str_radix(digits.trim(), 16)
                    .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
                let from = answer.body.len();
                self.read_exact(size, &mut answer.body).await?;
                self.read_until(b"\r\n").await?;
                if size == 0 {
                    return Ok(());
                }
                answer.chunks.push(answer.body[from..].to_vec());
            }
        }
        match answer.field("content-length").and_then(|length| length.parse().ok()) {
            Some(length) => self.read_exact(length, &mut answer.body).await,
            None => self.read_to_close(&mut answer.body).await,
        }
    }

    pub(crate) async fn read_until(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                return Ok(self.buffer.drain(..at + end.len()).collect());
            }
            self.fill().await?;
        }
    }

    async fn read_exact(&mut self, length: usize, body: &mut Vec<u8>) -> io::Result<()> {
        let mut left = length;
        loop {
            let now = left.min(self.buffer.len());
            body.extend(self.buffer.drain(..now));
            left -= now;
            if left == 0 {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    async fn read_to_close(&mut self, body: &mut Vec<u8>) -> io::Result<()> {
        loop {
            body.append(&mut self.buffer);
            match self.fill().await {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// One request on a connection of its own.
pub(crate) async fn post(address: SocketAddr, path: &str, fields: &str, body: &Value) -> Answer {
    Client::connect(address).await.post(path, fields, body).await
}

/// One request on a connection of its own.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Answer {
    Client::connect(address).await.get(path).await
}
