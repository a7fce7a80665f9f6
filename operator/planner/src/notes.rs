//! What is said about a plan: facts with their arithmetic, for conditions.

use crate::{
    budget::{is_pressed, seconds_for},
    drains::late_at,
    model::{Cause, Drain, Pod, State},
    orders::DRAINED_COST,
    rebalance,
    view::View,
    whatif::{Time, too_slow},
};

/// One fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// Pods are being emptied.
    Draining {
        /// Why, how many, how long.
        message: String,
    },
    /// Devices are being moved to pods that have fewer.
    Rebalancing {
        /// How many, how long.
        message: String,
    },
    /// The fleet is uneven, and nobody is moved yet.
    RebalanceWaits {
        /// How uneven, and for what.
        message: String,
    },
    /// Devices come back to the pods that they left.
    RebalanceFails {
        /// What to look at.
        message: String,
    },
    /// A drain cannot be done in its time within the budget.
    DrainTimeoutTooShort {
        /// The arithmetic, and what to do.
        message: String,
    },
    /// A pod went that was not meant to.
    OtherPodTaken {
        /// Which instead of which.
        message: String,
    },
    /// Drains wait for something.
    Waiting {
        /// For what.
        message: String,
    },
}

pub(crate) fn notes(view: &View<'_>, drains: &[Drain]) -> Vec<Note> {
    [
        draining(view, drains),
        rebalancing(view, drains),
        rebalance_waits(view, drains),
        rebalance_fails(view),
        waiting(view, drains),
    ]
    .into_iter()
    .flatten()
    .chain(too_short(view, drains).map(|message| Note::DrainTimeoutTooShort { message }))
    .collect()
}

fn draining(view: &View<'_>, drains: &[Drain]) -> Option<Note> {
    let causes = [
        (Cause::ScaleIn, "fewer pods are wanted"),
        (Cause::Upgrade, "pods are replaced"),
        (Cause::Eviction, "pods were told to stop"),
        (Cause::CertificateAuthority, "a CA is trusted no more"),
    ];
    let parts: Vec<String> = causes.iter().filter_map(|(cause, why)| part(drains, *cause, why)).collect();
    let per_second = view.input.spec.per_second;
    (!parts.is_empty()).then(|| Note::Draining { message: format!("{}, at {per_second}/s together", parts.join("; ")) })
}

fn part(drains: &[Drain], cause: Cause, why: &str) -> Option<String> {
    let of_cause = || drains.iter().filter(|drain| drain.cause == cause && drain.state != State::Undoing);
    let pods = of_cause().count();
    let devices: u64 = of_cause().map(|drain| drain.remaining).sum();
    (pods > 0).then(|| format!("{why}: {devices} devices are to leave {pods} pods"))
}

fn rebalancing(view: &View<'_>, drains: &[Drain]) -> Option<Note> {
    let moves = || drains.iter().filter(|drain| drain.cause == Cause::Rebalance && drain.state != State::Undoing);
    let first = moves().next()?;
    let devices: u64 = moves().map(|drain| drain.remaining).sum();
    let until_s = (first.deadline - view.now()).max(0) / 1000;
    let message = format!(
        "{devices} devices are to leave {} pods until none has more than {}; tried for {until_s} s at most",
        moves().count(),
        first.down_to
    );
    Some(Note::Rebalancing { message })
}

/// While anybody is drained, that is what it waits for.
fn rebalance_waits(view: &View<'_>, drains: &[Drain]) -> Option<Note> {
    let message = rebalance::waits_for(view).filter(|_| drains.is_empty())?;
    Some(Note::RebalanceWaits { message })
}

fn rebalance_fails(view: &View<'_>) -> Option<Note> {
    let failures = view.input.rebalanced.failures;
    (failures > 0 && view.input.spec.skew_max.is_some()).then(|| {
        let message = format!(
            "{failures} times in a row devices came back to the pods that they left: does a load balancer or the Service send \
             clients to the same pod again (session affinity, few nodes with externalTrafficPolicy Local)?"
        );
        Note::RebalanceFails { message }
    })
}

fn waiting(view: &View<'_>, drains: &[Drain]) -> Option<Note> {
    let waits = |drain: &&Drain| matches!(drain.state, State::Leaving | State::Draining) && drain.remaining > 0;
    if drains.iter().filter(waits).count() == 0 {
        return None;
    }
    let spec = &view.input.spec;
    let why = match () {
        () if spec.per_second == 0 => "reconnects.perSecond is 0: nobody may be let go",
        () if spec.replicas == 0 => "replicas is 0: all devices are let go, and have nowhere to go",
        () if is_pressed(view, drains) => return None,
        () if !view.has_place() => "no other pod is ready: devices would have nowhere to go",
        () if drains.iter().any(|drain| drain.cause == Cause::Upgrade) && view.has_outdated_place() => {
            "devices stay until no pod of the old template takes connections, so that each moves once"
        }
        () => return None,
    };
    Some(Note::Waiting { message: why.to_owned() })
}

/// Those that end must be done together before each lets go whom it must; others have the time-out each for itself.
fn too_short(view: &View<'_>, drains: &[Drain]) -> Option<String> {
    let spec = &view.input.spec;
    let timeout_s = spec.drain_timeout / 1000;
    let ends = |drain: &Drain| view.pod(&drain.pod).is_some_and(|pod| pod.ends.is_some());
    let mut ending: Vec<&Drain> = drains.iter().filter(|drain| drain.remaining > 0 && ends(drain)).collect();
    ending.sort_by_key(|drain| drain.deadline);
    let mut before = 0;
    for drain in ending {
        before += drain.remaining;
        let late_at = late_at(view, drain.deadline);
        let (needs_s, has_s) = (seconds_for(before, spec.per_second), (late_at - view.now()).max(0) / 1000);
        if needs_s > has_s {
            return Some(format!(
                "{before} devices have {has_s} s until {} has a quarter of its time left and need {needs_s} s at {}/s: the rest \
                 of them goes as fast as it must; raise reconnects.perSecond or reconnects.drainTimeout ({timeout_s} s)",
                drain.pod, spec.per_second
            ));
        }
    }
    let scale_in = drains.iter().filter(|drain| drain.cause == Cause::ScaleIn && !ends(drain));
    scale_in
        .filter(|drain| drain.state != State::Undoing)
        .max_by_key(|drain| drain.remaining)
        .and_then(|drain| too_slow(&drain.pod, drain.remaining, spec.per_second, Time::All(timeout_s), 0))
}

/// A pod went that was not drained, while one that was is still there.
pub fn mistaken(before: &[Drain], pods: &[Pod]) -> Option<Note> {
    let meant = |name: &str| before.iter().any(|drain| drain.pod == name && drain.cause == Cause::ScaleIn);
    let drained = |pod: &&Pod| pod.deletion_cost == Some(DRAINED_COST) && pod.ends.is_none();
    let waiting = pods.iter().find(drained)?;
    let taken = pods.iter().find(|pod| pod.ends.is_some() && !pod.outdated && !meant(&pod.name))?;
    let message = format!("{} was told to stop, and not {}, which was drained to go", taken.name, waiting.name);
    Some(Note::OtherPodTaken { message })
}
