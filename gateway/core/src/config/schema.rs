//! The form of the file: names, nesting, and what a field that is not there means. Values are kept as they were written.

use serde::{Deserialize, Serialize};

use super::{Quantity, Rate};

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
    /// Address of telemetry; `{deviceId}` is replaced and must be there: only the address tells who sent a message.
    pub telemetry_address: String,
    /// Address of commands; `{deviceId}` is replaced and must be there. Default: no commands.
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
    /// Bytes of messages without an outcome, of all devices together; above it devices are not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unsettled_bytes_max: Option<Quantity>,
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
    /// Unfinished first packets of all connections together, beyond 4 KiB of each; but never less than one packet for each core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unauthenticated_bytes_max: Option<Quantity>,
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
    /// Connections let go per second where nobody orders another pace: after the signal to stop, and of devices whose
    /// certificate is no longer trusted. 0.1 is one in ten seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_per_second: Option<Rate>,
    /// How long an order is waited for before connections are let go without one; not longer than three quarters of
    /// drainTimeout after the signal to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_alone_after: Option<Quantity>,
    /// From the signal to stop until the last device is let go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_timeout: Option<Quantity>,
    /// From the last device let go until everything under way is settled.
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
    /// Port on the same address for `/healthz` and `/readyz` without TLS, and for nothing else. Default: none. 0 lets the
    /// system choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_port: Option<i64>,
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

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
