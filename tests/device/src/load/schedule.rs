//! What is due when: connects, sends, pings.

use std::{cmp::Reverse, collections::BinaryHeap, time::Instant};

/// Something that a client has to do at its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    /// Open the socket.
    Connect,
    /// Send one message (open loop).
    Send,
    /// Send a PINGREQ if nothing else was sent.
    Ping,
}

/// A heap of what is due.
#[derive(Default)]
pub(super) struct Schedule {
    heap: BinaryHeap<Reverse<(Instant, usize, Due)>>,
}

impl Schedule {
    pub(super) fn add(&mut self, at: Instant, client: usize, due: Due) {
        self.heap.push(Reverse((at, client, due)));
    }

    /// When the next thing is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, ..))| *at)
    }

    /// The next thing that is due at `now`.
    pub(super) fn take(&mut self, now: Instant) -> Option<(Instant, usize, Due)> {
        self.next().filter(|at| *at <= now)?;
        self.heap.pop().map(|Reverse(entry)| entry)
    }
}
