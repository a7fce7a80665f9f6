//! Bytes of messages that have no outcome yet: how many one core holds, and who waits until it holds fewer.
//!
//! Each device's window bounds its own messages; this bounds those of all devices, of those that left included.

use std::{
    cell::{Cell, RefCell},
    task::Waker,
};

/// The messages of one core, by their bytes.
#[derive(Debug)]
pub(crate) struct Held {
    bytes: Cell<usize>,
    bytes_max: Cell<usize>,
    full: Cell<bool>,
    /// Times that there was room again: names the wait of a connection.
    round: Cell<u32>,
    waiting: RefCell<Vec<Waker>>,
}

impl Held {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            bytes: Cell::new(0),
            bytes_max: Cell::new(bytes_max),
            full: Cell::new(false),
            round: Cell::new(1),
            waiting: RefCell::new(Vec::new()),
        }
    }

    /// One more message. It is never refused: who asks [`Held::is_full`] first goes beyond the bound by one message.
    pub(crate) fn take(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes);
        self.full.set(self.full.get() || self.bytes.get() >= self.bytes_max.get());
    }

    /// Another bound from now on. What is held beyond a lower one stays.
    pub(crate) fn set_bytes_max(&self, bytes_max: usize) {
        self.bytes_max.set(bytes_max);
        self.take(0);
        self.give(0);
    }

    /// One message less. Once an eighth is free, all who wait are woken.
    pub(crate) fn give(&self, bytes: usize) {
        self.bytes.set(self.bytes.get().saturating_sub(bytes));
        if self.full.get() && self.bytes.get() <= self.bytes_max.get() - self.bytes_max.get() / 8 {
            self.full.set(false);
            self.round.set(self.round.get().wrapping_add(1));
            for waker in self.waiting.take() {
                waker.wake();
            }
        }
    }

    /// Whether nothing more should be taken.
    pub(crate) fn is_full(&self) -> bool {
        self.full.get()
    }

    /// Wakes `waker` when there is room, once however often it asks. `since` is the caller's, 0 at first. True for the first time
    /// of a wait.
    pub(crate) fn wait(&self, since: &mut u32, waker: &Waker) -> bool {
        let first = std::mem::replace(since, self.round.get()) != self.round.get();
        if first {
            self.waiting.borrow_mut().push(waker.clone());
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering::Relaxed},
        },
        task::{Wake, Waker},
    };

    use super::Held;

    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn at_the_bound_it_is_full_until_an_eighth_is_free() {
        let held = Held::new(800);
        held.take(799);
        assert!(!held.is_full());
        held.take(100);
        assert!(held.is_full());
        held.give(198);
        assert!(held.is_full());
        held.give(1);
        assert!(!held.is_full());
    }

    #[test]
    fn another_bound_holds_at_once_and_wakes_who_waits() {
        let count = Arc::new(Count(AtomicU32::new(0)));
        let (waker, held, mut since) = (Waker::from(Arc::clone(&count)), Held::new(800), 0);
        held.take(400);
        held.set_bytes_max(400);
        assert!(held.is_full());
        held.wait(&mut since, &waker);
        held.set_bytes_max(456);
        assert!(held.is_full());
        held.set_bytes_max(458);
        assert!(!held.is_full() && count.0.load(Relaxed) == 1);
    }

    #[test]
    fn who_waits_is_woken_once_for_each_time_that_there_is_room_again() {
        let count = Arc::new(Count(AtomicU32::new(0)));
        let (waker, held, mut since) = (Waker::from(Arc::clone(&count)), Held::new(8), 0);
        for round in 1..=3 {
            held.take(8);
            assert!(held.wait(&mut since, &waker));
            assert!(!held.wait(&mut since, &waker));
            held.give(8);
            assert_eq!(count.0.load(Relaxed), round);
        }
        held.take(1);
        held.give(1);
        assert_eq!(count.0.load(Relaxed), 3);
    }
}
