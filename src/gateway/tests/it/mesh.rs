//! The admin API of a node that is part of a mesh.

use std::sync::Arc;

use axum::body::Body;
use futures_util::future::BoxFuture;
use http::{Request, StatusCode};
use parking_lot::Mutex;
use serde_json::{Value, json};
use smg_base::{PeerId, WorkerId};
use smg_fleet::Worker;
use smg_gateway::{Cluster, ClusterError, Page, SharedKey, Standing};
use smg_mock_worker::{Config, MockWorker};

use crate::support::{Node, json_of};

/// A cluster that takes notes.
struct Notes {
    taken: Mutex<Vec<String>>,
    standing: Mutex<Standing>,
    refuses: Mutex<Option<ClusterError>>,
}

impl Notes {
    fn new() -> Arc<Self> {
        Arc::new(Self { taken: Mutex::default(), standing: Mutex::new(Standing::Joined), refuses: Mutex::default() })
    }

    fn take(&self, note: String) -> BoxFuture<'static, Result<(), ClusterError>> {
        let outcome = self.refuses.lock().map_or(Ok(()), Err);
        self.taken.lock().push(note);
        Box::pin(async move { outcome })
    }

    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut self.taken.lock())
    }
}

impl Cluster for Notes {
    fn standing(&self) -> Standing {
        *self.standing.lock()
    }

    fn added(&self, worker: Arc<Worker>) -> BoxFuture<'static, Result<(), ClusterError>> {
        self.take(format!("added {} {}", worker.spec.url, worker.spec.priority))
    }

    fn removed(&self, worker: WorkerId) -> BoxFuture<'static, Result<(), ClusterError>> {
        self.take(format!("removed {worker}"))
    }

    fn name(&self, peer: PeerId) -> Option<String> {
        (peer == node_of("there")).then(|| "there".to_owned())
    }

    fn peers(&self) -> Vec<PeerId> {
        vec![node_of("gone"), node_of("there")]
    }

    fn page(&self, page: Page) -> BoxFuture<'static, Value> {
        Box::pin(async move { json!(format!("{page:?}")) })
    }

    fn set_shared(&self, key: SharedKey, value: Option<Value>) -> BoxFuture<'static, Result<(), ClusterError>> {
        self.take(format!("{} {} {value:?}", key.section, key.name))
    }

    fn drain(&self) -> BoxFuture<'static, ()> {
        *self.standing.lock() = Standing::Draining;
        Box::pin(async {})
    }

    fn resume(&self) -> BoxFuture<'static, bool> {
        let mut standing = self.standing.lock();
        let was_draining = *standing == Standing::Draining;
        if was_draining {
            *standing = Standing::Joined;
        }
        Box::pin(async move { was_draining })
    }

    fn leave(&self) -> BoxFuture<'static, ()> {
        *self.standing.lock() = Standing::Left;
        Box::pin(async {})
    }
}

fn node_of(name: &str) -> PeerId {
    PeerId(smg_base::hash::stable128(name.as_bytes()))
}

fn node(notes: &Arc<Notes>) -> Node {
    Node::within("n", Some(notes.clone()), |_| {})
}

async fn ask(node: &Node, method: &str, path: &str, body: &str) -> (StatusCode, Value) {
    let request = Request::builder().method(method).uri(path).body(Body::from(body.to_owned())).unwrap();
    let answer = node.call(request).await;
    (answer.status(), json_of(answer).await)
}

#[tokio::test]
async fn every_page_is_served_and_only_in_a_mesh() {
    let notes = Notes::new();
    let (within, without) = (node(&notes), Node::new("n", |_| {}));
    for page in ["status", "members", "workers", "digest", "config"] {
        let path = format!("/mesh/{page}");
        let (status, answer) = ask(&within, "GET", &path, "").await;
        assert_eq!((status, answer.as_str().map(str::to_lowercase)), (StatusCode::OK, Some(page.to_owned())));
        assert_eq!(ask(&without, "GET", &path, "").await.0, StatusCode::NOT_FOUND, "{path}");
    }
    for (method, path) in [("POST", "/mesh/drain"), ("DELETE", "/mesh/drain"), ("POST", "/mesh/leave")] {
        assert_eq!(ask(&without, method, path, "").await.0, StatusCode::NOT_FOUND, "{method} {path}");
    }
}

#[tokio::test]
async fn workers_are_told_before_the_caller_is_and_refusals_change_nothing() {
    let notes = Notes::new();
    let node = node(&notes);
    let url = "http://10.0.0.1";
    let id = node.fleet.id_of(&url.parse().unwrap());
    let path = format!("/workers/{id}");
    let spec = |priority: u32| json!({"url": url, "priority": priority}).to_string();
    let is_there = || node.fleet.snapshot().worker(id).is_some();

    *notes.refuses.lock() = Some(ClusterError::Busy);
    let (status, _) = ask(&node, "POST", "/workers", &spec(1)).await;
    assert_eq!((status, is_there()), (StatusCode::SERVICE_UNAVAILABLE, false));
    *notes.refuses.lock() = None;
    assert_eq!(notes.taken(), [format!("added {url} 1")]);

    let check = async |method: &str, path: &str, body: &str, expected: &str| {
        let (status, answer) = ask(&node, method, path, body).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{method} {path}: {answer}");
        assert_eq!(notes.taken(), [expected], "{method} {path}");
    };
    check("POST", "/workers", &spec(1), &format!("added {url} 1")).await;
    check("PUT", &path, &spec(2), &format!("added {url} 2")).await;
    check("PATCH", &path, r#"{"priority":3}"#, &format!("added {url} 3")).await;

    *notes.refuses.lock() = Some(ClusterError::Leaving);
    let (status, _) = ask(&node, "DELETE", &path, "").await;
    let is_usable = node.fleet.snapshot().worker(id).unwrap().is_available(node.clock.now());
    assert_eq!((status, is_usable, notes.taken().len()), (StatusCode::SERVICE_UNAVAILABLE, true, 1));
    *notes.refuses.lock() = None;
    check("DELETE", &path, "", &format!("removed {id}")).await;
}

#[tokio::test]
async fn a_worker_of_another_machine_is_changed_by_its_id_alone() {
    let notes = Notes::new();
    let (here, there) = (node(&notes), Node::new("there", |_| {}));
    let url = "http://127.0.0.1:1";
    let id = there.fleet.id_of(&url.parse().unwrap());
    let spec = serde_json::from_value(json!({ "url": url })).unwrap();
    here.import(id, spec, &there);
    let path = format!("/workers/{id}");
    let (status, _) = ask(&here, "PUT", &path, &json!({"url": url, "priority": 9}).to_string()).await;
    assert_eq!((status, here.fleet.snapshot().workers().len()), (StatusCode::BAD_REQUEST, 1));
    assert_eq!(ask(&here, "PATCH", &path, r#"{"priority":9}"#).await.0, StatusCode::ACCEPTED);
    assert_eq!(here.fleet.snapshot().worker(id).unwrap().spec.priority, 9);
}

#[tokio::test]
async fn shared_settings_are_named_by_section_and_name() {
    let notes = Notes::new();
    let node = node(&notes);
    let check = async |method: &str, path: &str, body: &str, expected: StatusCode, note: &str| {
        let (status, answer) = ask(&node, method, path, body).await;
        assert_eq!(status, expected, "{method} {path}: {answer}");
        assert_eq!(notes.taken().join(","), note, "{method} {path}");
    };
    check("PUT", "/mesh/config/alias/a%2Fb", "\"m\"", StatusCode::OK, "alias a/b Some(String(\"m\"))").await;
    check("DELETE", "/mesh/config/alias/a%2Fb", "", StatusCode::OK, "alias a/b None").await;
    for body in ["", "m", "null"] {
        check("PUT", "/mesh/config/alias/a", body, StatusCode::BAD_REQUEST, "").await;
    }
    check("PUT", "/mesh/config/key/key_1", "{\"id\": \"key_1\"}", StatusCode::BAD_REQUEST, "").await;
    for (error, expected) in [
        (ClusterError::UnknownSection, StatusCode::NOT_FOUND),
        (ClusterError::Invalid("no"), StatusCode::BAD_REQUEST),
        (ClusterError::Revoked, StatusCode::BAD_REQUEST),
        (ClusterError::TooLarge, StatusCode::BAD_REQUEST),
        (ClusterError::Busy, StatusCode::SERVICE_UNAVAILABLE),
    ] {
        *notes.refuses.lock() = Some(error);
        check("DELETE", "/mesh/config/x/y", "", expected, "x y None").await;
    }
}

#[tokio::test]
async fn peers_are_called_by_their_names() {
    let engine = MockWorker::start(Config::default()).await.unwrap();
    let (here, there) = (node(&Notes::new()), Node::new("there", |_| {}));
    here.meet(&there);
    here.import(there.adopt(&engine), crate::support::spec(&engine), &there);
    let (_, listed) = ask(&here, "GET", "/workers", "").await;
    assert_eq!(listed["workers"][0]["via"], "there");
    assert_eq!(here.chat(json!({}), &[("x-request-id", "r")]).await.status(), StatusCode::OK);
    let told = here.explain("r").await;
    assert_eq!(told["attempts"][0]["decision"]["workers"][0]["path"], "via there", "{told}");
}

#[tokio::test]
async fn readiness_says_how_the_node_stands() {
    let engine = MockWorker::start(Config::default()).await.unwrap();
    let notes = Notes::new();
    let node = node(&notes);
    node.adopt(&engine);
    let check = async |standing: Standing, expected: StatusCode, reason: Option<&str>| {
        *notes.standing.lock() = standing;
        let (status, answer) = ask(&node, "GET", "/readyz", "").await;
        assert_eq!((status, answer["reason"].as_str()), (expected, reason), "{standing:?}");
        assert_eq!(answer["mesh"], standing.as_str());
    };
    check(Standing::Joining, StatusCode::SERVICE_UNAVAILABLE, Some("joining the mesh")).await;
    check(Standing::Joined, StatusCode::OK, None).await;
    check(Standing::Alone, StatusCode::OK, None).await;
    check(Standing::Draining, StatusCode::SERVICE_UNAVAILABLE, Some("draining")).await;
    check(Standing::Left, StatusCode::OK, None).await;
    for (path, standing) in [("/mesh/leave", Standing::Left), ("/mesh/drain", Standing::Draining)] {
        assert!(ask(&node, "POST", path, "").await.0.is_success());
        assert_eq!(*notes.standing.lock(), standing);
    }
    let (status, answer) = ask(&node, "DELETE", "/mesh/drain", "").await;
    assert_eq!((status, answer["status"].as_str()), (StatusCode::OK, Some("joined")));
    assert_eq!(
        ask(&node, "DELETE", "/mesh/drain", "").await.0,
        StatusCode::BAD_REQUEST,
        "there is nothing to take back"
    );
}

#[tokio::test]
async fn any_node_explains_any_request() {
    let engine = MockWorker::start(Config::default()).await.unwrap();
    let (here, there) = (node(&Notes::new()), Node::new("there", |_| {}));
    here.meet(&there);
    there.adopt(&engine);
    assert_eq!(there.chat(json!({}), &[("x-request-id", "r-1")]).await.status(), StatusCode::OK);
    let (status, told) = ask(&here, "GET", "/explain/r-1", "").await;
    assert_eq!((status, &told["answered_by"], &told["request_id"]), (StatusCode::OK, &json!("there"), &json!("r-1")));
    assert_eq!(told["attempts"][0]["decision"]["workers"][0]["path"], "direct");
    assert_eq!(ask(&here, "GET", "/explain/unknown", "").await.0, StatusCode::NOT_FOUND);
    // Who is asked asks nobody else, and who is in no mesh has nobody to ask.
    let alone = Node::new("alone", |_| {});
    assert_eq!(ask(&alone, "GET", "/explain/r-1", "").await.0, StatusCode::NOT_FOUND);
    assert_eq!(there.explain("r-1").await.get("answered_by"), None, "its own");
}

#[tokio::test]
async fn a_peer_knows_who_holds_a_response() {
    let engine = async || MockWorker::start(Config::default()).await.unwrap();
    let engines = [engine().await, engine().await];
    let (here, there) = (node(&Notes::new()), Node::new("there", |_| {}));
    here.meet(&there);
    for engine in &engines {
        let id = there.adopt(engine);
        here.import(id, crate::support::spec(engine), &there);
    }
    let respond = async |node: &Node, previous: Option<&str>, request_id: &str| {
        let body = json!({ "model": "demo", "input": "hello", "previous_response_id": previous });
        let request = crate::support::post("/v1/responses", &body, &[("x-request-id", request_id)]);
        let answer = node.call(request).await;
        assert_eq!(answer.status(), StatusCode::OK);
        json_of(answer).await["id"].as_str().expect("an id").to_owned()
    };
    let first = respond(&there, None, "first").await;
    let holder = there.explain("first").await["attempts"][0]["worker"].clone();
    for request_id in ["second", "third"] {
        respond(&here, Some(&first), request_id).await;
        let follow_up = here.explain(request_id).await;
        assert_eq!(follow_up["attempts"][0]["decision"]["reason"], "target", "{follow_up}");
        assert_eq!(follow_up["attempts"][0]["worker"], holder, "{follow_up}");
    }
    let count = |result: &str| here.metric(&format!("smg_router_affinity_lookups_total{{result=\"{result}\"}}"));
    assert_eq!((count("peer"), count("hit")), (1.0, 1.0), "it is asked for once");
}
