//! Everybody comes at once: they are served in order at the rate of the settings, and none times out.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::{DEVICES, World, login};

/// More than a busy machine needs; at the rate it is a seventh of it.
const PATIENCE: Duration = Duration::from_secs(30);

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

/// Who was served, in order: when it was seen, in which look at all sockets, and as which it came.
type Served = (Duration, usize, usize);

/// Lets everybody in `packets` come, one after the other, and looks at all sockets until all are answered.
fn served(address: SocketAddr, packets: &[Vec<u8>], begun: Instant) -> (Vec<Served>, Vec<TcpStream>) {
    let come = |(number, packet): (usize, &Vec<u8>)| {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.write_all(packet).unwrap();
        socket.set_nonblocking(true).unwrap();
        (number, socket)
    };
    let mut waiting: Vec<_> = packets.iter().enumerate().map(come).collect();
    let (mut served, mut connected) = (Vec::new(), Vec::new());
    for look in 0.. {
        if waiting.is_empty() {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{} are not served", waiting.len());
        std::thread::sleep(Duration::from_millis(5));
        for (number, mut socket) in std::mem::take(&mut waiting) {
            if is_answered(&mut socket) {
                served.push((begun.elapsed(), look, number));
                connected.push(socket);
            } else {
                waiting.push((number, socket));
            }
        }
    }
    (served, connected)
}

/// The longest row in which everybody came more than `slack` before those that were served earlier. Who is answered
/// between two looks, or while one goes on, is taken to be served at once: a look in between proves the order.
fn overtaken(served: &[Served], slack: usize) -> usize {
    let mut longest = vec![1; served.len()];
    for (position, &(_, look, number)) in served.iter().enumerate() {
        for earlier in 0..position {
            let (_, earlier_look, earlier_number) = served[earlier];
            if earlier_look + 1 < look && earlier_number > number + slack {
                longest[position] = longest[position].max(longest[earlier] + 1);
            }
        }
    }
    longest.into_iter().max().unwrap_or_default()
}

#[test]
fn two_thousand_connects_at_once_are_served_in_order_at_the_rate_and_none_times_out() {
    raise_open_files();
    let world = World::without_hub("limits: {connectsPerSecond: 500, handshakeTimeout: 1m}");
    let packets: Vec<_> = (1..=DEVICES).map(|number| connect_packet(&format!("f{number}"))).collect();
    let begun = Instant::now();
    let (served, _connected) = served(world.address("plain"), &packets, begun);
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(3700), "took {took:?}");
    // however late this test looks, nobody is ahead of the rate and of the tenth of a second's worth that may come at once
    for (position, (at, ..)) in served.iter().enumerate() {
        let allowed = 51.0 + at.as_secs_f64() * 500.0;
        assert!((position as f64) < allowed, "{position} are served after {at:?}");
    }
    // each of the two sockets serves in order; a busy machine may stop the one while the other goes on, so there may be
    // one that was overtaken, but never one that was overtaken by somebody who was overtaken
    assert!(overtaken(&served, 50) <= 2, "not two queues: {served:?}");
    world.expect_metric("gateway_connections", DEVICES as u64);
    world.expect_metric("gateway_refused_total{reason=\"handshake_timeout\"}", 0);
}

#[test]
fn a_row_of_those_overtaken_is_told_from_two_queues() {
    let check = |numbers: &[usize], expected: usize| {
        let served: Vec<_> =
            (0..).step_by(2).zip(numbers).map(|(look, &number)| (Duration::ZERO, look, number)).collect();
        assert_eq!(overtaken(&served, 1), expected, "{numbers:?}");
    };
    check(&[0, 1, 2, 3], 1);
    check(&[10, 12, 14, 0, 16, 2, 4], 2);
    check(&[1, 0, 3, 2], 1);
    check(&[20, 10, 0], 3);
}
