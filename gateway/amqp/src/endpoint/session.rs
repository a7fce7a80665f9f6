//! Sessions: BEGIN, END, the windows of FLOW.

use std::collections::HashMap;

use slab::Slab;

use super::connection::Phase;
use super::input::{Fault, Handled};
use super::outgoing::Tail;
use super::{Endpoint, Wait};
use crate::codec::performative as frames;
use crate::codec::performative::{Begin, Flow, LinkFlow, OUTGOING_WINDOW, Role};
use crate::unsettled::Unsettled;
use crate::{Cause, Error, Event, LinkId, Refused, SessionId, Settle};

/// Waiting ─(connection open)─► Beginning ─► Begun ─► Ending ─► (gone)
///                                              └─fault─► Discarding ─► (gone)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The peer's OPEN is awaited.
    Waiting,
    /// Our BEGIN is out.
    Beginning,
    Begun,
    /// Our END is out; `SessionEnded` comes with the answer.
    Ending,
    /// `SessionEnded` is told; the channel waits for the peer's END.
    Discarding,
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) generation: u32,
    state: State,
    pub(super) remote_channel: Option<u16>,
    /// Links at a time, the smaller of both sides' handle-max + 1.
    pub(super) links_max: u32,
    /// Transfer-id of our next TRANSFER frame, and of our first.
    pub(super) next_outgoing_id: u32,
    /// TRANSFER frames we may still send.
    pub(super) remote_incoming_window: u32,
    pub(super) next_incoming_id: u32,
    /// TRANSFER frames the peer may still send.
    pub(super) incoming_window: u32,

    /// Our handle → link.
    pub(super) handles: Slab<u32>,
    /// Peer's handle → link.
    pub(super) remote_handles: Vec<Option<u32>>,
    /// ATTACHes of ours without answer, by name and our role.
    pub(super) attaching: HashMap<(Role, Box<str>), u32>,
    /// Links that wait for this session to begin.
    pub(super) waiting: Vec<LinkId>,

    pub(super) unsettled: Unsettled,
    /// What the window did not let out of a message that was begun.
    pub(super) tail: Option<Box<Tail>>,
    /// Links refused for `WindowClosed` or `UnsettledFull`.
    pub(super) blocked: Vec<LinkId>,

    /// Deliveries that came in and are not settled → link.
    pub(super) incoming: HashMap<u32, Incoming>,
    /// Outcomes of this turn.
    pub(super) settles: Vec<(u32, bool, Settle)>,
    /// Links whose FLOW is due.
    pub(super) flows: Vec<LinkId>,
    pub(super) flow_due: bool,
    /// Stands in the endpoint's list of sessions with something to write.
    pub(super) dirty: bool,
}

/// A delivery that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Incoming {
    pub(super) link: u32,
    /// Our outcome is out, the sender's word is awaited (receiver settle mode second).
    pub(super) outcome_sent: bool,
}

/// Any start would do.
const FIRST_OUTGOING_ID: u32 = 0;

impl Session {
    fn new(generation: u32, incoming_window: u32) -> Self {
        Self {
            generation,
            state: State::Waiting,
            remote_channel: None,
            links_max: 0,
            next_outgoing_id: FIRST_OUTGOING_ID,
            remote_incoming_window: 0,
            next_incoming_id: 0,
            incoming_window,
            handles: Slab::new(),
            remote_handles: Vec::new(),
            attaching: HashMap::new(),
            waiting: Vec::new(),
            unsettled: Unsettled::starting_at(0),
            tail: None,
            blocked: Vec::new(),
            incoming: HashMap::new(),
            settles: Vec::new(),
            flows: Vec::new(),
            flow_due: false,
            dirty: false,
        }
    }

    pub(super) fn is_begun(&self) -> bool {
        self.state == State::Begun
    }

    pub(super) fn is_beginning(&self) -> bool {
        self.state == State::Beginning
    }

    pub(super) fn is_ending(&self) -> bool {
        self.state == State::Ending
    }

    pub(super) fn is_discarding(&self) -> bool {
        self.state == State::Discarding
    }

    /// Links may be attached or wait to be.
    pub(super) fn takes_links(&self) -> bool {
        matches!(self.state, State::Waiting | State::Beginning | State::Begun)
    }

    /// The session half of a FLOW; it renews our window.
    pub(super) fn flow(&mut self, incoming_window: u32) -> Flow {
        self.incoming_window = incoming_window;
        self.flow_due = false;
        Flow {
            next_incoming_id: Some(self.next_incoming_id),
            incoming_window,
            next_outgoing_id: self.next_outgoing_id,
            outgoing_window: OUTGOING_WINDOW,
            link: None,
            echo: false,
        }
    }

    /// 2.5.6, the peer's view of its window made ours.
    fn window_from(&mut self, flow: &Flow) -> Handled {
        let ahead = |next_incoming_id: u32| {
            next_incoming_id.wrapping_add(flow.incoming_window).wrapping_sub(self.next_outgoing_id).cast_signed().max(0)
        };
        let window = match flow.next_incoming_id {
            Some(id) if self.next_outgoing_id.wrapping_sub(id).cast_signed() < 0 => {
                return Err(Fault::session("amqp:session:window-violation", "next-incoming-id was never sent"));
            }
            Some(id) => ahead(id).cast_unsigned(),
            // IoT Hub leaves it out of running sessions. The rule counts from our first id, which would shut the
            // window for good after as many frames; what has been settled has surely been received, so count that too.
            None => {
                let waiting = u32::try_from(self.unsettled.len()).unwrap_or(u32::MAX);
                ahead(FIRST_OUTGOING_ID).cast_unsigned().max(flow.incoming_window.saturating_sub(waiting))
            }
        };
        self.remote_incoming_window = window;
        Ok(())
    }
}

impl Endpoint {
    pub(super) fn begin_session(&mut self) -> Result<SessionId, Refused> {
        if !self.is_live() || self.is_closing() {
            return Err(Refused::Gone);
        }
        if self.sessions.len() >= self.sessions_max as usize {
            return Err(Refused::SessionsMax);
        }
        let generation = self.next_generation();
        let index = self.sessions.insert(Session::new(generation, self.config.incoming_window)) as u32;
        if self.phase == Phase::Open {
            self.write_begin(index);
        }
        Ok(SessionId { index, generation })
    }

    /// The connection is open now: the sessions that waited begin, as many as the peer allows.
    pub(super) fn write_waiting_begins(&mut self) {
        let waiting: Vec<u32> = self.sessions.iter().map(|(index, _)| index as u32).collect();
        for index in waiting {
            if index < self.sessions_max {
                self.write_begin(index);
            } else {
                self.drop_session(index, Cause::Limit);
            }
        }
    }

    fn write_begin(&mut self, index: u32) {
        self.sessions[index as usize].state = State::Beginning;
        frames::write_begin(&mut self.output, index as u16, FIRST_OUTGOING_ID, &self.config);
        self.wait(Wait::Begin(self.session_id(index)));
    }

    /// 2.7.2: the answer names our channel.
    pub(super) fn handle_begin(&mut self, channel: u16, begin: &Begin) -> Handled {
        if self.channels.get(usize::from(channel)).copied().flatten().is_some() {
            return Err(Fault::connection("amqp:not-allowed", "channel already in use"));
        }
        let Some(ours) = begin.remote_channel else { return self.refuse_peers_session(channel) };
        let index = u32::from(ours);
        let waits_for_it =
            |session: &Session| session.remote_channel.is_none() && !matches!(session.state, State::Waiting);
        let Some(session) = self.sessions.get_mut(usize::from(ours)).filter(|session| waits_for_it(session)) else {
            return Err(Fault::connection("amqp:not-allowed", "BEGIN answers a channel that was not begun"));
        };
        session.remote_channel = Some(channel);
        session.next_incoming_id = begin.next_outgoing_id;
        session.remote_incoming_window = begin.incoming_window;
        session.links_max = self.config.links_per_session_max.max(1).min(begin.handle_max.saturating_add(1));
        self.map_channel(channel, Some(ours));
        let session = &mut self.sessions[index as usize];
        if session.state != State::Beginning {
            return Ok(()); // given up in the meantime: its END follows
        }
        session.state = State::Begun;
        let (links_max, waiting) = (session.links_max, std::mem::take(&mut session.waiting));
        let session = self.session_id(index);
        self.events.push_back(Event::SessionBegun { session, links_max });
        for link in waiting {
            self.write_waiting_attach(link);
        }
        Ok(())
    }

    /// A peer that starts a session gets it and its end at once; the channel pair is free when its END comes.
    fn refuse_peers_session(&mut self, channel: u16) -> Handled {
        if self.sessions.len() >= self.sessions_max as usize {
            return Err(Fault::connection("amqp:not-allowed", "no channel left for a session of the peer"));
        }
        let generation = self.next_generation();
        let mut session = Session::new(generation, 0);
        session.state = State::Discarding;
        session.remote_channel = Some(channel);
        let ours = self.sessions.insert(session) as u16;
        self.map_channel(channel, Some(ours));
        self.counters.sessions_failed += 1;
        frames::write_begin_answer(&mut self.output, ours, channel);
        let error = Error::new("amqp:not-allowed", "sessions are started by us");
        frames::write_end(&mut self.output, ours, Some(&error));
        Ok(())
    }

    fn map_channel(&mut self, channel: u16, ours: Option<u16>) {
        let place = usize::from(channel);
        if self.channels.len() <= place {
            self.channels.resize(place + 1, None);
        }
        self.channels[place] = ours;
    }

    pub(super) fn end_session(&mut self, index: u32) {
        if self.is_closing() {
            return; // CLOSE is the last thing written, and its end is the session's
        }
        match self.sessions[index as usize].state {
            State::Waiting => self.drop_session(index, Cause::Local),
            State::Beginning | State::Begun => {
                self.flush();
                self.sessions[index as usize].state = State::Ending;
                frames::write_end(&mut self.output, index as u16, None);
                self.wait(Wait::End(self.session_id(index)));
            }
            State::Ending | State::Discarding => {}
        }
    }

    /// 2.7.8: theirs first is answered; crossing ours, or after it, it is the answer.
    pub(super) fn handle_end(&mut self, channel: u16, index: u32, error: Option<Box<Error>>) {
        self.map_channel(channel, None);
        let session = &mut self.sessions[index as usize];
        session.remote_channel = None;
        let cause = match session.state {
            State::Discarding => {
                self.sessions.remove(index as usize);
                return;
            }
            State::Ending if error.is_none() => Cause::Local,
            State::Ending => Cause::Remote(error),
            State::Waiting | State::Beginning | State::Begun => {
                frames::write_end(&mut self.output, index as u16, None);
                Cause::Remote(error)
            }
        };
        self.drop_session(index, cause);
    }

    /// The peer broke a rule of the session: END with the error, nothing more is read from it.
    pub(super) fn fail_session(&mut self, index: u32, error: &Error) {
        self.counters.sessions_failed += 1;
        let cause = Cause::Violation(Box::new(error.clone()));
        self.fail_session_with(index, Some(error), cause);
    }

    pub(super) fn fail_session_with(&mut self, index: u32, error: Option<&Error>, cause: Cause) {
        if matches!(self.sessions[index as usize].state, State::Beginning | State::Begun) {
            frames::write_end(&mut self.output, index as u16, error);
        }
        self.session_over(index, cause);
    }

    /// Everything on the session gets its last event; the channel stays taken until the peer's END.
    pub(super) fn session_over(&mut self, index: u32, cause: Cause) {
        let session = &mut self.sessions[index as usize];
        if session.state == State::Discarding {
            return;
        }
        session.state = State::Discarding;
        let links: Vec<u32> = session.handles.iter().map(|(_, link)| *link).collect();
        let waiting = std::mem::take(&mut session.waiting);
        session.attaching = HashMap::new();
        session.incoming = HashMap::new();
        // thousands may be blocked: none of them has to look for itself in the lists
        session.blocked = Vec::new();
        for link in &links {
            self.links[*link as usize].blocked = false;
        }
        self.lose_all_unsettled(index);
        for link in waiting {
            if self.link(link).is_some() {
                self.drop_link(link.index, Cause::Carrier);
            }
        }
        for link in links {
            self.drop_link(link, Cause::Carrier);
        }
        let session = &mut self.sessions[index as usize];
        session.handles = Slab::new();
        session.remote_handles = Vec::new();
        session.settles = Vec::new();
        session.flows = Vec::new();
        session.tail = None;
        session.flow_due = false;
        let session = self.session_id(index);
        self.events.push_back(Event::SessionEnded { session, cause });
    }

    /// As `session_over`, and the channel is free.
    pub(super) fn drop_session(&mut self, index: u32, cause: Cause) {
        self.session_over(index, cause);
        if let Some(channel) = self.sessions[index as usize].remote_channel {
            self.map_channel(channel, None);
        }
        self.sessions.remove(index as usize);
    }

    /// 2.7.4. The session half counts even if the link half is wrong.
    pub(super) fn handle_flow(&mut self, index: u32, flow: &Flow) -> Handled {
        let session = &mut self.sessions[index as usize];
        session.window_from(flow)?;
        // frames the peer sent before this FLOW have been seen, so its next id is the one we expect
        session.next_incoming_id = flow.next_outgoing_id;
        self.write_tail(index);
        let linked = if let Some(link) = &flow.link {
            self.handle_link_flow(index, link, flow.echo)
        } else {
            self.sessions[index as usize].flow_due |= flow.echo;
            Ok(())
        };
        if self.sessions[index as usize].flow_due {
            self.mark_dirty(index);
        }
        self.wake_blocked(index);
        linked
    }

    pub(super) fn mark_dirty(&mut self, index: u32) {
        let session = &mut self.sessions[index as usize];
        if !session.dirty {
            session.dirty = true;
            self.dirty.push(index);
        }
    }

    /// Writes what the turn has collected: outcomes as ranges, then FLOWs.
    pub(super) fn flush(&mut self) {
        if !self.is_live() || self.is_closing() {
            return;
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            // a session that ended since then may have left its place to another one, which then has nothing to write
            let Some(session) = self.sessions.get_mut(index as usize) else { continue };
            session.dirty = false;
            if session.is_begun() {
                self.write_settles(index);
                self.write_flows(index);
            }
        }
        self.dirty = dirty;
    }

    fn write_flows(&mut self, index: u32) {
        let incoming_window = self.config.incoming_window;
        let session = &mut self.sessions[index as usize];
        let due = std::mem::take(&mut session.flows);
        for id in due {
            let Some(link) = self.links.get_mut(id.index as usize).filter(|link| link.generation == id.generation)
            else {
                continue;
            };
            link.flow_due = false;
            if !link.is_attached() {
                continue;
            }
            let link_flow = LinkFlow {
                handle: link.handle,
                delivery_count: Some(link.delivery_count),
                credit: Some(link.credit),
                drain: false,
            };
            let flow = Flow { link: Some(link_flow), ..session.flow(incoming_window) };
            flow.write(&mut self.output, index as u16);
        }
        if session.flow_due {
            session.flow(incoming_window).write(&mut self.output, index as u16);
        }
    }
}
