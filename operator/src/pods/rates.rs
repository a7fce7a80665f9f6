//! Counters that only grow, until the program behind them starts anew, as rates.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::load::Load;

/// Rates are over this long.
pub(super) const WINDOW: Duration = Duration::from_secs(15);
/// Rates over less than this say nothing.
const SPAN_MIN: Duration = Duration::from_millis(500);
/// A pod is asked once a second.
const SAMPLES_MAX: usize = 20;

/// What a pod's counters were in the last seconds.
#[derive(Debug, Default)]
pub(super) struct Rates(VecDeque<Sample>);

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    messages: u64,
    connects: u64,
    let_go: u64,
}

/// Per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rate {
    pub(super) messages: f64,
    pub(super) connects: f64,
}

/// How many more than at the sample before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Growth {
    pub(super) connects: u64,
    pub(super) let_go: u64,
    /// The program behind the counters is another one.
    pub(super) anew: bool,
}

impl Rates {
    /// Takes a sample. What the first one counted happened before anybody looked.
    pub(super) fn add(&mut self, load: &Load, now: Instant) -> Growth {
        let sample =
            Sample { at: now, messages: load.messages_total, connects: load.connects_total, let_go: load.let_go_total };
        let growth = self.0.back().map(|last| growth(last, &sample)).unwrap_or_default();
        if self.0.back().is_some_and(|last| sample.started_anew(last)) {
            self.0.clear();
        }
        self.0.push_back(sample);
        let too_old = |first: &Sample| now.saturating_duration_since(first.at) > WINDOW;
        while self.0.len() > SAMPLES_MAX || self.0.front().is_some_and(too_old) {
            self.0.pop_front();
        }
        growth
    }

    /// Over the window. Of a pod that does not answer it is what it was.
    pub(super) fn rate(&self) -> Rate {
        let (Some(first), Some(last)) = (self.0.front(), self.0.back()) else { return Rate::default() };
        let span = last.at.saturating_duration_since(first.at);
        if span < SPAN_MIN {
            return Rate::default();
        }
        let per_second = |from: u64, to: u64| to.saturating_sub(from) as f64 / span.as_secs_f64();
        Rate {
            messages: per_second(first.messages, last.messages),
            connects: per_second(first.connects, last.connects),
        }
    }
}

impl Sample {
    /// Counters went back: the container was started again.
    fn started_anew(&self, last: &Self) -> bool {
        self.messages < last.messages || self.connects < last.connects || self.let_go < last.let_go
    }
}

fn growth(last: &Sample, now: &Sample) -> Growth {
    // all of it is since the new start
    let zero = Sample { messages: 0, connects: 0, let_go: 0, ..*last };
    let anew = now.started_anew(last);
    let since = if anew { zero } else { *last };
    Growth { connects: now.connects - since.connects, let_go: now.let_go - since.let_go, anew }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(messages_total: u64, connects_total: u64, let_go_total: u64) -> Load {
        Load { connects_total, messages_total, let_go_total, ..Load::default() }
    }

    #[test]
    fn rates_are_over_the_window_and_end_with_it() {
        let begin = Instant::now();
        let mut rates = Rates::default();
        assert_eq!(rates.rate(), Rate::default());
        for second in 0..100u64 {
            let growth = rates.add(&load(second * 50, second * 2, second), begin + Duration::from_secs(second));
            assert_eq!(growth.connects, if second == 0 { 0 } else { 2 });
        }
        assert_eq!(rates.rate(), Rate { messages: 50.0, connects: 2.0 });
        for second in 100..116u64 {
            rates.add(&load(99 * 50, 99 * 2, 99), begin + Duration::from_secs(second));
        }
        assert_eq!(rates.rate(), Rate::default());
        assert!(rates.0.len() <= SAMPLES_MAX);
    }

    #[test]
    fn a_container_that_starts_anew_counts_from_zero() {
        let begin = Instant::now();
        let mut rates = Rates::default();
        rates.add(&load(1000, 100, 10), begin);
        let growth = rates.add(&load(5, 7, 0), begin + Duration::from_secs(1));
        assert_eq!(growth, Growth { connects: 7, let_go: 0, anew: true });
        assert_eq!(rates.rate(), Rate::default());
        rates.add(&load(15, 8, 0), begin + Duration::from_secs(2));
        assert_eq!(rates.rate(), Rate { messages: 10.0, connects: 1.0 });
    }
}
