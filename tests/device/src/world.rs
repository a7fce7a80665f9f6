//! `local.json`: what `cargo xtask local` and the test harness write down about the world they started.

use std::{collections::HashMap, fs, path::Path};

use anyhow::Context;
use serde::Deserialize;

/// The world's description; fields that devices do not need are left out here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct World {
    /// PEM file with the CA that signed every certificate in it.
    pub ca_file: std::path::PathBuf,
    /// The hub.
    pub hub: Hub,
    /// The gateway, where there is one.
    pub gateway: Option<Gateway>,
    /// Registered devices.
    pub devices: Vec<Registered>,
}

/// The hub's addresses.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hub {
    /// The host in user names and tokens.
    pub host_name: String,
}

/// The gateway's listeners.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gateway {
    /// The name in its certificate.
    pub host_name: String,
    /// `address:port` by listener name.
    pub listeners: HashMap<String, String>,
}

/// One registered device.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registered {
    /// Its id.
    pub device_id: String,
    /// Base64.
    pub primary_key: String,
}

impl World {
    /// Reads `path`.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not a description of a local world", path.display()))
    }
}
