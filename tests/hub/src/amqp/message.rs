//! Messages (3.2): bytes ⇄ sections. The sections' order is checked, payloads are not copied.

use bytes::{BufMut, Bytes, BytesMut};
use fe2o3_amqp_types::messaging::{ApplicationProperties, Header, MessageAnnotations, Properties};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_amqp::Value;

use super::wire::{self, Described};

/// A message as a client sent it.
#[derive(Debug, Default)]
pub(crate) struct Message {
    pub(crate) annotations: Option<MessageAnnotations>,
    pub(crate) properties: Option<Properties>,
    pub(crate) application_properties: Option<ApplicationProperties>,
    pub(crate) body: Body,
    /// What counts against the 256 KB: body, properties and application properties, in bytes.
    pub(crate) content_bytes: usize,
}

/// The body sections.
#[derive(Debug, Default, PartialEq)]
pub(crate) enum Body {
    #[default]
    Absent,
    Data(Vec<Bytes>),
    Value(Value),
    Sequence,
}

/// Why a payload is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("message: {0}")]
pub(crate) struct BadMessage(String);

impl From<wire::Malformed> for BadMessage {
    fn from(error: wire::Malformed) -> Self {
        Self(error.0.into())
    }
}

impl Message {
    /// Splits and decodes a payload; sections must come in the order of 3.2, each once, data sections excepted.
    pub(crate) fn parse(mut payload: Bytes) -> Result<Self, BadMessage> {
        let mut message = Self::default();
        let mut last = 0;
        while !payload.is_empty() {
            let section = wire::take_described(&mut payload)?;
            let again = section.code == last && matches!(section.code, 0x75 | 0x76);
            let body_twice = last >= 0x75 && section.code != last && section.code < 0x78;
            if !again && (section.code <= last || body_twice || !(0x70..=0x78).contains(&section.code)) {
                return Err(BadMessage(format!("section {:#x} after {last:#x}", section.code)));
            }
            last = section.code;
            message.take_section(&section)?;
        }
        Ok(message)
    }

    fn take_section(&mut self, section: &Described) -> Result<(), BadMessage> {
        match section.code {
            0x72 => self.annotations = Some(decode(section)?),
            0x73 => {
                self.properties = Some(decode(section)?);
                self.content_bytes += section.whole.len();
            }
            0x74 => {
                self.application_properties = Some(decode(section)?);
                self.content_bytes += section.whole.len();
            }
            0x75 => {
                let data = wire::binary(&section.value())?;
                self.content_bytes += data.len();
                match &mut self.body {
                    Body::Data(sections) => sections.push(data),
                    body => *body = Body::Data(vec![data]),
                }
            }
            0x76 => {
                self.content_bytes += section.whole.len();
                self.body = Body::Sequence;
            }
            0x77 => {
                self.content_bytes += section.whole.len();
                let value = section.value();
                self.body = Body::Value(serde_amqp::from_slice(&value).map_err(|e| BadMessage(e.to_string()))?);
            }
            _ => {}
        }
        Ok(())
    }

    /// The bytes of the body as the service side sees them: data sections joined, an amqp-value's text or bytes.
    pub(crate) fn body_bytes(&self) -> Bytes {
        match &self.body {
            Body::Data(sections) if sections.len() == 1 => sections[0].clone(),
            Body::Data(sections) => sections.concat().into(),
            Body::Value(Value::String(text)) => Bytes::copy_from_slice(text.as_bytes()),
            Body::Value(Value::Binary(bytes)) => Bytes::copy_from_slice(bytes),
            Body::Absent | Body::Value(_) | Body::Sequence => Bytes::new(),
        }
    }

    /// The length of [`Self::body_bytes`].
    pub(crate) fn body_len(&self) -> usize {
        match &self.body {
            Body::Data(sections) => sections.iter().map(Bytes::len).sum(),
            Body::Value(Value::String(text)) => text.len(),
            Body::Value(Value::Binary(bytes)) => bytes.len(),
            Body::Absent | Body::Value(_) | Body::Sequence => 0,
        }
    }

    /// An annotation as text, whatever string type it has.
    pub(crate) fn annotation(&self, name: &str) -> Option<&str> {
        match self.annotations.as_ref()?.0.get(&name as &dyn fe2o3_amqp_types::messaging::annotations::AnnotationKey)? {
            Value::String(text) => Some(text),
            Value::Symbol(text) => Some(text.as_str()),
            _ => None,
        }
    }
}

fn decode<T: DeserializeOwned>(section: &Described) -> Result<T, BadMessage> {
    serde_amqp::from_slice(&section.whole).map_err(|error| BadMessage(format!("section {:#x}: {error}", section.code)))
}

/// A message of our own, as sections.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    pub(crate) header: Option<Header>,
    pub(crate) annotations: Option<MessageAnnotations>,
    pub(crate) properties: Option<Properties>,
    pub(crate) application_properties: Option<ApplicationProperties>,
    /// One data section; an empty one is still a section (twin answers must have exactly one).
    pub(crate) data: Option<Bytes>,
}

impl Outgoing {
    /// The payload for TRANSFER frames. Without data the body is an amqp-value null, for a body must be there.
    pub(crate) fn encode(&self) -> Bytes {
        let data_bytes = self.data.as_ref().map_or(0, Bytes::len);
        let mut out = BytesMut::with_capacity(256 + data_bytes);
        put_section(&mut out, self.header.as_ref());
        put_section(&mut out, self.annotations.as_ref());
        put_section(&mut out, self.properties.as_ref());
        put_section(&mut out, self.application_properties.as_ref());
        match &self.data {
            Some(data) => put_data(&mut out, data),
            None => out.put_slice(&[0x00, 0x53, 0x77, 0x40]),
        }
        out.freeze()
    }
}

fn put_section<T: Serialize>(out: &mut BytesMut, section: Option<&T>) {
    if let Some(section) = section {
        let mut serializer = serde_amqp::ser::Serializer::new(out.writer());
        section.serialize(&mut serializer).expect("our own sections are encodable and memory does not fail");
    }
}

fn put_data(out: &mut BytesMut, data: &[u8]) {
    out.put_slice(&[0x00, 0x53, 0x75]);
    if let Ok(size) = u8::try_from(data.len()) {
        out.put_slice(&[0xa0, size]);
    } else {
        out.put_u8(0xb0);
        out.put_u32(data.len() as u32);
    }
    out.put_slice(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(payload: &'static [u8]) -> Result<Message, BadMessage> {
        Message::parse(Bytes::from_static(payload))
    }

    #[test]
    fn amqp_3_2_sections_out_of_order_or_doubled_are_refused() {
        assert!(parse(b"\x00\x53\x73\x45\x00\x53\x75\xa0\x01x").is_ok());
        assert!(parse(b"\x00\x53\x75\xa0\x01x\x00\x53\x75\xa0\x01y").is_ok());
        assert!(parse(b"\x00\x53\x75\xa0\x01x\x00\x53\x73\x45").is_err());
        assert!(parse(b"\x00\x53\x73\x45\x00\x53\x73\x45").is_err());
        assert!(parse(b"\x00\x53\x75\xa0\x01x\x00\x53\x77\x40").is_err());
        assert!(parse(b"\x00\x53\x75\x40").is_err());
        assert!(parse(b"\xff").is_err());
    }

    #[test]
    fn an_outgoing_message_is_read_back_with_all_its_sections() {
        let properties = Properties::builder().message_id("m1".to_owned()).build();
        let outgoing = Outgoing {
            properties: Some(properties.clone()),
            data: Some(Bytes::from(vec![7; 300])),
            ..Outgoing::default()
        };
        let message = Message::parse(outgoing.encode()).expect("sound");
        assert_eq!(message.properties, Some(properties));
        assert_eq!(message.body_bytes(), Bytes::from(vec![7; 300]));
    }
}
