//! What a reader needs to judge the figures: versions, kernel, limits, commit.

use std::{fmt, fs, path::Path, process::Command};

use anyhow::Context;
use serde::Serialize;

use crate::figures::Outcome;

/// The JSON of a run.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document {
    pub(crate) machine: Machine,
    /// Of a server in a round.
    pub(crate) seconds: u32,
    pub(crate) results: Vec<Outcome>,
}

impl Document {
    /// Writes all results so far.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        fs::write(path, serde_json::to_vec_pretty(self)?).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Where and with what was measured.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Machine {
    commit: String,
    /// The programs measured: `gateway 0.1.0`; floors and null servers belong to `bench`.
    gateway: String,
    bench: &'static str,
    rustc: String,
    kernel: String,
    cpus: usize,
    cpu_model: String,
    /// Soft limit of this process, inherited by all others.
    open_files_max: u64,
}

impl Machine {
    pub(crate) fn read(commit: &str, rustc: &str, gateway: &Path) -> anyhow::Result<Self> {
        let version = Command::new(gateway).arg("--version").output();
        let version = version.with_context(|| format!("cannot start {}", gateway.display()))?;
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
        let limits = read("/proc/self/limits")?;
        let processors = read("/proc/cpuinfo")?;
        let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Ok(Self {
            commit: commit.to_owned(),
            gateway: first_line(&version.stdout),
            bench: concat!("bench ", env!("CARGO_PKG_VERSION")),
            rustc: rustc.to_owned(),
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            cpus: std::thread::available_parallelism()?.get(),
            cpu_model: model.map_or("unknown", |(_, model)| model).to_owned(),
            open_files_max: open_files(&limits).context("/proc/self/limits has no limit of open files")?,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { commit, gateway, bench, rustc, kernel, cpus, cpu_model, open_files_max } = self;
        writeln!(f, "commit {commit} · {gateway} · {bench} · {rustc}")?;
        write!(f, "Linux {kernel} · {cpus} CPUs, {cpu_model} · at most {open_files_max} open files a process")
    }
}

/// The first line that a program wrote.
pub(crate) fn first_line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).lines().next().unwrap_or_default().trim().to_owned()
}

/// The soft limit; an unlimited one is the largest number.
fn open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_of_open_files_is_read() {
        let text = "Limit                     Soft Limit           Hard Limit           Units\n\
                    Max open files            20000                40000                files     \n";
        assert_eq!(open_files(text), Some(20_000));
        assert_eq!(open_files("Max processes 1 2 processes"), None);
    }
}
