//! The models served here, in the dialect the caller speaks.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
};
use smg_api::models::{AnthropicModel, AnthropicModelList, ModelList, ModelObject};
use smg_auth::Models;
use smg_fleet::{Pool, Snapshot};
use smg_infer::{Failure, FailureCode};

use crate::{access::Guest, app::Gateway, prepare, routes};

/// Anthropic's clients name their version of the API in every request.
fn speaks_anthropic(request: &Request) -> bool {
    request.headers().contains_key("anthropic-version")
}

/// All models and aliases, sorted by name.
pub(crate) async fn list(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let models = objects(&gateway.fleet.snapshot(), allowed(&request));
    if speaks_anthropic(&request) {
        let models = models.iter().map(|model| AnthropicModel::new(model, None)).collect();
        return Json(AnthropicModelList::new(models)).into_response();
    }
    Json(ModelList::new(models)).into_response()
}

/// One model, by its name or an alias. Names may contain slashes only in their encoded form.
pub(crate) async fn one(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>, request: Request) -> Response {
    let found = objects(&gateway.fleet.snapshot(), allowed(&request)).into_iter().find(|model| model.id == id);
    match found {
        Some(model) if speaks_anthropic(&request) => Json(AnthropicModel::new(&model, None)).into_response(),
        Some(model) => Json(model).into_response(),
        None => {
            let name: String = id.chars().take(100).collect();
            let failure = Failure::new(FailureCode::ModelNotFound, format!("no worker serves the model '{name}'"));
            routes::refuse(&gateway, &request, &failure.param("model"))
        }
    }
}

/// The models that the caller may use. Nobody gets here without having been let in.
fn allowed(request: &Request) -> &Models {
    request.extensions().get::<Guest>().map_or(&Models::All, |guest| &guest.principal.models)
}

fn objects(snapshot: &Snapshot, allowed: &Models) -> Vec<ModelObject> {
    let of_pool = |pool| of_pool(pool).into_iter().filter(|model| prepare::is_allowed(allowed, &model.id, pool));
    let mut models: Vec<ModelObject> = snapshot.models().flat_map(|pool| of_pool(pool)).collect();
    models.sort_by(|a, b| a.id.cmp(&b.id));
    models.dedup_by(|a, b| a.id == b.id);
    models
}

fn of_pool(pool: &Pool) -> Vec<ModelObject> {
    let owner = pool.workers.first().map_or("smg", |worker| worker.engine().as_str());
    let own = pool.model.as_str();
    std::iter::once(own)
        .chain(pool.card.aliases.iter().map(|alias| alias.as_str()))
        .map(|name| {
            let mut model = ModelObject::new(name, owner);
            model.max_model_len = pool.card.context_length;
            model.root = Some(own.to_owned());
            model
        })
        .collect()
}
