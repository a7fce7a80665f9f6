//! Where devices connect: names, ports and addresses that can all be served at once.

use std::net::IpAddr;

use super::{Listener, Protocol, error::Errors};
use crate::settings;

/// Listeners that one process serves.
const LISTENERS_MAX: usize = 16;

/// Checks the listeners; none given is MQTT over TLS alone.
pub(super) fn check(listeners: Option<&[Listener]>, errors: &mut Errors) -> Vec<settings::Listener> {
    let default = [Listener { name: "mqtts".to_owned(), protocol: Protocol::Mqtt, address: None, port: None }];
    let listeners = listeners.unwrap_or(&default);
    if listeners.is_empty() || listeners.len() > LISTENERS_MAX {
        let problem = format!("holds {} listeners", listeners.len());
        errors.add("listeners", problem, format!("give 1 to {LISTENERS_MAX}, or leave it out for MQTT on port 8883"));
    }
    let mut checked: Vec<settings::Listener> = Vec::new();
    for (index, listener) in listeners.iter().enumerate() {
        let path = format!("listeners[{index}]");
        let listener = one(&path, listener, errors);
        for (index, other) in checked.iter().enumerate() {
            clash((&path, &listener), (&format!("listeners[{index}]"), other), errors);
        }
        checked.push(listener);
    }
    checked
}

fn one(path: &str, listener: &Listener, errors: &mut Errors) -> settings::Listener {
    let (protocol, address, port) = match listener.protocol {
        Protocol::Mqtt => (settings::Protocol::Mqtt, [0, 0, 0, 0], 8883),
        Protocol::MqttWebSocket => (settings::Protocol::MqttWebSocket, [0, 0, 0, 0], 443),
        Protocol::MqttPlain => (settings::Protocol::MqttPlain, [127, 0, 0, 1], 1883),
    };
    let address = errors.address(format!("{path}.address"), listener.address.as_deref(), IpAddr::from(address));
    let port = errors.number(&format!("{path}.port"), listener.port, port, 0, 65_535) as u16;
    let port_from = if listener.port.is_some() { "port" } else { "protocol" };
    // 0 clashes with no other
    let port = if errors.is_sound(&format!("{path}.{port_from}")) { port } else { 0 };
    if protocol == settings::Protocol::MqttPlain && !address.is_loopback() {
        errors.add_across(
            format!("{path}.address"),
            &[&format!("{path}.protocol")],
            format!("MQTTPlain sends tokens in the clear and cannot listen on {address}"),
            "use 127.0.0.1 or ::1, or protocol MQTT",
        );
    }
    if !is_port_name(&listener.name) {
        errors.add(
            format!("{path}.name"),
            format!("\"{}\" is not a port name", listener.name),
            "use 1 to 15 lower-case letters, digits and '-', with a letter, and no '-' at either end or twice in a row",
        );
    }
    settings::Listener { name: listener.name.clone(), protocol, address, port }
}

fn clash(
    (path, listener): (&str, &settings::Listener),
    (other_path, other): (&str, &settings::Listener),
    errors: &mut Errors,
) {
    if listener.name == other.name && errors.was_read(&format!("{other_path}.name")) {
        let problem = format!("\"{}\" is the name of another listener", listener.name);
        errors.add(format!("{path}.name"), problem, "give every listener a name of its own");
    }
    if listener.port != 0 && listener.port == other.port {
        let problem = format!("{} is the port of listener {}", listener.port, other.name);
        errors.add(format!("{path}.port"), problem, "give every listener a port of its own");
    }
}

/// What Kubernetes takes as the name of a container's port (RFC 6335 §5.1).
fn is_port_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=15).contains(&name.len())
        && name.bytes().all(allowed)
        && name.bytes().any(|byte| byte.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}
