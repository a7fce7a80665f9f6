//! Reads AMQP values (part 1) out of a slice: every form of every type, sizes checked before they are trusted, nothing
//! copied, nothing allocated. What is not asked for is passed over by its size.

/// The bytes are not what they claim to be: `amqp:decode-error`, with what was being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed AMQP data: {0}")]
pub struct Malformed(pub &'static str);

/// One value. Borrowed; the compound ones stay encoded until asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// `null`
    Null,
    /// `boolean`
    Bool(bool),
    /// `ubyte`
    Ubyte(u8),
    /// `ushort`
    Ushort(u16),
    /// `uint`
    Uint(u32),
    /// `ulong`
    Ulong(u64),
    /// `byte`
    Byte(i8),
    /// `short`
    Short(i16),
    /// `int`
    Int(i32),
    /// `long`
    Long(i64),
    /// `float`
    Float(f32),
    /// `double`
    Double(f64),
    /// `char`
    Char(char),
    /// `timestamp`, ms since 1970
    Timestamp(i64),
    /// `uuid`
    Uuid([u8; 16]),
    /// `binary`
    Binary(&'a [u8]),
    /// `string`
    Str(&'a str),
    /// `symbol`
    Symbol(&'a str),
    /// `map`
    Map(Map<'a>),
    /// Decimals, lists, arrays, described values: the whole encoding, constructor included. Written back as it is.
    Other(&'a [u8]),
}

/// A map, read as it is walked. Order is kept; of equal keys the first one counts in [`Map::get`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Map<'a> {
    pub(crate) pairs: u32,
    pub(crate) body: &'a [u8],
}

impl<'a> Map<'a> {
    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.pairs as usize
    }

    /// No pairs.
    pub fn is_empty(&self) -> bool {
        self.pairs == 0
    }

    /// The pairs in order. [`crate::message::decode`] has checked them all; in other maps the walk ends at the first malformed one.
    pub fn iter(&self) -> impl Iterator<Item = (Value<'a>, Value<'a>)> + use<'a> {
        let mut reader = Reader::new(self.body);
        (0..self.pairs).map_while(move |_| Some((reader.value().ok()?, reader.value().ok()?)))
    }

    /// The value of a string or symbol key.
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        self.iter().find(|(k, _)| matches!(k, Value::Str(s) | Value::Symbol(s) if *s == key)).map(|(_, v)| v)
    }

    /// Walks it once: every key and value is well-formed and the sizes agree.
    pub(crate) fn check(&self) -> Result<(), Malformed> {
        let mut reader = Reader::new(self.body);
        for _ in 0..self.pairs {
            reader.value()?;
            reader.value()?;
        }
        reader.end("map size")
    }
}

/// How many descriptors may stand inside each other (`00 00 00 …` costs a byte a level).
const NESTING_MAX: u32 = 32;

/// A place in a slice.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn end(&self, what: &'static str) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed(what)) }
    }

    #[inline]
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(bytes).ok_or(Malformed("value runs past the end"))?;
        self.rest = rest;
        Ok(head)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed("value runs past the end"))?;
        self.rest = rest;
        Ok(*head)
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    /// A size or length field, one or four bytes wide.
    #[inline]
    fn length(&mut self, wide: bool) -> Result<usize, Malformed> {
        Ok(if wide { u32::from_be_bytes(self.array()?) as usize } else { usize::from(self.byte()?) })
    }

    /// The body and element count of a compound whose constructor has been read. Size counts from after itself, count included.
    fn compound(&mut self, wide: bool) -> Result<(u32, &'a [u8]), Malformed> {
        let size = self.length(wide)?;
        let mut inner = Reader::new(self.take(size)?);
        let count = inner.length(wide)?;
        Ok((count as u32, inner.rest))
    }

    /// The next value. Descriptors count as part of it.
    pub(crate) fn value(&mut self) -> Result<Value<'a>, Malformed> {
        let start = self.rest;
        let code = self.byte()?;
        Ok(match code {
            0x40 => Value::Null,
            0x41 => Value::Bool(true),
            0x42 => Value::Bool(false),
            0x56 => Value::Bool(self.boolean_byte()?),
            0x43 => Value::Uint(0),
            0x44 => Value::Ulong(0),
            0x50 => Value::Ubyte(self.byte()?),
            0x51 => Value::Byte(self.byte()?.cast_signed()),
            0x52 => Value::Uint(u32::from(self.byte()?)),
            0x53 => Value::Ulong(u64::from(self.byte()?)),
            0x54 => Value::Int(i32::from(self.byte()?.cast_signed())),
            0x55 => Value::Long(i64::from(self.byte()?.cast_signed())),
            0x60 => Value::Ushort(u16::from_be_bytes(self.array()?)),
            0x61 => Value::Short(i16::from_be_bytes(self.array()?)),
            0x70 => Value::Uint(u32::from_be_bytes(self.array()?)),
            0x71 => Value::Int(i32::from_be_bytes(self.array()?)),
            0x72 => Value::Float(f32::from_be_bytes(self.array()?)),
            0x73 => Value::Char(char::from_u32(u32::from_be_bytes(self.array()?)).ok_or(Malformed("char"))?),
            0x80 => Value::Ulong(u64::from_be_bytes(self.array()?)),
            0x81 => Value::Long(i64::from_be_bytes(self.array()?)),
            0x82 => Value::Double(f64::from_be_bytes(self.array()?)),
            0x83 => Value::Timestamp(i64::from_be_bytes(self.array()?)),
            0x98 => Value::Uuid(self.array()?),
            0xa0 | 0xb0 => Value::Binary(self.variable(code)?),
            0xa1 | 0xb1 => Value::Str(utf8(self.variable(code)?)?),
            0xa3 | 0xb3 => Value::Symbol(ascii(self.variable(code)?)?),
            0xc1 | 0xd1 => {
                let (count, body) = self.compound(code == 0xd1)?;
                if count % 2 != 0 {
                    return Err(Malformed("map with an odd count"));
                }
                Value::Map(Map { pairs: count / 2, body })
            }
            _ => {
                self.rest = start;
                self.skip()?;
                Value::Other(&start[..start.len() - self.rest.len()])
            }
        })
    }

    #[inline]
    fn variable(&mut self, code: u8) -> Result<&'a [u8], Malformed> {
        let length = self.length(code & 0x10 != 0)?;
        self.take(length)
    }

    fn boolean_byte(&mut self) -> Result<bool, Malformed> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("boolean")),
        }
    }

    /// Passes over the next value, whatever it is, without looking into it.
    pub(crate) fn skip(&mut self) -> Result<(), Malformed> {
        // A descriptor is a value followed by a value: of `pending` values this reads one a round.
        let mut pending = 1_u32;
        let mut descriptors = 0_u32;
        while pending > 0 {
            pending -= 1;
            let code = self.byte()?;
            let bytes = match code {
                0x00 => {
                    descriptors += 1;
                    if descriptors > NESTING_MAX {
                        return Err(Malformed("descriptors nested too deep"));
                    }
                    pending += 2;
                    0
                }
                0x40..=0x45 => 0,
                0x50..=0x56 => 1,
                0x60 | 0x61 => 2,
                0x70..=0x74 => 4,
                0x80..=0x84 => 8,
                0x94 | 0x98 => 16,
                0xa0 | 0xa1 | 0xa3 => self.length(false)?,
                0xb0 | 0xb1 | 0xb3 => self.length(true)?,
                0xc0 | 0xc1 | 0xe0 => at_least(self.length(false)?, 1)?,
                0xd0 | 0xd1 | 0xf0 => at_least(self.length(true)?, 4)?,
                _ => return Err(Malformed("unknown constructor")),
            };
            self.take(bytes)?;
        }
        Ok(())
    }

    /// If a described value comes next: its descriptor as a code ([`UNKNOWN`] if it has none), the reader before the value.
    #[inline]
    pub(crate) fn descriptor(&mut self) -> Result<Option<u64>, Malformed> {
        // The shortest form first: nearly everybody writes it.
        if let [0x00, 0x53, code, rest @ ..] = self.rest {
            self.rest = rest;
            return Ok(Some(u64::from(*code)));
        }
        if self.rest.first() != Some(&0x00) {
            return Ok(None);
        }
        self.byte()?;
        Ok(Some(match self.value()? {
            Value::Ulong(code) => code,
            Value::Symbol(name) => descriptor_code(name),
            _ => UNKNOWN,
        }))
    }

    /// A list: `None` for null.
    #[inline]
    pub(crate) fn list(&mut self) -> Result<Option<List<'a>>, Malformed> {
        let (left, body) = match self.byte()? {
            0x40 => return Ok(None),
            0x45 => (0, &[][..]),
            0xc0 => self.compound(false)?,
            0xd0 => self.compound(true)?,
            _ => return Err(Malformed("expected a list")),
        };
        Ok(Some(List { reader: Reader::new(body), left }))
    }
}

fn at_least(size: usize, min: usize) -> Result<usize, Malformed> {
    if size >= min { Ok(size) } else { Err(Malformed("compound smaller than its count")) }
}

fn utf8(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed("string is not UTF-8"))
}

fn ascii(bytes: &[u8]) -> Result<&str, Malformed> {
    if bytes.is_ascii() { utf8(bytes) } else { Err(Malformed("symbol is not ASCII")) }
}

/// The fields of a composite: trailing ones may be absent, null is absent at any place (1.4), more than we know are passed over.
#[derive(Clone, Debug)]
pub(crate) struct List<'a> {
    reader: Reader<'a>,
    left: u32,
}

/// A field of one type; absent and null give `None`.
macro_rules! field {
    ($name:ident, $type:ty, $pattern:pat => $result:expr, $what:literal) => {
        #[inline]
        pub(crate) fn $name(&mut self) -> Result<Option<$type>, Malformed> {
            match self.next()? {
                Value::Null => Ok(None),
                $pattern => Ok(Some($result)),
                _ => Err(Malformed($what)),
            }
        }
    };
}

impl<'a> List<'a> {
    #[inline]
    pub(crate) fn next(&mut self) -> Result<Value<'a>, Malformed> {
        match self.left.checked_sub(1) {
            None => Ok(Value::Null),
            Some(left) => {
                self.left = left;
                self.reader.value()
            }
        }
    }

    field!(bool, bool, Value::Bool(v) => v, "expected a boolean");
    field!(u8, u8, Value::Ubyte(v) => v, "expected a ubyte");
    field!(u16, u16, Value::Ushort(v) => v, "expected a ushort");
    field!(any_u32, u32, Value::Uint(v) => v, "expected a uint");
    field!(u64, u64, Value::Ulong(v) => v, "expected a ulong");
    field!(timestamp, i64, Value::Timestamp(v) => v, "expected a timestamp");
    field!(binary, &'a [u8], Value::Binary(v) => v, "expected binary");
    field!(string, &'a str, Value::Str(v) => v, "expected a string");
    field!(symbol, &'a str, Value::Symbol(v) => v, "expected a symbol");
    field!(map, Map<'a>, Value::Map(v) => v, "expected a map");

    /// As the others, and quick for the two wide-spread forms: three of these stand in every frame of the message path.
    #[inline]
    pub(crate) fn u32(&mut self) -> Result<Option<u32>, Malformed> {
        let (value, rest) = match *self.reader.rest {
            [0x52, value, ref rest @ ..] if self.left > 0 => (u32::from(value), rest),
            [0x70, a, b, c, d, ref rest @ ..] if self.left > 0 => (u32::from_be_bytes([a, b, c, d]), rest),
            _ => return self.any_u32(),
        };
        self.left -= 1;
        self.reader.rest = rest;
        Ok(Some(value))
    }

    /// Passes over `fields` fields.
    pub(crate) fn skip(&mut self, fields: u32) -> Result<(), Malformed> {
        for _ in 0..fields.min(self.left) {
            self.left -= 1;
            self.reader.skip()?;
        }
        Ok(())
    }

    /// A described list: its descriptor and fields.
    #[inline]
    pub(crate) fn composite(&mut self) -> Result<Option<(u64, List<'a>)>, Malformed> {
        // `accepted`, `released`: a list without fields
        if let [0x00, 0x53, code, 0x45, ref rest @ ..] = *self.reader.rest
            && self.left > 0
        {
            self.left -= 1;
            self.reader.rest = rest;
            return Ok(Some((u64::from(code), List { reader: Reader::new(&[]), left: 0 })));
        }
        match self.next()? {
            Value::Null => Ok(None),
            Value::Other(bytes) => composite(bytes).map(Some),
            _ => Err(Malformed("expected a described list")),
        }
    }

    /// A `multiple` field of symbols: one bare symbol, an array of them, or nothing.
    pub(crate) fn symbols(&mut self) -> Result<Vec<&'a str>, Malformed> {
        match self.next()? {
            Value::Null => Ok(Vec::new()),
            Value::Symbol(one) => Ok(vec![one]),
            Value::Other(bytes) => symbol_array(bytes),
            _ => Err(Malformed("expected symbols")),
        }
    }

    /// Passes over what is left; size and count must agree with the bytes.
    #[inline]
    pub(crate) fn finish(mut self) -> Result<(), Malformed> {
        while self.left > 0 {
            self.left -= 1;
            self.reader.skip()?;
        }
        self.reader.end("list size and count disagree")
    }
}

/// A whole described list.
pub(crate) fn composite(bytes: &[u8]) -> Result<(u64, List<'_>), Malformed> {
    let mut reader = Reader::new(bytes);
    let code = reader.descriptor()?.ok_or(Malformed("expected a described list"))?;
    let list = reader.list()?.ok_or(Malformed("described list is null"))?;
    Ok((code, list))
}

/// 1.6.24: one constructor for all elements. Symbols have a length byte at least, so the count is bounded by the bytes.
fn symbol_array(bytes: &[u8]) -> Result<Vec<&str>, Malformed> {
    let mut reader = Reader::new(bytes);
    let (count, body) = match reader.byte()? {
        0xe0 => reader.compound(false)?,
        0xf0 => reader.compound(true)?,
        _ => return Err(Malformed("expected an array")),
    };
    let mut elements = Reader::new(body);
    let code = elements.byte()?;
    if code != 0xa3 && code != 0xb3 {
        return if count == 0 { Ok(Vec::new()) } else { Err(Malformed("expected an array of symbols")) };
    }
    let mut symbols = Vec::new();
    for _ in 0..count {
        symbols.push(ascii(elements.variable(code)?)?);
    }
    elements.end("array size and count disagree")?;
    Ok(symbols)
}

/// A descriptor nobody has defined.
pub(crate) const UNKNOWN: u64 = u64::MAX;

/// Descriptors by name (1.2: code and symbol are equal in rank).
const NAMES: [(&str, u64); 31] = [
    ("amqp:open:list", 0x10),
    ("amqp:begin:list", 0x11),
    ("amqp:attach:list", 0x12),
    ("amqp:flow:list", 0x13),
    ("amqp:transfer:list", 0x14),
    ("amqp:disposition:list", 0x15),
    ("amqp:detach:list", 0x16),
    ("amqp:end:list", 0x17),
    ("amqp:close:list", 0x18),
    ("amqp:error:list", 0x1d),
    ("amqp:received:list", 0x23),
    ("amqp:accepted:list", 0x24),
    ("amqp:rejected:list", 0x25),
    ("amqp:released:list", 0x26),
    ("amqp:modified:list", 0x27),
    ("amqp:source:list", 0x28),
    ("amqp:target:list", 0x29),
    ("amqp:sasl-mechanisms:list", 0x40),
    ("amqp:sasl-init:list", 0x41),
    ("amqp:sasl-challenge:list", 0x42),
    ("amqp:sasl-response:list", 0x43),
    ("amqp:sasl-outcome:list", 0x44),
    ("amqp:header:list", 0x70),
    ("amqp:delivery-annotations:map", 0x71),
    ("amqp:message-annotations:map", 0x72),
    ("amqp:properties:list", 0x73),
    ("amqp:application-properties:map", 0x74),
    ("amqp:data:binary", 0x75),
    ("amqp:amqp-sequence:list", 0x76),
    ("amqp:amqp-value:*", 0x77),
    ("amqp:footer:map", 0x78),
];

fn descriptor_code(name: &str) -> u64 {
    NAMES.iter().find(|(n, _)| *n == name).map_or(UNKNOWN, |(_, code)| *code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], expected: Result<Value<'_>, Malformed>) {
        let mut reader = Reader::new(bytes);
        let value = reader.value();
        assert_eq!(value, expected, "{bytes:02x?}");
        if value.is_ok() {
            assert!(reader.is_empty(), "{bytes:02x?} left {:02x?}", reader.rest());
            let mut skipped = Reader::new(bytes);
            assert_eq!(skipped.skip(), Ok(()), "{bytes:02x?}");
            assert!(skipped.is_empty());
        }
    }

    #[test]
    fn amqp_1_6_every_form_of_a_primitive_reads_as_the_same_value() {
        check(&[0x40], Ok(Value::Null));
        check(&[0x41], Ok(Value::Bool(true)));
        check(&[0x42], Ok(Value::Bool(false)));
        check(&[0x56, 0], Ok(Value::Bool(false)));
        check(&[0x56, 1], Ok(Value::Bool(true)));
        check(&[0x43], Ok(Value::Uint(0)));
        check(&[0x52, 200], Ok(Value::Uint(200)));
        check(&[0x70, 0, 0, 0, 200], Ok(Value::Uint(200)));
        check(&[0x44], Ok(Value::Ulong(0)));
        check(&[0x53, 200], Ok(Value::Ulong(200)));
        check(&[0x80, 0, 0, 0, 0, 0, 0, 0, 200], Ok(Value::Ulong(200)));
        check(&[0x54, 0xff], Ok(Value::Int(-1)));
        check(&[0x71, 0xff, 0xff, 0xff, 0xff], Ok(Value::Int(-1)));
        check(&[0x55, 0xfe], Ok(Value::Long(-2)));
        check(&[0x81, 0, 0, 0, 0, 0, 0, 0, 9], Ok(Value::Long(9)));
        check(&[0x50, 7], Ok(Value::Ubyte(7)));
        check(&[0x51, 0x80], Ok(Value::Byte(-128)));
        check(&[0x60, 1, 0], Ok(Value::Ushort(256)));
        check(&[0x61, 0xff, 0xff], Ok(Value::Short(-1)));
        check(&[0x72, 0x3f, 0x80, 0, 0], Ok(Value::Float(1.0)));
        check(&[0x82, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0], Ok(Value::Double(1.0)));
        check(&[0x73, 0, 0, 0, 0x41], Ok(Value::Char('A')));
        check(&[0x83, 0, 0, 0, 0, 0, 0, 0, 5], Ok(Value::Timestamp(5)));
        check(&[0xa0, 2, 1, 2], Ok(Value::Binary(&[1, 2])));
        check(&[0xb0, 0, 0, 0, 2, 1, 2], Ok(Value::Binary(&[1, 2])));
        check(b"\xa1\x02hi", Ok(Value::Str("hi")));
        check(b"\xb1\x00\x00\x00\x02hi", Ok(Value::Str("hi")));
        check(b"\xa3\x02hi", Ok(Value::Symbol("hi")));
        check(b"\xb3\x00\x00\x00\x02hi", Ok(Value::Symbol("hi")));
        check(&[0xc1, 3, 2, 0x43, 0x41], Ok(Value::Map(Map { pairs: 1, body: &[0x43, 0x41] })));
        check(&[0xd1, 0, 0, 0, 6, 0, 0, 0, 2, 0x43, 0x41], Ok(Value::Map(Map { pairs: 1, body: &[0x43, 0x41] })));
        check(&[0x45], Ok(Value::Other(&[0x45])));
        check(&[0x00, 0x53, 0x24, 0x45], Ok(Value::Other(&[0x00, 0x53, 0x24, 0x45])));
    }

    #[test]
    fn amqp_1_6_wrong_sizes_and_contents_are_refused_before_they_are_used() {
        let past = Err(Malformed("value runs past the end"));
        check(&[], past);
        check(&[0x70, 0, 0], past);
        check(&[0xb1, 0xff, 0xff, 0xff, 0xff], past);
        check(&[0xb3, 0xff, 0xff, 0xff, 0xff, 0x61], past);
        check(&[0xd0, 0xff, 0xff, 0xff, 0xff], past);
        check(&[0xa1, 1, 0xff], Err(Malformed("string is not UTF-8")));
        check(&[0xa3, 1, 0xff], Err(Malformed("symbol is not ASCII")));
        check(&[0xc1, 2, 1, 0x40], Err(Malformed("map with an odd count")));
        check(&[0xc1, 0], past);
        check(&[0xc0, 0], Err(Malformed("compound smaller than its count")));
        check(&[0x56, 2], Err(Malformed("boolean")));
        check(&[0x73, 0, 0, 0xd8, 0], Err(Malformed("char")));
        check(&[0x5f, 0], Err(Malformed("unknown constructor")));
        check(&[0x00; 64], Err(Malformed("descriptors nested too deep")));
    }

    #[test]
    fn amqp_1_4_null_and_absent_fields_are_the_same_and_extra_ones_are_passed_over() {
        let list = |bytes: &'static [u8]| Reader::new(bytes).list().unwrap().unwrap();
        let mut two = list(&[0xc0, 3, 2, 0x40, 0x43]);
        assert_eq!((two.u32(), two.u32(), two.u32()), (Ok(None), Ok(Some(0)), Ok(None)));
        assert_eq!(two.finish(), Ok(()));
        let mut extra = list(&[0xc0, 5, 3, 0x43, 0xa1, 1, b'x']);
        assert_eq!(extra.u32(), Ok(Some(0)));
        assert_eq!(extra.finish(), Err(Malformed("value runs past the end")), "count says three, bytes hold two");
        assert_eq!(list(&[0xc0, 3, 1, 0x43, 0x43]).finish(), Err(Malformed("list size and count disagree")));
        assert_eq!(list(&[0xc0, 2, 1, 0x41]).u32(), Err(Malformed("expected a uint")));
    }

    #[test]
    fn amqp_1_6_24_an_array_of_zero_width_elements_costs_nothing() {
        // 2^32 - 1 times `null` in no bytes: passed over by its size, refused where symbols are wanted
        let bytes = [0xf0, 0, 0, 0, 5, 0xff, 0xff, 0xff, 0xff, 0x40];
        check(&bytes, Ok(Value::Other(&bytes)));
        assert_eq!(symbol_array(&bytes), Err(Malformed("expected an array of symbols")));
    }

    #[test]
    fn amqp_1_2_a_descriptor_is_a_ulong_in_any_form_or_a_symbol() {
        for bytes in [
            &b"\x00\x53\x14\x45"[..],
            b"\x00\x80\x00\x00\x00\x00\x00\x00\x00\x14\x45",
            b"\x00\xa3\x12amqp:transfer:list\x45",
            b"\x00\xb3\x00\x00\x00\x12amqp:transfer:list\x45",
        ] {
            assert_eq!(Reader::new(bytes).descriptor(), Ok(Some(0x14)), "{bytes:02x?}");
        }
        assert_eq!(Reader::new(b"\x00\xa3\x01x\x45").descriptor(), Ok(Some(UNKNOWN)));
        assert_eq!(Reader::new(b"\x45").descriptor(), Ok(None));
    }
}
