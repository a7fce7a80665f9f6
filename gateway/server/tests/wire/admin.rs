//! The admin port: health, readiness, metrics, who is connected.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use rustls::{ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

use device::script::{Device, Transport};
use serde_json::{Value, json};

use crate::support::{Verify, World, eventually, local_yaml, login};

pub(crate) fn get(world: &World, target: &str) -> (u16, String) {
    ask(world.gateway.admin, target)
}

fn ask(address: SocketAddr, target: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(address).unwrap();
    write!(socket, "GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

fn devices(world: &World, target: &str) -> (Vec<String>, Value) {
    let (status, body) = get(world, target);
    assert_eq!(status, 200, "{body}");
    let page: Value = serde_json::from_str(&body).unwrap();
    let devices = page["connections"].as_array().unwrap().iter();
    (devices.map(|entry| entry["device"].as_str().unwrap().to_owned()).collect(), page)
}

#[test]
fn the_admin_port_tells_health_readiness_and_metrics() {
    let world = World::without_hub("");
    let _device = world.connect("d1");
    assert_eq!(get(&world, "/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(get(&world, "/readyz"), (200, "ready\n".to_owned()));
    let (status, text) = get(&world, "/metrics");
    assert_eq!(status, 200);
    for line in ["gateway_connections 1", "gateway_connects_total{result=\"accepted\"} 1", "gateway_draining 0"] {
        assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
    }
    assert!(text.contains("gateway_tls_not_after_seconds{secret=\"tls\"}"), "{text}");
    assert_eq!(get(&world, "/nowhere").0, 404);
}

#[test]
fn the_health_port_tells_health_and_readiness_and_nothing_else() {
    let world = World::without_hub("");
    assert_eq!(world.gateway.health, None);
    let yaml = "listeners: [{name: plain, protocol: MQTTPlain, port: 0}]
upstream: {iotHub: {hostName: localhost}}
admin: {port: 0, healthPort: 0, tls: {secretName: tls, clientCASecretName: ca}}";
    let world = World::start_beside(world, yaml);
    let health = world.gateway.health.unwrap();
    assert_ne!(health, world.gateway.admin);
    assert_eq!(ask(health, "/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(ask(health, "/readyz"), (200, "ready\n".to_owned()));
    for path in ["/load", "/metrics", "/connections", "/drain", "/undrain", "/"] {
        assert_eq!(ask(health, path).0, 404, "{path}");
    }
}

#[test]
fn load_tells_everything_that_is_asked_for() {
    let world = World::without_hub("");
    let _device = world.connect("d1");
    let (status, body) = get(&world, "/load");
    let load: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 200);
    let hash =
        gateway::config_file::hash(&std::fs::read_to_string(world.folder.path().join("config/gateway.yaml")).unwrap());
    let expected = json!({
        "connections": 1, "handshaking": 0, "connectsTotal": 1, "messagesTotal": 0, "letGoTotal": 0, "distrusted": 0,
        "ready": true,
        "upstream": {"connected": false, "failing": null, "throttled": false},
        "config": {"inForce": hash, "problem": null, "needsRestart": []},
        "secretsProblem": null,
        "drain": null,
    });
    assert_eq!(load, expected);
}

fn upstream(world: &World) -> Value {
    let load: Value = serde_json::from_str(&get(world, "/load").1).unwrap();
    load["upstream"].clone()
}

#[test]
fn a_gateway_knows_of_the_hub_only_while_a_device_needs_it() {
    let world = World::with_hub(Verify::Local, "");
    assert_eq!(upstream(&world), json!({"connected": false, "failing": null, "throttled": false}));
    let mut device = world.connect("d1");
    let id = device.publish("devices/d1/messages/events/", b"x").unwrap();
    device.expect_puback(id).unwrap();
    assert_eq!(upstream(&world), json!({"connected": true, "failing": null, "throttled": false}));
}

#[test]
fn a_hub_that_cannot_be_reached_is_told_and_keeps_the_gateway_ready() {
    let world = World::start(&local_yaml(1, ""));
    let _device = world.connect("d1");
    let failing = || upstream(&world)["failing"].clone();
    eventually("it is told", || failing().as_str().is_some_and(|failing| failing.contains("cannot connect")));
    assert_eq!(get(&world, "/readyz").0, 200);
}

#[test]
fn how_fast_devices_go_for_want_of_a_hub_is_told_before_the_first_goes_and_until_nobody_waits() {
    let yaml = local_yaml(1, "limits: {drainPerSecond: 2.5, drainAloneAfter: 2s}");
    let world = World::start(&yaml.replace("upstream:\n", "upstream:\n  limits: {outageMax: 300ms}\n"));
    let pace = || serde_json::from_str::<Value>(&get(&world, "/load").1).unwrap()["upstream"]["letGoPerSecond"].clone();
    assert_eq!(pace(), Value::Null);
    let mut device = world.connect("d1");
    eventually("it is told", || pace() == json!(2.5));
    device.ping().unwrap();
    device.expect_close().unwrap();
    assert_eq!(pace(), json!(2.5));
    eventually("nobody waits", || pace() == Value::Null);
}

#[test]
fn silent_connections_to_the_admin_port_keep_nobody_out_for_long() {
    let world = World::without_hub("");
    let silent: Vec<_> = (0..64).map(|_| TcpStream::connect(world.gateway.admin).unwrap()).collect();
    assert_eq!(get(&world, "/healthz"), (200, "ok\n".to_owned()));
    drop(silent);
}

#[test]
fn connections_are_listed_filtered_and_paged_over_all_cores() {
    let world = World::without_hub("");
    let _plain: Vec<_> = (1..=5).map(|n| world.connect(&format!("d{n}"))).collect();
    let _module = world.connect("d1/m1");
    let _secured = Device::connect(world.address("mqtts"), &world.tls(), &login("d9")).unwrap();
    let (all, page) = devices(&world, "/connections");
    assert_eq!(all, ["d1", "d1/m1", "d2", "d3", "d4", "d5", "d9"]);
    assert_eq!(page["next"], Value::Null);
    let first = &page["connections"][0];
    assert_eq!(first["protocol"], "MQTTPlain");
    assert!(first["address"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert!(first["since"].as_str().unwrap().ends_with('Z'));
    assert_eq!(first["inFlight"]["telemetry"], 0);
    let (three, page) = devices(&world, "/connections?limit=3");
    assert_eq!((three.len(), page["next"].as_str()), (3, Some("d2")));
    let (rest, page) = devices(&world, "/connections?limit=4&after=d2");
    assert_eq!((rest, page["next"].as_str()), (vec!["d3".into(), "d4".into(), "d5".into(), "d9".into()], None));
    assert_eq!(devices(&world, "/connections?protocol=MQTT").0, ["d9"]);
    assert_eq!(devices(&world, "/connections?device=d1").0, ["d1"]);
    assert_eq!(devices(&world, "/connections?device=d1*").0, ["d1", "d1/m1"]);
    assert_eq!(get(&world, "/connections?protocol=HTTP").0, 400);
    assert_eq!(get(&world, "/connections?limit=0").0, 400);
    assert_eq!(get(&world, "/connections?unknown=1").0, 400);
}

#[test]
fn with_tls_the_admin_port_takes_only_clients_with_a_certificate() {
    let world = World::without_hub("");
    let yaml = "listeners: [{name: plain, protocol: MQTTPlain, port: 0}]
upstream: {iotHub: {hostName: localhost}}
admin: {port: 0, tls: {secretName: tls, clientCASecretName: ca}}";
    let world = World::start_beside(world, yaml);
    let ask = |transport: Transport| {
        let Transport::Tls(config, name) = transport else { unreachable!("TLS was asked for") };
        let socket = TcpStream::connect(world.gateway.admin).unwrap();
        let connection = ClientConnection::new(config, ServerName::try_from(name).unwrap()).unwrap();
        let mut stream = StreamOwned::new(connection, socket);
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    let (chain, key) = world.certificates.issue("operator");
    let answer = ask(world.tls_as(false, Some((&chain, &key)))).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(ask(world.tls()).is_err());
}
