//! One core: a thread with a `current_thread` runtime, its listeners, its devices and its AMQP connections.
//!
//! Nothing on the message path leaves the core. From outside come [`Order`]s: take-over, who is connected, new secrets.

use std::{
    cell::{Cell, Ref, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::Waker,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use gateway_core::{
    drain::{
        Cause,
        pick::{Picks, Standing},
    },
    message::DeviceId,
    pipeline::Pipeline,
    session::{self, InFlight},
    settings::{Protocol, Settings},
    time::{Millis, Now, UnixSeconds},
};
use slab::Slab;
use tokio::{
    runtime::{LocalOptions, LocalRuntime},
    sync::{mpsc, oneshot},
};
use tracing::{debug, info};

use crate::{
    listener::{self, Bound},
    metrics::Metrics,
    presence::Place,
    server::{Shared, Stage},
    transport::Buffers,
    unauthenticated::{self, Unauthenticated},
    upstream::{CoreShare, Upstream, UpstreamSecrets},
    wheel::{Tick, Wheel},
};

/// Bytes read from a socket at a time. More than a TLS handshake message (64 KiB) and a record: an incomplete one of
/// either always leaves room behind it.
const READ_BYTES: usize = 128 * 1024;
/// How long connections may take to say goodbye after the drain deadline.
const GOODBYE: Duration = Duration::from_secs(2);

/// Certificates checked again at once, some 100 µs each, and the pause behind them: a fifth of the core at most.
const CHECKS_AT_ONCE: usize = 20;
const CHECKS_PAUSE: Duration = Duration::from_millis(10);

/// What other threads may ask of a core.
#[derive(Debug)]
pub enum Order {
    /// A newer connection of the same device exists: close the one at this place.
    TakeOver(Place),
    /// Who is connected.
    Connections(ConnectionsQuery, oneshot::Sender<Vec<ConnectionInfo>>),
    /// Use these for the hub's side from now on.
    Secrets(Arc<UpstreamSecrets>),
    /// Let so many devices go, for this reason; [`Cause::CertificateAuthority`]: only such as are no longer trusted.
    LetGo(u64, Cause),
    /// Run by these from now on: same listeners, same peer.
    Settings(Arc<Settings>, Arc<UpstreamSecrets>),
    /// Some CA is not trusted any more: find out whom it let in.
    CheckTrust,
}

/// A filtered, bounded question for connections.
#[derive(Debug, Clone, Default)]
pub struct ConnectionsQuery {
    /// Exact device (`d` or `d/m`), or a prefix if it ends with `*`.
    pub device: Option<String>,
    /// Only this protocol.
    pub protocol: Option<Protocol>,
    /// Only devices after this one, in order of their ids.
    pub after: Option<String>,
    /// At most so many.
    pub limit: usize,
}

/// One connected device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Who.
    pub device: DeviceId,
    /// When its CONNECT was accepted.
    pub since: UnixSeconds,
    /// Over what.
    pub protocol: Protocol,
    /// From where.
    pub address: SocketAddr,
    /// What is under way.
    pub in_flight: InFlight,
}

/// Everything that the connections of one core share.
pub struct Core {
    /// Number of this core.
    pub index: u16,
    settings: RefCell<Arc<Settings>>,
    /// Of this core alone.
    pub metrics: Arc<Metrics>,
    /// Of the whole process.
    pub shared: Arc<Shared>,
    /// The hub's side.
    pub upstream: Upstream,
    /// Timers.
    pub wheel: Wheel,
    /// Time.
    pub clock: Clock,
    /// Connections, by key.
    pub roster: RefCell<Slab<Entry>>,
    /// Lent to one connection at a time.
    pub bench: RefCell<Bench>,
    /// What connections keep before they are let in.
    pub unauthenticated: Unauthenticated,
    picks: RefCell<Picks<PlaceOnCore>>,
    /// How often somebody ceased to be trusted.
    trust: Cell<u32>,
    empty: tokio::sync::Notify,
}

/// What a connection works with during its turn.
pub struct Bench {
    /// The session's scratch room, settings and pipeline.
    pub context: session::Context,
    /// Bytes as the socket gave them.
    pub raw: Box<[u8]>,
    /// Between socket and MQTT.
    pub buffers: Buffers,
    /// MQTT bytes to be written at the end of the turn.
    pub output: Vec<u8>,
}

/// One connection, as the rest of the core sees it.
#[derive(Debug)]
pub struct Entry {
    /// Wakes its task.
    pub waker: Option<Waker>,
    /// What it should look at when it wakes.
    pub signals: Signals,
    /// Never used again, unlike the key.
    pub serial: u64,
    /// From where.
    pub address: SocketAddr,
    /// Over what.
    pub protocol: Protocol,
    /// Who and since when, once its CONNECT was accepted.
    pub device: Option<(DeviceId, UnixSeconds)>,
    /// It was let in by a certificate that is not trusted any more and is to be told to go, in pace.
    pub distrusted: bool,
    /// As of its last turn.
    pub in_flight: InFlight,
    /// When `in_flight` changed last, or the connection came: a ping breaks no silence.
    pub silent_since: Millis,
    /// It was told to go.
    pub leaving: Option<Leaving>,
}

/// Names a connection of one core, for ever: its key in the roster and its serial number.
pub type PlaceOnCore = (u32, u64);

/// Why and how a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaving {
    /// For the metric.
    pub cause: Cause,
    /// What is in flight may settle until then.
    pub deadline: Millis,
}

/// What others tell a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Signals {
    /// A newer connection of the same device exists.
    pub taken_over: bool,
    /// [`Entry::leaving`] has changed: let what is in flight settle, then close.
    pub leave: bool,
    /// Another CA is trusted now: see whether the device's certificate still is.
    pub check_trust: bool,
}

/// The core's clock. Its zero is the start of the process.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    /// Unix milliseconds at the start, as of the last look at the wall clock.
    unix_start_ms: Cell<u64>,
    looked: Cell<u64>,
}

impl Bench {
    fn new(context: session::Context) -> Self {
        let raw = vec![0; READ_BYTES].into_boxed_slice();
        Self { context, raw, buffers: Buffers::default(), output: Vec::new() }
    }

    /// Replaces what a connection that panicked in its turn did not give back.
    pub fn mend(&mut self) {
        if self.raw.len() != READ_BYTES {
            self.raw = vec![0; READ_BYTES].into_boxed_slice();
            self.output.clear();
            self.buffers.clear();
        }
    }
}

impl Clock {
    /// Counts from `start`.
    pub fn new(start: Instant) -> Self {
        let clock = Self { start, unix_start_ms: Cell::new(0), looked: Cell::new(0) };
        clock.look(clock.monotonic());
        clock
    }

    /// Milliseconds since the start.
    pub fn monotonic(&self) -> Millis {
        Millis(self.start.elapsed().as_millis() as u64)
    }

    /// Both clocks; the wall clock is read once a second and counted on in between.
    pub fn now(&self) -> Now {
        let monotonic = self.monotonic();
        if monotonic.0 - self.looked.get() >= 1000 {
            self.look(monotonic);
        }
        Now { monotonic, unix: UnixSeconds((self.unix_start_ms.get() + monotonic.0) / 1000) }
    }

    fn look(&self, monotonic: Millis) {
        let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        self.unix_start_ms.set(unix_ms.saturating_sub(monotonic.0));
        self.looked.set(monotonic.0);
    }
}

/// What a core is made of.
pub struct Parts {
    /// Number of this core.
    pub index: u16,
    /// Of the whole process.
    pub shared: Arc<Shared>,
    /// Its own listening sockets.
    pub listeners: Vec<Bound>,
    /// Secrets of the hub's side.
    pub secrets: Arc<UpstreamSecrets>,
    /// What other threads ask.
    pub orders: mpsc::Receiver<Order>,
}

/// Serves until [`Shared::stage`] says so and everything is closed. Blocks its thread.
pub fn run(parts: Parts) -> std::io::Result<()> {
    // not a `LocalSet`: that is a scheduler inside a scheduler, paid for at every wake
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    run_to_end(runtime, serve(parts));
    Ok(())
}

/// Runs `serve` to its end and leaves behind what has none of its own: a name that is looked up for a connection to the hub
/// takes as long as the system's resolver likes.
fn run_to_end(runtime: LocalRuntime, serve: impl Future<Output = ()>) {
    runtime.block_on(serve);
    runtime.shutdown_background();
}

async fn serve(parts: Parts) {
    let Parts { index, shared, listeners, secrets, mut orders } = parts;
    let core = Core::new(index, shared, secrets);
    let timers = tokio::task::spawn_local(Rc::clone(&core).turn_wheel());
    let accepting: Vec<_> = listeners
        .into_iter()
        .map(|listener| tokio::task::spawn_local(listener::accept(Rc::clone(&core), listener)))
        .collect();
    let mut told = core.shared.stage.subscribe();
    let deadline = loop {
        let stage = *told.borrow_and_update();
        if stage != Stage::Serving {
            for task in &accepting {
                task.abort();
            }
        }
        if let Stage::Stopping(deadline) = stage {
            break deadline;
        }
        tokio::select! {
            Some(order) = orders.recv() => core.carry_out(order),
            // an error means that nobody is left who could tell
            changed = told.changed() => if changed.is_err() { break core.clock.monotonic() },
        }
    };
    core.drain(deadline, &mut orders).await;
    let left = deadline.since(core.clock.monotonic());
    core.upstream.shutdown(left.max(GOODBYE)).await;
    timers.abort();
}

impl Core {
    fn new(index: u16, shared: Arc<Shared>, secrets: Arc<UpstreamSecrets>) -> Rc<Self> {
        let settings = shared.settings.load_full();
        let metrics = Arc::clone(&shared.registry.cores[usize::from(index)]);
        let share = CoreShare { core: index, cores: shared.registry.cores.len() as u16 };
        let outage_pace = Arc::clone(&shared.outage_pace);
        let upstream = Upstream::new(Arc::clone(&settings), secrets, share, outage_pace, Arc::clone(&metrics));
        let context = session::Context::new(Arc::clone(&settings), Pipeline::new(&settings));
        let bench = Bench::new(context);
        Rc::new(Self {
            index,
            settings: RefCell::new(settings),
            metrics,
            clock: Clock::new(shared.start),
            shared,
            upstream,
            wheel: Wheel::default(),
            roster: RefCell::default(),
            bench: RefCell::new(bench),
            unauthenticated: Unauthenticated::default(),
            picks: RefCell::default(),
            trust: Cell::new(0),
            empty: tokio::sync::Notify::new(),
        })
    }

    /// What the gateway runs by. Not to be held while others run.
    pub fn settings(&self) -> Ref<'_, Settings> {
        Ref::map(self.settings.borrow(), |settings| &**settings)
    }

    /// What connections of this core may keep before they are let in, all together.
    pub fn unauthenticated_bytes_max(&self) -> usize {
        unauthenticated::bytes_max(&self.settings().limits, self.shared.cores.len())
    }

    /// Changes when somebody ceases to be trusted.
    pub fn trust(&self) -> u32 {
        self.trust.get()
    }

    /// A connection came.
    pub fn enroll(&self, address: SocketAddr, protocol: Protocol) -> Place {
        let serial = self.shared.presence.next_serial();
        let key = self.roster.borrow_mut().insert(Entry {
            waker: None,
            signals: Signals::default(),
            serial,
            address,
            protocol,
            device: None,
            distrusted: false,
            in_flight: InFlight::default(),
            silent_since: self.clock.monotonic(),
            leaving: None,
        });
        Place { core: self.index, key: key as u32, serial }
    }

    /// A connection is gone.
    pub fn dismiss(&self, place: Place, armed: Option<Tick>) {
        self.wheel.rearm(place.key, armed, None);
        let mut roster = self.roster.borrow_mut();
        if let Some(entry) = roster.try_remove(place.key as usize) {
            self.metrics.busy.add(-i64::from(entry.is_busy()));
            self.note_cut_short(entry, place);
        }
        if roster.is_empty() {
            roster.shrink_to_fit();
            self.empty.notify_one();
        }
    }

    /// If the device was still there, its task was cut short.
    fn note_cut_short(&self, entry: Entry, place: Place) {
        let Some((device, _)) = entry.device else { return };
        self.shared.presence.leave(&device, place);
        match entry.leaving {
            Some(leaving) => self.metrics.let_go.at(leaving.cause).inc(),
            None if entry.distrusted => self.metrics.distrusted.add(-1),
            None => {}
        }
    }

    /// What the connection at `key` has in flight is another number now.
    pub fn note_in_flight(&self, key: u32, in_flight: InFlight, now: Millis) {
        let mut roster = self.roster.borrow_mut();
        let Some(entry) = roster.get_mut(key as usize) else { return };
        let before = entry.is_busy();
        entry.in_flight = in_flight;
        entry.silent_since = now;
        self.metrics.busy.add(i64::from(entry.is_busy()) - i64::from(before));
    }

    /// The connection at `place` has to go, wherever it is.
    pub fn take_over(self: &Rc<Self>, place: Place) {
        if place.core == self.index {
            self.signal(place, |signals| signals.taken_over = true);
            return;
        }
        let orders = self.shared.cores[usize::from(place.core)].clone();
        if let Err(mpsc::error::TrySendError::Full(order)) = orders.try_send(Order::TakeOver(place)) {
            // that core has a burst to work off: this waits instead of the device
            tokio::task::spawn_local(async move { orders.send(order).await.ok() });
        }
    }

    fn signal(&self, place: Place, set: impl FnOnce(&mut Signals)) {
        let mut roster = self.roster.borrow_mut();
        let Some(entry) = roster.get_mut(place.key as usize).filter(|entry| entry.serial == place.serial) else {
            return;
        };
        set(&mut entry.signals);
        if let Some(waker) = &entry.waker {
            waker.wake_by_ref();
        }
    }

    fn carry_out(self: &Rc<Self>, order: Order) {
        match order {
            Order::TakeOver(place) => self.signal(place, |signals| signals.taken_over = true),
            Order::Connections(query, answer) => {
                // the asker may have gone away
                let _gone = answer.send(self.connections(&query));
            }
            Order::Secrets(secrets) => self.upstream.set_secrets(secrets),
            Order::LetGo(count, cause) => self.let_go(count, cause),
            Order::Settings(settings, secrets) => self.follow(settings, secrets),
            Order::CheckTrust => {
                self.trust.set(self.trust.get().wrapping_add(1));
                tokio::task::spawn_local(Rc::clone(self).check_trust());
            }
        }
    }

    /// Runs by other settings; every connection stays.
    fn follow(&self, settings: Arc<Settings>, secrets: Arc<UpstreamSecrets>) {
        let pipeline = Pipeline::new(&settings);
        self.bench.borrow_mut().context = session::Context::new(Arc::clone(&settings), pipeline);
        self.upstream.set_settings(Arc::clone(&settings), secrets);
        self.settings.replace(settings);
    }

    /// Asks every connection to check its device's certificate again, a few at a time: each costs a signature.
    async fn check_trust(self: Rc<Self>) {
        let keys: Vec<usize> = self.roster.borrow().iter().map(|(key, _)| key).collect();
        for few in keys.chunks(CHECKS_AT_ONCE) {
            for key in few {
                if let Some(entry) = self.roster.borrow_mut().get_mut(*key) {
                    entry.signals.check_trust = true;
                    entry.waker.iter().for_each(Waker::wake_by_ref);
                }
            }
            tokio::time::sleep(CHECKS_PAUSE).await;
        }
    }

    /// Tells the `count` devices that matter least at this moment to go; whom it does not find it counts.
    fn let_go(&self, count: u64, cause: Cause) {
        let now = self.clock.monotonic();
        let leaving = Leaving { cause, deadline: now.after(self.settings().limits.shutdown_timeout) };
        for found in 0..count {
            let Some(place) = self.next_to_go(now, cause == Cause::CertificateAuthority) else {
                self.metrics.let_go_unused.add(count - found);
                break;
            };
            self.tell_to_go(place, leaving);
        }
    }

    fn next_to_go(&self, now: Millis, distrusted: bool) -> Option<PlaceOnCore> {
        if distrusted && self.metrics.distrusted.get() == 0 {
            return None;
        }
        let roster = self.roster.borrow();
        let may_go = |entry: &Entry| entry.standing().filter(|standing| !(distrusted && standing.trusted));
        let look = |(key, serial): PlaceOnCore| {
            roster.get(key as usize).filter(|entry| entry.serial == serial).and_then(may_go)
        };
        let everyone = || {
            let standing = |(key, entry): (usize, &Entry)| Some(((key as u32, entry.serial), may_go(entry)?));
            roster.iter().filter_map(standing)
        };
        self.picks.borrow_mut().next(now, look, everyone)
    }

    fn tell_to_go(&self, (key, _): PlaceOnCore, leaving: Leaving) {
        let mut roster = self.roster.borrow_mut();
        let Some(entry) = roster.get_mut(key as usize) else { return };
        self.metrics.distrusted.add(-i64::from(std::mem::take(&mut entry.distrusted)));
        self.metrics.busy.add(-i64::from(entry.is_busy()));
        entry.leaving = Some(leaving);
        entry.signals.leave = true;
        if let Some(waker) = &entry.waker {
            waker.wake_by_ref();
        }
    }

    /// Everybody goes, whoever is already on the way by `deadline` at the latest.
    fn tell_all_to_go(&self, deadline: Millis) {
        for (_, entry) in self.roster.borrow_mut().iter_mut() {
            self.metrics.distrusted.add(-i64::from(std::mem::take(&mut entry.distrusted)));
            self.metrics.busy.add(-i64::from(entry.is_busy()));
            let cause = entry.leaving.map_or(Cause::Termination, |leaving| leaving.cause);
            entry.leaving = Some(Leaving { cause, deadline });
            entry.signals.leave = true;
            if let Some(waker) = &entry.waker {
                waker.wake_by_ref();
            }
        }
    }

    async fn drain(self: &Rc<Self>, deadline: Millis, orders: &mut mpsc::Receiver<Order>) {
        info!(core = self.index, connections = self.roster.borrow().len(), "core drains");
        self.tell_all_to_go(deadline);
        let bound = tokio::time::sleep(deadline.since(self.clock.monotonic()) + GOODBYE);
        tokio::pin!(bound);
        while !self.roster.borrow().is_empty() {
            tokio::select! {
                () = self.empty.notified() => {}
                Some(order) = orders.recv() => self.carry_out(order),
                () = &mut bound => {
                    debug!(core = self.index, left = self.roster.borrow().len(), "drain bound reached");
                    break;
                }
            }
        }
    }

    async fn turn_wheel(self: Rc<Self>) {
        loop {
            let first = self.wheel.first();
            let wait = first.map_or(Duration::from_hours(1), |tick| tick.millis().since(self.clock.monotonic()));
            let earlier = std::future::poll_fn(|cx| self.wheel.poll_earlier(first, cx));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = earlier => {}
            }
            let now = self.clock.monotonic();
            while let Some(key) = self.wheel.pop_due(now) {
                if let Some(Entry { waker: Some(waker), .. }) = self.roster.borrow().get(key as usize) {
                    waker.wake_by_ref();
                }
            }
        }
    }

    /// At most `limit` of this core's connections, in order of their devices.
    fn connections(&self, query: &ConnectionsQuery) -> Vec<ConnectionInfo> {
        let roster = self.roster.borrow();
        let mut found: Vec<_> = roster
            .iter()
            .filter_map(|(_, entry)| Some((entry, entry.device.as_ref()?)))
            .filter(|(entry, (device, _))| query.matches(device.as_str(), entry.protocol))
            .collect();
        found.sort_unstable_by_key(|(_, (device, _))| device.as_str());
        found.truncate(query.limit);
        let info = |(entry, (device, since)): &(&Entry, &(DeviceId, UnixSeconds))| ConnectionInfo {
            device: device.clone(),
            since: *since,
            protocol: entry.protocol,
            address: entry.address,
            in_flight: entry.in_flight,
        };
        found.iter().map(info).collect()
    }
}

impl Entry {
    /// How it stands among those who may be told to go: a connected device that has not been told yet.
    fn standing(&self) -> Option<Standing> {
        if self.device.is_none() || self.leaving.is_some() {
            return None;
        }
        Some(Standing { trusted: !self.distrusted, in_flight: self.messages(), silent_since: self.silent_since })
    }

    /// Whether messages are under way of one that was not told to go.
    fn is_busy(&self) -> bool {
        self.leaving.is_none() && self.messages() > 0
    }

    /// Under way in both directions.
    fn messages(&self) -> usize {
        self.in_flight.telemetry + self.in_flight.commands
    }
}

impl ConnectionsQuery {
    fn matches(&self, device: &str, protocol: Protocol) -> bool {
        let is_device = |pattern: &String| match pattern.strip_suffix('*') {
            Some(prefix) => device.starts_with(prefix),
            None => device == pattern,
        };
        self.device.as_ref().is_none_or(is_device)
            && self.protocol.is_none_or(|wanted| wanted == protocol)
            && self.after.as_deref().is_none_or(|after| device > after)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        net::{IpAddr, Ipv4Addr, SocketAddr},
        time::Duration,
    };

    use gateway_core::{
        drain::pick::Picks,
        message::DeviceId,
        session::InFlight,
        settings::Protocol,
        time::{Millis, UnixSeconds},
    };
    use slab::Slab;

    use super::{ConnectionsQuery, Entry, LocalOptions, Signals, run_to_end};

    #[test]
    fn the_end_of_a_core_does_not_wait_for_a_name_that_is_looked_up() {
        let (begun, (end, ended)) = (std::time::Instant::now(), std::sync::mpsc::channel::<()>());
        let runtime = tokio::runtime::Builder::new_current_thread().build_local(LocalOptions::default()).unwrap();
        run_to_end(runtime, async {
            // as the runtime asks the system's resolver
            tokio::task::spawn_blocking(move || ended.recv_timeout(Duration::from_mins(1)));
        });
        assert!(begun.elapsed() < Duration::from_secs(30));
        drop(end);
    }

    fn check(query: &ConnectionsQuery, device: &str, expected: bool) {
        assert_eq!(query.matches(device, Protocol::Mqtt), expected, "{query:?} {device}");
    }

    #[test]
    fn connections_are_filtered_by_device_protocol_and_place_in_the_order() {
        let any = ConnectionsQuery::default();
        check(&any, "d", true);
        let exact = ConnectionsQuery { device: Some("d1".into()), ..any.clone() };
        check(&exact, "d1", true);
        check(&exact, "d11", false);
        let prefix = ConnectionsQuery { device: Some("d1*".into()), ..any.clone() };
        check(&prefix, "d11", true);
        check(&prefix, "e", false);
        let protocol = ConnectionsQuery { protocol: Some(Protocol::MqttWebSocket), ..any.clone() };
        check(&protocol, "d", false);
        let after = ConnectionsQuery { after: Some("d".into()), ..any };
        check(&after, "d", false);
        check(&after, "d1", true);
    }

    fn entry(number: u64) -> Entry {
        Entry {
            waker: None,
            signals: Signals::default(),
            serial: number,
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1),
            protocol: Protocol::Mqtt,
            device: Some((DeviceId::new(&format!("d{number}"), None).unwrap(), UnixSeconds(0))),
            in_flight: InFlight::default(),
            silent_since: Millis(number * 7919 % 20_000),
            distrusted: false,
            leaving: None,
        }
    }

    #[test]
    fn choosing_among_twenty_thousand_devices_looks_at_all_of_them_once_a_second() {
        let roster: Slab<Entry> = (0..20_000).map(|number| (number as usize, entry(number))).collect();
        let (mut picks, passes) = (Picks::default(), Cell::new(0));
        for (turn, expected) in (0..600).zip((0..20_000_u64).map(|place| place % 30)) {
            let everyone = || {
                passes.set(passes.get() + 1);
                roster.iter().filter_map(|(key, entry)| Some(((key as u32, entry.serial), entry.standing()?)))
            };
            let look = |(key, _): (u32, u64)| roster[key as usize].standing();
            // thirty a second
            let (_, serial) = picks.next(Millis(20_000 + turn / 30 * 1000), look, everyone).unwrap();
            assert_eq!(serial * 7919 % 20_000, expected);
        }
        assert_eq!(passes.get(), 20);
    }
}
