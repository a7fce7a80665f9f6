//! Memory of one server with N silent devices, against the same after one connection came and went. Every device has subscribed
//! and sent one message: both of its links are attached.

use std::{thread, time::Duration};

use anyhow::{Context, ensure};

use crate::{
    figures::{Memory, Outcome, Sample},
    load::{self, Comparison},
    measure::{self, Cpu, Kernel},
    progress::Progress,
    workload::Workload,
    world::{self, Place},
};

/// Seconds the devices stay; memory is read after the sixth, nine after the last connected.
const SECONDS: f64 = 8.1;
const SETTLED: u64 = 6;
/// Seconds before the first of them.
const WARM_UP_S: u32 = 3;

/// One server after the other, each fresh: what is compared is memory, and a process does not give all of it back.
pub(crate) fn measure(
    Comparison { place, workload, pace, kinds }: Comparison<'_>,
    outcome: &mut Outcome,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    for (&kind, server) in kinds.iter().zip(&mut outcome.servers) {
        let sample = one(place, workload, kind).with_context(|| kind.name())?;
        let kib = sample.memory.map_or(f64::NAN, |memory| memory.private_kib);
        progress.step(pace.expected_s(workload, 1), &format!("{workload} {}: {kib:.2} KiB a device", kind.name()));
        server.samples.push(sample);
    }
    Ok(())
}

fn one(place: &Place, workload: Workload, kind: world::Kind) -> anyhow::Result<Sample> {
    let server = place.start(kind, workload)?;
    let one = load::command(place, workload, 1, &server, 1, 1.0).output()?;
    ensure!(one.status.success(), "one connection: {}", String::from_utf8_lossy(&one.stderr));
    thread::sleep(Duration::from_secs(1));
    let accepted_before = server.accepted()?;
    let (before, kernel_before) = (measure::private_kib(server.id())?, Kernel::read()?);
    let mut memory = None;
    let (mut seconds, mut first, mut last) = (0, Cpu::default(), Cpu::default());
    let devices = workload.devices();
    let mut load = load::command(place, workload, WARM_UP_S, &server, devices, SECONDS);
    load::each_line(&mut load, |line| {
        if line.phase != "send" {
            return Ok(());
        }
        seconds += 1;
        last = Cpu::of(server.id())?;
        if seconds == 1 {
            first = last;
        }
        if seconds == SETTLED {
            let each = |before: f64, after: f64| (after - before) / devices as f64;
            let kernel = Kernel::read()?;
            memory = Some(Memory {
                private_kib: each(before, measure::private_kib(server.id())?),
                slab_kib: each(kernel_before.slab_kib, kernel.slab_kib),
                tcp_kib: each(kernel_before.tcp_kib, kernel.tcp_kib),
            });
        }
        Ok(())
    })
    .with_context(|| format!("{devices} devices"))?;
    ensure!(memory.is_some(), "the load told of fewer than {SETTLED} seconds");
    let accepted = server.accepted()?.zip(accepted_before).map(|(after, before)| after - before);
    ensure!(accepted.is_none_or(|count| count == devices as u64), "{accepted:?} of {devices} devices sent a message");
    let count = seconds - 1;
    Ok(Sample { cpu: last.since(first).per(count), count, latency: None, resumed_share: None, memory, late_share: 0.0 })
}
