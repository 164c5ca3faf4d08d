//! What the gateway asks of whoever keeps the keys of callers and operators.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use smg_auth::KeyRecord;

use crate::cluster::ClusterError;

/// Where keys are kept. The gateway does not know whether that is a file or the mesh.
pub trait KeyShelf: Send + Sync {
    /// Every key there is, sorted by id.
    fn all(&self) -> Vec<Kept>;

    /// Whether there is a place for keys that operators make.
    fn has_room(&self) -> bool;

    /// Keeps a record in the place of an earlier one. When this is done, the record is in force here, and will be wherever
    /// else it is to be.
    fn keep(&self, record: KeyRecord) -> BoxFuture<'static, Result<(), ClusterError>>;
}

/// A key and who looks after it.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The key.
    pub record: Arc<KeyRecord>,
    /// Who looks after it.
    pub keeper: Keeper,
}

/// Who looks after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// A flag or variable of this node's.
    Flags,
    /// The file that this node's settings name.
    File,
    /// The admin API: the key can be changed and revoked there.
    Api,
}

impl Keeper {
    /// The word in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Flags => "flags",
            Self::File => "file",
            Self::Api => "api",
        }
    }
}
