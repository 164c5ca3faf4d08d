//! What the kernel knows of a process and its children: CPU time and resident memory.

use std::collections::BTreeMap;
use std::fs;

/// Of a process and all its descendants.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// CPU time so far, in seconds.
    pub(crate) cpu_seconds: f64,
    /// Resident bytes.
    pub(crate) resident_bytes: u64,
    /// Open descriptors of all of them.
    pub(crate) descriptors: u64,
}

/// Clock ticks per second in `/proc/PID/stat`, the same on every Linux that runs this.
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads what the tree below `root` uses. What can't be read has ended and uses nothing.
pub(crate) fn usage(root: u32) -> Usage {
    let parents = parents();
    let mut usage = Usage::default();
    let mut open = vec![root];
    while let Some(pid) = open.pop() {
        open.extend(parents.iter().filter(|(_, parent)| **parent == pid).map(|(child, _)| *child));
        let Some(stat) = stat(pid) else { continue };
        let ticks = |index: usize| stat.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
        // utime and stime are fields 14 and 15, counted from 1 with pid and name; these begin after the name.
        usage.cpu_seconds += (ticks(11) + ticks(12)) / TICKS_PER_SECOND;
        usage.resident_bytes += resident_bytes(pid);
        usage.descriptors += fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.count() as u64);
    }
    usage
}

fn parents() -> BTreeMap<u32, u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, stat(pid)?.get(1)?.parse().ok()?))).collect()
}

/// The fields of `/proc/PID/stat` after the name, which may hold anything.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = &text[text.rfind(')')? + 1..];
    Some(after_name.split_whitespace().map(str::to_owned).collect())
}

fn resident_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or_default() * 1024
}

/// One line about the machine.
pub(crate) fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |(_, name)| name);
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?");
    format!("{cores} cores of {model}, Linux {}, load before {load}", kernel.trim())
}
