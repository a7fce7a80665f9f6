//! Moving devices without a pod going: after more pods were made, a load balancer of connections leaves them empty.
//!
//! Begins above `skewMax` times the mean and trims every pod to half of that above the mean, so that what little comes and
//! goes does not begin it anew. Where devices come back to the pods that they left, it is tried more and more rarely. It is
//! among pods that are ready; one that is not may be soon and is waited for, but not for ever.

use crate::{
    budget::seconds_for,
    model::{Cause, Deployment, Drain, Millis, Pod, Rebalanced, State},
    upstream::Upstream,
    view::View,
};

/// Fewer devices above the mean than this are not worth it.
const EXCESS_MIN: f64 = 5.0;
/// A new pod is left alone for so long: those who connect now go there by themselves.
const WARM_UP: Millis = 30_000;
/// A pod that has not been ready for so long is left out, until it is: a node may have no room for it.
const WAITED_FOR: Millis = 120_000;
/// Rest after a rebalance, doubled with each that failed.
const REST: Millis = 60_000;
const REST_DOUBLINGS_MAX: u32 = 9;
/// What a rebalance may take beyond twice its estimate: devices need time to come back.
const SLACK: Millis = 60_000;

/// When to look again at a fleet that is uneven and waits for its turn: nothing else may change meanwhile.
pub(crate) const LOOK: Millis = 5_000;

/// Whether a rebalance may begin later although nothing changes: new pods are warming up, a pod is waited for, or the last one
/// was not long ago.
pub(crate) fn waits(view: &View<'_>) -> bool {
    uneven_now(view).is_some()
}

/// What a fleet that is uneven waits for, if it is more than time.
pub(crate) fn waits_for(view: &View<'_>) -> Option<String> {
    let skew = uneven_now(view)?;
    let why = match sharing(view).find(|pod| !is_counted(pod)) {
        Some(pod) if pod.ready => format!("{} is ready and cannot be asked", pod.name),
        Some(pod) => {
            format!("{} is not ready; it is waited for until it has not been for {} s", pod.name, WAITED_FOR / 1000)
        }
        None if !are_all_there(view) => {
            format!("pods wanted: {}, there: {}", view.input.spec.replicas, view.staying_count())
        }
        None if view.input.upstream != Upstream::Well => "the upstream is throttling or away".to_owned(),
        None => return None,
    };
    Some(format!("one pod has {} devices, the mean is {:.0}: {why}", skew.most, skew.mean))
}

/// Adds, carries on or ends the drains of a rebalance.
pub(crate) fn step(view: &View<'_>, drains: &mut Vec<Drain>) -> Rebalanced {
    let moves = |drain: &Drain| drain.cause == Cause::Rebalance && drain.state != State::Undoing;
    let before = view.input.rebalanced;
    let others = drains.iter().any(|drain| drain.cause != Cause::Rebalance);
    let may_run = !others && is_calm(view);
    let Some(first) = drains.iter().find(|drain| moves(drain)).cloned() else {
        if may_run && drains.is_empty() && has_rested(view, before) {
            begin(view, drains);
        }
        return before;
    };
    let verdict = if may_run { verdict(view, &first, before) } else { Some(before.failures) };
    let Some(failures) = verdict else {
        add_sources(view, &first, drains);
        return before;
    };
    drains.iter_mut().filter(|drain| moves(drain)).for_each(|drain| drain.state = State::Undoing);
    Rebalanced { ended_at: Some(view.now()), failures }
}

/// Nothing else is going on, and nothing is about to.
fn is_calm(view: &View<'_>) -> bool {
    let told = |deployment: Deployment| !deployment.behind && deployment.replicas == view.input.spec.replicas;
    let settled = view.input.deployment.is_some_and(told) && are_all_there(view);
    let well = view.input.upstream == Upstream::Well;
    settled && well && !view.rolling() && view.input.spec.skew_max.is_some() && view.input.spec.per_second > 0
}

/// As many as can be.
fn are_all_there(view: &View<'_>) -> bool {
    let refused = view.input.deployment.is_some_and(|deployment| deployment.refused);
    let (wanted, there) = (view.input.spec.replicas, view.staying_count());
    there == wanted || (refused && there < wanted)
}

fn has_rested(view: &View<'_>, before: Rebalanced) -> bool {
    let rest = REST << before.failures.min(REST_DOUBLINGS_MAX);
    before.ended_at.is_none_or(|ended_at| view.now() - ended_at >= rest)
}

/// `None`: it goes on. Otherwise how many in a row have failed now.
fn verdict(view: &View<'_>, first: &Drain, before: Rebalanced) -> Option<u32> {
    let level = first.down_to;
    let is_level = |pod: &Pod| pod.is_fresh() && pod.devices().is_some_and(|devices| devices <= level);
    if sharing(view).all(is_level) {
        return Some(0);
    }
    let late = view.now() >= first.deadline;
    late.then(|| if skew(view).is_some_and(|skew| skew.is_uneven(view)) { before.failures + 1 } else { 0 })
}

/// How uneven the fleet is.
struct Skew {
    mean: f64,
    most: u64,
}

/// Pods that devices are spread over.
fn sharing<'a>(view: &View<'a>) -> impl Iterator<Item = &'a Pod> + use<'a> {
    let now = view.now();
    view.staying().filter(move |pod| pod.ready || now - pod.ready_changed < WAITED_FOR)
}

fn is_counted(pod: &Pod) -> bool {
    pod.ready && pod.is_fresh()
}

/// `None` if not all pods can be counted.
fn skew(view: &View<'_>) -> Option<Skew> {
    Skew::of(sharing(view).all(is_counted).then(|| sharing(view))?)
}

/// Of those that can be counted.
fn uneven_now(view: &View<'_>) -> Option<Skew> {
    view.input.spec.skew_max?;
    Skew::of(view.staying().filter(|pod| is_counted(pod))).filter(|skew| skew.is_uneven(view))
}

impl Skew {
    fn of<'a>(pods: impl Iterator<Item = &'a Pod>) -> Option<Self> {
        let counts: Vec<u64> = pods.filter_map(Pod::devices).collect();
        let total: u64 = counts.iter().sum();
        let most = counts.iter().copied().max().filter(|_| counts.len() > 1)?;
        Some(Self { mean: total as f64 / counts.len() as f64, most })
    }

    fn is_uneven(&self, view: &View<'_>) -> bool {
        let most = self.most as f64;
        let limit = view.input.spec.skew_max.unwrap_or(f64::INFINITY).max(1.0);
        most > self.mean * limit && most - self.mean >= EXCESS_MIN
    }

    /// Half of what is tolerated above the mean.
    fn level(&self, view: &View<'_>) -> u64 {
        let limit = view.input.spec.skew_max.unwrap_or(1.0).max(1.0);
        (self.mean * f64::midpoint(1.0, limit)).ceil() as u64
    }
}

fn begin(view: &View<'_>, drains: &mut Vec<Drain>) {
    let warm = sharing(view).all(|pod| pod.ready && view.now() - pod.ready_changed >= WARM_UP);
    let Some(skew) = skew(view).filter(|skew| warm && skew.is_uneven(view)) else { return };
    let level = skew.level(view);
    let deadline = view.now() + 2 * duration(view, level) + SLACK;
    let above = sharing(view).filter(|pod| pod.devices().is_some_and(|devices| devices > level));
    drains.extend(above.map(|pod| source(view, pod, level, view.now(), deadline)));
}

/// Those that came to be too full meanwhile.
fn add_sources(view: &View<'_>, first: &Drain, drains: &mut Vec<Drain>) {
    let level = first.down_to;
    let full: Vec<Drain> = sharing(view)
        .filter(|pod| pod.is_fresh() && pod.devices().is_some_and(|devices| devices > level))
        .filter(|pod| !drains.iter().any(|drain| drain.pod == pod.name))
        .map(|pod| source(view, pod, level, first.started_at, first.deadline))
        .collect();
    drains.extend(full);
}

fn source(view: &View<'_>, pod: &Pod, level: u64, started_at: Millis, deadline: Millis) -> Drain {
    Drain {
        pod: pod.name.clone(),
        cause: Cause::Rebalance,
        state: State::Draining,
        started_at,
        deadline,
        remaining: pod.devices().unwrap_or(0).saturating_sub(level),
        per_second: 0,
        down_to: level,
        epoch: view.input.epoch,
    }
}

/// How long it takes to level the fleet: who is let go comes to any pod, and is let go again if that one is full too.
pub(crate) fn duration(view: &View<'_>, level: u64) -> Millis {
    let counts: Vec<u64> = sharing(view).filter_map(Pod::devices).collect();
    let surplus: u64 = counts.iter().map(|count| count.saturating_sub(level)).sum();
    let with_room = counts.iter().filter(|count| **count < level).count().max(1) as u64;
    let moves = surplus.saturating_mul(counts.len() as u64).div_ceil(with_room);
    seconds_for(moves, view.input.spec.per_second).saturating_mul(1000)
}
