//! Rounds of A B A B … on servers that stay, ratios to be formed within each.

use anyhow::Context;

use crate::{
    figures::{Discarded, Outcome, Sample},
    load::{self, Comparison},
    progress::Progress,
    world::Server,
};

/// Measures until there are as many good rounds as wanted; at most as many again are discarded and repeated.
pub(crate) fn measure(
    Comparison { place, workload, pace, kinds }: Comparison<'_>,
    outcome: &mut Outcome,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    let servers = kinds.iter().map(|&kind| place.start(kind, workload)).collect::<anyhow::Result<Vec<_>>>()?;
    let (round_s, rounds) = (pace.round_s(), pace.rounds_of(workload));
    let mut good = 0;
    while good < rounds && outcome.discarded.len() < rounds {
        let mut samples = Vec::new();
        for server in &servers {
            let (sample, late_after_us) = load::one_round(place, workload, pace, server)
                .with_context(|| format!("{}, round {}", server.kind.name(), good + 1))?;
            outcome.late_after_us = Some(late_after_us);
            let done = format!("{workload} {}/{rounds} {}", good + 1, shown(server, &sample));
            progress.step(round_s, &done);
            samples.push(sample);
        }
        match late(&servers, &samples, pace.late_share_max) {
            None => {
                good += 1;
                outcome.servers.iter_mut().zip(samples).for_each(|(server, sample)| server.samples.push(sample));
            }
            Some(discarded) => {
                progress
                    .say(&format!("{workload}: discarded, {:.1} % of its sends late", discarded.late_share * 100.0));
                progress.add(round_s * servers.len() as f64);
                outcome.discarded.push(discarded);
            }
        }
    }
    if good < rounds {
        let discarded = outcome.discarded.len();
        outcome.problems.push(format!("only {good} of {rounds} rounds are good, {discarded} were discarded"));
    }
    Ok(())
}

/// The server with the largest share of late sends, if that is too large for the round to count.
fn late(servers: &[Server], samples: &[Sample], share_max: f64) -> Option<Discarded> {
    let shares = servers.iter().map(|server| server.kind.name()).zip(samples.iter().map(|sample| sample.late_share));
    worst(shares).filter(|worst| worst.late_share > share_max)
}

fn worst(shares: impl Iterator<Item = (&'static str, f64)>) -> Option<Discarded> {
    shares
        .max_by(|(_, one), (_, other)| one.total_cmp(other))
        .map(|(server, late_share)| Discarded { server, late_share })
}

fn shown(server: &Server, sample: &Sample) -> String {
    format!("{}: {:.2} µs, {} counted", server.kind.name(), sample.cpu.total_us(), sample.count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_judged_by_its_latest_server() {
        let found = worst([("gateway", 0.01), ("floor", 0.03), ("null", 0.0)].into_iter());
        assert_eq!(found, Some(Discarded { server: "floor", late_share: 0.03 }));
    }
}
