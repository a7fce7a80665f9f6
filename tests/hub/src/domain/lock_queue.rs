//! A queue whose items are locked while a receiver has them: order kept, locks lapse, items expire.

use std::collections::VecDeque;
use std::sync::Arc;

/// Names one lock; also the AMQP delivery tag, hence exactly 16 bytes (contract §3.6).
pub type LockToken = [u8; 16];

/// The items, oldest first; those under lock keep their place.
#[derive(Debug)]
pub(super) struct LockQueue<T> {
    entries: VecDeque<Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    item: Arc<T>,
    expires_ms: u64,
    delivery_count: u32,
    lock: Option<Lock>,
}

#[derive(Debug)]
struct Lock {
    token: LockToken,
    until_ms: u64,
}

/// An item given out under lock.
#[derive(Debug)]
pub struct Locked<T> {
    /// Answers must name it.
    pub token: LockToken,
    /// The item.
    pub item: Arc<T>,
    /// How often it was abandoned before: 0 at first.
    pub delivery_count: u32,
}

/// What became of an abandoned item.
#[derive(Debug)]
pub(super) enum Abandoned<T> {
    Requeued,
    Exceeded(Arc<T>),
}

impl<T> Default for LockQueue<T> {
    fn default() -> Self {
        Self { entries: VecDeque::new() }
    }
}

impl<T> LockQueue<T> {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn push(&mut self, item: Arc<T>, expires_ms: u64) {
        self.entries.push_back(Entry { item, expires_ms, delivery_count: 0, lock: None });
    }

    /// Whether an item is there that no lock holds.
    pub(super) fn has_ready(&self) -> bool {
        self.entries.iter().any(|entry| entry.lock.is_none())
    }

    /// Locks the oldest item that is free. Call [`Self::expire`] first.
    pub(super) fn next(&mut self, now_ms: u64, lock_ms: u64) -> Option<Locked<T>> {
        let entry = self.entries.iter_mut().find(|entry| entry.lock.is_none())?;
        let token = *uuid::Uuid::new_v4().as_bytes();
        entry.lock = Some(Lock { token, until_ms: now_ms + lock_ms });
        Some(Locked { token, item: entry.item.clone(), delivery_count: entry.delivery_count })
    }

    /// Takes a locked item out; `None` if the lock lapsed.
    pub(super) fn remove(&mut self, token: &LockToken) -> Option<Arc<T>> {
        let at = self.position(token)?;
        self.entries.remove(at).map(|entry| entry.item)
    }

    /// Gives a locked item back and raises its delivery count; over `deliveries_max` it leaves the queue.
    pub(super) fn abandon(&mut self, token: &LockToken, deliveries_max: u32) -> Option<Abandoned<T>> {
        let at = self.position(token)?;
        let entry = &mut self.entries[at];
        entry.lock = None;
        entry.delivery_count += 1;
        if entry.delivery_count < deliveries_max {
            return Some(Abandoned::Requeued);
        }
        self.entries.remove(at).map(|entry| Abandoned::Exceeded(entry.item))
    }

    /// Frees what was locked too long, then takes out what is free and over its time. A locked item does not expire.
    /// Returns the expired ones and the tokens that no longer hold.
    pub(super) fn expire(&mut self, now_ms: u64) -> (Vec<Arc<T>>, Vec<LockToken>) {
        let mut lapsed = Vec::new();
        for entry in &mut self.entries {
            if let Some(lock) = entry.lock.take_if(|lock| lock.until_ms <= now_ms) {
                lapsed.push(lock.token);
            }
        }
        let mut expired = Vec::new();
        self.entries.retain(|entry| {
            let over = entry.lock.is_none() && entry.expires_ms <= now_ms;
            if over {
                expired.push(entry.item.clone());
            }
            !over
        });
        (expired, lapsed)
    }

    /// Empties the queue, locks included. Returns items and tokens.
    pub(super) fn purge(&mut self) -> (Vec<Arc<T>>, Vec<LockToken>) {
        let tokens = self.entries.iter().filter_map(|entry| entry.lock.as_ref().map(|lock| lock.token)).collect();
        (self.entries.drain(..).map(|entry| entry.item).collect(), tokens)
    }

    /// When [`Self::expire`] has something to do next.
    pub(super) fn next_deadline_ms(&self) -> Option<u64> {
        let deadline = |entry: &Entry<T>| entry.lock.as_ref().map_or(entry.expires_ms, |lock| lock.until_ms);
        self.entries.iter().map(deadline).min()
    }

    fn position(&self, token: &LockToken) -> Option<usize> {
        self.entries.iter().position(|entry| entry.lock.as_ref().is_some_and(|lock| lock.token == *token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(items: &[u32]) -> LockQueue<u32> {
        let mut queue = LockQueue::default();
        for item in items {
            queue.push(Arc::new(*item), 1_000);
        }
        queue
    }

    #[test]
    fn a_lapsed_lock_frees_the_item_in_its_old_place_and_does_not_count() {
        let mut queue = queue(&[1, 2]);
        let first = queue.next(0, 60).expect("ready");
        assert_eq!(*queue.next(0, 100).expect("ready").item, 2);
        assert!(queue.next(0, 60).is_none());
        let (expired, lapsed) = queue.expire(60);
        assert!(expired.is_empty());
        assert_eq!(lapsed, [first.token]);
        assert!(queue.remove(&first.token).is_none());
        let again = queue.next(60, 60).expect("ready");
        assert_eq!((*again.item, again.delivery_count), (1, 0));
    }

    #[test]
    fn an_abandoned_item_counts_and_leaves_at_the_limit() {
        let mut queue = queue(&[1]);
        for count in 0..3 {
            let locked = queue.next(0, 60).expect("ready");
            assert_eq!(locked.delivery_count, count);
            let abandoned = queue.abandon(&locked.token, 3).expect("locked");
            assert_eq!(matches!(abandoned, Abandoned::Exceeded(_)), count == 2);
        }
        assert!(queue.is_empty());
    }

    #[test]
    fn a_locked_item_expires_only_after_its_lock() {
        let mut queue = queue(&[1]);
        queue.next(990, 60).expect("ready");
        assert_eq!(queue.next_deadline_ms(), Some(1_050));
        assert!(queue.expire(1_000).0.is_empty());
        assert_eq!(queue.expire(1_050).0.len(), 1);
    }
}
