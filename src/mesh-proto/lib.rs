//! The mesh without I/O: membership (SWIM by foca), replication by single-writer lanes, the planes folded from them, and the
//! codec of every frame.
//!
//! `Mesh` is a state machine: `handle(now, input)` in, [`Output`]s out. It opens no socket, reads no clock and draws no ambient
//! chance, so a whole cluster runs in virtual time (`smg-sim`), and the same code runs under QUIC (`smg-mesh`).
//!
//! - membership: who is there, who is doubted, who is down; sessions, seeds, joining and leaving.
//! - lanes: each node writes only its own; everybody reads all. A merge keeps the greater (epoch, version) and reads no clock.
//! - planes: what the lanes mean, as pure folds: workers, votes on their health, load, shared configuration.
//!
//! What it deliberately does not know: QUIC, TLS, files, what a worker's specification says, what a request is.

mod config;
mod id;
mod io;
mod lanes;
mod membership;
mod mesh;
mod planes;
mod replica;
mod status;
mod values;
mod wire;

pub use config::{Config, Limits, Profile, Timers};
pub use id::{ConnectionId, Dot, NodeId, Ticket};
pub use io::{
    Batch, Class, CloseCode, Direction, Event, Gone, Input, Member, MemberState, Output, Reach, Record, Refusal,
    Restored, WorkerRow, WriteError,
};
pub use mesh::Mesh;
pub use status::{LaneStatus, PlaneStatus, Skipped, Status};
pub use values::{ConfigValue, Digest, EngineFigures, Kind, Ledger, NodeInfo, Op, Verdict, Vote, WorkerAdd};
#[doc(hidden)]
pub use wire::{decode_changes, encode_changes};
