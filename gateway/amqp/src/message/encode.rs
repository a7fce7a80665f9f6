//! Sections written by hand, in the order of the calls, to the end of a buffer that the caller keeps and reuses.

use super::{Header, Properties, Value};
use crate::codec::write::{self, Compound, Fields};

/// Writes the sections of one message. The order is the caller's duty: header, delivery annotations, message
/// annotations, properties, application properties, body.
#[derive(Debug)]
pub struct Encoder<'b> {
    out: &'b mut Vec<u8>,
}

/// Writes the pairs of one map section.
#[derive(Debug)]
pub struct MapEncoder<'b> {
    out: &'b mut Vec<u8>,
    pairs: u32,
}

impl<'b> Encoder<'b> {
    /// Appends to `out`.
    pub fn new(out: &'b mut Vec<u8>) -> Self {
        Self { out }
    }

    /// Section 70.
    pub fn header(&mut self, header: &Header) -> &mut Self {
        let default = Header::default();
        let mut fields = Fields::new(self.out, 0x70);
        fields.option(header.durable.then_some(true), write::bool);
        fields.option((header.priority != default.priority).then_some(Value::Ubyte(header.priority)), write::value);
        fields.option(header.ttl, write::u32);
        fields.option(header.first_acquirer.then_some(true), write::bool);
        fields.option((header.delivery_count != 0).then_some(header.delivery_count), write::u32);
        fields.end();
        self
    }

    /// Section 71: `pairs` adds its pairs (symbol keys).
    pub fn delivery_annotations(&mut self, pairs: impl FnOnce(&mut MapEncoder<'_>)) -> &mut Self {
        self.map(0x71, pairs)
    }

    /// Section 72: `pairs` adds its pairs (symbol keys).
    pub fn message_annotations(&mut self, pairs: impl FnOnce(&mut MapEncoder<'_>)) -> &mut Self {
        self.map(0x72, pairs)
    }

    /// Section 73.
    pub fn properties(&mut self, properties: &Properties<'_>) -> &mut Self {
        fn id(value: Value<'_>) -> Option<Value<'_>> {
            (value != Value::Null).then_some(value)
        }
        let p = properties;
        let mut fields = Fields::new(self.out, 0x73);
        fields.option(id(p.message_id), write::value).option(p.user_id, write::binary);
        fields.option(p.to, write::string).option(p.subject, write::string).option(p.reply_to, write::string);
        fields.option(id(p.correlation_id), write::value);
        fields.option(p.content_type, write::symbol).option(p.content_encoding, write::symbol);
        fields.option(p.absolute_expiry_time.map(Value::Timestamp), write::value);
        fields.option(p.creation_time.map(Value::Timestamp), write::value);
        fields.option(p.group_id, write::string).option(p.group_sequence, write::u32);
        fields.option(p.reply_to_group_id, write::string);
        fields.end();
        self
    }

    /// Section 74: `pairs` adds its pairs (string keys).
    pub fn application_properties(&mut self, pairs: impl FnOnce(&mut MapEncoder<'_>)) -> &mut Self {
        self.map(0x74, pairs)
    }

    /// A section without pairs is left out.
    fn map(&mut self, code: u8, pairs: impl FnOnce(&mut MapEncoder<'_>)) -> &mut Self {
        let start = self.out.len();
        write::descriptor(self.out, code);
        let compound = Compound::map(self.out);
        let mut map = MapEncoder { out: self.out, pairs: 0 };
        pairs(&mut map);
        match map.pairs {
            0 => self.out.truncate(start),
            count => compound.end(self.out, count * 2),
        }
        self
    }

    /// Section 75.
    pub fn data(&mut self, body: &[u8]) -> &mut Self {
        self.data_header(body.len());
        self.out.extend_from_slice(body);
        self
    }

    /// The front of section 75: `body_bytes` bytes of body follow, as another part of `send`.
    pub fn data_header(&mut self, body_bytes: usize) {
        write::descriptor(self.out, 0x75);
        write::binary_header(self.out, body_bytes);
    }

    /// Section 77.
    pub fn value(&mut self, value: Value<'_>) -> &mut Self {
        write::descriptor(self.out, 0x77);
        write::value(self.out, value);
        self
    }
}

impl MapEncoder<'_> {
    /// Adds a pair. Annotations have symbol keys, application properties string keys; equal keys are invalid.
    pub fn pair(&mut self, key: Value<'_>, value: Value<'_>) {
        write::value(self.out, key);
        write::value(self.out, value);
        self.pairs += 1;
    }

    /// A string under a string key: what nearly all application properties are.
    pub fn string(&mut self, key: &str, value: &str) {
        self.pair(Value::Str(key), Value::Str(value));
    }

    /// A string under a symbol key: what nearly all annotations are.
    pub fn annotation(&mut self, key: &str, value: &str) {
        self.pair(Value::Symbol(key), Value::Str(value));
    }
}
