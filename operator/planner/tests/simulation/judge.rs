//! What must never happen, and what should have happened in so many runs.

use std::collections::VecDeque;

use planner::{Millis, Pod, Rebalanced};

use crate::{
    cluster::CONFIGURED_MAX,
    gateway::LetGo,
    world::{ALONE_AFTER, TICK},
};

/// How long after a budget was lowered pods may still follow the old one: they may not answer until their lease is over.
const HEARS_OF_IT: Millis = 26_000;
/// The same of pods that go alone: their files say it so much later than somebody who led had written it.
const READS_OF_IT: Millis = CONFIGURED_MAX + ALONE_AFTER;
/// Pods that let less than one device go per second keep to the budget together over so long.
const MEAN_OVER: Millis = 60_000;

/// What happened.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) ticks: u64,
    pub(crate) plans: u64,
    pub(crate) ordered: u64,
    pub(crate) by_themselves: u64,
    pub(crate) forsaken: u64,
    pub(crate) in_parts: u64,
    pub(crate) by_deadline: u64,
    pub(crate) beyond: u64,
    pub(crate) by_fault: u64,
    pub(crate) rests_with_autoscaler: u64,
    pub(crate) held_without_a_word: u64,
    pub(crate) held_beside_idle: u64,
    pub(crate) seconds_above_by_parts: u64,
    pub(crate) authorities: u64,
    pub(crate) lost_to_faults: u64,
    pub(crate) removed_empty: u64,
    pub(crate) removed_with_devices: u64,
    pub(crate) killed_with_devices: u64,
    pub(crate) leaders: u64,
    pub(crate) stale_orders_refused: u64,
    pub(crate) undone: u64,
    pub(crate) rebalances: u64,
    pub(crate) rebalances_failed: u64,
    pub(crate) came_to_the_fullest: u64,
    pub(crate) rollouts: u64,
    pub(crate) moves_in_rollout_most: u64,
    pub(crate) highest_share_of_budget_percent: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.ticks += other.ticks;
        self.plans += other.plans;
        self.ordered += other.ordered;
        self.by_themselves += other.by_themselves;
        self.forsaken += other.forsaken;
        self.in_parts += other.in_parts;
        self.by_deadline += other.by_deadline;
        self.beyond += other.beyond;
        self.by_fault += other.by_fault;
        self.rests_with_autoscaler += other.rests_with_autoscaler;
        self.held_without_a_word += other.held_without_a_word;
        self.held_beside_idle += other.held_beside_idle;
        self.seconds_above_by_parts += other.seconds_above_by_parts;
        self.authorities += other.authorities;
        self.lost_to_faults += other.lost_to_faults;
        self.removed_empty += other.removed_empty;
        self.removed_with_devices += other.removed_with_devices;
        self.killed_with_devices += other.killed_with_devices;
        self.leaders += other.leaders;
        self.stale_orders_refused += other.stale_orders_refused;
        self.undone += other.undone;
        self.rebalances += other.rebalances;
        self.rebalances_failed += other.rebalances_failed;
        self.came_to_the_fullest += other.came_to_the_fullest;
        self.rollouts += other.rollouts;
        self.moves_in_rollout_most = self.moves_in_rollout_most.max(other.moves_in_rollout_most);
        self.highest_share_of_budget_percent =
            self.highest_share_of_budget_percent.max(other.highest_share_of_budget_percent);
    }

    /// A simulation in which something never happens proves nothing about it.
    pub(crate) fn assert_everything_happened(&self) {
        for (what, count) in [
            ("ordered", self.ordered),
            ("by themselves", self.by_themselves),
            ("forsaken", self.forsaken),
            ("in parts", self.in_parts),
            ("late by a fault", self.by_fault),
            ("rests with an autoscaler", self.rests_with_autoscaler),
            ("held without a word of the upstream", self.held_without_a_word),
            ("held beside a pod that knows nothing of the upstream", self.held_beside_idle),
            ("authorities", self.authorities),
            ("lost to faults", self.lost_to_faults),
            ("removed empty", self.removed_empty),
            ("removed with devices", self.removed_with_devices),
            ("stale orders refused", self.stale_orders_refused),
            ("undone", self.undone),
            ("rebalances", self.rebalances),
            ("rollouts", self.rollouts),
        ] {
            assert!(count > 0, "{what}: never happened");
        }
        assert_eq!(self.highest_share_of_budget_percent, 100, "the budget was never used");
    }
}

/// Watches one fleet.
pub(crate) struct Judge {
    pub(crate) tally: Tally,
    /// What was allowed, since when.
    budgets: Vec<(Millis, u32)>,
    /// What somebody who led had written for pods that go alone, since when.
    written: Vec<(Millis, u32)>,
    last_tick: [u32; 7],
    /// Devices per second that had to go in the last tick, of pods that are gone now, too.
    must: u32,
    /// Of the last [`MEAN_OVER`]: when how many went in all, and how many pods went in parts.
    lately: VecDeque<(Millis, u32)>,
    /// Let go since the fleet is left alone.
    pub(crate) let_go_at_rest: u64,
}

impl Judge {
    pub(crate) fn new(budget: u32) -> Self {
        let (budgets, written) = (vec![(0, budget)], vec![(0, budget)]);
        Self {
            tally: Tally::default(),
            budgets,
            written,
            last_tick: [0; 7],
            must: 0,
            lately: VecDeque::new(),
            let_go_at_rest: 0,
        }
    }

    pub(crate) fn budget_changed(&mut self, now: Millis, budget: u32) {
        self.budgets.push((now, budget));
    }

    pub(crate) fn budget_written(&mut self, now: Millis, budget: u32) {
        if self.written.last().is_none_or(|(_, before)| *before != budget) {
            self.written.push((now, budget));
        }
    }

    /// Not for little, not soon after the last, and not while new pods fill by themselves.
    pub(crate) fn rebalance_begins(now: Millis, skew_max: Option<f64>, pods: &[Pod], before: Rebalanced) {
        let staying = || pods.iter().filter(|pod| pod.ends.is_none() && pod.ready);
        let gone = |pod: &Pod| pod.ends.is_some() || pod.ready || now - pod.ready_changed >= 120_000;
        assert!(pods.iter().all(gone), "rebalanced at {now} while a pod may be ready soon");
        let devices = |pod: &Pod| pod.load.as_ref().map_or(0, |load| load.connections) as f64;
        let most = staying().map(devices).fold(0.0, f64::max);
        let mean = staying().map(devices).sum::<f64>() / staying().count() as f64;
        let limit = mean * skew_max.expect("only those that want it are rebalanced");
        assert!(most > limit && most - mean >= 5.0, "rebalanced at {now} for {most} devices where {limit} may be");
        assert!(staying().all(|pod| now - pod.ready_changed >= 30_000), "rebalanced at {now} while pods are new");
        let rested = before.ended_at.is_none_or(|ended_at| now - ended_at >= 60_000);
        assert!(rested, "rebalanced at {now}, soon after the last: {before:?}");
    }

    /// In any second all that were let go are within the budget, but those that a fault made late, and but that pods at less
    /// than one device per second keep to it in the mean. Where it could not fit, what must go each second goes above it and
    /// nothing else but those whom the upstream does nothing for: `must` is that. `pods` is how many there are.
    pub(crate) fn let_go(&mut self, now: Millis, let_go: &LetGo, must: u32, pods: usize) {
        const { assert!(2 * TICK == 1000, "two ticks are a second") };
        let LetGo { ordered, by_itself, forsaken, in_parts, by_deadline, beyond, by_fault } = let_go;
        let kinds = [ordered, by_itself, forsaken, in_parts, by_deadline, beyond, by_fault];
        let counts = kinds.map(|devices| devices.len() as u32);
        let [ordered, by_itself, forsaken, in_parts, by_deadline, beyond, by_fault] =
            std::array::from_fn(|kind| self.last_tick[kind] + counts[kind]);
        let by_itself = by_itself + forsaken;
        let budget = highest(&self.budgets, now - HEARS_OF_IT);
        assert!(ordered <= budget, "{ordered} were let go by order in the second before {now}, the budget is {budget}");
        let alone =
            if by_itself + in_parts > 0 { budget.max(highest(&self.written, now - READS_OF_IT)) } else { budget };
        let second = ordered + by_itself;
        assert!(second <= alone, "{ordered} by order and {by_itself} alone in the second before {now}: above {alone}");
        let must = if must > 0 { must + forsaken } else { 0 };
        let may = alone.max(must).max(std::mem::replace(&mut self.must, must));
        assert!(
            by_fault > 0 || second + by_deadline + beyond <= may,
            "{ordered} by order, {by_itself} alone, {by_deadline} late, {beyond} that could not fit in the second before {now}: \
             above {may}"
        );
        self.tally.seconds_above_by_parts += u64::from(second + in_parts > alone);
        if budget > 0 {
            let percent = u64::from(ordered) * 100 / u64::from(budget);
            let most = &mut self.tally.highest_share_of_budget_percent;
            *most = percent.max(*most);
        }
        self.mean(now, counts[..5].iter().sum(), pods);
        self.last_tick = counts;
        self.let_go_at_rest += u64::from(counts.iter().sum::<u32>());
        self.tally.ordered += u64::from(counts[0]);
        self.tally.by_themselves += u64::from(counts[1]);
        self.tally.forsaken += u64::from(counts[2]);
        self.tally.in_parts += u64::from(counts[3]);
        self.tally.by_deadline += u64::from(counts[4]);
        self.tally.beyond += u64::from(counts[5]);
        self.tally.by_fault += u64::from(counts[6]);
    }

    /// Each pod may be one device ahead of its pace.
    fn mean(&mut self, now: Millis, count: u32, pods: usize) {
        self.lately.push_back((now, count));
        while self.lately.front().is_some_and(|(at, _)| *at <= now - MEAN_OVER) {
            self.lately.pop_front();
        }
        let all: u32 = self.lately.iter().map(|(_, count)| count).sum();
        let from = now - MEAN_OVER - READS_OF_IT;
        let budget = highest(&self.budgets, from).max(highest(&self.written, from));
        let most = budget * (MEAN_OVER / 1000) as u32 + pods as u32;
        assert!(all <= most, "{all} were let go in the minute before {now}: above {most}");
    }
}

/// The highest budget that may still be followed: of those that held at some time after `from`.
fn highest(budgets: &[(Millis, u32)], from: Millis) -> u32 {
    let ended = |index: usize| budgets.get(index + 1).is_some_and(|(next, _)| *next < from);
    let kept = budgets.iter().enumerate().filter(|(index, _)| !ended(*index));
    kept.map(|(_, (_, budget))| *budget).max().unwrap_or(0)
}
