//! Which fields of the configuration a running gateway follows, field by field.

use std::collections::BTreeSet;

use gateway_core::{
    config::GatewayConfig,
    settings::{Changes, Settings, When, table},
};
use serde_json::{Value, json};

/// A hub and everything else that can stand in the file beside it.
fn hub() -> Value {
    json!({
        "listeners": [{"name": "mqtts", "protocol": "MQTT", "address": "0.0.0.0", "port": 8883}],
        "tls": {"secretName": "serving"},
        "authentication": {
            "sas": {
                "verify": "Local",
                "deviceKeys": {"secretName": "keys"},
                "enrollmentGroups": [{"name": "sensors", "secretName": "sensors"}],
            },
            "x509": {"clientCASecretName": "device-ca"},
        },
        "upstream": {
            "iotHub": {
                "hostName": "hub.example",
                "hostNameAliases": ["gw.example"],
                "port": 5671,
                "policy": {"name": "device", "secretName": "policy"},
                "transport": "AMQP",
                "devicesPerConnectionMax": 900,
                "caSecretName": "hub-ca",
            },
            "limits": {},
        },
        "topics": {},
        "limits": {},
        "admin": {"address": "127.0.0.1", "port": 9090, "tls": {"secretName": "admin", "clientCASecretName": "admin-ca"}},
    })
}

/// A broker, which wants no policy.
fn broker() -> Value {
    let mut config = hub();
    config["upstream"] = json!({
        "amqp": {
            "url": "amqps://broker:5671",
            "telemetryAddress": "t/{deviceId}",
            "commandAddress": "c/{deviceId}",
            "saslPlain": {"secretName": "user"},
            "caSecretName": "broker-ca",
            "devicesPerConnectionMax": 900,
        },
        "limits": {},
    });
    config
}

fn settings(config: &Value) -> Settings {
    GatewayConfig::read(&config.to_string()).unwrap_or_else(|errors| panic!("{errors:#?}\n{config:#}"))
}

/// `config` with `value` at `path`.
fn with(config: &Value, path: &str, value: Value) -> Value {
    let mut config = config.clone();
    *path.split('.').fold(&mut config, |node, name| &mut node[name]) = value;
    config
}

/// A field, another value for it, and when that is followed.
type Row = (&'static str, Value, When);

fn common_rows() -> Vec<Row> {
    use When::{AtOnce, NextAmqpConnection, NextConnect, Restart};
    vec![
        ("listeners", json!([{"name": "mqtts", "protocol": "MQTT", "port": 8884}]), Restart),
        ("tls.secretName", json!("other"), NextConnect),
        ("authentication.sas.deviceKeys.secretName", json!("other"), NextConnect),
        ("authentication.sas.enrollmentGroups", json!([]), NextConnect),
        ("authentication.x509.clientCASecretName", json!("other"), NextConnect),
        ("upstream.limits.connectionsMax", json!(65), AtOnce),
        ("upstream.limits.linksPerSessionMax", json!(64), NextAmqpConnection),
        ("upstream.limits.tokensInflightMax", json!(7), NextAmqpConnection),
        ("upstream.limits.requestTimeout", json!("7s"), NextAmqpConnection),
        ("upstream.limits.settleTimeout", json!("7s"), AtOnce),
        ("upstream.limits.outageMax", json!("7s"), NextAmqpConnection),
        ("upstream.limits.backoffMin", json!("7s"), NextAmqpConnection),
        ("upstream.limits.backoffMax", json!("7s"), NextAmqpConnection),
        ("upstream.limits.idleTimeout", json!("7s"), AtOnce),
        ("upstream.limits.frameBytesMax", json!("7KiB"), NextAmqpConnection),
        ("upstream.limits.outputBytesMax", json!("70KiB"), NextAmqpConnection),
        ("upstream.limits.unsettledBytesMax", json!("7MiB"), AtOnce),
        ("upstream.limits.tokenTtl", json!("7m"), AtOnce),
        ("topics.inbound", json!(["t/{deviceId}"]), AtOnce),
        ("topics.unmatched", json!("PassThrough"), AtOnce),
        ("topics.dupProperty", json!(true), AtOnce),
        ("limits.connectionsMax", json!(7), AtOnce),
        ("limits.connectsPerSecond", json!(7), AtOnce),
        ("limits.handshakesMax", json!(7), AtOnce),
        ("limits.packetBytesMax", json!("700KiB"), AtOnce),
        ("limits.unauthenticatedBytesMax", json!("7MiB"), AtOnce),
        ("limits.propertiesMax", json!(7), AtOnce),
        ("limits.inflightMax", json!(7), NextConnect),
        ("limits.handshakeTimeout", json!("7s"), NextConnect),
        ("limits.keepAliveMax", json!("7s"), NextConnect),
        ("limits.tokenExpiryGrace", json!("7s"), NextConnect),
        ("limits.clockSkewMax", json!("7s"), NextConnect),
        ("limits.outputBytesMax", json!("7KiB"), AtOnce),
        ("limits.writeTimeout", json!("7s"), AtOnce),
        ("limits.drainPerSecond", json!(0.7), AtOnce),
        ("limits.drainAloneAfter", json!("7s"), AtOnce),
        ("limits.drainTimeout", json!("7s"), AtOnce),
        ("limits.shutdownTimeout", json!("7s"), AtOnce),
        ("admin.address", json!("::1"), Restart),
        ("admin.port", json!(9091), Restart),
        ("admin.healthPort", json!(8081), Restart),
        ("admin.tls.secretName", json!("other"), NextConnect),
        ("admin.tls.clientCASecretName", json!("other"), NextConnect),
    ]
}

fn hub_rows() -> Vec<Row> {
    use When::{AtOnce, NextAmqpConnection, NextConnect, Restart};
    vec![
        ("upstream.iotHub.hostName", json!("other.example"), Restart),
        ("upstream.iotHub.hostNameAliases", json!([]), NextConnect),
        ("upstream.iotHub.port", json!(5672), Restart),
        ("upstream.iotHub.policy.name", json!("other"), NextAmqpConnection),
        ("upstream.iotHub.policy.secretName", json!("other"), NextAmqpConnection),
        ("upstream.iotHub.transport", json!("AMQPWebSocket"), Restart),
        ("upstream.iotHub.caSecretName", Value::Null, NextAmqpConnection),
        ("upstream.iotHub.devicesPerConnectionMax", json!(899), AtOnce),
    ]
}

fn broker_rows() -> Vec<Row> {
    use When::{AtOnce, NextAmqpConnection, Restart};
    vec![
        ("upstream.amqp.url", json!("amqps://other"), Restart),
        ("upstream.amqp.telemetryAddress", json!("u/{deviceId}"), Restart),
        ("upstream.amqp.commandAddress", Value::Null, Restart),
        ("upstream.amqp.saslPlain.secretName", json!("other"), NextAmqpConnection),
        ("upstream.amqp.caSecretName", Value::Null, NextAmqpConnection),
        ("upstream.amqp.devicesPerConnectionMax", json!(899), AtOnce),
    ]
}

/// This field alone changes, it is told as it is meant, and a gateway follows all of it or none.
fn check(base: &Value, (path, value, when): &Row) {
    let (old, new) = (settings(base), settings(&with(base, path, value.clone())));
    let changes = Changes::between(&old, &new);
    let expected = if *when == When::Restart { (vec![], vec![*path]) } else { (vec![*path], vec![]) };
    assert_eq!((changes.live, changes.restart), expected, "{path}");
    assert!(table(&new).contains(&(*path, *when)), "{path}");
    assert_eq!(old.restart_text() != new.restart_text(), *when == When::Restart, "{path}");
    let followed = old.followed_by(&new);
    assert_eq!(followed, if *when == When::Restart { old } else { new }, "{path}");
}

#[test]
fn every_field_is_followed_or_waits_for_a_restart() {
    for row in common_rows().iter().chain(&hub_rows()) {
        check(&hub(), row);
    }
    for row in common_rows().iter().chain(&broker_rows()) {
        check(&broker(), row);
    }
}

/// Fields that cannot change without another one; each has a test below.
const TOGETHER: [&str; 6] = [
    "admin.tls",
    "authentication.sas.verify",
    "limits.messageBytesMax",
    "tls",
    "upstream.amqp.clientCertificate.secretName",
    "upstream.iotHub.policy",
];

#[test]
fn no_field_is_without_a_row() {
    for (base, rows) in [(hub(), hub_rows()), (broker(), broker_rows())] {
        let rows: BTreeSet<&str> = common_rows().iter().chain(&rows).map(|(path, ..)| *path).collect();
        let without = table(&settings(&base)).into_iter().map(|(path, _)| path).filter(|path| !rows.contains(path));
        assert!(without.clone().all(|path| TOGETHER.contains(&path)), "{:?}", without.collect::<Vec<_>>());
    }
}

/// Every leaf of the form, as it stands in a file that says everything, is one of the table's fields or part of one.
#[test]
fn every_field_of_the_file_is_in_the_table() {
    fn leaves(path: &str, value: &Value, out: &mut Vec<String>) {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                let dot = if path.is_empty() { "" } else { "." };
                fields.iter().for_each(|(name, value)| leaves(&format!("{path}{dot}{name}"), value, out));
            }
            _ => out.push(path.to_owned()),
        }
    }
    for (base, rows) in [(hub(), hub_rows()), (broker(), broker_rows())] {
        let said = common_rows().into_iter().chain(rows).filter(|(_, value, _)| !value.is_null());
        let full = said.fold(base, |config, (path, value, _)| with(&config, path, value));
        let mut paths = Vec::new();
        leaves("", &full, &mut paths);
        let table: Vec<&str> = table(&settings(&full)).into_iter().map(|(path, _)| path).collect();
        let unknown: Vec<_> = paths.iter().filter(|path| !table.contains(&path.as_str())).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
}

#[test]
fn what_says_the_same_in_other_words_is_no_change() {
    let hub = hub();
    let same = with(&with(&hub, "limits.handshakeTimeout", json!("10000ms")), "limits.messageBytesMax", json!(262_144));
    assert_eq!(Changes::between(&settings(&hub), &settings(&same)), Changes::default());
}

#[test]
fn a_message_may_be_longer_and_so_may_a_packet() {
    let (old, new) = (settings(&broker()), settings(&with(&broker(), "limits.messageBytesMax", json!("1MiB"))));
    let changes = Changes::between(&old, &new);
    assert_eq!(changes.live, ["limits.messageBytesMax", "limits.packetBytesMax"]);
    assert_eq!((changes.restart, old.followed_by(&new)), (vec![], new));
}

#[test]
fn who_checks_tokens_is_followed_where_the_policy_stays() {
    let old = settings(&hub());
    let new = settings(&with(&hub(), "authentication.sas", json!({"verify": "Hub"})));
    assert_eq!(Changes::between(&old, &new).restart, Vec::<&str>::new());
    assert_eq!(old.followed_by(&new), new);
}

#[test]
fn without_the_policy_that_devices_need_nobody_is_let_in_by_other_rules() {
    let new = settings(&hub());
    let mut config = with(&hub(), "authentication", json!({}));
    config["upstream"]["iotHub"]["policy"] = Value::Null;
    let old = settings(&config);
    assert_eq!(Changes::between(&old, &new).restart, ["upstream.iotHub.policy"]);
    let followed = old.followed_by(&new);
    assert_eq!((&followed.authentication, &followed.upstream), (&old.authentication, &old.upstream));
    let waits = Changes::between(&followed, &new).all();
    assert!(
        waits.contains(&"authentication.sas.verify") && waits.contains(&"upstream.iotHub.policy.name"),
        "{waits:?}"
    );
}

#[test]
fn another_kind_of_upstream_waits_and_the_rest_is_followed() {
    let (old, new) =
        (settings(&hub()), settings(&with(&broker(), "limits", json!({"inflightMax": 3, "messageBytesMax": "1MiB"}))));
    let followed = old.followed_by(&new);
    assert_eq!(followed.upstream, old.upstream);
    assert_eq!((followed.limits.inflight_max, followed.limits.message_bytes_max), (3, old.limits.message_bytes_max));
    let changes = Changes::between(&old, &new);
    assert!(changes.restart.contains(&"upstream.iotHub.hostName") && changes.restart.contains(&"upstream.amqp.url"));
}

#[test]
fn tls_that_comes_or_goes_waits_with_its_listeners() {
    let encrypted = hub();
    let mut plain = with(&encrypted, "listeners", json!([{"name": "plain", "protocol": "MQTTPlain"}]));
    plain["tls"] = Value::Null;
    plain["admin"] = json!({});
    let (encrypted, plain) = (settings(&encrypted), settings(&plain));
    assert_eq!(Changes::between(&encrypted, &plain).restart, ["admin.tls", "listeners", "tls"]);
    for (old, new) in [(&encrypted, &plain), (&plain, &encrypted)] {
        let followed = old.followed_by(new);
        assert_eq!((&followed.listeners, &followed.tls_secret_name), (&old.listeners, &old.tls_secret_name));
        assert_eq!(followed.admin, old.admin);
        assert_eq!(Changes::between(old, &followed).restart, Vec::<&str>::new());
    }
}

#[test]
fn a_login_by_certificate_is_followed_by_new_connections() {
    let mut config = with(&broker(), "upstream.amqp.clientCertificate", json!({"secretName": "certificate"}));
    config["upstream"]["amqp"]["saslPlain"] = Value::Null;
    let changes = Changes::between(&settings(&broker()), &settings(&config));
    assert_eq!(changes.live, ["upstream.amqp.clientCertificate.secretName", "upstream.amqp.saslPlain.secretName"]);
    assert_eq!(changes.restart, Vec::<&str>::new());
}

#[test]
fn what_needs_a_restart_is_said_in_lines_that_hold_no_limits() {
    let text = settings(&hub()).restart_text();
    assert!(text.contains("upstream.iotHub.hostName: \"hub.example\"\n"), "{text}");
    assert!(!text.contains("limits.") && !text.contains("policy.name"), "{text}");
}
