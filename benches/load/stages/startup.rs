//! From the start of a process to its first answer, and what it holds when nobody asks.

use std::time::Duration;

use super::super::children::Canned;
use super::super::failure::Failure;
use super::super::options::Contender;
use super::super::series::median;
use super::super::table::{Table, figure};
use super::super::verdict::Side::AtMost;
use super::Bench;

const CANNED: Canned =
    Canned { body_bytes: 1024, events: 16, event_bytes: 256, event_interval: Duration::ZERO, framing: "chunk" };
/// Time after which a process that was just started is at rest.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

impl Bench {
    /// Starts each proxy several times.
    pub(super) fn startup(&mut self) -> Result<(), Failure> {
        let starts = if self.options.quick { 2 } else { 7 };
        let engine = self.programs.engine(CANNED)?;
        let mut table = Table::new(&["contender", "", "first answer ms", "slowest ms", "idle RSS MB"]);
        for contender in self.proxies() {
            let mut times = Vec::new();
            let mut idle = 0.0;
            for start in 0..starts {
                let Some(server) = self.start(contender, &engine)? else { continue };
                times.push(server.ready_after.as_secs_f64() * 1000.0);
                if start + 1 == starts {
                    std::thread::park_timeout(SETTLED_AFTER);
                    idle = server.usage().resident_bytes as f64 / 1e6;
                }
            }
            let slowest = times.iter().copied().fold(0.0, f64::max);
            let usual = median(times);
            table.row([contender.to_string(), String::new(), figure(usual), figure(Some(slowest)), figure(Some(idle))]);
            if contender == Contender::Smg {
                self.verdicts.judge("start to first answer", usual, AtMost, 150.0, "ms");
                self.verdicts.judge("idle memory", Some(idle), AtMost, 30.0, "MB");
            }
        }
        table.print(&format!("Start-up, {starts} times: from spawning the process to the first answer passed on"));
        Ok(())
    }
}
