//! The cluster half of the spec: how many pods, at what pace they change, their certificate, Service and shape.

use std::collections::BTreeMap;

use gateway_core::config::Quantity;
use k8s_openapi::api::core::v1::{
    Affinity, LocalObjectReference, ResourceRequirements, Toleration, TopologySpreadConstraint,
};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{rules, spec::is_default};

/// `replicas` where none is given.
pub(crate) fn default_replicas() -> i32 {
    2
}

/// Bounds and aim of the autoscaler.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::scaling_range())]
pub struct Scaling {
    /// Fewest pods.
    #[serde(default = "default_replicas")]
    pub min_replicas: i32,
    /// Most pods.
    pub max_replicas: i32,
    /// Connections that one pod is to hold; more pods are made above it.
    #[serde(default = "default_connections_per_replica")]
    pub connections_per_replica: i64,
    /// CPU that one pod is to use, in percent of what it requests; more pods are made above it, too. Needs metrics-server: without
    /// one the fleet grows for connections and does not shrink. Default: only connections count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_utilization: Option<i32>,
    /// How long the number of connections must stay low before pods are drained.
    #[serde(default = "default_scale_down_after")]
    pub scale_down_after: Quantity,
}

fn default_connections_per_replica() -> i64 {
    5000
}

fn default_scale_down_after() -> Quantity {
    Quantity("15m".to_owned())
}

/// The budget of the whole fleet for disconnecting devices.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reconnects {
    /// Devices that may be asked to reconnect per second, over all pods and causes.
    #[serde(default = "default_per_second")]
    pub per_second: i64,
    /// How long one pod may take to drain.
    #[serde(default = "default_drain_timeout")]
    pub drain_timeout: Quantity,
    /// Move devices to pods that have fewer. Leave it out to leave them where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebalance: Option<Rebalance>,
}

fn default_per_second() -> i64 {
    100
}

fn default_drain_timeout() -> Quantity {
    Quantity("10m".to_owned())
}

impl Default for Reconnects {
    fn default() -> Self {
        Self { per_second: default_per_second(), drain_timeout: default_drain_timeout(), rebalance: None }
    }
}

/// When to move devices between pods.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rebalance {
    /// Move devices away from a pod that holds more than this many times the mean.
    #[serde(default = "default_skew_max")]
    pub skew_max: f64,
}

fn default_skew_max() -> f64 {
    1.15
}

/// Where the listeners' certificate comes from.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::one_certificate())]
pub struct Tls {
    /// The operator runs a CA of its own and renews the certificate at two thirds of its life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub self_signed: Option<SelfSigned>,
    /// A Secret with `tls.crt` and `tls.key` that you renew; pods take a new one without a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,
    /// cert-manager makes the certificate; it must be installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_manager: Option<CertManager>,
}

impl Default for Tls {
    fn default() -> Self {
        Self { self_signed: Some(SelfSigned::default()), secret_name: None, cert_manager: None }
    }
}

/// A certificate of the operator's own CA.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SelfSigned {
    /// Names by which devices reach the gateway, beside those of the Service inside the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_names: Vec<String>,
    /// Addresses by which devices reach the gateway.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_addresses: Vec<String>,
    /// Life of the certificate. Default: 2160h (90 days).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Quantity>,
}

/// A certificate made by cert-manager.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertManager {
    /// Who signs.
    pub issuer_ref: IssuerReference,
    /// Names by which devices reach the gateway, beside those of the Service inside the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_names: Vec<String>,
    /// Addresses by which devices reach the gateway.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_addresses: Vec<String>,
    /// Life of the certificate. Default: the issuer's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Quantity>,
}

/// An issuer of cert-manager.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IssuerReference {
    /// Name of the issuer.
    pub name: String,
    /// Issuer (same namespace), ClusterIssuer, or the kind of an external issuer.
    #[serde(default = "default_issuer_kind")]
    pub kind: String,
    /// API group of the issuer.
    #[serde(default = "default_issuer_group")]
    pub group: String,
}

fn default_issuer_kind() -> String {
    "Issuer".to_owned()
}

fn default_issuer_group() -> String {
    "cert-manager.io".to_owned()
}

/// The Service in front of the listeners.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::cluster_ip_has_no_outside(), validation = rules::balancer_fields_need_balancer(), validation = rules::node_ports_are_unique())]
pub struct Service {
    /// How devices reach it.
    #[serde(default, rename = "type")]
    pub type_: ServiceType,
    /// Annotations of the Service, such as those that your cloud's load balancer reads.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[x_kube(validation = rules::keys_are_names())]
    pub annotations: BTreeMap<String, String>,
    /// Local keeps the devices' addresses and their connections when other nodes go. Default: Local, where the type knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_traffic_policy: Option<TrafficPolicy>,
    /// Node port of a listener, by the listener's name. Default: the cluster chooses.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_ports: BTreeMap<String, i32>,
    /// Which load balancer implementation. Default: the cluster's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer_class: Option<String>,
    /// Only these client addresses (CIDR) may connect, where the load balancer supports it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub load_balancer_source_ranges: Vec<String>,
    /// After how much silence the load balancer drops a connection. If given, limits.keepAliveMax must be shorter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Quantity>,
}

/// How devices reach the Service.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceType {
    /// Through the cloud's load balancer.
    #[default]
    LoadBalancer,
    /// Through a port of every node.
    NodePort,
    /// From inside the cluster only.
    ClusterIP,
}

/// Which pods a node passes outside connections to.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// Its own.
    Local,
    /// All of the cluster.
    Cluster,
}

/// What the pods look like beyond what the operator decides.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// Image of the gateway. Default: that of the operator's release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// When to pull the image. Default: IfNotPresent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<PullPolicy>,
    /// Secrets to pull the image with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// CPU and memory. Default: requests of 500m and 256Mi, a memory limit of 1Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::resources_are_known(), validation = rules::requests_fit_limits())]
    pub resources: Option<ResourceRequirements>,
    /// Labels of the pods, beside the operator's.
    #[serde(default, skip_serializing_if = "is_default")]
    #[x_kube(validation = rules::labels_are_not_ours(), validation = rules::keys_are_labels())]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pods, beside the operator's.
    #[serde(default, skip_serializing_if = "is_default")]
    #[x_kube(validation = rules::labels_are_not_ours(), validation = rules::keys_are_names())]
    pub annotations: BTreeMap<String, String>,
    /// Labels that nodes must have.
    #[serde(default, skip_serializing_if = "is_default")]
    #[x_kube(validation = rules::keys_are_labels())]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes to put up with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Which nodes, and beside which pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// How to spread pods. Without labelSelector it is the fleet's. Default: evenly over nodes and zones, where possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,
    /// Priority class of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// Runtime class of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_class_name: Option<String>,
    /// What the gateway logs, as in RUST_LOG. Default: info.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_level: Option<String>,
}

/// When to pull an image.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    /// For every pod.
    Always,
    /// Where the node has none.
    IfNotPresent,
    /// Not at all.
    Never,
}
