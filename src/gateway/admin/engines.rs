//! What is asked of the engines themselves: one of them, or all at once.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde_json::{Value, json};
use smg_fleet::{EngineLoad, Offer, Path, Worker};
use smg_infer::{Failure, FailureCode};
use smg_upstream::{Outbound, OutboundBody, admin, load};
use tokio::time::timeout;

use super::Answer;
use crate::{access::Guest, app::Gateway, edge};

/// Workers asked at the same time.
const FAN_OUT: usize = 64;

/// Largest answer of one worker to a question of this kind.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// How long one worker may take over each of these.
const ASK_PATIENCE: Duration = Duration::from_secs(30);
const LOAD_PATIENCE: Duration = Duration::from_secs(5);
const FLUSH_PATIENCE: Duration = Duration::from_secs(45);
const PROFILE_PATIENCE: Duration = Duration::from_secs(630);

/// Lets the least loaded worker that can generate a token.
pub(crate) async fn health_generate(
    State(gateway): State<Arc<Gateway>>,
    Extension(guest): Extension<Guest>,
    headers: HeaderMap,
) -> Response {
    ask_one(&gateway, &guest, headers, &["/health_generate", "/health"]).await
}

/// What a worker says of its model.
pub(crate) async fn model_info(
    State(gateway): State<Arc<Gateway>>,
    Extension(guest): Extension<Guest>,
    headers: HeaderMap,
) -> Response {
    ask_one(&gateway, &guest, headers, &["/get_model_info", "/model_info"]).await
}

/// What a worker says of itself.
pub(crate) async fn server_info(
    State(gateway): State<Arc<Gateway>>,
    Extension(guest): Extension<Guest>,
    headers: HeaderMap,
) -> Response {
    ask_one(&gateway, &guest, headers, &["/get_server_info", "/server_info"]).await
}

/// Passes a question on to one worker that offers a path to it.
async fn ask_one(gateway: &Gateway, guest: &Guest, mut headers: HeaderMap, paths: &[&'static str]) -> Response {
    edge::to_worker(&mut headers, guest.credentials);
    if let Some(header) = &gateway.settings().settings.tenant_header {
        headers.remove(&header.name);
    }
    headers.remove(header::CONTENT_TYPE);
    let now = gateway.now();
    let snapshot = gateway.fleet.snapshot().clone();
    let available = snapshot.workers().iter().filter(|worker| worker.is_available(now));
    let offering = available.filter_map(|worker| Some((worker, offered(worker, paths)?)));
    let Some((worker, path)) = offering.min_by_key(|(worker, _)| worker.state.load.in_flight()) else {
        let failure = if snapshot.workers().is_empty() {
            Failure::new(FailureCode::NoWorkers, "no worker is registered")
        } else {
            Failure::new(FailureCode::NoAvailableWorkers, format!("no worker that offers {} can be used now", paths[0]))
        };
        return Answer::from(failure.retry_after(Duration::from_secs(2))).into_response();
    };
    match ask(gateway, worker, Outbound { headers, ..Outbound::get(path) }, ASK_PATIENCE).await {
        Ok((status, mut headers, body)) => {
            edge::to_client(&mut headers);
            headers.remove(header::CONTENT_LENGTH);
            (status, headers, body).into_response()
        }
        Err(failure) => Answer::from(failure).into_response(),
    }
}

/// The first of the paths the worker has, or may have.
fn offered(worker: &Worker, paths: &[&'static str]) -> Option<&'static str> {
    let says = |wanted: Offer| paths.iter().copied().find(|path| worker.offers(path) == wanted);
    says(Offer::Yes).or_else(|| says(Offer::Unknown))
}

async fn ask(
    gateway: &Gateway,
    worker: &Worker,
    outbound: Outbound,
    patience: Duration,
) -> Result<(StatusCode, HeaderMap, Bytes), Failure> {
    let asked = async {
        let path = worker.path(gateway.now()).unwrap_or(Path::Direct);
        let (head, body) = gateway.upstream.send_on(path, worker, outbound).await?.into_parts();
        let whole = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = whole
            .map_err(|_| Failure::new(FailureCode::UpstreamCut, "the worker's answer broke off or is too large"))?;
        Ok((head.status, head.headers, body.to_bytes()))
    };
    timeout(patience, asked)
        .await
        .unwrap_or_else(|_| Err(Failure::new(FailureCode::UpstreamTimeout, "the worker does not answer")))
}

/// Asks all workers something, a bounded number at a time; the answers come in the workers' order.
async fn ask_all<T, F>(gateway: &Gateway, question: impl Fn(Arc<Worker>) -> F) -> Vec<(Arc<Worker>, T)>
where
    F: Future<Output = T>,
{
    let workers = gateway.fleet.snapshot().workers().to_vec();
    stream::iter(workers)
        .map(|worker| {
            let asked = question(worker.clone());
            async move { (worker, asked.await) }
        })
        .buffered(FAN_OUT)
        .collect()
        .await
}

/// The load of each worker, asked now. `load` is the tokens in its KV cache, −1 where that is unknown.
pub(crate) async fn loads(State(gateway): State<Arc<Gateway>>) -> Answer {
    let asked = ask_all(&gateway, |worker| {
        let gateway = gateway.clone();
        async move { timeout(LOAD_PATIENCE, load::poll(&gateway.upstream, &worker)).await.ok()?.ok() }
    })
    .await;
    let workers: Vec<Value> = asked.iter().map(|(worker, load)| load_of(worker, load.as_ref())).collect();
    Answer::ok(&json!({ "workers": workers }))
}

fn load_of(worker: &Worker, load: Option<&EngineLoad>) -> Value {
    let url = worker.spec.url.as_str();
    let Some(load) = load else {
        return json!({ "worker": url, "load": -1 });
    };
    let used = worker.kv_capacity_tokens().map_or(-1, |capacity| {
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a share of a token count")]
        let used = (f64::from(load.kv_usage) * capacity as f64) as i64;
        used
    });
    json!({
        "worker": url,
        "load": used,
        "details": {
            "num_running_reqs": load.running,
            "num_waiting_reqs": load.waiting,
            "token_usage": load.kv_usage,
            "gen_throughput": load.generation_tokens_per_second,
            "max_total_num_tokens": worker.kv_capacity_tokens(),
        }
    })
}

/// Empties the prefix caches.
pub(crate) async fn flush_cache(State(gateway): State<Arc<Gateway>>) -> Answer {
    let asked = ask_all(&gateway, |worker| {
        let gateway = gateway.clone();
        async move { in_time(FLUSH_PATIENCE, admin::flush_cache(&gateway.upstream, &worker)).await }
    })
    .await;
    for (worker, flushed) in &asked {
        if flushed.is_ok() {
            gateway.forget_worker(worker.id);
        }
    }
    Summary::of(&asked, "workers_flushed", "flushed").answer()
}

/// Starts profilers. The body is passed on; its `url` picks one worker.
pub(crate) async fn start_profile(State(gateway): State<Arc<Gateway>>, body: Bytes) -> Answer {
    profile(&gateway, "/start_profile", body).await
}

/// Stops profilers.
pub(crate) async fn stop_profile(State(gateway): State<Arc<Gateway>>, body: Bytes) -> Answer {
    profile(&gateway, "/stop_profile", body).await
}

async fn profile(gateway: &Arc<Gateway>, path: &'static str, body: Bytes) -> Answer {
    let mut settings = match read_settings(&body) {
        Ok(settings) => settings,
        Err(failure) => return failure.into(),
    };
    let only = settings.remove("url").and_then(|url| url.as_str().map(str::to_owned));
    let body = if settings.is_empty() { Bytes::new() } else { Value::from(settings).to_string().into() };
    let asked = ask_all(gateway, |worker| {
        let (gateway, body) = (gateway.clone(), body.clone());
        let wanted = only.as_deref().is_none_or(|url| url == worker.spec.url.as_str());
        async move {
            if !wanted {
                return None;
            }
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
            let body = OutboundBody::Full(body);
            let outbound = Outbound { method: Method::POST, path_and_query: path.into(), headers, body };
            Some(ask(&gateway, &worker, outbound, PROFILE_PATIENCE).await.and_then(expect_success))
        }
    })
    .await;
    let asked: Vec<_> = asked.into_iter().filter_map(|(worker, result)| Some((worker, result?))).collect();
    if asked.is_empty() {
        return Failure::new(FailureCode::NotFound, "there is no such worker").into();
    }
    Summary::of(&asked, "workers_profiled", "told").answer()
}

fn read_settings(body: &Bytes) -> Result<serde_json::Map<String, Value>, Failure> {
    if body.is_empty() {
        return Ok(serde_json::Map::new());
    }
    serde_json::from_slice(body)
        .map_err(|error| Failure::new(FailureCode::InvalidRequest, format!("the body is not as expected: {error}")))
}

fn expect_success((status, _, _): (StatusCode, HeaderMap, Bytes)) -> Result<(), Failure> {
    if status.is_success() {
        return Ok(());
    }
    Err(Failure::new(FailureCode::UpstreamStatus, format!("the worker answered with status {}", status.as_u16())))
}

async fn in_time(patience: Duration, asked: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    timeout(patience, asked)
        .await
        .unwrap_or_else(|_| Err(Failure::new(FailureCode::UpstreamTimeout, "the worker does not answer")))
}

/// What came of asking all workers to do something.
struct Summary {
    done: Vec<String>,
    failed: Vec<Value>,
    count_name: &'static str,
    verb: &'static str,
}

impl Summary {
    fn of(asked: &[(Arc<Worker>, Result<(), Failure>)], count_name: &'static str, verb: &'static str) -> Self {
        let mut summary = Self { done: Vec::new(), failed: Vec::new(), count_name, verb };
        for (worker, result) in asked {
            match result {
                Ok(()) => summary.done.push(worker.spec.url.to_string()),
                Err(failure) => {
                    summary.failed.push(json!({ "worker": worker.spec.url.as_str(), "error": failure.message }));
                }
            }
        }
        summary
    }

    /// 200 if all did, 206 if some did not, as in the reference gateway.
    fn answer(self) -> Answer {
        let total = self.done.len() + self.failed.len();
        let whole = self.failed.is_empty();
        let mut body = json!({
            "status": if whole { "success" } else { "partial_success" },
            "message": format!("{} of {total} workers {}", self.done.len(), self.verb),
            "total_http_workers": total,
            "total_grpc_workers": 0,
            "total_zmq_workers_skipped": 0,
            "total_workers": total,
        });
        body[self.count_name] = self.done.len().into();
        if !whole {
            body["successful"] = self.done.into();
            body["failed"] = self.failed.into();
        }
        Answer::json(if whole { StatusCode::OK } else { StatusCode::PARTIAL_CONTENT }, &body)
    }
}

/// The metrics of all workers in one text, each line labelled with its worker.
pub(crate) async fn metrics(State(gateway): State<Arc<Gateway>>) -> Response {
    let asked = ask_all(&gateway, |worker| {
        let gateway = gateway.clone();
        async move { ask(&gateway, &worker, Outbound::get("/metrics"), LOAD_PATIENCE).await.ok() }
    })
    .await;
    let mut merged = Merged::default();
    for (worker, answer) in &asked {
        if let Some((StatusCode::OK, _, body)) = answer {
            merged.add(worker.spec.url.as_str(), &String::from_utf8_lossy(body));
        }
    }
    if merged.families.is_empty() {
        let failure = Failure::new(FailureCode::NoAvailableWorkers, "no worker showed metrics");
        return Answer::from(failure).into_response();
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], merged.text()).into_response()
}

/// Metrics of several workers, grouped by family, because a family may appear once only in the text format.
#[derive(Default)]
struct Merged {
    families: std::collections::BTreeMap<String, Family>,
}

#[derive(Default)]
struct Family {
    comments: Vec<String>,
    samples: Vec<String>,
}

impl Merged {
    fn add(&mut self, worker: &str, text: &str) {
        let mut current = String::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.split(' ');
                let kind = words.next().unwrap_or_default();
                let Some(name) = words.next().filter(|_| matches!(kind, "HELP" | "TYPE")) else { continue };
                name.clone_into(&mut current);
                let family = self.families.entry(current.clone()).or_default();
                let prefix = format!("# {kind} ");
                if !family.comments.iter().any(|known| known.starts_with(&prefix)) {
                    family.comments.push(line.to_owned());
                }
                continue;
            }
            let name_end = line.find(['{', ' ']).unwrap_or(line.len());
            let name = &line[..name_end];
            let family =
                if name.starts_with(current.as_str()) && !current.is_empty() { current.as_str() } else { name };
            self.families.entry(family.to_owned()).or_default().samples.push(labelled(line, name_end, worker));
        }
    }

    fn text(self) -> String {
        let mut text = String::new();
        for family in self.families.into_values() {
            for line in family.comments.iter().chain(&family.samples) {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }
}

fn labelled(line: &str, name_end: usize, worker: &str) -> String {
    let (name, rest) = line.split_at(name_end);
    match rest.strip_prefix('{') {
        Some(labels) if labels.starts_with('}') => format!("{name}{{worker_addr=\"{worker}\"{labels}"),
        Some(labels) => format!("{name}{{worker_addr=\"{worker}\",{labels}"),
        None => format!("{name}{{worker_addr=\"{worker}\"}}{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_of_several_workers_are_merged_under_one_head() {
        let mut merged = Merged::default();
        let text = "# HELP a_total What\n# TYPE a_total counter\na_total{x=\"1\"} 2\na_total 3\n";
        merged.add("http://a", text);
        merged.add("http://b", text);
        assert_eq!(
            merged.text(),
            "# HELP a_total What\n# TYPE a_total counter\n\
             a_total{worker_addr=\"http://a\",x=\"1\"} 2\na_total{worker_addr=\"http://a\"} 3\n\
             a_total{worker_addr=\"http://b\",x=\"1\"} 2\na_total{worker_addr=\"http://b\"} 3\n"
        );
    }
}
