//! Devices of a story: they connect from this machine through the Service, and tell what they see while they run.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use device::{
    load::{self, Outcome, Pace, Phase, Plan, Second},
    script::Login,
    tls,
};

/// Seconds that a group may run at most: a test that hangs must not run for ever.
const RUN_MAX: Duration = Duration::from_hours(1);
/// How long devices wait for connections, and for their last acknowledgements.
const SETTLE: Duration = Duration::from_mins(2);

/// How late a device may see, on a busy machine, that its connection was closed: what was let go so long before a second
/// began may be seen within it. When exactly a gateway lets go is judged by its own tests.
const SEEN_LATE: Duration = Duration::from_millis(300);

/// What a group of devices does.
#[derive(Debug, Clone)]
pub struct Group {
    /// Messages per second of all of them together; 0: they are connected and send nothing.
    pub per_second: f64,
    /// New connections per second while they come up.
    pub connects_per_second: f64,
    /// Bytes of a message.
    pub payload_bytes: usize,
    /// Unacknowledged messages of one device.
    pub window: usize,
    /// Seconds of keep-alive.
    pub keep_alive_s: u16,
}

impl Default for Group {
    fn default() -> Self {
        Self { per_second: 0.0, connects_per_second: 200.0, payload_bytes: 128, window: 8, keep_alive_s: 30 }
    }
}

/// Where devices connect, and whom they trust.
#[derive(Debug, Clone)]
pub struct Target {
    /// Device n takes address n modulo their number.
    pub addresses: Vec<SocketAddr>,
    /// Name in the gateway's certificate.
    pub server_name: String,
    /// What the certificate is signed by.
    pub ca_pem: Vec<u8>,
}

/// Devices that run in a thread of this process. Dropped, they end without a word of what they saw.
#[derive(Debug)]
pub struct Devices {
    /// How many.
    pub count: usize,
    /// The run id in their message ids.
    pub run: String,
    /// Unacknowledged messages of one of them, at most.
    pub window: usize,
    seconds: Arc<Mutex<Vec<Second>>>,
    stop: PathBuf,
    thread: Option<JoinHandle<anyhow::Result<Outcome>>>,
}

impl Devices {
    /// Connects them, and has them send until they are told to end. They come back when the gateway closes, and send again
    /// what was not acknowledged.
    ///
    /// # Errors
    /// A CA that is none.
    pub fn start(target: &Target, logins: Vec<Login>, group: &Group) -> anyhow::Result<Self> {
        Self::start_as(target, logins, &[], group)
    }

    /// As [`Devices::start`], each with a certificate of its own: chain and key, PEM.
    ///
    /// # Errors
    /// A CA, a certificate or a key that is none.
    pub fn start_as(
        target: &Target,
        mut logins: Vec<Login>,
        identities: &[(String, String)],
        group: &Group,
    ) -> anyhow::Result<Self> {
        static GROUPS: AtomicU64 = AtomicU64::new(0);
        let run = format!("run{}x{}", std::process::id(), GROUPS.fetch_add(1, Relaxed));
        let stop = std::env::temp_dir().join(format!("protocol-gateway-devices-{run}.stop"));
        for login in &mut logins {
            login.keep_alive_s = group.keep_alive_s;
        }
        let count = logins.len();
        let pace = if group.per_second > 0.0 {
            Pace::Open { per_second: group.per_second, window: group.window }
        } else {
            Pace::Idle
        };
        let own_tls = |(chain, key): &(String, String)| {
            tls::client(&target.ca_pem, false, false, Some((chain.as_bytes(), key.as_bytes())))
        };
        let plan = Plan {
            addresses: target.addresses.clone(),
            tls: Some((tls::client(&target.ca_pem, false, false, None)?, target.server_name.clone())),
            identities: identities.iter().map(own_tls).collect::<anyhow::Result<_>>()?,
            logins,
            pace,
            payload_bytes: group.payload_bytes,
            run: Some(run.clone()),
            subscribe: false,
            connects_per_second: group.connects_per_second,
            warm_up: Duration::ZERO,
            time: RUN_MAX,
            settle: SETTLE,
            reconnect: true,
            stop_file: Some(stop.clone()),
        };
        let seconds: Arc<Mutex<Vec<Second>>> = Arc::default();
        let told = Arc::clone(&seconds);
        let tell = move |second: &Second| told.lock().unwrap_or_else(PoisonError::into_inner).push(second.clone());
        let thread = std::thread::Builder::new().name("devices".to_owned());
        let thread = thread.spawn(move || load::run(&plan, tell)).context("no thread for devices")?;
        Ok(Self { count, run, window: group.window, seconds, stop, thread: Some(thread) })
    }

    /// What was told so far, a line for each second.
    pub fn seconds(&self) -> Vec<Second> {
        self.seconds.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many are connected, as of the last second.
    pub fn connected(&self) -> usize {
        self.seconds().last().map_or(0, |second| second.connected)
    }

    /// A sum over all seconds so far.
    pub fn total(&self, of: impl Fn(&Second) -> u64) -> u64 {
        self.seconds().iter().filter(|second| second.phase != Phase::Total).map(of).sum()
    }

    /// Connections that were lost so far: by the gateway's wish, or by its end.
    pub fn lost(&self) -> u64 {
        self.total(|second| second.lost_connections)
    }

    /// Waits until all are connected.
    ///
    /// # Errors
    /// The time is over, or they ended.
    pub async fn all_connected(&self, limit: Duration) -> anyhow::Result<()> {
        self.until("all devices are connected", limit, |devices| devices.connected() == devices.count).await
    }

    /// Waits until `holds`; looked at ten times a second.
    ///
    /// # Errors
    /// The time is over, or they ended.
    pub async fn until(&self, what: &str, limit: Duration, holds: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !holds(self) {
            if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
                bail!("{what}: the devices ended before");
            }
            if begun.elapsed() > limit {
                let (last, lost) = (self.connected(), self.lost());
                bail!("{what}: not after {limit:?}; connected {last} of {}, connections lost {lost}", self.count);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Ends them in order, after their last acknowledgements, and returns what they saw.
    ///
    /// # Errors
    /// What kept them from running.
    pub async fn finish(mut self) -> anyhow::Result<Outcome> {
        std::fs::write(&self.stop, "").context("the devices cannot be told to end")?;
        let thread = self.thread.take().expect("only this takes it");
        let ended = tokio::task::spawn_blocking(move || thread.join()).await?;
        ended.map_err(|_panic| anyhow::Error::msg("the devices panicked"))?
    }
}

/// Connections that devices lost, as they saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Losses {
    /// How many.
    pub all: u64,
    /// The most in one second of a clock that begins with the count.
    pub in_a_clock_second: u64,
    /// The most within one second, wherever it begins.
    pub in_any_second: u64,
}

impl Losses {
    /// Those since `from`.
    pub fn since(from: Instant, outcomes: &[&Outcome]) -> Self {
        let devices = outcomes.iter().flat_map(|outcome| &outcome.devices);
        let mut lost: Vec<Duration> =
            devices.flat_map(|device| &device.lost_at).filter_map(|at| at.checked_duration_since(from)).collect();
        lost.sort_unstable();
        Self::of(&lost)
    }

    /// `lost` is ascending.
    fn of(lost: &[Duration]) -> Self {
        let most = |seconds: &mut dyn Iterator<Item = usize>| seconds.max().unwrap_or(0) as u64;
        let in_clock = lost.chunk_by(|a, b| a.as_secs() == b.as_secs()).map(<[Duration]>::len);
        let from_each = lost.iter().enumerate().map(|(index, begins)| {
            lost[index..].partition_point(|at| at.saturating_sub(*begins) < Duration::from_secs(1))
        });
        Self {
            all: lost.len() as u64,
            in_a_clock_second: most(&mut { in_clock }),
            in_any_second: most(&mut { from_each }),
        }
    }

    /// Nobody was let go faster than that.
    ///
    /// # Errors
    /// A second with more than were let go within it and shortly before.
    pub fn within(self, per_second: u64) -> anyhow::Result<()> {
        let late = u64::try_from(SEEN_LATE.as_millis())?;
        let seen = per_second + (per_second * late).div_ceil(1000);
        ensure!(self.in_any_second <= seen, "{self}: {per_second} are allowed");
        Ok(())
    }
}

impl std::fmt::Display for Losses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { all, in_a_clock_second, in_any_second } = self;
        write!(
            f,
            "{all} connections lost, at most {in_a_clock_second} in a second of the clock and {in_any_second} in any"
        )
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        match self.thread.take() {
            // the test has failed: the thread sees it within a second, and the file goes with the process's directory
            Some(_) => {
                let _ = std::fs::write(&self.stop, "");
            }
            None => {
                let _ = std::fs::remove_file(&self.stop);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_begins_anywhere() {
        let losses = |at: &[u64]| Losses::of(&at.iter().map(|at| Duration::from_millis(*at)).collect::<Vec<_>>());
        let expected = |all, in_a_clock_second, in_any_second| Losses { all, in_a_clock_second, in_any_second };
        assert_eq!(losses(&[]), expected(0, 0, 0));
        assert_eq!(losses(&[10, 510, 1010, 1510]), expected(4, 2, 2));
        // two seconds of the clock share them
        assert_eq!(losses(&[700, 800, 900, 1100, 1200, 1750]), expected(6, 3, 5));
        losses(&[10, 510, 1010, 1510]).within(2).unwrap();
        losses(&[10, 20, 30]).within(2).unwrap();
        losses(&[700, 800, 1100, 1200]).within(2).unwrap_err();
    }
}
