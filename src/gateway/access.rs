//! Who may call: callers and operators by their keys and tokens, and by the keys in the node's own settings.

use std::{net::SocketAddr, sync::Arc};

use http::{HeaderMap, HeaderName, Method, header};
use smallvec::SmallVec;
use smg_api::Endpoint;
use smg_auth::{AuditLog, Authenticator, Denied, Models, Principal, Role, Scope, Scopes, Via};
use smg_base::{Clock, KeyId, TenantId};
use smg_infer::{Failure, FailureCode};
use smg_upstream::relay;

use crate::{
    app::Gateway,
    config::{AdminAccess, Isolation, Settings},
    edge::{self, Credentials},
    isolation::Salts,
    keys::KeyShelf,
    shared::KeyHash,
};

/// The address of the client's side of the connection, set by the listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerAddress(pub(crate) SocketAddr);

/// What the node gives the gateway to know callers by.
pub struct Identity {
    /// Knows keys and tokens.
    pub authenticator: Arc<Authenticator>,
    /// Keeps the keys that operators make, if there is a place for them.
    pub shelf: Option<Arc<dyn KeyShelf>>,
    /// Takes down what operators change, if that is wanted.
    pub audit: Option<Arc<AuditLog>>,
    /// What the salts of tenants are made with: equal on all nodes of a cluster, and not to be known outside it.
    pub salt_secret: [u8; 32],
}

impl Identity {
    /// For a gateway that knows nobody: it is open, unless its settings name a key.
    pub fn of_nobody(clock: Arc<dyn Clock>) -> Self {
        let authenticator = Arc::new(Authenticator::new(clock));
        Self { authenticator, shelf: None, audit: None, salt_secret: [0; 32] }
    }
}

/// Whom a gateway knows.
pub(crate) struct Access {
    pub(crate) authenticator: Arc<Authenticator>,
    pub(crate) shelf: Option<Arc<dyn KeyShelf>>,
    pub(crate) audit: Option<Arc<AuditLog>>,
    pub(crate) salts: Salts,
    /// Who holds the one key of the settings.
    holder: Arc<Principal>,
    anyone: Arc<Principal>,
    operator: Arc<Principal>,
}

/// A caller that was let in.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) principal: Arc<Principal>,
    /// Whose the credentials in its request are.
    pub(crate) credentials: Credentials,
}

/// Why somebody was not let in.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) failure: Failure,
    /// The label in metrics.
    pub(crate) reason: &'static str,
    /// Who it was, where that is known: somebody who may not do this.
    pub(crate) who: Option<Arc<Principal>>,
}

/// The head of a request, for who looks at who sent it.
#[derive(Clone, Copy)]
pub(crate) struct Visit<'a> {
    pub(crate) headers: &'a HeaderMap,
    pub(crate) method: &'a Method,
    pub(crate) peer: Option<PeerAddress>,
}

impl<'a> Visit<'a> {
    pub(crate) fn of(head: &'a http::request::Parts) -> Self {
        let peer = head.extensions.get::<PeerAddress>().copied();
        Self { headers: &head.headers, method: &head.method, peer }
    }
}

/// The credentials of one request; more headers than these carry none.
type Offered<'a> = SmallVec<[&'a str; 3]>;

impl Access {
    pub(crate) fn new(identity: Identity) -> Self {
        let Identity { authenticator, shelf, audit, salt_secret } = identity;
        Self {
            authenticator,
            shelf,
            audit,
            salts: Salts::new(&salt_secret),
            holder: Arc::new(principal("default", "the gateway's key", Role::Caller, Via::SharedKey)),
            anyone: Arc::new(principal("anonymous", "anyone", Role::Caller, Via::Open)),
            operator: Arc::new(principal("default", "the operators' key", Role::Admin, Via::SharedKey)),
        }
    }

    /// Lets a caller of the serving endpoints in, if it may use the family that is wanted.
    pub(crate) async fn serving(
        &self,
        visit: Visit<'_>,
        wanted: Option<Scope>,
        settings: &Settings,
    ) -> Result<Guest, Refused> {
        let offered = offered(visit.headers);
        refuse_revoked(&offered, settings)?;
        let credentials = Credentials::Gateways;
        let holder = settings.api_key.as_ref().filter(|key| matches_any(key, &offered)).map(|_| self.holder.clone());
        if holder.is_none() && self.is_open(settings) {
            let principal = self.for_tenant_of_proxy(self.anyone.clone(), visit, settings);
            return Ok(Guest { principal, credentials: Credentials::Workers });
        }
        let principal = self.one_of(holder, &offered).await?;
        refuse_beyond_scopes(&principal, wanted)?;
        Ok(Guest { principal: self.for_tenant_of_proxy(principal, visit, settings), credentials })
    }

    /// Lets an operator in.
    pub(crate) async fn admin(&self, visit: Visit<'_>, settings: &Settings) -> Result<Arc<Principal>, Refused> {
        let offered = offered(visit.headers);
        refuse_revoked(&offered, settings)?;
        let own = settings.admin_key.as_ref().or(settings.api_key.as_ref());
        let holder = own.filter(|key| matches_any(key, &offered)).map(|_| self.operator.clone());
        if holder.is_none() && !self.has_operators(settings) {
            return self.without_key(visit, settings);
        }
        let principal = self.one_of(holder, &offered).await?;
        let message = match principal.role {
            Role::Admin => return Ok(principal),
            Role::Viewer if matches!(*visit.method, Method::GET | Method::HEAD) => return Ok(principal),
            Role::Viewer => "a viewer may look at everything and change nothing",
            Role::Caller => "this key or token is for callers; the admin API wants one with the role admin",
        };
        Err(Refused { who: Some(principal), ..forbidden(message) })
    }

    /// Who presents these credentials: whoever they all lead to. Those that lead to nobody beside ones that lead to somebody
    /// may be meant for others.
    async fn one_of(&self, holder: Option<Arc<Principal>>, offered: &[&str]) -> Result<Arc<Principal>, Refused> {
        if let (Some(holder), [_]) = (&holder, offered) {
            return Ok(holder.clone());
        }
        if self.authenticator.is_open() {
            // It knows nobody, so that anybody would do.
            let nobody = if offered.is_empty() { Denied::Missing } else { Denied::Unknown };
            return holder.ok_or_else(|| Refused::from(nobody));
        }
        let mut found = holder;
        let mut refusal = None;
        // Every one is looked at, so that the time does not tell which was right.
        for one in offered {
            match self.authenticator.identify(one).await {
                Ok(principal) => match &found {
                    Some(known) if *known != principal => {
                        let message = "the credentials in this request are those of different callers; send one";
                        return Err(Refused { failure: unauthorized(message), reason: "ambiguous", who: None });
                    }
                    _ => found = Some(principal),
                },
                Err(denied) => refusal = refusal.or(Some(denied)),
            }
        }
        match (found, refusal) {
            (Some(principal), _) => Ok(principal),
            (None, Some(denied)) => Err(Refused::from(denied)),
            (None, None) => Err(Refused::from(Denied::Missing)),
        }
    }

    /// Whether callers need no key, because there are none.
    pub(crate) fn is_open(&self, settings: &Settings) -> bool {
        settings.api_key.is_none() && !settings.require_key && self.authenticator.is_open()
    }

    /// Whether somebody holds what opens the admin API; else being on this machine does.
    fn has_operators(&self, settings: &Settings) -> bool {
        settings.admin_key.is_some() || settings.api_key.is_some() || !self.authenticator.is_open()
    }

    /// Whether an operator could still get in if the keys that operators make were all gone.
    pub(crate) fn has_own_key(&self, settings: &Settings) -> bool {
        settings.admin_key.is_some() || settings.api_key.is_some() || self.authenticator.believes_operators()
    }

    fn without_key(&self, visit: Visit<'_>, settings: &Settings) -> Result<Arc<Principal>, Refused> {
        let near = visit.peer.is_some_and(|PeerAddress(address)| address.ip().to_canonical().is_loopback());
        if near || settings.admin_access == AdminAccess::Anyone {
            return Ok(Arc::new(principal("anonymous", "anyone", Role::Admin, Via::Open)));
        }
        Err(forbidden(
            "without a key the admin API answers callers on the gateway's own machine only; \
             start the gateway with --api-key or --admin-api-key",
        ))
    }

    /// The same caller in the tenant that a trusted proxy names, unless it has one of its own.
    fn for_tenant_of_proxy(&self, principal: Arc<Principal>, visit: Visit<'_>, settings: &Settings) -> Arc<Principal> {
        let Some(trusted) = settings.tenant_header.as_ref() else { return principal };
        let is_own = matches!(principal.via, Via::Key | Via::Token);
        let from_proxy = visit.peer.is_some_and(|PeerAddress(address)| trusted.believes(address.ip()));
        let named = edge::named(visit.headers, &trusted.name).filter(|tenant| is_tenant(tenant));
        match named.filter(|_| from_proxy && !is_own) {
            Some(tenant) => Arc::new(Principal { tenant: TenantId::from(tenant), ..(*principal).clone() }),
            None => principal,
        }
    }

    /// Whether tenants' caches are kept apart, and their stored objects.
    pub(crate) fn isolates(&self, settings: &Settings) -> bool {
        match settings.isolation {
            Isolation::On => true,
            Isolation::Off => false,
            Isolation::Auto => !self.authenticator.is_open() || settings.tenant_header.is_some(),
        }
    }

    /// The caller that a peer has let in, as the peer tells of it.
    pub(crate) fn of_peer(&self, headers: &HeaderMap) -> Arc<Principal> {
        let told = |name: HeaderName| headers.get(name)?.to_str().ok().and_then(edge::percent_decoded);
        let Some(tenant) = told(relay::TENANT).filter(|tenant| is_tenant(tenant)) else { return self.anyone.clone() };
        let key = told(relay::KEY).map(|key| KeyId::from(key.as_str()));
        let via = if key.is_some() { Via::Key } else { Via::SharedKey };
        let class = told(relay::CLASS).map(String::into_boxed_str);
        Arc::new(Principal { key, class, ..principal(&tenant, "relayed", Role::Caller, via) })
    }
}

/// Tells a peer who the caller is.
pub(crate) fn tell_peer(principal: &Principal, headers: &mut HeaderMap) {
    let mut tell =
        |name: HeaderName, text: &str| headers.insert(name, edge::header_value(&edge::percent_encoded(text)));
    tell(relay::TENANT, principal.tenant.as_str());
    if let Some(key) = &principal.key {
        tell(relay::KEY, key.as_str());
    }
    if let Some(class) = &principal.class {
        tell(relay::CLASS, class);
    }
}

impl Gateway {
    /// Lets a caller of the serving endpoints in, or counts that it was not.
    pub(crate) async fn let_in(
        &self,
        visit: Visit<'_>,
        wanted: Option<Scope>,
        settings: &Settings,
    ) -> Result<Guest, Failure> {
        self.access.serving(visit, wanted, settings).await.map_err(|refused| {
            self.metrics.auth_failures.with_label_values(&["serving", refused.reason]).inc();
            refused.failure
        })
    }
}

fn principal(tenant: &str, name: &str, role: Role, via: Via) -> Principal {
    Principal {
        tenant: TenantId::from(tenant),
        key: None,
        name: name.into(),
        role,
        models: Models::All,
        scopes: Scopes::All,
        class: None,
        via,
    }
}

/// Longest name of a tenant.
const TENANT_BYTES_MAX: usize = 128;

/// Names of tenants end up in logs, files and answers, so only plain ones are taken.
fn is_tenant(name: &str) -> bool {
    (1..=TENANT_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control)
}

impl From<Denied> for Refused {
    fn from(denied: Denied) -> Self {
        let code = match denied {
            Denied::Unavailable => FailureCode::IdentityUnavailable,
            _ => FailureCode::Unauthorized,
        };
        Self { failure: Failure::new(code, denied.message()), reason: denied.reason(), who: None }
    }
}

pub(crate) fn forbidden(message: &'static str) -> Refused {
    Refused { failure: Failure::new(FailureCode::Forbidden, message), reason: "forbidden", who: None }
}

fn unauthorized(message: &'static str) -> Failure {
    Failure::new(FailureCode::Unauthorized, message)
}

/// The family that a serving endpoint belongs to.
pub(crate) const fn scope_of(endpoint: Endpoint) -> Scope {
    match endpoint {
        // Counting belongs to the messages it counts: their clients do both.
        Endpoint::ChatCompletions | Endpoint::Messages | Endpoint::CountTokens => Scope::Chat,
        Endpoint::Completions | Endpoint::Generate => Scope::Completions,
        Endpoint::Responses => Scope::Responses,
        Endpoint::Embeddings => Scope::Embeddings,
        Endpoint::RerankV1 | Endpoint::Rerank | Endpoint::Score => Scope::Rerank,
        Endpoint::Classify => Scope::Classify,
        Endpoint::Transcriptions => Scope::Audio,
        Endpoint::Tokenize | Endpoint::Detokenize => Scope::Tokenize,
    }
}

/// Who is known may still not use everything. What is missing is named: it is no secret from whoever holds the key.
fn refuse_beyond_scopes(principal: &Arc<Principal>, wanted: Option<Scope>) -> Result<(), Refused> {
    let Some(missing) = wanted.filter(|scope| !principal.scopes.allows(*scope)) else { return Ok(()) };
    let key = principal.key.as_ref().map(tracing::field::display);
    tracing::info!(key, tenant = %principal.tenant, scope = missing.as_str(), "a caller lacks a scope");
    let message = format!("this key may not call this endpoint: it lacks the scope '{}'", missing.as_str());
    let failure = Failure::new(FailureCode::MissingScope, message);
    Err(Refused { failure, reason: "scope", who: Some(principal.clone()) })
}

/// Whether a web page sent the request that is not among those which may call. Without a key nothing else keeps the pages
/// that somebody visits on this machine from administering the gateway; that every page may call (`*`) does not say
/// that every page may do this.
pub(crate) fn is_of_foreign_page(headers: &HeaderMap, origins: &[String]) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return false;
    };
    !origins.iter().any(|allowed| allowed != "*" && allowed.as_bytes() == origin.as_bytes())
}

/// A key that was revoked opens nothing, even where this node's own settings still name it.
fn refuse_revoked(offered: &[&str], settings: &Settings) -> Result<(), Refused> {
    let revoked = &settings.shared.revoked;
    if revoked.is_empty() || !offered.iter().any(|key| revoked.contains(&KeyHash::of(key))) {
        return Ok(());
    }
    Err(Refused::from(Denied::Revoked))
}

fn matches_any(key: &smg_base::Secret, offered: &[&str]) -> bool {
    // Every offered key is compared, so that the time does not tell which header was right.
    offered.iter().fold(false, |found, offered| key.matches(offered) | found)
}

/// What a caller sends to be known by, each once.
fn offered(headers: &HeaderMap) -> Offered<'_> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    let plain = |name: &'static str| headers.get(name).and_then(|value| value.to_str().ok());
    let mut offered = Offered::new();
    for one in [bearer, plain("x-api-key"), plain("x-goog-api-key")].into_iter().flatten() {
        if !one.is_empty() && !offered.contains(&one) {
            offered.push(one);
        }
    }
    offered
}

#[cfg(test)]
mod tests {
    use smg_auth::{KeyRecord, Origin};
    use smg_base::{ManualClock, Secret};

    use super::*;

    #[tokio::test]
    async fn who_may_not_administer_is_still_known() {
        let identity = Identity::of_nobody(Arc::new(ManualClock::default()));
        let key = |name: &str, role| {
            let record = KeyRecord { id: name.into(), role, ..KeyRecord::new(name.to_owned(), "acme", 0) };
            record.of_key(&Secret::new(name))
        };
        let records = vec![key("ops", Role::Admin), key("looks", Role::Viewer), key("calls", Role::Caller)];
        identity.authenticator.set_keys(Origin::File, records);
        let (access, settings) = (Access::new(identity), Settings::default());
        let check = async |key: &'static str, method: Method, expected: Result<&str, Option<&str>>| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, edge::header_value(&format!("Bearer {key}")))]);
            let visit = Visit { headers: &headers, method: &method, peer: None };
            let found = access.admin(visit, &settings).await;
            let told = match &found {
                Ok(principal) => Ok(&*principal.name),
                Err(refused) => Err(refused.who.as_ref().map(|who| &*who.name)),
            };
            assert_eq!(told, expected, "{key} {method}");
        };
        check("ops", Method::POST, Ok("ops")).await;
        check("looks", Method::GET, Ok("looks")).await;
        check("looks", Method::POST, Err(Some("looks"))).await;
        check("calls", Method::GET, Err(Some("calls"))).await;
        check("unknown", Method::POST, Err(None)).await;
    }
}
