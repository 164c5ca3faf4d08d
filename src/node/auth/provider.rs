//! The identity provider, as the settings name it: its documents are fetched under the rules for addresses, before the node
//! listens and beside its requests.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use smg_auth::{ClaimPath, ClaimRules, Fetch, FetchError, Provider, ProviderConfig};
use smg_base::{Clock, TenantId};
use smg_runtime::metrics::Registrar;
use smg_upstream::{
    outside::{Outside, OutsideConfig, OutsideError},
    rules::{Unlisted, UrlRules},
};

use crate::{
    config::{Config, sections::Auth},
    error::Error,
};

/// How long the provider may take over a connection, and over a whole answer.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(10);

/// The provider that the settings name, with its keys. Without them the node does not start: it would refuse everybody.
pub(crate) async fn open(
    config: &Config,
    clock: Arc<dyn Clock>,
    registrar: &Registrar,
) -> Result<Option<Arc<Provider>>, Error> {
    let auth = &config.sections.auth;
    let Some(issuer) = &auth.jwt_issuer else { return Ok(None) };
    let outside = OutsideConfig {
        // Its own documents say where to go on, so they may not lead into private networks unless somebody says so.
        rules: UrlRules { allow: auth.jwt_allow_networks.clone(), unlisted: Unlisted::Public, ..UrlRules::default() },
        security: auth.security(),
        ca_files: auth.jwt_ca_cert_paths.clone(),
        connect_timeout: CONNECT_PATIENCE,
        timeout: PATIENCE,
    };
    let client: Arc<dyn Fetch> = Arc::new(Client(Arc::new(Outside::new(&outside)?)));
    let opened = Provider::open(settings(auth, issuer), client, clock, registrar).await?;
    tracing::info!(issuer, "the keys of the identity provider are there");
    Ok(Some(Arc::new(opened)))
}

fn settings(auth: &Auth, issuer: &str) -> ProviderConfig {
    let role_of = auth.jwt_role_mapping.iter().map(|role| (role.theirs.clone(), role.ours));
    ProviderConfig {
        issuer: issuer.to_owned(),
        audiences: auth.jwt_audience.clone(),
        keys_url: auth.jwt_jwks_uri.clone(),
        leeway: auth.jwt_leeway,
        refresh_every: auth.jwt_refresh_interval,
        keys_kept_for: auth.jwt_keys_kept_for,
        claims: ClaimRules {
            tenant: auth.jwt_tenant_claim.as_deref().map(ClaimPath::new),
            tenant_without_claim: TenantId::from("default"),
            roles: ClaimPath::new(&*auth.jwt_role_claim),
            role_of: role_of.collect(),
        },
    }
}

/// Gets the documents.
struct Client(Arc<Outside>);

impl Fetch for Client {
    fn get(&self, url: &str, bytes_max: usize) -> BoxFuture<'static, Result<Vec<u8>, FetchError>> {
        let (outside, url) = (self.0.clone(), url.to_owned());
        Box::pin(async move {
            let got = outside.get(&url, bytes_max).await;
            got.map_err(|error| FetchError::new(format!("{error}{}", hint(&error))))
        })
    }
}

fn hint(error: &OutsideError) -> &'static str {
    match error {
        OutsideError::Address(_) => "; --jwt-allow-networks names private networks in which it may be",
        OutsideError::Plain => "; --jwt-allow-http allows it",
        OutsideError::Connect(_) => "; --jwt-ca-cert-paths names further authorities, if it is a matter of trust",
        _ => "",
    }
}
