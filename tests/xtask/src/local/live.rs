//! The live line while devices run, and the end by time or signal.

use std::{
    fs,
    io::{BufRead, BufReader, IsTerminal},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde::Deserialize;

use super::{
    judge::{self, RUN, Report},
    world::Description,
};
use crate::process::Background;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    phase: String,
    connected: usize,
    sent: u64,
    acknowledged: u64,
    p50_us: f64,
    p99_us: f64,
}

/// What the devices do.
pub(super) struct Load {
    pub(super) devices: u32,
    /// Messages per second of all devices together.
    pub(super) rate: f64,
    /// `None`: until they are stopped.
    pub(super) seconds: Option<u64>,
}

/// Set by SIGINT and SIGTERM.
pub(super) fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // the second one ends this process at once
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag))?;
        signal_hook::flag::register(signal, Arc::clone(&flag))?;
    }
    Ok(flag)
}

/// Waits for the signal, the time or the early end of a program.
pub(super) fn until_stopped(
    stop: &AtomicBool,
    seconds: Option<u64>,
    programs: &mut [&mut Background],
) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !stop.load(Relaxed) && seconds.is_none_or(|seconds| begun.elapsed() < Duration::from_secs(seconds)) {
        still_run(programs)?;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Runs the devices, with a line each second, until the time or the signal; returns what they report. The early end of a program
/// beside them is an error: what the gateway took with it nobody has counted.
pub(super) fn devices(
    program: &Path,
    json: &Path,
    description: &Description,
    load: &Load,
    stop: &AtomicBool,
    programs: &mut [&mut Background],
) -> anyhow::Result<Report> {
    /// Ten years: until it is stopped.
    const FOR_EVER: u64 = 10 * 365 * 24 * 3600;
    let directory = json.parent().context("local.json stands in a directory")?;
    let (report, stop_file) = (directory.join("devices.json"), directory.join("stop"));
    for stale in [&report, &stop_file] {
        if stale.exists() {
            fs::remove_file(stale)?;
        }
    }
    let mut command = Command::new(program);
    command.args(["load", "--json", "--reconnect", "--run", RUN, "--window", "16"]).arg("--world").arg(json);
    command.args(["--devices", &load.devices.to_string(), "--rate", &load.rate.to_string()]);
    command.args(["--for", &load.seconds.unwrap_or(FOR_EVER).to_string()]);
    command.arg("--report").arg(&report).arg("--stop-file").arg(&stop_file);
    // not in our process group: Ctrl-C is for us, and the devices finish in order
    command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
    let mut child = command.spawn().context("cannot start the devices")?;
    let lines = BufReader::new(child.stdout.take().context("stdout is a pipe")?).lines();
    if let Err(error) = watch(lines, description, stop, &stop_file, programs) {
        child.kill()?;
        child.wait()?;
        return Err(error);
    }
    eprintln!();
    if !child.wait()?.success() {
        bail!("the devices failed");
    }
    still_run(programs)?;
    Ok(serde_json::from_slice(&fs::read(&report)?)?)
}

/// Tells of every line until the devices end.
fn watch(
    lines: impl Iterator<Item = std::io::Result<String>>,
    description: &Description,
    stop: &AtomicBool,
    stop_file: &Path,
    programs: &mut [&mut Background],
) -> anyhow::Result<()> {
    let mut sum = Sum::default();
    for line in lines {
        let line = line?;
        still_run(programs)?;
        sum.tell(&serde_json::from_str(&line)?, description)?;
        if stop.load(Relaxed) {
            fs::write(stop_file, "")?;
        }
    }
    Ok(())
}

fn still_run(programs: &mut [&mut Background]) -> anyhow::Result<()> {
    programs.iter_mut().try_for_each(|program| program.still_runs())
}

#[derive(Default)]
struct Sum {
    sent: u64,
    acknowledged: u64,
}

impl Sum {
    fn tell(&mut self, line: &Line, description: &Description) -> anyhow::Result<()> {
        if line.phase == "total" {
            return Ok(());
        }
        self.sent += line.sent;
        self.acknowledged += line.acknowledged;
        let text = format!(
            "connected {}  sent {}  acknowledged {}  stored {}  p50 {:.2} ms  p99 {:.2} ms",
            line.connected,
            self.sent,
            self.acknowledged,
            judge::stored(description)?,
            line.p50_us / 1e3,
            line.p99_us / 1e3,
        );
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K  {text}");
        } else {
            eprintln!("  {text}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_early_end_of_the_gateway_ends_the_run_with_its_name() {
        let description = serde_json::json!({
            "caFile": "", "devices": [],
            "hub": {"hostName": "localhost", "amqps": "127.0.0.1:1", "https": "https://127.0.0.1:1", "partitions": 1},
            "service": {"connectionString": "", "sasToken": "", "saslPlainUser": ""},
        });
        let description: Description = serde_json::from_value(description).unwrap();
        let total = r#"{"phase":"total","connected":1,"sent":1,"acknowledged":1,"p50Us":1.0,"p99Us":1.0}"#;
        let run = |program: &mut Background| {
            let lines = [Ok(total.to_owned())].into_iter();
            watch(lines, &description, &AtomicBool::new(false), Path::new(""), &mut [program])
        };
        let mut serves = Background::start("gateway", Command::new("sleep").arg("60")).unwrap();
        run(&mut serves).unwrap();
        let mut ended = Background::start("gateway", &mut Command::new("false")).unwrap();
        while ended.still_runs().is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(run(&mut ended).unwrap_err().to_string().starts_with("gateway ended with"));
    }
}
