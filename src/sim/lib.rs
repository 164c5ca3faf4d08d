//! A cluster in virtual time: many `mesh-proto` nodes, a faulty network between them, and the checks that hold after every step.
//!
//! One seed makes one [`Plan`] ([`Shape::plan`]), which is data; one plan makes one run ([`run()`]), whatever the machine. A run has
//! faults first and a healed end: promises of safety are checked while it goes, those of liveness at its end. A plan that fails is
//! made smaller ([`shrink()`]) and kept in `seeds.txt` for ever.
//!
//! The network is a model of QUIC connections, with delays as measured on real ones; the nodes are the real state machines.
//! Measurements ([`measure`]) use the same world without the checks.
//!
//! What it deliberately does not know: sockets, threads, real time. Who runs many seeds on many cores is outside.

mod agenda;
mod checks;
mod delay;
mod dice;
mod disk;
mod faults;
pub mod fleet;
mod judge;
pub mod limits;
mod links;
pub mod measure;
mod network;
mod plan;
mod process;
mod reached;
mod run;
mod seeds;
mod shrink;
mod subject;
mod swarm;
#[cfg(test)]
mod tests;
mod workload;
mod world;

pub use judge::{Promise, Violation};
pub use plan::{Ask, DiskFate, Fault, Harm, Health, Links, Operation, Pace, Plan};
pub use reached::{Mark, Reached};
pub use run::{Outcome, repeat, run, run_with};
pub use seeds::kept_plans;
pub use shrink::shrink;
pub use subject::Defect;
pub use swarm::Shape;
