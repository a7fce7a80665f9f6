//! Results for people (a table with ratios) and for programs (JSON).

use std::{fs, path::Path};

use serde::Serialize;

use crate::{
    measure::median,
    run::{Result, Sample},
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    commit: &'a str,
    kernel: String,
    cpus: usize,
    open_files: String,
    results: &'a [Result],
}

/// Prints the rows of one workload: each server, its figures, and the gateway's ratio to it.
pub(crate) fn print(result: &Result) {
    println!(
        "{:14} {:24} {:>26} {:>8} {:>8} {:>9} {:>9}  gateway ÷ this (range)",
        result.workload, "server", "µs/msg (user + system)", "KiB/dev", "count", "p50 µs", "p99 µs"
    );
    let gateway = &result.servers[0].1;
    for (name, samples) in &result.servers {
        let middle = |value: &dyn Fn(&Sample) -> f64| median(&samples.iter().map(value).collect::<Vec<_>>()).0;
        let kib = middle(&|sample| sample.kib_per_device.unwrap_or(f64::NAN));
        println!(
            "{:14} {name:24} {:>10.2} ({:>5.2} + {:>5.2}) {:>8} {:>8.0} {:>9.0} {:>9.0}  {}",
            "",
            middle(&|sample| sample.cpu.total_us()),
            middle(&|sample| sample.cpu.user_us),
            middle(&|sample| sample.cpu.system_us),
            if kib.is_nan() { "–".to_owned() } else { format!("{kib:.2}") },
            middle(&|sample| sample.count as f64),
            middle(&|sample| sample.p50_us),
            middle(&|sample| sample.p99_us),
            ratio(gateway, samples),
        );
    }
    for missing in &result.missing {
        println!("{:14} {missing}", "");
    }
}

/// The gateway's cost over this server's, round by round: CPU, or memory where that was measured.
fn ratio(gateway: &[Sample], other: &[Sample]) -> String {
    let cost = |sample: &Sample| sample.kib_per_device.unwrap_or_else(|| sample.cpu.total_us());
    let ratios: Vec<f64> = gateway.iter().zip(other).map(|(a, b)| cost(a) / cost(b)).collect();
    let (middle, low, high) = median(&ratios);
    format!("{middle:.2} ({low:.2}–{high:.2})")
}

/// Writes all results with what a reader needs to judge them.
pub(crate) fn write(path: &Path, commit: &str, results: &[Result]) -> anyhow::Result<()> {
    let first_line =
        |path: &str| fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().to_owned();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let open_files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default().to_owned();
    let document = Document {
        commit,
        kernel: first_line("/proc/sys/kernel/osrelease"),
        cpus: std::thread::available_parallelism().map_or(0, usize::from),
        open_files,
        results,
    };
    fs::write(path, serde_json::to_vec_pretty(&document)?)?;
    println!("written to {}", path.display());
    Ok(())
}
