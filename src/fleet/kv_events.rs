//! Where a worker's engine tells what its KV cache holds.

use serde::{Deserialize, Serialize};

use crate::{FleetError, WorkerUrl};

/// Where and how to listen to the events of an engine's KV cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvEventsSpec {
    /// `tcp://host:port` or `ipc:///path` for a ZMQ publisher (vLLM, SGLang), `grpc://host:port` or `grpcs://host:port` for
    /// a stream of the gRPC service, or a URL below the worker's own for events that are fetched (TensorRT-LLM). The host
    /// `*` is the worker's own.
    pub endpoint: String,
    /// The same of the socket where a ZMQ publisher repeats what was missed, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<String>,
    /// The beginning of the topics to listen to; empty: all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub topic: String,
    /// How many data-parallel ranks publish, each at a port one higher than the one before.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub ranks: u32,
}

/// An endpoint taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvEndpoint {
    /// A ZMQ publisher over TCP. The URL's scheme means nothing.
    Zmq(
        /// Its host and the port of the first rank.
        WorkerUrl,
    ),
    /// A ZMQ publisher on this machine.
    Ipc(
        /// Its socket's path.
        String,
    ),
    /// A gRPC service.
    Grpc(
        /// Where it is.
        WorkerUrl,
    ),
    /// A path that gives away what has happened since it was last asked.
    Drain(
        /// The path below the worker's URL.
        String,
    ),
}

impl KvEventsSpec {
    /// The most ranks of one worker.
    pub const RANKS_MAX: u32 = 256;
    /// The longest topic.
    pub const TOPIC_BYTES_MAX: usize = 255;

    /// One publisher at `endpoint`.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self { endpoint: endpoint.into(), replay: None, topic: String::new(), ranks: one() }
    }

    /// Where the events of the worker at `url` come from.
    pub fn source(&self, url: &WorkerUrl) -> Result<KvEndpoint, FleetError> {
        let endpoint = parse("kv_events.endpoint", &self.endpoint, url)?;
        self.check_ranks(&endpoint)?;
        Ok(endpoint)
    }

    /// Where the worker at `url` repeats them, if it does.
    pub fn replay_source(&self, url: &WorkerUrl) -> Result<Option<KvEndpoint>, FleetError> {
        let field = "kv_events.replay";
        let Some(replay) = &self.replay else { return Ok(None) };
        let replay = parse(field, replay, url)?;
        if !matches!(replay, KvEndpoint::Zmq(_) | KvEndpoint::Ipc(_)) {
            return Err(FleetError::InvalidSpec { field, reason: "must be tcp://host:port or ipc:///path" });
        }
        self.check_ranks(&replay)?;
        Ok(Some(replay))
    }

    /// Whether the worker at `url` can be listened to by these words.
    pub fn check(&self, url: &WorkerUrl) -> Result<(), FleetError> {
        let endpoint = self.source(url)?;
        let is_zmq = matches!(endpoint, KvEndpoint::Zmq(_) | KvEndpoint::Ipc(_));
        if self.replay_source(url)?.is_some() && !is_zmq {
            return refuse("kv_events.replay", "only publishers over tcp:// and ipc:// have one");
        }
        if self.topic.len() > Self::TOPIC_BYTES_MAX {
            return refuse("kv_events.topic", "has more than 255 bytes");
        }
        Ok(())
    }

    fn check_ranks(&self, endpoint: &KvEndpoint) -> Result<(), FleetError> {
        let field = "kv_events.ranks";
        let fits = match endpoint {
            KvEndpoint::Zmq(place) => u32::from(place.port()) + self.ranks.saturating_sub(1) <= u32::from(u16::MAX),
            KvEndpoint::Ipc(_) | KvEndpoint::Grpc(_) | KvEndpoint::Drain(_) => self.ranks == 1,
        };
        match (1..=Self::RANKS_MAX).contains(&self.ranks) {
            false => refuse(field, "must lie between 1 and 256"),
            true if !fits => refuse(field, "each rank needs a tcp port of its own, counted up from the endpoint's"),
            true => Ok(()),
        }
    }
}

fn parse(field: &'static str, text: &str, url: &WorkerUrl) -> Result<KvEndpoint, FleetError> {
    let known = "must be tcp://host:port, ipc:///path, grpc://host:port or a url below the worker's own";
    let Some((scheme, rest)) = text.split_once("://") else { return refuse(field, known) };
    match scheme {
        "tcp" => Ok(KvEndpoint::Zmq(place(field, "http", rest, url)?)),
        "grpc" => Ok(KvEndpoint::Grpc(place(field, "http", rest, url)?)),
        "grpcs" => Ok(KvEndpoint::Grpc(place(field, "https", rest, url)?)),
        "ipc" if rest.starts_with('/') && rest.len() <= 107 && !rest.contains('\0') => {
            Ok(KvEndpoint::Ipc(rest.to_owned()))
        }
        "ipc" => refuse(field, "an ipc:// endpoint is an absolute path of at most 107 bytes"),
        "http" | "https" => match text.strip_prefix(url.as_str()) {
            Some(path) if path.starts_with('/') && path.bytes().all(|byte| (0x21..0x7f).contains(&byte)) => {
                Ok(KvEndpoint::Drain(path.to_owned()))
            }
            _ => refuse(field, "a url to fetch events from lies below the worker's own url"),
        },
        _ => refuse(field, known),
    }
}

/// A host and a port, which must be there.
fn place(field: &'static str, scheme: &str, rest: &str, url: &WorkerUrl) -> Result<WorkerUrl, FleetError> {
    let reason = "needs a host and a port, such as tcp://10.0.0.1:5557";
    let Some((host, port)) = rest.rsplit_once(':') else { return refuse(field, reason) };
    let host = match host {
        "*" if url.host().contains(':') => format!("[{}]", url.host()),
        "*" => url.host().to_owned(),
        host => host.to_owned(),
    };
    let place: WorkerUrl = match format!("{scheme}://{host}:{port}").parse() {
        Ok(place) => place,
        Err(_) => return refuse(field, reason),
    };
    if !place.path().is_empty() {
        return refuse(field, reason);
    }
    Ok(place)
}

fn refuse<T>(field: &'static str, reason: &'static str) -> Result<T, FleetError> {
    Err(FleetError::InvalidSpec { field, reason })
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape serde calls")]
fn is_one(ranks: &u32) -> bool {
    *ranks == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker() -> WorkerUrl {
        "http://gpu-1:8000/base".parse().unwrap()
    }

    #[test]
    fn endpoints_are_taken_apart() {
        let check = |endpoint: &str, expected: &str| {
            let spec = KvEventsSpec::new(endpoint);
            spec.check(&worker()).unwrap();
            assert_eq!(format!("{:?}", spec.source(&worker()).unwrap()), expected, "{endpoint}");
        };
        check("tcp://10.0.0.1:5557", r#"Zmq("http://10.0.0.1:5557")"#);
        check("tcp://*:5557", r#"Zmq("http://gpu-1:5557")"#);
        check("tcp://[::1]:5557", r#"Zmq("http://[::1]:5557")"#);
        check("ipc:///run/kv.sock", r#"Ipc("/run/kv.sock")"#);
        check("grpc://*:50051", r#"Grpc("http://gpu-1:50051")"#);
        check("grpcs://a:50051", r#"Grpc("https://a:50051")"#);
        check("http://gpu-1:8000/base/kv_cache_events", r#"Drain("/kv_cache_events")"#);
        let six: WorkerUrl = "http://[fd00::1]:8000".parse().unwrap();
        let source = KvEventsSpec::new("tcp://*:5557").source(&six).unwrap();
        assert_eq!(source, KvEndpoint::Zmq("http://[fd00::1]:5557".parse().unwrap()));
    }

    #[test]
    fn what_cannot_be_listened_to_is_refused_by_name() {
        let check = |spec: KvEventsSpec, part: &str| {
            let error = spec.check(&worker()).unwrap_err().to_string();
            assert!(error.contains(part), "{spec:?}: {error}");
        };
        for endpoint in ["", "5557", "tcp://a", "tcp://a:", "tcp://a:0", "tcp://a:5557/x", "udp://a:1", "tcp://u@a:1"] {
            check(KvEventsSpec::new(endpoint), "kv_events.endpoint");
        }
        check(KvEventsSpec::new("ipc://relative"), "absolute path");
        check(KvEventsSpec::new("http://169.254.169.254/latest"), "below the worker's own url");
        check(KvEventsSpec::new("http://gpu-1:80001/kv_cache_events"), "below the worker's own url");
        let with = |replay: &str| KvEventsSpec { replay: Some(replay.to_owned()), ..KvEventsSpec::new("tcp://a:1") };
        check(with("grpc://a:1"), "kv_events.replay");
        check(
            KvEventsSpec { replay: Some("tcp://a:1".to_owned()), ..KvEventsSpec::new("grpc://a:1") },
            "kv_events.replay",
        );
        check(KvEventsSpec { ranks: 0, ..KvEventsSpec::new("tcp://a:1") }, "kv_events.ranks");
        check(KvEventsSpec { ranks: 257, ..KvEventsSpec::new("tcp://a:1") }, "kv_events.ranks");
        check(KvEventsSpec { ranks: 2, ..KvEventsSpec::new("tcp://a:65535") }, "kv_events.ranks");
        check(KvEventsSpec { ranks: 2, ..KvEventsSpec::new("ipc:///x") }, "kv_events.ranks");
        check(KvEventsSpec { topic: "x".repeat(256), ..KvEventsSpec::new("tcp://a:1") }, "kv_events.topic");
    }
}
