//! TLS on the traffic port.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy, rt::TokioExecutor};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::chat;
use crate::harness::{Ask, Gateway, engine, settled, wait_for, within};

/// A certificate for this machine, with its key, in files.
struct Identity {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key_pem: String,
}

impl Identity {
    fn new() -> Self {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        Self {
            certificate: made.cert.der().clone(),
            certificate_pem: made.cert.pem(),
            key_pem: made.signing_key.serialize_pem(),
        }
    }

    fn write(&self, (certificate, key): &(PathBuf, PathBuf)) {
        fs::write(certificate, &self.certificate_pem).unwrap();
        fs::write(key, &self.key_pem).unwrap();
    }

    /// A client that trusts this certificate and no other.
    fn client(&self, protocols: &[&str]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        config
    }

    async fn connect(&self, gateway: &Gateway, protocols: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
        let connector = TlsConnector::from(Arc::new(self.client(protocols)));
        let stream = TcpStream::connect(gateway.address()).await?;
        within("a handshake", connector.connect(ServerName::try_from("localhost").unwrap(), stream)).await
    }
}

async fn ask(stream: &mut TlsStream<TcpStream>, request: &Ask) -> String {
    stream.write_all(&request.clone().field("connection", "close").bytes()).await.unwrap();
    let mut answer = Vec::new();
    within("an answer", stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn files(folder: &Path) -> (PathBuf, PathBuf) {
    (folder.join("certificate.pem"), folder.join("key.pem"))
}

async fn launch(files: &(PathBuf, PathBuf), flags: &[&str], workers: &[&str]) -> Gateway {
    let mut all = vec!["--tls-cert-path", files.0.to_str().unwrap(), "--tls-key-path", files.1.to_str().unwrap()];
    all.extend(flags);
    Gateway::launch(&all, workers).await
}

#[tokio::test]
async fn requests_are_served_over_tls_in_both_versions_of_http() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    let identity = Identity::new();
    identity.write(&files);
    let worker = engine(smg_mock_worker::Config::default()).await;
    let gateway = launch(&files, &[], &[worker.url()]).await;
    settled("readiness", async || {
        let mut stream = identity.connect(&gateway, &[]).await.unwrap();
        ask(&mut stream, &Ask::get("/readyz")).await.starts_with("HTTP/1.1 200")
    })
    .await;

    for (offered, agreed) in
        [(vec!["h2", "http/1.1"], Some("h2")), (vec!["http/1.1"], Some("http/1.1")), (vec![], None)]
    {
        let stream = identity.connect(&gateway, &offered).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed.map(str::as_bytes), "{offered:?}");
    }
    let mut stream = identity.connect(&gateway, &["http/1.1"]).await.unwrap();
    let answer = ask(&mut stream, &chat()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(identity.client(&[]))
        .https_only()
        .enable_http2()
        .build();
    let client: legacy::Client<_, Full<Bytes>> =
        legacy::Client::builder(TokioExecutor::new()).http2_only(true).build(connector);
    let url = format!("https://localhost:{}/v1/chat/completions", gateway.address().port());
    let body = r#"{"model":"demo","messages":[{"role":"user","content":"Hi"}],"stream":true}"#;
    let request = http::Request::post(url).header("content-type", "application/json").body(Full::from(body)).unwrap();
    let answer = within("an answer", client.request(request)).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (200, http::Version::HTTP_2));
    let text = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(text.ends_with(b"data: [DONE]\n\n"));
}

#[tokio::test]
async fn who_does_not_speak_tls_is_hung_up_on() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    Identity::new().write(&files);
    let gateway = launch(&files, &["--header-timeout", "250ms"], &[]).await;
    for sent in ["", "\u{16}", "GET /health HTTP/1.1\r\nhost: a\r\n\r\n"] {
        let mut connection = gateway.connect().await;
        connection.write(sent.as_bytes()).await;
        // An alert may come; an answer may not.
        let came = connection.until_closed().await;
        assert!(!came.starts_with(b"HTTP/"), "{came:?}");
    }
    wait_for("the failed handshakes to be counted", async || {
        (gateway.metric("smg_http_connections_total", &[("result", "tls")]).await >= 3.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_new_certificate_is_taken_and_a_bad_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    let (old, new) = (Identity::new(), Identity::new());
    old.write(&files);
    let gateway = launch(&files, &["--config-watch-interval", "20ms"], &[]).await;
    let mut open = old.connect(&gateway, &[]).await.unwrap();
    assert!(new.connect(&gateway, &[]).await.is_err());

    fs::write(&files.0, "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n").unwrap();
    wait_for("a refused reload", async || {
        (gateway.metric("smg_config_reloads_total", &[("result", "refused")]).await >= 1.0).then_some(())
    })
    .await;
    old.connect(&gateway, &[]).await.unwrap();

    // The watcher may see the new certificate beside the old key; then it waits for the rest.
    new.write(&files);
    settled("the new certificate", async || new.connect(&gateway, &[]).await.is_ok()).await;
    assert!(old.connect(&gateway, &[]).await.is_err());
    assert!(ask(&mut open, &Ask::get("/health")).await.starts_with("HTTP/1.1 200"), "what is open stays open");
}

#[tokio::test]
async fn a_signal_makes_the_certificate_be_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    let (old, new) = (Identity::new(), Identity::new());
    old.write(&files);
    let gateway = launch(&files, &["--config-watch-interval", "0"], &[]).await;
    old.connect(&gateway, &[]).await.unwrap();
    new.write(&files);
    gateway.signal("HUP");
    settled("the new certificate", async || new.connect(&gateway, &[]).await.is_ok()).await;
}
