//! What choosing by cache costs beside choosing by turn.

use std::time::Duration;

use super::super::children::{Canned, Server};
use super::super::failure::Failure;
use super::super::generator::Job;
use super::super::options::Contender;
use super::super::series::median;
use super::super::table::{Table, bytes, figure};
use super::super::verdict::Side::AtMost;
use super::{Bench, Sample, measure};

const CANNED: Canned =
    Canned { body_bytes: 1024, events: 16, event_bytes: 256, event_interval: Duration::ZERO, framing: "chunk" };
const ENGINES: usize = 4;
const BODY_BYTES: usize = 32 << 10;
const CONVERSATIONS: usize = 64;
const CONCURRENCY: usize = 16;
const POLICIES: [&str; 2] = ["round_robin", "cache_aware"];

impl Bench {
    /// The same load through two gateways that differ in their policy only.
    pub(super) fn policies(&mut self) -> Result<(), Failure> {
        if !self.has(Contender::Smg) {
            return Ok(());
        }
        let engines = (0..ENGINES).map(|_| self.programs.engine(CANNED)).collect::<Result<Vec<_>, _>>()?;
        let addresses: Vec<_> = engines.iter().map(|engine| engine.address).collect();
        let gateways =
            POLICIES.iter().map(|policy| self.programs.smg(&addresses, policy)).collect::<Result<Vec<Server>, _>>()?;
        let mut samples: [Vec<Sample>; 2] = Default::default();
        for round in 0..self.options.rounds() {
            for turn in 0..POLICIES.len() {
                let index = (round + turn) % POLICIES.len();
                let job = Job {
                    address: gateways[index].address,
                    engine: addresses[0],
                    connections: CONCURRENCY,
                    is_streamed: false,
                    body_bytes: BODY_BYTES,
                    conversations: CONVERSATIONS,
                    warm_up: self.options.warm_up(),
                    measured: self.options.measured(),
                };
                samples[index].push(measure(POLICIES[index], Some(&gateways[index]), &job)?);
            }
        }
        self.tell_policies(&samples);
        Ok(())
    }

    fn tell_policies(&mut self, samples: &[Vec<Sample>; 2]) {
        let mut table = Table::new(&["policy", "", "requests/s", "p50 µs", "CPU-s/10k", "RSS MB"]);
        for (policy, samples) in POLICIES.iter().zip(samples) {
            let of = |of: &dyn Fn(&Sample) -> Option<f64>| figure(median(samples.iter().filter_map(of)));
            table.row([
                (*policy).to_owned(),
                String::new(),
                of(&|sample| Some(sample.answers_per_second())),
                of(&|sample| Some(sample.report.whole_p50 as f64 / 1000.0)),
                of(&Sample::cpu_per_10_000),
                of(&|sample| sample.resident_bytes.map(|bytes| bytes as f64 / 1e6)),
            ]);
        }
        table.print(&format!(
            "Policies: {CONVERSATIONS} conversations of {}, {CONCURRENCY} at once, {ENGINES} engines",
            bytes(BODY_BYTES)
        ));
        let pairs = samples[1].iter().zip(&samples[0]);
        let ratio = median(pairs.filter_map(|(aware, robin)| Some(aware.cpu_per_10_000()? / robin.cpu_per_10_000()?)));
        self.verdicts.judge("CPU of cache_aware ÷ round_robin, 32 KB", ratio, AtMost, 1.15, "");
    }
}
