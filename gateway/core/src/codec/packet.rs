//! The packets of MQTT 3.1.1 as values that borrow the bytes they were read from.
//!
//! `Debug` shows neither passwords nor payloads.

use std::{fmt, iter::FusedIterator};

use super::{
    encode::put_field,
    error::{EncodeError, Malformed},
    reader::Reader,
};
use crate::message::{PacketId, QoS};

/// One MQTT control packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet<'a> {
    /// 3.1
    Connect(Connect<'a>),
    /// 3.2, server to client
    ConnAck {
        /// Only with [`ConnectCode::Accepted`].
        session_present: bool,
        /// Table 3.1.
        code: ConnectCode,
    },
    /// 3.3
    Publish(Publish<'a>),
    /// 3.4
    PubAck(PacketId),
    /// 3.5
    PubRec(PacketId),
    /// 3.6
    PubRel(PacketId),
    /// 3.7
    PubComp(PacketId),
    /// 3.8
    Subscribe(Subscribe<'a>),
    /// 3.9, server to client
    SubAck {
        /// That of the SUBSCRIBE.
        packet_id: PacketId,
        /// One per filter, in its order: 0, 1, 2 or 0x80.
        codes: &'a [u8],
    },
    /// 3.10
    Unsubscribe(Unsubscribe<'a>),
    /// 3.11, server to client
    UnsubAck(PacketId),
    /// 3.12
    PingReq,
    /// 3.13, server to client
    PingResp,
    /// 3.14
    Disconnect,
}

/// CONNECT (3.1).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Connect<'a> {
    /// Clean Session.
    pub clean_session: bool,
    /// Seconds; 0 is off.
    pub keep_alive_s: u16,
    /// Client identifier, maybe empty.
    pub client_id: &'a str,
    /// Will, if its flag is set.
    pub will: Option<Will<'a>>,
    /// User name, if its flag is set.
    pub user_name: Option<&'a str>,
    /// Password: any bytes, if its flag is set.
    pub password: Option<&'a [u8]>,
}

/// The Will of a CONNECT.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Will<'a> {
    /// Topic to publish to.
    pub topic: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// Quality of service.
    pub qos: QoS,
    /// Retain.
    pub retain: bool,
}

/// PUBLISH (3.3).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Sent before.
    pub dup: bool,
    /// Quality of service.
    pub qos: QoS,
    /// Retain.
    pub retain: bool,
    /// Topic name.
    pub topic: &'a str,
    /// Present exactly if `qos` is not 0.
    pub packet_id: Option<PacketId>,
    /// Application message.
    pub payload: &'a [u8],
}

/// SUBSCRIBE (3.8): checked whole when it was decoded, iterated without allocating.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscribe<'a> {
    /// Goes back in the SUBACK.
    pub packet_id: PacketId,
    /// The payload's bytes: length-prefixed filter, requested QoS, and so on. Use [`Subscribe::filters`].
    pub(crate) payload: &'a [u8],
}

/// UNSUBSCRIBE (3.10): checked whole when it was decoded, iterated without allocating.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsubscribe<'a> {
    /// Goes back in the UNSUBACK.
    pub packet_id: PacketId,
    /// The payload's bytes: length-prefixed filters. Use [`Unsubscribe::filters`].
    pub(crate) payload: &'a [u8],
}

/// CONNACK return codes (table 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ConnectCode {
    /// 0
    Accepted = 0,
    /// 1: protocol level
    UnacceptableProtocolVersion = 1,
    /// 2
    IdentifierRejected = 2,
    /// 3: the only code after which SDKs try again
    ServerUnavailable = 3,
    /// 4
    BadUserNameOrPassword = 4,
    /// 5
    NotAuthorized = 5,
}

impl ConnectCode {
    /// The code of this byte; 6 and above are reserved.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Accepted),
            1 => Some(Self::UnacceptableProtocolVersion),
            2 => Some(Self::IdentifierRejected),
            3 => Some(Self::ServerUnavailable),
            4 => Some(Self::BadUserNameOrPassword),
            5 => Some(Self::NotAuthorized),
            _ => None,
        }
    }
}

impl<'a> Subscribe<'a> {
    /// Writes `filters` into `room` (which is cleared) and makes the SUBSCRIBE that borrows it: for clients and tests.
    ///
    /// # Errors
    /// A filter that the specification forbids or that is too long, or no filter.
    pub fn new<'f>(
        packet_id: PacketId,
        filters: impl IntoIterator<Item = (&'f str, QoS)>,
        room: &'a mut Vec<u8>,
    ) -> Result<Self, EncodeError> {
        room.clear();
        for (filter, qos) in filters {
            put_filter(filter, room)?;
            room.push(qos as u8);
        }
        Ok(Self::checked(packet_id, room)?)
    }

    /// Checks every filter of a payload.
    pub(super) fn checked(packet_id: PacketId, payload: &'a [u8]) -> Result<Self, Malformed> {
        check_filters(payload, read_subscription)?;
        Ok(Self { packet_id, payload })
    }

    /// Each filter and the QoS asked for, in the order of the packet; at least one.
    pub fn filters(&self) -> impl FusedIterator<Item = (&'a str, QoS)> + Clone + use<'a> {
        filters(self.payload, read_subscription)
    }
}

impl<'a> Unsubscribe<'a> {
    /// Writes `filters` into `room` (which is cleared) and makes the UNSUBSCRIBE that borrows it: for clients and tests.
    ///
    /// # Errors
    /// A filter that the specification forbids or that is too long, or no filter.
    pub fn new<'f>(
        packet_id: PacketId,
        filters: impl IntoIterator<Item = &'f str>,
        room: &'a mut Vec<u8>,
    ) -> Result<Self, EncodeError> {
        room.clear();
        for filter in filters {
            put_filter(filter, room)?;
        }
        Ok(Self::checked(packet_id, room)?)
    }

    /// Checks every filter of a payload.
    pub(super) fn checked(packet_id: PacketId, payload: &'a [u8]) -> Result<Self, Malformed> {
        check_filters(payload, Reader::topic_filter)?;
        Ok(Self { packet_id, payload })
    }

    /// Each filter in the order of the packet; at least one.
    pub fn filters(&self) -> impl FusedIterator<Item = &'a str> + Clone + use<'a> {
        filters(self.payload, Reader::topic_filter)
    }
}

/// The QoS of the two lowest bits; 3 is none.
#[inline]
pub(super) fn qos_from_bits(bits: u8) -> Option<QoS> {
    match bits & 0b11 {
        0 => Some(QoS::AtMostOnce),
        1 => Some(QoS::AtLeastOnce),
        2 => Some(QoS::ExactlyOnce),
        _ => None,
    }
}

/// Reads one entry of a payload of filters.
type ReadEntry<'a, T> = fn(&mut Reader<'a>) -> Result<T, Malformed>;

/// One filter of a SUBSCRIBE with its requested QoS.
fn read_subscription<'a>(reader: &mut Reader<'a>) -> Result<(&'a str, QoS), Malformed> {
    let filter = reader.topic_filter()?;
    match reader.byte()? {
        qos @ 0..=2 => qos_from_bits(qos).map(|qos| (filter, qos)).ok_or(Malformed::RequestedQos),
        _ => Err(Malformed::RequestedQos),
    }
}

fn check_filters<'a, T>(payload: &'a [u8], read: ReadEntry<'a, T>) -> Result<(), Malformed> {
    let mut reader = Reader::new(payload);
    if reader.is_empty() {
        return Err(Malformed::NoFilter);
    }
    while !reader.is_empty() {
        read(&mut reader)?;
    }
    Ok(())
}

/// Entries of a payload that [`check_filters`] passed.
fn filters<'a, T>(payload: &'a [u8], read: ReadEntry<'a, T>) -> impl FusedIterator<Item = T> + Clone + use<'a, T> {
    let mut reader = Reader::new(payload);
    std::iter::from_fn(move || read(&mut reader).ok()).fuse()
}

fn put_filter(filter: &str, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    if filter.len() > usize::from(u16::MAX) {
        return Err(EncodeError::FieldTooLong);
    }
    put_field(filter.as_bytes(), out);
    Ok(())
}

/// Stands for bytes that do not belong in a log.
struct Hidden(usize);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0)
    }
}

impl fmt::Debug for Connect<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("clean_session", &self.clean_session)
            .field("keep_alive_s", &self.keep_alive_s)
            .field("client_id", &self.client_id)
            .field("will", &self.will)
            .field("user_name", &self.user_name)
            .field("password", &self.password.map(|_| "<hidden>"))
            .finish()
    }
}

impl fmt::Debug for Will<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Will")
            .field("topic", &self.topic)
            .field("payload", &Hidden(self.payload.len()))
            .field("qos", &self.qos)
            .field("retain", &self.retain)
            .finish()
    }
}

impl fmt::Debug for Publish<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publish")
            .field("dup", &self.dup)
            .field("qos", &self.qos)
            .field("retain", &self.retain)
            .field("topic", &self.topic)
            .field("packet_id", &self.packet_id)
            .field("payload", &Hidden(self.payload.len()))
            .finish()
    }
}
