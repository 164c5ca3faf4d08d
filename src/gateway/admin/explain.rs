//! Why a request went where it went.

use std::sync::Arc;

use axum::extract::{Path, State};
use smg_infer::{Failure, FailureCode};

use super::Answer;
use crate::app::Gateway;

/// The record of a recent request.
pub(crate) async fn explain(State(gateway): State<Arc<Gateway>>, Path(request_id): Path<String>) -> Answer {
    match gateway.explanations.find(&request_id) {
        Some(record) => Answer::ok(&record),
        None => Failure::new(
            FailureCode::NotFound,
            "no record of this request: it has not ended yet, it is too old, or explanations are off",
        )
        .into(),
    }
}
