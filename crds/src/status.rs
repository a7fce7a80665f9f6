//! What the operator answers. Written by the operator alone, through `/status`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::spec::is_default;

/// What was seen last.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProtocolGatewayStatus {
    /// Pods that exist and are not ending. Autoscalers read this through /scale.
    #[serde(default)]
    pub replicas: i32,
    /// Pods that are ready.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Label selector of this fleet's pods, as text. Autoscalers read this through /scale.
    #[serde(default)]
    pub selector: String,
    /// metadata.generation that this status is about.
    #[serde(default)]
    pub observed_generation: i64,
    /// How things stand. Ready=False or Degraded=True say in their message what to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Devices connected now, on all pods, draining ones too. Absent while no pod can be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<i64>,
    /// The pods that there are, and what each of them said last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub pods: Vec<PodStatus>,
    /// Pods that are being emptied: the plan, persisted before it is acted upon.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["pod".into()]))]
    pub drains: Vec<Drain>,
    /// How the last rebalance ended. Absent while there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_rebalance: Option<LastRebalance>,
    /// How long things would take within the budget, with the pods and devices that there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlook: Option<Outlook>,
    /// Certificates that the pods were seen to serve; one entry once a new certificate has reached all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["serial".into()]))]
    pub served_certificates: Vec<ServedCertificate>,
    /// The last change of the number of pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_scale: Option<LastScale>,
}

/// One pod.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// Name of the pod.
    pub name: String,
    /// What it is at.
    pub phase: PodPhase,
    /// Devices connected to it. Absent while it cannot be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<i64>,
    /// Serial number of the certificate it serves, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served_serial: Option<String>,
}

/// What a pod is at.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodPhase {
    /// Not ready yet, or not any more.
    NotReady,
    /// Takes connections.
    Ready,
    /// Is being emptied.
    Draining,
    /// Was told to stop.
    Terminating,
}

/// One pod's drain.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    /// Name of the pod.
    pub pod: String,
    /// Why it is emptied.
    pub cause: DrainCause,
    /// What it is at.
    #[serde(default)]
    pub state: DrainState,
    /// Since when.
    pub started_at: Time,
    /// Until when.
    pub deadline: Time,
    /// Devices still to be disconnected.
    pub remaining: i64,
    /// Devices per second that the pod may have been allowed to disconnect, at most.
    pub rate_per_second: i64,
    /// Devices that stay.
    #[serde(default, skip_serializing_if = "is_default")]
    pub down_to: i64,
    /// Which leader gave the order; orders of earlier ones are refused.
    pub epoch: i64,
}

/// Why a pod is drained.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DrainCause {
    /// Fewer pods are wanted.
    ScaleIn,
    /// The pod is replaced by one of a newer template.
    Upgrade,
    /// The pod's node is to be emptied.
    Eviction,
    /// Other pods have fewer devices.
    Rebalance,
    /// The CA that vouched for the devices is trusted no more.
    CertificateAuthority,
}

/// What a drain is at.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DrainState {
    /// The pod leaves the Service; it disconnects nobody yet.
    Leaving,
    /// The pod disconnects devices.
    #[default]
    Draining,
    /// Nobody is left, or the time is up: the pod may go.
    Done,
    /// The pod is wanted again; it has not heard of it yet.
    Undoing,
}

/// How a rebalance ended.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastRebalance {
    /// When it ended.
    pub ended_at: Time,
    /// How many in a row left the pods uneven: the next one is tried later each time.
    #[serde(default)]
    pub failures: i32,
}

/// How long things would take within the budget. `operator plan` says the same of other numbers.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outlook {
    /// Pods that the devices connected now need.
    pub pods_needed: i32,
    /// One pod is emptied, in seconds.
    pub drain_seconds: i64,
    /// All pods are replaced, in seconds.
    pub rollout_seconds: i64,
    /// A node with its share of the pods is emptied, in seconds.
    pub node_drain_seconds: i64,
    /// A node is lost: until its devices are connected again, in seconds. They come back by themselves, outside the budget.
    pub node_loss_seconds: i64,
}

/// A certificate that pods were seen to serve.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServedCertificate {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// When it expires.
    pub not_after: Time,
    /// How many pods serve it.
    pub pods: i32,
}

/// A change of the number of pods.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastScale {
    /// Pods before.
    pub from: i32,
    /// Pods after.
    pub to: i32,
    /// Why there were to be more or fewer.
    pub reason: String,
    /// When it began.
    pub time: Time,
}
