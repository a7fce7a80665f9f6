//! Walks encoded AMQP values (1.2, 1.6) and says whether they are sound before anything decodes or allocates them.
//! Never builds a value: a peer may declare any size, and only bytes that are really there count.

use bytes::Bytes;

/// Values nested deeper than this are refused.
const NESTING_MAX: u32 = 32;
/// Elements that take no bytes (null, true, list0 …) are cheap to declare and dear to decode.
const EMPTY_ELEMENTS_MAX: u32 = 1024;

/// The bytes are no AMQP value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed AMQP value: {0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

/// A section or performative: its descriptor and its whole encoding, descriptor included.
#[derive(Debug, Clone)]
pub(crate) struct Described {
    /// Numeric descriptor, the domain half is zero for all AMQP types.
    pub(crate) code: u64,
    /// The encoded value including the descriptor.
    pub(crate) whole: Bytes,
    /// Where in `whole` the value behind the descriptor starts.
    pub(crate) value_at: usize,
}

impl Described {
    /// The bytes of the value behind the descriptor.
    pub(crate) fn value(&self) -> Bytes {
        self.whole.slice(self.value_at..)
    }
}

/// Takes one described value off the front of `bytes`; everything in it has been checked.
pub(crate) fn take_described(bytes: &mut Bytes) -> Result<Described, Malformed> {
    let (code, value_at) = descriptor(bytes)?;
    let end = skip(bytes, 0, 0)?;
    Ok(Described { code, whole: bytes.split_to(end), value_at })
}

/// The payload of one binary value (`a0`, `b0`) that fills `bytes` exactly.
pub(crate) fn binary(bytes: &Bytes) -> Result<Bytes, Malformed> {
    match bytes.first() {
        Some(0xa0) => Ok(bytes.slice(2..)),
        Some(0xb0) => Ok(bytes.slice(5..)),
        _ => Err(Malformed("data section without binary")),
    }
}

fn descriptor(bytes: &[u8]) -> Result<(u64, usize), Malformed> {
    if byte(bytes, 0)? != 0 {
        return Err(Malformed("described value expected"));
    }
    match byte(bytes, 1)? {
        0x44 => Ok((0, 2)),
        0x53 => Ok((u64::from(byte(bytes, 2)?), 3)),
        0x80 => {
            let code = bytes.get(2..10).ok_or(Malformed("truncated descriptor"))?;
            Ok((u64::from_be_bytes(code.try_into().expect("eight bytes were sliced")), 10))
        }
        0xa3 => {
            let end = 3 + usize::from(byte(bytes, 2)?);
            let name = bytes.get(3..end).ok_or(Malformed("truncated descriptor"))?;
            Ok((symbolic(name).ok_or(Malformed("unknown descriptor"))?, end))
        }
        _ => Err(Malformed("unknown descriptor form")),
    }
}

/// Symbolic descriptors (`amqp:open:list`) are as legal as the numeric ones.
fn symbolic(name: &[u8]) -> Option<u64> {
    Some(match name {
        b"amqp:open:list" => 0x10,
        b"amqp:begin:list" => 0x11,
        b"amqp:attach:list" => 0x12,
        b"amqp:flow:list" => 0x13,
        b"amqp:transfer:list" => 0x14,
        b"amqp:disposition:list" => 0x15,
        b"amqp:detach:list" => 0x16,
        b"amqp:end:list" => 0x17,
        b"amqp:close:list" => 0x18,
        b"amqp:sasl-init:list" => 0x41,
        b"amqp:sasl-response:list" => 0x43,
        b"amqp:header:list" => 0x70,
        b"amqp:delivery-annotations:map" => 0x71,
        b"amqp:message-annotations:map" => 0x72,
        b"amqp:properties:list" => 0x73,
        b"amqp:application-properties:map" => 0x74,
        b"amqp:data:binary" => 0x75,
        b"amqp:amqp-sequence:list" => 0x76,
        b"amqp:amqp-value:*" => 0x77,
        b"amqp:footer:map" => 0x78,
        _ => return None,
    })
}

fn byte(bytes: &[u8], at: usize) -> Result<u8, Malformed> {
    bytes.get(at).copied().ok_or(Malformed("truncated value"))
}

fn word(bytes: &[u8], at: usize) -> Result<u32, Malformed> {
    let four = bytes.get(at..at + 4).ok_or(Malformed("truncated value"))?;
    Ok(u32::from_be_bytes(four.try_into().expect("four bytes were sliced")))
}

/// Checks the value that starts at `at` and returns where it ends.
fn skip(bytes: &[u8], at: usize, depth: u32) -> Result<usize, Malformed> {
    if depth > NESTING_MAX {
        return Err(Malformed("nested too deeply"));
    }
    match byte(bytes, at)? {
        0x00 => {
            let value_at = skip(bytes, at + 1, depth + 1)?;
            skip(bytes, value_at, depth + 1)
        }
        code => skip_body(bytes, code, at + 1, depth),
    }
}

/// Checks what follows the constructor `code`; arrays have elements without a constructor of their own.
fn skip_body(bytes: &[u8], code: u8, at: usize, depth: u32) -> Result<usize, Malformed> {
    let end = match code {
        0x40..=0x45 => at,
        0x50..=0x56 => at + 1,
        0x60 | 0x61 => at + 2,
        0x70..=0x74 => at + 4,
        0x80..=0x84 => at + 8,
        0x94 | 0x98 => at + 16,
        0xa0 | 0xa1 | 0xa3 => return text(bytes, code, at + 1, usize::from(byte(bytes, at)?)),
        0xb0 | 0xb1 | 0xb3 => return text(bytes, code, at + 4, word(bytes, at)? as usize),
        0xc0 | 0xc1 => return compound(bytes, code == 0xc1, at, 1, depth),
        0xd0 | 0xd1 => return compound(bytes, code == 0xd1, at, 4, depth),
        0xe0 => return array(bytes, at, 1, depth),
        0xf0 => return array(bytes, at, 4, depth),
        _ => return Err(Malformed("unknown constructor")),
    };
    if end > bytes.len() { Err(Malformed("truncated value")) } else { Ok(end) }
}

fn text(bytes: &[u8], code: u8, at: usize, size: usize) -> Result<usize, Malformed> {
    let end = at.checked_add(size).ok_or(Malformed("impossible size"))?;
    let text = bytes.get(at..end).ok_or(Malformed("truncated value"))?;
    match code & 0x0f {
        1 if std::str::from_utf8(text).is_err() => Err(Malformed("string is not UTF-8")),
        3 if !text.is_ascii() => Err(Malformed("symbol is not ASCII")),
        _ => Ok(end),
    }
}

/// Size, count and first byte of a compound's content, and its end.
fn extent(bytes: &[u8], at: usize, width: usize) -> Result<(u32, usize, usize), Malformed> {
    let read = |at| if width == 1 { byte(bytes, at).map(u32::from) } else { word(bytes, at) };
    let size = read(at)? as usize;
    let count = read(at + width)?;
    let end = (at + width).checked_add(size).ok_or(Malformed("impossible size"))?;
    let content = at + 2 * width;
    if size < width || end > bytes.len() { Err(Malformed("truncated compound")) } else { Ok((count, content, end)) }
}

fn compound(bytes: &[u8], is_map: bool, at: usize, width: usize, depth: u32) -> Result<usize, Malformed> {
    let (count, mut next, end) = extent(bytes, at, width)?;
    if is_map && count % 2 != 0 {
        return Err(Malformed("map with an odd count"));
    }
    // every element of a list or map has at least its constructor, so a false count ends at the content's end
    for _ in 0..count {
        next = skip(&bytes[..end], next, depth + 1)?;
    }
    if next == end { Ok(end) } else { Err(Malformed("size and count disagree")) }
}

fn array(bytes: &[u8], at: usize, width: usize, depth: u32) -> Result<usize, Malformed> {
    let (count, mut next, end) = extent(bytes, at, width)?;
    let content = &bytes[..end];
    if count == 0 && next == end {
        return Ok(end);
    }
    while byte(content, next)? == 0 {
        next = skip(content, next + 1, depth + 1)?;
    }
    let code = byte(content, next)?;
    if (0x40..=0x45).contains(&code) && count > EMPTY_ELEMENTS_MAX {
        return Err(Malformed("too many empty elements"));
    }
    next += 1;
    for _ in 0..count {
        next = skip_body(content, code, next, depth + 1)?;
    }
    if next == end { Ok(end) } else { Err(Malformed("size and count disagree")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &[u8], expected: Result<usize, &str>) {
        assert_eq!(skip(input, 0, 0).map_err(|error| error.0), expected, "{input:02x?}");
    }

    #[test]
    fn amqp_1_6_values_are_walked_in_every_form_and_lies_are_found() {
        check(&[0x40], Ok(1));
        check(&[0x43, 0xff], Ok(1));
        check(&[0x70, 0, 0, 0, 1], Ok(5));
        check(&[0x70, 0, 0, 0], Err("truncated value"));
        check(&[0xa1, 2, b'h', b'i'], Ok(4));
        check(&[0xa1, 1, 0xff], Err("string is not UTF-8"));
        check(&[0xa3, 1, 0xc3], Err("symbol is not ASCII"));
        check(&[0xb0, 0xff, 0xff, 0xff, 0xff, 1], Err("truncated value"));
        check(&[0xc0, 3, 2, 0x40, 0x41], Ok(5));
        check(&[0xc0, 3, 1, 0x40, 0x41], Err("size and count disagree"));
        check(&[0xc0, 2, 2, 0x40], Err("truncated value"));
        check(&[0xc1, 2, 1, 0x40], Err("map with an odd count"));
        check(&[0xd0, 0, 0, 0, 4, 0, 0, 0, 0], Ok(9));
        check(&[0xc0, 0], Err("truncated value"));
        check(&[0xe0, 4, 2, 0x50, 7, 8], Ok(6));
        check(&[0xf0, 0, 0, 0, 5, 0xff, 0xff, 0xff, 0xff, 0x40], Err("too many empty elements"));
        check(&[0x3f], Err("unknown constructor"));
        check(&[0x00, 0x53, 0x10, 0x45], Ok(4));
    }

    #[test]
    fn deep_nesting_is_refused_before_it_costs_stack() {
        let mut deep = vec![0x40_u8];
        for _ in 0..40 {
            let size = deep.len() as u32 + 4;
            let mut outer = vec![0xd0];
            outer.extend(size.to_be_bytes());
            outer.extend(1_u32.to_be_bytes());
            outer.extend(deep);
            deep = outer;
        }
        check(&deep, Err("nested too deeply"));
        check(&[0_u8; 200], Err("nested too deeply"));
    }

    #[test]
    fn described_values_are_taken_by_number_or_by_name() {
        let mut bytes = Bytes::from_static(b"\x00\xa3\x10amqp:data:binary\xa0\x02hi\x00\x53\x75\xa0\x01x");
        let first = take_described(&mut bytes).expect("sound");
        assert_eq!((first.code, binary(&first.value()).expect("binary")), (0x75, Bytes::from_static(b"hi")));
        let second = take_described(&mut bytes).expect("sound");
        assert_eq!((second.code, binary(&second.value()).expect("binary")), (0x75, Bytes::from_static(b"x")));
        assert!(bytes.is_empty());
    }
}
