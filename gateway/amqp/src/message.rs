//! The sections of a message (part 3): written straight into a buffer, read without copying.

mod decode;
mod encode;

use std::borrow::Cow;

pub use self::decode::decode;
pub use self::encode::{Encoder, MapEncoder};
pub use crate::codec::value::{Malformed, Map, Value};

/// Section 73. Absent fields are `Null` or `None`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Properties<'a> {
    /// ulong, uuid, binary or string.
    pub message_id: Value<'a>,
    /// Who sends.
    pub user_id: Option<&'a [u8]>,
    /// Address.
    pub to: Option<&'a str>,
    /// Summary.
    pub subject: Option<&'a str>,
    /// Address for answers.
    pub reply_to: Option<&'a str>,
    /// ulong, uuid, binary or string; compare with its type.
    pub correlation_id: Value<'a>,
    /// MIME type (symbol).
    pub content_type: Option<&'a str>,
    /// MIME encoding (symbol).
    pub content_encoding: Option<&'a str>,
    /// ms since 1970.
    pub absolute_expiry_time: Option<i64>,
    /// ms since 1970.
    pub creation_time: Option<i64>,
    /// Group.
    pub group_id: Option<&'a str>,
    /// Place in the group.
    pub group_sequence: Option<u32>,
    /// Group of the answer.
    pub reply_to_group_id: Option<&'a str>,
}

impl Default for Properties<'_> {
    fn default() -> Self {
        Self {
            message_id: Value::Null,
            user_id: None,
            to: None,
            subject: None,
            reply_to: None,
            correlation_id: Value::Null,
            content_type: None,
            content_encoding: None,
            absolute_expiry_time: None,
            creation_time: None,
            group_id: None,
            group_sequence: None,
            reply_to_group_id: None,
        }
    }
}

/// Section 70.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Survives a restart.
    pub durable: bool,
    /// 4 is the middle.
    pub priority: u8,
    /// Life in ms.
    pub ttl: Option<u32>,
    /// Not taken by another link before.
    pub first_acquirer: bool,
    /// Failed attempts before this one.
    pub delivery_count: u32,
}

impl Default for Header {
    fn default() -> Self {
        Self { durable: false, priority: 4, ttl: None, first_acquirer: false, delivery_count: 0 }
    }
}

/// The body of a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Body<'a> {
    /// No body section: wrong by the text, usual in Azure replies.
    Empty,
    /// All data sections, joined (borrowed when there is one).
    Data(Cow<'a, [u8]>),
    /// The amqp-value.
    Value(Value<'a>),
    /// amqp-sequence sections, passed over.
    Sequence,
}

/// A decoded message.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_field_names, reason = "message-annotations is the name of the section")]
pub struct Message<'a> {
    /// Section 70, defaults if absent.
    pub header: Header,
    /// Section 71, keys are symbols.
    pub delivery_annotations: Map<'a>,
    /// Section 72, keys are symbols.
    pub message_annotations: Map<'a>,
    /// Section 73.
    pub properties: Properties<'a>,
    /// Section 74, keys are strings.
    pub application_properties: Map<'a>,
    /// Sections 75 to 77.
    pub body: Body<'a>,
}
