//! What the gateway runs by: the checked form of `config`. Only this circulates.
//!
//! Names carry their unit; every bound of the program is here.

mod changes;

use std::{net::IpAddr, time::Duration};

pub use self::changes::{Changes, When, table};
use crate::{config::Rate, topic::Template};

/// Everything a gateway process was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where devices connect; at least one, names and ports unique.
    pub listeners: Vec<Listener>,
    /// Directory below the secrets root with `tls.crt` and `tls.key` for the listeners; `None` only if all of them are plain.
    pub tls_secret_name: Option<String>,
    /// How devices prove who they are.
    pub authentication: Authentication,
    /// Where messages go.
    pub upstream: Upstream,
    /// Which topics are telemetry.
    pub topics: Topics,
    /// Bounds towards devices.
    pub limits: Limits,
    /// Health, metrics, who is connected.
    pub admin: Admin,
}

impl Settings {
    /// Whether `host` is a name of the hub: its own, or an alias, in any case. A broker has no name that devices must know.
    pub fn is_hub_host(&self, host: &str) -> bool {
        match &self.upstream {
            Upstream::IotHub(hub) => std::iter::once(&hub.host_name)
                .chain(&hub.host_name_aliases)
                .any(|name| name.eq_ignore_ascii_case(host)),
            Upstream::Amqp(_) => !host.is_empty(),
        }
    }

    /// Bounds of the AMQP side, whichever upstream it is.
    pub fn upstream_limits(&self) -> &UpstreamLimits {
        match &self.upstream {
            Upstream::IotHub(hub) => &hub.limits,
            Upstream::Amqp(broker) => &broker.limits,
        }
    }

    /// Every directory of secrets that is used, each once, sorted.
    pub fn secret_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.device_side_secrets().chain(self.upstream.secret_names()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    fn device_side_secrets(&self) -> impl Iterator<Item = &str> {
        let (device_keys, groups) = match &self.authentication.sas {
            Sas::Hub => (None, [].as_slice()),
            Sas::Local { device_keys_secret_name, enrollment_groups } => {
                (device_keys_secret_name.as_deref(), enrollment_groups.as_slice())
            }
        };
        let admin = self.admin.tls.iter().flat_map(|tls| [&tls.secret_name, &tls.client_ca_secret_name]);
        [self.tls_secret_name.as_deref(), self.authentication.client_ca_secret_name.as_deref(), device_keys]
            .into_iter()
            .flatten()
            .chain(groups.iter().map(|group| group.secret_name.as_str()))
            .chain(admin.map(String::as_str))
    }
}

/// One listening port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Unique name, a DNS label.
    pub name: String,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Address to bind; unspecified unless the file says otherwise.
    pub address: IpAddr,
    /// TCP port; 0 lets the system choose (tests).
    pub port: u16,
}

/// What a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// MQTT over TLS.
    Mqtt,
    /// MQTT over WebSocket over TLS: path `/$iothub/websocket`, subprotocol `mqtt`.
    MqttWebSocket,
    /// MQTT without TLS: loopback addresses only.
    MqttPlain,
}

/// Which proofs of identity are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authentication {
    /// SAS tokens.
    pub sas: Sas,
    /// Directory with `ca.crt`: devices may present a certificate that it signs.
    pub client_ca_secret_name: Option<String>,
}

/// Who checks a device's SAS token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sas {
    /// The hub: the token goes to it by CBS. Only with [`Upstream::IotHub`].
    Hub,
    /// This gateway, by keys from files.
    Local {
        /// Directory with the devices' own keys: every file in it holds lines `deviceId primary [secondary]`.
        device_keys_secret_name: Option<String>,
        /// Groups whose members' keys derive from the group's key.
        enrollment_groups: Vec<EnrollmentGroup>,
    },
}

/// One enrolment group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrollmentGroup {
    /// For logs.
    pub name: String,
    /// Directory with the file `primary` and, if there are two keys, `secondary`: base64 text.
    pub secret_name: String,
}

/// The other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// Azure IoT Hub.
    IotHub(IotHub),
    /// Any AMQP 1.0 broker.
    Amqp(AmqpBroker),
}

impl Upstream {
    fn secret_names(&self) -> impl Iterator<Item = &str> {
        let names = match self {
            Self::IotHub(hub) => {
                [hub.policy.as_ref().map(|policy| &policy.secret_name), hub.ca_secret_name.as_ref(), None]
            }
            Self::Amqp(broker) => [
                broker.sasl_plain_secret_name.as_ref(),
                broker.client_certificate_secret_name.as_ref(),
                broker.ca_secret_name.as_ref(),
            ],
        };
        names.into_iter().flatten().map(String::as_str)
    }
}

/// Azure IoT Hub as upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IotHub {
    /// `name.azure-devices.net`: the host in user names, tokens and the AMQP open.
    pub host_name: String,
    /// Other names that devices may use for the hub in user name and token (the gateway's own name, for one).
    pub host_name_aliases: Vec<String>,
    /// TCP port of the AMQP listener: 5671, or 443 over WebSocket.
    pub port: u16,
    /// Hub policy with DeviceConnect: name (`skn`) and the directory with its key. Needed unless `sas` is [`Sas::Hub`] alone.
    pub policy: Option<Policy>,
    /// TLS or WebSocket.
    pub transport: Transport,
    /// Directory with `ca.crt` to trust instead of the system's roots.
    pub ca_secret_name: Option<String>,
    /// Bounds of the AMQP side.
    pub limits: UpstreamLimits,
}

/// A shared access policy of the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// `skn`.
    pub name: String,
    /// Directory with the file `key`: base64 text.
    pub secret_name: String,
}

/// How AMQP reaches the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// AMQP over TLS, port 5671.
    Amqp,
    /// AMQP over WebSocket, port 443, `/$iothub/websocket`, subprotocol `AMQPWSB10`.
    AmqpWebSocket,
}

/// Any AMQP 1.0 broker as upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AmqpBroker {
    /// Host of the URL.
    pub host: String,
    /// Port of the URL; 5671 or 5672 if it has none.
    pub port: u16,
    /// `amqps` or `amqp`.
    pub tls: bool,
    /// Address template of telemetry: `{deviceId}` is replaced.
    pub telemetry_address: String,
    /// Address template of commands, if there are any.
    pub command_address: Option<String>,
    /// Directory with `username` and `password` for SASL PLAIN.
    pub sasl_plain_secret_name: Option<String>,
    /// Directory with `tls.crt` and `tls.key` for SASL EXTERNAL.
    pub client_certificate_secret_name: Option<String>,
    /// Directory with `ca.crt` to trust instead of the system's roots.
    pub ca_secret_name: Option<String>,
    /// Bounds of the AMQP side.
    pub limits: UpstreamLimits,
}

/// Bounds of the AMQP side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamLimits {
    /// Devices on one AMQP connection.
    pub devices_per_connection_max: u32,
    /// AMQP connections of one process.
    pub connections_max: u32,
    /// Links on one AMQP session; the peer's handle-max may lower it.
    pub links_per_session_max: u32,
    /// Put-tokens under way on one AMQP connection.
    pub tokens_inflight_max: u32,
    /// Attach, begin, open, put-token: how long an answer may take.
    pub request_timeout: Duration,
    /// How long a message may wait for its disposition.
    pub settle_timeout: Duration,
    /// How long devices stay connected while the hub is away.
    pub outage_max: Duration,
    /// First and longest wait between attempts to reconnect.
    pub backoff: (Duration, Duration),
    /// An AMQP connection without devices closes after this.
    pub idle_timeout: Duration,
    /// Our frame size and the most unsent bytes of one AMQP connection.
    pub frame_bytes_max: u32,
    /// Unsent bytes of one AMQP connection; beyond them messages wait for the next write.
    pub output_bytes_max: usize,
    /// Bytes of messages without an outcome, of all devices of the process; beyond them devices are no longer read and no new
    /// one is let in.
    pub unsettled_bytes_max: usize,
    /// Life of the policy tokens we make; renewed at 80 %.
    pub token_ttl: Duration,
}

/// Which topics are telemetry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    /// Templates, first match wins.
    pub inbound: Vec<Template>,
    /// What to do with a topic that matches none.
    pub unmatched: Unmatched,
    /// DUP becomes the application property `mqtt-dup`; IoT Hub does nothing with it.
    pub dup_property: bool,
}

/// What to do with a topic that matches no template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unmatched {
    /// Close the connection, as IoT Hub does.
    Close,
    /// Send it with `Unmatched=True` and `Subject=<topic>`, as the ancestor did.
    PassThrough,
}

/// Bounds towards devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections of one process; further ones are not accepted.
    pub connections_max: u32,
    /// New connections taken per second; further ones wait in the listen queue.
    pub connects_per_second: u32,
    /// TLS handshakes under way; further connections wait.
    pub handshakes_max: u32,
    /// Whole MQTT packet, in bytes.
    pub packet_bytes_max: usize,
    /// Unfinished first packets of all connections together, in bytes.
    pub unauthenticated_bytes_max: usize,
    /// Body and properties of a message, in bytes (IoT Hub: 262144).
    pub message_bytes_max: usize,
    /// Properties of one message: those of the bag, of topic variables and the gateway's own.
    pub properties_max: usize,
    /// Unacknowledged PUBLISHes of one device, each direction.
    pub inflight_max: u16,
    /// From accept to the end of the TLS (and WebSocket) handshake, and again to the CONNECT.
    pub handshake_timeout: Duration,
    /// Longest silence allowed whatever the device asks for (IoT Hub: 1767 s); compared with 1.5 × its keep-alive.
    pub keep_alive_max: Duration,
    /// How long after `se` a connection with an expired token may live.
    pub token_expiry_grace: Duration,
    /// How far `se` may lie in the past at CONNECT (clock skew).
    pub clock_skew_max: Duration,
    /// Unwritten bytes of one device before it is not read any more.
    pub output_bytes_max: usize,
    /// How long a device may leave our bytes unread.
    pub write_timeout: Duration,
    /// Connections let go per second where nobody orders another pace.
    pub drain_per_second: Rate,
    /// How long an order is waited for before connections are let go without one.
    pub drain_alone_after: Duration,
    /// From SIGTERM until the last device is let go.
    pub drain_timeout: Duration,
    /// From the last device let go until everything under way is settled.
    pub shutdown_timeout: Duration,
}

/// The admin port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Loopback unless `tls` is given.
    pub address: IpAddr,
    /// TCP port; 0 lets the system choose.
    pub port: u16,
    /// TCP port on the same address for `/healthz` and `/readyz` without TLS; 0 lets the system choose.
    pub health_port: Option<u16>,
    /// Directories of the serving pair and of the client CA: mutual TLS.
    pub tls: Option<AdminTls>,
}

/// Mutual TLS of the admin port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminTls {
    /// Directory with `tls.crt` and `tls.key`.
    pub secret_name: String,
    /// Directory with `ca.crt`.
    pub client_ca_secret_name: String,
}
