//! Devices that went with their pod, or that its deadline cut off: nobody let them go, so the budget did not hold them.

use std::time::Duration;

use planner::budget;

use super::load::{DrainState, Load};

/// An order holds for no longer than this without its renewal.
const LEASE: Duration = Duration::from_millis(budget::LEASE as u64);
/// Pods are asked once a second, and tenths of a second's worth may go at a time.
const INACCURACY: Duration = Duration::from_millis(500);
/// A pod that is not ready and has been silent for so long is gone with its node, or as good as gone.
pub(super) const UNREACHABLE_AFTER: Duration = Duration::from_secs(30);

/// A pod that went with devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Its name.
    pub pod: String,
    /// Devices that it had and that no drain let go within the budget.
    pub connections: u64,
}

/// What a pod was when it went.
#[derive(Debug, Clone)]
pub(super) struct Gone {
    /// What it said last.
    pub(super) load: Load,
    /// For how long it may have lived on after that.
    pub(super) lived: Duration,
}

impl Gone {
    /// Devices that went with it: those that it had, less those that its drain let go since, at no more than `per_second`.
    pub(super) fn lost(&self, per_second: u64) -> u64 {
        let Gone { load, lived } = self;
        let let_go = load.drain.as_ref().filter(|drain| drain.state == DrainState::Draining).map_or(0.0, |drain| {
            // who ends by itself renews nothing
            let going = if drain.cause.is_some() { LEASE.min(*lived) } else { *lived };
            drain.per_second.min(per_second as f64) * (going + INACCURACY).as_secs_f64()
        });
        load.connections.saturating_sub(let_go.ceil() as u64)
    }
}

#[cfg(test)]
mod tests {
    use crds::status::DrainCause;

    use super::{super::load::DrainReport, *};

    fn drain(cause: Option<DrainCause>, state: DrainState, per_second: f64) -> DrainReport {
        DrainReport { cause, epoch: 1, state, per_second, down_to: 0, remaining: 0, let_go: 0 }
    }

    /// Of a pod with so many devices that may have lived on for so many seconds; the budget is 100 a second.
    fn check(connections: u64, drain: impl Into<Option<DrainReport>>, lived: u64, expected: u64) {
        let load = Load { connections, drain: drain.into(), ..Load::default() };
        let gone = Gone { load, lived: Duration::from_secs(lived) };
        assert_eq!(gone.lost(100), expected, "{gone:?}");
    }

    #[test]
    fn what_no_drain_let_go_is_lost() {
        use DrainState::{Done, Draining, Paused};
        let ordered = Some(DrainCause::Eviction);
        check(50, None, 1, 50);
        check(0, None, 1, 0);
        check(0, drain(ordered, Done, 0.0), 1, 0);
        // it was emptied between two looks
        check(20, drain(ordered, Draining, 20.0), 1, 0);
        check(30, drain(None, Draining, 20.0), 1, 0);
        // its deadline cut the rest off
        check(31, drain(None, Draining, 20.0), 1, 1);
        check(500, drain(ordered, Paused, 0.0), 1, 500);
        // what its last moments made of its pace was more than the budget
        check(500, drain(None, Draining, 1000.0), 1, 350);
        // an order holds for its lease, a pod that ends goes on
        check(1000, drain(ordered, Draining, 10.0), 600, 845);
        check(1000, drain(None, Draining, 10.0), 600, 0);
    }
}
