//! What a run counts.

use hdrhistogram::Histogram;
use serde::Serialize;

/// Counts of one run, whole or one second of it.
pub struct Report {
    /// PUBLISHes written for the first time.
    pub sent: u64,
    /// PUBACKs of them.
    pub acknowledged: u64,
    /// PUBLISHes written again after a reconnect.
    pub resent: u64,
    /// Sends that this process began more than [`LATE`](super::LATE) after they were due.
    pub late: u64,
    /// Devices whose CONNACK 0 came.
    pub connects: u64,
    /// Of these, over a TLS session that was resumed.
    pub resumed: u64,
    /// CONNACKs with another code.
    pub refused: u64,
    /// Connections that ended without our doing, after their CONNACK.
    pub lost_connections: u64,
    /// Attempts that did not come as far as a CONNACK.
    pub failed_attempts: u64,
    /// Messages from the cloud.
    pub commands: u64,
    /// Nanoseconds from due to PUBACK.
    pub latency: Histogram<u64>,
}

impl Default for Report {
    fn default() -> Self {
        let latency = Histogram::new_with_bounds(1_000, 600_000_000_000, 3).expect("the bounds are legal");
        Self {
            sent: 0,
            acknowledged: 0,
            resent: 0,
            late: 0,
            connects: 0,
            resumed: 0,
            refused: 0,
            lost_connections: 0,
            failed_attempts: 0,
            commands: 0,
            latency,
        }
    }
}

/// Which part of a run a line belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Devices connect.
    Ramp,
    /// Sends that are not counted.
    WarmUp,
    /// Sends that are counted.
    Send,
    /// No new sends; the last acknowledgements.
    Settle,
    /// All counted seconds together.
    Total,
}

/// One line of the report.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Second {
    /// Part of the run.
    pub phase: Phase,
    /// Seconds since this phase began.
    pub seconds: f64,
    /// Devices up at the moment.
    pub connected: usize,
    /// See [`Report`].
    pub sent: u64,
    /// See [`Report`].
    pub acknowledged: u64,
    /// See [`Report`].
    pub resent: u64,
    /// See [`Report`].
    pub late: u64,
    /// See [`Report`].
    pub connects: u64,
    /// See [`Report`].
    pub resumed: u64,
    /// See [`Report`].
    pub refused: u64,
    /// See [`Report`].
    pub lost_connections: u64,
    /// See [`Report`].
    pub failed_attempts: u64,
    /// See [`Report`].
    pub commands: u64,
    /// Microseconds.
    pub p50_us: f64,
    /// Microseconds.
    pub p99_us: f64,
    /// Microseconds.
    pub p999_us: f64,
    /// Microseconds.
    pub max_us: f64,
}

impl Report {
    /// The line for this report.
    pub fn line(&self, phase: Phase, seconds: f64, connected: usize) -> Second {
        let us = |quantile: f64| self.latency.value_at_quantile(quantile) as f64 / 1_000.0;
        Second {
            phase,
            seconds,
            connected,
            sent: self.sent,
            acknowledged: self.acknowledged,
            resent: self.resent,
            late: self.late,
            connects: self.connects,
            resumed: self.resumed,
            refused: self.refused,
            lost_connections: self.lost_connections,
            failed_attempts: self.failed_attempts,
            commands: self.commands,
            p50_us: us(0.5),
            p99_us: us(0.99),
            p999_us: us(0.999),
            max_us: self.latency.max() as f64 / 1_000.0,
        }
    }

    /// Adds another report's counts to this one's.
    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.acknowledged += other.acknowledged;
        self.resent += other.resent;
        self.late += other.late;
        self.connects += other.connects;
        self.resumed += other.resumed;
        self.refused += other.refused;
        self.lost_connections += other.lost_connections;
        self.failed_attempts += other.failed_attempts;
        self.commands += other.commands;
        self.latency.add(&other.latency).expect("both histograms have the same bounds");
    }
}
