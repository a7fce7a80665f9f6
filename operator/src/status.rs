//! How things stand: (ProtocolGateway, what was observed, what was decided) → status. A function: no client, no clock.
//!
//! Said twice the same, it is the same: times are those of changes, so that nothing is written where nothing changed.

mod conditions;

use std::collections::BTreeMap;

use crds::{
    ProtocolGateway, ProtocolGatewayStatus,
    status::{Drain, DrainCause, LastScale, PodPhase, PodStatus, ServedCertificate},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use crate::{
    desired::{Desired, Invalid, count},
    names,
    observe::{Observed, PodFacts},
    scaling::Plan,
};

/// Says it. `plan` is persisted by it: orders are carried out once it is written.
pub fn status(
    gateway: &ProtocolGateway,
    observed: &Observed,
    plan: &Plan,
    decided: &Result<Desired, Invalid>,
) -> ProtocolGatewayStatus {
    let before = gateway.status.clone().unwrap_or_default();
    let running = observed.pods.iter().filter(|pod| !pod.terminating);
    ProtocolGatewayStatus {
        replicas: count(running.clone()),
        ready_replicas: count(running.filter(|pod| pod.ready)),
        selector: names::selector_text(&gateway.name_any()),
        observed_generation: gateway.metadata.generation.unwrap_or(0),
        conditions: conditions::conditions(gateway, observed, plan, decided),
        connections: connections(&observed.pods),
        pods: pods(observed, plan),
        served_certificates: served(&observed.pods),
        last_scale: last_scale(observed, decided).or(before.last_scale),
        drains: plan.drains.clone(),
        last_rebalance: plan.last_rebalance.clone(),
        outlook: crate::plan::outlook_now(gateway, observed, connections(&observed.pods)),
    }
}

/// When [`status()`] may say something else although nothing changes.
pub fn due(gateway: &ProtocolGateway, observed: &Observed) -> impl Iterator<Item = Timestamp> {
    conditions::due(gateway, observed)
}

/// On all pods that could be asked; those that end still hold devices, and these come back.
fn connections(pods: &[PodFacts]) -> Option<i64> {
    let known: Vec<i64> = pods.iter().filter_map(|pod| Some(pod.load.as_ref()?.connections)).collect();
    (!known.is_empty() || pods.is_empty()).then(|| known.iter().sum())
}

fn pods(observed: &Observed, plan: &Plan) -> Vec<PodStatus> {
    let phase = |pod: &PodFacts| {
        let leaves = |drain: &Drain| drain.pod == pod.name && drain.cause == DrainCause::ScaleIn;
        let drains = plan.drains.iter().any(leaves);
        match (pod.terminating, drains, pod.ready) {
            (true, _, _) => PodPhase::Terminating,
            (_, true, _) => PodPhase::Draining,
            (_, _, true) => PodPhase::Ready,
            _ => PodPhase::NotReady,
        }
    };
    let mut pods: Vec<PodStatus> = observed
        .pods
        .iter()
        .map(|pod| PodStatus {
            name: pod.name.clone(),
            phase: phase(pod),
            connections: pod.load.as_ref().map(|load| load.connections),
            served_serial: pod.served.as_ref().map(|certificate| certificate.serial.clone()),
        })
        .collect();
    pods.sort_by(|a, b| a.name.cmp(&b.name));
    pods
}

fn served(pods: &[PodFacts]) -> Vec<ServedCertificate> {
    let mut by_serial = BTreeMap::new();
    for certificate in pods.iter().filter_map(|pod| pod.served.as_ref()) {
        let entry = by_serial.entry(&certificate.serial).or_insert((certificate.not_after, 0));
        entry.1 += 1;
    }
    by_serial
        .into_iter()
        .map(|(serial, (not_after, pods))| ServedCertificate {
            serial: serial.clone(),
            not_after: Time(not_after),
            pods,
        })
        .collect()
}

/// The change that is about to be made, if there is one.
fn last_scale(observed: &Observed, decided: &Result<Desired, Invalid>) -> Option<LastScale> {
    let to = decided.as_ref().ok()?.replicas?;
    let from = observed.deployment.as_ref()?.replicas;
    (from != to).then(|| LastScale {
        from,
        to,
        reason: if to > from { "more pods are asked for" } else { "fewer pods are asked for" }.to_owned(),
        time: Time(observed.now),
    })
}
