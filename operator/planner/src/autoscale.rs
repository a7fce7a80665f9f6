//! How many pods there are to be where no HorizontalPodAutoscaler can see the connections: the rule is the autoscaler's own.

use std::collections::VecDeque;

use crate::model::Millis;

/// Off by less than this share, nothing changes.
const TOLERANCE: f64 = 0.1;
/// Up: in each such period by as much again or by so many pods, whichever is more.
pub const UP_PERIOD: Millis = 30_000;
/// See [`UP_PERIOD`].
pub const UP_PODS: u32 = 4;
/// Down: in each [`down_period`] by so many pods.
pub const DOWN_PODS: u32 = 1;
/// Recommendations and changes that are kept at most; they are made every few seconds and kept for an hour.
const KEPT_MAX: usize = 4096;

/// How long one step down must be apart from the next: two minutes, or less where who set the wait before the first was in
/// a hurry. Drains hold the budget in any case.
pub fn down_period(scale_down_after: Millis) -> Millis {
    (scale_down_after / 4).clamp(15_000, 120_000)
}

/// Bounds and aim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Fewest pods.
    pub min: u32,
    /// Most pods.
    pub max: u32,
    /// Connections that one pod is to hold.
    pub target: u64,
    /// How long fewer must be enough before there are fewer.
    pub scale_down_after: Millis,
}

/// What was recommended and changed lately. A new leader begins with what there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    recommended: VecDeque<(Millis, u32)>,
    changed: VecDeque<(Millis, u32, u32)>,
}

impl History {
    /// The pods to ask for now. `connections` is the number that a HorizontalPodAutoscaler would be told
    /// ([`crate::upstream::reported`]), `None` if nobody knows; `replicas` what is asked for so far. `None`: it rests.
    pub fn step(&mut self, bounds: &Bounds, connections: Option<u64>, replicas: u32, now: Millis) -> Option<u32> {
        // 0 is asked for by hand: maintenance
        let connections = connections.filter(|_| replicas > 0)?;
        if self.recommended.is_empty() {
            self.recommended.push_back((now, replicas));
        }
        self.forget(bounds, now);
        let recommended = recommend(bounds, connections, replicas);
        self.recommended.push_back((now, recommended));
        let stable = self.recommended.iter().map(|(_, pods)| *pods).max().unwrap_or(recommended);
        let wanted = if recommended >= replicas { recommended } else { stable.min(replicas) };
        let paced =
            wanted.clamp(self.least(bounds, replicas, now), self.most(replicas, now)).clamp(bounds.min, bounds.max);
        if paced != replicas {
            self.changed.push_back((now, replicas, paced));
        }
        Some(paced)
    }

    fn forget(&mut self, bounds: &Bounds, now: Millis) {
        let too_old = |at: Millis, kept: Millis| now - at > kept;
        while self.recommended.len() > KEPT_MAX
            || self.recommended.front().is_some_and(|(at, _)| too_old(*at, bounds.scale_down_after))
        {
            self.recommended.pop_front();
        }
        let kept = down_period(bounds.scale_down_after).max(UP_PERIOD);
        while self.changed.len() > KEPT_MAX || self.changed.front().is_some_and(|(at, ..)| too_old(*at, kept)) {
            self.changed.pop_front();
        }
    }

    /// As many as the pace upwards allows, from what there was when the period began.
    fn most(&self, replicas: u32, now: Millis) -> u32 {
        let recent = self.changed.iter().filter(|(at, from, to)| now - at < UP_PERIOD && to > from);
        let added: u32 = recent.map(|(_, from, to)| to - from).sum();
        let before = replicas.saturating_sub(added);
        before.saturating_mul(2).max(before.saturating_add(UP_PODS)).max(replicas)
    }

    fn least(&self, bounds: &Bounds, replicas: u32, now: Millis) -> u32 {
        let period = down_period(bounds.scale_down_after);
        let recent = self.changed.iter().filter(|(at, from, to)| now - at < period && to < from);
        let removed: u32 = recent.map(|(_, from, to)| from - to).sum();
        replicas.saturating_sub(DOWN_PODS.saturating_sub(removed))
    }
}

fn recommend(bounds: &Bounds, connections: u64, replicas: u32) -> u32 {
    let target = bounds.target.max(1);
    let ratio = connections as f64 / (target as f64 * f64::from(replicas));
    if (1.0 - TOLERANCE..=1.0 + TOLERANCE).contains(&ratio) {
        return replicas.clamp(bounds.min, bounds.max);
    }
    pods_for(connections, target).clamp(bounds.min, bounds.max)
}

/// Pods that hold so many connections.
pub fn pods_for(connections: u64, target: u64) -> u32 {
    u32::try_from(connections.div_ceil(target.max(1))).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { min: 2, max: 40, target: 50, scale_down_after: 600_000 };

    /// Steps at times in seconds with connections; what is asked for after each, beginning with `replicas`.
    fn run(mut replicas: u32, steps: &[(i64, Option<u64>)]) -> Vec<u32> {
        let mut history = History::default();
        let step = |(at, connections): &(i64, Option<u64>)| {
            replicas = history.step(&BOUNDS, *connections, replicas, at * 1000).unwrap_or(replicas);
            replicas
        };
        steps.iter().map(step).collect()
    }

    #[test]
    fn more_connections_make_more_pods_at_once() {
        assert_eq!(run(2, &[(0, Some(300))]), [6]);
    }

    #[test]
    fn within_the_tolerance_nothing_changes() {
        assert_eq!(run(2, &[(0, Some(110)), (1, Some(111))]), [2, 3]);
    }

    #[test]
    fn upwards_the_pace_is_doubling_or_four_pods_per_period() {
        assert_eq!(run(2, &[(0, Some(5000)), (15, Some(5000)), (30, Some(5000)), (60, Some(5000))]), [6, 6, 12, 24]);
    }

    #[test]
    fn downwards_one_pod_goes_per_period_after_the_quiet() {
        let steps = [(0, 300), (300, 60), (599, 60), (601, 60), (700, 60), (721, 60), (841, 60)];
        let steps = steps.map(|(at, connections)| (at, Some(connections)));
        assert_eq!(run(6, &steps), [6, 6, 6, 5, 5, 4, 3]);
    }

    #[test]
    fn one_peak_in_the_quiet_begins_it_anew() {
        let steps = [(0, 300), (500, 60), (590, 300), (601, 60), (1100, 60), (1191, 60)];
        let steps = steps.map(|(at, connections)| (at, Some(connections)));
        assert_eq!(run(6, &steps), [6, 6, 6, 6, 6, 5]);
    }

    #[test]
    fn it_rests_at_zero_and_while_nobody_knows_the_connections() {
        assert_eq!(run(0, &[(0, Some(300))]), [0]);
        assert_eq!(run(3, &[(0, None), (700, None)]), [3, 3]);
    }

    #[test]
    fn the_bounds_hold_whatever_was_set() {
        assert_eq!(run(1, &[(0, Some(10))]), [2]);
        assert_eq!(run(39, &[(0, Some(100_000))]), [40]);
    }
}
