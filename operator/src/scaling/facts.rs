//! What was observed, in the planner's words.

use std::collections::BTreeMap;

use crds::{ProtocolGatewaySpec, ProtocolGatewayStatus, cluster::Scaling};
use gateway_core::config::Quantity;
use planner::{Deployment, Load, Millis, Ordered, Pod, Spec, autoscale::Bounds, upstream::Upstream};

use super::said;
use crate::{
    desired::{GRACE_MARGIN_S, self_drain_per_second},
    observe::{DeploymentFacts, Observed, PodFacts},
};

/// Older than any bound on how long a pod may be silent, and far from overflowing.
const LONG_AGO: Millis = 365 * 86_400_000;

pub(super) fn spec(spec: &ProtocolGatewaySpec, pods: usize) -> Spec {
    Spec {
        replicas: u32::try_from(spec.replicas).unwrap_or(0),
        per_second: u32::try_from(spec.reconnects.per_second).unwrap_or(0),
        self_per_second: self_drain_per_second(spec, pods),
        drain_timeout: millis(&spec.reconnects.drain_timeout, 600_000),
        skew_max: spec.reconnects.rebalance.as_ref().map(|rebalance| rebalance.skew_max),
    }
}

/// A time of the spec; the API server lets none pass that cannot be read.
pub(super) fn millis(time: &Quantity, default: Millis) -> Millis {
    time.duration().and_then(|time| i64::try_from(time.as_millis()).ok()).unwrap_or(default)
}

pub(super) fn bounds(scaling: &Scaling) -> Option<Bounds> {
    Some(Bounds {
        min: u32::try_from(scaling.min_replicas).ok()?,
        max: u32::try_from(scaling.max_replicas).ok()?,
        target: u64::try_from(scaling.connections_per_replica).ok()?,
        scale_down_after: millis(&scaling.scale_down_after, 900_000),
    })
}

pub(super) fn deployment(facts: &DeploymentFacts) -> Deployment {
    let status = &facts.status;
    let running = status.replicas.unwrap_or(0);
    let mut conditions = status.conditions.iter().flatten();
    Deployment {
        replicas: u32::try_from(facts.replicas).unwrap_or(0),
        running: u32::try_from(running).unwrap_or(0),
        rolling: running > 0 && status.updated_replicas.unwrap_or(0) != running,
        behind: status.observed_generation.unwrap_or(0) < facts.generation,
        refused: conditions.any(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True"),
    }
}

/// A pod that has not said anything to this replica yet is counted by what the status says of it.
pub(super) fn pods(observed: &Observed, status: Option<&ProtocolGatewayStatus>, drain_timeout: Millis) -> Vec<Pod> {
    let current = current_template(observed);
    let last_known = |pod: &PodFacts| {
        let before = status?.pods.iter().find(|before| before.name == pod.name)?;
        let connections = u64::try_from(before.connections?).ok()?;
        Some(Load { connections, age: LONG_AGO, upstream: None, drain: None, forsaken_per_second: 0.0 })
    };
    let pod = |pod: &PodFacts| Pod {
        name: pod.name.clone(),
        running: !pod.stopped,
        ready: pod.ready && !pod.terminating,
        // a pod that no node has room for has no such condition
        ready_changed: pod.ready_changed.or(pod.created).map_or(0, jiff::Timestamp::as_millisecond),
        ends: pod.terminating.then(|| ends(pod, observed.now, drain_timeout)),
        outdated: current.is_some_and(|current| pod.template != current),
        deletion_cost: pod.deletion_cost,
        load: pod.load.as_ref().map(load).or_else(|| last_known(pod)),
    };
    observed.pods.iter().map(pod).collect()
}

/// When a pod that was told to stop must have let its devices go: its own time does not depend on how long it may then settle,
/// which is another where pods of an older template go; but somebody may have left it less.
fn ends(pod: &PodFacts, now: jiff::Timestamp, drain_timeout: Millis) -> Millis {
    let killed = pod.ends.unwrap_or(now).as_millisecond() - GRACE_MARGIN_S.cast_signed() * 1000;
    pod.told.map_or(killed, |told| killed.min(told.as_millisecond() + drain_timeout))
}

pub(super) fn load(load: &crate::observe::Load) -> Load {
    let upstream = match (&load.upstream_failing, load.upstream_throttled) {
        (_, true) => Some(Upstream::Throttled),
        (Some(_), _) => Some(Upstream::Away),
        (None, _) => (!load.upstream_unknown).then_some(Upstream::Well),
    };
    Load {
        connections: u64::try_from(load.connections).unwrap_or(0),
        age: load.age_s.saturating_mul(1000),
        upstream,
        drain: load.drain.as_ref().map(|drain| Ordered {
            cause: drain.cause.map(said::read_cause),
            epoch: drain.epoch,
            per_second: drain.per_second.ceil() as u32,
            remaining: u64::try_from(drain.remaining).unwrap_or(0),
        }),
        forsaken_per_second: load.forsaken_per_second,
    }
}

/// The hash of the newest template: that of the ReplicaSet which the Deployment names as its newest; where it names none that has
/// pods, the one of as many pods as it says are updated, and of several such the one whose pod was made last.
pub(crate) fn current_template(observed: &Observed) -> Option<&str> {
    let named = observed.deployment.as_ref().and_then(newest_named);
    let of_pods = |hash: &&str| observed.pods.iter().any(|pod| pod.template == *hash);
    named.filter(of_pods).or_else(|| most_likely_template(observed))
}

/// Its condition Progressing is about its newest ReplicaSet: `ReplicaSet "gw-7d9f4c" has successfully progressed.`
fn newest_named(deployment: &DeploymentFacts) -> Option<&str> {
    let mut conditions = deployment.status.conditions.iter().flatten();
    let progressing = conditions.find(|condition| condition.type_ == "Progressing")?;
    let (_, quoted) = progressing.message.as_deref()?.split_once(" \"")?;
    let (name, _) = quoted.split_once('"')?;
    name.rsplit_once('-').map(|(_, hash)| hash)
}

fn most_likely_template(observed: &Observed) -> Option<&str> {
    let mut templates: BTreeMap<&str, (i32, Option<jiff::Timestamp>)> = BTreeMap::new();
    for pod in observed.pods.iter().filter(|pod| !pod.template.is_empty()) {
        let entry = templates.entry(&pod.template).or_default();
        entry.0 += i32::from(!pod.terminating);
        entry.1 = entry.1.max(pod.created);
    }
    let updated = observed.deployment.as_ref().map_or(0, |deployment| deployment.status.updated_replicas.unwrap_or(0));
    let newest = templates.into_iter().max_by_key(|(_, (pods, made))| (*pods == updated, *made));
    newest.map(|(template, _)| template)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::DeploymentCondition;

    use super::*;

    fn pod(template: &str, created: i64, terminating: bool) -> PodFacts {
        let created = jiff::Timestamp::from_second(created).ok();
        PodFacts { template: template.to_owned(), created, terminating, ..PodFacts::default() }
    }

    fn check(updated: i32, pods: Vec<PodFacts>, expected: Option<&str>) {
        check_said(None, updated, pods, expected);
    }

    fn check_said(progressing: Option<&str>, updated: i32, pods: Vec<PodFacts>, expected: Option<&str>) {
        let mut deployment = DeploymentFacts::default();
        deployment.status.updated_replicas = Some(updated);
        deployment.status.conditions = progressing.map(|message| {
            let (type_, message) = ("Progressing".to_owned(), Some(message.to_owned()));
            vec![DeploymentCondition { type_, message, ..DeploymentCondition::default() }]
        });
        let observed = Observed { pods, deployment: Some(deployment), ..Observed::default() };
        assert_eq!(current_template(&observed), expected);
    }

    #[test]
    fn the_newest_template_is_the_one_of_the_updated_pods() {
        check(0, vec![], None);
        check(1, vec![pod("old", 1, false), pod("old", 2, false), pod("new", 3, false)], Some("new"));
        // an old pod was evicted in the middle of the rollout, and made anew
        check(1, vec![pod("old", 1, false), pod("new", 3, false), pod("old", 4, false)], Some("new"));
        check(
            2,
            vec![pod("old", 1, false), pod("old", 2, false), pod("new", 3, false), pod("new", 4, false)],
            Some("new"),
        );
        check(2, vec![pod("new", 3, false), pod("new", 4, false), pod("old", 1, true)], Some("new"));
    }

    #[test]
    fn the_newest_template_is_the_one_that_the_deployment_names() {
        // an old pod was evicted and made anew, and there are as many old ones as new ones
        let pods = || vec![pod("old", 1, false), pod("new", 3, false), pod("new", 3, false), pod("old", 4, false)];
        check_said(None, 2, pods(), Some("old"));
        for message in [
            "ReplicaSet \"plant-a-new\" is progressing.",
            "ReplicaSet \"plant-a-new\" has successfully progressed.",
            "ReplicaSet \"plant-a-new\" has timed out progressing.",
            "Created new replica set \"plant-a-new\"",
            "Found new replica set \"plant-a-new\"",
        ] {
            check_said(Some(message), 2, pods(), Some("new"));
        }
        for message in
            ["", "\"", "Deployment is paused", "Deployment \"plant-a\" is progressing.", "ReplicaSet \"a-gone\" …"]
        {
            check_said(Some(message), 2, pods(), Some("old"));
        }
    }

    #[test]
    fn pods_are_refused_where_the_deployment_says_so() {
        let check = |type_: &str, status: &str, expected: bool| {
            let mut facts = DeploymentFacts::default();
            let (type_, status) = (type_.to_owned(), status.to_owned());
            facts.status.conditions =
                Some(vec![DeploymentCondition { type_, status, ..DeploymentCondition::default() }]);
            assert_eq!(deployment(&facts).refused, expected, "{:?}", facts.status.conditions);
        };
        check("ReplicaFailure", "True", true);
        check("ReplicaFailure", "False", false);
        check("Progressing", "True", false);
        assert!(!deployment(&DeploymentFacts::default()).refused);
    }

    #[test]
    fn the_time_of_a_pod_that_ends_does_not_depend_on_how_long_it_may_settle() {
        let at = |second| jiff::Timestamp::from_second(second).expect("it is a time");
        let check = |told: Option<i64>, killed: i64, expected: i64| {
            let pod = PodFacts { told: told.map(at), ends: Some(at(killed)), terminating: true, ..PodFacts::default() };
            assert_eq!(ends(&pod, at(1000), 120_000), expected * 1000, "told at {told:?}, killed at {killed}");
        };
        for shutdown in [0, 25, 300, 3600] {
            check(Some(1000), 1000 + 120 + shutdown + 10, 1120);
        }
        // by kubectl delete --grace-period=60
        check(Some(1000), 1060, 1050);
        check(None, 1060, 1050);
    }

    #[test]
    fn a_pod_that_nobody_asked_yet_is_counted_by_what_the_status_says() {
        let status: ProtocolGatewayStatus =
            serde_json::from_value(serde_json::json!({"pods": [{"name": "a", "phase": "Ready", "connections": 7}]}))
                .expect("it is a status");
        let facts = PodFacts { name: "a".to_owned(), ..PodFacts::default() };
        let observed = Observed { pods: vec![facts, PodFacts::default()], ..Observed::default() };
        let pods = pods(&observed, Some(&status), 600_000);
        let connections: Vec<_> = pods.iter().map(|pod| pod.load.as_ref().map(|load| load.connections)).collect();
        assert_eq!(connections, [Some(7), None]);
    }
}
