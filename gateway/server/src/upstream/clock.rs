//! The clocks of the hub's side. Moments never leave it: their zero is its own start.

use std::{
    cell::Cell,
    hash::{BuildHasher as _, Hasher as _},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use gateway_core::time::{Millis, Now, UnixSeconds};

/// Both clocks of one core.
pub(crate) struct Clock {
    started: Instant,
    /// Microseconds of this turn of the runtime, read once and kept until an AMQP connection's task has run.
    turn_us: Cell<Option<u64>>,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), turn_us: Cell::new(None) }
    }

    /// Both clocks, read now.
    pub(crate) fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        Now { monotonic: self.monotonic(), unix: UnixSeconds(unix) }
    }

    pub(crate) fn monotonic(&self) -> Millis {
        Millis(self.started.elapsed().as_millis() as u64)
    }

    /// The runtime's moment of `at`.
    pub(crate) fn instant(&self, at: Millis) -> tokio::time::Instant {
        (self.started + Duration::from_millis(at.0)).into()
    }

    /// Microseconds since the start, the same for all devices that run between two turns of an AMQP connection's task:
    /// a clock read for each message would be felt.
    pub(crate) fn turn_us(&self) -> u64 {
        self.turn_us.get().unwrap_or_else(|| {
            let now = self.started.elapsed().as_micros() as u64;
            self.turn_us.set(Some(now));
            now
        })
    }

    /// An AMQP connection's task begins or ends its turn: the next [`Clock::turn_us`] reads the clock again.
    pub(crate) fn end_turn(&self) {
        self.turn_us.set(None);
    }
}

/// A number that differs from process to process and call to call: for names and jitter, not for keys.
pub(crate) fn random() -> u64 {
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// A part of one, from 0 to 1, for jitter.
pub(crate) fn chance() -> f64 {
    f64::from(random() as u32) / f64::from(u32::MAX)
}
