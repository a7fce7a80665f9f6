//! One run: every workload that was asked for, one after the other; the table as it comes, the JSON after each.

use std::{path::PathBuf, process::Command};

use crate::{
    figures::{Outcome, Servers},
    idle,
    load::{Comparison, Pace},
    machine::{self, Document, Machine},
    progress::Progress,
    rounds, table,
    workload::{Kind, Workload},
    world::{self, Place},
};

/// What to measure, and how long.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Workloads: W1 W8 L1k IDLE-1000 IDLE-10000 CONNECT, by all their transports, or one row: W1 W1-tls (devices by
    /// TLS) W1-amqps (AMQP by TLS) W1-tls-amqps … CONNECT-tls-certificate CONNECT-tls-resumed; all without one
    names: Vec<String>,
    /// Three rounds of three seconds, late ones kept: to see that it runs, not to compare
    #[arg(long)]
    quick: bool,
    /// Rounds of every workload; without it five, and three of the variants (-amqps, -certificate, -resumed) unless they are named
    #[arg(long)]
    rounds: Option<usize>,
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
    /// Version of the compiler, for the JSON
    #[arg(long, default_value = "unknown")]
    rustc: String,
}

impl Arguments {
    fn pace(&self) -> Pace {
        if self.quick {
            return Pace { rounds: Some(3), warm_up_s: 1, seconds: 3, late_share_max: 1.0 };
        }
        Pace { rounds: self.rounds, warm_up_s: 3, seconds: self.seconds, late_share_max: 0.02 }
    }
}

/// Measures what was asked for, prints the tables, writes the JSON; fails if a workload did.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let place = Place {
        gateway: arguments.gateway.clone(),
        device: arguments.device.clone(),
        bench: std::env::current_exe()?,
        directory: arguments.directory.clone(),
    };
    place.make_secrets()?;
    let (pace, workloads) = (arguments.pace(), Workload::named(&arguments.names)?);
    let machine = Machine::read(&arguments.commit, &arguments.rustc, &place.gateway)?;
    println!("{machine}");
    let file = arguments.directory.join("results.json");
    let mut document = Document { machine, seconds: pace.seconds, results: Vec::new() };
    let mut progress = Progress::new(workloads.iter().map(|&workload| pace.expected_s(workload, 2)).sum());
    for workload in workloads {
        let outcome = measure(&place, workload, pace, arguments.peers, &mut progress);
        table::print(&outcome);
        document.results.push(outcome);
        document.write(&file)?;
    }
    println!("written to {}", file.display());
    let failed = document.results.iter().filter(|outcome| !outcome.problems.is_empty());
    let failed = failed.map(|outcome| outcome.workload.as_str()).collect::<Vec<_>>();
    anyhow::ensure!(failed.is_empty(), "not measured as the rules want: {}", failed.join(", "));
    Ok(())
}

/// One workload on the gateway and what it is compared with; what goes wrong is part of the outcome.
fn measure(place: &Place, workload: Workload, pace: Pace, peers: bool, progress: &mut Progress) -> Outcome {
    let baseline = match workload.kind {
        Kind::Connect | Kind::Idle(_) => world::Kind::Null,
        Kind::Window(_) | Kind::Load(_) => world::Kind::Floor,
    };
    let mut kinds = vec![world::Kind::Gateway, baseline];
    let mut outcome = Outcome::new(workload);
    if peers {
        if baseline == world::Kind::Floor {
            kinds.extend([world::Kind::FloorLinkPerDevice, world::Kind::Null]);
        }
        add_peers(&mut kinds, &mut outcome);
        progress.add(pace.expected_s(workload, kinds.len() - 2));
    }
    outcome.servers = kinds.iter().map(|kind| Servers { name: kind.name(), samples: Vec::new() }).collect();
    let comparison = Comparison { place, workload, pace, kinds: &kinds };
    let measured = match workload.kind {
        Kind::Idle(_) => idle::measure(comparison, &mut outcome, progress),
        _ => rounds::measure(comparison, &mut outcome, progress),
    };
    if let Err(error) = measured {
        outcome.problems.push(format!("{error:#}"));
    }
    outcome
}

/// The peers that are installed; the others are named as missing.
fn add_peers(kinds: &mut Vec<world::Kind>, outcome: &mut Outcome) {
    match Command::new("mosquitto").arg("-h").output() {
        Ok(help) => {
            kinds.push(world::Kind::Mosquitto);
            outcome.peers.push(machine::first_line(&help.stdout));
        }
        Err(_) => outcome.missing.push("mosquitto: not installed (Debian package mosquitto)".to_owned()),
    }
    outcome.missing.push("rabbitmq: not measured by this run".to_owned());
}
