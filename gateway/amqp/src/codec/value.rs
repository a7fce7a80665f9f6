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
    /// Decimals, lists, arrays, described values: the whole encoding, constructor included.
    Other(&'a [u8]),
}

/// A map, read as it is walked. Order is kept, the first of equal keys wins in [`Map::get`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Map<'a> {
    pub(crate) pairs: u32,
    pub(crate) body: &'a [u8],
}
