//! The network measured from outside, by what the kernel's sockets see. Where a machine can't have such a network, each
//! test says so and counts as one skipped.

use std::{
    fs::OpenOptions,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::process::ExitStatusExt,
    process::Stdio,
    time::{Duration, Instant},
};

use crate::{Error, Fabric, Fate, Host, Rules};

const SEED: u64 = 7;

/// How long to wait for a packet that should come. Far above what it takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long to wait for a packet that should not come.
const SILENCE: Duration = Duration::from_millis(150);

fn network() -> Option<Fabric> {
    match Fabric::new(SEED) {
        Ok(fabric) => Some(fabric),
        Err(error) if error.is_lack() => {
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            println!("SKIP 1 test: {test}: {error}");
            if let Some(path) = std::env::var_os("SMG_TEST_SKIPS") {
                let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
                writeln!(file, "{test}: {error}").unwrap();
            }
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// A host with a socket of its own.
struct Place {
    host: Host,
    socket: UdpSocket,
}

impl Place {
    fn new(fabric: &Fabric, name: &str) -> Self {
        let host = fabric.host(name).unwrap();
        let address = host.address();
        let socket = host.run(move || UdpSocket::bind((address, 0)).unwrap());
        Self { host, socket }
    }

    fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    /// The next datagram within `patience`: its number, and its length.
    fn next(&self, patience: Duration) -> Option<(u32, usize)> {
        let mut buffer = [0; 2_000];
        self.socket.set_read_timeout(Some(patience)).unwrap();
        let size = self.socket.recv(&mut buffer).ok()?;
        Some((u32::from_be_bytes(buffer[..4].try_into().unwrap()), size))
    }

    fn send(&self, to: &Self, number: u32, bytes: usize) {
        let mut datagram = vec![0; bytes];
        datagram[..4].copy_from_slice(&number.to_be_bytes());
        self.socket.send_to(&datagram, to.address()).unwrap();
    }

    /// Sends `count` datagrams of 200 bytes, and returns the numbers of those that came. A few at a time, since receive
    /// buffers are small; the last of each batch is known to have gone by when the counters say so.
    fn sends(&self, to: &Self, count: u32, fabric: &Fabric) -> Vec<u32> {
        let mut came = Vec::new();
        let before = fabric.link(&self.host, &to.host).counts().packets;
        for first in (0..count).step_by(50) {
            let end = (first + 50).min(count);
            (first..end).for_each(|number| self.send(to, number, 200));
            let sent = before + u64::from(end);
            let deadline = Instant::now() + PATIENCE;
            while fabric.link(&self.host, &to.host).counts().packets < sent {
                assert!(Instant::now() < deadline, "the carrier is behind");
                came.extend(to.next(Duration::from_millis(1)).map(|(number, _)| number));
            }
            while let Some((number, _)) = to.next(Duration::from_millis(5)) {
                came.push(number);
            }
        }
        while let Some((number, _)) = to.next(SILENCE) {
            came.push(number);
        }
        came
    }

    fn reaches(&self, to: &Self) -> bool {
        self.send(to, 1, 100);
        to.next(SILENCE).is_some()
    }
}

fn pair(fabric: &Fabric) -> [Place; 2] {
    ["left", "right"].map(|name| Place::new(fabric, name))
}

#[test]
fn a_plain_link_carries_all_in_order_and_fast() {
    let Some(fabric) = network() else { return };
    let [left, right] = pair(&fabric);
    assert_eq!(left.sends(&right, 1_000, &fabric), (0..1_000).collect::<Vec<_>>());
    let mut times: Vec<Duration> = (0..200).map(|number| round_trip(&left, &right, number)).collect();
    times.sort();
    println!("round trip p50 {:?}, p99 {:?}", times[100], times[198]);
    assert_eq!(fabric.counts().lost, 0);
}

fn round_trip(left: &Place, right: &Place, number: u32) -> Duration {
    let started = Instant::now();
    left.send(right, number, 100);
    assert_eq!(right.next(PATIENCE), Some((number, 100)));
    right.send(left, number, 100);
    assert_eq!(left.next(PATIENCE), Some((number, 100)));
    started.elapsed()
}

#[test]
fn loss_is_as_asked_on_that_direction_only() {
    let Some(fabric) = network() else { return };
    let [left, right] = pair(&fabric);
    fabric.link(&left.host, &right.host).set(Rules::loss(0.3));
    let there = left.sends(&right, 2_000, &fabric).len();
    let back = right.sends(&left, 500, &fabric).len();
    println!("asked for 30 % loss, measured {:.1} % (seed {SEED})", 100.0 - there as f64 / 20.0);
    assert!((1_300..1_500).contains(&there), "{there} of 2000 came (seed {SEED})");
    assert_eq!(back, 500);
    let counts = fabric.link(&left.host, &right.host).counts();
    assert_eq!((counts.packets, counts.carried), (2_000, there as u64));
}

#[test]
fn delay_is_as_asked() {
    let Some(fabric) = network() else { return };
    let [left, right] = pair(&fabric);
    fabric.set_among(&[&left.host, &right.host], &Rules::delay(Duration::from_millis(40)));
    let mut times: Vec<Duration> = (0..20).map(|number| round_trip(&left, &right, number)).collect();
    times.sort();
    println!("asked for 40 ms each way, measured round trips of {:?} to {:?}", times[0], times[19]);
    assert!(times[0] >= Duration::from_millis(80), "{times:?}");
    assert!(times[0] < Duration::from_millis(120), "{times:?}");
}

#[test]
fn jitter_and_late_packets_change_the_order() {
    let Some(fabric) = network() else { return };
    let [left, right] = pair(&fabric);
    let delay = Duration::from_millis(20);
    for rules in [
        Rules { delay, jitter: Duration::from_millis(10), ..Rules::default() },
        Rules { reorder: 0.2, ..Rules::default() },
    ] {
        fabric.link(&left.host, &right.host).set(rules.clone());
        let came = left.sends(&right, 300, &fabric);
        let overtaken = came.windows(2).filter(|pair| pair[0] > pair[1]).count();
        assert_eq!(came.len(), 300, "{rules:?}");
        assert!(overtaken > 5, "{rules:?}: {overtaken} of 300 were overtaken (seed {SEED})");
    }
}

#[test]
fn doubles_damage_and_long_packets_are_as_asked() {
    let Some(fabric) = network() else { return };
    let [left, right] = pair(&fabric);
    let link = fabric.link(&left.host, &right.host);
    link.set(Rules { duplicate: 0.1, ..Rules::default() });
    let came = left.sends(&right, 1_000, &fabric).len();
    assert!((1_060..1_140).contains(&came), "{came} of 1000, some twice (seed {SEED})");
    // The receiver's kernel drops what its checksum finds damaged.
    link.set(Rules { corrupt: 0.2, ..Rules::default() });
    let came = left.sends(&right, 1_000, &fabric).len();
    assert!((750..850).contains(&came), "{came} of 1000 came whole (seed {SEED})");
    link.set(Rules { packet_bytes_max: Some(1_200), ..Rules::default() });
    left.send(&right, 1, 1_300);
    left.send(&right, 2, 1_000);
    assert_eq!(right.next(PATIENCE), Some((2, 1_000)));
}

#[test]
fn a_rate_is_kept_by_dropping() {
    let Some(fabric) = network() else { return };
    let [left, right] = pair(&fabric);
    // 100 kB at once: 200 ms of it fit into the queue, and about one packet more.
    fabric.link(&left.host, &right.host).set(Rules { rate: Some(1_000_000), ..Rules::default() });
    let started = Instant::now();
    (0..100).for_each(|number| left.send(&right, number, 972));
    let came = std::iter::from_fn(|| right.next(SILENCE)).count();
    println!("1 Mbit/s carried {came} packets of 8 kbit in {:?}", started.elapsed() - SILENCE);
    assert!((25..60).contains(&came), "{came} of 100 came");
    assert_eq!(fabric.link(&left.host, &right.host).counts().overflowed, 100 - came as u64);
}

#[test]
fn cuts_are_exact_and_heal() {
    let Some(fabric) = network() else { return };
    let places: Vec<Place> = ["a", "b", "c", "d", "e"].iter().map(|name| Place::new(&fabric, name)).collect();
    let hosts: Vec<&Host> = places.iter().map(|place| &place.host).collect();
    let check = |what: &str, expected: &dyn Fn(usize, usize) -> bool| {
        for (from, left) in places.iter().enumerate() {
            for (to, right) in places.iter().enumerate().filter(|(to, _)| *to != from) {
                assert_eq!(left.reaches(right), expected(from, to), "{what}: {from} to {to}");
            }
        }
    };
    check("at first", &|_, _| true);
    fabric.split(&hosts[..2], &hosts[2..]);
    check("halves", &|from, to| (from < 2) == (to < 2));
    fabric.heal();
    fabric.cut_one_way(hosts[0], hosts[1]);
    check("one way", &|from, to| (from, to) != (0, 1));
    fabric.heal();
    fabric.isolate(hosts[4]);
    check("isolated", &|from, to| from != 4 && to != 4);
    fabric.link(hosts[4], hosts[0]).mend();
    check("mended one way", &|from, to| (from != 4 && to != 4) || (from, to) == (4, 0));
    fabric.heal();
    check("healed", &|_, _| true);
}

#[test]
fn a_stream_survives_loss_and_delay() {
    let Some(fabric) = network() else { return };
    let [left, right] = ["left", "right"].map(|name| fabric.host(name).unwrap());
    let rules = Rules { loss: 0.05, delay: Duration::from_millis(2), ..Rules::default() };
    fabric.set_among(&[&left, &right], &rules);
    let address = right.address();
    let listener = right.run(move || TcpListener::bind((address, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    let text: Vec<u8> = (0..1_000_000_u32).map(|index| (index % 251) as u8).collect();
    let sent = text.clone();
    let sender = std::thread::spawn(move || {
        let mut stream = left.run(move || TcpStream::connect(target)).unwrap();
        stream.write_all(&sent).unwrap();
    });
    let started = Instant::now();
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut came = Vec::new();
    stream.read_to_end(&mut came).unwrap();
    sender.join().unwrap();
    assert!(came == text, "the text came whole");
    println!("1 MB over TCP at 5 % loss and 2 ms each way: {:?}", started.elapsed());
    assert!(fabric.counts().lost > 10);
}

#[test]
fn processes_live_and_die_with_their_host() {
    let Some(fabric) = network() else { return };
    let host = fabric.host("alone").unwrap();
    let mut command = host.command("sh");
    command.args(["-c", "cat /proc/net/dev /proc/net/route"]).stdout(Stdio::piped());
    let output = host.spawn(command).unwrap().wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let devices: Vec<&str> =
        text.lines().filter_map(|line| line.split_once(": ")).map(|(name, _)| name.trim()).collect();
    assert_eq!(devices, ["lo", "fabric0"], "{text}");
    // The one route is the network's own: destination 198.18.0.0, in the byte order of the machine.
    let routes: Vec<&str> = text.lines().filter(|line| line.starts_with("fabric0\t")).collect();
    assert_eq!(routes.len(), 1, "{text}");
    assert!(routes[0].contains(&format!("{:08X}", u32::from_ne_bytes([198, 18, 0, 0]))), "{text}");

    let mut command = host.command("sleep");
    command.arg("600");
    let mut child = host.spawn(command).unwrap();
    assert!(child.try_wait().unwrap().is_none());
    drop(host);
    assert_eq!(child.wait().unwrap().signal(), Some(9));
}

#[test]
fn a_visit_ends_and_sockets_stay_where_they_were_made() {
    let Some(fabric) = network() else { return };
    let [left, right] = ["left", "right"].map(|name| fabric.host(name).unwrap());
    let outside = TcpListener::bind("127.0.0.1:0").unwrap();
    let inside = {
        let _visit = left.enter().unwrap();
        assert!(TcpStream::connect(outside.local_addr().unwrap()).is_err(), "loopback is the host's own");
        UdpSocket::bind((left.address(), 9)).unwrap()
    };
    assert!(TcpStream::connect(outside.local_addr().unwrap()).is_ok());
    assert!(UdpSocket::bind((left.address(), 10)).is_err(), "the address is the host's own");
    let from = right.address();
    let sender = right.run(move || UdpSocket::bind((from, 0)).unwrap());
    sender.send_to(b"here", (left.address(), 9)).unwrap();
    inside.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 8];
    assert_eq!(inside.recv_from(&mut buffer).unwrap(), (4, sender.local_addr().unwrap()));
}

#[test]
fn the_log_tells_each_packets_fate() {
    let Some(fabric) = network() else { return };
    let [left, right] = pair(&fabric);
    fabric.record(2);
    fabric.cut_one_way(&right.host, &left.host);
    for (number, [from, to]) in [(1, [&left, &right]), (2, [&left, &right]), (3, [&right, &left])] {
        from.send(to, number, 100);
        let arrives = number < 3;
        assert_eq!(to.next(if arrives { PATIENCE } else { SILENCE }).is_some(), arrives);
    }
    let records: Vec<_> = fabric.records().iter().map(|record| (record.from, record.bytes, record.fate)).collect();
    let [left, right] = [left.host.address(), right.host.address()];
    assert_eq!(records, [(left, 128, Fate::Carried), (right, 128, Fate::Cut)]);
}

#[test]
fn hosts_are_counted() {
    let Some(fabric) = network() else { return };
    let hosts: Vec<Host> = (0..40).map(|index| fabric.host(&format!("{index}")).unwrap()).collect();
    assert_eq!(hosts[39].address().octets(), [198, 18, 0, 40]);
    assert!(matches!(Error::TooManyHosts(crate::HOSTS_MAX), error if !error.is_lack()));
}
