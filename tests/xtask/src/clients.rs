//! The levels that run other people's clients, unmodified, against what we build.
//!
//! Several of them insist on the standard ports (5671, 443, 8883): each part of the world that they meet gets a loopback
//! address of its own.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::Command,
};

use anyhow::Context;

use crate::{
    local::{self, Ports, Profile, World},
    packages, process,
    step::step,
};

/// Devices that the harness registers for one run.
const DEVICES: u32 = 80;

/// Why this machine cannot bind the standard ports, if so.
pub(crate) fn missing() -> Option<String> {
    let [hub, _] = own_addresses();
    match TcpListener::bind((hub, 443)) {
        Ok(_) => None,
        Err(error) => Some(format!(
            "cannot listen on {hub}:443 ({error}); allow it with: sudo sysctl net.ipv4.ip_unprivileged_port_start=443"
        )),
    }
}

/// Loopback addresses (hub, gateway) that no other run on this machine uses at the same time.
fn own_addresses() -> [Ipv4Addr; 2] {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    [2, 3].map(|last| Ipv4Addr::new(127, 64 | (high & 0x3f), low, last))
}

fn world(name: &str) -> World {
    let [hub_address, gateway_address] = own_addresses();
    let directory = process::workspace_root().join("target").join(name);
    World { directory, hub_address, gateway_address, ports: Ports::Standard, devices: DEVICES }
}

/// The Azure SDKs and rhea against the hub alone.
pub(crate) fn sdk() -> anyhow::Result<()> {
    let scripts = packages::node(Path::new("tests/clients/node"))?;
    let [hub] = step("build the local hub", || local::build(["hub"], Profile::Dev))?;
    let (_hub, json) = world("sdk").start_hub(&hub)?;
    step("Azure SDKs for Node and rhea", || node(&scripts, &json, &["sdk-device.test.mjs", "sdk-service.test.mjs"]))
}

/// MQTT clients and the Azure device SDK for Python through the gateway to the hub.
pub(crate) fn mqtt() -> anyhow::Result<()> {
    packages::debian("mosquitto_pub", "mosquitto-clients")?;
    let scripts = packages::node(Path::new("tests/clients/node"))?;
    let python = packages::python(Path::new("tests/clients/python/requirements.txt"))?;
    let [hub, gateway] = step("build hub and gateway", || local::build(["hub", "gateway"], Profile::Dev))?;
    let world = world("clients");
    let (_hub, json) = world.start_hub(&hub)?;
    let _gateway = world.start_gateway(&gateway, &json)?;
    step("MQTT.js through the gateway", || node(&scripts, &json, &["mqttjs.test.mjs"]))?;
    step("paho-mqtt, mosquitto and azure-iot-device through the gateway", || {
        let mut command = Command::new(python);
        command.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/clients/python"]);
        command.env("LOCAL_JSON", &json).env("FIRST_DEVICE", "10").env("NODE_SCRIPTS", &scripts);
        command.env("NODE_EXTRA_CA_CERTS", json.with_file_name("ca.pem")).env("PYTHONDONTWRITEBYTECODE", "1");
        process::run(&mut command)
    })
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
