//! The configuration file as people write it, and its way to [`Settings`]. Reads no file: text is an argument.
//!
//! [`GatewayConfig`] is the gateway half of `ProtocolGateway.spec`, field for field: a file that works here works there. What
//! was written is kept as it was written; [`GatewayConfig::check`] gives everything its meaning, once, and reports all that
//! is wrong at once. A documented example is `gateway.example.yaml` beside the program `gateway`.

mod error;
mod limits;
mod listeners;
mod quantity;
mod upstream;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use self::error::Errors;
pub use self::{error::ConfigError, quantity::Quantity};
use crate::{settings, settings::Settings, topic::Template};

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewayConfig {
    /// Where devices connect. Default: MQTT over TLS on port 8883.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listeners: Option<Vec<Listener>>,
    /// How devices prove who they are. Default: the hub checks their SAS tokens.
    #[serde(default, skip_serializing_if = "is_default")]
    pub authentication: Authentication,
    /// Where messages go.
    pub upstream: Upstream,
    /// Which topics are telemetry. Default: IoT Hub's.
    #[serde(default, skip_serializing_if = "is_default")]
    pub topics: Topics,
    /// Bounds towards devices.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// Certificate of the listeners. Needed unless all of them are `MQTTPlain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<SecretReference>,
    /// Health, metrics, who is connected. Default: plain HTTP on 127.0.0.1:9090.
    #[serde(default, skip_serializing_if = "is_default")]
    pub admin: Admin,
}

/// One listening port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listener {
    /// Unique: lower-case letters, digits and `-`, at most 15 characters.
    pub name: String,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Address to bind. Default: 0.0.0.0, and 127.0.0.1 for `MQTTPlain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// TCP port. Default: 8883, 443 or 1883 by protocol. 0 lets the system choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i64>,
}

/// What a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Protocol {
    /// MQTT over TLS.
    #[serde(rename = "MQTT")]
    Mqtt,
    /// MQTT over WebSocket over TLS.
    #[serde(rename = "MQTTWebSocket")]
    MqttWebSocket,
    /// MQTT without TLS, on loopback addresses only.
    #[serde(rename = "MQTTPlain")]
    MqttPlain,
}

/// How devices prove who they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Authentication {
    /// SAS tokens.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sas: Sas,
    /// Client certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x509: Option<X509>,
}

/// SAS tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sas {
    /// Who checks them.
    #[serde(default)]
    pub verify: Verify,
    /// Keys of single devices; for `Local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_keys: Option<SecretReference>,
    /// Keys from which those of many devices derive; for `Local`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub enrollment_groups: Vec<NamedSecret>,
}

/// Who checks a SAS token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Verify {
    /// IoT Hub: the token is passed on.
    #[default]
    Hub,
    /// This gateway, by keys from Secrets.
    Local,
}

/// Client certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct X509 {
    /// Secret with `ca.crt`: who signs the devices' certificates.
    #[serde(rename = "clientCASecretName")]
    pub client_ca_secret_name: String,
}

/// The other side: exactly one of `iotHub` and `amqp`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Upstream {
    /// Azure IoT Hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iot_hub: Option<IotHub>,
    /// Any AMQP 1.0 broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amqp: Option<Amqp>,
    /// Bounds of the AMQP side.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: UpstreamLimits,
}

/// Azure IoT Hub.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IotHub {
    /// `name.azure-devices.net`.
    pub host_name: String,
    /// Other names that devices may use for the hub in user name and token, such as the gateway's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_name_aliases: Vec<String>,
    /// Default: 5671, or 443 for `AMQPWebSocket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i64>,
    /// Shared access policy with DeviceConnect. Needed for `verify: Local` and for x509.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<NamedSecret>,
    /// How AMQP reaches the hub.
    #[serde(default)]
    pub transport: Transport,
    /// Default: 900; a hub takes no more than 1000 tokens on one connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices_per_connection_max: Option<i64>,
    /// Secret with `ca.crt` to trust instead of the system's roots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_name: Option<String>,
}

/// How AMQP reaches the hub.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Transport {
    /// AMQP over TLS.
    #[default]
    #[serde(rename = "AMQP")]
    Amqp,
    /// AMQP over WebSocket over TLS.
    #[serde(rename = "AMQPWebSocket")]
    AmqpWebSocket,
}

/// Any AMQP 1.0 broker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Amqp {
    /// `amqps://host[:port]`, or `amqp://…` without TLS.
    pub url: String,
    /// Address of telemetry; `{deviceId}` is replaced.
    pub telemetry_address: String,
    /// Address of commands; `{deviceId}` is replaced. Default: no commands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_address: Option<String>,
    /// Secret with `username` and `password` for SASL PLAIN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sasl_plain: Option<SecretReference>,
    /// Secret with `tls.crt` and `tls.key` for SASL EXTERNAL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<SecretReference>,
    /// Secret with `ca.crt` to trust instead of the system's roots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_name: Option<String>,
    /// Default: 900.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices_per_connection_max: Option<i64>,
}

/// Bounds of the AMQP side; ranges and defaults stand in `config/upstream.rs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UpstreamLimits {
    /// AMQP connections of one process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_max: Option<i64>,
    /// Links on one AMQP session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub links_per_session_max: Option<i64>,
    /// Put-tokens under way on one AMQP connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_inflight_max: Option<i64>,
    /// How long the peer may take to answer an open, begin, attach or put-token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<Quantity>,
    /// How long a message may wait for its disposition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settle_timeout: Option<Quantity>,
    /// How long devices stay connected while the hub is away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outage_max: Option<Quantity>,
    /// First wait between attempts to reconnect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff_min: Option<Quantity>,
    /// Longest wait between attempts to reconnect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff_max: Option<Quantity>,
    /// An AMQP connection without devices closes after this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Quantity>,
    /// AMQP frame size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frame_bytes_max: Option<Quantity>,
    /// Unsent bytes of one AMQP connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_bytes_max: Option<Quantity>,
    /// Life of the policy tokens that the gateway makes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ttl: Option<Quantity>,
}

/// Which topics are telemetry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Topics {
    /// Templates, first match wins. Default: those of IoT Hub for devices and modules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inbound: Option<Vec<String>>,
    /// What to do with a topic that matches none.
    #[serde(skip_serializing_if = "is_default")]
    pub unmatched: Unmatched,
    /// DUP becomes the application property `mqtt-dup`.
    #[serde(skip_serializing_if = "is_default")]
    pub dup_property: bool,
}

/// What to do with a topic that matches no template.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Unmatched {
    /// Close the connection.
    #[default]
    Close,
    /// Send it with the properties `Unmatched` and `Subject`.
    PassThrough,
}

/// Bounds towards devices; ranges and defaults stand in `config/limits.rs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Connections of one process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_max: Option<i64>,
    /// New connections per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connects_per_second: Option<i64>,
    /// TLS handshakes under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handshakes_max: Option<i64>,
    /// Whole MQTT packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet_bytes_max: Option<Quantity>,
    /// Body and properties of a message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_bytes_max: Option<Quantity>,
    /// Properties of a message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub properties_max: Option<i64>,
    /// Unacknowledged messages of one device, each direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inflight_max: Option<i64>,
    /// From accept to the end of the handshake, and again to the CONNECT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handshake_timeout: Option<Quantity>,
    /// Longest silence allowed whatever the device asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive_max: Option<Quantity>,
    /// How long a connection outlives its token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_expiry_grace: Option<Quantity>,
    /// How far in the past a token may have expired at CONNECT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_skew_max: Option<Quantity>,
    /// Unwritten bytes of one device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_bytes_max: Option<Quantity>,
    /// How long a device may leave bytes unread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_timeout: Option<Quantity>,
    /// From the signal to stop to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shutdown_timeout: Option<Quantity>,
}

/// The admin port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Admin {
    /// Default: 127.0.0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Default: 9090. 0 lets the system choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<i64>,
    /// Mutual TLS; needed beyond loopback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<AdminTls>,
}

/// Mutual TLS of the admin port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AdminTls {
    /// Secret with `tls.crt` and `tls.key`.
    pub secret_name: String,
    /// Secret with `ca.crt`.
    #[serde(rename = "clientCASecretName")]
    pub client_ca_secret_name: String,
}

/// A Secret by its name: a directory below the directory of secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretReference {
    /// Name of the Secret, and of the directory.
    pub secret_name: String,
}

/// A Secret and a name for what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamedSecret {
    /// Name of the policy or group.
    pub name: String,
    /// Name of the Secret, and of the directory.
    pub secret_name: String,
}

impl GatewayConfig {
    /// Reads YAML (and JSON, which is YAML).
    ///
    /// # Errors
    /// The first thing that is not of the form, with line and column; an unknown name with the nearest known one.
    pub fn parse(yaml: &str) -> Result<Self, ConfigError> {
        serde_saphyr::from_str(yaml).map_err(|error| ConfigError::from_yaml(&error))
    }

    /// Gives everything its meaning.
    ///
    /// # Errors
    /// All that is wrong, in the order of the file's sections.
    pub fn check(&self) -> Result<Settings, Vec<ConfigError>> {
        let mut errors = Errors::default();
        let listeners = listeners::check(self.listeners.as_deref(), &mut errors);
        let authentication = self.authentication(&mut errors);
        let upstream = upstream::check(self, &mut errors);
        let topics = self.topics(&mut errors);
        let limits = limits::check(&self.limits, &mut errors);
        let tls_secret_name = self.tls(&listeners, &mut errors);
        let admin = self.admin(&listeners, &mut errors);
        // a section that is beyond use has left its reasons in `errors`
        let upstream = match upstream {
            Some(upstream) if errors.is_empty() => upstream,
            _ => return Err(errors.into_list()),
        };
        let settings = Settings { listeners, tls_secret_name, authentication, upstream, topics, limits, admin };
        upstream::check_room(&settings, &mut errors);
        if errors.is_empty() { Ok(settings) } else { Err(errors.into_list()) }
    }

    fn authentication(&self, errors: &mut Errors) -> settings::Authentication {
        let Authentication { sas, x509 } = &self.authentication;
        let device_keys = sas.device_keys.as_ref().map(|keys| &keys.secret_name);
        if let Some(name) = device_keys {
            errors.secret_name("authentication.sas.deviceKeys.secretName", name);
        }
        if let Some(x509) = x509 {
            errors.secret_name("authentication.x509.clientCASecretName", &x509.client_ca_secret_name);
        }
        enrollment_groups(&sas.enrollment_groups, errors);
        let has_keys = device_keys.is_some() || !sas.enrollment_groups.is_empty();
        match sas.verify {
            Verify::Hub if has_keys => errors.add(
                "authentication.sas",
                "keys are named, but the hub checks the tokens",
                "write verify: Local, or leave out deviceKeys and enrollmentGroups",
            ),
            Verify::Local if !has_keys && x509.is_none() => errors.add(
                "authentication.sas",
                "verify is Local and there is nothing to verify with",
                "name deviceKeys or enrollmentGroups, or set authentication.x509",
            ),
            Verify::Hub | Verify::Local => {}
        }
        let group = |group: &NamedSecret| settings::EnrollmentGroup {
            name: group.name.clone(),
            secret_name: group.secret_name.clone(),
        };
        settings::Authentication {
            sas: match sas.verify {
                Verify::Hub => settings::Sas::Hub,
                Verify::Local => settings::Sas::Local {
                    device_keys_secret_name: device_keys.cloned(),
                    enrollment_groups: sas.enrollment_groups.iter().map(group).collect(),
                },
            },
            client_ca_secret_name: x509.as_ref().map(|x509| x509.client_ca_secret_name.clone()),
        }
    }

    fn topics(&self, errors: &mut Errors) -> settings::Topics {
        let default = || IOT_HUB_TOPICS.map(str::to_owned).to_vec();
        let inbound = self.topics.inbound.clone().unwrap_or_else(default);
        if inbound.is_empty() || inbound.len() > TEMPLATES_MAX {
            let problem = format!("holds {} templates", inbound.len());
            errors.add("topics.inbound", problem, format!("give 1 to {TEMPLATES_MAX}, or leave it out for IoT Hub's"));
        }
        let mut templates = Vec::new();
        for (index, text) in inbound.iter().take(TEMPLATES_MAX).enumerate() {
            match Template::compile(text) {
                Ok(template) => templates.push(template),
                Err(error) => {
                    let right = format!("write a template such as {}", IOT_HUB_TOPICS[0]);
                    errors.add(format!("topics.inbound[{index}]"), error.to_string(), right);
                }
            }
        }
        let unmatched = match self.topics.unmatched {
            Unmatched::Close => settings::Unmatched::Close,
            Unmatched::PassThrough => settings::Unmatched::PassThrough,
        };
        settings::Topics { inbound: templates, unmatched, dup_property: self.topics.dup_property }
    }

    fn tls(&self, listeners: &[settings::Listener], errors: &mut Errors) -> Option<String> {
        let secret_name = self.tls.as_ref().map(|tls| tls.secret_name.clone());
        if let Some(name) = &secret_name {
            errors.secret_name("tls.secretName", name);
        }
        let encrypted = listeners.iter().find(|listener| listener.protocol != settings::Protocol::MqttPlain);
        if let (None, Some(listener)) = (&secret_name, encrypted) {
            let problem = format!("listener {} has no certificate", listener.name);
            errors.add("tls.secretName", problem, "name the directory with tls.crt and tls.key");
        }
        secret_name
    }

    fn admin(&self, listeners: &[settings::Listener], errors: &mut Errors) -> settings::Admin {
        let address = errors.address("admin.address", self.admin.address.as_deref(), IpAddr::from([127, 0, 0, 1]));
        let port = errors.number("admin.port", self.admin.port, 9090, 0, 65_535) as u16;
        if let Some(listener) = listeners.iter().find(|listener| port != 0 && listener.port == port) {
            let problem = format!("{port} is the port of listener {}", listener.name);
            errors.add("admin.port", problem, "choose another port");
        }
        if !address.is_loopback() && self.admin.tls.is_none() {
            let problem = format!("{address} can be reached from elsewhere, and admin.tls is missing");
            errors.add("admin.address", problem, "use 127.0.0.1, or set admin.tls {secretName, clientCASecretName}");
        }
        if let Some(tls) = &self.admin.tls {
            errors.secret_name("admin.tls.secretName", &tls.secret_name);
            errors.secret_name("admin.tls.clientCASecretName", &tls.client_ca_secret_name);
        }
        let tls = self.admin.tls.as_ref().map(|tls| settings::AdminTls {
            secret_name: tls.secret_name.clone(),
            client_ca_secret_name: tls.client_ca_secret_name.clone(),
        });
        settings::Admin { address, port, tls }
    }
}

/// Telemetry topics of IoT Hub (contract §2.7).
const IOT_HUB_TOPICS: [&str; 2] = [
    "devices/{deviceId}/messages/events/{*properties}",
    "devices/{deviceId}/modules/{moduleId}/messages/events/{*properties}",
];

/// Templates are tried one after the other for every message.
const TEMPLATES_MAX: usize = 32;

/// Every CONNECT tries the keys of every group.
const GROUPS_MAX: usize = 64;

fn enrollment_groups(groups: &[NamedSecret], errors: &mut Errors) {
    let path = "authentication.sas.enrollmentGroups";
    if groups.len() > GROUPS_MAX {
        errors.add(path, format!("holds {} groups", groups.len()), format!("give at most {GROUPS_MAX}"));
    }
    for (index, group) in groups.iter().enumerate() {
        errors.secret_name(format!("{path}[{index}].secretName"), &group.secret_name);
        if group.name.is_empty() || groups[..index].iter().any(|other| other.name == group.name) {
            let problem = format!("\"{}\" is empty or the name of another group", group.name);
            errors.add(format!("{path}[{index}].name"), problem, "give every group a name of its own");
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
