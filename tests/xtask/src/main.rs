//! `cargo xtask`: everything that is done to this workspace beside `cargo build`.
//!
//! What a step needs beyond the base image it installs by name into a cache outside the checkout and says so; it never
//! changes a file of the checkout other than below `target/`.

mod cache;
mod clients;
mod crds;
mod local;
mod packages;
mod process;
mod step;
mod test;

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
    /// Write the CustomResourceDefinitions from their types.
    Crds(crds::Arguments),
    /// Run the local IoT Hub and leave it running; Ctrl-C ends it.
    Local(local::Arguments),
    /// Run the tests of the levels named, or of all of them.
    Test(test::Arguments),
}

fn main() -> anyhow::Result<()> {
    std::env::set_current_dir(process::workspace_root())?;
    match Arguments::parse().command {
        Command::Crds(arguments) => crds::run(&arguments),
        Command::Local(arguments) => local::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
    }
}
