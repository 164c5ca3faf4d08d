//! Which path leads where. The table below is the one list of routes: the router and `/openapi.json` come from it.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::{MethodRouter, any, delete, get, patch, post, put},
};
use http::{HeaderName, HeaderValue, Method, header};
use smg_api::Endpoint;
use smg_auth::Scope;
use smg_infer::{Failure, FailureCode};
use tokio::net::TcpListener;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::{
    admin::{self, Door},
    app::Gateway,
    edge,
    pipeline::{self, Received},
    reply::{self, Refusal},
    responses,
};

mod openapi;

pub use openapi::openapi;

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// Anyone: probes.
    Open,
    /// Callers, as far as their scopes go; all of them, if it belongs to no family.
    Serving(Option<Scope>),
    /// Operators.
    Admin,
}

/// A route beside the serving endpoints, which are listed by [`Endpoint::ALL`].
struct Route {
    method: Method,
    path: &'static str,
    access: Access,
    summary: &'static str,
    handler: fn() -> MethodRouter<Arc<Gateway>>,
}

macro_rules! routes {
    ($($access:ident $method:ident $path:literal $handler:path, $summary:literal;)*) => {
        fn routes() -> Vec<Route> {
            vec![$(Route {
                method: routes!(@method $method),
                path: $path,
                access: routes!(@access $access),
                summary: $summary,
                handler: || $method($handler),
            },)*]
        }
    };
    (@access Open) => { Access::Open };
    (@access Admin) => { Access::Admin };
    (@access Caller) => { Access::Serving(None) };
    (@access $scope:ident) => { Access::Serving(Some(Scope::$scope)) };
    (@method get) => { Method::GET };
    (@method post) => { Method::POST };
    (@method put) => { Method::PUT };
    (@method patch) => { Method::PATCH };
    (@method delete) => { Method::DELETE };
}

routes! {
    Open get "/health" admin::probes::live, "Whether the process runs";
    Open get "/healthz" admin::probes::live, "Whether the process runs";
    Open get "/livez" admin::probes::live, "Whether the process runs";
    Open get "/liveness" admin::probes::live, "Whether the process runs";
    Open get "/readiness" admin::probes::ready, "Whether requests can be served, and if not, why";
    Open get "/readyz" admin::probes::ready, "Whether requests can be served, and if not, why";
    Open get "/openapi.json" openapi::serve, "This description";
    Completions get "/health_generate" admin::engines::health_generate, "Lets one worker generate a token";
    Models get "/v1/models" admin::models::list, "The models served here, aliases included";
    Models get "/v1/models/{id}" admin::models::one, "One model";
    Models get "/get_model_info" admin::engines::model_info, "What a worker says of its model";
    Models get "/get_server_info" admin::engines::server_info, "What a worker says of itself";
    Responses get "/v1/responses/{id}" responses::stored, "A stored response, from the worker that holds it";
    Responses delete "/v1/responses/{id}" responses::stored, "Deletes a stored response";
    Responses get "/v1/responses/{id}/{below}" responses::stored_below, "The input items of a stored response";
    Responses post "/v1/responses/{id}/{below}" responses::stored_below, "Cancels a response";
    Caller get "/v1/limits" admin::limits::of_caller, "How the caller's own limits stand";
    Caller get "/v1/usage" admin::usage::of_caller, "What the caller's own tenant used, over all nodes";
    Admin get "/workers" admin::workers::list, "All workers, with state and load";
    Admin post "/workers" admin::workers::add, "Registers a worker";
    Admin get "/workers/{id}" admin::workers::one, "One worker";
    Admin put "/workers/{id}" admin::workers::replace, "Replaces a worker's specification";
    Admin patch "/workers/{id}" admin::workers::update, "Changes priority, cost, weight, labels, key or health settings";
    Admin delete "/workers/{id}" admin::workers::remove, "Drains a worker and then removes it";
    Admin post "/workers/{id}/drain" admin::workers::drain, "Sends a worker no more requests";
    Admin post "/flush_cache" admin::engines::flush_cache, "Empties the prefix cache of every worker";
    Admin get "/get_loads" admin::engines::loads, "The load of every worker, asked now";
    Admin post "/start_profile" admin::engines::start_profile, "Starts the profiler of workers";
    Admin post "/stop_profile" admin::engines::stop_profile, "Stops the profiler of workers";
    Admin get "/engine_metrics" admin::engines::metrics, "The metrics of all workers, labelled by worker";
    Admin get "/explain/{request_id}" admin::explain::explain, "Why a recent request went where it went";
    Admin get "/keys" admin::keys::list, "The keys of callers and operators, without the keys themselves";
    Admin post "/keys" admin::keys::add, "Makes a key and shows it this one time";
    Admin get "/keys/{id}" admin::keys::one, "One key";
    Admin patch "/keys/{id}" admin::keys::update, "Changes what a key may do";
    Admin delete "/keys/{id}" admin::keys::revoke, "Revokes a key on all nodes, for good";
    Admin post "/keys/{id}/rotate" admin::keys::rotate, "Makes another key for the same purpose; the old one goes on for a while";
    Admin get "/audit" admin::audit::list, "What operators did and tried to do";
    Admin get "/limits" admin::limits::of_all, "The limits in force, and how they stand for a tenant, key or model";
    Admin get "/usage" admin::usage::of_all, "What tenants used, over all nodes";
    Admin get "/mesh/status" admin::mesh::status, "The mesh in short: this node, the others, what they know";
    Admin get "/mesh/members" admin::mesh::members, "The nodes of the mesh";
    Admin get "/mesh/workers" admin::mesh::workers, "The workers, as the nodes together see them";
    Admin get "/mesh/digest" admin::mesh::digest, "A digest and the version vector of each plane";
    Admin get "/mesh/config" admin::mesh::config, "The settings that all nodes share";
    Admin get "/mesh/prefixes" admin::mesh::prefixes, "What workers' caches are known to hold, and from whom";
    Admin put "/mesh/config/{section}/{name}" admin::mesh::set_config, "Sets an alias, policy, sticky key or revocation on all nodes";
    Admin delete "/mesh/config/{section}/{name}" admin::mesh::delete_config, "Deletes a setting that all nodes share";
    Admin post "/mesh/drain" admin::mesh::drain, "Lets other nodes and load balancers send this node nothing more";
    Admin delete "/mesh/drain" admin::mesh::resume, "Takes a drain from the mesh back";
    Admin post "/mesh/leave" admin::mesh::leave, "Leaves the mesh; this node goes on alone";
}

/// Builds the router of the traffic port.
pub fn router(gateway: Arc<Gateway>) -> Router {
    let mut router = Router::new();
    for route in routes() {
        let mut handler = (route.handler)();
        let door = match route.access {
            Access::Open => None,
            Access::Serving(wanted) => Some(Door::Serving(wanted)),
            Access::Admin => Some(Door::Admin),
        };
        if let Some(door) = door {
            let gateway = gateway.clone();
            handler = handler.route_layer(axum::middleware::from_fn(move |request, next| {
                admin::guard(door, gateway.clone(), request, next)
            }));
        }
        router = router.route(route.path, handler);
    }
    let cors = cors(&gateway.config.cors_origins);
    let router = router.fallback(serve).method_not_allowed_fallback(wrong_method).with_state(gateway);
    match cors {
        Some(cors) => router.layer(cors),
        None => router,
    }
}

/// Lets pages of the given origins call. Without origins nothing is said, and browsers refuse by themselves.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    let values: Vec<HeaderValue> = origins.iter().filter_map(|origin| origin.parse().ok()).collect();
    let allowed = match values.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(values.iter().cloned()),
    };
    let headers = [
        header::CONTENT_TYPE,
        header::AUTHORIZATION,
        HeaderName::from_static("x-api-key"),
        HeaderName::from_static("x-goog-api-key"),
        HeaderName::from_static("anthropic-version"),
        HeaderName::from_static("anthropic-beta"),
        HeaderName::from_static("x-request-id"),
        HeaderName::from_static("x-smg-routing-key"),
    ];
    (!values.is_empty()).then(|| {
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
            .allow_headers(headers)
            .expose_headers([edge::X_REQUEST_ID, header::RETRY_AFTER])
            .max_age(Duration::from_secs(3_600))
    })
}

/// Serves the probe port until `stopped`: the open routes only.
pub async fn serve_probes(
    socket: TcpListener,
    gateway: Arc<Gateway>,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(socket, probe_router(gateway)).with_graceful_shutdown(stopped).await
}

/// The router of the probe port.
fn probe_router(gateway: Arc<Gateway>) -> Router {
    let mut router = Router::new();
    for route in routes().into_iter().filter(|route| route.access == Access::Open) {
        router = router.route(route.path, (route.handler)());
    }
    router.fallback(any(unknown)).with_state(gateway)
}

/// Everything that is no fixed route: the serving endpoints, with and without `/v1`.
async fn serve(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let Some(endpoint) = Endpoint::of_path(request.uri().path()) else {
        return unknown(State(gateway), request).await;
    };
    if request.method() != Method::POST {
        let mut refusal = wrong_method(State(gateway), request).await;
        refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        return refusal;
    }
    let (head, body) = request.into_parts();
    pipeline::serve(gateway, Received { endpoint, head, body }).await
}

async fn unknown(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let path: String = request.uri().path().chars().take(200).collect();
    let failure = Failure::new(FailureCode::RouteNotFound, format!("there is nothing at {path}"));
    refuse(&gateway, &request, &failure)
}

async fn wrong_method(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let message = format!("{} is not allowed here", request.method());
    refuse(&gateway, &request, &Failure::new(FailureCode::MethodNotAllowed, message))
}

/// Says no to a request that does not enter the pipeline.
pub(crate) fn refuse(gateway: &Gateway, request: &Request, failure: &Failure) -> Response {
    let current = gateway.settings();
    let names = &current.settings.request_id_headers;
    let (id, _) = edge::request_id(request.headers(), names, "req-", &*gateway.random);
    let code = failure.code;
    gateway
        .metrics
        .http_responses
        .with_label_values(&["other", crate::trail::status_text(code.status()).as_str(), code.as_str()])
        .inc();
    Refusal { family: reply::family_of_path(request.uri().path()), request_id: Some(&id), failure }.into_response()
}
