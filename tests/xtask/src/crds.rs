//! `cargo xtask crds`: hands over to the program of `crds`, so that nothing else needs to build the Kubernetes types.

use std::process::Command;

use crate::process;

/// Where they are committed, from the workspace's root: for people, and for the chart. A test of `crds` compares.
const PATHS: [&str; 2] = ["crds/protocolgateway.yaml", "charts/protocol-gateway-operator/files/protocolgateway.yaml"];

/// Write, or compare.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Compare only: fail if a committed file is stale
    #[arg(long)]
    check: bool,
}

/// Writes, or compares.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    PATHS.iter().try_for_each(|path| {
        let mut command = Command::new(env!("CARGO"));
        command.args(["run", "--quiet", "--locked", "--package", "crds", "--", path]);
        if arguments.check {
            command.arg("--check");
        }
        process::run(&mut command)
    })
}
