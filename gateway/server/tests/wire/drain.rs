//! Letting devices go in pace, on real sockets: nobody is lost, and nobody goes faster than ordered.

use std::{
    collections::HashSet,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use device::{
    packet::Received,
    script::{Device, Login, Transport},
};
use hub::domain::{Action, Fault, Identity};
use serde_json::{Value, json};

use crate::{
    bridge::command,
    support::{Certificates, Verify, World, eventually, login},
};

/// What a device saw.
struct Seen {
    device: String,
    /// Ids of messages that were acknowledged.
    acknowledged: Vec<String>,
    closed_at: Instant,
}

fn ask(admin: SocketAddr, method: &str, target: &str, body: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(admin).unwrap();
    let length = body.len();
    let head =
        format!("{method} {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    socket.write_all(format!("{head}{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

pub(crate) fn order(epoch: i64, per_second: f64) -> Value {
    json!({"cause": "ScaleIn", "epoch": epoch, "perSecond": per_second, "leaseSeconds": 30, "downTo": 0, "leave": true})
}

fn with(mut order: Value, field: &str, value: Value) -> Value {
    order[field] = value;
    order
}

/// Gives the drain as the answer tells it.
pub(crate) fn drain(admin: SocketAddr, order: &Value) -> Value {
    let (status, body) = ask(admin, "POST", "/drain", &order.to_string());
    assert_eq!(status, 200, "{body}");
    serde_json::from_str::<Value>(&body).unwrap()["drain"].take()
}

fn readiness(admin: SocketAddr) -> u16 {
    ask(admin, "GET", "/readyz", "").0
}

fn topic(device: &str, id: &str) -> String {
    format!("devices/{device}/messages/events/%24.mid={id}")
}

/// Sends one message after another, `pause` between them, until the gateway closes; without a pause it sends one and is silent.
fn send_until_closed(mut device: Device, name: String, pause: Option<Duration>, tell: &mpsc::Sender<Seen>) {
    let mut acknowledged = Vec::new();
    for number in 0.. {
        let id = format!("{name}-{number}");
        let Ok(packet_id) = device.publish(&topic(&name, &id), b"x") else { break };
        if device.expect_puback(packet_id).is_err() {
            break;
        }
        acknowledged.push(id);
        let Some(pause) = pause else {
            // each try is patient for ten seconds
            assert!((0..3).any(|_| device.expect_close().is_ok()), "{name} is not let go");
            break;
        };
        thread::sleep(pause);
    }
    tell.send(Seen { device: name, acknowledged, closed_at: Instant::now() }).unwrap();
}

/// `count` devices `f1`, `f2`, …; every second one goes on sending.
fn fleet(world: &World, count: usize) -> mpsc::Receiver<Seen> {
    let (tell, seen) = mpsc::channel();
    for number in 1..=count {
        let name = format!("f{number}");
        world.hub().add_device(&name).unwrap();
        let (device, tell) = (world.connect(&name), tell.clone());
        let pause = (number % 2 == 0).then(|| Duration::from_millis(50));
        thread::Builder::new()
            .stack_size(256 * 1024)
            .spawn(move || send_until_closed(device, name, pause, &tell))
            .unwrap();
    }
    seen
}

/// Nobody goes before the pace allows it. What a device sees may be late, never early, so a busy machine changes nothing here;
/// that no second sees more than the rate is shown with a clock of its own in `gateway_core::drain`.
fn is_in_pace(moments: &[Instant], begun: Instant, per_second: f64) -> bool {
    let allowed = |at: &Instant| at.duration_since(begun).as_secs_f64() * per_second + 1.0;
    moments.is_sorted() && moments.iter().zip(1..).all(|(at, gone)| f64::from(gone) <= allowed(at))
}

#[test]
fn two_hundred_devices_are_let_go_at_the_rate_idle_ones_first_and_nothing_acknowledged_is_lost() {
    let world = World::with_hub(Verify::Local, "");
    let seen = fleet(&world, 200);
    world.expect_metric("gateway_connections", 200);
    eventually("everybody has sent", || (1..=200).all(|number| !world.stored(&format!("f{number}")).is_empty()));
    let begun = Instant::now();
    let told = drain(world.gateway.admin, &order(1, 50.0));
    assert_eq!(
        (&told["cause"], &told["state"], told["downTo"].as_u64()),
        (&json!("ScaleIn"), &json!("Draining"), Some(0))
    );
    assert_eq!(readiness(world.gateway.admin), 503);
    let gone: Vec<Seen> = seen.iter().take(200).collect();
    let mut moments: Vec<_> = gone.iter().map(|seen| seen.closed_at).collect();
    moments.sort();
    assert!(is_in_pace(&moments, begun, 50.0), "{:?}", moments.iter().map(|at| *at - begun).collect::<Vec<_>>());
    let is_idle = |seen: &&Seen| seen.acknowledged.len() == 1;
    let idle_first = gone[..100].iter().filter(is_idle).count();
    // each core knows only of its own who is silent for how long: 50 of a hundred by chance
    assert!(idle_first >= 75, "{idle_first} of the first hundred were idle");
    for Seen { device, acknowledged, .. } in &gone {
        let stored: HashSet<_> = world.stored(device).into_iter().collect();
        assert!(acknowledged.iter().all(|id| stored.contains(id)), "{device}: acknowledged and not stored");
    }
    world.expect_metric("gateway_connections", 0);
    world.expect_metric("gateway_let_go_total{cause=\"scale_in\"}", 200);
    world.expect_metric("gateway_drain{state=\"done\"}", 1);
    world.expect_metric("gateway_draining", 1);
}

#[test]
fn a_command_that_a_persistent_session_has_not_acknowledged_stays_at_the_hub_while_it_is_let_go_and_comes_again() {
    let world = World::with_hub(Verify::Local, "");
    let login = Login { clean_session: false, ..login("d1") };
    let connect = || {
        let mut device = Device::connect(world.address("plain"), &Transport::Plain, &login).unwrap();
        assert_eq!(device.subscribe(&[("devices/d1/messages/devicebound/#", 1)]).unwrap(), [1]);
        device
    };
    let depth = || world.hub().domain().c2d.depth(&Identity::device("d1"));
    let mut device = connect();
    command(&world, "hello");
    assert_eq!(device.expect_message().unwrap().payload, b"hello");
    drain(world.gateway.admin, &order(1, 100.0));
    device.expect_close().unwrap();
    world.expect_metric("gateway_let_go_total{cause=\"scale_in\"}", 1);
    world.expect_metric("gateway_upstream_links", 0);
    assert_eq!(depth(), 1);
    assert_eq!(ask(world.gateway.admin, "POST", "/undrain", r#"{"epoch": 1}"#).0, 200);
    let mut device = connect();
    let again = device.expect_message().unwrap();
    assert_eq!(again.payload, b"hello");
    device.acknowledge(again.packet_id.unwrap()).unwrap();
    eventually("the command is complete", || depth() == 0);
}

#[test]
fn what_is_in_flight_settles_before_the_device_goes() {
    let world = World::with_hub(Verify::Local, "");
    let mut device = world.connect("d1");
    let id = device.publish(&topic("d1", "first"), b"x").unwrap();
    device.expect_puback(id).unwrap();
    world.hub().inject(Fault::new(Action::Delay { ms: 1500 }).count(1));
    let id = device.publish(&topic("d1", "second"), b"x").unwrap();
    world.expect_metric("gateway_inflight{direction=\"up\"}", 1);
    drain(world.gateway.admin, &order(1, 100.0));
    device.expect_silence(Duration::from_millis(500)).unwrap();
    assert_eq!(device.expect("PUBACK").unwrap(), Received::PubAck(id));
    device.expect_close().unwrap();
    assert_eq!(world.stored("d1"), ["first", "second"]);
}

#[test]
fn idle_devices_go_and_those_with_messages_in_flight_stay_where_some_may_stay() {
    // whichever core has them
    let world = World::with_hub(Verify::Local, "limits: {drainTimeout: 1s, shutdownTimeout: 1s}");
    let (mut busy, mut idle): (Vec<_>, Vec<_>) =
        (1..=8).map(|number| world.connect(&format!("d{number}"))).enumerate().partition(|(index, _)| *index < 4);
    // not settled before the hub is told to
    world.hub().inject(Fault::new(Action::Delay { ms: 600_000 }));
    for (index, device) in &mut busy {
        device.publish(&topic(&format!("d{}", *index + 1), "first"), b"x").unwrap();
    }
    world.expect_metric("gateway_inflight{direction=\"up\"}", 4);
    drain(world.gateway.admin, &with(order(1, 100.0), "downTo", json!(4)));
    for (_, device) in &mut idle {
        device.expect_close().unwrap();
    }
    world.expect_metric("gateway_drain{state=\"done\"}", 1);
    world.expect_metric("gateway_connections", 4);
    for (_, device) in &mut busy {
        device.ping().unwrap();
    }
}

#[test]
fn nobody_goes_below_what_is_to_stay_and_who_comes_above_it_goes() {
    let world = World::without_hub("");
    let devices: Vec<_> = (1..=50).map(|number| world.connect(&format!("f{number}"))).collect();
    let rebalance =
        with(with(with(order(1, 100.0), "cause", json!("Rebalance")), "leave", json!(false)), "downTo", json!(30));
    drain(world.gateway.admin, &rebalance);
    world.expect_metric("gateway_connections", 30);
    world.expect_metric("gateway_drain{state=\"done\"}", 1);
    assert_eq!(readiness(world.gateway.admin), 200);
    thread::sleep(Duration::from_millis(300));
    let late: Vec<_> = (51..=53).map(|number| world.connect(&format!("f{number}"))).collect();
    world.expect_metric("gateway_let_go_total{cause=\"rebalance\"}", 23);
    world.expect_metric("gateway_connections", 30);
    let told = drain(world.gateway.admin, &rebalance);
    assert_eq!(
        (told["remaining"].as_u64(), told["letGo"].as_u64(), &told["state"]),
        (Some(0), Some(23), &json!("Done"))
    );
    drop((devices, late));
}

#[test]
fn an_order_that_nobody_renews_pauses_and_goes_on_when_it_is_renewed() {
    let world = World::without_hub("");
    let _devices: Vec<_> = (1..=60).map(|number| world.connect(&format!("f{number}"))).collect();
    let short = with(order(1, 20.0), "leaseSeconds", json!(1));
    drain(world.gateway.admin, &short);
    world.expect_metric("gateway_drain{state=\"paused\"}", 1);
    let left = world.gateway.registry().connections();
    assert!((38..=50).contains(&left), "{left} left");
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(world.gateway.registry().connections(), left);
    assert_eq!(readiness(world.gateway.admin), 503);
    drain(world.gateway.admin, &short);
    eventually("more go", || world.gateway.registry().connections() < left);
}

#[test]
fn undrain_makes_it_ready_and_lets_nobody_go_any_more() {
    let world = World::without_hub("");
    let _devices: Vec<_> = (1..=60).map(|number| world.connect(&format!("f{number}"))).collect();
    let admin = world.gateway.admin;
    drain(admin, &order(7, 20.0));
    eventually("some have gone", || world.gateway.registry().connections() < 55);
    let (status, body) = ask(admin, "POST", "/undrain", r#"{"epoch": 7}"#);
    assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()["drain"].take()), (200, Value::Null));
    assert_eq!(readiness(admin), 200);
    thread::sleep(Duration::from_millis(100));
    let left = world.gateway.registry().connections();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(world.gateway.registry().connections(), left);
    let late = world.connect("f61");
    late.disconnect().unwrap();
}

#[test]
fn orders_of_earlier_leaders_and_nonsense_are_refused_with_the_reason() {
    let world = World::without_hub("");
    let mut device = world.connect("d1");
    let admin = world.gateway.admin;
    let check = |body: &str, expected: u16, reason: &str| {
        let (status, text) = ask(admin, "POST", "/drain", body);
        assert_eq!(status, expected, "{body}: {text}");
        assert!(text.contains(reason), "{text}");
    };
    let nonsense = |field: &str, value: Value, reason: &str| {
        check(&with(order(9, 1.0), field, value).to_string(), 400, reason);
    };
    nonsense("perSecond", json!(-1), "perSecond -1");
    nonsense("leaseSeconds", json!(0), "leaseSeconds 0");
    nonsense("epoch", json!(-9), "epoch -9");
    nonsense("cause", json!("Termination"), "the gateway's own");
    nonsense("cause", json!("Boredom"), "Boredom");
    nonsense("downTo", json!(-1), "-1");
    nonsense("surprise", json!(1), "surprise");
    check("{", 400, "EOF");
    check("", 400, "EOF");
    assert_eq!(readiness(admin), 200);
    drain(admin, &order(5, 0.0));
    check(&order(4, 0.0).to_string(), 409, "5");
    assert_eq!(ask(admin, "POST", "/undrain", r#"{"epoch": 4}"#).0, 409);
    assert_eq!(ask(admin, "GET", "/drain", "").0, 405);
    device.ping().unwrap();
    world.expect_metric("gateway_drain_orders_total{result=\"epoch\"}", 2);
    world.expect_metric("gateway_drain_orders_total{result=\"nonsense\"}", 9);
}

#[test]
fn a_gateway_that_was_told_to_stop_serves_on_takes_orders_and_ends_when_it_is_empty() {
    let world = World::without_hub("limits: {drainPerSecond: 1, drainTimeout: 10m, shutdownTimeout: 1s}");
    let mut devices: Vec<_> = (1..=40).map(|number| world.connect(&format!("f{number}"))).collect();
    let (admin, plain) = (world.gateway.admin, world.address("plain"));
    let World { gateway, folder, .. } = world;
    let begun = Instant::now();
    let finished = thread::spawn(move || gateway.finish());
    eventually("it is not ready", || readiness(admin) == 503);
    devices.push(Device::connect(plain, &Transport::Plain, &login("f41")).unwrap());
    for device in &mut devices {
        device.ping().unwrap();
    }
    let told = drain(admin, &with(order(1, 20.0), "cause", json!("Upgrade")));
    assert_eq!((&told["state"], told["remaining"].as_u64()), (&json!("Draining"), Some(41)));
    let mut closed = Vec::new();
    for mut device in devices {
        device.expect_close().unwrap();
        closed.push(Instant::now());
    }
    let emptied = begun.elapsed();
    finished.join().unwrap();
    assert!(emptied >= Duration::from_secs(2), "emptied after {emptied:?}");
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(5), "took {took:?}");
    assert!(TcpStream::connect(plain).is_err());
    drop(folder);
}

#[test]
fn without_an_order_it_drains_by_itself_and_lets_the_rest_go_by_the_deadline() {
    let world = World::without_hub("limits: {drainPerSecond: 1, drainTimeout: 8s, shutdownTimeout: 1s}");
    let mut devices: Vec<_> = (1..=60).map(|number| world.connect(&format!("f{number}"))).collect();
    let (begun, gateway) = (Instant::now(), world.gateway);
    let finished = thread::spawn(move || gateway.finish());
    thread::sleep(Duration::from_secs(4));
    for device in &mut devices {
        device.ping().unwrap();
    }
    let (tell, seen) = mpsc::channel();
    for mut device in devices {
        let tell = tell.clone();
        thread::spawn(move || {
            device.expect_close().unwrap();
            tell.send(Instant::now()).unwrap();
        });
    }
    let mut moments: Vec<_> = seen.iter().take(60).collect();
    moments.sort();
    // nobody while somebody may still order how, then sixty devices in the three seconds that are left
    assert!(moments.iter().all(|at| *at >= begun + Duration::from_secs(5)));
    assert!(is_in_pace(&moments, begun + Duration::from_secs(5), 30.0), "{moments:?} since {begun:?}");
    finished.join().unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(7500), "over after {:?}", begun.elapsed());
}

#[test]
fn devices_whose_authority_is_no_longer_trusted_go_in_pace_and_nobody_else() {
    let world = World::without_hub("limits: {drainPerSecond: 3, drainAloneAfter: 1s}");
    let by_key: Vec<_> = (1..=5).map(|number| world.connect(&format!("f{number}"))).collect();
    let mut by_certificate = Vec::new();
    for number in 1..=9 {
        let name = format!("d{number}");
        let (chain, key) = world.certificates.issue(&name);
        let transport = world.tls_as(false, Some((&chain, &key)));
        let login = Login { password: None, ..login(&name) };
        by_certificate.push(Device::connect(world.address("mqtts"), &transport, &login).unwrap());
    }
    world.expect_metric("gateway_connections", 14);
    let begun = Instant::now();
    world.folder.write("ca/ca.crt", &Certificates::new().ca_pem);
    let (tell, seen) = mpsc::channel();
    for mut device in by_certificate {
        let tell = tell.clone();
        thread::spawn(move || {
            device.expect_close().unwrap();
            tell.send(Instant::now()).unwrap();
        });
    }
    let mut moments: Vec<_> = seen.iter().take(9).collect();
    moments.sort();
    assert!(is_in_pace(&moments, begun, 3.0), "{moments:?} since {begun:?}");
    assert_eq!(readiness(world.gateway.admin), 200);
    world.expect_metric("gateway_let_go_total{cause=\"certificate_authority\"}", 9);
    world.expect_metric("gateway_distrusted_connections", 0);
    world.expect_metric("gateway_connections", 5);
    drop(by_key);
}
