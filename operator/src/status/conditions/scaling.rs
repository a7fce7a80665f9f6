//! Conditions about the number of pods, and about devices that are moved.

use crds::ProtocolGateway;
use planner::upstream::Upstream;

use super::{Verdict, verdict};
use crate::{
    observe::Observed,
    scaling::{self, Note, Plan},
};

pub(super) fn verdicts(gateway: &ProtocolGateway, observed: &Observed, plan: &Plan) -> Vec<(&'static str, Verdict)> {
    let mut verdicts = vec![("Draining", draining(plan))];
    if gateway.spec.reconnects.rebalance.is_some() {
        verdicts.push(("Rebalancing", rebalancing(plan)));
    }
    verdicts.push(("UpstreamSaturated", upstream_saturated(gateway, observed)));
    verdicts.push(("ScalingLimited", limited(gateway, observed, plan)));
    verdicts
}

fn draining(plan: &Plan) -> Verdict {
    let message = plan.notes.iter().find_map(|note| match note {
        Note::Draining { message } => Some(message.clone()),
        _ => None,
    });
    let waits = plan.notes.iter().find_map(|note| match note {
        Note::Waiting { message } => Some(message.clone()),
        _ => None,
    });
    match (message, waits) {
        (Some(message), Some(waits)) => verdict(true, "Waiting", format!("{message}; {waits}")),
        (Some(message), None) => verdict(true, "Draining", message),
        (None, _) => verdict(false, "NothingToDrain", "no pod is being emptied"),
    }
}

fn rebalancing(plan: &Plan) -> Verdict {
    for note in &plan.notes {
        match note {
            Note::Rebalancing { message } => return verdict(true, "Moving", message.clone()),
            Note::RebalanceWaits { message } => return verdict(false, "Waiting", message.clone()),
            Note::RebalanceFails { message } => return verdict(false, "Fails", message.clone()),
            _ => {}
        }
    }
    verdict(false, "NothingToMove", "no devices are being moved between pods")
}

/// What the number of pods has to do with it is said only where it is scaled.
fn upstream_saturated(gateway: &ProtocolGateway, observed: &Observed) -> Verdict {
    let held = match &gateway.spec.scaling {
        Some(_) => ": more pods would not help, none are made for it",
        None => "",
    };
    match scaling::upstream(gateway, observed) {
        Upstream::Well => verdict(false, "NotSaturated", "no pod is throttled by the upstream"),
        Upstream::Throttled => verdict(true, "Throttled", format!("the upstream takes less than it is sent{held}")),
        Upstream::Away => verdict(true, "Away", format!("no pod that wants the upstream reaches it{held}")),
    }
}

/// What keeps the fleet from being scaled as the spec says: all of it, the worst first.
fn limited(gateway: &ProtocolGateway, observed: &Observed, plan: &Plan) -> Verdict {
    let mut limits: Vec<(&str, String)> = Vec::new();
    for note in &plan.notes {
        match note {
            Note::DrainTimeoutTooShort { message } => limits.push(("DrainTimeoutTooShort", message.clone())),
            Note::OtherPodTaken { message } => limits.push(("OtherPodTaken", message.clone())),
            _ => {}
        }
    }
    limits.extend(autoscalers(gateway, observed));
    limits.extend(crate::plan::problems_now(gateway, observed).into_iter().map(|problem| ("DoesNotFit", problem)));
    match limits.first() {
        None => verdict(false, "NotLimited", "the number of pods follows what is asked for"),
        Some((reason, _)) => {
            let messages: Vec<&str> = limits.iter().map(|(_, message)| message.as_str()).collect();
            verdict(true, reason, messages.join("\n"))
        }
    }
}

fn autoscalers(gateway: &ProtocolGateway, observed: &Observed) -> Vec<(&'static str, String)> {
    let list = |names: &std::collections::BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(", ");
    let name = gateway.metadata.name.as_deref().unwrap_or_default();
    let found = &observed.autoscalers;
    let mut said = Vec::new();
    if !found.of_deployment.is_empty() {
        let message = format!(
            "{} aims at Deployment {name}, whose pods would go without being drained, and what it writes is put right again: \
             let it aim at ProtocolGateway {name}",
            list(&found.of_deployment)
        );
        said.push(("AutoscalerOfDeployment", message));
    }
    if gateway.spec.scaling.is_some() && !found.of_gateway.is_empty() {
        let message = format!(
            "{} aims at this ProtocolGateway: it scales, and the autoscaler of spec.scaling is withdrawn as long as it does; \
             delete it, or leave out spec.scaling",
            list(&found.of_gateway)
        );
        said.push(("TwoAutoscalers", message));
    }
    said
}
