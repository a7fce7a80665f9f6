//! What tests over real sockets need: a CA, fake admin ports, the CPU of a thread.
#![expect(dead_code, reason = "each test binary uses what it needs of it")]

pub(crate) mod admin;
pub(crate) mod https;
pub(crate) mod pki;

use std::time::Duration;

/// CPU that this thread has used: fields 14 and 15 of its stat, in hundredths of a second.
pub(crate) fn thread_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("the kernel tells");
    let fields = stat.rsplit_once(')').expect("a name in parentheses").1;
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(ticks * 10)
}
