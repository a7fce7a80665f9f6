//! One session: the windows of both directions, its handles, and the deliveries its peer has not settled (2.5).

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use fe2o3_amqp_types::definitions::Error;
use fe2o3_amqp_types::performatives::{Begin, Flow};

use super::error::{self, WINDOW_VIOLATION};
use super::link::{Half, LinkId, Lock, is_after};
use super::settings::AmqpSettings;

/// Our handles start here, so that a peer that takes our handle for its own is found out.
const HANDLE_OFFSET: u64 = 3;

/// ```text
/// Mapped ──our END──► Ending ──their END──► gone
///    └────their END, answered─────────────► gone
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionState {
    Mapped,
    /// Our END is out; everything but their END is dropped.
    Ending,
}

/// One session of a connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) state: SessionState,
    pub(crate) channel_in: u16,
    pub(crate) channel_out: u16,
    pub(crate) next_incoming_id: u32,
    incoming_window: u32,
    incoming_window_full: u32,
    pub(crate) next_outgoing_id: u32,
    first_outgoing_id: u32,
    pub(crate) remote_incoming_window: u32,
    pub(crate) next_delivery_id: u32,
    /// Highest delivery-id of the peer so far.
    pub(crate) last_incoming_delivery: Option<u32>,
    peer_handle_max: u32,
    /// Theirs → link.
    pub(crate) handles: HashMap<u32, LinkId>,
    handles_claimed: u32,
    freed_handles: Vec<u32>,
    /// Names in use, by our half: the same name twice is `resource-locked`.
    pub(crate) names: HashSet<(Half, Arc<str>)>,
    /// Deliveries of ours that the peer has not settled, by delivery-id.
    pub(crate) unsettled: BTreeMap<u32, Unsettled>,
    /// Links that wait for the peer's incoming window.
    pub(crate) blocked: VecDeque<LinkId>,
    /// Accepted deliveries not told yet.
    pub(crate) accepted: Option<Accepted>,
    /// The link on which CBS requests of this session are answered.
    pub(crate) cbs_answers: Option<LinkId>,
}

/// A row of accepted deliveries.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// First and last delivery-id.
    pub(crate) range: (u32, u32),
    /// Their entries in the ledger.
    pub(crate) entries: Vec<u64>,
}

/// A delivery of ours that the peer has not settled.
#[derive(Debug)]
pub(crate) struct Unsettled {
    pub(crate) link: LinkId,
    pub(crate) lock: Lock,
    /// Its entry in the ledger.
    pub(crate) entry: Option<u64>,
}

impl Session {
    pub(crate) fn new(begin: &Begin, channel_in: u16, channel_out: u16, settings: &AmqpSettings) -> Self {
        Self {
            state: SessionState::Mapped,
            channel_in,
            channel_out,
            next_incoming_id: begin.next_outgoing_id,
            incoming_window: settings.session_window,
            incoming_window_full: settings.session_window,
            next_outgoing_id: settings.first_transfer_id,
            first_outgoing_id: settings.first_transfer_id,
            remote_incoming_window: begin.incoming_window,
            next_delivery_id: settings.first_transfer_id,
            last_incoming_delivery: None,
            peer_handle_max: begin.handle_max.0,
            handles: HashMap::new(),
            handles_claimed: 0,
            freed_handles: Vec::new(),
            names: HashSet::new(),
            unsettled: BTreeMap::new(),
            blocked: VecDeque::new(),
            accepted: None,
            cbs_answers: None,
        }
    }

    /// Counts one incoming TRANSFER frame. `Ok(true)`: half of the window is used, announce it anew.
    pub(crate) fn count_incoming(&mut self) -> Result<bool, Error> {
        self.next_incoming_id = self.next_incoming_id.wrapping_add(1);
        match self.incoming_window.checked_sub(1) {
            None => Err(error::protocol(WINDOW_VIOLATION, "transfer beyond the incoming window")),
            Some(left) => {
                self.incoming_window = left;
                Ok(left <= self.incoming_window_full / 2)
            }
        }
    }

    /// Counts one outgoing TRANSFER frame.
    pub(crate) fn count_outgoing(&mut self) {
        self.next_outgoing_id = self.next_outgoing_id.wrapping_add(1);
        self.remote_incoming_window = self.remote_incoming_window.saturating_sub(1);
    }

    /// Takes the session half of a FLOW (2.5.6).
    pub(crate) fn take_flow(&mut self, flow: &Flow) -> Result<(), Error> {
        let base = flow.next_incoming_id.unwrap_or(self.first_outgoing_id);
        if is_after(base, self.next_outgoing_id) {
            return Err(error::protocol(WINDOW_VIOLATION, format!("next-incoming-id {base} was never sent")));
        }
        let in_flight = self.next_outgoing_id.wrapping_sub(base);
        self.remote_incoming_window = flow.incoming_window.saturating_sub(in_flight);
        Ok(())
    }

    /// The session half of a FLOW of ours; with it the whole window is open again.
    pub(crate) fn flow(&mut self, settings: &AmqpSettings) -> Flow {
        self.incoming_window = self.incoming_window_full;
        Flow {
            next_incoming_id: (!settings.flow_without_next_incoming_id).then_some(self.next_incoming_id),
            incoming_window: self.incoming_window,
            next_outgoing_id: self.next_outgoing_id,
            outgoing_window: u32::MAX,
            handle: None,
            delivery_count: None,
            link_credit: None,
            available: None,
            drain: false,
            echo: false,
            properties: None,
        }
    }

    /// A free handle of ours within the peer's `handle-max`, or none.
    pub(crate) fn claim_handle(&mut self) -> Option<u32> {
        if let Some(handle) = self.freed_handles.pop() {
            return Some(handle);
        }
        let handles = u64::from(self.peer_handle_max) + 1;
        if u64::from(self.handles_claimed) >= handles {
            return None;
        }
        let handle = (u64::from(self.handles_claimed) + HANDLE_OFFSET) % handles;
        self.handles_claimed += 1;
        Some(handle as u32)
    }

    pub(crate) fn free_handle(&mut self, handle: u32) {
        self.freed_handles.push(handle);
    }

    /// Forgets a link's name and the deliveries that its peer has not settled.
    pub(crate) fn forget_link(&mut self, id: LinkId, name: &(Half, Arc<str>), unsettled: usize) {
        self.names.remove(name);
        self.cbs_answers.take_if(|link| *link == id);
        if unsettled > 0 {
            self.unsettled.retain(|_, delivery| delivery.link != id);
        }
    }

    /// Adds an accepted delivery to the row that waits to be told; returns a row that must be told first.
    pub(crate) fn note_accepted(&mut self, delivery_id: u32, entries: Vec<u64>, may_join: bool) -> Option<Accepted> {
        if let Some(row) = &mut self.accepted
            && may_join
            && row.range.1.wrapping_add(1) == delivery_id
        {
            row.range.1 = delivery_id;
            row.entries.extend(entries);
            return None;
        }
        self.accepted.replace(Accepted { range: (delivery_id, delivery_id), entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(first_transfer_id: u32, peer_window: u32) -> Session {
        let begin = Begin {
            remote_channel: None,
            next_outgoing_id: 0,
            incoming_window: peer_window,
            outgoing_window: 0,
            handle_max: 4.into(),
            offered_capabilities: None,
            desired_capabilities: None,
            properties: None,
        };
        Session::new(&begin, 0, 0, &AmqpSettings { session_window: 4, first_transfer_id, ..AmqpSettings::default() })
    }

    #[test]
    fn amqp_2_5_6_the_remote_window_is_counted_from_the_peers_view_and_across_the_wrap() {
        let mut session = session(u32::MAX, 3);
        session.count_outgoing();
        session.count_outgoing();
        assert_eq!((session.next_outgoing_id, session.remote_incoming_window), (1, 1));
        let mut flow = session.flow(&AmqpSettings::default());
        (flow.next_incoming_id, flow.incoming_window) = (Some(0), 3);
        session.take_flow(&flow).expect("legal");
        assert_eq!(session.remote_incoming_window, 2);
        flow.next_incoming_id = None;
        session.take_flow(&flow).expect("counted from the first id");
        assert_eq!(session.remote_incoming_window, 1);
        flow.incoming_window = 0;
        session.take_flow(&flow).expect("a shrunk window is zero");
        assert_eq!(session.remote_incoming_window, 0);
        flow.next_incoming_id = Some(2);
        assert!(session.take_flow(&flow).is_err());
    }

    #[test]
    fn the_incoming_window_is_announced_at_half_and_defended_at_its_end() {
        let mut session = session(0, 1);
        let answers: Vec<_> = (0..5).map(|_| session.count_incoming().ok()).collect();
        assert_eq!(answers, [Some(false), Some(true), Some(true), Some(true), None]);
        session.flow(&AmqpSettings::default());
        assert_eq!(session.count_incoming().ok(), Some(false));
    }

    #[test]
    fn handles_are_ours_alone_reused_and_limited_by_the_peer() {
        let mut session = session(0, 1);
        let claimed: Vec<_> = (0..6).map(|_| session.claim_handle()).collect();
        assert_eq!(claimed, [Some(3), Some(4), Some(0), Some(1), Some(2), None]);
        session.free_handle(4);
        assert_eq!(session.claim_handle(), Some(4));
    }

    #[test]
    fn accepted_deliveries_in_a_row_become_one_range() {
        let mut session = session(0, 1);
        assert_eq!(session.note_accepted(u32::MAX, vec![1], true), None);
        assert_eq!(session.note_accepted(0, vec![2], true), None);
        let row = Accepted { range: (u32::MAX, 0), entries: vec![1, 2] };
        assert_eq!(session.note_accepted(2, vec![], true), Some(row));
        assert_eq!(session.note_accepted(3, vec![], false), Some(Accepted { range: (2, 2), entries: vec![] }));
    }
}
