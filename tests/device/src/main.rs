//! `device`: many MQTT devices for a gateway, from one thread.

use std::{
    io::Write,
    net::{SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use device::{
    load::{self, Pace, Phase, Plan, Second},
    sas,
    script::Login,
    tls,
    world::World,
};
use rustls::ClientConfig;
use serde::Serialize;

/// Scripted MQTT devices: connect thousands, send at exact times, count what was acknowledged.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Connect devices, let them send, report each second and at the end
    Load(Box<Load>),
}

#[derive(clap::Args)]
struct Load {
    /// `local.json` of a local world: its gateway, its CA, its devices
    #[arg(long, conflicts_with_all = ["address", "hub_host", "group_key"])]
    world: Option<PathBuf>,
    /// Where to connect, host:port; several spread the devices
    #[arg(long, required_unless_present = "world")]
    address: Vec<String>,
    /// Hub host in user names and tokens
    #[arg(long, default_value = "hub.local")]
    hub_host: String,
    /// Base64 key of the enrolment group that the devices `<prefix><n>` belong to; without it there is no password
    #[arg(long)]
    group_key: Option<String>,
    /// Device ids are this and a number
    #[arg(long, default_value = "device-")]
    prefix: String,
    /// Number of the first device
    #[arg(long, default_value_t = 0)]
    first: usize,
    /// Number of devices (of a world: at most what it has)
    #[arg(long, default_value_t = 10)]
    devices: usize,
    /// PEM file to trust: connect by TLS
    #[arg(long)]
    ca: Option<PathBuf>,
    /// Directory with the certificate and key `<id>.crt` and `<id>.key` of every device: they log in by it
    #[arg(long, requires = "ca", conflicts_with_all = ["world", "group_key"])]
    identities: Option<PathBuf>,
    /// Name in the gateway's certificate
    #[arg(long, default_value = "localhost")]
    server_name: String,
    /// Speak TLS 1.2 only
    #[arg(long)]
    tls12: bool,
    /// Messages per second of all devices together
    #[arg(long, conflicts_with = "closed")]
    rate: Option<f64>,
    /// Closed loop: every device keeps its window full
    #[arg(long)]
    closed: bool,
    /// Every device connects, disconnects and comes back at once; nothing is sent
    #[arg(long, conflicts_with_all = ["closed", "rate"])]
    churn: bool,
    /// Every device sends one message when all are connected, and then nothing
    #[arg(long, conflicts_with_all = ["closed", "rate", "churn"])]
    once: bool,
    /// Every device resumes its TLS session when it comes back
    #[arg(long)]
    resume: bool,
    /// Unacknowledged messages a device
    #[arg(long, default_value_t = 1)]
    window: usize,
    /// Bytes of payload
    #[arg(long, default_value_t = 128)]
    payload: usize,
    /// Message ids `<run>-<sequence>` in the property bag
    #[arg(long)]
    run: Option<String>,
    /// Subscribe to cloud-to-device messages
    #[arg(long)]
    subscribe: bool,
    /// Seconds
    #[arg(long, default_value_t = 60)]
    keep_alive: u16,
    /// New connections per second
    #[arg(long, default_value_t = 500.0)]
    connects_per_second: f64,
    /// Seconds of sending before anything is counted
    #[arg(long, default_value_t = 0.0)]
    warm_up: f64,
    /// Seconds of sending
    #[arg(long = "for", default_value_t = 10.0)]
    time: f64,
    /// Longest wait in seconds for connections and last acknowledgements
    #[arg(long, default_value_t = 30.0)]
    settle: f64,
    /// Come back when the gateway closes, and send again what was not acknowledged
    #[arg(long)]
    reconnect: bool,
    /// End when this file appears
    #[arg(long)]
    stop_file: Option<PathBuf>,
    /// Write the final report, with what each device sent and got acknowledged, to this file
    #[arg(long)]
    report: Option<PathBuf>,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Final {
    seconds: f64,
    connected: usize,
    late_share: f64,
    /// What makes a send late.
    late_after_us: f64,
    total: Second,
    devices: Vec<load::Sequences>,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Load(load) => run(&load),
    }
}

fn run(load: &Load) -> anyhow::Result<()> {
    let plan = plan(load)?;
    let outcome = load::run(&plan, |second| print(load, second))?;
    let total = outcome.total.line(Phase::Total, outcome.seconds, outcome.connected);
    print(load, &total);
    let late_share = outcome.total.late as f64 / outcome.total.sent.max(1) as f64;
    let report = Final {
        seconds: outcome.seconds,
        connected: outcome.connected,
        late_share,
        late_after_us: load::LATE.as_secs_f64() * 1e6,
        total,
        devices: outcome.devices,
    };
    if let Some(path) = &load.report {
        std::fs::write(path, serde_json::to_vec(&report)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn print(load: &Load, second: &Second) {
    let line = if load.json {
        serde_json::to_string(second).expect("numbers are always JSON")
    } else {
        format!(
            "{:6.1} s  connected {}  sent {}  acknowledged {}  p50 {:.2} ms  p99 {:.2} ms  max {:.1} ms  lost connections {}",
            second.seconds,
            second.connected,
            second.sent,
            second.acknowledged,
            second.p50_us / 1e3,
            second.p99_us / 1e3,
            second.max_us / 1e3,
            second.lost_connections,
        )
    };
    // whoever reads may have gone
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn plan(load: &Load) -> anyhow::Result<Plan> {
    let pace = match (load.rate, load.closed) {
        (Some(per_second), _) if per_second > 0.0 => Pace::Open { per_second, window: load.window },
        (_, true) => Pace::Closed { window: load.window },
        _ if load.churn => Pace::Churn,
        _ if load.once => Pace::Once,
        _ => Pace::Idle,
    };
    let (addresses, tls, logins) = match &load.world {
        Some(path) => of_world(load, &World::read(path)?)?,
        None => of_flags(load)?,
    };
    Ok(Plan {
        addresses,
        identities: own_tls(load, tls.as_ref(), &logins)?,
        tls,
        logins,
        pace,
        payload_bytes: load.payload,
        run: load.run.clone(),
        subscribe: load.subscribe,
        connects_per_second: load.connects_per_second.max(0.1),
        warm_up: Duration::from_secs_f64(load.warm_up),
        time: Duration::from_secs_f64(load.time),
        settle: Duration::from_secs_f64(load.settle),
        reconnect: load.reconnect,
        stop_file: load.stop_file.clone(),
    })
}

type Tls = (Arc<ClientConfig>, String);
type Target = (Vec<SocketAddr>, Option<Tls>, Vec<Login>);

/// What a device does not share with the others: its certificate, its session tickets.
fn own_tls(load: &Load, shared: Option<&Tls>, logins: &[Login]) -> anyhow::Result<Vec<Arc<ClientConfig>>> {
    let Some((shared, _)) = shared else { return Ok(Vec::new()) };
    match (&load.identities, &load.ca) {
        (Some(directory), Some(ca)) => {
            let ca = read(ca)?;
            let own = logins.iter().map(|login| {
                let [chain, key] = ["crt", "key"].map(|kind| directory.join(format!("{}.{kind}", login.client_id)));
                tls::client(&ca, load.tls12, load.resume, Some((&read(&chain)?, &read(&key)?)))
            });
            own.collect()
        }
        _ if load.resume => Ok(logins.iter().map(|_| tls::with_own_tickets(shared)).collect()),
        _ => Ok(Vec::new()),
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn of_world(load: &Load, world: &World) -> anyhow::Result<Target> {
    let gateway = world.gateway.as_ref().context("this world has no gateway")?;
    let address = gateway.listeners.get("mqtts").context("this world's gateway has no listener named mqtts")?;
    let ca = read(&world.ca_file)?;
    let devices = world.devices.iter().skip(load.first).take(load.devices);
    let logins = devices.map(|device| Login::with_key(&world.hub.host_name, &device.device_id, &device.primary_key));
    let logins = with_keep_alive(logins.collect::<anyhow::Result<Vec<_>>>()?, load.keep_alive);
    if logins.is_empty() {
        bail!("this world has no device from number {} on", load.first);
    }
    Ok((
        resolve(std::slice::from_ref(address))?,
        Some((tls::client(&ca, load.tls12, load.resume, None)?, gateway.host_name.clone())),
        logins,
    ))
}

fn of_flags(load: &Load) -> anyhow::Result<Target> {
    let tls = match &load.ca {
        None => None,
        Some(path) => Some((tls::client(&read(path)?, load.tls12, load.resume, None)?, load.server_name.clone())),
    };
    let login = |n: usize| -> anyhow::Result<Login> {
        let id = format!("{}{}", load.prefix, load.first + n);
        match &load.group_key {
            _ if load.identities.is_some() => Ok(Login::with_certificate(&load.hub_host, &id)),
            Some(key) => Login::with_key(&load.hub_host, &id, &sas::derived_key(key, &id)?),
            None => Ok(Login {
                client_id: id.clone(),
                user_name: None,
                password: None,
                keep_alive_s: 0,
                clean_session: true,
            }),
        }
    };
    let logins = (0..load.devices).map(login).collect::<anyhow::Result<Vec<_>>>()?;
    Ok((resolve(&load.address)?, tls, with_keep_alive(logins, load.keep_alive)))
}

fn with_keep_alive(mut logins: Vec<Login>, keep_alive_s: u16) -> Vec<Login> {
    for login in &mut logins {
        login.keep_alive_s = keep_alive_s;
    }
    logins
}

fn resolve(addresses: &[String]) -> anyhow::Result<Vec<SocketAddr>> {
    let each = addresses.iter().map(|text| {
        let mut found = text.to_socket_addrs().with_context(|| format!("{text} is not host:port"))?;
        found.next().with_context(|| format!("{text} has no address"))
    });
    each.collect()
}
