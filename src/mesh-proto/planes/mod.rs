//! What the lanes mean. Each plane is a pure fold over lanes, kept up to date change by change; what follows from it is computed
//! when it is asked for, or when news of it is due.

mod config;
mod health;
mod load;
mod workers;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use smg_base::{WorkerId, hash};

use crate::{
    Event, Kind, NodeId, NodeInfo, Reach,
    lanes::{Change, Claim, Claimed, Lanes, Retired, claim},
    wire::decode_value,
};

pub(crate) use config::{ConfigPlane, is_revocation};
pub(crate) use health::HealthPlane;
pub(crate) use load::{LoadKey, LoadPlane};
pub(crate) use workers::{Removal, WorkersPlane};

/// The key of the one entry of a lane of [`Kind::Node`].
pub(crate) const INFO_KEY: &[u8] = b"i";

/// The bytes of a worker's id where it is a key.
pub(crate) fn worker_key(worker: WorkerId) -> Bytes {
    Bytes::copy_from_slice(&worker.as_u128().to_le_bytes())
}

/// The worker of such a key.
pub(crate) fn worker_of(key: &[u8]) -> Option<WorkerId> {
    Some(WorkerId::from_u128(u128::from_le_bytes(key.try_into().ok()?)))
}

/// What SWIM thinks of a member, as far as its word counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alive {
    /// It counts.
    Yes,
    /// It does not.
    No,
}

/// Where an entry stands: in whose lane, and whose word it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Whose lane it is in.
    pub(crate) holder: NodeId,
    /// Who said it first.
    pub(crate) author: NodeId,
}

/// All folds of one node.
pub(crate) struct Planes {
    me: NodeId,
    alive: BTreeSet<NodeId>,
    pub(crate) workers: WorkersPlane,
    pub(crate) health: HealthPlane,
    pub(crate) load: LoadPlane,
    pub(crate) config: ConfigPlane,
    infos: BTreeMap<NodeId, NodeInfo>,
    /// Which lanes are retired, and who says so.
    retired: BTreeMap<(NodeId, Kind), BTreeMap<NodeId, Retired>>,
    news: News,
}

/// What is to be told, each thing once.
#[derive(Debug, Default)]
struct News {
    workers: BTreeSet<WorkerId>,
    reach: BTreeSet<WorkerId>,
    load: BTreeSet<WorkerId>,
    engines: BTreeSet<WorkerId>,
    config: BTreeSet<String>,
    infos: BTreeSet<NodeId>,
    entries: BTreeMap<(Kind, NodeId, Bytes), Option<Bytes>>,
    retired: BTreeSet<(NodeId, Kind)>,
    told_reach: BTreeMap<WorkerId, u64>,
    told_load: BTreeMap<WorkerId, u64>,
    told_engines: BTreeMap<WorkerId, u64>,
}

impl Planes {
    /// The folds of the node `me` over no lanes at all.
    pub(crate) fn new(me: NodeId) -> Self {
        Self {
            me,
            alive: BTreeSet::from([me]),
            workers: WorkersPlane::default(),
            health: HealthPlane::default(),
            load: LoadPlane::default(),
            config: ConfigPlane::default(),
            infos: BTreeMap::new(),
            retired: BTreeMap::new(),
            news: News::default(),
        }
    }

    /// Whose word counts.
    pub(crate) fn alive(&self) -> &BTreeSet<NodeId> {
        &self.alive
    }

    /// Takes a change of a lane in.
    pub(crate) fn change(&mut self, holder: NodeId, kind: Kind, change: &Change) {
        if !kind.is_durable() {
            return self.change_of(Place { holder, author: holder }, kind, change);
        }
        match claim(holder, &change.key) {
            Some(Claim::Entry(Claimed { author, key })) => {
                let change = Change { key, old: change.old.clone(), new: change.new.clone() };
                self.change_of(Place { holder, author }, kind, &change);
            }
            Some(Claim::Retired(node)) => {
                let said = self.retired.entry((node, kind)).or_default();
                match change.new.as_deref().and_then(decode_value::<Retired>) {
                    Some(retired) => said.insert(holder, retired),
                    None => said.remove(&holder),
                };
                if said.is_empty() {
                    self.retired.remove(&(node, kind));
                }
                self.news.retired.insert((node, kind));
            }
            None => {}
        }
    }

    fn change_of(&mut self, place: Place, kind: Kind, change: &Change) {
        match kind {
            Kind::Node if *change.key == *INFO_KEY => {
                match change.new.as_deref().and_then(decode_value) {
                    Some(info) => self.infos.insert(place.holder, info),
                    None => self.infos.remove(&place.holder),
                };
                self.news.infos.insert(place.holder);
            }
            Kind::Node => {}
            Kind::Workers => self.news.workers.extend(self.workers.change(place, change)),
            Kind::Config => self.news.config.extend(self.config.change(place, change)),
            Kind::Health => {
                if let Some(worker) = self.health.change(place.holder, change) {
                    self.news.reach.insert(worker);
                    self.news.engines.insert(worker);
                }
            }
            Kind::Load => match self.load.change(place.holder, change) {
                Some(LoadKey::Ledger(worker)) if place.holder != self.me => {
                    self.news.load.insert(worker);
                }
                Some(LoadKey::Engine(worker)) => {
                    self.news.engines.insert(worker);
                }
                _ => {}
            },
            Kind::Prefixes | Kind::Limits | Kind::Budgets => {
                if kind.is_durable() || place.holder != self.me {
                    let key = (kind, place.author, change.key.clone());
                    self.news.entries.insert(key, change.new.clone());
                }
            }
        }
    }

    /// A node's word begins to count, or no longer does.
    pub(crate) fn set_alive(&mut self, node: NodeId, alive: Alive, lanes: &Lanes) {
        let changed = match alive {
            Alive::Yes => self.alive.insert(node),
            Alive::No => self.alive.remove(&node),
        };
        if !changed {
            return;
        }
        // Who probes what depends on who is there, so every worker that anybody speaks of may stand differently.
        self.news.reach.extend(self.health.workers());
        self.news.reach.extend(self.workers.ids());
        self.news.engines.extend(self.load.engines());
        if let Some(lane) = lanes.lane(node, Kind::Load) {
            let keys = lane.live_from(&[]).filter_map(|(key, _)| LoadKey::of(key));
            self.news.load.extend(keys.map(|key| key.worker()));
        }
    }

    /// What a node says of itself.
    pub(crate) fn info(&self, node: NodeId) -> Option<&NodeInfo> {
        self.infos.get(&node)
    }

    /// How a worker stands with the nodes.
    pub(crate) fn reach(&self, worker: WorkerId) -> Reach {
        self.health.reach(self.me, worker, &self.alive)
    }

    /// The worker is to be told of, even if nothing changed.
    pub(crate) fn tell_worker(&mut self, worker: WorkerId) {
        self.workers.forget_told(worker);
        self.news.workers.insert(worker);
    }

    /// What all notes about the retirement of a lane come to.
    pub(crate) fn retired(&self, node: NodeId, kind: Kind) -> Option<Retired> {
        let said = self.retired.get(&(node, kind))?.values();
        // The newest lane and the newest run may be known to different nodes.
        said.copied().reduce(|a, b| Retired { boot: a.boot.max(b.boot), ..a.max(b) })
    }

    /// The lanes about whose retirement the word changed since this was last asked.
    pub(crate) fn take_retired(&mut self) -> BTreeSet<(NodeId, Kind)> {
        std::mem::take(&mut self.news.retired)
    }

    /// The nodes that say something new of themselves, since this was last asked.
    pub(crate) fn take_infos(&mut self) -> BTreeSet<NodeId> {
        std::mem::take(&mut self.news.infos)
    }

    /// The workers of whose assertions there is news.
    pub(crate) fn touched_workers(&self) -> Vec<WorkerId> {
        self.news.workers.iter().copied().collect()
    }

    /// Everything there is to tell.
    pub(crate) fn take_news(&mut self, out: &mut Vec<Event>) {
        for key in std::mem::take(&mut self.news.config) {
            let value = self.config.value(&key);
            out.push(Event::Config { key, value });
        }
        for worker in std::mem::take(&mut self.news.workers) {
            out.extend(self.workers.news(worker));
            self.news.reach.insert(worker);
        }
        for worker in std::mem::take(&mut self.news.reach) {
            self.tell_reach(worker, out);
        }
        for worker in std::mem::take(&mut self.news.load) {
            let ledger = self.load.others(self.me, worker, &self.alive);
            let print = hash::mix(u64::from(ledger.requests) << 32 | u64::from(ledger.decoding), ledger.pending_tokens);
            if self.news.told_load.insert(worker, print) != Some(print) {
                out.push(Event::PeerLoad { worker, ledger });
            }
        }
        for worker in std::mem::take(&mut self.news.engines) {
            self.tell_engine(worker, out);
        }
        for ((kind, writer, key), value) in std::mem::take(&mut self.news.entries) {
            out.push(Event::Entry { writer, kind, key, value });
        }
    }

    fn tell_reach(&mut self, worker: WorkerId, out: &mut Vec<Event>) {
        let reach = self.reach(worker);
        let known = !reach.votes.is_empty() || self.workers.is_present(worker);
        let print = fingerprint(&reach);
        let told = self.news.told_reach.get(&worker).copied();
        if known {
            self.news.told_reach.insert(worker, print);
        } else {
            self.news.told_reach.remove(&worker);
        }
        if told != Some(print) && (known || told.is_some()) {
            self.news.engines.insert(worker);
            out.push(Event::Reach { worker, reach });
        }
    }

    fn tell_engine(&mut self, worker: WorkerId, out: &mut Vec<Event>) {
        let home = self.health.home(worker, &self.alive).filter(|home| *home != self.me);
        let figures = home.and_then(|home| self.load.engine(home, worker));
        let told = self.news.told_engines.get(&worker).copied();
        match figures {
            Some(figures) => {
                let first = u64::from(figures.running) << 32 | u64::from(figures.waiting);
                let second = u64::from(figures.foreign) << 32 | u64::from(figures.kv_usage.to_bits());
                let rate = u64::from(figures.generation_tokens_per_second.to_bits());
                let print = hash::mix(hash::mix(first, second), rate);
                if told != Some(print) {
                    self.news.told_engines.insert(worker, print);
                    out.push(Event::Engine { worker, figures: Some(figures) });
                }
            }
            None if told.is_some() => {
                self.news.told_engines.remove(&worker);
                out.push(Event::Engine { worker, figures: None });
            }
            None => {}
        }
    }
}

fn fingerprint(reach: &Reach) -> u64 {
    let Reach { verdict, via, votes, home, standby, probed_here } = reach;
    let mut print = hash::mix(*verdict as u64, u64::from(*probed_here));
    let mut add = |node: Option<NodeId>, what: u64| {
        print = hash::mix(print, hash::mix(node.map_or(0, |node| node.score(1)), what));
    };
    via.iter().for_each(|node| add(Some(*node), 1));
    votes.iter().for_each(|(node, vote)| add(Some(*node), 2 + *vote as u64));
    add(*home, 9);
    add(*standby, 10);
    print
}

#[cfg(test)]
mod tests {
    //! The folds: what they say follows from the lanes alone, not from the way the lanes came.

    use std::collections::BTreeSet;

    use bytes::Bytes;
    use crdts::CvRDT;
    use proptest::prelude::*;
    use smg_base::WorkerId;

    use super::{Alive, LoadKey, Planes, Removal, health::verdict, worker_key};
    use crate::{
        ConfigValue, Dot, Event, Kind, Ledger, NodeId, Verdict, Vote, WorkerAdd,
        lanes::{Change, Lanes, WorkersKey, adopted, owned},
        wire::encode_value,
    };

    fn worker(number: u8) -> WorkerId {
        WorkerId::of(&format!("http://w{number}"), None)
    }

    fn node(number: u8) -> NodeId {
        NodeId::of(&format!("n{number}"))
    }

    /// One thing that a node may say, or take back.
    #[derive(Clone, Debug)]
    struct Word {
        writer: u8,
        kind: Kind,
        key: Bytes,
        value: Option<Bytes>,
    }

    fn word() -> impl Strategy<Value = Word> {
        (0..4_u8, 0..6_u8, 0..4_u8, 0..4_u8, any::<bool>(), any::<bool>()).prop_map(
            |(writer, what, about, number, theirs, gone)| {
                let dot = Dot::fresh(node(number), u64::from(about), 1);
                let own = |key: Bytes| if theirs { adopted(node(number), &key) } else { owned(&key) };
                let add = WorkerAdd { worker: worker(about).as_u128(), spec: vec![number], lamport: u64::from(writer) };
                let removal = Removal { worker: worker(about).as_u128(), authors: vec![node(number)] };
                let config = ConfigValue { lamport: u64::from(number), value: (number > 1).then(|| vec![writer]) };
                let ledger = Ledger { requests: u32::from(number), decoding: 0, pending_tokens: 1 };
                let votes = [Vote::Up, Vote::Sick, Vote::Unreachable];
                let (kind, key, value) = match what {
                    0 => (Kind::Workers, own(WorkersKey::Add(dot).bytes()), encode_value(&add)),
                    1 => (Kind::Workers, own(WorkersKey::Remove(dot).bytes()), encode_value(&removal)),
                    2 => (Kind::Config, own(Bytes::from(format!("alias/{about}"))), encode_value(&config)),
                    3 => (Kind::Config, own(Bytes::from(format!("revoked/{about}"))), encode_value(&config)),
                    4 => (Kind::Health, worker_key(worker(about)), encode_value(&votes[usize::from(number % 3)])),
                    _ => (Kind::Load, LoadKey::Ledger(worker(about)).bytes(), encode_value(&ledger)),
                };
                Word { writer, kind, key, value: (!gone).then_some(value) }
            },
        )
    }

    /// Everything that the folds say.
    fn reading(planes: &Planes) -> String {
        let about = |number: u8| {
            let worker = worker(number);
            let keys = [format!("alias/{number}"), format!("revoked/{number}")];
            let values = keys.map(|key| planes.config.value(&key));
            (
                planes.workers.row(worker),
                planes.reach(worker),
                planes.load.others(node(0), worker, planes.alive()),
                values,
            )
        };
        format!("{:?} {:?}", [0, 1, 2, 3].map(about), planes.config.keys())
    }

    /// The folds of some lanes from nothing.
    fn fold(lanes: &Lanes, alive: &[NodeId]) -> Planes {
        let mut planes = Planes::new(node(0));
        for node in alive {
            planes.set_alive(*node, Alive::Yes, lanes);
        }
        for kind in Kind::ALL {
            for (writer, lane) in lanes.of_kind(kind) {
                for (key, value) in lane.live_from(&[]) {
                    planes.change(writer, kind, &Change { key: key.clone(), old: None, new: Some(value.clone()) });
                }
            }
        }
        planes
    }

    fn copy(lanes: &Lanes) -> Lanes {
        let mut copy = Lanes::default();
        copy.merge_from(lanes);
        copy
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Change by change or from nothing, by one way or another: nodes that know the same say the same.
        #[test]
        fn folds_follow_from_the_lanes_alone(
            words in prop::collection::vec(word(), 1..80),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 3),
        ) {
            let alive = [node(1), node(2)];
            let mut lanes = Lanes::default();
            let mut planes = Planes::new(node(0));
            let mut seen = Vec::new();
            for Word { writer, kind, key, value } in words {
                let change = lanes.set(node(writer), kind, 1, key, value);
                planes.change(node(writer), kind, &change);
                seen.push(copy(&lanes));
            }
            for node in alive {
                planes.set_alive(node, Alive::Yes, &lanes);
            }
            prop_assert_eq!(reading(&planes), reading(&fold(&lanes, &alive)));
            // Three nodes know different pasts and learn from each other in different orders, some of it twice.
            let [a, b, c] = [0, 1, 2].map(|at| cuts[at].get(&seen));
            let by = |order: [&Lanes; 4]| {
                let mut known = Lanes::default();
                for lanes in order {
                    known.merge(copy(lanes));
                }
                (known.root(), reading(&fold(&known, &alive)))
            };
            prop_assert_eq!(by([a, b, c, a]), by([c, b, b, a]));
            prop_assert_eq!(by([a, b, c, &lanes]), by([&lanes, a, c, b]));
        }
    }

    #[test]
    fn verdicts_need_a_majority_of_those_who_reach_the_worker() {
        let check = |votes: &str, expected: Verdict| {
            let votes = votes.chars().map(|vote| match vote {
                'u' => Vote::Up,
                's' => Vote::Sick,
                _ => Vote::Unreachable,
            });
            assert_eq!(verdict(votes), expected);
        };
        check("", Verdict::Unknown);
        check("u", Verdict::Up);
        check("s", Verdict::Down);
        check("-", Verdict::Down);
        check("us", Verdict::Up);
        check("ss", Verdict::Down);
        check("uss", Verdict::Down);
        check("uuss", Verdict::Up);
        check("usssu", Verdict::Down);
        check("u-----", Verdict::Up);
        check("us----", Verdict::Up);
    }

    #[test]
    fn five_alive_nodes_probe_a_worker() {
        let alive: BTreeSet<NodeId> = (0..16).map(node).collect();
        for number in 0..20 {
            let probers = alive.iter().filter(|me| {
                let mut planes = Planes::new(**me);
                alive.iter().for_each(|node| planes.set_alive(*node, Alive::Yes, &Lanes::default()));
                planes.reach(worker(number)).probed_here
            });
            assert_eq!(probers.count(), 5);
        }
    }

    #[test]
    fn news_is_told_once() {
        let mut planes = Planes::new(node(0));
        let news = |planes: &mut Planes, value: Option<Bytes>, old: Option<Bytes>| {
            planes.change(node(1), Kind::Config, &Change { key: owned(b"alias/a"), old, new: value });
            let mut out = Vec::new();
            planes.take_news(&mut out);
            out
        };
        let value = |text: &str| Some(encode_value(&ConfigValue { lamport: 1, value: Some(text.as_bytes().to_vec()) }));
        let told = news(&mut planes, value("x"), None);
        assert_eq!(told, [Event::Config { key: "alias/a".to_owned(), value: Some(Bytes::from_static(b"x")) }]);
        let mut out = Vec::new();
        planes.take_news(&mut out);
        assert_eq!(out, []);
    }
}
