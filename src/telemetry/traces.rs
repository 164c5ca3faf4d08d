//! Spans over OTLP/gRPC, and trace context in HTTP headers.

use std::{env, fs, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    KeyValue,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::{TraceContextExt, TracerProvider},
};
use opentelemetry_otlp::{
    SpanExporter, WithExportConfig, WithTonicConfig,
    tonic_types::transport::{Certificate, ClientTlsConfig},
};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    resource::{EnvResourceDetector, TelemetryResourceDetector},
    trace::SdkTracerProvider,
};
use tokio::runtime::Runtime;
use tracing::{Level, Metadata, Span, level_filters::LevelFilter};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Registry, filter::filter_fn, layer::Layer};

use crate::{config::Config, error::Error};

/// How long the last spans may take to be exported.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// A certificate authority of the collector, beside the public ones, by OpenTelemetry's name for it.
const CERTIFICATE: &str = "OTEL_EXPORTER_OTLP_CERTIFICATE";

/// How a request's span meets those of its caller and of the worker, by the W3C's headers `traceparent` and
/// `tracestate`. With traces off both do nothing, and the caller's headers may pass on as they are.
#[derive(Clone, Copy, Debug)]
pub struct TraceHooks {
    /// Whether traces are on.
    pub enabled: bool,
    /// Makes the span a child of the one the caller's headers name, if they name one. To be called before the span is
    /// entered or has children.
    pub adopt: fn(&HeaderMap, &Span),
    /// Names the span in the headers of an outgoing call, in place of what they named before.
    pub inject: fn(&Span, &mut HeaderMap),
}

impl TraceHooks {
    /// The pair that does nothing.
    pub const OFF: Self = Self { enabled: false, adopt: |_, _| {}, inject: |_, _| {} };

    pub(crate) const ON: Self = Self { enabled: true, adopt, inject };
}

fn adopt(headers: &HeaderMap, span: &Span) {
    if !headers.contains_key("traceparent") {
        return;
    }
    let caller = TraceContextPropagator::new().extract(&Carried(headers));
    if caller.span().span_context().is_valid() {
        // It fails if the span is not traced, or has begun already: then it stands as it is.
        let _ = span.set_parent(caller);
    }
}

fn inject(span: &Span, headers: &mut HeaderMap) {
    let context = span.context();
    if context.span().span_context().is_valid() {
        headers.remove("tracestate");
        TraceContextPropagator::new().inject_context(&context, &mut Carrying(headers));
    }
}

struct Carried<'a>(&'a HeaderMap);

impl Extractor for Carried<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct Carrying<'a>(&'a mut HeaderMap);

impl Injector for Carrying<'_> {
    fn set(&mut self, key: &str, value: String) {
        if value.is_empty() {
            return;
        }
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(key.as_bytes()), HeaderValue::from_str(&value)) {
            self.0.insert(name, value);
        }
    }
}

/// The exporter and what it runs on.
pub(crate) struct Traces {
    provider: SdkTracerProvider,
    /// Its own, so that spans leave while traffic keeps the other threads busy, and after those have ended.
    runtime: Option<Runtime>,
}

impl Traces {
    /// Makes an exporter; the collector is connected to later, and again when it was lost.
    pub(crate) fn new(config: &Config, endpoint: &str) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("otlp")
            .enable_all()
            .build()
            .map_err(|source| Error::Thread { purpose: "traces", source })?;
        let entered = runtime.enter();
        let exporter = exporter(endpoint)?;
        let provider =
            SdkTracerProvider::builder().with_resource(resource(config)).with_batch_exporter(exporter).build();
        drop(entered);
        Ok(Self { provider, runtime: Some(runtime) })
    }

    /// Turns our own spans, and warnings within them, into OpenTelemetry's.
    pub(crate) fn layer(&self) -> Box<dyn Layer<Registry> + Send + Sync> {
        let tracer = self.provider.tracer("smg");
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            // Nobody here asks for OpenTelemetry's idea of the current span.
            .with_context_activation(false);
        layer.with_filter(filter_fn(is_traced).with_max_level_hint(LevelFilter::INFO)).boxed()
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown_with_timeout(SHUTDOWN_TIMEOUT) {
            tracing::warn!(%error, "the last spans may be lost");
        }
        if let Some(runtime) = self.runtime.take() {
            // Dropping a runtime waits, which another runtime's thread must not do.
            runtime.shutdown_background();
        }
    }
}

fn is_traced(metadata: &Metadata<'_>) -> bool {
    let level = if metadata.is_span() { Level::INFO } else { Level::WARN };
    *metadata.level() <= level && metadata.target().starts_with("smg")
}

fn exporter(endpoint: &str) -> Result<SpanExporter, Error> {
    let mut tls = ClientTlsConfig::new().with_enabled_roots();
    if let Some(path) = env::var_os(CERTIFICATE).filter(|path| !path.is_empty()) {
        let pem = fs::read(path).map_err(|source| Error::Certificate { variable: CERTIFICATE, source })?;
        tls = tls.ca_certificate(Certificate::from_pem(pem));
    }
    let mut builder = SpanExporter::builder().with_tonic().with_tls_config(tls);
    if !endpoint.is_empty() {
        builder = builder.with_endpoint(url(endpoint));
    }
    Ok(builder.build()?)
}

/// The endpoint with a scheme: a bare `host:port` is not encrypted.
fn url(endpoint: &str) -> String {
    if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") }
}

fn resource(config: &Config) -> Resource {
    let mut attributes = vec![
        KeyValue::new("service.name", config.service_name.clone()),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
    ];
    if !config.node_name.is_empty() {
        attributes.push(KeyValue::new("service.instance.id", config.node_name.clone()));
    }
    let mut builder = Resource::builder_empty()
        .with_attributes(attributes)
        .with_detectors(&[Box::new(TelemetryResourceDetector), Box::new(EnvResourceDetector::new())]);
    if let Some(name) = env::var("OTEL_SERVICE_NAME").ok().filter(|name| !name.is_empty()) {
        builder = builder.with_service_name(name);
    }
    builder.build()
}

#[cfg(test)]
#[path = "traces_tests.rs"]
mod tests;
