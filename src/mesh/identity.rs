//! Who a certificate names: `smg://{cluster}/{node}` among its alternative names.

use std::fmt;

use rustls::pki_types::CertificateDer;
use smg_mesh_proto::NodeId;

/// Longest name of a node or cluster.
pub(crate) const NAME_BYTES_MAX: usize = 128;

const SCHEME: &str = "smg://";

/// A node of a cluster, as its certificate names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The cluster.
    pub(crate) cluster: String,
    /// The node's name.
    pub(crate) name: String,
}

/// Why a certificate names no node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadIdentity {
    /// It cannot be read.
    #[error("is no certificate")]
    Malformed,
    /// None of its alternative names begins with `smg://`.
    #[error("carries no name of the form URI:smg://cluster/node")]
    None,
    /// Several do: which one would be meant?
    #[error("carries more than one name of the form URI:smg://cluster/node")]
    Several,
    /// The name is not of the form that is asked for.
    #[error("carries a name that begins with smg:// and is not of the form URI:smg://cluster/node")]
    BadName,
}

impl Identity {
    /// Whom `certificate` names.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Result<Self, BadIdentity> {
        let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|_| BadIdentity::Malformed)?;
        let mut names = parsed.valid_uri_names().filter(|name| name.starts_with(SCHEME));
        let name = names.next().ok_or(BadIdentity::None)?;
        if names.next().is_some() {
            return Err(BadIdentity::Several);
        }
        Self::parse(name).ok_or(BadIdentity::BadName)
    }

    /// Reads what [`Identity::to_string`] writes, and nothing else.
    pub(crate) fn parse(uri: &str) -> Option<Self> {
        let (cluster, name) = uri.strip_prefix(SCHEME)?.split_once('/')?;
        let identity = Self { cluster: decoded(cluster)?, name: decoded(name)? };
        // One node must not have two spellings.
        (identity.to_string() == uri).then_some(identity)
    }

    /// The id of the node.
    pub(crate) fn node(&self) -> NodeId {
        NodeId::of(&self.name)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", encoded(&self.cluster), encoded(&self.name))
    }
}

/// Whether something can be called so: visible ASCII, and not too long.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Percent-encoding of everything but the unreserved characters (RFC 3986, section 2.3).
fn encoded(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

fn decoded(text: &str) -> Option<String> {
    let mut name = String::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' { hex(bytes.next()?)? << 4 | hex(bytes.next()?)? } else { byte };
        name.push(char::from(byte));
    }
    is_name(&name).then_some(name)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// When `certificate` ends, in seconds since 1970; none if it cannot be read. Only shown: whether a certificate is still
/// valid is for the verifier to say.
pub(crate) fn expiry(certificate: &[u8]) -> Option<i64> {
    let (whole, _) = element(certificate, 0x30)?;
    let (mut rest, _) = element(whole, 0x30)?;
    if let Some((_, after)) = element(rest, 0xa0) {
        rest = after; // version
    }
    let (_, rest) = element(rest, 0x02)?; // serial number
    let (_, rest) = element(rest, 0x30)?; // algorithm
    let (_, rest) = element(rest, 0x30)?; // issuer
    let (validity, _) = element(rest, 0x30)?;
    let (_, after) = time(validity)?;
    time(after).map(|(end, _)| end)
}

/// The content of the DER element of type `tag` that begins `input`, and what comes after it.
fn element(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = input.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    if found != tag {
        return None;
    }
    let mut length = usize::from(first);
    if first >= 0x80 {
        let digits = usize::from(first & 0x7f);
        if !(1..=4).contains(&digits) {
            return None;
        }
        let (number, after) = rest.split_at_checked(digits)?;
        length = number.iter().fold(0, |length, &digit| length << 8 | usize::from(digit));
        rest = after;
    }
    rest.split_at_checked(length)
}

/// The UTCTime or GeneralizedTime (RFC 5280, section 4.1.2.5) that begins `input`, and what comes after it.
fn time(input: &[u8]) -> Option<(i64, &[u8])> {
    let (text, rest, four_digits) = match element(input, 0x17) {
        Some((text, rest)) => (text, rest, 0),
        None => element(input, 0x18).map(|(text, rest)| (text, rest, 2))?,
    };
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    if text.len() != 12 + four_digits || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let field = |at: usize| text[four_digits + at..four_digits + at + 2].parse::<i64>().ok();
    let short = field(0)?;
    let year = match text[..four_digits].parse::<i64>() {
        Ok(century) => century * 100 + short,
        Err(_) => short + if short < 50 { 2_000 } else { 1_900 },
    };
    let days = days_since_1970(year, field(2)?, field(4)?);
    Some((days * 86_400 + field(6)? * 3_600 + field(8)? * 60 + field(10)?, rest))
}

/// Days in the proleptic Gregorian calendar (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use smg_base::{Random, SplitMix, fuzz};

    use super::*;

    fn certificate(uris: &[&str]) -> CertificateDer<'static> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let mut params = rcgen::CertificateParams::default();
        for uri in uris {
            params.subject_alt_names.push(rcgen::SanType::URI((*uri).try_into().expect("ASCII")));
        }
        params.not_after = rcgen::date_time_ymd(2031, 3, 1);
        params.self_signed(&key).expect("a certificate").der().clone()
    }

    #[test]
    fn names_survive_their_way_through_a_certificate() {
        for (cluster, name) in
            [("smg", "a"), ("eu-1", "host.example-39528"), ("a/b%", "x:y [z]".trim_end()), ("~", "/")]
        {
            let identity = Identity { cluster: cluster.to_owned(), name: name.replace(' ', "_") };
            let made = certificate(&["https://elsewhere/", &identity.to_string()]);
            assert_eq!(Identity::of(&made), Ok(identity));
        }
    }

    #[test]
    fn what_names_no_node_is_refused() {
        let none: &[&str] = &[];
        for (uris, problem) in [
            (none, BadIdentity::None),
            (&["https://smg/a"], BadIdentity::None),
            (&["smg://a/b", "smg://a/c"], BadIdentity::Several),
            (&["smg://a"], BadIdentity::BadName),
            (&["smg:///b"], BadIdentity::BadName),
            (&["smg://a/"], BadIdentity::BadName),
            (&["smg://a/b/c"], BadIdentity::BadName),
            (&["smg://a/%62"], BadIdentity::BadName),
            (&["smg://a/%2f"], BadIdentity::BadName),
            (&["smg://a/b%2"], BadIdentity::BadName),
            (&["smg://a/b%20c"], BadIdentity::BadName),
        ] {
            assert_eq!(Identity::of(&certificate(uris)), Err(problem), "{uris:?}");
        }
        assert_eq!(Identity::of(&CertificateDer::from(vec![0x30, 0x00])), Err(BadIdentity::Malformed));
        let long = format!("smg://a/{}", "x".repeat(NAME_BYTES_MAX + 1));
        assert_eq!(Identity::parse(&long), None);
    }

    #[test]
    fn the_end_of_a_certificate_is_read() {
        for (year, month, day, seconds) in [
            (2031, 3, 1, 1_930_089_600),
            (2049, 12, 31, 2_524_521_600),
            (2050, 1, 1, 2_524_608_000),
            (2400, 2, 29, 13_574_563_200),
        ] {
            let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
            let mut params = rcgen::CertificateParams::default();
            params.not_after = rcgen::date_time_ymd(year, month, day);
            let made = params.self_signed(&key).expect("a certificate");
            assert_eq!(expiry(made.der()), Some(seconds), "{year}");
        }
    }

    #[test]
    fn mutated_certificates_are_read_or_refused() {
        let seed = fuzz::seed(11);
        let random = SplitMix::new(seed);
        let whole = certificate(&["smg://cluster/node"]);
        let mut refused = 0;
        let inputs = fuzz::inputs(20_000);
        for _ in 0..inputs {
            let mut bytes = whole.to_vec();
            for _ in 0..=random.below(3) {
                let at = usize::try_from(random.below(bytes.len() as u64)).expect("an index");
                match random.below(3) {
                    0 => bytes[at] = u8::try_from(random.below(256)).expect("a byte"),
                    1 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, 0xff),
                }
            }
            let _ = expiry(&bytes);
            if let Ok(identity) = Identity::of(&CertificateDer::from(bytes)) {
                assert!(is_name(&identity.name) && is_name(&identity.cluster), "seed {seed}: {identity}");
            } else {
                refused += 1;
            }
        }
        assert!(refused > inputs / 10, "seed {seed}: mutations do not reach the name");
    }

    #[test]
    fn mutated_names_are_read_in_one_spelling_only() {
        let seed = fuzz::seed(12);
        let random = SplitMix::new(seed);
        for _ in 0..fuzz::inputs(20_000) {
            let mut bytes = b"smg://clu%2Fster/no%25de".to_vec();
            for _ in 0..=random.below(4) {
                let at = usize::try_from(random.below(bytes.len() as u64)).expect("an index");
                bytes[at] = b"%/:sS0aF2~\x7f "[usize::try_from(random.below(12)).expect("an index")];
            }
            let text = String::from_utf8(bytes).expect("ASCII");
            if let Some(identity) = Identity::parse(&text) {
                assert_eq!(identity.to_string(), text, "seed {seed}");
            }
        }
    }
}
