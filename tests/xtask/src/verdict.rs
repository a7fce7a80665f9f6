//! What became of messages: the devices' word against the hub's.

use std::fmt;

/// Counts of messages, over any number of devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Written by devices.
    pub sent: u64,
    /// Acknowledged to devices.
    pub acknowledged: u64,
    /// At the hub, each counted once.
    pub stored: u64,
    /// Acknowledged and not at the hub.
    pub lost: u64,
    /// At the hub once more.
    pub duplicated: u64,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, acknowledged, stored, lost, duplicated } = self;
        write!(f, "sent {sent} · acknowledged {acknowledged} · stored {stored} · lost {lost} · duplicated {duplicated}")
    }
}

impl Verdict {
    /// Adds one device: how many it sent, the closed ranges of numbers that were acknowledged to it, those (ascending) that
    /// the hub has, and how many the hub has twice.
    pub fn add(&mut self, sent: u64, acknowledged: &[(u64, u64)], stored: &[(u64, u64)], duplicates: u64) {
        let count = |ranges: &[(u64, u64)]| ranges.iter().map(|(first, last)| last - first + 1).sum::<u64>();
        let total = count(acknowledged);
        let found: u64 = acknowledged.iter().map(|&range| common(range, stored)).sum();
        self.sent += sent;
        self.acknowledged += total;
        self.stored += count(stored);
        self.lost += total - found;
        self.duplicated += duplicates;
    }
}

/// How many numbers of `range` lie in `ranges`.
fn common((first, last): (u64, u64), ranges: &[(u64, u64)]) -> u64 {
    let overlap = |&(from, to): &(u64, u64)| (to.min(last) + 1).saturating_sub(from.max(first));
    ranges.iter().map(overlap).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(acknowledged: &[(u64, u64)], ranges: &[(u64, u64)], duplicates: u64) -> Verdict {
        let mut verdict = Verdict::default();
        verdict.add(10, acknowledged, ranges, duplicates);
        verdict
    }

    #[test]
    fn an_acknowledged_message_that_is_not_stored_is_lost() {
        assert_eq!(verdict(&[(0, 2)], &[(0, 0), (2, 2)], 0).lost, 1);
        assert_eq!(verdict(&[(5, 9)], &[], 0).lost, 5);
    }

    #[test]
    fn a_stored_message_that_was_not_acknowledged_is_not_lost() {
        let found = verdict(&[(0, 0)], &[(0, 1)], 0);
        assert_eq!((found.lost, found.stored, found.acknowledged), (0, 2, 1));
    }

    #[test]
    fn acknowledged_ranges_may_lie_across_those_of_the_ledger() {
        assert_eq!(verdict(&[(0, 4), (6, 9)], &[(0, 2), (4, 7), (9, 12)], 0).lost, 2);
    }

    #[test]
    fn the_second_copy_is_a_duplicate() {
        assert_eq!(verdict(&[(0, 0)], &[(0, 0)], 2).duplicated, 2);
    }
}
