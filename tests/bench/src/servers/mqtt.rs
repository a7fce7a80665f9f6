//! As much MQTT as a floor needs: no checks beyond lengths.

/// What a device sent.
pub(super) enum Packet<'a> {
    Connect,
    /// Packet id (0 for QoS 0) and payload.
    Publish(u16, &'a [u8]),
    Subscribe(u16),
    PingReq,
    Disconnect,
    Other,
}

/// The packet at the front of `bytes` and its length.
pub(super) fn read(bytes: &[u8]) -> Option<(Packet<'_>, usize)> {
    let mut remaining = 0;
    let mut at = 1;
    loop {
        let byte = *bytes.get(at)?;
        remaining |= usize::from(byte & 0x7f) << (7 * (at - 1));
        at += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let body = bytes.get(at..at + remaining)?;
    Some((parse(bytes[0], body), at + remaining))
}

fn parse(first: u8, body: &[u8]) -> Packet<'_> {
    let id = |at: usize| body.get(at..at + 2).map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    match first >> 4 {
        1 => Packet::Connect,
        3 => {
            let topic = 2 + usize::from(id(0));
            let (packet_id, payload) = if first & 6 == 0 { (0, topic) } else { (id(topic), topic + 2) };
            Packet::Publish(packet_id, body.get(payload..).unwrap_or_default())
        }
        8 => Packet::Subscribe(id(0)),
        12 => Packet::PingReq,
        14 => Packet::Disconnect,
        _ => Packet::Other,
    }
}

pub(super) const CONNACK: [u8; 4] = [0x20, 2, 0, 0];
pub(super) const PINGRESP: [u8; 2] = [0xd0, 0];

pub(super) fn puback(id: u16) -> [u8; 4] {
    let [high, low] = id.to_be_bytes();
    [0x40, 2, high, low]
}

pub(super) fn suback(id: u16) -> [u8; 5] {
    let [high, low] = id.to_be_bytes();
    [0x90, 3, high, low, 1]
}
