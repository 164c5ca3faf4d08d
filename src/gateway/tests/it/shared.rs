//! What all nodes of a cluster share.

use http::StatusCode;
use serde_json::json;
use smg_base::Secret;
use smg_gateway::{KeyHash, SharedSettings};
use smg_mock_worker::{Config, MockWorker};
use smg_routing::{Overrides, PolicyKind};

use crate::support::Node;

#[tokio::test]
async fn a_revoked_key_opens_nothing() {
    let engine = MockWorker::start(Config::default()).await.unwrap();
    let check = async |api_key: Option<&str>, expected: StatusCode| {
        let node = Node::new("n", |settings| {
            settings.api_key = api_key.map(Secret::new);
            settings.shared.revoked = [KeyHash::of("old")].into();
        });
        node.adopt(&engine);
        for name in ["x-api-key", "authorization"] {
            let key = if name == "authorization" { "Bearer old" } else { "old" };
            assert_eq!(node.chat(json!({}), &[(name, key)]).await.status(), StatusCode::UNAUTHORIZED);
            let key = key.replace("old", "new");
            assert_eq!(node.chat(json!({}), &[(name, &key)]).await.status(), expected, "{api_key:?}");
        }
    };
    check(None, StatusCode::OK).await;
    check(Some("old"), StatusCode::UNAUTHORIZED).await;
    check(Some("new"), StatusCode::OK).await;
}

#[tokio::test]
async fn a_shared_policy_and_a_shared_override_come_before_the_nodes_own() {
    let engines = [
        MockWorker::start(Config::default()).await.unwrap(),
        MockWorker::start(Config::default()).await.unwrap(),
        MockWorker::start(Config::default()).await.unwrap(),
    ];
    let node = Node::new("n", |_| {});
    let ids: Vec<_> = engines.iter().map(|engine| node.adopt(engine)).collect();
    let shared = SharedSettings {
        policies: [("demo".into(), PolicyKind::RoundRobin)].into_iter().collect(),
        sticky: Overrides::from_iter([("vip", ids[1])]),
        ..SharedSettings::default()
    };
    node.gateway.reconfigure(smg_gateway::Settings {
        shared,
        admin_access: smg_gateway::AdminAccess::Anyone,
        ..Default::default()
    });
    for _ in 0..6 {
        node.chat(json!({}), &[("x-smg-routing-key", "vip"), ("x-request-id", "vip")]).await;
    }
    let asked = |index: usize| engines[index].ledger().count(|entry| entry.method == "POST");
    assert_eq!([asked(0), asked(1), asked(2)], [0, 6, 0]);
    let told = node.explain("vip").await;
    assert_eq!(told["attempts"][0]["decision"]["reason"], "override");
    for _ in 0..6 {
        node.chat(json!({}), &[("x-request-id", "other")]).await;
    }
    assert_eq!([asked(0), asked(1), asked(2)], [2, 8, 2]);
    assert_eq!(node.explain("other").await["attempts"][0]["decision"]["policy"], "round_robin");
}
