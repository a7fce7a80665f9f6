//! The levels that run other people's clients, unmodified, against what we build.
//!
//! Several of them insist on the standard ports (5671, 443, 8883): the world that they meet gets a loopback address of its own.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::Context;

use crate::{local::World, packages, process, step::step};

/// Devices that the harness registers for one run.
const DEVICES: u32 = 40;

/// Why this machine cannot bind the standard ports, if so.
pub(crate) fn missing() -> Option<String> {
    let address = own_address();
    match TcpListener::bind((address, 443)) {
        Ok(_) => None,
        Err(error) => Some(format!(
            "cannot listen on {address}:443 ({error}); allow it with: sudo sysctl net.ipv4.ip_unprivileged_port_start=443"
        )),
    }
}

/// A loopback address that no other run on this machine uses at the same time.
fn own_address() -> Ipv4Addr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 | (high & 0x3f), low, 2)
}

/// The Azure SDKs and rhea against the hub alone.
pub(crate) fn sdk() -> anyhow::Result<()> {
    let scripts = packages::node(Path::new("tests/clients/node"))?;
    let directory = process::workspace_root().join("target/clients");
    let hub = step("build the local hub", || crate::local::build("hub"))?;
    let world = World { directory, hub_address: own_address(), hub_ports: Some((5671, 443)), devices: DEVICES };
    let (_hub, json) = world.start_hub(&hub)?;
    step("Azure SDKs for Node and rhea", || node(&scripts, &json, &["sdk-device.test.mjs", "sdk-service.test.mjs"]))
}

/// Runs test files of `tests/clients/node` one after the other, each with devices of its own.
fn node(scripts: &Path, json: &Path, files: &[&str]) -> anyhow::Result<()> {
    for (n, file) in files.iter().enumerate() {
        let mut command = Command::new("node");
        command.args(["--test", "--test-reporter=spec", file]).current_dir(scripts);
        command.env("LOCAL_JSON", json).env("FIRST_DEVICE", (n * 10).to_string());
        command.env("NODE_EXTRA_CA_CERTS", json.with_file_name("ca.pem"));
        process::run(&mut command).with_context(|| format!("tests/clients/node/{file}"))?;
    }
    Ok(())
}

/// How long a program of ours may take until it listens.
pub(crate) const READY_LIMIT: Duration = Duration::from_secs(30);
