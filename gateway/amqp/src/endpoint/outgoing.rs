//! Messages we send: one call, one delivery, one outcome.

use super::Endpoint;
use super::input::{Fault, Handled};
use super::link::Link;
use super::session::Session;
use crate::codec::performative as frames;
use crate::codec::performative::{Disposition, Role, State, TRANSFER_HEAD_BYTES_MAX};
use crate::unsettled::Pending;
use crate::{Event, LinkId, NotSent, Outcome, SenderSettleMode};

/// The rest of a message whose first frames are out while the window shut; the session sends nothing else before it.
#[derive(Debug)]
pub(super) struct Tail {
    link: LinkId,
    settled: bool,
    /// What the window did not let out at first, and how much of it is out since.
    rest: Vec<u8>,
    written: usize,
}

/// What of a message is not in a frame yet.
struct Rest<'a> {
    parts: &'a [&'a [u8]],
    /// Where it begins in the first of them.
    from: usize,
    bytes: usize,
}

impl<'a> Rest<'a> {
    fn new(parts: &'a [&'a [u8]]) -> Self {
        Self { parts, from: 0, bytes: parts.iter().map(|part| part.len()).sum() }
    }

    /// Moves the next `bytes` of it, or what there is, to the end of `out`.
    fn take(&mut self, mut bytes: usize, out: &mut Vec<u8>) {
        while bytes > 0
            && let Some((part, others)) = self.parts.split_first()
        {
            let end = part.len().min(self.from + bytes);
            out.extend_from_slice(&part[self.from..end]);
            bytes -= end - self.from;
            self.bytes -= end - self.from;
            self.from = end;
            if end == part.len() {
                (self.parts, self.from) = (others, 0);
            }
        }
    }
}

impl Endpoint {
    pub(super) fn can_send(&self, id: LinkId) -> bool {
        let Some(link) = self.link(id) else { return false };
        let Some(session) = self.sessions.get(link.session as usize) else { return false };
        self.check_link(link).is_ok() && self.check_room(link, session).is_ok()
    }

    pub(super) fn send_message(
        &mut self,
        id: LinkId,
        token: u64,
        settled: bool,
        message_format: u32,
        parts: &[&[u8]],
    ) -> Result<(), NotSent> {
        let link = self.link(id).ok_or(NotSent::NotAttached)?;
        self.check_link(link)?;
        match link.sender_settle_mode {
            SenderSettleMode::Unsettled if settled => return Err(NotSent::SettleMode),
            SenderSettleMode::Settled if !settled => return Err(NotSent::SettleMode),
            _ => {}
        }
        let mut message = Rest::new(parts);
        let bytes = message.bytes;
        if bytes as u64 > link.message_bytes_max {
            return Err(NotSent::TooLarge);
        }
        let session = &self.sessions[link.session as usize];
        if let Err(why) = self.check_room(link, session) {
            return Err(self.refused(id, why));
        }

        let Some(link) = self.links.get_mut(id.index as usize) else { return Err(NotSent::NotAttached) };
        let session = &mut self.sessions[link.session as usize];
        link.credit -= 1;
        link.delivery_count = link.delivery_count.wrapping_add(1);
        let delivery_id = session.unsettled.next_id();
        session.unsettled.push((!settled).then_some(Pending { token, link: id.index }));
        link.unsettled += u32::from(!settled);
        self.counters.deliveries_out += 1;
        let channel = link.session as u16;
        let first = Some((delivery_id, message_format));
        // the smallest payload that a frame has room for
        let frame_payload = self.peer_frame_bytes_max as usize - TRANSFER_HEAD_BYTES_MAX;
        if bytes <= frame_payload {
            let (mut head, head_bytes) = frames::transfer_head(channel, link.handle, first, settled, false);
            head[..4].copy_from_slice(&((head_bytes + bytes) as u32).to_be_bytes());
            self.output.reserve(head_bytes + bytes);
            self.output.extend_from_slice(&head[..head_bytes]);
            for part in parts {
                self.output.extend_from_slice(part);
            }
            session.next_outgoing_id = session.next_outgoing_id.wrapping_add(1);
            session.remote_incoming_window -= 1;
        } else {
            let handle = (channel, link.handle);
            write_frames(&mut self.output, session, handle, first, settled, &mut message, frame_payload);
            if message.bytes > 0 {
                let mut rest = Vec::with_capacity(message.bytes);
                message.take(message.bytes, &mut rest);
                session.tail = Some(Box::new(Tail { link: id, settled, rest, written: 0 }));
            }
        }
        Ok(())
    }

    fn check_link(&self, link: &Link) -> Result<(), NotSent> {
        let session_begun = self.sessions.get(link.session as usize).is_some_and(Session::is_begun);
        if link.role == Role::Sender && link.is_attached() && session_begun && !self.is_closing() {
            Ok(())
        } else {
            Err(NotSent::NotAttached)
        }
    }

    fn check_room(&self, link: &Link, session: &Session) -> Result<(), NotSent> {
        if link.credit == 0 {
            return Err(NotSent::NoCredit);
        }
        // one frame is enough to begin: a peer may renew the window only after it has been used
        if session.remote_incoming_window == 0 || session.tail.is_some() {
            return Err(NotSent::WindowClosed);
        }
        if session.unsettled.len() >= self.config.unsettled_max as usize || !session.unsettled.has_room() {
            return Err(NotSent::UnsettledFull);
        }
        if self.output.len() >= self.config.output_bytes_max {
            return Err(NotSent::OutputFull);
        }
        Ok(())
    }

    /// Counts it and sees to it that `Sendable` follows.
    fn refused(&mut self, id: LinkId, why: NotSent) -> NotSent {
        match why {
            NotSent::NoCredit => self.counters.no_credit += 1,
            NotSent::WindowClosed => self.counters.window_closed += 1,
            NotSent::UnsettledFull => self.counters.unsettled_full += 1,
            NotSent::OutputFull => self.counters.output_full += 1,
            NotSent::NotAttached | NotSent::TooLarge | NotSent::SettleMode => return why,
        }
        let Some(link) = self.links.get_mut(id.index as usize) else { return why };
        // without credit the next FLOW tells; one that already waits is told once
        if why == NotSent::NoCredit || link.blocked {
            return why;
        }
        link.blocked = true;
        if why == NotSent::OutputFull {
            self.output_blocked.push(id);
        } else {
            self.sessions[link.session as usize].blocked.push(id);
        }
        why
    }

    /// The window of a session opened or outcomes came: those that were refused for it may try again.
    pub(super) fn wake_blocked(&mut self, session: u32) {
        let place = &self.sessions[session as usize];
        let open = place.remote_incoming_window > 0 && place.tail.is_none();
        if !open || place.blocked.is_empty() || place.unsettled.len() >= self.config.unsettled_max as usize {
            return;
        }
        let blocked = std::mem::take(&mut self.sessions[session as usize].blocked);
        self.wake(blocked);
    }

    pub(super) fn wake_output_blocked(&mut self) {
        let blocked = std::mem::take(&mut self.output_blocked);
        self.wake(blocked);
    }

    fn wake(&mut self, blocked: Vec<LinkId>) {
        for id in blocked {
            let link = self.links.get_mut(id.index as usize).filter(|link| link.generation == id.generation);
            let Some(link) = link else { continue };
            link.blocked = false;
            if link.is_attached() {
                self.events.push_back(Event::Sendable { link: id, user: link.user });
            }
        }
    }

    /// A sender that had no credit has some.
    pub(super) fn sendable_again(&mut self, index: u32) {
        let id = self.link_id(index);
        let link = &self.links[index as usize];
        if !link.blocked {
            self.events.push_back(Event::Sendable { link: id, user: link.user });
        }
    }

    /// The window let something out again: first the rest of the message that was begun.
    pub(super) fn write_tail(&mut self, index: u32) {
        let frame_payload = self.peer_frame_bytes_max as usize - TRANSFER_HEAD_BYTES_MAX;
        let session = &mut self.sessions[index as usize];
        if session.remote_incoming_window == 0 || !session.is_begun() {
            return;
        }
        let Some(mut tail) = session.tail.take() else { return };
        let id = tail.link;
        let link =
            self.links.get(id.index as usize).filter(|link| link.generation == id.generation && link.is_attached());
        // with its link gone the delivery has been reported lost
        let Some(link) = link else { return };
        let (handle, before) = ((index as u16, link.handle), self.output.len());
        let parts = [&tail.rest[tail.written..]];
        let mut message = Rest::new(&parts);
        write_frames(&mut self.output, session, handle, None, tail.settled, &mut message, frame_payload);
        self.own_bytes += self.output.len() - before;
        let left = message.bytes;
        if left > 0 {
            tail.written = tail.rest.len() - left;
            session.tail = Some(tail);
        }
    }

    /// 2.7.6
    pub(super) fn handle_disposition(&mut self, session: u32, disposition: &Disposition) -> Handled {
        let &Disposition { role, first, last, settled, ref state } = disposition;
        // serial order (RFC 1982): last lies within 2³¹ after first
        if last.wrapping_sub(first) > u32::MAX >> 1 {
            return Err(Fault::session("amqp:invalid-field", "disposition runs backwards"));
        }
        if role == Role::Sender {
            self.handle_sender_disposition(session, disposition);
            return Ok(());
        }
        let outcome = match state {
            State::Outcome(outcome) => Some(outcome),
            // `received` says nothing yet
            State::Absent | State::Passing if !settled => return Ok(()),
            State::Absent | State::Passing => None,
        };
        let mut found: Option<(u32, u32)> = None;
        let (links, events) = (&mut self.links, &mut self.events);
        self.sessions[session as usize].unsettled.take_range(first, last, |id, pending| {
            found = Some((found.map_or(id, |(low, _)| low), id));
            let Some(link) = links.get_mut(pending.link as usize) else { return };
            link.unsettled -= 1;
            // settled without a state: what the source has declared, or else as if it had not come
            let outcome = outcome.or(link.default_outcome.as_deref()).cloned().unwrap_or(Outcome::Released);
            let id = LinkId { index: pending.link, generation: link.generation };
            events.push_back(Event::Settled { link: id, user: link.user, token: pending.token, outcome });
        });
        if let (false, Some((low, high)), Some(outcome)) = (settled, found, outcome)
            && !self.is_closing()
            && self.sessions[session as usize].is_begun()
        {
            // the receiver keeps it until we have settled too (2.6.12)
            frames::write_confirm(&mut self.output, session as u16, low, high, outcome);
        }
        if found.is_some() {
            self.wake_blocked(session);
        }
        Ok(())
    }

    /// What a link still waits for is in doubt.
    pub(super) fn lose_unsettled(&mut self, index: u32) {
        let link = &mut self.links[index as usize];
        let count = std::mem::take(&mut link.unsettled);
        if count == 0 {
            return;
        }
        let (id, user) = (LinkId { index, generation: link.generation }, link.user);
        let events = &mut self.events;
        self.sessions[link.session as usize].unsettled.take_link(index, count, |pending| {
            events.push_back(Event::Settled { link: id, user, token: pending.token, outcome: Outcome::Lost });
        });
    }

    /// What a session still waits for is in doubt.
    pub(super) fn lose_all_unsettled(&mut self, session: u32) {
        let (links, events) = (&mut self.links, &mut self.events);
        self.sessions[session as usize].unsettled.take_all(|pending| {
            let Some(link) = links.get_mut(pending.link as usize) else { return };
            link.unsettled -= 1;
            let id = LinkId { index: pending.link, generation: link.generation };
            events.push_back(Event::Settled {
                link: id,
                user: link.user,
                token: pending.token,
                outcome: Outcome::Lost,
            });
        });
    }
}

/// Writes as much of a message as the window lets out, `more` on all frames but the last. `handle`: the channel and the link's
/// number there.
fn write_frames(
    out: &mut Vec<u8>,
    session: &mut Session,
    (channel, handle): (u16, u32),
    mut first: Option<(u32, u32)>,
    settled: bool,
    message: &mut Rest<'_>,
    frame_payload: usize,
) {
    let count = message.bytes.div_ceil(frame_payload).min(session.remote_incoming_window as usize);
    out.reserve(message.bytes.min(count * frame_payload) + count * TRANSFER_HEAD_BYTES_MAX);
    for _ in 0..count {
        let bytes = message.bytes.min(frame_payload);
        let (mut head, head_bytes) =
            frames::transfer_head(channel, handle, first.take(), settled, bytes < message.bytes);
        head[..4].copy_from_slice(&((head_bytes + bytes) as u32).to_be_bytes());
        out.extend_from_slice(&head[..head_bytes]);
        message.take(bytes, out);
        session.next_outgoing_id = session.next_outgoing_id.wrapping_add(1);
        session.remote_incoming_window -= 1;
    }
}
