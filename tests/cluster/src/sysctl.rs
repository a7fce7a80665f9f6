//! The kernel's settings that a kubelet changes for the whole machine: remembered before, and put back after.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context;

use crate::run::Run;

/// Those that the kubelet writes at its start and that no namespace holds.
const CHANGED: [&str; 6] = [
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
];

const FILE: &str = "sysctl.json";

/// Writes into the run's directory what was before any kubelet of this harness.
pub(crate) fn remember(run: &Run) -> anyhow::Result<()> {
    let mut before = BTreeMap::new();
    for name in CHANGED {
        if let Ok(value) = fs::read_to_string(Path::new("/proc/sys").join(name)) {
            before.insert(name.to_owned(), value.trim().to_owned());
        }
    }
    // another run's kubelets have changed them already
    for other in run.others()? {
        before.extend(read(&other)?);
    }
    fs::write(run.directory.join(FILE), serde_json::to_string(&before)?).context("cannot remember the settings")
}

/// Puts back what [`remember`] wrote.
pub(crate) fn restore(directory: &Path) -> anyhow::Result<()> {
    for (name, value) in read(directory)? {
        let path = Path::new("/proc/sys").join(name);
        if fs::read_to_string(&path).is_ok_and(|now| now.trim() != value) {
            fs::write(&path, value).with_context(|| format!("cannot put back {}", path.display()))?;
        }
    }
    Ok(())
}

/// Whether the run in this directory has nodes.
pub(crate) fn is_remembered(directory: &Path) -> bool {
    directory.join(FILE).exists()
}

fn read(directory: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    match fs::read_to_string(directory.join(FILE)) {
        Ok(text) => serde_json::from_str(&text).context("cannot read the settings"),
        Err(_) => Ok(BTreeMap::new()),
    }
}
