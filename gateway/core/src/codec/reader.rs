//! Reads the fields of one whole packet, front to back; what is missing is [`Malformed::Truncated`].

use std::num::NonZeroU16;

use super::{error::Malformed, text};
use crate::message::PacketId;

/// What is left of a packet's variable header and payload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    #[inline]
    pub(super) fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    #[inline]
    pub(super) fn byte(&mut self) -> Result<u8, Malformed> {
        let (&byte, rest) = self.rest.split_first().ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(byte)
    }

    /// Two bytes, most significant first (1.5.2).
    #[inline]
    pub(super) fn integer(&mut self) -> Result<u16, Malformed> {
        let (&bytes, rest) = self.rest.split_first_chunk().ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(u16::from_be_bytes(bytes))
    }

    /// [MQTT-2.3.1-1]; acknowledgements repeat such an id, so 0 is as wrong there.
    #[inline]
    pub(super) fn packet_id(&mut self) -> Result<PacketId, Malformed> {
        NonZeroU16::new(self.integer()?).map(PacketId).ok_or(Malformed::PacketIdZero)
    }

    /// Bytes behind a two-byte length.
    #[inline]
    pub(super) fn binary(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::from(self.integer()?);
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(bytes)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Malformed> {
        self.binary().and_then(text::text)
    }

    #[inline]
    pub(super) fn topic_name(&mut self) -> Result<&'a str, Malformed> {
        self.binary().and_then(text::topic_name)
    }

    pub(super) fn topic_filter(&mut self) -> Result<&'a str, Malformed> {
        self.binary().and_then(text::topic_filter)
    }

    /// All that is left.
    #[inline]
    pub(super) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed::TrailingBytes) }
    }
}
