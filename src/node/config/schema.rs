//! The JSON Schema of `smg.toml`, for editors.

use serde_json::{Map, Value, json};

use super::setting::{Kind, Setting};

/// The JSON Schema (draft 2020-12) of the file.
pub fn schema() -> Value {
    let settings: Vec<Setting> = Setting::all().into_iter().filter(Setting::is_in_files).collect();
    let mut properties = Map::new();
    for setting in &settings {
        let section = properties.entry(setting.section()).or_insert_with(|| closed(Map::new(), setting.heading()));
        if let Some(Value::Object(keys)) = section.get_mut("properties") {
            keys.insert(setting.id().to_owned(), property(setting));
        }
    }
    properties.insert("workers".to_owned(), json!({"type": "array", "items": worker()}));
    properties.insert("models".to_owned(), json!({"type": "array", "items": model(&settings)}));
    let mut root = closed(properties, "The configuration of an smg node");
    if let Value::Object(root) = &mut root {
        root.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
        root.insert("title".to_owned(), json!("smg.toml"));
    }
    root
}

/// An object that takes these properties and no others.
fn closed(properties: Map<String, Value>, description: &str) -> Value {
    json!({"type": "object", "description": description, "additionalProperties": false, "properties": properties})
}

fn property(setting: &Setting) -> Value {
    let one = element(setting);
    let mut schema = if setting.is_list() { json!({"type": "array", "items": one}) } else { one };
    if let Value::Object(schema) = &mut schema {
        schema.insert("description".to_owned(), Value::String(setting.manual()));
        let defaults: Vec<Value> = setting.defaults().iter().map(|raw| default(setting.kind(), raw)).collect();
        if setting.is_list() && !defaults.is_empty() {
            schema.insert("default".to_owned(), Value::Array(defaults));
        } else if let Some(default) = defaults.into_iter().next() {
            schema.insert("default".to_owned(), default);
        }
    }
    schema
}

fn element(setting: &Setting) -> Value {
    let choices = setting.choices();
    if !choices.is_empty() {
        return json!({"enum": choices});
    }
    match setting.kind() {
        Kind::Bool => json!({"type": "boolean"}),
        Kind::Integer => json!({"type": "integer", "minimum": 0}),
        Kind::Float => json!({"type": "number"}),
        Kind::Duration => json!({"type": ["number", "string"], "minimum": 0, "pattern": DURATION}),
        Kind::Timeout => json!({"type": ["number", "string"], "minimum": 0, "pattern": format!("^off$|{DURATION}")}),
        Kind::Size => json!({"type": ["integer", "string"], "minimum": 0, "pattern": SIZE}),
        Kind::Limit => json!({"type": ["integer", "string"], "minimum": -1, "pattern": "^(off|-1|[0-9]+)$"}),
        Kind::Path | Kind::Text => json!({"type": "string"}),
        Kind::Secret => json!({"type": "string", "minLength": 1}),
    }
}

const DURATION: &str = "^[0-9]+(\\.[0-9]+)? *(us|ms|s|m|h|d)?$";
const SIZE: &str = "^[0-9]+(\\.[0-9]+)? *([kKmMgGtT]?[iI]?[bB])?$";

fn default(kind: Kind, raw: &str) -> Value {
    match kind {
        Kind::Path | Kind::Secret | Kind::Text => json!(raw),
        _ => serde_json::from_str(raw).unwrap_or_else(|_| json!(raw)),
    }
}

/// An entry of `[[models]]`: the settings that may differ between models.
fn model(settings: &[Setting]) -> Value {
    let mut properties = Map::new();
    properties.insert("id".to_owned(), json!({"type": "string", "minLength": 1, "description": "The model."}));
    let names = json!({"type": "array", "items": {"type": "string"}, "description": "Further names for it."});
    properties.insert("aliases".to_owned(), names);
    for setting in settings.iter().filter(|one| one.is_per_model()) {
        let mut schema = property(setting);
        if let Value::Object(schema) = &mut schema {
            schema.remove("default");
        }
        properties.insert(setting.id().to_owned(), schema);
    }
    let mut schema = closed(properties, "What one model does differently.");
    if let Value::Object(schema) = &mut schema {
        schema.insert("required".to_owned(), json!(["id"]));
    }
    schema
}

/// An entry of `[[workers]]`, as `smg_fleet::WorkerSpec` reads it.
fn worker() -> Value {
    let text = || json!({"type": "string"});
    let count = || json!({"type": "integer", "minimum": 0});
    let ratio = || json!({"type": "number", "exclusiveMinimum": 0, "default": 1.0});
    let names = json!({"type": "array", "items": text()});
    let card = json!({
        "type": "object",
        "required": ["id"],
        "properties": {"id": text(), "aliases": names, "context_length": count(), "display_name": text()},
    });
    let health = object([
        ("timeout_secs", count()),
        ("check_interval_secs", count()),
        ("success_threshold", count()),
        ("failure_threshold", count()),
        ("disable_health_check", json!({"type": "boolean"})),
        ("drain_settle_secs", count()),
        ("endpoint", text()),
    ]);
    let resilience = object([
        ("max_retries", count()),
        ("initial_backoff_ms", count()),
        ("max_backoff_ms", count()),
        ("backoff_multiplier", json!({"type": "number", "minimum": 1})),
        ("jitter_factor", json!({"type": "number", "minimum": 0, "maximum": 1})),
        ("disable_retry", json!({"type": "boolean"})),
        ("cb_failure_threshold", count()),
        ("cb_success_threshold", count()),
        ("cb_timeout_secs", count()),
        ("cb_window_secs", count()),
        ("disable_circuit_breaker", json!({"type": "boolean"})),
        ("retryable_status_codes", json!({"type": "array", "items": count()})),
    ]);
    let mut schema = object([
        ("url", json!({"type": "string", "minLength": 1, "description": "Where it is."})),
        ("models", json!({"type": "array", "items": {"anyOf": [text(), card]}, "description": "What it serves."})),
        ("worker_type", json!({"enum": ["regular"]})),
        ("connection_mode", json!({"enum": ["http"]})),
        ("runtime_type", json!({"enum": smg_fleet::Engine::ALL.map(smg_fleet::Engine::as_str)})),
        ("provider", text()),
        ("labels", json!({"type": "object", "additionalProperties": text()})),
        ("priority", json!({"type": "integer", "minimum": 0, "default": 50})),
        ("cost", ratio()),
        ("weight", ratio()),
        ("api_key", json!({"type": "string", "minLength": 1, "description": "The key it wants, or a reference."})),
        ("kv_capacity_tokens", count()),
        ("max_running_requests", count()),
        ("health", health),
        ("resilience", resilience),
    ]);
    if let Value::Object(schema) = &mut schema {
        schema.insert("required".to_owned(), json!(["url"]));
    }
    schema
}

fn object<const N: usize>(properties: [(&str, Value); N]) -> Value {
    let properties: Map<String, Value> =
        properties.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect();
    json!({"type": "object", "additionalProperties": false, "properties": properties})
}
