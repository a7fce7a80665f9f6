//! How many pods: what the Deployment is told, who changes the spec's number, and how many may go at a time.

use crds::status::DrainCause;
use k8s_openapi::{
    api::{
        autoscaling::v2::{
            CrossVersionObjectReference, HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscaler,
            HorizontalPodAutoscalerBehavior, HorizontalPodAutoscalerSpec, MetricIdentifier, MetricSpec, MetricTarget,
            ObjectMetricSource, ResourceMetricSource,
        },
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};
use kube::core::DynamicObject;

use planner::{Millis, autoscale, upstream::Upstream};

use super::{Context, object};
use crate::{names, observe::CustomMetrics, scaling};

/// Object metric on the ProtocolGateway: devices connected, on draining pods too. The name is API.
const METRIC: &str = "gateway_connections";

/// What the Deployment is told: what the plan says, so that only pods go that were drained. Autoscalers write the
/// ProtocolGateway and never the Deployment, so it is always said.
pub(super) fn replicas(context: &Context<'_>) -> i32 {
    context.plan.replicas.unwrap_or(context.gateway.spec.replicas)
}

pub(super) fn objects(context: &Context<'_>) -> Vec<DynamicObject> {
    [autoscaler(context)].into_iter().flatten().chain([disruption_budget(context)]).collect()
}

/// Only where this operator serves the metric; elsewhere it scales by itself. Where somebody else's autoscaler aims at the
/// fleet, that one scales: two would write the same number by turns.
fn autoscaler(context: &Context<'_>) -> Option<DynamicObject> {
    let wanted = context.gateway.spec.scaling.as_ref()?;
    let observed = context.observed;
    if observed.apis.custom_metrics != CustomMetrics::Ours || !observed.autoscalers.of_gateway.is_empty() {
        return None;
    }
    let target = CrossVersionObjectReference {
        api_version: Some(crds::API_VERSION.to_owned()),
        kind: crds::KIND.to_owned(),
        name: context.name.clone(),
    };
    let scale_down_s = wanted.scale_down_after.duration().map_or(900, |after| after.as_secs().min(3600) as i32);
    // an upstream that is the bottleneck makes pods work in vain: more of them would not help
    let cpu = wanted.cpu_utilization.filter(|_| scaling::upstream(context.gateway, observed) == Upstream::Well);
    let connections = connections(&target, wanted.connections_per_replica);
    let spec = HorizontalPodAutoscalerSpec {
        scale_target_ref: target,
        min_replicas: Some(wanted.min_replicas),
        max_replicas: wanted.max_replicas,
        metrics: Some([Some(connections), cpu.map(cpu_utilization)].into_iter().flatten().collect()),
        behavior: Some(behavior(scale_down_s)),
    };
    let metadata = names::owned(context.gateway, &context.name);
    Some(object(&HorizontalPodAutoscaler { metadata, spec: Some(spec), status: None }))
}

fn connections(of: &CrossVersionObjectReference, target: i64) -> MetricSpec {
    let target = MetricTarget {
        // ceil(connections / target): what pods are ready or ending does not matter
        type_: "AverageValue".to_owned(),
        average_value: Some(Quantity(target.to_string())),
        ..MetricTarget::default()
    };
    let metric = MetricIdentifier { name: METRIC.to_owned(), selector: None };
    let object = Some(ObjectMetricSource { described_object: of.clone(), metric, target });
    MetricSpec { type_: "Object".to_owned(), object, ..MetricSpec::default() }
}

fn cpu_utilization(percent: i32) -> MetricSpec {
    let target =
        MetricTarget { type_: "Utilization".to_owned(), average_utilization: Some(percent), ..MetricTarget::default() };
    let resource = Some(ResourceMetricSource { name: "cpu".to_owned(), target });
    MetricSpec { type_: "Resource".to_owned(), resource, ..MetricSpec::default() }
}

/// Up at once and by as much again; down pod by pod, after long quiet: devices must reconnect. Where the
/// operator scales by itself it follows the same rule.
fn behavior(scale_down_s: i32) -> HorizontalPodAutoscalerBehavior {
    let policy = |type_: &str, value, period: Millis| {
        let period_seconds = i32::try_from(period / 1000).unwrap_or(i32::MAX);
        HPAScalingPolicy { type_: type_.to_owned(), value, period_seconds }
    };
    let pods = |pods: u32| i32::try_from(pods).unwrap_or(i32::MAX);
    HorizontalPodAutoscalerBehavior {
        scale_up: Some(HPAScalingRules {
            stabilization_window_seconds: Some(0),
            policies: Some(vec![
                policy("Percent", 100, autoscale::UP_PERIOD),
                policy("Pods", pods(autoscale::UP_PODS), autoscale::UP_PERIOD),
            ]),
            select_policy: Some("Max".to_owned()),
            tolerance: None,
        }),
        scale_down: Some(HPAScalingRules {
            stabilization_window_seconds: Some(scale_down_s),
            policies: Some(vec![policy(
                "Pods",
                pods(autoscale::DOWN_PODS),
                autoscale::down_period(Millis::from(scale_down_s) * 1000),
            )]),
            select_policy: Some("Min".to_owned()),
            tolerance: None,
        }),
    }
}

/// One pod at a time, but those that do not work may always go: they must not hold up a node's drain. Nor must those that a
/// scale-in took out of the Service: the Deployment still has them, so each would use up the one that may be missing, for as
/// long as its drain takes.
fn disruption_budget(context: &Context<'_>) -> DynamicObject {
    let is_out =
        |name: &str| context.observed.pods.iter().any(|pod| pod.name == name && !pod.ready && !pod.terminating);
    let scales_in = context.plan.drains.iter().filter(|drain| drain.cause == DrainCause::ScaleIn);
    let out = scales_in.filter(|drain| is_out(&drain.pod)).count();
    object(&PodDisruptionBudget {
        metadata: names::owned(context.gateway, &context.name),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1 + i32::try_from(out).unwrap_or(0))),
            selector: Some(names::label_selector(&context.name)),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    })
}
