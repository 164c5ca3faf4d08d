//! A network in user space for tests: one nameless namespace and TUN device per host, and one thread that carries every
//! packet.
//!
//! The kernels of test machines often lack netem, and netem has one rule per interface. Here every directed pair of
//! hosts has [`Rules`] of its own: loss, alone or in bursts, delay, jitter, late packets, doubles, damage, a rate, a
//! largest packet; and any pair can be cut. Chance comes from one seed, a generator per directed pair.
//!
//! 1. [`Fabric::host`] makes a thread that has left for a network namespace of its own, with loopback, one TUN device
//!    and an address of 198.18.0.0/15, the range for benchmarks. There is no default route, so no packet gets out, and
//!    nothing has a name, so runs do not meet and a killed run leaves nothing behind.
//! 2. Processes start on that thread and so live in its namespace; they are killed when it ends. A test's own thread
//!    visits with [`Host::enter`]: sockets made meanwhile belong to the host.
//! 3. The carrier reads packets from all devices, asks the link of sender and receiver what becomes of each, and writes
//!    it into the receiver's device, now or later.
//!
//! It needs Linux, root and `/dev/net/tun`; without them [`Fabric::new`] says what is missing. It knows nothing of the
//! gateway or of the mesh, nor of any protocol above IPv4.

mod carrier;
mod error;
mod host;
mod namespace;
mod network;
mod rules;
#[cfg(test)]
mod tests;

pub use error::Error;
pub use host::{Entered, Host};
pub use network::{Fabric, HOSTS_MAX, Link, Record};
pub use rules::{Counts, Fate, Rules};
