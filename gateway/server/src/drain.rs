//! Carries out the drain: takes orders, asks the core library how many devices may go, and hands that number out to the cores.
//!
//! Lives on the housekeeping thread and looks every 20 ms while devices are being let go, never otherwise. The cores alone know
//! their devices and choose who goes.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            Ordering::{Acquire, Relaxed},
            fence,
        },
    },
    time::Duration,
};

use gateway_core::{
    drain::{
        self, Cause, Counts, Drain, Grant, Order, Refused, Report,
        share::{share, share_in_turn},
    },
    time::Millis,
};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::{
    core,
    metrics::{Gauge, Metrics},
    server::Shared,
};

/// The drain and what each core was told.
#[derive(Debug)]
pub struct Drains {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    drain: Drain,
    /// Devices that each core was told to let go.
    told: Vec<u64>,
    /// Grants that no core could be told.
    undelivered: u64,
    /// As of the last look: told once.
    paused: bool,
}

/// What one core knows, read in this order.
#[derive(Debug, Clone, Copy)]
struct CoreCounts {
    closed: u64,
    unused: u64,
    distrusted: u64,
    connections: u64,
    /// With messages under way and not told to go.
    busy: u64,
}

impl Drains {
    /// Nobody is let go.
    pub fn new(cores: usize) -> Self {
        let drain = Drain::new(crate::upstream::clock::chance());
        let state = State { drain, told: vec![0; cores], undelivered: 0, paused: false };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    /// An order, new or renewed.
    pub fn order(&self, shared: &Shared, order: Order) -> Result<(), Refused> {
        let mut state = self.lock();
        let counts = state.counts(shared);
        let before = state.drain.report(counts, shared.now());
        state.drain.handle_order(order, counts, shared.now())?;
        if before.is_none_or(|before| before.cause != order.cause || before.epoch != order.epoch) {
            let Order { cause, epoch, per_second, down_to, leave, .. } = order;
            info!(?cause, epoch, per_second, down_to, leave, connections = counts.connections, "drain ordered");
        }
        self.tell(shared, &state);
        Ok(())
    }

    /// Ends the order in force.
    pub fn undrain(&self, shared: &Shared, epoch: i64) -> Result<(), Refused> {
        let mut state = self.lock();
        let ended = state.drain.report(state.counts(shared), shared.now());
        state.drain.handle_undrain(epoch, shared.now())?;
        if let Some(Report { cause, let_go, .. }) = ended {
            info!(?cause, epoch, let_go, "drain ended by order");
        }
        self.tell(shared, &state);
        Ok(())
    }

    /// The signal to stop came: in pace, within `drainTimeout`.
    pub fn stop(&self, shared: &Shared) {
        let mut state = self.lock();
        let counts = state.counts(shared);
        let timeout = shared.settings.load().limits.drain_timeout;
        state.drain.handle_stop(timeout, counts, shared.now());
        self.tell(shared, &state);
    }

    /// There are devices that are no longer trusted.
    pub fn look(&self) {
        self.changed.notify_one();
    }

    /// How the drain stands, if there is one.
    pub fn report(&self, shared: &Shared) -> Option<Report> {
        let state = self.lock();
        state.drain.report(state.counts(shared), shared.now())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What changed is seen at once, and acted upon.
    fn tell(&self, shared: &Shared, state: &State) {
        state.note(shared, shared.now());
        self.changed.notify_one();
    }
}

/// Lets devices go as the orders say, until the gateway ends.
pub async fn keep(shared: Arc<Shared>) {
    loop {
        let now = shared.now();
        let next = shared.drains.lock().go_on(&shared, now);
        let changed = shared.drains.changed.notified();
        match next {
            Some(next) => {
                // whichever comes first
                let _late = tokio::time::timeout(next.since(now).max(Duration::from_millis(1)), changed).await;
            }
            None => changed.await,
        }
    }
}

impl State {
    /// One look: devices are told to go, and the gateway goes where the drain says. Gives the moment of the next.
    fn go_on(&mut self, shared: &Shared, now: Millis) -> Option<Millis> {
        let cores = Self::read(shared);
        let counts = self.sum(&cores, shared);
        {
            let limits = &shared.settings.load().limits;
            self.drain.own_per_second = limits.drain_per_second.0;
            self.drain.alone_after = limits.drain_alone_after;
        }
        if let Some(grant) = self.drain.poll(counts, now) {
            self.hand_out(shared, &cores, grant);
        }
        let paused = self.is_paused(counts, now);
        if paused && !self.paused {
            warn!(connections = counts.connections, "drain paused: nobody renewed the order");
        }
        self.paused = paused;
        self.note(shared, now);
        if !self.drain.is_accepting(now) {
            shared.close();
        }
        if self.drain.is_over(counts, now) {
            info!(connections = counts.connections, "drain over: closing what is left");
            shared.stop();
        }
        self.drain.poll_timeout(now)
    }

    /// To each core its share of what it has left to tell, idle devices of any core before the busy ones of all.
    fn hand_out(&mut self, shared: &Shared, cores: &[CoreCounts], grant: Grant) {
        let weights = |of: &dyn Fn(u64, &CoreCounts) -> u64| -> Vec<u64> {
            cores
                .iter()
                .zip(&self.told)
                .map(|(core, told)| {
                    let departing = told.saturating_sub(core.closed).saturating_sub(core.unused);
                    of(core.connections.saturating_sub(departing), core)
                })
                .collect()
        };
        let shares = if grant.cause == Cause::CertificateAuthority {
            share(grant.count, &weights(&|_, core| core.distrusted))
        } else {
            let idle = weights(&|left, core| left.saturating_sub(core.busy));
            share_in_turn(grant.count, &idle, &weights(&|left, core| left.min(core.busy)))
        };
        let mut undelivered = grant.count - shares.iter().sum::<u64>();
        for (index, count) in shares.into_iter().enumerate().filter(|(_, count)| *count > 0) {
            match shared.cores[index].try_send(core::Order::LetGo(count, grant.cause)) {
                Ok(()) => self.told[index] += count,
                // that core has a burst to work off: it is asked again
                Err(_) => undelivered += count,
            }
        }
        self.undelivered += undelivered;
    }

    fn is_paused(&self, counts: Counts, now: Millis) -> bool {
        let state = self.drain.report(counts, now).map(|report| report.state);
        self.drain.is_ordered() && state == Some(drain::State::Paused)
    }

    /// For readiness and metrics.
    fn note(&self, shared: &Shared, now: Millis) {
        let process = &shared.registry.process;
        let counts = self.counts(shared);
        let report = self.drain.report(counts, now);
        let is_moving = |report: Report| report.state == drain::State::Draining && report.per_second > 0.0;
        shared.outage_pace.note_drain(report.is_some_and(is_moving), counts.closed);
        process.note_drain(report.map(|report| report.state), report.map_or(0, |report| report.remaining));
        if shared.is_serving() {
            process.draining.store(!self.drain.is_ready(), Relaxed);
        }
    }

    fn read(shared: &Shared) -> Vec<CoreCounts> {
        let read = |core: &Arc<Metrics>| {
            let closed = core.let_go.iter().map(|(_, count)| count.get()).sum();
            let unused = core.let_go_unused.get();
            // a device counted as gone is no longer counted as connected
            fence(Acquire);
            let of = |gauge: &Gauge| u64::try_from(gauge.get()).unwrap_or(0);
            CoreCounts {
                closed,
                unused,
                distrusted: of(&core.distrusted),
                connections: of(&core.connections),
                busy: of(&core.busy),
            }
        };
        shared.registry.cores.iter().map(read).collect()
    }

    fn counts(&self, shared: &Shared) -> Counts {
        self.sum(&Self::read(shared), shared)
    }

    fn sum(&self, cores: &[CoreCounts], shared: &Shared) -> Counts {
        let sum = |of: fn(&CoreCounts) -> u64| cores.iter().map(of).sum::<u64>();
        Counts {
            connections: sum(|core| core.connections),
            closed: sum(|core| core.closed),
            unused: sum(|core| core.unused) + self.undelivered,
            distrusted: sum(|core| core.distrusted),
            forsaken: shared.outage_pace.gone(),
        }
    }
}
