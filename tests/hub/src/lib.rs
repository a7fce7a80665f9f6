//! A local IoT Hub: AMQP 1.0 and REST, strict, in memory, with faults on request and a ledger of all it saw.
//!
//! It shares no code with the gateway: it is the independent judge of it. [`Hub::start`] runs one on a thread of its own;
//! the program `hub` is the same with a command line.
//!
//! - [`domain`]: what a hub is, without any I/O. Read this first.
//! - [`amqp`]: the AMQP side; `rest`: the REST side; `server`: listeners, TLS, WebSocket.

pub mod amqp;
pub mod domain;
mod rest;
mod server;
mod tls;
pub mod websocket;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;

use domain::{Authentication, Domain, Identity, Registration, Settings};
pub use tls::{Certificates, read_certificates};

/// How a hub is to be started. The default is one for tests: loopback, any free ports, certificates of its own.
#[derive(Debug)]
pub struct HubConfig {
    /// The hub's name: `HostName` of connection strings, `sr` of tokens. Need not be the name clients connect to.
    pub host_name: String,
    /// Where to listen.
    pub address: IpAddr,
    /// Port of AMQP on TLS; 0 = any free one.
    pub amqps_port: u16,
    /// Port of REST and WebSocket on TLS; 0 = any free one.
    pub https_port: u16,
    /// Port of AMQP without TLS, for measurements; `None` = not offered, 0 = any free one.
    pub amqp_port: Option<u16>,
    /// Certificates; `None` = made for [`Self::certificate_names`].
    pub certificates: Option<Certificates>,
    /// Host names and IP addresses of certificates made; the hub's name, `localhost` and 127.0.0.1 come on their own.
    pub certificate_names: Vec<String>,
    /// TCP connections at once, per port; more are closed at once.
    pub connections_max: usize,
    /// Time for TLS handshakes and HTTP headers.
    pub handshake_timeout: Duration,
    /// Bounds and habits of its AMQP side.
    pub amqp: amqp::AmqpSettings,
    /// Bounds and habits of the hub itself.
    pub settings: Settings,
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            host_name: "localhost".to_owned(),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            amqps_port: 0,
            https_port: 0,
            amqp_port: None,
            certificates: None,
            certificate_names: Vec::new(),
            connections_max: 50_000,
            handshake_timeout: Duration::from_secs(20),
            amqp: amqp::AmqpSettings::default(),
            settings: Settings::default(),
        }
    }
}

/// Where a hub listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// AMQP on TLS.
    pub amqps: SocketAddr,
    /// REST and WebSocket on TLS.
    pub https: SocketAddr,
    /// AMQP without TLS.
    pub amqp: Option<SocketAddr>,
}

/// A running hub. Stops when dropped.
#[derive(Debug)]
pub struct Hub {
    domain: Arc<Domain>,
    addresses: Addresses,
    ca_pem: String,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Hub {
    /// Starts a hub on a thread of its own; it listens when this returns.
    ///
    /// # Errors
    /// A port that is taken, a certificate or key that is not usable.
    pub fn start(config: HubConfig) -> anyhow::Result<Self> {
        let domain = Domain::new(&config.host_name, config.settings.clone()).map_err(anyhow::Error::msg)?;
        let certificates = match config.certificates {
            Some(certificates) => certificates,
            None => {
                Certificates::made(&names(&config.host_name, &config.certificate_names)).map_err(anyhow::Error::msg)?
            }
        };
        let shared = Arc::new(server::Shared {
            domain: domain.clone(),
            amqp: Arc::new(config.amqp),
            tls: certificates.server_config().map_err(anyhow::Error::msg)?.into(),
            connections_max: config.connections_max,
            handshake_timeout: config.handshake_timeout,
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")?;
        let (listeners, addresses) = {
            let _context = runtime.enter();
            bind(config.address, config.amqps_port, config.https_port, config.amqp_port)?
        };
        let (stop, stopped) = watch::channel(false);
        let run = move || runtime.block_on(server::run(shared, listeners, stopped));
        let thread = std::thread::Builder::new().name("hub".to_owned()).spawn(run).context("thread")?;
        Ok(Self { domain, addresses, ca_pem: certificates.ca_pem, stop, thread: Some(thread) })
    }

    /// The hub's state: registry, twins, messages, ledger, faults, clock.
    pub fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    /// What the hub saw.
    pub fn ledger(&self) -> &domain::Ledger {
        &self.domain.ledger
    }

    /// The faults that stand; [`Self::inject`] adds.
    pub fn faults(&self) -> &domain::Faults {
        &self.domain.faults
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// What clients must trust, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Registers a device with random keys and returns its connection string.
    ///
    /// # Errors
    /// The id is illegal or taken.
    pub fn add_device(&self, id: &str) -> Result<String, domain::HubError> {
        let identity = Identity::device(id);
        self.domain.create_identity(Registration::new(identity.clone()))?;
        Ok(self.connection_string(&identity).expect("registered above with keys"))
    }

    /// The connection string of an identity; `None` if it is not registered or has no keys.
    pub fn connection_string(&self, identity: &Identity) -> Option<String> {
        let Authentication::SymmetricKey { primary, .. } =
            self.domain.registry.get(identity)?.registration.authentication
        else {
            return None;
        };
        let module = identity.module.as_ref().map(|module| format!(";ModuleId={module}")).unwrap_or_default();
        let (host, device, key) = (&self.domain.host_name, &identity.device, primary.secret_base64());
        Some(format!("HostName={host};DeviceId={device}{module};SharedAccessKey={key}"))
    }

    /// The connection string of a policy; `None` if there is none of this name.
    pub fn policy_connection_string(&self, policy: &str) -> Option<String> {
        let key = self.domain.policies.get(policy)?.primary.secret_base64();
        Some(format!("HostName={};SharedAccessKeyName={policy};SharedAccessKey={key}", self.domain.host_name))
    }

    /// Lets a fault stand, or, at [`domain::Point::Now`], strike at once. As [`Domain::inject`].
    pub fn inject(&self, fault: domain::Fault) -> Option<u64> {
        self.domain.inject(fault)
    }

    /// Stops the hub: all connections are dropped, the ports are free when this returns. State can still be read through
    /// a clone of [`Self::domain`].
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // a panic of the hub's thread was printed by then; a panic here would hide the test's own
            let _ = thread.join();
        }
    }
}

fn names(host_name: &str, given: &[String]) -> Vec<String> {
    let own = [host_name, "localhost", "127.0.0.1"].map(str::to_owned);
    let mut names: Vec<String> = Vec::new();
    for name in own.into_iter().chain(given.iter().cloned()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn bind(address: IpAddr, amqps: u16, https: u16, amqp: Option<u16>) -> anyhow::Result<(Vec<server::Port>, Addresses)> {
    let port = |service, port| {
        let address = SocketAddr::new(address, port);
        let listener = server::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        let address = listener.local_addr().context("a listener has an address")?;
        anyhow::Ok((server::Port { service, listener, address }, address))
    };
    let (amqps, amqps_address) = port(server::Service::Amqps, amqps)?;
    let (https, https_address) = port(server::Service::Https, https)?;
    let amqp = amqp.map(|number| port(server::Service::Amqp, number)).transpose()?;
    let amqp_address = amqp.as_ref().map(|(_, address)| *address);
    let listeners = [amqps, https].into_iter().chain(amqp.map(|(port, _)| port)).collect();
    Ok((listeners, Addresses { amqps: amqps_address, https: https_address, amqp: amqp_address }))
}
