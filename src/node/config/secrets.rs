//! References to secrets: `${NAME}` is the value of an environment variable, `file:/path` the content of a file.

use std::{collections::BTreeMap, path::PathBuf};

use smg_base::Secret;

use super::problem::Fault;

/// The secret that `raw` is or refers to, with the environment of this process.
pub fn resolve_secret(raw: &str) -> Result<Secret, Fault> {
    let text = |word: std::ffi::OsString| word.into_string().ok();
    let env = std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?))).collect();
    Secrets::new(&env).resolve(raw).map(Secret::new)
}

/// Looks up what secrets refer to.
#[derive(Debug)]
pub(super) struct Secrets<'a> {
    env: &'a BTreeMap<String, String>,
}

impl<'a> Secrets<'a> {
    /// Looks variables up in `env`.
    pub(super) fn new(env: &'a BTreeMap<String, String>) -> Self {
        Self { env }
    }

    /// The secret that `raw` is or refers to. White space around a file's content is not part of it.
    pub(super) fn resolve(&self, raw: &str) -> Result<String, Fault> {
        let secret = if let Some(name) = raw.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) {
            self.env.get(name).cloned().ok_or_else(|| Fault::MissingVariable(name.to_owned()))?
        } else if let Some(path) = raw.strip_prefix("file:") {
            let read = std::fs::read_to_string(path);
            let unreadable = |error: std::io::Error| Fault::UnreadableSecret {
                path: PathBuf::from(path),
                reason: error.to_string(),
            };
            read.map_err(unreadable)?.trim().to_owned()
        } else {
            raw.to_owned()
        };
        // Every secret here ends up in a header.
        let is_sendable = secret.bytes().all(|byte| byte.is_ascii_graphic());
        match (secret.is_empty(), is_sendable) {
            (true, _) => Err(Fault::Invalid("the secret is empty".to_owned())),
            (_, false) => Err(Fault::Invalid("the secret holds characters that a header cannot carry".to_owned())),
            (false, true) => Ok(secret),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_lead_to_secrets() {
        let file = std::env::temp_dir().join(format!("smg-secret-{}", std::process::id()));
        std::fs::write(&file, "from-file\n").expect("the folder for temporary files takes one");
        let env = BTreeMap::from([("KEY".to_owned(), "from-env".to_owned())]);
        let secrets = Secrets::new(&env);
        assert_eq!(secrets.resolve("plain").as_deref(), Ok("plain"));
        assert_eq!(secrets.resolve("${KEY}").as_deref(), Ok("from-env"));
        assert_eq!(secrets.resolve(&format!("file:{}", file.display())).as_deref(), Ok("from-file"));
        assert_eq!(secrets.resolve("${NONE}"), Err(Fault::MissingVariable("NONE".to_owned())));
        assert!(matches!(secrets.resolve("file:/nowhere/at/all"), Err(Fault::UnreadableSecret { .. })));
        assert!(secrets.resolve("").is_err() && secrets.resolve("a b").is_err());
        std::fs::remove_file(&file).expect("the file is there");
    }
}
