//! Devices that were let go and have not come back yet: they will, so the fleet is not smaller without them.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Who has not come back after this does not want to.
const WINDOW: Duration = Duration::from_mins(1);
/// What comes within this is one entry.
const BUCKET: Duration = Duration::from_secs(1);

/// Pods are asked one by one: that a device came may be heard from one pod so much sooner than from another that it went.
const DISORDER: Duration = Duration::from_millis(1900);

/// Who went and who came in the last minute, over all pods of a fleet, those that are gone included.
#[derive(Debug, Default)]
pub(super) struct Owed(VecDeque<Entry>);

#[derive(Debug, Clone, Copy)]
struct Entry {
    begun: Instant,
    let_go: u64,
    came: u64,
}

impl Owed {
    /// So many were let go, and so many connected, since the last time.
    pub(super) fn add(&mut self, let_go: u64, came: u64, now: Instant) {
        self.expire(now);
        if let_go == 0 && came == 0 {
            return;
        }
        match self.0.back_mut() {
            Some(last) if now.saturating_duration_since(last.begun) < BUCKET => {
                last.let_go = last.let_go.saturating_add(let_go);
                last.came = last.came.saturating_add(came);
            }
            _ => self.0.push_back(Entry { begun: now, let_go, came }),
        }
    }

    /// How many are still to come back: let go within the last minute, less those who connected since. Whoever connected
    /// before anybody was let go is not one of them.
    pub(super) fn count(&mut self, now: Instant) -> u64 {
        self.expire(now);
        let (mut owed, mut heard) = (0_u64, 0);
        for entry in &self.0 {
            // these may have gone before who came here
            while let Some(later) = self.0.get(heard).filter(|later| later.begun - entry.begun <= DISORDER) {
                owed = owed.saturating_add(later.let_go);
                heard += 1;
            }
            owed = owed.saturating_sub(entry.came);
        }
        owed
    }

    fn expire(&mut self, now: Instant) {
        while self.0.front().is_some_and(|first| now.saturating_duration_since(first.begun) > WINDOW) {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (second, let go, came) …, and how many are owed at a second.
    fn check(events: &[(u64, u64, u64)], at: u64, expected: u64) {
        let begin = Instant::now();
        let second = |number| begin + Duration::from_secs(number);
        let mut owed = Owed::default();
        for &(time, let_go, came) in events {
            owed.add(let_go, came, second(time));
        }
        assert_eq!(owed.count(second(at)), expected, "{events:?} at {at} s");
    }

    #[test]
    fn who_was_let_go_is_owed_until_somebody_comes_or_a_minute_has_passed() {
        check(&[], 0, 0);
        check(&[(0, 100, 0)], 0, 100);
        check(&[(0, 100, 0), (2, 0, 30)], 2, 70);
        check(&[(0, 100, 0), (2, 0, 130)], 2, 0);
        check(&[(0, 100, 0)], 60, 100);
        check(&[(0, 100, 0)], 61, 0);
        check(&[(0, 10, 0), (30, 10, 0)], 61, 10);
    }

    #[test]
    fn who_came_before_is_not_one_who_came_back() {
        check(&[(0, 0, 100), (2, 50, 0)], 2, 50);
        check(&[(0, 50, 100), (2, 50, 0)], 3, 50);
        check(&[(0, 10, 0), (5, 0, 100), (10, 10, 4)], 10, 6);
    }

    #[test]
    fn who_is_heard_of_at_the_new_pod_before_the_old_one_is_not_counted_twice() {
        check(&[(0, 0, 15), (1, 15, 0)], 1, 0);
        check(&[(0, 0, 15), (1, 15, 5), (2, 5, 0)], 3, 0);
        check(&[(0, 0, 5), (1, 15, 0)], 1, 10);
    }

    #[test]
    fn what_is_kept_is_bounded_and_numbers_do_not_overflow() {
        let begin = Instant::now();
        let mut owed = Owed::default();
        for tenth in 0..10_000u32 {
            owed.add(u64::MAX, 1, begin + Duration::from_millis(100) * tenth);
        }
        assert!(owed.0.len() <= 62, "{}", owed.0.len());
        assert!(owed.count(begin + Duration::from_secs(1000)) > u64::MAX / 2);
    }
}
