//! The admin port: health, readiness, metrics, who is connected.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use rustls::{ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

use device::script::{Device, Transport};
use serde_json::Value;

use crate::support::{World, login};

fn get(world: &World, target: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(world.gateway.admin).unwrap();
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
