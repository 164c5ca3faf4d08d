//! The fake engine, tested over its sockets.
#![allow(clippy::unwrap_used, missing_docs)]

mod chat;
mod client;
mod faults;

use smg_mock_worker::{Config, MockWorker};

async fn worker(config: Config) -> MockWorker {
    MockWorker::start(config).await.unwrap()
}
