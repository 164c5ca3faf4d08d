//! Nodes that form a mesh, on a network that breaks.

mod forming;
mod keys;
mod partitions;
mod processes;
mod security;
mod workers;
