//! The fixed header (2.2): type, flags, remaining length. Read before anything is buffered, judged byte by byte.

use super::error::Malformed;

/// The largest value of four bytes of remaining length.
pub(super) const REMAINING_LENGTH_MAX: usize = 268_435_455;

/// The types of table 2.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum PacketType {
    Connect = 1,
    ConnAck = 2,
    Publish = 3,
    PubAck = 4,
    PubRec = 5,
    PubRel = 6,
    PubComp = 7,
    Subscribe = 8,
    SubAck = 9,
    Unsubscribe = 10,
    UnsubAck = 11,
    PingReq = 12,
    PingResp = 13,
    Disconnect = 14,
}

/// A fixed header whose flags fit its type.
#[derive(Debug, Clone, Copy)]
pub(super) struct FixedHeader {
    pub(super) packet_type: PacketType,
    /// Only PUBLISH has flags that vary.
    pub(super) flags: u8,
    /// Bytes of the header itself: 2 to 5.
    pub(super) header_bytes: usize,
    pub(super) remaining_length: usize,
}

impl PacketType {
    /// The type and flags of a first byte. PUBLISH flags are checked by its own decoder.
    #[inline]
    pub(super) fn of(first: u8) -> Result<Self, Malformed> {
        let (packet_type, flags) = match first >> 4 {
            3 => return check_publish_flags(first).map(|()| Self::Publish),
            1 => (Self::Connect, 0),
            2 => (Self::ConnAck, 0),
            4 => (Self::PubAck, 0),
            5 => (Self::PubRec, 0),
            6 => (Self::PubRel, 0b0010),
            7 => (Self::PubComp, 0),
            8 => (Self::Subscribe, 0b0010),
            9 => (Self::SubAck, 0),
            10 => (Self::Unsubscribe, 0b0010),
            11 => (Self::UnsubAck, 0),
            12 => (Self::PingReq, 0),
            13 => (Self::PingResp, 0),
            14 => (Self::Disconnect, 0),
            _ => return Err(Malformed::ReservedType),
        };
        if first & 0b1111 == flags { Ok(packet_type) } else { Err(Malformed::Flags) }
    }

    /// First byte of a packet of this type; PUBLISH adds its flags.
    #[inline]
    pub(super) const fn first_byte(self) -> u8 {
        let flags = match self {
            Self::PubRel | Self::Subscribe | Self::Unsubscribe => 0b0010,
            _ => 0,
        };
        ((self as u8) << 4) | flags
    }

    /// Whether only a server sends it (table 2.1).
    #[inline]
    pub(super) const fn is_server_only(self) -> bool {
        matches!(self, Self::ConnAck | Self::SubAck | Self::UnsubAck | Self::PingResp)
    }

    /// The remaining length of types that have only one.
    #[inline]
    const fn fixed_length(self) -> Option<usize> {
        match self {
            Self::PubAck | Self::PubRec | Self::PubRel | Self::PubComp | Self::UnsubAck | Self::ConnAck => Some(2),
            Self::PingReq | Self::PingResp | Self::Disconnect => Some(0),
            Self::Connect | Self::Publish | Self::Subscribe | Self::SubAck | Self::Unsubscribe => None,
        }
    }
}

impl FixedHeader {
    /// Reads the header at the start of `bytes`; `None` if it is not whole yet. Looks at five bytes at most.
    #[inline]
    pub(super) fn read(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        let Some((&first, after)) = bytes.split_first() else { return Ok(None) };
        let packet_type = PacketType::of(first)?;
        let Some((remaining_length, length_bytes)) = read_remaining_length(after)? else { return Ok(None) };
        // judged here so that nobody makes us buffer a long acknowledgement
        if packet_type.fixed_length().is_some_and(|length| length != remaining_length) {
            return Err(Malformed::PacketLength);
        }
        Ok(Some(Self { packet_type, flags: first & 0b1111, header_bytes: 1 + length_bytes, remaining_length }))
    }

    /// The whole packet.
    #[inline]
    pub(super) const fn packet_bytes(&self) -> usize {
        self.header_bytes + self.remaining_length
    }
}

#[inline]
fn check_publish_flags(first: u8) -> Result<(), Malformed> {
    match first & 0b1110 {
        0b0110 | 0b1110 => Err(Malformed::PublishQos),
        0b1000 => Err(Malformed::PublishDup),
        _ => Ok(()),
    }
}

/// Value and size of the remaining length (2.2.3) at the start of `bytes`; `None` if it is not whole yet.
#[inline]
fn read_remaining_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let mut value = 0;
    for (index, &byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            // `80 00` for 0: no writer does it, and two spellings of one packet invite disagreement between readers
            let shortest = byte != 0 || index == 0;
            return if shortest { Ok(Some((value, index + 1))) } else { Err(Malformed::RemainingLength) };
        }
    }
    if bytes.len() < 4 { Ok(None) } else { Err(Malformed::RemainingLength) }
}

/// Bytes of a remaining length of this value.
#[inline]
pub(super) const fn remaining_length_bytes(remaining_length: usize) -> usize {
    match remaining_length {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}

/// Appends a fixed header; `remaining_length` is at most [`REMAINING_LENGTH_MAX`].
#[inline]
pub(super) fn write_fixed_header(first: u8, remaining_length: usize, out: &mut Vec<u8>) {
    debug_assert!(remaining_length <= REMAINING_LENGTH_MAX);
    out.push(first);
    let mut rest = remaining_length;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}
