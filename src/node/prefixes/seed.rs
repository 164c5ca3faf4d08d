//! The seed with which prompts are hashed: the same on all nodes of a cluster, and unknown to everybody else, so that nobody
//! can make prompts whose hashes meet those of others.

use smg_base::{Random, hash};
use smg_runtime::entropy;

use super::Others;
use crate::config::Config;

/// What is sealed to get it.
const ABOUT: &[u8] = b"smg prefix hashes, version 1";

/// What is sealed to get the secret of the salts: longer than that, so that the secret depends on nothing else.
const ABOUT_SALTS: &[u8] = b"smg salts of the caches of tenants, version 1, padding";

/// What the salts of tenants are made with on this node. Without a mesh it is another one after each start.
pub(crate) fn of_salts(others: Option<&Others>, hash_seed: u64) -> [u8; 32] {
    let sealed = others.map(|others| others.link.seal(ABOUT_SALTS));
    let mut secret = [0; 32];
    if let Some(end) = sealed.as_deref().and_then(|sealed| sealed.last_chunk::<32>()) {
        return *end;
    }
    // Nodes that know each other by certificates alone have the hash seed in common and nothing better.
    for part in secret.chunks_exact_mut(8) {
        let bits = if others.is_some() { hash_seed } else { entropy().next_u64() };
        part.copy_from_slice(&bits.to_le_bytes());
    }
    secret
}

/// The seed of this node.
pub(crate) fn of(config: &Config, others: Option<&Others>) -> u64 {
    let Some(others) = others else { return entropy().next_u64() };
    // The same bytes on every node with the same secret, and no others.
    let sealed = others.link.seal(ABOUT);
    if !sealed.is_empty() {
        return hash::stable64(&sealed);
    }
    // Certificates alone are no secret, but the same on all nodes; a file that cannot be read is told of elsewhere.
    let files = config.sections.mesh.mesh_ca.iter().filter_map(|path| std::fs::read(path).ok());
    let mut prints: Vec<u64> = files.map(|bytes| hash::stable64(&bytes)).collect();
    prints.sort_unstable();
    prints.into_iter().fold(hash::stable64(ABOUT), hash::mix)
}
