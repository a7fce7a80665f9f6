//! `cargo xtask crds`: hands over to the program of `crds`, so that nothing else needs to build the Kubernetes types.

use std::process::Command;

use crate::process;

/// Where they are committed, from the workspace's root; a test of `crds` compares.
const PATH: &str = "crds/protocolgateway.yaml";

/// Write, or compare.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Compare only: fail if the committed file is stale
    #[arg(long)]
    check: bool,
}

/// Writes, or compares.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["run", "--quiet", "--locked", "--package", "crds", "--", PATH]);
    if arguments.check {
        command.arg("--check");
    }
    process::run(&mut command)
}
