//! Results for people: a table a workload, and the gateway's ratio to each server, formed round by round.

use std::fmt::Write as _;

use crate::{
    figures::{Outcome, Sample, Servers},
    measure::median,
    workload::{Goals, Kind, ROUNDS},
};

/// One figure of a sample, if it was measured.
type Figure<'a> = &'a dyn Fn(&Sample) -> Option<f64>;

/// Prints one workload.
pub(crate) fn print(outcome: &Outcome) {
    println!("\n{}", text(outcome));
}

fn text(outcome: &Outcome) -> String {
    let goals = outcome.key.goals();
    let titles = format!(
        "{:22} {:>24} {:>15} {:>9} {:>8} {:>8} {:>8} {:>8}",
        "server", "user + system = CPU µs", "(range)", "count", "p50 µs", "p99 µs", "p99.9", "max"
    );
    let measured = outcome.servers.iter().filter(|server| !server.samples.is_empty());
    let mut lines = vec![heading(outcome), titles];
    lines.extend(measured.map(row));
    lines.extend(memory(outcome, goals));
    lines.extend(resumed(outcome));
    lines.extend(ratios(outcome, goals));
    lines.extend(outcome.peers.iter().chain(&outcome.missing).cloned());
    lines.extend(outcome.problems.iter().map(|problem| format!("FAILED: {problem}")));
    lines.join("\n  ")
}

/// What is counted, and how good the rounds were.
fn heading(outcome: &Outcome) -> String {
    let mut out = format!("{} · {} · CPU per {}", outcome.workload, outcome.transports, outcome.key.unit());
    let rounds = outcome.servers.first().map_or(0, |server| server.samples.len());
    let discarded = outcome.discarded.len();
    let fewer = match outcome.key.kind {
        Kind::Idle(_) => String::new(),
        _ if (1..ROUNDS).contains(&rounds) => format!(" of the {ROUNDS} that the rules ask for"),
        _ => String::new(),
    };
    let rounds = if rounds == 1 { "1 round".to_owned() } else { format!("{rounds} rounds") };
    let _ = write!(out, " · {rounds}{fewer}, {discarded} discarded");
    if let (Some(after_us), true) = (outcome.late_after_us, outcome.key.is_paced()) {
        let samples = outcome.servers.iter().flat_map(|server| &server.samples);
        let share = samples.map(|sample| sample.late_share).fold(0.0, f64::max) * 100.0;
        let _ =
            write!(out, " · late at most {share:.2} % (a send that begins {:.1} ms after it was due)", after_us / 1e3);
    }
    out
}

fn row(server: &Servers) -> String {
    let each = |value: &dyn Fn(&Sample) -> f64| median(&server.samples.iter().map(value).collect::<Vec<_>>());
    let (cpu, low, high) = each(&|sample| sample.cpu.total_us());
    let latency = |value: &dyn Fn(&crate::figures::Latency) -> f64| {
        let middle = each(&|sample| sample.latency.as_ref().map_or(f64::NAN, value)).0;
        if middle.is_nan() { "–".to_owned() } else { format!("{middle:.0}") }
    };
    // the parts of the median: medians of parts do not add up to it
    let sum = |value: &dyn Fn(&Sample) -> f64| server.samples.iter().map(value).sum::<f64>();
    let user_share = sum(&|sample| sample.cpu.user_us) / sum(&|sample| sample.cpu.total_us()).max(f64::MIN_POSITIVE);
    format!(
        "{:22} {:>7.2} +{:>6.2} ={:>7.2} {:>15} {:>9.0} {:>8} {:>8} {:>8} {:>8}",
        server.name,
        cpu * user_share,
        cpu * (1.0 - user_share),
        cpu,
        format!("({low:.2}–{high:.2})"),
        each(&|sample| sample.count as f64).0,
        latency(&|latency| latency.p50_us),
        latency(&|latency| latency.p99_us),
        latency(&|latency| latency.p999_us),
        latency(&|latency| latency.max_us),
    )
}

/// Memory of each server, where it was measured; the gateway's beside its goal.
fn memory(outcome: &Outcome, goals: Goals) -> Vec<String> {
    let servers = outcome.servers.iter().enumerate();
    let measured = servers.filter_map(|(n, server)| Some((n, server.name, server.samples.first()?.memory?)));
    let line = |(n, name, memory): (usize, &str, crate::figures::Memory)| {
        let goal = if n == 0 { judged(memory.private_kib, goals.private_kib, " KiB") } else { String::new() };
        format!(
            "{name}: {:.2} KiB private a device{goal}; in the kernel, both ends: Slab {:.2}, TCP {:.2} KiB",
            memory.private_kib, memory.slab_kib, memory.tcp_kib
        )
    };
    measured.map(line).collect()
}

/// How many of the TLS sessions were resumed ones, by server, where connections are what is measured.
fn resumed(outcome: &Outcome) -> Option<String> {
    let shares = outcome.servers.iter().filter_map(|server| {
        let shares = server.samples.iter().map(|sample| sample.resumed_share).collect::<Option<Vec<_>>>()?;
        let (middle, low, high) = median(&shares);
        let percent = |share: f64| share * 100.0;
        let all = format!("{:.1} % ({:.1}–{:.1})", percent(middle), percent(low), percent(high));
        (!shares.is_empty()).then(|| format!("{} {all}", server.name))
    });
    let shares = shares.collect::<Vec<_>>().join(" · ");
    (!shares.is_empty()).then(|| format!("TLS sessions resumed: {shares}"))
}

/// The gateway's figures over those of each other server; the goals are against the first of them.
fn ratios(outcome: &Outcome, goals: Goals) -> Vec<String> {
    let [gateway, others @ ..] = outcome.servers.as_slice() else { return Vec::new() };
    let measured = others.iter().enumerate().filter(|(_, other)| !other.samples.is_empty());
    let line = |(n, other): (usize, &Servers)| {
        let goals = if n == 0 { goals } else { Goals::default() };
        let p50 = |sample: &Sample| sample.latency.map(|latency| latency.p50_us);
        let p99 = |sample: &Sample| sample.latency.map(|latency| latency.p99_us);
        let cpu = |sample: &Sample| Some(sample.cpu.total_us()).filter(|_| sample.memory.is_none());
        let kib = |sample: &Sample| sample.memory.map(|memory| memory.private_kib);
        let figures: [(&str, Figure<'_>, Option<f64>); 4] =
            [("CPU", &cpu, goals.cpu), ("p50", &p50, goals.p50), ("p99", &p99, goals.p99), ("memory", &kib, None)];
        let shown = figures.into_iter().filter_map(|(name, value, goal)| {
            let (middle, low, high) = ratio(&gateway.samples, &other.samples, value)?;
            Some(format!("{name} {middle:.2} ({low:.2}–{high:.2}){}", judged(middle, goal, "")))
        });
        format!("gateway ÷ {}: {}", other.name, shown.collect::<Vec<_>>().join(" · "))
    };
    measured.map(line).collect()
}

/// `, goal ≤ 1.25: met`.
fn judged(value: f64, goal: Option<f64>, unit: &str) -> String {
    goal.map_or_else(String::new, |goal| {
        format!(", goal ≤ {goal}{unit}: {}", if value <= goal { "met" } else { "MISSED" })
    })
}

/// Median and range of one server's figure over the other's, round by round; `None` if it was not measured.
fn ratio(one: &[Sample], other: &[Sample], value: Figure<'_>) -> Option<(f64, f64, f64)> {
    let ratios = one.iter().zip(other).map(|(one, other)| Some(value(one)? / value(other)?));
    let ratios = ratios.collect::<Option<Vec<_>>>()?;
    (!ratios.is_empty()).then(|| median(&ratios))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{figures::Latency, measure::Cpu, workload::Workload};

    fn sample(cpu_us: f64, p50_us: f64) -> Sample {
        Sample {
            cpu: Cpu { user_us: cpu_us / 4.0, system_us: cpu_us * 0.75 },
            count: 1000,
            latency: Some(Latency { p50_us, p99_us: 3.0 * p50_us, p999_us: 0.0, max_us: 0.0 }),
            resumed_share: None,
            memory: None,
            late_share: 0.003,
        }
    }

    fn l1k(gateway: Vec<Sample>, floor: Vec<Sample>) -> Outcome {
        let workload = Workload::named(&["L1k-tls".to_owned()]).unwrap()[0];
        let servers = vec![Servers { name: "gateway", samples: gateway }, Servers { name: "floor", samples: floor }];
        Outcome { servers, late_after_us: Some(1000.0), ..Outcome::new(workload) }
    }

    #[test]
    fn ratios_are_formed_within_each_round_before_the_median() {
        let gateway = vec![sample(10.0, 100.0), sample(30.0, 100.0), sample(20.0, 100.0)];
        let floor = vec![sample(10.0, 90.0), sample(20.0, 90.0), sample(10.0, 90.0)];
        let text = text(&l1k(gateway, floor));
        assert!(text.contains("gateway ÷ floor: CPU 1.50 (1.00–2.00), goal ≤ 1.25: MISSED"), "{text}");
        assert!(text.contains("p50 1.11 (1.11–1.11), goal ≤ 1.25: met"), "{text}");
        assert!(
            text.contains("L1k-tls · devices by TLS 1.3, AMQP by plain TCP · CPU per acknowledged message"),
            "{text}"
        );
        assert!(text.contains("3 rounds of the 5 that the rules ask for, 0 discarded"), "{text}");
        assert!(text.contains("late at most 0.30 % (a send that begins 1.0 ms after it was due)"), "{text}");
    }

    #[test]
    fn a_workload_that_failed_says_so_and_divides_nothing() {
        let mut outcome = l1k(Vec::new(), Vec::new());
        outcome.problems.push("LOSS: 2 messages".to_owned());
        let text = text(&outcome);
        assert!(text.contains("FAILED: LOSS: 2 messages"), "{text}");
        assert!(!text.contains('÷'), "{text}");
    }

    #[test]
    fn how_many_sessions_were_resumed_is_told_of_each_server() {
        let of =
            |shares: [f64; 3]| shares.map(|share| Sample { resumed_share: Some(share), ..sample(10.0, 1.0) }).into();
        let text = text(&l1k(of([1.0, 0.99, 1.0]), of([0.0; 3])));
        assert!(text.contains("TLS sessions resumed: gateway 100.0 % (99.0–100.0) · floor 0.0 % (0.0–0.0)"), "{text}");
        let text = super::text(&l1k(vec![sample(10.0, 1.0)], vec![sample(10.0, 1.0)]));
        assert!(!text.contains("resumed"), "{text}");
    }
}
