//! BEGIN, FLOW and END (2.5, 2.7): sessions come, tell their windows, and go.

use fe2o3_amqp_types::definitions::Error;
use fe2o3_amqp_types::performatives::{Begin, End, Flow};

use super::connection::{Connection, Now};
use super::error::{self, FRAMING_ERROR, ILLEGAL_STATE, NOT_ALLOWED, UNATTACHED_HANDLE};
use super::link::{Half, LinkState};
use super::session::{Session, SessionState};

impl Connection {
    pub(super) fn handle_begin(&mut self, channel: u16, begin: &Begin, now: Now) {
        let refusal = if begin.remote_channel.is_some() {
            Some(error::protocol(NOT_ALLOWED, "BEGIN answers a session that was never begun here"))
        } else if self.session_on(channel).is_some() {
            Some(error::protocol(ILLEGAL_STATE, format!("channel {channel} has a session already")))
        } else if !self.has_free_channel() {
            Some(error::protocol(FRAMING_ERROR, "more sessions than channel-max allows"))
        } else {
            None
        };
        if let Some(error) = refusal {
            return self.fail(error, now);
        }
        let session = Session::new(begin, channel, self.channel_out(), &self.settings);
        let answer = Begin {
            remote_channel: Some(channel),
            next_outgoing_id: session.next_outgoing_id,
            incoming_window: self.settings.session_window,
            outgoing_window: u32::MAX,
            handle_max: self.settings.handle_max.into(),
            offered_capabilities: None,
            desired_capabilities: None,
            properties: None,
        };
        self.put(session.channel_out, &answer);
        self.map_session(channel, session);
    }

    /// Ends a session with an error of ours, or answers the peer's END.
    pub(super) fn end_session(&mut self, session: usize, error: Option<Error>) {
        self.tell_accepted(session);
        self.release_links_of(session);
        if let Some(error) = &error {
            tracing::debug!(connection = self.number, %error, "ending a session");
        }
        let channel = self.sessions[session].channel_out;
        self.sessions[session].state = SessionState::Ending;
        self.put(channel, &End { error });
    }

    pub(super) fn handle_end(&mut self, session: usize) {
        if self.sessions[session].state == SessionState::Mapped {
            self.end_session(session, None);
        }
        self.unmap_session(session);
    }

    fn release_links_of(&mut self, session: usize) {
        let links: Vec<_> = self.sessions[session].handles.values().copied().collect();
        for id in links {
            if let Some(link) = self.remove_link(id) {
                self.release(link.id, &link.kind);
            }
        }
    }

    pub(super) fn handle_flow(&mut self, session: usize, flow: &Flow) {
        if let Err(error) = self.sessions[session].take_flow(flow) {
            return self.end_session(session, Some(error));
        }
        if self.sessions[session].remote_incoming_window > 0 {
            let blocked = std::mem::take(&mut self.sessions[session].blocked);
            for id in blocked {
                if let Some(link) = self.link_mut(id) {
                    link.is_blocked = false;
                }
                self.make_ready(id);
            }
        }
        match &flow.handle {
            Some(handle) => self.handle_link_flow(session, handle.0, flow),
            None if flow.echo => self.put_session_flow(session),
            None => {}
        }
    }

    fn handle_link_flow(&mut self, session: usize, handle: u32, flow: &Flow) {
        let Some(&id) = self.sessions[session].handles.get(&handle) else {
            let error = error::protocol(UNATTACHED_HANDLE, format!("flow for handle {handle}"));
            return self.end_session(session, Some(error));
        };
        let Some(link) = self.link_mut(id) else { return };
        if link.state == LinkState::Detaching {
            return;
        }
        if link.half == Half::Sender {
            link.take_credit(flow.delivery_count, flow.link_credit.unwrap_or(0), flow.drain);
            self.make_ready(id);
        } else if let Some(count) = flow.delivery_count {
            // a sender that gives credit back says so by its delivery-count
            let used = count.wrapping_sub(link.delivery_count);
            link.credit = link.credit.saturating_sub(used);
            link.delivery_count = count;
            self.refill_credit(id);
        }
        if flow.echo {
            self.put_link_flow(id);
        }
    }

    /// Announces the session's incoming window, full again.
    pub(super) fn put_session_flow(&mut self, session: usize) {
        let flow = self.sessions[session].flow(&self.settings);
        let channel = self.sessions[session].channel_out;
        self.put(channel, &flow);
    }

    /// Announces a link's credit or delivery-count, and with it the session's window.
    pub(super) fn put_link_flow(&mut self, id: super::link::LinkId) {
        let Some(link) = self.link(id) else { return };
        let (session, handle, count, credit, drain) =
            (link.session, link.handle_out, link.delivery_count, link.credit, link.drain);
        let is_sender = link.half == Half::Sender;
        let mut flow = self.sessions[session].flow(&self.settings);
        flow.handle = Some(handle.into());
        flow.delivery_count = Some(count);
        flow.link_credit = Some(credit);
        flow.available = is_sender.then_some(0);
        flow.drain = is_sender && drain;
        let channel = self.sessions[session].channel_out;
        self.put(channel, &flow);
    }
}
