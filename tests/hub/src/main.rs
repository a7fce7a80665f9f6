//! The program `hub`: a local IoT Hub on this machine. See `--help`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Parser, ValueEnum};
use hub::domain::{
    Authentication, C2dSettings, Cursor, Domain, Identity, Keep, Registration, Settings, SharedKey, StoredEvent,
    TelemetrySettings, id_text,
};
use hub::{Certificates, Hub, HubConfig, read_certificates};
use serde::Deserialize;

/// Bytes of a body that are printed.
const PRINTED_BYTES_MAX: usize = 200;
/// Events printed in one go.
const PRINT_BATCH: usize = 1000;

/// A local IoT Hub: AMQP 1.0 and REST, in memory, for tests and for trying things out.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Name of the hub, as in connection strings and tokens
    #[arg(long, default_value = "localhost", value_parser = host_name)]
    name: String,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    listen: IpAddr,
    /// Port of AMQP on TLS; 0 takes any free one
    #[arg(long, default_value_t = 5671)]
    amqps_port: u16,
    /// Port of REST and of AMQP on WebSocket; 0 takes any free one
    #[arg(long, default_value_t = 443)]
    https_port: u16,
    /// Port of AMQP without TLS, for measurements (not offered if absent)
    #[arg(long)]
    amqp_port: Option<u16>,
    /// Further host names and IP addresses of the certificate that is made
    #[arg(long, value_name = "NAME")]
    certificate_name: Vec<String>,
    /// Certificate chain to use instead, PEM, leaf first
    #[arg(long, requires = "key", value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, requires = "certificate", value_name = "FILE")]
    key: Option<PathBuf>,
    /// Write what clients must trust to this file, PEM
    #[arg(long, value_name = "FILE")]
    ca_out: Option<PathBuf>,
    /// Authorities of device certificates, PEM
    #[arg(long, value_name = "FILE")]
    device_ca: Option<PathBuf>,
    /// Register so many devices at start
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    devices: u32,
    /// Their ids are this and a number from 1
    #[arg(long, default_value = "device-", value_name = "TEXT")]
    device_prefix: String,
    /// Derive their keys from this one (base64), as enrollment groups do, instead of random ones
    #[arg(long, value_name = "KEY")]
    group_key: Option<String>,
    /// Register these: a JSON array of {"deviceId", "moduleId"?, "primaryKey"?}
    #[arg(long, value_name = "FILE")]
    registrations: Option<PathBuf>,
    /// Key of a shared access policy instead of a random one
    #[arg(long, value_name = "NAME=KEY")]
    policy_key: Vec<String>,
    /// Partitions of the telemetry log
    #[arg(long, default_value_t = 4, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=32))]
    partitions: u16,
    /// Keep messages, or only counts of them (flat memory, for load)
    #[arg(long, value_enum, default_value_t = KeepArgument::Bodies)]
    keep: KeepArgument,
    /// Seconds for which a device may hold a cloud-to-device message
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    lock: u64,
    /// Seconds for which a token is taken after its end
    #[arg(long, default_value_t = 300, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=86_400))]
    sas_skew: u64,
    /// Write ports, certificate file and connection strings to this file, JSON
    #[arg(long, value_name = "FILE")]
    describe: Option<PathBuf>,
    /// Do not print what is received
    #[arg(long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KeepArgument {
    Bodies,
    Counts,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let hub = Hub::start(config(&arguments)?)?;
    register(&hub, &arguments)?;
    if let Some(path) = &arguments.ca_out {
        write(path, hub.ca_pem())?;
    }
    if let Some(path) = &arguments.describe {
        write(path, &description(&hub, &arguments).to_string())?;
    }
    greet(&hub, &arguments);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            ended = stop_signal() => ended,
            () = print_telemetry(hub.domain()), if !arguments.quiet => Ok(()),
        }
    })?;
    hub.stop();
    Ok(())
}

/// A host name as RFC 1123 has it: it goes into connection strings, tokens and a certificate.
fn host_name(text: &str) -> Result<String, String> {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() <= 253 && text.split('.').all(is_label) {
        return Ok(text.to_owned());
    }
    Err("not a host name: letters, digits and hyphens in labels separated by dots, at most 253 characters".to_owned())
}

fn config(arguments: &Arguments) -> anyhow::Result<HubConfig> {
    let keep = match arguments.keep {
        KeepArgument::Bodies => Keep::Bodies,
        KeepArgument::Counts => Keep::Counts,
    };
    let mut policy_keys = BTreeMap::new();
    for pair in &arguments.policy_key {
        let (name, key) = pair.split_once('=').context("--policy-key must be NAME=KEY")?;
        policy_keys.insert(name.to_owned(), key.to_owned());
    }
    let certificates = match (&arguments.certificate, &arguments.key) {
        (Some(chain), Some(key)) => Some(Certificates::given(&read(chain)?, &read(key)?).map_err(anyhow::Error::msg)?),
        _ => None,
    };
    let device_authorities = match &arguments.device_ca {
        Some(path) => read_certificates(&read(path)?).map_err(anyhow::Error::msg)?,
        None => Vec::new(),
    };
    Ok(HubConfig {
        host_name: arguments.name.clone(),
        address: arguments.listen,
        amqps_port: arguments.amqps_port,
        https_port: arguments.https_port,
        amqp_port: arguments.amqp_port,
        certificates,
        certificate_names: arguments.certificate_name.clone(),
        settings: Settings {
            sas_skew: Duration::from_secs(arguments.sas_skew),
            policy_keys,
            device_authorities,
            c2d: C2dSettings { lock_ms: arguments.lock * 1000, ..C2dSettings::default() },
            telemetry: TelemetrySettings { partitions: arguments.partitions, keep, ..TelemetrySettings::default() },
            ..Settings::default()
        },
        ..HubConfig::default()
    })
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RegistrationLine {
    device_id: String,
    module_id: Option<String>,
    primary_key: Option<String>,
}

fn register(hub: &Hub, arguments: &Arguments) -> anyhow::Result<()> {
    let group_key = match &arguments.group_key {
        Some(base64) => Some(SharedKey::parse(base64).context("--group-key must be base64 of 16 to 64 bytes")?),
        None => None,
    };
    for number in 1..=arguments.devices {
        let id = format!("{}{number}", arguments.device_prefix);
        let key = group_key.as_ref().map(|group| group.derived(&id));
        register_one(hub, Identity::device(&id), key)?;
    }
    let Some(path) = &arguments.registrations else { return Ok(()) };
    let lines: Vec<RegistrationLine> =
        serde_json::from_str(&read(path)?).with_context(|| path.display().to_string())?;
    for line in lines {
        let parse = |base64: &String| {
            SharedKey::parse(base64).with_context(|| format!("{}: key is not usable", line.device_id))
        };
        let key = line.primary_key.as_ref().map(parse).transpose()?;
        let identity = match &line.module_id {
            None => Identity::device(&line.device_id),
            Some(module) => Identity::module(&line.device_id, module),
        };
        register_one(hub, identity, key)?;
    }
    Ok(())
}

fn register_one(hub: &Hub, identity: Identity, key: Option<SharedKey>) -> anyhow::Result<()> {
    let mut registration = Registration::new(identity);
    if let Some(primary) = key {
        registration.authentication = Authentication::SymmetricKey { primary, secondary: SharedKey::generate() };
    }
    let name = registration.identity.to_string();
    match hub.domain().create_identity(registration) {
        Ok(_) => Ok(()),
        Err(error) => bail!("{name}: {error}"),
    }
}

/// Where the hub listens and how to connect, for programs.
fn description(hub: &Hub, arguments: &Arguments) -> serde_json::Value {
    let addresses = hub.addresses();
    let devices: Vec<_> = identities(hub.domain()).filter_map(|identity| described(hub, &identity)).collect();
    let policies: BTreeMap<&str, String> = hub
        .domain()
        .policies
        .iter()
        .filter_map(|policy| Some((policy.name.as_str(), hub.policy_connection_string(&policy.name)?)))
        .collect();
    serde_json::json!({
        "hostName": hub.domain().host_name,
        "amqps": addresses.amqps,
        "https": addresses.https,
        "amqp": addresses.amqp,
        "caFile": arguments.ca_out.as_deref().map(absolute),
        "devices": devices,
        "policies": policies,
    })
}

/// An identity with keys, for programs; `None` if it has none.
fn described(hub: &Hub, identity: &Identity) -> Option<serde_json::Value> {
    let [primary, secondary] = hub.domain().registry.keys(identity).ok()?.try_into().ok()?;
    Some(serde_json::json!({
        "deviceId": &*identity.device,
        "moduleId": identity.module.as_deref(),
        "primaryKey": primary.secret_base64(),
        "secondaryKey": secondary.secret_base64(),
        "connectionString": hub.connection_string(identity)?,
    }))
}

fn identities(domain: &Domain) -> impl Iterator<Item = Identity> {
    domain.registry.devices(usize::MAX).into_iter().map(|record| record.registration.identity).flat_map(|device| {
        let modules = domain.registry.modules(&device.device).into_iter().map(|record| record.registration.identity);
        std::iter::once(device).chain(modules).collect::<Vec<_>>()
    })
}

fn greet(hub: &Hub, arguments: &Arguments) {
    /// Connection strings that are printed; all are in the file of `--describe`.
    const PRINTED_MAX: usize = 5;
    let addresses = hub.addresses();
    println!(
        "hub {} listens: AMQP on TLS {}, REST and WebSocket {}",
        hub.domain().host_name,
        addresses.amqps,
        addresses.https
    );
    if let Some(amqp) = addresses.amqp {
        println!("AMQP without TLS {amqp}");
    }
    if let Some(path) = &arguments.ca_out {
        println!("clients must trust {}", path.display());
    }
    for identity in identities(hub.domain()).take(PRINTED_MAX) {
        println!("{identity}: {}", hub.connection_string(&identity).unwrap_or_default());
    }
    if let Some(policy) = hub.policy_connection_string("iothubowner") {
        println!("service: {policy}");
    }
}

async fn print_telemetry(domain: &Domain) {
    let log = &domain.telemetry;
    let mut positions: Vec<u64> =
        (0..log.partitions()).map(|partition| log.position(partition, Cursor::Latest).unwrap_or(0)).collect();
    loop {
        let appended = log.appended();
        let mut any = false;
        for (partition, position) in (0..).zip(&mut positions) {
            for stored in log.read(partition, *position, PRINT_BATCH) {
                any = true;
                *position = stored.sequence_number + 1;
                println!("{}", line(&stored));
            }
        }
        if !any {
            appended.await;
        }
    }
}

fn line(stored: &StoredEvent) -> String {
    let event = &stored.event;
    let id = event.properties.message_id.as_ref().map(id_text).unwrap_or_default();
    let printed = &event.body[..event.body.len().min(PRINTED_BYTES_MAX)];
    let body = String::from_utf8_lossy(printed);
    format!("{} {} {id} {} bytes {}", event.source, event.identity, stored.body_bytes, body.escape_debug())
}

async fn stop_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted.context("signal"),
        _ = terminate.recv() => Ok(()),
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// Whole or not at all: others wait for the file to appear.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text)
        .and_then(|()| std::fs::rename(&fresh, path))
        .with_context(|| path.display().to_string())
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::host_name;

    fn check(text: &str, is_name: bool) {
        assert_eq!(host_name(text).is_ok(), is_name, "{text}");
    }

    #[test]
    fn a_name_that_would_break_a_connection_string_is_refused() {
        for name in ["localhost", "contoso.azure-devices.net", "127.0.0.1", "A-1"] {
            check(name, true);
        }
        for name in ["", "bad;name", "a=b", "a b", "a..b", ".a", "a.", "-a", "a-", "ä.example", "a/b", "a%2f"] {
            check(name, false);
        }
        check(&"a".repeat(63), true);
        check(&"a".repeat(64), false);
        check(&["a"; 128].join("."), false);
    }
}
