//! `cargo xtask`: everything that is done to this workspace beside `cargo build`.
//!
//! What a step needs beyond the base image it installs by name into a cache outside the checkout and says so; it never
//! changes a file of the checkout other than below `target/`.

mod bench;
mod clients;
mod cluster;
mod crds;
mod images;
mod local;
mod test;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{packages, process, step};

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
    /// Write crds/protocolgateway.yaml, and the chart's copy of it, from the types of `crds`.
    Crds(crds::Arguments),
    /// Write OCI images of gateway and operator, without a daemon or a registry.
    Image(images::Arguments),
    /// Run the tests of the levels named, or of all of them.
    Test(test::Arguments),
    /// Leave a real Kubernetes with operator, hub and a fleet running on this machine; needs root.
    Up(up::Arguments),
    /// Remove every trace of it, and of tests that were killed.
    Down,
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
        Command::Image(arguments) => images::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Up(arguments) => up::up(&arguments),
        Command::Down => up::down(),
    }
}
