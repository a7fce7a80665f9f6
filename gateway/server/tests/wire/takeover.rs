//! One connection per device, and the end of them all.

use std::{net::TcpStream, time::Duration};

use device::{
    packet::{self, Received},
    script::{Device, Login, Transport},
};

use crate::support::{World, login};

#[test]
fn mqtt_3_1_4_2_the_newer_connection_wins_on_whichever_core_it_lands() {
    let world = World::without_hub("");
    let mut older = world.connect("d1");
    // SO_REUSEPORT spreads them over both cores
    for _ in 0..12 {
        let newer = world.connect("d1");
        older.expect_close().unwrap();
        older = newer;
    }
    older.ping().unwrap();
    world.expect_metric("gateway_connections", 1);
    world.expect_metric("gateway_disconnects_total{cause=\"taken_over\"}", 12);
}

#[test]
fn a_module_does_not_take_over_its_device() {
    let world = World::without_hub("");
    let (mut device, mut module) = (world.connect("d1"), world.connect("d1/m1"));
    device.ping().unwrap();
    module.ping().unwrap();
    world.expect_metric("gateway_connections", 2);
}

#[test]
fn draining_closes_every_device_and_takes_no_new_one() {
    let world = World::without_hub("limits: {shutdownTimeout: 1s}");
    let mut device = world.connect("d1");
    let mut secured = Device::connect(world.address("mqtts"), &world.tls(), &login("d2")).unwrap();
    let silent = TcpStream::connect(world.address("mqtts")).unwrap();
    let address = world.address("plain");
    let World { gateway, folder, .. } = world;
    gateway.stop();
    device.expect_close().unwrap();
    secured.expect_close().unwrap();
    drop(silent);
    assert!(Device::open(address, &Transport::Plain).is_err());
    drop(folder);
}

#[test]
fn connections_beyond_the_limit_wait_until_one_leaves() {
    let world = World::without_hub("limits: {connectionsMax: 1}");
    let first = world.connect("d1");
    let mut second = world.open();
    second.write(&connect(&login("d2"))).unwrap();
    second.expect_silence(Duration::from_millis(300)).unwrap();
    world.expect_metric("gateway_limit_reached_total{limit=\"connections\"}", 1);
    first.disconnect().unwrap();
    assert_eq!(second.expect("CONNACK").unwrap(), Received::ConnAck(0, false));
}

#[test]
fn with_handshakes_max_reached_the_next_device_waits_until_one_is_through() {
    let world = World::without_hub("limits: {handshakesMax: 1}");
    // silent: its handshake is the one
    let silent = world.open();
    world.expect_metric("gateway_handshakes", 1);
    let mut next = world.open();
    next.write(&connect(&login("d1"))).unwrap();
    next.expect_silence(Duration::from_millis(300)).unwrap();
    world.expect_metric("gateway_limit_reached_total{limit=\"handshakes\"}", 1);
    world.expect_metric("gateway_connections", 0);
    drop(silent);
    assert_eq!(next.expect("CONNACK").unwrap(), Received::ConnAck(0, false));
    // through: it holds no handshake while it is connected
    world.connect("d2").ping().unwrap();
}

/// The CONNECT of `login`.
fn connect(login: &Login) -> Vec<u8> {
    let mut bytes = Vec::new();
    let password = login.password.as_deref().map(str::as_bytes);
    packet::connect(&mut bytes, &login.client_id, login.user_name.as_deref(), password, 60, true);
    bytes
}
