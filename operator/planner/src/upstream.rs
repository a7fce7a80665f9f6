//! What the upstream has to do with the number of pods: when it throttles or is away, more pods help nobody.

use crate::{model::Load, view::FRESH};

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

/// Of the fleet, by what pods know that were heard of lately: throttled if any is, away if all find it so. While none knows
/// anything (devices were let go, or nobody could ask), it is as it was `before`.
pub fn of<'a>(loads: impl Iterator<Item = &'a Load>, before: Upstream) -> Upstream {
    let known: Vec<Upstream> = loads.filter(|load| load.age <= FRESH).filter_map(|load| load.upstream).collect();
    match () {
        () if known.is_empty() => before,
        () if known.contains(&Upstream::Throttled) => Upstream::Throttled,
        () if known.contains(&Upstream::Well) => Upstream::Well,
        () => Upstream::Away,
    }
}

/// What autoscalers are told of `connections`: never what would make more pods while the upstream is the bottleneck, and what
/// keeps the pods that there are while it is away, when the number of connections says nothing about how many there will be.
///
/// `replicas` is what is wanted now, `target` the connections that a pod is to hold; without a target (an autoscaler of the
/// user's, whose target is not known here) the number is held at `last_well`, the last one before. `None`: nothing is known to
/// hold it at, and the number itself would mislead; an autoscaler that is told nothing rests.
pub fn reported(
    connections: u64,
    upstream: Upstream,
    replicas: u32,
    target: Option<u64>,
    last_well: Option<u64>,
) -> Option<u64> {
    let keeps = target.map(|target| target.saturating_mul(u64::from(replicas))).or(last_well);
    held(connections, upstream, keeps)
}

/// What autoscalers are told of any number that makes a fleet grow: never more than it `keeps` while the upstream takes less than
/// it is sent, just that while it is away. See [`reported`].
pub fn held<T: PartialOrd>(number: T, upstream: Upstream, keeps: Option<T>) -> Option<T> {
    match upstream {
        Upstream::Well => Some(number),
        Upstream::Throttled => keeps.map(|keeps| if number < keeps { number } else { keeps }),
        Upstream::Away => keeps,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AWAY: Option<Upstream> = Some(Upstream::Away);
    const THROTTLED: Option<Upstream> = Some(Upstream::Throttled);
    const WELL: Option<Upstream> = Some(Upstream::Well);

    /// Pods that were heard of so long ago.
    fn fleet(pods: &[Option<Upstream>], age: i64, before: Upstream) -> Upstream {
        let load = |upstream: &Option<Upstream>| Load {
            connections: 1,
            age,
            upstream: *upstream,
            drain: None,
            forsaken_per_second: 0.0,
        };
        of(pods.iter().map(load).collect::<Vec<_>>().iter(), before)
    }

    #[test]
    fn one_pod_that_is_throttled_is_enough_but_away_is_only_what_all_say_that_know() {
        use Upstream::{Away, Throttled, Well};
        for (pods, expected) in [
            (&[WELL, WELL][..], Well),
            (&[WELL, THROTTLED], Throttled),
            (&[WELL, AWAY], Well),
            (&[AWAY, THROTTLED], Throttled),
            (&[AWAY, AWAY], Away),
            (&[AWAY, AWAY, None], Away),
            (&[AWAY, None, WELL], Well),
            (&[None, THROTTLED], Throttled),
            (&[None, WELL], Well),
        ] {
            for before in [Well, Throttled, Away] {
                assert_eq!(fleet(pods, 0, before), expected, "{pods:?} after {before:?}");
            }
        }
    }

    #[test]
    fn what_was_known_last_holds_while_no_pod_knows_anything() {
        use Upstream::{Away, Throttled, Well};
        for before in [Well, Throttled, Away] {
            assert_eq!(fleet(&[], 0, before), before);
            assert_eq!(fleet(&[None, None], 0, before), before);
            assert_eq!(fleet(&[WELL, AWAY], FRESH + 1, before), before, "silent pods know nothing");
        }
    }

    #[test]
    fn the_number_never_asks_for_more_pods_while_the_upstream_is_the_bottleneck() {
        use Upstream::{Away, Throttled, Well};
        for (connections, upstream, target, last_well, expected) in [
            (900, Well, Some(100), None, Some(900)),
            (900, Well, None, None, Some(900)),
            (900, Throttled, Some(100), None, Some(300)),
            (200, Throttled, Some(100), None, Some(200)),
            (200, Away, Some(100), None, Some(300)),
            (900, Away, Some(100), Some(7), Some(300)),
            (900, Throttled, None, Some(250), Some(250)),
            (100, Throttled, None, Some(250), Some(100)),
            (100, Away, None, Some(250), Some(250)),
            (900, Throttled, None, None, None),
            (900, Away, None, None, None),
        ] {
            let reported = reported(connections, upstream, 3, target, last_well);
            assert_eq!(reported, expected, "{connections} {upstream:?} {target:?} {last_well:?}");
        }
    }

    #[test]
    fn rates_are_held_at_what_they_were_when_the_upstream_was_well() {
        use Upstream::{Away, Throttled, Well};
        for (rate, upstream, last_well, expected) in [
            (90.5, Well, Some(10.0), Some(90.5)),
            (90.5, Throttled, Some(10.0), Some(10.0)),
            (4.5, Throttled, Some(10.0), Some(4.5)),
            (0.0, Away, Some(10.0), Some(10.0)),
            (90.5, Throttled, None, None),
        ] {
            assert_eq!(held(rate, upstream, last_well), expected, "{rate} {upstream:?} {last_well:?}");
        }
    }
}
