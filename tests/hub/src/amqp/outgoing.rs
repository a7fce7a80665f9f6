//! Deliveries of ours: taken from the domain only when credit and window allow, sent frame by frame, settled by the
//! peer's DISPOSITIONs. Nothing is queued here but answers.

use fe2o3_amqp_types::definitions::Role;
use fe2o3_amqp_types::messaging::DeliveryState;
use fe2o3_amqp_types::performatives::{Disposition, Transfer};
use serde_amqp::primitives::Binary;

use super::connection::{Connection, Now};
use super::error::{self, INVALID_FIELD, RESOURCE_LIMIT};
use super::frame::{self, FrameType};
use super::incoming::accepted;
use super::judge::{outcome_of, released};
use super::kind::Kind;
use super::link::{Delivery, Half, Link, LinkId, LinkState, Lock, Sending, is_after};
use super::session::Unsettled;
use crate::domain::{Kind as Matter, Outcome, Transfer as DomainTransfer};

/// Header and performative of a TRANSFER of ours take no more than this.
const TRANSFER_OVERHEAD_BYTES: usize = 96;

impl Connection {
    pub(super) fn link(&self, id: LinkId) -> Option<&Link> {
        self.links.get(id.index as usize).filter(|link| link.id == id)
    }

    pub(super) fn link_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        self.links.get_mut(id.index as usize).filter(|link| link.id == id)
    }

    /// Says that this link may have something to send.
    pub(super) fn make_ready(&mut self, id: LinkId) {
        let Some(link) = self.link_mut(id) else { return };
        if link.half == Half::Sender && link.state == LinkState::Attached && !link.is_ready {
            link.is_ready = true;
            self.ready.push_back(id);
        }
    }

    /// Puts an answer on a link. More than the bound without credit for them: the peer does not listen, the link ends.
    pub(super) fn answer(&mut self, id: LinkId, delivery: Delivery) {
        let answers_max = self.settings.answers_max;
        let Some(link) = self.link_mut(id).filter(|link| link.state == LinkState::Attached) else { return };
        if link.queue.len() >= answers_max {
            return self.detach(id, error::protocol(RESOURCE_LIMIT, "too many answers wait for credit"));
        }
        link.queue.push_back(delivery);
        self.make_ready(id);
    }

    /// Sends what links have, in turns, until nothing is left or the write buffer is full.
    pub(super) fn pump(&mut self, now: Now) {
        while !self.is_congested() {
            let Some(id) = self.ready.pop_front() else { return };
            let Some(link) = self.link_mut(id) else { continue };
            link.is_ready = false;
            self.pump_link(id, now);
        }
    }

    fn pump_link(&mut self, id: LinkId, now: Now) {
        loop {
            let Some(link) = self.link(id).filter(|link| link.state == LinkState::Attached) else { return };
            let session = link.session;
            if self.is_congested() {
                return self.make_ready(id);
            }
            if self.sessions[session].remote_incoming_window == 0 {
                return self.block(id);
            }
            if link.sending.is_none() && !self.begin_delivery(id, now) {
                return self.answer_drain(id);
            }
            self.put_next_frame(id);
        }
    }

    /// Lets the link wait for the peer's window.
    fn block(&mut self, id: LinkId) {
        let Some(link) = self.link_mut(id).filter(|link| !link.is_blocked) else { return };
        link.is_blocked = true;
        let session = link.session;
        self.sessions[session].blocked.push_back(id);
    }

    /// Takes the next delivery of the link, if there is credit for one and one to send.
    fn begin_delivery(&mut self, id: LinkId, now: Now) -> bool {
        if self.link(id).is_none_or(|link| link.credit == 0) {
            return false;
        }
        let Some(delivery) = self.next_delivery(id, now) else { return false };
        let Some(link) = self.link_mut(id) else { return false };
        let (session_index, is_settled) = (link.session, link.sends_settled);
        link.credit = link.credit.saturating_sub(1);
        link.delivery_count = link.delivery_count.wrapping_add(1);
        link.unsettled += usize::from(!is_settled);
        let session = &mut self.sessions[session_index];
        let delivery_id = session.next_delivery_id;
        session.next_delivery_id = delivery_id.wrapping_add(1);
        let entry = self.record_sent(id, delivery_id, &delivery, now);
        let Delivery { tag, payload, lock, .. } = delivery;
        if is_settled {
            self.settle_own(&lock, &accepted(), now);
            self.conclude_sent(entry, Outcome::Presettled);
        } else if let Some(session) = self.sessions.get_mut(session_index) {
            session.unsettled.insert(delivery_id, Unsettled { link: id, lock, entry });
        }
        if let Some(link) = self.link_mut(id) {
            link.sending = Some(Sending { delivery_id, tag, payload, is_settled, is_first: true, entry });
        }
        true
    }

    /// An answer that waits, or what the link's kind has next.
    fn next_delivery(&mut self, id: LinkId, now: Now) -> Option<Delivery> {
        if !self.pass_send_faults(id, now) {
            return None;
        }
        if let Some(answer) = self.link_mut(id)?.queue.pop_front() {
            return Some(answer);
        }
        match &self.link(id)?.kind {
            Kind::C2d(identity) => {
                let identity = identity.clone();
                self.next_c2d(id, &identity, now)
            }
            Kind::TwinAnswers(pair) => {
                let pair = pair.clone();
                self.next_notification(id, &pair)
            }
            Kind::MethodCalls(pair) => {
                let pair = pair.clone();
                self.next_call(id, &pair)
            }
            Kind::Feedback => self.next_feedback(now),
            Kind::Events(_) => self.next_event(id),
            _ => None,
        }
    }

    /// The first of these for a link; the others follow it.
    pub(super) fn first_of(&mut self, id: LinkId, mut deliveries: Vec<Delivery>) -> Option<Delivery> {
        let rest = deliveries.split_off(deliveries.len().min(1));
        self.link_mut(id)?.queue.extend(rest);
        deliveries.pop()
    }

    /// A fresh delivery tag.
    pub(super) fn next_tag(&mut self) -> u32 {
        self.tags_made = self.tags_made.wrapping_add(1);
        self.tags_made
    }

    /// Enters a delivery of ours into the ledger; events read by back ends are the log's own matter.
    fn record_sent(&self, id: LinkId, delivery_id: u32, delivery: &Delivery, now: Now) -> Option<u64> {
        let link = self.link(id)?;
        let kind = match &link.kind {
            Kind::C2d(_) => Matter::C2d,
            Kind::TwinAnswers(_) => Matter::TwinReply,
            Kind::MethodCalls(_) => Matter::MethodCall,
            Kind::Feedback => Matter::ServiceRead,
            _ => return None,
        };
        let transfer = DomainTransfer {
            identity: link.kind.identity().cloned(),
            kind,
            message_id: delivery.message_id.clone(),
            connection: self.number,
            link: link.name.clone(),
            delivery_id,
            body_bytes: delivery.body_bytes,
        };
        Some(self.domain.ledger.record(transfer, None, now.unix_ms))
    }

    fn conclude_sent(&self, entry: Option<u64>, outcome: Outcome) {
        if let Some(entry) = entry {
            self.domain.ledger.settle(entry, outcome);
        }
    }

    fn put_next_frame(&mut self, id: LinkId) {
        let chunk_max = self.peer.frame_bytes_max.saturating_sub(TRANSFER_OVERHEAD_BYTES).max(64);
        let Some(link) = self.links.get_mut(id.index as usize) else { return };
        let Some(mut sending) = link.sending.take() else { return };
        let chunk = sending.payload.split_to(sending.payload.len().min(chunk_max));
        let more = !sending.payload.is_empty();
        let transfer = Transfer {
            handle: link.handle_out.into(),
            delivery_id: sending.is_first.then_some(sending.delivery_id),
            delivery_tag: sending.is_first.then(|| Binary::from(std::mem::take(&mut sending.tag))),
            message_format: sending.is_first.then_some(0),
            settled: Some(sending.is_settled),
            more,
            rcv_settle_mode: None,
            state: None,
            resume: false,
            aborted: false,
            batchable: false,
        };
        sending.is_first = false;
        let entry = sending.entry.filter(|_| !more);
        if more {
            link.sending = Some(sending);
        }
        let session = &mut self.sessions[link.session];
        session.count_outgoing();
        frame::put(&mut self.out, FrameType::Amqp, session.channel_out, &transfer, &chunk);
        self.note_unwritten(entry);
    }

    /// Nothing more to send and the peer asked to drain: the credit left is used up (2.6.7).
    fn answer_drain(&mut self, id: LinkId) {
        let Some(link) = self.link_mut(id).filter(|link| link.drain) else { return };
        link.delivery_count = link.delivery_count.wrapping_add(link.credit);
        link.credit = 0;
        self.put_link_flow(id);
        if let Some(link) = self.link_mut(id) {
            link.drain = false;
        }
    }

    /// The peer speaks of deliveries of ours (role receiver). What it says of its own was settled by us already.
    pub(super) fn handle_disposition(&mut self, session: usize, disposition: &Disposition, now: Now) {
        let (first, last) = (disposition.first, disposition.last.unwrap_or(disposition.first));
        if is_after(first, last) {
            let error = error::protocol(INVALID_FIELD, format!("disposition of {first} to {last} is reversed"));
            return self.end_session(session, Some(error));
        }
        if disposition.role == Role::Sender {
            return;
        }
        let is_pending = disposition.state.as_ref().is_none_or(|state| !state.is_terminal());
        if is_pending && !disposition.settled {
            return;
        }
        let unsettled = &self.sessions[session].unsettled;
        let told: Vec<u32> = if first <= last {
            unsettled.range(first..=last).map(|(id, _)| *id).collect()
        } else {
            unsettled.range(first..).chain(unsettled.range(..=last)).map(|(id, _)| *id).collect()
        };
        for delivery_id in told {
            self.settle_delivery(session, delivery_id, disposition, now);
        }
    }

    fn settle_delivery(&mut self, session: usize, delivery_id: u32, disposition: &Disposition, now: Now) {
        let Some(Unsettled { link, lock, entry }) = self.sessions[session].unsettled.remove(&delivery_id) else {
            return;
        };
        let default = self.link(link).map(|link| link.default_outcome.clone());
        let state = disposition.state.clone().filter(DeliveryState::is_terminal).or(default);
        let state = state.unwrap_or_else(released);
        self.conclude_sent(entry, outcome_of(&state));
        let answer = self.settle_own(&lock, &state, now);
        if !disposition.settled {
            // second mode, or a receiver that waits to forget: the last word is ours
            let answer = Disposition {
                role: Role::Sender,
                first: delivery_id,
                last: None,
                settled: true,
                state: Some(answer),
                batchable: false,
            };
            let channel = self.sessions[session].channel_out;
            self.put(channel, &answer);
        }
        if let Some(sender) = self.link_mut(link) {
            sender.unsettled = sender.unsettled.saturating_sub(1);
        }
        if lock == Lock::Event {
            // a reader that was at its bound of unsettled events goes on
            self.make_ready(link);
        }
    }
}
