//! How fast those devices go for whom the hub has done nothing for `outageMax`: one pace for the whole process, on whatever core
//! they are.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use gateway_core::{
    drain::outage::{self, Ask},
    time::Millis,
};

use super::clock::chance;

/// The pace, asked by all cores.
#[derive(Debug)]
pub struct OutagePace {
    started: Instant,
    held: AtomicBool,
    pace: Mutex<outage::OutagePace>,
}

impl OutagePace {
    /// Nobody has gone.
    pub fn new() -> Self {
        Self { started: Instant::now(), held: AtomicBool::new(false), pace: Mutex::default() }
    }

    /// Whether a drain lets devices go now: its pace is the only one then.
    pub fn hold(&self, held: bool) {
        self.held.store(held, Relaxed);
    }

    /// How many of `waiting` devices may go now, at `per_second` for the whole process; whoever asks lets them go at once.
    pub fn take(&self, per_second: f64, waiting: u64) -> u64 {
        if waiting == 0 {
            return 0;
        }
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Millis(self.started.elapsed().as_millis() as u64);
        pace.take(Ask { per_second, waiting, held: self.held.load(Relaxed), chance: chance() }, now)
    }
}

impl Default for OutagePace {
    fn default() -> Self {
        Self::new()
    }
}
