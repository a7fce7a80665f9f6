//! What the upstream has to do with the number of pods: when it throttles or is away, more pods help nobody.

use crate::model::Load;

/// How a pod, or the fleet, gets on with the upstream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Upstream {
    /// It takes what it is sent.
    #[default]
    Well,
    /// It takes less than it is sent.
    Throttled,
    /// It cannot be reached, or refuses.
    Away,
}

/// Of the fleet: throttled if any pod is, away if all pods that could be asked find it so.
pub fn of<'a>(loads: impl Iterator<Item = &'a Load>) -> Upstream {
    let all: Vec<Upstream> = loads.map(|load| load.upstream).collect();
    match () {
        () if !all.is_empty() && all.iter().all(|upstream| *upstream == Upstream::Away) => Upstream::Away,
        () if all.contains(&Upstream::Throttled) => Upstream::Throttled,
        () => Upstream::Well,
    }
}

/// What autoscalers are told of `connections`: never what would make more pods while the upstream is the bottleneck, and what
/// keeps the pods that there are while it is away, when the number of connections says nothing about how many there will be.
///
/// `replicas` is what is wanted now, `target` the connections that a pod is to hold; without a target (an autoscaler of the
/// user's, whose target is not known here) the number is held at `last_well`, the last one before.
pub fn reported(
    connections: u64,
    upstream: Upstream,
    replicas: u32,
    target: Option<u64>,
    last_well: Option<u64>,
) -> u64 {
    let keeps = target.map(|target| target.saturating_mul(u64::from(replicas))).or(last_well);
    match (upstream, keeps) {
        (Upstream::Throttled, Some(keeps)) => connections.min(keeps),
        (Upstream::Away, Some(keeps)) => keeps,
        (Upstream::Well, _) | (_, None) => connections,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(pods: &[Upstream]) -> Upstream {
        let load = |upstream: &Upstream| Load { connections: 1, age: 0, upstream: *upstream, drain: None };
        of(pods.iter().map(load).collect::<Vec<_>>().iter())
    }

    #[test]
    fn one_pod_that_is_throttled_is_enough_but_away_is_only_what_all_say() {
        use Upstream::{Away, Throttled, Well};
        for (pods, expected) in [
            (&[][..], Well),
            (&[Well, Well], Well),
            (&[Well, Throttled], Throttled),
            (&[Well, Away], Well),
            (&[Away, Throttled], Throttled),
            (&[Away, Away], Away),
        ] {
            assert_eq!(fleet(pods), expected, "{pods:?}");
        }
    }

    #[test]
    fn the_number_never_asks_for_more_pods_while_the_upstream_is_the_bottleneck() {
        use Upstream::{Away, Throttled, Well};
        for (connections, upstream, target, last_well, expected) in [
            (900, Well, Some(100), None, 900),
            (900, Throttled, Some(100), None, 300),
            (200, Throttled, Some(100), None, 200),
            (200, Away, Some(100), None, 300),
            (900, Away, Some(100), Some(7), 300),
            (900, Throttled, None, Some(250), 250),
            (100, Throttled, None, Some(250), 100),
            (900, Throttled, None, None, 900),
        ] {
            let reported = reported(connections, upstream, 3, target, last_well);
            assert_eq!(reported, expected, "{connections} {upstream:?} {target:?} {last_well:?}");
        }
    }
}
