//! Keeping what tenants used, so that a restart forgets nothing but the last seconds.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use smg_gateway::Gateway;
use smg_runtime::{Phase, Shutdown};
use tokio::io::AsyncWriteExt;

use crate::{config::Config, mesh};

/// How often usage is written, if there was any.
const EVERY: Duration = Duration::from_secs(5);

/// The file for a node's usage: in the folder that the operator names, or, in a mesh, in the usual one. Without either it is
/// kept in memory, for two gateways on one machine must not write to one file.
pub(crate) fn path(config: &Config, env: &BTreeMap<String, String>, name: &str) -> Option<PathBuf> {
    let mesh = &config.sections.mesh;
    let usual = || mesh.enable_mesh.then(|| mesh::state_folder(env)).flatten();
    let folder = mesh.data_dir.clone().or_else(usual)?;
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
    let name: String = name.chars().map(|letter| if is_plain(letter) { letter } else { '_' }).collect();
    Some(folder.join(format!("usage-{name}.json")))
}

/// Takes back what was kept. A file that cannot be read is put aside: counting goes on without it.
pub(crate) fn take(gateway: &Gateway, path: &Path) {
    let json = match std::fs::read(path) {
        Ok(json) => json,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the usage that was kept cannot be read");
            return;
        }
    };
    if let Err(error) = gateway.take_usage(&json) {
        let aside = path.with_extension("unreadable");
        let moved = std::fs::rename(path, &aside).is_ok();
        tracing::warn!(path = %path.display(), %error, moved, "the usage that was kept makes no sense");
    }
}

/// Writes usage until the process stops.
pub(crate) async fn keep(gateway: Arc<Gateway>, path: PathBuf, shutdown: Shutdown) {
    let mut version = 0;
    loop {
        tokio::select! {
            () = shutdown.reached(Phase::Stopped) => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        if let Some(image) = gateway.usage_since(version) {
            match write(&path, &image.json).await {
                Ok(()) => version = image.version,
                Err(error) => tracing::warn!(path = %path.display(), %error, "usage cannot be written"),
            }
        }
    }
}

/// Writes usage once more, when the last request has ended.
pub(crate) async fn save(gateway: &Gateway, path: &Path) {
    let Some(image) = gateway.usage_since(0) else { return };
    if let Err(error) = write(path, &image.json).await {
        tracing::warn!(path = %path.display(), %error, "usage cannot be written");
    }
}

/// Writes the file, whole or not at all.
async fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        tokio::fs::create_dir_all(folder).await?;
    }
    let beside = path.with_extension("new");
    let mut options = tokio::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside).await?;
    file.write_all(bytes).await?;
    file.sync_all().await?;
    drop(file);
    tokio::fs::rename(&beside, path).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, Inputs};

    #[test]
    fn usage_is_kept_where_the_operator_says() {
        let check = |flags: &[(&str, &str)], home: Option<&str>, expected: Option<&str>| {
            let mut given = Flags::default();
            for (id, value) in flags {
                given.set(id, [(*value).to_owned()]);
            }
            let env: BTreeMap<String, String> =
                home.map(|home| ("HOME".to_owned(), home.to_owned())).into_iter().collect();
            let config = Config::load(&Inputs { flags: given, env: BTreeMap::new(), directory: "/nowhere".into() });
            let path = path(&config.expect("it is sound"), &env, "a/b");
            assert_eq!(path, expected.map(PathBuf::from), "{flags:?}");
        };
        check(&[], Some("/u"), None);
        check(&[("data_dir", "/data")], None, Some("/data/usage-a_b.json"));
        check(
            &[("enable_mesh", "true"), ("mesh_host", "127.0.0.1")],
            Some("/u"),
            Some("/u/.local/state/smg/usage-a_b.json"),
        );
    }
}
