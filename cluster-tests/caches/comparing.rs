//! The same conversations by different ways of choosing, in one run.

use super::{
    agents::{Form, Keys},
    figures::{Figures, HEAD, print},
    setting::{Mesh, Setting, Size, Tells, is_full},
};

/// One way.
struct Way {
    name: &'static str,
    nodes: usize,
    mesh: Mesh,
    tells: Tells,
    policy: &'static str,
    keys: Keys,
}

async fn played(size: &Size, form: Form, ways: &[Way]) -> Option<Vec<Figures>> {
    let mut all = Vec::new();
    println!(
        "{form:?}: {} engines, {} conversations of {} turns; caches of {:.0} % of {} tokens\n{HEAD}",
        size.engines,
        size.script.conversations,
        size.script.turns,
        size.room * 100.0,
        size.script.working_set_tokens()
    );
    for way in ways {
        let mut size = Size { nodes: way.nodes, ..size.clone() };
        size.script.form = form;
        size.script.keys = way.keys;
        let setting = Setting::start(601, &size, way.mesh, way.tells, way.policy).await?;
        let figures = setting.play(&size.script).await;
        print(way.name, &figures);
        assert_eq!((figures.unanswered, figures.failed_tries), (0, 0), "{}: {:?}", way.name, figures.reasons);
        all.push(figures);
    }
    Some(all)
}

/// Nodes that tell each other what engines hold are as good as one, and better than those that do not.
#[tokio::test]
async fn a_mesh_finds_caches_as_one_node_does() {
    let size = Size::chosen();
    let (nodes, mesh, tells, policy) = (size.nodes, Mesh::Joined, Tells::Yes, "cache_aware");
    let keys = Keys::Missing;
    let ways = [
        Way { name: "mesh, events", nodes, mesh, tells, policy, keys },
        Way { name: "one node, events", nodes: 1, mesh, tells, policy, keys },
        Way { name: "consistent hashing", nodes, mesh, tells: Tells::No, policy: "consistent_hashing", keys },
        Way { name: "no mesh, prediction", nodes, mesh: Mesh::Apart, tells: Tells::No, policy, keys },
        Way { name: "mesh, prediction", nodes, mesh, tells: Tells::No, policy, keys },
        Way { name: "no mesh, events at every node", nodes, mesh: Mesh::Apart, tells, policy, keys },
        Way {
            name: "consistent hashing, told the conversation",
            nodes,
            mesh,
            tells: Tells::No,
            policy: "consistent_hashing",
            keys: Keys::Given,
        },
    ];
    let count = if is_full() { ways.len() } else { 5 };
    let Some(all) = played(&size, Form::Tokens, &ways[..count]).await else { return };
    let [meshed, one, hashed, apart, predicted, ..] = &all[..] else { unreachable!() };
    assert!(meshed.hit_share() > hashed.hit_share() && meshed.first_event_mean < hashed.first_event_mean);
    if !is_full() {
        // Sixty follow-up turns tell shares only roughly: what is asked of them is asked of the full size.
        assert!(meshed.warm_share() > 2.0 * hashed.warm_share());
        assert!(predicted.warm_share() > hashed.warm_share());
        return;
    }
    assert!(meshed.warm_share() >= 0.93 && meshed.warm_share() > one.warm_share() - 0.02);
    assert!(meshed.hit_share() > apart.hit_share() && meshed.first_event_mean < apart.first_event_mean);
    assert!(predicted.hit_share() > 0.9 * meshed.hit_share());
}

/// The same where only text is known.
#[tokio::test]
async fn a_mesh_predicts_caches_of_chats() {
    let size = Size::chosen();
    let (nodes, tells, policy, keys) = (size.nodes, Tells::No, "cache_aware", Keys::Missing);
    let ways = [
        Way { name: "mesh, prediction", nodes, mesh: Mesh::Joined, tells, policy, keys },
        Way { name: "one node, prediction", nodes: 1, mesh: Mesh::Joined, tells, policy, keys },
        Way { name: "no mesh, prediction", nodes, mesh: Mesh::Apart, tells, policy, keys },
    ];
    let Some(all) = played(&size, Form::Chat, &ways).await else { return };
    let [meshed, one, apart] = &all[..] else { unreachable!() };
    let slack = if is_full() { 0.02 } else { 0.4 };
    assert!(meshed.warm_share() > one.warm_share() - slack);
    assert!(meshed.hit_share() > if is_full() { apart.hit_share() } else { apart.hit_share() - 0.15 });
}
