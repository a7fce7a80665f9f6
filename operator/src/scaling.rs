//! How many pods, which of them are emptied, and at what pace: what was observed in the planner's words, and its decision in
//! those of the API. A function: no client, no clock. The planner itself is the crate `planner`.

mod facts;
mod said;

use std::{collections::BTreeMap, time::Duration};

use crds::{
    ProtocolGateway,
    status::{Drain, LastRebalance},
};
pub use planner::{Ledger, Note, Order};

pub(crate) use self::facts::current_template;
use planner::{
    Millis,
    autoscale::{Bounds, History},
    upstream::{self, Upstream},
};

use crate::observe::Observed;

/// What the planner decided. `drains` and `last_rebalance` are to be persisted in status before orders are carried out.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// Pods that are being emptied, by name.
    pub drains: Vec<Drain>,
    /// How the last rebalance ended.
    pub last_rebalance: Option<LastRebalance>,
    /// What the Deployment is told, if there is one.
    pub replicas: Option<i32>,
    /// What pods are to be told, by name.
    pub orders: Vec<(String, Order)>,
    /// Devices per second that pods let go without having been told, by name.
    pub alone: BTreeMap<String, u32>,
    /// `controller.kubernetes.io/pod-deletion-cost` of pods; `None`: to be taken away.
    pub deletion_costs: Vec<(String, Option<i32>)>,
    /// What is to be said.
    pub notes: Vec<Note>,
    /// When to look again even if nothing changes.
    pub again_in: Option<Duration>,
}

/// Decides, as the leader of this epoch that told pods what the ledger says.
pub fn plan(gateway: &ProtocolGateway, observed: &Observed, epoch: i64, ledger: &Ledger) -> Plan {
    let status = gateway.status.as_ref();
    let spec = facts::spec(&gateway.spec, observed.pods.len());
    let pods = facts::pods(observed, status, spec.drain_timeout);
    let drains: Vec<planner::Drain> = status.into_iter().flat_map(|status| &status.drains).map(read_drain).collect();
    let rebalanced = status.and_then(|status| status.last_rebalance.as_ref());
    let decision = planner::plan(&planner::Input {
        now: observed.now.as_millisecond(),
        epoch,
        spec,
        deployment: observed.deployment.as_ref().map(facts::deployment),
        pods: &pods,
        drains: &drains,
        rebalanced: rebalanced.map(said::read_rebalanced).unwrap_or_default(),
        upstream: upstream(gateway, observed),
        ledger,
    });
    let mut notes = decision.notes;
    notes.extend(planner::notes::mistaken(&drains, &pods));
    Plan {
        drains: decision.drains.iter().map(said::drain).collect(),
        last_rebalance: said::rebalanced(decision.rebalanced),
        replicas: decision.replicas.map(|replicas| i32::try_from(replicas).unwrap_or(i32::MAX)),
        orders: decision.orders,
        alone: decision.alone,
        deletion_costs: decision.deletion_costs,
        notes,
        again_in: decision.again_in.map(duration),
    }
}

/// Whether the plan says anything that is not persisted yet.
pub fn is_news(gateway: &ProtocolGateway, plan: &Plan) -> bool {
    let status = gateway.status.as_ref();
    let drains = status.map_or(&[][..], |status| &status.drains);
    // whole seconds, as they are written
    let times = |drain: &Drain| (drain.started_at.0.as_second(), drain.deadline.0.as_second());
    let rest = |drain: &Drain| {
        (drain.pod.clone(), drain.cause, drain.state, drain.rate_per_second, drain.down_to, drain.epoch)
    };
    let same = |(a, b): (&Drain, &Drain)| times(a) == times(b) && rest(a) == rest(b);
    let rebalanced = |last: Option<&LastRebalance>| last.map(|last| (last.ended_at.0.as_second(), last.failures));
    drains.len() != plan.drains.len()
        || !drains.iter().zip(&plan.drains).all(same)
        || rebalanced(status.and_then(|status| status.last_rebalance.as_ref()))
            != rebalanced(plan.last_rebalance.as_ref())
}

/// A persisted drain in the planner's words.
pub fn read_drain(drain: &Drain) -> planner::Drain {
    said::read_drain(drain)
}

/// A cause in the API's word, which orders use, too.
pub fn cause(cause: planner::Cause) -> crds::status::DrainCause {
    said::cause(cause)
}

/// Time as the planner counts it.
pub fn millis(now: jiff::Timestamp) -> Millis {
    now.as_millisecond()
}

fn duration(time: Millis) -> Duration {
    Duration::from_millis(u64::try_from(time).unwrap_or(0))
}

/// How the fleet gets on with the upstream, as far as its pods know; else as the last status says.
pub fn upstream(gateway: &ProtocolGateway, observed: &Observed) -> Upstream {
    let loads: Vec<planner::Load> = observed.pods.iter().filter_map(|pod| pod.load.as_ref()).map(facts::load).collect();
    upstream::of(loads.iter(), upstream_before(gateway))
}

/// How it got on by the last status.
pub fn upstream_before(gateway: &ProtocolGateway) -> Upstream {
    let mut conditions = gateway.status.iter().flat_map(|status| &status.conditions);
    let saturated = conditions.find(|condition| condition.type_ == "UpstreamSaturated" && condition.status == "True");
    match saturated.map(|saturated| saturated.reason.as_str()) {
        None => Upstream::Well,
        Some("Away") => Upstream::Away,
        Some(_) => Upstream::Throttled,
    }
}

/// What the ProtocolGateway's `/scale` is to ask for where the operator scales by itself; `None`: it does not.
pub fn autoscale(gateway: &ProtocolGateway, history: &mut History, reported: Option<u64>, now: Millis) -> Option<i32> {
    let replicas = u32::try_from(gateway.spec.replicas).ok()?;
    let wanted = history.step(&bounds(gateway)?, reported, replicas, now)?;
    i32::try_from(wanted).ok()
}

/// What is wanted, as the planner reads it, of a fleet that has no pods yet.
pub fn spec(gateway: &ProtocolGateway) -> planner::Spec {
    facts::spec(&gateway.spec, 0)
}

/// Bounds and aim of autoscaling, if there is any.
pub fn bounds(gateway: &ProtocolGateway) -> Option<Bounds> {
    facts::bounds(gateway.spec.scaling.as_ref()?)
}
