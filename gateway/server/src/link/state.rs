//! What one AMQP connection knows and decides. It reaches no socket: [`super::task`] feeds it and writes what it leaves
//! in the endpoint's output.

//  Down ──connect──► Opening ──OPEN──► Proving ──`$cbs`, policy token──► Up
//   ▲                   │                 │                              │
//   └───────────────────┴──── lost ───────┴──────────────────────────────┘      (a peer without `$cbs`: Opening ► Up)

use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
};

use amqp_endpoint::{Cause, Config, Delivery, Endpoint, Event, Peer, Sasl};
use gateway_core::{
    settings::Upstream,
    time::Millis,
    upstream::{ConnectionKey, Outage, PeerLimits},
};
use slab::Slab;

use super::{
    device::{Device, Message, Role, Tie},
    ties::{Session, User},
    tokens::Tokens,
};
use crate::{
    metrics::UpstreamState,
    upstream::{
        arena::{Arena, Key},
        clock,
        pool::Pool,
    },
};

/// Longest silence of the hub, and so twice what we advertise (contract §3.1: the hub's own is 240 s).
const IDLE_TIMEOUT_MS: u64 = 240_000;

/// How far the connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// No socket, or one that is not connected yet.
    Down,
    /// Waiting for OPEN.
    Opening,
    /// Waiting for `$cbs` and the policy token.
    Proving,
    /// Devices work.
    Up,
}

/// One AMQP connection and its devices.
pub(super) struct State {
    pub(super) pool: Rc<Pool>,
    pub(super) key: ConnectionKey,
    pub(super) phase: Phase,
    pub(super) endpoint: Option<Endpoint>,
    pub(super) devices: Slab<Device>,
    pub(super) messages: Arena<Message>,
    pub(super) sessions: Vec<Session>,
    /// Links to be attached.
    pub(super) wanted: VecDeque<(u32, Role)>,
    /// Attaches without an answer.
    pub(super) attaching: u32,
    /// This connection's part of `gateway_upstream_links`, with links on their way out whose devices are forgotten.
    links: i64,
    /// Attaches ever, for names.
    pub(super) attaches: u64,
    /// Links that wait to be attached again; a hint, never too low.
    pub(super) held: u32,
    pub(super) tokens: Tokens,
    /// Put-token requests in flight and who asked.
    pub(super) requests: HashMap<u64, u32>,
    /// Devices to be placed on another connection.
    pub(super) moves: Vec<u32>,
    pub(super) outage: Outage,
    pub(super) channel_max: u16,
    /// When the hub was last heard.
    pub(super) heard: Millis,
    /// What the hub said against this connection, where its end alone does not tell.
    pub(super) refused: Option<String>,
    /// The hub answers nothing any more, although the socket is there.
    dead: bool,
    /// The state shown in `gateway_upstream_connections`.
    pub(super) shown: Option<UpstreamState>,
    /// This connection's part of `gateway_upstream_credit`.
    pub(super) credit_shown: i64,
    pub(super) next_tick: Millis,
    /// No device comes any more; the connection ends when nothing is in flight.
    pub(super) ending: bool,
}

impl State {
    pub(super) fn new(pool: Rc<Pool>, key: ConnectionKey) -> Self {
        let target = pool.target();
        let limits = &target.limits;
        let tokens = Tokens::new(limits.tokens_inflight_max, target.policy().is_some());
        let outage = Outage::new(limits.outage_max);
        Self {
            key,
            phase: Phase::Down,
            endpoint: None,
            devices: Slab::new(),
            messages: Arena::new(),
            sessions: Vec::new(),
            wanted: VecDeque::new(),
            attaching: 0,
            links: 0,
            attaches: 0,
            held: 0,
            tokens,
            requests: HashMap::new(),
            moves: Vec::new(),
            outage,
            channel_max: 0,
            heard: Millis(0),
            refused: None,
            dead: false,
            shown: None,
            credit_shown: 0,
            next_tick: Millis(0),
            ending: false,
            pool,
        }
    }

    /// A socket is connected: the endpoint begins to speak.
    pub(super) fn open(&mut self) {
        let config = self.endpoint_config();
        self.heard = self.pool.clock.monotonic();
        self.endpoint = Some(Endpoint::new(config, self.heard.0));
        self.phase = Phase::Opening;
    }

    fn endpoint_config(&self) -> Config {
        let (pool, target) = (&self.pool, self.pool.target());
        let limits = &target.limits;
        let container = format!("gateway-{:016x}-{}-{}", clock::random(), pool.share.core, self.key.0);
        let mut config = Config::new(container, target.host.clone());
        config.sasl = self.sasl();
        config.properties =
            vec![("product".into(), "protocol-gateway".into()), ("version".into(), env!("CARGO_PKG_VERSION").into())];
        config.frame_bytes_max = limits.frame_bytes_max;
        config.output_bytes_max = limits.output_bytes_max;
        config.answer_timeout_ms = limits.request_timeout.as_millis() as u64;
        config.idle_timeout_ms = IDLE_TIMEOUT_MS;
        // two links for each device, and as many again that are on their way out
        config.links_max = limits.devices_per_connection_max.saturating_mul(4).saturating_add(16);
        config
    }

    fn sasl(&self) -> Sasl {
        let settings = self.pool.settings();
        let Upstream::Amqp(broker) = &settings.upstream else { return Sasl::Anonymous };
        match &self.pool.secrets.borrow().sasl_plain {
            Some((user, password)) => Sasl::Plain { user: user.clone(), password: password.clone() },
            None if broker.client_certificate_secret_name.is_some() => Sasl::External,
            None => Sasl::Anonymous,
        }
    }

    /// Carries out what the endpoint reports. `Some`: the connection is over.
    pub(super) fn handle_events(&mut self) -> Option<Cause> {
        while let Some(event) = self.endpoint.as_mut().and_then(Endpoint::next_event) {
            if let Event::Closed { cause } = event {
                return Some(cause);
            }
            self.handle_event(event);
        }
        if self.dead {
            return Some(Cause::Timeout);
        }
        self.attach_wanted();
        None
    }

    /// The answer to what was asked at `asked` did not come in time. If nothing else came either, the connection is what
    /// is broken: its own idle time-out would find out much later.
    pub(super) fn handle_no_answer(&mut self, asked: Millis) {
        self.dead |= self.heard < asked;
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Settled { link, user, token, outcome } => match User::unpack(user) {
                User::Device { .. } => self.handle_settled(link, Key(token as u32), &outcome),
                User::CbsSender | User::CbsReceiver => self.handle_request_settled(token, &outcome),
            },
            Event::Sendable { user, .. } => match User::unpack(user) {
                User::Device { device, .. } => self.pump(device),
                User::CbsSender | User::CbsReceiver => self.handle_cbs_sendable(),
            },
            Event::Delivery(delivery) => self.handle_delivery(&delivery),
            Event::Opened(peer) => self.handle_opened(&peer),
            Event::SessionBegun { session, links_max } => {
                self.handle_cbs_begun(session, links_max);
                self.handle_session_begun(session, links_max);
            }
            Event::SessionEnded { session, cause } => self.handle_session_ended(session, &cause),
            Event::Attached { link, user, .. } => match User::unpack(user) {
                User::Device { role, device, .. } => self.handle_attached(link, device, role),
                User::CbsSender | User::CbsReceiver => self.handle_cbs_attached(),
            },
            Event::AttachRefused { link, user, cause } => self.handle_ended(link, user, false, &cause),
            Event::Detached { link, user, cause } => self.handle_ended(link, user, true, &cause),
            Event::Confirmed { .. } | Event::Closed { .. } => {}
        }
    }

    fn handle_ended(&mut self, link: amqp_endpoint::LinkId, user: u64, attached: bool, cause: &Cause) {
        match User::unpack(user) {
            User::Device { role, session, device } => {
                self.handle_link_ended(link, (role, session, device), attached, cause);
            }
            User::CbsSender | User::CbsReceiver => self.handle_cbs_ended(cause),
        }
    }

    fn handle_delivery(&mut self, delivery: &Delivery) {
        match User::unpack(delivery.user) {
            User::Device { device, .. } => self.handle_command(device, delivery),
            User::CbsSender | User::CbsReceiver => self.handle_cbs_delivery(delivery),
        }
    }

    fn handle_opened(&mut self, peer: &Peer) {
        tracing::debug!(core = self.pool.share.core, connection = self.key.0, peer = peer.container_id, "opened");
        self.channel_max = u16::try_from(peer.sessions_max.saturating_sub(1)).unwrap_or(u16::MAX);
        if !self.pool.target().is_iot_hub() {
            let limits = PeerLimits { channel_max: self.channel_max, handle_max: u32::MAX };
            self.pool.placement.borrow_mut().handle_opened(self.key, limits);
            return self.go_up();
        }
        self.phase = Phase::Proving;
        if self.open_cbs().is_err() {
            self.close_endpoint();
        }
    }

    /// Everything that devices wait for starts now.
    pub(super) fn go_up(&mut self) {
        self.phase = Phase::Up;
        // a hub that takes no token is as good as away
        if !self.tokens.fruitless {
            self.outage.handle_back();
        }
        self.pool.metrics.upstream_problem.set(None);
        self.show(UpstreamState::Open);
        tracing::info!(
            core = self.pool.share.core,
            connection = self.key.0,
            devices = self.devices.len(),
            "connected to the hub"
        );
        self.put_waiting_tokens();
        let devices: Vec<u32> = self.devices.iter().map(|(device, _)| device as u32).collect();
        for device in devices {
            self.resume(device);
        }
        self.attach_wanted();
    }

    /// The hub cannot be reached by this connection: a new device need not wait for it.
    pub(super) fn is_away(&self) -> bool {
        self.phase != Phase::Up && self.outage.is_away()
    }

    /// Before a device asks for something between two turns: what is written then waits for its answer from now on, and not from
    /// when the hub was last heard.
    pub(super) fn see_time(&mut self) {
        let now = self.pool.clock.monotonic();
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.set_now(now.0);
        }
    }

    /// So many links more.
    pub(super) fn count_links(&mut self, more: i64) {
        self.links += more;
        self.pool.metrics.upstream_links.add(more);
    }

    /// Ends the AMQP connection in good order; `Closed` follows.
    pub(super) fn close_endpoint(&mut self) {
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.close(None);
        }
    }

    /// The connection is gone, or an attempt to open it failed: messages wait, links and tokens start again.
    pub(super) fn handle_lost(&mut self) {
        self.endpoint = None;
        self.dead = false;
        self.phase = Phase::Down;
        self.sessions.clear();
        self.wanted.clear();
        self.attaching = 0;
        self.outage.handle_lost(self.pool.clock.monotonic());
        self.count_links(-self.links);
        for (_, owner) in &mut self.devices {
            (owner.sender, owner.commands.tie) = (Tie::None, Tie::None);
            owner.commands.unsettled = 0;
        }
        let devices: Vec<u32> = self.devices.iter().map(|(device, _)| device as u32).collect();
        for device in devices {
            self.rewind(device);
        }
        self.reset_tokens();
        self.show_credit(0);
    }
}
