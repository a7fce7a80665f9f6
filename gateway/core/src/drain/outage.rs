//! How fast those devices go for whom the hub has done nothing for `outageMax`: one pace for a whole gateway, so that gateways
//! that share a budget keep within it.

use std::time::Duration;

use super::pace::Pace;
use crate::time::Millis;

/// After so long without a question the next one begins anew.
const REST: Duration = Duration::from_mins(2);

/// The pace of one gateway.
#[derive(Debug, Default)]
pub struct OutagePace {
    pace: Pace,
    asked: Option<Millis>,
    /// Devices let go since the start.
    gone: u64,
}

/// Devices wait for their turn.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    /// Devices per second, for the whole gateway.
    pub per_second: f64,
    /// Devices that may go.
    pub waiting: u64,
    /// A drain lets devices go now: its pace is the only one then.
    pub held: bool,
    /// From 0 to 1: the hub is away for many gateways at once, and not all of them begin in the same second.
    pub chance: f64,
}

impl OutagePace {
    /// How many devices may go now; whoever asks lets them go at once.
    pub fn take(&mut self, ask: Ask, now: Millis) -> u64 {
        if self.asked.is_none_or(|asked| now.since(asked) >= REST) {
            self.pace.begin(ask.chance);
        }
        self.asked = Some(now);
        if ask.held {
            self.pace.rest();
            return 0;
        }
        self.pace.note_closed(self.gone, now);
        let count = self.pace.take(ask.per_second, 0, ask.waiting, now);
        self.gone += count;
        self.pace.note_closed(self.gone, now);
        count
    }
}

#[cfg(test)]
mod tests {
    use super::{Ask, OutagePace};
    use crate::time::Millis;

    fn ask(per_second: f64, waiting: u64) -> Ask {
        Ask { per_second, waiting, held: false, chance: 0.5 }
    }

    /// Devices that go in a minute when `askers` ask one after the other, each twenty times a second.
    fn gone_in_a_minute(per_second: f64, askers: u64) -> u64 {
        let mut pace = OutagePace::default();
        let asks = (0..60_000).step_by(50).flat_map(|at| (0..askers).map(move |_| Millis(at)));
        asks.map(|now| pace.take(ask(per_second, 1000), now)).sum()
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
        let mut pace = OutagePace::default();
        for now in (0..60_000).step_by(100) {
            assert_eq!(pace.take(Ask { held: true, ..ask(10.0, 5) }, Millis(now)), 0);
        }
        assert_eq!(pace.take(ask(10.0, 5), Millis(60_000)), 0);
        assert_eq!(pace.take(ask(10.0, 5), Millis(60_200)), 1);
    }
}
