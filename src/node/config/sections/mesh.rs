//! Settings of the mesh that nodes form.

use std::{net::IpAddr, path::PathBuf};

use clap::Args;
use smg_base::Secret;
use smg_mesh_proto::Profile;

use super::super::value::{cluster_name, host, mesh_name, one_of, peer, place_name};

/// The mesh that nodes form.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Mesh")]
pub struct Mesh {
    /// Form a mesh with other nodes: any of them then takes any request, and knows every worker.
    #[arg(long)]
    pub enable_mesh: bool,
    /// The name of this node, unique in its cluster and the same after every restart. By default the node's name, with the
    /// mesh port behind it where that is not 39527.
    #[arg(long, value_name = "NAME", value_parser = mesh_name)]
    pub mesh_server_name: Option<String>,
    /// Address on which other nodes are listened to, over UDP.
    #[arg(long, default_value = "0.0.0.0")]
    pub mesh_host: IpAddr,
    /// Name or address under which other nodes reach this one. By default the address listened on, or else the one that this
    /// machine has towards the others.
    #[arg(long, value_name = "HOST", value_parser = host)]
    pub mesh_advertise_host: Option<String>,
    /// UDP port on which other nodes are listened to.
    #[arg(long, default_value_t = 39_527)]
    pub mesh_port: u16,
    /// Nodes to join, as host:port; all are tried for as long as it takes. Without any, a new mesh begins here.
    #[arg(long, value_name = "HOST:PORT", value_parser = peer)]
    pub mesh_peer_urls: Vec<String>,
    /// The secret that all nodes share; `smg mesh token` makes one. Beyond one machine this or certificates are needed.
    #[arg(long)]
    pub mesh_token: Option<Secret>,
    /// Further secrets with which nodes are let in, while one is replaced by another.
    #[arg(long)]
    pub mesh_tokens_accepted: Vec<Secret>,
    /// Certificates of the authorities that sign nodes' certificates, PEM; read again when they change.
    #[arg(long)]
    pub mesh_ca: Vec<PathBuf>,
    /// Certificate chain of this node, PEM, with the name `smg://cluster/node`; read again when it changes.
    #[arg(long)]
    pub mesh_cert: Option<PathBuf>,
    /// Private key of this node, PEM; read again when it changes.
    #[arg(long)]
    pub mesh_key: Option<PathBuf>,
    /// The cluster. Nodes of different clusters do not let each other in, even with the same secret.
    #[arg(long, value_name = "NAME", default_value = "smg", value_parser = cluster_name)]
    pub mesh_cluster: String,
    /// The failure domain this node is in, such as a rack or an availability zone.
    #[arg(long, value_name = "NAME", value_parser = place_name)]
    pub mesh_zone: Option<String>,
    /// The region this node is in.
    #[arg(long, value_name = "NAME", value_parser = place_name)]
    pub mesh_region: Option<String>,
    /// How fast faults are noticed: lan suits one region, fast clean links within one zone, wan links between regions. It is
    /// the same on all nodes.
    #[arg(long, default_value = "lan", value_parser = one_of(PROFILES, Profile::as_str))]
    pub mesh_profile: Profile,
    /// DNS names with SRV records of nodes to join, beside `--mesh-peer-urls`.
    #[arg(long, value_name = "NAME", value_parser = host)]
    pub mesh_srv: Vec<String>,
    /// File with one host:port of a node to join per line, beside `--mesh-peer-urls`; read again when it changes.
    #[arg(long)]
    pub mesh_peers_file: Option<PathBuf>,
    /// The machine, by name, whose loopback addresses are meant by workers such as http://127.0.0.1:8000. Nodes with the same
    /// one share such workers; others reach them through those nodes. By default each node has its own.
    #[arg(long, value_name = "NAME", value_parser = place_name)]
    pub host_scope: Option<String>,
    /// Folder for what must outlive the process: workers and shared settings of the mesh. By default `smg` in the user's
    /// folder for state.
    #[arg(long, value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,
}

const PROFILES: [Profile; 3] = [Profile::Lan, Profile::Fast, Profile::Wan];
