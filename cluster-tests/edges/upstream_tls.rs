//! TLS towards workers: a private authority, and a certificate of the gateway's own.

use std::{fs, path::Path, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use smg_mock_worker::{Config, MockWorker};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::chat;
use crate::harness::{Gateway, engine, serving, settled};

/// An authority and what it signs.
struct Authority {
    certificate: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

struct Signed {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key: KeyPair,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "a private authority");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate: certificate.der().clone(), pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    fn sign(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> Signed {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Signed { certificate: certificate.der().clone(), certificate_pem: certificate.pem(), key }
    }
}

/// An engine that is reached only over TLS, by those who show a certificate of the authority.
struct SecureEngine {
    engine: MockWorker,
    url: String,
    _accepting: JoinSet<()>,
}

impl SecureEngine {
    async fn start(authority: &Authority, name: &str) -> Self {
        let engine = engine(Config::default()).await;
        let identity = authority.sign(name, ExtendedKeyUsagePurpose::ServerAuth);
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(identity.key.serialize_der()));
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![identity.certificate], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://127.0.0.1:{}", listener.local_addr().unwrap().port());
        let mut accepting = JoinSet::new();
        accepting.spawn(terminate(listener, TlsAcceptor::from(Arc::new(config)), engine.address()));
        Self { engine, url, _accepting: accepting }
    }
}

async fn terminate(listener: TcpListener, acceptor: TlsAcceptor, engine: std::net::SocketAddr) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        connections.spawn(async move {
            if let Ok(mut secure) = acceptor.accept(stream).await {
                let mut plain = TcpStream::connect(engine).await.unwrap();
                let _either_side_ended = copy_bidirectional(&mut secure, &mut plain).await;
            }
        });
    }
}

/// Writes the gateway's files and returns flags that name them.
fn flags(folder: &Path, authority: &Authority, issuer: &Authority) -> Vec<String> {
    let own = issuer.sign("gateway.test", ExtendedKeyUsagePurpose::ClientAuth);
    let write = |name: &str, text: &str| {
        fs::write(folder.join(name), text).unwrap();
        folder.join(name).to_str().unwrap().to_owned()
    };
    vec![
        "--ca-cert-paths".to_owned(),
        write("ca.pem", &authority.pem),
        "--client-cert-path".to_owned(),
        write("own.pem", &own.certificate_pem),
        "--client-key-path".to_owned(),
        write("own.key", &own.key.serialize_pem()),
    ]
}

fn texts(flags: &[String]) -> Vec<&str> {
    flags.iter().map(String::as_str).collect()
}

#[tokio::test]
async fn both_sides_know_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let secure = SecureEngine::start(&authority, "127.0.0.1").await;
    let flags = flags(folder.path(), &authority, &authority);
    let gateway = Gateway::start(&texts(&flags), &[&secure.url]).await;
    let answer = gateway.ask(&chat()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(secure.engine.ledger().count(serving), 1);
}

#[tokio::test]
async fn a_name_may_be_expected_that_is_not_in_the_url() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let secure = SecureEngine::start(&authority, "engine.internal").await;
    let mut flags = flags(folder.path(), &authority, &authority);
    assert_never_asked(&Gateway::launch(&texts(&flags), &[&secure.url]).await, &secure).await;
    flags.extend(["--worker-server-name".to_owned(), "engine.internal".to_owned()]);
    let gateway = Gateway::start(&texts(&flags), &[&secure.url]).await;
    assert_eq!(gateway.ask(&chat()).await.status, 200);
}

/// The gateway tries, and nothing reaches the engine.
async fn assert_never_asked(gateway: &Gateway, secure: &SecureEngine) {
    settled("failed probes", async || {
        gateway.metric("smg_worker_health_checks_total", &[]).await >= 2.0
            && gateway.metric("smg_worker_health_checks_total", &[("result", "success")]).await == 0.0
    })
    .await;
    assert_eq!(secure.engine.ledger().entries().len(), 0);
    assert_eq!(gateway.worker(&secure.url).await["status"], "pending");
    assert_eq!(gateway.ask(&chat()).await.status, 503);
}

#[tokio::test]
async fn strangers_are_not_spoken_to() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::new(), Authority::new());
    let secure = SecureEngine::start(&authority, "127.0.0.1").await;
    let good = flags(folder.path(), &authority, &authority);
    // Without the authority, without a certificate, and with one that a stranger signed.
    assert_never_asked(&Gateway::launch(&texts(&good[2..]), &[&secure.url]).await, &secure).await;
    assert_never_asked(&Gateway::launch(&texts(&good[..2]), &[&secure.url]).await, &secure).await;
    let foreign = flags(folder.path(), &authority, &other);
    assert_never_asked(&Gateway::launch(&texts(&foreign), &[&secure.url]).await, &secure).await;
}
