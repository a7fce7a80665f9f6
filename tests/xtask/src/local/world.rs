//! Hub and gateway as processes, and `local.json`: where they are and who may connect.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use device::sas;
use serde::{Deserialize, Serialize};

use super::certificates;
use crate::{process::Background, step::say};

/// How long a program of ours may take until it listens.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// Partitions of the hub's telemetry log.
const PARTITIONS: u16 = 4;
/// Life of the SAS tokens in `local.json`.
const TOKEN_SECONDS: u64 = 24 * 3600;

/// Which ports the world takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ports {
    /// 5671 and 443 of the hub, 8883 and 443 of the gateway: what SDKs insist on.
    Standard,
    /// The same where this user may and they are free, others otherwise.
    StandardOrFree,
}

/// One hub and the gateway in front of it, each on a loopback address, described in `directory/local.json`.
pub(crate) struct World {
    pub(crate) directory: PathBuf,
    pub(crate) hub_address: Ipv4Addr,
    pub(crate) gateway_address: Ipv4Addr,
    pub(crate) ports: Ports,
    /// Devices to register.
    pub(crate) devices: u32,
}

/// `local.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Description {
    pub(crate) ca_file: PathBuf,
    pub(crate) hub: Hub,
    pub(crate) service: Service,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gateway: Option<Gateway>,
    pub(crate) devices: Vec<Device>,
}

/// The hub's addresses.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Hub {
    pub(crate) host_name: String,
    /// `address:port`
    pub(crate) amqps: SocketAddr,
    /// `https://address:port`
    pub(crate) https: String,
    pub(crate) partitions: u16,
}

/// How to be the back end.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Service {
    pub(crate) connection_string: String,
    pub(crate) sas_token: String,
    pub(crate) sasl_plain_user: String,
}

/// The gateway's addresses.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Gateway {
    pub(crate) host_name: String,
    /// `address:port` by listener name.
    pub(crate) listeners: BTreeMap<String, SocketAddr>,
    /// `http://address:port`
    pub(crate) admin: String,
}

/// One registered device.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Device {
    #[serde(rename = "deviceId")]
    pub(crate) id: String,
    pub(crate) primary_key: String,
    pub(crate) secondary_key: String,
    /// Straight to the hub.
    pub(crate) connection_string: String,
    /// Through the gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gateway_connection_string: Option<String>,
    pub(crate) sas_token: String,
}

/// What the hub program writes about itself.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    host_name: String,
    amqps: SocketAddr,
    https: SocketAddr,
    devices: Vec<DescribedDevice>,
    policies: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DescribedDevice {
    device_id: String,
    primary_key: String,
    secondary_key: String,
    connection_string: String,
}

impl World {
    /// Starts the hub and waits until it listens; returns it with the path of `local.json`.
    pub(crate) fn start_hub(&self, program: &Path) -> anyhow::Result<(Background, PathBuf)> {
        fs::create_dir_all(&self.directory)?;
        certificates::write(&self.directory, self.hub_address, self.gateway_address)?;
        let described = self.directory.join("hub.json");
        if described.exists() {
            fs::remove_file(&described)?;
        }
        let mut command = Command::new(program);
        let address = self.hub_address.to_string();
        command.args(["--name", &address, "--listen", &address, "--quiet"]);
        command.args(["--amqps-port", &self.port(self.hub_address, 5671).to_string()]);
        command.args(["--https-port", &self.port(self.hub_address, 443).to_string()]);
        command.args(["--devices", &self.devices.to_string(), "--partitions", &PARTITIONS.to_string()]);
        command.arg("--certificate").arg(self.directory.join("hub.crt"));
        command.arg("--key").arg(self.directory.join("hub.key"));
        command.arg("--describe").arg(&described);
        let log = self.log("hub.log")?;
        let mut hub = Background::start("the hub", command.stdout(log.try_clone()?).stderr(log))?;
        hub.wait_for_file(&described, READY_LIMIT).with_context(|| self.see_log("hub.log"))?;
        let json = self.directory.join("local.json");
        let described = serde_json::from_slice(&fs::read(&described)?).context("the hub's description of itself")?;
        self.description(described)?.write(&json)?;
        Ok((hub, json))
    }

    /// Starts the gateway in front of the hub that `json` describes and waits until it is ready.
    pub(crate) fn start_gateway(&self, program: &Path, json: &Path) -> anyhow::Result<Background> {
        let mut description = Description::read(json)?;
        let [mqtts, wss] = [8883, 443].map(|port| self.port(self.gateway_address, port));
        let admin = free_port(self.gateway_address);
        let config = self.directory.join("gateway.yaml");
        fs::write(&config, self.gateway_config(&description.hub, mqtts, wss, admin))?;
        let mut command = Command::new(program);
        command.arg("--config").arg(&config).arg("--secrets").arg(self.directory.join("secrets"));
        let log = self.log("gateway.log")?;
        let mut gateway = Background::start("the gateway", command.stdout(log.try_clone()?).stderr(log))?;
        wait_for(&mut gateway, SocketAddr::from((self.gateway_address, mqtts)))
            .with_context(|| self.see_log("gateway.log"))?;
        let at = |port| SocketAddr::from((self.gateway_address, port));
        let host_name = self.gateway_address.to_string();
        for device in &mut description.devices {
            device.gateway_connection_string =
                Some(format!("{};GatewayHostName={host_name}", device.connection_string));
        }
        description.gateway = Some(Gateway {
            host_name,
            listeners: BTreeMap::from([("mqtts".to_owned(), at(mqtts)), ("wss".to_owned(), at(wss))]),
            admin: format!("http://{}", at(admin)),
        });
        description.write(json)?;
        Ok(gateway)
    }

    fn gateway_config(&self, hub: &Hub, mqtts: u16, wss: u16, admin: u16) -> String {
        let address = self.gateway_address;
        format!(
            "listeners:\n\
             - {{name: mqtts, protocol: MQTT, address: {address}, port: {mqtts}}}\n\
             - {{name: wss, protocol: MQTTWebSocket, address: {address}, port: {wss}}}\n\
             tls: {{secretName: tls}}\n\
             authentication: {{sas: {{verify: Hub}}}}\n\
             upstream:\n  iotHub: {{hostName: {}, port: {}, caSecretName: hub-ca}}\n\
             admin: {{address: {address}, port: {admin}}}\n",
            hub.host_name,
            hub.amqps.port(),
        )
    }

    fn description(&self, hub: Described) -> anyhow::Result<Description> {
        let connection_string = hub.policies.get("iothubowner").context("the hub has no policy iothubowner")?.clone();
        let owner_key = key_of(&connection_string)?;
        let expires = sas::unix_now() + TOKEN_SECONDS;
        let short_name = hub.host_name.split('.').next().unwrap_or_default();
        let service = Service {
            sas_token: sas::token(&hub.host_name, owner_key, Some("iothubowner"), expires)?,
            sasl_plain_user: format!("iothubowner@sas.root.{short_name}"),
            connection_string: connection_string.clone(),
        };
        let devices = hub.devices.into_iter().map(|device| {
            let resource = format!("{}/devices/{}", hub.host_name, device.device_id);
            Ok(Device {
                sas_token: sas::token(&resource, &device.primary_key, None, expires)?,
                id: device.device_id,
                primary_key: device.primary_key,
                secondary_key: device.secondary_key,
                connection_string: device.connection_string,
                gateway_connection_string: None,
            })
        });
        Ok(Description {
            ca_file: self.directory.join("ca.pem"),
            devices: devices.collect::<anyhow::Result<_>>()?,
            hub: Hub {
                https: format!("https://{}", hub.https),
                host_name: hub.host_name,
                amqps: hub.amqps,
                partitions: PARTITIONS,
            },
            service,
            gateway: None,
        })
    }

    /// `wanted`, or where the plan allows and it cannot be had, a free one.
    fn port(&self, address: Ipv4Addr, wanted: u16) -> u16 {
        match self.ports {
            Ports::StandardOrFree if TcpListener::bind((address, wanted)).is_err() => free_port(address),
            _ => wanted,
        }
    }

    fn log(&self, name: &str) -> anyhow::Result<fs::File> {
        let path = self.directory.join(name);
        fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))
    }

    fn see_log(&self, name: &str) -> String {
        format!("its log: {}", self.directory.join(name).display())
    }
}

impl Description {
    /// Reads `local.json`.
    pub(crate) fn read(json: &Path) -> anyhow::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(json).with_context(|| format!("cannot read {}", json.display()))?)?)
    }

    /// Whole or not at all: others wait for the file to appear.
    fn write(&self, json: &Path) -> anyhow::Result<()> {
        let fresh = json.with_extension("new");
        fs::write(&fresh, serde_json::to_vec_pretty(self)?)?;
        Ok(fs::rename(&fresh, json)?)
    }

    /// Prints where everything listens and what to try.
    pub(super) fn introduce(&self, json: &Path) {
        let (Some(gateway), Some(device)) = (&self.gateway, self.devices.first()) else { return };
        let ca = self.ca_file.display();
        let mqtts = gateway.listeners["mqtts"];
        say("");
        say(&format!(
            "gateway   MQTT over TLS {mqtts}, over WebSocket {}, admin {}",
            gateway.listeners["wss"], gateway.admin
        ));
        say(&format!("hub       {}  AMQP over TLS {}, REST {}", self.hub.host_name, self.hub.amqps, self.hub.https));
        say(&format!("trust     {ca}"));
        say(&format!("all of it {}", json.display()));
        say("");
        say("a device, for an Azure SDK (it must trust the file above):");
        say(&format!("  {}", device.gateway_connection_string.as_deref().unwrap_or_default()));
        say("a message, to paste:");
        say(&format!(
            "  mosquitto_pub -h {} -p {} --cafile {ca} -V mqttv311 -q 1 -i {id} -u '{}/{id}/?api-version=2021-04-12' -P '{}' -t 'devices/{id}/messages/events/' -m hello",
            mqtts.ip(),
            mqtts.port(),
            self.hub.host_name,
            device.sas_token,
            id = device.id,
        ));
        say("");
    }
}

/// A port that was free a moment ago.
fn free_port(address: Ipv4Addr) -> u16 {
    let bound = TcpListener::bind((address, 0)).and_then(|listener| listener.local_addr());
    bound.map_or(0, |address| address.port())
}

fn wait_for(program: &mut Background, address: SocketAddr) -> anyhow::Result<()> {
    let begun = Instant::now();
    while TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_err() {
        program.still_runs()?;
        if begun.elapsed() > READY_LIMIT {
            bail!("nothing listens on {address} after {READY_LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// `SharedAccessKey` of a connection string; its value may hold `=`.
fn key_of(connection_string: &str) -> anyhow::Result<&str> {
    let pairs = connection_string.split(';').filter_map(|pair| pair.split_once('='));
    let mut keys = pairs.filter(|(name, _)| *name == "SharedAccessKey");
    Ok(keys.next().context("a connection string without SharedAccessKey")?.1)
}
