//! `cargo xtask crds`: writes the CustomResourceDefinitions that the types of `crds` make.

use std::process::{Command, Stdio};

use anyhow::Context;

/// Where they are committed, from the workspace's root; a test of `crds` compares.
const PATH: &str = "crds/protocolgateway.yaml";

/// Where to write.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Compare only: fail if the committed file is stale
    #[arg(long)]
    check: bool,
}

/// Writes, or compares.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let made = made()?;
    let committed = std::fs::read(PATH).unwrap_or_default();
    if committed == made {
        println!("{PATH} is up to date");
        return Ok(());
    }
    anyhow::ensure!(!arguments.check, "{PATH} is stale: run `cargo xtask crds`");
    std::fs::write(PATH, made).with_context(|| format!("write {PATH}"))?;
    println!("{PATH} written");
    Ok(())
}

/// Asks the crate itself: so the other commands need not be built with all of Kubernetes' types.
fn made() -> anyhow::Result<Vec<u8>> {
    let arguments = ["run", "--quiet", "--package", "crds", "--example", "print"];
    let output = Command::new("cargo").args(arguments).stderr(Stdio::inherit()).output().context("run cargo")?;
    anyhow::ensure!(output.status.success(), "cargo {}: {}", arguments.join(" "), output.status);
    Ok(output.stdout)
}
