//! The few MQTT 3.1.1 packets that a device sends and receives.

use std::io;

/// What a server sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// Return code; session present.
    ConnAck(u8, bool),
    /// Packet id.
    PubAck(u16),
    /// Packet id; one code a filter.
    SubAck(u16, Vec<u8>),
    /// Packet id.
    UnsubAck(u16),
    /// A message for us.
    Publish(Message),
    /// Answer to PINGREQ.
    PingResp,
}

/// One PUBLISH from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Topic name.
    pub topic: String,
    /// Application message.
    pub payload: Vec<u8>,
    /// 0 or 1.
    pub qos: u8,
    /// DUP flag.
    pub dup: bool,
    /// Packet id of a QoS 1 message.
    pub packet_id: Option<u16>,
}

/// Appends a CONNECT.
pub fn connect(
    out: &mut Vec<u8>,
    client_id: &str,
    user: Option<&str>,
    password: Option<&[u8]>,
    keep_alive_s: u16,
    clean: bool,
) {
    let mut body = Vec::with_capacity(64);
    string(&mut body, b"MQTT");
    let flags = u8::from(user.is_some()) << 7 | u8::from(password.is_some()) << 6 | u8::from(clean) << 1;
    body.extend_from_slice(&[4, flags]);
    body.extend_from_slice(&keep_alive_s.to_be_bytes());
    string(&mut body, client_id.as_bytes());
    if let Some(user) = user {
        string(&mut body, user.as_bytes());
    }
    if let Some(password) = password {
        string(&mut body, password);
    }
    header(out, 0x10, body.len());
    out.extend_from_slice(&body);
}

/// Appends a PUBLISH; QoS 1 if there is a packet id.
pub fn publish(out: &mut Vec<u8>, topic: &str, payload: &[u8], packet_id: Option<u16>, dup: bool, retain: bool) {
    let flags = u8::from(dup) << 3 | u8::from(packet_id.is_some()) << 1 | u8::from(retain);
    header(out, 0x30 | flags, 2 + topic.len() + packet_id.map_or(0, |_| 2) + payload.len());
    string(out, topic.as_bytes());
    if let Some(id) = packet_id {
        out.extend_from_slice(&id.to_be_bytes());
    }
    out.extend_from_slice(payload);
}

/// Appends a SUBSCRIBE.
pub fn subscribe(out: &mut Vec<u8>, packet_id: u16, filters: &[(&str, u8)]) {
    header(out, 0x82, 2 + filters.iter().map(|(filter, _)| filter.len() + 3).sum::<usize>());
    out.extend_from_slice(&packet_id.to_be_bytes());
    for (filter, qos) in filters {
        string(out, filter.as_bytes());
        out.push(*qos);
    }
}

/// Appends an UNSUBSCRIBE.
pub fn unsubscribe(out: &mut Vec<u8>, packet_id: u16, filters: &[&str]) {
    header(out, 0xa2, 2 + filters.iter().map(|filter| filter.len() + 2).sum::<usize>());
    out.extend_from_slice(&packet_id.to_be_bytes());
    for filter in filters {
        string(out, filter.as_bytes());
    }
}

/// Appends a PUBACK.
pub fn puback(out: &mut Vec<u8>, packet_id: u16) {
    header(out, 0x40, 2);
    out.extend_from_slice(&packet_id.to_be_bytes());
}

/// Appends a PINGREQ.
pub fn pingreq(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xc0, 0]);
}

/// Appends a DISCONNECT.
pub fn disconnect(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xe0, 0]);
}

/// Reads one packet from the front of `bytes`: the packet and its length, or `None` while it is incomplete.
pub fn read(bytes: &[u8]) -> io::Result<Option<(Received, usize)>> {
    let Some((body_bytes, header_bytes)) = remaining_length(bytes)? else { return Ok(None) };
    let Some(body) = bytes.get(header_bytes..header_bytes + body_bytes) else { return Ok(None) };
    let packet = parse(bytes[0], body).ok_or_else(|| wrong("malformed packet from the server"))?;
    Ok(Some((packet, header_bytes + body_bytes)))
}

fn parse(first: u8, body: &[u8]) -> Option<Received> {
    let id = |at: usize| Some(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?]));
    match (first >> 4, body.len()) {
        (2, 2) if body[0] <= 1 => Some(Received::ConnAck(body[1], body[0] == 1)),
        (3, _) => parse_publish(first, body).map(Received::Publish),
        (4, 2) => Some(Received::PubAck(id(0)?)),
        (9, 3..) => Some(Received::SubAck(id(0)?, body[2..].to_vec())),
        (11, 2) => Some(Received::UnsubAck(id(0)?)),
        (13, 0) => Some(Received::PingResp),
        _ => None,
    }
}

fn parse_publish(first: u8, body: &[u8]) -> Option<Message> {
    let topic_bytes = usize::from(u16::from_be_bytes([*body.first()?, *body.get(1)?]));
    let topic = std::str::from_utf8(body.get(2..2 + topic_bytes)?).ok()?.to_owned();
    let qos = first >> 1 & 3;
    let mut at = 2 + topic_bytes;
    let mut packet_id = None;
    if qos > 0 {
        packet_id = Some(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?]));
        at += 2;
    }
    Some(Message { topic, payload: body.get(at..)?.to_vec(), qos, dup: first & 8 != 0, packet_id })
}

/// Remaining length and the bytes of the fixed header.
fn remaining_length(bytes: &[u8]) -> io::Result<Option<(usize, usize)>> {
    let mut value = 0;
    for n in 0..4 {
        let Some(&byte) = bytes.get(1 + n) else { return Ok(None) };
        value |= usize::from(byte & 0x7f) << (7 * n);
        if byte & 0x80 == 0 {
            return Ok(Some((value, 2 + n)));
        }
    }
    Err(wrong("remaining length of more than four bytes from the server"))
}

fn header(out: &mut Vec<u8>, first: u8, mut remaining: usize) {
    out.push(first);
    loop {
        let low = (remaining & 0x7f) as u8;
        remaining >>= 7;
        out.push(if remaining > 0 { low | 0x80 } else { low });
        if remaining == 0 {
            return;
        }
    }
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).expect("the scripts write no string of 64 KiB");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
}

fn wrong(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publish_is_written_as_the_specification_prints_it() {
        let mut out = Vec::new();
        publish(&mut out, "a/b", b"hi", Some(10), false, false);
        assert_eq!(out, [0x32, 9, 0, 3, b'a', b'/', b'b', 0, 10, b'h', b'i']);
    }

    #[test]
    fn a_connect_is_written_as_the_specification_prints_it() {
        let mut out = Vec::new();
        connect(&mut out, "d", Some("u"), Some(b"p"), 60, true);
        assert_eq!(out, b"\x10\x13\x00\x04MQTT\x04\xc2\x00\x3c\x00\x01d\x00\x01u\x00\x01p");
    }

    #[test]
    fn half_a_packet_is_not_a_packet_yet() {
        let whole = [0x90, 3, 0, 7, 1];
        for cut in 0..whole.len() {
            assert_eq!(read(&whole[..cut]).unwrap(), None, "cut at {cut}");
        }
        assert_eq!(read(&whole).unwrap(), Some((Received::SubAck(7, vec![1]), 5)));
    }

    #[test]
    fn nonsense_from_a_server_is_an_error() {
        assert!(read(&[0x10, 0]).is_err(), "a server sends no CONNECT");
        assert!(read(&[0x30, 0xff, 0xff, 0xff, 0xff, 1]).is_err());
    }
}
