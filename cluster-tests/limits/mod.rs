//! What callers may use: on one node, and on many.

mod many;
mod one;

use std::fs;

use tempfile::TempDir;

use crate::harness::{Ask, Stream, on};

/// A folder with a key for each tenant, and a file with limits.
struct Files {
    folder: TempDir,
}

impl Files {
    fn new(limits: &str) -> Self {
        let files = Self { folder: tempfile::tempdir().unwrap() };
        let key =
            |tenant| format!("[[keys]]\nname = \"{tenant}-1\"\ntenant = \"{tenant}\"\nkey = \"{}\"\n", key_of(tenant));
        fs::write(files.path("keys.toml"), ["acme", "zeta"].map(key).concat()).unwrap();
        files.limit(limits);
        files
    }

    fn limit(&self, limits: &str) {
        fs::write(self.path("limits.toml"), limits).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// What tells a gateway of them.
    fn flags(&self) -> [String; 2] {
        [format!("--keys-file={}", self.path("keys.toml")), format!("--limits-file={}", self.path("limits.toml"))]
    }
}

fn key_of(tenant: &str) -> String {
    format!("smg-test-key-of-{tenant}-4f1b0c77d2a94e31")
}

/// A request of a tenant's.
fn of(tenant: &str, path: &str, stream: Stream) -> Ask {
    as_tenant(tenant, on(path, "demo", stream))
}

fn as_tenant(tenant: &str, ask: Ask) -> Ask {
    ask.field("authorization", &format!("Bearer {}", key_of(tenant)))
}
