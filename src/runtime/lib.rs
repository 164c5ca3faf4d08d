//! What every service runs on: time, tasks, the order of shutting down, bounded channels, and the metrics registry.
//!
//! A service is handed a [`Tasks`] to spawn on, a [`Shutdown`] to watch, a [`Registrar`](metrics::Registrar) to count
//! on, and a [`Clock`](smg_base::Clock). Nothing here knows what the services do. A task cannot be detached: it has a
//! [`TaskKind`], which says what its end, its panic and its cancellation mean, and a name, by which a straggler is
//! called when the process stops. [`systemd`] speaks to the service supervisor that started the process.

pub mod channel;
pub mod clock;
pub mod error;
pub mod metrics;
pub mod shutdown;
pub mod systemd;
pub mod tasks;
pub mod vitals;

pub use channel::{Receiver, Sender, channel};
pub use clock::{SystemClock, entropy};
pub use error::Error;
pub use shutdown::{Phase, Shutdown};
pub use tasks::{End, Fault, TaskKind, Tasks};
