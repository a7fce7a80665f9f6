//! How each drain goes on, and which begin: pods that end, and pods that are too many.

use crate::{
    budget::WIDTH,
    model::{Cause, Drain, Millis, Pod, State},
    victims,
    view::{FRESH, SETTLE, View},
};

/// A pod that ends is to be empty a little before its own time is over.
const END_MARGIN: Millis = 5_000;
/// A pod that was told to stop follows orders for so much of its time; in what is then left it lets go whom it must.
pub(crate) const FOLLOWS: (Millis, Millis) = (3, 4);
/// A pod that is not seen to leave the Service is drained all the same.
const LEAVE_MAX: Millis = 60_000;

/// The plan from now on, but for rebalancing and rates.
pub(crate) fn next(view: &View<'_>) -> Vec<Drain> {
    let carried = view.input.drains.iter().filter_map(|drain| carry(view, drain, view.pod(&drain.pod)?));
    let mut drains: Vec<Drain> = carried.collect();
    drains.extend(endings(view, &drains));
    drains.extend(distrusted(view, &drains));
    scale_in(view, &mut drains);
    take_turns(view, &mut drains);
    drains
}

/// When a pod whose time is over then lets go whom it must, whatever it is told; it is to be empty before.
pub(crate) fn late_at(view: &View<'_>, over: Millis) -> Millis {
    over - view.input.spec.drain_timeout / FOLLOWS.1 * (FOLLOWS.1 - FOLLOWS.0)
}

/// A drain of a pod that is still there; `None` when there is nothing left to do.
fn carry(view: &View<'_>, drain: &Drain, pod: &Pod) -> Option<Drain> {
    let mut drain = Drain { epoch: view.input.epoch, ..drain.clone() };
    if let Some(ends) = pod.ends {
        if pod.is_empty() {
            return None;
        }
        drain.cause = if drain.cause == Cause::ScaleIn { Cause::ScaleIn } else { ending_cause(pod) };
        drain.state = State::Draining;
        drain.deadline = ends - END_MARGIN;
        drain.down_to = 0;
        drain.remaining = pod.devices().unwrap_or(drain.remaining);
        return Some(drain);
    }
    drain.remaining = pod.devices().map_or(drain.remaining, |devices| devices.saturating_sub(drain.down_to));
    match drain.cause {
        // such a pod ends; this one does not: it is not the pod that was meant
        Cause::Eviction | Cause::Upgrade => drain.state = State::Undoing,
        Cause::CertificateAuthority => {
            let distrusted = distrusted_on(pod);
            drain.remaining = distrusted.unwrap_or(drain.remaining);
            let over = distrusted == Some(0) || view.now() >= drain.deadline;
            if over {
                return (view.input.ledger.outstanding(&drain.pod, view.now()) > 0).then_some(drain);
            }
        }
        Cause::ScaleIn | Cause::Rebalance => {}
    }
    if drain.state == State::Undoing && view.input.ledger.is_free(&drain.pod, view.now()) {
        return None;
    }
    if drain.cause == Cause::ScaleIn {
        drain.state = advance(view, &drain, pod);
    }
    Some(drain)
}

fn advance(view: &View<'_>, drain: &Drain, pod: &Pod) -> State {
    let late = view.now() >= drain.deadline;
    match drain.state {
        State::Leaving if pod.is_empty() && has_left(view, drain, pod) => State::Done,
        State::Draining if pod.is_empty() || late => State::Done,
        // somebody came whom a load balancer sent after all
        State::Done if !late && !pod.is_empty() && pod.is_fresh() => State::Draining,
        state => state,
    }
}

fn has_left(view: &View<'_>, drain: &Drain, pod: &Pod) -> bool {
    let now = view.now();
    !pod.running || (!pod.ready && now - pod.ready_changed >= SETTLE) || now - drain.started_at >= LEAVE_MAX
}

/// Pods that were told to stop and have devices, or may have: nobody knows.
fn endings(view: &View<'_>, drains: &[Drain]) -> Vec<Drain> {
    let known = |pod: &Pod| drains.iter().any(|drain| drain.pod == pod.name);
    let ends = |pod: &Pod| {
        let ends = pod.ends.filter(|_| !pod.is_empty() && !known(pod))?;
        Some(begin(view, pod, ending_cause(pod), State::Draining, ends - END_MARGIN))
    };
    view.input.pods.iter().filter_map(ends).collect()
}

fn ending_cause(pod: &Pod) -> Cause {
    if pod.outdated { Cause::Upgrade } else { Cause::Eviction }
}

/// Pods that let devices go because the CA that vouched for them is trusted no more: they wait for their share.
fn distrusted(view: &View<'_>, drains: &[Drain]) -> Vec<Drain> {
    let known = |pod: &Pod| drains.iter().any(|drain| drain.pod == pod.name);
    let pods = view.staying().filter(|pod| !known(pod));
    let begins = |pod: &Pod| {
        let remaining = distrusted_on(pod).filter(|remaining| *remaining > 0)?;
        let deadline = view.now() + view.input.spec.drain_timeout;
        Some(Drain { remaining, ..begin(view, pod, Cause::CertificateAuthority, State::Draining, deadline) })
    };
    pods.filter_map(begins).collect()
}

/// `None` if it cannot be asked.
fn distrusted_on(pod: &Pod) -> Option<u64> {
    let load = pod.load.as_ref().filter(|load| load.age <= FRESH)?;
    let drain = load.drain.filter(|drain| drain.cause == Some(Cause::CertificateAuthority));
    Some(drain.map_or(0, |drain| drain.remaining))
}

fn begin(view: &View<'_>, pod: &Pod, cause: Cause, state: State, deadline: Millis) -> Drain {
    Drain {
        pod: pod.name.clone(),
        cause,
        state,
        started_at: view.now(),
        deadline,
        remaining: pod.devices().unwrap_or(0),
        per_second: 0,
        down_to: 0,
        epoch: view.input.epoch,
    }
}

/// As many drains as there are pods too many. Not in a rollout: it takes pods of all templates, not those that were drained;
/// but where all are to go, all are drained.
fn scale_in(view: &View<'_>, drains: &mut Vec<Drain>) {
    let spec = &view.input.spec;
    let too_many = view.staying_count().saturating_sub(spec.replicas) as usize;
    let frozen = view.input.deployment.is_none() || (view.rolling() && spec.replicas > 0);
    let wanted = if frozen { 0 } else { too_many };
    victims::turn_back(view, drains, wanted);
    let under_way = drains.iter().filter(|drain| victims::is_under_way(view, drain)).count();
    let missing = wanted.saturating_sub(under_way);
    if missing == 0 || !are_counted(view) {
        return;
    }
    let deadline = view.now() + spec.drain_timeout;
    let chosen = victims::choose(view, drains, missing);
    drains.extend(chosen.into_iter().map(|pod| begin(view, pod, Cause::ScaleIn, State::Leaving, deadline)));
}

/// Whom it is cheapest to take is known; a new leader waits a little for it.
fn are_counted(view: &View<'_>) -> bool {
    let waited = view.now() - view.input.ledger.since() >= FRESH;
    waited || view.staying().all(|pod| pod.devices().is_some())
}

/// All victims leave the Service at once, so that nobody comes from one to the next; a few at a time let devices go.
fn take_turns(view: &View<'_>, drains: &mut [Drain]) {
    let scales_in = |drain: &Drain, state| drain.cause == Cause::ScaleIn && drain.state == state;
    let busy = drains.iter().filter(|drain| scales_in(drain, State::Draining)).count();
    let mut waiting: Vec<&mut Drain> = drains.iter_mut().filter(|drain| scales_in(drain, State::Leaving)).collect();
    waiting.sort_by(|a, b| (a.started_at, a.remaining, &a.pod).cmp(&(b.started_at, b.remaining, &b.pod)));
    let ready = waiting.into_iter().filter(|drain| {
        let pod = view.pod(&drain.pod);
        pod.is_some_and(|pod| pod.ends.is_none() && has_left(view, drain, pod))
    });
    for drain in ready.take(WIDTH.saturating_sub(busy)) {
        drain.state = State::Draining;
        drain.deadline = view.now() + view.input.spec.drain_timeout;
    }
}
