//! TLS: whom to trust, who we are, and HTTP/2.

use std::{fs, path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures_util::future::join_all;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::{RootCertStore, ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer, server::WebPkiClientVerifier};
use smg_infer::{Dispatched, FailureCode};
use tempfile::TempDir;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    Config, Error, TlsConfig, Upstream,
    testing::{Server, post, read_request, reply, text, upstream, worker, write},
};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

struct Leaf {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

fn leaf(authority: &Authority, name: &str, purpose: ExtendedKeyUsagePurpose) -> Leaf {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.extended_key_usages = vec![purpose];
    let key = KeyPair::generate().unwrap();
    Leaf { certificate: params.signed_by(&key, authority).unwrap(), key }
}

fn file(folder: &TempDir, name: &str, content: String) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    path
}

/// Settings of a server with `leaf`; with `clients`, it wants a certificate from them.
fn server_config(leaf: &Leaf, clients: Option<&Authority>, protocols: &[&[u8]]) -> Arc<ServerConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            roots.add(clients.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::try_from(leaf.key.serialize_der()).unwrap();
    let mut config = builder.with_single_cert(vec![leaf.certificate.der().clone()], key).unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

async fn secure_server<F, S>(config: Arc<ServerConfig>, serve: F) -> Server
where
    F: Fn(TlsStream<tokio::net::TcpStream>) -> S + Clone + Send + 'static,
    S: Future<Output = ()> + Send + 'static,
{
    let acceptor = TlsAcceptor::from(config);
    Server::start(move |stream, _| {
        let (acceptor, serve) = (acceptor.clone(), serve.clone());
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                serve(stream).await;
            }
        }
    })
    .await
}

async fn http1(mut stream: TlsStream<tokio::net::TcpStream>) {
    while read_request(&mut stream).await.is_some() {
        write(&mut stream, reply(200, "{}")).await;
    }
}

async fn send(config: &Config, url: &str) -> Result<u16, (FailureCode, Dispatched)> {
    let sent = upstream(config).send(&worker(url), post("{}")).await;
    sent.map(|response| response.status().as_u16()).map_err(|failure| (failure.code, failure.dispatched))
}

#[tokio::test]
async fn workers_are_believed_if_an_authority_vouches_for_their_name() {
    let (folder, authority) = (TempDir::new().unwrap(), authority());
    let ca = file(&folder, "ca.pem", authority.pem());
    let server_leaf = leaf(&authority, "localhost", ExtendedKeyUsagePurpose::ServerAuth);
    let server = secure_server(server_config(&server_leaf, None, &[]), http1).await;
    let port = server.address.port();

    let trusting = TlsConfig { ca_files: vec![ca], ..TlsConfig::default() };
    let renaming = TlsConfig { server_name: Some("localhost".to_owned()), ..trusting.clone() };
    let misnaming = TlsConfig { server_name: Some("example.com".to_owned()), ..trusting.clone() };
    let refused = Err((FailureCode::ConnectFailed, Dispatched::No));
    let check = async |tls: TlsConfig, host: &str, expected| {
        let config = Config { tls, ..Config::default() };
        assert_eq!(send(&config, &format!("https://{host}:{port}")).await, expected, "{host} {:?}", config.tls);
    };
    check(trusting.clone(), "localhost", Ok(200)).await;
    check(TlsConfig::default(), "localhost", refused).await;
    check(trusting, "127.0.0.1", refused).await;
    check(renaming, "127.0.0.1", Ok(200)).await;
    check(misnaming, "localhost", refused).await;
}

#[tokio::test]
async fn workers_that_want_to_know_the_gateway_are_shown_its_certificate() {
    let (folder, ours, other) = (TempDir::new().unwrap(), authority(), authority());
    let ca = file(&folder, "ca.pem", ours.pem());
    let server_leaf = leaf(&ours, "localhost", ExtendedKeyUsagePurpose::ServerAuth);
    let server = secure_server(server_config(&server_leaf, Some(&ours), &[b"http/1.1"]), http1).await;
    let url = format!("https://localhost:{}", server.address.port());

    let anonymous = TlsConfig { ca_files: vec![ca], ..TlsConfig::default() };
    let identified = |authority: &Authority, name: &str| {
        let leaf = leaf(authority, "smg", ExtendedKeyUsagePurpose::ClientAuth);
        TlsConfig {
            client_cert: Some(file(&folder, &format!("{name}.pem"), leaf.certificate.pem())),
            client_key: Some(file(&folder, &format!("{name}.key"), leaf.key.serialize_pem())),
            ..anonymous.clone()
        }
    };
    let with = |tls: &TlsConfig| Config { tls: tls.clone(), ..Config::default() };
    let right = identified(&ours, "right");
    let upstream = Upstream::new(&with(&right), &smg_runtime::metrics::Registrar::new()).unwrap();
    let worker = worker(&url);
    for _ in 0..2 {
        let body = upstream.send(&worker, post("{}")).await.unwrap().into_body();
        assert_eq!(text(body).await.unwrap(), "{}");
    }
    assert_eq!(server.accepted(), 1);
    // Probes and detection show it too: they go the same way.
    assert_eq!(crate::probe::probe(&upstream, &worker).await, Ok(()));
    assert!(crate::detect::detect(&upstream, &worker).await.is_ok());

    // In TLS 1.3 the client's handshake ends before the server has looked at its certificate, so a request may have
    // been written by the time the refusal arrives.
    assert!(send(&with(&anonymous), &url).await.is_err());
    assert!(send(&with(&identified(&other, "wrong")), &url).await.is_err());
}

#[tokio::test]
async fn files_that_do_not_fit_are_refused_before_anything_is_opened() {
    let (folder, authority) = (TempDir::new().unwrap(), authority());
    let one = leaf(&authority, "a", ExtendedKeyUsagePurpose::ClientAuth);
    let two = leaf(&authority, "b", ExtendedKeyUsagePurpose::ClientAuth);
    let cert = file(&folder, "one.pem", one.certificate.pem());
    let key = file(&folder, "one.key", one.key.serialize_pem());
    let other_key = file(&folder, "two.key", two.key.serialize_pem());
    let empty = file(&folder, "empty.pem", String::new());
    let check = |tls: TlsConfig, expected: fn(&Error) -> bool| {
        let config = Config { tls: tls.clone(), ..Config::default() };
        match Upstream::new(&config, &smg_runtime::metrics::Registrar::new()) {
            Ok(_) => panic!("{tls:?} was accepted"),
            Err(error) => assert!(expected(&error), "{tls:?}: {error}"),
        }
    };
    let identity = |cert: &PathBuf, key: &PathBuf| TlsConfig {
        client_cert: Some(cert.clone()),
        client_key: Some(key.clone()),
        ..TlsConfig::default()
    };
    let trust = |path: PathBuf| TlsConfig { ca_files: vec![path], ..TlsConfig::default() };
    check(trust(folder.path().join("missing.pem")), |error| matches!(error, Error::Pem { .. }));
    check(trust(empty.clone()), |error| matches!(error, Error::NoCertificate { .. }));
    check(trust(key.clone()), |error| matches!(error, Error::NoCertificate { .. }));
    check(identity(&cert, &other_key), |error| matches!(error, Error::Identity(_)));
    check(identity(&cert, &empty), |error| matches!(error, Error::Pem { .. }));
    check(identity(&empty, &key), |error| matches!(error, Error::NoCertificate { .. }));
    check(TlsConfig { client_key: None, ..identity(&cert, &key) }, |error| matches!(error, Error::HalfAnIdentity));
    let name = TlsConfig { server_name: Some("not a name".to_owned()), ..TlsConfig::default() };
    check(name, |error| matches!(error, Error::ServerName(_)));
}

/// An HTTP/2 server that answers each request with its body, but refuses those for `/refuse` and resets those for
/// `/reset`.
async fn http2(stream: TlsStream<tokio::net::TcpStream>) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let path = request.uri().path().to_owned();
        assert_eq!(request.uri().authority().map(|authority| authority.host()), Some("localhost"));
        match path.as_str() {
            "/refuse" => respond.send_reset(h2::Reason::REFUSED_STREAM),
            "/reset" => respond.send_reset(h2::Reason::INTERNAL_ERROR),
            "/leave" => connection.graceful_shutdown(),
            _ => {
                tokio::spawn(async move {
                    let mut body = request.into_body();
                    let mut whole = Vec::new();
                    while let Some(piece) = body.data().await {
                        let piece = piece.unwrap();
                        body.flow_control().release_capacity(piece.len()).unwrap();
                        whole.extend_from_slice(&piece);
                    }
                    let mut answer = respond.send_response(http::Response::new(()), false).unwrap();
                    answer.send_data(Bytes::from(whole), true).unwrap();
                });
            }
        }
    }
}

#[tokio::test]
async fn requests_share_one_connection_where_http2_is_spoken() {
    let (folder, authority) = (TempDir::new().unwrap(), authority());
    let ca = file(&folder, "ca.pem", authority.pem());
    let server_leaf = leaf(&authority, "localhost", ExtendedKeyUsagePurpose::ServerAuth);
    let server = secure_server(server_config(&server_leaf, None, &[b"h2"]), http2).await;
    let upstream =
        upstream(&Config { tls: TlsConfig { ca_files: vec![ca], ..TlsConfig::default() }, ..Config::default() });
    let worker = worker(&format!("https://localhost:{}", server.address.port()));

    let all =
        join_all(
            (0..50).map(|number| {
                let (upstream, worker) = (&upstream, &worker);
                async move {
                    text(upstream.send(worker, post(number.to_string())).await.unwrap().into_body()).await.unwrap()
                }
            }),
        );
    let expected: Vec<String> = (0..50).map(|number| number.to_string()).collect();
    assert_eq!(all.await, expected);
    assert_eq!(server.accepted(), 1);

    let fail = async |path: &'static str| {
        let outbound = crate::Outbound { path_and_query: path.into(), ..post("x") };
        let failure = upstream.send(&worker, outbound).await.unwrap_err();
        (failure.code, failure.dispatched)
    };
    assert_eq!(fail("/refuse").await, (FailureCode::UpstreamClosed, Dispatched::No));
    assert_eq!(fail("/reset").await, (FailureCode::UpstreamClosed, Dispatched::Maybe));
    assert_eq!(text(upstream.send(&worker, post("after")).await.unwrap().into_body()).await.unwrap(), "after");
    assert_eq!(server.accepted(), 1, "a stream that fails does not cost the connection");

    // The server says goodbye and drops what it had taken. Until that is known here, a request may still go to the old
    // connection, but then it was certainly not taken.
    assert_eq!(fail("/leave").await, (FailureCode::UpstreamClosed, Dispatched::Maybe));
    loop {
        match upstream.send(&worker, post("moved")).await {
            Ok(response) => break assert_eq!(text(response.into_body()).await.unwrap(), "moved"),
            Err(failure) => assert_eq!(failure.dispatched, Dispatched::No, "{failure}"),
        }
    }
    assert_eq!(server.accepted(), 2);
}

#[tokio::test]
async fn http2_is_not_spoken_where_it_is_switched_off() {
    let (folder, authority) = (TempDir::new().unwrap(), authority());
    let ca = file(&folder, "ca.pem", authority.pem());
    let server_leaf = leaf(&authority, "localhost", ExtendedKeyUsagePurpose::ServerAuth);
    let server = secure_server(server_config(&server_leaf, None, &[b"h2", b"http/1.1"]), http1).await;
    let tls = TlsConfig { ca_files: vec![ca], ..TlsConfig::default() };
    let config = Config { http2: false, tls, ..Config::default() };
    assert_eq!(send(&config, &format!("https://localhost:{}", server.address.port())).await, Ok(200));
}
