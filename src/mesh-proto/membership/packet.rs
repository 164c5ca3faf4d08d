//! The layout of foca's packets: fixed, little-endian, and read with every length checked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Member, Message, State};

use super::identity::Identity;
use crate::NodeId;

/// Reads and writes packets. It notes the incarnation of the last packet written, which foca does not tell.
#[derive(Default)]
pub(crate) struct PacketCodec {
    /// This node's incarnation.
    pub(crate) incarnation: u16,
}

/// A packet does not fit, or is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a packet of this layout, or no room for it")]
pub(crate) struct PacketError;

impl Codec<Identity> for PacketCodec {
    type Error = PacketError;

    fn encode_header(&mut self, header: &Header<Identity>, buf: impl BufMut) -> Result<(), PacketError> {
        self.incarnation = header.src_incarnation;
        let mut bytes = Vec::with_capacity(160);
        put_identity(&mut bytes, &header.src);
        bytes.put_u16_le(header.src_incarnation);
        put_identity(&mut bytes, &header.dst);
        put_message(&mut bytes, &header.message);
        put_all(buf, &bytes)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Identity>, PacketError> {
        read_header(buf)
    }

    fn encode_member(&mut self, member: &Member<Identity>, buf: impl BufMut) -> Result<(), PacketError> {
        let mut bytes = Vec::with_capacity(64);
        put_identity(&mut bytes, member.id());
        bytes.put_u16_le(member.incarnation());
        bytes.put_u8(match member.state() {
            State::Alive => 0,
            State::Suspect => 1,
            State::Down => 2,
        });
        put_all(buf, &bytes)
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<Identity>, PacketError> {
        let identity = read_identity(&mut buf)?;
        let incarnation = buf.try_get_u16_le().map_err(|_| PacketError)?;
        let state = match buf.try_get_u8().map_err(|_| PacketError)? {
            0 => State::Alive,
            1 => State::Suspect,
            2 => State::Down,
            _ => return Err(PacketError),
        };
        Ok(Member::new(identity, incarnation, state))
    }
}

/// Reads the header of a packet.
pub(crate) fn read_header(mut buf: impl Buf) -> Result<Header<Identity>, PacketError> {
    let src = read_identity(&mut buf)?;
    let src_incarnation = buf.try_get_u16_le().map_err(|_| PacketError)?;
    let dst = read_identity(&mut buf)?;
    let message = read_message(&mut buf)?;
    Ok(Header { src, src_incarnation, dst, message })
}

/// How many updates follow a header.
pub(crate) fn updates(rest: &[u8]) -> usize {
    rest.first_chunk().map_or(0, |count| usize::from(u16::from_be_bytes(*count)))
}

/// The updates after a header, as far as they can be read.
pub(crate) fn read_updates(rest: &[u8]) -> impl Iterator<Item = Member<Identity>> {
    let mut codec = PacketCodec::default();
    let mut members = rest.get(2..).unwrap_or_default();
    (0..updates(rest)).map_while(move |_| codec.decode_member(&mut members).ok())
}

/// foca's buffer has an end, and writing beyond it panics.
fn put_all(mut buf: impl BufMut, bytes: &[u8]) -> Result<(), PacketError> {
    if buf.remaining_mut() < bytes.len() {
        return Err(PacketError);
    }
    buf.put_slice(bytes);
    Ok(())
}

fn put_identity(bytes: &mut Vec<u8>, identity: &Identity) {
    bytes.put_u128_le(identity.node.as_u128());
    bytes.put_u64_le(identity.boot);
    bytes.put_u16_le(identity.bump);
    match identity.address.ip() {
        IpAddr::V4(ip) => {
            bytes.put_u8(4);
            bytes.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            bytes.put_u8(6);
            bytes.put_slice(&ip.octets());
        }
    }
    bytes.put_u16_le(identity.address.port());
    bytes.put_u32_le(identity.zone);
    bytes.put_u32_le(identity.region);
}

fn read_identity(buf: &mut impl Buf) -> Result<Identity, PacketError> {
    let node = NodeId::from_u128(buf.try_get_u128_le().map_err(|_| PacketError)?);
    let boot = buf.try_get_u64_le().map_err(|_| PacketError)?;
    let bump = buf.try_get_u16_le().map_err(|_| PacketError)?;
    let ip = match buf.try_get_u8().map_err(|_| PacketError)? {
        4 => IpAddr::V4(Ipv4Addr::from_bits(buf.try_get_u32().map_err(|_| PacketError)?)),
        6 => IpAddr::V6(Ipv6Addr::from_bits(buf.try_get_u128().map_err(|_| PacketError)?)),
        _ => return Err(PacketError),
    };
    let port = buf.try_get_u16_le().map_err(|_| PacketError)?;
    let zone = buf.try_get_u32_le().map_err(|_| PacketError)?;
    let region = buf.try_get_u32_le().map_err(|_| PacketError)?;
    Ok(Identity { node, boot, bump, address: SocketAddr::new(ip, port), zone, region })
}

fn put_message(bytes: &mut Vec<u8>, message: &Message<Identity>) {
    let mut put = |tag: u8, whom: Option<&Identity>, number: Option<u8>| {
        bytes.put_u8(tag);
        if let Some(whom) = whom {
            put_identity(bytes, whom);
        }
        if let Some(number) = number {
            bytes.put_u8(number);
        }
    };
    match message {
        Message::Ping(number) => put(0, None, Some(*number)),
        Message::Ack(number) => put(1, None, Some(*number)),
        Message::PingReq { target, probe_number } => put(2, Some(target), Some(*probe_number)),
        Message::IndirectPing { origin, probe_number } => put(3, Some(origin), Some(*probe_number)),
        Message::IndirectAck { target, probe_number } => put(4, Some(target), Some(*probe_number)),
        Message::ForwardedAck { origin, probe_number } => put(5, Some(origin), Some(*probe_number)),
        Message::Announce => put(6, None, None),
        Message::Feed => put(7, None, None),
        Message::Gossip => put(8, None, None),
        Message::Broadcast => put(9, None, None),
        Message::TurnUndead => put(10, None, None),
    }
}

fn read_message(buf: &mut impl Buf) -> Result<Message<Identity>, PacketError> {
    let tag = buf.try_get_u8().map_err(|_| PacketError)?;
    Ok(match tag {
        0 => Message::Ping(read_number(buf)?),
        1 => Message::Ack(read_number(buf)?),
        2 => Message::PingReq { target: read_identity(buf)?, probe_number: read_number(buf)? },
        3 => Message::IndirectPing { origin: read_identity(buf)?, probe_number: read_number(buf)? },
        4 => Message::IndirectAck { target: read_identity(buf)?, probe_number: read_number(buf)? },
        5 => Message::ForwardedAck { origin: read_identity(buf)?, probe_number: read_number(buf)? },
        6 => Message::Announce,
        7 => Message::Feed,
        8 => Message::Gossip,
        // 9 is foca's custom broadcast, which nobody sends.
        10 => Message::TurnUndead,
        _ => return Err(PacketError),
    })
}

fn read_number(buf: &mut impl Buf) -> Result<u8, PacketError> {
    buf.try_get_u8().map_err(|_| PacketError)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(name: &str, address: &str) -> Identity {
        let node = NodeId::of(name);
        Identity { node, boot: 7, bump: 3, address: address.parse().unwrap(), zone: 1, region: u32::MAX }
    }

    #[test]
    fn every_message_is_read_as_it_was_written() {
        let (a, b) = (identity("a", "10.0.0.1:39527"), identity("b", "[fd00::1]:1"));
        let messages = [
            Message::Ping(1),
            Message::Ack(255),
            Message::PingReq { target: b, probe_number: 2 },
            Message::IndirectPing { origin: a, probe_number: 3 },
            Message::IndirectAck { target: a, probe_number: 4 },
            Message::ForwardedAck { origin: b, probe_number: 5 },
            Message::Announce,
            Message::Feed,
            Message::Gossip,
            Message::TurnUndead,
        ];
        for message in messages {
            let header = Header { src: a, src_incarnation: 9, dst: b, message };
            let mut bytes = Vec::new();
            let mut codec = PacketCodec::default();
            codec.encode_header(&header, &mut bytes).unwrap();
            assert_eq!(codec.decode_header(&bytes[..]).unwrap(), header);
            assert_eq!(codec.incarnation, 9);
            for end in 0..bytes.len() {
                assert_eq!(codec.decode_header(&bytes[..end]), Err(PacketError), "cut at {end}");
            }
            assert_eq!(codec.encode_header(&header, (&mut Vec::new()).limit(bytes.len() - 1)), Err(PacketError));
        }
    }

    #[test]
    fn the_layout_of_an_identity_is_pinned() {
        let mut bytes = Vec::new();
        put_identity(&mut bytes, &Identity { node: NodeId::from_u128(1), ..identity("a", "1.2.3.4:5") });
        let expected: &[u8] = &[
            1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // node
            7, 0, 0, 0, 0, 0, 0, 0, 3, 0, // boot, bump
            4, 1, 2, 3, 4, 5, 0, // address
            1, 0, 0, 0, 255, 255, 255, 255, // zone, region
        ];
        assert_eq!(bytes, expected);
    }
}
