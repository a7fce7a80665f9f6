//! Links: ATTACH, DETACH, and the link half of FLOW.

use std::collections::HashMap;

use super::incoming::Partial;
use super::input::{Fault, Handled};
use super::{Endpoint, Wait};
use crate::codec::performative as frames;
use crate::codec::performative::{Attach, Detach, LinkFlow, Role, Terminus};
use crate::{
    Attach as Wish, Cause, Error, Event, LinkId, Outcome, ReceiverSettleMode, Refused, SenderSettleMode, SessionId,
};

/// A rule broken on one link, by its place.
#[derive(Debug)]
pub(super) struct LinkFault(pub(super) u32, pub(super) Error);

impl LinkFault {
    pub(super) fn new(index: u32, condition: &'static str, description: &str) -> Self {
        Self(index, Error::new(condition, description))
    }
}

/// Waiting ─(session begun)─► Attaching ─► Attached ─► Detaching ─► (gone)
///                               └─► Refused ─► (gone)    └─fault─► Discarding ─► (gone)
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// The session has not begun; what to ask for then.
    Waiting(Box<Wish>),
    /// Our ATTACH is out.
    Attaching(Box<Wish>),
    /// Answered without a terminus: the peer's DETACH tells why (2.6.3).
    Refused,
    Attached,
    /// Our DETACH is out; the last event comes with the answer.
    Detaching,
    /// The last event is told; the handle waits for the peer's DETACH.
    Discarding,
}

#[derive(Debug)]
pub(super) struct Link {
    pub(super) generation: u32,
    pub(super) session: u32,
    pub(super) user: u64,
    state: State,
    pub(super) role: Role,
    /// The peer has attached it at some time: the last event is `Detached`.
    was_attached: bool,
    pub(super) sender_settle_mode: SenderSettleMode,
    pub(super) receiver_settle_mode: ReceiverSettleMode,
    /// Stands in a list of links that wait to be told `Sendable`.
    pub(super) blocked: bool,
    /// Stands in the list of links whose FLOW is due.
    pub(super) flow_due: bool,
    pub(super) handle: u32,
    pub(super) delivery_count: u32,
    pub(super) credit: u32,
    /// Receiver: the delivery-count up to which the peer was ever allowed to send.
    pub(super) delivery_count_max: u32,
    /// Sender: deliveries that wait for their outcome.
    pub(super) unsettled: u32,
    /// Largest message the other side takes (sender) or we take (receiver), bytes.
    pub(super) message_bytes_max: u64,
    /// Sender: what a settlement without outcome means, if the source says so.
    pub(super) default_outcome: Option<Box<Outcome>>,
    /// Receiver: a delivery whose last frame has not come.
    pub(super) partial: Option<Box<Partial>>,
    remote_handle: Option<u32>,
}

impl Link {
    fn new(generation: u32, session: u32, user: u64, role: Role, state: State) -> Self {
        Self {
            generation,
            session,
            user,
            state,
            role,
            was_attached: false,
            sender_settle_mode: SenderSettleMode::Mixed,
            receiver_settle_mode: ReceiverSettleMode::First,
            blocked: false,
            flow_due: false,
            handle: u32::MAX,
            delivery_count: 0,
            credit: 0,
            delivery_count_max: 0,
            unsettled: 0,
            message_bytes_max: 0,
            default_outcome: None,
            partial: None,
            remote_handle: None,
        }
    }

    pub(super) fn is_attached(&self) -> bool {
        self.state == State::Attached
    }

    pub(super) fn is_attaching(&self) -> bool {
        matches!(self.state, State::Attaching(_) | State::Refused)
    }

    pub(super) fn is_detaching(&self) -> bool {
        self.state == State::Detaching
    }

    /// Our DETACH is out: what still comes for it is thrown away.
    pub(super) fn is_on_its_way_out(&self) -> bool {
        matches!(self.state, State::Detaching | State::Discarding | State::Refused)
    }
}

impl Endpoint {
    pub(super) fn attach(&mut self, id: SessionId, role: Role, wish: Wish, user: u64) -> Result<LinkId, Refused> {
        let Some(session) = self.session(id).filter(|session| session.takes_links()) else { return Err(Refused::Gone) };
        if self.is_closing() {
            return Err(Refused::Gone);
        }
        let session_full = session.is_begun() && session.handles.len() >= session.links_max as usize;
        let waiting_full = session.waiting.len() >= self.config.links_per_session_max as usize;
        if session_full || waiting_full || self.links.len() >= self.config.links_max as usize {
            return Err(Refused::LinksMax);
        }
        if session.is_begun() && session.attaching.contains_key(&(role, wish.name.as_str().into())) {
            return Err(Refused::NameInUse);
        }
        if self.output.len() >= self.config.output_bytes_max {
            self.counters.output_full += 1;
            return Err(Refused::OutputFull);
        }
        let begun = session.is_begun();
        let generation = self.next_generation();
        let state = State::Waiting(Box::new(wish));
        let index = self.links.insert(Link::new(generation, id.index, user, role, state)) as u32;
        let link = LinkId { index, generation };
        if begun {
            self.write_attach(index);
        } else {
            self.sessions[id.index as usize].waiting.push(link);
        }
        Ok(link)
    }

    /// The session has begun: a link that waited for that asks now, if the peer leaves room.
    pub(super) fn write_waiting_attach(&mut self, id: LinkId) {
        let Some(link) = self.link(id) else { return };
        let State::Waiting(wish) = &link.state else { return };
        let session = &self.sessions[link.session as usize];
        let taken = session.attaching.contains_key(&(link.role, wish.name.as_str().into()));
        if taken || session.handles.len() >= session.links_max as usize {
            self.drop_link(id.index, Cause::Limit);
        } else {
            self.write_attach(id.index);
        }
    }

    fn write_attach(&mut self, index: u32) {
        let link = &mut self.links[index as usize];
        let State::Waiting(wish) = std::mem::replace(&mut link.state, State::Refused) else { return };
        let session = &mut self.sessions[link.session as usize];
        let start = self.output.len();
        let handle = session.handles.vacant_key() as u32;
        frames::write_attach(&mut self.output, link.session as u16, handle, link.role, &wish);
        if self.output.len() - start > self.peer_frame_bytes_max as usize {
            self.output.truncate(start);
            return self.drop_link(index, Cause::Limit);
        }
        self.own_bytes += self.output.len() - start;
        session.handles.insert(index);
        session.attaching.insert((link.role, wish.name.as_str().into()), index);
        link.handle = handle;
        link.state = State::Attaching(wish);
        self.wait(Wait::Attach(self.link_id(index)));
    }

    /// 2.6.3: the answer is found by name and opposite role.
    pub(super) fn handle_attach(&mut self, session: u32, attach: &Attach<'_>) -> Handled {
        let place = &mut self.sessions[session as usize];
        if attach.handle >= self.config.links_per_session_max.max(1) {
            return Err(Fault::connection("amqp:connection:framing-error", "handle above handle-max"));
        }
        if place.remote_handles.get(attach.handle as usize).copied().flatten().is_some() {
            return Err(Fault::session("amqp:session:handle-in-use", "handle already attached"));
        }
        let role = match attach.role {
            Role::Sender => Role::Receiver,
            Role::Receiver => Role::Sender,
        };
        let Some(index) = place.attaching.remove(&(role, Box::from(attach.name))) else {
            return self.refuse_peers_link(session, attach, role);
        };
        if place.attaching.is_empty() {
            place.attaching = HashMap::new(); // thousands attach at once, then hardly any
        }
        let slot = attach.handle as usize;
        if place.remote_handles.len() <= slot {
            place.remote_handles.resize(slot + 1, None);
        }
        place.remote_handles[slot] = Some(index);
        let link = &mut self.links[index as usize];
        link.remote_handle = Some(attach.handle);
        match std::mem::replace(&mut link.state, State::Refused) {
            State::Attaching(wish) => self.attach_answered(index, &wish, attach).map_err(Fault::from),
            other => {
                // we gave it up in the meantime: only its DETACH matters now
                link.state = other;
                Ok(())
            }
        }
    }

    fn attach_answered(&mut self, index: u32, wish: &Wish, attach: &Attach<'_>) -> Result<(), LinkFault> {
        let link = &mut self.links[index as usize];
        let node = match link.role {
            Role::Sender => &attach.target,
            Role::Receiver => &attach.source,
        };
        // without the terminus we wanted it is a refusal, and the DETACH with the reason follows
        let Some(node) = node else { return Ok(()) };
        link.sender_settle_mode = attach.sender_settle_mode;
        link.receiver_settle_mode = attach.receiver_settle_mode;
        link.state = State::Attached;
        if let Some(reason) = unacceptable(link.role, wish, node, attach) {
            return Err(LinkFault::new(index, "amqp:not-allowed", reason));
        }
        match link.role {
            Role::Sender => {
                link.message_bytes_max = attach.message_bytes_max;
                let source = attach.source.as_ref();
                link.default_outcome = source.and_then(|source| source.default_outcome.clone()).map(Box::new);
            }
            Role::Receiver => {
                link.message_bytes_max = match wish.message_bytes_max {
                    0 => u64::MAX,
                    max => max,
                };
                // mandatory from a sender, forgotten by some
                link.delivery_count = attach.initial_delivery_count.unwrap_or(0);
                link.delivery_count_max = link.delivery_count.wrapping_add(link.credit);
            }
        }
        link.was_attached = true;
        let (user, credit, is_receiver) = (link.user, link.credit, link.role == Role::Receiver);
        let message_bytes_max = attach.message_bytes_max;
        self.events.push_back(Event::Attached { link: self.link_id(index), user, message_bytes_max });
        if is_receiver && credit > 0 {
            self.link_flow_due(index);
        }
        Ok(())
    }

    /// An ATTACH nobody asked for: it gets an answer without terminus and its end (2.6.3); the rest of the session goes on.
    fn refuse_peers_link(&mut self, session: u32, attach: &Attach<'_>, role: Role) -> Handled {
        let place = &mut self.sessions[session as usize];
        if place.handles.len() >= place.links_max as usize || self.links.len() >= self.config.links_max as usize {
            return Err(Fault::session("amqp:not-allowed", "no handle left for a link of the peer"));
        }
        // the answer repeats the name and has to fit the smallest frame
        if attach.name.len() > 255 {
            return Err(Fault::session("amqp:not-allowed", "links are started by us"));
        }
        self.counters.links_failed += 1;
        self.generation = self.generation.wrapping_add(1);
        let handle = place.handles.vacant_key() as u32;
        let mut link = Link::new(self.generation, session, 0, role, State::Discarding);
        link.handle = handle;
        link.remote_handle = Some(attach.handle);
        let index = self.links.insert(link) as u32;
        place.handles.insert(index);
        let slot = attach.handle as usize;
        if place.remote_handles.len() <= slot {
            place.remote_handles.resize(slot + 1, None);
        }
        place.remote_handles[slot] = Some(index);
        frames::write_refusing_attach(&mut self.output, session as u16, handle, role, attach.name);
        let error = Error::new("amqp:not-allowed", "links are started by us");
        frames::write_detach(&mut self.output, session as u16, handle, Some(&error));
        Ok(())
    }

    pub(super) fn detach_link(&mut self, index: u32) {
        let link = &self.links[index as usize];
        match link.state {
            State::Waiting(_) => self.drop_link(index, Cause::Local),
            State::Attaching(_) | State::Refused | State::Attached => {
                let (session, handle) = (link.session, link.handle);
                if !self.sessions[session as usize].is_begun() || self.is_closing() {
                    return; // the end of session or connection is under way and will tell
                }
                self.flush();
                self.links[index as usize].state = State::Detaching;
                frames::write_detach(&mut self.output, session as u16, handle, None);
                self.wait(Wait::Detach(self.link_id(index)));
            }
            State::Detaching | State::Discarding => {}
        }
    }

    /// 2.7.7: closed or not, it is over; answered once.
    pub(super) fn handle_detach(&mut self, session: u32, detach: Detach) -> Handled {
        let index = match self.incoming_link(session, detach.handle) {
            Ok(index) => index,
            Err(fault) => self.refused_without_attach(session, detach.handle).ok_or(fault)?,
        };
        if let Some(slot) = self.sessions[session as usize].remote_handles.get_mut(detach.handle as usize) {
            *slot = None;
        }
        let link = &mut self.links[index as usize];
        link.remote_handle = None;
        let handle = link.handle;
        let cause = match link.state {
            State::Detaching if detach.error.is_none() => Cause::Local,
            State::Attached | State::Refused | State::Waiting(_) | State::Attaching(_) => {
                frames::write_detach(&mut self.output, session as u16, handle, None);
                Cause::Remote(detach.error)
            }
            State::Detaching | State::Discarding => Cause::Remote(detach.error),
        };
        self.drop_link(index, cause);
        Ok(())
    }

    /// Some peers refuse a link with a DETACH alone: then the handle can only be the one we gave.
    fn refused_without_attach(&mut self, session: u32, handle: u32) -> Option<u32> {
        let index = *self.sessions[session as usize].handles.get(handle as usize)?;
        let link = &self.links[index as usize];
        if link.remote_handle.is_some() || !matches!(link.state, State::Attaching(_) | State::Detaching) {
            return None;
        }
        self.counters.tolerated += 1;
        Some(index)
    }

    /// The peer broke a rule of the link: DETACH with the error; the others on the session go on.
    pub(super) fn fail_link(&mut self, index: u32, error: &Error) {
        self.counters.links_failed += 1;
        let cause = Cause::Violation(Box::new(error.clone()));
        self.fail_link_with(index, Some(error), cause);
    }

    pub(super) fn fail_link_with(&mut self, index: u32, error: Option<&Error>, cause: Cause) {
        let link = &self.links[index as usize];
        let has_handle = matches!(link.state, State::Attaching(_) | State::Refused | State::Attached);
        if has_handle && self.sessions[link.session as usize].is_begun() {
            frames::write_detach(&mut self.output, link.session as u16, link.handle, error);
        }
        self.link_over(index, cause);
    }

    /// Every delivery and then the link get their last event; the handle stays taken until the peer's DETACH.
    pub(super) fn link_over(&mut self, index: u32, cause: Cause) {
        let link = &mut self.links[index as usize];
        if link.state == State::Discarding {
            return;
        }
        link.state = State::Discarding;
        link.credit = 0;
        let (session, user, was_attached) = (link.session, link.user, link.was_attached);
        if let Some(partial) = link.partial.take() {
            self.partial_delivery_bytes -= partial.message.len();
        }
        let link = self.link_id(index);
        let is_blocked = std::mem::take(&mut self.links[index as usize].blocked);
        self.lose_unsettled(index);
        let place = &mut self.sessions[session as usize];
        place.incoming.retain(|_, delivery| delivery.link != index);
        if is_blocked {
            place.blocked.retain(|id| *id != link);
            self.output_blocked.retain(|id| *id != link);
        }
        self.events.push_back(if was_attached {
            Event::Detached { link, user, cause }
        } else {
            Event::AttachRefused { link, user, cause }
        });
    }

    /// As `link_over`, and the handle is free.
    pub(super) fn drop_link(&mut self, index: u32, cause: Cause) {
        self.link_over(index, cause);
        let link = self.links.remove(index as usize);
        let session = &mut self.sessions[link.session as usize];
        if session.handles.get(link.handle as usize) == Some(&index) {
            session.handles.remove(link.handle as usize);
        }
        if let Some(slot) = link.remote_handle.and_then(|handle| session.remote_handles.get_mut(handle as usize)) {
            *slot = None;
        }
        session.attaching.retain(|_, waiting| *waiting != index);
    }

    /// The link behind a handle of the peer.
    pub(super) fn incoming_link(&self, session: u32, handle: u32) -> Result<u32, Fault> {
        let handles = &self.sessions[session as usize].remote_handles;
        if handle >= self.config.links_per_session_max.max(1) {
            return Err(Fault::connection("amqp:connection:framing-error", "handle above handle-max"));
        }
        let link = handles.get(handle as usize).copied().flatten();
        link.ok_or_else(|| Fault::session("amqp:session:unattached-handle", "handle not attached"))
    }

    /// 2.6.7, the link half of a FLOW.
    pub(super) fn handle_link_flow(&mut self, session: u32, flow: &LinkFlow, echo: bool) -> Handled {
        let index = self.incoming_link(session, flow.handle)?;
        let link = &mut self.links[index as usize];
        if !link.is_attached() {
            return Ok(());
        }
        let had_credit = link.credit > 0;
        if link.role == Role::Sender {
            // credit counts from the receiver's delivery-count; absent, it has not seen ours and counts from the start
            let counted_from = flow.delivery_count.unwrap_or(0);
            let credit = flow.credit.unwrap_or(0);
            let ahead = counted_from.wrapping_add(credit).wrapping_sub(link.delivery_count).cast_signed();
            link.credit = ahead.max(0).cast_unsigned();
            if flow.drain && link.credit > 0 {
                // all that the callers had is out: use the credit up and say so
                link.delivery_count = link.delivery_count.wrapping_add(link.credit);
                link.credit = 0;
            }
        } else if let Some(count) = flow.delivery_count {
            // a drained sender counts the credit it did not use
            let allowed = link.delivery_count_max.wrapping_sub(link.delivery_count);
            let passed = count.wrapping_sub(link.delivery_count).cast_signed().max(0).cast_unsigned().min(allowed);
            link.delivery_count = link.delivery_count.wrapping_add(passed);
            link.credit = link.credit.saturating_sub(passed);
        }
        let (is_sender, has_credit, drain) = (link.role == Role::Sender, link.credit > 0, flow.drain);
        if is_sender && has_credit && !had_credit {
            self.sendable_again(index);
        }
        if echo || (is_sender && drain) {
            self.link_flow_due(index);
        }
        Ok(())
    }

    pub(super) fn link_flow_due(&mut self, index: u32) {
        let id = self.link_id(index);
        let link = &mut self.links[index as usize];
        if !link.flow_due {
            link.flow_due = true;
            let session = link.session;
            self.sessions[session as usize].flows.push(id);
            self.mark_dirty(session);
        }
    }
}

/// The peer's terminus and modes are authoritative; what we cannot live with ends the link.
fn unacceptable(role: Role, wish: &Wish, node: &Terminus<'_>, attach: &Attach<'_>) -> Option<&'static str> {
    if node.address.is_some_and(|address| !is_same_node(address, &wish.address)) {
        return Some("attached to another address than asked for");
    }
    let wants_outcomes = role == Role::Sender && wish.sender_settle_mode == SenderSettleMode::Unsettled;
    if wants_outcomes && attach.sender_settle_mode == SenderSettleMode::Settled {
        return Some("outcomes were asked for, the peer gives none");
    }
    None
}

/// Peers repeat an address as they see it: with or without `amqps://host` and the first slash, in their own case.
fn is_same_node(theirs: &str, ours: &str) -> bool {
    fn path(address: &str) -> &str {
        let path =
            address.split_once("://").map_or(address, |(_, rest)| rest.split_once('/').map_or("", |(_, path)| path));
        path.trim_start_matches('/')
    }
    path(theirs).eq_ignore_ascii_case(path(ours))
}
