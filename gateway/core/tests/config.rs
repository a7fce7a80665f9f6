//! The configuration file: the example, the defaults, and every rule with the message that explains it.

use std::{net::IpAddr, time::Duration};

use gateway_core::{
    config::{ConfigError, GatewayConfig},
    settings::{Protocol, Sas, Settings, Transport, Unmatched, Upstream},
};
use proptest::prelude::*;

const EXAMPLE: &str = include_str!("../../server/gateway.example.yaml");

/// The least that is a configuration.
const MINIMAL: &str = "
upstream:
  iotHub: {hostName: contoso.azure-devices.net}
tls: {secretName: serving}
";

fn settings(yaml: &str) -> Settings {
    GatewayConfig::read(yaml).unwrap_or_else(|errors| panic!("{errors:#?}\n{yaml}"))
}

fn errors(yaml: &str) -> Vec<ConfigError> {
    GatewayConfig::read(yaml).err().unwrap_or_default()
}

/// The paths that `yaml` has errors at, in any order.
fn check(yaml: &str, expected: &[&str]) {
    let errors = errors(yaml);
    let mut paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
    paths.sort_unstable();
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    assert_eq!(paths, expected, "{yaml}\n{errors:#?}");
}

/// `MINIMAL` with one more section.
fn with(more: &str) -> String {
    format!("{MINIMAL}{more}\n")
}

/// A hub `h` with more fields in `iotHub`.
fn hub(more: &str) -> String {
    format!("{{tls: {{secretName: s}}, upstream: {{iotHub: {{hostName: h, {more}}}}}}}")
}

/// A broker with more fields in `amqp`.
fn broker(more: &str) -> String {
    format!(
        "{{tls: {{secretName: serving}}, authentication: {{sas: {{verify: Local, deviceKeys: {{secretName: keys}}}}}}, \
         upstream: {{amqp: {{telemetryAddress: 't/{{deviceId}}', {more}}}}}}}"
    )
}

#[test]
fn the_example_is_a_configuration() {
    let settings = settings(EXAMPLE);
    assert_eq!(settings.listeners.len(), 2);
    let secrets = ["admin-ca", "admin-tls", "device-ca", "device-keys", "hub-policy", "sensors-key", "serving"];
    assert_eq!(settings.secret_names(), secrets);
}

#[test]
fn the_example_shows_the_defaults() {
    let (example, minimal) = (settings(EXAMPLE), settings(MINIMAL));
    assert_eq!(example.topics, minimal.topics);
    assert_eq!(example.upstream_limits(), minimal.upstream_limits());
    assert_eq!(example.listeners[0], minimal.listeners[0]);
    assert_eq!((example.admin.address, example.admin.port), (minimal.admin.address, minimal.admin.port));
    let packet_bytes_max = example.limits.packet_bytes_max;
    assert_eq!(example.limits, gateway_core::settings::Limits { packet_bytes_max, ..minimal.limits });
}

#[test]
fn a_minimal_file_has_the_defaults_of_iot_hub() {
    let settings = settings(MINIMAL);
    let [listener] = settings.listeners.as_slice() else { panic!("{:?}", settings.listeners) };
    assert_eq!((listener.name.as_str(), listener.protocol, listener.port), ("mqtts", Protocol::Mqtt, 8883));
    assert_eq!(listener.address, IpAddr::from([0, 0, 0, 0]));
    assert_eq!(settings.authentication.sas, Sas::Hub);
    let Upstream::IotHub(hub) = &settings.upstream else { panic!("{:?}", settings.upstream) };
    assert_eq!((hub.port, hub.transport, hub.limits.devices_per_connection_max), (5671, Transport::Amqp, 900));
    assert_eq!((settings.limits.connections_max, settings.limits.inflight_max), (18_000, 16));
    assert_eq!(settings.limits.message_bytes_max, 262_144);
    assert!(settings.limits.packet_bytes_max > settings.limits.message_bytes_max + 65_535);
    assert_eq!(settings.limits.keep_alive_max, Duration::from_secs(1767));
    assert_eq!((settings.topics.inbound.len(), settings.topics.unmatched), (2, Unmatched::Close));
    assert_eq!((settings.admin.address, settings.admin.port), (IpAddr::from([127, 0, 0, 1]), 9090));
    assert_eq!(settings.secret_names(), ["serving"]);
}

#[test]
fn ports_and_addresses_follow_the_protocol() {
    let yaml = with(
        "listeners: [{name: a, protocol: MQTT}, {name: b, protocol: MQTTWebSocket}, {name: c, protocol: MQTTPlain}, \
         {name: d, protocol: MQTT, port: 0, address: '::1'}, {name: e, protocol: MQTT, port: 0}]",
    );
    let settings = settings(&yaml);
    let ports: Vec<u16> = settings.listeners.iter().map(|listener| listener.port).collect();
    assert_eq!(ports, [8883, 443, 1883, 0, 0]);
    assert!(settings.listeners[2].address.is_loopback());
}

#[test]
fn plain_listeners_alone_need_no_certificate() {
    let yaml = "{upstream: {iotHub: {hostName: hub}}, listeners: [{name: plain, protocol: MQTTPlain}]}";
    assert_eq!(settings(yaml).tls_secret_name, None);
    check("{upstream: {iotHub: {hostName: hub}}}", &["tls.secretName"]);
}

#[test]
fn listeners_are_unique_named_and_plain_only_on_loopback() {
    check(&with("listeners: []"), &["listeners"]);
    check(
        &with("listeners: [{name: a, protocol: MQTT}, {name: a, protocol: MQTTWebSocket, port: 8883}]"),
        &["listeners[1].name", "listeners[1].port"],
    );
    check(&with("listeners: [{name: a, protocol: MQTTPlain, address: 0.0.0.0}]"), &["listeners[0].address"]);
    check(&with("listeners: [{name: a, protocol: MQTTPlain, address: '::1'}]"), &[]);
    check(&with("listeners: [{name: a, protocol: MQTT, address: localhost}]"), &["listeners[0].address"]);
    check(&with("listeners: [{name: a, protocol: MQTT, port: 65536}]"), &["listeners[0].port"]);
    check(&with("listeners: [{name: a, protocol: MQTT, port: -1}]"), &["listeners[0].port"]);
    for name in ["''", "A", "a_b", "-a", "a-", "a--b", "'1'", "abcdefghijklmnop"] {
        check(&with(&format!("listeners: [{{name: {name}, protocol: MQTT}}]")), &["listeners[0].name"]);
    }
    let many: Vec<String> = (0..17).map(|index| format!("{{name: l{index}, protocol: MQTT, port: 0}}")).collect();
    check(&with(&format!("listeners: [{}]", many.join(", "))), &["listeners"]);
}

#[test]
fn exactly_one_upstream_is_set() {
    check("{tls: {secretName: s}, upstream: {}}", &["upstream"]);
    check(
        "{tls: {secretName: s}, upstream: {iotHub: {hostName: h}, amqp: {url: 'amqp://h', telemetryAddress: '{deviceId}'}}}",
        &["upstream"],
    );
}

#[test]
fn iot_hub_is_named_without_scheme_and_port() {
    for name in ["", "hub:5671", "https://hub", "a..b", "-a", "a_b", "hub/"] {
        let yaml = format!("{{tls: {{secretName: s}}, upstream: {{iotHub: {{hostName: '{name}'}}}}}}");
        check(&yaml, &["upstream.iotHub.hostName"]);
    }
    check(
        &hub("hostNameAliases: [gw.example, 'a b'], port: 0, devicesPerConnectionMax: 1001, caSecretName: ../etc"),
        &[
            "upstream.iotHub.hostNameAliases[1]",
            "upstream.iotHub.caSecretName",
            "upstream.iotHub.devicesPerConnectionMax",
            "upstream.iotHub.port",
        ],
    );
}

#[test]
fn the_hub_is_known_by_its_aliases() {
    let settings = settings(&hub("hostNameAliases: [gw.example], transport: AMQPWebSocket"));
    assert!(settings.is_hub_host("H") && settings.is_hub_host("gw.Example"));
    assert!(!settings.is_hub_host("hub") && !settings.is_hub_host(""));
    let Upstream::IotHub(hub) = &settings.upstream else { panic!("{:?}", settings.upstream) };
    assert_eq!((hub.port, hub.transport), (443, Transport::AmqpWebSocket));
}

#[test]
fn verify_local_needs_keys_and_a_policy() {
    let check = |authentication: &str, hub: &str, expected: &[&str]| {
        let upstream = format!("upstream: {{iotHub: {{hostName: hub, {hub}}}}}");
        check(&format!("{{tls: {{secretName: s}}, authentication: {authentication}, {upstream}}}"), expected);
    };
    let policy = "policy: {name: device, secretName: p}";
    let keys = "{sas: {verify: Local, deviceKeys: {secretName: k}}}";
    check(keys, policy, &[]);
    check(keys, "", &["upstream.iotHub.policy"]);
    check("{sas: {verify: Local}}", policy, &["authentication.sas"]);
    check("{sas: {verify: Local}, x509: {clientCASecretName: ca}}", policy, &[]);
    check("{sas: {verify: Local, enrollmentGroups: [{name: g, secretName: k}]}}", policy, &[]);
    check("{x509: {clientCASecretName: ca}}", "", &["upstream.iotHub.policy"]);
    check("{sas: {verify: Hub, deviceKeys: {secretName: k}}}", "", &["authentication.sas"]);
    check(
        "{sas: {verify: Hub}}",
        "policy: {name: '', secretName: /p}",
        &["upstream.iotHub.policy.secretName", "upstream.iotHub.policy.name"],
    );
    check(
        "{sas: {verify: Local, enrollmentGroups: [{name: g, secretName: k}, {name: g, secretName: .k}]}}",
        policy,
        &["authentication.sas.enrollmentGroups[1].secretName", "authentication.sas.enrollmentGroups[1].name"],
    );
}

#[test]
fn a_broker_cannot_check_tokens() {
    let yaml = "{tls: {secretName: s}, upstream: {amqp: {url: 'amqps://b', telemetryAddress: '{deviceId}'}}}";
    check(yaml, &["authentication.sas.verify"]);
}

#[test]
fn a_brokers_url_is_scheme_host_and_port() {
    let read = |url: &str| match settings(&broker(&format!("url: '{url}'"))).upstream {
        Upstream::Amqp(broker) => (broker.host, broker.port, broker.tls),
        Upstream::IotHub(hub) => panic!("{hub:?}"),
    };
    assert_eq!(read("amqps://b.example"), ("b.example".to_owned(), 5671, true));
    assert_eq!(read("amqp://b.example/"), ("b.example".to_owned(), 5672, false));
    assert_eq!(read("amqps://10.0.0.1:1234"), ("10.0.0.1".to_owned(), 1234, true));
    assert_eq!(read("amqps://[::1]"), ("::1".to_owned(), 5671, true));
    assert_eq!(read("amqp://[::1]:99/"), ("::1".to_owned(), 99, false));
    for url in [
        "",
        "b",
        "http://b",
        "amqps://",
        "amqps://b:0",
        "amqps://b:70000",
        "amqps://b:x",
        "amqps://b:+5",
        "amqps://b/queue",
        "amqps://u:p@b",
        "amqps://[::1",
        "amqps://[::1]5",
        "amqps://[b]",
        "amqps://::1",
        "amqps://b?x=y",
    ] {
        check(&broker(&format!("url: '{url}'")), &["upstream.amqp.url"]);
    }
    let errors = errors(&broker("url: 'amqps://user:hunter2@b'"));
    assert!(!errors[0].to_string().contains("hunter2"), "{}", errors[0]);
}

#[test]
fn a_brokers_credentials_go_together_with_tls() {
    check(&broker("url: 'amqps://b', saslPlain: {secretName: s}, caSecretName: ca"), &[]);
    check(&broker("url: 'amqp://b', saslPlain: {secretName: s}"), &["upstream.amqp.saslPlain.secretName"]);
    check(
        &broker("url: 'amqp://b', clientCertificate: {secretName: s}"),
        &["upstream.amqp.clientCertificate.secretName"],
    );
    check(&broker("url: 'amqp://b', caSecretName: ca"), &["upstream.amqp.caSecretName"]);
    check(
        &broker("url: 'amqps://b', saslPlain: {secretName: s}, clientCertificate: {secretName: s}"),
        &["upstream.amqp"],
    );
    let settings = settings(&broker("url: 'amqps://b', saslPlain: {secretName: b}, caSecretName: ca"));
    assert_eq!(settings.secret_names(), ["b", "ca", "keys", "serving"]);
}

#[test]
fn addresses_hold_the_device_id_and_nothing_else() {
    let authentication = "authentication: {sas: {verify: Local, deviceKeys: {secretName: keys}}}";
    for (address, expected) in [
        ("{deviceId}", &[][..]),
        ("telemetry/{deviceId}/events", &[]),
        ("telemetry", &["upstream.amqp.telemetryAddress"]),
        ("telemetry/{device}", &["upstream.amqp.telemetryAddress"]),
        ("", &["upstream.amqp.telemetryAddress"]),
    ] {
        let amqp = format!("amqp: {{url: 'amqps://b', telemetryAddress: '{address}'}}");
        check(&format!("{{tls: {{secretName: s}}, {authentication}, upstream: {{{amqp}}}}}"), expected);
    }
    let with = |address: &str| broker(&format!("url: 'amqps://b', commandAddress: '{address}'"));
    check(&with("command/{deviceId}"), &[]);
    for address in ["", "command", "command/{device}", "{", "}x{"] {
        check(&with(address), &["upstream.amqp.commandAddress"]);
    }
}

#[test]
fn templates_compile_or_say_why() {
    let yaml = with("topics: {inbound: ['devices/{deviceId}/x', '{*a}/b', 'c{d}'], unmatched: PassThrough}");
    check(&yaml, &["topics.inbound[1]", "topics.inbound[2]"]);
    check(&with("topics: {inbound: []}"), &["topics.inbound"]);
    let many = vec!["a"; 33].join(", ");
    check(&with(&format!("topics: {{inbound: [{many}]}}")), &["topics.inbound"]);
    let settings = settings(&with("topics: {unmatched: PassThrough, dupProperty: true}"));
    assert_eq!((settings.topics.unmatched, settings.topics.dup_property), (Unmatched::PassThrough, true));
}

#[test]
fn every_limit_towards_devices_has_a_range() {
    for field in [
        "connectionsMax: 0",
        "connectionsMax: 1000001",
        "connectsPerSecond: 0",
        "handshakesMax: 0",
        "packetBytesMax: 1KiB",
        "packetBytesMax: 33MiB",
        "unauthenticatedBytesMax: 63KiB",
        "unauthenticatedBytesMax: 1025MiB",
        "messageBytesMax: 1023",
        "messageBytesMax: 1.5KiB",
        "propertiesMax: 0",
        "propertiesMax: 1025",
        "inflightMax: 0",
        "inflightMax: 1001",
        "inflightMax: -3",
        "handshakeTimeout: 99ms",
        "handshakeTimeout: 6m",
        "handshakeTimeout: soon",
        "keepAliveMax: 999ms",
        "keepAliveMax: 25h",
        "tokenExpiryGrace: 25h",
        "clockSkewMax: 61m",
        "outputBytesMax: 4095",
        "outputBytesMax: 1GiB",
        "writeTimeout: 0s",
        "writeTimeout: 10",
        "drainPerSecond: 0",
        "drainPerSecond: 0.0009",
        "drainPerSecond: fast",
        "drainPerSecond: 100001",
        "drainAloneAfter: 61m",
        "drainTimeout: 25h",
        "shutdownTimeout: 2h",
    ] {
        let name = field.split(':').next().expect("a name");
        check(&with(&format!("limits: {{{field}}}")), &[&format!("limits.{name}")]);
    }
    // refused as it is read
    check(&with("limits: {drainPerSecond: .nan}"), &[""]);
}

#[test]
fn every_limit_upstream_has_a_range() {
    for field in [
        "connectionsMax: 0",
        "connectionsMax: 10001",
        "linksPerSessionMax: 1",
        "tokensInflightMax: 0",
        "requestTimeout: 1ms",
        "settleTimeout: 0s",
        "outageMax: 25h",
        "backoffMin: 1ms",
        "backoffMax: 2h",
        "idleTimeout: 999ms",
        "frameBytesMax: 511",
        "frameBytesMax: 2MiB",
        "outputBytesMax: 1KiB",
        "unsettledBytesMax: 1023KiB",
        "tokenTtl: 59s",
    ] {
        let name = field.split(':').next().expect("a name");
        let yaml = format!("{{tls: {{secretName: s}}, upstream: {{iotHub: {{hostName: h}}, limits: {{{field}}}}}}}");
        check(&yaml, &[&format!("upstream.limits.{name}")]);
    }
}

#[test]
fn limits_take_effect() {
    let limits = settings(&with(
        "limits: {connectionsMax: 10, connectsPerSecond: 5, handshakesMax: 2, packetBytesMax: 4KiB, messageBytesMax: 2048, \
         unauthenticatedBytesMax: 1MiB, propertiesMax: 7, inflightMax: 3, handshakeTimeout: 1s, keepAliveMax: 1m, tokenExpiryGrace: 0s, clockSkewMax: 0s, \
         outputBytesMax: 8KiB, writeTimeout: 2s, drainPerSecond: 0.5, drainAloneAfter: 9s, drainTimeout: 4s, shutdownTimeout: 3s}",
    ))
    .limits;
    assert_eq!((limits.connections_max, limits.connects_per_second, limits.handshakes_max), (10, 5, 2));
    assert_eq!((limits.packet_bytes_max, limits.message_bytes_max, limits.output_bytes_max), (4096, 2048, 8192));
    assert_eq!(limits.unauthenticated_bytes_max, 1 << 20);
    assert_eq!((limits.properties_max, limits.inflight_max, limits.drain_per_second.0), (7, 3, 0.5));
    let times = [
        limits.handshake_timeout,
        limits.keep_alive_max,
        limits.token_expiry_grace,
        limits.clock_skew_max,
        limits.write_timeout,
        limits.drain_alone_after,
        limits.drain_timeout,
        limits.shutdown_timeout,
    ];
    assert_eq!(times.map(|time| time.as_secs()), [1, 60, 0, 0, 2, 9, 4, 3]);
}

#[test]
fn limits_agree_with_each_other_and_with_the_hub() {
    check(&with("limits: {messageBytesMax: 257KiB}"), &["limits.messageBytesMax"]);
    check(&with("limits: {packetBytesMax: 64KiB}"), &["limits.packetBytesMax"]);
    check(&with("limits: {messageBytesMax: 64KiB, packetBytesMax: 64KiB}"), &[]);
    check(&with("limits: {connectionsMax: 57601}"), &["upstream.limits.connectionsMax"]);
    check(&with("limits: {connectionsMax: 57600}"), &[]);
    check(
        "{tls: {secretName: s}, upstream: {iotHub: {hostName: h}, limits: {backoffMin: 10s, backoffMax: 9s}}}",
        &["upstream.limits.backoffMax"],
    );
}

#[test]
fn the_health_port_is_one_of_its_own() {
    let health_port = |admin: &str| settings(&with(admin)).admin.health_port;
    assert_eq!(health_port(""), None);
    assert_eq!(health_port("admin: {healthPort: 8081}"), Some(8081));
    assert_eq!(health_port("admin: {port: 0, healthPort: 0}"), Some(0));
    for port in ["9090", "8883", "65536", "-1"] {
        check(&with(&format!("admin: {{healthPort: {port}}}")), &["admin.healthPort"]);
    }
    check(&with("admin: {port: 65536, healthPort: 9090}"), &["admin.port"]);
}

#[test]
fn admin_beyond_loopback_needs_mutual_tls() {
    check(&with("admin: {address: 0.0.0.0}"), &["admin.address"]);
    check(&with("admin: {address: 0.0.0.0, tls: {secretName: a, clientCASecretName: b}}"), &[]);
    check(&with("admin: {address: '::1', port: 0}"), &[]);
    check(&with("admin: {port: 8883}"), &["admin.port"]);
    check(&with("admin: {port: 65536}"), &["admin.port"]);
    check(
        &with("admin: {tls: {secretName: a/b, clientCASecretName: ''}}"),
        &["admin.tls.secretName", "admin.tls.clientCASecretName"],
    );
}

#[test]
fn secrets_cannot_leave_their_directory() {
    for name in ["", "..", ".", "../keys", "/keys", "a/b", "a b", &"a".repeat(254)] {
        check(
            &format!("{{upstream: {{iotHub: {{hostName: h}}}}, tls: {{secretName: '{name}'}}}}"),
            &["tls.secretName"],
        );
    }
}

#[test]
fn all_errors_are_told_at_once_with_what_would_be_right() {
    let yaml = "
listeners:
- {name: mqtts, protocol: MQTT}
- {name: mqtts, protocol: MQTTPlain, address: 10.0.0.1, port: 8883}
upstream:
  iotHub: {hostName: 'https://hub'}
limits: {keepAliveMax: 30, inflightMax: 0}
admin: {address: 0.0.0.0}
";
    let expected = [
        "listeners[1].name (line 4, column 10): \"mqtts\" is the name of another listener; give every listener a name of its \
         own",
        "listeners[1].address (line 4, column 47): MQTTPlain sends tokens in the clear and cannot listen on 10.0.0.1; use \
         127.0.0.1 or ::1, or protocol MQTT",
        "listeners[1].port (line 4, column 63): 8883 is the port of listener mqtts; give every listener a port of its own",
        "upstream.iotHub.hostName (line 6, column 22): \"https://hub\" is not a host name; write it as in \
         contoso.azure-devices.net, without scheme or port",
        "limits.keepAliveMax (line 7, column 24): \"30\" cannot be read; give 1s to 24h",
        "limits.inflightMax (line 7, column 41): 0 is out of range; give 1 to 1000",
        "admin.address (line 8, column 18): 0.0.0.0 can be reached from elsewhere, and admin.tls is missing; use 127.0.0.1, \
         or set admin.tls {secretName, clientCASecretName}",
        "tls.secretName: listener mqtts has no certificate; name the directory with tls.crt and tls.key",
    ];
    assert_eq!(told(yaml), expected);
}

fn told(yaml: &str) -> Vec<String> {
    errors(yaml).iter().map(ToString::to_string).collect()
}

#[test]
fn mistakes_of_form_and_of_meaning_are_told_together() {
    let yaml = "
listeners:
- {name: mqtts, protocol: MQTTS}
upstream:
  iotHub:
    hostname: contoso.azure-devices.net
    port: many
    policy: {secretName: hub-policy}
tls: {secretName: serving}
limits: {handshakeTimeout: 10 seconds}
";
    let expected = [
        "listeners[0].protocol (line 3, column 27): \"MQTTS\" is not known; did you mean \"MQTT\"? known here: MQTT, \
         MQTTWebSocket, MQTTPlain",
        "upstream.iotHub.hostname (line 6, column 5): is not known; did you mean \"hostName\"? known here: hostName, \
         hostNameAliases, port, policy, transport, devicesPerConnectionMax, caSecretName",
        "upstream.iotHub.port (line 7, column 11): is text; write a whole number, without unit and fraction",
        "upstream.iotHub.policy.name (line 8, column 13): is missing; add name",
        "limits.handshakeTimeout (line 10, column 28): \"10 seconds\" cannot be read; give 100ms to 5m",
    ];
    assert_eq!(told(yaml), expected);
}

#[test]
fn what_does_not_fit_is_told_by_its_kind() {
    for (field, path, told) in [
        ("listeners: 5", "listeners", "is a number; write a list"),
        ("listeners: [5]", "listeners[0]", "is a number; write fields: name, protocol, address, port"),
        ("listeners: [{name: 5, protocol: MQTT}]", "listeners[0].name", "is a number; write text, in quotes"),
        ("listeners: [{name: a, protocol: [MQTT]}]", "listeners[0].protocol", "is a list; write one of MQTT, MQTTWeb"),
        ("topics: {dupProperty: 'yes'}", "topics.dupProperty", "is text; write true or false"),
        ("topics: {dupProperty: yes}", "topics.dupProperty", "is text; write true or false"),
        ("topics: {inbound: {a: b}}", "topics.inbound", "has fields; write a list"),
        ("topics: {inbound: [a, 7]}", "topics.inbound[1]", "is a number; write text"),
        ("topics: [a]", "topics", "is a list; write fields: inbound, unmatched, dupProperty"),
        (
            "limits: {inflightMax: 1.5}",
            "limits.inflightMax",
            "is a number with a fraction or out of range; write a whole",
        ),
        ("limits: {inflightMax: 99999999999999999999}", "limits.inflightMax", "out of range; write a whole number"),
        (
            "limits: {keepAliveMax: true}",
            "limits.keepAliveMax",
            "is true; write a size such as 256KiB or a time such as",
        ),
        ("admin: {tls: {secretName: , clientCASecretName: ca}}", "admin.tls.secretName", "is empty; write text"),
    ] {
        let errors = errors(&with(field));
        let [error] = errors.as_slice() else { panic!("{field}\n{errors:#?}") };
        assert_eq!(error.path, path, "{field}");
        assert!(error.to_string().contains(told), "{field}\n  gives: {error}\n  wanted: {told}");
        assert_eq!(error.place.map(|place| place.line), Some(5), "{field}");
    }
}

#[test]
fn what_follows_from_another_mistake_is_not_told() {
    // a section that is beyond use: nothing in it, and nothing that would need it
    check("{tls: {secretName: s}, upstream: 5}", &["upstream"]);
    check("{tls: {secretName: s}, upstream: {iotHub: hub}}", &["upstream.iotHub"]);
    check("{tls: s, upstream: {iotHub: {hostName: h}}}", &["tls"]);
    check("{listeners: mqtts, upstream: {iotHub: {hostName: h}}}", &["listeners"]);
    check("[]", &[""]);
    check("", &["tls.secretName", "upstream"]);
    // a field that another one is compared with
    check(&with("limits: {messageBytesMax: [], packetBytesMax: 64KiB}"), &["limits.messageBytesMax"]);
    check(&with("limits: {messageBytesMax: 1MB, packetBytesMax: 64KiB}"), &["limits.messageBytesMax"]);
    check(
        &hub("devicesPerConnectionMax: x}, limits: {connectionsMax: 1"),
        &["upstream.iotHub.devicesPerConnectionMax"],
    );
    check(&hub("}, limits: {backoffMin: x, backoffMax: 100ms"), &["upstream.limits.backoffMin"]);
    check(&with("admin: {address: 0.0.0.0, tls: yes}"), &["admin.tls"]);
    check(
        &with("listeners: [{name: a, protocol: MTQT}, {name: b, protocol: MQTT, port: 8883}]\nadmin: {port: 8883}"),
        &["admin.port", "listeners[0].protocol"],
    );
    check(
        "{upstream: {iotHub: {hostName: h}}, listeners: [{name: a, protocol: X, address: 0.0.0.0}]}",
        &["listeners[0].protocol"],
    );
    check(&with("authentication: {sas: {verify: local, deviceKeys: {secretName: k}}}"), &["authentication.sas.verify"]);
    check(
        &with("authentication: {sas: {verify: Local, keys: {secretName: k}}}"),
        &["authentication.sas", "authentication.sas.keys", "upstream.iotHub.policy"],
    );
    check(&broker("url: 5, saslPlain: {secretName: s}"), &["upstream.amqp.url"]);
}

#[test]
fn a_slip_in_a_name_hides_nothing_below_it() {
    check(
        "{tls: {secretName: s}, upsteam: {iothub: {hostname: h, port: 0, nope: 1}}}",
        &["upsteam", "upstream.iotHub.hostname", "upstream.iotHub.nope", "upstream.iotHub.port", "upstream.iothub"],
    );
    // both are there: the slip has nothing to say
    check("{tls: {secretName: s}, upstream: {iotHub: {hostName: h}}, upsteam: {nope: 1}}", &["upsteam"]);
    // too far for a slip, near enough for a guess: no second message that the field is missing
    check("{tls: {secretName: s}, upstream: {iotHub: {hotNames: h}}}", &["upstream.iotHub.hotNames"]);
    check("{tls: {secretNom: s}, upstream: {iotHub: {hostName: h}}}", &["tls.secretNom"]);
}

#[test]
fn of_a_field_that_stands_twice_the_first_counts() {
    check(&with("limits: {inflightMax: 1, inflightMax: 0}"), &["limits.inflightMax"]);
    check(&with("limits: {inflightMax: 0, inflightMax: 1}"), &["limits.inflightMax", "limits.inflightMax"]);
    let told = told("upstream: {iotHub: {hostName: h}}\ntls: {secretName: s}\nupstream: {}\ntls: {}");
    let expected = [
        "upstream (line 3, column 1): stands twice; keep one of them",
        "tls (line 4, column 1): stands twice; keep one of them",
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_hundred_errors_are_told_and_the_rest_counted() {
    let names: Vec<String> = (0..150).map(|index| format!("unknown{index}: 1")).collect();
    let told_of_names = told(&with(&names.join("\n")));
    assert_eq!(told_of_names.len(), 101);
    assert_eq!(told_of_names[100], "file: 50 more errors were found; put the others right first");

    let told_of_missing = told(&with(&format!("listeners: [{}]", vec!["{}"; 60].join(", "))));
    assert_eq!(told_of_missing.len(), 101);
    assert!(
        told_of_missing[0].starts_with("listeners[0].name (line 5, column 13): is missing"),
        "{}",
        told_of_missing[0]
    );
}

#[test]
fn what_is_not_yaml_is_told_with_line_and_column() {
    for (yaml, parts) in [
        ("upstream: {iotHub: [}", ["line 1", "", ""]),
        ("upstream:\n\tiotHub: {}", ["line 2", "", ""]),
        ("upstream: {}\n---\nupstream: {}", ["line 3", "second document", "one document"]),
        ("upstream: *nowhere", ["line 1, column 11", "", ""]),
    ] {
        let told = told(yaml);
        let [told] = told.as_slice() else { panic!("{yaml}\n{told:#?}") };
        assert!(parts.iter().all(|part| told.contains(part)), "{yaml}\n  gives: {told}\n  wanted: {parts:?}");
    }
}

#[test]
fn a_parse_error_is_one_line_and_quotes_no_other() {
    for yaml in [
        "upstream:\n  amqp: {url: 'amqps://u:hunter2@b', nope: 1}",
        "upstream:\n  amqp: {saslPlain: hunter2, clientCertificate: [hunter2]}",
        "upstream:\n  amqp: {saslPlain: {password: hunter2}}",
        "upstream:\n  amqp: {url: \"hunter2",
    ] {
        let told = told(yaml);
        assert!(!told.is_empty(), "{yaml}");
        assert!(told.iter().all(|told| !told.contains('\n') && !told.contains("hunter2")), "{told:#?}");
    }
}

#[test]
fn json_is_read_as_well() {
    let json = r#"{"upstream": {"iotHub": {"hostName": "hub.example"}}, "tls": {"secretName": "serving"}}"#;
    assert_eq!(settings(json).secret_names(), ["serving"]);
}

#[test]
fn what_was_written_is_written_again() {
    for yaml in [EXAMPLE, MINIMAL, &with("limits: {messageBytesMax: 262144, keepAliveMax: 29m27s}")] {
        let config = GatewayConfig::parse(yaml).expect(yaml);
        let again = serde_saphyr::to_string(&config).expect("serializable");
        assert_eq!(GatewayConfig::parse(&again).expect(&again), config);
        let json = serde_json::to_string(&config).expect("serializable");
        assert_eq!(GatewayConfig::parse(&json).expect(&json), config);
    }
}

#[test]
fn text_that_looks_like_something_else_is_written_in_quotes() {
    for text in ["5", "007", "1e3", "0x10", ".5", "yes", "on", "true", "null", "~", "", "a: b", "- a", "#"] {
        let config =
            GatewayConfig::parse(&with(&format!("listeners: [{{name: '{text}', protocol: MQTT}}]"))).expect(text);
        let again = serde_saphyr::to_string(&config).expect("serializable");
        assert_eq!(GatewayConfig::parse(&again), Ok(config), "{again}");
    }
}

#[test]
fn nesting_has_a_bound() {
    assert_eq!(errors(&"[".repeat(100_000)).len(), 1);
    assert_eq!(errors(&format!("{}{}", "[".repeat(1000), "]".repeat(1000))).len(), 1);
}

#[test]
fn defaults_are_not_written() {
    let config = GatewayConfig::parse(MINIMAL).expect("minimal");
    let json = serde_json::to_value(&config).expect("serializable");
    let mut keys: Vec<&str> = json.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["tls", "upstream"]);
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_without_panic(yaml in "[a-zA-Z:{}\\[\\], \n'-]{0,60}") {
        let read = GatewayConfig::read(&yaml);
        prop_assert_eq!(read.is_ok(), GatewayConfig::parse(&yaml).is_ok_and(|config| config.check().is_ok()));
    }

    #[test]
    fn every_legal_number_survives_a_round_trip(
        connections in 1i64..=57_600, inflight in 1i64..=1000, seconds in 1u64..=86_400,
    ) {
        let limits = format!("{{connectionsMax: {connections}, inflightMax: {inflight}, keepAliveMax: {seconds}s}}");
        let config = GatewayConfig::parse(&with(&format!("limits: {limits}"))).expect("well-formed");
        let again = GatewayConfig::parse(&serde_saphyr::to_string(&config).expect("serializable")).expect("well-formed");
        prop_assert_eq!(&again, &config);
        let limits = again.check().expect("legal").limits;
        prop_assert_eq!(i64::from(limits.connections_max), connections);
        prop_assert_eq!(i64::from(limits.inflight_max), inflight);
        prop_assert_eq!(limits.keep_alive_max, Duration::from_secs(seconds));
    }
}
