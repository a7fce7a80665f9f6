//! The drain planner. PURE: (what is wanted, what was seen, the plan so far, now) → the plan from now on and what to do.
//!
//! A step is small and is repeated for ever: what was decided is persisted first and acted upon in a later step, so that
//! whoever takes over finds in the plan at least everything that pods were told. Read in this order: [`model`] is what goes in
//! and comes out; [`plan`] is one step; `drains` says how each drain goes on; `victims` who goes; [`budget`] who may let how
//! many go; `rebalance` when devices move without a pod going; [`autoscale`] and [`upstream`] how many pods there are to be;
//! [`whatif`] how long things would take; [`notes`] what is said about it.
//!
//! Times are milliseconds since the Unix epoch.

pub mod autoscale;
pub mod budget;
mod drains;
pub mod model;
pub mod notes;
mod orders;
mod rebalance;
pub mod upstream;
mod victims;
mod view;
pub mod whatif;

pub use self::{
    budget::Ledger,
    model::{
        Cause, Decision, Deployment, Drain, DrainOrder, Input, Load, Millis, Order, Ordered, Pod, Rebalanced, Spec,
        State,
    },
    notes::Note,
};

use self::view::View;

/// One step.
pub fn plan(input: &Input<'_>) -> Decision {
    let view = View::new(input);
    let mut drains = drains::next(&view);
    let rebalanced = rebalance::step(&view, &mut drains);
    let alone = budget::alone(&view);
    let rates = budget::allot(&view, &mut drains, &alone);
    drains.sort_by(|a, b| a.pod.cmp(&b.pod));
    Decision {
        orders: orders::orders(&view, &drains, &rates),
        alone,
        replicas: orders::replicas(&view),
        deletion_costs: orders::deletion_costs(&view),
        notes: notes::notes(&view, &drains),
        again_in: if drains.is_empty() {
            rebalance::waits(&view).then_some(rebalance::LOOK)
        } else {
            Some(budget::STEP)
        },
        rebalanced,
        drains,
    }
}
