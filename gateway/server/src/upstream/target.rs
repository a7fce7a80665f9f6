//! Who the peer is and how its nodes are called: IoT Hub's addresses, or the templates of another AMQP broker.

use std::fmt::Write as _;

use gateway_core::{
    message::DeviceId,
    settings::{Settings, Transport, Upstream, UpstreamLimits},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// RFC 3986 unreserved characters stay; so an id can neither leave its segment nor become a broker's wildcard.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// `com.microsoft:api-version` of our attaches (contract §3.4).
const API_VERSION: &str = "2021-04-12";

/// The peer, as settings name it.
pub(crate) struct Target {
    /// Name in OPEN, tokens, TLS and for the resolver.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: bool,
    pub(crate) websocket: bool,
    pub(crate) limits: UpstreamLimits,
    kind: Kind,
}

enum Kind {
    IotHub { policy: Option<String> },
    Broker { telemetry: String, commands: Option<String> },
}

impl Target {
    pub(crate) fn new(settings: &Settings) -> Self {
        match &settings.upstream {
            Upstream::IotHub(hub) => Self {
                host: hub.host_name.clone(),
                port: hub.port,
                tls: true,
                websocket: hub.transport == Transport::AmqpWebSocket,
                limits: hub.limits.clone(),
                kind: Kind::IotHub { policy: hub.policy.as_ref().map(|policy| policy.name.clone()) },
            },
            Upstream::Amqp(broker) => Self {
                host: broker.host.clone(),
                port: broker.port,
                tls: broker.tls,
                websocket: false,
                limits: broker.limits.clone(),
                kind: Kind::Broker {
                    telemetry: broker.telemetry_address.clone(),
                    commands: broker.command_address.clone(),
                },
            },
        }
    }

    /// Whether it is an IoT Hub: tokens go to `$cbs` before links attach, and messages are stamped with their sender.
    pub(crate) fn is_iot_hub(&self) -> bool {
        matches!(self.kind, Kind::IotHub { .. })
    }

    /// Name of the policy whose token opens a whole connection.
    pub(crate) fn policy(&self) -> Option<&str> {
        match &self.kind {
            Kind::IotHub { policy } => policy.as_deref(),
            Kind::Broker { .. } => None,
        }
    }

    /// What a device's token is for: `{hub}/devices/{d}[/modules/{m}]`.
    pub(crate) fn audience(&self, identity: &DeviceId) -> String {
        format!("{}{}", self.host, hub_path(identity))
    }

    /// The node that takes a device's telemetry.
    pub(crate) fn telemetry_address(&self, identity: &DeviceId) -> String {
        match &self.kind {
            Kind::IotHub { .. } => hub_path(identity) + "/messages/events",
            Kind::Broker { telemetry, .. } => fill(telemetry, identity),
        }
    }

    /// The node that gives a device's commands; `None` if this peer has none.
    pub(crate) fn command_address(&self, identity: &DeviceId) -> Option<String> {
        match &self.kind {
            Kind::IotHub { .. } => Some(hub_path(identity) + "/messages/deviceBound"),
            Kind::Broker { commands, .. } => commands.as_ref().map(|template| fill(template, identity)),
        }
    }

    /// ATTACH properties that IoT Hub wants (contract §3.4).
    pub(crate) fn attach_properties(&self) -> Vec<(String, String)> {
        let version = concat!("protocol-gateway/", env!("CARGO_PKG_VERSION"));
        match self.kind {
            Kind::IotHub { .. } => vec![
                ("com.microsoft:client-version".into(), version.into()),
                ("com.microsoft:api-version".into(), API_VERSION.into()),
            ],
            Kind::Broker { .. } => Vec::new(),
        }
    }
}

/// `/devices/{d}[/modules/{m}]`.
fn hub_path(identity: &DeviceId) -> String {
    let mut path = String::from("/devices/");
    path.extend(utf8_percent_encode(identity.device(), SEGMENT));
    if let Some(module) = identity.module() {
        path.push_str("/modules/");
        path.extend(utf8_percent_encode(module, SEGMENT));
    }
    path
}

/// Replaces `{deviceId}` by `d` or `d/m`.
fn fill(template: &str, identity: &DeviceId) -> String {
    let mut id = String::new();
    id.extend(utf8_percent_encode(identity.device(), SEGMENT));
    if let Some(module) = identity.module() {
        write!(id, "/{}", utf8_percent_encode(module, SEGMENT)).expect("a String takes every write");
    }
    template.replace("{deviceId}", &id)
}

#[cfg(test)]
mod tests {
    use gateway_core::message::DeviceId;

    use super::{fill, hub_path};

    fn id(device: &str, module: Option<&str>) -> DeviceId {
        DeviceId::new(device, module).unwrap()
    }

    #[test]
    fn ids_are_percent_encoded_in_hub_addresses() {
        let check = |device, module, path: &str| assert_eq!(hub_path(&id(device, module)), path);
        check("d1", None, "/devices/d1");
        check("d1", Some("m1"), "/devices/d1/modules/m1");
        check("a%b#c", Some("x:y"), "/devices/a%25b%23c/modules/x%3Ay");
        check("A-b._", None, "/devices/A-b._");
    }

    #[test]
    fn an_id_cannot_become_a_wildcard_of_a_broker() {
        let check =
            |device, module, address: &str| assert_eq!(fill("command/{deviceId}", &id(device, module)), address);
        check("d1", None, "command/d1");
        check("*", None, "command/%2A");
        check("#", Some("m"), "command/%23/m");
    }
}
