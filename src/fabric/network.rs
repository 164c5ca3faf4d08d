//! The network as tests see it: hosts, links, splits.

use std::{
    collections::VecDeque,
    io::{PipeWriter, Write},
    net::Ipv4Addr,
    process::{Command, Stdio},
    sync::Arc,
    thread::JoinHandle,
    time::Instant,
};

use parking_lot::Mutex;
use smg_base::{Random, SplitMix, Timestamp};
use tun_rs::SyncDevice;

use crate::{
    Counts, Error, Fate, Host, Rules,
    carrier::Carrier,
    host::TETHER,
    rules::{LinkState, Passage, Wire},
};

/// Most hosts of one network.
pub const HOSTS_MAX: usize = 250;

/// A network of hosts that only exists for this process.
pub struct Fabric {
    matrix: Arc<Mutex<Matrix>>,
    /// Wakes the carrier for a new host; closed, it ends the carrier.
    wake: Option<PipeWriter>,
    carrier: Option<JoinHandle<()>>,
}

/// What tests change and the carrier reads.
pub(crate) struct Matrix {
    seed: u64,
    started: Instant,
    pub(crate) devices: Vec<Arc<SyncDevice>>,
    /// `links[from][to]`.
    links: Vec<Vec<LinkState>>,
    records: VecDeque<Record>,
    records_max: usize,
}

/// One packet, as the optional log keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// When it entered, since the network began.
    pub at: Timestamp,
    /// The address it came from: of the host, whatever the packet says.
    pub from: Ipv4Addr,
    /// The address it went to.
    pub to: Ipv4Addr,
    /// Its length.
    pub bytes: usize,
    /// What became of it.
    pub fate: Fate,
}

/// One directed link.
pub struct Link<'fabric> {
    matrix: &'fabric Mutex<Matrix>,
    from: usize,
    to: usize,
}

impl Fabric {
    /// An empty network, if this machine can have one. `seed` decides what chance does.
    pub fn new(seed: u64) -> Result<Self, Error> {
        let tether = Command::new(TETHER).arg("--version").stdout(Stdio::null()).status();
        tether.map_err(|_| Error::NoProgram(TETHER))?;
        // What can be refused is tried out before anybody relies on it.
        drop(Host::new("trial", 0, address_of(0))?);
        let (sleeper, wake) = std::io::pipe().map_err(Error::system("make a pipe"))?;
        let matrix = Arc::new(Mutex::new(Matrix {
            seed,
            started: Instant::now(),
            devices: Vec::new(),
            links: Vec::new(),
            records: VecDeque::new(),
            records_max: 0,
        }));
        let carrier = Carrier::new(matrix.clone(), sleeper);
        let thread = std::thread::Builder::new().name("carrier".to_owned());
        let carrier = thread.spawn(move || carrier.run()).map_err(Error::system("start a thread"))?;
        Ok(Self { matrix, wake: Some(wake), carrier: Some(carrier) })
    }

    /// Makes another host, with perfect links to and from all others.
    pub fn host(&self, name: &str) -> Result<Host, Error> {
        let mut matrix = self.matrix.lock();
        let index = matrix.devices.len();
        if index == HOSTS_MAX {
            return Err(Error::TooManyHosts(HOSTS_MAX));
        }
        let (host, device) = Host::new(name, index, address_of(index))?;
        matrix.add(device);
        drop(matrix);
        let mut wake = self.wake.as_ref().expect("the pipe is open until the network is dropped");
        wake.write_all(&[1]).map_err(Error::system("wake the carrier"))?;
        Ok(host)
    }

    /// The link from one host to another.
    pub fn link(&self, from: &Host, to: &Host) -> Link<'_> {
        Link { matrix: &self.matrix, from: from.index(), to: to.index() }
    }

    /// Gives these rules to all links between these hosts, both ways.
    pub fn set_among(&self, hosts: &[&Host], rules: &Rules) {
        self.between(hosts, hosts, |link| link.rules = rules.clone());
    }

    /// Cuts every link between the two sides, both ways. Links inside a side stay as they are.
    pub fn split(&self, left: &[&Host], right: &[&Host]) {
        self.between(left, right, |link| link.wire = Wire::Cut);
        self.between(right, left, |link| link.wire = Wire::Cut);
    }

    /// Cuts what leads from one host to another, but not what leads back.
    pub fn cut_one_way(&self, from: &Host, to: &Host) {
        self.between(&[from], &[to], |link| link.wire = Wire::Cut);
    }

    /// Cuts a host off from all others.
    pub fn isolate(&self, host: &Host) {
        let mut matrix = self.matrix.lock();
        for other in (0..matrix.devices.len()).filter(|other| *other != host.index()) {
            matrix.links[host.index()][other].wire = Wire::Cut;
            matrix.links[other][host.index()].wire = Wire::Cut;
        }
    }

    /// Mends every cut and takes back every rule.
    pub fn heal(&self) {
        for link in self.matrix.lock().links.iter_mut().flatten() {
            link.wire = Wire::Whole;
            link.rules = Rules::default();
        }
    }

    /// What all links have done together.
    pub fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        self.matrix.lock().links.iter().flatten().for_each(|link| sum.add(&link.counts));
        sum
    }

    /// Begins to log, or ends it with zero: the last `records_max` packets are kept.
    pub fn record(&self, records_max: usize) {
        let mut matrix = self.matrix.lock();
        matrix.records_max = records_max;
        matrix.records.clear();
    }

    /// The log, oldest first.
    pub fn records(&self) -> Vec<Record> {
        self.matrix.lock().records.iter().copied().collect()
    }

    fn between(&self, from: &[&Host], to: &[&Host], change: impl Fn(&mut LinkState)) {
        let mut matrix = self.matrix.lock();
        for from in from {
            for to in to.iter().filter(|to| to.index() != from.index()) {
                change(&mut matrix.links[from.index()][to.index()]);
            }
        }
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        drop(self.wake.take());
        if let Some(carrier) = self.carrier.take() {
            let ended = carrier.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the carrier panicked");
        }
    }
}

impl Link<'_> {
    /// Replaces its rules.
    pub fn set(&self, rules: Rules) {
        self.change(|link| link.rules = rules);
    }

    /// Cuts it.
    pub fn cut(&self) {
        self.change(|link| link.wire = Wire::Cut);
    }

    /// Mends a cut. Its rules stay.
    pub fn mend(&self) {
        self.change(|link| link.wire = Wire::Whole);
    }

    /// What it has done.
    pub fn counts(&self) -> Counts {
        self.matrix.lock().links[self.from][self.to].counts
    }

    fn change(&self, change: impl FnOnce(&mut LinkState)) {
        change(&mut self.matrix.lock().links[self.from][self.to]);
    }
}

impl Matrix {
    fn add(&mut self, device: SyncDevice) {
        let index = self.devices.len();
        let seed = self.seed;
        let link = |from: usize, to: usize| {
            let of_pair = SplitMix::new(seed ^ ((from as u64) << 32 | to as u64));
            LinkState::new(of_pair.next_u64())
        };
        for (from, row) in self.links.iter_mut().enumerate() {
            row.push(link(from, index));
        }
        self.links.push((0..=index).map(|to| link(index, to)).collect());
        self.devices.push(Arc::new(device));
    }

    /// The time, as links reckon it.
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::ORIGIN + self.started.elapsed()
    }

    /// The host to which an IPv4 packet goes, if there is one.
    pub(crate) fn destination(&self, packet: &[u8]) -> Option<usize> {
        if packet.len() < 20 || packet[0] >> 4 != 4 {
            return None;
        }
        let to = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]);
        (0..self.devices.len()).find(|index| address_of(*index) == to)
    }

    /// Decides what becomes of a packet, and logs it.
    pub(crate) fn pass(&mut self, from: usize, to: usize, bytes: usize) -> Passage {
        let at = self.now();
        let passage = self.links[from][to].pass(at, bytes);
        if self.records_max > 0 {
            if self.records.len() >= self.records_max {
                self.records.pop_front();
            }
            let (from, to) = (address_of(from), address_of(to));
            self.records.push_back(Record { at, from, to, bytes, fate: passage.fate });
        }
        passage
    }

    /// Counts a packet that was to be carried but found the carrier's queue full.
    pub(crate) fn overflowed(&mut self, from: usize, to: usize) {
        let counts = &mut self.links[from][to].counts;
        counts.carried -= 1;
        counts.overflowed += 1;
    }
}

fn address_of(index: usize) -> Ipv4Addr {
    let last = u8::try_from(index + 1).expect("there are at most HOSTS_MAX hosts");
    Ipv4Addr::new(198, 18, 0, last)
}
