//! The hub's clock: real time plus an offset that tests may move forward.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch, the unit of every `*_ms` time of the domain.
#[derive(Debug, Default)]
pub struct Clock {
    offset_ms: AtomicU64,
}

impl Clock {
    /// Now, in milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        since_epoch.as_millis() as u64 + self.offset_ms.load(Ordering::Relaxed)
    }

    /// Now, in seconds since the Unix epoch (the unit of `se` in SAS tokens).
    pub fn now_unix(&self) -> u64 {
        self.now_ms() / 1000
    }

    /// Moves the clock forward: locks lapse, messages and tokens expire, nobody waits.
    pub fn advance(&self, by: Duration) {
        self.offset_ms.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
    }
}

/// ISO 8601 in UTC with seven decimals, as the hub writes times; `0` is its "never".
pub fn iso8601(unix_ms: u64) -> String {
    if unix_ms == 0 {
        return "0001-01-01T00:00:00Z".to_owned();
    }
    let ms = i64::try_from(unix_ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms)
        .map_or_else(|_| "9999-12-31T23:59:59Z".to_owned(), |time| format!("{time:.7}"))
}

/// Milliseconds since the epoch of an ISO 8601 time; `None` if it is not one.
pub fn parse_iso8601(text: &str) -> Option<u64> {
    text.parse::<jiff::Timestamp>().ok().and_then(|time| u64::try_from(time.as_millisecond()).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_with_seven_decimals_and_read_back() {
        assert_eq!(iso8601(1_700_000_000_123), "2023-11-14T22:13:20.1230000Z");
        assert_eq!(parse_iso8601("2023-11-14T22:13:20.1230000Z"), Some(1_700_000_000_123));
        assert_eq!(iso8601(0), "0001-01-01T00:00:00Z");
    }

    #[test]
    fn the_clock_moves_forward_on_request() {
        let clock = Clock::default();
        let before = clock.now_ms();
        clock.advance(Duration::from_mins(1));
        assert!(clock.now_ms() >= before + 60_000);
    }
}
