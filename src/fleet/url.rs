//! Where a worker is.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use smg_base::WorkerId;

/// A worker's base URL in its normal form: `scheme://host[:port][/base/path]`. The scheme and the host are lower
/// case, an address has its canonical text, the path has no slash at its end, and there are no credentials, query or
/// fragment. A port that was given is kept, the scheme's own included; [`WorkerUrl::id`] takes `http://a:80` and
/// `http://a` for the same worker.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerUrl {
    text: Arc<str>,
    host: Arc<str>,
    scheme: Scheme,
    port: Option<u16>,
    address: Option<IpAddr>,
    path_start: usize,
}

/// How the worker is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// In clear.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// The scheme as it stands in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port that is meant when none is written.
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not the URL of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Nothing, or nothing but a scheme.
    #[error("a worker url needs a host, such as http://10.0.0.1:8000")]
    HostMissing,
    /// More than [`WorkerUrl::BYTES_MAX`] bytes.
    #[error("a worker url has at most {} bytes", WorkerUrl::BYTES_MAX)]
    TooLong,
    /// Neither `http` nor `https`.
    #[error("a worker url starts with http:// or https://, or is a bare host:port")]
    SchemeUnsupported,
    /// `user:password@`; a key belongs into `api_key`, where it is not shown.
    #[error("a worker url carries no credentials; use api_key")]
    CredentialsPresent,
    /// `?…`
    #[error("a worker url has no query")]
    QueryPresent,
    /// `#…`
    #[error("a worker url has no fragment")]
    FragmentPresent,
    /// Not a name, an IPv4 address in four parts or an IPv6 address in brackets.
    #[error("the host of a worker url is a name, an ipv4 address, or an ipv6 address in brackets without a zone")]
    HostInvalid,
    /// Not a number in 1..=65535.
    #[error("the port of a worker url is a number from 1 to 65535")]
    PortInvalid,
    /// A character that a path cannot hold, or a `.` or `..` segment.
    #[error("the path of a worker url holds a character that must be percent-encoded, or a dot segment")]
    PathInvalid,
}

impl WorkerUrl {
    /// The longest text that is accepted.
    pub const BYTES_MAX: usize = 2_048;

    /// The whole URL in its normal form.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// How the worker is spoken to.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host, without the brackets of an IPv6 address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, the scheme's own where none was given.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(self.scheme.default_port())
    }

    /// The host, with the port where one was given: what goes into the `Host` header.
    pub fn authority(&self) -> &str {
        &self.text[self.scheme.as_str().len() + "://".len()..self.path_start]
    }

    /// The base path: empty, or a slash and what follows, without a slash at its end.
    pub fn path(&self) -> &str {
        &self.text[self.path_start..]
    }

    /// The host as an address, where it is one.
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// Whether the URL means another worker on another machine: its host is a loopback or link-local address, the
    /// unspecified address (which connects to the machine itself), or a name under `localhost` (RFC 6761 §6.3).
    pub fn is_host_local(&self) -> bool {
        match self.address.map(|address| address.to_canonical()) {
            Some(IpAddr::V4(v4)) => v4.is_loopback() || v4.is_link_local() || v4.is_unspecified(),
            Some(IpAddr::V6(v6)) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified(),
            None => {
                let name = self.host.strip_suffix('.').unwrap_or(&self.host);
                name == "localhost" || name.ends_with(".localhost")
            }
        }
    }

    /// The id of the worker here. `scope` names this node, and counts only where [`Self::is_host_local`].
    pub fn id(&self, scope: Option<&str>) -> WorkerId {
        let scope = scope.filter(|_| self.is_host_local());
        if self.port != Some(self.scheme.default_port()) {
            return WorkerId::of(&self.text, scope);
        }
        let authority = self.authority();
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        WorkerId::of(&format!("{}://{host}{}", self.scheme, self.path()), scope)
    }
}

impl FromStr for WorkerUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let text = text.trim();
        if text.len() > Self::BYTES_MAX {
            return Err(UrlError::TooLong);
        }
        let (scheme, rest) = split_scheme(text)?;
        if rest.contains('#') {
            return Err(UrlError::FragmentPresent);
        }
        if rest.contains('?') {
            return Err(UrlError::QueryPresent);
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(UrlError::CredentialsPresent);
        }
        let (host, port) = split_port(authority)?;
        let (host, address) = parse_host(host)?;
        let port = port.map(parse_port).transpose()?;
        let path = parse_path(path)?;

        let mut normal = format!("{scheme}://");
        match address {
            Some(IpAddr::V6(_)) => normal.extend(["[", &host, "]"]),
            _ => normal.push_str(&host),
        }
        if let Some(port) = port {
            normal.extend([":", &port.to_string()]);
        }
        let path_start = normal.len();
        normal.push_str(path);
        Ok(Self { text: normal.into(), host: host.into(), scheme, port, address, path_start })
    }
}

fn split_scheme(text: &str) -> Result<(Scheme, &str), UrlError> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Ok((Scheme::Http, text));
    };
    match scheme.to_ascii_lowercase().as_str() {
        "http" => Ok((Scheme::Http, rest)),
        "https" => Ok((Scheme::Https, rest)),
        _ => Err(UrlError::SchemeUnsupported),
    }
}

fn split_port(authority: &str) -> Result<(&str, Option<&str>), UrlError> {
    if authority.starts_with('[') {
        let end = authority.find(']').ok_or(UrlError::HostInvalid)?;
        let (host, rest) = authority.split_at(end + 1);
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(UrlError::HostInvalid),
        };
    }
    match authority.split_once(':') {
        // An IPv6 address without brackets: where it ends and the port begins cannot be told.
        Some((_, port)) if port.contains(':') => Err(UrlError::HostInvalid),
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((authority, None)),
    }
}

fn parse_host(text: &str) -> Result<(String, Option<IpAddr>), UrlError> {
    if text.is_empty() {
        return Err(UrlError::HostMissing);
    }
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let address: Ipv6Addr = inner.parse().map_err(|_| UrlError::HostInvalid)?;
        return Ok((address.to_string(), Some(address.into())));
    }
    let host = text.to_ascii_lowercase();
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return Ok((host, Some(address.into())));
    }
    let name = host.strip_suffix('.').unwrap_or(&host);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    // Resolvers read `127.1`, `0x7f000001` and `2130706433` as addresses, which would slip past every check made on
    // the text; the URL standard also calls a name that ends in a number an address.
    let last = name.rsplit('.').next().unwrap_or_default();
    let is_number = last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x");
    if name.len() > 253 || !name.split('.').all(is_label) || is_number {
        return Err(UrlError::HostInvalid);
    }
    Ok((host, None))
}

fn parse_port(text: &str) -> Result<u16, UrlError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(UrlError::PortInvalid);
    }
    text.parse().ok().filter(|port| *port != 0).ok_or(UrlError::PortInvalid)
}

fn parse_path(text: &str) -> Result<&str, UrlError> {
    let path = text.trim_end_matches('/');
    if path.split('/').any(|segment| matches!(segment, "." | "..")) {
        return Err(UrlError::PathInvalid);
    }
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        // RFC 3986 §3.3: pchar and the slash.
        let valid = match byte {
            b'%' => bytes.by_ref().take(2).filter(u8::is_ascii_hexdigit).count() == 2,
            _ => byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&byte),
        };
        if !valid {
            return Err(UrlError::PathInvalid);
        }
    }
    Ok(path)
}

impl fmt::Display for WorkerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for WorkerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl Serialize for WorkerUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for WorkerUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use smg_base::{Random, SplitMix};

    use super::*;

    #[test]
    fn urls_take_their_normal_form() {
        let check = |text: &str, normal: &str| {
            let url: WorkerUrl = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(url.as_str(), normal, "{text}");
            assert_eq!(normal.parse(), Ok(url), "{text}: the normal form is its own");
        };
        check("http://10.0.0.1:8000", "http://10.0.0.1:8000");
        check("10.0.0.1:8000", "http://10.0.0.1:8000");
        check("localhost:8000", "http://localhost:8000");
        check("gpu-7", "http://gpu-7");
        check("  http://gpu-7:1 \n", "http://gpu-7:1");
        check("HTTPS://API.Example.COM", "https://api.example.com");
        check("http://a:80", "http://a:80");
        check("https://a:443/", "https://a:443");
        check("http://a:0080", "http://a:80");
        check("http://a/", "http://a");
        check("http://a///", "http://a");
        check("http://a/v1/Deploy%20ment/", "http://a/v1/Deploy%20ment");
        check("http://a.b.c.:1/x", "http://a.b.c.:1/x");
        check("http://under_score:1", "http://under_score:1");
        check("http://[::1]:8000", "http://[::1]:8000");
        check("[0:0:0:0:0:0:0:1]:8000", "http://[::1]:8000");
        check("http://[2001:DB8::00A]/x/", "http://[2001:db8::a]/x");
        check("http://a/v1:predict;x=1,2", "http://a/v1:predict;x=1,2");
    }

    #[test]
    fn what_is_no_worker_url_is_refused() {
        let check = |text: &str, error| assert_eq!(text.parse::<WorkerUrl>(), Err(error), "{text}");
        check("", UrlError::HostMissing);
        check("http://", UrlError::HostMissing);
        check("http:///x", UrlError::HostMissing);
        check(":8000", UrlError::HostMissing);
        check("grpc://a:1", UrlError::SchemeUnsupported);
        check("file:///etc/passwd", UrlError::SchemeUnsupported);
        check("unix://run/x", UrlError::SchemeUnsupported);
        check("http://user:pass@a", UrlError::CredentialsPresent);
        check("user@a:1", UrlError::CredentialsPresent);
        check("http://a?x=1", UrlError::QueryPresent);
        check("http://a/x?", UrlError::QueryPresent);
        check("http://a#x", UrlError::FragmentPresent);
        check("http://a:", UrlError::PortInvalid);
        check("http://a:0", UrlError::PortInvalid);
        check("http://a:65536", UrlError::PortInvalid);
        check("http://a:+1", UrlError::PortInvalid);
        check("http:/a", UrlError::PortInvalid);
        check("http://::1:8000", UrlError::HostInvalid);
        check("http://[::1", UrlError::HostInvalid);
        check("http://[::1]8000", UrlError::HostInvalid);
        check("http://[fe80::1%25eth0]", UrlError::HostInvalid);
        check("http://[127.0.0.1]", UrlError::HostInvalid);
        check("http://a..b", UrlError::HostInvalid);
        check("http://bücher", UrlError::HostInvalid);
        check("http://a b", UrlError::HostInvalid);
        check("http://a\\b", UrlError::HostInvalid);
        check("http://a/x y", UrlError::PathInvalid);
        check("http://a/%2", UrlError::PathInvalid);
        check("http://a/x/../y", UrlError::PathInvalid);
        check("http://a/\r\nHost:%20b", UrlError::PathInvalid);
        check(&"a".repeat(2_049), UrlError::TooLong);
        // Spellings of 127.0.0.1 that resolvers accept.
        for text in ["http://127.1", "http://2130706433", "http://0x7f000001", "http://0x7f.0x1", "http://127.0.0.1."] {
            check(text, UrlError::HostInvalid);
        }
    }

    #[test]
    fn the_parts_are_found_in_the_whole() {
        let check = |text: &str, (host, port, authority, path): (&str, u16, &str, &str)| {
            let url: WorkerUrl = text.parse().unwrap();
            assert_eq!((url.host(), url.port(), url.authority(), url.path()), (host, port, authority, path), "{text}");
        };
        check("http://a", ("a", 80, "a", ""));
        check("https://a/v1", ("a", 443, "a", "/v1"));
        check("https://a:8443/v1", ("a", 8443, "a:8443", "/v1"));
        check("http://[::1]:9/x", ("::1", 9, "[::1]:9", "/x"));
    }

    #[test]
    fn only_what_means_this_machine_is_host_local() {
        let check = |text: &str, expected| {
            assert_eq!(text.parse::<WorkerUrl>().unwrap().is_host_local(), expected, "{text}");
        };
        for text in ["127.0.0.1:1", "127.9.9.9", "localhost", "LocalHost.", "x.localhost", "0.0.0.0:1", "169.254.1.1"] {
            check(text, true);
        }
        for text in ["[::1]", "[fe80::1]", "[::ffff:127.0.0.1]", "[::]"] {
            check(text, true);
        }
        for text in ["10.0.0.1", "localhost.example", "notlocalhost", "[2001:db8::1]", "[::ffff:10.0.0.1]"] {
            check(text, false);
        }
    }

    #[test]
    fn an_id_ignores_the_default_port_and_scopes_what_is_local() {
        let id = |text: &str, scope| text.parse::<WorkerUrl>().unwrap().id(scope);
        assert_eq!(id("http://a:80/x", None), id("http://a/x/", None));
        assert_eq!(id("https://[2001:db8::1]:443", None), id("https://[2001:DB8::1]", None));
        assert_ne!(id("http://a:443", None), id("https://a", None));
        assert_ne!(id("http://a/x", None), id("http://a/y", None));
        assert_eq!(id("http://10.0.0.1:1", Some("n1")), id("http://10.0.0.1:1", Some("n2")));
        assert_ne!(id("http://127.0.0.1:1", Some("n1")), id("http://127.0.0.1:1", Some("n2")));
        assert_eq!(id("http://10.0.0.1:1", Some("n1")), WorkerId::of("http://10.0.0.1:1", None));
    }

    #[test]
    fn mutated_urls_never_panic_and_normalise_once() {
        let corpus = ["http://10.0.0.1:8000/v1", "https://[2001:db8::1]:443/a%20b/", "gpu-7.example.:80", "localhost"];
        let alphabet = b"az09AZ.:/[]%@?#-_~ \\\0\xc3\xa9x";
        let random = SplitMix::new(smg_base::fuzz::seed(7));
        let mut accepted = 0;
        for turn in 0..usize::try_from(smg_base::fuzz::inputs(20_000)).unwrap() {
            let mut bytes = corpus[turn % corpus.len()].as_bytes().to_vec();
            for _ in 0..=random.below(3) {
                let place = usize::try_from(random.below(bytes.len() as u64 + 1)).unwrap();
                let byte = alphabet[usize::try_from(random.below(alphabet.len() as u64)).unwrap()];
                match (random.below(3), bytes.get_mut(place)) {
                    (0, Some(there)) => *there = byte,
                    (1, Some(_)) => drop(bytes.remove(place)),
                    _ => bytes.insert(place, byte),
                }
            }
            let text = String::from_utf8_lossy(&bytes);
            if let Ok(url) = text.parse::<WorkerUrl>() {
                accepted += 1;
                assert_eq!(url.as_str().parse().as_ref(), Ok(&url), "{text}");
                assert!(url.as_str().is_ascii(), "{text}");
            }
        }
        assert!(accepted > 1_000, "{accepted}");
    }
}
