//! The looks at the whole cluster: what must hold at every moment, and what must come to hold after the faults.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use smg_base::{Timestamp, WorkerId};
use smg_mesh_proto::{
    Digest, Kind, LaneStatus, Ledger, Member, MemberState, NodeId, PlaneStatus, Status, Verdict, Vote, WorkerRow,
};

use crate::{
    faults::revoked_key,
    judge::{Expected, Promise},
    plan::{DiskFate, Harm},
    process::worker,
    reached::Mark,
    workload::config_key,
    world::World,
};

/// How long a worker may be thought down by a node that finds it well: news are gathered before they are told.
const VERDICT_LAG: Duration = Duration::from_millis(1_500);
/// How long ago the last finding of sickness must be for a verdict of down to be nobody's.
const SICK_LAG: Duration = Duration::from_secs(15);
/// How long a worker must be left alone before its absence everywhere counts as known.
const SETTLED: Duration = Duration::from_secs(5);
/// Within this after the last fault the cluster must be whole.
pub(crate) const WHOLE_WITHIN: Duration = Duration::from_secs(20);
/// How long nodes may differ after they were all equal.
const UNEQUAL_MAX: Duration = Duration::from_secs(3);
/// Within this a second node of a name must be refused.
const TWIN_WITHIN: Duration = Duration::from_secs(5);
/// Frames a node may send in a second, per other node: more is a storm.
const FRAMES_PER_PEER_MAX: u64 = 400;
/// Tombstones that may stay in a lane when all is quiet, if it has not more live entries.
const TOMBSTONES_MAX: usize = 1_024;

/// A version vector: writers, epochs and versions.
type Vector = Vec<(NodeId, u64, u64)>;

/// What one process looks like.
pub(crate) struct View {
    pub(crate) place: usize,
    pub(crate) status: Status,
    pub(crate) workers: BTreeMap<WorkerId, WorkerRow>,
}

impl World {
    /// The processes that have joined and are not standing still.
    pub(crate) fn views(&self) -> Vec<View> {
        (0..self.plan.nodes)
            .filter(|place| !self.network.standings[*place].is_paused)
            .filter_map(|place| {
                let process = self.places[place].process.as_ref().filter(|process| process.joined.is_some())?;
                let mesh = process.subject.mesh();
                Some(View { place, status: mesh.status(), workers: mesh.workers() })
            })
            .collect()
    }

    /// Looks at the whole cluster.
    pub(crate) fn look(&mut self) {
        if !self.is_judged {
            return;
        }
        let views = self.views();
        self.note_marks(&views);
        self.check_forward(&views);
        self.check_same_digests(&views);
        self.check_workers(&views);
        self.check_revoked(&views);
        self.check_verdicts(&views);
        self.check_twins();
        self.check_bounds(&views);
        self.check_whole(&views);
    }

    fn note_marks(&mut self, views: &[View]) {
        for view in views {
            if view.status.stretched {
                self.reached.mark(Mark::Stretched);
            }
            if view.status.planes.iter().flat_map(|plane| &plane.lanes).any(|lane| lane.collected > 0) {
                self.reached.mark(Mark::TombstonesCollected);
            }
            for plane in view.status.planes.iter().filter(|plane| plane.kind.is_durable()) {
                if plane.lanes.iter().any(|lane| lane.epoch > 1) {
                    self.reached.mark(Mark::OwnLaneRaised);
                }
                let writers: Vec<NodeId> = plane.lanes.iter().map(|lane| lane.writer).collect();
                let gone = view.status.members.iter().any(|member| {
                    member.state == MemberState::Down && plane.kind == Kind::Workers && !writers.contains(&member.node)
                });
                if gone && self.plan.adopt_after_ms < 60_000 {
                    self.reached.mark(Mark::Adopted);
                }
            }
        }
    }

    /// A version vector never goes back.
    fn check_forward(&mut self, views: &[View]) {
        for view in views {
            let key = (view.place, self.places[view.place].generation);
            let before = self.judge.heads.remove(&key).unwrap_or_default();
            let lanes = view.status.planes.iter().flat_map(|plane| plane.lanes.iter().map(|lane| (plane.kind, lane)));
            let heads: BTreeMap<_, _> =
                lanes.map(|(kind, lane)| ((kind, lane.writer), (lane.epoch, lane.version))).collect();
            for (lane, head) in &heads {
                if let Some(old) = before.get(lane).filter(|old| *old > head) {
                    let what = format!("n{}: {lane:?} went from {old:?} back to {head:?}", view.place);
                    self.judge.blame(self.now, Promise::Forward, what);
                }
            }
            self.judge.heads.insert(key, heads);
        }
    }

    /// Two nodes with the same version vector have the same digest.
    fn check_same_digests(&mut self, views: &[View]) {
        // A writer that forgot what it had said, or another of its name, says something else under the same number, until all have
        // met and know.
        let settled = Timestamp::ORIGIN + self.plan.chaos() + SETTLED;
        let forgets = |harm: &Harm| matches!(harm, Harm::Crash { disk: DiskFate::Old | DiskFate::Wiped, .. });
        if self.now < settled && self.plan.has(|harm| forgets(harm) || matches!(harm, Harm::Twin { .. })) {
            return;
        }
        let mut digests: BTreeMap<(Kind, Vector), (usize, Digest)> = BTreeMap::new();
        for view in views {
            for plane in &view.status.planes {
                let mut vector: Vec<_> =
                    plane.lanes.iter().map(|lane| (lane.writer, lane.epoch, lane.version)).collect();
                vector.sort_unstable();
                let first = *digests.entry((plane.kind, vector)).or_insert((view.place, plane.digest));
                if first.1 != plane.digest {
                    let what = format!("n{} and n{} differ in {}", first.0, view.place, plane.kind.as_str());
                    self.judge.blame(self.now, Promise::SameDigest, what);
                }
            }
        }
    }

    /// No acknowledged registration is lost, and no removed worker comes back.
    fn check_workers(&mut self, views: &[View]) {
        let everybody = views.len() == self.plan.nodes;
        for number in 0..self.plan.workers {
            let id = worker(number);
            let is_waited_for = self.judge.waiting.values().any(|waiting| waiting.is_about(number));
            let history = &mut self.judge.workers[number];
            let mut wrong = None;
            for view in views {
                let process = (view.place, self.places[view.place].generation);
                let is_there = view.workers.contains_key(&id);
                match history.expected {
                    Expected::Open | Expected::Gone => {}
                    Expected::Present if is_there => {
                        let shows = view.workers.get(&id).is_some_and(|row| row.spec == history.spec);
                        if shows {
                            history.shown.insert(process);
                        }
                    }
                    Expected::Present => {
                        if history.shown.contains(&process) {
                            wrong = Some((Promise::Registered, format!("n{} lost worker {number}", view.place)));
                        }
                    }
                    Expected::Absent { since } => {
                        let started = self.places[view.place].process.as_ref().map(|process| process.started);
                        if is_there && started.is_some_and(|started| started < since) {
                            let what = format!("worker {number} is back at n{}, removed {since:?}", view.place);
                            wrong = Some((Promise::Removed, what));
                        }
                    }
                }
            }
            let is_settled = everybody && !is_waited_for && self.now.since(history.touched) >= SETTLED;
            let is_absent = views.iter().all(|view| !view.workers.contains_key(&id));
            let may_settle = matches!(history.expected, Expected::Open | Expected::Gone);
            if may_settle && history.against > 0 && is_settled && is_absent {
                history.expected = Expected::Absent { since: self.now };
                self.reached.mark(Mark::RemovedStably);
            }
            if let Some((promise, what)) = wrong {
                self.judge.blame(self.now, promise, what);
            }
        }
    }

    fn check_revoked(&mut self, views: &[View]) {
        let mut wrong = Vec::new();
        for (key, shown) in &mut self.judge.revoked {
            for view in views {
                let Some(process) = self.places[view.place].process.as_ref() else { continue };
                let generation = (view.place, self.places[view.place].generation);
                if process.subject.mesh().config_value(&revoked_key(*key)).is_some() {
                    shown.insert(generation);
                } else if shown.contains(&generation) {
                    wrong.push(format!("n{} forgot the revocation of {key}", view.place));
                }
            }
        }
        wrong.into_iter().for_each(|what| self.judge.blame(self.now, Promise::Revoked, what));
    }

    /// A worker that some node of a side finds well is not down on that side, unless others who reach it find it sick.
    fn check_verdicts(&mut self, views: &[View]) {
        let now = self.now;
        let mut wrong = Vec::new();
        for (&(place, _, number), since) in &self.judge.wrongly_down {
            let Some(process) = self.places[place].process.as_ref() else { continue };
            let (truth, found) = self.places[place].truths[number];
            let is_own = process.votes.get(&number) == Some(&Some(Vote::Up)) && truth == Vote::Up;
            let for_long = now.since(*since) >= VERDICT_LAG && now.since(found) >= VERDICT_LAG;
            let for_long = for_long && !self.network.standings[place].is_paused && self.is_awake(place);
            if is_own && for_long && self.is_free_of_sickness(number) {
                wrong.push(format!("n{place} finds worker {number} well and holds it for down"));
            }
        }
        let calm: Vec<&View> = views.iter().filter(|view| self.is_long_calm(view.place)).collect();
        for number in 0..self.plan.workers {
            let well = |view: &&&View| {
                let (truth, found) = self.places[view.place].truths[number];
                let process = self.places[view.place].process.as_ref();
                let votes = process.is_some_and(|process| process.votes.contains_key(&number));
                truth == Vote::Up && votes && now.since(found) >= SICK_LAG
            };
            // A worker that has just come has not been voted on everywhere.
            let is_known = now.since(self.judge.workers[number].touched) >= SETTLED && self.is_free_of_sickness(number);
            let Some(witness) = calm.iter().find(well).filter(|_| is_known) else { continue };
            let is_met = |view: &&&View| {
                let node = self.places[witness.place].id;
                view.status.members.iter().any(|member| member.node == node && member.connected)
            };
            let with_worker = calm.iter().filter(|view| view.workers.contains_key(&worker(number)));
            for view in with_worker.filter(is_met) {
                let Some(process) = self.places[view.place].process.as_ref() else { continue };
                let reach = process.subject.mesh().reach(worker(number));
                if reach.verdict == Verdict::Down {
                    let (one, other) = (view.place, witness.place);
                    wrong.push(format!("n{one} holds worker {number} for down, which n{other} finds well: {reach:?}"));
                }
            }
        }
        wrong.into_iter().for_each(|what| self.judge.blame(now, Promise::HealthyUp, what));
    }

    /// Whether a process has not just woken: it needs a moment to say what it found.
    fn is_awake(&self, place: usize) -> bool {
        let calm = self.places[place].calm_since;
        calm.is_some_and(|since| self.now.since(since) >= VERDICT_LAG)
    }

    fn is_free_of_sickness(&self, number: usize) -> bool {
        let is_sick = (0..self.plan.nodes).any(|place| self.places[place].truths[number].0 == Vote::Sick);
        let lately = self.judge.workers[number].sick.is_some_and(|at| self.now.since(at) < SICK_LAG);
        !is_sick && !lately
    }

    /// A second node of a name is refused, where nothing else is wrong.
    fn check_twins(&mut self) {
        for twin in self.plan.nodes..self.places.len() {
            let node = self.places[twin].node;
            let Some(process) = self.places[twin].process.as_ref() else { continue };
            let begun = process.started;
            let first = self.places[node].process.as_ref().and_then(|process| process.joined);
            // With nobody to ask it never meets the others.
            let has_seeds = self.plan.seeds[node].iter().any(|seed| *seed != node);
            let is_older = has_seeds && first.is_some_and(|joined| begun.since(joined) >= SICK_LAG);
            let since = begun - SICK_LAG;
            if is_older && self.now.since(begun) >= TWIN_WITHIN && self.is_peaceful(since) {
                self.judge.blame(self.now, Promise::OneOfAName, format!("a second n{node} has not been refused"));
            }
        }
    }

    /// Whether nothing but second nodes has been wrong since a moment.
    fn is_peaceful(&self, since: Timestamp) -> bool {
        let since_ms = since.as_nanos() / 1_000_000;
        let now_ms = self.now.as_nanos() / 1_000_000;
        let others = self.plan.faults.iter().filter(|fault| !matches!(fault.what, Harm::Twin { .. }));
        let mut lately = others.filter(|fault| fault.at_ms <= now_ms && fault.end_ms() >= since_ms);
        lately.next().is_none() && self.plan.starts_ms.iter().all(|start| *start <= since_ms)
    }

    fn check_bounds(&mut self, views: &[View]) {
        let peers = self.places.len() as u64;
        let second = self.now.as_nanos() / 1_000_000_000;
        for place in 0..self.plan.nodes {
            let traffic = self.network.traffic[place];
            let before = self.judge.frames.insert(place, traffic.frames).unwrap_or(0);
            if traffic.frames - before > peers * FRAMES_PER_PEER_MAX {
                let what = format!("n{place} sent {} frames in a second", traffic.frames - before);
                self.judge.blame(self.now, Promise::Bounded, what);
            }
            if traffic.dials > (second + 5) * peers * 10 {
                self.judge.blame(self.now, Promise::Bounded, format!("n{place} dialled {} times", traffic.dials));
            }
            let open = self.network.sides(place).len() as u64;
            if open > 3 * peers {
                self.judge.blame(self.now, Promise::Bounded, format!("n{place} has {open} connections"));
            }
        }
        if self.now < Timestamp::ORIGIN + self.plan.chaos() + WHOLE_WITHIN {
            return;
        }
        for view in views {
            let mut lanes = view.status.planes.iter().flat_map(|plane| &plane.lanes);
            // Others learn what was collected with the writer's next change.
            let own = self.places[view.place].id;
            let is_full = |lane: &&LaneStatus| lane.writer == own && lane.tombstones > TOMBSTONES_MAX.max(lane.entries);
            if let Some(lane) = lanes.find(is_full) {
                let what = format!("n{} keeps {} tombstones", view.place, lane.tombstones);
                self.judge.blame(self.now, Promise::Bounded, what);
            }
        }
    }

    /// After the last fault all nodes soon know each other and the same, and stay so.
    fn check_whole(&mut self, views: &[View]) {
        let healed = Timestamp::ORIGIN + self.plan.chaos();
        if self.now < healed {
            return;
        }
        match self.is_whole(views) {
            Ok(()) => {
                self.judge.whole_since.get_or_insert(self.now);
                self.judge.broken_since = None;
            }
            Err(why) => {
                // Nodes tidy up after the last operation too, and what one has just written the others do not have yet.
                let broken = *self.judge.broken_since.get_or_insert(self.now);
                if let Some(since) = self.judge.whole_since {
                    if self.now.since(broken) >= UNEQUAL_MAX {
                        let what = format!("whole since {since:?}, and not for {UNEQUAL_MAX:?}: {why}");
                        self.judge.blame(self.now, Promise::Heals, what);
                    }
                } else if self.now.since(healed) > WHOLE_WITHIN {
                    let what = format!("not whole {:?} after the last fault: {why}", self.now.since(healed));
                    self.judge.blame(self.now, Promise::Heals, what);
                }
                self.judge.not_whole = why;
            }
        }
    }

    /// Whether all nodes see each other alive, under the same boot, and hold the same; or what is amiss.
    pub(crate) fn is_whole(&self, views: &[View]) -> Result<(), String> {
        if views.len() != self.plan.nodes {
            let missing = (0..self.plan.nodes).find(|place| !views.iter().any(|view| view.place == *place));
            let missing = missing.unwrap_or(0);
            return Err(format!("n{missing} has not joined: {}", self.describe(missing)));
        }
        for view in views {
            for other in views {
                let node = self.places[other.place].id;
                let member = view.status.members.iter().find(|member| member.node == node);
                let Some(member) = member else {
                    return Err(format!("n{} does not know n{}", view.place, other.place));
                };
                let own = other.status.members.iter().find(|member| member.node == node).map(|member| member.boot);
                if member.state != MemberState::Alive || Some(member.boot) != own {
                    let (state, boot) = (member.state, member.boot);
                    return Err(format!("n{} sees n{} {state:?} boot {boot}, not {own:?}", view.place, other.place));
                }
                if !member.is_self && !member.connected {
                    return Err(format!("n{} has no connection to n{}", view.place, other.place));
                }
            }
            let alive = view.status.members.iter().filter(|member| member.state.is_alive()).count();
            if alive != self.plan.nodes {
                return Err(format!("n{} sees {alive} alive", view.place));
            }
        }
        same_planes(views)
    }

    /// What a process knows, in short.
    fn describe(&self, place: usize) -> String {
        let Some(process) = self.places[place].process.as_ref() else { return "does not run".to_owned() };
        let status = process.subject.mesh().status();
        let member = |member: &Arc<Member>| {
            let connected = if member.connected { "connected" } else { "-" };
            format!("{:?} {:?} boot {} {connected}", member.node, member.state, member.boot)
        };
        let members: Vec<String> = status.members.iter().map(member).collect();
        let plane = |plane: &PlaneStatus| {
            let lanes = plane.lanes.iter().map(|lane| (lane.writer, lane.epoch, lane.version));
            format!("{} {:?}", plane.kind.as_str(), lanes.collect::<Vec<_>>())
        };
        let planes: Vec<String> = status.planes.iter().map(plane).collect();
        format!("{:?}: {}; {}", self.places[place].id, members.join(", "), planes.join(", "))
    }

    /// What must hold when the run is over.
    pub(crate) fn check_final(&mut self) {
        let views = self.views();
        if let Err(why) = self.is_whole(&views) {
            self.judge.blame(self.now, Promise::Heals, format!("at the end: {why}"));
            return;
        }
        let mut wrong = Vec::new();
        for view in &views {
            for (number, history) in self.judge.workers.iter().enumerate() {
                let is_there = view.workers.contains_key(&worker(number));
                match history.expected {
                    Expected::Present if !is_there => {
                        wrong.push((Promise::Registered, format!("n{} lacks worker {number}", view.place)));
                    }
                    Expected::Absent { .. } | Expected::Gone if is_there => {
                        wrong.push((Promise::Removed, format!("worker {number} is back at n{}", view.place)));
                    }
                    _ => {}
                }
            }
            for number in (0..self.plan.workers).filter(|number| view.workers.contains_key(&worker(*number))) {
                wrong.extend(self.final_reach(view, number).map(|what| (Promise::Final, what)));
            }
            for key in self.judge.revoked.keys() {
                let process = self.places[view.place].process.as_ref().expect("a view has a process");
                if process.subject.mesh().config_value(&revoked_key(*key)).is_none() {
                    wrong.push((Promise::Revoked, format!("n{} lacks the revocation of {key}", view.place)));
                }
            }
            wrong.extend(self.final_member(view).map(|what| (Promise::Final, what)));
            wrong.extend(self.final_config(view).map(|what| (Promise::Final, what)));
        }
        wrong.into_iter().for_each(|(promise, what)| self.judge.blame(self.now, promise, what));
    }

    /// The verdict follows from what every node finds, and the load from what every other node said.
    fn final_reach(&self, view: &View, number: usize) -> Option<String> {
        let mesh = self.places[view.place].process.as_ref()?.subject.mesh();
        let reach = mesh.reach(worker(number));
        let truths: Vec<Vote> = (0..self.plan.nodes).map(|place| self.places[place].truths[number].0).collect();
        let count = |vote: Vote| truths.iter().filter(|truth| **truth == vote).count();
        let (up, sick) = (count(Vote::Up), count(Vote::Sick));
        let is_down = up == 0 || 2 * sick > up + sick;
        let expected = if is_down { Verdict::Down } else { Verdict::Up };
        if reach.verdict != expected {
            return Some(format!(
                "n{}: worker {number} is {:?}, not {expected:?}: {reach:?}",
                view.place, reach.verdict
            ));
        }
        let mut via: Vec<NodeId> = reach.via;
        via.sort_unstable();
        let others = (0..self.plan.nodes).filter(|place| *place != view.place && truths[*place] == Vote::Up);
        let mut expected: Vec<NodeId> = others.map(|place| self.places[place].id).collect();
        expected.sort_unstable();
        if via != expected {
            return Some(format!("n{}: worker {number} is reached through {via:?}, not {expected:?}", view.place));
        }
        let load = mesh.peer_load(worker(number));
        let others = (0..self.plan.nodes).filter(|place| *place != view.place);
        let ledgers = others.filter_map(|place| self.places[place].process.as_ref()?.ledgers.get(&number).copied());
        let expected = ledgers.fold(Ledger::default(), Ledger::plus);
        (load != expected).then(|| format!("n{}: load of worker {number} is {load:?}, not {expected:?}", view.place))
    }

    fn final_member(&self, view: &View) -> Option<String> {
        view.status.members.iter().find_map(|member| {
            let place = (0..self.plan.nodes).find(|place| self.places[*place].id == member.node)?;
            let draining = self.places[place].process.as_ref()?.draining;
            (member.draining != draining)
                .then(|| format!("n{}: n{place} drains: {}, not {draining}", view.place, member.draining))
        })
    }

    /// A value is one that was asked for, and of those of one writer none before the last that was acknowledged.
    fn final_config(&self, view: &View) -> Option<String> {
        let mesh = self.places[view.place].process.as_ref()?.subject.mesh();
        self.judge.config.iter().find_map(|(key, writes)| {
            let value = mesh.config_value(&config_key(*key));
            let value = value.map(|value| String::from_utf8_lossy(&value).into_owned());
            let is_single = writes.windows(2).all(|pair| pair[0].place == pair[1].place);
            let last = writes.iter().rposition(|write| write.is_acknowledged);
            let first = if is_single && !self.judge.has_lost_disks { last } else { None };
            let matches = |asked: Option<u32>| asked.map(|asked| asked.to_string()) == value;
            let is_asked = writes[first.unwrap_or(0)..].iter().any(|write| matches(write.value));
            let is_unset = value.is_none() && first.is_none() && (last.is_none() || self.judge.has_lost_disks);
            (!is_asked && !is_unset).then(|| format!("n{}: key {key} is {value:?}, of {writes:?}", view.place))
        })
    }
}

/// Whether all nodes hold the same; or which plane of whom differs.
pub(crate) fn same_planes(views: &[View]) -> Result<(), String> {
    let Some((first, rest)) = views.split_first() else { return Ok(()) };
    for view in rest {
        for (one, other) in first.status.planes.iter().zip(&view.status.planes) {
            let vector = |plane: &PlaneStatus| {
                let mut lanes: Vec<_> =
                    plane.lanes.iter().map(|lane| (lane.writer, lane.epoch, lane.version)).collect();
                lanes.sort_unstable();
                lanes
            };
            let (mine, theirs) = (vector(one), vector(other));
            if one.kind != other.kind || mine != theirs || one.digest != other.digest {
                let kind = one.kind.as_str();
                return Err(format!("n{} and n{}: {kind} {mine:?} / {theirs:?}", first.place, view.place));
            }
        }
        if first.status.digest != view.status.digest {
            return Err(format!("n{} and n{} differ in the digest of all planes", first.place, view.place));
        }
    }
    Ok(())
}
