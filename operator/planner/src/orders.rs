//! What follows from what is persisted: orders to pods, the Deployment's number, who is to be deleted first.

use std::collections::BTreeMap;

use crate::{
    model::{Cause, Drain, DrainOrder, Order, Pod, State},
    view::View,
};

/// Deletion cost of pods that were drained: they go before all that are like them.
pub(crate) const DRAINED_COST: i32 = -1000;

/// Orders that are due, for drains of the plan that this leader has persisted.
pub(crate) fn orders(view: &View<'_>, drains: &[Drain], rates: &BTreeMap<String, u32>) -> Vec<(String, Order)> {
    let planned = drains.iter().filter_map(|drain| {
        let persisted = view.persisted(&drain.pod)?;
        Some((drain.pod.clone(), order(view, drain, persisted, rates.get(&drain.pod).copied().unwrap_or(0))?))
    });
    let unplanned = view.staying().filter(|pod| is_left_over(view, drains, pod));
    let orders = planned.chain(unplanned.map(|pod| (pod.name.clone(), Order::Undrain)));
    orders.filter(|(pod, order)| view.input.ledger.is_due(pod, *order, view.now())).collect()
}

/// Never more than what the plan says, which whoever takes over will read.
fn order(view: &View<'_>, drain: &Drain, persisted: &Drain, rate: u32) -> Option<Order> {
    let same = (persisted.cause, persisted.down_to) == (drain.cause, drain.down_to);
    match (drain.state, persisted.state) {
        (State::Undoing, State::Undoing) => Some(Order::Undrain),
        (State::Undoing, _) | (_, State::Undoing) => None,
        _ if !same => None,
        (state, _) => Some(Order::Drain(DrainOrder {
            cause: drain.cause,
            per_second: if state == State::Draining { rate.min(persisted.per_second) } else { 0 },
            down_to: drain.down_to,
            leave: drain.cause == Cause::ScaleIn || view.pod(&drain.pod)?.ends.is_some(),
        })),
    }
}

/// A pod that still follows an order which nobody planned: of an earlier leader, or undone while it did not answer.
fn is_left_over(view: &View<'_>, drains: &[Drain], pod: &Pod) -> bool {
    let planned = drains.iter().chain(view.input.drains).any(|drain| drain.pod == pod.name);
    let ordered = pod.load.as_ref().and_then(|load| load.drain);
    !planned && pod.is_fresh() && ordered.is_some_and(|ordered| ordered.cause != Some(Cause::CertificateAuthority))
}

/// More at once; fewer only by pods that were drained, are out of the Service and are marked to go first.
pub(crate) fn replicas(view: &View<'_>) -> Option<u32> {
    let deployment = view.input.deployment?;
    let wanted = view.input.spec.replicas;
    if wanted >= deployment.replicas {
        return Some(wanted);
    }
    let marked = || view.staying().filter(|pod| pod.deletion_cost == Some(DRAINED_COST));
    // one that somebody came to, or that is wanted again, would be taken as gladly
    let mistaken = marked().any(|pod| !is_drained(view, &pod.name));
    let drained = marked().filter(|pod| view.input.ledger.is_mark_known(&pod.name, view.now())).count() as u32;
    let there = view.staying_count().max(deployment.running);
    // which pods a rollout takes is not known before: all or none
    let rolls = view.rolling() && (wanted > 0 || drained < there);
    if deployment.behind || mistaken || rolls {
        return Some(deployment.replicas);
    }
    Some(there.saturating_sub(drained).min(deployment.replicas).max(wanted))
}

fn is_drained(view: &View<'_>, pod: &str) -> bool {
    let done = |drain: &Drain| drain.cause == Cause::ScaleIn && drain.state == State::Done;
    // the plan may have changed its mind, or somebody come, since it was written
    let late = |drain: &Drain| view.now() >= drain.deadline;
    let empty = view.pod(pod).is_some_and(|pod| pod.is_empty() && (!pod.ready || !pod.running));
    view.persisted(pod).is_some_and(|drain| done(drain) && (empty || late(drain)))
}

/// Written once, right before the Deployment is told to keep fewer; taken away from pods that stay.
pub(crate) fn deletion_costs(view: &View<'_>) -> Vec<(String, Option<i32>)> {
    let cost = |pod: &Pod| match (is_drained(view, &pod.name), pod.deletion_cost) {
        (true, Some(DRAINED_COST)) => None,
        (true, _) => Some((pod.name.clone(), Some(DRAINED_COST))),
        (false, Some(DRAINED_COST)) => Some((pod.name.clone(), None)),
        (false, _) => None,
    };
    view.staying().filter_map(cost).collect()
}
