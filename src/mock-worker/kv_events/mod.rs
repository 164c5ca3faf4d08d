//! What the engine tells of its prefix cache, as real ones do: a ZMQ publisher with a socket that repeats what was missed
//! (vLLM, SGLang), or a list that gives itself away when it is read (TensorRT-LLM).
//!
//! The scheduler notes what happens to blocks in a [`Journal`], in the order in which it happens; a step of the engine closes
//! a batch; [`publish`](Publisher::start) sends it. Nothing is noted where nobody asked for it.

mod encode;
mod journal;
mod publish;
#[cfg(test)]
mod tests;

pub(crate) use journal::{Blocks, Journal, Outlet};
pub(crate) use publish::bound;
pub use publish::{EventStreams, KvPublisher};
