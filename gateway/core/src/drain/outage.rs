//! How fast those devices go for whom the hub has done nothing for `outageMax`: one pace for a whole gateway, so that gateways
//! that share a budget keep within it.
//!
//! Whoever shares that budget out among gateways counts what goes here, once it is told. So it is told first: nobody goes before
//! no order can still hold that was given to another gateway without counting on it, as in [`super::Drain::alone_after`].

use std::time::Duration;

use super::pace::Pace;
use crate::time::Millis;

/// After so long without a question the next one begins anew.
const REST: Duration = Duration::from_mins(2);
/// After so long without a question nobody waits any more; who waits is asked about far more often.
const QUIET: Duration = Duration::from_secs(5);

/// The pace of one gateway.
#[derive(Debug, Default)]
pub struct OutagePace {
    pace: Pace,
    asked: Option<Millis>,
    /// Since when devices wait for their turn, without a pause.
    begun: Option<Millis>,
    /// Devices let go since the start.
    gone: u64,
}

/// Devices wait for their turn.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    /// Devices per second, for the whole gateway.
    pub per_second: f64,
    /// How long whoever shares the budget out has to hear of it, and what others were told to lapse.
    pub alone_after: Duration,
    /// Devices that may go.
    pub waiting: u64,
    /// A drain lets devices go now: its pace is the only one then.
    pub held: bool,
    /// Devices that drains have let go since the start: a second is shared with them.
    pub drained: u64,
    /// From 0 to 1: the hub is away for many gateways at once, and not all of them begin in the same second.
    pub chance: f64,
}

impl OutagePace {
    /// How many devices may go now; whoever asks lets them go at once.
    pub fn take(&mut self, ask: Ask, now: Millis) -> u64 {
        self.pace.note_closed(self.gone + ask.drained, now);
        if !self.may_go(&ask, now) {
            self.pace.rest();
            return 0;
        }
        let count = self.pace.take(ask.per_second, 0, ask.waiting, now);
        self.gone += count;
        self.pace.note_closed(self.gone + ask.drained, now);
        count
    }

    /// Whether anybody may go at all; to be asked for as long as devices wait.
    pub fn may_go(&mut self, ask: &Ask, now: Millis) -> bool {
        if self.asked.is_none_or(|asked| now.since(asked) >= REST) {
            self.pace.begin(ask.chance);
        }
        if !self.is_waited_for(now) {
            self.begun = None;
        }
        let begun = *self.begun.get_or_insert(now);
        self.asked = Some(now);
        !ask.held && now.since(begun) >= ask.alone_after
    }

    /// Whether devices go at this pace now or are about to, which is to be told.
    pub fn is_waited_for(&self, now: Millis) -> bool {
        self.asked.is_some_and(|asked| now.since(asked) < QUIET)
    }

    /// Devices let go since the start.
    pub fn gone(&self) -> u64 {
        self.gone
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Ask, OutagePace};
    use crate::time::Millis;

    fn ask(per_second: f64, waiting: u64) -> Ask {
        Ask { per_second, alone_after: Duration::ZERO, waiting, held: false, drained: 0, chance: 0.5 }
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

    /// Asked ten times a second from one moment to another: when the first went.
    fn first_gone(pace: &mut OutagePace, from: u64, until: u64) -> Option<u64> {
        let ask = Ask { alone_after: Duration::from_secs(31), ..ask(10.0, 5) };
        (from..until).step_by(100).find(|at| pace.take(ask, Millis(*at)) > 0)
    }

    #[test]
    fn it_is_told_for_long_enough_before_the_first_goes_and_for_a_while_after_the_last() {
        let mut pace = OutagePace::default();
        assert!(!pace.is_waited_for(Millis(0)));
        assert_eq!(first_gone(&mut pace, 0, 30_900), None);
        assert!(pace.is_waited_for(Millis(30_900)));
        assert_eq!(first_gone(&mut pace, 30_900, 40_000), Some(31_100));
        assert!(pace.is_waited_for(Millis(36_000)));
        assert!(!pace.is_waited_for(Millis(36_100)), "the hub is back");
        // a pause that was not told is none
        assert_eq!(first_gone(&mut pace, 36_000, 40_000), Some(36_000));
        assert_eq!(first_gone(&mut pace, 50_000, 90_000), Some(81_100), "it begins anew");
    }

    #[test]
    fn a_second_in_which_a_drain_let_devices_go_has_room_for_so_many_fewer() {
        let mut pace = OutagePace::default();
        let mut take = |drained, now| pace.take(Ask { drained, ..ask(2.0, 5) }, Millis(now));
        assert_eq!(take(0, 0), 0);
        assert_eq!(take(2, 1000), 0);
        assert_eq!(take(2, 1900), 0);
        assert_eq!(take(2, 2020), 1);
    }
}
