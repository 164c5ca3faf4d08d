//! Network namespaces of threads: a new one with loopback and a TUN device, and visits to others.

use std::{fs::File, io, net::Ipv4Addr, os::fd::AsRawFd};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
    sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket},
};
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::Error;

/// Ethernet's, so that QUIC finds what it finds outside.
const PACKET_BYTES_MAX: u16 = 1_500;

/// 198.18.0.0/15 is set aside for benchmarks (RFC 2544): no real network uses it.
const PREFIX_BITS: u8 = 15;

/// The namespace a thread lives in, held by an open descriptor.
pub(crate) fn current() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}

/// Moves this thread into a namespace.
pub(crate) fn join(namespace: &File) -> io::Result<()> {
    Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
}

/// Moves this thread into a new namespace in which `address` is the only way out; returns the other end of that way.
pub(crate) fn leave_for_new(address: Ipv4Addr) -> Result<SyncDevice, Error> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
        Errno::EPERM => Error::Permission(errno.into()),
        _ => Error::System { step: "make a network namespace", source: errno.into() },
    })?;
    raise_loopback().map_err(Error::system("raise the loopback device"))?;
    let device = DeviceBuilder::new()
        .name("fabric0")
        .ipv4(address, PREFIX_BITS, None)
        .mtu(PACKET_BYTES_MAX)
        .tx_queue_len(4_000)
        .build_sync()
        .map_err(Error::NoDevice)?;
    device.set_nonblocking(true).map_err(Error::system("prepare the TUN device"))?;
    Ok(device)
}

/// `ip link set lo up`, as one message to the kernel (`man 7 rtnetlink`): a header, then the device and its flags.
fn raise_loopback() -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST_ACK: u16 = 1 | 4;
    const NLMSG_ERROR: u16 = 2;
    const LOOPBACK: i32 = 1; // the first device of every namespace
    const IFF_UP: u32 = 1;
    const BYTES: u32 = 32;

    let mut message = Vec::with_capacity(BYTES as usize);
    message.extend(BYTES.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    message.extend([0; 8]); // sequence, sender
    message.extend([0; 4]); // family, type
    message.extend(LOOPBACK.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes()); // the flags' values
    message.extend(IFF_UP.to_ne_bytes()); // which of them to change

    let kernel = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    sendto(kernel.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0; 64];
    let size = recv(kernel.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    match (size >= 20 && kind == NLMSG_ERROR, code) {
        (true, 0) => Ok(()),
        (true, code) => Err(io::Error::from_raw_os_error(-code)),
        (false, _) => Err(io::Error::other("the kernel's answer is no acknowledgement")),
    }
}
