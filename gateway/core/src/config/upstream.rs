//! The other side: exactly one, reachable by name, with what the kind of authentication needs.

use std::time::Duration;

use super::{Amqp, GatewayConfig, IotHub, Quantity, Transport, UpstreamLimits, Verify, error::Errors};
use crate::settings;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// `None` if there is nothing to make an upstream of; the reasons are in `errors` then.
pub(super) fn check(config: &GatewayConfig, errors: &mut Errors) -> Option<settings::Upstream> {
    match (&config.upstream.iot_hub, &config.upstream.amqp) {
        (Some(hub), None) => Some(settings::Upstream::IotHub(iot_hub(hub, config, errors))),
        (None, Some(amqp)) => Some(settings::Upstream::Amqp(broker(amqp, config, errors))),
        (None, None) => {
            let both = ["upstream.iotHub", "upstream.amqp"];
            errors.add_across("upstream", &both, "there is none", "set upstream.iotHub or upstream.amqp");
            None
        }
        (Some(_), Some(_)) => {
            errors.add("upstream", "iotHub and amqp are both set", "keep one of them");
            None
        }
    }
}

fn iot_hub(hub: &IotHub, config: &GatewayConfig, errors: &mut Errors) -> settings::IotHub {
    let path = "upstream.iotHub";
    errors.host_name(format!("{path}.hostName"), &hub.host_name);
    for (index, alias) in hub.host_name_aliases.iter().enumerate() {
        errors.host_name(format!("{path}.hostNameAliases[{index}]"), alias);
    }
    policy(hub, config, errors);
    if let Some(name) = &hub.ca_secret_name {
        errors.secret_name(format!("{path}.caSecretName"), name);
    }
    if config.limits.message_bytes_max.as_ref().and_then(Quantity::bytes).is_some_and(|bytes| bytes > 256 * KIB) {
        errors.add("limits.messageBytesMax", "IoT Hub takes no message above 256KiB", "give 1KiB to 256KiB");
    }
    let (transport, port) = match hub.transport {
        Transport::Amqp => (settings::Transport::Amqp, 5671),
        Transport::AmqpWebSocket => (settings::Transport::AmqpWebSocket, 443),
    };
    let devices_max =
        errors.number("upstream.iotHub.devicesPerConnectionMax", hub.devices_per_connection_max, 900, 1, 1000);
    settings::IotHub {
        host_name: hub.host_name.clone(),
        host_name_aliases: hub.host_name_aliases.clone(),
        port: errors.number("upstream.iotHub.port", hub.port, port, 1, 65_535) as u16,
        policy: hub
            .policy
            .as_ref()
            .map(|policy| settings::Policy { name: policy.name.clone(), secret_name: policy.secret_name.clone() }),
        transport,
        ca_secret_name: hub.ca_secret_name.clone(),
        limits: limits(&config.upstream.limits, devices_max, errors),
    }
}

/// Devices that the gateway judges itself come to the hub under a policy's token.
fn policy(hub: &IotHub, config: &GatewayConfig, errors: &mut Errors) {
    let path = "upstream.iotHub.policy";
    let needed_for = match &config.authentication {
        authentication if authentication.sas.verify == Verify::Local => Some("authentication.sas.verify: Local"),
        authentication if authentication.x509.is_some() => Some("authentication.x509"),
        _ => None,
    };
    match (&hub.policy, needed_for) {
        (None, Some(reason)) => errors.add_across(
            path,
            &["authentication.sas.verify", "authentication.x509"],
            format!("is missing, and {reason} needs it"),
            "name a policy of the hub with DeviceConnect: {name, secretName}",
        ),
        (Some(policy), _) => {
            errors.secret_name(format!("{path}.secretName"), &policy.secret_name);
            if policy.name.is_empty() || policy.name.len() > 64 {
                errors.add(format!("{path}.name"), "is not the name of a policy", "use 1 to 64 characters");
            }
        }
        (None, None) => {}
    }
}

fn broker(amqp: &Amqp, config: &GatewayConfig, errors: &mut Errors) -> settings::AmqpBroker {
    if config.authentication.sas.verify == Verify::Hub {
        errors.add(
            "authentication.sas.verify",
            "is Hub, and a broker cannot check tokens",
            "write verify: Local and name the keys, or set upstream.iotHub",
        );
    }
    let telemetry = ("the broker could not tell who sent a message", "telemetry/{deviceId}");
    address("upstream.amqp.telemetryAddress", &amqp.telemetry_address, telemetry, errors);
    if let Some(command_address) = &amqp.command_address {
        let command = ("a command could reach any of them", "command/{deviceId}");
        address("upstream.amqp.commandAddress", command_address, command, errors);
    }
    let Url { host, port, tls } = url(&amqp.url, errors);
    broker_secrets(amqp, tls, errors);
    let devices_max =
        errors.number("upstream.amqp.devicesPerConnectionMax", amqp.devices_per_connection_max, 900, 1, 10_000);
    let limits = limits(&config.upstream.limits, devices_max, errors);
    settings::AmqpBroker {
        host,
        port,
        tls,
        telemetry_address: amqp.telemetry_address.clone(),
        command_address: amqp.command_address.clone(),
        sasl_plain_secret_name: amqp.sasl_plain.as_ref().map(|secret| secret.secret_name.clone()),
        client_certificate_secret_name: amqp.client_certificate.as_ref().map(|secret| secret.secret_name.clone()),
        ca_secret_name: amqp.ca_secret_name.clone(),
        limits,
    }
}

fn broker_secrets(amqp: &Amqp, tls: bool, errors: &mut Errors) {
    let secrets = [
        ("upstream.amqp.saslPlain.secretName", amqp.sasl_plain.as_ref().map(|secret| &secret.secret_name)),
        (
            "upstream.amqp.clientCertificate.secretName",
            amqp.client_certificate.as_ref().map(|secret| &secret.secret_name),
        ),
        ("upstream.amqp.caSecretName", amqp.ca_secret_name.as_ref()),
    ];
    for (path, name) in secrets {
        let Some(name) = name else { continue };
        errors.secret_name(path, name);
        if !tls {
            errors.add(
                path,
                "has no use, or is not safe, without TLS",
                "write the url as amqps://…, or leave this out",
            );
        }
    }
    if amqp.sasl_plain.is_some() && amqp.client_certificate.is_some() {
        errors.add("upstream.amqp", "saslPlain and clientCertificate are both set", "keep one of them");
    }
}

/// An address of each device: it is all that says whose a message is, no property is the gateway's word for that.
fn address(path: &str, given: &str, (shared, right): (&str, &str), errors: &mut Errors) {
    let rest = given.replace("{deviceId}", "");
    if given.is_empty() || given.len() > 1024 || rest.contains(['{', '}']) {
        errors.add(path, format!("\"{given}\" is not an address"), format!("write one such as {right}"));
    } else if rest == given {
        let problem = format!("\"{given}\" is the same for all devices, and {shared}");
        errors.add(path, problem, format!("put {{deviceId}} into it, as in {right}"));
    }
}

struct Url {
    host: String,
    port: u16,
    tls: bool,
}

/// Reads `amqps://host[:port]`. Neither path nor credentials: those have places of their own.
fn url(given: &str, errors: &mut Errors) -> Url {
    parse_url(given).unwrap_or_else(|| {
        // the text may hold a password: it is not shown
        errors.add(
            "upstream.amqp.url",
            "is not of the form amqps://host[:port]",
            "write one such as amqps://broker.example:5671, without user, password and path",
        );
        Url { host: String::new(), port: 5671, tls: true }
    })
}

fn parse_url(given: &str) -> Option<Url> {
    let (scheme, rest) = given.split_once("://")?;
    let (tls, default_port) = match scheme {
        "amqps" => (true, 5671),
        "amqp" => (false, 5672),
        _ => return None,
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => {
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, port.strip_prefix(':').or_else(|| port.is_empty().then_some(""))?)
        }
        None => rest.split_once(':').unwrap_or((rest, "")),
    };
    let mut host_errors = Errors::default();
    if !host.contains(':') {
        host_errors.host_name("", host);
    }
    let port = match port {
        "" => default_port,
        port if port.bytes().all(|byte| byte.is_ascii_digit()) => port.parse().ok().filter(|port| *port != 0)?,
        _ => return None,
    };
    host_errors.is_empty().then(|| Url { host: host.to_owned(), port, tls })
}

fn limits(given: &UpstreamLimits, devices_per_connection_max: u32, errors: &mut Errors) -> settings::UpstreamLimits {
    let mut number = |name: &str, given, default, min, max| {
        errors.number(&format!("upstream.limits.{name}"), given, default, min, max)
    };
    let connections_max = number("connectionsMax", given.connections_max, 64, 1, 10_000);
    let links_per_session_max = number("linksPerSessionMax", given.links_per_session_max, 256, 2, 65_535);
    // contract §7.29: the hub drops a connection with more than 30
    let tokens_inflight_max = number("tokensInflightMax", given.tokens_inflight_max, 30, 1, 1000);
    let mut duration = |name: &str, given: &Option<Quantity>, default_ms, min_ms, max_ms| {
        let [default, min, max] = [default_ms, min_ms, max_ms].map(Duration::from_millis);
        errors.duration(&format!("upstream.limits.{name}"), given.as_ref(), default, min, max)
    };
    let request_timeout = duration("requestTimeout", &given.request_timeout, 30_000, 100, 600_000);
    let settle_timeout = duration("settleTimeout", &given.settle_timeout, 60_000, 100, 3_600_000);
    let outage_max = duration("outageMax", &given.outage_max, 300_000, 0, 86_400_000);
    let backoff_min = duration("backoffMin", &given.backoff_min, 500, 10, 60_000);
    let backoff_max = duration("backoffMax", &given.backoff_max, 30_000, 10, 3_600_000);
    let idle_timeout = duration("idleTimeout", &given.idle_timeout, 210_000, 1000, 86_400_000);
    let token_ttl = duration("tokenTtl", &given.token_ttl, 3_600_000, 60_000, 86_400_000);
    if backoff_max < backoff_min && errors.is_sound("upstream.limits.backoffMax") {
        let others = ["upstream.limits.backoffMin"];
        errors.add_across("upstream.limits.backoffMax", &others, "is below backoffMin", "give at least backoffMin");
    }
    let frame_bytes_max =
        errors.bytes("upstream.limits.frameBytesMax", given.frame_bytes_max.as_ref(), 64 * KIB, 512, MIB) as u32;
    let output_bytes_max =
        errors.bytes("upstream.limits.outputBytesMax", given.output_bytes_max.as_ref(), MIB, 64 * KIB, 64 * MIB)
            as usize;
    let unsettled_bytes_max = errors.bytes(
        "upstream.limits.unsettledBytesMax",
        given.unsettled_bytes_max.as_ref(),
        256 * MIB,
        MIB,
        65_536 * MIB,
    ) as usize;
    settings::UpstreamLimits {
        devices_per_connection_max,
        connections_max,
        links_per_session_max,
        tokens_inflight_max,
        request_timeout,
        settle_timeout,
        outage_max,
        backoff: (backoff_min, backoff_max),
        idle_timeout,
        frame_bytes_max,
        output_bytes_max,
        unsettled_bytes_max,
        token_ttl,
    }
}

/// All devices that may connect must find room on the AMQP connections.
pub(super) fn check_room(upstream: &settings::Upstream, devices_max: u32, errors: &mut Errors) {
    let (limits, per_connection_path) = match upstream {
        settings::Upstream::IotHub(hub) => (&hub.limits, "upstream.iotHub.devicesPerConnectionMax"),
        settings::Upstream::Amqp(broker) => (&broker.limits, "upstream.amqp.devicesPerConnectionMax"),
    };
    let room = u64::from(limits.connections_max) * u64::from(limits.devices_per_connection_max);
    let wanted = u64::from(devices_max);
    if room < wanted {
        let least = wanted.div_ceil(u64::from(limits.devices_per_connection_max));
        let path = "upstream.limits.connectionsMax";
        errors.add_across(
            path,
            &[path, per_connection_path, "limits.connectionsMax"],
            format!("there is room for {room} devices upstream, and limits.connectionsMax lets {wanted} connect"),
            format!("give at least {least}, or lower limits.connectionsMax"),
        );
    }
}
