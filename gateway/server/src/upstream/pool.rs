//! The AMQP connections of one core and what they share: settings, secrets, clock, buffers, counters, who is where.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

use gateway_core::{
    auth::{Refused, RefusedReason},
    codec::packet::ConnectCode,
    message::DeviceId,
    session::effect::CloseCause,
    settings::{Sas, Settings},
    upstream::{ConnectionKey, NoRoom, Placement},
};

use super::{
    CoreShare, OutagePace, UpstreamSecrets,
    arena::Arena,
    buffers::Buffers,
    clock::Clock,
    held::Held,
    inbox::{Events, Inbox, Route},
    target::Target,
};
use crate::{
    link::{Link, Passenger},
    metrics::{Limit, Metrics},
};

/// Bytes read from a socket at a time; one such buffer serves every AMQP connection of the core.
const READ_BYTES: usize = 256 * 1024;

/// CONNACK 3: the hub is away, busy or did not answer.
pub(crate) const UNAVAILABLE: Refused =
    Refused { code: ConnectCode::ServerUnavailable, reason: RefusedReason::HubUnavailable };

/// CONNACK 3: every AMQP connection is full, or the hub settles too little for one more device.
pub(crate) const NO_ROOM: Refused = Refused { code: ConnectCode::ServerUnavailable, reason: RefusedReason::Capacity };

/// CONNACK 3: the gateway stops.
const DRAINING: Refused = Refused { code: ConnectCode::ServerUnavailable, reason: RefusedReason::Draining };

/// One core's AMQP connections.
pub(crate) struct Pool {
    settings: RefCell<Arc<Settings>>,
    target: RefCell<Rc<Target>>,
    pub(crate) secrets: RefCell<Arc<UpstreamSecrets>>,
    pub(crate) share: CoreShare,
    pub(crate) outage_pace: Arc<OutagePace>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
    pub(crate) buffers: Buffers,
    pub(crate) held: Held,
    pub(crate) events: Events,
    /// Where sockets are read into.
    pub(crate) scratch: RefCell<Box<[u8]>>,
    pub(crate) placement: RefCell<Placement>,
    /// By [`ConnectionKey`].
    links: RefCell<Vec<Option<Rc<Link>>>>,
    /// Tasks of AMQP connections that have not ended, closing ones too.
    pub(crate) running: Cell<usize>,
    pub(crate) draining: Cell<bool>,
}

impl CoreShare {
    fn connections_max(self, target: &Target) -> usize {
        (target.limits.connections_max / u32::from(self.cores).max(1)).max(1) as usize
    }

    fn unsettled_bytes_max(self, target: &Target) -> usize {
        target.limits.unsettled_bytes_max / usize::from(self.cores).max(1)
    }
}

impl Pool {
    pub(crate) fn new(
        settings: Arc<Settings>,
        secrets: Arc<UpstreamSecrets>,
        share: CoreShare,
        outage_pace: Arc<OutagePace>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let target = Target::new(&settings);
        let device_tokens = settings.authentication.sas == Sas::Hub;
        let held = Held::new(share.unsettled_bytes_max(&target));
        let connections_max = share.connections_max(&target);
        Self {
            placement: RefCell::new(Placement::new(&target.limits, connections_max, device_tokens)),
            settings: RefCell::new(settings),
            target: RefCell::new(Rc::new(target)),
            secrets: RefCell::new(secrets),
            share,
            outage_pace,
            metrics,
            clock: Clock::start(),
            buffers: Buffers::default(),
            held,
            events: Rc::new(RefCell::new(Arena::new())),
            scratch: RefCell::new(vec![0; READ_BYTES].into_boxed_slice()),
            links: RefCell::new(Vec::new()),
            running: Cell::new(0),
            draining: Cell::new(false),
        }
    }

    /// What the gateway runs by.
    pub(crate) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.borrow())
    }

    /// The peer.
    pub(crate) fn target(&self) -> Rc<Target> {
        Rc::clone(&self.target.borrow())
    }

    /// Goes on by other settings: of the same peer, so that links stay where they are.
    pub(crate) fn set_settings(&self, settings: Arc<Settings>) {
        let target = Target::new(&settings);
        let device_tokens = settings.authentication.sas == Sas::Hub;
        let connections_max = self.share.connections_max(&target);
        self.placement.borrow_mut().set_limits(&target.limits, connections_max, device_tokens);
        self.held.set_bytes_max(self.share.unsettled_bytes_max(&target));
        self.target.replace(Rc::new(target));
        self.settings.replace(settings);
    }

    /// Gives `identity` a place.
    pub(crate) fn open(self: &Rc<Self>, identity: &DeviceId) -> Result<Rc<Inbox>, Refused> {
        if self.draining.get() {
            return Err(DRAINING);
        }
        if self.held.is_full() {
            self.metrics.limits.at(Limit::UnsettledBytes).inc();
            return Err(NO_ROOM);
        }
        let link = self.place().map_err(|NoRoom| NO_ROOM)?;
        if link.is_away() {
            self.placement.borrow_mut().leave(link.key, self.clock.monotonic());
            return Err(UNAVAILABLE);
        }
        let inbox = Rc::new(Inbox::new(Rc::clone(&self.events)));
        Self::seat(&link, Passenger::new(identity.clone(), Rc::clone(&inbox)));
        Ok(inbox)
    }

    /// Takes a place on an AMQP connection, and opens that if it is new.
    fn place(self: &Rc<Self>) -> Result<Rc<Link>, NoRoom> {
        let mut links = self.links.borrow_mut();
        let is_away = |key: ConnectionKey| matches!(links.get(key.0), Some(Some(link)) if link.is_away());
        let placed = self.placement.borrow_mut().place(is_away).inspect_err(|NoRoom| {
            self.metrics.limits.at(Limit::UpstreamConnections).inc();
        })?;
        let index = placed.connection.0;
        if links.len() <= index {
            links.resize_with(index + 1, || None);
        }
        if placed.open {
            links[index] = Some(Link::start(Rc::clone(self), placed.connection));
        }
        Ok(Rc::clone(links[index].as_ref().expect("a placed connection is in the table until it is removed")))
    }

    fn seat(link: &Rc<Link>, passenger: Passenger) {
        let inbox = Rc::clone(&passenger.inbox);
        let device = link.take_on(passenger);
        if inbox.is_closed() {
            // its connection ended before it came here: nobody else will say so
            return link.leave(device);
        }
        inbox.route.replace(Some(Route { link: Rc::clone(link), device }));
    }

    /// Gives a device that its connection cannot serve a place on another one (trap 24).
    pub(crate) fn relocate(self: &Rc<Self>, passenger: Passenger) {
        match self.place() {
            Ok(link) => Self::seat(&link, passenger),
            Err(NoRoom) => passenger.refuse(self, NO_ROOM, CloseCause::HubUnreachable),
        }
    }

    /// The connection takes no device any more; its key may be given again.
    pub(crate) fn remove(&self, key: ConnectionKey) {
        self.placement.borrow_mut().remove(key);
        if let Some(link) = self.links.borrow_mut().get_mut(key.0) {
            link.take();
        }
    }

    /// Every AMQP connection ends as soon as nothing is in flight on it.
    pub(crate) fn drain(&self) {
        self.draining.set(true);
        for link in self.links.borrow().iter().flatten() {
            link.wake();
        }
    }
}
