//! The thread that carries every packet.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io::{PipeReader, Read},
    os::fd::AsFd,
    sync::Arc,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};
use parking_lot::Mutex;
use smg_base::Timestamp;
use tun_rs::SyncDevice;

use crate::{Fate, network::Matrix};

/// Packets under way at once; more are dropped and counted.
const HELD_MAX: usize = 65_536;

/// Packets taken from one device before the others have their turn.
const TURN: usize = 64;

/// What the carrier owns.
pub(crate) struct Carrier {
    matrix: Arc<Mutex<Matrix>>,
    /// Readable when there is a new host; closed when the network is dropped.
    wake: PipeReader,
    devices: Vec<Arc<SyncDevice>>,
    held: BinaryHeap<Reverse<Held>>,
    /// Packets so far: those due at the same time leave in the order in which they came.
    sequence: u64,
    buffer: Vec<u8>,
}

/// A packet under way.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    due: Timestamp,
    sequence: u64,
    to: usize,
    packet: Vec<u8>,
}

/// Whether the network still exists.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Network {
    Exists,
    IsGone,
}

impl Carrier {
    pub(crate) fn new(matrix: Arc<Mutex<Matrix>>, wake: PipeReader) -> Self {
        Self { matrix, wake, devices: Vec::new(), held: BinaryHeap::new(), sequence: 0, buffer: vec![0; 65_536] }
    }

    /// Carries packets until the network is dropped.
    pub(crate) fn run(mut self) {
        while self.wait() == Network::Exists {
            for from in 0..self.devices.len() {
                self.take(from);
            }
            self.deliver();
        }
    }

    /// Sleeps until there is something to read, or something to deliver.
    fn wait(&mut self) -> Network {
        let now = self.matrix.lock().now();
        let pause = self.held.peek().map(|Reverse(held)| TimeSpec::from_duration(held.due.since(now)));
        let mut watched = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        watched.extend(self.devices.iter().map(|device| PollFd::new(device.as_fd(), PollFlags::POLLIN)));
        match ppoll(&mut watched, pause, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => panic!("the carrier cannot wait: {errno}"),
        }
        let called = watched[0].any() == Some(true);
        if called {
            if self.wake.read(&mut self.buffer[..64]).is_ok_and(|size| size == 0) {
                return Network::IsGone;
            }
            self.devices.clone_from(&self.matrix.lock().devices);
        }
        Network::Exists
    }

    /// Takes what a host has sent.
    fn take(&mut self, from: usize) {
        for _ in 0..TURN {
            let Ok(size) = self.devices[from].recv(&mut self.buffer) else { return };
            let packet = &mut self.buffer[..size];
            let mut matrix = self.matrix.lock();
            // What is no IPv4, such as the kernel's search for IPv6 routers, or goes nowhere, is not a host's packet.
            let Some(to) = matrix.destination(packet) else { continue };
            let passage = matrix.pass(from, to, size);
            if passage.fate != Fate::Carried {
                continue;
            }
            if self.held.len() >= HELD_MAX {
                matrix.overflowed(from, to);
                continue;
            }
            drop(matrix);
            if let Some(chance) = passage.flip {
                flip(packet, chance);
            }
            for due in [Some(passage.due), passage.again].into_iter().flatten() {
                self.sequence += 1;
                self.held.push(Reverse(Held { due, sequence: self.sequence, to, packet: packet.to_vec() }));
            }
        }
    }

    /// Delivers what is due.
    fn deliver(&mut self) {
        let now = self.matrix.lock().now();
        while self.held.peek().is_some_and(|Reverse(held)| held.due <= now) {
            let Some(Reverse(held)) = self.held.pop() else { return };
            // A host that is gone takes nothing: as on any network, nobody is told.
            let _sent = self.devices[held.to].send(&held.packet);
        }
    }
}

/// Flips one bit behind the IP header, so that the damage arrives.
fn flip(packet: &mut [u8], chance: u64) {
    const HEADER: usize = 20;
    let bits = (packet.len().saturating_sub(HEADER) * 8) as u64;
    if bits > 0 {
        let bit = usize::try_from(chance % bits).expect("a packet is short");
        packet[HEADER + bit / 8] ^= 1 << (bit % 8);
    }
}
