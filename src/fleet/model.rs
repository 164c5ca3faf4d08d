//! What a worker says of a model it serves.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

use smg_base::ModelId;

/// One model of a worker. On the wire a bare string stands for a card with nothing but the id. The gateway itself
/// reads `id`, `aliases` and `context_length`; the other fields are kept for those who list the models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct ModelCard {
    /// The name under which the worker serves it.
    pub id: ModelId,
    /// Other names clients may use; they are replaced by `id` before the request is sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<ModelId>,
    /// The name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// The longest prompt and answer together, in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u64>,
    /// What the model can do, as the caller wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_type: Option<serde_json::Value>,
    /// The `model_type` of its Hugging Face configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hf_model_type: Option<String>,
    /// The `architectures` of its Hugging Face configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<String>,
    /// Who offers it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Where its tokenizer is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer_path: Option<String>,
    /// Its chat template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// The parser of its reasoning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_parser: Option<String>,
    /// The parser of its tool calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_parser: Option<String>,
    /// Anything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<serde_json::Value>,
    /// The labels of a classifier, by class number.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub id2label: BTreeMap<String, String>,
    /// How many labels a classifier has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_labels: Option<u32>,
}

impl ModelCard {
    /// A card that says nothing but the name.
    pub fn new(id: impl Into<ModelId>) -> Self {
        Self {
            id: id.into(),
            aliases: Vec::new(),
            display_name: None,
            context_length: None,
            model_type: None,
            hf_model_type: None,
            architectures: Vec::new(),
            provider: None,
            tokenizer_path: None,
            chat_template: None,
            reasoning_parser: None,
            tool_parser: None,
            metadata: None,
            id2label: BTreeMap::new(),
            num_labels: None,
        }
    }

    /// Adds what another worker says of the same model: all aliases, the longest context, and of everything else
    /// what this card does not say.
    pub(crate) fn merge(&mut self, other: &Self) {
        for alias in &other.aliases {
            if !self.aliases.contains(alias) {
                self.aliases.push(alias.clone());
            }
        }
        self.context_length = self.context_length.max(other.context_length);
        fill(&mut self.display_name, &other.display_name);
        fill(&mut self.model_type, &other.model_type);
        fill(&mut self.hf_model_type, &other.hf_model_type);
        fill(&mut self.provider, &other.provider);
        fill(&mut self.tokenizer_path, &other.tokenizer_path);
        fill(&mut self.chat_template, &other.chat_template);
        fill(&mut self.reasoning_parser, &other.reasoning_parser);
        fill(&mut self.tool_parser, &other.tool_parser);
        fill(&mut self.metadata, &other.metadata);
        fill(&mut self.num_labels, &other.num_labels);
        if self.architectures.is_empty() {
            self.architectures.clone_from(&other.architectures);
        }
        if self.id2label.is_empty() {
            self.id2label.clone_from(&other.id2label);
        }
    }
}

fn fill<T: Clone>(mine: &mut Option<T>, other: &Option<T>) {
    if mine.is_none() {
        mine.clone_from(other);
    }
}

// The derived functions are inherent ones (`remote = "Self"`), so that the trait can take a bare string as well.

impl Serialize for ModelCard {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for ModelCard {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CardVisitor)
    }
}

/// Reads a card from a string or a map. Not an untagged enum, whose errors do not name the field at fault.
struct CardVisitor;

impl<'de> Visitor<'de> for CardVisitor {
    type Value = ModelCard;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a model, or a model card")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ModelCard, E> {
        Ok(ModelCard::new(text))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ModelCard, A::Error> {
        ModelCard::deserialize(MapAccessDeserializer::new(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_string_is_a_card() {
        let cards: Vec<ModelCard> =
            serde_json::from_str(r#"["a", {"id":"b","aliases":["c"],"context_length":4096,"metadata":{"x":1}}]"#)
                .unwrap();
        assert_eq!(cards[0], ModelCard::new("a"));
        assert_eq!(cards[1].context_length, Some(4_096));
        let text = serde_json::to_string(&cards).unwrap();
        assert_eq!(serde_json::from_str::<Vec<ModelCard>>(&text).unwrap(), cards);
        assert!(text.starts_with(r#"[{"id":"a"},"#), "{text}");
    }

    #[test]
    fn a_wrong_card_is_refused_by_the_name_of_what_is_wrong() {
        let check = |text: &str, part: &str| {
            let error = serde_json::from_str::<ModelCard>(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        };
        check(r#"{"id":"a","contextlength":1}"#, "contextlength");
        check(r#"{"aliases":[]}"#, "`id`");
        check("7", "a model card");
    }

    #[test]
    fn merged_cards_keep_the_first_word_all_aliases_and_the_longest_context() {
        let named = |name: &str| Some(name.to_owned());
        let mut card = ModelCard { display_name: named("first"), context_length: Some(8), ..ModelCard::new("m") };
        card.aliases = vec!["x".into()];
        let mut other = ModelCard { display_name: named("second"), context_length: Some(16), ..ModelCard::new("m") };
        other.aliases = vec!["y".into(), "x".into()];
        other.tool_parser = named("json");
        card.merge(&other);
        assert_eq!(card.display_name, named("first"));
        assert_eq!(card.context_length, Some(16));
        assert_eq!(card.aliases, ["x".into(), "y".into()]);
        assert_eq!(card.tool_parser, named("json"));
    }
}
