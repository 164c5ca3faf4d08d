//! The command line of `smg mock-worker`.

use std::{net::IpAddr, time::Duration};

use smg_base::Secret;

use crate::{
    config::{Bench, CacheConfig, Config, Dialect, EventFraming, KvEventFormat, KvEvents, Speed},
    error::Error,
    faults::{BadFault, Rule},
    kv_events::KvPublisher,
    server::MockWorker,
};

/// A scriptable fake engine: no GPU, no model.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// The port to listen on; 0 lets the system choose.
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// Whose endpoints, headers and error shapes it has.
    #[arg(long, value_enum, default_value_t = Dialect::Vllm)]
    pub dialect: Dialect,
    /// A model it serves; may be repeated.
    #[arg(long = "model", default_value = "demo")]
    pub models: Vec<String>,
    /// Its name, shown in the header x-mock-worker; by default made from the port.
    #[arg(long)]
    pub name: Option<String>,
    /// The key it asks for.
    #[arg(long)]
    pub api_key: Option<Secret>,
    /// The longest prompt plus output, in tokens.
    #[arg(long, default_value_t = 32_768)]
    pub context_length: u32,
    /// Tokens of an answer that nothing else bounds.
    #[arg(long, default_value_t = 16)]
    pub output_tokens: u32,
    /// Decides the text, together with the prompt.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Tokens per block of the prefix cache.
    #[arg(long, default_value_t = 16)]
    pub block_size: u32,
    /// Blocks of the prefix cache; 0 turns it off.
    #[arg(long, default_value_t = 16_384)]
    pub cache_blocks: u32,
    /// Where to publish what happens to the prefix cache, such as tcp://127.0.0.1:5557; port 0 lets the system choose.
    #[arg(long, value_name = "ENDPOINT")]
    pub kv_events: Option<String>,
    /// Where to repeat events that were missed.
    #[arg(long, value_name = "ENDPOINT", requires = "kv_events")]
    pub kv_events_replay: Option<String>,
    /// What messages with events begin with.
    #[arg(long, default_value = "", requires = "kv_events")]
    pub kv_events_topic: String,
    /// Whose way of writing events it is.
    #[arg(long, value_enum, default_value_t = KvEventFormat::VllmArray, requires = "kv_events")]
    pub kv_events_format: KvEventFormat,
    /// How many batches of events can be repeated.
    #[arg(long, default_value_t = 10_000, requires = "kv_events")]
    pub kv_events_buffer_steps: usize,
    /// Requests that may run at once.
    #[arg(long, default_value_t = 256)]
    pub running_max: u32,
    /// Prompt tokens computed per second; 0 is infinitely fast.
    #[arg(long, default_value_t = 0.0)]
    pub prefill_rate: f64,
    /// Tokens per second of one stream; 0 is infinitely fast.
    #[arg(long, default_value_t = 0.0)]
    pub decode_rate: f64,
    /// Tokens per second of all streams together; 0 is infinitely fast.
    #[arg(long, default_value_t = 0.0)]
    pub decode_rate_total: f64,
    /// Multiplies every duration of the model; 0 skips all waiting.
    #[arg(long, default_value_t = 1.0)]
    pub time_scale: f64,
    /// How the events of a stream leave.
    #[arg(long, value_enum, default_value_t = EventFraming::Chunk)]
    pub event_framing: EventFraming,
    /// What goes wrong with every request; may be repeated.
    ///
    /// A list of steps `ACTION@POINT` and settings, separated by commas, such as `delay=20ms@event:*,rst@event:3`; or a rule
    /// in JSON, as POST /mock/faults takes it, such as `{"path":"/health","on_ms":5000,"off_ms":5000,"fault":"status=503"}`.
    /// Actions: delay=TIME, stall, fin, rst, garble, drop, error, badchunk. Points: accept, request, head, body, event:N,
    /// event:*, byte:N, end. Settings: status=CODE, retry-after=SECONDS, content-type=TYPE, header-padding=BYTES,
    /// length=±BYTES, fragment=BYTES, endless, garbage, nodone, hangup, rawhead, and last body=TEXT.
    #[arg(long = "fault", value_parser = rule)]
    pub faults: Vec<Rule>,
    /// Answer with canned bytes, for measuring what is in front.
    #[arg(long)]
    pub bench: bool,
    /// With --bench: bytes of a plain answer's body.
    #[arg(long, default_value_t = 1024)]
    pub bench_body_bytes: usize,
    /// With --bench: events of a stream.
    #[arg(long, default_value_t = 128)]
    pub bench_events: usize,
    /// With --bench: bytes of an event.
    #[arg(long, default_value_t = 256)]
    pub bench_event_bytes: usize,
    /// With --bench: milliseconds between two events.
    #[arg(long, default_value_t = 0)]
    pub bench_event_interval_ms: u64,
}

impl From<Args> for Config {
    fn from(args: Args) -> Self {
        let bench = Bench {
            body_bytes: args.bench_body_bytes,
            events: args.bench_events,
            event_bytes: args.bench_event_bytes,
            event_interval: Duration::from_millis(args.bench_event_interval_ms),
        };
        let kv_events = args.kv_events.map(|endpoint| KvEvents {
            endpoint,
            replay: args.kv_events_replay,
            topic: args.kv_events_topic,
            format: args.kv_events_format,
            buffer_steps: args.kv_events_buffer_steps,
        });
        Self {
            name: args.name.unwrap_or_else(|| format!("mock-{}", args.port)),
            dialect: args.dialect,
            host: args.host,
            port: args.port,
            models: args.models,
            api_key: args.api_key,
            context_length: args.context_length,
            output_tokens: args.output_tokens,
            seed: args.seed,
            cache: CacheConfig { block_tokens: args.block_size, blocks: args.cache_blocks },
            kv_events,
            speed: Speed {
                running_max: args.running_max,
                prefill_tokens_per_second: args.prefill_rate,
                decode_tokens_per_second: args.decode_rate,
                decode_tokens_per_second_total: args.decode_rate_total,
                time_scale: args.time_scale,
                ..Speed::default()
            },
            framing: args.event_framing,
            faults: args.faults,
            bench: args.bench.then_some(bench),
            ..Self::default()
        }
    }
}

fn rule(text: &str) -> Result<Rule, String> {
    if text.starts_with('{') {
        return serde_json::from_str(text).map_err(|bad| bad.to_string());
    }
    text.parse().map(Rule::always).map_err(|bad: BadFault| bad.to_string())
}

/// Runs a worker until SIGINT or SIGTERM.
pub async fn run(args: Args) -> Result<(), Error> {
    let mut terminate =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(Error::Signal)?;
    let config = Config::from(args);
    let (dialect, model) = (config.dialect, config.model().to_owned());
    let worker = MockWorker::start(config).await?;
    let kv_events = worker.kv_events();
    tracing::info!(
        url = worker.url(),
        ?dialect,
        model,
        kv_events = kv_events.map(KvPublisher::endpoint),
        kv_events_replay = kv_events.and_then(KvPublisher::replay),
        "fake engine listens"
    );
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Error::Signal)?,
    }
    worker.stop().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_a_text_or_a_rule() {
        assert_eq!(rule("status=503").unwrap().path, None);
        assert_eq!(rule(r#"{"path":"/health","fault":"fin@head"}"#).unwrap().path.as_deref(), Some("/health"));
        for bad in ["nope", "{", r#"{"path":"/health","fault":"nope"}"#, r#"{"paht":"/health"}"#] {
            assert!(rule(bad).is_err(), "{bad}");
        }
    }
}
