//! Header hygiene at the two edges, and request ids.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use smg_base::{Random, RequestId};

/// Prefix of the headers that mean something to the gateway itself. They stop here, in both directions.
const INTERNAL_PREFIX: &str = "x-smg-";

/// The request id, in both spellings clients look for.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const REQUEST_ID_BYTES_MAX: usize = 128;

/// Fields about one connection rather than the message (RFC 9110 §7.6.1), and the legacy ones beside them.
static HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What a request carries that a worker must not see, or that is wrong for the new connection: the encoding is
/// refused because answers are read on the way, the length is set again from the body, and cookies are meant for the
/// gateway's own host.
static NOT_FOR_WORKERS: [HeaderName; 6] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::ACCEPT_ENCODING,
    header::EXPECT,
    header::COOKIE,
    HeaderName::from_static("x-forwarded-host"),
];

/// Callers' credentials, where they are the gateway's.
static CREDENTIALS: [HeaderName; 3] =
    [header::AUTHORIZATION, HeaderName::from_static("x-api-key"), HeaderName::from_static("x-goog-api-key")];

/// Whose the credentials in a request are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// They opened the gateway; workers must not see them.
    Gateways,
    /// The gateway asks for none, so they are meant for the worker.
    Workers,
}

/// Turns a caller's headers into those for a worker.
pub(crate) fn to_worker(headers: &mut HeaderMap, credentials: Credentials) {
    strip_hop_by_hop(headers);
    for name in &NOT_FOR_WORKERS {
        headers.remove(name);
    }
    if credentials == Credentials::Gateways {
        for name in &CREDENTIALS {
            headers.remove(name);
        }
    }
    strip_internal(headers);
}

/// Turns a worker's headers into those for the caller. The length stays: where the body changes, whoever changes it
/// removes the length.
pub(crate) fn to_client(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    headers.remove(header::DATE);
    headers.remove(&X_REQUEST_ID);
    strip_internal(headers);
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if let Some(named) = headers.get(header::CONNECTION) {
        let named: Vec<HeaderName> = named
            .to_str()
            .unwrap_or_default()
            .split(',')
            .filter_map(|name| name.trim().parse().ok())
            // A caller must not be able to take these away from the worker's sight.
            .filter(|name| !matches!(*name, header::CONTENT_TYPE | header::AUTHORIZATION))
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

fn strip_internal(headers: &mut HeaderMap) {
    if headers.keys().any(|name| name.as_str().starts_with(INTERNAL_PREFIX)) {
        let internal: Vec<HeaderName> =
            headers.keys().filter(|name| name.as_str().starts_with(INTERNAL_PREFIX)).cloned().collect();
        for name in internal {
            headers.remove(name);
        }
    }
}

/// Where a request id came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IdOrigin {
    /// The caller chose it; it may be one it used before.
    Caller,
    /// Made here, and unique.
    Gateway,
}

/// The caller's request id, where it has an acceptable one, else a new one.
pub(crate) fn request_id(
    headers: &HeaderMap,
    names: &[HeaderName],
    prefix: &str,
    random: &dyn Random,
) -> (RequestId, IdOrigin) {
    let offered = names.iter().find_map(|name| headers.get(name)?.to_str().ok().filter(|id| is_acceptable(id)));
    match offered {
        Some(id) => (RequestId::from(id), IdOrigin::Caller),
        None => (RequestId::from(new_id(prefix, random)), IdOrigin::Gateway),
    }
}

/// Ids end up in logs, headers and JSON, so only plain characters are taken.
fn is_acceptable(id: &str) -> bool {
    (1..=REQUEST_ID_BYTES_MAX).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&byte))
}

/// `prefix` and 24 random characters.
fn new_id(prefix: &str, random: &dyn Random) -> String {
    let mut id = String::with_capacity(prefix.len() + 24);
    id.push_str(prefix);
    push_random(&mut id, 24, random);
    id
}

fn push_random(text: &mut String, length: usize, random: &dyn Random) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789ab";
    let mut bits = 0;
    for place in 0..length {
        if place % 10 == 0 {
            bits = random.next_u64();
        }
        text.push(char::from(ALPHABET[(bits & 63) as usize]));
        bits >>= 6;
    }
}

/// The id under which a worker sees an attempt. Engines key their requests by it, so one that a caller may repeat
/// gets a suffix.
pub(crate) fn worker_request_id(id: &RequestId, origin: IdOrigin, attempt: u32, random: &dyn Random) -> HeaderValue {
    if origin == IdOrigin::Gateway && attempt == 0 {
        return header_value(id.as_str());
    }
    let mut text = String::with_capacity(id.as_str().len() + 9);
    text.push_str(id.as_str());
    text.push('-');
    push_random(&mut text, 8, random);
    header_value(&text)
}

/// `text` as a header value; text that cannot be one becomes empty.
pub(crate) fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

/// A header that callers address to the gateway, as text.
pub(crate) fn internal<'a>(headers: &'a HeaderMap, name: &'static str) -> Option<&'a str> {
    named(headers, &HeaderName::from_static(name))
}

/// A header, as text.
pub(crate) fn named<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim).filter(|text| !text.is_empty())
}

/// `text` in characters that a header can carry.
pub(crate) fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_graphic() && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.extend([byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16).unwrap_or('0')));
        }
        encoded
    })
}

/// What [`percent_encoded`] was given.
pub(crate) fn percent_decoded(encoded: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.bytes();
    while let Some(byte) = rest.next() {
        let mut digit = || char::from(rest.next()?).to_digit(16);
        bytes.push(if byte == b'%' { u8::try_from(digit()? << 4 | digit()?).ok()? } else { byte });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use smg_base::SplitMix;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn workers_see_neither_the_connection_nor_the_gateways_own_headers() {
        let sent = [
            ("connection", "x-hop, close"),
            ("x-hop", "1"),
            ("keep-alive", "1"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("host", "gateway"),
            ("content-length", "3"),
            ("accept-encoding", "gzip"),
            ("cookie", "a=b"),
            ("x-smg-routing-key", "k"),
            ("authorization", "Bearer sk"),
            ("x-api-key", "sk"),
            ("content-type", "application/json"),
            ("anthropic-version", "2023-06-01"),
        ];
        let mut kept = headers(&sent);
        to_worker(&mut kept, Credentials::Gateways);
        assert_eq!(names(&kept), ["anthropic-version", "content-type"]);
        let mut kept = headers(&sent);
        to_worker(&mut kept, Credentials::Workers);
        assert_eq!(names(&kept), ["anthropic-version", "authorization", "content-type", "x-api-key"]);
    }

    #[test]
    fn any_name_passes_through_a_header() {
        for text in ["", "acme", "a b%c", "Müller & Söhne\n", "%41"] {
            let encoded = percent_encoded(text);
            assert_eq!(header_value(&encoded), encoded, "{text:?}");
            assert_eq!(percent_decoded(&encoded).as_deref(), Some(text));
        }
        for broken in ["%", "%4", "%zz", "%ff"] {
            assert_eq!(percent_decoded(broken), None, "{broken}");
        }
    }

    #[test]
    fn a_connection_header_cannot_take_the_body_type_away() {
        let mut kept = headers(&[("connection", "content-type, close"), ("content-type", "application/json")]);
        to_worker(&mut kept, Credentials::Workers);
        assert_eq!(names(&kept), ["content-type"]);
    }

    #[test]
    fn ids_are_taken_from_callers_only_when_harmless() {
        let random = SplitMix::new(1);
        let list = [X_REQUEST_ID];
        let check = |id: &'static str, origin| {
            let (given, from) = request_id(&headers(&[("x-request-id", id)]), &list, "req-", &random);
            assert_eq!(from, origin, "{id}");
            assert_eq!(given.as_str() == id, origin == IdOrigin::Caller);
        };
        check("abc-123", IdOrigin::Caller);
        check("has space", IdOrigin::Gateway);
        check("quote\"", IdOrigin::Gateway);
        let (made, _) = request_id(&HeaderMap::new(), &list, "chatcmpl-", &random);
        assert_eq!(made.as_str().len(), "chatcmpl-".len() + 24);
        assert!(is_acceptable(made.as_str()));
    }

    #[test]
    fn a_callers_id_is_made_unique_for_the_engine() {
        let random = SplitMix::new(1);
        let id = RequestId::from("mine");
        let first = worker_request_id(&id, IdOrigin::Caller, 0, &random);
        let second = worker_request_id(&id, IdOrigin::Caller, 0, &random);
        assert_ne!(first, second);
        assert_eq!(worker_request_id(&id, IdOrigin::Gateway, 0, &random), "mine");
    }
}
