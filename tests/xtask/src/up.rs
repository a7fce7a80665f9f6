//! `cargo xtask up` and `down`: a Kubernetes that stays on this machine, and its end.

use crate::{cluster, process};

/// Starts the cluster if it is not there, and says how to reach it.
pub(crate) fn up() -> anyhow::Result<()> {
    process::run(cluster::program().arg("up"))
}

/// Removes every trace.
pub(crate) fn down() -> anyhow::Result<()> {
    process::run(cluster::program().arg("down"))
}
