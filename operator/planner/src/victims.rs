//! Who goes when fewer pods are wanted, and who stays after all when more are.

use crate::{
    model::{Cause, Drain, Pod, State},
    view::View,
};

/// Cheapest first: those that never ran, then those with the fewest devices. One whose devices nobody can count is the last.
pub(crate) fn choose<'a>(view: &View<'a>, taken: &[Drain], count: usize) -> Vec<&'a Pod> {
    let free = |pod: &&Pod| !taken.iter().any(|drain| drain.pod == pod.name);
    let mut pods: Vec<&Pod> = view.staying().filter(free).collect();
    let rank = |pod: &&Pod| (pod.running, pod.devices().unwrap_or(u64::MAX), pod.ready);
    pods.sort_by(|a, b| {
        // of two that are alike, the one that became ready last has been found by the fewest
        rank(a).cmp(&rank(b)).then(b.ready_changed.cmp(&a.ready_changed)).then_with(|| a.name.cmp(&b.name))
    });
    pods.truncate(count);
    pods
}

/// Turns back all but `keep` of the scale-in's drains: the youngest first, and of those the ones with the most devices left.
pub(crate) fn turn_back(view: &View<'_>, drains: &mut [Drain], keep: usize) {
    let runs = |drain: &Drain| is_under_way(view, drain);
    let mut order: Vec<usize> = (0..drains.len()).filter(|index| runs(&drains[*index])).collect();
    order.sort_by_key(|index| {
        let drain = &drains[*index];
        (drain.started_at, drain.remaining)
    });
    for index in order.into_iter().skip(keep) {
        drains[index].state = State::Undoing;
    }
}

/// A scale-in's drain of a pod that was not told to stop yet.
pub(crate) fn is_under_way(view: &View<'_>, drain: &Drain) -> bool {
    drain.cause == Cause::ScaleIn
        && drain.state != State::Undoing
        && view.pod(&drain.pod).is_some_and(|pod| pod.ends.is_none())
}
