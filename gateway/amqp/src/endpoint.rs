//! The machine. This file holds the state and the public calls; below it one file per concern:
//! `input` (bytes → frames → handlers), `connection` (header, SASL, OPEN, CLOSE, time), `session` (BEGIN, END, FLOW),
//! `link` (ATTACH, DETACH), `outgoing` (send, outcomes), `incoming` (deliveries, credit, settle).
//!
//! Whatever breaks a rule ends at the lowest level that carries it: a delivery, its link (`fail_link`), its session
//! (`fail_session`), and only then the connection (`fail`).

mod connection;
mod incoming;
mod input;
mod link;
mod outgoing;
mod session;

use std::collections::VecDeque;
use std::fmt;

use slab::Slab;

use crate::codec::performative::Role;
use crate::{Attach, Config, Counters, DeliveryId, Error, Event, LinkId, NotSent, Refused, SessionId, Settle};
use connection::Phase;
use link::Link;
use session::Session;

/// One AMQP 1.0 connection, client side.
pub struct Endpoint {
    config: Config,
    phase: Phase,
    /// The latest moment heard of, ms.
    now_ms: u64,
    /// The first bytes of a header or frame whose rest has not come.
    partial_frame: Vec<u8>,
    output: Vec<u8>,
    events: VecDeque<Event>,
    counters: Counters,
    /// Bytes of answers since the output was last empty.
    answer_bytes: usize,
    /// Bytes of the output that are no answers, written while input was handled.
    own_bytes: usize,

    /// Largest frame the peer takes, bytes; 512 until its OPEN came.
    peer_frame_bytes_max: u32,
    /// Half of the peer's idle-time-out, ms; 0 = no heartbeats.
    heartbeat_ms: u64,
    received_at_ms: u64,
    sent_at_ms: u64,
    /// The end of the wait that the phase is in.
    phase_deadline_ms: Option<u64>,
    /// Waits for answers on sessions and links. All waits are equally long, so the order of asking is the order of running out.
    waits: VecDeque<(u64, Wait)>,

    /// Keyed by our channel. A place is free again after END both ways.
    sessions: Slab<Session>,
    sessions_max: u32,
    /// Peer's channel → ours.
    channels: Vec<Option<u16>>,
    links: Slab<Link>,
    /// Tells apart who had the same place in a slab one after another.
    generation: u32,
    /// Bytes of incomplete deliveries on all links.
    partial_delivery_bytes: usize,

    /// Sessions with dispositions or flows to write at the end of the turn.
    dirty: Vec<u32>,
    /// Links refused for `OutputFull`.
    output_blocked: Vec<LinkId>,
}

/// Sizes only: the output may hold a password or a token.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("phase", &self.phase)
            .field("sessions", &self.sessions.len())
            .field("links", &self.links.len())
            .field("events", &self.events.len())
            .field("output_bytes", &self.output.len())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Begin(SessionId),
    End(SessionId),
    Attach(LinkId),
    Detach(LinkId),
}

impl Endpoint {
    /// A new connection; the protocol header (without SASL: OPEN too) stands in [`Endpoint::output`].
    pub fn new(config: Config, now_ms: u64) -> Self {
        let mut endpoint = Self {
            phase: Phase::Header,
            now_ms,
            partial_frame: Vec::new(),
            output: Vec::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
            answer_bytes: 0,
            own_bytes: 0,
            peer_frame_bytes_max: 512,
            heartbeat_ms: 0,
            received_at_ms: now_ms,
            sent_at_ms: now_ms,
            phase_deadline_ms: None,
            waits: VecDeque::new(),
            sessions: Slab::new(),
            sessions_max: u32::from(config.channel_max()) + 1,
            channels: Vec::new(),
            links: Slab::new(),
            generation: 0,
            partial_delivery_bytes: 0,
            dirty: Vec::new(),
            output_blocked: Vec::new(),
            config,
        };
        endpoint.start();
        endpoint
    }

    /// Bytes from the peer, split anywhere. Only an incomplete frame is kept.
    pub fn handle_input(&mut self, bytes: &[u8], now_ms: u64) {
        self.now_ms = now_ms.max(self.now_ms);
        if bytes.is_empty() {
            return;
        }
        self.received_at_ms = self.now_ms;
        if self.output.is_empty() {
            self.answer_bytes = 0;
        }
        let before = self.output.len();
        self.own_bytes = 0;
        self.read(bytes);
        self.answer_bytes += self.output.len().saturating_sub(before + self.own_bytes);
        self.check_answer_bound();
    }

    /// The peer's stream ended.
    pub fn handle_eof(&mut self, now_ms: u64) {
        self.now_ms = now_ms.max(self.now_ms);
        self.stream_ended();
    }

    /// [`Endpoint::poll_timeout`] has passed (harmless at any other moment).
    pub fn handle_timeout(&mut self, now_ms: u64) {
        self.now_ms = now_ms.max(self.now_ms);
        self.run_timers();
    }

    /// The time of what is asked next: its answer is waited for from then on. For calls that follow none of `handle_*`.
    pub fn set_now(&mut self, now_ms: u64) {
        self.now_ms = now_ms.max(self.now_ms);
    }

    /// When to call [`Endpoint::handle_timeout`], ms. May be early: then nothing happens and a later moment is told.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.next_deadline()
    }

    /// The next thing that happened. Ask until `None` after every `handle_*` and after every write.
    pub fn next_event(&mut self) -> Option<Event> {
        if !self.output_blocked.is_empty() && self.output.len() <= self.config.output_bytes_max / 2 {
            self.wake_output_blocked();
        }
        self.events.pop_front()
    }

    /// What has to be written. The driver writes it (once per turn) and removes what it wrote from the front.
    /// Taking it first writes the merged dispositions and flows of the turn.
    pub fn output(&mut self) -> &mut Vec<u8> {
        self.flush();
        if !self.output.is_empty() {
            self.sent_at_ms = self.now_ms;
        }
        &mut self.output
    }

    /// A new session. It may be used for attaches at once; `SessionBegun` or `SessionEnded` follows.
    pub fn begin(&mut self) -> Result<SessionId, Refused> {
        self.begin_session()
    }

    /// Ends a session; `SessionEnded` follows when the peer answered. Outcomes that come until then still count.
    /// Nothing happens if it is gone.
    pub fn end(&mut self, session: SessionId) {
        if self.session(session).is_some() {
            self.end_session(session.index);
        }
    }

    /// A new link on which we send; `Attached` or `AttachRefused` follows. Before the session has begun it waits for that.
    pub fn attach_sender(&mut self, session: SessionId, attach: Attach, user: u64) -> Result<LinkId, Refused> {
        self.attach(session, Role::Sender, attach, user)
    }

    /// A new link on which we receive; `Attached` or `AttachRefused` follows. It has no credit: see [`Endpoint::grant`].
    pub fn attach_receiver(&mut self, session: SessionId, attach: Attach, user: u64) -> Result<LinkId, Refused> {
        self.attach(session, Role::Receiver, attach, user)
    }

    /// Closes a link; `Detached` or `AttachRefused` follows when the peer answered. Outcomes that come until then still
    /// count. Nothing happens if it is gone.
    pub fn detach(&mut self, link: LinkId) {
        if self.link(link).is_some() {
            self.detach_link(link.index);
        }
    }

    /// Closes the connection; `Closed` follows when the peer answered. Outcomes that come until then still count.
    pub fn close(&mut self, error: Option<&Error>) {
        self.close_connection(error);
    }

    /// True if `send` of a small message would be taken now.
    pub fn sendable(&self, link: LinkId) -> bool {
        self.can_send(link)
    }

    /// Sends one message, `parts` joined, split into frames as the peer wants. Unsettled: `Settled` with `token` follows,
    /// exactly once. Settled: nothing follows.
    pub fn send(
        &mut self,
        link: LinkId,
        token: u64,
        settled: bool,
        message_format: u32,
        parts: &[&[u8]],
    ) -> Result<(), NotSent> {
        self.send_message(link, token, settled, message_format, parts)
    }

    /// Lets the peer send `credit` more deliveries from now on (absolute, not added). Also before `Attached`.
    pub fn grant(&mut self, link: LinkId, credit: u32) {
        self.grant_credit(link, credit);
    }

    /// Gives the outcome of an incoming delivery. Those of one turn become ranges. Nothing happens if link or delivery is gone.
    pub fn settle(&mut self, link: LinkId, id: DeliveryId, how: Settle) {
        self.settle_delivery(link, id, how);
    }

    /// Credit left: deliveries we may still send (sender) or get (receiver). 0 if the link is gone.
    pub fn credit(&self, link: LinkId) -> u32 {
        self.link(link).map_or(0, |link| link.credit)
    }

    /// Deliveries sent on this link and not settled. 0 if the link is gone.
    pub fn unsettled(&self, link: LinkId) -> u32 {
        self.link(link).map_or(0, |link| link.unsettled)
    }

    /// Bounds reached, slips forgiven.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The settings it was made with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn session(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(id.index as usize).filter(|session| session.generation == id.generation)
    }

    fn link(&self, id: LinkId) -> Option<&Link> {
        self.links.get(id.index as usize).filter(|link| link.generation == id.generation)
    }

    fn session_id(&self, index: u32) -> SessionId {
        SessionId { index, generation: self.sessions[index as usize].generation }
    }

    fn link_id(&self, index: u32) -> LinkId {
        LinkId { index, generation: self.links[index as usize].generation }
    }

    fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        self.generation
    }

    fn wait(&mut self, what: Wait) {
        self.waits.push_back((self.now_ms.saturating_add(self.config.answer_timeout_ms), what));
    }
}
