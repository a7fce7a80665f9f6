//! What one AMQP connection knows and decides. It reaches no socket: [`super::task`] feeds it and writes what it leaves
//! in the endpoint's output.

//  Down ──connect──► Opening ──OPEN──► Proving ──`$cbs`, policy token──► Up
//   ▲                   │                 │                              │
//   └───────────────────┴──── lost ───────┴──────────────────────────────┘      (a peer without `$cbs`: Opening ► Up)

use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
    time::Duration,
};

use amqp_endpoint::{Cause, Config, Delivery, Endpoint, Event, Peer, Sasl};
use gateway_core::{
    message::Outcome,
    session::effect::CloseCause,
    settings::Upstream,
    time::Millis,
    upstream::{ConnectionKey, Outage, PeerLimits},
};
use slab::Slab;

use super::{
    device::{Device, Message, Passenger, Role, Stage, Tie},
    ties::{Session, User},
    tokens::Tokens,
};
use crate::{
    metrics::UpstreamState,
    upstream::{
        UpstreamEvent,
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
    /// Attaches ever, for names.
    pub(super) attaches: u64,
    /// Links that wait to be attached again; a hint, never too low.
    pub(super) held: u32,
    pub(super) tokens: Tokens,
    /// Put-token requests in flight and who asked.
    pub(super) requests: HashMap<u64, u32>,
    /// Tokens to be tried again at the next tick.
    pub(super) late_tokens: Vec<u32>,
    /// Devices to be placed on another connection.
    pub(super) moves: Vec<u32>,
    pub(super) outage: Outage,
    pub(super) channel_max: u16,
    /// When the hub was last heard.
    pub(super) heard: Millis,
    /// The hub answers nothing any more, although the socket is there.
    dead: bool,
    /// The state shown in `gateway_upstream_connections`.
    shown: Option<UpstreamState>,
    /// This connection's part of `gateway_upstream_credit`.
    credit_shown: i64,
    next_tick: Millis,
    /// No device comes any more; the connection ends when nothing is in flight.
    pub(super) ending: bool,
}

impl State {
    pub(super) fn new(pool: Rc<Pool>, key: ConnectionKey) -> Self {
        let limits = &pool.target.limits;
        let tokens = Tokens::new(limits.tokens_inflight_max, pool.target.policy().is_some());
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
            attaches: 0,
            held: 0,
            tokens,
            requests: HashMap::new(),
            late_tokens: Vec::new(),
            moves: Vec::new(),
            outage,
            channel_max: 0,
            heard: Millis(0),
            dead: false,
            shown: None,
            credit_shown: 0,
            next_tick: Millis(0),
            ending: false,
            pool,
        }
    }

    // ── devices ──────────────────────────────────────────────────────────────

    /// Takes a device on, with what it brings along.
    pub(super) fn take_on(&mut self, passenger: Passenger) -> u32 {
        let Passenger { identity, inbox, proof, commands, messages } = passenger;
        let mut owner = Device::new(identity, inbox);
        owner.proof = proof;
        (owner.commands.window, owner.commands.asked) = commands;
        let waits = owner.proof.is_some();
        let device = self.devices.insert(owner) as u32;
        let owner = &mut self.devices[device as usize];
        for message in messages {
            self.messages.push_back(&mut owner.queue, Message { device, sent: None, ..message });
        }
        owner.next = owner.queue.first();
        if waits {
            self.tokens.waiting.push_back(device);
            self.put_waiting_tokens();
        } else {
            self.resume(device);
        }
        device
    }

    /// The device's connection is gone: its commands go back at once, its messages are still settled.
    pub(super) fn leave(&mut self, device: u32) {
        self.close_commands(device);
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        owner.leaving = true;
        let undecided = owner.proof.as_ref().is_some_and(|proof| proof.asked || proof.stage == Stage::Failed);
        if owner.queue.is_empty() || undecided {
            self.remove(device);
        }
    }

    /// Wants the links that a device has a use for.
    pub(super) fn resume(&mut self, device: u32) {
        for role in [Role::Telemetry, Role::Commands] {
            if self.devices.get(device as usize).is_some_and(|owner| owner.needs(role)) {
                self.want(device, role);
            }
        }
    }

    /// The hub has no place for this device: tells it, and forgets it.
    pub(super) fn let_go(&mut self, device: u32, cause: CloseCause) {
        let Some(inbox) = self.devices.get(device as usize).map(|owner| Rc::clone(&owner.inbox)) else { return };
        inbox.route.take();
        if cause == CloseCause::HubUnreachable {
            self.end_messages(device);
        }
        self.remove(device);
        inbox.post(UpstreamEvent::Lost(cause));
    }

    /// Every message of `device` may or may not have reached the hub, and nobody will know.
    fn end_messages(&mut self, device: u32) {
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        owner.next = None;
        while let Some(message) = self.messages.pop_front(&mut owner.queue) {
            message.end(&self.pool, &owner.inbox, Outcome::Unreachable);
        }
    }

    /// Detaches a device's links and forgets it with its messages.
    pub(super) fn remove(&mut self, device: u32) {
        self.forget_token(device);
        let Some(mut owner) = self.devices.try_remove(device as usize) else { return };
        while let Some(message) = self.messages.pop_front(&mut owner.queue) {
            message.drop_quietly(&self.pool);
        }
        self.detach(&owner);
        self.pool.placement.borrow_mut().leave(self.key, self.pool.clock.monotonic());
        if self.messages.is_empty() {
            self.messages.shrink();
        }
    }

    fn detach(&mut self, owner: &Device) {
        let Some(endpoint) = &mut self.endpoint else { return };
        for tie in [owner.sender, owner.commands.tie] {
            if let Tie::Attaching(link) | Tie::Open(link) = tie {
                endpoint.detach(link);
            }
        }
    }

    /// Devices that another connection has to take, with all that they wait for.
    pub(super) fn take_moves(&mut self) -> Vec<Passenger> {
        let moves = std::mem::take(&mut self.moves);
        moves.into_iter().filter_map(|device| self.take_off(device)).collect()
    }

    fn take_off(&mut self, device: u32) -> Option<Passenger> {
        let mut owner = self.devices.try_remove(device as usize)?;
        self.detach(&owner);
        let messages = std::iter::from_fn(|| self.messages.pop_front(&mut owner.queue)).collect();
        self.pool.placement.borrow_mut().leave(self.key, self.pool.clock.monotonic());
        Some(Passenger {
            identity: owner.identity,
            inbox: owner.inbox,
            proof: owner.proof,
            commands: (owner.commands.window, owner.commands.asked),
            messages,
        })
    }

    // ── the connection ───────────────────────────────────────────────────────

    /// A socket is connected: the endpoint begins to speak.
    pub(super) fn open(&mut self) {
        let config = self.endpoint_config();
        self.heard = self.pool.clock.monotonic();
        self.endpoint = Some(Endpoint::new(config, self.heard.0));
        self.phase = Phase::Opening;
    }

    fn endpoint_config(&self) -> Config {
        let (pool, limits) = (&self.pool, &self.pool.target.limits);
        let container = format!("gateway-{:016x}-{}-{}", clock::random(), pool.share.core, self.key.0);
        let mut config = Config::new(container, pool.target.host.clone());
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
        let Upstream::Amqp(broker) = &self.pool.settings.upstream else { return Sasl::Anonymous };
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
        tracing::debug!(connection = self.key.0, peer = peer.container_id, "opened");
        self.channel_max = u16::try_from(peer.sessions_max.saturating_sub(1)).unwrap_or(u16::MAX);
        if !self.pool.target.is_iot_hub() {
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
        self.outage.handle_back();
        self.show(UpstreamState::Open);
        tracing::info!(connection = self.key.0, devices = self.devices.len(), "connected to the hub");
        self.put_waiting_tokens();
        let devices: Vec<u32> = self.devices.iter().map(|(device, _)| device as u32).collect();
        for device in devices {
            self.resume(device);
        }
        self.attach_wanted();
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
        let mut links = 0;
        for (_, owner) in &mut self.devices {
            for role in [Role::Telemetry, Role::Commands] {
                let tie = owner.tie(role);
                links += i64::from(tie.link().is_some());
                *tie = Tie::None;
            }
            owner.commands.unsettled = 0;
        }
        self.pool.metrics.upstream_links.add(-links);
        let devices: Vec<u32> = self.devices.iter().map(|(device, _)| device as u32).collect();
        for device in devices {
            self.rewind(device);
        }
        self.reset_tokens();
        self.show_credit(0);
    }

    // ── time ─────────────────────────────────────────────────────────────────

    /// When [`State::tick`] or the endpoint's timer is due.
    pub(super) fn poll_timeout(&self) -> Millis {
        let endpoint = self.endpoint.as_ref().and_then(Endpoint::poll_timeout);
        endpoint.map_or(self.next_tick, |at| self.next_tick.min(Millis(at)))
    }

    /// Something may be due.
    pub(super) fn handle_timeout(&mut self, now: Millis) {
        if let Some(endpoint) = &mut self.endpoint
            && endpoint.poll_timeout().is_some_and(|at| at <= now.0)
        {
            endpoint.handle_timeout(now.0);
        }
        if self.next_tick <= now || (self.pool.draining.get() && !self.ending) {
            self.next_tick = now.after(self.tick_interval());
            self.tick(now);
        }
    }

    /// A quarter of the shortest wait that is looked after here; an idle connection wakes once a second.
    fn tick_interval(&self) -> Duration {
        let limits = &self.pool.target.limits;
        let shortest =
            limits.request_timeout.min(limits.settle_timeout).min(limits.outage_max).min(limits.idle_timeout);
        (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }

    /// Something is due at `at`, before the next tick would come by itself.
    pub(super) fn tick_by(&mut self, at: Millis) {
        self.next_tick = self.next_tick.min(at);
    }

    /// Waits that are over: tokens, dispositions, links held back, an outage, an empty connection.
    fn tick(&mut self, now: Millis) {
        self.check_tokens();
        if self.outage.is_over_bound(now) {
            self.let_devices_go(now);
        }
        if !self.messages.is_empty() || self.held > 0 {
            self.check_devices();
        }
        let credit = self.credit();
        self.show_credit(credit);
        self.pool.buffers.tick();
        self.check_end(now);
    }

    fn check_devices(&mut self) {
        let now_us = self.pool.clock.turn_us();
        // the next look, not this one again
        let now = self.pool.clock.monotonic().after(Duration::from_millis(1));
        let devices: Vec<u32> = self.devices.iter().map(|(device, _)| device as u32).collect();
        let mut held = 0;
        for device in devices {
            if self.phase == Phase::Up && self.check_age(device, now_us) {
                self.release_held(device);
            }
            let Some(owner) = self.devices.get(device as usize) else { continue };
            for tie in [owner.sender, owner.commands.tie] {
                if let Tie::Held(until) = tie {
                    held += 1;
                    self.next_tick = self.next_tick.min(until.max(now));
                }
            }
        }
        self.held = held;
    }

    /// The hub is away for too long: devices go, no faster than they may come.
    fn let_devices_go(&mut self, now: Millis) {
        let per_second =
            u64::from(self.pool.settings.limits.connects_per_second / u32::from(self.pool.share.cores).max(1));
        let per_tick = (per_second.max(1) * self.tick_interval().as_millis() as u64).div_ceil(1000);
        let devices: Vec<u32> = self.devices.iter().take(per_tick as usize).map(|(device, _)| device as u32).collect();
        if !devices.is_empty() {
            tracing::warn!(
                connection = self.key.0,
                devices = devices.len(),
                ?now,
                "the hub is away, letting devices go"
            );
        }
        for device in devices {
            self.let_go(device, CloseCause::HubUnreachable);
        }
    }

    /// Closes a connection that nobody needs: idle for long, or the gateway stops and nothing is in flight.
    fn check_end(&mut self, now: Millis) {
        if !self.ending {
            let idle = self.pool.placement.borrow().next_idle(now) == Some(self.key);
            if idle {
                self.pool.remove(self.key);
                self.ending = true;
            }
            if self.pool.draining.get() && self.messages.is_empty() {
                self.pool.remove(self.key);
                self.ending = true;
                let devices: Vec<u32> = self.devices.iter().map(|(device, _)| device as u32).collect();
                for device in devices {
                    self.let_go(device, CloseCause::Shutdown);
                }
            }
            if self.ending {
                self.show(UpstreamState::Closing);
                self.close_endpoint();
            }
        }
    }

    // ── what is shown ────────────────────────────────────────────────────────

    /// Counts this connection under `state`.
    pub(super) fn show(&mut self, state: UpstreamState) {
        self.hide();
        self.pool.metrics.upstream_connections.at(state).add(1);
        self.shown = Some(state);
    }

    /// Counts it no more.
    pub(super) fn hide(&mut self) {
        if let Some(shown) = self.shown.take() {
            self.pool.metrics.upstream_connections.at(shown).add(-1);
        }
    }

    fn credit(&self) -> i64 {
        let Some(endpoint) = &self.endpoint else { return 0 };
        let open = self.devices.iter().filter_map(|(_, owner)| match owner.sender {
            Tie::Open(link) => Some(i64::from(endpoint.credit(link))),
            _ => None,
        });
        open.sum()
    }

    fn show_credit(&mut self, credit: i64) {
        self.pool.metrics.upstream_credit.add(credit - self.credit_shown);
        self.credit_shown = credit;
    }
}
