//! The fake engine, tested over its sockets.
#![allow(clippy::unwrap_used, missing_docs)]

mod bench;
mod chat;
mod client;
mod engine;
mod faults;
mod http;
mod info;
mod kv_events;
mod messages;
mod native;
mod pooling;
mod responses;

use serde_json::Value;
use smg_mock_worker::{Config, Dialect, MockWorker};

async fn worker(config: Config) -> MockWorker {
    MockWorker::start(config).await.unwrap()
}

async fn of(dialect: Dialect) -> MockWorker {
    worker(Config { dialect, ..Config::default() }).await
}

/// `body` with the fields of `extra`.
fn with(mut body: Value, extra: &Value) -> Value {
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}
