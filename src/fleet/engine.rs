//! The inference engines that are told apart.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What runs behind a worker's URL. It decides which native paths exist, how load and capacity are read, and how the
/// worker's key is sent; the dialect of a request is decided by its path, not by this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Engine {
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
    /// TensorRT-LLM.
    TrtLlm,
    /// The server of llama.cpp.
    LlamaCpp,
    /// Ollama.
    Ollama,
    /// Anything else that speaks the OpenAI API.
    OpenAi,
    /// Something that speaks the Anthropic API; the key goes into `x-api-key`.
    Anthropic,
    /// Not detected, and not said.
    #[default]
    Unknown,
}

impl Engine {
    /// Every engine.
    pub const ALL: [Self; 8] = [
        Self::Vllm,
        Self::Sglang,
        Self::TrtLlm,
        Self::LlamaCpp,
        Self::Ollama,
        Self::OpenAi,
        Self::Anthropic,
        Self::Unknown,
    ];

    /// The name on the wire, as `runtime_type` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::TrtLlm => "trtllm",
            Self::LlamaCpp => "llamacpp",
            Self::Ollama => "ollama",
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
            Self::Unknown => "unspecified",
        }
    }
}

/// The text names no engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an engine is one of vllm, sglang, trtllm, llamacpp, ollama, openai (external), anthropic, unspecified")]
pub struct UnknownEngine;

impl FromStr for Engine {
    type Err = UnknownEngine;

    fn from_str(text: &str) -> Result<Self, UnknownEngine> {
        match text.to_ascii_lowercase().as_str() {
            "vllm" => Ok(Self::Vllm),
            "sglang" => Ok(Self::Sglang),
            "trtllm" | "trt-llm" | "tensorrt-llm" => Ok(Self::TrtLlm),
            "llamacpp" | "llama.cpp" | "llama-cpp" => Ok(Self::LlamaCpp),
            "ollama" => Ok(Self::Ollama),
            // The last two are engines of the reference gateway that are reached through the OpenAI API here.
            "openai" | "external" | "mlx" | "tokenspeed" => Ok(Self::OpenAi),
            "anthropic" => Ok(Self::Anthropic),
            "unspecified" | "unknown" | "auto" => Ok(Self::Unknown),
            _ => Err(UnknownEngine),
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Engine {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Engine {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_aliases_are_known() {
        for engine in Engine::ALL {
            assert_eq!(engine.as_str().parse(), Ok(engine));
        }
        let check = |text: &str, expected| assert_eq!(text.parse::<Engine>(), expected, "{text}");
        check("SGLang", Ok(Engine::Sglang));
        check("external", Ok(Engine::OpenAi));
        check("TensorRT-LLM", Ok(Engine::TrtLlm));
        check("llama.cpp", Ok(Engine::LlamaCpp));
        check("", Err(UnknownEngine));
        check("vllm2", Err(UnknownEngine));
    }
}
