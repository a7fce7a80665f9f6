//! From the device's PUBLISH to the hub's ledger and back: nothing acknowledged is lost.

use std::{sync::Arc, time::Duration};

use device::{
    packet::{self, Received},
    sas,
    script::{Device, Login, Transport},
};
use hub::domain::{Action, C2dMessage, Fault, Identity, Kind, Outcome, Point, Query};

use crate::support::{HUB, Verify, World, eventually, login};

fn topic(device: &str, id: impl std::fmt::Display) -> String {
    format!("devices/{device}/messages/events/%24.mid={id}&k=v")
}

/// Sends a command to `d1` by the hub's own queue.
pub(crate) fn command(world: &World, text: &'static str) {
    let domain = world.hub().domain();
    let now = domain.clock.now_ms();
    let message = C2dMessage {
        properties: fe2o3_amqp_types::messaging::Properties {
            to: Some("/devices/d1/messages/deviceBound".into()),
            ..Default::default()
        },
        application_properties: fe2o3_amqp_types::messaging::ApplicationProperties::default(),
        body: text.as_bytes().into(),
        ack: hub::domain::Ack::default(),
        message_id: text.into(),
        generation_id: "1".into(),
        enqueued_ms: now,
        expires_ms: now + 3_600_000,
        sequence_number: 0,
    };
    domain.c2d.enqueue(&Identity::device("d1"), message, now).unwrap();
}

#[test]
fn a_message_is_stored_with_its_properties_and_then_acknowledged() {
    let world = World::with_hub(Verify::Local, "");
    let transports = [
        ("plain", Transport::Plain),
        ("mqtts", world.tls()),
        ("mqtts", world.tls_as(true, None)),
        ("wss", world.websocket()),
    ];
    for (n, (listener, transport)) in transports.into_iter().enumerate() {
        let device = format!("d{}", n + 1);
        let mut client = Device::connect(world.address(listener), &transport, &login(&device)).unwrap();
        let id = client.publish(&topic(&device, "first"), b"{\"t\":21}").unwrap();
        client.expect_puback(id).unwrap();
        assert_eq!(world.stored(&device), ["first"]);
        let long = vec![b'x'; 200_000];
        let id = client.publish(&topic(&device, "long"), &long).unwrap();
        client.expect_puback(id).unwrap();
        client.publish_at_most_once(&topic(&device, "unacknowledged"), b"").unwrap();
        eventually("the hub has it", || world.stored(&device) == ["first", "long", "unacknowledged"]);
    }
    let telemetry = &world.hub().domain().telemetry;
    let events: Vec<_> = (0..telemetry.partitions()).flat_map(|partition| telemetry.read(partition, 0, 100)).collect();
    assert!(events.iter().any(|event| event.event.body == b"{\"t\":21}".as_slice()));
    let of_device = |event: &&Arc<hub::domain::StoredEvent>| event.event.identity == Identity::device("d4");
    let event = events.iter().find(of_device).unwrap();
    assert_eq!(format!("{:?}", event.event.application_properties.0.get("k")), "Some(String(\"v\"))");
    world.expect_metric("gateway_messages_total{direction=\"up\",qos=\"1\",outcome=\"accepted\"}", 8);
    world.expect_metric("gateway_messages_total{direction=\"up\",qos=\"0\",outcome=\"accepted\"}", 4);
    world.expect_metric("gateway_settle_seconds_count{direction=\"up\"}", 12);
}

#[test]
fn the_model_in_a_user_name_reaches_the_hub_unless_it_is_too_long() {
    let world = World::with_hub(Verify::Local, "");
    let check = |device: &str, said: &str, model: Option<&str>| {
        let mut login = login(device);
        login.user_name = login.user_name.map(|user_name| user_name + said);
        let mut client = Device::connect(world.address("plain"), &Transport::Plain, &login).unwrap();
        let id = client.publish(&topic(device, 1), b"x").unwrap();
        client.expect_puback(id).unwrap();
        let telemetry = &world.hub().domain().telemetry;
        let mut events = (0..telemetry.partitions()).flat_map(|partition| telemetry.read(partition, 0, 100));
        let event = events.find(|event| event.event.identity == Identity::device(device)).unwrap();
        assert_eq!(event.event.model_id.as_deref(), model, "{said}");
    };
    let said = "&model-id=dtmi%3Acom%3Aexample%3AThermostat%3B1&DeviceClientType=py%2F2";
    check("d1", said, Some("dtmi:com:example:Thermostat;1"));
    check("d2", "", None);
    check("d3", &format!("&model-id={}", "a".repeat(1025)), None);
    world.expect_metric("gateway_limit_reached_total{limit=\"client_text\"}", 1);
}

#[test]
fn puback_is_written_only_after_the_hub_accepted() {
    let world = World::with_hub(Verify::Local, "");
    let mut device = world.connect("d1");
    // the first message attaches the link
    let id = device.publish(&topic("d1", 0), b"x").unwrap();
    device.expect_puback(id).unwrap();
    world.hub().inject(Fault::new(Action::Delay { ms: 800 }).count(1));
    let id = device.publish(&topic("d1", 1), b"x").unwrap();
    device.expect_silence(Duration::from_millis(400)).unwrap();
    device.ping().unwrap();
    world.expect_metric("gateway_inflight{direction=\"up\"}", 1);
    device.expect_puback(id).unwrap();
    world.expect_metric("gateway_inflight{direction=\"up\"}", 0);
}

#[test]
fn what_the_hub_refuses_is_never_acknowledged_and_ends_the_connection() {
    let world = World::with_hub(Verify::Local, "");
    let mut other = world.connect("d2");
    let condition = "amqp:not-allowed".into();
    world.hub().inject(Fault::new(Action::Reject { condition }).device("d1").count(1));
    let mut device = world.connect("d1");
    device.publish(&topic("d1", 1), b"x").unwrap();
    device.expect_close().unwrap();
    world.expect_metric("gateway_disconnects_total{cause=\"hub_refused_message\"}", 1);
    other.ping().unwrap();
}

#[test]
fn at_the_window_s_end_the_socket_is_not_read_and_pubacks_keep_their_order() {
    let world = World::with_hub(Verify::Local, "limits: {inflightMax: 4}");
    let mut device = world.connect("d1");
    let id = device.publish(&topic("d1", 0), b"x").unwrap();
    device.expect_puback(id).unwrap();
    world.hub().inject(Fault::new(Action::Delay { ms: 1500 }).count(4));
    let ids: Vec<_> = (1..=10).map(|n| device.publish(&topic("d1", n), b"x").unwrap()).collect();
    world.expect_metric("gateway_limit_reached_total{limit=\"inflight\"}", 1);
    std::thread::sleep(Duration::from_millis(300));
    world.expect_metric("gateway_inflight{direction=\"up\"}", 4);
    for id in ids {
        device.expect_puback(id).unwrap();
    }
    assert_eq!(world.stored("d1"), (0..=10).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[test]
fn what_the_hub_has_not_settled_is_bounded_for_all_devices_together() {
    // half of it for each of the two cores: room for five messages, and one above
    let world = World::with_hub(Verify::Local, "  limits: {unsettledBytesMax: 1MiB}");
    let mut device = world.open();
    assert_eq!(device.login(&Login { keep_alive_s: 1, ..login("d1") }).unwrap(), 0);
    world.hub().inject(Fault::new(Action::Delay { ms: 5000 }).count(6));
    let payload = vec![b'x'; 100 * 1024];
    let ids: Vec<_> = (1..=9).map(|n| device.publish(&topic("d1", n), &payload).unwrap()).collect();
    world.expect_metric("gateway_limit_reached_total{limit=\"unsettled_bytes\"}", 1);
    world.expect_metric("gateway_inflight{direction=\"up\"}", 6);
    // on that core nobody else is let in for now
    let refused = (0..64).any(|_| world.open().login(&login("d2")).unwrap() == 3);
    assert!(refused, "a device was let in although nothing more can be held");
    // the silence is ours: longer than the keep-alive, and nobody is closed for it
    for id in ids {
        device.expect_puback(id).unwrap();
    }
    assert_eq!(world.stored("d1"), (1..=9).map(|n| n.to_string()).collect::<Vec<_>>());
    world.connect("d2").ping().unwrap();
}

#[test]
fn a_lost_amqp_connection_loses_nothing_that_was_acknowledged_and_no_device() {
    let world = World::with_hub(Verify::Local, "");
    let mut device = world.connect("d1");
    for round in 0..5 {
        let condition = (round % 2 == 0).then(|| "amqp:connection:forced".into());
        world.hub().inject(Fault::new(Action::CloseConnection { condition }).at(Point::Telemetry).skip(7).count(1));
        let ids: Vec<_> =
            (0..16).map(|n| device.publish(&topic("d1", format!("{round}-{n}")), b"x").unwrap()).collect();
        for id in ids {
            device.expect_puback(id).unwrap();
        }
    }
    let stored = world.stored("d1");
    for round in 0..5 {
        for n in 0..16 {
            assert!(stored.contains(&format!("{round}-{n}")), "{round}-{n} was acknowledged and is not in {stored:?}");
        }
    }
    device.ping().unwrap();
    world.expect_metric("gateway_disconnects_total{cause=\"hub_unreachable\"}", 0);
}

#[test]
fn verify_hub_asks_the_hub_and_answers_as_it_says() {
    let world = World::with_hub(Verify::Hub, "");
    let mut device = Device::connect(world.address("mqtts"), &world.tls(), &world.hub_login("d1")).unwrap();
    let id = device.publish(&topic("d1", 1), b"x").unwrap();
    device.expect_puback(id).unwrap();
    assert_eq!(world.stored("d1"), ["1"]);
    let refused = |login: &Login, code: u8| {
        let mut device = world.open();
        assert_eq!(device.login(login).unwrap(), code);
        device.expect_close().unwrap();
    };
    // another key than the hub's
    refused(&login("d2"), 5);
    refused(&login("nobody"), 5);
    let mut expired = world.hub_login("d3");
    expired.password =
        Some(sas::token(&format!("{HUB}/devices/d3"), crate::support::KEY, None, 1_700_000_000).unwrap());
    refused(&expired, 5);
    world.expect_metric("gateway_refused_total{reason=\"token_expired\"}", 1);
    // what may pass is answered with 3, or a device would stop for good
    world.hub().inject(Fault::new(Action::Cbs { status: 500, ms: 0 }).device("d4"));
    refused(&world.hub_login("d4"), 3);
    device.ping().unwrap();
}

#[test]
fn a_good_token_of_another_device_lets_nobody_in_and_throws_nobody_out() {
    let alone = World::with_hub(Verify::Hub, "");
    // where devices with certificates are let in beside, the hub would take links of any device
    let beside_certificates = World::with_hub(Verify::HubAndCertificates, "");
    for world in [alone, beside_certificates] {
        let mut victim = Device::connect(world.address("mqtts"), &world.tls(), &world.hub_login("d1")).unwrap();
        // its token is on the AMQP connection that another device would share
        let id = victim.publish(&topic("d1", 1), b"x").unwrap();
        victim.expect_puback(id).unwrap();
        let password = world.hub_login("d2").password;
        for claimed in ["d1", "nobody", "d", "d22", "d1/m1"] {
            let mut device = world.open();
            let foreign = Login { password: password.clone(), ..login(claimed) };
            assert_eq!(device.login(&foreign).unwrap(), 5, "{claimed}");
            device.expect_close().unwrap();
        }
        world.expect_metric("gateway_refused_total{reason=\"token_scope\"}", 5);
        victim.ping().unwrap();
    }
}

#[test]
fn a_command_reaches_the_device_and_is_complete_only_after_its_puback() {
    let world = World::with_hub(Verify::Local, "");
    let mut device = world.connect("d1");
    let filter = [("devices/d1/messages/devicebound/#", 1)];
    assert_eq!(device.subscribe(&filter).unwrap(), [1]);
    command(&world, "hello");
    let message = device.expect_message().unwrap();
    assert_eq!((message.payload.as_slice(), message.qos), (b"hello".as_slice(), 1));
    let bag = message.topic.strip_prefix("devices/d1/messages/devicebound/").unwrap();
    assert!(bag.contains("%24.to=%2Fdevices%2Fd1%2Fmessages%2FdeviceBound"), "{bag}");
    let depth = || world.hub().domain().c2d.depth(&Identity::device("d1"));
    assert_eq!(depth(), 1);
    device.acknowledge(message.packet_id.unwrap()).unwrap();
    eventually("the command is complete", || depth() == 0);
    world.expect_metric("gateway_messages_total{direction=\"down\",qos=\"1\",outcome=\"accepted\"}", 1);
    // one that is not acknowledged comes again after the device came back
    command(&world, "again");
    device.expect_message().unwrap();
    drop(device);
    let mut device = world.connect("d1");
    device.subscribe(&filter).unwrap();
    assert_eq!(device.expect_message().unwrap().payload, b"again");
}

/// A device whose Will has the message id `will`.
fn connect_with_will(world: &World, login: &Login, device: &str) -> Device {
    let mut body = b"\x00\x04MQTT\x04\xC6\x00\x3C".to_vec();
    body[7] |= 0x08;
    let will_topic = format!("devices/{device}/messages/events/%24.mid=will");
    let texts = [
        login.client_id.as_str(),
        &will_topic,
        "gone",
        login.user_name.as_deref().unwrap(),
        login.password.as_deref().unwrap(),
    ];
    for text in texts {
        body.extend_from_slice(&(text.len() as u16).to_be_bytes());
        body.extend_from_slice(text.as_bytes());
    }
    let mut bytes = vec![0x10, 0x80 | (body.len() % 128) as u8, (body.len() / 128) as u8];
    bytes.extend_from_slice(&body);
    let mut client = world.open();
    client.write(&bytes).unwrap();
    assert_eq!(client.expect("CONNACK").unwrap(), Received::ConnAck(0, false));
    client
}

#[test]
fn mqtt_3_1_2_8_the_will_is_telemetry_when_the_device_is_gone_and_not_after_disconnect() {
    let world = World::with_hub(Verify::Local, "");
    let connect = |device: &str| connect_with_will(&world, &login(device), device);
    connect("d1").disconnect().unwrap();
    drop(connect("d2"));
    eventually("the Will is stored", || world.stored("d2") == ["will"]);
    assert!(world.stored("d1").is_empty());
    // a take-over is an end without DISCONNECT
    let mut older = connect("d3");
    let _newer = connect("d3");
    older.expect_close().unwrap();
    eventually("the Will is stored", || world.stored("d3") == ["will"]);
}

#[test]
fn a_link_stolen_by_another_gateway_ends_the_connection() {
    let world = World::with_hub(Verify::Local, "");
    let mut device = world.connect("d1");
    device.subscribe(&[("devices/d1/messages/devicebound/#", 1)]).unwrap();
    world.hub().inject(Fault::new(Action::Steal).device("d1"));
    device.expect_close().unwrap();
    world.expect_metric("gateway_disconnects_total{cause=\"taken_over\"}", 1);
}

#[test]
fn mqtt_3_1_2_8_the_will_leaves_although_another_gateway_took_the_device_over() {
    for verify in [Verify::Local, Verify::Hub] {
        let world = World::with_hub(verify, "");
        let login = if verify == Verify::Hub { world.hub_login("d1") } else { login("d1") };
        let mut device = connect_with_will(&world, &login, "d1");
        device.subscribe(&[("devices/d1/messages/devicebound/#", 1)]).unwrap();
        world.hub().inject(Fault::new(Action::Steal).device("d1"));
        device.expect_close().unwrap();
        eventually("the Will is stored", || world.stored("d1") == ["will"]);
        world.expect_metric("gateway_disconnects_total{cause=\"taken_over\"}", 1);
        world.expect_metric("gateway_upstream_links", 0);
    }
}

#[test]
fn draining_lets_what_is_in_flight_settle_and_acknowledges_it() {
    let world = World::with_hub(Verify::Local, "limits: {shutdownTimeout: 10s}");
    let mut device = world.connect("d1");
    let id = device.publish(&topic("d1", 0), b"x").unwrap();
    device.expect_puback(id).unwrap();
    world.hub().inject(Fault::new(Action::Delay { ms: 700 }).count(1));
    let id = device.publish(&topic("d1", 1), b"x").unwrap();
    world.expect_metric("gateway_inflight{direction=\"up\"}", 1);
    let World { gateway, hub, .. } = world;
    gateway.stop();
    device.expect_puback(id).unwrap();
    device.expect_close().unwrap();
    let hub = hub.unwrap();
    let query = Query { device: Some("d1"), kind: Some(Kind::Telemetry), ..Query::default() };
    let entries = hub.ledger().entries(&query);
    assert!(entries.iter().all(|entry| entry.outcome == Some(Outcome::Accepted)));
    assert!(hub.domain().connections.list().is_empty(), "AMQP connections are closed in good order");
}

#[test]
fn many_devices_share_few_amqp_connections_and_nothing_is_lost() {
    let world = World::with_hub(Verify::Local, "");
    let mut devices: Vec<_> = (1..=9).map(|n| (format!("d{n}"), world.connect(&format!("d{n}")))).collect();
    let mut batch = Vec::new();
    for round in 0..20_u16 {
        for (device, client) in &mut devices {
            batch.clear();
            for n in 0..8 {
                let id = round * 8 + n + 1;
                packet::publish(&mut batch, &topic(device, id), b"payload", Some(id), false, false);
            }
            client.write(&batch).unwrap();
        }
        for (_, client) in &mut devices {
            for n in 0..8 {
                client.expect_puback(round * 8 + n + 1).unwrap();
            }
        }
    }
    let expected: Vec<_> = (1..=160).map(|id| id.to_string()).collect();
    for (device, _) in &devices {
        assert_eq!(world.stored(device), expected, "{device}");
    }
    // one per core
    assert!(world.hub().domain().connections.list().len() <= 2);
}

#[test]
fn an_unmodified_client_publishes_subscribes_and_is_answered() {
    let world = World::with_hub(Verify::Local, "");
    let login = login("d1");
    let mut options = rumqttc::MqttOptions::new("d1", "127.0.0.1", world.address("plain").port());
    options.set_credentials(login.user_name.unwrap(), login.password.unwrap());
    let (client, mut connection) = rumqttc::Client::new(options, 10);
    client.subscribe("devices/d1/messages/devicebound/#", rumqttc::QoS::AtLeastOnce).unwrap();
    for n in 0..5 {
        client.publish(topic("d1", n), rumqttc::QoS::AtLeastOnce, false, "x").unwrap();
    }
    command(&world, "hello");
    let (mut acknowledged, mut received) = (0, false);
    while acknowledged < 5 || !received {
        match connection.recv_timeout(Duration::from_secs(10)).unwrap().unwrap() {
            rumqttc::Event::Incoming(rumqttc::Packet::PubAck(_)) => acknowledged += 1,
            rumqttc::Event::Incoming(rumqttc::Packet::Publish(publish)) => received = publish.payload == "hello",
            _ => {}
        }
    }
    assert_eq!(world.stored("d1"), ["0", "1", "2", "3", "4"]);
}
