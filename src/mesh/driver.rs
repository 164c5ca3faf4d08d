//! The loop that drives the state machine of the mesh: what comes in is fed to it, what comes out is done.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem::{Discriminant, discriminant},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use parking_lot::Mutex;
use smg_base::{Clock, Timestamp};
use smg_mesh_proto::{
    CloseCode, ConnectionId, Direction, Event, Input, NodeId, Op, Output, Status, Ticket, WriteError,
};
use smg_runtime::{Phase, Receiver, Sender, Shutdown, TaskKind, Tasks, channel, metrics::Registrar};
use tokio::{
    sync::oneshot,
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{
    Config, DialError, Discover, Relayed,
    discover::Follower,
    endpoint::{Admitted, Endpoint, Peer, Purpose, close_code},
    journal::Writer,
    link::{self, Link},
    metrics::Metrics,
    outbox::{Mailbox, Outbox},
    relay::{self, Pool},
};

/// What connections and dials have brought and waits for the loop. Frames are at most 256 KiB.
const INBOUND_WAITING_MAX: usize = 256;

/// What is taken up before it is looked whether a timer is due.
const ROUND_MAX: usize = 256;

/// Dials under way.
const DIALS_MAX: usize = 64;

/// Handshakes of those that dial this node; above the first number they must prove their address, above the second they are
/// turned away.
const HANDSHAKES_TRUSTED_MAX: usize = 16;
const HANDSHAKES_MAX: usize = 64;

/// Connections of one peer, of each purpose.
const PEER_CONNECTIONS_MAX: usize = 4;

/// From what lateness on the process is taken to have been stopped, and how long then is waited for what arrived meanwhile:
/// answers that lie in the socket must be heard before it is decided that there were none.
const STALL: Duration = Duration::from_millis(100);
const STALL_GRACE: Duration = Duration::from_millis(30);

/// How often connections are measured, and every how many times the whole mesh is.
const MEASURE: Duration = Duration::from_secs(1);
const OBSERVE_EVERY: u64 = 2;

/// How often files of certificates are looked at.
const RELOAD: Duration = Duration::from_secs(5);

/// Something happened outside the loop.
pub(crate) enum Inbound {
    /// Word for the state machine.
    Input(Input),
    /// A connection of the mesh stands.
    Peer {
        peer: Peer,
        /// The address that was dialled, or from which the peer came.
        address: SocketAddr,
        direction: Direction,
    },
    /// A peer made a connection on which it will relay requests.
    RelayPeer(Peer),
    /// Such a connection has ended.
    RelayGone(NodeId),
}

/// The node wants something.
pub(crate) enum Command {
    Write { op: Op, done: oneshot::Sender<Result<(), WriteError>> },
    Status(oneshot::Sender<Status>),
    RelayCandidates(Vec<NodeId>),
    ForwardFailed(NodeId),
    Leave(oneshot::Sender<()>),
}

/// The ends of the channels between the loop and the node.
pub(crate) struct Ends {
    pub(crate) commanded: Receiver<Command>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) events: Sender<Event>,
    pub(crate) relayed: Sender<Relayed>,
}

/// What a mesh is made of.
pub(crate) struct Making {
    pub(crate) config: Config,
    pub(crate) proto: smg_mesh_proto::Mesh,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) sources: Vec<Box<dyn Discover>>,
    pub(crate) journal: Writer,
    pub(crate) relay: Arc<Pool>,
    pub(crate) metrics: Metrics,
    pub(crate) ends: Ends,
}

/// Does the mesh's work once it is run.
pub struct Driver {
    making: Making,
    inbound: Sender<Inbound>,
    arriving: Receiver<Inbound>,
    /// How often files of certificates are looked at.
    pub(crate) reload_every: Duration,
}

impl Driver {
    pub(crate) fn new(making: Making, registrar: &Registrar) -> Self {
        let (inbound, arriving) = channel("mesh_inbound", INBOUND_WAITING_MAX, registrar);
        Self { making, inbound, arriving, reload_every: RELOAD }
    }

    /// Looks for peers in `source` too.
    pub fn discover(&mut self, source: Box<dyn Discover>) {
        self.making.sources.push(source);
    }

    /// Runs until the process has stopped.
    pub async fn run(self, shutdown: Shutdown, tasks: Tasks) {
        let Self { making, inbound, arriving, reload_every } = self;
        let Making { config, proto, clock, endpoint, sources, journal, relay, metrics, ends } = making;
        let follower = Follower::new(sources, config.proto.limits.seeds_max);
        let helpers = [
            tasks.spawn(TaskKind::Background, "mesh discovery", follow(follower, inbound.clone())),
            tasks.spawn(
                TaskKind::Background,
                "mesh listener",
                listen(Arc::clone(&endpoint), inbound.clone(), metrics.clone()),
            ),
            tasks.spawn(TaskKind::Background, "mesh certificates", reload(Arc::clone(&endpoint), reload_every)),
        ];
        let started = clock.now();
        let node = proto.node();
        let work = Work {
            proto,
            node,
            started,
            clock,
            endpoint,
            relay,
            metrics,
            tasks,
            inbound,
            events: ends.events,
            relayed: ends.relayed,
            journal,
            frame_bytes_max: config.proto.limits.frame_bytes_max,
            outputs: Vec::new(),
            links: BTreeMap::new(),
            relay_links: BTreeMap::new(),
            met: BTreeSet::new(),
            dialling: BTreeSet::new(),
            complaints: Complaints::default(),
            outbox: Outbox::default(),
            writes: BTreeMap::new(),
            leaving: Vec::new(),
            left: Left::No,
            next_connection: 0,
            next_ticket: 0,
        };
        Box::pin(work.run(arriving, ends.commanded, ends.mailbox, &shutdown)).await;
        for helper in helpers {
            helper.abort();
        }
    }
}

/// Everything that the loop holds.
struct Work {
    proto: smg_mesh_proto::Mesh,
    node: NodeId,
    started: Timestamp,
    clock: Arc<dyn Clock>,
    endpoint: Arc<Endpoint>,
    relay: Arc<Pool>,
    metrics: Metrics,
    tasks: Tasks,
    inbound: Sender<Inbound>,
    events: Sender<Event>,
    relayed: Sender<Relayed>,
    journal: Writer,
    frame_bytes_max: usize,
    outputs: Vec<Output>,
    links: BTreeMap<ConnectionId, Link>,
    /// How many relay connections each peer has made.
    relay_links: BTreeMap<NodeId, usize>,
    /// Peers that were connected once.
    met: BTreeSet<NodeId>,
    dialling: BTreeSet<SocketAddr>,
    complaints: Complaints,
    outbox: Outbox,
    writes: BTreeMap<Ticket, oneshot::Sender<Result<(), WriteError>>>,
    leaving: Vec<oneshot::Sender<()>>,
    left: Left,
    next_connection: u64,
    next_ticket: u64,
}

impl Work {
    async fn run(
        mut self,
        mut arriving: Receiver<Inbound>,
        mut commanded: Receiver<Command>,
        mailbox: Arc<Mailbox>,
        shutdown: &Shutdown,
    ) {
        let mut measure = interval(MEASURE);
        measure.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut measured = 0_u64;
        let mut stalled_until = None;
        let stopped = shutdown.reached(Phase::Stopped);
        tokio::pin!(stopped);
        loop {
            let due = stalled_until.unwrap_or_else(|| self.proto.next_tick());
            let wait = due.since(self.clock.now());
            // What came over the network goes before everything else, and timers go last.
            tokio::select! {
                biased;
                () = &mut stopped => break,
                Some(inbound) = arriving.recv() => self.arrived(inbound),
                command = commanded.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                posted = mailbox.taken() => for op in posted {
                    self.feed(Input::Write { ticket: None, op });
                },
                written = self.journal.written() => for sequence in written {
                    self.feed(Input::Persisted { sequence });
                },
                sent = deliver(&self.events, &self.outbox) => self.delivered(sent),
                _ = measure.tick() => {
                    measured += 1;
                    self.measure(measured);
                },
                () = sleep(wait) => {}
            }
            for _ in 0..ROUND_MAX {
                let Ok(inbound) = arriving.try_recv() else { break };
                self.arrived(inbound);
            }
            stalled_until = self.tick_if_due(stalled_until);
            self.part();
        }
        self.stop().await;
    }

    /// Lets time pass for the state machine. After a stall that is put off once, until the time that is given back.
    fn tick_if_due(&mut self, stalled_until: Option<Timestamp>) -> Option<Timestamp> {
        let now = self.clock.now();
        let due = self.proto.next_tick();
        if now < due {
            return None;
        }
        let late = now.since(due);
        match stalled_until {
            None if late >= STALL => {
                self.metrics.lateness.set(late.as_secs_f64());
                return Some(now + STALL_GRACE);
            }
            Some(until) if now < until => return stalled_until,
            _ => {}
        }
        self.metrics.lateness.set(late.as_secs_f64());
        self.feed(Input::Tick);
        None
    }

    /// Once the node has left and every connection has said so, tells those who wait for it: the process may end then, and
    /// would take with it what is not out.
    fn part(&mut self) {
        if self.left == Left::No || self.leaving.is_empty() || !self.links.is_empty() {
            return;
        }
        let (endpoint, leaving) = (Arc::clone(&self.endpoint), std::mem::take(&mut self.leaving));
        self.tasks.spawn(TaskKind::Background, "mesh farewell", async move {
            endpoint.idle().await;
            for done in leaving {
                // Whoever asked may have given up.
                let _ = done.send(());
            }
        });
    }

    async fn stop(mut self) {
        for (_, done) in std::mem::take(&mut self.writes) {
            // Whoever asked may have given up.
            let _ = done.send(Err(WriteError::Leaving));
        }
        self.endpoint.close().await;
        self.journal.finish().await;
    }

    fn feed(&mut self, input: Input) {
        let mut outputs = std::mem::take(&mut self.outputs);
        self.proto.handle(self.clock.now(), input, &mut outputs);
        for output in outputs.drain(..) {
            self.carry_out(output);
        }
        self.outputs = outputs;
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Dial { address, expect } => self.dial(address, expect),
            Output::Send { connection, class, bytes } => {
                if let Some(link) = self.links.get(&connection) {
                    link.send(class, bytes);
                }
            }
            Output::Close { connection, code } => {
                if let Some(link) = self.links.get_mut(&connection) {
                    link.close(code);
                }
            }
            Output::Persist(batch) => self.journal.persist(batch),
            Output::Event(event) => self.news(event),
        }
    }

    fn news(&mut self, event: Event) {
        match &event {
            Event::Written { ticket, outcome } => {
                if let Some(done) = self.writes.remove(ticket) {
                    // Whoever asked may have given up.
                    let _ = done.send(*outcome);
                }
                return;
            }
            Event::Member(member) if member.node != self.node => {
                self.relay.locate(member.node, member.address, member.state);
                self.metrics.verdicts.with_label_values(&[member.state.as_str()]).inc();
            }
            Event::Forgotten(node) => self.relay.forget(*node),
            Event::Joined { alone: false } => {
                let took = self.clock.now().since(self.started);
                self.metrics.join_duration.observe(took.as_secs_f64());
            }
            Event::Left => self.left = Left::Yes,
            _ => {}
        }
        self.outbox.put(event);
    }

    fn delivered(&mut self, sent: Delivery) {
        match sent {
            Delivery::Taken => {
                drop(self.outbox.take());
                // A lane as a whole is many.
                for _ in 0..ROUND_MAX {
                    let Some(event) = self.outbox.front() else { break };
                    if self.events.try_send(event.clone()).is_err() {
                        break;
                    }
                    drop(self.outbox.take());
                }
            }
            // The node no longer listens; what it would hear is still held, once for each thing.
            Delivery::NobodyListens => self.outbox = Outbox::default(),
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Write { op, done } => {
                self.next_ticket += 1;
                let ticket = Ticket(self.next_ticket);
                self.writes.insert(ticket, done);
                self.feed(Input::Write { ticket: Some(ticket), op });
            }
            // Whoever asked may have given up.
            Command::Status(sender) => drop(sender.send(self.proto.status())),
            Command::RelayCandidates(peers) => self.feed(Input::RelayCandidates(peers)),
            Command::ForwardFailed(peer) => self.feed(Input::ForwardFailed { peer }),
            Command::Leave(done) => {
                self.leaving.push(done);
                self.feed(Input::Leave);
            }
        }
    }

    fn arrived(&mut self, inbound: Inbound) {
        match inbound {
            Inbound::Input(input) => {
                match &input {
                    Input::Disconnected { connection, .. } => self.disconnected(*connection),
                    Input::DialFailed { address } => drop(self.dialling.remove(address)),
                    _ => {}
                }
                self.feed(input);
            }
            Inbound::Peer { peer, address, direction } => self.connected(peer, address, direction),
            Inbound::RelayPeer(peer) => self.relay_peer(peer),
            Inbound::RelayGone(node) => {
                if let Some(count) = self.relay_links.get_mut(&node) {
                    *count -= 1;
                    if *count == 0 {
                        self.relay_links.remove(&node);
                    }
                }
            }
        }
    }

    fn connected(&mut self, peer: Peer, address: SocketAddr, direction: Direction) {
        let node = peer.identity.node();
        if direction == Direction::Dialled {
            self.dialling.remove(&address);
            self.complaints.reached(address);
        }
        let of_peer = self.links.values().filter(|link| link.peer == node).count();
        if of_peer >= PEER_CONNECTIONS_MAX {
            peer.connection.close(close_code(CloseCode::Redundant), b"too many connections");
            if direction == Direction::Dialled {
                self.feed(Input::DialFailed { address });
            }
            return;
        }
        let name = peer.identity.name.as_str();
        self.metrics.peer_connections.with_label_values(&[name]).set(whole(of_peer + 1));
        if !self.met.insert(node) && of_peer == 0 {
            self.metrics.peer_reconnects.with_label_values(&[name]).inc();
        }
        self.next_connection += 1;
        let connection = ConnectionId(self.next_connection);
        let ends = link::Ends::new(connection, peer, self.frame_bytes_max, self.inbound.clone(), &self.metrics);
        self.links.insert(connection, ends.link);
        self.tasks.spawn(TaskKind::Background, "mesh connection", ends.work.run());
        self.feed(Input::Connected { connection, peer: node, address, direction });
    }

    fn disconnected(&mut self, connection: ConnectionId) {
        let Some(mut link) = self.links.remove(&connection) else { return };
        self.count_traffic(&mut link);
        let left = self.links.values().filter(|other| other.peer == link.peer).count();
        self.metrics.peer_connections.with_label_values(&[&link.name]).set(whole(left));
        if left == 0 {
            // Figures of a connection that is no more would be taken for present ones. They may not exist yet.
            let _ = self.metrics.rtt.remove_label_values(&[&link.name]);
            let _ = self.metrics.loss.remove_label_values(&[&link.name]);
        }
    }

    fn relay_peer(&mut self, peer: Peer) {
        let node = peer.identity.node();
        let count = self.relay_links.entry(node).or_default();
        if *count >= PEER_CONNECTIONS_MAX {
            peer.connection.close(close_code(CloseCode::Other), b"too many connections");
            return;
        }
        *count += 1;
        let (relayed, inbound, open) =
            (self.relayed.clone(), self.inbound.clone(), self.metrics.relay_accepted.clone());
        self.tasks.spawn(TaskKind::Background, "mesh relay connection", async move {
            while let Ok(stream) = relay::accept(&peer.connection, &open).await {
                if relayed.send(Relayed { peer: node, stream }).await.is_err() {
                    peer.connection.close(close_code(CloseCode::Other), b"nothing is served here");
                    break;
                }
            }
            // Without a driver nobody counts.
            let _ = inbound.send(Inbound::RelayGone(node)).await;
        });
    }

    fn dial(&mut self, address: SocketAddr, expect: Option<NodeId>) {
        if self.dialling.len() >= DIALS_MAX {
            self.feed(Input::DialFailed { address });
            return;
        }
        if !self.dialling.insert(address) {
            return;
        }
        let (endpoint, inbound) = (Arc::clone(&self.endpoint), self.inbound.clone());
        let complaints = self.complaints.clone();
        let failed = self.metrics.handshakes_failed.with_label_values(&["sent"]);
        self.tasks.spawn(TaskKind::Background, "mesh dial", async move {
            let outcome = match endpoint.dial(address, Purpose::Mesh).await {
                Ok(peer) => {
                    if expect.is_some_and(|expected| expected != peer.identity.node()) {
                        tracing::info!(%address, found = peer.identity.name, "another node than expected is there");
                    }
                    Inbound::Peer { peer, address, direction: Direction::Dialled }
                }
                Err(error) => {
                    failed.inc();
                    complaints.failed(address, &error);
                    Inbound::Input(Input::DialFailed { address })
                }
            };
            // Without a driver nobody wants to know.
            let _ = inbound.send(outcome).await;
        });
    }

    fn measure(&mut self, round: u64) {
        let ids: Vec<ConnectionId> = self.links.keys().copied().collect();
        for connection in ids {
            let Some(mut link) = self.links.remove(&connection) else { continue };
            let vitals = self.count_traffic(&mut link);
            self.metrics.rtt.with_label_values(&[&link.name]).set(vitals.rtt.as_secs_f64());
            self.metrics.loss.with_label_values(&[&link.name]).set(f64::from(vitals.loss));
            self.links.insert(connection, link);
            self.feed(Input::Vitals { connection, rtt: vitals.rtt, loss: vitals.loss });
        }
        self.relay.sweep();
        self.metrics.expiry.set(self.endpoint.expires());
        if round.is_multiple_of(OBSERVE_EVERY) {
            self.metrics.observe(&self.proto.status());
        }
    }

    fn count_traffic(&self, link: &mut Link) -> link::Vitals {
        let vitals = link.vitals();
        let traffic = vitals.traffic;
        for (direction, bytes, datagrams) in [
            ("sent", traffic.bytes_sent, traffic.datagrams_sent),
            ("received", traffic.bytes_received, traffic.datagrams_received),
        ] {
            self.metrics.wire_bytes.with_label_values(&[direction]).inc_by(bytes);
            self.metrics.wire_datagrams.with_label_values(&[direction]).inc_by(datagrams);
        }
        vitals
    }
}

/// Whether the node has left the cluster.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Yes,
    No,
}

/// What became of the next event.
enum Delivery {
    Taken,
    NobodyListens,
}

/// Hands the next event to the node, which may take its time; without one, waits for ever. Safe to cancel.
async fn deliver(events: &Sender<Event>, outbox: &Outbox) -> Delivery {
    let Some(event) = outbox.front() else { return std::future::pending().await };
    match events.send(event.clone()).await {
        Ok(()) => Delivery::Taken,
        Err(_) => Delivery::NobodyListens,
    }
}

/// What is wrong with addresses that are not reached. Each kind of problem is told once in an outage: members that are gone
/// are dialled every second.
#[derive(Clone, Default)]
struct Complaints(Arc<Mutex<BTreeMap<SocketAddr, Told>>>);

/// Kinds of problems that were told.
type Told = Vec<Discriminant<DialError>>;

/// Addresses whose problems are remembered.
const COMPLAINTS_MAX: usize = 1_024;

impl Complaints {
    fn failed(&self, address: SocketAddr, error: &DialError) {
        let mut told = self.0.lock();
        if told.len() >= COMPLAINTS_MAX && !told.contains_key(&address) {
            told.clear();
        }
        let told = told.entry(address).or_default();
        let kind = discriminant(error);
        if told.contains(&kind) {
            tracing::debug!(%address, %error, "peer not reached");
        } else {
            tracing::warn!(%address, %error, "peer not reached, trying again");
            told.push(kind);
        }
    }

    fn reached(&self, address: SocketAddr) {
        if self.0.lock().remove(&address).is_some() {
            tracing::info!(%address, "peer reached again");
        }
    }
}

async fn follow(mut follower: Follower, inbound: Sender<Inbound>) {
    loop {
        let seeds = follower.next().await;
        if inbound.send(Inbound::Input(Input::Seeds(seeds))).await.is_err() {
            return;
        }
    }
}

/// Lets others in.
async fn listen(endpoint: Arc<Endpoint>, inbound: Sender<Inbound>, metrics: Metrics) {
    let complaints = Complaints::default();
    let mut handshakes = FuturesUnordered::new();
    loop {
        tokio::select! {
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { return };
                if handshakes.len() >= HANDSHAKES_MAX {
                    incoming.refuse();
                } else if handshakes.len() >= HANDSHAKES_TRUSTED_MAX && incoming.may_retry() {
                    // It cannot fail: it was just asked whether it may.
                    let _ = incoming.retry();
                } else {
                    let (address, endpoint) = (incoming.remote_address(), Arc::clone(&endpoint));
                    handshakes.push(async move { Handshake { address, outcome: endpoint.admit(incoming).await } });
                }
            }
            Some(done) = handshakes.next() => {
                if done.outcome.is_ok() {
                    complaints.reached(done.address);
                }
                let arrived = match done.outcome {
                    Ok(Admitted { purpose: Purpose::Mesh, peer }) => {
                        Inbound::Peer { peer, address: done.address, direction: Direction::Accepted }
                    }
                    Ok(Admitted { purpose: Purpose::Relay, peer }) => Inbound::RelayPeer(peer),
                    Err(error) => {
                        metrics.handshakes_failed.with_label_values(&["received"]).inc();
                        complaints.failed(done.address, &error);
                        continue;
                    }
                };
                if inbound.send(arrived).await.is_err() {
                    return;
                }
            }
        }
    }
}

struct Handshake {
    address: SocketAddr,
    outcome: Result<Admitted, DialError>,
}

/// Follows changes of files of certificates.
async fn reload(endpoint: Arc<Endpoint>, every: Duration) {
    while endpoint.has_files() {
        sleep(every).await;
        let endpoint = Arc::clone(&endpoint);
        match tokio::task::spawn_blocking(move || endpoint.reload()).await {
            Ok(Ok(true)) => tracing::info!("certificates of the mesh reloaded"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "new certificates of the mesh are not used, the last good ones stay");
            }
            Err(error) => tracing::error!(%error, "certificates of the mesh were not looked at"),
        }
    }
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
