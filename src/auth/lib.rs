//! Who calls: API keys and tokens of identity providers, turned into a principal.
//!
//! An [`Authenticator`] holds the records of keys, from whatever origin, by the hash of each; what is presented is hashed and
//! looked up. A [`KeyRecord`] holds all there is to know of a key but the key itself, which is shown when it is made and never
//! again. A [`Provider`] is somebody whose tokens are believed: beside the requests it is asked for its public keys, and tokens
//! are checked with those. The [`AuditLog`] takes down what operators do, in a file whose lines are chained by their hashes.
//!
//! What it deliberately does not know: HTTP, where records are kept and how other nodes learn of them.

mod audit;
mod authenticator;
mod claims;
mod denied;
mod fetch;
mod jwks;
mod key;
mod principal;
mod provider;
#[cfg(test)]
mod provider_tests;
mod scope;
#[cfg(test)]
mod testing;
mod token;

pub use audit::{AuditEntry, AuditError, AuditLog, AuditWriter, broken_line};
pub use authenticator::{Authenticator, Origin};
pub use claims::{ClaimPath, ClaimRules};
pub use denied::Denied;
pub use fetch::{Fetch, FetchError};
pub use jwks::BadKeys;
pub use key::{BadRecord, KeyRecord, KeyState, NoRandomness, is_well_formed};
pub use principal::{Models, Principal, Role, Via};
pub use provider::{Provider, ProviderConfig, ProviderError, describe};
pub use scope::{Scope, Scopes, UnknownScope};
pub use token::TokenFault;
