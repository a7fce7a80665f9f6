//! A pod of a fleet, as its object tells: what a decision needs of it, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::{ContainerStatus, Pod, PodStatus},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::PodFacts;
use crate::{names, observe::mirror::Name, orders};

/// A pod, but for what it says itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SeenPod {
    /// What decisions look at; what the pod says of itself is still to be filled in.
    pub facts: PodFacts,
    /// Its uid: a pod of the same name may be another.
    pub uid: String,
    /// Where it can be asked, once it runs.
    pub address: Option<IpAddr>,
    /// Secrets that it mounts.
    pub secrets: BTreeSet<String>,
}

/// The fleet that a pod is of.
pub fn fleet(pod: &Pod) -> Option<Name> {
    let labels = pod.metadata.labels.as_ref()?;
    let instance = labels.get(names::INSTANCE)?;
    Some(Name::new(pod.metadata.namespace.as_deref()?, instance))
}

/// What is seen of a pod.
pub fn seen(pod: &Pod) -> SeenPod {
    let (metadata, status) = (&pod.metadata, pod.status.clone().unwrap_or_default());
    let label = |key: &str| metadata.labels.as_ref()?.get(key).cloned();
    let annotation = |key: &str| metadata.annotations.as_ref()?.get(key);
    let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
    SeenPod {
        facts: PodFacts {
            name: metadata.name.clone().unwrap_or_default(),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            ready: ready.is_some_and(|ready| ready.status == "True"),
            ready_changed: ready.and_then(|ready| Some(ready.last_transition_time.as_ref()?.0)),
            stopped: !status.container_statuses.iter().flatten().any(runs),
            created: metadata.creation_timestamp.as_ref().map(|time| time.0),
            template: label("pod-template-hash").unwrap_or_default(),
            started_with: annotation(names::STARTED_WITH).cloned(),
            ports: ports(pod),
            deletion_cost: annotation(orders::DELETION_COST).and_then(|cost| cost.parse().ok()),
            terminating: metadata.deletion_timestamp.is_some(),
            told: told(metadata),
            ends: metadata.deletion_timestamp.as_ref().map(|time| time.0),
            trouble: trouble(&status),
            ..PodFacts::default()
        },
        uid: metadata.uid.clone().unwrap_or_default(),
        address: status.pod_ip.as_ref().and_then(|address| address.parse().ok()),
        secrets: secrets(pod),
    }
}

/// When it was told to stop: what is written is when that, and its grace with it, will be over.
fn told(metadata: &ObjectMeta) -> Option<Timestamp> {
    let grace = SignedDuration::from_secs(metadata.deletion_grace_period_seconds?);
    metadata.deletion_timestamp.as_ref()?.0.checked_sub(grace).ok()
}

fn ports(pod: &Pod) -> BTreeMap<String, u16> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports.filter_map(|port| Some((port.name.clone()?, u16::try_from(port.container_port).ok()?))).collect()
}

fn secrets(pod: &Pod) -> BTreeSet<String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| volume.secret.as_ref()?.secret_name.clone()).collect()
}

fn runs(container: &ContainerStatus) -> bool {
    container.state.as_ref().is_some_and(|state| state.running.is_some())
}

/// Whether a pod has come to its end: it holds nothing and is not counted.
pub fn ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Why it does not run: its container's reason, or its scheduler's.
fn trouble(status: &PodStatus) -> Option<String> {
    let container = status.container_statuses.iter().flatten().find_map(container_trouble);
    container.or_else(|| {
        let unscheduled = |type_: &str, status: &str| type_ == "PodScheduled" && status == "False";
        let condition = status.conditions.iter().flatten().find(|each| unscheduled(&each.type_, &each.status))?;
        Some(said(condition.reason.as_deref(), condition.message.as_deref()))
    })
}

fn container_trouble(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    let (waiting, reason) =
        (state.waiting.as_ref(), state.waiting.as_ref().and_then(|waiting| waiting.reason.as_deref()));
    // what crashes runs for a moment between two waits: the same is said of it then
    let again = waiting.is_none() && !container.ready && container.restart_count > 1;
    if again || reason == Some(CRASHES) {
        // what it said before it ended tells more than that it waits to be started again
        let last = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
        let last = state.terminated.as_ref().or(last);
        let ended = last.map(|last| format!("; ended with code {}", last.exit_code)).unwrap_or_default();
        return Some(format!("{CRASHES}{ended}"));
    }
    if matches!(reason, None | Some("ContainerCreating" | "PodInitializing")) {
        return None;
    }
    Some(said(reason, waiting.and_then(|waiting| waiting.message.as_deref())))
}

/// The kubelet's word for a container that ends again and again.
const CRASHES: &str = "CrashLoopBackOff";

fn said(reason: Option<&str>, message: Option<&str>) -> String {
    let parts: Vec<&str> = [reason, message].into_iter().flatten().filter(|part| !part.is_empty()).collect();
    parts.join(": ")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: &Value) -> SeenPod {
        let pod = json!({"metadata": {"name": "gw-0", "uid": "u"}, "status": status});
        seen(&serde_json::from_value(pod).expect("it is a pod"))
    }

    fn check(status: &Value, trouble: Option<&str>) {
        assert_eq!(pod(status).facts.trouble.as_deref(), trouble, "{status}");
    }

    #[test]
    fn trouble_is_what_the_container_or_the_scheduler_says() {
        let waits = |reason: &str, message: &str| json!({"containerStatuses": [{"name": "gateway", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": {"waiting": {"reason": reason, "message": message}}}]});
        check(&json!({}), None);
        check(&waits("ContainerCreating", ""), None);
        check(&waits("ErrImagePull", "no such image"), Some("ErrImagePull: no such image"));
        let mut crashes = waits("CrashLoopBackOff", "back-off 5m0s restarting failed container=gateway pod=gw-0(…)");
        check(&crashes, Some("CrashLoopBackOff"));
        crashes["containerStatuses"][0]["lastState"] = json!({"terminated": {"exitCode": 2}});
        check(&crashes, Some("CrashLoopBackOff; ended with code 2"));
        let container = &mut crashes["containerStatuses"][0];
        (container["state"], container["restartCount"]) = (json!({"running": {}}), json!(2));
        check(&crashes, Some("CrashLoopBackOff; ended with code 2"));
        crashes["containerStatuses"][0]["state"] = json!({"terminated": {"exitCode": 3}});
        check(&crashes, Some("CrashLoopBackOff; ended with code 3"));
        crashes["containerStatuses"][0]["state"] = json!({"running": {}});
        crashes["containerStatuses"][0]["ready"] = json!(true);
        check(&crashes, None);
        let unscheduled =
            json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes"});
        check(&json!({"conditions": [unscheduled]}), Some("Unschedulable: 0/2 nodes"));
    }

    #[test]
    fn a_pod_is_ready_and_can_be_asked_when_its_status_says_so() {
        let running = json!({"podIP": "10.0.0.7", "conditions": [{"type": "Ready", "status": "True"}]});
        let seen = pod(&running);
        assert!(seen.facts.ready && !seen.facts.terminating);
        assert_eq!(seen.address, Some(IpAddr::from([10, 0, 0, 7])));
        assert!(!pod(&json!({"conditions": [{"type": "Ready", "status": "False"}]})).facts.ready);
    }

    #[test]
    fn a_pod_tells_what_it_was_made_with() {
        let volumes =
            json!([{"name": "config", "configMap": {"name": "gw"}}, {"name": "a", "secret": {"secretName": "gw-tls"}}]);
        let pod = json!({
            "metadata": {"name": "gw-0", "annotations": {names::STARTED_WITH: "00ff"}},
            "spec": {"volumes": volumes, "containers": [{"name": "gateway", "ports": [{"name": "mqtts", "containerPort": 8883}]}]},
        });
        let seen = seen(&serde_json::from_value(pod).expect("it is a pod"));
        assert_eq!(seen.secrets, ["gw-tls".to_owned()].into());
        assert_eq!(seen.facts.ports, [("mqtts".to_owned(), 8883)].into());
        assert_eq!(seen.facts.started_with.as_deref(), Some("00ff"));
    }

    #[test]
    fn when_a_pod_was_told_to_stop_is_its_grace_before_it_is_killed() {
        let check = |metadata: &Value, expected: (bool, Option<&str>, Option<&str>)| {
            let pod = json!({"metadata": metadata});
            let facts = seen(&serde_json::from_value(pod).expect("it is a pod")).facts;
            let time = |time: &str| time.parse::<Timestamp>().expect("it is a time");
            let (told, ends) = (expected.1.map(time), expected.2.map(time));
            assert_eq!((facts.terminating, facts.told, facts.ends), (expected.0, told, ends), "{metadata}");
        };
        check(&json!({"name": "gw-0"}), (false, None, None));
        let at = "2026-11-21T12:07:10Z";
        check(&json!({"deletionTimestamp": at}), (true, None, Some(at)));
        check(
            &json!({"deletionTimestamp": at, "deletionGracePeriodSeconds": 430}),
            (true, Some("2026-11-21T12:00:00Z"), Some(at)),
        );
    }

    #[test]
    fn a_pod_has_a_node_once_it_is_scheduled() {
        let node = |spec: &Value| {
            let pod = json!({"metadata": {"name": "gw-0"}, "spec": spec});
            seen(&serde_json::from_value(pod).expect("it is a pod")).facts.node
        };
        assert_eq!(node(&json!({"containers": []})), None);
        assert_eq!(node(&json!({"containers": [], "nodeName": "node-1"})).as_deref(), Some("node-1"));
    }
}
