//! TLS towards workers: rustls with the aws-lc-rs provider, named explicitly, so that no other crate's choice of a
//! process-wide provider matters.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem, pem::PemObject},
};
use tokio_rustls::TlsConnector;

use crate::{Error, config::TlsConfig};

/// What every TLS connection to a worker is made with.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) connector: TlsConnector,
    /// Expected in certificates instead of the host in the URL.
    pub(crate) server_name: Option<ServerName<'static>>,
}

impl Tls {
    /// Reads the files and checks that they belong together. `protocols` are offered by ALPN, most wanted first.
    pub(crate) fn new(config: &TlsConfig, protocols: &[&[u8]]) -> Result<Self, Error> {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(Error::Tls)?
            .with_root_certificates(roots(config)?);
        let mut client = match (&config.client_cert, &config.client_key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => {
                builder.with_client_auth_cert(certificates(cert)?, private_key(key)?).map_err(Error::Identity)?
            }
            _ => return Err(Error::HalfAnIdentity),
        };
        client.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let server_name = config
            .server_name
            .as_ref()
            .map(|name| ServerName::try_from(name.clone()).map_err(|_| Error::ServerName(name.clone())));
        Ok(Self { connector: TlsConnector::from(Arc::new(client)), server_name: server_name.transpose()? })
    }
}

fn roots(config: &TlsConfig) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    for path in &config.ca_files {
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|source| Error::Authority { path: path.clone(), source })?;
        }
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let unreadable = |source: pem::Error| Error::Pem { kind: "certificates", path: path.to_owned(), source };
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect::<Result<_, _>>().map_err(unreadable)?;
    if certificates.is_empty() {
        return Err(Error::NoCertificate { path: path.to_owned() });
    }
    Ok(certificates)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| Error::Pem {
        kind: "a private key",
        path: path.to_owned(),
        source,
    })
}
