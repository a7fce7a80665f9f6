//! `cargo xtask up` and `down`: a Kubernetes with operator, hub and fleet that stays on this machine, and its end.

use crate::{cluster, process};

/// How much of it; the words are those of the program `cluster`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Devices that the hub knows, and that connect once as a proof [default: 10]
    #[arg(long)]
    devices: Option<u32>,
    /// The cluster alone: no operator, no hub, no fleet
    #[arg(long)]
    bare: bool,
}

/// Makes whatever of it is not there, and says how to use it.
pub(crate) fn up(arguments: &Arguments) -> anyhow::Result<()> {
    let mut command = cluster::program();
    command.arg("up");
    if let Some(devices) = arguments.devices {
        command.args(["--devices", &devices.to_string()]);
    }
    if arguments.bare {
        command.arg("--bare");
    }
    process::run(&mut command)
}

/// Removes every trace.
pub(crate) fn down() -> anyhow::Result<()> {
    process::run(cluster::program().arg("down"))
}
