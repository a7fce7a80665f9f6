//! Who reaches the pods, and whom they reach: ServiceAccount, Service, NetworkPolicy, PodMonitor.

use crds::cluster::{ServiceType, TrafficPolicy};
use gateway_core::settings::{Settings, Upstream};
use k8s_openapi::{
    api::{
        core::v1::{Service, ServiceAccount, ServicePort, ServiceSpec},
        networking::v1::{
            NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
            NetworkPolicySpec,
        },
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::core::DynamicObject;
use serde_json::json;

use super::{Checked, Context, object, workload::reachable};
use crate::names;

/// It has no rights, and pods do not mount its token.
pub(super) fn service_account(context: &Context<'_>) -> DynamicObject {
    object(&ServiceAccount {
        metadata: names::owned(context.gateway, &context.name),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    })
}

pub(super) fn objects(context: &Context<'_>, checked: &Checked) -> Vec<DynamicObject> {
    let settings = &checked.settings;
    let service = reachable(settings).next().is_some().then(|| service(context, settings));
    let monitor = context.observed.apis.pod_monitor.then(|| pod_monitor(context));
    service.into_iter().chain([network_policy(context, settings)]).chain(monitor).collect()
}

fn service(context: &Context<'_>, settings: &Settings) -> DynamicObject {
    let wanted = &context.gateway.spec.service;
    let (type_, outside) = match wanted.type_ {
        ServiceType::LoadBalancer => ("LoadBalancer", true),
        ServiceType::NodePort => ("NodePort", true),
        ServiceType::ClusterIP => ("ClusterIP", false),
    };
    let policy = match wanted.external_traffic_policy.unwrap_or(TrafficPolicy::Local) {
        TrafficPolicy::Local => "Local",
        TrafficPolicy::Cluster => "Cluster",
    };
    let ports = reachable(settings).map(|listener| ServicePort {
        name: Some(listener.name.clone()),
        port: i32::from(listener.port),
        target_port: Some(IntOrString::String(listener.name.clone())),
        protocol: Some("TCP".to_owned()),
        node_port: wanted.node_ports.get(&listener.name).copied(),
        ..ServicePort::default()
    });
    let spec = ServiceSpec {
        type_: Some(type_.to_owned()),
        selector: Some(names::selector(&context.name)),
        ports: Some(ports.collect()),
        external_traffic_policy: outside.then(|| policy.to_owned()),
        load_balancer_class: wanted.load_balancer_class.clone(),
        load_balancer_source_ranges: (!wanted.load_balancer_source_ranges.is_empty())
            .then(|| wanted.load_balancer_source_ranges.clone()),
        ..ServiceSpec::default()
    };
    let mut metadata = names::owned(context.gateway, &context.name);
    metadata.annotations = (!wanted.annotations.is_empty()).then(|| wanted.annotations.clone());
    object(&Service { metadata, spec: Some(spec), status: None })
}

/// Devices from anywhere; the admin port, which asks for a certificate, from pods; out to the upstream's port and DNS.
fn network_policy(context: &Context<'_>, settings: &Settings) -> DynamicObject {
    let listeners: Vec<_> = reachable(settings).map(|listener| policy_port("TCP", listener.port)).collect();
    let from_anywhere = NetworkPolicyIngressRule { ports: Some(listeners), from: None };
    let from_pods = NetworkPolicyIngressRule {
        ports: Some(vec![policy_port("TCP", settings.admin.port)]),
        from: Some(vec![NetworkPolicyPeer {
            namespace_selector: Some(LabelSelector::default()),
            ..NetworkPolicyPeer::default()
        }]),
    };
    let upstream = match &settings.upstream {
        Upstream::IotHub(hub) => hub.port,
        Upstream::Amqp(broker) => broker.port,
    };
    let to = |ports| NetworkPolicyEgressRule { ports: Some(ports), to: None };
    let has_listeners = reachable(settings).next().is_some();
    let spec = NetworkPolicySpec {
        pod_selector: Some(names::label_selector(&context.name)),
        policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
        // a rule without ports would allow all of them
        ingress: Some(has_listeners.then_some(from_anywhere).into_iter().chain([from_pods]).collect()),
        egress: Some(vec![
            to(vec![policy_port("TCP", upstream)]),
            to(vec![policy_port("UDP", 53), policy_port("TCP", 53)]),
        ]),
    };
    object(&NetworkPolicy { metadata: names::owned(context.gateway, &context.name), spec: Some(spec) })
}

fn policy_port(protocol: &str, port: u16) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some(protocol.to_owned()),
        port: Some(IntOrString::Int(i32::from(port))),
        end_port: None,
    }
}

/// Prometheus asks the admin port with the certificate made for that.
fn pod_monitor(context: &Context<'_>) -> DynamicObject {
    let client = names::control_client(&context.name);
    object(&json!({
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": names::owned(context.gateway, &context.name),
        "spec": {
            "selector": {"matchLabels": names::selector(&context.name)},
            "podMetricsEndpoints": [{
                "port": "admin",
                "path": "/metrics",
                "scheme": "https",
                "tlsConfig": {
                    "serverName": names::control_host(&context.name, &context.namespace),
                    "ca": {"secret": {"name": client, "key": "ca.crt"}},
                    "cert": {"secret": {"name": client, "key": "tls.crt"}},
                    "keySecret": {"name": client, "key": "tls.key"},
                },
            }],
        },
    }))
}
