//! How many pods: what the Deployment is told, who changes the spec's number, and how many may go at a time.

use crds::status::Drain;
use k8s_openapi::{
    api::{
        autoscaling::v2::{
            CrossVersionObjectReference, HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscaler,
            HorizontalPodAutoscalerBehavior, HorizontalPodAutoscalerSpec, MetricIdentifier, MetricSpec, MetricTarget,
            ObjectMetricSource,
        },
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};
use kube::core::DynamicObject;

use super::{Context, count, object};
use crate::{names, observe::CustomMetrics};

/// Object metric on the ProtocolGateway: devices connected, on draining pods too. The name is API.
const METRIC: &str = "gateway_connections";

/// What the Deployment is told. Autoscalers write the ProtocolGateway and never the Deployment, so it is always said.
///
/// More pods come at once. Fewer come when the planned drains are done, and never in the middle of a rollout: a Deployment
/// that rolls takes pods from all its templates, not those that were drained.
pub(super) fn replicas(context: &Context<'_>) -> i32 {
    let wanted = context.gateway.spec.replicas;
    let Some(deployment) = &context.observed.deployment else { return wanted };
    let current = deployment.replicas;
    if wanted >= current {
        return wanted;
    }
    let status = &deployment.status;
    let rolls = status.observed_generation.unwrap_or(0) < deployment.generation
        || status.updated_replicas.unwrap_or(0) != status.replicas.unwrap_or(0);
    if rolls && status.replicas.unwrap_or(0) > 0 && wanted > 0 {
        return current;
    }
    let drains = context.gateway.status.as_ref().map_or(&[][..], |status| &status.drains);
    let runs = |drain: &&Drain| drain.remaining > 0 && drain.deadline.0 > context.observed.now;
    wanted.saturating_add(count(drains.iter().filter(runs))).min(current)
}

pub(super) fn objects(context: &Context<'_>) -> Vec<DynamicObject> {
    [autoscaler(context)].into_iter().flatten().chain([disruption_budget(context)]).collect()
}

/// Only where this operator serves the metric; elsewhere it scales by itself.
fn autoscaler(context: &Context<'_>) -> Option<DynamicObject> {
    let scaling = context.gateway.spec.scaling.as_ref()?;
    if context.observed.apis.custom_metrics != CustomMetrics::Ours {
        return None;
    }
    let target = CrossVersionObjectReference {
        api_version: Some(crds::API_VERSION.to_owned()),
        kind: crds::KIND.to_owned(),
        name: context.name.clone(),
    };
    let scale_down_s = scaling.scale_down_after.duration().map_or(900, |after| after.as_secs().min(3600) as i32);
    let spec = HorizontalPodAutoscalerSpec {
        scale_target_ref: target.clone(),
        min_replicas: Some(scaling.min_replicas),
        max_replicas: scaling.max_replicas,
        metrics: Some(vec![MetricSpec {
            type_: "Object".to_owned(),
            object: Some(ObjectMetricSource {
                described_object: target,
                metric: MetricIdentifier { name: METRIC.to_owned(), selector: None },
                target: MetricTarget {
                    // ceil(connections / target): what pods are ready or ending does not matter
                    type_: "AverageValue".to_owned(),
                    average_value: Some(Quantity(scaling.connections_per_replica.to_string())),
                    ..MetricTarget::default()
                },
            }),
            ..MetricSpec::default()
        }]),
        behavior: Some(behavior(scale_down_s)),
    };
    let metadata = names::owned(context.gateway, &context.name);
    Some(object(&HorizontalPodAutoscaler { metadata, spec: Some(spec), status: None }))
}

/// Up at once and by as much again; down by one pod every two minutes, after long quiet: devices must reconnect.
fn behavior(scale_down_s: i32) -> HorizontalPodAutoscalerBehavior {
    let policy =
        |type_: &str, value, period_seconds| HPAScalingPolicy { type_: type_.to_owned(), value, period_seconds };
    HorizontalPodAutoscalerBehavior {
        scale_up: Some(HPAScalingRules {
            stabilization_window_seconds: Some(0),
            policies: Some(vec![policy("Percent", 100, 30), policy("Pods", 4, 30)]),
            select_policy: Some("Max".to_owned()),
            tolerance: None,
        }),
        scale_down: Some(HPAScalingRules {
            stabilization_window_seconds: Some(scale_down_s),
            policies: Some(vec![policy("Pods", 1, 120)]),
            select_policy: Some("Min".to_owned()),
            tolerance: None,
        }),
    }
}

/// One pod at a time, but those that do not work may always go: they must not hold up a node's drain.
fn disruption_budget(context: &Context<'_>) -> DynamicObject {
    object(&PodDisruptionBudget {
        metadata: names::owned(context.gateway, &context.name),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(names::label_selector(&context.name)),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    })
}
