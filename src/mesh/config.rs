//! What the transport of the mesh is told at its start.

use std::{net::SocketAddr, path::PathBuf};

use smg_base::Secret;

/// The port of the mesh where none is given.
pub const DEFAULT_PORT: u16 = 39_527;

/// Settings of the mesh of one node.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names, timers and limits.
    pub proto: smg_mesh_proto::Config,
    /// Where the UDP socket is bound.
    pub bind: SocketAddr,
    /// Where the first peers are looked for: `host:port`, `host` or an address; names are resolved again and again.
    pub seeds: Vec<String>,
    /// Names whose SRV records say where peers are.
    pub srv: Vec<String>,
    /// A file with one `host:port` a line.
    pub peers_file: Option<PathBuf>,
    /// How nodes know each other.
    pub security: Security,
}

/// How nodes know each other. There is no way without certificates.
#[derive(Clone, Debug)]
pub enum Security {
    /// Whoever has one of these secrets is a member. The first is this node's own; all are accepted, so that one can be
    /// replaced by another node by node.
    Tokens(
        /// At least one, each of at least [`crate::TOKEN_CHARS_MIN`] characters.
        Vec<Secret>,
    ),
    /// Certificates made elsewhere; they are read again when they change.
    Files {
        /// Certificates of the authorities whose nodes are accepted.
        ca: Vec<PathBuf>,
        /// This node's certificate, followed by those between it and its authority. It must carry the name
        /// `URI:smg://{cluster}/{node}`.
        cert: PathBuf,
        /// Its private key.
        key: PathBuf,
        /// A secret all nodes share, under which keys of engines are sealed. Without it they are not shared.
        token: Option<Secret>,
    },
    /// An identity that anybody on this machine can make, for a trial: it binds to loopback addresses only.
    Throwaway,
}
