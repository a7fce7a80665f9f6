//! [`Packet`] → bytes, appended to the connection's output. Allocates only by growing it.
//!
//! What the types leave open is checked (lengths, packet id against QoS, flags against each other); the text of topics
//! is not read again: it comes from a packet, a template or the topic module, which checked it.

use super::{
    decode::check_suback_codes,
    error::{EncodeError, Malformed},
    header::{PacketType, REMAINING_LENGTH_MAX, remaining_length_bytes, write_fixed_header},
    packet::{Connect, ConnectCode, Packet, Publish, Subscribe, Unsubscribe},
};
use crate::message::{PacketId, QoS};

/// Appends `packet` to `out`.
///
/// # Errors
/// The packet has no form on the wire; `out` is as it was.
#[inline]
pub fn encode(packet: &Packet<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    match packet {
        Packet::PubAck(id) => put_acknowledgement(PacketType::PubAck, *id, out),
        Packet::Publish(publish) => put_publish(publish, out)?,
        Packet::PingResp => write_fixed_header(PacketType::PingResp.first_byte(), 0, out),
        Packet::Connect(connect) => put_connect(connect, out)?,
        Packet::ConnAck { session_present, code } => put_connack(*session_present, *code, out)?,
        Packet::PubRec(id) => put_acknowledgement(PacketType::PubRec, *id, out),
        Packet::PubRel(id) => put_acknowledgement(PacketType::PubRel, *id, out),
        Packet::PubComp(id) => put_acknowledgement(PacketType::PubComp, *id, out),
        Packet::Subscribe(p) => put_identified(PacketType::Subscribe, p.packet_id, p.payload, out)?,
        Packet::SubAck { packet_id, codes } => {
            check_suback_codes(codes)?;
            put_identified(PacketType::SubAck, *packet_id, codes, out)?;
        }
        Packet::Unsubscribe(p) => put_identified(PacketType::Unsubscribe, p.packet_id, p.payload, out)?,
        Packet::UnsubAck(id) => put_acknowledgement(PacketType::UnsubAck, *id, out),
        Packet::PingReq => write_fixed_header(PacketType::PingReq.first_byte(), 0, out),
        Packet::Disconnect => write_fixed_header(PacketType::Disconnect.first_byte(), 0, out),
    }
    Ok(())
}

/// Bytes that [`encode`] would append.
///
/// # Errors
/// Those of [`encode`].
pub fn encoded_len(packet: &Packet<'_>) -> Result<usize, EncodeError> {
    let remaining_length = match packet {
        Packet::Connect(connect) => connect_length(connect)?,
        Packet::ConnAck { session_present, code } => connack_length(*session_present, *code)?,
        Packet::Publish(publish) => publish_length(publish)?,
        Packet::Subscribe(Subscribe { payload, .. }) | Packet::Unsubscribe(Unsubscribe { payload, .. }) => {
            2 + payload.len()
        }
        Packet::SubAck { codes, .. } => {
            check_suback_codes(codes)?;
            2 + codes.len()
        }
        Packet::PubAck(_) | Packet::PubRec(_) | Packet::PubRel(_) | Packet::PubComp(_) | Packet::UnsubAck(_) => 2,
        Packet::PingReq | Packet::PingResp | Packet::Disconnect => 0,
    };
    check_remaining_length(remaining_length)?;
    Ok(1 + remaining_length_bytes(remaining_length) + remaining_length)
}

fn check_remaining_length(length: usize) -> Result<(), EncodeError> {
    if length <= REMAINING_LENGTH_MAX { Ok(()) } else { Err(EncodeError::PacketTooLong) }
}

/// Room for the whole packet, and its fixed header.
#[inline]
fn begin(first: u8, remaining_length: usize, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    check_remaining_length(remaining_length)?;
    out.reserve(5 + remaining_length);
    write_fixed_header(first, remaining_length, out);
    Ok(())
}

fn connack_length(session_present: bool, code: ConnectCode) -> Result<usize, EncodeError> {
    // [MQTT-3.2.2-4] a refusal has session present 0
    if session_present && code != ConnectCode::Accepted { Err(Malformed::ConnAckFlags.into()) } else { Ok(2) }
}

fn put_connack(session_present: bool, code: ConnectCode, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    begin(PacketType::ConnAck.first_byte(), connack_length(session_present, code)?, out)?;
    out.extend_from_slice(&[u8::from(session_present), code as u8]);
    Ok(())
}

fn publish_length(publish: &Publish<'_>) -> Result<usize, EncodeError> {
    let id_bytes = match (publish.qos, publish.packet_id) {
        (QoS::AtMostOnce, None) if publish.dup => return Err(Malformed::PublishDup.into()),
        (QoS::AtMostOnce, None) => 0,
        (QoS::AtLeastOnce | QoS::ExactlyOnce, Some(_)) => 2,
        _ => return Err(EncodeError::PacketId),
    };
    if publish.topic.is_empty() {
        return Err(Malformed::TopicEmpty.into());
    }
    Ok(field_length(publish.topic.as_bytes())? + id_bytes + publish.payload.len())
}

fn connect_length(connect: &Connect<'_>) -> Result<usize, EncodeError> {
    if connect.password.is_some() && connect.user_name.is_none() {
        return Err(Malformed::PasswordWithoutUserName.into());
    }
    let will = connect.will.map(|will| [will.topic.as_bytes(), will.payload]);
    let fields = will.into_iter().flatten().chain(connect.user_name.map(str::as_bytes)).chain(connect.password);
    let mut length = 10 + field_length(connect.client_id.as_bytes())?;
    for field in fields {
        length += field_length(field)?;
    }
    Ok(length)
}

/// A string or binary with its two-byte length.
fn field_length(field: &[u8]) -> Result<usize, EncodeError> {
    if u16::try_from(field.len()).is_ok() { Ok(2 + field.len()) } else { Err(EncodeError::FieldTooLong) }
}

#[inline]
fn put_acknowledgement(packet_type: PacketType, packet_id: PacketId, out: &mut Vec<u8>) {
    let [high, low] = packet_id.0.get().to_be_bytes();
    out.extend_from_slice(&[packet_type.first_byte(), 2, high, low]);
}

fn publish_flags(publish: &Publish<'_>) -> u8 {
    (u8::from(publish.dup) << 3) | ((publish.qos as u8) << 1) | u8::from(publish.retain)
}

#[inline]
fn put_publish(publish: &Publish<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    begin(PacketType::Publish.first_byte() | publish_flags(publish), publish_length(publish)?, out)?;
    put_field(publish.topic.as_bytes(), out);
    if let Some(packet_id) = publish.packet_id {
        out.extend_from_slice(&packet_id.0.get().to_be_bytes());
    }
    out.extend_from_slice(publish.payload);
    Ok(())
}

fn put_connect(connect: &Connect<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    begin(PacketType::Connect.first_byte(), connect_length(connect)?, out)?;
    put_field(b"MQTT", out);
    out.extend_from_slice(&[4, connect_flags(connect)]);
    out.extend_from_slice(&connect.keep_alive_s.to_be_bytes());
    put_field(connect.client_id.as_bytes(), out);
    if let Some(will) = &connect.will {
        put_field(will.topic.as_bytes(), out);
        put_field(will.payload, out);
    }
    if let Some(user_name) = connect.user_name {
        put_field(user_name.as_bytes(), out);
    }
    if let Some(password) = connect.password {
        put_field(password, out);
    }
    Ok(())
}

fn connect_flags(connect: &Connect<'_>) -> u8 {
    let will = connect.will.map_or(0, |will| (u8::from(will.retain) << 5) | ((will.qos as u8) << 3) | 0x04);
    let user_name = u8::from(connect.user_name.is_some()) << 7;
    let password = u8::from(connect.password.is_some()) << 6;
    user_name | password | will | (u8::from(connect.clean_session) << 1)
}

fn put_identified(
    packet_type: PacketType,
    packet_id: PacketId,
    payload: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    begin(packet_type.first_byte(), 2 + payload.len(), out)?;
    out.extend_from_slice(&packet_id.0.get().to_be_bytes());
    out.extend_from_slice(payload);
    Ok(())
}

/// The length was checked by [`field_length`].
pub(super) fn put_field(field: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(field.len() as u16).to_be_bytes());
    out.extend_from_slice(field);
}
