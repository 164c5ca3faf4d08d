//! The endpoints that serve inference.

/// A family of APIs; it decides the shape of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// The OpenAI API and what follows its conventions.
    OpenAi,
    /// The Anthropic Messages API.
    Anthropic,
    /// An engine's own API.
    Native,
}

macro_rules! endpoints {
    ($($(#[$meta:meta])* $variant:ident = $path:literal, $family:ident, $label:literal, $operation:literal, $prefix:literal;)*) => {
        /// An endpoint that is routed to a worker.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Endpoint {
            $($(#[$meta])* $variant,)*
        }

        impl Endpoint {
            /// Every endpoint.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The path under which clients find it.
            pub const fn path(self) -> &'static str {
                match self { $(Self::$variant => $path,)* }
            }

            /// The family of APIs it belongs to.
            pub const fn family(self) -> Family {
                match self { $(Self::$variant => Family::$family,)* }
            }

            /// The word used as a metric label and in spans.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }

            /// The value of `gen_ai.operation.name`; OpenTelemetry's own word where it has one.
            pub const fn gen_ai_operation(self) -> &'static str {
                match self { $(Self::$variant => $operation,)* }
            }

            /// What a request id made by the gateway begins with.
            pub const fn id_prefix(self) -> &'static str {
                match self { $(Self::$variant => $prefix,)* }
            }
        }
    };
}

endpoints! {
    /// OpenAI chat.
    ChatCompletions = "/v1/chat/completions", OpenAi, "chat", "chat", "chatcmpl-";
    /// OpenAI text completion.
    Completions = "/v1/completions", OpenAi, "completions", "text_completion", "cmpl-";
    /// Anthropic Messages.
    Messages = "/v1/messages", Anthropic, "messages", "chat", "msg_";
    /// How many tokens a Messages request would have.
    CountTokens = "/v1/messages/count_tokens", Anthropic, "count_tokens", "count_tokens", "req-";
    /// OpenAI Responses.
    Responses = "/v1/responses", OpenAi, "responses", "chat", "resp-";
    /// OpenAI embeddings.
    Embeddings = "/v1/embeddings", OpenAi, "embeddings", "embeddings", "req-";
    /// Rerank under the OpenAI prefix.
    RerankV1 = "/v1/rerank", OpenAi, "rerank", "rerank", "req-";
    /// Rerank.
    Rerank = "/rerank", OpenAi, "rerank", "rerank", "req-";
    /// Sequence classification.
    Classify = "/v1/classify", OpenAi, "classify", "classify", "req-";
    /// Cross-encoder scores.
    Score = "/v1/score", OpenAi, "score", "score", "req-";
    /// Speech to text; its body is multipart.
    Transcriptions = "/v1/audio/transcriptions", OpenAi, "transcriptions", "transcription", "req-";
    /// SGLang's own generate.
    Generate = "/generate", Native, "generate", "text_completion", "gnt-";
    /// Text to token ids.
    Tokenize = "/v1/tokenize", Native, "tokenize", "tokenize", "req-";
    /// Token ids to text.
    Detokenize = "/v1/detokenize", Native, "detokenize", "detokenize", "req-";
}

impl Endpoint {
    /// Whether a request makes a model generate, so that running it twice costs twice and may answer differently.
    pub const fn is_generation(self) -> bool {
        matches!(self, Self::ChatCompletions | Self::Completions | Self::Messages | Self::Responses | Self::Generate)
    }

    /// The endpoint behind a request path. A path without `/v1` and one with a trailing slash are taken too.
    pub fn of_path(path: &str) -> Option<Self> {
        let path = path.strip_suffix('/').unwrap_or(path);
        let bare = path.strip_prefix("/v1").unwrap_or(path);
        let named = |endpoint: &&Self| endpoint.path() == path;
        let bare_named = |endpoint: &&Self| endpoint.path().strip_prefix("/v1") == Some(bare);
        Self::ALL.iter().find(named).or_else(|| Self::ALL.iter().find(bare_named)).copied()
    }

    /// Where engines offer it, in the order in which to try: the first is right for most.
    pub const fn engine_paths(self) -> &'static [&'static str] {
        match self {
            Self::ChatCompletions => &["/v1/chat/completions"],
            Self::Completions => &["/v1/completions"],
            Self::Messages => &["/v1/messages"],
            Self::CountTokens => &["/v1/messages/count_tokens"],
            Self::Responses => &["/v1/responses"],
            Self::Embeddings => &["/v1/embeddings"],
            Self::RerankV1 | Self::Rerank => &["/v1/rerank", "/rerank"],
            Self::Classify => &["/v1/classify", "/classify"],
            Self::Score => &["/v1/score", "/score"],
            Self::Transcriptions => &["/v1/audio/transcriptions"],
            Self::Generate => &["/generate"],
            Self::Tokenize => &["/tokenize", "/v1/tokenize"],
            Self::Detokenize => &["/detokenize", "/v1/detokenize"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_leads_back_to_its_endpoint() {
        for endpoint in Endpoint::ALL {
            assert_eq!(Endpoint::of_path(endpoint.path()), Some(*endpoint));
            assert!(endpoint.path().starts_with('/'));
        }
    }

    #[test]
    fn bare_paths_and_trailing_slashes_are_taken() {
        let check = |path: &str, expected: Option<Endpoint>| assert_eq!(Endpoint::of_path(path), expected, "{path}");
        check("/chat/completions", Some(Endpoint::ChatCompletions));
        check("/v1/chat/completions/", Some(Endpoint::ChatCompletions));
        check("/tokenize", Some(Endpoint::Tokenize));
        check("/rerank", Some(Endpoint::Rerank));
        check("/v1/rerank", Some(Endpoint::RerankV1));
        check("/v1/generate", None);
        check("/v1", None);
        check("/", None);
        check("", None);
        check("/v1/v1/messages", None);
    }
}
