//! Time as a value. The core never reads a clock: every `handle_*` takes the [`Now`] of its caller.

use std::time::Duration;

/// Milliseconds on a monotonic clock whose zero is the start of the process (or of a test).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(pub u64);

impl Millis {
    /// The moment `duration` after this one; saturates.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this moment is; zero if it is before.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Seconds since 1970-01-01T00:00:00Z: what a SAS token's `se` is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixSeconds(pub u64);

/// One reading of both clocks, taken once per turn of the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// For timeouts and ages.
    pub monotonic: Millis,
    /// For expiries that somebody else wrote down.
    pub unix: UnixSeconds,
}
