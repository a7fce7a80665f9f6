//! The hub's side of one core: which AMQP connection carries which device, and what a device connection may ask of it.
//!
//! Everything here belongs to one thread (`Rc`, `RefCell`, no lock). A device connection calls and never waits; what the
//! hub answers comes back as [`UpstreamEvent`]s. It never decides what a device is told: that is the session's.

pub(crate) mod arena;
pub(crate) mod buffers;
pub(crate) mod clock;
pub(crate) mod held;
pub(crate) mod inbox;
mod outage_pace;
pub(crate) mod pool;
mod secrets;
mod target;

use std::{
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use gateway_core::{
    auth::{Client, Refused},
    message::{CommandTag, DeviceId, QoS, Settlement, Telemetry},
    session::effect::Slot,
    settings::Settings,
    time::UnixSeconds,
};

use self::{inbox::Inbox, pool::Pool};
use crate::{
    link::Link,
    metrics::{Limit, Metrics},
};
pub use inbox::UpstreamEvent;
pub use outage_pace::OutagePace;
pub use secrets::{SecretError, UpstreamSecrets};

/// Which part of the process's AMQP connections is this core's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoreShare {
    /// Number of this core, from 0.
    pub core: u16,
    /// Cores that share `connections_max`.
    pub cores: u16,
}

/// The AMQP connections of one core. Cheap to clone; lives on one thread, where tasks can be spawned that stay there.
#[derive(Clone)]
pub struct Upstream(Rc<Pool>);

/// One device's hold on its AMQP connection. Dropping it detaches the device's links: the command receiver at once, the
/// telemetry sender when what was handed over is settled (a Will, for one).
pub struct DeviceLink {
    inbox: Rc<Inbox>,
}

impl Upstream {
    /// A pool without connections: the first device opens one.
    ///
    /// It counts all of `metrics.up` but its bytes, everything named `upstream_*` and the upstream's limits; the
    /// rest is the caller's. `outage_pace` is that of all cores.
    pub fn new(
        settings: Arc<Settings>,
        secrets: Arc<UpstreamSecrets>,
        share: CoreShare,
        outage_pace: Arc<OutagePace>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self(Rc::new(Pool::new(settings, secrets, share, outage_pace, metrics)))
    }

    /// Uses `secrets` for connections opened and policy tokens made from now on.
    pub fn set_secrets(&self, secrets: Arc<UpstreamSecrets>) {
        self.0.secrets.replace(secrets);
    }

    /// Goes on by `settings`, whose peer is the same: bounds at once, the rest for AMQP connections opened from now on.
    pub fn set_settings(&self, settings: Arc<Settings>, secrets: Arc<UpstreamSecrets>) {
        self.0.secrets.replace(secrets);
        self.0.set_settings(settings);
    }

    /// Whether this core holds as many bytes of messages without an outcome as it may: no device should be read.
    pub fn is_full(&self) -> bool {
        self.0.held.is_full()
    }

    /// Wakes `waker` when [`Upstream::is_full`] ends. `since` is the caller's, 0 at first.
    pub fn wait_for_room(&self, since: &mut u32, waker: &Waker) {
        if self.0.held.wait(since, waker) {
            self.0.metrics.limits.at(Limit::UnsettledBytes).inc();
        }
    }

    /// Gives `identity` a place on an AMQP connection. Refused with CONNACK 3 when none has room, the hub is away, or it settles
    /// so little that no further message could be held.
    pub fn open(&self, identity: &DeviceId) -> Result<DeviceLink, Refused> {
        self.0.open(identity).map(|inbox| DeviceLink { inbox })
    }

    /// Closes every AMQP connection in good order, once what was handed over is settled; returns when all are closed or
    /// `within` has passed. No device is taken from now on.
    pub async fn shutdown(&self, within: Duration) {
        self.0.drain();
        let deadline = tokio::time::Instant::now() + within;
        while self.0.running.get() > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl DeviceLink {
    /// Asks the hub whether `token` proves this device (CBS put-token); answered by [`UpstreamEvent::Authorized`].
    pub fn authorize(&self, token: &str, expires: UnixSeconds) {
        self.on_link(|link, device| link.authorize(device, token, expires));
    }

    /// What the hub is to be told of the device when its links attach. To be called before anything that attaches one.
    pub fn introduce(&self, client: Client) {
        self.on_link(|link, device| link.introduce(device, client));
    }

    /// Hands one message over; answered by [`UpstreamEvent::Outcome`], and counted by what became of it. It is encoded before
    /// this returns. False: the hub has let go of the device, and nobody takes the message.
    pub fn send(&self, slot: Slot, qos: QoS, telemetry: &Telemetry<'_>) -> bool {
        let send = |link: &Link, device| link.send(device, (slot, qos), telemetry);
        if slot == Slot::WILL { self.on_any_link(send) } else { self.on_link(send) }
    }

    /// Attaches the command receiver: at most `credit` (at least 1) commands unsettled at a time.
    pub fn open_commands(&self, credit: u32) {
        self.on_link(|link, device| link.open_commands(device, credit));
    }

    /// Detaches the command receiver; commands not settled yet go back to the hub.
    pub fn close_commands(&self) {
        self.on_link(Link::close_commands);
    }

    /// Settles a command. A tag of a link that is gone is ignored: the hub has the command back already.
    pub fn settle(&self, tag: CommandTag, settlement: Settlement) {
        self.on_link(|link, device| link.settle(device, tag, settlement));
    }

    /// Ready when [`DeviceLink::next_event`] has something; else the task of `cx` is woken when it has.
    pub fn poll_events(&self, cx: &Context<'_>) -> Poll<()> {
        self.inbox.poll(cx)
    }

    /// The oldest event not yet taken.
    pub fn next_event(&self) -> Option<UpstreamEvent> {
        self.inbox.next()
    }

    /// Nothing is done once the hub has let go of the device: `Lost` says it all. False then.
    fn on_link(&self, call: impl FnOnce(&Link, u32)) -> bool {
        !self.inbox.is_lost() && self.on_any_link(call)
    }

    /// Also for a device that was taken over and has not left yet.
    fn on_any_link(&self, call: impl FnOnce(&Link, u32)) -> bool {
        // the borrow ends before the call: what is called may take the route away
        let route = self.inbox.route.borrow().as_ref().map(|route| (Rc::clone(&route.link), route.device));
        let Some((link, device)) = route else { return false };
        call(&link, device);
        true
    }
}

impl Drop for DeviceLink {
    fn drop(&mut self) {
        self.inbox.close();
        let route = self.inbox.route.take();
        if let Some(route) = route {
            route.link.leave(route.device);
        }
    }
}
