//! A fleet of engines behind many gateways, in virtual time: how good choices are that are made from old knowledge.
//!
//! A [`Workload`] (a recorded [`Trace`] with names for its chunks) is replayed against models of engines. The gateways are the
//! real ones as far as they choose: each has a `Fleet` and a `Policy` of its own, hears of the others' requests and of the engines'
//! caches as late as a [`Case`] says, and learns from the answers. Beside them stand models of other routers' [`Rule`]s. One
//! case gives one set of [`Figures`], whatever the machine.
//!
//! The engine model is a model: its constants are round, a prompt's cost grows with its length and not with its square, nothing fails,
//! and no request is refused because others wait. It compares ways to choose and predicts no engine's speed.

mod blocks;
mod engine;
mod figures;
mod gateway;
mod heard;
mod known;
mod owned;
mod plot;
mod queue;
mod report;
mod rules;
mod run;
#[cfg(test)]
mod tests;
mod trace;
mod workload;

pub use engine::EngineConfig;
pub use figures::Figures;
pub use owned::Ownership;
pub use report::{Family, Report, Row, Spread};
pub use rules::Rule;
pub use run::{Case, Chooser, Model, UnknownChooser, run};
pub use smg_routing::{PolicyConfig, PolicyKind};
pub use trace::{Request, Trace, TraceError};
pub use workload::{Answers, Workload};
