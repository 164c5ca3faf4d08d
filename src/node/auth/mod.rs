//! Who callers and operators are, as this node knows: where keys come from, where they are kept, what is taken down.

pub mod entry;
mod file;
mod keys;
pub(crate) mod provider;

use std::{path::PathBuf, sync::Arc};

use smg_auth::{AuditLog, AuditWriter, Authenticator, KeyRecord, Provider};
use smg_base::Clock;
use smg_gateway::{Cluster, Identity, KeyShelf};
use smg_runtime::metrics::Registrar;

pub(crate) use keys::Keys;

use self::keys::{Place, Shelf};
use crate::{config::Config, error::Error};

/// What a node knows callers by, before it serves.
pub(crate) struct Opened {
    pub(crate) keys: Arc<Keys>,
    /// Whose tokens are believed; its keys are to be kept fresh.
    pub(crate) provider: Option<Arc<Provider>>,
    audit: Option<Arc<AuditLog>>,
    /// Writes down what operators do; to be run.
    pub(crate) writer: Option<AuditWriter>,
}

/// Reads all keys there are. What cannot be read stops the node: without its keys it would be open.
pub(crate) async fn open(
    config: &Config,
    provider: Option<Arc<Provider>>,
    cluster: Option<Arc<dyn Cluster>>,
    clock: Arc<dyn Clock>,
    registrar: &Registrar,
) -> Result<Opened, Error> {
    let own = config.sections.mesh.data_dir.as_ref().map(|folder| folder.join("keys.json"));
    let made = match (&cluster, &own) {
        (None, Some(path)) => file::load(path).map_err(Error::Keys)?,
        // The mesh tells of them.
        _ => Vec::new(),
    };
    let place = match (cluster, own) {
        (Some(cluster), _) => Place::Mesh(cluster),
        (None, Some(path)) => Place::File(usable(path)?),
        (None, None) => Place::None,
    };
    let authenticator = match &provider {
        Some(provider) => Authenticator::new(clock).with_provider(provider.clone()),
        None => Authenticator::new(clock),
    };
    let keys = Arc::new(Keys::new(Arc::new(authenticator), place));
    keys.take_made(made);
    keys.take_file(of_file(config).map_err(Error::Keys)?);
    let of_flags = config.sections.auth.control_plane_api_keys.iter().map(file::of_flag);
    keys.take_flags(of_flags.collect::<Result<_, _>>().map_err(Error::Keys)?);
    let (audit, writer) = match &config.sections.auth.audit_log {
        Some(path) => {
            let (log, writer) = AuditLog::open(path, registrar).await?;
            (Some(log), Some(writer))
        }
        None => (None, None),
    };
    Ok(Opened { keys, provider, audit, writer })
}

/// The keys of the file that the settings name.
pub(crate) fn of_file(config: &Config) -> Result<Vec<KeyRecord>, String> {
    config.sections.auth.keys_file.as_deref().map_or_else(|| Ok(Vec::new()), file::read)
}

fn usable(path: PathBuf) -> Result<PathBuf, Error> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io("make the folder for keys"))?;
    }
    Ok(path)
}

impl Opened {
    /// What the gateway gets of it.
    pub(crate) fn identity(&self, salt_secret: [u8; 32]) -> Identity {
        let shelf: Arc<dyn KeyShelf> = Arc::new(Shelf(self.keys.clone()));
        Identity {
            authenticator: self.keys.authenticator(),
            shelf: Some(shelf),
            audit: self.audit.clone(),
            salt_secret,
        }
    }
}
