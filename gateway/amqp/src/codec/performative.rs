//! The frame bodies (2.7, 5.3): what a peer sends is read into structs here, what we send is written in `encode`.

mod encode;

use std::borrow::Cow;

use super::value::{List, Malformed, Map, Reader, Value};
use crate::config::{ReceiverSettleMode, SenderSettleMode};
use crate::event::{Error, Outcome};

pub(crate) use encode::*;

pub(crate) const OPEN: u64 = 0x10;
pub(crate) const BEGIN: u64 = 0x11;
pub(crate) const ATTACH: u64 = 0x12;
pub(crate) const FLOW: u64 = 0x13;
pub(crate) const TRANSFER: u64 = 0x14;
pub(crate) const DISPOSITION: u64 = 0x15;
pub(crate) const DETACH: u64 = 0x16;
pub(crate) const END: u64 = 0x17;
pub(crate) const CLOSE: u64 = 0x18;
pub(crate) const SASL_MECHANISMS: u64 = 0x40;
pub(crate) const SASL_CHALLENGE: u64 = 0x42;
pub(crate) const SASL_OUTCOME: u64 = 0x44;

/// Whose end of a link, or who speaks in a disposition (2.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    Sender,
    Receiver,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Open<'a> {
    pub container_id: &'a str,
    pub frame_bytes_max: u32,
    pub channel_max: u16,
    pub idle_timeout_ms: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Begin {
    pub remote_channel: Option<u16>,
    pub next_outgoing_id: u32,
    pub incoming_window: u32,
    pub handle_max: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attach<'a> {
    pub name: &'a str,
    pub handle: u32,
    pub role: Role,
    pub sender_settle_mode: SenderSettleMode,
    pub receiver_settle_mode: ReceiverSettleMode,
    pub source: Option<Terminus<'a>>,
    pub target: Option<Terminus<'a>>,
    pub initial_delivery_count: Option<u32>,
    /// `u64::MAX` = no limit.
    pub message_bytes_max: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Terminus<'a> {
    pub address: Option<&'a str>,
    pub default_outcome: Option<Outcome>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flow {
    pub next_incoming_id: Option<u32>,
    pub incoming_window: u32,
    pub next_outgoing_id: u32,
    pub outgoing_window: u32,
    pub link: Option<LinkFlow>,
    pub echo: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkFlow {
    pub handle: u32,
    pub delivery_count: Option<u32>,
    pub credit: Option<u32>,
    pub drain: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Transfer<'a> {
    pub handle: u32,
    pub delivery_id: Option<u32>,
    pub tag: Option<&'a [u8]>,
    pub message_format: Option<u32>,
    pub settled: Option<bool>,
    pub more: bool,
    pub receiver_settle_second: bool,
    pub aborted: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Disposition {
    pub role: Role,
    pub first: u32,
    pub last: u32,
    pub settled: bool,
    pub state: State,
}

/// A delivery state (3.4), as far as it matters to a client without transactions and resumption.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum State {
    /// None given.
    Absent,
    /// `received`, or one that nobody has defined here: not an outcome.
    Passing,
    Outcome(Outcome),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Detach {
    pub handle: u32,
    pub error: Option<Box<Error>>,
}

fn mandatory<T>(field: Option<T>, what: &'static str) -> Result<T, Malformed> {
    field.ok_or(Malformed(what))
}

impl<'a> Open<'a> {
    pub(crate) fn read(mut list: List<'a>) -> Result<Self, Malformed> {
        let container_id = mandatory(list.string()?, "OPEN without container-id")?;
        list.skip(1)?;
        let open = Self {
            container_id,
            frame_bytes_max: list.u32()?.unwrap_or(u32::MAX),
            channel_max: list.u16()?.unwrap_or(u16::MAX),
            idle_timeout_ms: list.u32()?.unwrap_or(0),
        };
        list.finish()?;
        Ok(open)
    }
}

impl Begin {
    pub(crate) fn read(mut list: List<'_>) -> Result<Self, Malformed> {
        let remote_channel = list.u16()?;
        let next_outgoing_id = mandatory(list.u32()?, "BEGIN without next-outgoing-id")?;
        let incoming_window = mandatory(list.u32()?, "BEGIN without incoming-window")?;
        mandatory(list.u32()?, "BEGIN without outgoing-window")?;
        let handle_max = list.u32()?.unwrap_or(u32::MAX);
        list.finish()?;
        Ok(Self { remote_channel, next_outgoing_id, incoming_window, handle_max })
    }
}

impl<'a> Attach<'a> {
    pub(crate) fn read(mut list: List<'a>) -> Result<Self, Malformed> {
        let name = mandatory(list.string()?, "ATTACH without name")?;
        let handle = mandatory(list.u32()?, "ATTACH without handle")?;
        let role = role(&mut list, "ATTACH without role")?;
        let sender_settle_mode = match list.u8()? {
            Some(0) => SenderSettleMode::Unsettled,
            Some(1) => SenderSettleMode::Settled,
            None | Some(2) => SenderSettleMode::Mixed,
            Some(_) => return Err(Malformed("snd-settle-mode")),
        };
        let receiver_settle_mode = match list.u8()? {
            None | Some(0) => ReceiverSettleMode::First,
            Some(1) => ReceiverSettleMode::Second,
            Some(_) => return Err(Malformed("rcv-settle-mode")),
        };
        let source = terminus(&mut list)?;
        let target = terminus(&mut list)?;
        list.skip(2)?; // unsettled, incomplete-unsettled: we never resume
        let initial_delivery_count = list.u32()?;
        let message_bytes_max = list.u64()?.filter(|max| *max != 0).unwrap_or(u64::MAX);
        list.finish()?;
        Ok(Self {
            name,
            handle,
            role,
            sender_settle_mode,
            receiver_settle_mode,
            source,
            target,
            initial_delivery_count,
            message_bytes_max,
        })
    }
}

fn role(list: &mut List<'_>, what: &'static str) -> Result<Role, Malformed> {
    Ok(if mandatory(list.bool()?, what)? { Role::Receiver } else { Role::Sender })
}

/// A source or target (3.5.3, 3.5.4): their first seven fields are alike, the source's default-outcome stands at nine.
fn terminus<'a>(list: &mut List<'a>) -> Result<Option<Terminus<'a>>, Malformed> {
    let Some((code, mut fields)) = list.composite()? else { return Ok(None) };
    if code != 0x28 && code != 0x29 {
        return Ok(Some(Terminus::default())); // a coordinator: attached to something, not to an address
    }
    let address = match fields.next()? {
        Value::Str(address) => Some(address),
        _ => None,
    };
    if code == 0x29 {
        return Ok(Some(Terminus { address, default_outcome: None }));
    }
    fields.skip(7)?;
    let default_outcome = match state(&mut fields)? {
        State::Outcome(outcome) => Some(outcome),
        State::Absent | State::Passing => None,
    };
    Ok(Some(Terminus { address, default_outcome }))
}

impl Flow {
    pub(crate) fn read(mut list: List<'_>) -> Result<Self, Malformed> {
        let next_incoming_id = list.u32()?;
        let incoming_window = mandatory(list.u32()?, "FLOW without incoming-window")?;
        let next_outgoing_id = mandatory(list.u32()?, "FLOW without next-outgoing-id")?;
        let outgoing_window = mandatory(list.u32()?, "FLOW without outgoing-window")?;
        let handle = list.u32()?;
        let delivery_count = list.u32()?;
        let credit = list.u32()?;
        list.skip(1)?;
        let drain = list.bool()?.unwrap_or(false);
        let echo = list.bool()?.unwrap_or(false);
        list.finish()?;
        let link = handle.map(|handle| LinkFlow { handle, delivery_count, credit, drain });
        Ok(Self { next_incoming_id, incoming_window, next_outgoing_id, outgoing_window, link, echo })
    }
}

impl<'a> Transfer<'a> {
    #[inline]
    pub(crate) fn read(mut list: List<'a>) -> Result<Self, Malformed> {
        let transfer = Self {
            handle: mandatory(list.u32()?, "TRANSFER without handle")?,
            delivery_id: list.u32()?,
            tag: list.binary()?,
            message_format: list.u32()?,
            settled: list.bool()?,
            more: list.bool()?.unwrap_or(false),
            receiver_settle_second: list.u8()? == Some(1),
            aborted: {
                list.skip(2)?; // state, resume: we never resume
                list.bool()?.unwrap_or(false)
            },
        };
        list.finish()?;
        Ok(transfer)
    }
}

impl Disposition {
    #[inline]
    pub(crate) fn read(mut list: List<'_>) -> Result<Self, Malformed> {
        let role = role(&mut list, "DISPOSITION without role")?;
        let first = mandatory(list.u32()?, "DISPOSITION without first")?;
        let last = list.u32()?.unwrap_or(first);
        let settled = list.bool()?.unwrap_or(false);
        let state = state(&mut list)?;
        list.finish()?;
        Ok(Self { role, first, last, settled, state })
    }
}

#[inline]
fn state(list: &mut List<'_>) -> Result<State, Malformed> {
    let Some((code, mut fields)) = list.composite()? else { return Ok(State::Absent) };
    Ok(State::Outcome(match code {
        0x24 => Outcome::Accepted,
        0x25 => Outcome::Rejected(error(&mut fields)?),
        0x26 => Outcome::Released,
        0x27 => Outcome::Modified {
            delivery_failed: fields.bool()?.unwrap_or(false),
            undeliverable_here: fields.bool()?.unwrap_or(false),
        },
        _ => return Ok(State::Passing),
    }))
}

impl Detach {
    pub(crate) fn read(mut list: List<'_>) -> Result<Self, Malformed> {
        let handle = mandatory(list.u32()?, "DETACH without handle")?;
        list.bool()?; // closed or not: we never resume, so it is over either way
        let error = error(&mut list)?;
        list.finish()?;
        Ok(Self { handle, error })
    }
}

/// The one field of END and CLOSE.
pub(crate) fn read_end(mut list: List<'_>) -> Result<Option<Box<Error>>, Malformed> {
    let error = error(&mut list)?;
    list.finish()?;
    Ok(error)
}

/// 2.8.14
fn error(list: &mut List<'_>) -> Result<Option<Box<Error>>, Malformed> {
    let Some((_, mut fields)) = list.composite()? else { return Ok(None) };
    let condition = match fields.next()? {
        Value::Symbol(condition) | Value::Str(condition) => Cow::Owned(condition.to_owned()),
        _ => return Err(Malformed("error without condition")),
    };
    let description = fields.string()?.unwrap_or("").to_owned();
    let info = fields.map()?.map_or_else(Vec::new, |map| info_texts(&map));
    Ok(Some(Box::new(Error { condition, description, info })))
}

fn info_texts(map: &Map<'_>) -> Vec<(String, String)> {
    map.iter()
        .filter_map(|(key, value)| {
            let (Value::Symbol(key) | Value::Str(key)) = key else { return None };
            let text = match value {
                Value::Symbol(text) | Value::Str(text) => text.to_owned(),
                Value::Ushort(number) => number.to_string(),
                Value::Uint(number) => number.to_string(),
                Value::Ulong(number) => number.to_string(),
                Value::Int(number) => number.to_string(),
                Value::Long(number) => number.to_string(),
                _ => return None,
            };
            Some((key.to_owned(), text))
        })
        .collect()
}

/// 5.3.3.6: the code.
pub(crate) fn read_sasl_outcome(mut list: List<'_>) -> Result<u8, Malformed> {
    let code = mandatory(list.u8()?, "SASL OUTCOME without code")?;
    list.finish()?;
    Ok(code)
}

/// 5.3.3.1
pub(crate) fn read_sasl_mechanisms(mut list: List<'_>) -> Result<Vec<&str>, Malformed> {
    let mechanisms = list.symbols()?;
    list.finish()?;
    Ok(mechanisms)
}

/// The body of a frame: its descriptor, the fields, what follows them.
#[inline]
pub(crate) fn read_body(body: &[u8]) -> Result<(u64, List<'_>, &[u8]), Malformed> {
    let mut reader = Reader::new(body);
    let code = reader.descriptor()?.ok_or(Malformed("frame body is not described"))?;
    let list = reader.list()?.ok_or(Malformed("performative is null"))?;
    Ok((code, list, reader.rest()))
}
