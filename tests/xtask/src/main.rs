//! `cargo xtask`: everything that is done to this workspace beside `cargo build`.
//!
//! What a step needs beyond the base image it installs by name into a cache outside the checkout and says so; it never
//! changes a file of the checkout other than below `target/`.

mod bench;
mod cache;
mod clients;
mod crds;
mod local;
mod packages;
mod process;
mod step;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Build, run and judge the protocol gateway.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a local IoT Hub, the gateway and devices that send through it; account for every message.
    Local(local::Arguments),
    /// Measure the workloads beside the least that the same work can cost.
    Bench(bench::Arguments),
    /// Write crds/protocolgateway.yaml from the types of `crds`.
    Crds(crds::Arguments),
    /// Run the tests of the levels named, or of all of them.
    Test(test::Arguments),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    std::env::set_current_dir(process::workspace_root())?;
    match Arguments::parse().command {
        Command::Local(arguments) => local::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Crds(arguments) => crds::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
    }
}
