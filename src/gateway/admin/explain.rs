//! Why a request went where it went.

use std::sync::Arc;

use axum::extract::{Path, State};
use serde_json::Value;
use smg_infer::{Failure, FailureCode};

use super::{Answer, mesh};
use crate::{app::Gateway, questions};

/// The record of a recent request: this node's, else that of a peer.
pub(crate) async fn explain(State(gateway): State<Arc<Gateway>>, Path(request_id): Path<String>) -> Answer {
    let own = gateway.explanations.find(&request_id);
    let told = match own {
        Some(record) if gateway.cluster.is_none() => return Answer::ok(&record),
        Some(record) => serde_json::to_value(&record).ok(),
        None => of_peer(&gateway, &request_id).await,
    };
    match told {
        Some(mut told) => {
            name_paths(&gateway, &mut told);
            Answer::ok(&told)
        }
        None => Failure::new(
            FailureCode::NotFound,
            "no record of this request: it has not ended yet, it is too old, or explanations are off",
        )
        .into(),
    }
}

/// What a peer remembers, with the peer's name.
async fn of_peer(gateway: &Gateway, request_id: &str) -> Option<Value> {
    let (peer, mut told) = questions::explain(gateway, request_id).await?;
    let name = mesh::name(gateway, &peer.to_string()).unwrap_or_else(|| peer.to_string());
    told.as_object_mut()?.insert("answered_by".to_owned(), name.into());
    Some(told)
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
