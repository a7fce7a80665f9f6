//! The servers of one workload as processes: gateway, floors, null servers, peers, each with what stands behind it.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use crate::workload::{DevicesBy, Workload};

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Gateway,
    Floor,
    FloorLinkPerDevice,
    Null,
    Mosquitto,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Floor => "floor",
            Self::FloorLinkPerDevice => "floor, link per device",
            Self::Null => "null",
            Self::Mosquitto => "mosquitto",
        }
    }
}

/// Where programs and files are.
pub(crate) struct Place {
    pub(crate) gateway: PathBuf,
    pub(crate) device: PathBuf,
    pub(crate) bench: PathBuf,
    pub(crate) directory: PathBuf,
}

/// A server, and the sink behind it where it has one.
pub(crate) struct Server {
    pub(crate) kind: Kind,
    pub(crate) address: SocketAddr,
    process: Process,
    sink: Option<Sink>,
}

struct Sink {
    control: SocketAddr,
    _process: Process,
}

impl Place {
    /// Starts a server of `kind` and waits until it listens.
    pub(crate) fn start(&self, kind: Kind, workload: Workload) -> anyhow::Result<Server> {
        let address = free_address()?;
        let sink = match kind {
            Kind::Gateway | Kind::Floor | Kind::FloorLinkPerDevice => Some(self.start_sink(workload)?),
            Kind::Null | Kind::Mosquitto => None,
        };
        let upstream = sink.as_ref().map(|(address, _)| *address);
        let mut command = match kind {
            Kind::Gateway => self.gateway(address, upstream.context("the gateway has a sink")?, workload)?,
            Kind::Mosquitto => self.mosquitto(address, workload)?,
            _ => self.own(kind, address, upstream, workload),
        };
        let process = Process::start(&mut command, &self.directory.join(format!("{}.log", kind.name())))?;
        let mut server = Server { kind, address, process, sink: sink.map(|(_, sink)| sink) };
        server.process.wait_for(address)?;
        Ok(server)
    }

    fn start_sink(&self, workload: Workload) -> anyhow::Result<(SocketAddr, Sink)> {
        let (listen, control) = (free_address()?, free_address()?);
        let mut command = Command::new(&self.bench);
        command.args(["sink", "--listen", &listen.to_string(), "--control", &control.to_string()]);
        if workload.upstream_tls {
            self.serve_tls(&mut command);
        }
        let mut process = Process::start(&mut command, &self.directory.join("sink.log"))?;
        process.wait_for(control)?;
        Ok((listen, Sink { control, _process: process }))
    }

    fn own(&self, kind: Kind, address: SocketAddr, upstream: Option<SocketAddr>, workload: Workload) -> Command {
        let mut command = Command::new(&self.bench);
        command.arg(if kind == Kind::Null { "null" } else { "floor" });
        command.args(["--listen", &address.to_string()]);
        if let Some(upstream) = upstream {
            command.args(["--upstream", &upstream.to_string()]);
        }
        if kind == Kind::FloorLinkPerDevice {
            command.arg("--link-per-device");
        }
        if upstream.is_some() && workload.upstream_tls {
            command.arg("--upstream-ca").arg(self.authority());
        }
        if workload.device_tls() {
            self.serve_tls(&mut command);
        }
        match workload.devices_by {
            DevicesBy::TlsCertificate => command.arg("--client-ca").arg(self.authority()),
            DevicesBy::TlsResumed => command.arg("--tickets"),
            DevicesBy::Tcp | DevicesBy::Tls => &mut command,
        };
        command
    }

    /// Has a server of our own speak TLS to those who connect.
    fn serve_tls(&self, command: &mut Command) {
        let [certificate, key] = self.pair();
        command.arg("--certificate").arg(certificate).arg("--key").arg(key);
    }

    /// The gateway on one core, as the floors are, with no limit that a workload could reach.
    fn gateway(&self, address: SocketAddr, upstream: SocketAddr, workload: Workload) -> anyhow::Result<Command> {
        let protocol = if workload.device_tls() { "MQTT" } else { "MQTTPlain" };
        let by_certificate = workload.devices_by == DevicesBy::TlsCertificate;
        let x509 = if by_certificate { ", x509: {clientCASecretName: ca}" } else { "" };
        let (scheme, trust) = if workload.upstream_tls { ("amqps", ", caSecretName: ca") } else { ("amqp", "") };
        let text = format!(
            "listeners:\n\
             - {{name: bench, protocol: {protocol}, address: {}, port: {}}}\n\
             tls: {{secretName: tls}}\n\
             authentication: {{sas: {{verify: Local, enrollmentGroups: [{{name: bench, secretName: group}}]}}{x509}}}\n\
             upstream: {{amqp: {{url: \"{scheme}://{upstream}\", telemetryAddress: \"telemetry/{{deviceId}}\", commandAddress: \"command/{{deviceId}}\"{trust}}}}}\n\
             limits: {{connectionsMax: 19000, connectsPerSecond: 100000}}\n\
             admin: {{port: {}}}\n",
            address.ip(),
            address.port(),
            free_address()?.port(),
        );
        let config = self.directory.join("gateway.yaml");
        fs::write(&config, text)?;
        let mut command = Command::new(&self.gateway);
        command.arg("--config").arg(config).arg("--secrets").arg(self.secrets()).args(["--cores", "1"]);
        Ok(command)
    }

    fn mosquitto(&self, address: SocketAddr, workload: Workload) -> anyhow::Result<Command> {
        let mut text = format!(
            "listener {} {}\nallow_anonymous true\npersistence false\nmax_inflight_messages 0\nmax_queued_messages 0\nset_tcp_nodelay true\n",
            address.port(),
            address.ip(),
        );
        if workload.device_tls() {
            let [certificate, key] = self.pair();
            text = format!("{text}certfile {}\nkeyfile {}\n", certificate.display(), key.display());
        }
        if workload.devices_by == DevicesBy::TlsCertificate {
            text = format!("{text}cafile {}\nrequire_certificate true\n", self.authority().display());
        }
        let config = self.directory.join("mosquitto.conf");
        fs::write(&config, text)?;
        let mut command = Command::new("mosquitto");
        command.arg("-c").arg(config);
        Ok(command)
    }
}

impl Server {
    pub(crate) fn id(&self) -> u32 {
        self.process.child.id()
    }

    /// Messages that the sink accepted so far; `None` without a sink.
    pub(crate) fn accepted(&self) -> anyhow::Result<Option<u64>> {
        let Some(sink) = &self.sink else { return Ok(None) };
        let mut text = String::new();
        TcpStream::connect(sink.control)?.read_to_string(&mut text)?;
        Ok(Some(text.trim().parse().context("the sink's count")?))
    }
}

struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let file = fs::File::create(log)?;
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name, log: log.to_path_buf(), child })
    }

    /// Waits until `address` accepts connections.
    fn wait_for(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}; its log: {}", self.name, self.log.display());
            }
            if begun.elapsed() > Duration::from_secs(20) {
                bail!("{} does not listen on {address}; its log: {}", self.name, self.log.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // it may have ended already
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::io::stdout().flush();
    }
}

/// A loopback address with a port that was free a moment ago.
fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
