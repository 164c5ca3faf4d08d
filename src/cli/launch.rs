//! Starting a gateway.

use smg_node::{
    Node,
    config::{Config, Inputs},
};
use smg_runtime::systemd;

use super::Failure;

/// Runs a gateway until it is told to end.
pub(super) fn launch(config: Config, inputs: Inputs) -> Result<(), Failure> {
    // Before the runtime's threads exist, because it takes variables out of the environment.
    let inherited = systemd::inherited_listeners().map_err(|error| Failure::Launch(error.into()))?;
    runtime(&config)?.block_on(async move {
        let node = Node::build(config, inputs, inherited).await.map_err(|error| Failure::Launch(error.into()))?;
        Box::pin(node.run(|_| {})).await.map_err(|error| Failure::Launch(error.into()))
    })
}

/// The runtime a gateway with this configuration runs in.
pub(super) fn runtime(config: &Config) -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = config.sections.node.runtime_worker_threads {
        builder.worker_threads(threads.get());
    }
    builder.enable_all().build().map_err(Failure::system("start the runtime"))
}
