//! Starting a gateway.

use std::net::SocketAddr;

use smg_node::config::{Config, Inputs};

use super::Failure;

/// Runs a gateway until it is told to end.
pub(super) fn launch(config: Config, inputs: Inputs) -> Result<(), Failure> {
    runtime(&config)?.block_on(serve(config, inputs, |_| {}))
}

/// The runtime a gateway with this configuration runs in.
pub(super) fn runtime(config: &Config) -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = config.sections.node.runtime_worker_threads {
        builder.worker_threads(threads.get());
    }
    builder.enable_all().build().map_err(Failure::system("start the runtime"))
}

/// Serves until told to end. `on_ready` is called once, with the traffic address, when requests are accepted.
pub(super) async fn serve(
    config: Config,
    inputs: Inputs,
    on_ready: impl FnOnce(SocketAddr) + Send,
) -> Result<(), Failure> {
    let _ = (config, inputs, on_ready);
    Err(Failure::Launch("the gateway is not wired up yet".into()))
}

/// Logging for commands that run something without a configuration of their own.
pub(super) fn plain_telemetry() -> Result<(), Failure> {
    Ok(())
}
