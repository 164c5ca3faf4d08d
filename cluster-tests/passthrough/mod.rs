//! Bytes that must come through unchanged.

mod answers;
mod dialects;
mod requests;
mod uploads;

/// The paths of every serving endpoint whose body is JSON.
const JSON_ENDPOINTS: &[&str] = &[
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/classify",
    "/v1/score",
    "/generate",
    "/v1/tokenize",
    "/v1/detokenize",
];
