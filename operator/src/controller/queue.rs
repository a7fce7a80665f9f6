//! Which ProtocolGateway is reconciled when: each by itself, never twice at a time, and not more often than it makes sense.
//!
//! [`Queue`] is pure: time is an argument. [`Work`] is what watches and the loop share.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::observe::mirror::Name;

/// Changes that come together are looked at together.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Reconciles of one ProtocolGateway begin at least this far apart, whatever changes.
const SPACING: Duration = Duration::from_millis(200);

/// What waits, by time.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: HashMap<Name, Entry>,
    due: BTreeSet<(Instant, Name)>,
}

#[derive(Debug, Default)]
struct Entry {
    runs: bool,
    due: Option<Instant>,
    /// No reconcile begins before.
    earliest: Option<Instant>,
    /// In a row.
    failures: u32,
}

impl Queue {
    /// Something changed.
    pub(super) fn add(&mut self, name: &Name, now: Instant) {
        self.at(name, now + DEBOUNCE);
    }

    /// It is to be looked at at this time, or before.
    pub(super) fn at(&mut self, name: &Name, time: Instant) {
        let entry = self.entries.entry(name.clone()).or_default();
        let time = entry.earliest.map_or(time, |earliest| time.max(earliest));
        match entry.due {
            Some(due) if due <= time => return,
            Some(due) => drop(self.due.remove(&(due, name.clone()))),
            None => {}
        }
        entry.due = Some(time);
        // one that runs is put in when it ends
        if !entry.runs {
            self.due.insert((time, name.clone()));
        }
    }

    /// The next whose time has come. It runs until it is [`done`](Self::done).
    pub(super) fn next(&mut self, now: Instant) -> Option<Name> {
        let (time, _) = self.due.first()?;
        if *time > now {
            return None;
        }
        let (_, name) = self.due.pop_first()?;
        let entry = self.entries.get_mut(&name)?;
        entry.runs = true;
        entry.due = None;
        entry.earliest = Some(now + SPACING);
        Some(name)
    }

    /// It ended well, or not; it is to be looked at again at `again`, if at all, and before that if something changed.
    pub(super) fn done(&mut self, name: &Name, failed: bool, again: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        entry.runs = false;
        entry.failures = if failed { entry.failures.saturating_add(1) } else { 0 };
        let due = entry.due.take().into_iter().chain(again).min();
        if let Some(due) = due {
            self.at(name, due);
        }
    }

    /// How often it failed in a row.
    pub(super) fn failures(&self, name: &Name) -> u32 {
        self.entries.get(name).map_or(0, |entry| entry.failures)
    }

    /// It ended because what it was about is gone. One of its name may have come meanwhile.
    pub(super) fn gone(&mut self, name: &Name) {
        self.done(name, false, None);
        if self.entries.get(name).is_some_and(|entry| entry.due.is_none()) {
            self.entries.remove(name);
        }
    }

    /// When the next one is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        Some(self.due.first()?.0)
    }

    /// How many are due and wait.
    pub(super) fn depth(&self, now: Instant) -> usize {
        self.due.iter().take_while(|(time, _)| *time <= now).count()
    }
}

/// The queue, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Work {
    queue: Mutex<Queue>,
    added: Notify,
}

impl Work {
    /// To look into it.
    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something changed.
    pub(super) fn add(&self, name: &Name) {
        self.queue().add(name, Instant::now());
        self.added.notify_one();
    }

    /// Until something is added.
    pub(super) async fn added(&self) {
        self.added.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn name(name: &str) -> Name {
        Name::new("n", name)
    }

    #[test]
    fn changes_that_come_together_are_one_reconcile() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        for ms in [0, 5, 19] {
            queue.add(&name("a"), start + ms * MS);
        }
        assert_eq!(queue.next(start + 19 * MS), None);
        assert_eq!(queue.next(start + 20 * MS), Some(name("a")));
        assert_eq!(queue.next(start + 60 * MS), None);
        assert_eq!(queue.next_due(), None);
    }

    #[test]
    fn one_never_runs_twice_at_a_time_and_what_changed_meanwhile_is_looked_at_after() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        queue.at(&name("a"), start);
        assert_eq!(queue.next(start), Some(name("a")));
        queue.add(&name("a"), start + 10 * MS);
        assert_eq!(queue.next(start + 500 * MS), None, "it runs");
        queue.done(&name("a"), false, Some(start + Duration::from_mins(10)));
        assert_eq!(queue.next_due(), Some(start + SPACING), "not at once, and not after ten minutes");
        assert_eq!(queue.next(start + SPACING), Some(name("a")));
        queue.done(&name("a"), false, Some(start + Duration::from_mins(10)));
        assert_eq!(queue.next_due(), Some(start + Duration::from_mins(10)));
    }

    #[test]
    fn the_earlier_time_counts() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        queue.at(&name("a"), start + 1000 * MS);
        queue.at(&name("a"), start + 2000 * MS);
        assert_eq!(queue.next_due(), Some(start + 1000 * MS));
        queue.add(&name("a"), start);
        assert_eq!(queue.next_due(), Some(start + DEBOUNCE));
        assert_eq!(queue.depth(start), 0);
        assert_eq!(queue.depth(start + DEBOUNCE), 1);
    }

    #[test]
    fn failures_in_a_row_are_counted_and_what_is_gone_is_forgotten() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        for failures in 1..=3 {
            queue.at(&name("a"), start);
            let now = start + Duration::from_secs(10 * failures);
            assert_eq!(queue.next(now), Some(name("a")));
            queue.done(&name("a"), true, None);
            assert_eq!(u64::from(queue.failures(&name("a"))), failures);
        }
        queue.at(&name("a"), start);
        assert_eq!(queue.next(start + Duration::from_secs(100)), Some(name("a")));
        queue.gone(&name("a"));
        assert_eq!((queue.next_due(), queue.failures(&name("a"))), (None, 0));
        assert!(queue.entries.is_empty());
    }

    #[test]
    fn one_that_comes_while_its_predecessor_is_found_gone_is_looked_at() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        queue.at(&name("a"), start);
        assert_eq!(queue.next(start), Some(name("a")));
        queue.add(&name("a"), start);
        queue.gone(&name("a"));
        assert_eq!(queue.next(start + SPACING), Some(name("a")));
    }
}
