//! Why a request went where it went.

use std::sync::Arc;

use axum::extract::{Path, State};
use serde_json::Value;
use smg_infer::{Failure, FailureCode};

use super::{Answer, mesh};
use crate::app::Gateway;

/// The record of a recent request.
pub(crate) async fn explain(State(gateway): State<Arc<Gateway>>, Path(request_id): Path<String>) -> Answer {
    match gateway.explanations.find(&request_id) {
        Some(record) => match serde_json::to_value(&record) {
            Ok(mut told) if gateway.cluster.is_some() => {
                name_paths(&gateway, &mut told);
                Answer::ok(&told)
            }
            _ => Answer::ok(&record),
        },
        None => Failure::new(
            FailureCode::NotFound,
            "no record of this request: it has not ended yet, it is too old, or explanations are off",
        )
        .into(),
    }
}

/// Calls the peers on the way to a worker what people call them.
fn name_paths(gateway: &Gateway, value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| name_paths(gateway, item)),
        Value::Object(fields) => {
            for (field, value) in fields {
                let name = value.as_str().filter(|_| field == "path").and_then(|peer| mesh::name(gateway, peer));
                match name {
                    Some(name) => *value = format!("via {name}").into(),
                    None => name_paths(gateway, value),
                }
            }
        }
        _ => {}
    }
}
