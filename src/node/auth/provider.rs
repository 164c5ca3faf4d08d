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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use smg_base::ManualClock;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::config::{Flags, Inputs};

    /// Answers every request of a provider on loopback, one after the other.
    async fn answer(listener: &TcpListener) {
        let issuer = format!("http://{}", listener.local_addr().expect("it is bound"));
        let coordinate = "A".repeat(43);
        let keys = format!(r#"{{"keys":[{{"kty":"EC","crv":"P-256","x":"{coordinate}","y":"{coordinate}"}}]}}"#);
        let description = format!(r#"{{"issuer":"{issuer}","jwks_uri":"{issuer}/keys"}}"#);
        loop {
            let (mut stream, _) = listener.accept().await.expect("it listens");
            let mut head = [0; 1_024];
            let read = stream.read(&mut head).await.unwrap_or(0);
            let body = if head[..read].starts_with(b"GET /keys ") { &keys } else { &description };
            let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let _gone = stream.write_all(text.as_bytes()).await;
        }
    }

    #[tokio::test]
    async fn a_provider_is_asked_where_the_settings_allow_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a port");
        let issuer = format!("http://{}", listener.local_addr().expect("it is bound"));
        let check = async |flags: &[&str], expected: Result<(), &str>| {
            let mut given = vec!["--jwt-issuer", &*issuer, "--jwt-audience", "smg", "--jwt-allow-http"];
            given.extend(flags);
            let flags = Flags::parse(given.iter().copied()).expect("the flags exist");
            let inputs = Inputs { flags, env: BTreeMap::new(), directory: "/nowhere".into() };
            let config = Config::load(&inputs).unwrap_or_else(|errors| panic!("{errors}"));
            let registrar = Registrar::new();
            let opened = tokio::select! {
                opened = open(&config, Arc::new(ManualClock::default()), &registrar) => opened,
                () = answer(&listener) => return,
            };
            match (opened, expected) {
                (Ok(opened), Ok(())) => assert!(opened.is_some()),
                (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{words}: {error}"),
                (opened, _) => panic!("{given:?}: {:?}", opened.map(|_| ()).map_err(|error| error.to_string())),
            }
        };
        let elsewhere = format!("{issuer}/");
        check(&["--jwt-allow-networks", "127.0.0.0/8"], Ok(())).await;
        check(&[], Err("127.0.0.1 is private, and the url rules allow only public ones; --jwt-allow-networks names"))
            .await;
        check(&["--jwt-allow-networks", "10.0.0.0/8"], Err("127.0.0.1 is private")).await;
        check(
            &["--jwt-allow-networks", "127.0.0.0/8", "--jwt-jwks-uri", "http://169.254.169.254/latest"],
            Err("169.254.169.254 is link-local"),
        )
        .await;
        check(
            &["--jwt-allow-networks", "127.0.0.0/8", "--jwt-jwks-uri", &elsewhere],
            Err("cannot be used: it is no JSON object with a list of keys"),
        )
        .await;
    }
}
