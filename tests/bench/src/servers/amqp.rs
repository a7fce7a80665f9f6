//! As much AMQP 1.0 as floor and sink need: cold frames by `fe2o3-amqp-types`, the three hot ones by hand.

use anyhow::{Context, bail};
use fe2o3_amqp_types::{
    definitions::Handle,
    performatives::{Begin, ChannelMax, MaxFrameSize, Open, Performative},
};
use serde::Serialize;

pub(super) const AMQP_HEADER: [u8; 8] = *b"AMQP\x00\x01\x00\x00";
pub(super) const SASL_HEADER: [u8; 8] = *b"AMQP\x03\x01\x00\x00";

/// Descriptor codes of the frames told apart here.
pub(super) const FLOW: u8 = 0x13;
pub(super) const TRANSFER: u8 = 0x14;
pub(super) const DISPOSITION: u8 = 0x15;

/// Transfer frames a session may send before it hears of a new window: never reached in a run.
pub(super) const WINDOW: u32 = 1 << 30;

/// OPEN without time-outs.
pub(super) fn open(container: &str, frame_bytes_max: u32, channel_max: u16) -> Open {
    Open {
        container_id: container.into(),
        hostname: None,
        max_frame_size: MaxFrameSize(frame_bytes_max),
        channel_max: ChannelMax(channel_max),
        idle_time_out: None,
        outgoing_locales: None,
        incoming_locales: None,
        offered_capabilities: None,
        desired_capabilities: None,
        properties: None,
    }
}

/// BEGIN, or the answer to that on `remote_channel`.
pub(super) fn begin(remote_channel: Option<u16>) -> Begin {
    Begin {
        remote_channel,
        next_outgoing_id: 0,
        incoming_window: WINDOW,
        outgoing_window: WINDOW,
        handle_max: Handle(u32::MAX),
        offered_capabilities: None,
        desired_capabilities: None,
        properties: None,
    }
}

/// Appends a frame with a performative that serde encodes.
pub(super) fn frame(out: &mut Vec<u8>, frame_type: u8, channel: u16, body: &impl Serialize) -> anyhow::Result<()> {
    let body = serde_amqp::to_vec(body).context("encode a performative")?;
    out.extend_from_slice(&u32::try_from(body.len() + 8)?.to_be_bytes());
    out.extend_from_slice(&[2, frame_type]);
    out.extend_from_slice(&channel.to_be_bytes());
    out.extend_from_slice(&body);
    Ok(())
}

/// One frame at the front of `bytes`: channel, body, length; an empty body is a heartbeat.
pub(super) fn next(bytes: &[u8]) -> anyhow::Result<Option<(u16, &[u8], usize)>> {
    let Some(header) = bytes.get(..8) else { return Ok(None) };
    let size = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let offset = usize::from(header[4]) * 4;
    if size < 8 || offset < 8 || offset > size {
        bail!("malformed frame header");
    }
    let Some(frame) = bytes.get(..size) else { return Ok(None) };
    Ok(Some((u16::from_be_bytes([header[6], header[7]]), &frame[offset..], size)))
}

/// The descriptor code of a frame's body.
pub(super) fn code(body: &[u8]) -> u8 {
    match body {
        [0, 0x53, code, ..] => *code,
        [0, 0x80, .., _, _, _, _, _, _, _] if body.len() > 9 => body[9],
        _ => 0,
    }
}

/// Decodes a cold frame.
pub(super) fn decode(body: &[u8]) -> anyhow::Result<Performative> {
    serde_amqp::from_slice(body).context("a performative")
}

/// Appends a transfer of one data section: the hot frame, by hand.
pub(super) fn transfer(out: &mut Vec<u8>, handle: u32, delivery_id: u32, payload: &[u8]) {
    let tag = delivery_id.to_be_bytes();
    let data = if payload.len() < 256 { 5 } else { 8 };
    let size = 8 + 3 + 2 + 1 + 5 + 5 + 6 + 1 + 1 + data + payload.len();
    out.reserve(size);
    out.extend_from_slice(&(size as u32).to_be_bytes());
    out.extend_from_slice(&[2, 0, 0, 0, 0, 0x53, TRANSFER, 0xc0, 19, 5, 0x70]);
    out.extend_from_slice(&handle.to_be_bytes());
    out.push(0x70);
    out.extend_from_slice(&tag);
    out.extend_from_slice(&[0xa0, 4]);
    out.extend_from_slice(&tag);
    // message-format 0; settled false
    out.extend_from_slice(&[0x43, 0x42, 0, 0x53, 0x75]);
    if data == 5 {
        out.extend_from_slice(&[0xa0, payload.len() as u8]);
    } else {
        out.push(0xb0);
        out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    }
    out.extend_from_slice(payload);
}

/// Appends a settled `accepted` for a range: by hand.
pub(super) fn accept(out: &mut Vec<u8>, channel: u16, first: u32, last: u32) {
    out.extend_from_slice(&[0, 0, 0, 30, 2, 0]);
    out.extend_from_slice(&channel.to_be_bytes());
    out.extend_from_slice(&[0, 0x53, DISPOSITION, 0xc0, 17, 5, 0x41, 0x70]);
    out.extend_from_slice(&first.to_be_bytes());
    out.push(0x70);
    out.extend_from_slice(&last.to_be_bytes());
    out.extend_from_slice(&[0x41, 0, 0x53, 0x24, 0x45]);
}

/// The fields of a list body one by one, as far as floor and sink read them: unsigned integers and booleans.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Behind the descriptor of `body`.
    pub(super) fn of(body: &'a [u8]) -> anyhow::Result<Self> {
        let list = if body.get(1) == Some(&0x53) { &body[3..] } else { body.get(10..).unwrap_or_default() };
        let rest = match list {
            [0x45, ..] => &[],
            [0xc0, _, _, rest @ ..] | [0xd0, _, _, _, _, _, _, _, _, rest @ ..] => rest,
            _ => bail!("not a list"),
        };
        Ok(Self { rest })
    }

    /// The next field as a number; booleans are 0 and 1; `None` if it is null or left out.
    pub(super) fn number(&mut self) -> anyhow::Result<Option<u64>> {
        let Some((&kind, rest)) = self.rest.split_first() else { return Ok(None) };
        let width = match kind {
            0x40..=0x45 => 0,
            0x50 | 0x52 | 0x53 | 0x56 => 1,
            0x60 => 2,
            0x70 => 4,
            0x80 => 8,
            0xa0 => 1 + usize::from(*rest.first().context("truncated")?),
            _ => bail!("field of type {kind:#x}"),
        };
        let bytes = rest.get(..width).context("truncated")?;
        self.rest = &rest[width..];
        Ok(match kind {
            0x40 => None,
            0x41 => Some(1),
            0xa0 => Some(0),
            _ => Some(bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte))),
        })
    }
}
