//! `cargo xtask bench`: builds what is measured and hands over to the `bench` program.

use std::{fs, process::Command};

use crate::{
    local::{self, Profile},
    process,
    step::step,
};

/// What to measure; the rest is the bench program's own.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Workloads: W1 W8 L1k IDLE-1000 IDLE-10000 CONNECT, by all their transports, or one row: W1 W1-tls (devices by
    /// TLS) W1-amqps (AMQP by TLS) W1-tls-amqps … CONNECT-tls-certificate CONNECT-tls-resumed; all without one
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Three rounds of three seconds, late ones kept: to see that it runs, not to compare
    #[arg(long)]
    quick: bool,
    /// Also the second floor, the null server and the peers that are installed
    #[arg(long)]
    peers: bool,
}

/// Builds and runs.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let programs = ["gateway", "device", "bench"];
    let [gateway, device, bench] =
        step("build gateway, devices and floors (release)", || local::build(programs, Profile::Release))?;
    let directory = process::workspace_root().join("target/bench");
    fs::create_dir_all(&directory)?;
    let mut command = Command::new(bench);
    command.arg("run").args(&arguments.names);
    command.arg("--gateway").arg(gateway).arg("--device").arg(device).arg("--directory").arg(directory);
    command.args(["--commit", &told("git", &["describe", "--always", "--dirty", "--exclude", "*"])]);
    command.args(["--rustc", &told("rustc", &["--version"])]);
    if arguments.quick {
        command.arg("--quick");
    }
    if arguments.peers {
        command.arg("--peers");
    }
    process::run(&mut command)
}

/// What a program says, `unknown` if it cannot be asked.
fn told(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success());
    output.map_or_else(|| "unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
