//! One load on one server: the device program as a process of its own, and what the server used meanwhile.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::{
    figures::{Latency, Sample},
    measure::Cpu,
    secrets::GROUP_KEY,
    workload::{DevicesBy, Kind, Workload},
    world::{self, Place, Server},
};

/// Where sessions are to be resumed, so many of them have to be.
const RESUMED_SHARE_MIN: f64 = 0.95;

/// How long everything takes, and what is let pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Rounds of every workload; `None`: as many as each wants.
    pub(crate) rounds: Option<usize>,
    pub(crate) warm_up_s: u32,
    pub(crate) seconds: u32,
    /// A round in which the load made a larger share of its sends late is repeated.
    pub(crate) late_share_max: f64,
}

impl Pace {
    /// Seconds that `servers` servers take with `workload`, no round repeated.
    pub(crate) fn expected_s(self, workload: Workload, servers: usize) -> f64 {
        let each = match workload.kind {
            Kind::Idle(devices) => 19.0 + devices as f64 / 900.0,
            _ => self.round_s() * self.rounds_of(workload) as f64,
        };
        each * servers as f64
    }

    /// Good rounds wanted of `workload`.
    pub(crate) fn rounds_of(self, workload: Workload) -> usize {
        self.rounds.unwrap_or(workload.rounds)
    }

    /// Seconds of one server in one round.
    pub(crate) fn round_s(self) -> f64 {
        f64::from(self.warm_up_s + self.seconds) + 1.7
    }
}

/// One workload on servers of several kinds.
#[derive(Clone, Copy)]
pub(crate) struct Comparison<'a> {
    pub(crate) place: &'a Place,
    pub(crate) workload: Workload,
    pub(crate) pace: Pace,
    pub(crate) kinds: &'a [world::Kind],
}

/// One line that the device program tells each second.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Line {
    pub(crate) phase: String,
    acknowledged: u64,
    connects: u64,
    resumed: u64,
}

/// What the device program tells at its end.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    late_share: f64,
    late_after_us: f64,
    total: Latency,
    devices: Vec<Device>,
}

#[derive(Deserialize)]
struct Device {
    acknowledged: Vec<(u64, u64)>,
}

/// Loads `server` for one round: CPU over the counted seconds ÷ what was acknowledged in them.
///
/// The second value is the time after which the load calls a send late, in microseconds.
pub(crate) fn one_round(
    place: &Place,
    workload: Workload,
    pace: Pace,
    server: &Server,
) -> anyhow::Result<(Sample, f64)> {
    let before = server.accepted()?;
    let file = place.directory.join("load.json");
    // one second more: the first line only marks where the sums begin; and a bit, so that the last is told
    let seconds = f64::from(pace.seconds) + 1.1;
    let mut load = command(place, workload, pace.warm_up_s, server, workload.devices(), seconds);
    load.arg("--report").arg(&file);
    let is_connect = workload.kind == Kind::Connect;
    let (mut begun, mut ended, mut count, mut resumed) = (None, Cpu::default(), 0, 0);
    each_line(&mut load, |line| {
        if line.phase != "send" {
            return Ok(());
        }
        ended = Cpu::of(server.id())?;
        if begun.is_none() {
            begun = Some(ended);
            return Ok(());
        }
        count += if is_connect { line.connects } else { line.acknowledged };
        resumed += line.resumed;
        Ok(())
    })?;
    let report: Report = serde_json::from_slice(&std::fs::read(&file)?)?;
    check_loss(before, server.accepted()?, &report)?;
    ensure!(count > 0, "nothing was acknowledged");
    let cpu = ended.since(begun.context("the load told of no second")?).per(count);
    let resumed_share = (is_connect && workload.device_tls()).then(|| resumed as f64 / count as f64);
    // what a peer's TLS does is not ours to say
    if let (Some(share), true) = (resumed_share, server.kind != world::Kind::Mosquitto) {
        check_handshakes(workload.devices_by, share)?;
    }
    let latency = (!is_connect).then_some(report.total);
    let late_share = report.late_share;
    Ok((Sample { cpu, count, latency, resumed_share, memory: None, late_share }, report.late_after_us))
}

/// A row is about full handshakes or about resumed sessions: anything else is not what its name says.
fn check_handshakes(devices_by: DevicesBy, resumed_share: f64) -> anyhow::Result<()> {
    let percent = resumed_share * 100.0;
    match devices_by {
        DevicesBy::TlsResumed => {
            ensure!(resumed_share >= RESUMED_SHARE_MIN, "only {percent:.1} % of the TLS sessions were resumed");
        }
        _ => ensure!(resumed_share <= 0.0, "{percent:.1} % of the TLS sessions were resumed, and none should be"),
    }
    Ok(())
}

/// Runs the device program to its end; `tell` gets each of its lines.
pub(crate) fn each_line(load: &mut Command, mut tell: impl FnMut(&Line) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut load = load.stdout(Stdio::piped()).spawn().context("cannot start the device program")?;
    let lines = BufReader::new(load.stdout.take().context("stdout is a pipe")?).lines();
    for line in lines {
        tell(&serde_json::from_str(&line?)?)?;
    }
    let status = load.wait()?;
    ensure!(status.success(), "the device program ended with {status}");
    Ok(())
}

/// The device program, as `workload` wants it, against `server`.
pub(crate) fn command(
    place: &Place,
    workload: Workload,
    warm_up_s: u32,
    server: &Server,
    devices: usize,
    seconds: f64,
) -> Command {
    let mut command = Command::new(&place.device);
    command.args(["load", "--json", "--address", &server.address.to_string()]);
    command.args(["--devices", &devices.to_string(), "--for", &seconds.to_string()]);
    command.args(["--warm-up", &warm_up_s.to_string(), "--keep-alive", "60"]);
    if workload.device_tls() {
        command.arg("--ca").arg(place.authority());
    }
    match workload.devices_by {
        DevicesBy::TlsCertificate => command.arg("--identities").arg(place.identities()),
        DevicesBy::TlsResumed => command.args(["--group-key", GROUP_KEY, "--resume"]),
        DevicesBy::Tcp | DevicesBy::Tls => command.args(["--group-key", GROUP_KEY]),
    };
    match workload.kind {
        Kind::Window(window) => command.args(["--closed", "--window", &window.to_string()]),
        Kind::Load(per_second) => command.args(["--rate", &per_second.to_string(), "--window", "1"]),
        Kind::Idle(_) => command.args(["--once", "--subscribe", "--connects-per-second", "1000"]),
        Kind::Connect => command.args(["--churn"]),
    };
    command
}

/// Every acknowledged message is at the sink; one missing and the run fails.
fn check_loss(before: Option<u64>, after: Option<u64>, report: &Report) -> anyhow::Result<()> {
    let (Some(before), Some(after)) = (before, after) else { return Ok(()) };
    let ranges = report.devices.iter().flat_map(|device| &device.acknowledged);
    let acknowledged: u64 = ranges.map(|(first, last)| last - first + 1).sum();
    let accepted = after - before;
    ensure!(accepted >= acknowledged, "LOSS: {acknowledged} messages were acknowledged, {accepted} reached the sink");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accepted: Option<(u64, u64)>, acknowledged: &[(u64, u64)], whole: bool) {
        let latency = Latency { p50_us: 0.0, p99_us: 0.0, p999_us: 0.0, max_us: 0.0 };
        let devices = vec![Device { acknowledged: acknowledged.to_vec() }];
        let report = Report { late_share: 0.0, late_after_us: 1000.0, total: latency, devices };
        let (before, after) = accepted.unzip();
        assert_eq!(check_loss(before, after, &report).is_ok(), whole, "{accepted:?} {acknowledged:?}");
    }

    #[test]
    fn one_acknowledged_message_that_is_not_at_the_sink_is_a_loss() {
        check(Some((100, 110)), &[(0, 4), (6, 10)], true);
        check(Some((100, 109)), &[(0, 4), (6, 10)], false);
        // sent again after a lost acknowledgement
        check(Some((100, 112)), &[(0, 9)], true);
        // a server without a sink
        check(None, &[(0, 9)], true);
    }

    #[test]
    fn a_row_of_full_handshakes_has_no_resumed_session_and_one_of_resumed_sessions_almost_no_other() {
        let check = |devices_by, share: f64, good: bool| {
            assert_eq!(check_handshakes(devices_by, share).is_ok(), good, "{devices_by:?} {share}");
        };
        check(DevicesBy::Tls, 0.0, true);
        check(DevicesBy::Tls, 0.001, false);
        check(DevicesBy::TlsCertificate, 0.001, false);
        check(DevicesBy::TlsResumed, 1.0, true);
        check(DevicesBy::TlsResumed, 0.5, false);
    }
}
