//! The mesh: who is there, what they know, what they share.

use std::sync::Arc;

use axum::extract::{Path, State};
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use smg_base::PeerId;
use smg_infer::{Failure, FailureCode};
use smg_runtime::Phase;

use super::Answer;
use crate::{
    app::Gateway,
    cluster::{Cluster, ClusterError, Page, SharedKey},
};

/// All in short.
pub(crate) async fn status(State(gateway): State<Arc<Gateway>>) -> Answer {
    page(&gateway, Page::Status).await
}

/// The nodes.
pub(crate) async fn members(State(gateway): State<Arc<Gateway>>) -> Answer {
    page(&gateway, Page::Members).await
}

/// The workers, as the nodes together see them.
pub(crate) async fn workers(State(gateway): State<Arc<Gateway>>) -> Answer {
    page(&gateway, Page::Workers).await
}

/// Digests and version vectors.
pub(crate) async fn digest(State(gateway): State<Arc<Gateway>>) -> Answer {
    page(&gateway, Page::Digest).await
}

/// What all nodes share.
pub(crate) async fn config(State(gateway): State<Arc<Gateway>>) -> Answer {
    page(&gateway, Page::Config).await
}

/// What caches are known to hold; there is something to see without a mesh, too.
pub(crate) async fn prefixes(State(gateway): State<Arc<Gateway>>) -> Answer {
    match &gateway.prefix_page {
        Some(page) => Answer::ok(&page(&gateway.prefix_models())),
        None => Failure::new(FailureCode::NotFound, "nobody looks after caches here").into(),
    }
}

/// Sets a value that all nodes share.
pub(crate) async fn set_config(
    State(gateway): State<Arc<Gateway>>,
    Path((section, name)): Path<(String, String)>,
    body: Bytes,
) -> Answer {
    let value: Result<Value, _> = serde_json::from_slice(&body);
    match value {
        // There, what a key may do is judged, and whether somebody could still administer the gateway.
        _ if section == "key" => Failure::new(FailureCode::InvalidRequest, "keys are made and changed at /keys").into(),
        Ok(Value::Null) | Err(_) => {
            Failure::new(FailureCode::InvalidRequest, "the body is the value, as JSON, such as \"llama-3\"").into()
        }
        Ok(value) => share(&gateway, SharedKey { section, name }, Some(value)).await,
    }
}

/// Deletes a value that all nodes share.
pub(crate) async fn delete_config(
    State(gateway): State<Arc<Gateway>>,
    Path((section, name)): Path<(String, String)>,
) -> Answer {
    share(&gateway, SharedKey { section, name }, None).await
}

/// Tells the others to send this node nothing more.
pub(crate) async fn drain(State(gateway): State<Arc<Gateway>>) -> Answer {
    let drained = async {
        cluster(&gateway)?.drain().await;
        tracing::info!("draining from the mesh, as asked");
        Ok(Answer::json(
            StatusCode::ACCEPTED,
            &json!({
                "status": "draining",
                "message": "other nodes send this one nothing more, and it says that it is not ready; it goes on serving",
            }),
        ))
    };
    drained.await.into()
}

/// Takes a drain back.
pub(crate) async fn resume(State(gateway): State<Arc<Gateway>>) -> Answer {
    let resumed = async {
        let cluster = cluster(&gateway)?;
        if gateway.shutdown.phase() >= Phase::Draining {
            return Err(Failure::new(FailureCode::Draining, "this node is being stopped"));
        }
        if !cluster.resume().await {
            return Err(Failure::new(FailureCode::InvalidRequest, "this node is not draining"));
        }
        tracing::info!("no longer draining from the mesh, as asked");
        Ok(Answer::ok(&json!({
            "status": cluster.standing().as_str(),
            "message": "other nodes may send this one requests again",
        })))
    };
    resumed.await.into()
}

/// Leaves the mesh; this node goes on alone.
pub(crate) async fn leave(State(gateway): State<Arc<Gateway>>) -> Answer {
    let left = async {
        cluster(&gateway)?.leave().await;
        tracing::info!("left the mesh, as asked");
        Ok(Answer::ok(&json!({
            "status": "left",
            "message": "this node goes on alone, with the workers it reaches itself; it joins again when it is restarted",
        })))
    };
    left.await.into()
}

async fn page(gateway: &Gateway, page: Page) -> Answer {
    match cluster(gateway) {
        Ok(cluster) => Answer::ok(&cluster.page(page).await),
        Err(failure) => failure.into(),
    }
}

async fn share(gateway: &Gateway, key: SharedKey, value: Option<Value>) -> Answer {
    let shared = async {
        let answer = json!({ "status": "shared", "section": key.section, "name": key.name, "value": value });
        cluster(gateway)?.set_shared(key, value).await.map_err(refused)?;
        tracing::info!(section = %answer["section"], name = %answer["name"], "shared setting changed");
        Ok(Answer::ok(&answer))
    };
    shared.await.into()
}

fn cluster(gateway: &Gateway) -> Result<&Arc<dyn Cluster>, Failure> {
    let off = || Failure::new(FailureCode::NotFound, "this node is in no mesh; --enable-mesh turns it on");
    gateway.cluster.as_ref().ok_or_else(off)
}

/// What people call a peer that is written as the number it has.
pub(crate) fn name(gateway: &Gateway, peer: &str) -> Option<String> {
    let number = u128::from_str_radix(peer, 16).ok()?;
    gateway.cluster.as_ref()?.name(PeerId(number))
}

/// What an operator is told when the mesh did not take something.
pub(crate) fn refused(error: ClusterError) -> Failure {
    let code = match error {
        ClusterError::TooLarge | ClusterError::Revoked | ClusterError::Invalid(_) => FailureCode::InvalidRequest,
        ClusterError::UnknownSection => FailureCode::NotFound,
        ClusterError::Busy | ClusterError::Leaving => FailureCode::Draining,
        ClusterError::NotKept => FailureCode::Internal,
    };
    Failure::new(code, error.to_string())
}
