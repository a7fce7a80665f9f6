//! The cases of `tests/cases`, and what is decided in each.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crds::ProtocolGateway;
use operator::{
    desired::{self, Desired, Installation, Invalid},
    observe::Observed,
    scaling::{self, Ledger, Plan},
};

/// The leader that decides.
pub(crate) const EPOCH: i64 = 7;

pub(crate) fn installation() -> Installation {
    Installation { gateway_image: "registry.example/gateway:1.0.0".to_owned(), lease_seconds: 15 }
}

pub(crate) fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut cases: Vec<PathBuf> =
        fs::read_dir(root).expect("there are cases").map(|entry| entry.expect("it can be read").path()).collect();
    cases.sort();
    cases
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn decide(case: &Path) -> (ProtocolGateway, Observed, Plan, Result<Desired, Invalid>) {
    let gateway: ProtocolGateway = read(&case.join("gateway.yaml"));
    let observed: Observed = read(&case.join("observed.yaml"));
    let mut ledger = Ledger::new(0, &[]);
    ledger.see(observed.pods.iter().map(|pod| (pod.name.as_str(), pod.deletion_cost)), 0);
    let plan = scaling::plan(&gateway, &observed, EPOCH, &ledger);
    let decided = desired::desired(&gateway, &observed, &plan, &installation());
    (gateway, observed, plan, decided)
}
