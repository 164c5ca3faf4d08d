//! An identity provider: where its keys are, and what it has signed.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prometheus::IntCounterVec;
use serde::Deserialize;
use smg_base::{Clock, Timestamp};
use smg_runtime::metrics::Registrar;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout},
};

use crate::{
    claims::ClaimRules,
    denied::Denied,
    fetch::{Fetch, FetchError},
    jwks::{self, BadKeys, KeySet},
    principal::{Principal, Role},
    token::{Expected, Head},
};

/// Longest description of itself that a provider may give.
const DISCOVERY_BYTES_MAX: usize = 64 << 10;

/// Longest address of its keys.
const URL_BYTES_MAX: usize = 2_048;

/// Shortest time between two fetches that tokens cause, so that made-up tokens do not become requests at the provider:
/// from the end of one to the beginning of the next.
const REFETCH_EVERY: Duration = Duration::from_secs(10);

/// How soon a refresh that failed is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(30);

/// How long a token may wait for keys that are fetched on its account.
const REFETCH_PATIENCE: Duration = Duration::from_secs(3);

/// Which provider is believed, and in what.
#[derive(Clone, Debug)]
pub struct ProviderConfig {
    /// Its name, which is the address below which it describes itself (OpenID Connect Discovery 1.0).
    pub issuer: String,
    /// Whom a token must be meant for: one of these.
    pub audiences: Vec<String>,
    /// Where its keys are, if that is not to be asked of it.
    pub keys_url: Option<String>,
    /// How far clocks may be apart.
    pub leeway: Duration,
    /// How often its keys are fetched.
    pub refresh_every: Duration,
    /// How long its keys are believed while it does not answer.
    pub keys_kept_for: Duration,
    /// Who a token is about.
    pub claims: ClaimRules,
}

/// Why a provider cannot be asked. What was known of it stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// A document cannot be had.
    #[error("{url} cannot be had: {source}")]
    Fetch {
        /// Where it should be.
        url: String,
        /// Why not.
        source: FetchError,
    },
    /// The description is something else.
    #[error("{url} does not describe an OpenID provider: {reason}")]
    Description {
        /// Where it is.
        url: String,
        /// Why not.
        reason: &'static str,
    },
    /// The keys are of no use.
    #[error("the keys at {url} cannot be used: {source}")]
    Keys {
        /// Where they are.
        url: String,
        /// Why not.
        source: BadKeys,
    },
}

/// An identity provider whose tokens are believed.
///
/// One task asks it, [`Provider::keep_fresh`]; requests only read what that has found out. A request whose token names a key
/// that is not known wakes the task, and waits a moment for what it brings.
pub struct Provider {
    config: ProviderConfig,
    fetch: Arc<dyn Fetch>,
    clock: Arc<dyn Clock>,
    keys: ArcSwap<Held>,
    refetch: Mutex<Refetch>,
    wanted: Notify,
    /// Told whenever a fetch has ended.
    ended: watch::Sender<()>,
    fetches: IntCounterVec,
}

struct Held {
    keys: KeySet,
    since: Timestamp,
}

/// Whether a token may cause a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refetch {
    /// None did yet.
    Never,
    /// One does; others join it.
    Wanted,
    /// The last ended then.
    Ended(Timestamp),
}

/// What a provider says of itself.
#[derive(Deserialize)]
struct Description {
    issuer: String,
    jwks_uri: String,
}

impl Provider {
    /// A provider whose keys are there: it is asked for them now.
    pub async fn open(
        config: ProviderConfig,
        fetch: Arc<dyn Fetch>,
        clock: Arc<dyn Clock>,
        registrar: &Registrar,
    ) -> Result<Self, ProviderError> {
        let fetches = describe(registrar);
        let keys = ask(&config, &*fetch).await?;
        fetches.with_label_values(&["ok"]).inc();
        let keys = ArcSwap::from_pointee(Held { keys, since: clock.now() });
        let (refetch, wanted, ended) = (Mutex::new(Refetch::Never), Notify::new(), watch::Sender::new(()));
        Ok(Self { config, fetch, clock, keys, refetch, wanted, ended, fetches })
    }

    /// Keeps the keys fresh for as long as it is polled. While the provider does not answer, what was known stays.
    pub async fn keep_fresh(&self) {
        let mut due = Instant::now() + self.config.refresh_every;
        loop {
            tokio::select! {
                () = sleep_until(due) => {}
                () = self.wanted.notified() => {
                    // A fetch that was under way has served whoever woke this.
                    if *self.refetch.lock() != Refetch::Wanted {
                        continue;
                    }
                }
            }
            due = Instant::now() + self.renew().await;
        }
    }

    /// Asks for the keys; says after which pause to ask again.
    async fn renew(&self) -> Duration {
        let asked = ask(&self.config, &*self.fetch).await;
        self.fetches.with_label_values(&[if asked.is_ok() { "ok" } else { "failed" }]).inc();
        let pause = match asked {
            Ok(keys) => {
                tracing::debug!(keys = keys.len(), "fetched the keys of the identity provider");
                self.keys.store(Arc::new(Held { keys, since: self.clock.now() }));
                self.config.refresh_every
            }
            Err(error) => {
                tracing::warn!(%error, "the keys of the identity provider cannot be renewed, those known stay in use");
                RETRY_EVERY.min(self.config.refresh_every)
            }
        };
        let mut refetch = self.refetch.lock();
        if *refetch == Refetch::Wanted {
            *refetch = Refetch::Ended(self.clock.now());
        }
        drop(refetch);
        self.ended.send_replace(());
        pause
    }

    /// Whether one of its roles is that of an admin here.
    pub(crate) fn names_operators(&self) -> bool {
        self.config.claims.role_of.values().any(|role| *role == Role::Admin)
    }

    /// Who presents this token. Nothing is waited for, unless a key would prove it that the provider may have made since it was
    /// last asked.
    pub async fn identify(&self, token: &str) -> Result<Arc<Principal>, Denied> {
        let head = Head::read(token).map_err(Denied::Token)?;
        let claims = match head.verify(token, &self.held()?.keys) {
            Err(fault) if head.may_have_newer_key(fault) && self.has_asked_again().await => {
                head.verify(token, &self.held()?.keys)
            }
            judged => judged,
        };
        let claims = claims.map_err(Denied::Token)?;
        let expected =
            Expected { issuer: &self.config.issuer, audiences: &self.config.audiences, leeway: self.config.leeway };
        expected.check(&claims, Duration::from_millis(self.clock.unix_ms())).map_err(Denied::Token)?;
        self.config.claims.principal(&claims).map(Arc::new).map_err(Denied::Token)
    }

    /// Has the provider asked for keys that are not known, unless that was just done; says whether it was asked.
    async fn has_asked_again(&self) -> bool {
        let mut ended = self.ended.subscribe();
        {
            let mut refetch = self.refetch.lock();
            match *refetch {
                Refetch::Ended(at) if self.clock.now().since(at) < REFETCH_EVERY => return false,
                Refetch::Wanted => {}
                Refetch::Never | Refetch::Ended(_) => {
                    *refetch = Refetch::Wanted;
                    self.wanted.notify_one();
                }
            }
        }
        timeout(REFETCH_PATIENCE, ended.changed()).await.is_ok()
    }

    /// The keys, if they are not too old to be believed.
    fn held(&self) -> Result<Arc<Held>, Denied> {
        let held = self.keys.load_full();
        let is_old = self.clock.now().since(held.since) > self.config.keys_kept_for;
        if is_old { Err(Denied::Unavailable) } else { Ok(held) }
    }
}

/// Registers what is counted.
pub fn describe(registrar: &Registrar) -> IntCounterVec {
    registrar.counter_vec(
        "smg_auth_provider_fetches_total",
        "Fetches of the identity provider's keys, by outcome (ok, failed)",
        &["outcome"],
    )
}

/// Asks a provider for its keys.
async fn ask(config: &ProviderConfig, fetch: &dyn Fetch) -> Result<KeySet, ProviderError> {
    let url = match &config.keys_url {
        Some(url) => url.clone(),
        None => discover(&config.issuer, fetch).await?,
    };
    let document = get(fetch, &url, jwks::BYTES_MAX).await?;
    KeySet::read(&document).map_err(|source| ProviderError::Keys { url, source })
}

/// Where the provider says that its keys are.
async fn discover(issuer: &str, fetch: &dyn Fetch) -> Result<String, ProviderError> {
    let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
    let document = get(fetch, &url, DISCOVERY_BYTES_MAX).await?;
    let wrong = |reason| ProviderError::Description { url, reason };
    let described: Description = match serde_json::from_slice(&document) {
        Ok(described) => described,
        Err(_) => return Err(wrong("it is no JSON object with issuer and jwks_uri")),
    };
    if described.issuer != issuer {
        return Err(wrong("it is that of another issuer"));
    }
    // It is named where things go wrong, in logs among others.
    if described.jwks_uri.len() > URL_BYTES_MAX || !described.jwks_uri.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong("what it says of where its keys are is no url"));
    }
    // Keys over a connection that anybody may change would prove nothing.
    if issuer.starts_with("https://") && !described.jwks_uri.starts_with("https://") {
        return Err(wrong("its keys are not behind https"));
    }
    Ok(described.jwks_uri)
}

async fn get(fetch: &dyn Fetch, url: &str, bytes_max: usize) -> Result<Vec<u8>, ProviderError> {
    let got = fetch.get(url, bytes_max).await;
    let got = got.map_err(|source| ProviderError::Fetch { url: url.to_owned(), source })?;
    if got.len() > bytes_max {
        let source = FetchError::new(format!("its answer has more than {bytes_max} bytes"));
        return Err(ProviderError::Fetch { url: url.to_owned(), source });
    }
    Ok(got)
}
