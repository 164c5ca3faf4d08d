//! The policies by name.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// How a worker is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyKind {
    /// By chance.
    Random,
    /// One after the other.
    RoundRobin,
    /// The less loaded of two drawn by chance.
    PowerOfTwo,
    /// Where the first token is expected soonest, whatever the caches hold.
    LeastLoad,
    /// By a hash of the routing key or the session.
    ConsistentHashing,
    /// By a hash of the prompt's beginning, unless that worker is overloaded.
    PrefixHash,
    /// The worker that had the routing key before.
    Manual,
    /// By the size of the prompt.
    Bucket,
    /// The first.
    Passthrough,
    /// Where the first token is expected soonest, given what the caches hold.
    CacheAware,
}

impl PolicyKind {
    /// All there are.
    pub const ALL: [Self; 10] = [
        Self::Random,
        Self::RoundRobin,
        Self::PowerOfTwo,
        Self::LeastLoad,
        Self::ConsistentHashing,
        Self::PrefixHash,
        Self::Manual,
        Self::Bucket,
        Self::Passthrough,
        Self::CacheAware,
    ];

    /// The name in flags, files and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::RoundRobin => "round_robin",
            Self::PowerOfTwo => "power_of_two",
            Self::LeastLoad => "least_load",
            Self::ConsistentHashing => "consistent_hashing",
            Self::PrefixHash => "prefix_hash",
            Self::Manual => "manual",
            Self::Bucket => "bucket",
            Self::Passthrough => "passthrough",
            Self::CacheAware => "cache_aware",
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// There is no policy of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the policies are random, round_robin, power_of_two, least_load, consistent_hashing, prefix_hash, manual, bucket, \
     passthrough and cache_aware"
)]
pub struct UnknownPolicy;

impl FromStr for PolicyKind {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name).ok_or(UnknownPolicy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_back_to_its_policy() {
        for kind in PolicyKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
            assert!(UnknownPolicy.to_string().contains(kind.as_str()), "{kind}");
        }
        assert_eq!("cache-aware".parse::<PolicyKind>(), Err(UnknownPolicy));
    }
}
