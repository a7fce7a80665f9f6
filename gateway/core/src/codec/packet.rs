//! The packets of MQTT 3.1.1 as values that borrow the bytes they were read from.

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
