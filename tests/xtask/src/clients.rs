//! The levels that run other people's clients, unmodified, against what we build.
//!
//! Several of them insist on the standard ports (5671, 443, 8883): each part of the world that they meet gets a loopback
//! address of its own.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, bail, ensure};
use xtask::verdict::Verdict;

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
    step("cargo xtask local", everything_is_accounted_for)?;
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

/// `cargo xtask local` as its user runs it: its exit code, its closing line, what it leaves in `local.json`.
fn everything_is_accounted_for() -> anyhow::Result<()> {
    // not this very program: another level may have built it anew since it began
    let mut command = Command::new(env!("CARGO"));
    command.args(["xtask", "local", "--dev", "--devices", "5", "--rate", "100", "--for", "5s"]);
    let output = command.current_dir(process::workspace_root()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "it ended with {}", output.status);
    let printed = String::from_utf8(output.stdout)?;
    let last = printed.lines().last().unwrap_or_default();
    let numbers: Vec<u64> = last.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let &[sent, acknowledged, stored, lost, duplicated] = numbers.as_slice() else {
        bail!("its last line is {last:?}");
    };
    let verdict = Verdict { sent, acknowledged, stored, lost, duplicated };
    ensure!(last == verdict.to_string(), "its last line is {last:?}");
    // 500 on a machine that has time
    ensure!(sent >= 250 && (acknowledged, stored, lost, duplicated) == (sent, sent, 0, 0), "{verdict}");
    let json = std::fs::read(process::workspace_root().join("target/local/local.json"))?;
    let json: serde_json::Value = serde_json::from_slice(&json)?;
    ensure!(json["devices"].as_array().is_some_and(|devices| devices.len() == 5), "{json}");
    for field in ["primaryKey", "secondaryKey", "connectionString", "gatewayConnectionString", "sasToken"] {
        ensure!(json["devices"][4][field].as_str().is_some_and(|text| !text.is_empty()), "no {field} in {json}");
    }
    ensure!(json["service"]["connectionString"].is_string(), "no service in {json}");
    Ok(())
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
