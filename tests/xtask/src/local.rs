//! `cargo xtask local`: hub, gateway and devices on this machine, every message accounted for.

mod certificates;
mod judge;
mod live;
mod world;

use std::net::Ipv4Addr;

use anyhow::bail;
use xtask::verdict::Verdict;

use crate::{
    process,
    step::{say, step},
};

pub(crate) use world::{Ports, World};
pub(crate) use xtask::build::{Profile, build, target};

/// What to start, and for how long.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Devices to register at the hub and to run; 0 leaves the field to your own clients
    #[arg(long, default_value_t = 10)]
    devices: u32,
    /// Messages per second of all devices together [default: one a second and device]
    #[arg(long)]
    rate: Option<f64>,
    /// End by itself after this time (30s, 5m), with the count of what was lost
    #[arg(long = "for", value_name = "TIME", value_parser = seconds)]
    time: Option<u64>,
    /// Development builds: sooner built, slower at work
    #[arg(long)]
    dev: bool,
}

/// Devices registered when none are run, for the user's own clients.
const SPARE_DEVICES: u32 = 10;

/// Builds and starts everything, says where it is and what to try, and stays until it is ended.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let programs = ["hub", "gateway", "device"];
    let (profile, name) = if arguments.dev { (Profile::Dev, "dev") } else { (Profile::Release, "release") };
    let [hub, gateway, device] =
        step(&format!("build hub, gateway and devices ({name})"), || build(programs, profile))?;
    let world = World {
        directory: process::workspace_root().join("target/local"),
        hub_address: Ipv4Addr::new(127, 0, 0, 2),
        gateway_address: Ipv4Addr::LOCALHOST,
        ports: Ports::StandardOrFree,
        devices: if arguments.devices == 0 { SPARE_DEVICES } else { arguments.devices },
    };
    let stop = live::stop_flag()?;
    let (mut hub, json) = step("start the hub", || world.start_hub(&hub))?;
    let mut gateway = step("start the gateway", || world.start_gateway(&gateway, &json))?;
    let description = world::Description::read(&json)?;
    description.introduce(&json);
    if arguments.devices == 0 {
        let end = arguments.time.map_or("until Ctrl-C".to_owned(), |seconds| format!("for {seconds} s"));
        say(&format!("no devices are run: this stays up {end}"));
        live::until_stopped(&stop, arguments.time, &mut [&mut hub, &mut gateway])?;
        // what your own clients sent, and what was acknowledged to them, they know themselves
        println!("stored {}", judge::stored(&description)?);
        return Ok(());
    }
    let rate = arguments.rate.unwrap_or(f64::from(arguments.devices));
    let load = live::Load { devices: arguments.devices, rate, seconds: arguments.time };
    let report = live::devices(&device, &json, &description, &load, &stop, &mut [&mut hub, &mut gateway])?;
    tell(judge::judge(&description, &report)?)
}

/// The closing line; an error if something was lost.
fn tell(verdict: Verdict) -> anyhow::Result<()> {
    println!("{verdict}");
    if verdict.lost > 0 {
        bail!("{} acknowledged messages are not at the hub", verdict.lost);
    }
    Ok(())
}

/// `30s`, `5m`, `1h` or plain seconds.
fn seconds(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(text.find(|each: char| !each.is_ascii_digit()).unwrap_or(text.len()));
    let unit = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(format!("{text} is not a time: write 30s, 5m or 1h")),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .ok_or(format!("{text} is not a time: write 30s, 5m or 1h"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_with_units() {
        assert_eq!(seconds("30s"), Ok(30));
        assert_eq!(seconds("5m"), Ok(300));
        assert_eq!(seconds("90"), Ok(90));
        assert!(seconds("half a minute").is_err());
        assert!(seconds("").is_err());
    }

    #[test]
    fn a_lost_message_is_an_error_and_a_duplicate_is_none() {
        let verdict = Verdict { sent: 3, acknowledged: 3, stored: 3, lost: 0, duplicated: 1 };
        tell(verdict).unwrap();
        let error = tell(Verdict { stored: 2, lost: 1, ..verdict }).unwrap_err();
        assert_eq!(error.to_string(), "1 acknowledged messages are not at the hub");
    }
}
