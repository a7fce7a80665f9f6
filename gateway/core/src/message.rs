//! The nouns that every module shares: who a device is, what it publishes, what became of it.
//!
//! Values only: nothing here decides, parses MQTT or encodes AMQP.

use std::{fmt, num::NonZeroU16, ops::Range};

/// A device (`d`) or module (`d/m`) identity as IoT Hub writes it, case-sensitive, checked when it was made.
///
/// Source: IoT Hub identity registry: at most 128 characters each, ASCII alphanumerics and `- . + % _ # * ? ! ( ) , : = @ $ '`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId {
    text: Box<str>,
    /// Length of the device part; the module part, if any, follows after a `/`.
    device_bytes: u8,
}

/// Why a text is not a device or module id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Nothing before, between or after the slash.
    #[error("an id is empty")]
    Empty,
    /// More than 128 characters in one part.
    #[error("an id is longer than 128 characters")]
    TooLong,
    /// A character outside the registry's set.
    #[error("an id holds a character that IoT Hub does not allow")]
    Character,
}

impl DeviceId {
    /// Checks `device` and `module` against the registry's rules.
    pub fn new(device: &str, module: Option<&str>) -> Result<Self, InvalidId> {
        check_part(device)?;
        let text = match module {
            None => device.into(),
            Some(module) => {
                check_part(module)?;
                format!("{device}/{module}").into_boxed_str()
            }
        };
        Ok(Self { text, device_bytes: device.len() as u8 })
    }

    /// The device part.
    pub fn device(&self) -> &str {
        &self.text[..usize::from(self.device_bytes)]
    }

    /// The module part, if this is a module.
    pub fn module(&self) -> Option<&str> {
        self.text.get(usize::from(self.device_bytes) + 1..)
    }

    /// `d` or `d/m`: the MQTT client id of this identity.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceId({})", self.text)
    }
}

fn check_part(part: &str) -> Result<(), InvalidId> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-.+%_#*?!(),:=@$'".contains(&byte);
    match part.len() {
        0 => Err(InvalidId::Empty),
        1..=128 if part.bytes().all(allowed) => Ok(()),
        1..=128 => Err(InvalidId::Character),
        _ => Err(InvalidId::TooLong),
    }
}

/// MQTT quality of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[expect(clippy::enum_variant_names, reason = "the names of MQTT 3.1.1, 4.3")]
pub enum QoS {
    /// 0: no acknowledgement.
    AtMostOnce = 0,
    /// 1: PUBACK.
    AtLeastOnce = 1,
    /// 2: legal on the wire, refused by the session (IoT Hub has none).
    ExactlyOnce = 2,
}

/// An MQTT packet identifier, never 0 [MQTT-2.3.1-1].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketId(pub NonZeroU16);

/// One message from a device, mapped and ready for its hub link. Borrows the receive buffer and a [`PropertyText`].
///
/// The payload is the slice of the PUBLISH itself: it is written once, into the AMQP frame.
#[derive(Debug, Clone, Copy)]
pub struct Telemetry<'a> {
    /// Decoded text of every property.
    pub text: &'a PropertyText,
    /// The PUBLISH payload, untouched.
    pub payload: &'a [u8],
}

/// Decoded properties of one message. A connection's core keeps one and reuses it for every message.
#[derive(Debug, Default)]
pub struct PropertyText {
    /// All names and values, decoded, one after the other.
    pub text: String,
    /// `$.mid` → properties.message-id.
    pub message_id: Option<Range<u32>>,
    /// `$.cid` → properties.correlation-id.
    pub correlation_id: Option<Range<u32>>,
    /// `$.uid` → properties.user-id (binary UTF-8).
    pub user_id: Option<Range<u32>>,
    /// `$.ct` → properties.content-type (symbol).
    pub content_type: Option<Range<u32>>,
    /// `$.ce` → properties.content-encoding (symbol).
    pub content_encoding: Option<Range<u32>>,
    /// Message annotations: symbol key → string.
    pub annotations: Vec<(&'static str, Range<u32>)>,
    /// Application properties in the order of the bag; no value means AMQP null.
    pub application: Vec<(PropertyName, Option<Range<u32>>)>,
}

/// The name of an application property: one of ours, or a piece of [`PropertyText::text`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PropertyName {
    /// A name the gateway gives (`mqtt-retain`, `iothub-MessageType`, …).
    Known(&'static str),
    /// A name the device gave.
    Text(Range<u32>),
}

impl PropertyText {
    /// Forgets the last message, keeps the room.
    pub fn clear(&mut self) {
        self.text.clear();
        self.annotations.clear();
        self.application.clear();
        self.message_id = None;
        self.correlation_id = None;
        self.user_id = None;
        self.content_type = None;
        self.content_encoding = None;
    }

    /// The text of `range`; a range of this value always lies inside its text.
    pub fn get(&self, range: &Range<u32>) -> &str {
        &self.text[range.start as usize..range.end as usize]
    }

    /// The text of a property's name.
    pub fn name<'a>(&'a self, name: &'a PropertyName) -> &'a str {
        match name {
            PropertyName::Known(known) => known,
            PropertyName::Text(range) => self.get(range),
        }
    }
}

/// What became of a message that was handed upstream: the AMQP outcome, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The peer accepted it: it is theirs now.
    Accepted,
    /// The peer will never take this message.
    Refused(Refusal),
    /// The peer may take it later (released, modified, throttled …): nothing was stored.
    Retry(Refusal),
    /// The hub could not be reached within the bound; it may or may not have stored the message.
    Unreachable,
}

/// Why the hub refused, in words fit for a metric label and a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Released or modified without an error.
    Released,
    /// The device or the address is unknown to the hub.
    NotFound,
    /// The hub does not let this device in (token, disabled, policy).
    Unauthorized,
    /// The hub throttles.
    Throttled,
    /// A quota or queue of the hub is used up.
    Quota,
    /// The message is larger than the hub takes.
    TooLarge,
    /// The message or the operation is wrong in the hub's eyes.
    Invalid,
    /// The hub failed inside.
    Internal,
}

/// One message from the cloud for a device, as its AMQP transfer gave it, decoded by the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Names the AMQP delivery; goes back in the settlement.
    pub tag: CommandTag,
    /// The topic's property bag, already encoded (`%24.mid=…&k=v`), without a leading slash.
    pub bag: Box<str>,
    /// The body.
    pub payload: bytes::Bytes,
    /// Quality of service the message asks for (`mqtt-qos`), at most 1; default 1.
    pub qos: QoS,
    /// The hub delivered it before.
    pub redelivered: bool,
}

/// Names one unsettled delivery from the hub on one device's link; given by the link, opaque here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CommandTag(pub u64);

/// How the gateway settles a [`Command`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// The device has it: complete.
    Accepted,
    /// The device never got it: the hub may redeliver at once (its delivery count rises).
    Released,
    /// The device can never take it: dead letter.
    Rejected,
}
