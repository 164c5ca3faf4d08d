//! `/openapi.json`: what is served, from the same table that serves it.

use axum::{Json, response::IntoResponse};
use http::Method;
use serde_json::{Map, Value, json};
use smg_api::{Endpoint, Family};
use smg_auth::Scope;

use super::{Access, Route, routes};
use crate::access::scope_of;

/// The one request about keys that may go without a body.
const ROTATE: &str = "/keys/{id}/rotate";

/// Answers with the description.
pub(super) async fn serve() -> impl IntoResponse {
    Json(openapi())
}

/// The OpenAPI 3.1 description of the traffic port.
pub fn openapi() -> Value {
    let mut paths = Map::new();
    for endpoint in Endpoint::ALL {
        add(&mut paths, endpoint.path(), "post", serving_operation(*endpoint));
    }
    for route in routes() {
        let mut operation = json!({
            "summary": route.summary,
            "tags": [match route.access { Access::Open => "probes", Access::Serving(_) => "serving", Access::Admin => "admin" }],
            "responses": {
                "200": { "description": "Done" },
                "default": { "$ref": "#/components/responses/Error" }
            }
        });
        let parameters: Vec<Value> = parameters_of(route.path);
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        match route.access {
            Access::Open => operation["security"] = json!([]),
            Access::Serving(Some(scope)) => operation["security"] = security(scope),
            Access::Serving(None) | Access::Admin => {}
        }
        if let Some(schema) = schema_of_body(&route) {
            operation["requestBody"] = json!({
                "required": route.path != ROTATE,
                "content": { "application/json": { "schema": schema } }
            });
        }
        add(&mut paths, route.path, &route.method.as_str().to_ascii_lowercase(), operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "smg",
            "summary": "An engine-agnostic LLM gateway",
            "description": "Request and answer bodies of the serving endpoints are those of the OpenAI, Anthropic and engine APIs; \
                unknown fields pass to the engine unchanged. \
                The serving paths may also be written without their /v1. The names at an operation's security are the scopes \
                that a key needs for it.",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" }
        },
        "security": [{ "bearer": [] }, { "key": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer" },
                "key": { "type": "apiKey", "in": "header", "name": "x-api-key" }
            },
            "responses": {
                "Error": {
                    "description": "An error, in the shape of the API family",
                    "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Error" } } }
                },
                "AnthropicError": {
                    "description": "An error, in the shape of the Messages API",
                    "content": { "application/json": { "schema": { "$ref": "#/components/schemas/AnthropicError" } } }
                }
            },
            "schemas": {
                "Error": {
                    "type": "object",
                    "required": ["error"],
                    "properties": { "error": {
                        "type": "object",
                        "required": ["message", "type"],
                        "properties": {
                            "message": { "type": "string" },
                            "type": { "type": "string" },
                            "param": { "type": ["string", "null"] },
                            "code": { "type": ["string", "integer", "null"] }
                        }
                    } }
                },
                "AnthropicError": {
                    "type": "object",
                    "required": ["type", "error"],
                    "properties": {
                        "type": { "const": "error" },
                        "error": {
                            "type": "object",
                            "required": ["type", "message"],
                            "properties": { "type": { "type": "string" }, "message": { "type": "string" } }
                        },
                        "request_id": { "type": ["string", "null"] }
                    }
                }
            }
        }
    })
}

fn add(paths: &mut Map<String, Value>, path: &str, method: &str, operation: Value) {
    let item = paths.entry(path.to_owned()).or_insert_with(|| json!({}));
    if let Value::Object(item) = item {
        item.insert(method.to_owned(), operation);
    }
}

fn parameters_of(path: &str) -> Vec<Value> {
    path.split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect()
}

fn serving_operation(endpoint: Endpoint) -> Value {
    let error = match endpoint.family() {
        Family::Anthropic => "#/components/responses/AnthropicError",
        Family::OpenAi | Family::Native => "#/components/responses/Error",
    };
    let mut answer = Map::new();
    answer.insert("application/json".to_owned(), json!({ "schema": {} }));
    if endpoint.is_generation() {
        answer.insert("text/event-stream".to_owned(), json!({ "schema": { "type": "string" } }));
    }
    json!({
        "summary": summary(endpoint),
        "tags": ["serving"],
        "security": security(scope_of(endpoint)),
        "parameters": [
            header("x-request-id", "An id of the caller's own for the request"),
            header("x-smg-routing-key", "Requests with the same key go to the same worker under the sticky policies"),
            header("x-smg-target-worker", "The worker to use, by id or URL"),
            header("x-smg-allow-replay", "'true' lets the gateway send a request again that may have run")
        ],
        "requestBody": { "required": true, "content": request_content(endpoint) },
        "responses": {
            "200": { "description": "The worker's answer", "content": answer },
            "default": { "$ref": error }
        }
    })
}

/// What a caller needs: a key, and on it the scope.
fn security(scope: Scope) -> Value {
    json!([{ "bearer": [scope.as_str()] }, { "key": [scope.as_str()] }])
}

/// What the body of a request about keys holds.
fn schema_of_body(route: &Route) -> Option<Value> {
    let mut properties = rights();
    let required: &[&str] = match (&route.method, route.path) {
        (&Method::POST, "/keys") => {
            properties["tenant"] = json!({ "type": "string", "description": "By default the tenant 'default'" });
            properties["expires_in"] = seconds("The same as seconds from now");
            &["name"]
        }
        // What is absent stays.
        (&Method::PATCH, "/keys/{id}") => &[],
        (&Method::POST, ROTATE) => return Some(rotation()),
        _ => return None,
    };
    Some(json!({ "type": "object", "required": required, "properties": properties, "additionalProperties": false }))
}

fn rights() -> Value {
    let scopes: Vec<&str> = Scope::NAMES.iter().copied().chain(["*"]).collect();
    json!({
        "name": { "type": "string" },
        "role": { "enum": ["caller", "viewer", "admin"], "description": "What it opens of the admin API; by default nothing" },
        "models": {
            "type": "array", "items": { "type": "string" },
            "description": "The models it may use, by default all; a name that ends in * stands for all that begin like it"
        },
        "scopes": {
            "type": "array", "items": { "enum": scopes },
            "description": "The families of endpoints it may use, by default all; each operation names its own at its security"
        },
        "class": { "enum": ["system", "interactive", "default", "bulk", null] },
        "expires": seconds("Seconds since the Unix epoch; from then on it opens nothing")
    })
}

fn seconds(meaning: &str) -> Value {
    json!({ "type": ["integer", "null"], "minimum": 0, "description": meaning })
}

fn rotation() -> Value {
    let overlap = json!({ "type": "integer", "minimum": 0, "default": 86_400,
        "description": "Seconds for which the old key goes on" });
    json!({ "type": "object", "properties": { "overlap": overlap }, "additionalProperties": false })
}

fn header(name: &str, description: &str) -> Value {
    json!({ "name": name, "in": "header", "required": false, "description": description, "schema": { "type": "string" } })
}

fn summary(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::ChatCompletions => "OpenAI chat completion",
        Endpoint::Completions => "OpenAI text completion",
        Endpoint::Messages => "Anthropic message",
        Endpoint::CountTokens => "Counts the tokens of an Anthropic message",
        Endpoint::Responses => "OpenAI response",
        Endpoint::Embeddings => "OpenAI embeddings",
        Endpoint::RerankV1 | Endpoint::Rerank => "Ranks documents against a query",
        Endpoint::Classify => "Classifies text",
        Endpoint::Score => "Scores pairs of texts",
        Endpoint::Transcriptions => "Transcribes audio",
        Endpoint::Generate => "SGLang's native generation",
        Endpoint::Tokenize => "Text to token ids",
        Endpoint::Detokenize => "Token ids to text",
    }
}

fn request_content(endpoint: Endpoint) -> Value {
    if endpoint == Endpoint::Transcriptions {
        return json!({ "multipart/form-data": { "schema": {
            "type": "object",
            "required": ["file", "model"],
            "properties": { "file": { "type": "string", "format": "binary" }, "model": { "type": "string" } },
            "additionalProperties": true
        } } });
    }
    let (required, own): (&[&str], Value) = match endpoint {
        Endpoint::ChatCompletions => {
            (&["model", "messages"], json!({ "messages": { "type": "array" }, "stream": { "type": "boolean" } }))
        }
        Endpoint::Completions => (&["model"], json!({ "prompt": {}, "stream": { "type": "boolean" } })),
        Endpoint::Messages => {
            (&["model", "messages"], json!({ "messages": { "type": "array" }, "stream": { "type": "boolean" } }))
        }
        Endpoint::CountTokens => (&["model", "messages"], json!({ "messages": { "type": "array" } })),
        Endpoint::Responses => (&["model"], json!({ "input": {}, "stream": { "type": "boolean" } })),
        Endpoint::Embeddings => (&["model", "input"], json!({ "input": {} })),
        Endpoint::RerankV1 | Endpoint::Rerank => {
            (&["query", "documents"], json!({ "query": {}, "documents": { "type": "array" } }))
        }
        Endpoint::Generate => (&[], json!({ "text": {}, "input_ids": {}, "stream": { "type": "boolean" } })),
        Endpoint::Classify | Endpoint::Score | Endpoint::Tokenize | Endpoint::Detokenize | Endpoint::Transcriptions => {
            (&[], json!({}))
        }
    };
    let mut properties =
        json!({ "model": { "type": "string", "description": "A model or alias listed by /v1/models" } });
    if let (Value::Object(all), Value::Object(own)) = (&mut properties, own) {
        all.extend(own);
    }
    json!({ "application/json": { "schema": {
        "type": "object", "required": required, "properties": properties, "additionalProperties": true
    } } })
}
