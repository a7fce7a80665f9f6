//! What the gateway counts. Every core owns one [`Metrics`] and is its only writer; a scrape reads all of them and adds up.
//!
//! Nothing here takes a lock or makes a locked bus access on the message path: a counter's `add` is a plain load and store.

pub mod export;
pub mod labels;
mod listen_queue;

use std::{
    marker::PhantomData,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use gateway_core::{
    drain::Cause,
    message::{Outcome, QoS, Settlement},
};

pub use labels::{
    ConnectResult, End, Label, Limit, OrderResult, TokenResult, TransportFault, UpstreamFailure, UpstreamState,
    label_of,
};

/// Only grows. One thread writes, any thread reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// `n` more. Only the owning core may call it: a load and a store, not an exchange.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// As it stands.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Rises and falls. One thread writes, any thread reads.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// `n` more (or fewer, if negative). Only the owning core may call it.
    #[inline]
    pub fn add(&self, n: i64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Exactly `value`.
    #[inline]
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// As it stands.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of [`Histogram`]'s buckets, in microseconds; one more bucket takes the rest.
pub const BUCKETS_US: [u64; 17] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000,
];

/// How long something took, in buckets from 100 µs to 30 s. One thread writes, any thread reads.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [Counter; BUCKETS_US.len() + 1],
    sum_us: Counter,
}

impl Histogram {
    /// Counts one duration.
    #[inline]
    pub fn observe(&self, took: Duration) {
        self.observe_us(took.as_micros() as u64);
    }

    /// Counts one duration given in microseconds.
    #[inline]
    pub fn observe_us(&self, us: u64) {
        self.counts[BUCKETS_US.partition_point(|bound| *bound < us)].inc();
        self.sum_us.add(us);
    }

    /// Counts per bucket, not cumulative; the last is what lies above every bound.
    pub fn counts(&self) -> [u64; BUCKETS_US.len() + 1] {
        std::array::from_fn(|bucket| self.counts[bucket].get())
    }

    /// Sum of everything counted, in microseconds.
    pub fn sum_us(&self) -> u64 {
        self.sum_us.get()
    }
}

/// One cell of kind `M` for every value of the label `L`, and one for values that this version does not know.
#[derive(Debug)]
pub struct Labelled<L, M> {
    cells: Box<[M]>,
    label: PhantomData<L>,
}

impl<L: Label, M: Default> Default for Labelled<L, M> {
    fn default() -> Self {
        Self { cells: (0..=L::ALL.len()).map(|_| M::default()).collect(), label: PhantomData }
    }
}

impl<L: Label, M> Labelled<L, M> {
    /// The cell of `label`. Looks through the list of labels: not for every message.
    pub fn at(&self, label: L) -> &M {
        let index = L::ALL.iter().position(|(known, _)| *known == label).unwrap_or(L::ALL.len());
        &self.cells[index]
    }

    /// Every label's text with its cell.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &M)> {
        L::ALL.iter().map(|(_, text)| *text).chain(["other"]).zip(&self.cells)
    }
}

/// Messages of one direction, by quality of service (0, 1) and what became of them.
#[derive(Debug, Default)]
pub struct Messages {
    cells: [[Counter; 4]; 2],
    /// Payload bytes, counted when the message enters.
    pub bytes: Counter,
    /// From hand-over to settlement.
    pub settle: Histogram,
    /// Handed over and not settled yet.
    pub inflight: Gauge,
}

impl Messages {
    /// Texts of the outcomes of messages to the hub, in the order of the cells.
    pub const UP: [&'static str; 4] = ["accepted", "refused", "retry", "unreachable"];
    /// Texts of the outcomes of messages to devices, in the order of the cells.
    pub const DOWN: [&'static str; 4] = ["accepted", "released", "rejected", "other"];

    /// The counter of a message to the hub.
    #[inline]
    pub fn up(&self, qos: QoS, outcome: &Outcome) -> &Counter {
        let column = match outcome {
            Outcome::Accepted => 0,
            Outcome::Refused(_) => 1,
            Outcome::Retry(_) => 2,
            Outcome::Unreachable => 3,
        };
        &self.cells[usize::from(qos != QoS::AtMostOnce)][column]
    }

    /// The counter of a message to a device.
    #[inline]
    pub fn down(&self, qos: QoS, settlement: Settlement) -> &Counter {
        let column = match settlement {
            Settlement::Accepted => 0,
            Settlement::Released => 1,
            Settlement::Rejected => 2,
        };
        &self.cells[usize::from(qos != QoS::AtMostOnce)][column]
    }

    /// The count of one cell: quality of service 0 or 1, column as in [`Self::UP`] or [`Self::DOWN`].
    pub fn get(&self, qos: usize, column: usize) -> u64 {
        self.cells[qos][column].get()
    }
}

/// What went wrong last and is not over. Written when an AMQP connection is lost or is back, never for a message.
#[derive(Debug, Default)]
pub struct Problem(Mutex<Option<String>>);

impl Problem {
    /// It went wrong, or it is over.
    pub fn set(&self, problem: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    /// As it stands.
    pub fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Everything that one core counts.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Connections whose CONNECT was accepted and that are still there.
    pub connections: Gauge,
    /// Connections that are still shaking hands or have not sent their CONNECT.
    pub handshakes: Gauge,
    /// Devices connected whose certificate is not trusted any more.
    pub distrusted: Gauge,
    /// Devices connected with messages under way, those left out that were told to go. Not exported: a drain asks for it.
    pub busy: Gauge,
    /// Every connection, once its CONNECT is decided or it ended before.
    pub connects: Labelled<ConnectResult, Counter>,
    /// Connections that ended before an accepted CONNECT, by reason.
    pub refused: Labelled<End, Counter>,
    /// Connections that ended after an accepted CONNECT, by cause.
    pub disconnects: Labelled<End, Counter>,
    /// Devices that went because they were told to, by cause.
    pub let_go: Labelled<Cause, Counter>,
    /// Devices that were to go and were not there.
    pub let_go_unused: Counter,
    /// Device to hub.
    pub up: Messages,
    /// Hub to device.
    pub down: Messages,
    /// A bound was reached and something waited or was turned away.
    pub limits: Labelled<Limit, Counter>,
    /// Errors of `accept` other than a full table of files.
    pub accept_errors: Counter,
    /// AMQP connections by state.
    pub upstream_connections: Labelled<UpstreamState, Gauge>,
    /// Links attached or being attached on AMQP connections.
    pub upstream_links: Gauge,
    /// Credit that the hub gives and that is not used.
    pub upstream_credit: Gauge,
    /// What went wrong on the hub's side.
    pub upstream_failures: Labelled<UpstreamFailure, Counter>,
    /// Messages that were transferred again after their AMQP connection or link was lost.
    pub upstream_resent: Counter,
    /// Messages without an outcome that were dropped with their devices.
    pub upstream_dropped: Counter,
    /// Put-token requests by result.
    pub upstream_tokens: Labelled<TokenResult, Counter>,
    /// Why an AMQP connection was lost or could not be opened.
    pub upstream_problem: Problem,
    /// When the hub last asked for less, in milliseconds since the start of the process; 0: never.
    pub upstream_throttled_ms: Gauge,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_on_a_bound_counts_below_it() {
        let histogram = Histogram::default();
        histogram.observe_us(100);
        histogram.observe_us(101);
        histogram.observe(Duration::from_mins(1));
        let counts = histogram.counts();
        assert_eq!((counts[0], counts[1], counts[BUCKETS_US.len()]), (1, 1, 1));
        assert_eq!(histogram.sum_us(), 60_000_201);
    }

    #[test]
    fn every_label_has_its_own_cell_and_text() {
        let refused: Labelled<End, Counter> = Labelled::default();
        for (label, _) in End::ALL {
            refused.at(*label).inc();
        }
        assert!(refused.iter().all(|(text, cell)| cell.get() == u64::from(text != "other")));
        let mut texts: Vec<_> = refused.iter().map(|(text, _)| text).collect();
        texts.sort_unstable();
        let all = texts.len();
        texts.dedup();
        assert_eq!(texts.len(), all);
    }
}
