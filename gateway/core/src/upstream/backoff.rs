//! When to try again: exponential, with full jitter, so that a hub that comes back does not meet all its clients at once.

use std::time::Duration;

/// The waits between attempts to reach one peer.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
    random: u64,
}

impl Backoff {
    /// `seed` makes the jitter: another one per connection. `(first, longest)` bound the waits.
    pub fn new(seed: u64, (first, longest): (Duration, Duration)) -> Self {
        Self { first, longest: longest.max(first), failures: 0, random: seed }
    }

    /// An attempt failed or a connection ended: how long to wait before the next attempt, from 0 to
    /// `min(longest, first × 2^(failures in a row − 1))`.
    pub fn next_wait(&mut self) -> Duration {
        let ceiling = self.first.saturating_mul(1_u32 << self.failures.min(31)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(scale(self.next_random(), nanos))
    }

    /// A connection ended that had lived for `lived`. Only one that outlived the longest wait counts as a success: a peer that
    /// accepts and drops at once is still failing.
    pub fn handle_lost(&mut self, lived: Duration) {
        if lived >= self.longest {
            self.failures = 0;
        }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): no secret depends on it.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

/// `random / 2^64 × ceiling`, from 0 to `ceiling`.
fn scale(random: u64, ceiling: u64) -> u64 {
    ((u128::from(random) * (u128::from(ceiling) + 1)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

    #[test]
    fn waits_stay_below_a_ceiling_that_doubles_up_to_the_longest() {
        for seed in 0..200 {
            let mut backoff = Backoff::new(seed, BOUNDS);
            for failures in 0..40 {
                let ceiling = Duration::from_millis(100 * (1 << failures.min(20))).min(BOUNDS.1);
                assert!(backoff.next_wait() <= ceiling);
            }
        }
    }

    #[test]
    fn waits_fill_the_whole_range_and_differ_by_seed() {
        let waits: Vec<Duration> = (0..1000)
            .map(|seed| {
                let mut backoff = Backoff::new(seed, BOUNDS);
                (0..10).map(|_| backoff.next_wait()).last().unwrap()
            })
            .collect();
        let mean = waits.iter().sum::<Duration>() / 1000;
        assert!((4500..5500).contains(&mean.as_millis()), "mean {mean:?}");
        assert!(waits.iter().any(|wait| *wait < Duration::from_millis(500)));
        assert!(waits.iter().any(|wait| *wait > Duration::from_millis(9500)));
    }

    #[test]
    fn only_a_connection_that_lasted_starts_anew() {
        let ceiling_after = |lived| {
            (0..200)
                .map(|seed| {
                    let mut backoff = Backoff::new(seed, BOUNDS);
                    for _ in 0..20 {
                        backoff.next_wait();
                    }
                    backoff.handle_lost(lived);
                    backoff.next_wait()
                })
                .max()
                .unwrap()
        };
        assert!(ceiling_after(Duration::from_secs(9)) > Duration::from_secs(5));
        assert!(ceiling_after(Duration::from_secs(10)) <= BOUNDS.0);
    }

    #[test]
    fn a_longest_below_the_first_is_the_first() {
        let mut backoff = Backoff::new(1, (Duration::from_secs(2), Duration::from_secs(1)));
        (0..100).for_each(|_| assert!(backoff.next_wait() <= Duration::from_secs(2)));
    }
}
