//! One run: servers loaded alternately, A B A B …; ratios formed within each round.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::{
    measure::{self, Cpu},
    table,
    workload::{Kind, Workload},
    world::{self, GROUP_KEY, Place, Server},
};

/// What to measure, and how long.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Workloads (W1 W8 L1k IDLE-1000 IDLE-10000 CONNECT, each with -tls or both); all without one
    names: Vec<String>,
    /// Three rounds of three seconds: to see that it runs, not to compare
    #[arg(long)]
    quick: bool,
    /// Rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds a server and round, after three of warm-up
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Also measure the second floor, the null server and the peers that are installed
    #[arg(long)]
    peers: bool,
    /// The gateway program
    #[arg(long)]
    gateway: PathBuf,
    /// The device program
    #[arg(long)]
    device: PathBuf,
    /// Where results, certificates and logs go
    #[arg(long)]
    directory: PathBuf,
    /// Commit that is measured, for the JSON
    #[arg(long, default_value = "unknown")]
    commit: String,
}

/// One server in one round.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Sample {
    /// CPU microseconds per acknowledged message (per connection in CONNECT, per PINGREQ-second in IDLE).
    pub(crate) cpu: Cpu,
    /// What `cpu` was divided by.
    pub(crate) count: u64,
    /// KiB a device, in IDLE.
    pub(crate) kib_per_device: Option<f64>,
    /// Microseconds from due to PUBACK.
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Share of sends that the load itself made late.
    pub(crate) late_share: f64,
}

/// All rounds of one workload.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Result {
    pub(crate) workload: String,
    /// Name and one sample a round, in the order of measuring; the gateway first.
    pub(crate) servers: Vec<(&'static str, Vec<Sample>)>,
    /// Peers that could not be measured, and why.
    pub(crate) missing: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    phase: String,
    acknowledged: u64,
    connects: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    late_share: f64,
    total: Total,
    devices: Vec<Device>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Total {
    p50_us: f64,
    p99_us: f64,
}

#[derive(Deserialize)]
struct Device {
    acknowledged: Vec<(u64, u64)>,
}

/// Measures what was asked for, prints the table, writes the JSON.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let place = Place {
        gateway: arguments.gateway.clone(),
        device: arguments.device.clone(),
        bench: std::env::current_exe()?,
        directory: arguments.directory.clone(),
    };
    place.make_certificates()?;
    let mut results = Vec::new();
    for workload in Workload::named(&arguments.names)? {
        eprintln!("▸ {workload}");
        results.push(measure(arguments, &place, workload)?);
        table::print(results.last().expect("one was pushed"));
    }
    table::write(&arguments.directory.join("results.json"), &arguments.commit, &results)
}

fn measure(arguments: &Arguments, place: &Place, workload: Workload) -> anyhow::Result<Result> {
    let baseline = match workload.kind {
        Kind::Connect | Kind::Idle(_) => world::Kind::Null,
        Kind::Window(_) | Kind::Load(_) => world::Kind::Floor,
    };
    let mut kinds = vec![world::Kind::Gateway, baseline];
    let mut missing = Vec::new();
    if arguments.peers {
        if baseline == world::Kind::Floor {
            kinds.extend([world::Kind::FloorLinkPerDevice, world::Kind::Null]);
        }
        match Command::new("mosquitto").arg("-h").output() {
            Ok(_) => kinds.push(world::Kind::Mosquitto),
            Err(_) => missing.push("mosquitto: not installed (Debian package mosquitto)".to_owned()),
        }
        missing.push("rabbitmq: not measured by this run".to_owned());
    }
    let rounds = match (arguments.quick, workload.kind) {
        (_, Kind::Idle(_)) => 1,
        (true, _) => 3,
        (false, _) => arguments.rounds,
    };
    let servers = match workload.kind {
        // memory is compared with that of a fresh process: one server after the other
        Kind::Idle(_) => {
            kinds.iter().map(|&kind| idle(arguments, place, workload, kind)).collect::<anyhow::Result<_>>()?
        }
        _ => alternate(arguments, place, workload, &kinds, rounds)?,
    };
    Ok(Result { workload: workload.to_string(), servers, missing })
}

/// Rounds of A B A B … on servers that stay.
fn alternate(
    arguments: &Arguments,
    place: &Place,
    workload: Workload,
    kinds: &[world::Kind],
    rounds: usize,
) -> anyhow::Result<Vec<(&'static str, Vec<Sample>)>> {
    let servers = kinds.iter().map(|&kind| place.start(kind, workload.tls)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut samples = vec![Vec::new(); servers.len()];
    for round in 0..rounds {
        for (server, samples) in servers.iter().zip(&mut samples) {
            let sample = load(arguments, place, workload, server)
                .with_context(|| format!("{workload}, {}, round {round}", server.kind.name()))?;
            if sample.late_share > 0.02 {
                eprintln!("  round {round}: the load was late in {:.1} % of its sends", sample.late_share * 100.0);
            }
            samples.push(sample);
        }
    }
    Ok(servers.iter().map(|server| server.kind.name()).zip(samples).collect())
}

/// Memory of one server with N devices, against the same after one connection came and went.
fn idle(
    arguments: &Arguments,
    place: &Place,
    workload: Workload,
    kind: world::Kind,
) -> anyhow::Result<(&'static str, Vec<Sample>)> {
    let server = place.start(kind, workload.tls)?;
    let one = command(arguments, place, workload, &server, 1, 1).output()?;
    if !one.status.success() {
        bail!("one connection to {}: {}", kind.name(), String::from_utf8_lossy(&one.stderr));
    }
    thread::sleep(Duration::from_secs(1));
    let before = measure::private_kib(server.id())?;
    let mut load =
        command(arguments, place, workload, &server, workload.devices(), 8).stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(load.stdout.take().context("stdout is a pipe")?).lines();
    let (mut seconds, mut kib, mut first, mut last) = (0, f64::NAN, Cpu::default(), Cpu::default());
    for line in lines {
        let line: Line = serde_json::from_str(&line?)?;
        if line.phase == "send" {
            seconds += 1;
            last = Cpu::of(server.id())?;
            if seconds == 1 {
                first = last;
            }
            if seconds == 6 {
                kib = measure::private_kib(server.id())?;
            }
        }
    }
    if !load.wait()?.success() {
        bail!("{} devices could not be held by {}", workload.devices(), kind.name());
    }
    let kib_per_device = Some((kib - before) / workload.devices() as f64);
    let cpu = last.since(first).per(seconds.max(2) - 1);
    let sample = Sample { cpu, count: seconds, kib_per_device, p50_us: 0.0, p99_us: 0.0, late_share: 0.0 };
    Ok((kind.name(), vec![sample]))
}

/// One server under one load: CPU over the counted seconds ÷ what was acknowledged in them.
fn load(arguments: &Arguments, place: &Place, workload: Workload, server: &Server) -> anyhow::Result<Sample> {
    let before = server.accepted()?;
    let seconds = if arguments.quick { 3 } else { arguments.seconds };
    let report = place.directory.join("load.json");
    let mut command = command(arguments, place, workload, server, workload.devices(), seconds + 1);
    let mut load = command.arg("--report").arg(&report).stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(load.stdout.take().context("stdout is a pipe")?).lines();
    // the first counted line only marks where the sums begin
    let (mut begun, mut ended, mut count) = (None, Cpu::default(), 0);
    for line in lines {
        let line: Line = serde_json::from_str(&line?)?;
        if line.phase != "send" {
            continue;
        }
        ended = Cpu::of(server.id())?;
        match begun {
            None => begun = Some(ended),
            Some(_) => count += if workload.kind == Kind::Connect { line.connects } else { line.acknowledged },
        }
    }
    if !load.wait()?.success() {
        bail!("the load failed");
    }
    let report: Report = serde_json::from_slice(&std::fs::read(&report)?)?;
    check_loss(before, server.accepted()?, &report)?;
    let cpu = ended.since(begun.context("the load told of no second")?).per(count);
    let Total { p50_us, p99_us } = report.total;
    Ok(Sample { cpu, count, kib_per_device: None, p50_us, p99_us, late_share: report.late_share })
}

/// Every acknowledged message is at the sink; one missing and the run fails.
fn check_loss(before: Option<u64>, after: Option<u64>, report: &Report) -> anyhow::Result<()> {
    let (Some(before), Some(after)) = (before, after) else { return Ok(()) };
    let ranges = report.devices.iter().flat_map(|device| &device.acknowledged);
    let acknowledged: u64 = ranges.map(|(first, last)| last - first + 1).sum();
    if after - before < acknowledged {
        bail!("{acknowledged} messages were acknowledged, {} reached the sink", after - before);
    }
    Ok(())
}

fn command(
    arguments: &Arguments,
    place: &Place,
    workload: Workload,
    server: &Server,
    devices: usize,
    seconds: u32,
) -> Command {
    let mut command = Command::new(&place.device);
    command.args(["load", "--json", "--address", &server.address.to_string(), "--group-key", GROUP_KEY]);
    command.args(["--devices", &devices.to_string(), "--for", &seconds.to_string()]);
    command.args(["--warm-up", if arguments.quick { "1" } else { "3" }, "--keep-alive", "60"]);
    if workload.tls {
        command.arg("--ca").arg(place.tls().join("ca.pem"));
    }
    match workload.kind {
        Kind::Window(window) => command.args(["--closed", "--window", &window.to_string()]),
        Kind::Load(per_second) => command.args(["--rate", &per_second.to_string(), "--window", "1"]),
        Kind::Idle(_) => command.args(["--subscribe", "--connects-per-second", "1000"]),
        Kind::Connect => command.args(["--churn"]),
    };
    command
}
