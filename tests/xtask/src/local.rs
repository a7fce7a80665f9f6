//! `cargo xtask local`: the world on this machine, and the description of it that tests and people read.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

use crate::{
    clients::READY_LIMIT,
    process::{self, Background},
    step::{say, step},
};

/// What to start.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Devices to register at the hub
    #[arg(long, default_value_t = 10)]
    devices: u32,
}

/// One hub (and what stands in front of it) on one loopback address, described in `directory/local.json`.
pub(crate) struct World {
    /// Where the description, the CA and the logs go.
    pub(crate) directory: PathBuf,
    /// The hub's loopback address.
    pub(crate) hub_address: Ipv4Addr,
    /// AMQPS and HTTPS ports; `None` takes 5671 and 443 (8443 without the right to it), or what is free.
    pub(crate) hub_ports: Option<(u16, u16)>,
    /// Devices to register.
    pub(crate) devices: u32,
}

impl World {
    /// Starts the hub and waits until it listens; returns it with the path of its description.
    pub(crate) fn start_hub(&self, program: &Path) -> anyhow::Result<(Background, PathBuf)> {
        fs::create_dir_all(&self.directory)?;
        let json = self.directory.join("local.json");
        if json.exists() {
            fs::remove_file(&json)?;
        }
        let (amqps, https) = self.hub_ports.unwrap_or_else(|| {
            (free_port(self.hub_address, &[5671, 15671]), free_port(self.hub_address, &[443, 8443, 18443]))
        });
        let mut command = Command::new(program);
        command.args(["--address", &self.hub_address.to_string()]);
        command.args(["--amqps-port", &amqps.to_string(), "--https-port", &https.to_string()]);
        command.args(["--devices", &self.devices.to_string()]);
        command.arg("--ca-out").arg(self.directory.join("ca.pem"));
        command.arg("--json-out").arg(&json);
        let mut hub = Background::start("hub", &mut command)?;
        hub.wait_for_file(&json, READY_LIMIT)?;
        Ok((hub, json))
    }
}

/// The first of `wanted` that can be bound, or one that the system chooses (0).
fn free_port(address: Ipv4Addr, wanted: &[u16]) -> u16 {
    wanted.iter().copied().find(|&port| TcpListener::bind((address, port)).is_ok()).unwrap_or(0)
}

/// Builds one program of the workspace in release and returns its path.
pub(crate) fn build(program: &str) -> anyhow::Result<PathBuf> {
    process::run(Command::new(env!("CARGO")).args(["build", "--release", "--locked", "--package", program]))?;
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| process::workspace_root().join("target"), PathBuf::from);
    let path = target.join("release").join(program);
    if !path.exists() {
        bail!("{} was not built", path.display());
    }
    Ok(path)
}

/// Builds and starts the hub, says where it is and what to try, and stays until it is ended.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let hub = step("build the local hub", || build("hub"))?;
    let directory = process::workspace_root().join("target/local");
    let world = World { directory, hub_address: Ipv4Addr::LOCALHOST, hub_ports: None, devices: arguments.devices };
    let (mut hub, json) = world.start_hub(&hub).context("the local hub did not start")?;
    say(&format!("all of this as JSON: {}", json.display()));
    hub.wait()
}
