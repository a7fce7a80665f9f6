//! How fast those devices go for whom the hub has done nothing for `outageMax`: one pace for the whole process, on whatever core
//! they are.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use gateway_core::{
    drain::outage::{self, Ask},
    settings::Limits,
    time::Millis,
};

use tracing::warn;

use super::clock::chance;

/// The pace, asked by all cores.
#[derive(Debug)]
pub struct OutagePace {
    started: Instant,
    held: AtomicBool,
    drained: AtomicU64,
    pace: Mutex<outage::OutagePace>,
}

impl OutagePace {
    /// Nobody has gone.
    pub fn new() -> Self {
        let (held, drained) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { started: Instant::now(), held, drained, pace: Mutex::default() }
    }

    /// Whether a drain lets devices go now, for its pace is the only one then; and how many drains have let go since the start.
    pub fn note_drain(&self, goes_on: bool, drained: u64) {
        self.held.store(goes_on, Relaxed);
        self.drained.store(drained, Relaxed);
    }

    /// How many of `waiting` devices may go now, at `drainPerSecond` for the whole process; whoever asks lets them go at once.
    pub fn take(&self, limits: &Limits, waiting: u64) -> u64 {
        if waiting == 0 {
            return 0;
        }
        let ask = Ask {
            per_second: limits.drain_per_second.0,
            alone_after: limits.drain_alone_after,
            waiting,
            held: self.held.load(Relaxed),
            drained: self.drained.load(Relaxed),
            chance: chance(),
        };
        let (mut pace, now) = (self.lock(), self.now());
        if !pace.is_waited_for(now) {
            let Ask { per_second, alone_after, .. } = ask;
            warn!(waiting, per_second, ?alone_after, "the hub did nothing for outageMax, letting devices go in pace");
        }
        pace.take(ask, now)
    }

    /// Whether devices go at this pace now, or are about to.
    pub fn is_waited_for(&self) -> bool {
        self.lock().is_waited_for(self.now())
    }

    /// Devices let go since the start.
    pub fn gone(&self) -> u64 {
        self.lock().gone()
    }

    fn lock(&self) -> MutexGuard<'_, outage::OutagePace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Millis {
        Millis(self.started.elapsed().as_millis() as u64)
    }
}

impl Default for OutagePace {
    fn default() -> Self {
        Self::new()
    }
}
