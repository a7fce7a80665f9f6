//! `bench`: the workloads of the gateway beside the least that the same work can cost, measured in one run.
//!
//! The servers it measures against (floor, null, sink) are programs of their own, started from the same binary.

mod figures;
mod idle;
mod load;
mod machine;
mod measure;
mod progress;
mod rounds;
mod run;
mod secrets;
mod servers;
mod table;
mod workload;
mod world;

use clap::{Parser, Subcommand};

/// Floors, null servers, sink, and the runs that compare the gateway with them.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure workloads (all without a name): a table with ratios, and JSON
    Run(run::Arguments),
    /// The least a bridge can cost: one thread, one loop, no authentication, no timers, outcomes not checked
    Floor(servers::floor::Arguments),
    /// PUBACK at once: the device side alone
    Null(servers::null::Arguments),
    /// AMQP 1.0 peer that accepts everything and counts
    Sink(servers::sink::Arguments),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Floor(arguments) => servers::floor::run(&arguments),
        Command::Null(arguments) => servers::null::run(&arguments),
        Command::Sink(arguments) => servers::sink::run(&arguments),
    }
}
