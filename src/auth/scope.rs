//! Families of endpoints, to which a key may be limited.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

macro_rules! scopes {
    ($($(#[$meta:meta])* $variant:ident = $name:literal;)*) => {
        /// A family of endpoints. What a caller may ask of itself, such as how its limits stand, belongs to none.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Scope {
            $($(#[$meta])* $variant,)*
        }

        impl Scope {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The names of all of them.
            pub const NAMES: &'static [&'static str] = &[$($name,)*];

            /// The name by which keys carry it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

scopes! {
    /// Chat, in whichever dialect, and how many tokens one would have.
    Chat = "chat";
    /// Completion of plain text.
    Completions = "completions";
    /// Responses, and those that are stored.
    Responses = "responses";
    /// Embeddings.
    Embeddings = "embeddings";
    /// The order of documents, and scores of pairs.
    Rerank = "rerank";
    /// Classification of text.
    Classify = "classify";
    /// Speech.
    Audio = "audio";
    /// Tokens of a text, and the text of tokens.
    Tokenize = "tokenize";
    /// Which models there are, and what workers say of theirs.
    Models = "models";
}

/// Which families of endpoints somebody may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Scopes {
    /// Every one, those included that come with later versions.
    #[default]
    All,
    /// Those with these names. Another version may have written names that mean nothing here; they are kept, so that a change
    /// to the rest of the record does not take them away.
    Listed(Arc<[Box<str>]>),
}

/// There is no such scope. Nothing was taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no scope '{0}'; the scopes are {names}, and * is all of them", names = Scope::NAMES.join(", "))]
pub struct UnknownScope(String);

impl Scopes {
    const LISTED_MAX: usize = 64;
    const NAME_BYTES_MAX: usize = 64;
    /// Characters of an unknown name that are told back.
    const TOLD_CHARS_MAX: usize = 40;

    /// Those with these names, as people give them: each has to be known. `*` is every one.
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, UnknownScope> {
        let mut listed: Vec<&str> = names.into_iter().collect();
        listed.sort_unstable();
        listed.dedup();
        if let Some(unknown) = listed.iter().find(|name| **name != "*" && !Scope::NAMES.contains(name)) {
            return Err(UnknownScope(unknown.chars().take(Self::TOLD_CHARS_MAX).collect()));
        }
        Ok(Self::of(listed))
    }

    fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let names: Arc<[Box<str>]> = names.into_iter().map(Box::from).collect();
        if names.iter().any(|name| &**name == "*") { Self::All } else { Self::Listed(names) }
    }

    /// Whether endpoints of this family may be used.
    pub fn allows(&self, scope: Scope) -> bool {
        match self {
            Self::All => true,
            Self::Listed(names) => names.iter().any(|name| &**name == scope.as_str()),
        }
    }

    /// Whether there is nothing that may not be used. Such a record says nothing of scopes, as those of versions that knew of
    /// none do.
    pub(crate) fn is_all(&self) -> bool {
        *self == Self::All
    }
}

impl Serialize for Scopes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.collect_seq(["*"]),
            Self::Listed(names) => serializer.collect_seq(names.iter()),
        }
    }
}

impl<'de> Deserialize<'de> for Scopes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = Vec::<Box<str>>::deserialize(deserializer)?;
        let is_sensible = |name: &str| (1..=Self::NAME_BYTES_MAX).contains(&name.len());
        if names.len() > Self::LISTED_MAX || !names.iter().all(|name| is_sensible(name)) {
            return Err(de::Error::custom("there are at most 64 names of scopes, each of 1 to 64 bytes"));
        }
        Ok(Self::of(names.iter().map(|name| &**name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_allows_what_it_names() {
        let check = |names: &[&str], allowed: &[Scope]| {
            let scopes = Scopes::named(names.iter().copied()).unwrap_or_else(|error| panic!("{error}"));
            let found: Vec<Scope> = Scope::ALL.iter().copied().filter(|scope| scopes.allows(*scope)).collect();
            assert_eq!(found, allowed, "{names:?}");
            let text = serde_json::to_string(&scopes).expect("it is a value");
            assert_eq!(serde_json::from_str::<Scopes>(&text).expect("it was written"), scopes, "{text}");
        };
        for scope in Scope::ALL {
            check(&[scope.as_str()], &[*scope]);
        }
        check(&["models", "chat", "chat"], &[Scope::Chat, Scope::Models]);
        check(&["chat", "*"], Scope::ALL);
        check(Scope::NAMES, Scope::ALL);
        check(&[], &[]);
    }

    #[test]
    fn a_name_that_is_not_known_is_refused_with_those_that_are() {
        for name in ["", "Chat", "chat ", "files", "chat*"] {
            let error = Scopes::named(["chat", name]).expect_err(name).to_string();
            assert!(error.contains(&format!("'{name}'")) && error.contains("chat, completions, "), "{error}");
        }
        let long = Scopes::named([&*"x".repeat(10_000)]).expect_err("there is none").to_string();
        assert!(long.len() < 300, "{long}");
    }

    #[test]
    fn names_of_other_versions_are_kept_and_allow_nothing_here() {
        let text = r#"["chat","dreams"]"#;
        let scopes: Scopes = serde_json::from_str(text).expect("it is a list");
        assert!(scopes.allows(Scope::Chat) && !scopes.allows(Scope::Models));
        assert_eq!(serde_json::to_string(&scopes).expect("it is a value"), text);
        let many = format!("[{}\"x\"]", "\"y\",".repeat(Scopes::LISTED_MAX));
        for text in [&*many, r#"[""]"#, r#""chat""#, "null", "[1]"] {
            assert!(serde_json::from_str::<Scopes>(text).is_err(), "{text}");
        }
    }
}
