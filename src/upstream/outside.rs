//! Documents of servers that are no workers, such as an identity provider: one request each, over a connection of its own.
//!
//! Where such a server is was not decided by an operator alone: one document names the next. So every connection is opened under
//! rules for addresses, no redirect is followed, and an answer is bounded in bytes and time.

use std::{future::pending, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use smg_fleet::{Scheme, WorkerUrl};
use tokio::time::timeout;

use crate::{
    Error,
    config::TlsConfig,
    connect::{ConnectError, Connector, Target},
    resolve::Resolver,
    rules::{RefusedUrl, UrlRules},
    tls::Tls,
};

/// How servers that are no workers are asked.
#[derive(Clone, Debug)]
pub struct OutsideConfig {
    /// Addresses that they may have.
    pub rules: UrlRules,
    /// Whether they must be asked over TLS.
    pub security: Security,
    /// PEM files with certificate authorities that are trusted beside the public ones.
    pub ca_files: Vec<PathBuf>,
    /// How long a connection may take to open.
    pub connect_timeout: Duration,
    /// How long all of an answer may take, the connection included.
    pub timeout: Duration,
}

/// Whether a server must be asked over TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// It must.
    Tls,
    /// It may be asked in clear.
    AllowPlain,
}

/// The client to servers that are no workers.
pub struct Outside {
    connector: Connector,
    rules: Arc<UrlRules>,
    security: Security,
    timeout: Duration,
}

/// Why a document cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OutsideError {
    /// The text is no URL that is asked.
    #[error("it is no url with http or https and a host, or it holds credentials")]
    Url,
    /// It would be asked in clear.
    #[error("it is not https, and plain http is not allowed")]
    Plain,
    /// Its address is not one that it may have.
    #[error("{0}")]
    Address(String),
    /// There is no connection.
    #[error("{0}")]
    Connect(String),
    /// The answer broke off, or is none.
    #[error("it does not speak http: {0}")]
    Http(#[source] hyper::Error),
    /// The answer has another status than 200.
    #[error("it answers with status {}{}", .0.as_u16(), if .0.is_redirection() { ", and redirects are not followed" } else { "" })]
    Status(StatusCode),
    /// The answer is larger than it may be.
    #[error("its answer has more than {0} bytes")]
    TooLarge(usize),
    /// The answer was not complete in time.
    #[error("it does not answer within {0:?}")]
    Timeout(Duration),
}

/// The largest head of an answer.
const HEAD_BYTES_MAX: usize = 32 << 10;

impl Outside {
    /// Reads certificates; opens nothing.
    pub fn new(config: &OutsideConfig) -> Result<Self, Error> {
        Self::with_resolver(config, Resolver::System)
    }

    fn with_resolver(config: &OutsideConfig, resolver: Resolver) -> Result<Self, Error> {
        let tls = TlsConfig { ca_files: config.ca_files.clone(), ..TlsConfig::default() };
        let connector = Connector { resolver, tls: Tls::new(&tls, &[b"http/1.1"])?, timeout: config.connect_timeout };
        let rules = Arc::new(config.rules.clone());
        Ok(Self { connector, rules, security: config.security, timeout: config.timeout })
    }

    /// Whether a URL is one that would be asked, as far as its text tells.
    pub fn check(url: &str, security: Security) -> Result<(), OutsideError> {
        Place::read(url, security).map(|_| ())
    }

    /// The body of the answer to a GET, if its status is 200 and it has at most `bytes_max` bytes.
    pub async fn get(&self, url: &str, bytes_max: usize) -> Result<Vec<u8>, OutsideError> {
        let place = Place::read(url, self.security)?;
        let whole = timeout(self.timeout, self.ask(place, bytes_max)).await;
        whole.unwrap_or(Err(OutsideError::Timeout(self.timeout)))
    }

    async fn ask(&self, place: Place, bytes_max: usize) -> Result<Vec<u8>, OutsideError> {
        let host = HeaderValue::from_str(place.origin.authority()).expect("the authority of a url is visible ascii");
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = place.path.parse().map_err(|_| OutsideError::Url)?;
        request.headers_mut().insert(header::HOST, host);
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        let target = Target { url: place.origin, rules: self.rules.clone() };
        let stream = self.connector.connect(&target).await?;
        let mut http1 = http1::Builder::new();
        http1.max_header_size(HEAD_BYTES_MAX);
        let (mut sender, connection) = http1.handshake(TokioIo::new(stream)).await.map_err(OutsideError::Http)?;
        let answered = async {
            let (head, mut body) = sender.send_request(request).await.map_err(OutsideError::Http)?.into_parts();
            if head.status != StatusCode::OK {
                return Err(OutsideError::Status(head.status));
            }
            let mut whole = Vec::new();
            while let Some(frame) = body.frame().await {
                let Ok(piece) = frame.map_err(OutsideError::Http)?.into_data() else { continue };
                if whole.len() + piece.len() > bytes_max {
                    return Err(OutsideError::TooLarge(bytes_max));
                }
                whole.extend_from_slice(&piece);
            }
            Ok(whole)
        };
        // What goes wrong with the connection, the answer tells; when it ends in order, there is still something to read.
        let driven = async {
            let _told = connection.await;
            pending::<()>().await;
        };
        tokio::select! {
            answer = answered => answer,
            () = driven => Err(OutsideError::Timeout(self.timeout)),
        }
    }
}

/// A URL as a server, and the path and query there.
struct Place {
    origin: WorkerUrl,
    path: String,
}

impl Place {
    fn read(url: &str, security: Security) -> Result<Self, OutsideError> {
        let (scheme, rest) = url.split_once("://").ok_or(OutsideError::Url)?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let path = path.split('#').next().unwrap_or_default();
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let origin: WorkerUrl = format!("{scheme}://{authority}").parse().map_err(|_| OutsideError::Url)?;
        if security == Security::Tls && origin.scheme() == Scheme::Http {
            return Err(OutsideError::Plain);
        }
        Ok(Self { origin, path })
    }
}

impl From<ConnectError> for OutsideError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Refused(RefusedUrl::Address { address, reason }) => {
                Self::Address(format!("its address {address} is {reason}"))
            }
            error => Self::Connect(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer};
    use tokio::io::AsyncWriteExt;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::{
        rules::Unlisted,
        testing::{Server, read_request, reply, until_closed},
    };

    fn config() -> OutsideConfig {
        OutsideConfig {
            rules: UrlRules {
                allow: vec!["127.0.0.1".parse().unwrap()],
                unlisted: Unlisted::Public,
                ..UrlRules::default()
            },
            security: Security::AllowPlain,
            ca_files: Vec::new(),
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(10),
        }
    }

    /// The body, or what an operator is told.
    async fn got(config: &OutsideConfig, url: &str) -> Result<String, String> {
        let resolver = Resolver::table([
            ("localhost", vec!["127.0.0.1"]),
            ("inside.test", vec!["10.0.0.1"]),
            ("clouds.test", vec!["169.254.169.254"]),
        ]);
        let outside = Outside::with_resolver(config, resolver).unwrap();
        let body = outside.get(url, 64).await.map_err(|error| error.to_string())?;
        Ok(String::from_utf8(body).unwrap())
    }

    #[test]
    fn urls_come_apart_into_host_and_path() {
        let check = |url: &str, expected: Option<(&str, &str)>| {
            let place = Place::read(url, Security::AllowPlain).ok();
            let parts = place.as_ref().map(|place| (place.origin.as_str(), &*place.path));
            assert_eq!(parts, expected, "{url}");
        };
        check("https://id.test/a/b?c=d#e", Some(("https://id.test", "/a/b?c=d")));
        check("http://127.0.0.1:8080", Some(("http://127.0.0.1:8080", "/")));
        check("https://id.test?x", Some(("https://id.test", "/?x")));
        check("https://id.test//evil.test/x", Some(("https://id.test", "//evil.test/x")));
        check("file:///etc/passwd", None);
        check("gopher://id.test/", None);
        check("https://user:password@id.test/", None);
        check("https://", None);
        check("id.test/keys", None);
        assert!(matches!(Outside::check("http://id.test", Security::Tls), Err(OutsideError::Plain)));
        assert!(Outside::check("https://id.test", Security::Tls).is_ok());
    }

    #[tokio::test]
    async fn a_document_is_whole_and_small_or_refused() {
        let check = async |answer: &str, expected: Result<&str, &str>| {
            let (answer, told) = (answer.to_owned(), answer.to_owned());
            let server = Server::start(move |mut stream, _| {
                let answer = answer.clone();
                async move {
                    let _asked = read_request(&mut stream).await;
                    let _gone = stream.write_all(answer.as_bytes()).await;
                }
            })
            .await;
            let got = got(&config(), &format!("{}/keys?v=1", server.url())).await;
            match expected {
                Ok(body) => assert_eq!(got.as_deref(), Ok(body), "{told}"),
                Err(words) => assert!(got.as_ref().is_err_and(|error| error.contains(words)), "{told}: {got:?}"),
            }
        };
        check(&reply(200, "{}"), Ok("{}")).await;
        check("HTTP/1.1 200 X\r\n\r\n{}", Ok("{}")).await;
        check("HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", Ok("{}")).await;
        check(&reply(404, "{}"), Err("status 404")).await;
        check(&reply(201, "{}"), Err("status 201")).await;
        let moved = "HTTP/1.1 302 X\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n";
        check(moved, Err("redirects are not followed")).await;
        check(&reply(200, &"x".repeat(64)), Ok(&"x".repeat(64))).await;
        check(&reply(200, &"x".repeat(65)), Err("more than 64 bytes")).await;
        let endless = format!("HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n{}", "8\r\nabcdefgh\r\n".repeat(9));
        check(&endless, Err("more than 64 bytes")).await;
        check("HTTP/1.1 200 X\r\ncontent-length: 9\r\n\r\n{}", Err("does not speak http")).await;
        check(&format!("HTTP/1.1 200 X\r\nx: {}\r\n\r\n", "x".repeat(40_000)), Err("does not speak http")).await;
        check("SSH-2.0-server\r\n", Err("does not speak http")).await;
        check("", Err("does not speak http")).await;
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_not_waited_for() {
        let server = Server::start(|mut stream, _| async move { until_closed(&mut stream).await }).await;
        let config = OutsideConfig { timeout: Duration::from_millis(50), ..config() };
        assert_eq!(got(&config, &server.url()).await, Err("it does not answer within 50ms".to_owned()));
    }

    #[tokio::test]
    async fn addresses_are_judged_when_a_connection_is_opened() {
        let check = async |config: &OutsideConfig, url: &str, words: &str| {
            let got = got(config, url).await;
            assert!(got.as_ref().is_err_and(|error| error.contains(words)), "{url}: {got:?}");
        };
        let server = Server::answering(reply(200, "{}")).await;
        let port = server.address.port();
        assert_eq!(got(&config(), &format!("http://localhost:{port}")).await.as_deref(), Ok("{}"));
        let public = OutsideConfig { rules: UrlRules { allow: Vec::new(), ..config().rules }, ..config() };
        check(&public, &server.url(), "its address 127.0.0.1 is private").await;
        check(&public, &format!("http://localhost:{port}"), "its address 127.0.0.1 is private").await;
        check(&public, &format!("http://[::ffff:127.0.0.1]:{port}"), "is private").await;
        check(&config(), "http://inside.test", "its address 10.0.0.1 is private").await;
        check(&config(), "http://clouds.test/latest/meta-data", "link-local").await;
        check(&config(), "http://0.0.0.0", "no address of a host").await;
        check(&config(), "http://unknown.test", "does not resolve").await;
        let secure = OutsideConfig { security: Security::Tls, ..config() };
        check(&secure, &server.url(), "plain http is not allowed").await;
        assert_eq!(server.accepted(), 1);
    }

    #[tokio::test]
    async fn a_server_is_believed_if_an_authority_vouches_for_its_name() {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(vec![cert.der().clone()], key).unwrap()));
        let server = Server::start(move |stream, _| {
            let acceptor = acceptor.clone();
            async move {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    let _asked = read_request(&mut stream).await;
                    let _gone = stream.write_all(reply(200, "{}").as_bytes()).await;
                }
            }
        })
        .await;
        let folder = tempfile::TempDir::new().unwrap();
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, cert.pem()).unwrap();
        let trusting = OutsideConfig { ca_files: vec![ca], security: Security::Tls, ..config() };
        let url = format!("https://localhost:{}", server.address.port());
        assert_eq!(got(&trusting, &url).await.as_deref(), Ok("{}"));
        let refused = got(&config(), &url).await.unwrap_err();
        assert!(refused.contains("UnknownIssuer"), "{refused}");
        let misnamed = got(&trusting, &format!("https://127.0.0.1:{}", server.address.port())).await.unwrap_err();
        assert!(misnamed.contains("certificate not valid for name"), "{misnamed}");
    }
}
