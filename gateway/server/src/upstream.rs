//! The hub's side of one core: which AMQP connection carries which device, and what a device connection may ask of it.
//!
//! Everything here belongs to one thread (`Rc`, `RefCell`, no lock). A device connection calls and never waits; what the
//! hub answers comes back as [`UpstreamEvent`]s. It never decides what a device is told: that is the session's.

pub(crate) mod arena;
pub(crate) mod inbox;
mod secrets;

use std::{
    cell::RefCell,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use gateway_core::{
    auth::{Refused, RefusedReason, Verdict},
    codec::packet::ConnectCode,
    message::{CommandTag, DeviceId, Outcome, Refusal, Settlement, Telemetry},
    session::effect::Slot,
    settings::Settings,
    time::UnixSeconds,
};

use crate::metrics::Metrics;
pub use inbox::UpstreamEvent;
pub use secrets::{SecretError, UpstreamSecrets};

/// Which part of the process's AMQP connections is this core's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoreShare {
    /// Number of this core, from 0.
    pub core: u16,
    /// Cores that share `connections_max`.
    pub cores: u16,
}

/// The AMQP connections of one core. Cheap to clone; lives on one `current_thread` runtime, inside a `LocalSet`.
#[derive(Clone)]
pub struct Upstream(Rc<Pool>);

/// One device's hold on its AMQP connection. Dropping it detaches the device's links: the command receiver at once, the
/// telemetry sender when what was handed over is settled (a Will, for one).
pub struct DeviceLink {
    inbox: Rc<inbox::Inbox>,
    route: RefCell<()>,
}

const UNAVAILABLE: Refused = Refused { code: ConnectCode::ServerUnavailable, reason: RefusedReason::HubUnavailable };

struct Pool {
    settings: Arc<Settings>,
    secrets: RefCell<Arc<UpstreamSecrets>>,
    share: CoreShare,
    metrics: Arc<Metrics>,
}

impl Upstream {
    /// A pool without connections: the first device opens one.
    ///
    /// It counts `metrics.up.settle`, `metrics.up.inflight` and everything named `upstream_*`; the rest is the caller's.
    pub fn new(
        settings: Arc<Settings>,
        secrets: Arc<UpstreamSecrets>,
        share: CoreShare,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self(Rc::new(Pool { settings, secrets: RefCell::new(secrets), share, metrics }))
    }

    /// Uses `secrets` for connections opened and policy tokens made from now on.
    pub fn set_secrets(&self, secrets: Arc<UpstreamSecrets>) {
        self.0.secrets.replace(secrets);
    }

    /// Gives `identity` a place on an AMQP connection. Refused with CONNACK 3 when none has room or the hub is away.
    pub fn open(&self, identity: &DeviceId) -> Result<DeviceLink, Refused> {
        let _ = identity;
        Err(UNAVAILABLE)
    }

    /// Closes every AMQP connection in good order; returns when all are closed or `request_timeout` has passed.
    pub async fn shutdown(&self) {}
}

impl DeviceLink {
    /// Asks the hub whether `token` proves this device (CBS put-token); answered by [`UpstreamEvent::Authorized`].
    pub fn authorize(&self, token: &str, expires: UnixSeconds) {
        let _ = (token, expires);
        self.inbox.post(UpstreamEvent::Authorized(Verdict::Refused(UNAVAILABLE)));
    }

    /// Hands one message over; answered by [`UpstreamEvent::Outcome`]. It is encoded before this returns.
    pub fn send(&self, slot: Slot, telemetry: &Telemetry<'_>) {
        let _ = telemetry;
        self.inbox.post(UpstreamEvent::Outcome(slot, Outcome::Unreachable));
    }

    /// Attaches the command receiver: at most `credit` commands unsettled at a time.
    pub fn open_commands(&self, credit: u32) {
        let _ = credit;
        self.inbox.post(UpstreamEvent::CommandsOpened(Err(Refusal::Internal)));
    }

    /// Detaches the command receiver; commands not settled yet go back to the hub.
    pub fn close_commands(&self) {}

    /// Settles a command. A tag of a link that is gone is ignored: the hub has the command back already.
    pub fn settle(&self, tag: CommandTag, settlement: Settlement) {
        let _ = (tag, settlement);
    }

    /// Ready when [`DeviceLink::next_event`] has something; else the task of `cx` is woken when it has.
    pub fn poll_events(&self, cx: &Context<'_>) -> Poll<()> {
        self.inbox.poll(cx)
    }

    /// The oldest event not yet taken.
    pub fn next_event(&self) -> Option<UpstreamEvent> {
        self.inbox.next()
    }
}
