//! The pods: one Deployment. Nobody's root, nothing written, nothing allowed that is not needed.

use std::collections::{BTreeMap, BTreeSet};

use crds::cluster::PullPolicy;
use gateway_core::settings::{Listener, Settings};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{
            Capabilities, ConfigMapVolumeSource, Container, ContainerPort, HTTPGetAction, PodSecurityContext, PodSpec,
            PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext, Sysctl,
            TopologySpreadConstraint, Volume, VolumeMount,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use kube::core::DynamicObject;

use super::{Checked, Context, config, object, scaling};
use crate::{names, secrets};

/// Where the configuration is mounted.
const CONFIG_DIRECTORY: &str = "/etc/gateway/config";
/// Where Secrets are mounted, each in a directory of its name.
const SECRETS_DIRECTORY: &str = "/etc/gateway/secrets";
/// User and group of the image.
const USER: i64 = 65532;
/// What a pod needs beyond draining and settling to end.
pub const GRACE_MARGIN_S: u64 = 10;
/// Name of the port of health, metrics and orders.
pub const ADMIN_PORT: &str = "admin";
/// Name of the port at which the kubelet asks.
pub(super) const HEALTH_PORT: &str = "health";
/// How long a new pod must be ready before an old one goes: load balancers have to find it.
pub const MIN_READY_S: i32 = 10;

pub(super) fn deployment(context: &Context<'_>, checked: &Checked) -> DynamicObject {
    let spec = DeploymentSpec {
        replicas: Some(scaling::replicas(context)),
        min_ready_seconds: Some(MIN_READY_S),
        progress_deadline_seconds: Some(600),
        revision_history_limit: Some(3),
        selector: names::label_selector(&context.name),
        strategy: Some(DeploymentStrategy {
            type_: Some("RollingUpdate".to_owned()),
            rolling_update: Some(RollingUpdateDeployment {
                max_surge: Some(IntOrString::Int(1)),
                max_unavailable: Some(IntOrString::Int(0)),
            }),
        }),
        template: template(context, checked),
        ..DeploymentSpec::default()
    };
    object(&Deployment { metadata: names::owned(context.gateway, &context.name), spec: Some(spec), status: None })
}

fn template(context: &Context<'_>, checked: &Checked) -> PodTemplateSpec {
    let pod = &context.gateway.spec.pod;
    let mut labels = pod.labels.clone();
    labels.extend(names::labels(&context.name));
    let mut annotations = pod.annotations.clone();
    annotations.insert(names::STARTED_WITH.to_owned(), config::started_with(checked));
    annotations.insert("kubectl.kubernetes.io/default-container".to_owned(), "gateway".to_owned());
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels), annotations: Some(annotations), ..ObjectMeta::default() }),
        spec: Some(pod_spec(context, checked)),
    }
}

fn pod_spec(context: &Context<'_>, checked: &Checked) -> PodSpec {
    let pod = &context.gateway.spec.pod;
    let secrets = secret_names(checked);
    // told to stop, a gateway serves on and lets its devices go in pace, then settles what is in flight
    let limits = &checked.settings.limits;
    let grace_s = limits.drain_timeout.as_secs() + limits.shutdown_timeout.as_secs() + GRACE_MARGIN_S;
    PodSpec {
        service_account_name: Some(context.name.clone()),
        // the gateway does not know that Kubernetes exists
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(grace_s.cast_signed()),
        security_context: Some(pod_security(&checked.settings)),
        containers: vec![container(context, checked, &secrets)],
        volumes: Some(volumes(&context.name, &secrets)),
        image_pull_secrets: filled(&pod.image_pull_secrets),
        node_selector: (!pod.node_selector.is_empty()).then(|| pod.node_selector.clone()),
        tolerations: filled(&pod.tolerations),
        affinity: pod.affinity.clone(),
        topology_spread_constraints: Some(spread(context)),
        priority_class_name: pod.priority_class_name.clone(),
        runtime_class_name: pod.runtime_class_name.clone(),
        ..PodSpec::default()
    }
}

fn filled<T: Clone>(list: &[T]) -> Option<Vec<T>> {
    (!list.is_empty()).then(|| list.to_vec())
}

fn secret_names(checked: &Checked) -> BTreeSet<String> {
    secrets::referenced(&checked.config).into_iter().map(|reference| reference.secret_name).collect()
}

fn container(context: &Context<'_>, checked: &Checked, secrets: &BTreeSet<String>) -> Container {
    let pod = &context.gateway.spec.pod;
    let policy = pod.image_pull_policy.map(|policy| match policy {
        PullPolicy::Always => "Always",
        PullPolicy::IfNotPresent => "IfNotPresent",
        PullPolicy::Never => "Never",
    });
    Container {
        name: "gateway".to_owned(),
        image: Some(pod.image.clone().unwrap_or_else(|| context.installation.gateway_image.clone())),
        image_pull_policy: Some(policy.unwrap_or("IfNotPresent").to_owned()),
        args: Some(vec![
            format!("--config={CONFIG_DIRECTORY}/{}", config::FILE),
            format!("--secrets={SECRETS_DIRECTORY}"),
            "--log-format=json".to_owned(),
            format!("--log-level={}", pod.log_level.as_deref().unwrap_or("info")),
        ]),
        ports: Some(ports(&checked.settings)),
        resources: Some(pod.resources.clone().unwrap_or_else(default_resources)),
        security_context: Some(container_security()),
        startup_probe: Some(probe("/healthz", 1, 60)),
        liveness_probe: Some(probe("/healthz", 10, 6)),
        readiness_probe: Some(probe("/readyz", 2, 1)),
        volume_mounts: Some(mounts(secrets)),
        ..Container::default()
    }
}

/// Listeners that somebody outside the pod can reach.
pub(super) fn reachable(settings: &Settings) -> impl Iterator<Item = &Listener> {
    settings.listeners.iter().filter(|listener| !listener.address.is_loopback())
}

fn ports(settings: &Settings) -> Vec<ContainerPort> {
    let port = |name: &str, port: u16| ContainerPort {
        name: Some(name.to_owned()),
        container_port: i32::from(port),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    let listeners = reachable(settings).map(|listener| port(&listener.name, listener.port));
    let health = settings.admin.health_port.map(|health| port(HEALTH_PORT, health));
    listeners.chain([port(ADMIN_PORT, settings.admin.port)]).chain(health).collect()
}

/// Health is told without TLS: the kubelet has no client certificate.
fn probe(path: &str, period_s: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(HEALTH_PORT.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_s),
        timeout_seconds: Some(3),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

fn default_resources() -> ResourceRequirements {
    let quantities = |list: &[(&str, &str)]| -> BTreeMap<String, Quantity> {
        list.iter().map(|(name, quantity)| ((*name).to_owned(), Quantity((*quantity).to_owned()))).collect()
    };
    ResourceRequirements {
        requests: Some(quantities(&[("cpu", "500m"), ("memory", "256Mi")])),
        limits: Some(quantities(&[("memory", "1Gi")])),
        ..ResourceRequirements::default()
    }
}

fn pod_security(settings: &Settings) -> PodSecurityContext {
    let low_port = ports(settings).iter().any(|port| port.container_port < 1024);
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        run_as_group: Some(USER),
        fs_group: Some(USER),
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        seccomp_profile: Some(seccomp()),
        // one of the safe ones: without it nobody but root listens on 443
        sysctls: low_port
            .then(|| vec![Sysctl { name: "net.ipv4.ip_unprivileged_port_start".to_owned(), value: "0".to_owned() }]),
        ..PodSecurityContext::default()
    }
}

fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        privileged: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        seccomp_profile: Some(seccomp()),
        ..SecurityContext::default()
    }
}

fn seccomp() -> SeccompProfile {
    SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }
}

fn volumes(name: &str, secrets: &BTreeSet<String>) -> Vec<Volume> {
    let config = Volume {
        name: "config".to_owned(),
        config_map: Some(ConfigMapVolumeSource { name: name.to_owned(), ..ConfigMapVolumeSource::default() }),
        ..Volume::default()
    };
    let secret = |(index, secret): (usize, &String)| Volume {
        name: secret_volume(index),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.clone()),
            default_mode: Some(0o440),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    };
    std::iter::once(config).chain(secrets.iter().enumerate().map(secret)).collect()
}

/// A Secret's name may be longer than a volume's.
fn secret_volume(index: usize) -> String {
    format!("secret-{index}")
}

fn mounts(secrets: &BTreeSet<String>) -> Vec<VolumeMount> {
    let mount = |name: String, path: String| VolumeMount {
        name,
        mount_path: path,
        read_only: Some(true),
        ..VolumeMount::default()
    };
    let config = mount("config".to_owned(), CONFIG_DIRECTORY.to_owned());
    // directories, never subPath: those do not change when the Secret does
    let secret =
        |(index, secret): (usize, &String)| mount(secret_volume(index), format!("{SECRETS_DIRECTORY}/{secret}"));
    std::iter::once(config).chain(secrets.iter().enumerate().map(secret)).collect()
}

/// Evenly over nodes and zones where possible; what the spec says instead, with our selector where it has none.
fn spread(context: &Context<'_>) -> Vec<TopologySpreadConstraint> {
    let selector = names::label_selector(&context.name);
    match &context.gateway.spec.pod.topology_spread_constraints {
        Some(constraints) => constraints
            .iter()
            .map(|constraint| TopologySpreadConstraint {
                label_selector: Some(constraint.label_selector.clone().unwrap_or_else(|| selector.clone())),
                ..constraint.clone()
            })
            .collect(),
        None => ["kubernetes.io/hostname", "topology.kubernetes.io/zone"].map(|key| even(key, &selector)).into(),
    }
}

fn even(key: &str, selector: &LabelSelector) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        max_skew: 1,
        topology_key: key.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(selector.clone()),
        // pods of an older template do not count: a rollout ends as even as it began
        match_label_keys: Some(vec!["pod-template-hash".to_owned()]),
        ..TopologySpreadConstraint::default()
    }
}
