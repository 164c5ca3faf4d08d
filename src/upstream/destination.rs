//! What is known of each worker for sending to it: addresses in the forms HTTP wants them, its key, its connections.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header,
    uri::{Authority, PathAndQuery, Scheme as UriScheme},
};
use parking_lot::Mutex;
use smg_base::{Secret, WorkerId, map::StableMap};
use smg_fleet::{Engine, Origin, Scheme, Worker};
use smg_infer::{Failure, FailureCode};
use tokio::time::Instant;

use crate::{
    connect::Target,
    outbound::{Outbound, OutboundBody},
    pool::Pool,
    rules::UrlRules,
};

/// How long a worker that is not used is remembered; after that it costs a map update to use it again.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Whether requests share one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// One worker as the client sees it.
pub(crate) struct Destination {
    pub(crate) target: Target,
    pub(crate) pool: Arc<Pool>,
    /// Held while a connection is opened that may turn out to be one that requests can share.
    pub(crate) opening: tokio::sync::Mutex<()>,
    speaks_http1: AtomicBool,
    host: HeaderValue,
    authority: Authority,
    key: Option<Key>,
    revision: u64,
    origin: Origin,
    used: AtomicU64,
}

/// A worker's key in the two forms in which it is sent.
struct Key {
    bearer: HeaderValue,
    plain: HeaderValue,
}

impl Key {
    fn new(secret: &Secret) -> Option<Self> {
        let mut bearer = HeaderValue::try_from(format!("Bearer {}", secret.expose())).ok()?;
        let mut plain = HeaderValue::try_from(secret.expose()).ok()?;
        bearer.set_sensitive(true);
        plain.set_sensitive(true);
        Some(Self { bearer, plain })
    }
}

impl Destination {
    fn new(worker: &Worker, rules: Arc<UrlRules>, pool: Arc<Pool>) -> Self {
        let url = worker.spec.url.clone();
        let authority = url.authority();
        Self {
            host: HeaderValue::from_str(authority).expect("the authority of a worker url is visible ascii"),
            authority: authority.parse().expect("the authority of a worker url was parsed as one"),
            key: worker.spec.api_key.as_ref().and_then(Key::new),
            revision: worker.revision,
            origin: worker.origin,
            speaks_http1: AtomicBool::new(url.scheme() == Scheme::Http),
            opening: tokio::sync::Mutex::new(()),
            target: Target { url, rules },
            pool,
            used: AtomicU64::new(0),
        }
    }

    /// Whether every connection is known to carry one request at a time.
    pub(crate) fn speaks_http1(&self) -> bool {
        self.speaks_http1.load(Ordering::Relaxed)
    }

    /// Remembers what was agreed upon; a worker whose HTTP/2 was switched off is then not asked one by one.
    pub(crate) fn agreed_on(&self, protocol: Protocol) {
        self.speaks_http1.store(protocol == Protocol::Http1, Ordering::Relaxed);
    }

    /// The request as it goes out, but for what depends on the connection; see [`Self::address`].
    pub(crate) fn request(&self, outbound: Outbound, engine: Engine) -> Result<Request<OutboundBody>, Failure> {
        let Outbound { method, path_and_query, headers, body } = outbound;
        let base = self.target.url.path();
        let path = match path_and_query {
            std::borrow::Cow::Borrowed(path) if base.is_empty() => Bytes::from_static(path.as_bytes()),
            path if base.is_empty() => Bytes::from(path.into_owned()),
            path => Bytes::from([base, &path].concat()),
        };
        let path = PathAndQuery::from_maybe_shared(path)
            .map_err(|_| Failure::new(FailureCode::InvalidRequest, "the path cannot be sent to a worker"))?;
        let mut request = Request::new(body);
        *request.uri_mut() = Uri::from(path);
        *request.headers_mut() = headers;
        frame(&method, &mut request);
        *request.method_mut() = method;
        self.authorize(request.headers_mut(), engine);
        Ok(request)
    }

    fn authorize(&self, headers: &mut HeaderMap, engine: Engine) {
        let Some(key) = &self.key else {
            return;
        };
        // The caller's key is for the gateway; the worker gets its own and nothing else.
        headers.remove(header::AUTHORIZATION);
        headers.remove(X_API_KEY);
        if engine != Engine::Anthropic {
            headers.insert(header::AUTHORIZATION, key.bearer.clone());
        }
        // As long as it is not known what the worker is, it gets its key in both forms.
        if matches!(engine, Engine::Anthropic | Engine::Unknown) {
            headers.insert(X_API_KEY, key.plain.clone());
        }
    }

    /// Writes where the request goes, in the form the protocol wants.
    pub(crate) fn address(&self, request: &mut Request<OutboundBody>, protocol: Protocol) {
        match protocol {
            Protocol::Http1 => {
                request.headers_mut().insert(header::HOST, self.host.clone());
                if request.uri().authority().is_some() {
                    // It was meant for an HTTP/2 connection and comes back unsent.
                    let path = request.uri_mut().path_and_query().cloned();
                    *request.uri_mut() = path.map_or_else(Uri::default, Uri::from);
                    *request.version_mut() = Version::HTTP_11;
                }
            }
            Protocol::Http2 => {
                request.headers_mut().remove(header::HOST);
                let mut parts = std::mem::take(request.uri_mut()).into_parts();
                parts.scheme = Some(UriScheme::HTTPS);
                parts.authority = Some(self.authority.clone());
                *request.uri_mut() = Uri::from_parts(parts).expect("scheme, authority and path are all there");
                *request.version_mut() = Version::HTTP_2;
            }
        }
    }
}

/// The body is framed here and nowhere else, so that no header of a caller's can say otherwise than the body.
pub(crate) fn frame(method: &Method, request: &mut Request<OutboundBody>) {
    let empty = matches!(request.body(), OutboundBody::Full(bytes) if bytes.is_empty());
    let headers = request.headers_mut();
    for name in [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION, header::EXPECT] {
        headers.remove(name);
    }
    if empty && (method == Method::POST || method == Method::PUT || method == Method::PATCH) {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
}

/// Every worker that was sent to lately. Read for each request, changed when a worker is new or changed.
pub(crate) struct Destinations {
    by_worker: ArcSwap<StableMap<WorkerId, Arc<Destination>>>,
    writing: Mutex<()>,
    started: Instant,
}

impl Destinations {
    pub(crate) fn new() -> Self {
        Self { by_worker: ArcSwap::default(), writing: Mutex::default(), started: Instant::now() }
    }

    /// The destination of `worker` as it is now specified. `pool` makes one for a worker that has none; a worker whose
    /// settings changed keeps its connections.
    pub(crate) fn of(
        &self,
        worker: &Worker,
        rules: impl FnOnce(Origin) -> Arc<UrlRules>,
        pool: impl FnOnce() -> Pool,
    ) -> Arc<Destination> {
        let known = self.by_worker.load().get(&worker.id).cloned();
        let is_current = |known: &Arc<Destination>| known.revision == worker.revision && known.origin == worker.origin;
        if let Some(known) = known.filter(is_current) {
            return known;
        }
        let _writing = self.writing.lock();
        let mut map = StableMap::clone(&self.by_worker.load());
        let pool = map.get(&worker.id).map_or_else(|| Arc::new(pool()), |known| known.pool.clone());
        let destination = Arc::new(Destination::new(worker, rules(worker.origin), pool));
        destination.used.store(self.now_secs(), Ordering::Relaxed);
        map.insert(worker.id, destination.clone());
        self.by_worker.store(Arc::new(map));
        destination
    }

    /// Forgets a worker that is gone, and with it its idle connections.
    pub(crate) fn forget(&self, id: WorkerId) {
        self.retain(|known, _| known != id);
    }

    /// Closes idle connections, and forgets workers that have not been used for long.
    pub(crate) fn sweep(&self) {
        let now = self.now_secs();
        let mut stale = false;
        let is_stale = |destination: &Destination| {
            now.saturating_sub(destination.used.load(Ordering::Relaxed)) >= FORGOTTEN_AFTER.as_secs()
        };
        for destination in self.by_worker.load().values() {
            destination.pool.sweep();
            // In use, or used since the last look: the pool is shared with every answer that is being read.
            if !destination.pool.is_empty() || Arc::strong_count(&destination.pool) > 1 {
                destination.used.store(now, Ordering::Relaxed);
            }
            stale |= is_stale(destination);
        }
        if stale {
            self.retain(|_, destination| !is_stale(destination));
        }
    }

    fn retain(&self, keep: impl Fn(WorkerId, &Destination) -> bool) {
        let _writing = self.writing.lock();
        let mut map = StableMap::clone(&self.by_worker.load());
        map.retain(|id, destination| keep(*id, destination));
        self.by_worker.store(Arc::new(map));
    }

    fn now_secs(&self) -> u64 {
        self.started.elapsed().as_secs()
    }
}
