//! `smg demo`: a gateway with fake engines, in one process, to try it out.

use std::{fmt::Write, net::SocketAddr, num::NonZeroUsize};

use smg_mock_worker::{Config as EngineConfig, Dialect, MockWorker, Speed};
use smg_node::config::{Config, Inputs};

use super::{Failure, launch, load, output};

/// Arguments of `smg demo`, beside those of `smg launch`.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Demo")]
pub(super) struct Args {
    /// How many fake engines to start.
    #[arg(long, default_value = "4", value_name = "NUMBER")]
    engines: NonZeroUsize,
    /// The model they serve.
    #[arg(long, default_value = "demo", value_name = "MODEL")]
    engine_model: String,
}

/// More engines than this say nothing more.
const ENGINES_MAX: usize = 64;

/// About as fast as a small model on one GPU, so that streams look like streams and a warm cache can be felt.
const SPEED: Speed = Speed {
    running_max: 256,
    waiting_max: 1_024,
    prefill_tokens_per_second: 8_000.0,
    decode_tokens_per_second: 60.0,
    decode_tokens_per_second_total: 2_400.0,
    time_scale: 1.0,
};

pub(super) fn run(args: &Args, mut inputs: Inputs) -> Result<(), Failure> {
    if args.engines.get() > ENGINES_MAX {
        return Err(Failure::Usage(format!("--engines: at most {ENGINES_MAX}")));
    }
    // What is fake answers on this machine only, unless asked otherwise.
    for variable in ["SMG_HOST", "SMG_PROMETHEUS_HOST"] {
        inputs.env.entry(variable.to_owned()).or_insert_with(|| "127.0.0.1".to_owned());
    }
    let runtime = launch::runtime(&load(&inputs)?)?;
    runtime.block_on(demo(args, inputs))
}

async fn demo(args: &Args, mut inputs: Inputs) -> Result<(), Failure> {
    let mut engines = Vec::with_capacity(args.engines.get());
    for number in 1..=args.engines.get() {
        let engine = engine(number, &args.engine_model);
        engines.push(MockWorker::start(engine).await.map_err(|error| Failure::Launch(error.into()))?);
    }
    inputs.flags.add("worker_urls", engines.iter().map(|engine| engine.url().to_owned()));
    let config = Config::load(&inputs)?;
    let banner = Banner::new(&config, &engines, &args.engine_model);
    let on_ready = move |address: SocketAddr| {
        // Who cannot be told what runs can still be served.
        let _gone = output::print(&banner.text(address));
    };
    let ended = Box::pin(launch::serve(config, inputs, on_ready)).await;
    for engine in engines {
        engine.stop().await;
    }
    ended
}

/// Half of the engines speak vLLM's dialect, half SGLang's.
fn engine(number: usize, model: &str) -> EngineConfig {
    let dialect = if number.is_multiple_of(2) { Dialect::Sglang } else { Dialect::Vllm };
    EngineConfig {
        name: format!("engine-{number}"),
        dialect,
        models: vec![model.to_owned()],
        output_tokens: 48,
        speed: SPEED,
        ..EngineConfig::default()
    }
}

/// What the demo says once it runs.
struct Banner {
    policy: String,
    model: String,
    metrics_port: u16,
    engines: Vec<String>,
    scheme: &'static str,
    wants_key: bool,
}

impl Banner {
    fn new(config: &Config, engines: &[MockWorker], model: &str) -> Self {
        let sections = &config.sections;
        Self {
            policy: sections.routing.policy.to_string(),
            model: model.to_owned(),
            metrics_port: sections.metrics.prometheus_port,
            engines: engines.iter().map(|engine| engine.url().to_owned()).collect(),
            scheme: if sections.tls.tls_cert_path.is_some() { "https" } else { "http" },
            wants_key: sections.security.api_key.is_some(),
        }
    }

    fn text(&self, address: SocketAddr) -> String {
        let host = if address.ip().is_unspecified() { "127.0.0.1".to_owned() } else { host(address) };
        let gateway = format!("{}://{host}:{}", self.scheme, address.port());
        let row = |what: &str, place: String, about: String| vec![what.to_owned(), place, about];
        let mut rows = vec![row("gateway", gateway.clone(), format!("policy {}", self.policy))];
        if self.metrics_port != 0 {
            rows.push(row("metrics", format!("http://{host}:{}/metrics", self.metrics_port), "Prometheus".to_owned()));
        }
        for (index, url) in self.engines.iter().enumerate() {
            let dialect = if index.is_multiple_of(2) { "vLLM" } else { "SGLang" };
            rows.push(row("engine", url.clone(), format!("fake {dialect}, model {}", self.model)));
        }
        let mut text = String::from("\nA gateway and fake engines are running: no GPU, no model.\n\n");
        text.push_str(&output::table(&["WHAT", "WHERE", "ABOUT"], &rows));
        let key = if self.wants_key { " -H \"authorization: Bearer $SMG_API_KEY\"" } else { "" };
        let body = format!(
            "{{\"model\": \"{}\", \"stream\": true, \"messages\": [{{\"role\": \"user\", \"content\": \"Hello!\"}}]}}",
            self.model
        );
        let url = if gateway == "http://127.0.0.1:30000" { String::new() } else { format!(" --url {gateway}") };
        let _infallible = write!(
            text,
            "\nTry it from another terminal:\n\n  curl -N {gateway}/v1/chat/completions -H 'content-type: application/json'{key} \\\n    \
             -d '{body}'\n\n  smg workers list{url}\n  smg explain{url} REQUEST-ID   # the x-request-id of an answer, shown by \
             curl -i\n\nCtrl-C ends it.\n\n",
        );
        text
    }
}

fn host(address: SocketAddr) -> String {
    if address.is_ipv6() { format!("[{}]", address.ip()) } else { address.ip().to_string() }
}
