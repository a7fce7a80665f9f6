//! The composition: one thread per core that serves devices, one that keeps house (admin port, secrets, summary).

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use gateway_core::{
    settings::{Protocol, Settings},
    time::Millis,
};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::{
    admin,
    config_file::ConfigFile,
    core::{self, Order, Parts},
    drain::{self, Drains},
    listener::{self, Bound, Gate},
    metrics::export::Registry,
    presence::Presence,
    reload::Watcher,
    secrets::{Credentials, Directory},
    standing::Standing,
    summary,
    upstream::OutagePace,
};

/// How late the housekeeping thread may be with the end of a drain before it counts as gone.
const HOUSE_LATE: Duration = Duration::from_secs(5);
/// How often [`Gateway::finish`] looks whether the cores have ended.
const FINISH_LOOK: Duration = Duration::from_millis(20);
/// Orders that may wait for one core.
const ORDERS_MAX: usize = 1024;

/// What only the command line says.
#[derive(Debug, Clone)]
pub struct Options {
    /// The file that the settings came from, as it was read, and the hash of its text; `None`: it is not looked at again.
    pub config: Option<(ConfigFile, String)>,
    /// Threads that serve devices.
    pub cores: usize,
    /// Where secrets are.
    pub secrets: PathBuf,
    /// How often configuration and secrets are looked at.
    pub look_every: Duration,
}

/// What all cores share. Nothing of it is touched for a message.
pub struct Shared {
    /// What the gateway runs by; swapped as a whole.
    pub settings: ArcSwap<Settings>,
    /// Zero of every clock of this process.
    pub start: Instant,
    /// Who is connected where.
    pub presence: Presence,
    /// Certificates and keys in force.
    pub credentials: ArcSwap<Credentials>,
    /// What is wrong with files that are not in force. One thread writes.
    pub standing: ArcSwap<Standing>,
    /// All metrics.
    pub registry: Registry,
    /// Who may come in.
    pub gate: Gate,
    /// How to reach each core.
    pub cores: Vec<mpsc::Sender<Order>>,
    /// How far the gateway is on its way out.
    pub stage: watch::Sender<Stage>,
    /// Who is let go, and how fast.
    pub drains: Drains,
    /// How fast devices go because the hub is away.
    pub outage_pace: Arc<OutagePace>,
}

/// How far the gateway is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It takes connections.
    Serving,
    /// It takes no more; those that are there are let go in pace.
    Closed,
    /// Everybody goes; what is in flight may settle until then.
    Stopping(Millis),
}

impl Shared {
    /// Notes a change of how it stands; only for the one that reloads.
    pub fn stand(&self, change: impl FnOnce(&mut Standing)) {
        let mut standing = Standing::clone(&self.standing.load());
        change(&mut standing);
        self.standing.store(Arc::new(standing));
    }
}

/// Why a gateway cannot start; nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Some secrets are missing or wrong.
    #[error("secrets:\n  {}", .0.join("\n  "))]
    Secrets(Vec<String>),
    /// A port is not to be had.
    #[error("{name} on {address}: {error}")]
    Bind {
        /// Listener, `admin` or `health`.
        name: String,
        /// As configured.
        address: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// A thread or runtime cannot be made.
    #[error("thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// A running gateway.
pub struct Gateway {
    /// Name, protocol and real address of every listener.
    pub listeners: Vec<(String, Protocol, SocketAddr)>,
    /// Real address of the admin port.
    pub admin: SocketAddr,
    /// Real address of the health port, if there is one.
    pub health: Option<SocketAddr>,
    shared: Arc<Shared>,
    cores: Vec<JoinHandle<()>>,
    house: Option<JoinHandle<()>>,
    stopped: watch::Sender<bool>,
    ended: mpsc::Receiver<u16>,
}

impl Gateway {
    /// Reads the secrets, opens every port, and serves.
    pub fn start(settings: Settings, options: &Options) -> Result<Self, StartError> {
        let settings = Arc::new(settings);
        let (file, hash) = options.config.clone().unzip();
        let mut watcher = Watcher::new(Arc::clone(&settings), Directory::new(&options.secrets)).with_file(file);
        let loaded = watcher.load().map_err(StartError::Secrets)?;
        let mut ports = bind_all(&settings, options.cores)?;
        let admin = bind_admin("admin", settings.admin.address, settings.admin.port)?;
        let health = settings.admin.health_port.map(|port| bind_admin("health", settings.admin.address, port));
        let health = health.transpose()?;
        let (orders, inboxes): (Vec<_>, Vec<_>) = (0..options.cores).map(|_| mpsc::channel(ORDERS_MAX)).unzip();
        let shared = Arc::new(Shared {
            start: Instant::now(),
            presence: Presence::new(),
            credentials: ArcSwap::from_pointee(loaded.credentials),
            standing: ArcSwap::from_pointee(Standing { in_force: hash.unwrap_or_default(), ..Standing::default() }),
            registry: Registry::new(options.cores),
            gate: Gate::new(&settings.limits),
            cores: orders,
            stage: watch::channel(Stage::Serving).0,
            drains: Drains::new(options.cores),
            outage_pace: Arc::default(),
            settings: ArcSwap::new(settings),
        });
        let mut gateway = Self::new(&shared, &ports, admin.local_addr()?);
        gateway.health = health.as_ref().map(std::net::TcpListener::local_addr).transpose()?;
        let (ended, receiver) = mpsc::channel(options.cores);
        gateway.ended = receiver;
        for (index, orders) in inboxes.into_iter().enumerate() {
            let listeners = ports.iter_mut().map(|cores| cores.remove(0)).collect();
            let (shared, secrets) = (Arc::clone(&shared), Arc::clone(&loaded.upstream));
            let parts = Parts { index: index as u16, shared, listeners, secrets, orders };
            gateway.cores.push(spawn_core(parts, ended.clone())?);
        }
        let house = House {
            watcher,
            look_every: options.look_every,
            admin,
            admin_tls: loaded.admin,
            health,
            stopped: gateway.stopped.subscribe(),
        };
        gateway.house = Some(spawn_house(shared, house)?);
        gateway.announce();
        Ok(gateway)
    }

    fn new(shared: &Arc<Shared>, ports: &[Vec<Bound>], admin: SocketAddr) -> Self {
        let listeners = ports.iter().filter_map(|cores| cores.first());
        Self {
            listeners: listeners.map(|bound| (bound.name.clone(), bound.protocol, bound.address)).collect(),
            admin,
            health: None,
            shared: Arc::clone(shared),
            cores: Vec::new(),
            house: None,
            stopped: watch::channel(false).0,
            ended: mpsc::channel(1).1,
        }
    }

    fn announce(&self) {
        for (name, protocol, address) in &self.listeners {
            info!(listener = name, protocol = protocol_name(*protocol), %address, "listening");
            if *protocol == Protocol::MqttPlain {
                warn!(listener = name, "MQTTPlain has no encryption: it is for loopback and tests only");
            }
        }
        if let Some(address) = self.health {
            info!(%address, "health port open");
        }
        info!(address = %self.admin, cores = self.cores.len(), "admin port open, gateway serves");
    }

    /// The address of the listener `name`.
    pub fn address(&self, name: &str) -> Option<SocketAddr> {
        self.listeners.iter().find(|(listener, ..)| listener == name).map(|(.., address)| *address)
    }

    /// Its metrics.
    pub fn registry(&self) -> &Registry {
        &self.shared.registry
    }

    /// Ready when a core has ended, with its number: after [`Self::drain`], or because it failed.
    pub async fn core_ended(&mut self) -> Option<u16> {
        self.ended.recv().await
    }

    /// Lets everybody go at once: stops accepting and lets what is in flight settle, at most for `shutdownTimeout`. Returns at
    /// once.
    pub fn drain(&self) {
        self.shared.stop();
        self.shared.registry.process.draining.store(true, Relaxed);
    }

    /// Lets everybody go at once, and waits until everything is closed. False: a thread of it panicked.
    pub fn stop(mut self) -> bool {
        self.drain();
        self.join()
    }

    /// Wants no new connections from now on, and lets devices go in pace: as ordered over the admin port, or by itself at
    /// `drainPerSecond`, within `drainTimeout`. Returns at once.
    pub fn leave(&self) {
        self.shared.drains.stop(&self.shared);
    }

    /// Leaves, and waits until everything is closed. False: a thread of it panicked.
    pub fn finish(mut self) -> bool {
        self.leave();
        let bound = Instant::now() + self.shared.settings.load().limits.drain_timeout + HOUSE_LATE;
        while !self.cores.iter().all(JoinHandle::is_finished) {
            if Instant::now() >= bound {
                // nobody keeps house any more
                self.drain();
                break;
            }
            std::thread::sleep(FINISH_LOOK);
        }
        self.join()
    }

    fn join(&mut self) -> bool {
        let cores = join_all(self.cores.drain(..));
        self.stopped.send_replace(true);
        let house = join_all(self.house.take());
        cores && house
    }
}

impl Shared {
    /// Milliseconds since the start, as on every core's clock.
    pub fn now(&self) -> Millis {
        Millis(self.start.elapsed().as_millis() as u64)
    }

    /// The gateway was not told to close.
    pub(crate) fn is_serving(&self) -> bool {
        *self.stage.borrow() == Stage::Serving
    }

    /// Everybody goes, now. The first time counts.
    pub(crate) fn stop(&self) {
        let deadline = self.now().after(self.settings.load().limits.shutdown_timeout);
        self.stage.send_if_modified(|stage| {
            let first = !matches!(stage, Stage::Stopping(_));
            if first {
                *stage = Stage::Stopping(deadline);
            }
            first
        });
    }

    /// No connection is taken any more.
    pub(crate) fn close(&self) {
        self.stage.send_if_modified(|stage| {
            let first = *stage == Stage::Serving;
            if first {
                *stage = Stage::Closed;
            }
            first
        });
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.drain();
        self.join();
    }
}

fn bind_all(settings: &Settings, cores: usize) -> Result<Vec<Vec<Bound>>, StartError> {
    let bind = |listener| {
        listener::bind(listener, cores).map_err(|error| StartError::Bind {
            name: listener.name.clone(),
            address: SocketAddr::new(listener.address, listener.port),
            error,
        })
    };
    settings.listeners.iter().map(bind).collect()
}

fn bind_admin(name: &str, address: IpAddr, port: u16) -> Result<std::net::TcpListener, StartError> {
    let address = SocketAddr::new(address, port);
    let bind = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(|error| StartError::Bind { name: name.to_owned(), address, error })
}

fn spawn_core(parts: Parts, ended: mpsc::Sender<u16>) -> std::io::Result<JoinHandle<()>> {
    let index = parts.index;
    std::thread::Builder::new().name(format!("core-{index}")).spawn(move || {
        let _tell = TellEnd { index, ended };
        if let Err(error) = core::run(parts) {
            error!(core = index, %error, "core cannot run");
        }
    })
}

/// Whether all of them came to their end without a panic.
fn join_all(threads: impl IntoIterator<Item = JoinHandle<()>>) -> bool {
    let mut whole = true;
    for thread in threads {
        let name = thread.thread().name().unwrap_or_default().to_owned();
        if thread.join().is_err() {
            error!(thread = name, "a thread panicked");
            whole = false;
        }
    }
    whole
}

/// Tells that a core's thread ended, even by a panic.
struct TellEnd {
    index: u16,
    ended: mpsc::Sender<u16>,
}

impl Drop for TellEnd {
    fn drop(&mut self) {
        // there is room for every core once; nobody may be listening any more
        let _nobody = self.ended.try_send(self.index);
    }
}

/// What the housekeeping thread keeps.
struct House {
    watcher: Watcher,
    look_every: Duration,
    admin: std::net::TcpListener,
    admin_tls: Option<Arc<rustls::ServerConfig>>,
    health: Option<std::net::TcpListener>,
    stopped: watch::Receiver<bool>,
}

fn spawn_house(shared: Arc<Shared>, house: House) -> std::io::Result<JoinHandle<()>> {
    let House { watcher, look_every, admin, admin_tls, health, mut stopped } = house;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let admin_tls = admin_tls.map(|config| Arc::new(ArcSwap::new(config)));
    std::thread::Builder::new().name("house".to_owned()).spawn(move || {
        runtime.block_on(async move {
            tokio::spawn(watcher.watch(look_every, Arc::clone(&shared), admin_tls.clone()));
            tokio::spawn(summary::tell(Arc::clone(&shared)));
            tokio::spawn(drain::keep(Arc::clone(&shared)));
            if let Some(health) = health {
                tokio::spawn(admin::serve_health(Arc::clone(&shared), health));
            }
            tokio::spawn(admin::serve(shared, admin, admin_tls));
            // an error means that the gateway itself is gone
            let _gone = stopped.wait_for(|stopped| *stopped).await;
        });
        runtime.shutdown_background();
    })
}

/// The name of a protocol as the configuration writes it.
pub fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Mqtt => "MQTT",
        Protocol::MqttWebSocket => "MQTTWebSocket",
        Protocol::MqttPlain => "MQTTPlain",
    }
}

#[cfg(test)]
mod tests {
    use super::join_all;

    #[test]
    fn a_thread_that_panicked_is_not_taken_for_one_that_ended() {
        assert!(join_all([std::thread::spawn(|| {}), std::thread::spawn(|| {})]));
        assert!(!join_all([std::thread::spawn(|| panic!("on purpose")), std::thread::spawn(|| {})]));
    }
}
