//! From a device's AMQP client to what a test or a person reads: listeners, transports, log, ledger and the program.

mod client;

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use client::{ByteStream, open, tls, websocket};
use fe2o3_amqp_types::primitives::SimpleValue;
use hub::domain::{Identity, Kind, Outcome, Query, SharedKey, sign};
use hub::{Hub, HubConfig};
use tokio::net::TcpStream;

/// A token of dev1 made from its connection string.
fn token(connection_string: &str) -> String {
    let key = connection_string.rsplit_once("SharedAccessKey=").map(|(_, key)| key).expect("a key");
    sign("localhost/devices/dev1", &SharedKey::parse(key).expect("base64"), None, 4_000_000_000)
}

async fn telemetry_arrives<S: ByteStream>(hub: &Hub, connection_string: &str, stream: S) {
    let mut client = open(stream).await;
    assert_eq!(client.put_token(token(connection_string)).await, SimpleValue::Int(200));
    client.send_telemetry(&["m-1", "m-2", "m-3"]).await;
    client.close().await;

    let device = Identity::device("dev1");
    let partition = hub.domain().telemetry.partition_of(&device);
    let stored = hub.domain().telemetry.read(partition, 0, 10);
    let bodies: Vec<_> = stored.iter().map(|stored| stored.event.body.clone()).collect();
    assert_eq!(bodies, ["body of m-1", "body of m-2", "body of m-3"]);
    let entries = hub.ledger().entries(&Query { kind: Some(Kind::Telemetry), ..Query::default() });
    assert!(entries.iter().all(|entry| entry.outcome == Some(Outcome::Accepted) && entry.written), "{entries:?}");
    let counts = hub.ledger().counts(&device);
    assert_eq!((counts.accepted_written, counts.duplicates(), counts.missing(), counts.out_of_order()), (3, 0, 0, 0));
}

#[tokio::test]
async fn telemetry_over_tls_is_stored_accepted_and_in_the_ledger() {
    let hub = Hub::start(HubConfig::default()).expect("ports are free");
    let connection_string = hub.add_device("dev1").expect("new");
    let stream = tls(hub.addresses().amqps, hub.ca_pem()).await;
    telemetry_arrives(&hub, &connection_string, stream).await;
}

#[tokio::test]
async fn telemetry_over_websocket_is_stored_accepted_and_in_the_ledger() {
    let hub = Hub::start(HubConfig::default()).expect("ports are free");
    let connection_string = hub.add_device("dev1").expect("new");
    let stream = websocket(hub.addresses().https, hub.ca_pem()).await;
    telemetry_arrives(&hub, &connection_string, stream).await;
}

#[tokio::test]
async fn telemetry_without_tls_is_stored_accepted_and_in_the_ledger() {
    let hub = Hub::start(HubConfig { amqp_port: Some(0), ..HubConfig::default() }).expect("ports are free");
    let connection_string = hub.add_device("dev1").expect("new");
    let stream = TcpStream::connect(hub.addresses().amqp.expect("asked for")).await.expect("the hub listens");
    telemetry_arrives(&hub, &connection_string, stream).await;
}

#[tokio::test]
async fn a_token_signed_with_another_key_is_answered_401() {
    let hub = Hub::start(HubConfig::default()).expect("ports are free");
    hub.add_device("dev1").expect("new");
    let mut client = open(tls(hub.addresses().amqps, hub.ca_pem()).await).await;
    let forged = sign("localhost/devices/dev1", &SharedKey::generate(), None, 4_000_000_000);
    assert_eq!(client.put_token(forged).await, SimpleValue::Int(401));
}

/// Ends the program if the test does not.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn the_program_says_how_to_connect_prints_what_it_receives_and_ends_when_told() {
    let directory = std::env::temp_dir().join(format!("hub-program-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let (description, ca) = (directory.join("hub.json"), directory.join("ca.pem"));
    let program = Command::new(env!("CARGO_BIN_EXE_hub"))
        .args(["--amqps-port", "0", "--https-port", "0", "--devices", "2", "--device-prefix", "dev"])
        .arg("--describe")
        .arg(&description)
        .arg("--ca-out")
        .arg(&ca)
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut program = Program(program);
    let described = async {
        while !description.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), described).await.expect("describes itself");
    let json = std::fs::read_to_string(&description).expect("readable");
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["devices"].as_object().map(serde_json::Map::len), Some(2));
    let address = json["amqps"].as_str().and_then(|address| address.parse().ok()).expect("an address");
    let ca_pem = std::fs::read_to_string(json["caFile"].as_str().expect("a path")).expect("readable");

    let mut client = open(tls(address, &ca_pem).await).await;
    let connection_string = json["devices"]["dev1"].as_str().expect("a connection string");
    assert_eq!(client.put_token(token(connection_string)).await, SimpleValue::Int(200));
    client.send_telemetry(&["m-1"]).await;
    client.close().await;

    let mut output = BufReader::new(program.0.stdout.take().expect("piped"));
    let reading = tokio::task::spawn_blocking(move || {
        let printed =
            output.by_ref().lines().map(|line| line.expect("text")).find(|line| line.starts_with("Telemetry"));
        (printed, output)
    });
    let (printed, _output) =
        tokio::time::timeout(Duration::from_secs(20), reading).await.expect("prints").expect("joined");
    assert_eq!(printed.as_deref(), Some("Telemetry dev1 m-1 11 bytes body of m-1"));
    assert!(Command::new("kill").arg(program.0.id().to_string()).status().expect("runs").success());
    assert!(program.0.wait().expect("waited").success());
    std::fs::remove_dir_all(directory).expect("removable");
}
