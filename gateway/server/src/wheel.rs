//! The timers of one core: a device holds a tick, the core holds one sleep.
//!
//! Coarse on purpose: deadlines are rounded up to a tick of 100 ms, and a deadline that moved later is looked at when
//! its old tick comes, so a message arms nothing.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    task::{Context, Poll, Waker},
};

use gateway_core::time::Millis;

/// Length of a tick, in milliseconds.
pub const TICK_MS: u64 = 100;

/// A moment in ticks since the start of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(u32);

impl Tick {
    /// The first tick at or after `at`.
    pub fn after(at: Millis) -> Self {
        Self(u32::try_from(at.0.div_ceil(TICK_MS)).unwrap_or(u32::MAX))
    }

    /// When it comes.
    pub fn millis(self) -> Millis {
        Millis(u64::from(self.0) * TICK_MS)
    }
}

/// Which connection is to be woken at which tick; connections are named by their key in the roster.
#[derive(Debug, Default)]
pub struct Wheel {
    due: RefCell<BTreeSet<(Tick, u32)>>,
    /// Of the one task that sleeps until the first tick.
    sleeper: RefCell<Option<Waker>>,
}

impl Wheel {
    /// Wakes `key` at `tick` instead of at `before`.
    pub fn rearm(&self, key: u32, before: Option<Tick>, tick: Option<Tick>) {
        if before == tick {
            return;
        }
        let mut due = self.due.borrow_mut();
        if let Some(before) = before {
            due.remove(&(before, key));
        }
        let Some(tick) = tick else { return };
        due.insert((tick, key));
        let is_first = due.first() == Some(&(tick, key));
        if is_first && let Some(sleeper) = self.sleeper.borrow_mut().take() {
            sleeper.wake();
        }
    }

    /// Takes a connection whose tick has come.
    pub fn pop_due(&self, now: Millis) -> Option<u32> {
        let mut due = self.due.borrow_mut();
        let &(tick, key) = due.first()?;
        if tick.millis() > now {
            return None;
        }
        due.pop_first();
        Some(key)
    }

    /// Ready with the first tick as soon as it lies before `slept_for` (or as soon as there is one).
    pub fn poll_earlier(&self, slept_for: Option<Tick>, cx: &Context<'_>) -> Poll<()> {
        let first = self.first();
        if first.is_some_and(|first| slept_for.is_none_or(|slept_for| first < slept_for)) {
            return Poll::Ready(());
        }
        *self.sleeper.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The first tick at which something is due.
    pub fn first(&self) -> Option<Tick> {
        self.due.borrow().first().map(|(tick, _)| *tick)
    }
}

#[cfg(test)]
mod tests {
    use gateway_core::time::Millis;

    use super::{Tick, Wheel};

    fn due(wheel: &Wheel, now: u64) -> Vec<u32> {
        std::iter::from_fn(|| wheel.pop_due(Millis(now))).collect()
    }

    #[test]
    fn a_connection_is_woken_at_its_tick_and_never_before() {
        let wheel = Wheel::default();
        let at = |ms| Some(Tick::after(Millis(ms)));
        wheel.rearm(1, None, at(250));
        wheel.rearm(2, None, at(100));
        assert_eq!(wheel.first(), at(100));
        assert!(due(&wheel, 99).is_empty());
        assert_eq!(due(&wheel, 299), [2]);
        assert_eq!(due(&wheel, 300), [1]);
        assert_eq!(wheel.first(), None);
    }

    #[test]
    fn a_tick_that_moves_takes_the_old_one_along() {
        let wheel = Wheel::default();
        let (early, late) = (Tick::after(Millis(100)), Tick::after(Millis(900)));
        wheel.rearm(1, None, Some(early));
        wheel.rearm(1, Some(early), Some(late));
        assert!(due(&wheel, 500).is_empty());
        wheel.rearm(1, Some(late), None);
        assert!(due(&wheel, 5000).is_empty());
    }
}
