//! Deliveries of the peer's: TRANSFER frames become messages, messages get their outcome, outcomes become DISPOSITIONs.

use bytes::Bytes;
use fe2o3_amqp_types::definitions::{Error, Role};
use fe2o3_amqp_types::messaging::{Accepted, DeliveryState};
use fe2o3_amqp_types::performatives::{Disposition, Transfer};

use super::connection::{Connection, Now};
use super::error::{self, NOT_ALLOWED, UNATTACHED_HANDLE};
use super::link::{Half, LinkId, LinkState, Received, Violation};
use super::session::Accepted as Row;
use super::timer::{Due, Timer};
use crate::domain::Action;

/// What is to happen with a delivery of the peer's.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// The outcome; `None`: the peer never hears of it (a fault).
    pub(crate) state: Option<DeliveryState>,
    /// How long the outcome is held back.
    pub(crate) delay_ms: u64,
    /// The ledger's entries for this delivery: one, or those of a batch.
    pub(crate) entries: Vec<u64>,
    /// The link ends with this error after the outcome.
    pub(crate) detach: Option<Error>,
    /// A fault that strikes link or connection after the outcome.
    pub(crate) strike: Option<Action>,
}

impl Verdict {
    pub(crate) fn accepted() -> Self {
        accepted().into()
    }

    pub(crate) fn rejected(error: Error) -> Self {
        error::rejected(error).into()
    }
}

impl From<DeliveryState> for Verdict {
    fn from(state: DeliveryState) -> Self {
        Self { state: Some(state), delay_ms: 0, entries: Vec::new(), detach: None, strike: None }
    }
}

/// The outcome `accepted`.
pub(crate) fn accepted() -> DeliveryState {
    DeliveryState::Accepted(Accepted {})
}

impl Connection {
    pub(super) fn handle_transfer(&mut self, session: usize, transfer: &Transfer, payload: Bytes, now: Now) {
        match self.sessions[session].count_incoming() {
            Err(error) => return self.end_session(session, Some(error)),
            Ok(true) => self.put_session_flow(session),
            Ok(false) => {}
        }
        let handle = transfer.handle.0;
        let Some(&id) = self.sessions[session].handles.get(&handle) else {
            let error = error::protocol(UNATTACHED_HANDLE, format!("transfer for handle {handle}"));
            return self.end_session(session, Some(error));
        };
        let bytes_max = self.settings.message_bytes_max;
        let last_id = &mut self.sessions[session].last_incoming_delivery;
        let Some(link) = self.links.get_mut(id.index as usize) else { return };
        if link.state == LinkState::Detaching {
            return;
        }
        if link.half == Half::Sender {
            let error = error::protocol(NOT_ALLOWED, "transfer on a link whose receiver is the peer");
            return self.end_session(session, Some(error));
        }
        match link.assemble(transfer, payload, last_id, bytes_max) {
            Ok(Some(delivery)) => self.handle_delivery(id, delivery, now),
            Ok(None) => self.refill_credit(id),
            Err(Violation::Detach(error)) => self.detach(id, error),
            Err(Violation::End(error)) => self.end_session(session, Some(error)),
        }
    }

    fn handle_delivery(&mut self, id: LinkId, delivery: Received, now: Now) {
        let (delivery_id, is_settled) = (delivery.delivery_id, delivery.is_settled);
        let verdict = self.judge(id, delivery, now);
        if let Some(state) = verdict.state
            && !is_settled
        {
            if verdict.delay_ms == 0 {
                self.settle(id, delivery_id, state, verdict.entries);
            } else {
                let due = Due::Settle { delivery_id, state, entries: verdict.entries };
                self.timers.push(now.tick + verdict.delay_ms, Timer::Link(id, due));
            }
        }
        match verdict.detach {
            Some(error) if verdict.delay_ms == 0 => self.detach(id, error),
            Some(error) => self.timers.push(now.tick + verdict.delay_ms, Timer::Link(id, Due::Detach(error))),
            None => self.refill_credit(id),
        }
        if let Some(action) = verdict.strike {
            self.strike(id, &action, now);
        }
    }

    /// Tells the peer the outcome of a delivery of its, settled. Accepted ones in a row may be told together.
    pub(super) fn settle(&mut self, id: LinkId, delivery_id: u32, state: DeliveryState, entries: Vec<u64>) {
        let Some(session) = self.link(id).map(|link| link.session) else { return };
        if let DeliveryState::Accepted(_) = state {
            let may_join = self.settings.disposition_ranges;
            if self.sessions[session].accepted.is_none() {
                self.sessions_to_tell.push(session);
            }
            if let Some(row) = self.sessions[session].note_accepted(delivery_id, entries, may_join) {
                self.put_accepted(session, row);
            }
        } else {
            self.tell_accepted(session);
            self.put_disposition(session, (delivery_id, delivery_id), state);
            self.note_unwritten(entries);
        }
    }

    /// Writes the DISPOSITION for the accepted deliveries of a session that were not told yet.
    pub(super) fn tell_accepted(&mut self, session: usize) {
        if let Some(row) = self.sessions[session].accepted.take() {
            self.put_accepted(session, row);
        }
    }

    /// The same for all sessions.
    pub(super) fn tell_all_accepted(&mut self) {
        while let Some(session) = self.sessions_to_tell.pop() {
            if self.sessions.contains(session) {
                self.tell_accepted(session);
            }
        }
    }

    fn put_accepted(&mut self, session: usize, row: Row) {
        self.put_disposition(session, row.range, accepted());
        self.note_unwritten(row.entries);
    }

    /// The dispositions of these entries of the ledger end where the buffer ends now.
    pub(super) fn note_unwritten(&mut self, entries: impl IntoIterator<Item = u64>) {
        let position = self.out_position();
        self.unwritten.extend(entries.into_iter().map(|entry| (entry, position)));
    }

    fn put_disposition(&mut self, session: usize, (first, last): (u32, u32), state: DeliveryState) {
        let disposition = Disposition {
            role: Role::Receiver,
            first,
            last: (last != first).then_some(last),
            settled: true,
            state: Some(state),
            batchable: false,
        };
        let channel = self.sessions[session].channel_out;
        self.put(channel, &disposition);
    }

    /// Gives credit anew once half of it is used.
    pub(super) fn refill_credit(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(id.index as usize).filter(|link| link.id == id) else { return };
        let full = link.kind.credit(&self.settings);
        if link.credit <= full / 2 && !link.is_starved && link.state == LinkState::Attached {
            link.credit = full;
            self.put_link_flow(id);
        }
    }
}
