//! A small client of the admin API.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, builderstates::WantsSchemes};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::Value;
use smg_node::config::Secret;

use super::{Failure, output};

/// Which gateway is meant, and how its answer is printed.
#[derive(clap::Args, Debug)]
pub(super) struct Target {
    /// The gateway's URL.
    #[arg(long, env = "SMG_URL", default_value = "http://127.0.0.1:30000")]
    url: Uri,
    /// The gateway's admin key; `${NAME}` and `file:/path` refer to a variable and a file. By default
    /// SMG_ADMIN_API_KEY, else SMG_API_KEY.
    #[arg(long, value_name = "SECRET")]
    api_key: Option<String>,
    /// Certificates of the authorities to trust, PEM; by default the public ones.
    #[arg(long, value_name = "FILE")]
    ca_cert: Option<PathBuf>,
    /// How to print the answer.
    #[arg(long, value_enum, default_value = "table")]
    pub(super) output: output::Form,
}

impl Target {
    /// The gateway at `url`, with its admin key if it has one.
    #[cfg(feature = "lab")]
    pub(super) fn of(url: &str, key: Option<&Secret>) -> Result<Self, String> {
        let url = url.parse().map_err(|_| format!("{url} is not the URL of a gateway"))?;
        let api_key = key.map(|key| key.expose().to_owned());
        Ok(Self { url, api_key, ca_cert: None, output: output::Form::Table })
    }
}

/// Why a gateway gave no good answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The URL cannot be used.
    #[error("{0} is not the URL of a gateway; it should look like http://127.0.0.1:30000")]
    Url(Uri),
    /// The key cannot be sent in a header.
    #[error("the key holds characters that a header cannot carry")]
    Key,
    /// The trusted certificates cannot be used.
    #[error("the certificates in {} cannot be used", .0.display())]
    Certificates(PathBuf),
    /// No connection, or it broke.
    #[error("cannot reach the gateway at {url}: {reason}; is it running? --url or SMG_URL names another one")]
    Unreachable { url: Uri, reason: String },
    /// It took too long.
    #[error("the gateway at {url} did not answer within {} s", TIMEOUT.as_secs())]
    Slow { url: Uri },
    /// It said no.
    #[error("the gateway answered {status}: {message}{}", advice(*.status))]
    Refused { status: StatusCode, message: String },
    /// Its answer cannot be read.
    #[error("the gateway's answer is not JSON; is {0} an smg?")]
    Garbled(Uri),
}

fn advice(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "; give the admin key with --api-key or SMG_ADMIN_API_KEY",
        _ => "",
    }
}

const TIMEOUT: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Speaks to one gateway.
pub(super) struct Client {
    url: Uri,
    authorization: Option<HeaderValue>,
    http: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: tokio::runtime::Runtime,
}

impl Client {
    /// A client that has not connected yet.
    pub(super) fn new(target: &Target) -> Result<Self, Failure> {
        let is_url = matches!(target.url.scheme_str(), Some("http" | "https")) && target.url.host().is_some();
        if !is_url {
            return Err(Error::Url(target.url.clone()).into());
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Failure::system("start the runtime"))?;
        let connector = tls(target)?.https_or_http().enable_http1().build();
        let http = legacy::Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { url: target.url.clone(), authorization: authorization(target)?, http, runtime })
    }

    /// Sends one request and reads its answer, which is null if it has no body.
    pub(super) fn call(&self, method: Method, path: &[&str], body: Option<&Value>) -> Result<Value, Failure> {
        self.send(method, self.address(path, None), body)
    }

    /// As [`Client::call`], without a body but with a query.
    pub(super) fn call_with_query(
        &self,
        method: Method,
        path: &[&str],
        query: Option<(&str, &str)>,
    ) -> Result<Value, Failure> {
        self.send(method, self.address(path, query), None)
    }

    /// Reads what is at a path, asking for what `query` says.
    pub(super) fn get(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Value, Failure> {
        let mut uri = self.address(path, None);
        for (number, (name, value)) in query.iter().enumerate() {
            let before = if number == 0 { '?' } else { '&' };
            uri.push_str(&format!("{before}{name}={}", encode(value)));
        }
        self.send(Method::GET, uri, None)
    }

    /// Lets some time pass.
    pub(super) fn pause(&self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }

    fn send(&self, method: Method, uri: String, body: Option<&Value>) -> Result<Value, Failure> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = method;
        *request.uri_mut() = uri.parse().map_err(|_| Error::Url(self.url.clone()))?;
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(authorization) = &self.authorization {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        let exchange = async { tokio::time::timeout(TIMEOUT, self.exchange(request)).await };
        let (status, answer) = self.runtime.block_on(exchange).map_err(|_| Error::Slow { url: self.url.clone() })??;
        let parsed = serde_json::from_slice::<Value>(&answer);
        if !status.is_success() {
            return Err(Error::Refused { status, message: message(parsed.ok().as_ref(), &answer) }.into());
        }
        match parsed {
            Ok(value) => Ok(value),
            Err(_) if answer.is_empty() => Ok(Value::Null),
            Err(_) => Err(Error::Garbled(self.url.clone()).into()),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), Error> {
        let unreachable = |reason: String| Error::Unreachable { url: self.url.clone(), reason };
        let response = self.http.request(request).await.map_err(|error| unreachable(innermost(&error)))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok((status, body.map_err(|error| unreachable(error.to_string()))?.to_bytes()))
    }

    fn address(&self, path: &[&str], query: Option<(&str, &str)>) -> String {
        let base = self.url.to_string();
        let base = base.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
        let path: String = path.iter().map(|part| format!("/{}", encode(part))).collect();
        let query = query.map_or_else(String::new, |(name, value)| format!("?{name}={}", encode(value)));
        format!("{base}{path}{query}")
    }
}

/// The secret that a flag holds or refers to.
pub(super) fn resolve_secret(raw: &str) -> Result<Secret, Failure> {
    smg_node::config::resolve_secret(raw).map_err(|fault| Failure::Usage(format!("the secret {fault}")))
}

fn authorization(target: &Target) -> Result<Option<HeaderValue>, Failure> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let raw = target.api_key.clone().or_else(|| variable("SMG_ADMIN_API_KEY")).or_else(|| variable("SMG_API_KEY"));
    let Some(raw) = raw else { return Ok(None) };
    let secret = resolve_secret(&raw)?;
    let mut value = HeaderValue::from_str(&format!("Bearer {}", secret.expose())).map_err(|_| Error::Key)?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn tls(target: &Target) -> Result<HttpsConnectorBuilder<WantsSchemes>, Failure> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let failed = |error: rustls::Error| Failure::Launch(error.into());
    let Some(path) = &target.ca_cert else {
        let builder = HttpsConnectorBuilder::new().with_provider_and_webpki_roots(provider);
        return builder.map_err(|error| Failure::Launch(error.into()));
    };
    let unusable = || Error::Certificates(path.clone());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|_| unusable())? {
        roots.add(certificate.map_err(|_| unusable())?).map_err(|_| unusable())?;
    }
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(failed)?;
    let config = builder.with_root_certificates(roots).with_no_client_auth();
    Ok(HttpsConnectorBuilder::new().with_tls_config(config))
}

/// What a refusal says, in whichever shape it says it.
fn message(answer: Option<&Value>, raw: &[u8]) -> String {
    let nested = answer.and_then(|value| value.pointer("/error/message")).and_then(Value::as_str);
    let flat = answer.and_then(|value| value.get("error").or_else(|| value.get("message"))).and_then(Value::as_str);
    let text = nested.or(flat).map_or_else(|| String::from_utf8_lossy(raw).into_owned(), str::to_owned);
    output::cell(&Value::String(text.chars().take(500).collect()))
}

/// The cause at the bottom, which says most in fewest words.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// Percent-encodes all but the unreserved characters of RFC 3986.
fn encode(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}
