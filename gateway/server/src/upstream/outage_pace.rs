//! How fast those devices go for whom the hub has done nothing for `outageMax`: one pace for the whole process, on whatever core
//! they are, so that gateways that share a budget keep within it.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use gateway_core::{drain::pace::Pace, time::Millis};

use super::clock::chance;

/// After so long without a question the next one begins anew.
const REST: Duration = Duration::from_mins(2);

/// The pace, asked by all cores.
#[derive(Debug)]
pub struct OutagePace {
    started: Instant,
    held: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pace: Pace,
    asked: Option<Millis>,
    /// Devices let go since the start.
    gone: u64,
}

impl OutagePace {
    /// Nobody has gone.
    pub fn new() -> Self {
        Self { started: Instant::now(), held: AtomicBool::new(false), state: Mutex::default() }
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
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Millis(self.started.elapsed().as_millis() as u64);
        state.take(per_second, waiting, self.held.load(Relaxed), now)
    }
}

impl Default for OutagePace {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    fn take(&mut self, per_second: f64, waiting: u64, held: bool, now: Millis) -> u64 {
        if self.asked.is_none_or(|asked| now.since(asked) >= REST) {
            // the hub is away for many gateways at once: not all of them begin in the same second
            self.pace.begin(chance());
        }
        self.asked = Some(now);
        if held {
            self.pace.rest();
            return 0;
        }
        self.pace.note_closed(self.gone, now);
        let count = self.pace.take(per_second, 0, waiting, now);
        self.gone += count;
        self.pace.note_closed(self.gone, now);
        count
    }
}

#[cfg(test)]
mod tests {
    use super::State;
    use gateway_core::time::Millis;

    /// Devices that go in a minute when `askers` ask one after the other, each twenty times a second.
    fn gone_in_a_minute(per_second: f64, askers: u64) -> u64 {
        let mut state = State::default();
        let asks = (0..60_000).step_by(50).flat_map(|at| (0..askers).map(move |_| Millis(at)));
        asks.map(|now| state.take(per_second, 1000, false, now)).sum()
    }

    #[test]
    fn however_many_ask_all_go_at_one_pace() {
        let check = |per_second: f64, askers: u64, expected: std::ops::RangeInclusive<u64>| {
            let gone = gone_in_a_minute(per_second, askers);
            assert!(expected.contains(&gone), "{gone} in a minute at {per_second} for {askers}");
        };
        check(0.1, 1, 5..=6);
        check(0.1, 64, 5..=6);
        check(8.0, 1, 380..=481);
        check(8.0, 64, 380..=481);
    }

    #[test]
    fn while_a_drain_lets_devices_go_nobody_else_does_and_nothing_is_made_up_for() {
        let mut state = State::default();
        for now in (0..60_000).step_by(100) {
            assert_eq!(state.take(10.0, 5, true, Millis(now)), 0);
        }
        assert_eq!(state.take(10.0, 5, false, Millis(60_000)), 0);
        assert_eq!(state.take(10.0, 5, false, Millis(60_200)), 1);
    }
}
