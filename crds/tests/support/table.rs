//! The table `specs.yaml`: specs, and what an API server says to them.

use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
pub(crate) struct Table {
    pub(crate) valid: Vec<Case>,
    pub(crate) gateway: Vec<Case>,
    pub(crate) cluster: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    #[serde(rename = "case")]
    pub(crate) title: String,
    #[serde(default = "default_name")]
    pub(crate) name: String,
    pub(crate) spec: Value,
    /// Part of the message; nothing where it is taken.
    #[serde(default)]
    pub(crate) error: String,
}

fn default_name() -> String {
    "gw".to_owned()
}

impl Table {
    pub(crate) fn read() -> Self {
        serde_yaml::from_str(include_str!("../specs.yaml")).expect("the table is of the form")
    }

    /// Every case, whatever is said to it.
    pub(crate) fn cases(&self) -> impl Iterator<Item = &Case> {
        self.valid.iter().chain(&self.gateway).chain(&self.cluster)
    }
}

impl Case {
    /// What a user writes, but for the namespace.
    pub(crate) fn object(&self) -> Value {
        json!({
            "apiVersion": crds::API_VERSION,
            "kind": crds::KIND,
            "metadata": {"name": self.name},
            "spec": self.spec,
        })
    }
}
