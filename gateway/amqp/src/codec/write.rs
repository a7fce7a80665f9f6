//! Writes AMQP values (part 1) to the end of a `Vec<u8>`, each in its shortest form.

use super::value::Value;

pub(crate) fn null(out: &mut Vec<u8>) {
    out.push(0x40);
}

pub(crate) fn bool(out: &mut Vec<u8>, value: bool) {
    out.push(if value { 0x41 } else { 0x42 });
}

pub(crate) fn u32(out: &mut Vec<u8>, value: u32) {
    match value {
        0 => out.push(0x43),
        1..=255 => out.extend_from_slice(&[0x52, value as u8]),
        _ => {
            out.push(0x70);
            out.extend_from_slice(&value.to_be_bytes());
        }
    }
}

pub(crate) fn u64(out: &mut Vec<u8>, value: u64) {
    match value {
        0 => out.push(0x44),
        1..=255 => out.extend_from_slice(&[0x53, value as u8]),
        _ => wide(out, 0x80, &value.to_be_bytes()),
    }
}

pub(crate) fn i32(out: &mut Vec<u8>, value: i32) {
    match i8::try_from(value) {
        Ok(small) => out.extend_from_slice(&[0x54, small as u8]),
        Err(_) => wide(out, 0x71, &value.to_be_bytes()),
    }
}

pub(crate) fn i64(out: &mut Vec<u8>, value: i64) {
    match i8::try_from(value) {
        Ok(small) => out.extend_from_slice(&[0x55, small as u8]),
        Err(_) => wide(out, 0x81, &value.to_be_bytes()),
    }
}

fn wide(out: &mut Vec<u8>, code: u8, bytes: &[u8]) {
    out.push(code);
    out.extend_from_slice(bytes);
}

pub(crate) fn string(out: &mut Vec<u8>, text: &str) {
    variable(out, 0xa1, text.as_bytes());
}

pub(crate) fn symbol(out: &mut Vec<u8>, text: &str) {
    variable(out, 0xa3, text.as_bytes());
}

pub(crate) fn binary(out: &mut Vec<u8>, bytes: &[u8]) {
    variable(out, 0xa0, bytes);
}

/// `code8` is the form with a one-byte length; the four-byte form is 0x10 above it.
#[inline]
fn variable(out: &mut Vec<u8>, code8: u8, bytes: &[u8]) {
    variable_header(out, code8, bytes.len());
    out.extend_from_slice(bytes);
}

/// Constructor and length of binary data that follows by another way.
pub(crate) fn binary_header(out: &mut Vec<u8>, bytes: usize) {
    variable_header(out, 0xa0, bytes);
}

#[inline]
fn variable_header(out: &mut Vec<u8>, code8: u8, bytes: usize) {
    if bytes < 256 {
        out.extend_from_slice(&[code8, bytes as u8]);
    } else {
        out.push(code8 + 0x10);
        out.extend_from_slice(&(bytes as u32).to_be_bytes());
    }
}

/// Any value; `Other` is taken as a correct encoding.
pub(crate) fn value(out: &mut Vec<u8>, value: Value<'_>) {
    match value {
        Value::Null => null(out),
        Value::Bool(v) => bool(out, v),
        Value::Ubyte(v) => out.extend_from_slice(&[0x50, v]),
        Value::Ushort(v) => wide(out, 0x60, &v.to_be_bytes()),
        Value::Uint(v) => u32(out, v),
        Value::Ulong(v) => u64(out, v),
        Value::Byte(v) => out.extend_from_slice(&[0x51, v as u8]),
        Value::Short(v) => wide(out, 0x61, &v.to_be_bytes()),
        Value::Int(v) => i32(out, v),
        Value::Long(v) => i64(out, v),
        Value::Float(v) => wide(out, 0x72, &v.to_be_bytes()),
        Value::Double(v) => wide(out, 0x82, &v.to_be_bytes()),
        Value::Char(v) => wide(out, 0x73, &(v as u32).to_be_bytes()),
        Value::Timestamp(v) => wide(out, 0x83, &v.to_be_bytes()),
        Value::Uuid(v) => wide(out, 0x98, &v),
        Value::Binary(v) => binary(out, v),
        Value::Str(v) => string(out, v),
        Value::Symbol(v) => symbol(out, v),
        Value::Map(v) => {
            let map = Compound::map(out);
            out.extend_from_slice(v.body);
            map.end(out, v.pairs * 2);
        }
        Value::Other(v) => out.extend_from_slice(v),
    }
}

/// The descriptor of a composite or section.
pub(crate) fn descriptor(out: &mut Vec<u8>, code: u8) {
    out.extend_from_slice(&[0x00, 0x53, code]);
}

/// A list, map or array begun with room for the short form; [`Compound::end`] widens it if it has to.
pub(crate) struct Compound {
    start: usize,
    code8: u8,
}

impl Compound {
    pub(crate) fn list(out: &mut Vec<u8>) -> Self {
        Self::begin(out, 0xc0)
    }

    pub(crate) fn map(out: &mut Vec<u8>) -> Self {
        Self::begin(out, 0xc1)
    }

    fn begin(out: &mut Vec<u8>, code8: u8) -> Self {
        let start = out.len();
        out.extend_from_slice(&[code8, 0, 0]);
        Self { start, code8 }
    }

    /// `count` elements have been written behind it.
    pub(crate) fn end(self, out: &mut Vec<u8>, count: u32) {
        let body = out.len() - self.start - 3;
        // the size counts the count; only below 256 bytes the short form is allowed
        if body + 1 < 256 && count < 256 {
            out[self.start + 1] = (body + 1) as u8;
            out[self.start + 2] = count as u8;
            return;
        }
        out.extend_from_slice(&[0; 6]);
        out.copy_within(self.start + 3..self.start + 3 + body, self.start + 9);
        out[self.start] = self.code8 + 0x10;
        out[self.start + 1..self.start + 5].copy_from_slice(&(body as u32 + 4).to_be_bytes());
        out[self.start + 5..self.start + 9].copy_from_slice(&count.to_be_bytes());
    }
}

/// The fields of a composite in order. Nulls at the end are left out.
pub(crate) struct Fields<'b> {
    out: &'b mut Vec<u8>,
    list: Compound,
    count: u32,
    /// Length and count up to the last field that is not null.
    kept: (usize, u32),
}

impl<'b> Fields<'b> {
    /// Descriptor and list.
    pub(crate) fn new(out: &'b mut Vec<u8>, code: u8) -> Self {
        descriptor(out, code);
        let list = Compound::list(out);
        let kept = (out.len(), 0);
        Self { out, list, count: 0, kept }
    }

    pub(crate) fn null(&mut self) -> &mut Self {
        null(self.out);
        self.count += 1;
        self
    }

    /// One field by any writer of this module.
    pub(crate) fn with(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        write(self.out);
        self.count += 1;
        self.kept = (self.out.len(), self.count);
        self
    }

    /// One field, or null.
    pub(crate) fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Vec<u8>, T)) -> &mut Self {
        match value {
            Some(value) => self.with(|out| write(out, value)),
            None => self.null(),
        }
    }

    pub(crate) fn bool(&mut self, value: bool) -> &mut Self {
        self.with(|out| bool(out, value))
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.with(|out| u32(out, value))
    }

    pub(crate) fn string(&mut self, value: &str) -> &mut Self {
        self.with(|out| string(out, value))
    }

    pub(crate) fn symbol(&mut self, value: &str) -> &mut Self {
        self.with(|out| symbol(out, value))
    }

    /// Symbol → string, null when empty.
    pub(crate) fn symbol_map(&mut self, pairs: &[(String, String)]) -> &mut Self {
        if pairs.is_empty() {
            return self.null();
        }
        self.with(|out| {
            let map = Compound::map(out);
            for (key, text) in pairs {
                symbol(out, key);
                string(out, text);
            }
            map.end(out, pairs.len() as u32 * 2);
        })
    }

    pub(crate) fn end(self) {
        let Self { out, list, kept: (length, count), .. } = self;
        out.truncate(length);
        if count == 0 {
            out.truncate(list.start);
            out.push(0x45);
        } else {
            list.end(out, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::value::{Map, Reader};
    use super::*;

    #[test]
    fn amqp_1_6_what_is_written_reads_back_the_same() {
        let long = "x".repeat(300);
        for expected in [
            Value::Null,
            Value::Bool(true),
            Value::Ubyte(3),
            Value::Ushort(300),
            Value::Uint(0),
            Value::Uint(255),
            Value::Uint(256),
            Value::Ulong(0),
            Value::Ulong(255),
            Value::Ulong(u64::MAX),
            Value::Byte(-3),
            Value::Short(-300),
            Value::Int(-128),
            Value::Int(-129),
            Value::Long(127),
            Value::Long(128),
            Value::Float(0.5),
            Value::Double(-0.5),
            Value::Char('é'),
            Value::Timestamp(-1),
            Value::Uuid([9; 16]),
            Value::Binary(&[0; 255]),
            Value::Binary(&[0; 256]),
            Value::Str("é"),
            Value::Str(&long),
            Value::Symbol(&long),
            Value::Map(Map { pairs: 1, body: &[0x43, 0x40] }),
            Value::Other(&[0x45]),
        ] {
            let mut out = Vec::new();
            value(&mut out, expected);
            let mut reader = Reader::new(&out);
            assert_eq!(reader.value(), Ok(expected));
            assert!(reader.is_empty());
        }
    }

    #[test]
    fn amqp_1_6_22_a_list_takes_the_short_form_only_below_256_bytes() {
        for (bytes, form) in [(0, 0x45), (252, 0xc0), (253, 0xd0), (1000, 0xd0)] {
            let mut out = Vec::new();
            let mut fields = Fields::new(&mut out, 0x24);
            let filler = vec![7; bytes];
            match bytes {
                0 => fields.null(),
                _ => fields.with(|out| out.extend_from_slice(&[&[0xa0, 0], &filler[..]].concat()[..bytes + 2])),
            };
            fields.null();
            fields.end();
            assert_eq!(out[3], form, "{bytes} bytes");
            let header = match form {
                0x45 => 0,
                0xc0 => 2 + usize::from(out[4]),
                _ => 5 + u32::from_be_bytes([out[4], out[5], out[6], out[7]]) as usize,
            };
            assert_eq!(out.len(), 3 + header.max(1), "{bytes} bytes: size agrees with the bytes");
        }
    }
}
