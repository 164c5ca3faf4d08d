//! An engine that knows nothing: it keeps the bytes it gets and sends the bytes it is told to.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Mutex,
    task::JoinSet,
};

/// What to answer: pieces that leave one by one, each in a write of its own.
#[derive(Clone, Debug)]
pub(crate) struct RawAnswer(pub(crate) Vec<Vec<u8>>);

impl RawAnswer {
    /// A 200 with `body`, all at once.
    pub(crate) fn whole(content_type: &str, body: &[u8]) -> Self {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n", body.len());
        Self(vec![[head.as_bytes(), body].concat()])
    }

    /// A chunked 200 whose body comes in pieces of `size` bytes.
    pub(crate) fn chunked(content_type: &str, body: &[u8], size: usize) -> Self {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n");
        let mut pieces = vec![head.into_bytes()];
        for part in body.chunks(size.max(1)) {
            pieces.push([format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat());
        }
        pieces.push(b"0\r\n\r\n".to_vec());
        Self(pieces)
    }
}

/// A request as it came: everything, byte for byte.
#[derive(Clone, Debug, Default)]
pub(crate) struct RawRequest {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl RawRequest {
    /// The method and the path.
    pub(crate) fn line(&self) -> (&str, &str) {
        let mut words = self.head.split(' ');
        (words.next().unwrap_or_default(), words.next().unwrap_or_default())
    }

    /// The first header field called `name`.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }
}

/// A running raw engine, which lists the model `demo`.
#[derive(Debug)]
pub(crate) struct RawEngine {
    address: SocketAddr,
    shared: Arc<Shared>,
    _accepting: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Shared {
    requests: Mutex<Vec<RawRequest>>,
    answers: Mutex<VecDeque<RawAnswer>>,
}

impl RawEngine {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, shared.clone()));
        Self { address, shared, _accepting: accepting }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What the next POST is answered with.
    pub(crate) async fn next(&self, answer: RawAnswer) {
        self.shared.answers.lock().await.push_back(answer);
    }

    /// The POSTs since the last look.
    pub(crate) async fn taken(&self) -> Vec<RawRequest> {
        std::mem::take(&mut *self.shared.requests.lock().await)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve(stream, shared.clone()));
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    stream.set_nodelay(true).unwrap();
    let mut buffer = Vec::new();
    while let Some(request) = receive(&mut stream, &mut buffer).await {
        let (method, path) = request.line();
        let answer = match (method, path) {
            ("GET", "/v1/models") => RawAnswer::whole("application/json", MODELS),
            ("GET", "/health") => RawAnswer::whole("text/plain", b""),
            ("GET", _) => RawAnswer(vec![b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec()]),
            _ => {
                shared.requests.lock().await.push(request);
                let answer = shared.answers.lock().await.pop_front();
                answer.unwrap_or_else(|| RawAnswer::whole("application/json", b"{}"))
            }
        };
        for piece in answer.0 {
            if stream.write_all(&piece).await.is_err() {
                return;
            }
            // Lets the pieces arrive one by one, as far as the network pleases.
            tokio::time::sleep(Duration::from_micros(300)).await;
        }
    }
}

const MODELS: &[u8] = br#"{"object":"list","data":[{"id":"demo","object":"model","owned_by":"raw"}]}"#;

async fn receive(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<RawRequest> {
    let end = loop {
        match buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            Some(end) => break end + 4,
            None => fill(stream, buffer).await?,
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    let mut request = RawRequest { head, body: Vec::new() };
    buffer.drain(..end);
    match request.field("content-length").and_then(|length| length.parse::<usize>().ok()) {
        Some(length) => {
            while buffer.len() < length {
                fill(stream, buffer).await?;
            }
            request.body = buffer.drain(..length).collect();
        }
        None if request.field("transfer-encoding").is_some() => request.body = chunks(stream, buffer).await?,
        None => {}
    }
    Some(request)
}

async fn chunks(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let Some(end) = buffer.windows(2).position(|window| window == b"\r\n") else {
            fill(stream, buffer).await?;
            continue;
        };
        let size = usize::from_str_radix(std::str::from_utf8(&buffer[..end]).ok()?, 16).ok()?;
        while buffer.len() < end + 2 + size + 2 {
            fill(stream, buffer).await?;
        }
        body.extend_from_slice(&buffer[end + 2..end + 2 + size]);
        buffer.drain(..end + 2 + size + 2);
        if size == 0 {
            return Some(body);
        }
    }
}

async fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    buffer.reserve(16 * 1024);
    stream.read_buf(buffer).await.ok().filter(|size| *size > 0).map(drop)
}
