//! Judges certificates of peers: signed by an accepted authority, valid now, and of a node of this cluster. The same on both
//! sides of a connection, for under one authority there may be several clusters.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use crate::identity::{BadIdentity, Identity};

/// The cryptography of all connections of the mesh.
pub(crate) fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}

/// Judges certificates of peers.
#[derive(Debug)]
pub(crate) struct Verifier {
    cluster: String,
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Verifier {
    /// Accepts nodes of `cluster` that one of `roots` has signed.
    pub(crate) fn new(roots: RootCertStore, cluster: String) -> Result<Self, Error> {
        let roots = Arc::new(roots);
        let provider = provider();
        let algorithms = provider.signature_verification_algorithms;
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::new(provider))
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Self { cluster, roots, algorithms, clients })
    }

    /// Whether this certificate would be accepted of a peer, in either role.
    pub(crate) fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        self.verify_client_cert(leaf, chain, now)?;
        self.verify_as_server(leaf, chain, now)
    }

    fn verify_as_server(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, chain, now, self.algorithms.all)?;
        self.check_cluster(leaf)
    }

    fn check_cluster(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        let foreign = match Identity::of(leaf) {
            Ok(identity) if identity.cluster == self.cluster => return Ok(()),
            Ok(identity) => Foreign::Cluster { theirs: identity.cluster, ours: self.cluster.clone() },
            Err(bad) => Foreign::Unnamed(bad),
        };
        // Of all of rustls' errors this one alone shows the text as it is.
        Err(Error::General(foreign.to_string()))
    }
}

/// Why a certificate of an accepted authority is refused all the same.
#[derive(Debug, thiserror::Error)]
enum Foreign {
    #[error("the peer belongs to cluster '{theirs}', this node to '{ours}'")]
    Cluster { theirs: String, ours: String },
    #[error("the peer's certificate {0}")]
    Unnamed(BadIdentity),
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // No name of a host is checked: nodes are known by their own names, wherever they are.
        self.verify_as_server(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.clients.verify_client_cert(end_entity, intermediates, now)?;
        self.check_cluster(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
