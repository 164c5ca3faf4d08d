//! Small servers on loopback for the tests of this crate, well behaved and not.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use smg_base::{Secret, Timestamp};
use smg_fleet::{Fleet, FleetConfig, Origin, Worker, WorkerSpec};
use smg_runtime::metrics::Registrar;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{Config, Outbound, OutboundBody, ResponseBody, Upstream, resolve::Resolver};

/// A listener that gives each connection, with its number, to `serve`.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl Server {
    pub(crate) async fn start<F, S>(serve: F) -> Self
    where
        F: Fn(TcpStream, usize) -> S + Send + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, count.fetch_add(1, Ordering::SeqCst)));
            }
        });
        Self { address, accepted }
    }

    /// A server that answers every request with the same bytes, as long as the client keeps the connection.
    pub(crate) async fn answering(reply: impl Into<Bytes>) -> Self {
        let reply = reply.into();
        Self::start(move |mut stream, _| {
            let reply = reply.clone();
            async move {
                while read_request(&mut stream).await.is_some() {
                    if stream.write_all(&reply).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

/// An engine that knows some paths and answers 404 to others.
pub(crate) struct Engine {
    pub(crate) server: Server,
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
    pub(crate) routes: Arc<Mutex<Vec<(String, u16, String)>>>,
}

impl Engine {
    pub(crate) async fn start(routes: &[(&str, u16, &str)]) -> Self {
        let owned = |(path, status, body): &(&str, u16, &str)| ((*path).to_owned(), *status, (*body).to_owned());
        let routes = Arc::new(Mutex::new(routes.iter().map(owned).collect::<Vec<_>>()));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (known, log) = (routes.clone(), asked.clone());
        let server = Server::start(move |mut stream, _| {
            let (known, log) = (known.clone(), log.clone());
            async move {
                while let Some(request) = read_request(&mut stream).await {
                    let line = request.lines().next().unwrap_or_default();
                    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
                    let found = known.lock().iter().find(|(known, ..)| *known == path).cloned();
                    log.lock().push(path);
                    let (_, status, body) =
                        found.unwrap_or((String::new(), 404, "{\"detail\":\"Not Found\"}".to_owned()));
                    if stream.write_all(reply(status, &body).as_bytes()).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await;
        Self { server, asked, routes }
    }

    pub(crate) fn set(&self, path: &str, status: u16, body: &str) {
        let mut routes = self.routes.lock();
        routes.retain(|(known, ..)| known != path);
        routes.push((path.to_owned(), status, body.to_owned()));
    }
}

pub(crate) fn reply(status: u16, body: &str) -> String {
    format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// Reads one request, head and body, and gives back all of it as text; none if the client is gone.
pub(crate) async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            let whole = match length {
                Some(length) => bytes.len() >= end + 4 + length,
                None => !head.contains("chunked") || bytes.ends_with(b"0\r\n\r\n"),
            };
            if whole {
                return Some(String::from_utf8_lossy(&bytes).into_owned());
            }
        }
        match stream.read(&mut piece).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => bytes.extend_from_slice(&piece[..read]),
        }
    }
}

/// Waits until the client has closed the connection.
pub(crate) async fn until_closed(stream: &mut (impl AsyncRead + Unpin)) {
    let mut piece = [0; 4096];
    while matches!(stream.read(&mut piece).await, Ok(read) if read > 0) {}
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited in vain until {what}");
}

/// Lets the runtime take in everything that has already happened on sockets.
pub(crate) async fn settle_sockets() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (mut client, mut server) = (client.unwrap(), accepted.unwrap().0);
    server.write_all(b"x").await.unwrap();
    client.read_exact(&mut [0]).await.unwrap();
}

pub(crate) fn upstream(config: &Config) -> Upstream {
    Upstream::new(config, &Registrar::new()).unwrap()
}

pub(crate) fn upstream_with(config: &Config, resolver: Resolver) -> Upstream {
    Upstream::with_resolver(config, &Registrar::new(), resolver).unwrap()
}

pub(crate) fn spec(url: &str) -> WorkerSpec {
    WorkerSpec::new(url.parse().unwrap())
}

pub(crate) fn worker_of(spec: WorkerSpec, origin: Origin) -> Arc<Worker> {
    Fleet::new(FleetConfig::default()).add(spec, origin, Timestamp::ORIGIN).unwrap().worker
}

pub(crate) fn worker(url: &str) -> Arc<Worker> {
    worker_of(spec(url), Origin::Flag)
}

pub(crate) fn keyed_worker(url: &str, key: &str) -> Arc<Worker> {
    let mut spec = spec(url);
    spec.api_key = Some(Secret::new(key));
    worker_of(spec, Origin::Flag)
}

pub(crate) fn post(body: impl Into<Bytes>) -> Outbound {
    let body = OutboundBody::Full(body.into());
    Outbound { method: Method::POST, path_and_query: "/v1/x".into(), headers: HeaderMap::new(), body }
}

/// Reads a body to its end.
pub(crate) async fn text(body: ResponseBody) -> Result<String, hyper::Error> {
    Ok(String::from_utf8(body.collect().await?.to_bytes().to_vec()).unwrap())
}

/// Echoes nothing; used where a stream must only be written to.
pub(crate) async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: impl AsRef<[u8]>) {
    stream.write_all(bytes.as_ref()).await.unwrap();
    stream.flush().await.unwrap();
}
