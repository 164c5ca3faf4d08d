//! `smg mock-worker`: a fake engine by itself.

pub(super) use smg_mock_worker::Args;
use tokio::runtime::Builder;

use super::Failure;

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let telemetry = smg_telemetry::init(&smg_telemetry::Config::default());
    let telemetry = telemetry.map_err(|error| Failure::Launch(error.into()))?;
    let runtime = Builder::new_multi_thread().enable_all().build().map_err(Failure::system("start the runtime"))?;
    let ended = runtime.block_on(smg_mock_worker::run(args)).map_err(|error| Failure::Launch(error.into()));
    telemetry.shutdown();
    ended
}
