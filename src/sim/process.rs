//! A place where a process runs: its disk, its clock, the process of the moment, and the little of a gateway that the mesh needs
//! around it: it votes on the workers it sees, and asserts those that its flags declare.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use smg_base::{Timestamp, WorkerId};
use smg_mesh_proto::{Batch, Config, Input, Ledger, Limits, MemberState, NodeId, Timers, Vote};

use crate::{
    agenda::Frame,
    disk::Disk,
    network::Side,
    plan::Plan,
    subject::{Defect, Subject},
};

/// A machine.
pub(crate) struct Place {
    /// The node whose name the process has.
    pub(crate) node: usize,
    pub(crate) name: String,
    pub(crate) id: NodeId,
    pub(crate) address: SocketAddr,
    pub(crate) disk: Disk,
    /// How the disk was now and then, oldest first.
    pub(crate) kept: VecDeque<(Timestamp, Disk)>,
    pub(crate) process: Option<Process>,
    pub(crate) generation: u32,
    /// Since when nothing is wrong with it and its links; none while something is.
    pub(crate) calm_since: Option<Timestamp>,
    /// Frames in the socket of a process that stands still.
    pub(crate) unread: Vec<(Side, Frame)>,
    /// Whether it was ever told to leave.
    pub(crate) has_left: bool,
    /// How its node finds each worker, and since when.
    pub(crate) truths: Vec<(Vote, Timestamp)>,
}

/// How many old states of a disk are kept, and how far apart.
const KEPT_MAX: usize = 4;
pub(crate) const KEEP_EVERY: Duration = Duration::from_secs(8);

impl Place {
    pub(crate) fn new(number: usize, node: usize) -> Self {
        let name = name(node);
        let octets = (number as u32 + 1).to_be_bytes();
        let ip = Ipv4Addr::new(10, octets[1], octets[2], octets[3]);
        Self {
            node,
            id: NodeId::of(&name),
            name,
            address: SocketAddr::new(IpAddr::V4(ip), 39_527),
            disk: Disk::default(),
            kept: VecDeque::new(),
            process: None,
            generation: 0,
            calm_since: Some(Timestamp::ORIGIN),
            unread: Vec::new(),
            has_left: false,
            truths: Vec::new(),
        }
    }

    pub(crate) fn keep_disk(&mut self, now: Timestamp) {
        if self.kept.back().is_none_or(|(at, _)| now.since(*at) >= KEEP_EVERY) {
            self.kept.push_back((now, self.disk.clone()));
        }
        if self.kept.len() > KEPT_MAX {
            self.kept.pop_front();
        }
    }

    /// The disk as it was a while ago.
    pub(crate) fn old_disk(&self) -> Disk {
        self.kept.front().map(|(_, disk)| disk.clone()).unwrap_or_default()
    }
}

/// The name of a node.
pub(crate) fn name(node: usize) -> String {
    format!("n{node}")
}

/// The worker of this number.
pub(crate) fn worker(number: usize) -> WorkerId {
    WorkerId::of(&format!("http://10.200.0.{number}:8000"), None)
}

/// A running process.
pub(crate) struct Process {
    pub(crate) subject: Subject,
    pub(crate) clock: LocalClock,
    pub(crate) started: Timestamp,
    /// When it said that it has joined.
    pub(crate) joined: Option<Timestamp>,
    pub(crate) is_alone: bool,
    /// What came while it stood still.
    pub(crate) backlog: Vec<Input>,
    pub(crate) tick_at: Option<Timestamp>,
    pub(crate) batches: VecDeque<Batch>,
    pub(crate) disk_free: Timestamp,
    /// Workers it sees, and how it voted on them.
    pub(crate) votes: BTreeMap<usize, Option<Vote>>,
    pub(crate) ledgers: BTreeMap<usize, Ledger>,
    pub(crate) draining: bool,
    /// What it last said of each member.
    pub(crate) members: BTreeMap<NodeId, MemberState>,
}

impl Process {
    pub(crate) fn local(&self, now: Timestamp) -> Timestamp {
        self.clock.read(now)
    }
}

/// A process's own monotonic clock: begins anywhere, and runs a little wrong. Wall clocks have no say in the mesh, so that there
/// is none to step: this is all the time a node is given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalClock {
    origin: Timestamp,
    started: Timestamp,
    ppm: i64,
}

impl LocalClock {
    pub(crate) fn new(origin: Timestamp, started: Timestamp, ppm: i64) -> Self {
        Self { origin, started, ppm }
    }

    pub(crate) fn read(&self, now: Timestamp) -> Timestamp {
        let elapsed = nanos(now.since(self.started)).cast_signed();
        self.origin + Duration::from_nanos((elapsed + elapsed / 1_000_000 * self.ppm).max(0).cast_unsigned())
    }

    /// The moment at which the clock shows this, or has just done so.
    pub(crate) fn when(&self, reading: Timestamp) -> Timestamp {
        let shown = nanos(reading.since(self.origin)).cast_signed();
        let elapsed = shown - shown / 1_000_000 * self.ppm;
        // Never early: one part in a million of the correction is lost above.
        self.started + Duration::from_nanos(elapsed.max(0).cast_unsigned()) + Duration::from_micros(1)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What a process at a place is started with.
pub(crate) fn config(plan: &Plan, place: &Place, instance: u64) -> Config {
    let timers = Timers { adopt_after: Duration::from_millis(plan.adopt_after_ms), ..plan.pace.profile().timers() };
    Config {
        name: place.name.clone(),
        cluster: "sim".to_owned(),
        advertise: place.address,
        traffic_url: format!("http://{}:30000", place.address.ip()),
        zone: format!("z{}", place.node % 2),
        region: String::new(),
        software: "sim".to_owned(),
        instance,
        seed: instance,
        timers,
        limits: Limits::default(),
    }
}

/// The process that a place starts now.
pub(crate) fn start(
    place: &Place,
    config: Config,
    clock: LocalClock,
    now: Timestamp,
    defect: Option<Defect>,
) -> Process {
    Process {
        subject: Subject::new(config, place.disk.restored(), clock.read(now), defect),
        clock,
        started: now,
        joined: None,
        is_alone: false,
        backlog: Vec::new(),
        tick_at: None,
        batches: VecDeque::new(),
        disk_free: now,
        votes: BTreeMap::new(),
        ledgers: BTreeMap::new(),
        draining: false,
        members: BTreeMap::new(),
    }
}
