//! How fast: a token bucket for the mean, and a sliding window for the promise that no second sees more than ⌈rate⌉ devices go.
//!
//! The window counts devices when they are gone, and those on their way as if they were: however late they all settle at once,
//! the promise holds.

use std::{collections::VecDeque, time::Duration};

use crate::time::Millis;

/// One second, and a little for what networks and clocks add between us and whoever counts.
const WINDOW: Duration = Duration::from_millis(1020);

/// The pace of one gateway. No rate: nothing accrues.
#[derive(Debug, Default)]
pub struct Pace {
    tokens: f64,
    filled: Option<Millis>,
    /// When how many went within the last [`WINDOW`], one entry per millisecond at most.
    gone: VecDeque<(Millis, u64)>,
    gone_in_window: u64,
    closed: u64,
}

impl Pace {
    /// `closed` devices have gone since the start.
    pub fn note_closed(&mut self, closed: u64, now: Millis) {
        while let Some(&(at, count)) = self.gone.front()
            && now.since(at) >= WINDOW
        {
            self.gone.pop_front();
            self.gone_in_window -= count;
        }
        let count = closed.saturating_sub(self.closed);
        self.closed = self.closed.max(closed);
        if count == 0 {
            return;
        }
        self.gone_in_window += count;
        match self.gone.back_mut() {
            Some((at, before)) if *at == now => *before += count,
            _ => self.gone.push_back((now, count)),
        }
    }

    /// Begins anew, with `part` (0 to 1) of the first device's turn behind us.
    pub fn begin(&mut self, part: f64) {
        self.tokens = part.clamp(0.0, 1.0);
        self.filled = None;
    }

    /// Nobody is to go at this time: nothing accrues.
    pub fn rest(&mut self) {
        self.filled = None;
    }

    /// How many of `spare` devices may be told to go now, while `departing` are on their way.
    pub fn take(&mut self, per_second: f64, departing: u64, spare: u64, now: Millis) -> u64 {
        let passed = now.since(self.filled.unwrap_or(now)).as_secs_f64();
        self.filled = Some(now);
        // a tenth of a second's worth makes up for a late look
        self.tokens = (self.tokens + passed * per_second).min((per_second / 10.0).max(1.0));
        let most = (per_second.ceil() as u64).saturating_sub(self.gone_in_window).saturating_sub(departing);
        let count = (self.tokens as u64).min(most).min(spare);
        self.tokens -= count as f64;
        count
    }
}

#[cfg(test)]
mod tests {
    use super::Pace;
    use crate::time::Millis;

    /// Devices that go at once when told, asked every 20 ms for ten seconds.
    fn gone_in_ten_seconds(per_second: f64) -> u64 {
        let (mut pace, mut closed) = (Pace::default(), 0);
        for now in (0..10_000).step_by(20).map(Millis) {
            pace.note_closed(closed, now);
            closed += pace.take(per_second, 0, u64::MAX, now);
        }
        closed
    }

    #[track_caller]
    fn check(per_second: f64, expected: std::ops::RangeInclusive<u64>) {
        let gone = gone_in_ten_seconds(per_second);
        assert!(expected.contains(&gone), "{gone} in ten seconds at {per_second}");
    }

    #[test]
    fn the_mean_is_the_rate_less_what_the_promise_costs() {
        check(0.0, 0..=0);
        check(0.3, 2..=3);
        check(1.0, 9..=10);
        check(2.5, 23..=25);
        check(50.0, 480..=500);
        check(999.5, 9500..=9995);
    }

    #[test]
    fn time_in_which_nobody_was_to_go_gives_no_burst() {
        let mut pace = Pace::default();
        assert_eq!(pace.take(10.0, 0, 100, Millis(0)), 0);
        pace.rest();
        assert_eq!(pace.take(10.0, 0, 100, Millis(60_000)), 0);
        assert_eq!(pace.take(10.0, 0, 100, Millis(60_100)), 1);
    }

    #[test]
    fn a_new_beginning_is_part_of_a_turn_ahead_and_no_more() {
        let mut pace = Pace::default();
        pace.begin(0.75);
        assert_eq!(pace.take(1.0, 0, 100, Millis(0)), 0);
        assert_eq!(pace.take(1.0, 0, 100, Millis(240)), 0);
        assert_eq!(pace.take(1.0, 0, 100, Millis(260)), 1);
    }

    #[test]
    fn devices_on_their_way_count_as_if_they_were_gone() {
        let mut pace = Pace::default();
        assert_eq!(pace.take(10.0, 0, 100, Millis(0)), 0);
        assert_eq!(pace.take(10.0, 10, 100, Millis(5000)), 0);
        assert_eq!(pace.take(10.0, 9, 100, Millis(5020)), 1);
    }
}
