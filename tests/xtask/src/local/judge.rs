//! What became of every message, by the hub's ledger: the devices' word against the hub's.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use rustls::{ClientConnection, StreamOwned, pki_types::ServerName};
use serde::Deserialize;

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

/// The last line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    sent: u64,
    acknowledged: u64,
    stored: u64,
    pub(super) lost: u64,
    duplicated: u64,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, acknowledged, stored, lost, duplicated } = self;
        write!(f, "sent {sent} · acknowledged {acknowledged} · stored {stored} · lost {lost} · duplicated {duplicated}")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    message_id: Option<String>,
    outcome: String,
}

/// Asks the ledger for every device of the report.
pub(super) fn judge(description: &Description, report: &Report) -> anyhow::Result<Verdict> {
    let mut verdict = Verdict::default();
    for device in &report.devices {
        let rows: Vec<Row> =
            serde_json::from_slice(&get(description, &format!("/ledger?device={}", device.device_id))?)?;
        let ids = rows.into_iter().filter(|row| row.outcome == "accepted").filter_map(|row| row.message_id);
        verdict.add(device, ids);
    }
    Ok(verdict)
}

impl Verdict {
    /// `stored` are the message ids of the device's accepted transfers, in any order, repeated where they were.
    fn add(&mut self, device: &Sequences, stored: impl Iterator<Item = String>) {
        let mut times: HashMap<u64, u64> = HashMap::new();
        for id in stored {
            if let Some(sequence) =
                id.strip_prefix(RUN).and_then(|rest| rest.strip_prefix('-')).and_then(|n| n.parse().ok())
            {
                *times.entry(sequence).or_default() += 1;
            }
        }
        let acknowledged: HashSet<u64> = device.acknowledged.iter().flat_map(|&(first, last)| first..=last).collect();
        self.sent += device.sent;
        self.acknowledged += acknowledged.len() as u64;
        self.stored += times.len() as u64;
        self.lost += acknowledged.iter().filter(|sequence| !times.contains_key(sequence)).count() as u64;
        self.duplicated += times.values().map(|times| times - 1).sum::<u64>();
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(acknowledged: &[(u64, u64)], stored: &[&str]) -> Verdict {
        let device = Sequences { device_id: "d".into(), sent: 10, acknowledged: acknowledged.to_vec() };
        let mut verdict = Verdict::default();
        verdict.add(&device, stored.iter().map(ToString::to_string));
        verdict
    }

    #[test]
    fn an_acknowledged_message_that_is_not_stored_is_lost() {
        assert_eq!(verdict(&[(0, 2)], &["local-0", "local-2"]).lost, 1);
    }

    #[test]
    fn a_stored_message_that_was_not_acknowledged_is_not_lost() {
        let found = verdict(&[(0, 0)], &["local-0", "local-1"]);
        assert_eq!((found.lost, found.stored, found.acknowledged), (0, 2, 1));
    }

    #[test]
    fn the_second_copy_is_a_duplicate() {
        assert_eq!(verdict(&[(0, 0)], &["local-0", "local-0", "local-0"]).duplicated, 2);
    }

    #[test]
    fn messages_of_others_do_not_count() {
        assert_eq!(verdict(&[], &["mine-0", "local-x"]).stored, 0);
    }
}
