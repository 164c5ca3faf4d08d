//! The objects of `/v1/models`, as OpenAI's and as Anthropic's clients expect them.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// A model in OpenAI's shape, with the fields engines add to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelObject {
    /// The name by which requests ask for it.
    pub id: String,
    /// Always `model`.
    #[serde(default = "model_word")]
    pub object: Cow<'static, str>,
    /// When it came to be, in seconds since the Unix epoch; 0 where nobody knows.
    #[serde(default)]
    pub created: u64,
    /// Who serves it; engines give their name here.
    #[serde(default, deserialize_with = "or_default")]
    pub owned_by: String,
    /// What the engine loaded, where it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// The base model of an adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The context length in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_model_len: Option<u64>,
}

impl ModelObject {
    /// A model about which no more is known than its name and owner.
    pub fn new(id: impl Into<String>, owned_by: impl Into<String>) -> Self {
        let object = model_word();
        Self {
            id: id.into(),
            object,
            created: 0,
            owned_by: owned_by.into(),
            root: None,
            parent: None,
            max_model_len: None,
        }
    }
}

/// OpenAI's list of models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelList {
    /// Always `list`.
    #[serde(default = "list_word")]
    pub object: Cow<'static, str>,
    /// The models.
    pub data: Vec<ModelObject>,
}

impl ModelList {
    /// The list of `data`.
    pub fn new(data: Vec<ModelObject>) -> Self {
        Self { object: list_word(), data }
    }
}

/// A model in Anthropic's shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnthropicModel {
    /// Always `model`.
    pub r#type: Cow<'static, str>,
    /// The name by which requests ask for it.
    pub id: String,
    /// The name for people.
    pub display_name: String,
    /// When it came to be, in RFC 3339; the Unix epoch where nobody knows.
    pub created_at: String,
}

impl AnthropicModel {
    /// `model` in Anthropic's shape; without a name for people its id serves as one.
    pub fn new(model: &ModelObject, display_name: Option<&str>) -> Self {
        Self {
            r#type: model_word(),
            id: model.id.clone(),
            display_name: display_name.unwrap_or(&model.id).to_owned(),
            created_at: rfc3339(model.created),
        }
    }
}

/// Anthropic's list of models: one page that holds them all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnthropicModelList {
    /// The models.
    pub data: Vec<AnthropicModel>,
    /// Always false.
    pub has_more: bool,
    /// The first model's id.
    pub first_id: Option<String>,
    /// The last model's id.
    pub last_id: Option<String>,
}

impl AnthropicModelList {
    /// The list of `data`.
    pub fn new(data: Vec<AnthropicModel>) -> Self {
        let id = |model: Option<&AnthropicModel>| model.map(|model| model.id.clone());
        Self { has_more: false, first_id: id(data.first()), last_id: id(data.last()), data }
    }
}

fn model_word() -> Cow<'static, str> {
    Cow::Borrowed("model")
}

fn list_word() -> Cow<'static, str> {
    Cow::Borrowed("list")
}

/// Some engines send null for a field they have nothing to say in.
fn or_default<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}

/// Seconds since the Unix epoch as a date and time in UTC. The calendar arithmetic is H. Hinnant's `civil_from_days`.
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_openai_list_has_the_expected_shape() {
        let list = ModelList::new(vec![ModelObject { max_model_len: Some(4096), ..ModelObject::new("m", "vllm") }]);
        let text = serde_json::to_string(&list).expect("serialises");
        assert_eq!(
            text,
            r#"{"object":"list","data":[{"id":"m","object":"model","created":0,"owned_by":"vllm","max_model_len":4096}]}"#
        );
        assert_eq!(serde_json::from_str::<ModelList>(&text).expect("parses"), list);
    }

    #[test]
    fn what_engines_send_is_read() {
        let sparse = r#"{"data":[{"id":"a"},{"id":"b","owned_by":null,"permission":[{"id":"x"}],"root":null,"max_model_len":null}]}"#;
        let list: ModelList = serde_json::from_str(sparse).expect("parses");
        assert_eq!(list.data, [ModelObject::new("a", ""), ModelObject::new("b", "")]);
    }

    #[test]
    fn the_anthropic_list_has_the_expected_shape() {
        let model = ModelObject { created: 1_700_000_000, ..ModelObject::new("m", "x") };
        let list = AnthropicModelList::new(vec![AnthropicModel::new(&model, None)]);
        assert_eq!(
            serde_json::to_string(&list).expect("serialises"),
            r#"{"data":[{"type":"model","id":"m","display_name":"m","created_at":"2023-11-14T22:13:20Z"}],"has_more":false,"first_id":"m","last_id":"m"}"#
        );
        let empty = serde_json::to_string(&AnthropicModelList::new(Vec::new())).expect("serialises");
        assert_eq!(empty, r#"{"data":[],"has_more":false,"first_id":null,"last_id":null}"#);
    }

    #[test]
    fn dates_are_right_at_the_corners_of_the_calendar() {
        let check = |seconds: u64, expected: &str| assert_eq!(rfc3339(seconds), expected);
        check(0, "1970-01-01T00:00:00Z");
        check(951_782_399, "2000-02-28T23:59:59Z");
        check(951_782_400, "2000-02-29T00:00:00Z");
        check(951_868_800, "2000-03-01T00:00:00Z");
        check(4_107_542_400, "2100-03-01T00:00:00Z");
        check(1_735_689_599, "2024-12-31T23:59:59Z");
    }
}
