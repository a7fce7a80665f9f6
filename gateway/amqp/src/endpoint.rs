//! The machine: connection, sessions, links, deliveries.

use crate::{Attach, Config, Counters, DeliveryId, Error, Event, LinkId, NotSent, Refused, SessionId, Settle};

/// One AMQP 1.0 connection, client side.
#[derive(Debug)]
pub struct Endpoint {
    config: Config,
    output: Vec<u8>,
    counters: Counters,
}

impl Endpoint {
    /// A new connection; the protocol header stands in [`Endpoint::output`].
    pub fn new(config: Config, now_ms: u64) -> Self {
        let _ = now_ms;
        Self { config, output: Vec::new(), counters: Counters::default() }
    }

    /// Bytes from the peer, split anywhere. Only an incomplete frame is kept.
    pub fn handle_input(&mut self, bytes: &[u8], now_ms: u64) {
        let _ = (bytes, now_ms);
    }

    /// The peer's stream ended.
    pub fn handle_eof(&mut self, now_ms: u64) {
        let _ = now_ms;
    }

    /// [`Endpoint::poll_timeout`] has passed (harmless at any other moment).
    pub fn handle_timeout(&mut self, now_ms: u64) {
        let _ = now_ms;
    }

    /// When to call [`Endpoint::handle_timeout`], ms.
    pub fn poll_timeout(&self) -> Option<u64> {
        None
    }

    /// The next thing that happened. Ask until `None` after every `handle_*` and after every write.
    pub fn next_event(&mut self) -> Option<Event> {
        None
    }

    /// What has to be written. The driver writes it (once per turn) and removes what it wrote from the front.
    /// Taking it writes the merged dispositions and flows of the turn first.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// A new session. It may be used for attaches at once; `SessionBegun` or `SessionEnded` follows.
    pub fn begin(&mut self) -> Result<SessionId, Refused> {
        Err(Refused::Gone)
    }

    /// Ends a session; `SessionEnded` follows. Nothing happens if it is gone.
    pub fn end(&mut self, session: SessionId) {
        let _ = session;
    }

    /// A new link on which we send; `Attached` or `AttachRefused` follows. Before the session has begun it waits for that.
    pub fn attach_sender(&mut self, session: SessionId, attach: Attach, user: u64) -> Result<LinkId, Refused> {
        let _ = (session, attach, user);
        Err(Refused::Gone)
    }

    /// A new link on which we receive; `Attached` or `AttachRefused` follows. It has no credit: see [`Endpoint::grant`].
    pub fn attach_receiver(&mut self, session: SessionId, attach: Attach, user: u64) -> Result<LinkId, Refused> {
        let _ = (session, attach, user);
        Err(Refused::Gone)
    }

    /// Closes a link; `Detached` or `AttachRefused` follows when the peer answered. Outcomes that come until then still count.
    pub fn detach(&mut self, link: LinkId) {
        let _ = link;
    }

    /// Closes the connection; `Closed` follows when the peer answered.
    pub fn close(&mut self, error: Option<Error>) {
        let _ = error;
    }

    /// True if `send` of a message would be taken now.
    pub fn sendable(&self, link: LinkId) -> bool {
        let _ = link;
        false
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
        let _ = (link, token, settled, message_format, parts);
        Err(NotSent::NotAttached)
    }

    /// Lets the peer send `credit` more deliveries from now on (absolute, not added). Also before `Attached`.
    pub fn grant(&mut self, link: LinkId, credit: u32) {
        let _ = (link, credit);
    }

    /// Gives the outcome of an incoming delivery. Those of one turn become ranges. Nothing happens if link or delivery is gone.
    pub fn settle(&mut self, link: LinkId, id: DeliveryId, how: Settle) {
        let _ = (link, id, how);
    }

    /// Credit left: deliveries we may still send (sender) or get (receiver).
    pub fn credit(&self, link: LinkId) -> u32 {
        let _ = link;
        0
    }

    /// Deliveries sent on this link and not settled.
    pub fn unsettled(&self, link: LinkId) -> u32 {
        let _ = link;
        0
    }

    /// Bounds reached, slips forgiven.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The settings it was made with.
    pub fn config(&self) -> &Config {
        &self.config
    }
}
