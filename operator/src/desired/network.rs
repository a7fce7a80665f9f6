//! Who reaches the pods, and whom they reach: ServiceAccount, Service, NetworkPolicy, PodMonitor.

use std::collections::BTreeSet;

use crds::cluster::{ServiceType, TrafficPolicy};
use gateway_core::settings::{Listener, Settings, Upstream};
use k8s_openapi::{
    api::{
        core::v1::{Service, ServiceAccount, ServicePort, ServiceSpec},
        networking::v1::{
            NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPort, NetworkPolicySpec,
        },
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::core::DynamicObject;
use serde_json::json;

use super::{
    Checked, Context, config, object,
    workload::{ADMIN_PORT, HEALTH_PORT, reachable},
};
use crate::{names, observe::LetThrough};

/// Port of name servers.
pub const DNS_PORT: u16 = 53;

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
    service.into_iter().chain([network_policy(context, checked)]).chain(monitor).collect()
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
        target_port: Some(target(context, listener)),
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

/// By name, so that every pod is reached at its own port; by number while there are pods that know it by another name.
fn target(context: &Context<'_>, listener: &Listener) -> IntOrString {
    let is_this = |(name, port): (&String, &u16)| {
        *port == listener.port && *name != listener.name && name != ADMIN_PORT && name != HEALTH_PORT
    };
    if context.observed.pods.iter().any(|pod| pod.ports.iter().any(is_this)) {
        IntOrString::Int(i32::from(listener.port))
    } else {
        IntOrString::String(listener.name.clone())
    }
}

/// Devices and operators from anywhere; out to the upstream's port and to name servers.
///
/// The admin port asks for a certificate that the fleet's own CA signed, and answers nobody else. Where operators come from is
/// not said: on the host's network they come from addresses of nodes, which no selector of pods names.
fn network_policy(context: &Context<'_>, checked: &Checked) -> DynamicObject {
    let LetThrough { ingress, egress } = let_through(context, checked);
    let tcp = |ports: BTreeSet<u16>| Some(ports.into_iter().map(|port| policy_port("TCP", port)).collect());
    let dns = vec![policy_port("UDP", DNS_PORT), policy_port("TCP", DNS_PORT)];
    let spec = NetworkPolicySpec {
        pod_selector: Some(names::label_selector(&context.name)),
        policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
        ingress: Some(vec![NetworkPolicyIngressRule { ports: tcp(ingress), from: None }]),
        egress: Some(vec![
            NetworkPolicyEgressRule { ports: tcp(egress), to: None },
            NetworkPolicyEgressRule { ports: Some(dns), to: None },
        ]),
    };
    object(&NetworkPolicy { metadata: names::owned(context.gateway, &context.name), spec: Some(spec) })
}

/// What pods of this configuration need; and while others are there what was let through until now: they go one by one, and
/// keep their devices until they do.
fn let_through(context: &Context<'_>, checked: &Checked) -> LetThrough {
    let settings = &checked.settings;
    let upstream = match &settings.upstream {
        Upstream::IotHub(hub) => hub.port,
        Upstream::Amqp(broker) => broker.port,
    };
    let listeners = reachable(settings).map(|listener| listener.port);
    let mut ports = LetThrough { ingress: listeners.chain([settings.admin.port]).collect(), egress: [upstream].into() };
    let started_with = config::started_with(checked);
    let is_other = |started: Option<&String>| started != Some(&started_with);
    let are_others = context.observed.pods.iter().any(|pod| is_other(pod.started_with.as_ref()));
    if let Some(before) = context.observed.let_through.as_ref().filter(|_| are_others) {
        ports.ingress.extend(&before.ingress);
        ports.egress.extend(&before.egress);
    }
    ports
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
