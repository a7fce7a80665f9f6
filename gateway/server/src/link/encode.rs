//! Telemetry → the sections of one AMQP message (contract §2.7, §3.5), written once and kept until the hub has settled it.

use amqp_endpoint::message::{Encoder, Properties, Value};
use gateway_core::message::{DeviceId, PropertyText, Telemetry};

/// Appends the encoded message to `out`. `sender` is stamped on it for peers that cannot know it: IoT Hub stamps messages
/// itself, from the link.
pub(super) fn telemetry(out: &mut Vec<u8>, telemetry: &Telemetry<'_>, sender: Option<&DeviceId>) {
    let text = telemetry.text;
    let mut encoder = Encoder::new(out);
    if !text.annotations.is_empty() || sender.is_some() {
        encoder.message_annotations(|map| {
            if let Some(sender) = sender {
                map.pair(Value::Symbol("iothub-connection-device-id"), Value::Str(sender.device()));
                if let Some(module) = sender.module() {
                    map.pair(Value::Symbol("iothub-connection-module-id"), Value::Str(module));
                }
            }
            for (name, value) in &text.annotations {
                map.pair(Value::Symbol(name), Value::Str(text.get(value)));
            }
        });
    }
    if has_properties(text) {
        encoder.properties(&properties(text));
    }
    if !text.application.is_empty() {
        encoder.application_properties(|map| {
            for (name, value) in &text.application {
                let value = value.as_ref().map_or(Value::Null, |value| Value::Str(text.get(value)));
                map.pair(Value::Str(text.name(name)), value);
            }
        });
    }
    encoder.data(telemetry.payload);
}

fn has_properties(text: &PropertyText) -> bool {
    text.message_id.is_some()
        || text.correlation_id.is_some()
        || text.user_id.is_some()
        || text.content_type.is_some()
        || text.content_encoding.is_some()
}

fn properties(text: &PropertyText) -> Properties<'_> {
    let get = |range: &Option<_>| range.as_ref().map(|range| text.get(range));
    Properties {
        message_id: get(&text.message_id).map_or(Value::Null, Value::Str),
        correlation_id: get(&text.correlation_id).map_or(Value::Null, Value::Str),
        user_id: get(&text.user_id).map(str::as_bytes),
        content_type: get(&text.content_type),
        content_encoding: get(&text.content_encoding),
        ..Properties::default()
    }
}

#[cfg(test)]
mod tests {
    use amqp_endpoint::message::{Body, Value, decode};
    use gateway_core::message::{DeviceId, PropertyName, PropertyText, Telemetry};

    fn text(parts: &[&str]) -> (PropertyText, Vec<std::ops::Range<u32>>) {
        let mut text = PropertyText::default();
        let ranges = parts
            .iter()
            .map(|part| {
                let start = text.text.len() as u32;
                text.text.push_str(part);
                start..text.text.len() as u32
            })
            .collect();
        (text, ranges)
    }

    #[test]
    fn every_property_arrives_in_its_section() {
        let (mut text, ranges) = text(&["m-1", "c-1", "user", "application/json", "utf-8", "subject", "a", "b", "k"]);
        text.message_id = Some(ranges[0].clone());
        text.correlation_id = Some(ranges[1].clone());
        text.user_id = Some(ranges[2].clone());
        text.content_type = Some(ranges[3].clone());
        text.content_encoding = Some(ranges[4].clone());
        text.annotations.push(("dt-subject", ranges[5].clone()));
        text.application.push((PropertyName::Text(ranges[6].clone()), Some(ranges[7].clone())));
        text.application.push((PropertyName::Text(ranges[8].clone()), None));
        text.application.push((PropertyName::Known("mqtt-retain"), Some(ranges[7].clone())));

        let mut out = Vec::new();
        super::telemetry(&mut out, &Telemetry { text: &text, payload: b"body" }, None);
        let message = decode(&out).unwrap();

        assert_eq!(message.properties.message_id, Value::Str("m-1"));
        assert_eq!(message.properties.correlation_id, Value::Str("c-1"));
        assert_eq!(message.properties.user_id, Some(&b"user"[..]));
        assert_eq!(message.properties.content_type, Some("application/json"));
        assert_eq!(message.properties.content_encoding, Some("utf-8"));
        let annotations: Vec<_> = message.message_annotations.iter().collect();
        assert_eq!(annotations, [(Value::Symbol("dt-subject"), Value::Str("subject"))]);
        let application: Vec<_> = message.application_properties.iter().collect();
        let pair = |name, value| (Value::Str(name), value);
        assert_eq!(
            application,
            [pair("a", Value::Str("b")), pair("k", Value::Null), pair("mqtt-retain", Value::Str("b"))]
        );
        assert_eq!(message.body, Body::Data((&b"body"[..]).into()));
    }

    #[test]
    fn a_peer_that_is_no_iot_hub_is_told_who_sent_a_message() {
        let sender = DeviceId::new("d", Some("m")).unwrap();
        let mut out = Vec::new();
        super::telemetry(&mut out, &Telemetry { text: &PropertyText::default(), payload: b"" }, Some(&sender));
        let annotations: Vec<_> = decode(&out).unwrap().message_annotations.iter().collect();
        let expected = [("iothub-connection-device-id", "d"), ("iothub-connection-module-id", "m")];
        assert_eq!(annotations, expected.map(|(name, id)| (Value::Symbol(name), Value::Str(id))));
    }

    #[test]
    fn a_message_without_properties_is_its_body_alone() {
        let mut out = Vec::new();
        super::telemetry(&mut out, &Telemetry { text: &PropertyText::default(), payload: b"" }, None);
        // section 75 with an empty vbin8
        assert_eq!(out, [0x00, 0x53, 0x75, 0xa0, 0x00]);
    }
}
