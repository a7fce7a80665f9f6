//! One AMQP connection as a state machine: bytes, wake-ups and time in, bytes out. Never reads a socket or a clock.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::BytesMut;
use fe2o3_amqp_types::definitions::Error;
use fe2o3_amqp_types::performatives::{Close, Open};
use serde::Serialize;

use super::auth::Grants;
use super::error::{self, DECODE_ERROR, FRAMING_ERROR, INVALID_FIELD, NOT_ALLOWED, RESOURCE_LIMIT};
use super::frame::{self, FrameType, Performative};
use super::kind::Pairs;
use super::link::{Hold, Link, LinkId};
use super::sasl;
use super::serve::Transport;
use super::session::{Session, SessionState};
use super::settings::AmqpSettings;
use super::timer::{Due, Timer, Timers};
use crate::domain::{ClientCertificate, ConnectionInfo, Domain, LinkKey, Mailbox};

const AMQP_HEADER: [u8; 8] = *b"AMQP\x00\x01\x00\x00";
const SASL_HEADER: [u8; 8] = *b"AMQP\x03\x01\x00\x00";
/// Before OPEN nothing larger may be sent (2.4.1), and SASL frames are never larger (5.3.1).
const UNNEGOTIATED_FRAME_BYTES: usize = 512;
/// Our channels start here, so that a peer that takes our channel for its own is found out.
const CHANNEL_OFFSET: u32 = 5;
/// An idle time-out below this cannot be served.
const IDLE_TIMEOUT_MIN_MS: u64 = 50;

/// The two clocks: the domain's, which tests may move, and one that only ever runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// Milliseconds since the epoch by the domain's clock: expiry of tokens, locks, messages.
    pub(crate) unix_ms: u64,
    /// Milliseconds since some start: time-outs, heartbeats, delays.
    pub(crate) tick: u64,
}

/// ```text
/// Header ─AMQP─────────────────────────────► Opening ─OPEN─► Open ─CLOSE─► Ended
///    └──SASL──► Sasl ─INIT─► Header (once more)                └─ours─► Closing ─theirs or time─► Ended
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Header {
        after_sasl: bool,
    },
    Sasl,
    Opening,
    Open,
    /// Our CLOSE is out: everything but theirs is dropped.
    Closing,
    /// Nothing more is read; what is buffered is still written.
    Ended,
    /// A fault: the peer is neither read nor answered.
    Dead,
}

/// What the peer's OPEN said.
#[derive(Debug, Default)]
pub(crate) struct Peer {
    pub(crate) frame_bytes_max: usize,
    channel_max: u16,
    idle_ms: u64,
}

/// One AMQP connection.
pub(crate) struct Connection {
    pub(crate) domain: Arc<Domain>,
    pub(crate) settings: Arc<AmqpSettings>,
    /// Numbers connections in the ledger.
    pub(crate) number: u64,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) client_certificate: Option<ClientCertificate>,
    transport: &'static str,
    phase: Phase,
    is_open_sent: bool,
    pub(crate) input: BytesMut,
    pub(crate) out: BytesMut,
    /// Bytes that the stream has taken from `out` and not flushed.
    pub(crate) unflushed: u64,
    /// All bytes flushed to the socket.
    written_bytes: u64,
    /// Ledger entries whose disposition ends at that position of the outgoing bytes.
    pub(crate) unwritten: VecDeque<(u64, u64)>,
    pub(crate) peer: Peer,
    channels: HashMap<u16, usize>,
    pub(crate) sessions: slab::Slab<Session>,
    /// Sessions with accepted deliveries that were not told yet.
    pub(crate) sessions_to_tell: Vec<usize>,
    pub(crate) links: slab::Slab<Link>,
    pub(crate) links_made: u32,
    pub(crate) tags_made: u32,
    /// Links with something to send, each once.
    pub(crate) ready: VecDeque<LinkId>,
    pub(crate) grants: Grants,
    pub(crate) pairs: Pairs,
    pub(crate) timers: Timers,
    last_received: u64,
    last_sent: u64,
    /// The end of the outgoing bytes at that time.
    sent_position: u64,
}

impl Connection {
    pub(crate) fn new(domain: Arc<Domain>, settings: Arc<AmqpSettings>, transport: Transport, now: Now) -> Self {
        let mailbox = Mailbox::new();
        let number = domain.connections.open(mailbox.clone());
        let mut timers = Timers::new(settings.timers_max);
        timers.push(now.tick + settings.handshake_timeout.as_millis() as u64, Timer::Handshake);
        Self {
            domain,
            settings,
            number,
            mailbox,
            client_certificate: transport.client_certificate,
            transport: transport.name,
            phase: Phase::Header { after_sasl: false },
            is_open_sent: false,
            input: BytesMut::new(),
            out: BytesMut::new(),
            unflushed: 0,
            written_bytes: 0,
            unwritten: VecDeque::new(),
            peer: Peer { frame_bytes_max: UNNEGOTIATED_FRAME_BYTES, ..Peer::default() },
            channels: HashMap::new(),
            sessions: slab::Slab::new(),
            sessions_to_tell: Vec::new(),
            links: slab::Slab::new(),
            links_made: 0,
            tags_made: 0,
            ready: VecDeque::new(),
            grants: Grants::default(),
            pairs: Pairs::default(),
            timers,
            last_received: now.tick,
            last_sent: now.tick,
            sent_position: 0,
        }
    }

    /// Whether the task may stop once everything is written.
    pub(crate) fn has_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// Whether more input is wanted: not while the peer does not take what we have for it.
    pub(crate) fn wants_input(&self) -> bool {
        self.phase != Phase::Ended && !self.is_congested()
    }

    pub(crate) fn is_congested(&self) -> bool {
        self.out.len() >= self.settings.write_buffer_bytes_max
    }

    pub(crate) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Works through [`Self::input`] as far as whole frames and the write buffer allow, then sends what can be sent.
    pub(crate) fn handle_input(&mut self, now: Now) {
        if self.phase != Phase::Dead {
            self.last_received = now.tick;
        }
        self.turn(now);
    }

    /// Frames, then links, then the dispositions that both left behind: everything that one wake may do.
    pub(crate) fn turn(&mut self, now: Now) {
        if self.grants.has_expired(now.unix_ms) {
            self.expire_grants(now);
        }
        while !self.is_congested() && self.take_input(now) {}
        if self.is_open() {
            self.pump(now);
            self.tell_all_accepted();
        }
        if self.phase == Phase::Dead {
            self.out.clear();
            self.unwritten.clear();
        }
        if self.out_position() != self.sent_position {
            self.sent_position = self.out_position();
            self.last_sent = now.tick;
        }
    }

    /// Takes one header or frame off the input; false: nothing whole is there.
    fn take_input(&mut self, now: Now) -> bool {
        match self.phase {
            Phase::Header { after_sasl } => self.take_header(after_sasl),
            Phase::Sasl => self.take_sasl(now),
            Phase::Opening | Phase::Open | Phase::Closing => self.take_frame(now),
            Phase::Ended | Phase::Dead => {
                self.input.clear();
                false
            }
        }
    }

    fn take_header(&mut self, after_sasl: bool) -> bool {
        if self.input.len() < 8 {
            return false;
        }
        let header = self.input.split_to(8);
        match &header[..] {
            bytes if bytes == AMQP_HEADER => {
                self.out.extend_from_slice(&AMQP_HEADER);
                self.phase = Phase::Opening;
            }
            bytes if bytes == SASL_HEADER && !after_sasl => {
                self.out.extend_from_slice(&SASL_HEADER);
                sasl::put_mechanisms(&mut self.out);
                self.phase = Phase::Sasl;
            }
            _ => {
                // 2.2: the answer to a header that we do not speak is one that we do, and the end
                self.out.extend_from_slice(&SASL_HEADER);
                self.phase = Phase::Ended;
            }
        }
        true
    }

    fn take_sasl(&mut self, now: Now) -> bool {
        let frame = match frame::take(&mut self.input, FrameType::Sasl, UNNEGOTIATED_FRAME_BYTES) {
            Ok(None) => return false,
            Ok(Some(frame)) => frame,
            Err(_) => {
                self.phase = Phase::Ended;
                return false;
            }
        };
        let Some(init) = frame::decode_sasl_init(frame.body) else {
            self.phase = Phase::Ended;
            return false;
        };
        let answer = sasl::authenticate(&self.domain, &init, self.client_certificate.is_some(), now.unix_ms / 1000);
        sasl::put_outcome(&mut self.out, answer.is_ok());
        self.phase = match answer {
            Ok(claims) => {
                if let Some(claims) = claims {
                    self.arm_expiry(claims.expires, now);
                    self.grants.add(claims);
                }
                Phase::Header { after_sasl: true }
            }
            Err(_) => Phase::Ended,
        };
        true
    }

    fn take_frame(&mut self, now: Now) -> bool {
        let max = if self.phase == Phase::Opening {
            UNNEGOTIATED_FRAME_BYTES
        } else {
            self.settings.frame_bytes_max as usize
        };
        let frame = match frame::take(&mut self.input, FrameType::Amqp, max) {
            Ok(None) => return false,
            Ok(Some(frame)) => frame,
            Err(error) => {
                self.fail(error::protocol(FRAMING_ERROR, error.to_string()), now);
                return false;
            }
        };
        if self.phase != Phase::Opening && frame.channel > self.settings.channel_max {
            let text = format!("channel {} is over channel-max {}", frame.channel, self.settings.channel_max);
            self.fail(error::protocol(FRAMING_ERROR, text), now);
        } else if !frame.body.is_empty() {
            match frame::decode(frame.body) {
                Ok(performative) => self.handle_performative(frame.channel, performative, now),
                Err(error) => self.handle_undecodable(frame.channel, &error, now),
            }
        }
        true
    }

    fn handle_undecodable(&mut self, channel: u16, error: &frame::DecodeError, now: Now) {
        let answer = error::protocol(DECODE_ERROR, error.to_string());
        match self.channels.get(&channel) {
            Some(session) if !error.of_connection && self.phase == Phase::Open => {
                self.end_session(*session, Some(answer));
            }
            _ => self.fail(answer, now),
        }
    }

    fn handle_performative(&mut self, channel: u16, performative: Performative, now: Now) {
        match (self.phase, performative) {
            (Phase::Opening, Performative::Open(open)) if channel == 0 => self.handle_open(*open, now),
            (Phase::Opening, _) | (Phase::Closing, Performative::Close(_)) => self.phase = Phase::Ended,
            (Phase::Closing, _) => {}
            (_, Performative::Close(error)) => {
                if let Some(error) = error {
                    tracing::debug!(connection = self.number, %error, "peer closed with an error");
                }
                self.put(0, &Close { error: None });
                self.phase = Phase::Ended;
            }
            (_, Performative::Open(_)) => self.fail(error::protocol(error::ILLEGAL_STATE, "second OPEN"), now),
            (_, Performative::Begin(begin)) => self.handle_begin(channel, &begin, now),
            (_, performative) => self.handle_in_session(channel, performative, now),
        }
    }

    fn handle_in_session(&mut self, channel: u16, performative: Performative, now: Now) {
        let Some(&session) = self.channels.get(&channel) else {
            return self.fail(error::protocol(NOT_ALLOWED, format!("no session on channel {channel}")), now);
        };
        let is_ending = self.sessions[session].state == SessionState::Ending;
        match performative {
            Performative::End(error) => {
                if let Some(error) = error {
                    tracing::debug!(connection = self.number, %error, "peer ended a session with an error");
                }
                self.handle_end(session);
            }
            _ if is_ending => {}
            Performative::Attach(attach) => self.handle_attach(session, *attach, now),
            Performative::Flow(flow) => self.handle_flow(session, &flow),
            Performative::Transfer(transfer, payload) => self.handle_transfer(session, &transfer, payload, now),
            Performative::Disposition(disposition) => self.handle_disposition(session, &disposition, now),
            Performative::Detach(detach) => self.handle_detach(session, &detach),
            Performative::Open(_) | Performative::Begin(_) | Performative::Close(_) => {}
        }
    }

    fn handle_open(&mut self, open: Open, now: Now) {
        self.put_open();
        if open.max_frame_size.0 < 512 {
            return self.fail(error::protocol(INVALID_FIELD, "max-frame-size is below 512"), now);
        }
        self.peer = Peer {
            frame_bytes_max: open.max_frame_size.0 as usize,
            channel_max: open.channel_max.0,
            idle_ms: u64::from(open.idle_time_out.unwrap_or(0)),
        };
        let info = ConnectionInfo {
            container_id: open.container_id,
            hostname: open.hostname.unwrap_or_default(),
            transport: self.transport,
        };
        if (1..IDLE_TIMEOUT_MIN_MS).contains(&self.peer.idle_ms) {
            return self.fail(error::protocol(NOT_ALLOWED, "idle-time-out is too small to be served"), now);
        }
        self.timers.remove_handshake();
        self.phase = Phase::Open;
        self.handle_opened(info, now);
    }

    fn put_open(&mut self) {
        let idle_ms = self.settings.idle_timeout.as_millis() as u32;
        let open = Open {
            container_id: uuid::Uuid::new_v4().simple().to_string(),
            hostname: None,
            max_frame_size: self.settings.frame_bytes_max.into(),
            channel_max: self.settings.channel_max.into(),
            idle_time_out: (idle_ms > 0).then_some(idle_ms),
            outgoing_locales: None,
            incoming_locales: None,
            offered_capabilities: None,
            desired_capabilities: None,
            properties: None,
        };
        self.put(0, &open);
        self.is_open_sent = true;
    }

    /// Ends the connection with an error: CLOSE, then silence until theirs. Before AMQP was agreed on: silence at once.
    pub(crate) fn fail(&mut self, error: Error, now: Now) {
        match self.phase {
            Phase::Opening | Phase::Open => {
                tracing::debug!(connection = self.number, %error, "closing");
                if !self.is_open_sent {
                    self.put_open();
                }
                self.put(0, &Close { error: Some(error) });
                self.phase = Phase::Closing;
                self.timers.push(now.tick + self.settings.close_timeout.as_millis() as u64, Timer::End);
                self.release_everything();
            }
            Phase::Closing | Phase::Ended | Phase::Dead => {}
            Phase::Header { .. } | Phase::Sasl => self.phase = Phase::Ended,
        }
    }

    /// Drops the connection without a word.
    pub(crate) fn abort(&mut self) {
        self.out.clear();
        self.phase = Phase::Ended;
        self.release_everything();
    }

    /// Goes half-open: reads and drops, says nothing any more, until the peer's silence or end.
    pub(crate) fn go_dead(&mut self) {
        self.out.clear();
        self.phase = Phase::Dead;
    }

    /// Says good-bye to every session and link at once; frames that still come for them are dropped.
    pub(crate) fn release_everything(&mut self) {
        let links: Vec<_> = self.links.drain().collect();
        for link in links {
            self.release(link.id, &link.kind);
        }
        self.sessions.clear();
        self.channels.clear();
        self.ready.clear();
    }

    /// Appends a frame.
    pub(crate) fn put<T: Serialize>(&mut self, channel: u16, performative: &T) {
        frame::put(&mut self.out, FrameType::Amqp, channel, performative, &[]);
    }

    /// The position in the stream of outgoing bytes at which the buffer ends now.
    pub(crate) fn out_position(&self) -> u64 {
        self.taken_bytes() + self.out.len() as u64
    }

    /// The position up to which the stream has taken the outgoing bytes.
    pub(crate) fn taken_bytes(&self) -> u64 {
        self.written_bytes + self.unflushed
    }

    /// Whether something waits to be written or flushed.
    pub(crate) fn has_output(&self) -> bool {
        !self.out.is_empty() || self.unflushed > 0
    }

    /// What the stream had taken is with the operating system.
    pub(crate) fn handle_flushed(&mut self, now: Now) {
        self.written_bytes += std::mem::take(&mut self.unflushed);
        let written = self.unwritten.partition_point(|(_, position)| *position <= self.written_bytes);
        if written > 0 {
            self.domain.ledger.written(self.unwritten.drain(..written).map(|(entry, _)| entry));
        }
        self.turn(now);
    }

    /// When [`Self::handle_timeout`] wants to be called, by [`Now::tick`].
    pub(crate) fn poll_timeout(&self) -> Option<u64> {
        let heartbeat =
            (self.phase == Phase::Open && self.peer.idle_ms > 0).then(|| self.last_sent + self.peer.idle_ms / 2);
        [heartbeat, self.silence_deadline(), self.timers.next()].into_iter().flatten().min()
    }

    fn silence_deadline(&self) -> Option<u64> {
        // the peer must send within what we announced; a quarter more is for the network and its timers
        let idle_ms = self.settings.idle_timeout.as_millis() as u64;
        let counts = matches!(self.phase, Phase::Open | Phase::Dead) && idle_ms > 0;
        counts.then(|| self.last_received + idle_ms + idle_ms / 4)
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self, now: Now) {
        if self.silence_deadline().is_some_and(|deadline| deadline <= now.tick) {
            if self.phase == Phase::Dead {
                return self.abort();
            }
            self.fail(error::protocol(RESOURCE_LIMIT, "idle time-out: nothing was received in time"), now);
        }
        while let Some(timer) = self.timers.due(now.tick) {
            self.handle_timer(timer, now);
        }
        self.turn(now);
        let silent_for = now.tick.saturating_sub(self.last_sent);
        if self.phase == Phase::Open && self.peer.idle_ms > 0 && silent_for >= self.peer.idle_ms / 2 {
            frame::put_heartbeat(&mut self.out);
            self.sent_position = self.out_position();
            self.last_sent = now.tick;
        }
    }

    fn handle_timer(&mut self, timer: Timer, now: Now) {
        match timer {
            Timer::Handshake => self.abort(),
            Timer::End => self.phase = Phase::Ended,
            Timer::Link(id, due) => self.handle_link_timer(id, due, now),
            Timer::Grants => self.expire_grants(now),
            Timer::Attach(id, attach) => {
                if let Some(pending) = self.remove_link(id) {
                    self.attach(pending.session, *attach, None, now);
                }
            }
        }
    }

    fn handle_link_timer(&mut self, id: LinkId, due: Due, now: Now) {
        match due {
            Due::Settle { delivery_id, state, entries } => self.settle(id, delivery_id, state, entries),
            Due::Answer(delivery) => self.answer(id, delivery),
            Due::Detach(error) => self.detach(id, error),
            Due::Unhold => {
                if let Some(link) = self.link_mut(id) {
                    link.hold = Hold::Passed;
                    self.make_ready(id);
                }
            }
        }
        self.turn(now);
    }

    /// Takes what the rest of the hub posted.
    pub(crate) fn handle_mail(&mut self, now: Now) {
        for key in self.mailbox.take() {
            if key == LinkKey::CONNECTION {
                self.take_orders(now);
            } else {
                let (id, is_stolen) = LinkId::of_key(key);
                self.handle_wake(id, is_stolen, now);
            }
        }
        self.turn(now);
    }

    /// Maps a new session of the peer on a channel of ours.
    pub(crate) fn channel_out(&self) -> u16 {
        let channels = u32::from(self.peer.channel_max.min(self.settings.channel_max)) + 1;
        // a slab index is free in the slab, and the slab has at most as many entries as there are channels
        ((self.sessions.vacant_key() as u32 + CHANNEL_OFFSET) % channels) as u16
    }

    pub(crate) fn session_on(&self, channel: u16) -> Option<usize> {
        self.channels.get(&channel).copied()
    }

    pub(crate) fn map_session(&mut self, channel: u16, session: Session) -> usize {
        let index = self.sessions.insert(session);
        self.channels.insert(channel, index);
        index
    }

    pub(crate) fn unmap_session(&mut self, session: usize) {
        let session = self.sessions.remove(session);
        self.channels.remove(&session.channel_in);
    }

    /// More sessions than the peer's own channel-max lets us answer?
    pub(crate) fn has_free_channel(&self) -> bool {
        self.sessions.len() <= usize::from(self.peer.channel_max.min(self.settings.channel_max))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.release_everything();
        self.domain.connections.close(self.number);
    }
}
