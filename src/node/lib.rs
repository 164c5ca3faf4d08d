//! A whole node: its configuration, and how its parts are put together, run and drained.
//!
//! `node` builds every service from the configuration, joins them, and stops them in order; `settings` turns what the
//! operator wrote into what each part understands; `reload` does so again while the node runs. `mesh` makes the node one of
//! several. Nothing here handles a request.

mod auth;
mod capacity;
pub mod config;
mod error;
mod fleet_metrics;
mod limits;
mod live;
mod mesh;
mod node;
mod prefixes;
mod reload;
mod settings;
mod signals;
mod usage;

pub use auth::entry as keys;
pub use error::Error;
pub use node::{Node, metrics_reference};
pub use smg_mesh::new_token as new_mesh_token;
