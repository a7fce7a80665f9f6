//! The goal of W8 in figures that cannot lie: a message on its way through a warm gateway allocates nothing. Every allocation
//! of this process is counted, and the gateway is in it; the sink is a process of its own, and the device writes bytes that
//! were made before and reads into a buffer that it has.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    alloc::System,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use device::script::Login;
use gateway::{
    config_file::{ConfigFile, Configuration},
    server::{Gateway, Options},
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// 32 bytes of `k`.
const KEY: &str = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=";
/// Messages of one device that are not acknowledged yet, at most.
const WINDOW: usize = 8;
const PUBACK_BYTES: usize = 4;

struct Sink(Child);

impl Drop for Sink {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _status = self.0.wait();
    }
}

/// A directory that goes with its owner.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _left_behind = fs::remove_dir_all(&self.0);
    }
}

impl Folder {
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        fs::write(&path, text).unwrap();
        path
    }
}

#[test]
fn a_warm_gateway_allocates_nothing_for_a_message() {
    let folder = Folder(std::env::temp_dir().join(format!("gateway-allocations-{}", std::process::id())));
    let (_sink, upstream) = start_sink();
    let region = Region::new(ALLOCATOR);
    let gateway = start_gateway(&folder, upstream);
    let mut socket = connect(gateway.address("bench").unwrap());
    assert!(region.change().allocations > 100, "the gateway's threads are counted");
    let packets = packets();
    exchange(&mut socket, &packets, 2_000);
    let (turns, region) = (5_000, Region::new(ALLOCATOR));
    exchange(&mut socket, &packets, turns);
    let change = region.change();
    let messages = turns * WINDOW;
    let allocations = change.allocations + change.reallocations;
    println!("{messages} messages: {} allocations, {} grown", change.allocations, change.reallocations);
    // timers, the summary, the house keeping: once in a while, and not for a message
    assert!(allocations * 1000 < messages, "{messages} messages: {change:?}");
    gateway.stop();
}

fn start_sink() -> (Sink, SocketAddr) {
    let [listen, control] = [free_address(), free_address()];
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    command.args(["sink", "--listen", &listen.to_string(), "--control", &control.to_string()]);
    let sink = Sink(command.spawn().unwrap());
    let begun = Instant::now();
    while TcpStream::connect(control).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the sink does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    (sink, listen)
}

/// On one core; it looks at its files once an hour.
fn start_gateway(folder: &Folder, upstream: SocketAddr) -> Gateway {
    folder.write("secrets/keys/keys", &format!("d1 {KEY}\n"));
    let config = folder.write(
        "gateway.yaml",
        &format!(
            "listeners:\n- {{name: bench, protocol: MQTTPlain, port: 0}}\n\
             authentication: {{sas: {{verify: Local, deviceKeys: {{secretName: keys}}}}}}\n\
             upstream: {{amqp: {{url: \"amqp://{upstream}\", telemetryAddress: \"telemetry/{{deviceId}}\", commandAddress: \"command/{{deviceId}}\"}}}}\n\
             admin: {{port: 0}}\n"
        ),
    );
    let mut file = ConfigFile::new(config);
    let Configuration { settings, hash } = file.read().unwrap();
    let (secrets, look_every) = (folder.0.join("secrets"), Duration::from_hours(1));
    Gateway::start(settings, &Options { config: Some((file, hash)), cores: 1, secrets, look_every }).unwrap()
}

/// Connected and let in.
fn connect(address: SocketAddr) -> TcpStream {
    let Login { client_id, user_name, password, .. } = Login::with_key("localhost", "d1", KEY).unwrap();
    let mut body = b"\x00\x04MQTT\x04\xC2\x00\x3C".to_vec();
    for text in [client_id, user_name.unwrap(), password.unwrap()] {
        body.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
        body.extend(text.as_bytes());
    }
    let mut packet = packet(0x10, &body);
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    socket.write_all(&packet).unwrap();
    packet.resize(4, 0);
    socket.read_exact(&mut packet).unwrap();
    assert_eq!(packet, [0x20, 2, 0, 0], "CONNACK");
    socket
}

/// [`WINDOW`] PUBLISH packets of 128 bytes with properties, at QoS 1.
fn packets() -> Vec<u8> {
    let topic = "devices/d1/messages/events/%24.mid=1&%24.ct=application%2Fjson&%24.ce=utf-8&level=high&room=12";
    (1..=u16::try_from(WINDOW).unwrap())
        .flat_map(|id| {
            let mut body = u16::try_from(topic.len()).unwrap().to_be_bytes().to_vec();
            body.extend(topic.as_bytes());
            body.extend(id.to_be_bytes());
            body.extend([b'x'; 128]);
            packet(0x32, &body)
        })
        .collect()
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let length = u8::try_from(body.len() % 128).unwrap();
    let mut packet = match body.len() / 128 {
        0 => vec![first, length],
        more => vec![first, length | 0x80, u8::try_from(more).unwrap()],
    };
    packet.extend(body);
    packet
}

/// A window at once and its PUBACKs, so many times.
fn exchange(socket: &mut TcpStream, packets: &[u8], turns: usize) {
    let mut acknowledged = [0; WINDOW * PUBACK_BYTES];
    for _ in 0..turns {
        socket.write_all(packets).unwrap();
        socket.read_exact(&mut acknowledged).unwrap();
        assert!(acknowledged.chunks(PUBACK_BYTES).all(|puback| puback[..2] == [0x40, 2]));
    }
}

/// A loopback address with a port that was free a moment ago.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
