//! The types of settings that have no home elsewhere, and the parsers that read them.
//!
//! A value is parsed once, here; what leaves this module needs no further check of its own.

use std::{
    fmt,
    net::Ipv6Addr,
    num::{NonZeroU16, NonZeroUsize},
    str::FromStr,
    time::Duration,
};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use smg_base::{ByteSize, ModelId};
use smg_fleet::{KvEventsSpec, WorkerUrl};

/// The text does not read as the type of its setting; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadValue {
    /// Not a duration.
    #[error("a duration is a number with a unit, such as 250ms, 30s, 5m, 4h or 1d; a bare number counts {0}")]
    Duration(&'static str),
    /// Not a number within the range.
    #[error("must be a number {0}")]
    Number(&'static str),
    /// Neither a count nor off.
    #[error("must be a count, or -1 for no limit")]
    Limit,
    /// Not the size of a chunk.
    #[error("must be a size from 16 bytes to 64KiB")]
    ChunkSize,
    /// Not `alias=model`.
    #[error("must be alias=model, where alias differs from model")]
    Alias,
    /// It is no worker with an endpoint.
    #[error("must be worker=endpoint, such as http://gpu-1:8000=tcp://gpu-1:5557")]
    WorkerEvents,
    /// Not an origin.
    #[error("an origin is * or scheme://host[:port], without a path")]
    Origin,
    /// Not a URL path.
    #[error("must be a path that starts with / and holds no spaces")]
    Path,
    /// Not a log filter.
    #[error("must be off, error, warn, info, debug or trace, or directives such as info,smg_gateway=debug")]
    LogFilter,
    /// Not an endpoint.
    #[error("must be host:port or an http(s) URL")]
    Endpoint,
    /// Not a name.
    #[error("must be 1 to {0} letters, digits, dots, dashes or underscores")]
    Name(usize),
    /// Not what could stand in a token.
    #[error("must be 1 to 512 characters without spaces at its ends")]
    Claim,
    /// Not the name or address of a machine.
    #[error("must be a name or an address, without a port")]
    Host,
    /// Not the mesh port of a node.
    #[error("must be host:port, such as node-1:39527 or [::1]:39527")]
    Peer,
}

/// A duration whose bare number counts seconds.
pub fn seconds(text: &str) -> Result<Duration, BadValue> {
    duration(text, 1.0).ok_or(BadValue::Duration("seconds"))
}

/// A duration above zero whose bare number counts seconds.
pub fn some_seconds(text: &str) -> Result<Duration, BadValue> {
    seconds(text)
        .and_then(|duration| if duration.is_zero() { Err(BadValue::Number("above zero")) } else { Ok(duration) })
}

/// A duration whose bare number counts milliseconds.
pub fn millis(text: &str) -> Result<Duration, BadValue> {
    duration(text, 1e-3).ok_or(BadValue::Duration("milliseconds"))
}

/// A century: the longest duration that is accepted, so that adding one to a clock cannot overflow.
const SECONDS_MAX: f64 = 3.2e9;

const UNITS: [(&str, f64); 6] = [("ms", 1e-3), ("us", 1e-6), ("s", 1.0), ("m", 60.0), ("h", 3_600.0), ("d", 86_400.0)];

fn duration(text: &str, bare: f64) -> Option<Duration> {
    let text = text.trim();
    let (number, unit) = UNITS
        .iter()
        .find_map(|(name, unit)| text.strip_suffix(name).map(|number| (number.trim_end(), *unit)))
        .unwrap_or((text, bare));
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    let total = number.parse::<f64>().ok()? * unit;
    (total <= SECONDS_MAX).then(|| Duration::from_secs_f64(total))
}

/// A time limit that can be switched off with `off` or `0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout(pub Option<Duration>);

impl FromStr for Timeout {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        if text.trim() == "off" {
            return Ok(Self(None));
        }
        seconds(text).map(|duration| Self(Some(duration).filter(|duration| !duration.is_zero())))
    }
}

/// A count that can be switched off with `-1`, `0` or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(pub Option<NonZeroUsize>);

impl FromStr for Limit {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        if matches!(text.trim(), "off" | "-1") {
            return Ok(Self(None));
        }
        text.trim().parse().map(|count| Self(NonZeroUsize::new(count))).map_err(|_| BadValue::Limit)
    }
}

/// A number in `0..=1`.
pub fn ratio(text: &str) -> Result<f64, BadValue> {
    number(text, 0.0..=1.0, "from 0 to 1")
}

/// A number of at least zero.
pub fn not_negative(text: &str) -> Result<f64, BadValue> {
    number(text, 0.0..=f64::MAX, "of at least 0")
}

/// A number of at least one.
pub fn at_least_one(text: &str) -> Result<f64, BadValue> {
    number(text, 1.0..=f64::MAX, "of at least 1")
}

/// A number above zero.
pub fn positive(text: &str) -> Result<f64, BadValue> {
    number(text, f64::MIN_POSITIVE..=f64::MAX, "above 0")
}

fn number(text: &str, range: std::ops::RangeInclusive<f64>, words: &'static str) -> Result<f64, BadValue> {
    text.trim().parse().ok().filter(|number| range.contains(number)).ok_or(BadValue::Number(words))
}

/// A client-facing name for a model, written `alias=model`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// The name clients may use.
    pub alias: ModelId,
    /// The model it stands for.
    pub model: ModelId,
}

impl FromStr for Alias {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let (alias, model) = text.split_once('=').ok_or(BadValue::Alias)?;
        let (alias, model) = (alias.trim(), model.trim());
        if alias.is_empty() || model.is_empty() || alias == model {
            return Err(BadValue::Alias);
        }
        Ok(Self { alias: ModelId::from(alias), model: ModelId::from(model) })
    }
}

/// Where a worker's engine tells what its KV cache holds, written worker=endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerEvents {
    /// The worker.
    pub worker: WorkerUrl,
    /// Where it tells.
    pub spec: KvEventsSpec,
}

impl FromStr for WorkerEvents {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let (worker, endpoint) = text.rsplit_once('=').ok_or(BadValue::WorkerEvents)?;
        let worker: WorkerUrl = worker.trim().parse().map_err(|_| BadValue::WorkerEvents)?;
        let spec = KvEventsSpec::new(endpoint.trim());
        spec.check(&worker).map_err(|_| BadValue::WorkerEvents)?;
        Ok(Self { worker, spec })
    }
}

/// An origin of web pages, or `*` for all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebOrigin(Box<str>);

impl WebOrigin {
    /// As a browser sends it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it stands for every origin.
    pub fn is_any(&self) -> bool {
        &*self.0 == "*"
    }
}

impl FromStr for WebOrigin {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let text = text.trim().trim_end_matches('/').to_ascii_lowercase();
        let host = text.split_once("://").map_or("", |(_, host)| host);
        let is_plain = !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ']);
        if text == "*" || is_plain { Ok(Self(text.into())) } else { Err(BadValue::Origin) }
    }
}

/// A path of a URL.
pub fn url_path(text: &str) -> Result<String, BadValue> {
    let is_path = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_path { Ok(text.to_owned()) } else { Err(BadValue::Path) }
}

/// What is logged: a level, or directives per module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(Box<str>);

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

impl LogFilter {
    /// In the syntax of `RUST_LOG`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LogFilter {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let is_directive = |part: &str| {
            let level = part.rsplit_once('=').map_or(part, |(_, level)| level).trim().to_ascii_lowercase();
            LEVELS.contains(&&*level)
        };
        if text.split(',').all(is_directive) { Ok(Self(text.trim().into())) } else { Err(BadValue::LogFilter) }
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The URL of an OTLP collector; a bare `host:port` is taken as plain HTTP.
pub fn otlp_endpoint(text: &str) -> Result<String, BadValue> {
    let text = text.trim();
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri: http::Uri = url.parse().map_err(|_| BadValue::Endpoint)?;
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    if is_http && uri.host().is_some_and(|host| !host.is_empty()) { Ok(url) } else { Err(BadValue::Endpoint) }
}

/// A node's name.
pub fn node_name(text: &str) -> Result<String, BadValue> {
    name(text, 63)
}

/// A node's name in its mesh.
pub fn mesh_name(text: &str) -> Result<String, BadValue> {
    name(text, 128)
}

/// The name of a cluster.
pub fn cluster_name(text: &str) -> Result<String, BadValue> {
    name(text, 63)
}

/// The name of a machine, zone or region.
pub fn place_name(text: &str) -> Result<String, BadValue> {
    name(text, 63)
}

fn name(text: &str, bytes_max: usize) -> Result<String, BadValue> {
    let is_name = (1..=bytes_max).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    if is_name { Ok(text.to_owned()) } else { Err(BadValue::Name(bytes_max)) }
}

/// A claim of a token, or the value of one. It is compared to the letter.
pub fn claim(text: &str) -> Result<String, BadValue> {
    let is_sensible = (1..=512).contains(&text.len()) && text.trim() == text && !text.chars().any(char::is_control);
    if is_sensible { Ok(text.to_owned()) } else { Err(BadValue::Claim) }
}

/// The name or address of a machine. An IPv6 address may stand in brackets, which are taken off.
pub fn host(text: &str) -> Result<String, BadValue> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let is_name = !bare.is_empty()
        && bare.len() <= 253
        && bare.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    if is_name || bare.parse::<Ipv6Addr>().is_ok() { Ok(bare.to_owned()) } else { Err(BadValue::Host) }
}

/// The mesh port of a node, as `host:port`; a scheme in front, which the reference gateway takes, says nothing.
pub fn peer(text: &str) -> Result<String, BadValue> {
    let text = text.trim();
    let text = text.split_once("://").map_or(text, |(_, rest)| rest).trim_end_matches('/');
    let (name, port) = text.rsplit_once(':').ok_or(BadValue::Peer)?;
    let is_bare_v6 = name.contains(':') && !name.starts_with('[');
    let is_port = port.parse::<NonZeroU16>().is_ok();
    if is_bare_v6 || !is_port || host(name).is_err() { Err(BadValue::Peer) } else { Ok(text.to_owned()) }
}

/// The size of a chunk of text.
pub fn chunk_size(text: &str) -> Result<ByteSize, BadValue> {
    let size: Option<ByteSize> = text.parse().ok();
    size.filter(|size| (16..=65_536).contains(&size.0)).ok_or(BadValue::ChunkSize)
}

/// One of a few named values.
pub fn one_of<T: Copy + Send + Sync + 'static, const N: usize>(
    all: [T; N],
    name: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(all.map(name))
        .map(move |text| *all.iter().find(|one| name(**one) == text).expect("the text is one of the names"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_with_and_without_a_unit() {
        let check = |text: &str, millis| assert_eq!(seconds(text), Ok(Duration::from_millis(millis)), "{text}");
        check("30", 30_000);
        check("1.5", 1_500);
        check("250ms", 250);
        check("2 s", 2_000);
        check("5m", 300_000);
        check("4h", 14_400_000);
        check("1d", 86_400_000);
        check("0", 0);
        assert_eq!(millis("50"), Ok(Duration::from_millis(50)));
        assert_eq!(millis("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(seconds("100us"), Ok(Duration::from_micros(100)));
        for bad in ["", "s", "-1", "1e3", "NaN", "inf", "1y", "1.2.3", "99999999999999999999"] {
            assert_eq!(seconds(bad), Err(BadValue::Duration("seconds")), "{bad}");
        }
        assert!(some_seconds("0").is_err());
    }

    #[test]
    fn limits_can_be_off() {
        let check = |text: &str, count| assert_eq!(text.parse(), Ok(Limit(NonZeroUsize::new(count))), "{text}");
        check("-1", 0);
        check("0", 0);
        check("off", 0);
        check("12", 12);
        assert_eq!("-2".parse::<Limit>(), Err(BadValue::Limit));
        assert_eq!("off".parse(), Ok(Timeout(None)));
        assert_eq!("0".parse(), Ok(Timeout(None)));
        assert_eq!("10".parse(), Ok(Timeout(Some(Duration::from_secs(10)))));
    }

    #[test]
    fn numbers_keep_to_their_range() {
        assert_eq!(ratio("0.3"), Ok(0.3));
        assert!(ratio("1.1").is_err() && ratio("NaN").is_err() && ratio("-0.1").is_err());
        assert!(at_least_one("0.9").is_err() && positive("0").is_err() && not_negative("inf").is_err());
    }

    #[test]
    fn words_of_other_kinds() {
        assert_eq!("a=b".parse(), Ok(Alias { alias: ModelId::from("a"), model: ModelId::from("b") }));
        for bad in ["a", "a=", "=b", "a=a"] {
            assert_eq!(bad.parse::<Alias>(), Err(BadValue::Alias), "{bad}");
        }
        assert_eq!(
            "HTTPS://Example.com/".parse::<WebOrigin>().as_ref().map(WebOrigin::as_str),
            Ok("https://example.com")
        );
        assert!("*".parse::<WebOrigin>().is_ok_and(|origin| origin.is_any()));
        assert!("https://a/b".parse::<WebOrigin>().is_err() && "example.com".parse::<WebOrigin>().is_err());
        assert_eq!(otlp_endpoint("localhost:4317").as_deref(), Ok("http://localhost:4317"));
        assert!(otlp_endpoint("ftp://x").is_err());
        assert!("info,smg_gateway=debug".parse::<LogFilter>().is_ok());
        assert!("loud".parse::<LogFilter>().is_err());
        assert_eq!(chunk_size("1KiB"), Ok(ByteSize(1_024)));
        assert!(chunk_size("0").is_err() && chunk_size("1MiB").is_err());
        assert!(url_path("/health").is_ok() && url_path("health").is_err() && url_path("/a b").is_err());
        assert_eq!(claim("https://id.test/").as_deref(), Ok("https://id.test/"));
        assert!(claim("").is_err() && claim(" a").is_err() && claim("a\n").is_err());
        assert!(node_name("a-1.b").is_ok() && node_name("").is_err() && node_name("a b").is_err());
        assert!(node_name(&"a".repeat(64)).is_err() && mesh_name(&"a".repeat(64)).is_ok());
    }

    #[test]
    fn peers_are_a_host_and_a_port() {
        let check = |text: &str, expected: Option<&str>| assert_eq!(peer(text).ok().as_deref(), expected, "{text}");
        check("node-1:39527", Some("node-1:39527"));
        check("10.0.0.1:1", Some("10.0.0.1:1"));
        check("[::1]:39527", Some("[::1]:39527"));
        check("http://node-1.mesh.svc:39527/", Some("node-1.mesh.svc:39527"));
        for bad in ["node-1", "node-1:", "node-1:0", "node-1:99999", ":39527", "::1:39527", "a b:1", "a/b:1"] {
            check(bad, None);
        }
        assert_eq!(host("[fd00::1]").as_deref(), Ok("fd00::1"));
        assert_eq!(host("fd00::1").as_deref(), Ok("fd00::1"));
        assert!(host("node-1:1").is_err() && host("").is_err() && host("a/b").is_err());
    }
}
