//! Who the peer is and how its nodes are called: IoT Hub's addresses, or the templates of another AMQP broker.

use std::fmt::Write as _;

use gateway_core::{
    auth::Client,
    message::DeviceId,
    settings::{Settings, Transport, Upstream, UpstreamLimits},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::link::Role;

/// RFC 3986 unreserved characters stay; so an id can neither leave its segment nor become a broker's wildcard.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// `com.microsoft:api-version` of our attaches (contract §3.4).
const API_VERSION: &str = "2021-04-12";

/// `com.microsoft:client-version` for a device that does not say what it runs.
const OWN_USER_AGENT: &str = concat!("protocol-gateway/", env!("CARGO_PKG_VERSION"));

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

    /// ATTACH properties that IoT Hub wants (contract §3.4): the device's user agent, or else our own, and on its telemetry link
    /// its model.
    pub(crate) fn attach_properties(&self, role: Role, client: Option<&Client>) -> Vec<(String, String)> {
        if !self.is_iot_hub() {
            return Vec::new();
        }
        let version = client.and_then(|client| client.user_agent.as_deref()).unwrap_or(OWN_USER_AGENT);
        let model = client.and_then(|client| client.model_id.as_deref()).filter(|_| role == Role::Telemetry);
        let properties = [
            ("com.microsoft:client-version", Some(version)),
            ("com.microsoft:api-version", Some(API_VERSION)),
            ("com.microsoft:model-id", model),
        ];
        let given = properties.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
        given.collect()
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
    use gateway_core::{auth::Client, config::GatewayConfig, message::DeviceId};

    use super::{OWN_USER_AGENT, Role, Target, fill, hub_path};

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
    fn the_hub_is_told_what_a_device_runs_on_every_link_and_its_model_on_that_of_telemetry() {
        let target = |upstream: &str| {
            let yaml = format!(
                "authentication: {{sas: {{verify: Local, deviceKeys: {{secretName: k}}}}}}\ntls: {{secretName: s}}\nupstream: {upstream}"
            );
            Target::new(&GatewayConfig::parse(&yaml).unwrap().check().unwrap())
        };
        let hub = target("{iotHub: {hostName: h, policy: {name: p, secretName: p}}}");
        let broker = target("{amqp: {url: 'amqps://b', telemetryAddress: 't/{deviceId}'}}");
        let client = |user_agent: Option<&str>, model_id: Option<&str>| {
            let [user_agent, model_id] = [user_agent, model_id].map(|text| text.map(Into::into));
            Client { user_agent, model_id }
        };
        let check = |target: &Target, role, client: Option<Client>, expected: &[&str]| {
            let got = target.attach_properties(role, client.as_ref());
            let got: Vec<_> = got.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let expected: Vec<_> = expected.iter().map(|property| format!("com.microsoft:{property}")).collect();
            assert_eq!(got, expected, "{role:?} {client:?}");
        };
        let (own, api) = (format!("client-version={OWN_USER_AGENT}"), "api-version=2021-04-12");
        let both = || Some(client(Some("py/2"), Some("dtmi:a;1")));
        check(&hub, Role::Telemetry, None, &[&own, api]);
        check(&hub, Role::Telemetry, both(), &["client-version=py/2", api, "model-id=dtmi:a;1"]);
        check(&hub, Role::Commands, both(), &["client-version=py/2", api]);
        check(&hub, Role::Telemetry, Some(client(None, Some("dtmi:a;1"))), &[&own, api, "model-id=dtmi:a;1"]);
        check(&broker, Role::Telemetry, both(), &[]);
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
