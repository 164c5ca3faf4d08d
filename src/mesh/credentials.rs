//! What a node shows to others, and whom it accepts.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    sign::CertifiedKey,
};
use smg_base::Secret;

use crate::{
    Error, FileProblem, Security, TOKEN_CHARS_MIN,
    identity::{self, Identity},
    token::{Authority, Keys},
    verify::{self, Verifier},
};

/// How much earlier than now a certificate of our own begins: clocks may differ by that much.
const BACKDATED: Duration = Duration::from_secs(24 * 3_600);

/// How long such a certificate is valid. It is made anew at every start, and whoever could make a false one has the token
/// itself, so a short life would protect nobody.
const LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

/// From what the throw-away identity is derived. Everybody knows it, so it proves nothing; it only is of use where nobody
/// else can come.
const THROWAWAY: &[u8] = b"smg throw-away identity";

/// What a node shows to others, and whom it accepts.
pub(crate) struct Credentials {
    /// This node's certificate, and those between it and its authority.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// The key of the certificate.
    pub(crate) key: PrivateKeyDer<'static>,
    /// Judges the certificates of others.
    pub(crate) verifier: Arc<Verifier>,
    /// When the certificate ends, in seconds since 1970.
    pub(crate) expires: i64,
}

impl Credentials {
    /// Those of `own` under `security`. Reads files.
    pub(crate) fn load(security: &Security, own: &Identity) -> Result<Self, Error> {
        match security {
            Security::Tokens(tokens) => {
                if tokens.is_empty() || tokens.iter().any(|token| token.expose().len() < TOKEN_CHARS_MIN) {
                    return Err(Error::WeakToken);
                }
                let authorities = tokens.iter().map(|token| Keys::of(token.expose().as_bytes()).authority());
                Self::minted(own, &authorities.collect::<Vec<_>>())
            }
            Security::Throwaway => Self::minted(own, &[Keys::of(THROWAWAY).authority()]),
            Security::Files { ca, cert, key, .. } => Self::read(own, ca, cert, key),
        }
    }

    /// A new certificate by the first of `authorities`, all of which are accepted.
    fn minted(own: &Identity, authorities: &[Authority]) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority.certificate.der().clone())?;
        }
        let now = UnixTime::now().as_secs();
        let (chain, key) = mint(own, &authorities[0], now);
        let verifier = Verifier::new(roots, own.cluster.clone())?;
        let expires = identity::expiry(&chain).unwrap_or_default();
        Ok(Self { chain: vec![chain], key, verifier: Arc::new(verifier), expires })
    }

    fn read(own: &Identity, ca: &[PathBuf], cert: &Path, key: &Path) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for path in ca {
            for authority in certificates(path)? {
                roots.add(authority).map_err(|error| problem(path, FileProblem::Authority(error)))?;
            }
        }
        let chain = certificates(cert)?;
        let leaf = &chain[0];
        let found = Identity::of(leaf).map_err(|bad| problem(cert, FileProblem::Identity(bad)))?;
        if found != *own {
            let (found, own) = (found.to_string(), own.to_string());
            let short = |uri: String| uri.trim_start_matches("smg://").to_owned();
            return Err(problem(cert, FileProblem::OtherNode { found: short(found), own: short(own) }));
        }
        let verifier = Verifier::new(roots, own.cluster.clone())?;
        let accepted = verifier.judge(leaf, &chain[1..], UnixTime::now());
        accepted.map_err(|error| problem(cert, FileProblem::NotAccepted(error)))?;
        let read = PrivateKeyDer::from_pem_file(key).map_err(|error| problem(key, FileProblem::Pem(error)))?;
        CertifiedKey::from_der(chain.clone(), read.clone_key(), &verify::provider())
            .map_err(|error| problem(key, FileProblem::NotAccepted(error)))?;
        let expires = identity::expiry(leaf).unwrap_or_default();
        Ok(Self { chain, key: read, verifier: Arc::new(verifier), expires })
    }
}

/// Under what secrets are sealed and opened, and by what a restarted node is known.
pub(crate) struct Sealing {
    /// The first seals; all open.
    keys: Vec<Keys>,
    /// Follows from the token, or from the node's private key.
    reset: aws_lc_rs::hmac::Key,
}

impl Sealing {
    /// That of the node called `name`.
    pub(crate) fn new(security: &Security, credentials: &Credentials, name: &str) -> Self {
        let keys_of = |tokens: &[Secret]| -> Vec<Keys> {
            tokens.iter().map(|token| Keys::of(token.expose().as_bytes())).collect()
        };
        let keys = match security {
            Security::Tokens(tokens) => keys_of(tokens),
            Security::Files { token, .. } => keys_of(token.as_slice()),
            Security::Throwaway => Vec::new(),
        };
        let reset = match (keys.first(), security) {
            (Some(first), _) => first.reset(name),
            (None, Security::Throwaway) => Keys::of(THROWAWAY).reset(name),
            (None, _) => Keys::of(credentials.key.secret_der()).reset(name),
        };
        Self { keys, reset }
    }

    /// Encrypts; nothing at all without a secret that all nodes share.
    pub(crate) fn seal(&self, plain: &[u8]) -> Vec<u8> {
        self.keys.first().map(|keys| keys.seal(plain)).unwrap_or_default()
    }

    /// What was sealed; none if it was with an unknown secret.
    pub(crate) fn unseal(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        self.keys.iter().find_map(|keys| keys.unseal(sealed))
    }

    /// By what a restarted node is known.
    pub(crate) fn reset(&self) -> aws_lc_rs::hmac::Key {
        self.reset.clone()
    }
}

/// A certificate of `node` by `authority`, and its key.
pub(crate) fn mint(
    node: &Identity,
    authority: &Authority,
    now_unix_s: u64,
) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("the system's source of randomness works");
    let mut params = CertificateParams::default();
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now_unix_s);
    params.not_before = now - BACKDATED;
    params.not_after = now + LIFETIME;
    params.distinguished_name.push(DnType::CommonName, "smg node");
    let name = node.to_string().try_into().expect("percent-encoded names are ASCII");
    params.subject_alt_names = vec![SanType::URI(name)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = params.signed_by(&key, &authority.issuer).expect("the parameters are complete");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key of this kind has this form");
    (leaf.der().clone(), key)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| problem(path, FileProblem::Pem(error)))?;
    if read.is_empty() {
        return Err(problem(path, FileProblem::Empty));
    }
    Ok(read)
}

fn problem(path: &Path, problem: FileProblem) -> Error {
    Error::File { path: path.to_owned(), problem }
}
