//! TLS and WebSocket: what is served, what is refused, and what happens when certificates change.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use device::script::{Device, Stream, Transport};
use rustls::{ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;
use tungstenite::{Message as Frame, client::IntoClientRequest, http::HeaderValue};

use crate::support::{Certificates, World, login};

fn tls_stream(world: &World) -> StreamOwned<ClientConnection, TcpStream> {
    let Transport::Tls(config, name) = world.tls() else { unreachable!("tls() is TLS") };
    let socket = TcpStream::connect(world.address("wss")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let connection = ClientConnection::new(config, ServerName::try_from(name).unwrap()).unwrap();
    StreamOwned::new(connection, socket)
}

#[test]
fn mqtt_7_1_1_1_runs_over_tls_1_2_tls_1_3_and_websocket() {
    let world = World::without_hub("");
    for tls12 in [true, false] {
        let mut device = Device::connect(world.address("mqtts"), &world.tls_as(tls12, None), &login("d1")).unwrap();
        device.ping().unwrap();
        device.disconnect().unwrap();
    }
    let mut device = Device::connect(world.address("wss"), &world.websocket(), &login("d2")).unwrap();
    device.ping().unwrap();
    device.disconnect().unwrap();
    world.expect_metric("gateway_disconnects_total{cause=\"disconnect\"}", 3);
    world.expect_metric("gateway_connections", 0);
    world.expect_metric("gateway_handshakes", 0);
}

#[test]
fn a_session_is_resumed_and_works_in_any_split_of_its_bytes() {
    let world = World::without_hub("");
    let transport = world.tls();
    for round in 0..2 {
        let mut device = Device::connect(world.address("mqtts"), &transport, &login("d1")).unwrap();
        for byte in [0xC0, 0x00].repeat(20) {
            device.write(&[byte]).unwrap();
        }
        for _ in 0..20 {
            assert_eq!(device.expect("PINGRESP").unwrap(), device::packet::Received::PingResp);
        }
        let Stream::Tls(stream) = device.stream() else { unreachable!("a TLS device") };
        let kind = stream.conn.handshake_kind().unwrap();
        assert_eq!(kind == rustls::HandshakeKind::Resumed, round == 1, "{kind:?} in round {round}");
    }
}

#[test]
fn a_device_may_prove_itself_by_its_certificate() {
    let world = World::without_hub("");
    let (chain, key) = world.certificates.issue("d7");
    let transport = world.tls_as(false, Some((&chain, &key)));
    let mut right = login("d7");
    right.password = None;
    drop(Device::connect(world.address("mqtts"), &transport, &right).unwrap());
    let mut wrong = login("d8");
    wrong.password = None;
    let mut device = Device::open(world.address("mqtts"), &transport).unwrap();
    assert_eq!(device.login(&wrong).unwrap(), 5);
    world.expect_metric("gateway_refused_total{reason=\"certificate\"}", 1);
    // one of another CA does not get through the handshake
    let (chain, key) = Certificates::new().issue("d7");
    let stranger = world.tls_as(false, Some((&chain, &key)));
    let refused = Device::connect(world.address("mqtts"), &stranger, &right);
    assert!(refused.is_err());
    world.expect_metric("gateway_refused_total{reason=\"client_certificate\"}", 1);
}

#[test]
fn plain_mqtt_or_http_without_tls_on_a_tls_port_is_told_apart() {
    let world = World::without_hub("");
    let say = |listener: &str, bytes: &[u8]| {
        let mut socket = TcpStream::connect(world.address(listener)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket.write_all(bytes).unwrap();
        while socket.read(&mut [0; 64]).unwrap_or(0) > 0 {}
    };
    say("mqtts", b"\x10\x0E\x00\x04MQTT\x04\x02\x00\x3C\x00\x00\x02d1");
    world.expect_metric("gateway_refused_total{reason=\"plain_on_tls_port\"}", 1);
    say("wss", b"GET / HTTP/1.1\r\n\r\n");
    world.expect_metric("gateway_refused_total{reason=\"http_on_tls_port\"}", 1);
    say("mqtts", b"\x00\x01\x02\x03\x04\x05");
    world.expect_metric("gateway_refused_total{reason=\"tls_handshake\"}", 1);
}

#[test]
fn a_websocket_with_another_path_or_subprotocol_is_refused_with_a_text_that_says_what_is_right() {
    let world = World::without_hub("");
    let check = |path: &str, headers: &str, status: &str, text: &str, reason: &str, count: u64| {
        let mut stream = tls_stream(&world);
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(text), "{answer}");
        world.expect_metric(&format!("gateway_refused_total{{reason=\"{reason}\"}}"), count);
    };
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let mqtt = format!("{upgrade}Sec-WebSocket-Protocol: mqtt\r\n");
    let amqp = format!("{upgrade}Sec-WebSocket-Protocol: AMQPWSB10\r\n");
    check("/", &mqtt, "404", "/$iothub/websocket", "websocket_path", 1);
    check("/$iothub/websocket", &amqp, "400", "Sec-WebSocket-Protocol: mqtt", "websocket_subprotocol", 1);
    check("/$iothub/websocket", "", "426", "Upgrade: websocket", "websocket_request", 1);
}

#[test]
fn mqtt_6_0_0_1_and_4_a_text_frame_closes_with_1003() {
    let world = World::without_hub("");
    let mut request = "wss://localhost/$iothub/websocket".into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("mqtt"));
    let (mut websocket, answer) = tungstenite::client(request, tls_stream(&world)).unwrap();
    assert_eq!(answer.headers()["Sec-WebSocket-Protocol"], "mqtt");
    websocket.send(Frame::text("hello")).unwrap();
    match websocket.read().unwrap() {
        Frame::Close(Some(close)) => assert_eq!(u16::from(close.code), 1003),
        other => panic!("expected Close, got {other:?}"),
    }
    world.expect_metric("gateway_refused_total{reason=\"websocket_text\"}", 1);
}

#[test]
fn a_new_certificate_is_served_without_a_restart_and_a_broken_one_changes_nothing() {
    let world = World::without_hub("");
    let served = || {
        let mut device = Device::connect(world.address("mqtts"), &world.tls(), &login("d1")).unwrap();
        let Stream::Tls(stream) = device.stream() else { unreachable!("a TLS device") };
        stream.conn.peer_certificates().unwrap()[0].to_vec()
    };
    let mut lasting = Device::connect(world.address("mqtts"), &world.tls(), &login("d2")).unwrap();
    let first = served();
    let directory = world.folder.path().join("tls");
    fs::write(directory.join("tls.key"), "broken").unwrap();
    world.expect_metric("gateway_secret_loads_total{secret=\"tls\",result=\"failed\"}", 1);
    assert_eq!(served(), first);
    let (chain, key) = world.certificates.issue("localhost");
    fs::write(directory.join("tls.crt"), chain).unwrap();
    fs::write(directory.join("tls.key"), key).unwrap();
    world.expect_metric("gateway_secret_loads_total{secret=\"tls\",result=\"loaded\"}", 2);
    assert_ne!(served(), first);
    lasting.ping().unwrap();
}
