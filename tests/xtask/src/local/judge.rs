//! What became of every message, by the hub's ledger: the devices' word against the hub's.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use rustls::{ClientConnection, StreamOwned, pki_types::ServerName};
use serde::Deserialize;
use xtask::verdict::Verdict;

use super::world::Description;

/// Run id in the message ids of `cargo xtask local`: `<run>-<sequence>`.
pub(super) const RUN: &str = "local";

/// What the devices report at the end.
#[derive(Deserialize)]
pub(super) struct Report {
    pub(super) devices: Vec<Sequences>,
}

/// What one device sent.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Sequences {
    device_id: String,
    sent: u64,
    acknowledged: Vec<(u64, u64)>,
}

/// One row of the ledger's counts.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Counts {
    device_id: String,
    sequences: Vec<Numbers>,
}

/// Message ids `<prefix><number>` that the hub accepted.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Numbers {
    prefix: String,
    /// Ascending inclusive ranges.
    ranges: Vec<(u64, u64)>,
    duplicates: u64,
    forgotten_gaps: u64,
}

#[derive(Deserialize)]
struct Summary {
    telemetry: Telemetry,
}

#[derive(Deserialize)]
struct Telemetry {
    accepted: u64,
}

/// Asks the ledger what it has of the devices of the report.
pub(super) fn judge(description: &Description, report: &Report) -> anyhow::Result<Verdict> {
    let rows: Vec<Counts> = serde_json::from_slice(&get(description, "/ledger/devices")?)?;
    let prefix = format!("{RUN}-");
    let numbers = |row: Counts| Some((row.device_id, row.sequences.into_iter().find(|each| each.prefix == prefix)?));
    let stored: HashMap<String, Numbers> = rows.into_iter().filter_map(numbers).collect();
    let mut verdict = Verdict::default();
    let nothing = Numbers::default();
    for device in &report.devices {
        let stored = stored.get(&device.device_id).unwrap_or(&nothing);
        if stored.forgotten_gaps > 0 {
            bail!("the ledger forgot {} gaps of {}: nothing can be said", stored.forgotten_gaps, device.device_id);
        }
        verdict.add(device.sent, &device.acknowledged, &stored.ranges, stored.duplicates);
    }
    Ok(verdict)
}

/// How many messages of devices the hub has.
pub(super) fn stored(description: &Description) -> anyhow::Result<u64> {
    let summary: Summary = serde_json::from_slice(&get(description, "/ledger/summary")?)?;
    Ok(summary.telemetry.accepted)
}

/// One GET of the hub's HTTP interface; anything but 200 is an error.
pub(super) fn get(description: &Description, path: &str) -> anyhow::Result<Vec<u8>> {
    let address = description.hub.https.strip_prefix("https://").context("the hub's address is not https")?;
    let config = device::tls::client(&std::fs::read(&description.ca_file)?, false, false, None)?;
    let socket = TcpStream::connect(address).with_context(|| format!("no hub at {address}"))?;
    socket.set_read_timeout(Some(Duration::from_mins(1)))?;
    let name = ServerName::try_from(description.hub.host_name.clone())?;
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(&config), name)?, socket);
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: {}\r\nAuthorization: {}\r\nConnection: close\r\n\r\n",
        description.hub.host_name, description.service.sas_token
    )?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // a server may close without close_notify; the length is checked by whoever parses
        Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => return Err(error.into()),
        _ => {}
    }
    let end =
        answer.windows(4).position(|four| four == b"\r\n\r\n").context("the hub's answer has no end of headers")?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    if head.split_whitespace().nth(1) != Some("200") {
        bail!("{path}: {}", head.lines().next().unwrap_or_default());
    }
    Ok(answer.split_off(end + 4))
}
