//! Everybody comes at once: they are served in order at the rate of the settings, and none times out.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::{DEVICES, World, login};

fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
}

fn connect_packet(device: &str) -> Vec<u8> {
    let (mut packet, login) = (Vec::new(), login(device));
    let (user_name, password) = (login.user_name.as_deref(), login.password.as_deref().map(str::as_bytes));
    device::packet::connect(&mut packet, &login.client_id, user_name, password, 60, true);
    packet
}

/// Whether the CONNACK is there.
fn is_answered(socket: &mut TcpStream) -> bool {
    let mut connack = [0; 4];
    match socket.read(&mut connack) {
        Ok(4) => {
            assert_eq!(connack, [0x20, 2, 0, 0]);
            true
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        other => panic!("expected a CONNACK, got {other:?}"),
    }
}

#[test]
fn two_thousand_connects_at_once_are_served_in_order_at_the_rate_and_none_times_out() {
    raise_open_files();
    let world = World::without_hub("limits: {connectsPerSecond: 500, handshakeTimeout: 1m}");
    let packets: Vec<_> = (1..=DEVICES).map(|number| connect_packet(&format!("f{number}"))).collect();
    let (address, begun) = (world.address("plain"), Instant::now());
    let mut waiting = Vec::with_capacity(DEVICES);
    for (number, packet) in packets.into_iter().enumerate() {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.write_all(&packet).unwrap();
        socket.set_nonblocking(true).unwrap();
        waiting.push((number, socket));
    }
    let all_came = begun.elapsed();
    let (mut served, mut connected) = (Vec::new(), Vec::new());
    while !waiting.is_empty() {
        assert!(begun.elapsed() < Duration::from_mins(1), "{} are not served", waiting.len());
        std::thread::sleep(Duration::from_millis(5));
        let (answered, rest): (Vec<_>, Vec<_>) = waiting
            .into_iter()
            .map(|(number, mut socket)| (is_answered(&mut socket), number, socket))
            .partition(|(is, ..)| *is);
        waiting = rest.into_iter().map(|(_, number, socket)| (number, socket)).collect();
        for (_, number, socket) in answered {
            served.push((begun.elapsed(), number));
            connected.push(socket);
        }
    }
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(3700), "took {took:?}, all came within {all_came:?}");
    // however late this test looks, nobody is ahead of the rate and of the tenth of a second's worth that may come at once
    for (position, (at, _)) in served.iter().enumerate() {
        let allowed = 51.0 + at.as_secs_f64() * 500.0;
        assert!((position as f64) < allowed, "{position} are served after {at:?}");
    }
    // who came later is not served earlier, but for the two sockets that take turns
    let mut latest = 0;
    for (position, (_, number)) in served.iter().enumerate() {
        latest = latest.max(*number);
        assert!(latest - number <= 300, "{number} came {} earlier, served as {position}", latest - number);
    }
    world.expect_metric("gateway_connections", DEVICES as u64);
    world.expect_metric("gateway_refused_total{reason=\"handshake_timeout\"}", 0);
}
