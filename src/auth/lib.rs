//! Who calls: API keys and tokens of identity providers, turned into a principal.
//!
//! An [`Authenticator`] holds the records of keys, from whatever origin, by the hash of each; what is presented is hashed and
//! looked up. A [`KeyRecord`] holds all there is to know of a key but the key itself, which is shown when it is made and never
//! again. The [`AuditLog`] takes down what operators do, in a file whose lines are chained by their hashes.
//!
//! What it deliberately does not know: HTTP, where records are kept and how other nodes learn of them.

mod audit;
mod authenticator;
mod denied;
mod key;
mod principal;
mod scope;

pub use audit::{AuditEntry, AuditError, AuditLog, AuditWriter, broken_line};
pub use authenticator::{Authenticator, Origin};
pub use denied::Denied;
pub use key::{BadRecord, KeyRecord, KeyState, NoRandomness, is_well_formed};
pub use principal::{Models, Principal, Role, Via};
pub use scope::{Scope, Scopes, UnknownScope};
