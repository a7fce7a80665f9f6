//! A message read where it lies. All keys and values are checked here, so that walking the maps later cannot fail.

use std::borrow::Cow;

use super::{Body, Header, Malformed, Map, Message, Properties, Value};
use crate::codec::value::{List, Reader};

/// Reads a message. Sections out of order or twice, unknown ones and sizes that do not fit are refused; an absent body is not.
pub fn decode(message: &[u8]) -> Result<Message<'_>, Malformed> {
    let mut reader = Reader::new(message);
    let mut decoded = Message {
        header: Header::default(),
        delivery_annotations: Map::default(),
        message_annotations: Map::default(),
        properties: Properties::default(),
        application_properties: Map::default(),
        body: Body::Empty,
    };
    let mut previous = 0;
    while !reader.is_empty() {
        let code = reader.descriptor()?.ok_or(Malformed("expected a section"))?;
        let repeated = code == previous && matches!(code, 0x75 | 0x76);
        let second_body = matches!(previous, 0x75..=0x77) && code != 0x78;
        if !repeated && (code <= previous || second_body) {
            return Err(Malformed("section out of order"));
        }
        previous = code;
        section(&mut decoded, code, &mut reader)?;
    }
    Ok(decoded)
}

fn section<'a>(message: &mut Message<'a>, code: u64, reader: &mut Reader<'a>) -> Result<(), Malformed> {
    match code {
        0x70 => message.header = reader.list()?.map_or(Ok(Header::default()), header)?,
        0x71 => message.delivery_annotations = map(reader)?,
        0x72 => message.message_annotations = map(reader)?,
        0x73 => message.properties = reader.list()?.map_or(Ok(Properties::default()), properties)?,
        0x74 => message.application_properties = map(reader)?,
        0x75 => {
            let Value::Binary(data) = reader.value()? else { return Err(Malformed("data is not binary")) };
            message.body = match std::mem::replace(&mut message.body, Body::Empty) {
                Body::Data(before) => {
                    let mut joined = before.into_owned();
                    joined.extend_from_slice(data);
                    Body::Data(Cow::Owned(joined))
                }
                _ => Body::Data(Cow::Borrowed(data)),
            };
        }
        0x76 => {
            reader.skip()?;
            message.body = Body::Sequence;
        }
        0x77 => message.body = Body::Value(reader.value()?),
        0x78 => {
            map(reader)?;
        }
        _ => return Err(Malformed("unknown section")),
    }
    Ok(())
}

fn map<'a>(reader: &mut Reader<'a>) -> Result<Map<'a>, Malformed> {
    match reader.value()? {
        Value::Map(map) => map.check().map(|()| map),
        Value::Null => Ok(Map::default()),
        _ => Err(Malformed("section is not a map")),
    }
}

fn header(mut list: List<'_>) -> Result<Header, Malformed> {
    let default = Header::default();
    let header = Header {
        durable: list.bool()?.unwrap_or(default.durable),
        priority: list.u8()?.unwrap_or(default.priority),
        ttl: list.u32()?,
        first_acquirer: list.bool()?.unwrap_or(default.first_acquirer),
        delivery_count: list.u32()?.unwrap_or(default.delivery_count),
    };
    list.finish()?;
    Ok(header)
}

fn properties(mut list: List<'_>) -> Result<Properties<'_>, Malformed> {
    let properties = Properties {
        message_id: message_id(&mut list)?,
        user_id: list.binary()?,
        to: list.string()?,
        subject: list.string()?,
        reply_to: list.string()?,
        correlation_id: message_id(&mut list)?,
        content_type: list.symbol()?,
        content_encoding: list.symbol()?,
        absolute_expiry_time: list.timestamp()?,
        creation_time: list.timestamp()?,
        group_id: list.string()?,
        group_sequence: list.u32()?,
        reply_to_group_id: list.string()?,
    };
    list.finish()?;
    Ok(properties)
}

/// 3.2.11 to 3.2.14
fn message_id<'a>(list: &mut List<'a>) -> Result<Value<'a>, Malformed> {
    match list.next()? {
        id @ (Value::Null | Value::Ulong(_) | Value::Uuid(_) | Value::Binary(_) | Value::Str(_)) => Ok(id),
        _ => Err(Malformed("message-id of a forbidden type")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Encoder;
    use super::*;

    fn check(bytes: &[u8], expected: Result<Body<'_>, &'static str>) {
        assert_eq!(decode(bytes).map(|m| m.body), expected.map_err(Malformed), "{bytes:02x?}");
    }

    #[test]
    fn amqp_3_2_sections_stand_in_order_once_with_at_most_one_kind_of_body() {
        check(b"", Ok(Body::Empty));
        check(b"\x00\x53\x75\xa0\x02hi", Ok(Body::Data(Cow::Borrowed(b"hi"))));
        check(b"\x00\x53\x75\xa0\x02hi\x00\x53\x75\xa0\x01!", Ok(Body::Data(Cow::Borrowed(b"hi!"))));
        check(b"\x00\x53\x77\xa1\x02hi", Ok(Body::Value(Value::Str("hi"))));
        check(b"\x00\x53\x76\x45\x00\x53\x76\x45", Ok(Body::Sequence));
        check(b"\x00\x53\x75\xa0\x00\x00\x53\x78\xc1\x01\x00", Ok(Body::Data(Cow::Borrowed(b""))));
        check(b"\x00\x53\x75\xa0\x00\x00\x53\x77\x40", Err("section out of order"));
        check(b"\x00\x53\x77\x40\x00\x53\x77\x40", Err("section out of order"));
        check(b"\x00\x53\x73\x45\x00\x53\x72\xc1\x01\x00", Err("section out of order"));
        check(b"\x00\x53\x73\x45\x00\x53\x73\x45", Err("section out of order"));
        check(b"\x00\x53\x79\x45", Err("unknown section"));
        check(b"\x45", Err("expected a section"));
        check(b"\x00\x53\x75\xb0\xff\xff\xff\xff", Err("value runs past the end"));
        check(b"\x00\x53\x74\xc1\x03\x02\xa1\x05", Err("value runs past the end"));
        check(b"\x00\x53\x74\xc1\x04\x02\x40\x40\x40", Err("map size"));
        check(b"\x00\x53\x75\x40", Err("data is not binary"));
        check(b"\x00\x53\x73\xc0\x02\x01\x41", Err("message-id of a forbidden type"));
    }

    #[test]
    fn what_the_encoder_writes_reads_back_the_same() {
        let long = "v".repeat(300);
        let header = Header { durable: true, priority: 9, ttl: Some(1000), first_acquirer: true, delivery_count: 2 };
        let properties = Properties {
            message_id: Value::Str("m1"),
            user_id: Some(b"u"),
            to: Some("/devices/d/messages/events"),
            correlation_id: Value::Uuid([7; 16]),
            content_type: Some("application/json"),
            content_encoding: Some("utf-8"),
            absolute_expiry_time: Some(1_700_000_000_000),
            creation_time: Some(-1),
            group_sequence: Some(0),
            reply_to_group_id: Some("g"),
            ..Properties::default()
        };
        let mut out = b"before".to_vec();
        Encoder::new(&mut out)
            .header(&header)
            .delivery_annotations(|_| {})
            .message_annotations(|map| map.annotation("iothub-interface-id", "x"))
            .properties(&properties)
            .application_properties(|map| {
                map.string("a", "");
                map.string("long", &long);
                map.pair(Value::Str("n"), Value::Int(-7));
            })
            .data(b"body");
        let message = decode(&out[6..]).unwrap();
        assert_eq!(message.header, header);
        assert_eq!(message.properties, properties);
        assert!(message.delivery_annotations.is_empty());
        assert_eq!(message.message_annotations.get("iothub-interface-id"), Some(Value::Str("x")));
        let properties: Vec<_> = message.application_properties.iter().collect();
        assert_eq!(
            properties,
            [
                (Value::Str("a"), Value::Str("")),
                (Value::Str("long"), Value::Str(&long)),
                (Value::Str("n"), Value::Int(-7))
            ]
        );
        assert_eq!(message.body, Body::Data(Cow::Borrowed(b"body")));
    }
}
