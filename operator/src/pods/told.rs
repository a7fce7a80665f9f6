//! When news of a pod are worth a reconcile. Facts are at once; numbers only when they moved, or once in a while.

use std::time::Duration;

use super::load::{ConfigReport, DrainReport, Upstream};

/// News of one fleet come no faster.
pub(super) const NEWS_EVERY: Duration = Duration::from_secs(1);
/// A number that moved little is told after this.
const DRIFT_AFTER: Duration = Duration::from_secs(10);
/// Moved by at least so many devices, and by one in [`NOTABLE_SHARE`]: that is worth telling at once.
const NOTABLE_MIN: u64 = 5;
const NOTABLE_SHARE: u64 = 50;

/// What of a pod a reconcile looks at.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Told {
    pub(super) facts: Facts,
    /// Devices connected.
    pub(super) connections: u64,
}

/// What is told at once when it changes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Facts {
    /// It answered lately.
    pub(super) answers: bool,
    /// It has not for a while, and why is known.
    pub(super) silent: bool,
    pub(super) ready: bool,
    pub(super) upstream: Upstream,
    pub(super) config: ConfigReport,
    pub(super) secrets_problem: Option<String>,
    pub(super) drain: Option<DrainReport>,
    /// Serial number of the certificate that its listeners serve.
    pub(super) served: Option<String>,
}

/// Whether a pod that was told of as `before`, so long ago, is to be told of as it is `now`.
pub(super) fn notable(before: &Told, now: &Told, since: Duration) -> bool {
    let (was, is) = (before.connections, now.connections);
    let moved = was.abs_diff(is);
    before.facts != now.facts
        || (was == 0) != (is == 0)
        || (moved >= NOTABLE_MIN && moved >= was / NOTABLE_SHARE)
        || (moved > 0 && since >= DRIFT_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(was: u64, is: u64, since_s: u64, expected: bool) {
        let told = |connections| Told { connections, ..Told::default() };
        let notable = notable(&told(was), &told(is), Duration::from_secs(since_s));
        assert_eq!(notable, expected, "{was} → {is} after {since_s} s");
    }

    #[test]
    fn numbers_are_told_when_they_moved_or_once_in_a_while() {
        check(0, 0, 3600, false);
        check(0, 1, 0, true);
        check(1, 0, 0, true);
        check(100, 104, 0, false);
        check(100, 105, 0, true);
        check(100, 95, 0, true);
        check(10_000, 10_100, 0, false);
        check(10_000, 10_200, 0, true);
        check(10_000, 10_001, 9, false);
        check(10_000, 10_001, 10, true);
    }

    #[test]
    fn facts_are_told_at_once() {
        let before = Told::default();
        for facts in [
            Facts { ready: true, ..Facts::default() },
            Facts { answers: true, ..Facts::default() },
            Facts { served: Some("01".to_owned()), ..Facts::default() },
            Facts { upstream: Upstream { throttled: true, ..Upstream::default() }, ..Facts::default() },
            Facts { upstream: Upstream { let_go_per_second: Some(0.5), ..Upstream::default() }, ..Facts::default() },
        ] {
            let now = Told { facts, ..Told::default() };
            assert!(notable(&before, &now, Duration::ZERO), "{now:?}");
        }
    }
}
