//! Frames (2.3): bytes ⇄ performatives. Sizes are checked before anything is decoded; never waits, never writes a socket.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use fe2o3_amqp_types::definitions::Error;
use fe2o3_amqp_types::performatives::{Attach, Begin, Close, Detach, Disposition, End, Flow, Open, Transfer};
use fe2o3_amqp_types::sasl::SaslInit;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::wire::{self, Described};

/// `size`, `doff`, `type`, `channel`.
const HEADER_BYTES: usize = 8;

/// Frame types of 2.3.1 and 5.3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameType {
    Amqp = 0,
    Sasl = 1,
}

/// A frame with its header taken off.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) channel: u16,
    /// Empty: a heartbeat.
    pub(crate) body: Bytes,
}

/// What makes the connection end with `amqp:connection:framing-error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("frame size {0} is below the header's size")]
    Short(usize),
    #[error("frame of {size} bytes is over the limit of {max}")]
    Oversized { size: usize, max: usize },
    #[error("data offset {0} is out of the frame")]
    Offset(u8),
    #[error("frame type {0} is not expected here")]
    Type(u8),
}

/// Takes the next whole frame off `input`, or says that more bytes are needed.
pub(crate) fn take(input: &mut BytesMut, wanted: FrameType, max: usize) -> Result<Option<Frame>, FrameError> {
    if input.len() < 4 {
        return Ok(None);
    }
    let size = u32::from_be_bytes([input[0], input[1], input[2], input[3]]) as usize;
    if size < HEADER_BYTES {
        return Err(FrameError::Short(size));
    }
    if size > max {
        return Err(FrameError::Oversized { size, max });
    }
    if input.len() < size {
        return Ok(None);
    }
    let mut frame = input.split_to(size).freeze();
    let (offset, kind) = (frame[4], frame[5]);
    let channel = u16::from_be_bytes([frame[6], frame[7]]);
    let body_at = usize::from(offset) * 4;
    if body_at < HEADER_BYTES || body_at > size {
        return Err(FrameError::Offset(offset));
    }
    if kind != wanted as u8 {
        return Err(FrameError::Type(kind));
    }
    frame.advance(body_at);
    Ok(Some(Frame { channel, body: frame }))
}

/// The frames a client may send us.
#[derive(Debug)]
pub(crate) enum Performative {
    Open(Box<Open>),
    Begin(Box<Begin>),
    Attach(Box<Attach>),
    Flow(Flow),
    Transfer(Box<Transfer>, Bytes),
    Disposition(Disposition),
    Detach(Detach),
    End(Option<Box<Error>>),
    Close(Option<Box<Error>>),
}

/// The body of a frame could not be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct DecodeError {
    /// OPEN and CLOSE belong to the connection, the rest to a session.
    pub(crate) of_connection: bool,
    pub(crate) reason: String,
}

/// Decodes the body of an AMQP frame.
pub(crate) fn decode(mut body: Bytes) -> Result<Performative, DecodeError> {
    let described = wire::take_described(&mut body)
        .map_err(|error| DecodeError { of_connection: false, reason: error.to_string() })?;
    let payload = body;
    Ok(match described.code {
        0x10 => Performative::Open(decode_as(&described)?),
        0x11 => Performative::Begin(decode_as(&described)?),
        0x12 => Performative::Attach(decode_as(&described)?),
        0x13 => Performative::Flow(*decode_as(&described)?),
        0x14 => Performative::Transfer(decode_as(&described)?, payload),
        0x15 => Performative::Disposition(*decode_as(&described)?),
        0x16 => Performative::Detach(*decode_as(&described)?),
        0x17 => Performative::End(decode_as::<End>(&described)?.error.map(Box::new)),
        0x18 => Performative::Close(decode_as::<Close>(&described)?.error.map(Box::new)),
        code => return Err(DecodeError { of_connection: false, reason: format!("unknown performative {code:#x}") }),
    })
}

/// Decodes a SASL frame's body, where INIT is the only frame that this server waits for.
pub(crate) fn decode_sasl_init(mut body: Bytes) -> Option<SaslInit> {
    let described = wire::take_described(&mut body).ok()?;
    if described.code != 0x41 || !body.is_empty() {
        return None;
    }
    decode_as(&described).ok().map(|init| *init)
}

fn decode_as<T: DeserializeOwned>(described: &Described) -> Result<Box<T>, DecodeError> {
    serde_amqp::from_slice(&described.whole).map(Box::new).map_err(|error| DecodeError {
        of_connection: matches!(described.code, 0x10 | 0x18),
        reason: format!("performative {:#x}: {error}", described.code),
    })
}

/// Appends a frame to `out`. `payload` is what follows the performative (TRANSFER only).
pub(crate) fn put<T: Serialize>(out: &mut BytesMut, kind: FrameType, channel: u16, performative: &T, payload: &[u8]) {
    let start = out.len();
    out.put_u32(0);
    out.put_slice(&[2, kind as u8]);
    out.put_u16(channel);
    let mut serializer = serde_amqp::ser::Serializer::new(out.writer());
    performative.serialize(&mut serializer).expect("our own performatives are encodable and memory does not fail");
    out.put_slice(payload);
    let size = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&size.to_be_bytes());
}

/// Appends an empty frame: nothing but a sign of life (2.4.5).
pub(crate) fn put_heartbeat(out: &mut BytesMut) {
    out.put_slice(&[0, 0, 0, 8, 2, 0, 0, 0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &[u8], expected: Result<Option<(u16, &[u8])>, FrameError>) {
        let taken = take(&mut BytesMut::from(input), FrameType::Amqp, 64);
        assert_eq!(
            taken.map(|frame| frame.map(|f| (f.channel, f.body.to_vec()))),
            expected.map(|f| f.map(|(c, b)| (c, b.to_vec())))
        );
    }

    #[test]
    fn amqp_2_3_frames_are_taken_whole_and_false_headers_are_framing_errors() {
        check(&[0, 0, 0], Ok(None));
        check(&[0, 0, 0, 8, 2, 0, 0], Ok(None));
        check(&[0, 0, 0, 8, 2, 0, 0, 7], Ok(Some((7, &[]))));
        check(&[0, 0, 0, 13, 3, 0, 0, 1, 9, 9, 9, 9, 5], Ok(Some((1, &[5]))));
        check(&[0, 0, 0, 7, 2, 0, 0, 0], Err(FrameError::Short(7)));
        check(&[0, 0, 0, 0], Err(FrameError::Short(0)));
        check(&[0, 0, 0, 65, 2], Err(FrameError::Oversized { size: 65, max: 64 }));
        check(&[0, 0, 0, 8, 1, 0, 0, 0], Err(FrameError::Offset(1)));
        check(&[0, 0, 0, 8, 3, 0, 0, 0], Err(FrameError::Offset(3)));
        check(&[0, 0, 0, 8, 2, 1, 0, 0], Err(FrameError::Type(1)));
    }

    #[test]
    fn a_frame_survives_its_round_trip_with_its_payload() {
        let mut out = BytesMut::new();
        let transfer = Transfer {
            handle: 3.into(),
            delivery_id: Some(9),
            delivery_tag: Some(vec![1].into()),
            message_format: Some(0),
            settled: Some(true),
            more: false,
            rcv_settle_mode: None,
            state: None,
            resume: false,
            aborted: false,
            batchable: false,
        };
        put(&mut out, FrameType::Amqp, 5, &transfer, b"payload");
        let frame = take(&mut out, FrameType::Amqp, 512).expect("sound").expect("whole");
        assert_eq!(frame.channel, 5);
        let Ok(Performative::Transfer(decoded, payload)) = decode(frame.body) else { panic!("a transfer") };
        assert_eq!((*decoded, payload), (transfer, Bytes::from_static(b"payload")));
    }

    #[test]
    fn a_performative_that_lies_about_its_sizes_is_a_decode_error_and_no_panic() {
        for body in [&b"\x00\x53\x10\xd0\xff\xff\xff\xff\x00\x00\x00\x01"[..], b"\x00\x53\x99\x45", b"\x45", b""] {
            assert!(decode(Bytes::copy_from_slice(body)).is_err(), "{body:02x?}");
        }
        let open_without_container = decode(Bytes::from_static(b"\x00\x53\x10\x45")).expect_err("mandatory field");
        assert!(open_without_container.of_connection);
    }
}
