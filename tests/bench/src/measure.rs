//! What a process and the kernel used, read from procfs.

use std::fs;

use anyhow::Context;
use serde::Serialize;

/// CPU time of all threads of a process, in microseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Cpu {
    pub(crate) user_us: f64,
    pub(crate) system_us: f64,
}

impl Cpu {
    /// Of process `id`, since its start.
    pub(crate) fn of(id: u32) -> anyhow::Result<Self> {
        let path = format!("/proc/{id}/stat");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        // the command's name may hold blanks: fields are counted behind its parenthesis
        let fields = text.rsplit_once(')').context("stat without a command")?.1.split_whitespace().collect::<Vec<_>>();
        let ticks = |n: usize| -> anyhow::Result<f64> { Ok(fields.get(n).context("short stat")?.parse::<f64>()?) };
        let tick_us = 1e6 / rustix::param::clock_ticks_per_second() as f64;
        Ok(Self { user_us: ticks(11)? * tick_us, system_us: ticks(12)? * tick_us })
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self { user_us: self.user_us - earlier.user_us, system_us: self.system_us - earlier.system_us }
    }

    pub(crate) fn total_us(self) -> f64 {
        self.user_us + self.system_us
    }

    pub(crate) fn per(self, count: u64) -> Self {
        let count = count.max(1) as f64;
        Self { user_us: self.user_us / count, system_us: self.system_us / count }
    }
}

/// Private memory of process `id`, in KiB: what would be free if it ended.
pub(crate) fn private_kib(id: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{id}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let field = |name| number(&text, name, 1).with_context(|| format!("{path} has no {name}"));
    Ok(field("Private_Clean:")? + field("Private_Dirty:")?)
}

/// Memory of the kernel that connections cost, of the whole machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel {
    pub(crate) slab_kib: f64,
    pub(crate) tcp_kib: f64,
}

impl Kernel {
    pub(crate) fn read() -> anyhow::Result<Self> {
        let meminfo = fs::read_to_string("/proc/meminfo").context("cannot read meminfo")?;
        let sockstat = fs::read_to_string("/proc/net/sockstat").context("cannot read sockstat")?;
        let tcp_pages = tcp_pages(&sockstat).context("sockstat has no TCP mem")?;
        Ok(Self {
            slab_kib: number(&meminfo, "Slab:", 1).context("meminfo has no Slab")?,
            tcp_kib: tcp_pages * rustix::param::page_size() as f64 / 1024.0,
        })
    }
}

/// The last number of the line `TCP: inuse 5 orphan 0 tw 2 alloc 7 mem 1`.
fn tcp_pages(sockstat: &str) -> Option<f64> {
    let line = sockstat.lines().find(|line| line.starts_with("TCP:"))?;
    line.split_once(" mem ")?.1.split_whitespace().next()?.parse().ok()
}

/// Word `n` of the line that begins with `name`.
fn number(text: &str, name: &str, n: usize) -> Option<f64> {
    text.lines().find(|line| line.starts_with(name))?.split_whitespace().nth(n)?.parse().ok()
}

/// The median and the range of `values`.
pub(crate) fn median(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => (f64::NAN, f64::NAN, f64::NAN),
        n => {
            let middle = if n % 2 == 1 { sorted[n / 2] } else { f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]) };
            (middle, sorted[0], sorted[n - 1])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), (2.5, 1.0, 4.0));
    }

    #[test]
    fn tcp_memory_is_counted_in_pages() {
        let text = "sockets: used 290\nTCP: inuse 5 orphan 0 tw 2 alloc 7 mem 12\nUDP: inuse 1 mem 3\n";
        assert_eq!(tcp_pages(text), Some(12.0));
        assert!(Kernel::read().unwrap().slab_kib > 100.0);
    }

    #[test]
    fn this_process_has_used_time_and_memory() {
        let id = std::process::id();
        assert!(private_kib(id).unwrap() > 100.0);
        // by another clock of the kernel, and not by the wall's: others may have the processor
        let used_us = || {
            let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
            used.tv_sec as f64 * 1e6 + used.tv_nsec as f64 / 1e3
        };
        while used_us() < 50_000.0 {
            std::hint::spin_loop();
        }
        let before = used_us();
        let measured = Cpu::of(id).unwrap().total_us();
        // user and system time are both counted in whole ticks, and of a thread that runs the last is not counted yet
        let ticks = 3e6 / rustix::param::clock_ticks_per_second() as f64;
        assert!((before - ticks..=used_us()).contains(&measured), "{measured} is not {before}");
    }
}
