//! `cargo xtask test`: the levels, which of them this machine can run, and what each found.

use std::{process::Command, time::Instant};

use anyhow::bail;

use crate::{clients, cluster, process, step};

/// Which levels to run.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Levels to run; without one, all that this machine can run (with CI=true a level left out is a failure)
    #[arg(value_enum, value_name = "LEVEL")]
    levels: Vec<Level>,

    /// Fleets that the simulation of the drain planner runs, in level code [default: 10000]
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
}

/// From cheap to dear.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Level {
    /// Everything in Rust: tables, properties, simulations, differential tests, wire tests over real sockets
    Code,
    /// The Azure SDKs and a bare AMQP client, unmodified, against the local hub
    Sdk,
    /// MQTT clients and the Azure device SDK, unmodified, through the gateway to the local hub
    Clients,
    /// What needs a real Kubernetes API: it is started for the run, without root
    Api,
    /// The stories, on a real Kubernetes of two nodes that run containers; needs root
    Cluster,
}

impl Level {
    const ALL: [Self; 5] = [Self::Code, Self::Sdk, Self::Clients, Self::Api, Self::Cluster];

    /// Why this machine cannot run the level, if so.
    fn missing(self) -> Option<String> {
        match self {
            Self::Code => None,
            Self::Sdk | Self::Clients => clients::missing(),
            Self::Api => cluster::missing(),
            Self::Cluster => cluster::missing().or_else(cluster::missing_for_nodes),
        }
    }

    fn run(self, seeds: Option<u64>) -> anyhow::Result<()> {
        match self {
            Self::Code => {
                let mut command = Command::new(env!("CARGO"));
                command.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
                if let Some(seeds) = seeds {
                    command.env("SEEDS", seeds.to_string());
                }
                process::run(&mut command)
            }
            Self::Sdk => clients::sdk(),
            Self::Clients => clients::mqtt(),
            Self::Api => cluster::test("api", "api*"),
            Self::Cluster => cluster::test("nodes", "story*"),
        }
    }
}

enum Found {
    Passed,
    Failed(String),
    LeftOut(String),
}

/// Runs the levels in their order, all of them even if one fails, and prints a line for each at the end.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let wanted = if arguments.levels.is_empty() { &Level::ALL[..] } else { &arguments.levels };
    let mut rows = Vec::new();
    for &level in wanted {
        let begun = Instant::now();
        let found = match level.missing() {
            Some(why) => Found::LeftOut(why),
            None => match step::step(&format!("level {level:?}").to_lowercase(), || level.run(arguments.seeds)) {
                Ok(()) => Found::Passed,
                Err(error) => Found::Failed(format!("{error:#}")),
            },
        };
        rows.push((level, found, begun.elapsed().as_secs_f32()));
    }
    report(&rows, !arguments.levels.is_empty())
}

/// A level that was asked for by name, or on CI, must not be left out.
fn report(rows: &[(Level, Found, f32)], named: bool) -> anyhow::Result<()> {
    let strict = named || std::env::var("CI").is_ok_and(|value| value == "true");
    let mut failures = 0;
    println!();
    for (level, found, seconds) in rows {
        let name = format!("{level:?}").to_lowercase();
        match found {
            Found::Passed => println!("{name:8} passed    {seconds:7.1} s"),
            Found::Failed(why) => {
                failures += 1;
                println!("{name:8} FAILED    {seconds:7.1} s  {why}");
            }
            Found::LeftOut(why) => {
                failures += usize::from(strict);
                println!("{name:8} left out              {why}");
            }
        }
    }
    if failures > 0 {
        bail!("{failures} of {} levels did not pass", rows.len());
    }
    Ok(())
}
