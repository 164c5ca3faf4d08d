//! TLS on the listening side, with certificates that can be replaced while the node runs.

use std::{io, path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// The certificate or key cannot be used. What was in force before stays in force.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or holds no PEM of the wanted kind.
    #[error("cannot read {path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// The certificate file holds no certificate.
    #[error("{path} holds no certificate")]
    Empty {
        /// Which file.
        path: PathBuf,
    },
    /// The key does not fit the certificate, or is of an unknown kind.
    #[error("the certificate and key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// Accepts TLS with the certificate in force. Clones share it.
#[derive(Clone)]
pub struct ServerTls {
    acceptor: TlsAcceptor,
    certificate: Arc<CertificateInForce>,
    certificate_path: PathBuf,
    key_path: PathBuf,
}

impl ServerTls {
    /// Reads a certificate chain and its key, both PEM.
    pub fn load(certificate_path: PathBuf, key_path: PathBuf) -> Result<Self, TlsError> {
        let key = read(&certificate_path, &key_path)?;
        let certificate = Arc::new(CertificateInForce(ArcSwap::from_pointee(key)));
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(certificate.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), certificate, certificate_path, key_path })
    }

    /// Reads the files again; new connections use what they hold now.
    pub fn reload(&self) -> Result<(), TlsError> {
        let key = read(&self.certificate_path, &self.key_path)?;
        self.certificate.0.store(Arc::new(key));
        Ok(())
    }

    pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        self.acceptor.accept(stream).await
    }
}

#[derive(Debug)]
struct CertificateInForce(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for CertificateInForce {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

fn read(certificate_path: &PathBuf, key_path: &PathBuf) -> Result<CertifiedKey, TlsError> {
    let file = |path: &PathBuf| {
        let path = path.clone();
        move |source| TlsError::File { path, source }
    };
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(certificate_path).and_then(Iterator::collect).map_err(file(certificate_path))?;
    if chain.is_empty() {
        return Err(TlsError::Empty { path: certificate_path.clone() });
    }
    let key = PrivateKeyDer::from_pem_file(key_path).map_err(file(key_path))?;
    Ok(CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())?)
}
