//! Bytes → [`Packet`]: strict, incremental, borrowed. Never allocates, never panics, keeps nothing between calls.

use super::{
    error::{DecodeError, Malformed},
    header::{FixedHeader, PacketType},
    packet::{Connect, ConnectCode, Packet, Publish, Subscribe, Unsubscribe, Will, qos_from_bits},
    reader::Reader,
};
use crate::message::QoS;

/// What the start of a byte stream holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// A whole packet; the next one begins after `consumed` bytes.
    Packet {
        /// Borrows the bytes it was read from.
        packet: Packet<'a>,
        /// Bytes of the packet, at least 2.
        consumed: usize,
    },
    /// Call again with more bytes.
    Incomplete {
        /// All bytes of the packet from its first on, where its length is known; else one more than there are, or 2.
        needed: usize,
    },
}

/// Reads one packet that a client sent from the start of `bytes`, at most `packet_bytes_max` bytes long with its header.
///
/// # Errors
/// As soon as the bytes that are there show a fault; the same fault however they were split.
#[inline]
pub fn decode(bytes: &[u8], packet_bytes_max: usize) -> Result<Decoded<'_>, DecodeError> {
    decode_from(Sender::Client, bytes, packet_bytes_max)
}

/// As [`decode`], but takes the packets of servers too: for clients and tests.
///
/// # Errors
/// As [`decode`].
pub fn decode_any(bytes: &[u8], packet_bytes_max: usize) -> Result<Decoded<'_>, DecodeError> {
    decode_from(Sender::Any, bytes, packet_bytes_max)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sender {
    Client,
    Any,
}

#[inline]
fn decode_from(sender: Sender, bytes: &[u8], packet_bytes_max: usize) -> Result<Decoded<'_>, DecodeError> {
    if sender == Sender::Client {
        refuse_server_only(bytes)?;
    }
    let Some(header) = FixedHeader::read(bytes)? else {
        return Ok(Decoded::Incomplete { needed: (bytes.len() + 1).max(2) });
    };
    let packet_bytes = header.packet_bytes();
    if packet_bytes > packet_bytes_max {
        return Err(DecodeError::TooLarge { packet_bytes, limit: packet_bytes_max });
    }
    match bytes.get(header.header_bytes..packet_bytes) {
        None => Ok(Decoded::Incomplete { needed: packet_bytes }),
        Some(body) => Ok(Decoded::Packet { packet: read_packet(&header, body)?, consumed: packet_bytes }),
    }
}

/// Judges the first byte, so that no byte after it is waited for.
#[inline]
fn refuse_server_only(bytes: &[u8]) -> Result<(), Malformed> {
    match bytes.first() {
        Some(&first) if PacketType::of(first)?.is_server_only() => Err(Malformed::ServerOnlyType),
        _ => Ok(()),
    }
}

#[inline]
fn read_packet<'a>(header: &FixedHeader, body: &'a [u8]) -> Result<Packet<'a>, DecodeError> {
    let mut body = Reader::new(body);
    let packet = match header.packet_type {
        PacketType::Publish => Packet::Publish(read_publish(header.flags, body)?),
        PacketType::PubAck => Packet::PubAck(body.packet_id()?),
        PacketType::PingReq => Packet::PingReq,
        PacketType::Connect => return read_connect(body).map(Packet::Connect),
        PacketType::Subscribe => Packet::Subscribe(read_subscribe(body)?),
        PacketType::Unsubscribe => Packet::Unsubscribe(read_unsubscribe(body)?),
        PacketType::Disconnect => Packet::Disconnect,
        PacketType::PubRec => Packet::PubRec(body.packet_id()?),
        PacketType::PubRel => Packet::PubRel(body.packet_id()?),
        PacketType::PubComp => Packet::PubComp(body.packet_id()?),
        PacketType::ConnAck => read_connack(body)?,
        PacketType::SubAck => read_suback(body)?,
        PacketType::UnsubAck => Packet::UnsubAck(body.packet_id()?),
        PacketType::PingResp => Packet::PingResp,
    };
    Ok(packet)
}

/// 3.3; the flags were judged with the first byte.
#[inline]
fn read_publish(flags: u8, mut body: Reader<'_>) -> Result<Publish<'_>, Malformed> {
    let qos = qos_from_bits(flags >> 1).ok_or(Malformed::PublishQos)?;
    let topic = body.topic_name()?;
    // [MQTT-2.3.1-5] a PUBLISH of QoS 0 has no packet id
    let packet_id = if qos == QoS::AtMostOnce { None } else { Some(body.packet_id()?) };
    Ok(Publish { dup: flags & 0b1000 != 0, qos, retain: flags & 0b0001 != 0, topic, packet_id, payload: body.rest() })
}

/// 3.1: protocol name, level, flags, keep alive; then, as the flags say, the fields of [MQTT-3.1.3-1].
fn read_connect(mut body: Reader<'_>) -> Result<Connect<'_>, DecodeError> {
    if body.binary()? != b"MQTT" {
        return Err(Malformed::ProtocolName.into());
    }
    // the rest of another level has another shape
    let level = body.byte()?;
    if level != 4 {
        return Err(DecodeError::UnsupportedLevel(level));
    }
    let flags = ConnectFlags::new(body.byte()?)?;
    let keep_alive_s = body.integer()?;
    let client_id = body.text()?;
    let will = flags.will.map(|(qos, retain)| read_will(qos, retain, &mut body)).transpose()?;
    let user_name = flags.user_name.then(|| body.text()).transpose()?;
    let password = flags.password.then(|| body.binary()).transpose()?;
    body.end()?;
    Ok(Connect { clean_session: flags.clean_session, keep_alive_s, client_id, will, user_name, password })
}

fn read_will<'a>(qos: QoS, retain: bool, body: &mut Reader<'a>) -> Result<Will<'a>, Malformed> {
    Ok(Will { topic: body.topic_name()?, payload: body.binary()?, qos, retain })
}

/// The connect flags (3.1.2.3), once their combination is legal.
struct ConnectFlags {
    clean_session: bool,
    will: Option<(QoS, bool)>,
    user_name: bool,
    password: bool,
}

impl ConnectFlags {
    fn new(bits: u8) -> Result<Self, Malformed> {
        let (user_name, password, retain) = (bits & 0x80 != 0, bits & 0x40 != 0, bits & 0x20 != 0);
        if bits & 0x01 != 0 {
            return Err(Malformed::ConnectFlag);
        }
        if password && !user_name {
            return Err(Malformed::PasswordWithoutUserName);
        }
        let will = match (bits & 0x04 != 0, (bits >> 3) & 0b11) {
            (true, qos) => Some((qos_from_bits(qos).ok_or(Malformed::WillQos)?, retain)),
            (false, 0) if !retain => None,
            (false, _) => return Err(Malformed::WillFlags),
        };
        Ok(Self { clean_session: bits & 0x02 != 0, will, user_name, password })
    }
}

fn read_connack(mut body: Reader<'_>) -> Result<Packet<'_>, Malformed> {
    let flags = body.byte()?;
    let code = ConnectCode::from_byte(body.byte()?).ok_or(Malformed::ConnAckCode)?;
    match (flags, code) {
        (0, code) => Ok(Packet::ConnAck { session_present: false, code }),
        (1, ConnectCode::Accepted) => Ok(Packet::ConnAck { session_present: true, code }),
        _ => Err(Malformed::ConnAckFlags),
    }
}

fn read_subscribe(mut body: Reader<'_>) -> Result<Subscribe<'_>, Malformed> {
    let packet_id = body.packet_id()?;
    Subscribe::checked(packet_id, body.rest())
}

fn read_unsubscribe(mut body: Reader<'_>) -> Result<Unsubscribe<'_>, Malformed> {
    let packet_id = body.packet_id()?;
    Unsubscribe::checked(packet_id, body.rest())
}

fn read_suback(mut body: Reader<'_>) -> Result<Packet<'_>, Malformed> {
    let packet_id = body.packet_id()?;
    let codes = body.rest();
    check_suback_codes(codes)?;
    Ok(Packet::SubAck { packet_id, codes })
}

/// [MQTT-3.9.3-2]; one per filter, and there is no SUBSCRIBE without a filter.
pub(super) fn check_suback_codes(codes: &[u8]) -> Result<(), Malformed> {
    let legal = !codes.is_empty() && codes.iter().all(|code| matches!(code, 0..=2 | 0x80));
    if legal { Ok(()) } else { Err(Malformed::SubAckCodes) }
}
