//! Every setting of a node, as one field each.
//!
//! A field is the whole definition of its setting: its name makes the flag (`--queue-size`), the environment
//! variable (`SMG_QUEUE_SIZE`) and the key in `smg.toml` (`[limits] queue_size`, the section being the heading in
//! lower case with underscores); its type makes the parser and the JSON Schema; its doc comment is the manual.
//! `true`/`false` settings may be given as `--flag`, `--flag=false`; lists take several values after one flag, or
//! separated by commas.

mod admission;
mod auth;
mod edge;
mod mesh;
mod operation;
mod traffic;
mod workers;

use clap::Args;

pub use admission::{Admission, ClassTerms, NotTerms};
pub use auth::{Auth, Isolation, NotARole, RoleMapping};
pub use edge::{AdminAccess, Limits, Listener, Security, Tls};
pub use mesh::Mesh;
pub use operation::{AccessLog, Compatibility, LogFormat, Logging, Metrics, Node, Tracing};
pub use traffic::{CircuitBreaker, Retries, Routing, Timeouts};
pub use workers::{Fleet, Health, Upstream};

/// All sections.
#[derive(Args, Clone, Debug)]
pub struct Sections {
    /// Where clients connect.
    #[command(flatten)]
    pub listener: Listener,
    /// Which workers and models there are.
    #[command(flatten)]
    pub fleet: Fleet,
    /// Which worker gets a request.
    #[command(flatten)]
    pub routing: Routing,
    /// When a request is tried again.
    #[command(flatten)]
    pub retries: Retries,
    /// How long things may take.
    #[command(flatten)]
    pub timeouts: Timeouts,
    /// When a worker that fails requests is left alone.
    #[command(flatten)]
    pub circuit_breaker: CircuitBreaker,
    /// How workers are probed.
    #[command(flatten)]
    pub health: Health,
    /// How workers are spoken to.
    #[command(flatten)]
    pub upstream: Upstream,
    /// How much is taken on.
    #[command(flatten)]
    pub limits: Limits,
    /// Who goes first where not all can go at once.
    #[command(flatten)]
    pub admission: Admission,
    /// Who may do what.
    #[command(flatten)]
    pub security: Security,
    /// Who callers and operators are.
    #[command(flatten)]
    pub auth: Auth,
    /// Encryption towards clients.
    #[command(flatten)]
    pub tls: Tls,
    /// The mesh that nodes form.
    #[command(flatten)]
    pub mesh: Mesh,
    /// What is logged.
    #[command(flatten)]
    pub logging: Logging,
    /// What is measured.
    #[command(flatten)]
    pub metrics: Metrics,
    /// What is traced.
    #[command(flatten)]
    pub tracing: Tracing,
    /// The process itself.
    #[command(flatten)]
    pub node: Node,
    /// Flags of the reference gateway that have no effect here.
    #[command(flatten)]
    pub compatibility: Compatibility,
}
