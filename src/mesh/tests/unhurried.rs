//! Whole nodes, with all that is real of them but the sockets, in one thread and in virtual time: minutes of them take seconds, and
//! no deadline here depends on the machine. A seed gives nearly the same run each time: keys of connections are drawn anew.

use smg_base::{Clock, Timestamp};
use smg_mesh_proto::{Limits, MemberState, Op, Profile, Status};
use smg_runtime::{Phase, Shutdown, TaskKind, Tasks};
use tokio::time::{Duration, Instant, sleep, timeout};

use super::{network::Network, *};
use crate::{Config, Mesh};

/// Time as tokio has it.
struct Virtual(Instant);

impl Clock for Virtual {
    fn now(&self) -> Timestamp {
        Timestamp::ORIGIN + self.0.elapsed()
    }

    fn unix_ms(&self) -> u64 {
        0
    }
}

/// Nodes that have each other for seeds.
struct Cluster {
    network: Network,
    nodes: Vec<Node>,
    shutdown: Shutdown,
}

struct Node {
    address: SocketAddr,
    mesh: Mesh,
    /// Kept, so that the mesh has somebody to tell.
    _events: Receiver<smg_mesh_proto::Event>,
}

impl Cluster {
    async fn start(count: u8, seed: u64, loss: f64) -> Self {
        let network = Network::new(seed, loss);
        let shutdown = Shutdown::new();
        let addresses: Vec<SocketAddr> = (0..count).map(|number| ([10, 0, 0, 1 + number], 39_527).into()).collect();
        let clock: Arc<dyn Clock> = Arc::new(Virtual(Instant::now()));
        let mut nodes = Vec::new();
        for (number, address) in addresses.iter().enumerate() {
            let name = format!("n{number}");
            let config = config(&name, *address, seed * 100 + number as u64, &addresses);
            let socket = network.socket(*address);
            let endpoint = Endpoint::over(socket, config.security.clone(), identity("smg", &name)).expect("it is made");
            let parts = Mesh::over(endpoint, config, Arc::clone(&clock), None, &Registrar::new()).await;
            let parts = parts.expect("it needs nothing");
            let tasks = Tasks::new(shutdown.clone());
            tasks.spawn(TaskKind::Background, "mesh", parts.driver.run(shutdown.clone(), tasks.clone()));
            nodes.push(Node { address: *address, mesh: parts.mesh, _events: parts.events });
        }
        Self { network, nodes, shutdown }
    }

    async fn statuses(&self) -> Vec<Status> {
        let mut statuses = Vec::new();
        for node in &self.nodes {
            statuses.push(node.mesh.status().await);
        }
        statuses
    }

    /// How long it takes until `condition` holds.
    async fn until(&self, what: &str, within: Duration, condition: impl Fn(&[Status]) -> bool) -> Duration {
        let started = Instant::now();
        let wait = async {
            while !condition(&self.statuses().await) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let outcome = timeout(within, wait).await;
        assert!(outcome.is_ok(), "{what}: not within {within:?}: {:?}", self.statuses().await);
        started.elapsed()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.advance(Phase::Stopped);
    }
}

fn config(name: &str, address: SocketAddr, seed: u64, seeds: &[SocketAddr]) -> Config {
    Config {
        proto: smg_mesh_proto::Config {
            name: name.to_owned(),
            cluster: "smg".to_owned(),
            advertise: address,
            traffic_url: String::new(),
            zone: String::new(),
            region: String::new(),
            software: "test".to_owned(),
            instance: seed,
            seed,
            timers: Profile::Lan.timers(),
            limits: Limits::default(),
        },
        bind: address,
        seeds: seeds.iter().map(ToString::to_string).collect(),
        srv: Vec::new(),
        peers_file: None,
        security: tokens(&["one"]),
    }
}

/// How many nodes this one takes for alive.
fn alive(status: &Status) -> usize {
    status.members.iter().filter(|member| member.state == MemberState::Alive).count()
}

fn agree(statuses: &[Status]) -> bool {
    statuses.iter().all(|status| status.digest == statuses[0].digest)
}

fn alias(key: &str) -> Op {
    Op::Config { key: format!("alias/{key}"), value: Some(bytes::Bytes::from_static(b"\"m\"")) }
}

#[tokio::test(start_paused = true)]
async fn three_nodes_form_are_split_and_are_one_again() {
    for seed in 1..=8 {
        let loss = [0.0, 0.05, 0.1, 0.2][usize::try_from(seed % 4).expect("it is small")];
        let cluster = Cluster::start(3, seed, loss).await;
        let slower = if loss > 0.1 { 3 } else { 1 };
        let formed = cluster.until("forming", Duration::from_secs(3) * slower, |all| {
            all.iter().all(|status| alive(status) == 3) && agree(all)
        });
        let formed = formed.await;
        let addresses: Vec<SocketAddr> = cluster.nodes.iter().map(|node| node.address).collect();
        cluster.network.split(&addresses[..1], &addresses[1..]);
        let split = cluster.until("noticing a split", Duration::from_secs(12), |all| {
            [1, 2, 2].iter().zip(all).all(|(count, status)| alive(status) == *count)
        });
        let split = split.await;
        for (node, key) in [(0, "near"), (1, "far")] {
            cluster.nodes[node].mesh.write(alias(key)).await.expect("both sides take changes");
        }
        sleep(Duration::from_secs(60)).await;
        cluster.network.heal();
        let healed = cluster.until("healing", Duration::from_secs(3) * slower, |all| {
            all.iter().all(|status| alive(status) == 3) && agree(all)
        });
        println!("seed {seed}, loss {loss}: formed {formed:?}, split {split:?}, healed {:?}", healed.await);
    }
}
