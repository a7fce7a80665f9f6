//! One link as a slab entry: credit, the delivery coming in, the delivery going out. Knows nothing of other links.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use fe2o3_amqp_types::definitions::{Error, ReceiverSettleMode};
use fe2o3_amqp_types::messaging::DeliveryState;
use fe2o3_amqp_types::performatives::Transfer;

use super::auth::GrantId;
use super::error::{self, INVALID_FIELD, MESSAGE_SIZE, TRANSFER_LIMIT};
use super::kind::Kind;
use super::message::Outgoing;
use crate::domain::LinkKey;

/// A delivery tag has at most this many octets (2.8.7).
const TAG_BYTES_MAX: usize = 32;

/// Names a link for as long as its connection lives: a slab index, and a generation that is never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LinkId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// In a posted key: the link is not to look for work, it was taken over by another.
const STOLEN: u64 = 1 << 63;

impl LinkId {
    /// The key under which the domain knows this link. Generations stay below 2^31, which leaves room for [`STOLEN`].
    pub(crate) fn key(self) -> LinkKey {
        LinkKey(u64::from(self.generation) << 32 | u64::from(self.index))
    }

    /// The key to post for telling a link that it is stolen.
    pub(crate) fn stolen_key(key: LinkKey) -> LinkKey {
        LinkKey(key.0 | STOLEN)
    }

    /// The link of a posted key, and whether it is stolen.
    pub(crate) fn of_key(key: LinkKey) -> (Self, bool) {
        let id = Self { index: key.0 as u32, generation: ((key.0 & !STOLEN) >> 32) as u32 };
        (id, key.0 & STOLEN != 0)
    }
}

/// Which half of the link is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Half {
    Sender,
    Receiver,
}

/// ```text
/// Attached ──our DETACH──► Detaching ──their DETACH──► gone
///     └──────their DETACH, answered──────────────────► gone
/// Pending (a fault) ──its time comes──► gone, and attached anew; or as Attached
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkState {
    Attached,
    /// A fault holds our ATTACH back.
    Pending,
    /// Our DETACH is out; whatever still comes for this handle is dropped.
    Detaching,
}

/// One link of a session.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: LinkId,
    pub(crate) session: usize,
    pub(crate) handle_in: u32,
    pub(crate) handle_out: u32,
    pub(crate) name: Arc<str>,
    pub(crate) half: Half,
    pub(crate) state: LinkState,
    pub(crate) kind: Kind,
    /// By which token, password or certificate it is here.
    pub(crate) grant: Option<GrantId>,
    pub(crate) delivery_count: u32,
    pub(crate) credit: u32,
    pub(crate) drain: bool,
    /// What we send goes out settled.
    pub(crate) sends_settled: bool,
    /// What a settled disposition without a state means.
    pub(crate) default_outcome: DeliveryState,
    /// Answers waiting for credit.
    pub(crate) queue: VecDeque<Delivery>,
    pub(crate) sending: Option<Sending>,
    pub(crate) partial: Option<Box<Partial>>,
    /// Deliveries sent and not settled.
    pub(crate) unsettled: usize,
    /// In its session's list of links that wait for the peer's window.
    pub(crate) is_blocked: bool,
    /// In the connection's list of links with something to do.
    pub(crate) is_ready: bool,
    /// A fault: no credit is given, nothing is sent any more.
    pub(crate) is_starved: bool,
    /// A fault: the next message waits.
    pub(crate) hold: Hold,
}

/// Whether a fault holds the next message back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    No,
    /// Until its time comes.
    Held,
    /// Its time came: this one is not asked about again.
    Passed,
}

/// Something to send.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) tag: Vec<u8>,
    pub(crate) payload: Bytes,
    pub(crate) lock: Lock,
    /// For the ledger: text of the message-id, and the length of the body.
    pub(crate) message_id: Option<Arc<str>>,
    pub(crate) body_bytes: usize,
}

impl Delivery {
    pub(crate) fn new(tag: Vec<u8>, message: &Outgoing, lock: Lock) -> Self {
        let body_bytes = message.data.as_ref().map_or(0, Bytes::len);
        Self { tag, payload: message.encode(), lock, message_id: None, body_bytes }
    }
}

/// What the peer's outcome is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lock {
    /// Nothing depends on it.
    None,
    /// A cloud-to-device message.
    C2d([u8; 16]),
    /// A batch of feedback records.
    Feedback([u8; 16]),
    /// An event, which the reader's position accounts for.
    Event,
}

/// The delivery that is going out frame by frame.
#[derive(Debug)]
pub(crate) struct Sending {
    pub(crate) delivery_id: u32,
    pub(crate) tag: Vec<u8>,
    pub(crate) payload: Bytes,
    pub(crate) is_settled: bool,
    pub(crate) is_first: bool,
    /// Its entry in the ledger.
    pub(crate) entry: Option<u64>,
}

/// The delivery that is coming in frame by frame.
#[derive(Debug)]
pub(crate) struct Partial {
    delivery_id: u32,
    format: u32,
    is_settled: bool,
    buffer: BytesMut,
}

/// A whole delivery from the peer.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) delivery_id: u32,
    pub(crate) format: u32,
    pub(crate) is_settled: bool,
    pub(crate) payload: Bytes,
}

/// What an incoming TRANSFER broke.
#[derive(Debug)]
pub(crate) enum Violation {
    /// The link is detached with this error.
    Detach(Error),
    /// The session is ended with this error.
    End(Error),
}

impl Link {
    /// Takes one TRANSFER frame: a whole delivery, or nothing yet. `last_id` is the session's highest delivery-id.
    pub(crate) fn assemble(
        &mut self,
        transfer: &Transfer,
        payload: Bytes,
        last_id: &mut Option<u32>,
        bytes_max: u64,
    ) -> Result<Option<Received>, Violation> {
        if transfer.rcv_settle_mode == Some(ReceiverSettleMode::Second) {
            return Err(Violation::Detach(error::protocol(
                INVALID_FIELD,
                "rcv-settle-mode second on a link in mode first",
            )));
        }
        let mut partial = match self.partial.take() {
            Some(partial) => continued(partial, transfer)?,
            None => self.begun(transfer, last_id)?,
        };
        if transfer.aborted {
            return Ok(None);
        }
        if (partial.buffer.len() + payload.len()) as u64 > bytes_max {
            let text = format!("message is over max-message-size {bytes_max}");
            return Err(Violation::Detach(error::protocol(MESSAGE_SIZE, text)));
        }
        // a delivery of a single frame is not copied
        let payload = if partial.buffer.is_empty() && !transfer.more {
            payload
        } else {
            partial.buffer.extend_from_slice(&payload);
            if transfer.more {
                self.partial = Some(partial);
                return Ok(None);
            }
            std::mem::take(&mut partial.buffer).freeze()
        };
        let Partial { delivery_id, format, is_settled, .. } = *partial;
        Ok(Some(Received { delivery_id, format, is_settled, payload }))
    }

    fn begun(&mut self, transfer: &Transfer, last_id: &mut Option<u32>) -> Result<Box<Partial>, Violation> {
        let Some(delivery_id) = transfer.delivery_id else {
            return Err(Violation::Detach(error::protocol(
                INVALID_FIELD,
                "first transfer of a delivery has no delivery-id",
            )));
        };
        if last_id.is_some_and(|last| !is_after(delivery_id, last)) {
            return Err(Violation::End(error::protocol(
                INVALID_FIELD,
                format!("delivery-id {delivery_id} is not new"),
            )));
        }
        *last_id = Some(delivery_id);
        let is_settled = transfer.settled == Some(true);
        let tag_bytes = transfer.delivery_tag.as_ref().map(|tag| tag.len());
        if tag_bytes.is_none() && !is_settled || tag_bytes.is_some_and(|bytes| bytes > TAG_BYTES_MAX) {
            return Err(Violation::Detach(error::protocol(INVALID_FIELD, "delivery-tag is missing or over 32 octets")));
        }
        if self.credit == 0 {
            return Err(Violation::Detach(error::protocol(TRANSFER_LIMIT, "no credit for this delivery")));
        }
        self.credit -= 1;
        self.delivery_count = self.delivery_count.wrapping_add(1);
        let format = transfer.message_format.unwrap_or(0);
        Ok(Box::new(Partial { delivery_id, format, is_settled, buffer: BytesMut::new() }))
    }

    /// Takes the credit fields of the peer's FLOW (2.6.7), as the sender that we are.
    pub(crate) fn take_credit(&mut self, delivery_count: Option<u32>, link_credit: u32, drain: bool) {
        let limit = delivery_count.unwrap_or(0).wrapping_add(link_credit);
        let credit = limit.wrapping_sub(self.delivery_count);
        // beyond half of the number space the limit lies behind what was sent already
        self.credit = if credit > u32::MAX / 2 { 0 } else { credit };
        self.drain = drain;
    }
}

fn continued(mut partial: Box<Partial>, transfer: &Transfer) -> Result<Box<Partial>, Violation> {
    if transfer.delivery_id.is_some_and(|id| id != partial.delivery_id) {
        return Err(Violation::Detach(error::protocol(INVALID_FIELD, "deliveries of one link are interleaved")));
    }
    partial.is_settled |= transfer.settled == Some(true);
    Ok(partial)
}

/// RFC 1982: `a` comes after `b`.
pub(crate) fn is_after(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) <= u32::MAX / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_wrap() {
        for (a, b, expected) in [(1, 0, true), (0, 1, false), (5, 5, false), (2, u32::MAX, true), (u32::MAX, 2, false)]
        {
            assert_eq!(is_after(a, b), expected, "{a} after {b}");
        }
    }

    #[test]
    fn a_link_key_names_its_link_again() {
        let id = LinkId { index: 7, generation: 0x7fff_fffe };
        assert_eq!(LinkId::of_key(id.key()), (id, false));
        assert_eq!(LinkId::of_key(LinkId::stolen_key(id.key())), (id, true));
    }
}
