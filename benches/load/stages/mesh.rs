//! Nodes that form a mesh: what a request costs that a peer passes on, and what the mesh itself sends and computes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::super::children::{Canned, Node, Server};
use super::super::control::{self, metric};
use super::super::failure::Failure;
use super::super::generator::Job;
use super::super::options::Shape;
use super::super::series::median;
use super::super::table::{Table, bytes, figure};
use super::super::verdict::Side::AtMost;
use super::{Bench, Sample, measure};

const CANNED: Canned =
    Canned { body_bytes: 1024, events: 128, event_bytes: 256, event_interval: Duration::ZERO, framing: "chunk" };
/// An answer that takes a while, so that requests are in flight while the mesh tells of them.
const SLOW: Canned = Canned { event_interval: Duration::from_millis(10), events: 64, ..CANNED };
const BODY_BYTES: usize = 1 << 10;
const CONCURRENCY: [usize; 2] = [1, 64];
const FORMED_WITHIN: Duration = Duration::from_secs(60);
/// What a mesh that has just formed has to say is said by then.
const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// A datagram's IP and UDP headers, which QUIC does not count.
const HEADER_BYTES: f64 = 28.0;

/// The ways from a client to the engine, in the order of the table.
const WAYS: [&str; 3] = ["no gateway", "one node", "two nodes, by relay"];

impl Bench {
    /// Both tables.
    pub(super) fn mesh(&mut self) -> Result<(), Failure> {
        self.relayed()?;
        let mut table = Table::new(&[
            "nodes",
            "",
            "formed after s",
            "idle kB/s a node",
            "idle, worst node",
            "idle datagrams/s",
            "idle CPU %",
            "loaded kB/s a node",
            "RSS MB a node",
        ]);
        for nodes in self.options.nodes() {
            self.own_traffic(nodes, &mut table)?;
        }
        table.print(&format!(
            "What a mesh sends (QUIC, UDP and IP headers included), over {} s at rest, then under load",
            self.options.at_rest().as_secs()
        ));
        Ok(())
    }

    /// The same request to the engine, through the node that reaches it, and through a node that does not.
    fn relayed(&mut self) -> Result<(), Failure> {
        let engine = self.programs.engine(CANNED)?;
        let token = self.programs.token()?;
        let mesh = [control::free_udp_address()?, control::free_udp_address()?];
        let start = |at: usize, engines: &[SocketAddr]| {
            let name = ["near", "far"][at];
            let seeds = &mesh[..at];
            self.programs.node(&Node { name, scope: name, token: &token, mesh: mesh[at], seeds, engines })
        };
        let near = start(0, &[engine.address])?;
        let far = start(1, &[])?;
        let ways = [None, Some(&near), Some(&far)];
        let mut table = Table::new(&[
            "shape × at once",
            "way",
            "requests/s",
            "p50 µs",
            "p99 µs",
            "added p50",
            "of which relay",
            "first p50",
            "CPU-s/10k",
        ]);
        for shape in self.options.shapes.clone() {
            for connections in CONCURRENCY {
                let samples = self.take_ways(&engine, ways, shape, connections)?;
                self.tell_ways(&mut table, shape, connections, &samples);
            }
        }
        table.print(&format!(
            "Relay: requests of {} to one engine; CPU of the node that the client asks",
            bytes(BODY_BYTES)
        ));
        Ok(())
    }

    fn take_ways(
        &self,
        engine: &Server,
        ways: [Option<&Server>; 3],
        shape: Shape,
        connections: usize,
    ) -> Result<[Vec<Sample>; 3], Failure> {
        let mut samples: [Vec<Sample>; 3] = Default::default();
        for round in 0..self.options.rounds() {
            for turn in 0..ways.len() {
                let at = (round + turn) % ways.len();
                let job = Job {
                    address: ways[at].map_or(engine.address, |node| node.address),
                    engine: engine.address,
                    connections,
                    is_streamed: shape == Shape::Streamed,
                    body_bytes: BODY_BYTES,
                    conversations: 8,
                    warm_up: self.options.warm_up(),
                    measured: self.options.measured(),
                };
                samples[at].push(measure(WAYS[at], ways[at], &job)?);
            }
        }
        Ok(samples)
    }

    fn tell_ways(&mut self, table: &mut Table, shape: Shape, connections: usize, samples: &[Vec<Sample>; 3]) {
        let added = |at: usize, over: usize| {
            let pairs = samples[at].iter().zip(&samples[over]);
            median(
                pairs.map(|(with, without)| (with.report.whole_p50 as f64 - without.report.whole_p50 as f64) / 1000.0),
            )
        };
        for (at, way) in WAYS.iter().enumerate() {
            let of = |of: &dyn Fn(&Sample) -> Option<f64>| figure(median(samples[at].iter().filter_map(of)));
            table.row([
                format!("{shape} × {connections}"),
                (*way).to_owned(),
                of(&|sample| Some(sample.answers_per_second())),
                of(&|sample| Some(sample.report.whole_p50 as f64 / 1000.0)),
                of(&|sample| Some(sample.report.whole_p99 as f64 / 1000.0)),
                if at > 0 { figure(added(at, 0)) } else { String::new() },
                if at > 1 { figure(added(at, 1)) } else { String::new() },
                of(&|sample| Some(sample.report.first_p50 as f64 / 1000.0)),
                of(&Sample::cpu_per_10_000),
            ]);
        }
    }

    /// A mesh of so many nodes with as many workers: at rest, then with streams through its first node.
    fn own_traffic(&mut self, count: usize, table: &mut Table) -> Result<(), Failure> {
        let engines = (0..count).map(|_| self.programs.engine(SLOW)).collect::<Result<Vec<_>, _>>()?;
        let token = self.programs.token()?;
        let mesh = (0..count).map(|_| control::free_udp_address()).collect::<Result<Vec<_>, _>>()?;
        let names: Vec<String> = (0..count).map(|number| format!("node-{count}-{number}")).collect();
        let started = Instant::now();
        let mut nodes = Vec::new();
        for number in 0..count {
            let engines = [engines[number].address];
            let seeds = if number == 0 { &[] } else { &mesh[..1] };
            let node = Node {
                name: &names[number],
                scope: "bench",
                token: &token,
                mesh: mesh[number],
                seeds,
                engines: &engines,
            };
            nodes.push(self.programs.node(&node)?);
        }
        while !nodes.iter().all(|node| sees(node, count)) {
            if started.elapsed() > FORMED_WITHIN {
                return Err(Failure::Late(format!("a mesh of {count} nodes")));
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
        let formed = started.elapsed();
        std::thread::park_timeout(SETTLED_AFTER);
        let rest = watch(&nodes, || {
            std::thread::park_timeout(self.options.at_rest());
            Ok(())
        })?;
        let job = Job {
            address: nodes[0].address,
            engine: engines[0].address,
            connections: 64,
            is_streamed: true,
            body_bytes: BODY_BYTES,
            conversations: 64,
            warm_up: self.options.warm_up(),
            measured: self.options.measured() * 2,
        };
        let load = watch(&nodes, || measure("a mesh", None, &job).map(drop))?;
        let resident = nodes.iter().map(|node| node.usage().resident_bytes as f64 / 1e6).sum::<f64>() / count as f64;
        table.row([
            count.to_string(),
            String::new(),
            figure(Some(formed.as_secs_f64())),
            figure(rest.mean(|traffic| traffic.sent_bytes / 1000.0)),
            figure(rest.worst(|traffic| traffic.sent_bytes / 1000.0)),
            figure(rest.mean(|traffic| traffic.sent_datagrams)),
            figure(rest.mean(|traffic| traffic.cpu_seconds * 100.0)),
            figure(load.mean(|traffic| traffic.sent_bytes / 1000.0)),
            figure(Some(resident)),
        ]);
        let idle = rest.mean(|traffic| traffic.sent_bytes / 1000.0);
        let target = if count <= 16 { 2.0 } else { 4.0 };
        self.verdicts.judge(&format!("idle traffic of a node, {count} nodes"), idle, AtMost, target, "kB/s");
        let cpu = rest.mean(|traffic| traffic.cpu_seconds * 100.0);
        self.verdicts.judge(&format!("idle CPU of a node, {count} nodes"), cpu, AtMost, 0.5, "% of a core");
        Ok(())
    }
}

/// What one node did, per second.
#[derive(Clone, Copy, Debug)]
struct Traffic {
    sent_bytes: f64,
    sent_datagrams: f64,
    cpu_seconds: f64,
}

/// What all nodes did.
struct Watched(Vec<Traffic>);

impl Watched {
    fn mean(&self, of: impl Fn(&Traffic) -> f64) -> Option<f64> {
        if self.0.is_empty() { None } else { Some(self.0.iter().map(of).sum::<f64>() / self.0.len() as f64) }
    }

    fn worst(&self, of: impl Fn(&Traffic) -> f64) -> Option<f64> {
        self.0.iter().map(of).max_by(f64::total_cmp)
    }
}

/// Reads every node's counters, lets `work` happen, and reads them again.
fn watch(nodes: &[Server], work: impl FnOnce() -> Result<(), Failure>) -> Result<Watched, Failure> {
    let read = || nodes.iter().map(counters).collect::<Result<Vec<Traffic>, Failure>>();
    let (started, before) = (Instant::now(), read()?);
    work()?;
    let after = read()?;
    let seconds = started.elapsed().as_secs_f64();
    let pairs = before.iter().zip(&after);
    Ok(Watched(
        pairs
            .map(|(before, after)| Traffic {
                sent_bytes: (after.sent_bytes - before.sent_bytes) / seconds,
                sent_datagrams: (after.sent_datagrams - before.sent_datagrams) / seconds,
                cpu_seconds: (after.cpu_seconds - before.cpu_seconds) / seconds,
            })
            .collect(),
    ))
}

fn counters(node: &Server) -> Result<Traffic, Failure> {
    let metrics = node.metrics.expect("a node shows its metrics");
    let read = |name: &str| {
        let found = metric(metrics, name, "direction=\"sent\"")?;
        found.ok_or_else(|| Failure::Wrong { contender: "smg".to_owned(), what: format!("there is no metric {name}") })
    };
    let datagrams = read("smg_mesh_wire_datagrams_total")?;
    let sent_bytes = read("smg_mesh_wire_bytes_total")? + datagrams * HEADER_BYTES;
    Ok(Traffic { sent_bytes, sent_datagrams: datagrams, cpu_seconds: node.usage().cpu_seconds })
}

/// Whether a node sees so many members alive, and as many workers.
fn sees(node: &Server, count: usize) -> bool {
    let metrics = node.metrics.expect("a node shows its metrics");
    let alive = metric(metrics, "smg_mesh_members", "state=\"alive\"").ok().flatten();
    alive == Some(count as f64)
}
