//! From the configuration to a mesh whose port is bound.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use smg_base::{Clock, Random};
use smg_mesh::{Journal, Mesh, Security};
use smg_mesh_proto::{Config as ProtoConfig, Limits};
use smg_runtime::{entropy, metrics::Registrar};

use super::journal::Stored;
use crate::{
    config::{Config, sections},
    error::Error,
};

/// What a mesh is set up from, beside the configuration.
pub(crate) struct Surroundings<'a> {
    /// The variables of the process.
    pub(crate) env: &'a BTreeMap<String, String>,
    /// What the system calls this machine.
    pub(crate) host_name: String,
    /// Where clients are listened to.
    pub(crate) traffic: SocketAddr,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) registrar: &'a Registrar,
}

/// The name of the node in its mesh.
pub(crate) fn name(config: &Config, host_name: &str) -> String {
    let sections = &config.sections;
    if let Some(name) = &sections.mesh.mesh_server_name {
        return name.clone();
    }
    let plain = |letter: char| if letter.is_ascii_alphanumeric() || "._-".contains(letter) { letter } else { '-' };
    let name: String = sections.node.node_name.as_deref().unwrap_or(host_name).chars().take(100).map(plain).collect();
    match sections.mesh.mesh_port {
        smg_mesh::DEFAULT_PORT => name,
        port => format!("{name}-{port}"),
    }
}

/// The machine that this node's loopback addresses mean: none where no other node is there to tell it from.
pub(crate) fn scope(config: &Config, host_name: &str) -> Option<String> {
    let sections = &config.sections;
    let own = sections.mesh.host_scope.clone();
    if sections.mesh.enable_mesh {
        own.or_else(|| Some(name(config, host_name)))
    } else {
        own.or_else(|| sections.node.node_name.clone())
    }
}

/// Binds the mesh's port. Nothing is sent before its driver runs.
pub(crate) async fn open(config: &Config, around: Surroundings<'_>) -> Result<smg_mesh::Parts, Error> {
    let mesh = &config.sections.mesh;
    let name = name(config, &around.host_name);
    let advertised = advertised(mesh).await?;
    let traffic_host = match around.traffic.ip() {
        ip if ip.is_unspecified() => advertised,
        ip => ip,
    };
    let scheme = if config.sections.tls.tls_cert_path.is_some() { "https" } else { "http" };
    let random = entropy();
    let journal = journal(mesh, around.env, &name)?;
    let config = smg_mesh::Config {
        proto: ProtoConfig {
            name,
            cluster: mesh.mesh_cluster.clone(),
            advertise: SocketAddr::new(advertised, mesh.mesh_port),
            traffic_url: format!("{scheme}://{}", SocketAddr::new(traffic_host, around.traffic.port())),
            zone: mesh.mesh_zone.clone().unwrap_or_default(),
            region: mesh.mesh_region.clone().unwrap_or_default(),
            software: env!("CARGO_PKG_VERSION").to_owned(),
            instance: random.next_u64(),
            seed: random.next_u64(),
            timers: mesh.mesh_profile.timers(),
            limits: Limits::default(),
        },
        bind: SocketAddr::new(mesh.mesh_host, mesh.mesh_port),
        seeds: mesh.mesh_peer_urls.clone(),
        srv: mesh.mesh_srv.clone(),
        peers_file: mesh.mesh_peers_file.clone(),
        security: security(mesh),
    };
    Ok(Mesh::bind(config, around.clock, journal, around.registrar).await?)
}

fn security(mesh: &sections::Mesh) -> Security {
    let files = (&mesh.mesh_cert, &mesh.mesh_key);
    if let (Some(cert), Some(key)) = files {
        return Security::Files {
            ca: mesh.mesh_ca.clone(),
            cert: cert.clone(),
            key: key.clone(),
            token: mesh.mesh_token.clone(),
        };
    }
    match &mesh.mesh_token {
        Some(own) => Security::Tokens(std::iter::once(own).chain(&mesh.mesh_tokens_accepted).cloned().collect()),
        None => Security::Throwaway,
    }
}

/// The address under which others reach this node.
async fn advertised(mesh: &sections::Mesh) -> Result<IpAddr, Error> {
    if let Some(host) = &mesh.mesh_advertise_host {
        if let Ok(address) = host.parse() {
            return Ok(address);
        }
        let found = tokio::net::lookup_host((host.as_str(), mesh.mesh_port)).await;
        return match found.map(|mut found| found.next()) {
            Ok(Some(address)) => Ok(address.ip()),
            Ok(None) => Err(Error::NoAddress { host: host.clone(), reason: "no address is known".to_owned() }),
            Err(error) => Err(Error::NoAddress { host: host.clone(), reason: error.to_string() }),
        };
    }
    if !mesh.mesh_host.is_unspecified() {
        return Ok(mesh.mesh_host);
    }
    let peers = mesh.mesh_peer_urls.iter().map(String::as_str);
    let mut loopback = None;
    // An address that is never used (RFC 5737) is reached by the way that leads out.
    for towards in peers.chain(["192.0.2.1:9"]) {
        match own_address(towards).await {
            // A list of all nodes names this one too, and its own name often means a loopback address.
            Some(address) if address.is_loopback() => loopback = loopback.or(Some(address)),
            Some(address) => return Ok(address),
            None => {}
        }
    }
    loopback.ok_or(Error::NoRoute)
}

/// The address this machine has towards another; nothing is sent.
async fn own_address(towards: &str) -> Option<IpAddr> {
    let target = tokio::net::lookup_host(towards).await.ok()?.next()?;
    let any: SocketAddr = if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = tokio::net::UdpSocket::bind(any).await.ok()?;
    socket.connect(target).await.ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_unspecified())
}

/// Where what must outlive the process is kept. A folder that was asked for has to be usable; the usual one only should.
fn journal(
    mesh: &sections::Mesh,
    env: &BTreeMap<String, String>,
    name: &str,
) -> Result<Option<Box<dyn Journal>>, Error> {
    let own = format!("mesh-{}-{name}", mesh.mesh_cluster);
    let boxed = |journal| Some(Box::new(Stored(journal)) as Box<dyn Journal>);
    if let Some(folder) = &mesh.data_dir {
        return Ok(boxed(open_journal(&folder.join(own))?));
    }
    let Some(folder) = state_folder(env) else {
        tracing::warn!("what the mesh is to remember is not kept, for there is no folder for it; --data-dir names one");
        return Ok(None);
    };
    match open_journal(&folder.join(own)) {
        Ok(journal) => Ok(boxed(journal)),
        Err(error @ (smg_store::Error::Folder { .. } | smg_store::Error::ReadOnly { .. })) => {
            tracing::warn!(%error, "what the mesh is to remember is not kept; --data-dir names another folder");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn open_journal(folder: &Path) -> Result<smg_store::Journal, smg_store::Error> {
    if let Some(parent) = folder.parent() {
        let unusable = |source| smg_store::Error::Folder { path: parent.to_owned(), source };
        std::fs::create_dir_all(parent).map_err(unusable)?;
    }
    smg_store::Journal::open(folder)
}

/// The user's folder for state (XDG Base Directory Specification).
pub(crate) fn state_folder(env: &BTreeMap<String, String>) -> Option<PathBuf> {
    let set = |name: &str| env.get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")));
    folder.filter(|folder| folder.is_absolute()).map(|folder| folder.join("smg"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, Inputs};

    fn config(args: &str) -> Config {
        let flags = Flags::parse(args.split_whitespace()).expect("the flags exist");
        let inputs = Inputs { flags, env: BTreeMap::new(), directory: PathBuf::from("/nowhere") };
        Config::load(&inputs).unwrap_or_else(|errors| panic!("{errors}"))
    }

    #[test]
    fn names_are_unique_on_one_machine() {
        let check = |args: &str, expected_name: &str, expected_scope: Option<&str>| {
            let config = config(args);
            assert_eq!(name(&config, "gpu 7"), expected_name, "{args}");
            assert_eq!(scope(&config, "gpu 7").as_deref(), expected_scope, "{args}");
        };
        check("--enable-mesh --mesh-host ::1", "gpu-7", Some("gpu-7"));
        check("--enable-mesh --mesh-host ::1 --mesh-port 10000", "gpu-7-10000", Some("gpu-7-10000"));
        check("--enable-mesh --mesh-host ::1 --node-name n", "n", Some("n"));
        check("--enable-mesh --mesh-host ::1 --mesh-server-name a --host-scope h", "a", Some("h"));
        check("--node-name n", "n", Some("n"));
        check("--host-scope h", "gpu-7", Some("h"));
        check("", "gpu-7", None);
    }

    #[test]
    fn state_is_kept_where_the_user_keeps_state() {
        let check = |env: &[(&str, &str)], expected: Option<&str>| {
            let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            assert_eq!(state_folder(&env), expected.map(PathBuf::from), "{env:?}");
        };
        check(&[("XDG_STATE_HOME", "/s"), ("HOME", "/h")], Some("/s/smg"));
        check(&[("XDG_STATE_HOME", ""), ("HOME", "/h")], Some("/h/.local/state/smg"));
        check(&[("HOME", "h")], None);
        check(&[], None);
    }

    #[tokio::test]
    async fn others_are_told_the_address_that_they_reach() {
        let check = async |args: &str, expected: &str| {
            let config = config(&format!("--enable-mesh --mesh-token 0123456789012345678901234567 {args}"));
            let address = advertised(&config.sections.mesh).await.unwrap_or_else(|error| panic!("{args}: {error}"));
            assert_eq!(address.to_string(), expected, "{args}");
        };
        check("--mesh-advertise-host 10.1.2.3", "10.1.2.3").await;
        check("--mesh-host 127.0.0.1", "127.0.0.1").await;
        check("--mesh-host 127.0.0.1 --mesh-advertise-host fd00::1", "fd00::1").await;
        let outside = own_address("192.0.2.1:9").await.filter(|address| !address.is_loopback());
        let expected = outside.map_or("127.0.0.1".to_owned(), |address| address.to_string());
        check("--mesh-peer-urls 127.0.0.1:39527", &expected).await;
    }
}
