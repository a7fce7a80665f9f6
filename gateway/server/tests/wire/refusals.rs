//! Bad input closes that connection only, with the code that the specification wants, and is counted by its reason.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use device::{
    packet::{self, Received},
    sas,
    script::{Device, Login, Stream},
};

use crate::support::{HUB, KEY, World, login};

const SHORT: &str = "limits: {handshakeTimeout: 1s}";

/// Sends `bytes` first thing on the plain port; expects the end without an answer, and the count.
fn check_closed(world: &World, bytes: &[u8], reason: &str) {
    let mut device = world.open();
    device.write(bytes).unwrap();
    device.expect_close().unwrap_or_else(|error| panic!("{bytes:x?}: {error:#}"));
    world.expect_metric(&format!("gateway_refused_total{{reason=\"{reason}\"}}"), 1);
}

/// Logs in; expects this CONNACK, then the end, and the count.
fn check_connack(world: &World, login: &Login, code: u8, reason: &str, count: u64) {
    let mut device = world.open();
    assert_eq!(device.login(login).unwrap(), code, "{login:?}");
    device.expect_close().unwrap();
    world.expect_metric(&format!("gateway_refused_total{{reason=\"{reason}\"}}"), count);
}

/// Connects, sends `bytes`; expects the end without an answer, and the count.
fn check_disconnected(world: &World, bytes: &[u8], cause: &str, count: u64) {
    let mut device = world.connect("d1");
    device.write(bytes).unwrap();
    device.expect_close().unwrap_or_else(|error| panic!("{bytes:x?}: {error:#}"));
    world.expect_metric(&format!("gateway_disconnects_total{{cause=\"{cause}\"}}"), count);
}

/// A neighbour that must not notice anything.
fn neighbour(world: &World) -> Device {
    let mut neighbour = world.connect("d9");
    neighbour.ping().unwrap();
    neighbour
}

#[test]
fn a_wrong_login_is_answered_with_its_code_and_closes_that_connection_only() {
    let world = World::without_hub("");
    let mut neighbour = neighbour(&world);
    let right = login("d1");
    let with = |change: &dyn Fn(&mut Login)| {
        let mut login = right.clone();
        change(&mut login);
        login
    };
    let token = |resource: &str, key: &str, expires: u64| Some(sas::token(resource, key, None, expires).unwrap());
    let later = sas::unix_now() + 600;
    let other_key = "b2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=";

    check_connack(&world, &with(&|l| l.client_id = "d2".into()), 5, "client_id", 1);
    check_connack(&world, &with(&|l| l.user_name = Some("nonsense".into())), 4, "user_name", 1);
    let nameless = with(&|l| (l.user_name, l.password) = (None, None));
    check_connack(&world, &nameless, 4, "user_name", 2);
    check_connack(&world, &with(&|l| l.user_name = Some("other.example/d1/?x=y".into())), 5, "hub_host", 1);
    check_connack(&world, &with(&|l| l.password = Some("secret".into())), 4, "token_form", 1);
    let wrong = token(&format!("{HUB}/devices/d1"), other_key, later);
    check_connack(&world, &with(&|l| l.password.clone_from(&wrong)), 5, "token_signature", 1);
    let expired = token(&format!("{HUB}/devices/d1"), KEY, 1_700_000_000);
    check_connack(&world, &with(&|l| l.password.clone_from(&expired)), 5, "token_expired", 1);
    let foreign = token(&format!("{HUB}/devices/d"), KEY, later);
    check_connack(&world, &with(&|l| l.password.clone_from(&foreign)), 5, "token_scope", 1);
    check_connack(&world, &login("nobody"), 5, "unknown_device", 1);

    neighbour.ping().unwrap();
    world.expect_metric("gateway_connects_total{result=\"refused\"}", 9);
    world.expect_metric("gateway_connections", 1);
}

#[test]
fn mqtt_3_1_2_2_another_protocol_level_is_answered_with_1() {
    let world = World::without_hub("");
    let mut device = world.open();
    device.write(b"\x10\x0E\x00\x04MQTT\x05\x02\x00\x3C\x00\x00\x02d1").unwrap();
    assert_eq!(device.expect("CONNACK").unwrap(), Received::ConnAck(1, false));
    device.expect_close().unwrap();
    world.expect_metric("gateway_refused_total{reason=\"protocol_level\"}", 1);
}

#[test]
fn what_is_no_connect_is_closed_without_an_answer() {
    let world = World::without_hub("");
    let mut neighbour = neighbour(&world);
    check_closed(&world, b"\x16\x03\x01\x02\x00\x01\x00\x01\xFC\x03\x03", "tls_on_plain_port");
    // [MQTT-3.1.0-1] PINGREQ first
    check_closed(&world, b"\xC0\x00", "protocol_violation");
    // oversized: refused by its header, before the body comes
    check_closed(&world, b"\x10\xFF\xFF\xFF\x7F", "too_large");
    neighbour.ping().unwrap();
}

#[test]
fn mqtt_3_1_4_1_malformed_packets_close_without_an_answer() {
    let world = World::without_hub("");
    let mut neighbour = neighbour(&world);
    let mut second_connect = Vec::new();
    packet::connect(&mut second_connect, "d1", None, None, 60, true);
    let cases: [&[u8]; 6] = [
        // [MQTT-3.1.0-2]
        &second_connect,
        // reserved type
        b"\xF0\x00",
        // [MQTT-2.3.1-1] PUBLISH QoS 1 with packet id 0
        b"\x32\x05\x00\x01t\x00\x00",
        // five bytes of remaining length
        b"\x30\xFF\xFF\xFF\xFF\x01",
        // [MQTT-3.8.1-1] SUBSCRIBE with wrong flags
        b"\x80\x06\x00\x01\x00\x01a\x00",
        // a packet that only servers send
        b"\xD0\x00",
    ];
    for (n, bytes) in cases.into_iter().enumerate() {
        check_disconnected(&world, bytes, "protocol_violation", n as u64 + 1);
    }
    neighbour.ping().unwrap();
}

#[test]
fn what_the_hub_does_not_serve_closes_the_connection() {
    let world = World::without_hub("");
    let publish = |topic: &str, qos_bits: u8| {
        let mut out = Vec::new();
        packet::publish(&mut out, topic, b"x", Some(1), false, false);
        out[0] = 0x30 | qos_bits << 1;
        out
    };
    check_disconnected(&world, &publish("devices/d2/messages/events/", 1), "topic", 1);
    check_disconnected(&world, &publish("devices/d1/messages/events/a=%zz", 1), "topic", 2);
    check_disconnected(&world, &publish("somewhere/else", 1), "topic", 3);
    check_disconnected(&world, &publish("devices/d1/messages/events/", 2), "qos2", 1);
    let mut subscribe = Vec::new();
    packet::subscribe(&mut subscribe, 1, &[("everything/#", 1)]);
    check_disconnected(&world, &subscribe, "topic", 4);
}

#[test]
fn a_packet_over_the_limit_is_refused_by_its_header() {
    let world = World::without_hub("limits: {packetBytesMax: 300KiB}");
    let mut device = world.connect("d1");
    // 1 MiB announced, ten bytes sent
    device.write(b"\x32\x80\x80\x40\x00\x01tabcde").unwrap();
    device.expect_close().unwrap();
    world.expect_metric("gateway_disconnects_total{cause=\"too_large\"}", 1);
}

#[test]
fn silence_before_connect_ends_after_the_time_limit() {
    let world = World::without_hub(SHORT);
    world.open().expect_close().unwrap();
    world.expect_metric("gateway_refused_total{reason=\"handshake_timeout\"}", 1);
    // over TLS the handshake is done and the CONNECT is missing
    let mut silent = Device::open(world.address("mqtts"), &world.tls()).unwrap();
    let Stream::Tls(stream) = silent.stream() else { unreachable!("a TLS device") };
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).unwrap();
    }
    silent.expect_close().unwrap();
    world.expect_metric("gateway_refused_total{reason=\"connect_timeout\"}", 1);
    // half a ClientHello
    let mut half = TcpStream::connect(world.address("mqtts")).unwrap();
    half.write_all(b"\x16\x03\x01\x02\x00\x01").unwrap();
    half.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    while half.read(&mut [0; 64]).unwrap_or(0) > 0 {}
    world.expect_metric("gateway_refused_total{reason=\"handshake_timeout\"}", 2);
}

#[test]
fn silent_connections_keep_nobody_out() {
    let world = World::without_hub("limits: {handshakeTimeout: 1m}");
    let silent: Vec<_> = (0..300).map(|_| TcpStream::connect(world.address("mqtts")).unwrap()).collect();
    world.expect_metric("gateway_handshakes", 300);
    world.connect("d1").ping().unwrap();
    Device::connect(world.address("mqtts"), &world.tls(), &login("d2")).unwrap().ping().unwrap();
    drop(silent);
}

#[test]
fn mqtt_3_1_2_24_half_a_packet_and_then_nothing_ends_by_the_keep_alive() {
    let world = World::without_hub(SHORT);
    // before CONNECT is complete: the time for CONNECT
    let mut half = world.open();
    half.write(b"\x10\x20\x00\x04MQ").unwrap();
    half.expect_close().unwrap();
    world.expect_metric("gateway_refused_total{reason=\"connect_timeout\"}", 1);
    // afterwards: one and a half keep-alive periods
    let mut login = login("d1");
    login.keep_alive_s = 1;
    let mut device = world.open();
    assert_eq!(device.login(&login).unwrap(), 0);
    device.write(b"\x32\x50\x00\x1Bdevices/").unwrap();
    device.expect_close().unwrap();
    world.expect_metric("gateway_disconnects_total{cause=\"keep_alive\"}", 1);
}

#[test]
fn a_token_that_expires_ends_the_connection() {
    let world = World::without_hub("limits: {tokenExpiryGrace: 0s}");
    let mut login = login("d1");
    let expires = sas::unix_now() + 2;
    login.password = Some(sas::token(&format!("{HUB}/devices/d1"), KEY, None, expires).unwrap());
    let mut device = world.open();
    assert_eq!(device.login(&login).unwrap(), 0);
    device.expect_close().unwrap();
    world.expect_metric("gateway_disconnects_total{cause=\"token_end\"}", 1);
}

#[test]
fn a_device_that_does_not_read_is_closed() {
    let world = World::without_hub("limits: {outputBytesMax: 16KiB, writeTimeout: 1s}");
    let mut device = world.connect("d1");
    device.socket().set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let pings = [0xC0, 0].repeat(64 * 1024);
    // PINGRESPs pile up until nothing moves any more
    while device.write(&pings).is_ok() {}
    world.expect_metric("gateway_disconnects_total{cause=\"write_timeout\"}", 1);
    world.expect_metric("gateway_limit_reached_total{limit=\"device_output\"}", 1);
}

#[test]
fn a_key_that_is_added_to_its_file_counts_without_a_restart() {
    let world = World::without_hub("");
    check_connack(&world, &login("d10"), 5, "unknown_device", 1);
    world.folder.write("device-keys/more", &format!("d10 {KEY}\n"));
    world.expect_metric("gateway_secret_loads_total{secret=\"device-keys\",result=\"loaded\"}", 1);
    world.connect("d10").ping().unwrap();
    // a file that is wrong changes nothing
    world.folder.write("device-keys/more", "d10 nonsense\n");
    world.expect_metric("gateway_secret_loads_total{secret=\"device-keys\",result=\"failed\"}", 1);
    world.connect("d10").ping().unwrap();
}
