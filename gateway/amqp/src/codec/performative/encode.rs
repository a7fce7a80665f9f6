//! What we send, written frame by frame to the end of the output.

use super::{Flow, Role};
use crate::codec::value::Value;
use crate::codec::write::{self, Fields};
use crate::config::{Attach as Wish, Config, Sasl};
use crate::event::{Error, Outcome, Settle};

/// A frame of type 0 around a body (2.3.1).
pub(crate) fn frame(out: &mut Vec<u8>, channel: u16, body: impl FnOnce(&mut Vec<u8>)) {
    frame_of_type(out, 0, channel, body);
}

fn frame_of_type(out: &mut Vec<u8>, kind: u8, channel: u16, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    let [high, low] = channel.to_be_bytes();
    out.extend_from_slice(&[0, 0, 0, 0, 2, kind, high, low]);
    body(out);
    let size = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&size.to_be_bytes());
}

/// 2.4.1: until the peer's max-frame-size is known, a frame has at most 512 bytes. Properties that do not fit stay out.
pub(crate) fn write_open(out: &mut Vec<u8>, config: &Config) {
    let start = out.len();
    write_open_with(out, config, &config.properties);
    if out.len() - start > 512 {
        out.truncate(start);
        write_open_with(out, config, &[]);
    }
}

fn write_open_with(out: &mut Vec<u8>, config: &Config, properties: &[(String, String)]) {
    // Half of our real limit: the peer may be late by as much again. An absent value means no limit.
    let idle = u32::try_from(config.idle_timeout_ms / 2).unwrap_or(u32::MAX);
    frame(out, 0, |out| {
        let mut fields = Fields::new(out, 0x10);
        fields.string(&config.container_id).string(&config.hostname).u32(config.frame_bytes_max.max(512));
        fields.with(|out| write::value(out, Value::Ushort(config.channel_max())));
        fields.option((idle > 0).then_some(idle), write::u32);
        fields.null().null().null().null().symbol_map(properties);
        fields.end();
    });
}

/// Our BEGIN has no remote-channel: we always start.
pub(crate) fn write_begin(out: &mut Vec<u8>, channel: u16, next_outgoing_id: u32, config: &Config) {
    frame(out, channel, |out| {
        let mut fields = Fields::new(out, 0x11);
        fields.null().u32(next_outgoing_id).u32(config.incoming_window).u32(OUTGOING_WINDOW);
        fields.u32(config.links_per_session_max.max(1) - 1);
        fields.end();
    });
}

/// Never zero (Service Bus seeds its own window from it), never negative to a peer that keeps it signed.
pub(crate) const OUTGOING_WINDOW: u32 = i32::MAX as u32;

/// BEGIN in answer to a session the peer starts; the END that refuses it follows.
pub(crate) fn write_begin_answer(out: &mut Vec<u8>, channel: u16, remote_channel: u16) {
    frame(out, channel, |out| {
        let mut fields = Fields::new(out, 0x11);
        fields.with(|out| write::value(out, Value::Ushort(remote_channel)));
        fields.u32(0).u32(0).u32(0);
        fields.end();
    });
}

pub(crate) fn write_attach(out: &mut Vec<u8>, channel: u16, handle: u32, role: Role, wish: &Wish) {
    let (source, target) = match role {
        Role::Sender => (wish.local_address.as_deref(), Some(wish.address.as_str())),
        Role::Receiver => (Some(wish.address.as_str()), wish.local_address.as_deref()),
    };
    frame(out, channel, |out| {
        let mut fields = Fields::new(out, 0x12);
        fields.string(&wish.name).u32(handle).bool(role == Role::Receiver);
        fields.with(|out| write::value(out, Value::Ubyte(wish.sender_settle_mode as u8)));
        fields.with(|out| write::value(out, Value::Ubyte(wish.receiver_settle_mode as u8)));
        fields.with(|out| write_terminus(out, 0x28, source)).with(|out| write_terminus(out, 0x29, target));
        fields.null().null();
        fields.option((role == Role::Sender).then_some(0), write::u32);
        let message_bytes_max =
            (role == Role::Receiver && wish.message_bytes_max > 0).then_some(wish.message_bytes_max);
        fields.option(message_bytes_max, write::u64);
        fields.null().null().symbol_map(&wish.properties);
        fields.end();
    });
}

/// ATTACH in answer to a link the peer starts: no terminus, so it is refused; the DETACH follows.
pub(crate) fn write_refusing_attach(out: &mut Vec<u8>, channel: u16, handle: u32, role: Role, name: &str) {
    frame(out, channel, |out| {
        let mut fields = Fields::new(out, 0x12);
        fields.string(name).u32(handle).bool(role == Role::Receiver);
        fields.null().null().null().null().null().null();
        fields.option((role == Role::Sender).then_some(0), write::u32);
        fields.end();
    });
}

fn write_terminus(out: &mut Vec<u8>, code: u8, address: Option<&str>) {
    let mut fields = Fields::new(out, code);
    fields.option(address, write::string);
    fields.end();
}

pub(crate) fn write_detach(out: &mut Vec<u8>, channel: u16, handle: u32, error: Option<&Error>) {
    frame(out, channel, |out| {
        let mut fields = Fields::new(out, 0x16);
        fields.u32(handle).bool(true).option(error, write_error);
        fields.end();
    });
}

pub(crate) fn write_end(out: &mut Vec<u8>, channel: u16, error: Option<&Error>) {
    frame(out, channel, |out| {
        let mut fields = Fields::new(out, 0x17);
        fields.option(error, write_error);
        fields.end();
    });
}

pub(crate) fn write_close(out: &mut Vec<u8>, error: Option<&Error>) {
    frame(out, 0, |out| {
        let mut fields = Fields::new(out, 0x18);
        fields.option(error, write_error);
        fields.end();
    });
}

/// Longest error description that is sent, bytes; the rest is cut.
const DESCRIPTION_BYTES_MAX: usize = 200;

fn write_error(out: &mut Vec<u8>, error: &Error) {
    let mut end = error.description.len().min(DESCRIPTION_BYTES_MAX);
    while !error.description.is_char_boundary(end) {
        end -= 1;
    }
    let description = &error.description[..end];
    // a peer's condition may come back in a confirmation: it is echoed only if it is a symbol of sane length
    let is_symbol = error.condition.is_ascii() && error.condition.len() <= DESCRIPTION_BYTES_MAX;
    let condition = if is_symbol { &error.condition } else { "amqp:internal-error" };
    let mut fields = Fields::new(out, 0x1d);
    fields.symbol(condition).option((!description.is_empty()).then_some(description), write::string);
    fields.end();
}

/// A disposition of ours about deliveries that came in (role receiver).
pub(crate) fn write_settle(out: &mut Vec<u8>, channel: u16, first: u32, last: u32, settled: bool, how: &Settle) {
    write_disposition(out, channel, Role::Receiver, (first, last), settled, |out| match how {
        Settle::Accepted => write_outcome(out, 0x24),
        Settle::Released => write_outcome(out, 0x26),
        Settle::Rejected(error) => {
            let mut fields = Fields::new(out, 0x25);
            fields.with(|out| write_error(out, error));
            fields.end();
        }
        Settle::Modified { delivery_failed, undeliverable_here } => {
            write_modified(out, *delivery_failed, *undeliverable_here);
        }
    });
}

/// Our answer as a sender to an outcome the receiver has not settled: settled, with the same state (2.6.12).
pub(crate) fn write_confirm(out: &mut Vec<u8>, channel: u16, first: u32, last: u32, outcome: &Outcome) {
    write_disposition(out, channel, Role::Sender, (first, last), true, |out| match outcome {
        Outcome::Accepted => write_outcome(out, 0x24),
        Outcome::Released | Outcome::Lost => write_outcome(out, 0x26),
        Outcome::Rejected(error) => {
            let mut fields = Fields::new(out, 0x25);
            fields.option(error.as_deref(), write_error);
            fields.end();
        }
        Outcome::Modified { delivery_failed, undeliverable_here } => {
            write_modified(out, *delivery_failed, *undeliverable_here);
        }
    });
}

fn write_disposition(
    out: &mut Vec<u8>,
    channel: u16,
    role: Role,
    (first, last): (u32, u32),
    settled: bool,
    state: impl FnOnce(&mut Vec<u8>),
) {
    frame(out, channel, |out| {
        let mut fields = Fields::new(out, 0x15);
        fields.bool(role == Role::Receiver).u32(first);
        fields.option((last != first).then_some(last), write::u32);
        fields.bool(settled).with(state);
        fields.end();
    });
}

fn write_outcome(out: &mut Vec<u8>, code: u8) {
    write::descriptor(out, code);
    out.push(0x45);
}

fn write_modified(out: &mut Vec<u8>, delivery_failed: bool, undeliverable_here: bool) {
    let mut fields = Fields::new(out, 0x27);
    fields.bool(delivery_failed).bool(undeliverable_here);
    fields.end();
}

/// 5.3.3.2.
pub(crate) fn write_sasl_init(out: &mut Vec<u8>, sasl: &Sasl, hostname: &str) {
    let response = match sasl {
        Sasl::None | Sasl::Anonymous => None,
        Sasl::External => Some(Vec::new()),
        Sasl::Plain { user, password } => Some([b"\0", user.as_bytes(), b"\0", password.as_bytes()].concat()),
    };
    frame_of_type(out, 1, 0, |out| {
        let mut fields = Fields::new(out, 0x41);
        fields.symbol(mechanism(sasl)).option(response.as_deref(), write::binary).string(hostname);
        fields.end();
    });
}

/// The symbol of the mechanism.
pub(crate) fn mechanism(sasl: &Sasl) -> &'static str {
    match sasl {
        Sasl::None => "",
        Sasl::Anonymous => "ANONYMOUS",
        Sasl::External => "EXTERNAL",
        Sasl::Plain { .. } => "PLAIN",
    }
}

/// 5.3.3.4: an empty answer to a challenge (a peer that did not read the initial response of ANONYMOUS or EXTERNAL).
pub(crate) fn write_sasl_response(out: &mut Vec<u8>) {
    frame_of_type(out, 1, 0, |out| {
        let mut fields = Fields::new(out, 0x43);
        fields.with(|out| write::binary(out, &[]));
        fields.end();
    });
}

/// The first frame of a delivery: everything but the payload. `Head` is the bytes, its length the second part.
///
/// Written on the stack because one is written per message.
#[inline]
pub(crate) fn transfer_head(
    channel: u16,
    handle: u32,
    first: Option<(u32, u32)>,
    settled: bool,
    more: bool,
) -> ([u8; TRANSFER_HEAD_BYTES_MAX], usize) {
    let mut head = [0; TRANSFER_HEAD_BYTES_MAX];
    let [high, low] = channel.to_be_bytes();
    //                      size………… doff type channel      TRANSFER          list8 size count
    head[..14].copy_from_slice(&[0, 0, 0, 0, 2, 0, high, low, 0x00, 0x53, 0x14, 0xc0, 0, if more { 6 } else { 5 }]);
    let mut at = stack_u32(&mut head, 14, handle);
    if let Some((id, message_format)) = first {
        at = stack_u32(&mut head, at, id);
        // the id is unique among the unsettled ones of the session, so it is a tag
        head[at..at + 2].copy_from_slice(&[0xa0, 4]);
        head[at + 2..at + 6].copy_from_slice(&id.to_be_bytes());
        at = stack_u32(&mut head, at + 6, message_format);
    } else {
        head[at..at + 3].copy_from_slice(&[0x40, 0x40, 0x40]);
        at += 3;
    }
    head[at] = if settled { 0x41 } else { 0x42 };
    at += 1;
    if more {
        head[at] = 0x41;
        at += 1;
    }
    head[12] = (at - 13) as u8;
    (head, at)
}

/// 14 fixed, handle, delivery-id and message-format 5 each, tag 6, two booleans.
pub(crate) const TRANSFER_HEAD_BYTES_MAX: usize = 14 + 5 + 5 + 6 + 5 + 2 + 3;

#[inline]
fn stack_u32(head: &mut [u8; TRANSFER_HEAD_BYTES_MAX], at: usize, value: u32) -> usize {
    match value {
        0 => {
            head[at] = 0x43;
            at + 1
        }
        1..=255 => {
            head[at..at + 2].copy_from_slice(&[0x52, value as u8]);
            at + 2
        }
        _ => {
            head[at] = 0x70;
            head[at + 1..at + 5].copy_from_slice(&value.to_be_bytes());
            at + 5
        }
    }
}

impl Flow {
    pub(crate) fn write(&self, out: &mut Vec<u8>, channel: u16) {
        frame(out, channel, |out| {
            let mut fields = Fields::new(out, 0x13);
            fields.option(self.next_incoming_id, write::u32);
            fields.u32(self.incoming_window).u32(self.next_outgoing_id).u32(self.outgoing_window);
            if let Some(link) = &self.link {
                fields.u32(link.handle);
                fields.option(link.delivery_count, write::u32).option(link.credit, write::u32).null();
                fields.option(link.drain.then_some(true), write::bool);
            }
            fields.end();
        });
    }
}
