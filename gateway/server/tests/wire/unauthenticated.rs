//! What connections send before they are let in is bounded for all of them together.

use std::{net::TcpStream, time::Duration};

use device::{
    packet::Received,
    script::{Device, Login},
};
use hub::domain::{Action, Fault};

use crate::support::{Verify, World, eventually, login};

/// The two cores of these tests have room for one packet each.
const LIMITS: &str =
    "limits: {messageBytesMax: 64KiB, packetBytesMax: 64KiB, unauthenticatedBytesMax: 64KiB, shutdownTimeout: 1s}";
const CORES: u64 = 2;
const LONG: usize = 50_000;
const REFUSED: &str = "gateway_refused_total{reason=\"unauthenticated_bytes\"}";

/// A CONNECT with a Will of this many bytes.
fn connect_with_will(login: &Login, will_bytes: usize) -> Vec<u8> {
    let mut body = b"\0\x04MQTT\x04\xC6\0\x3C".to_vec();
    let topic = format!("devices/{}/messages/events/", login.client_id);
    let will = vec![b'w'; will_bytes];
    let (user_name, password) = (login.user_name.as_deref().unwrap(), login.password.as_deref().unwrap());
    for field in [login.client_id.as_bytes(), topic.as_bytes(), &will, user_name.as_bytes(), password.as_bytes()] {
        body.extend_from_slice(&(field.len() as u16).to_be_bytes());
        body.extend_from_slice(field);
    }
    let length = body.len();
    assert!((1 << 14..1 << 21).contains(&length), "three bytes of remaining length");
    let mut packet = vec![0x10, length as u8 | 0x80, (length >> 7) as u8 | 0x80, (length >> 14) as u8];
    packet.extend_from_slice(&body);
    packet
}

fn metric(world: &World, name: &str) -> u64 {
    let text = world.gateway.registry().text();
    let value = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or(" 0");
    value.trim().parse().unwrap()
}

fn refused(world: &World) -> u64 {
    metric(world, REFUSED)
}

/// All but one of each core are turned away; gives how many stayed, once that is so.
fn turned_away(world: &World, of: u64) -> u64 {
    eventually("all are turned away for whom there is no room", || refused(world) >= of - CORES);
    of - refused(world)
}

/// Whether this device is let in.
fn is_let_in(device: &mut Device) -> bool {
    device.expect("CONNACK").is_ok_and(|answer| answer == Received::ConnAck(0, false))
}

#[test]
fn unfinished_connects_close_whoever_comes_above_the_bound_and_nobody_else() {
    let world = World::without_hub(LIMITS);
    let mut neighbour = world.connect("d9");
    let connects: Vec<_> = (1..=8).map(|n| connect_with_will(&login(&format!("d{n}")), LONG)).collect();
    let mut devices: Vec<Device> = Vec::new();
    for connect in &connects {
        let mut device = world.open();
        device.write(&connect[..connect.len() - 1]).unwrap();
        devices.push(device);
        // the first one is there before the others
        std::thread::sleep(Duration::from_millis(if devices.len() == 1 { 300 } else { 0 }));
    }
    turned_away(&world, 8);
    // a device whose CONNECT is of ordinary length comes in all the same, in pieces too
    let ordinary = {
        let (login, mut packet) = (login("f1"), Vec::new());
        let (user_name, password) = (login.user_name.as_deref(), login.password.as_deref().map(str::as_bytes));
        device::packet::connect(&mut packet, &login.client_id, user_name, password, 60, true);
        packet
    };
    let mut piecemeal = world.open();
    for piece in ordinary.chunks(ordinary.len() / 3) {
        piecemeal.write(piece).unwrap();
        std::thread::sleep(Duration::from_millis(30));
    }
    assert!(is_let_in(&mut piecemeal));
    neighbour.ping().unwrap();

    let mut let_in = Vec::new();
    for (device, connect) in devices.iter_mut().zip(&connects) {
        // whoever was turned away finds its socket closed
        let written = device.write(&connect[connect.len() - 1..]).is_ok();
        let_in.push(written && is_let_in(device));
    }
    let count = let_in.iter().filter(|let_in| **let_in).count() as u64;
    assert_eq!((let_in[0], count), (true, 8 - refused(&world)), "{let_in:?}");
    assert_eq!(metric(&world, "gateway_limit_reached_total{limit=\"unauthenticated_bytes\"}"), refused(&world));
    // those that were let in have given their room back, and so have those that went
    for (n, connect) in connects.iter().enumerate() {
        let mut device = world.open();
        device.write(&connect[..LONG]).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        device.write(&connect[LONG..]).unwrap();
        assert!(is_let_in(&mut device), "d{}", n + 1);
    }
}

#[test]
fn wills_that_wait_for_the_hub_s_verdict_are_counted_too() {
    let world = World::with_hub(Verify::Hub, LIMITS);
    world.hub().inject(Fault::new(Action::Cbs { status: 0, ms: 2000 }));
    let mut devices: Vec<Device> = (1..=8)
        .map(|n| {
            let mut device = world.open();
            device.write(&connect_with_will(&world.hub_login(&format!("d{n}")), LONG)).unwrap();
            device
        })
        .collect();
    let stayed = turned_away(&world, 8);
    let let_in = devices.iter_mut().filter_map(|device| is_let_in(device).then_some(())).count() as u64;
    assert!((1..=CORES).contains(&stayed));
    assert_eq!(let_in, 8 - refused(&world));
}

#[test]
fn a_connection_that_ends_gives_its_room_back() {
    let world = World::without_hub(LIMITS);
    let connect = connect_with_will(&login("d1"), LONG);
    for _ in 0..8 {
        let mut device = world.open();
        device.write(&connect[..LONG]).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        drop(device);
        world.expect_metric("gateway_handshakes", 0);
    }
    assert_eq!(refused(&world), 0);
    let silent: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(world.address("plain")).unwrap()).collect();
    world.expect_metric("gateway_handshakes", 8);
    assert_eq!(refused(&world), 0);
    drop(silent);
}
