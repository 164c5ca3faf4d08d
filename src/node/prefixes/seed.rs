//! The seed with which prompts are hashed: the same on all nodes of a cluster, and unknown to everybody else, so that nobody
//! can make prompts whose hashes meet those of others.

use smg_base::{Random, hash};
use smg_runtime::entropy;

use super::Others;
use crate::config::Config;

/// What is sealed to get it.
const ABOUT: &[u8] = b"smg prefix hashes, version 1";

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
