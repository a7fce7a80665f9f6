//! Files that change while devices are connected: what is followed, what is refused, and that nobody is disconnected.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use device::script::{Device, Login, Transport};
use gateway::config_file;
use serde_json::{Value, json};

use crate::{
    admin::get,
    drain::{drain, order},
    support::{Certificates, KEY, Verify, World, eventually, login},
};

fn topic(device: &str, id: impl std::fmt::Display) -> String {
    format!("devices/{device}/messages/events/%24.mid={id}")
}

fn load(world: &World) -> Value {
    serde_json::from_str(&get(world, "/load").1).unwrap()
}

fn config(world: &World) -> Value {
    load(world)["config"].clone()
}

/// The file as it is now.
fn yaml(world: &World) -> String {
    std::fs::read_to_string(world.folder.path().join("config/gateway.yaml")).unwrap()
}

/// Swaps the file and waits until it is in force.
fn change(world: &World, yaml: &str) -> Value {
    world.folder.mount("config", &[("gateway.yaml", yaml)]);
    let hash = config_file::hash(yaml);
    eventually("the file is in force", || config(world)["inForce"] == hash.as_str());
    config(world)
}

/// Swaps the file for one that cannot be used, and gives what is said about it.
fn refuse(world: &World, yaml: &str) -> String {
    let before = config(world)["inForce"].clone();
    world.folder.mount("config", &[("gateway.yaml", yaml)]);
    eventually("it is told", || config(world)["problem"].is_string());
    assert_eq!(config(world)["inForce"], before);
    config(world)["problem"].as_str().unwrap().to_owned()
}

fn send(device: &mut Device, topic: &str, payload: &[u8]) -> anyhow::Result<()> {
    let id = device.publish(topic, payload)?;
    device.expect_puback(id)
}

/// A device that sends until it is told to stop; gives how many messages were acknowledged.
fn sender(mut device: Device, name: String, stop: &Arc<AtomicBool>) -> JoinHandle<usize> {
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        let mut sent = 0;
        while !stop.load(Relaxed) {
            send(&mut device, &topic(&name, sent), b"x").unwrap_or_else(|error| panic!("{name}, {sent}: {error:#}"));
            sent += 1;
        }
        device.ping().unwrap();
        sent
    })
}

fn served(world: &World) -> Vec<u8> {
    let mut device = Device::open(world.address("mqtts"), &world.tls()).unwrap();
    let device::script::Stream::Tls(tls) = device.stream() else { panic!("TLS was asked for") };
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock).unwrap();
    }
    tls.conn.peer_certificates().unwrap()[0].to_vec()
}

fn renew(world: &World) -> Vec<u8> {
    let before = served(world);
    let (chain, key) = world.certificates.issue("localhost");
    world.folder.mount("tls", &[("tls.crt", &chain), ("tls.key", &key)]);
    eventually("the new certificate is served", || served(world) != before);
    served(world)
}

#[test]
fn twenty_changes_of_configuration_and_certificate_disconnect_nobody_and_lose_nothing() {
    let world = World::with_hub(Verify::Local, "limits: {messageBytesMax: 64KiB}");
    let stop = Arc::new(AtomicBool::new(false));
    let transports = [Transport::Plain, world.tls(), world.tls_as(true, None), world.websocket()];
    let senders: Vec<_> = ["plain", "mqtts", "mqtts", "wss"]
        .into_iter()
        .zip(&transports)
        .enumerate()
        .map(|(n, (listener, transport))| {
            let name = format!("d{}", n + 1);
            let device = Device::connect(world.address(listener), transport, &login(&name)).unwrap();
            sender(device, name, &stop)
        })
        .collect();
    let first = yaml(&world);
    let mut certificates = vec![served(&world)];
    for round in 0..20 {
        let limits = format!(
            "limits: {{messageBytesMax: 64KiB, inflightMax: {}, connectsPerSecond: {}, connectionsMax: {}}}",
            1 + round % 5,
            100 + round,
            10 + round % 3
        );
        let more = format!("topics: {{dupProperty: {}}}", round % 2 == 0);
        change(&world, &first.replace("limits: {messageBytesMax: 64KiB}", &format!("{limits}\n{more}")));
        certificates.push(renew(&world));
    }
    certificates.dedup();
    assert_eq!(certificates.len(), 21);
    change(&world, &first.replace("64KiB", "1KiB"));
    stop.store(true, Relaxed);
    for (n, sender) in senders.into_iter().enumerate() {
        let (sent, name) = (sender.join().unwrap(), format!("d{}", n + 1));
        let expected: Vec<_> = (0..sent).map(|id| id.to_string()).collect();
        assert!(sent > 20, "{name} sent {sent}");
        eventually("the hub has everything", || world.stored(&name) == expected);
    }
    let text = world.gateway.registry().text();
    let disconnects: Vec<_> = text.lines().filter(|line| line.starts_with("gateway_disconnects_total")).collect();
    // each of the senders left by itself
    let unasked = disconnects.iter().filter(|line| !line.ends_with(" 0") && !line.contains("gone")).collect::<Vec<_>>();
    assert!(unasked.is_empty(), "{unasked:?}");
    assert!(text.contains("gateway_config_reloads_total{result=\"loaded\"} 21\n"), "{text}");
    assert!(text.contains("gateway_config_reloads_total{result=\"failed\"} 0\n"), "{text}");
    // the last limit is in force
    let mut device = world.connect("d5");
    send(&mut device, &topic("d5", "short"), &[b'x'; 900]).unwrap();
    device.publish(&topic("d5", "long"), &[b'x'; 2000]).unwrap();
    device.expect_close().unwrap();
}

#[test]
fn a_file_that_is_wrong_changes_nothing_until_it_is_right() {
    let world = World::without_hub("");
    let (good, mut device) = (yaml(&world), world.connect("d1"));
    assert!(refuse(&world, &format!("{good}\nsurprise: 1")).contains("surprise"));
    world.expect_metric("gateway_config_reloads_total{result=\"failed\"}", 1);
    world.folder.mount("config", &[("gateway.yaml", "listeners: {")]);
    world.expect_metric("gateway_config_reloads_total{result=\"failed\"}", 2);
    // it is not counted again for as long as it stays the same
    std::thread::sleep(Duration::from_millis(300));
    world.expect_metric("gateway_config_reloads_total{result=\"failed\"}", 2);
    let now = change(&world, &format!("{good}\n# right again"));
    assert_eq!(now["problem"], Value::Null);
    device.ping().unwrap();
}

#[test]
fn a_file_that_names_a_secret_waits_until_the_secret_is_there() {
    let world = World::without_hub("");
    let new = yaml(&world).replace("deviceKeys: {secretName: device-keys}", "deviceKeys: {secretName: other-keys}");
    let problem = refuse(&world, &new);
    assert!(problem.contains("other-keys") && !problem.contains(KEY), "{problem}");
    let _known_by_the_old_ones = world.connect("d1");
    world.folder.mount("other-keys", &[("keys", &format!("d8 {KEY}"))]);
    eventually("the file is in force", || config(&world)["problem"].is_null());
    let _known_by_the_new_ones = world.connect("d8");
    let mut unknown = world.open();
    assert_ne!(unknown.login(&login("d2")).unwrap(), 0);
    let text = world.gateway.registry().text();
    assert!(text.contains("secret=\"other-keys\"") && !text.contains("secret=\"device-keys\""), "{text}");
}

#[test]
fn what_needs_a_restart_is_told_and_the_rest_is_followed() {
    let world = World::without_hub("");
    let (first, mut device) = (yaml(&world), world.connect("d1"));
    let listeners = first.replace("- {name: wss, protocol: MQTTWebSocket, address: 127.0.0.1, port: 0}\n", "");
    let now = change(&world, &format!("{listeners}\nlimits: {{inflightMax: 3}}"));
    assert_eq!(now["needsRestart"], json!(["listeners"]));
    let _still_served = Device::connect(world.address("wss"), &world.websocket(), &login("d2")).unwrap();
    let other_hub = first.replace("hostName: localhost", "hostName: other.example");
    let now = change(&world, &other_hub);
    assert_eq!(now["needsRestart"], json!(["upstream.iotHub.hostName"]));
    let _logs_in_to_the_old_one = world.connect("d3");
    assert_eq!(change(&world, &first)["needsRestart"], json!([]));
    device.ping().unwrap();
}

#[test]
fn fewer_connections_may_be_there_without_anybody_leaving_and_more_at_once() {
    let world = World::without_hub("");
    let first = yaml(&world);
    let mut there: Vec<_> = ["d1", "d2"].into_iter().map(|name| world.connect(name)).collect();
    change(&world, &format!("{first}\nlimits: {{connectionsMax: 1}}"));
    let mut third = world.open();
    third.expect_silence(Duration::from_millis(200)).unwrap();
    for device in &mut there {
        device.ping().unwrap();
    }
    let waiting = std::thread::spawn(move || third.login(&login("d3")).unwrap());
    change(&world, &format!("{first}\nlimits: {{connectionsMax: 3}}"));
    assert_eq!(waiting.join().unwrap(), 0);
    for device in &mut there {
        device.ping().unwrap();
    }
}

#[test]
fn topics_hold_for_those_who_are_connected() {
    let world = World::with_hub(Verify::Local, "topics: {unmatched: PassThrough}");
    let mut device = world.connect("d1");
    send(&mut device, "any/topic", b"x").unwrap();
    change(&world, &yaml(&world).replace("PassThrough", "Close"));
    send(&mut device, &topic("d1", "known"), b"x").unwrap();
    device.publish("any/topic", b"x").unwrap();
    device.expect_close().unwrap();
}

#[test]
fn who_checks_tokens_may_change_and_those_who_are_connected_stay() {
    let world = World::with_hub(Verify::Local, "");
    let mut local = world.connect("d1");
    send(&mut local, &topic("d1", 1), b"x").unwrap();
    let local_yaml = yaml(&world);
    let by_hub = "{verify: Hub}";
    change(&world, &local_yaml.replace("{verify: Local, deviceKeys: {secretName: device-keys}}", by_hub));
    let connect = |login: &Login| Device::connect(world.address("plain"), &Transport::Plain, login);
    let mut hub = connect(&world.hub_login("d2")).unwrap();
    assert!(connect(&login("d3")).is_err(), "the hub does not know this key");
    send(&mut hub, &topic("d2", 1), b"x").unwrap();
    change(&world, &local_yaml);
    let mut again = connect(&login("d3")).unwrap();
    for (device, name) in [(&mut local, "d1"), (&mut hub, "d2"), (&mut again, "d3")] {
        send(device, &topic(name, 2), b"x").unwrap();
    }
}

#[test]
fn devices_of_a_ca_that_is_not_trusted_any_more_are_marked_and_stay_until_they_are_let_go() {
    let world = World::without_hub("");
    // whoever is to go waits for another order
    drain(world.gateway.admin, &order(1, 0.0));
    let (old_ca, other) = (world.certificates.ca_pem.clone(), Certificates::new());
    let (chain, key) = world.certificates.issue("d1");
    let login_by_certificate = Login { password: None, ..login("d1") };
    let transport = world.tls_as(false, Some((&chain, &key)));
    let connect = || Device::connect(world.address("mqtts"), &transport, &login_by_certificate);
    let mut by_certificate = connect().unwrap();
    // it shows the same certificate, and is let in by its token
    let mut by_token = Device::connect(world.address("mqtts"), &transport, &login("d2")).unwrap();
    let distrusted = || load(&world)["distrusted"].clone();
    // the CA's Secret is the hub's, too: that is another one here
    world.folder.mount("other-ca", &[("ca.crt", &format!("{old_ca}{}", other.ca_pem))]);
    change(&world, &yaml(&world).replace("x509: {clientCASecretName: ca}", "x509: {clientCASecretName: other-ca}"));
    assert_eq!(distrusted(), 0);
    world.folder.mount("other-ca", &[("ca.crt", &other.ca_pem)]);
    eventually("it is marked", || distrusted() == 1);
    by_certificate.ping().unwrap();
    by_token.ping().unwrap();
    assert!(connect().is_err());
    world.folder.mount("other-ca", &[("ca.crt", &old_ca)]);
    eventually("it is trusted again", || distrusted() == 0);
    world.folder.mount("other-ca", &[("ca.crt", &other.ca_pem)]);
    eventually("it is marked", || distrusted() == 1);
    by_certificate.disconnect().unwrap();
    eventually("it is gone", || distrusted() == 0);
}

#[test]
fn a_secret_that_is_wrong_is_told_until_it_is_right() {
    let world = World::without_hub("");
    let (chain, _) = world.certificates.issue("localhost");
    let (_, key) = world.certificates.issue("localhost");
    let before = served(&world);
    world.folder.mount("tls", &[("tls.crt", &chain), ("tls.key", &key)]);
    eventually("it is told", || load(&world)["secretsProblem"].as_str().is_some_and(|problem| problem.contains("tls")));
    assert_eq!(served(&world), before);
    // a file that does not name this secret anew is followed all the same
    change(&world, &format!("{}\nlimits: {{inflightMax: 3}}", yaml(&world)));
    assert!(load(&world)["secretsProblem"].is_string());
    renew(&world);
    eventually("it is over", || load(&world)["secretsProblem"].is_null());
}
