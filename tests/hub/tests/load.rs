//! What a fleet costs the hub: 20 000 devices with all their links on 20 connections, 10 000 messages a second.
//!
//! Run it alone and in release: `cargo test --release --package hub --test load -- --ignored --nocapture`. The peer throws
//! away what comes back, so that the figures are the hub's.

use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use fe2o3_amqp_types::definitions::{Fields, ReceiverSettleMode, Role, SenderSettleMode};
use fe2o3_amqp_types::messaging::{Properties, Source, Target};
use fe2o3_amqp_types::performatives::{Attach, Begin, Open, Transfer};
use fe2o3_amqp_types::sasl::SaslInit;
use hub::domain::{Identity, Keep, Settings, TelemetrySettings, sign};
use hub::{Hub, HubConfig};
use serde::Serialize;
use serde_amqp::Value;
use serde_amqp::primitives::Symbol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;

const CONNECTIONS: u32 = 20;
const DEVICES_PER_CONNECTION: u32 = 1000;
const DEVICES: u32 = CONNECTIONS * DEVICES_PER_CONNECTION;
const LINKS_PER_DEVICE: u32 = 6;
const MESSAGES_PER_SECOND: u64 = 10_000;
const SECONDS: u64 = 10;
/// One core and no more.
const CPU_PER_MESSAGE_MAX: Duration = Duration::from_micros(1_000_000 / MESSAGES_PER_SECOND);
/// Growth of a process that keeps no messages: allocators and logs, not 50 000 messages of 128 bytes.
const GROWTH_BYTES_MAX: u64 = 4 << 20;

fn put<T: Serialize>(out: &mut BytesMut, kind: u8, performative: &T, payload: &[u8]) {
    let encoded = serde_amqp::to_vec(performative).expect("encodable");
    out.put_u32((8 + encoded.len() + payload.len()) as u32);
    out.put_slice(&[2, kind, 0, 0]);
    out.put_slice(&encoded);
    out.put_slice(payload);
}

fn attach(handle: u32, is_sender: bool, address: &str) -> Attach {
    let mut properties = Fields::new();
    for (name, value) in [("api-version", "2020-09-30"), ("channel-correlation-id", "pair")] {
        properties.insert(Symbol::from(format!("com.microsoft:{name}")), Value::String(value.to_owned()));
    }
    Attach {
        name: format!("link-{handle}"),
        handle: handle.into(),
        role: if is_sender { Role::Sender } else { Role::Receiver },
        snd_settle_mode: SenderSettleMode::Mixed,
        rcv_settle_mode: ReceiverSettleMode::First,
        source: Some(Box::new(if is_sender { Source::default() } else { Source::from(address) })),
        target: Some(Box::new(if is_sender { Target::from(address) } else { Target::default() }.into())),
        unsettled: None,
        incomplete_unsettled: false,
        initial_delivery_count: is_sender.then_some(0),
        max_message_size: None,
        offered_capabilities: None,
        desired_capabilities: None,
        properties: Some(properties),
    }
}

/// Headers, SASL, OPEN and BEGIN, as fast as they can be written.
fn opening(hub: &Hub) -> BytesMut {
    let policy = hub.domain().policies.get("iothubowner").expect("policy is there");
    let token = sign("localhost", &policy.primary, Some("iothubowner"), 4_000_000_000);
    let response = format!("\0iothubowner@sas.root.localhost\0{token}").into_bytes();
    let mut out = BytesMut::from(&b"AMQP\x03\x01\x00\x00"[..]);
    let mechanism = Symbol::from("PLAIN");
    put(&mut out, 1, &SaslInit { mechanism, initial_response: Some(response.into()), hostname: None }, &[]);
    out.put_slice(b"AMQP\x00\x01\x00\x00");
    let open = Open {
        container_id: "load".into(),
        hostname: None,
        max_frame_size: 65_536.into(),
        channel_max: 0.into(),
        idle_time_out: None,
        outgoing_locales: None,
        incoming_locales: None,
        offered_capabilities: None,
        desired_capabilities: None,
        properties: None,
    };
    put(&mut out, 0, &open, &[]);
    let begin = Begin {
        remote_channel: None,
        next_outgoing_id: 0,
        incoming_window: 1 << 20,
        outgoing_window: 1 << 20,
        handle_max: u32::MAX.into(),
        offered_capabilities: None,
        desired_capabilities: None,
        properties: None,
    };
    put(&mut out, 0, &begin, &[]);
    out
}

fn attaches(connection: u32) -> BytesMut {
    let mut out = BytesMut::new();
    for n in 0..DEVICES_PER_CONNECTION {
        let device = format!("/devices/d{}", connection * DEVICES_PER_CONNECTION + n);
        let first = n * LINKS_PER_DEVICE;
        for (handle, is_sender, endpoint) in [
            (0, true, "messages/events"),
            (1, false, "messages/deviceBound"),
            (2, true, "twin"),
            (3, false, "twin"),
            (4, true, "methods/deviceBound"),
            (5, false, "methods/deviceBound"),
        ] {
            put(&mut out, 0, &attach(first + handle, is_sender, &format!("{device}/{endpoint}")), &[]);
        }
    }
    out
}

fn message(device: u32, delivery_id: u32, body: &Bytes) -> BytesMut {
    let transfer = Transfer {
        handle: (device * LINKS_PER_DEVICE).into(),
        delivery_id: Some(delivery_id),
        delivery_tag: Some(delivery_id.to_be_bytes().to_vec().into()),
        message_format: Some(0),
        settled: Some(false),
        more: false,
        rcv_settle_mode: None,
        state: None,
        resume: false,
        aborted: false,
        batchable: false,
    };
    let id = format!("m-{}", delivery_id / DEVICES_PER_CONNECTION);
    let properties = Properties { message_id: Some(id.into()), ..Properties::default() };
    let mut payload = serde_amqp::to_vec(&properties).expect("encodable");
    payload.extend([0x00, 0x53, 0x75, 0xa0, body.len() as u8]);
    payload.extend(body);
    let mut out = BytesMut::new();
    put(&mut out, 0, &transfer, &payload);
    out
}

/// CPU time of the hub's thread, and the resident memory of the process.
fn usage() -> (Duration, u64) {
    let mut ticks = 0;
    for task in std::fs::read_dir("/proc/self/task").expect("Linux").flatten() {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        if stat.contains("(hub)") {
            // behind the name: state, ten numbers, utime, stime
            let behind = stat.rsplit(')').next().unwrap_or_default();
            ticks +=
                behind.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
        }
    }
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let resident: u64 = pages.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    (Duration::from_millis(ticks * 10), resident * 4096)
}

fn start() -> Hub {
    let telemetry = TelemetrySettings { keep: Keep::Counts, ..TelemetrySettings::default() };
    let settings = Settings { telemetry, ..Settings::default() };
    let hub = Hub::start(HubConfig { settings, amqp_port: Some(0), ..HubConfig::default() }).expect("ports are free");
    for n in 0..DEVICES {
        hub.add_device(&format!("d{n}")).expect("id is new");
    }
    hub
}

/// A connection with the links of all its devices asked for; what comes back is thrown away.
async fn connected(hub: &Hub, connection: u32) -> OwnedWriteHalf {
    let stream = TcpStream::connect(hub.addresses().amqp.expect("asked for")).await.expect("the hub listens");
    stream.set_nodelay(true).expect("a TCP socket");
    let (mut reader, mut writer) = stream.into_split();
    tokio::spawn(async move {
        let mut sink = vec![0; 1 << 16];
        while reader.read(&mut sink).await.is_ok_and(|bytes| bytes > 0) {}
    });
    writer.write_all(&opening(hub)).await.expect("written");
    writer.write_all(&attaches(connection)).await.expect("written");
    writer
}

/// Waits until every device has all its links.
async fn all_attached(hub: &Hub) {
    let has_all_links = |n| {
        let identity = Identity::device(&format!("d{n}"));
        let links =
            hub.domain().registry.get(&identity).is_some_and(|record| record.links == LINKS_PER_DEVICE as usize);
        links && hub.domain().methods.is_online(&identity)
    };
    let patience = Instant::now();
    while !(0..DEVICES).all(has_all_links) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(patience.elapsed() < Duration::from_mins(1), "{:?}", hub.domain().registry.statistics());
    }
}

/// Sends at the rate for all the seconds, and returns the memory after half of them.
async fn send(writers: &mut [OwnedWriteHalf], start: Instant) -> u64 {
    let body = Bytes::from(vec![b'x'; 128]);
    let batch = (MESSAGES_PER_SECOND / 100) as u32 / CONNECTIONS;
    let mut delivery_id = 0;
    let mut memory_at_half = 0;
    for turn in 0..SECONDS * 100 {
        for writer in &mut *writers {
            let mut out = BytesMut::new();
            for n in 0..batch {
                out.extend(message((delivery_id + n) % DEVICES_PER_CONNECTION, delivery_id + n, &body));
            }
            writer.write_all(&out).await.expect("written");
        }
        delivery_id += batch;
        if turn == SECONDS * 50 {
            memory_at_half = usage().1;
        }
        let due = start + Duration::from_millis((turn + 1) * 10);
        tokio::time::sleep_until(due.into()).await;
    }
    memory_at_half
}

/// Waits until every message is accepted, and judges what that took since `before` and the half.
async fn judge(hub: &Hub, start: Instant, before: (Duration, u64), memory_at_half: u64) {
    let sent = MESSAGES_PER_SECOND * SECONDS;
    while hub.ledger().summary().telemetry.accepted_written < sent {
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(start.elapsed() < Duration::from_secs(SECONDS * 3), "{:?}", hub.ledger().summary());
    }
    let (cpu, memory) = usage();
    let summary = hub.ledger().summary();
    let (cpu, growth) = (cpu.saturating_sub(before.0), memory.saturating_sub(memory_at_half));
    println!(
        "{sent} messages in {:?}: {} µs of CPU per message, memory grew by {} KiB, by {} KiB in the second half",
        start.elapsed(),
        cpu.as_micros() / u128::from(sent),
        memory.saturating_sub(before.1) / 1024,
        growth / 1024
    );
    assert_eq!((summary.duplicates, summary.missing, summary.out_of_order), (0, 0, 0));
    assert!(cpu / sent as u32 <= CPU_PER_MESSAGE_MAX, "{cpu:?}");
    assert!(growth <= GROWTH_BYTES_MAX, "{growth} bytes");
}

#[tokio::test]
#[ignore = "a load: run it in release, alone"]
async fn twenty_thousand_devices_send_ten_thousand_messages_a_second_in_flat_memory_on_one_core() {
    let hub = start();
    let (cpu_before, memory_before) = usage();
    let mut writers = Vec::new();
    for connection in 0..CONNECTIONS {
        writers.push(connected(&hub, connection).await);
    }
    all_attached(&hub).await;
    let (cpu, memory) = usage();
    println!(
        "attached {DEVICES} devices with {LINKS_PER_DEVICE} links: {:?} of CPU, {} bytes of memory per device",
        cpu.saturating_sub(cpu_before),
        (memory - memory_before) / u64::from(DEVICES)
    );
    let (before, start) = (usage(), Instant::now());
    let memory_at_half = send(&mut writers, start).await;
    judge(&hub, start, before, memory_at_half).await;
}
