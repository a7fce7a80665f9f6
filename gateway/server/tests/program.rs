//! The program itself: command line, exit codes, signals.

#![expect(clippy::unwrap_used, reason = "what is missing here ends the test, and says where")]

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, ChildStderr, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use device::script::{Device, Login, Transport};
use hub::{
    Hub, HubConfig,
    domain::{Action, Fault, Kind, Query},
};
use rustix::process::{Pid, Signal, kill_process};

const KEY: &str = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=";

struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("gateway-program-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(path.join("secrets/keys")).unwrap();
        fs::create_dir_all(path.join("secrets/policy")).unwrap();
        fs::write(path.join("secrets/keys/keys"), format!("d1 {KEY}\n")).unwrap();
        fs::write(path.join("secrets/policy/key"), KEY).unwrap();
        Self(path)
    }

    fn config(&self, yaml: &str) -> PathBuf {
        let path = self.0.join("gateway.yaml");
        fs::write(&path, yaml).unwrap();
        path
    }

    fn command(&self, yaml: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
        command.arg("--config").arg(self.config(yaml)).arg("--secrets").arg(self.0.join("secrets"));
        command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn yaml(port: u16) -> String {
    format!(
        "listeners: [{{name: plain, protocol: MQTTPlain, port: {port}}}]
authentication: {{sas: {{verify: Local, deviceKeys: {{secretName: keys}}}}}}
upstream: {{iotHub: {{hostName: localhost, port: 1, policy: {{name: device, secretName: policy}}}}}}
admin: {{port: 0}}
limits: {{shutdownTimeout: 1s}}
"
    )
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Starts it and reads its log until it serves; gives the port of `plain`.
fn serving(folder: &Folder) -> (Child, u16) {
    serving_with(folder, &yaml(0))
}

fn serving_with(folder: &Folder, yaml: &str) -> (Child, u16) {
    let mut child = folder.command(yaml).args(["--log-format", "json", "--cores", "2"]).spawn().unwrap();
    let mut port = None;
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while log.read_line(&mut line).unwrap() > 0 {
        let entry: serde_json::Value = serde_json::from_str(&line).unwrap();
        match entry["message"].as_str().unwrap() {
            "listening" => port = entry["address"].as_str().unwrap().rsplit(':').next().unwrap().parse().ok(),
            message if message.contains("gateway serves") => break,
            _ => {}
        }
        line.clear();
    }
    // the rest of the log must not fill the pipe
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    (child, port.expect("it says where it listens"))
}

/// The next line of the log with this message.
fn line_with(log: &mut impl BufRead, message: &str) -> serde_json::Value {
    let mut line = String::new();
    while log.read_line(&mut line).unwrap() > 0 {
        let entry: serde_json::Value = serde_json::from_str(&line).unwrap();
        if entry["message"].as_str().unwrap().contains(message) {
            return entry;
        }
        line.clear();
    }
    panic!("the log ends before: {message}")
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn exit_code(child: &mut Child) -> i32 {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap();
        }
        assert!(Instant::now() < until, "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn check_prints_ok_or_every_error_and_exits_with_2() {
    let folder = Folder::new();
    let good = folder.command(&yaml(0)).arg("--check").output().unwrap();
    assert_eq!((good.status.code(), good.stdout.as_slice()), (Some(0), b"OK\n".as_slice()), "{}", stderr(&good));
    let wrong = yaml(0).replace("protocol: MQTTPlain", "protocol: MQTTPlain, address: 0.0.0.0").replace("1s", "1 week");
    let wrong = folder.command(&wrong).arg("--check").output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    for path in ["listeners[0].address", "limits.shutdownTimeout"] {
        assert!(stderr(&wrong).contains(path), "{path} is not in {}", stderr(&wrong));
    }
    fs::write(folder.0.join("secrets/keys/keys"), "d1 not-base64\n").unwrap();
    let secret = folder.command(&yaml(0)).arg("--check").output().unwrap();
    assert_eq!(secret.status.code(), Some(2));
    assert!(stderr(&secret).contains("keys/keys") && !stderr(&secret).contains("not-base64"), "{}", stderr(&secret));
}

#[test]
fn a_wrong_configuration_or_a_missing_secret_ends_with_2_before_any_port_is_opened() {
    let folder = Folder::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    // with this port the start would fail with 1 if it came to that
    let port = taken.local_addr().unwrap().port();
    let unknown = folder.command(&format!("{}surprise: 1\n", yaml(port))).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2), "{}", stderr(&unknown));
    assert!(stderr(&unknown).contains("surprise"), "{}", stderr(&unknown));
    let elsewhere = folder.command(&yaml(port)).arg("--secrets").arg(folder.0.join("nowhere")).output().unwrap();
    assert_eq!(elsewhere.status.code(), Some(2), "{}", stderr(&elsewhere));
    fs::remove_file(folder.0.join("secrets/policy/key")).unwrap();
    let missing = folder.command(&yaml(port)).output().unwrap();
    assert_eq!(missing.status.code(), Some(2), "{}", stderr(&missing));
    assert!(stderr(&missing).contains("policy/key"), "{}", stderr(&missing));
}

#[test]
fn a_port_that_is_taken_is_named() {
    let folder = Folder::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let output = folder.command(&yaml(port)).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&format!("plain on 127.0.0.1:{port}")), "{}", stderr(&output));
}

#[test]
fn sigterm_lets_a_device_go_when_its_message_is_settled_and_exits_with_0() {
    let (folder, hub) = (Folder::new(), Hub::start(HubConfig::default()).unwrap());
    hub.add_device("d1").unwrap();
    let policy = hub.policy_connection_string("device").unwrap();
    fs::write(folder.0.join("secrets/policy/key"), policy.rsplit_once("SharedAccessKey=").unwrap().1).unwrap();
    fs::create_dir_all(folder.0.join("secrets/hub-ca")).unwrap();
    fs::write(folder.0.join("secrets/hub-ca/ca.crt"), hub.ca_pem()).unwrap();
    let upstream = format!("port: {}, caSecretName: hub-ca,", hub.addresses().amqps.port());
    let yaml = yaml(0).replace("port: 1,", &upstream).replace("1s", "20s, drainAloneAfter: 0s");
    let (mut child, port) = serving_with(&folder, &yaml);
    let login = Login::with_key("localhost", "d1", KEY).unwrap();
    let mut device = Device::connect((Ipv4Addr::LOCALHOST, port).into(), &Transport::Plain, &login).unwrap();
    let _silent = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let topic = |id: &str| format!("devices/d1/messages/events/%24.mid={id}");
    let id = device.publish(&topic("before"), b"x").unwrap();
    device.expect_puback(id).unwrap();
    hub.inject(Fault::new(Action::Delay { ms: 1500 }).count(1));
    let id = device.publish(&topic("in-flight"), b"x").unwrap();
    // it was read, and has no outcome yet
    device.ping().unwrap();
    signal(&child, Signal::TERM);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(child.try_wait().unwrap(), None, "what is in flight settles first");
    device.expect_puback(id).unwrap();
    device.expect_close().unwrap();
    assert_eq!(exit_code(&mut child), 0);
    let entries = hub.ledger().entries(&Query { kind: Some(Kind::Telemetry), ..Query::default() });
    let stored: Vec<_> = entries.iter().map(|entry| entry.message_id.as_deref().unwrap()).collect();
    assert_eq!(stored, ["before", "in-flight"]);
}

#[test]
fn a_listener_without_encryption_says_so_when_it_starts() {
    let folder = Folder::new();
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::create_dir_all(folder.0.join("secrets/serving")).unwrap();
    fs::write(folder.0.join("secrets/serving/tls.crt"), certificate.cert.pem()).unwrap();
    fs::write(folder.0.join("secrets/serving/tls.key"), certificate.signing_key.serialize_pem()).unwrap();
    let both = "listeners: [{name: mqtts, protocol: MQTT, address: 127.0.0.1, port: 0}, ";
    let yaml = yaml(0).replace("listeners: [", both) + "tls: {secretName: serving}\n";
    let mut child = folder.command(&yaml).args(["--log-format", "json", "--cores", "1"]).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let (mut listening, mut warned) = (Vec::new(), Vec::new());
    loop {
        let mut line = String::new();
        assert!(log.read_line(&mut line).unwrap() > 0, "the log ends before it serves");
        let entry: serde_json::Value = serde_json::from_str(&line).unwrap();
        let listener = || entry["listener"].as_str().unwrap().to_owned();
        match (entry["level"].as_str().unwrap(), entry["message"].as_str().unwrap()) {
            ("INFO", "listening") => listening.push(listener()),
            ("WARN", message) if message.contains("no encryption") => warned.push(listener()),
            (_, message) if message.contains("gateway serves") => break,
            _ => {}
        }
    }
    assert_eq!((listening, warned), (vec!["mqtts".to_owned(), "plain".to_owned()], vec!["plain".to_owned()]));
    signal(&child, Signal::INT);
    assert_eq!(exit_code(&mut child), 0);
}

#[test]
fn sigint_lets_all_go_at_once() {
    let folder = Folder::new();
    let (mut child, port) = serving(&folder);
    let _silent = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let told = Instant::now();
    signal(&child, Signal::INT);
    assert_eq!(exit_code(&mut child), 0);
    assert!(told.elapsed() < Duration::from_secs(4));
}

#[test]
fn the_file_is_followed_while_it_runs_and_the_log_says_so() {
    let folder = Folder::new();
    let mut child = folder.command(&yaml(0)).args(["--log-format", "json", "--cores", "1"]).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    line_with(&mut log, "gateway serves");
    folder.config(&yaml(0).replace("shutdownTimeout: 1s", "shutdownTimeout: 2s, inflightMax: 7"));
    let entry = line_with(&mut log, "configuration reloaded");
    let changed = entry["changed"].as_str().unwrap();
    assert!(changed.contains("limits.inflightMax") && changed.contains("limits.shutdownTimeout"), "{entry}");
    folder.config(&yaml(0).replace("{secretName: keys}", "{secretName: nowhere}"));
    let entry = line_with(&mut log, "cannot be used");
    assert_eq!((entry["level"].as_str(), entry["problem"].as_str().unwrap().contains("nowhere")), (Some("WARN"), true));
    folder.config(&yaml(0).replace("hostName: localhost", "hostName: other"));
    let entry = line_with(&mut log, "wait for a restart");
    assert!(entry["fields"].as_str().unwrap().contains("upstream.iotHub.hostName"), "{entry}");
    signal(&child, Signal::TERM);
    assert_eq!(exit_code(&mut child), 0);
}

/// Starts it with this log filter; gives the rest of its log and the port of `plain`.
fn logging_at(folder: &Folder, level: &str) -> (Child, BufReader<ChildStderr>, u16) {
    let mut command = folder.command(&yaml(0));
    let mut child = command.args(["--log-format", "json", "--cores", "1", "--log-level", level]).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let listening = line_with(&mut log, "listening");
    let port = listening["address"].as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap();
    line_with(&mut log, "gateway serves");
    (child, log, port)
}

/// Sends these bytes first and waits until the gateway has closed.
fn refused(port: u16, first: &[u8]) {
    let mut device = Device::open((Ipv4Addr::LOCALHOST, port).into(), &Transport::Plain).unwrap();
    device.write(first).unwrap();
    device.expect_close().unwrap();
}

/// The CONNECT of `login` is answered with another code than 0.
fn refused_login(port: u16, login: &Login) {
    let mut device = Device::open((Ipv4Addr::LOCALHOST, port).into(), &Transport::Plain).unwrap();
    assert_ne!(device.login(login).unwrap(), 0);
    device.expect_close().unwrap();
}

#[test]
fn at_debug_each_connect_refusal_and_disconnect_is_a_line_that_says_why_and_never_a_token_or_key() {
    const OTHER_KEY: &str = "b3RoZXJvdGhlcm90aGVyb3RoZXJvdGhlcm90aGVyb3Q=";
    let folder = Folder::new();
    let (mut child, mut log, port) = logging_at(&folder, "gateway=debug");
    let good = Login::with_key("localhost", "d1", KEY).unwrap();
    let with_password = |password: Option<String>| Login { password, ..good.clone() };
    let expired = device::sas::token("localhost/devices/d1", KEY, None, 1_700_000_000).unwrap();
    let elsewhere = device::sas::token("localhost/devices/d2", KEY, None, 4_000_000_000).unwrap();
    let logins = [
        ("token_signature", Login::with_key("localhost", "d1", OTHER_KEY).unwrap()),
        ("token_expired", with_password(Some(expired))),
        ("token_scope", with_password(Some(elsewhere))),
        ("token_form", with_password(Some("SharedAccessSignature sr=x&sig=secret-sig".to_owned()))),
        ("unknown_device", Login::with_key("localhost", "d2", KEY).unwrap()),
        ("hub_host", Login::with_key("elsewhere", "d1", KEY).unwrap()),
        ("user_name", Login { user_name: Some("nonsense".to_owned()), ..good.clone() }),
    ];
    let below = [("protocol_violation", b"\xC0\x00".as_slice()), ("tls_on_plain_port", b"\x16\x03\x01\x00\x05")];
    for (_, login) in &logins {
        refused_login(port, login);
    }
    for (_, bytes) in &below {
        refused(port, bytes);
    }
    let device = Device::connect((Ipv4Addr::LOCALHOST, port).into(), &Transport::Plain, &good).unwrap();
    device.disconnect().unwrap();
    signal(&child, Signal::INT);
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    assert_eq!(exit_code(&mut child), 0);
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let with = |message: &str, field: &str| -> Vec<&str> {
        let lines = lines.iter().filter(|line| line["message"] == message && line["level"] == "DEBUG");
        lines.map(|line| line[field].as_str().unwrap()).collect()
    };
    let reasons: Vec<&str> = logins.iter().map(|(reason, _)| *reason).chain(below.map(|(reason, _)| reason)).collect();
    assert_eq!(with("connection refused", "reason"), reasons, "{text}");
    assert_eq!(with("device connected", "device"), ["d1"]);
    assert_eq!(with("device disconnected", "cause"), ["disconnect"]);
    let passwords = logins.iter().map(|(_, login)| login).chain([&good]).filter_map(|login| login.password.as_deref());
    let signatures = passwords.flat_map(|password| password.split('&')).filter_map(|field| field.strip_prefix("sig="));
    let signatures: Vec<&str> = signatures.collect();
    assert_eq!(signatures.len(), 8);
    for secret in signatures.into_iter().chain(["SharedAccessSignature", KEY, OTHER_KEY]) {
        assert!(!text.contains(secret), "{secret} is in the log");
    }
}

#[test]
fn at_info_a_storm_of_refusals_is_one_line_in_ten_seconds() {
    let folder = Folder::new();
    let (mut child, mut log, port) = logging_at(&folder, "info");
    let unknown = Login::with_key("localhost", "d2", KEY).unwrap();
    for _ in 0..50 {
        refused_login(port, &unknown);
    }
    let mut told = 0;
    while told < 50 {
        let mut line = String::new();
        assert!(log.read_line(&mut line).unwrap() > 0, "the log ends and told of {told}");
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        match line["message"].as_str().unwrap() {
            "last ten seconds" => told += line["refused"].as_u64().unwrap(),
            // beside the summary
            "refused since the start, by reason" => {}
            other => panic!("a line of its own: {other}"),
        }
    }
    let reasons = line_with(&mut log, "refused since the start")["reasons"].to_string();
    assert!(reasons.contains("unknown_device") && reasons.contains("50"), "{reasons}");
    signal(&child, Signal::INT);
    assert_eq!(exit_code(&mut child), 0);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let folder = Folder::new();
    let (mut child, port) = serving_with(&folder, &yaml(0).replace("shutdownTimeout: 1s", "shutdownTimeout: 5m"));
    let login = Login::with_key("localhost", "d1", KEY).unwrap();
    let mut device = Device::connect((Ipv4Addr::LOCALHOST, port).into(), &Transport::Plain, &login).unwrap();
    // the hub is away: this message keeps the gateway from ending
    device.publish("devices/d1/messages/events/", b"in flight").unwrap();
    device.ping().unwrap();
    signal(&child, Signal::TERM);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(child.try_wait().unwrap(), None, "one signal lets what is in flight settle");
    signal(&child, Signal::TERM);
    assert_eq!(exit_code(&mut child), 130);
}

#[test]
fn help_shows_examples_and_version_the_version() {
    let run = |argument: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_gateway")).arg(argument).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(run("--help").contains("gateway --config gateway.yaml --check"));
    assert_eq!(run("--version"), format!("gateway {}\n", env!("CARGO_PKG_VERSION")));
}
