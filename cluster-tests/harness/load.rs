//! Steady load from clients as they are: they look at `/readyz`, they try elsewhere if a connection is refused, and they
//! do nothing else twice.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::ErrorKind,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{task::JoinSet, time::timeout};

use super::{
    client::{Ask, Connection},
    cluster::{Stream, on},
    nodes::Node,
};

const CHAT: &str = "/v1/chat/completions";

/// Between two looks at a node's readiness.
const LOOK: Duration = Duration::from_millis(100);

/// Longest wait for an answer, whole streams included.
const ANSWER_PATIENCE: Duration = Duration::from_secs(45);

/// What clients do.
pub(crate) struct Plan {
    /// Clients that ask for plain answers, one after the other.
    pub(crate) plain: usize,
    /// Clients that hold a stream open, one after the other.
    pub(crate) streams: usize,
    /// How long a client of plain answers rests between two.
    pub(crate) pause: Duration,
    /// Time between two of the 16 events of a stream.
    pub(crate) event_pause: Duration,
    /// Whether requests may run more than once.
    pub(crate) replay: Replay,
}

/// What a client allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replay {
    Allowed,
    Forbidden,
}

/// Running clients.
pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<Tally>,
    lookers: JoinSet<()>,
}

struct Shared {
    doors: Vec<Door>,
    plan: Plan,
    turn: AtomicUsize,
    stops: AtomicBool,
    sent: AtomicU64,
    open_streams: AtomicUsize,
}

/// A node as a load balancer knows it.
struct Door {
    name: String,
    address: SocketAddr,
    is_ready: AtomicBool,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Requests that went out on a connection.
    pub(crate) sent: u64,
    /// Those that were streams.
    pub(crate) streams: u64,
    /// Connections that were refused, and tried elsewhere.
    pub(crate) refused: u64,
    /// Requests without a whole good answer.
    pub(crate) misses: Vec<Miss>,
    /// Requests by the node they were sent to.
    pub(crate) by_node: BTreeMap<String, u64>,
}

/// A request without a whole good answer.
#[derive(Clone, Debug)]
pub(crate) struct Miss {
    pub(crate) node: String,
    pub(crate) started: Instant,
    pub(crate) why: String,
}

impl Load {
    /// Starts the clients, who take `nodes` in turn.
    pub(crate) fn start(nodes: &[&Node], plan: Plan) -> Self {
        let door =
            |node: &&Node| Door { name: node.name.clone(), address: node.address(), is_ready: AtomicBool::new(true) };
        let shared = Arc::new(Shared {
            doors: nodes.iter().map(door).collect(),
            plan,
            turn: AtomicUsize::new(0),
            stops: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            open_streams: AtomicUsize::new(0),
        });
        let mut lookers = JoinSet::new();
        for index in 0..shared.doors.len() {
            lookers.spawn(look(shared.clone(), index));
        }
        let mut clients = JoinSet::new();
        for _ in 0..shared.plan.plain {
            clients.spawn(client(shared.clone(), Stream::No));
        }
        for _ in 0..shared.plan.streams {
            clients.spawn(client(shared.clone(), Stream::Yes));
        }
        Self { shared, clients, lookers }
    }

    /// Requests so far.
    pub(crate) fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Streams that are open now.
    pub(crate) fn open_streams(&self) -> usize {
        self.shared.open_streams.load(Ordering::Relaxed)
    }

    /// Ends it: what was sent is answered, nothing more is sent.
    pub(crate) async fn finish(mut self) -> Tally {
        self.shared.stops.store(true, Ordering::Relaxed);
        let mut sum = Tally::default();
        while let Some(ended) = self.clients.join_next().await {
            sum.add(ended.unwrap());
        }
        self.lookers.abort_all();
        sum
    }
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.streams += other.streams;
        self.refused += other.refused;
        self.misses.extend(other.misses);
        for (name, count) in other.by_node {
            *self.by_node.entry(name).or_default() += count;
        }
    }

    /// The figures, and the first misses.
    pub(crate) fn summary(&self) -> String {
        let Self { sent, streams, refused, misses, by_node } = self;
        let missed = misses.len();
        let mut text = format!(
            "{sent} requests ({streams} streams), {missed} failed, {refused} refused and tried elsewhere, {by_node:?}"
        );
        for miss in misses.iter().take(8) {
            let _written = write!(text, "\n  at {}, sent {:?} ago: {}", miss.node, miss.started.elapsed(), miss.why);
        }
        text
    }

    fn miss(&mut self, door: &Door, started: Instant, why: impl Into<String>) {
        self.misses.push(Miss { node: door.name.clone(), started, why: why.into() });
    }
}

/// Keeps a door's readiness.
async fn look(shared: Arc<Shared>, index: usize) {
    let door = &shared.doors[index];
    loop {
        let is_ready = timeout(Duration::from_secs(2), says_ready(door.address)).await.unwrap_or(false);
        door.is_ready.store(is_ready, Ordering::Relaxed);
        tokio::time::sleep(LOOK).await;
    }
}

async fn says_ready(address: SocketAddr) -> bool {
    let Ok(mut connection) = Connection::try_open(address).await else { return false };
    let ask = Ask::get("/readyz").field("connection", "close");
    connection.try_write(&ask.bytes()).await && connection.try_head().await.is_some_and(|head| head.status == 200)
}

/// One client.
async fn client(shared: Arc<Shared>, stream: Stream) -> Tally {
    let mut tally = Tally::default();
    while !shared.stops.load(Ordering::Relaxed) {
        let turn = shared.turn.fetch_add(1, Ordering::Relaxed);
        let count = shared.doors.len();
        let doors = (0..count).map(|offset| &shared.doors[(turn + offset) % count]);
        let Some(door) = doors.into_iter().find(|door| door.is_ready.load(Ordering::Relaxed)) else {
            tokio::time::sleep(LOOK).await;
            continue;
        };
        request(&shared, door, stream, &mut tally).await;
        if stream == Stream::No {
            tokio::time::sleep(shared.plan.pause).await;
        }
    }
    tally
}

async fn request(shared: &Shared, door: &Door, stream: Stream, tally: &mut Tally) {
    let started = Instant::now();
    let connection = match timeout(ANSWER_PATIENCE, Connection::try_open(door.address)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
            tally.refused += 1;
            door.is_ready.store(false, Ordering::Relaxed);
            return;
        }
        Ok(Err(error)) => return tally.miss(door, started, format!("no connection: {error}")),
        Err(_) => return tally.miss(door, started, "no connection in time"),
    };
    let number = shared.sent.fetch_add(1, Ordering::Relaxed);
    tally.sent += 1;
    *tally.by_node.entry(door.name.clone()).or_default() += 1;
    let mut ask =
        on(CHAT, "demo", stream).field("x-request-id", &format!("load-{number}")).field("connection", "close");
    if shared.plan.replay == Replay::Allowed {
        ask = ask.field("x-smg-allow-replay", "true");
    }
    if stream == Stream::Yes {
        tally.streams += 1;
        ask = ask.fault(&format!("delay={}ms@event:*", shared.plan.event_pause.as_millis()));
        shared.open_streams.fetch_add(1, Ordering::Relaxed);
    }
    let outcome = timeout(ANSWER_PATIENCE, exchange(connection, &ask, stream)).await;
    if stream == Stream::Yes {
        shared.open_streams.fetch_sub(1, Ordering::Relaxed);
    }
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(why)) => tally.miss(door, started, why),
        Err(_) => tally.miss(door, started, "no answer in time"),
    }
}

/// Sends `ask`; why its answer is not whole and good.
async fn exchange(mut connection: Connection, ask: &Ask, stream: Stream) -> Result<(), String> {
    if !connection.try_write(&ask.bytes()).await {
        return Err("hung up on before it was asked".to_owned());
    }
    let Some(head) = connection.try_head().await else { return Err("no answer".to_owned()) };
    let (body, is_whole) = connection.rest().await;
    let text = String::from_utf8_lossy(&body);
    let ends_well = stream == Stream::No || text.ends_with("data: [DONE]\n\n");
    match (head.status, is_whole && ends_well) {
        (200, true) => Ok(()),
        (status, _) => Err(format!("{status}, whole: {is_whole}, {} bytes, ends {:?}", body.len(), tail(&text))),
    }
}

fn tail(text: &str) -> String {
    let start = text.chars().count().saturating_sub(200);
    text.chars().skip(start).collect()
}
