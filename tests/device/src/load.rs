//! Thousands of devices in one thread: one readiness loop, sends at exact times or as the window allows.
//!
//! It measures from the moment a send was *due*, so a server that stalls the loop does not hide its own delay.

mod client;
mod reactor;
mod report;
mod schedule;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

pub use reactor::{LATE, Outcome, Sequences, run};
pub use report::{Phase, Report, Second};

/// What the devices do.
pub struct Plan {
    /// Where to connect; device n takes address n modulo their number.
    pub addresses: Vec<SocketAddr>,
    /// TLS configuration and the name in the certificate; `None` is MQTT without TLS.
    pub tls: Option<(Arc<rustls::ClientConfig>, String)>,
    /// Device n's own TLS configuration, with its certificate or its session tickets; none here: all have that of `tls`.
    pub identities: Vec<Arc<rustls::ClientConfig>>,
    /// One login a device.
    pub logins: Vec<crate::script::Login>,
    /// How sends are paced.
    pub pace: Pace,
    /// PUBLISH payload, in bytes.
    pub payload_bytes: usize,
    /// Put `$.mid=<run>-<sequence>` into the property bag, so that the hub's ledger can judge.
    pub run: Option<String>,
    /// Subscribe to the commands of the device before anything is sent.
    pub subscribe: bool,
    /// New connections per second.
    pub connects_per_second: f64,
    /// Sends are not counted before all devices are up and this has passed.
    pub warm_up: Duration,
    /// How long sends are made and counted; then what is unacknowledged is waited for.
    pub time: Duration,
    /// The longest wait for the last acknowledgements.
    pub settle: Duration,
    /// Reconnect when the server closes (with back-off), and send again what was not acknowledged.
    pub reconnect: bool,
    /// A file that ends the run when it appears, for tests that decide themselves.
    pub stop_file: Option<PathBuf>,
}

/// How sends are paced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// This many messages per second of all devices together, spread in phase; at most `window` unacknowledged a device.
    Open {
        /// Messages per second of all devices together.
        per_second: f64,
        /// Unacknowledged messages a device.
        window: usize,
    },
    /// Every device keeps `window` messages unacknowledged and writes all that its window allows at once.
    Closed {
        /// Unacknowledged messages a device.
        window: usize,
    },
    /// Nothing but PINGREQ.
    Idle,
    /// One message of every device when all are connected, and then nothing but PINGREQ: what a message attaches is there.
    Once,
    /// Every device connects, disconnects and comes back at once: the cost of a connection.
    Churn,
}

impl Plan {
    /// How device n speaks TLS, and the name that it expects.
    fn tls_of(&self, n: usize) -> Option<(&Arc<rustls::ClientConfig>, &str)> {
        let (config, name) = self.tls.as_ref()?;
        Some((self.identities.get(n).unwrap_or(config), name))
    }
}

impl Pace {
    /// Most unacknowledged messages of one device.
    pub fn window(self) -> usize {
        match self {
            Self::Open { window, .. } | Self::Closed { window } => window,
            Self::Once => 1,
            Self::Idle | Self::Churn => 0,
        }
    }
}
