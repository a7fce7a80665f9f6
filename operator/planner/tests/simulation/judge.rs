//! What must never happen, and what should have happened in so many runs.

use std::collections::VecDeque;

use planner::Millis;

use crate::world::TICK;

/// How long after a budget was lowered pods may still follow the old one: they may not answer until their lease is over.
const HEARS_OF_IT: Millis = 26_000;

/// What happened.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) ticks: u64,
    pub(crate) plans: u64,
    pub(crate) ordered: u64,
    pub(crate) by_themselves: u64,
    pub(crate) at_deadline: u64,
    pub(crate) lost_to_faults: u64,
    pub(crate) removed_empty: u64,
    pub(crate) removed_with_devices: u64,
    pub(crate) killed_with_devices: u64,
    pub(crate) leaders: u64,
    pub(crate) stale_orders_refused: u64,
    pub(crate) undone: u64,
    pub(crate) rebalances: u64,
    pub(crate) rebalances_failed: u64,
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
        self.at_deadline += other.at_deadline;
        self.lost_to_faults += other.lost_to_faults;
        self.removed_empty += other.removed_empty;
        self.removed_with_devices += other.removed_with_devices;
        self.killed_with_devices += other.killed_with_devices;
        self.leaders += other.leaders;
        self.stale_orders_refused += other.stale_orders_refused;
        self.undone += other.undone;
        self.rebalances += other.rebalances;
        self.rebalances_failed += other.rebalances_failed;
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
            ("at deadline", self.at_deadline),
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
    budgets: VecDeque<(Millis, u32)>,
    last_tick: u32,
    /// Let go by order since the fleet is left alone.
    pub(crate) ordered_at_rest: u64,
}

impl Judge {
    pub(crate) fn new(budget: u32) -> Self {
        let budgets = VecDeque::from([(0, budget)]);
        Self { tally: Tally::default(), budgets, last_tick: 0, ordered_at_rest: 0 }
    }

    pub(crate) fn budget_changed(&mut self, now: Millis, budget: u32) {
        self.budgets.push_back((now, budget));
    }

    /// In any second, what was let go by order is within the budget.
    pub(crate) fn let_go(&mut self, now: Millis, ordered: u32, by_themselves: u32) {
        const { assert!(2 * TICK == 1000, "two ticks are a second") };
        while self.budgets.len() > 1 && self.budgets[1].0 < now - HEARS_OF_IT {
            self.budgets.pop_front();
        }
        let budget = self.budgets.iter().map(|(_, budget)| *budget).max().unwrap_or(0);
        let second = self.last_tick + ordered;
        assert!(second <= budget, "{second} devices were let go in the second before {now}, the budget is {budget}");
        if budget > 0 {
            let percent = u64::from(second) * 100 / u64::from(budget);
            let most = &mut self.tally.highest_share_of_budget_percent;
            *most = percent.max(*most);
        }
        self.last_tick = ordered;
        self.ordered_at_rest += u64::from(ordered);
        self.tally.ordered += u64::from(ordered);
        self.tally.by_themselves += u64::from(by_themselves);
    }
}
