//! Who a caller is, once it is known.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use smg_base::{KeyId, TenantId};

use crate::{key::BadRecord, scope::Scopes};

/// What somebody may do at the admin API; at the serving endpoints each may call what its scopes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything.
    Admin,
    /// Look at everything.
    Viewer,
    /// Nothing.
    Caller,
}

/// How somebody became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// By a key of its own.
    Key,
    /// By the one key that a node's settings name.
    SharedKey,
    /// By a token of an identity provider.
    Token,
    /// Not at all: the gateway asks for nothing.
    Open,
}

/// Which models somebody may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Models {
    /// Every one.
    #[default]
    All,
    /// Those with these names; a name that ends in `*` stands for all that begin like it.
    Listed(Arc<[Box<str>]>),
}

impl Models {
    /// Most names in a list, and the longest of them.
    pub const LISTED_MAX: usize = 64;
    const NAME_BYTES_MAX: usize = 256;

    /// Those with these names; `*` is every one.
    pub fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let names: Arc<[Box<str>]> = names.into_iter().map(Box::from).collect();
        if names.iter().any(|name| &**name == "*") { Self::All } else { Self::Listed(names) }
    }

    /// Whether a model of this name may be used.
    pub fn allows(&self, model: &str) -> bool {
        let matches = |name: &str| match name.strip_suffix('*') {
            Some(beginning) => model.starts_with(beginning),
            None => model == name,
        };
        match self {
            Self::All => true,
            Self::Listed(names) => names.iter().any(|name| matches(name)),
        }
    }

    /// Whether the list is one that is kept.
    pub(crate) fn is_sensible(&self) -> bool {
        match self {
            Self::All => true,
            Self::Listed(names) => {
                names.len() <= Self::LISTED_MAX
                    && names.iter().all(|name| (1..=Self::NAME_BYTES_MAX).contains(&name.len()))
            }
        }
    }
}

impl Serialize for Models {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.collect_seq(["*"]),
            Self::Listed(names) => serializer.collect_seq(names.iter()),
        }
    }
}

impl<'de> Deserialize<'de> for Models {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = Vec::<Box<str>>::deserialize(deserializer)?;
        let models = Self::listed(names.iter().map(|name| &**name));
        if models.is_sensible() { Ok(models) } else { Err(de::Error::custom(BadRecord::Models)) }
    }
}

/// Somebody who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Whose limits, usage and stored objects the request falls under.
    pub tenant: TenantId,
    /// The key that was presented, if it was one with a record.
    pub key: Option<KeyId>,
    /// What people call it.
    pub name: Arc<str>,
    /// What it may do at the admin API.
    pub role: Role,
    /// Which models it may use.
    pub models: Models,
    /// Which families of serving endpoints it may use.
    pub scopes: Scopes,
    /// The greatest priority class that it may claim; none is the usual one.
    pub class: Option<Box<str>>,
    /// How it became known.
    pub via: Via,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_models_may_end_in_a_star() {
        let check = |list: &str, model: &str, expected: bool| {
            let models: Models = serde_json::from_str(list).expect("it is a list");
            assert_eq!(models.allows(model), expected, "{list}: {model}");
        };
        check(r#"["llama-3", "qwen-*"]"#, "llama-3", true);
        check(r#"["llama-3", "qwen-*"]"#, "llama-3.1", false);
        check(r#"["llama-3", "qwen-*"]"#, "qwen-72b", true);
        check(r#"["*"]"#, "anything", true);
        check("[]", "anything", false);
        assert_eq!(serde_json::to_string(&Models::All).expect("it is a value"), r#"["*"]"#);
        let many = format!("[{}\"x\"]", "\"y\",".repeat(Models::LISTED_MAX));
        assert!(serde_json::from_str::<Models>(&many).is_err());
    }
}
