//! What may be ordered: the body of `POST /drain`, checked.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Devices per second that an order may ask for at most.
const PER_SECOND_MAX: f64 = 100_000.0;
/// Longest lease: a leader renews every few seconds.
const LEASE_MAX: Duration = Duration::from_hours(1);

/// Why devices are let go: `gateway_let_go_total{cause}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Cause {
    /// The fleet shrinks by this gateway.
    ScaleIn,
    /// A newer version takes over.
    Upgrade,
    /// The machine below is to be emptied.
    Eviction,
    /// Other gateways have fewer connections.
    Rebalance,
    /// The authority that vouched for the devices is no longer trusted.
    CertificateAuthority,
    /// The gateway was told to stop and nobody ordered how. Never ordered.
    Termination,
}

/// Let devices go: as fast as this, as far as this, for as long as somebody renews it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Order {
    /// Why.
    pub cause: Cause,
    /// Number of the leader's term; those of earlier terms are refused.
    pub epoch: i64,
    /// Devices per second; 0 lets nobody go.
    pub per_second: f64,
    /// How long it holds without being renewed.
    pub lease: Duration,
    /// Connections that stay; 0 for none.
    pub down_to: u64,
    /// Want no new connections: not ready.
    pub leave: bool,
}

/// Why an order is not followed.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Refused {
    /// A leader of a later term has spoken.
    #[error("epoch is lower than {highest}, the highest seen")]
    Epoch {
        /// The highest seen.
        highest: i64,
    },
    /// It cannot be meant.
    #[error(transparent)]
    Nonsense(#[from] Nonsense),
}

/// What cannot be meant.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Nonsense {
    /// Negative.
    #[error("epoch {0}: expected 0 or more")]
    Epoch(i64),
    /// Negative, not a number, or beyond any fleet.
    #[error("perSecond {0}: expected 0 to {PER_SECOND_MAX}")]
    PerSecond(f64),
    /// None, or hours.
    #[error("leaseSeconds {0}: expected more than 0 and at most {max}", max = LEASE_MAX.as_secs())]
    Lease(f64),
    /// The gateway's own.
    #[error("cause Termination: it is the gateway's own")]
    Cause,
}

impl Order {
    /// A lease of `seconds`, as people and programs write it.
    pub fn lease(seconds: f64) -> Result<Duration, Nonsense> {
        let lease = Duration::try_from_secs_f64(seconds).map_err(|_| Nonsense::Lease(seconds))?;
        if lease < Duration::from_millis(1) || lease > LEASE_MAX { Err(Nonsense::Lease(seconds)) } else { Ok(lease) }
    }

    pub(super) fn check(&self) -> Result<(), Nonsense> {
        Self::lease(self.lease.as_secs_f64())?;
        if !(0.0..=PER_SECOND_MAX).contains(&self.per_second) {
            return Err(Nonsense::PerSecond(self.per_second));
        }
        if self.epoch < 0 {
            return Err(Nonsense::Epoch(self.epoch));
        }
        if self.cause == Cause::Termination { Err(Nonsense::Cause) } else { Ok(()) }
    }
}
