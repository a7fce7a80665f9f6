//! A cloud-to-device message (contract §2.8, §3.6) → [`Command`]: property bag and payload.

use std::{borrow::Cow, fmt::Write as _};

use amqp_endpoint::message::{Body, Malformed, Message, Value, decode as decode_message};
use bytes::Bytes;
use gateway_core::{
    message::{Command, CommandTag, QoS},
    topic::{Bag, bag::CommandProperty},
};

/// Why no device can be given this message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    /// It is no AMQP message.
    #[error("not a message: {0}")]
    Malformed(&'static str),
    /// Its body is not binary or text.
    #[error("body is neither data nor text")]
    Body,
    /// Its properties do not fit an MQTT topic.
    #[error("properties are longer than a topic")]
    Properties,
}

/// Reads the message of one delivery. The payload shares its bytes with the delivery.
pub(super) fn decode(tag: CommandTag, encoded: &Bytes) -> Result<Command, Unusable> {
    let message = decode_message(encoded).map_err(|Malformed(what)| Unusable::Malformed(what))?;
    let payload = match &message.body {
        Body::Empty => Bytes::new(),
        Body::Data(Cow::Borrowed(data)) | Body::Value(Value::Binary(data)) => encoded.slice_ref(data),
        Body::Data(Cow::Owned(data)) => Bytes::copy_from_slice(data),
        Body::Value(Value::Str(text)) => encoded.slice_ref(text.as_bytes()),
        Body::Value(_) | Body::Sequence => return Err(Unusable::Body),
    };
    let bag = bag(&message).into_text().ok_or(Unusable::Properties)?;
    Ok(Command { tag, bag, payload, qos: qos(&message), redelivered: is_redelivered(&message) })
}

fn bag(message: &Message<'_>) -> Bag {
    let properties = &message.properties;
    let mut bag = Bag::default();
    with_text(properties.message_id, |text| bag.property(CommandProperty::MessageId, text));
    let mut add = |property, value: Option<&str>| {
        if let Some(value) = value {
            bag.property(property, value);
        }
    };
    add(CommandProperty::To, properties.to);
    add(CommandProperty::ContentType, properties.content_type);
    add(CommandProperty::ContentEncoding, properties.content_encoding);
    add(CommandProperty::UserId, properties.user_id.and_then(|id| std::str::from_utf8(id).ok()));
    add(CommandProperty::ConnectionDeviceId, annotation(message, "iothub-connection-device-id"));
    add(CommandProperty::ConnectionModuleId, annotation(message, "iothub-connection-module-id"));
    with_text(properties.correlation_id, |text| bag.property(CommandProperty::CorrelationId, text));
    if let Some(expiry) = properties.absolute_expiry_time {
        bag.expiry(expiry);
    }
    for (name, value) in message.application_properties.iter() {
        if let Value::Str(name) = name {
            application(&mut bag, name, value);
        }
    }
    bag
}

fn application(bag: &mut Bag, name: &str, value: Value<'_>) {
    match value {
        Value::Null => bag.application(name, None),
        value => with_text(value, |text| bag.application(name, Some(text))),
    }
}

fn annotation<'a>(message: &'a Message<'_>, name: &str) -> Option<&'a str> {
    match message.message_annotations.get(name) {
        Some(Value::Str(text) | Value::Symbol(text)) => Some(text),
        _ => None,
    }
}

/// Calls `take` with the text of a simple value; values without a text are left out.
fn with_text(value: Value<'_>, take: impl FnOnce(&str)) {
    match value {
        Value::Str(text) | Value::Symbol(text) => take(text),
        Value::Bool(value) => take(if value { "true" } else { "false" }),
        Value::Ubyte(value) => take(&value.to_string()),
        Value::Ushort(value) => take(&value.to_string()),
        Value::Uint(value) => take(&value.to_string()),
        Value::Ulong(value) => take(&value.to_string()),
        Value::Byte(value) => take(&value.to_string()),
        Value::Short(value) => take(&value.to_string()),
        Value::Int(value) => take(&value.to_string()),
        Value::Long(value) | Value::Timestamp(value) => take(&value.to_string()),
        Value::Float(value) => take(&value.to_string()),
        Value::Double(value) => take(&value.to_string()),
        Value::Char(value) => take(value.encode_utf8(&mut [0; 4])),
        Value::Uuid(value) => take(&hyphenated(value)),
        Value::Binary(value) => {
            if let Ok(text) = std::str::from_utf8(value) {
                take(text);
            }
        }
        Value::Null | Value::Map(_) | Value::Other(_) => {}
    }
}

/// RFC 4122: 8-4-4-4-12.
fn hyphenated(uuid: [u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (n, byte) in uuid.iter().enumerate() {
        if matches!(n, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        write!(text, "{byte:02x}").expect("a String takes every write");
    }
    text
}

/// `mqtt-qos` 0 asks for QoS 0; everything else is at least once.
fn qos(message: &Message<'_>) -> QoS {
    match message.application_properties.get("mqtt-qos") {
        Some(Value::Str("0")) => QoS::AtMostOnce,
        _ => QoS::AtLeastOnce,
    }
}

fn is_redelivered(message: &Message<'_>) -> bool {
    let count = match message.message_annotations.get("iothub-deliverycount") {
        Some(Value::Ubyte(count)) => u64::from(count),
        Some(Value::Uint(count)) => u64::from(count),
        Some(Value::Ulong(count)) => count,
        Some(Value::Int(count)) => u64::try_from(count).unwrap_or(0),
        Some(Value::Long(count)) => u64::try_from(count).unwrap_or(0),
        _ => 0,
    };
    message.header.delivery_count.max(u32::try_from(count).unwrap_or(u32::MAX)) > 0
}

#[cfg(test)]
mod tests {
    use amqp_endpoint::message::{Encoder, Properties, Value};
    use bytes::Bytes;
    use gateway_core::message::{CommandTag, QoS};

    use super::{Unusable, decode};

    fn encode(write: impl FnOnce(&mut Encoder<'_>)) -> Bytes {
        let mut out = Vec::new();
        write(&mut Encoder::new(&mut out));
        out.into()
    }

    #[test]
    fn contract_2_8_the_bag_of_a_command_names_its_properties() {
        let message = encode(|encoder| {
            encoder.message_annotations(|map| map.pair(Value::Symbol("iothub-deliverycount"), Value::Ubyte(1)));
            encoder.properties(&Properties {
                message_id: Value::Str("m 1"),
                to: Some("/devices/d/messages/deviceBound"),
                content_type: Some("application/json"),
                ..Properties::default()
            });
            encoder.application_properties(|map| {
                map.pair(Value::Str("a"), Value::Str("b&c"));
                map.pair(Value::Str("n"), Value::Null);
                map.pair(Value::Str("e"), Value::Str(""));
                map.pair(Value::Str("i"), Value::Int(7));
            });
            encoder.data(b"body");
        });
        let command = decode(CommandTag(5), &message).unwrap();
        assert_eq!(
            &*command.bag,
            "%24.mid=m%201&%24.to=%2Fdevices%2Fd%2Fmessages%2FdeviceBound&%24.ct=application%2Fjson&a=b%26c&n&e=&i=7"
        );
        assert_eq!(command.payload, Bytes::from_static(b"body"));
        assert_eq!((command.tag, command.qos, command.redelivered), (CommandTag(5), QoS::AtLeastOnce, true));
    }

    #[test]
    fn a_uuid_is_text_of_rfc_4122() {
        let uuid = std::array::from_fn(|n| n as u8 * 0x11);
        assert_eq!(super::hyphenated(uuid), "00112233-4455-6677-8899-aabbccddeeff");
    }

    #[test]
    fn a_message_no_device_can_be_given_is_unusable() {
        let value = encode(|encoder| {
            encoder.value(Value::Int(1));
        });
        assert_eq!(decode(CommandTag(0), &value), Err(Unusable::Body));
        let long = "x".repeat(66_000);
        let large = encode(|encoder| {
            encoder.application_properties(|map| map.pair(Value::Str("a"), Value::Str(&long)));
            encoder.data(b"");
        });
        assert_eq!(decode(CommandTag(0), &large), Err(Unusable::Properties));
        assert!(matches!(decode(CommandTag(0), &Bytes::from_static(&[1, 2])), Err(Unusable::Malformed(_))));
    }
}
