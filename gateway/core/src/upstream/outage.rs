//! How long devices stay while the hub is away.

use std::time::Duration;

use crate::time::Millis;

/// The hub seen from one AMQP connection: reachable, or away since a moment, with a bound.
#[derive(Debug)]
pub struct Outage {
    max: Duration,
    since: Option<Millis>,
}

impl Outage {
    /// Reachable so far.
    pub fn new(max: Duration) -> Self {
        Self { max, since: None }
    }

    /// The connection is lost or an attempt failed: the first such moment counts.
    pub fn handle_lost(&mut self, now: Millis) {
        self.since.get_or_insert(now);
    }

    /// The hub let us in again.
    pub fn handle_back(&mut self) {
        self.since = None;
    }

    /// The hub is away, for how long ever.
    pub fn is_away(&self) -> bool {
        self.since.is_some()
    }

    /// When the bound is reached, while the hub is away.
    pub fn poll_timeout(&self) -> Option<Millis> {
        self.since.map(|since| since.after(self.max))
    }

    /// The bound is reached: every message in flight is [`crate::message::Outcome::Unreachable`], the devices go.
    pub fn is_over_bound(&self, now: Millis) -> bool {
        self.poll_timeout().is_some_and(|deadline| deadline <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_runs_from_the_first_loss_and_ends_with_the_return() {
        let mut outage = Outage::new(Duration::from_mins(1));
        assert!(!outage.is_over_bound(Millis(u64::MAX)));
        outage.handle_lost(Millis(1_000));
        outage.handle_lost(Millis(50_000));
        assert!(outage.is_away());
        assert_eq!(outage.poll_timeout(), Some(Millis(61_000)));
        assert!(!outage.is_over_bound(Millis(60_999)));
        assert!(outage.is_over_bound(Millis(61_000)));
        outage.handle_back();
        assert!(!outage.is_away() && outage.poll_timeout().is_none());
    }
}
