//! What the process says about itself: logs, traces and metrics.
//!
//! [`init`] sets the global subscriber: log lines on standard output, and in daily files if a folder is given; spans
//! over OTLP/gRPC if an endpoint is given. Our own crates speak at the chosen level, dependencies from `warn` on. Lines
//! are written by threads of their own behind bounded queues, so a terminal or a disk that stalls costs lines, which
//! are counted, and never a request. [`serve_metrics`] serves what a [`Registrar`](smg_runtime::metrics::Registrar)
//! holds.
//!
//! What it does not know: which spans and metrics there are. Span fields named as OpenTelemetry attributes
//! (`gen_ai.operation.name`, …) become attributes; `otel.name`, `otel.kind` and `otel.status_code` steer the exported
//! span.

mod config;
mod error;
mod filter;
mod logs;
mod metrics;
mod panics;
mod telemetry;
mod traces;

pub use config::{Config, LogFormat};
pub use error::Error;
pub use metrics::{process_metrics, serve_metrics};
pub use telemetry::{LevelHandle, Telemetry, dropped_lines, init};
pub use traces::TraceHooks;
