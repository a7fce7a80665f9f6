//! Pods that are asked for and do not come: how many, for how long, and why.
//!
//! One pod may be missing at any time, so a fleet may be ready and still not be what was asked for.

use crds::ProtocolGateway;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::DeploymentCondition;

use crate::{
    observe::{DeploymentFacts, Observed, PodFacts},
    scaling::Plan,
};

/// How long a pod may take to become ready, its node included where one is made for it.
const PATIENCE: SignedDuration = SignedDuration::from_mins(3);
/// How long pods that were missing must be ready before they are not: what crashes may be ready in between.
const STEADY: SignedDuration = SignedDuration::from_mins(2);

/// The reason while pods are missing.
const MISSING: &str = "PodsMissing";

/// What keeps the fleet from having its pods: reason and message.
pub(super) fn problem(gateway: &ProtocolGateway, observed: &Observed, plan: &Plan) -> Option<(&'static str, String)> {
    if let Some(message) = stuck(observed) {
        return Some(("RolloutStuck", message));
    }
    missing(gateway, observed, plan).map(|message| (MISSING, message))
}

/// A rollout that its Deployment has given up waiting for.
pub(super) fn stuck(observed: &Observed) -> Option<String> {
    let deployment = observed.deployment.as_ref()?;
    let progressing = condition(deployment, "Progressing")?;
    (progressing.reason.as_deref() == Some("ProgressDeadlineExceeded")).then(|| {
        let status = &deployment.status;
        let (updated, replicas) = (status.updated_replicas.unwrap_or(0), status.replicas.unwrap_or(0));
        format!("the rollout does not go on: {updated} of {replicas} pods are new{}", trouble(observed))
    })
}

/// What keeps pods from running, for messages: that they cannot be made, and the first of what those say that were.
pub(super) fn trouble(observed: &Observed) -> String {
    let refused = observed.deployment.as_ref().and_then(not_made);
    let refused = refused.map(|why| format!("pods cannot be made: {}", why.message.as_deref().unwrap_or_default()));
    let pods = observed.pods.iter().filter(|pod| !pod.terminating);
    let first = pods.filter_map(|pod| Some((&pod.name, pod.trouble.as_ref()?))).min();
    let first = first.map(|(pod, trouble)| format!("{pod}: {trouble}"));
    [refused, first].into_iter().flatten().fold(String::new(), |said, words| said + "; " + &words)
}

/// When [`problem`] may say something else although nothing changes.
pub(super) fn due(gateway: &ProtocolGateway, observed: &Observed) -> impl Iterator<Item = Timestamp> {
    let (before, pods) = (said_before(gateway).is_some(), running(observed));
    let steady = move |pod: &PodFacts| Some(pod.ready_changed.filter(|_| before)? + STEADY);
    let late = |pod: &PodFacts| Some(waits_since(pod)? + PATIENCE);
    let pods = pods.filter_map(move |pod| if pod.ready { steady(pod) } else { late(pod) });
    let refused = observed.deployment.as_ref().and_then(not_made);
    pods.chain(refused.and_then(|refused| Some(refused.last_transition_time.as_ref()?.0 + PATIENCE)))
}

fn missing(gateway: &ProtocolGateway, observed: &Observed, plan: &Plan) -> Option<String> {
    let (deployment, before) = (observed.deployment.as_ref()?, said_before(gateway));
    let (wanted, now) = (usize::try_from(gateway.spec.replicas).unwrap_or(0), observed.now);
    let ready = running(observed).filter(|pod| pod.ready).count();
    if ready >= wanted {
        // the same words until it is sure
        let fresh = |pod: &PodFacts| pod.ready && pod.ready_changed.is_some_and(|since| now < since + STEADY);
        let unsure = wanted > 0 && running(observed).filter(|pod| pod.ready && !fresh(pod)).count() < wanted;
        return before.filter(|_| unsure).map(str::to_owned);
    }
    let late = |since: Option<Timestamp>| before.is_some() || since.is_some_and(|since| now >= since + PATIENCE);
    let drains = |pod: &PodFacts| plan.drains.iter().any(|drain| drain.pod == pod.name);
    let pods: Vec<&PodFacts> =
        running(observed).filter(|pod| !pod.ready && !drains(pod) && late(waits_since(pod))).collect();
    let refused = not_made(deployment).filter(|why| late(why.last_transition_time.as_ref().map(|time| time.0)));
    let asked = usize::try_from(deployment.replicas).unwrap_or(0);
    let unmade = refused.map_or(0, |_| asked.saturating_sub(running(observed).count()));
    let count = (pods.len() + unmade).min(wanted - ready);
    (count > 0).then(|| {
        let minutes = PATIENCE.as_mins();
        format!("pods missing for more than {minutes} minutes: {count} of {wanted}{}", why(observed, &pods))
    })
}

/// A pod that runs says nothing here of why it is not ready.
fn why(observed: &Observed, late: &[&PodFacts]) -> String {
    let said = trouble(observed);
    let silent = late.iter().map(|pod| &pod.name).min();
    match silent.filter(|_| said.is_empty()) {
        Some(pod) => format!("; {pod}: it is not ready, and `kubectl logs {pod}` may say why"),
        None => said,
    }
}

fn running(observed: &Observed) -> impl Iterator<Item = &PodFacts> {
    observed.pods.iter().filter(|pod| !pod.terminating)
}

fn waits_since(pod: &PodFacts) -> Option<Timestamp> {
    pod.ready_changed.or(pod.created)
}

/// That the API server refuses its pods: a quota, a policy, a webhook.
fn not_made(deployment: &DeploymentFacts) -> Option<&DeploymentCondition> {
    condition(deployment, "ReplicaFailure").filter(|failure| failure.status == "True")
}

fn condition<'a>(deployment: &'a DeploymentFacts, type_: &str) -> Option<&'a DeploymentCondition> {
    deployment.status.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

/// The message that pods are missing, if that was said last.
fn said_before(gateway: &ProtocolGateway) -> Option<&str> {
    let before = gateway.status.iter().flat_map(|status| &status.conditions);
    let mut degraded = before.filter(|before| before.type_ == "Degraded" && before.status == "True");
    degraded.find(|before| before.reason == MISSING).map(|before| before.message.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// What is said at noon of a fleet of two with these pods beside one that is ready, if `before` was said.
    fn said(pods: &[Value], conditions: &Value, before: Option<&str>) -> Option<String> {
        let mut gateway = json!({
            "apiVersion": crds::API_VERSION, "kind": crds::KIND, "metadata": {"name": "gw"},
            "spec": {"upstream": {"iotHub": {"hostName": "contoso.azure-devices.net"}}},
        });
        if let Some(message) = before {
            gateway["status"] = json!({"replicas": 2, "readyReplicas": 1, "selector": "", "observedGeneration": 1, "conditions": [
                {"type": "Degraded", "status": "True", "reason": MISSING, "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"},
            ]});
        }
        let steady = json!({"name": "gw-0", "ready": true, "readyChanged": "2026-01-01T00:00:00Z"});
        let pods: Vec<Value> = [&[steady], pods].concat();
        let deployment = json!({"replicas": 2, "status": {"conditions": conditions}});
        let observed = json!({"now": "2026-01-01T12:00:00Z", "deployment": deployment, "pods": pods});
        let gateway = serde_json::from_value(gateway).expect("it is a ProtocolGateway");
        let observed = serde_json::from_value(observed).expect("it can be observed");
        problem(&gateway, &observed, &Plan::default()).map(|(reason, message)| format!("{reason}: {message}"))
    }

    fn check(pod: &Value, before: Option<&str>, expected: Option<&str>) {
        assert_eq!(said(std::slice::from_ref(pod), &json!([]), before).as_deref(), expected, "{pod}");
    }

    #[test]
    fn a_pod_is_missing_once_patience_with_it_ends() {
        let waits = |since: &str| json!({"name": "gw-1", "readyChanged": since, "trouble": "Unschedulable: full"});
        check(&waits("2026-01-01T11:57:01Z"), None, None);
        let missing = "PodsMissing: pods missing for more than 3 minutes: 1 of 2; gw-1: Unschedulable: full";
        check(&waits("2026-01-01T11:57:00Z"), None, Some(missing));
        check(&json!({"name": "gw-1", "created": "2026-01-01T11:57:00Z", "terminating": true}), None, None);
        let silent = "PodsMissing: pods missing for more than 3 minutes: 1 of 2; gw-1: it is not ready, and `kubectl logs \
                      gw-1` may say why";
        check(&json!({"name": "gw-1", "created": "2026-01-01T11:57:00Z"}), None, Some(silent));
        check(&json!({"name": "gw-1", "created": "2026-01-01T11:00:00Z", "ready": true}), None, None);
    }

    #[test]
    fn a_pod_that_crashes_is_missing_until_it_has_run_for_a_while() {
        let before = Some("pods missing for more than 3 minutes: 1 of 2; gw-1: CrashLoopBackOff");
        let same = "PodsMissing: pods missing for more than 3 minutes: 1 of 2; gw-1: CrashLoopBackOff";
        let pod = |ready: bool, since: &str| json!({"name": "gw-1", "ready": ready, "readyChanged": since});
        check(&pod(true, "2026-01-01T11:58:01Z"), before, Some(same));
        check(&pod(true, "2026-01-01T11:58:00Z"), before, None);
        check(&pod(true, "2026-01-01T11:58:01Z"), None, None);
        let mut crashed = pod(false, "2026-01-01T11:59:59Z");
        crashed["trouble"] = json!("CrashLoopBackOff");
        check(&crashed, before, Some(same));
        check(&crashed, None, None);
    }

    #[test]
    fn pods_that_cannot_be_made_are_missing_and_a_rollout_that_stands_still_is_stuck() {
        let refused = |since: &str| json!([{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota", "lastTransitionTime": since}]);
        assert_eq!(said(&[], &refused("2026-01-01T11:57:01Z"), None), None);
        let missing = "PodsMissing: pods missing for more than 3 minutes: 1 of 2; pods cannot be made: exceeded quota";
        assert_eq!(said(&[], &refused("2026-01-01T11:57:00Z"), None).as_deref(), Some(missing));
        let stuck = json!([{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]);
        let crashes = json!({"name": "gw-1", "created": "2026-01-01T11:00:00Z", "trouble": "ErrImagePull: none"});
        let expected = "RolloutStuck: the rollout does not go on: 0 of 0 pods are new; gw-1: ErrImagePull: none";
        assert_eq!(said(&[crashes], &stuck, None).as_deref(), Some(expected));
    }

    #[test]
    fn what_may_be_said_later_is_looked_at_then() {
        let gateway = json!({
            "apiVersion": crds::API_VERSION, "kind": crds::KIND, "metadata": {"name": "gw"},
            "spec": {"upstream": {"iotHub": {"hostName": "contoso.azure-devices.net"}}},
        });
        let gateway: ProtocolGateway = serde_json::from_value(gateway).expect("it is a ProtocolGateway");
        let pods = json!([
            {"name": "gw-0", "ready": true, "readyChanged": "2026-01-01T11:59:00Z"},
            {"name": "gw-1", "created": "2026-01-01T11:58:00Z"},
            {"name": "gw-2", "created": "2026-01-01T11:58:00Z", "terminating": true},
        ]);
        let observed: Observed = serde_json::from_value(json!({"pods": pods})).expect("it can be observed");
        let times: Vec<String> = due(&gateway, &observed).map(|time| time.to_string()).collect();
        assert_eq!(times, ["2026-01-01T12:01:00Z"]);
    }
}
