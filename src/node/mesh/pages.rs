//! What operators see of the mesh, as JSON.

use serde_json::{Map, Value, json};
use smg_base::WorkerId;
use smg_fleet::{Fleet, Path};
use smg_gateway::Standing;
use smg_mesh_proto::{Digest, Kind, Member, MemberState, NodeId, PlaneStatus, Status};

use super::known::{Facts, Known, Row};

/// All in short.
pub(crate) fn status(status: &Status, known: &Known) -> Value {
    let standing = known.standing();
    let count = |state: MemberState| status.members.iter().filter(|member| member.state == state).count();
    let name = status.members.iter().find(|member| member.is_self).map(|member| member.name.clone());
    json!({
        "name": name,
        "id": status.node.to_string(),
        "cluster": status.cluster,
        "standing": standing.as_str(),
        "joined": standing != Standing::Joining,
        "alone": standing == Standing::Alone,
        "stretched": status.stretched,
        "members": {
            "alive": count(MemberState::Alive),
            "suspect": count(MemberState::Suspect),
            "down": count(MemberState::Down),
            "left": count(MemberState::Left),
            "total": status.members.len(),
        },
        "workers": known.facts().rows.len(),
        "digest": digest(status.digest),
        "planes": status.planes.iter().map(plane).collect::<Vec<_>>(),
    })
}

/// The nodes, by name.
pub(crate) fn members(status: &Status, now: smg_base::Timestamp) -> Value {
    json!({ "members": status.members.iter().map(|one| member(one, now)).collect::<Vec<_>>() })
}

fn member(member: &Member, now: smg_base::Timestamp) -> Value {
    let notes = [
        (member.is_self, "this node"),
        (member.draining, "draining"),
        (member.doubted, "doubted"),
        (!member.is_self && !member.connected && member.state.is_alive(), "not connected"),
    ];
    let notes: Vec<&str> = notes.into_iter().filter(|(is_so, _)| *is_so).map(|(_, note)| note).collect();
    json!({
        "name": member.name,
        "id": member.node.to_string(),
        "state": member.state.as_str(),
        "address": member.address.to_string(),
        "traffic_url": member.traffic_url,
        "zone": member.zone,
        "region": member.region,
        "software": member.software,
        "boot": member.boot,
        "doubted": member.doubted,
        "draining": member.draining,
        "connected": member.connected,
        "rtt_ms": member.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
        "since_s": now.since(member.since).as_secs_f64().round(),
        "self": member.is_self,
        "notes": notes,
    })
}

/// Digests and version vectors.
pub(crate) fn digests(status: &Status, known: &Known) -> Value {
    let facts = known.facts();
    let lanes = |plane: &PlaneStatus| -> Vec<Value> {
        let lane = |lane: &smg_mesh_proto::LaneStatus| {
            json!({
                "writer": facts.name(lane.writer),
                "epoch": lane.epoch,
                "version": lane.version,
                "collected": lane.collected,
                "entries": lane.entries,
                "tombstones": lane.tombstones,
                "lag": lane.lag,
            })
        };
        plane.lanes.iter().map(lane).collect()
    };
    let planes = status.planes.iter().map(|plane| {
        let mut page = self::plane(plane);
        page["lanes"] = lanes(plane).into();
        page
    });
    json!({ "digest": digest(status.digest), "planes": planes.collect::<Vec<_>>() })
}

fn plane(plane: &PlaneStatus) -> Value {
    let sum = |of: fn(&smg_mesh_proto::LaneStatus) -> usize| plane.lanes.iter().map(of).sum::<usize>();
    json!({
        "kind": plane.kind.as_str(),
        "durable": Kind::is_durable(plane.kind),
        "digest": digest(plane.digest),
        "bytes": plane.bytes,
        "lanes": plane.lanes.len(),
        "entries": sum(|lane| lane.entries),
        "tombstones": sum(|lane| lane.tombstones),
        "lag": plane.lanes.iter().map(|lane| lane.lag).max().unwrap_or(0),
    })
}

fn digest(digest: Digest) -> String {
    format!("{:032x}", digest.0)
}

/// The workers as the nodes together see them, and how this node reaches them.
pub(crate) fn workers(known: &Known, fleet: &Fleet, now: smg_base::Timestamp) -> Value {
    let facts = known.facts();
    let snapshot = fleet.snapshot();
    let path = |worker: WorkerId| match snapshot.worker(worker).map(|there| there.path(now)) {
        Some(Some(Path::Direct)) => "direct".to_owned(),
        Some(Some(Path::Via(via))) => format!("via {}", facts.name(NodeId::from_u128(via.peer.0))),
        Some(None) => "none".to_owned(),
        None => "not taken".to_owned(),
    };
    let workers: Vec<Value> = facts.rows.iter().map(|(id, row)| worker(*id, row, &facts, path(*id))).collect();
    json!({ "workers": workers, "total": workers.len() })
}

fn worker(id: WorkerId, row: &Row, facts: &Facts, path: String) -> Value {
    let reach = facts.reach.get(&id);
    let name = |node: Option<NodeId>| node.map(|node| facts.name(node));
    let votes: Map<String, Value> = reach
        .into_iter()
        .flat_map(|reach| &reach.votes)
        .map(|(node, vote)| (facts.name(*node), vote.as_str().into()))
        .collect();
    json!({
        "id": id,
        "url": row.told.spec.url.as_str(),
        "scope": row.told.scope,
        "verdict": reach.map_or("unknown", |reach| reach.verdict.as_str()),
        "path": path,
        "votes": votes,
        "via": reach.map(|reach| reach.via.iter().map(|node| facts.name(*node)).collect::<Vec<_>>()),
        "home": name(reach.and_then(|reach| reach.home)),
        "standby": name(reach.and_then(|reach| reach.standby)),
        "probed_here": reach.is_some_and(|reach| reach.probed_here),
        "declared": row.declared,
        "assertions": row.assertions,
        "writer": facts.name(row.writer),
    })
}
