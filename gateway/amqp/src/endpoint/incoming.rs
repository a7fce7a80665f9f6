//! Messages that come in: frames joined to deliveries, credit kept, outcomes given.

use bytes::Bytes;

use super::Endpoint;
use super::input::{Fault, Handled};
use super::link::LinkFault;
use super::session::Incoming;
use crate::codec::performative as frames;
use crate::codec::performative::{Disposition, Role, State, Transfer};
use crate::{Delivery, DeliveryId, Event, LinkId, Outcome, ReceiverSettleMode, Settle};

/// A delivery whose last frame has not come.
#[derive(Debug)]
pub(super) struct Partial {
    id: u32,
    message_format: u32,
    settled: bool,
    tag_bytes: usize,
    /// The tag, then the payload so far.
    pub(super) message: Vec<u8>,
}

/// 2.8.7
const TAG_BYTES_MAX: usize = 32;

impl Endpoint {
    /// 2.7.5
    pub(super) fn handle_transfer(&mut self, session: u32, transfer: &Transfer<'_>, payload: &[u8]) -> Handled {
        let place = &mut self.sessions[session as usize];
        place.next_incoming_id = place.next_incoming_id.wrapping_add(1);
        if place.incoming_window == 0 {
            return Err(Fault::session("amqp:session:window-violation", "transfer beyond the window"));
        }
        place.incoming_window -= 1;
        if place.incoming_window <= self.config.incoming_window / 2 {
            place.flow_due = true;
            self.mark_dirty(session);
        }
        let index = self.incoming_link(session, transfer.handle)?;
        let link = &self.links[index as usize];
        if link.is_on_its_way_out() {
            return Ok(());
        }
        if link.role == Role::Sender {
            return Err(LinkFault::new(index, "amqp:not-allowed", "transfer on a link on which we send").into());
        }
        if link.partial.is_none() {
            self.begin_delivery(index, transfer, payload.len())?;
        }
        self.continue_delivery(index, transfer, payload).map_err(Fault::from)
    }

    fn begin_delivery(&mut self, index: u32, transfer: &Transfer<'_>, bytes: usize) -> Result<(), LinkFault> {
        let fault = |condition, description: &str| LinkFault::new(index, condition, description);
        let Some(id) = transfer.delivery_id else {
            return Err(fault("amqp:invalid-field", "first transfer of a delivery without delivery-id"));
        };
        let tag = transfer.tag.unwrap_or(&[]);
        if tag.len() > TAG_BYTES_MAX {
            return Err(fault("amqp:invalid-field", "delivery-tag over 32 bytes"));
        }
        let link = &mut self.links[index as usize];
        // what was in flight when we lowered the credit still counts as allowed
        if link.delivery_count == link.delivery_count_max {
            return Err(fault("amqp:link:transfer-limit-exceeded", "delivery without credit"));
        }
        link.delivery_count = link.delivery_count.wrapping_add(1);
        link.credit = link.credit.saturating_sub(1);
        let mut message = Vec::with_capacity(tag.len() + bytes);
        message.extend_from_slice(tag);
        link.partial = Some(Box::new(Partial {
            id,
            message_format: transfer.message_format.unwrap_or(0),
            settled: false,
            tag_bytes: tag.len(),
            message,
        }));
        self.partial_delivery_bytes += tag.len();
        Ok(())
    }

    fn continue_delivery(&mut self, index: u32, transfer: &Transfer<'_>, payload: &[u8]) -> Result<(), LinkFault> {
        let fault = |condition, description: &str| LinkFault::new(index, condition, description);
        let link = &mut self.links[index as usize];
        let Some(partial) = link.partial.as_mut() else { return Ok(()) };
        if transfer.delivery_id.is_some_and(|id| id != partial.id) {
            return Err(fault("amqp:invalid-field", "deliveries of one link interleave"));
        }
        if transfer.receiver_settle_second && link.receiver_settle_mode == ReceiverSettleMode::First {
            return Err(fault("amqp:invalid-field", "rcv-settle-mode second on a first link"));
        }
        partial.settled |= transfer.settled.unwrap_or(false);
        if transfer.aborted {
            self.partial_delivery_bytes -= partial.message.len();
            link.partial = None;
            return Ok(());
        }
        // counted while it comes in, never buffered first
        let message_bytes = (partial.message.len() - partial.tag_bytes + payload.len()) as u64;
        if message_bytes > link.message_bytes_max {
            return Err(fault("amqp:link:message-size-exceeded", "message over max-message-size"));
        }
        if transfer.more && self.partial_delivery_bytes + payload.len() > self.config.partial_delivery_bytes_max {
            return Err(fault("amqp:resource-limit-exceeded", "too much of incomplete deliveries"));
        }
        partial.message.extend_from_slice(payload);
        self.partial_delivery_bytes += payload.len();
        if !transfer.more
            && let Some(partial) = link.partial.take()
        {
            self.partial_delivery_bytes -= partial.message.len();
            return self.delivery_complete(index, *partial);
        }
        Ok(())
    }

    fn delivery_complete(&mut self, index: u32, partial: Partial) -> Result<(), LinkFault> {
        let link = &self.links[index as usize];
        if !partial.settled {
            let incoming = &mut self.sessions[link.session as usize].incoming;
            if incoming.len() >= self.config.unsettled_max as usize {
                return Err(LinkFault::new(index, "amqp:resource-limit-exceeded", "too many unsettled deliveries"));
            }
            if incoming.insert(partial.id, Incoming { link: index, outcome_sent: false }).is_some() {
                return Err(LinkFault::new(index, "amqp:invalid-field", "delivery-id is still unsettled"));
            }
        }
        self.counters.deliveries_in += 1;
        let mut message = Bytes::from(partial.message);
        let tag = message.split_to(partial.tag_bytes);
        self.events.push_back(Event::Delivery(Box::new(Delivery {
            link: self.link_id(index),
            user: link.user,
            id: DeliveryId(partial.id),
            tag,
            message_format: partial.message_format,
            message,
            settled: partial.settled,
        })));
        Ok(())
    }

    pub(super) fn grant_credit(&mut self, id: LinkId, credit: u32) {
        let link = self.links.get_mut(id.index as usize).filter(|link| link.generation == id.generation);
        let Some(link) = link.filter(|link| link.role == Role::Receiver) else { return };
        link.credit = credit;
        if link.is_attached() {
            let granted_to = link.delivery_count.wrapping_add(credit);
            if granted_to.wrapping_sub(link.delivery_count_max).cast_signed() > 0 {
                link.delivery_count_max = granted_to;
            }
            self.link_flow_due(id.index);
        }
    }

    pub(super) fn settle_delivery(&mut self, id: LinkId, delivery: DeliveryId, how: Settle) {
        let Some(link) = self.link(id) else { return };
        let (session, settled) = (link.session, link.receiver_settle_mode == ReceiverSettleMode::First);
        let place = &mut self.sessions[session as usize];
        match place.incoming.get_mut(&delivery.0) {
            Some(incoming) if incoming.link == id.index && !incoming.outcome_sent => incoming.outcome_sent = true,
            _ => return,
        }
        if settled {
            place.incoming.remove(&delivery.0);
        }
        place.settles.push((delivery.0, settled, how));
        self.mark_dirty(session);
    }

    /// Neighbours with the same outcome share a disposition (2.7.6), in whatever order they were settled.
    pub(super) fn write_settles(&mut self, index: u32) {
        let session = &mut self.sessions[index as usize];
        let Some(&(pivot, ..)) = session.settles.first() else { return };
        // serial order: by the distance from any one of them
        session.settles.sort_unstable_by_key(|(id, ..)| id.wrapping_sub(pivot).cast_signed());
        let mut settles = std::mem::take(&mut session.settles);
        for run in settles.chunk_by(|a, b| b.0 == a.0.wrapping_add(1) && b.1 == a.1 && b.2 == a.2) {
            let (first, settled, how) = &run[0];
            let last = run[run.len() - 1].0;
            frames::write_settle(&mut self.output, index as u16, *first, last, *settled, how);
        }
        settles.clear();
        session.settles = settles;
    }

    /// The sender's word on what it sent: settled ones are forgotten; for those with our outcome it is the confirmation.
    pub(super) fn handle_sender_disposition(&mut self, session: u32, disposition: &Disposition) {
        if !disposition.settled {
            return;
        }
        let place = &mut self.sessions[session as usize];
        let width = disposition.last.wrapping_sub(disposition.first);
        let mut ids: Vec<u32> =
            place.incoming.keys().copied().filter(|id| id.wrapping_sub(disposition.first) <= width).collect();
        ids.sort_unstable_by_key(|id| id.wrapping_sub(disposition.first));
        for id in ids {
            let Some(incoming) = place.incoming.remove(&id) else { continue };
            let Some(link) = self.links.get(incoming.link as usize).filter(|_| incoming.outcome_sent) else { continue };
            let outcome = match &disposition.state {
                State::Outcome(outcome) => outcome.clone(),
                State::Absent | State::Passing => Outcome::Accepted,
            };
            let link_id = LinkId { index: incoming.link, generation: link.generation };
            self.events.push_back(Event::Confirmed { link: link_id, user: link.user, id: DeliveryId(id), outcome });
        }
    }
}
