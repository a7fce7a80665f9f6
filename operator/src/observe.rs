//! Everything a decision needs, in one struct, time included. Holds no key and no password.
//!
//! The modules below fill it: [`mirror`] holds what is watched, [`secrets`] asks for named Secrets, [`look`] puts it together.

pub mod apis;
pub mod look;
pub mod mirror;
pub mod pods;
pub mod secrets;

use std::collections::{BTreeMap, BTreeSet};

use crds::status::DrainCause;
use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::DeploymentStatus, core::v1::ServiceStatus};
use serde::{Deserialize, Serialize};

use crate::error::Kind as Failure;

/// What was seen before deciding.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Observed {
    /// When.
    pub now: Timestamp,
    /// What this cluster can do.
    pub apis: Apis,
    /// Secrets by name, those that are referenced and those that the operator fills; what is not there is missing.
    pub secrets: BTreeMap<String, SecretFacts>,
    /// Those of them that the operator may not read, by name, with the API server's words.
    pub forbidden: BTreeMap<String, String>,
    /// The fleet's own CA, if there is one.
    pub authority: Option<Authority>,
    /// `gateway.yaml` of the ConfigMap that is in force.
    pub config_in_force: Option<String>,
    /// When it was written, if that is known.
    pub config_written: Option<Timestamp>,
    /// The Deployment, if there is one.
    pub deployment: Option<DeploymentFacts>,
    /// The Service's status, if there is one.
    pub service: Option<ServiceStatus>,
    /// TCP ports that the NetworkPolicy in force lets through, if there is one.
    pub let_through: Option<LetThrough>,
    /// This fleet's pods.
    pub pods: Vec<PodFacts>,
    /// Objects that have a name of ours and belong to somebody else, as `Kind name`.
    pub foreign: BTreeSet<String>,
    /// What the API server refused when it was applied last, with its words: a node port that is taken, for one.
    pub refused: Vec<Refusal>,
    /// Autoscalers that are not the operator's and aim at this fleet, as `HorizontalPodAutoscaler name`.
    pub autoscalers: Autoscalers,
}

/// Autoscalers of somebody else's, as `HorizontalPodAutoscaler name`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Autoscalers {
    /// That aim at the Deployment: what they write is put right again.
    pub of_deployment: BTreeSet<String>,
    /// That aim at the ProtocolGateway.
    pub of_gateway: BTreeSet<String>,
}

/// What this cluster can do beyond what every one can.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Apis {
    /// `monitoring.coreos.com/v1` PodMonitor.
    pub pod_monitor: bool,
    /// `cert-manager.io/v1` Certificate.
    pub cert_manager: bool,
    /// Who serves `custom.metrics.k8s.io`.
    pub custom_metrics: CustomMetrics,
}

/// Who serves `custom.metrics.k8s.io`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CustomMetrics {
    /// Nobody.
    #[default]
    Nobody,
    /// This operator.
    Ours,
    /// Somebody else.
    Foreign,
    /// Nobody, and this operator is not to.
    Off,
    /// This operator, but the API server has not reached it for a while.
    Unreachable,
    /// Nobody, for longer than this operator needs to register: it could not.
    Unregistered,
    /// Nobody has looked yet.
    Unknown,
}

/// What a Secret holds, without what is secret of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SecretFacts {
    /// The certificate in `tls.crt`, if it could be read.
    pub certificate: Option<Certificate>,
    /// What is wrong, by the use that the Secret cannot be put to.
    pub wrong: BTreeMap<Use, String>,
    /// Annotation of the serial number of the CA that signed.
    pub authority: Option<String>,
    /// Annotation of the serial numbers of the CAs in `ca.crt`.
    pub trust: Vec<String>,
}

/// What a Secret is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Use {
    /// `tls.crt` and `tls.key`: the listeners' certificate.
    Serving,
    /// `tls.crt` and `tls.key`: ours towards the broker.
    Client,
    /// `ca.crt`: whom to trust.
    Authority,
    /// Lines of device ids and keys.
    DeviceKeys,
    /// `primary` and `secondary` of an enrolment group.
    GroupKeys,
    /// `key` of a hub's policy.
    PolicyKey,
    /// `username` and `password`.
    Login,
}

/// A certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Certificate {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Begin of its life.
    pub not_before: Timestamp,
    /// End of its life.
    pub not_after: Timestamp,
    /// DNS names.
    pub dns_names: BTreeSet<String>,
    /// Addresses.
    pub ip_addresses: BTreeSet<String>,
}

/// The fleet's own CA, as its Secret holds it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Authority {
    /// The CA that signs.
    pub current: Certificate,
    /// The CA that will sign: trusted already.
    pub next: Option<Certificate>,
    /// The CA that signed: trusted still.
    pub previous: Option<Certificate>,
}

/// TCP ports that a NetworkPolicy lets through.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LetThrough {
    /// To the pods.
    pub ingress: BTreeSet<u16>,
    /// From the pods, but for that of name servers.
    pub egress: BTreeSet<u16>,
}

/// What a Deployment is at.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentFacts {
    /// `metadata.generation`.
    pub generation: i64,
    /// `spec.replicas`.
    pub replicas: i32,
    /// What its controller says.
    pub status: DeploymentStatus,
}

/// One pod of the fleet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodFacts {
    /// Its name.
    pub name: String,
    /// Its node, once it has one.
    pub node: Option<String>,
    /// Its condition Ready.
    pub ready: bool,
    /// When `ready` became what it is.
    pub ready_changed: Option<Timestamp>,
    /// Its container does not run yet, or not any more: it holds no device.
    pub stopped: bool,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// Label `pod-template-hash`.
    pub template: String,
    /// Annotation with the hash of what it was started with and cannot change while it runs.
    pub started_with: Option<String>,
    /// Its ports by name.
    pub ports: BTreeMap<String, u16>,
    /// Annotation `controller.kubernetes.io/pod-deletion-cost`.
    pub deletion_cost: Option<i32>,
    /// It was told to stop.
    pub terminating: bool,
    /// When it was told to stop, if it was.
    pub told: Option<Timestamp>,
    /// When it will be killed, if it was told to stop.
    pub ends: Option<Timestamp>,
    /// Why it does not run, if it does not: reason and message of its container or of its scheduling.
    pub trouble: Option<String>,
    /// What its admin port said; absent if it could not be asked.
    pub load: Option<Load>,
    /// Why it could not be asked for a while, if so.
    pub silent: Option<String>,
    /// Serial number of the certificate that its port was seen to serve.
    pub served: Option<Certificate>,
}

/// What a pod's admin port says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Load {
    /// Devices connected or about to be.
    pub connections: i64,
    /// How long ago it said so, in seconds.
    pub age_s: i64,
    /// Why its upstream connections fail, if they do.
    pub upstream_failing: Option<String>,
    /// It has no upstream connection, and none that failed: it knows nothing of the upstream.
    pub upstream_unknown: bool,
    /// The upstream takes less than it is sent.
    pub upstream_throttled: bool,
    /// Whom it lets go, by whose order ever.
    pub drain: Option<DrainFacts>,
    /// Names the text of the configuration that it runs by, if that came from a file.
    pub config_in_force: Option<String>,
    /// Devices that it lets go per second, or is about to, because the upstream did nothing for them for too long; 0: none.
    pub forsaken_per_second: f64,
    /// Why it does not run by the configuration that it was given last.
    pub config_problem: Option<String>,
    /// Why it does not use the Secrets that it was given last.
    pub secrets_problem: Option<String>,
}

/// A drain as the pod that carries it out tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainFacts {
    /// Why; absent if it was told to stop and nobody ordered anything.
    #[serde(default)]
    pub cause: Option<DrainCause>,
    /// By which leader; 0 if by itself.
    #[serde(default)]
    pub epoch: i64,
    /// Devices per second, 0 while it pauses.
    #[serde(default)]
    pub per_second: f64,
    /// Devices still to go.
    #[serde(default)]
    pub remaining: i64,
}

/// What the API server did not take.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Refusal {
    /// `Kind name`.
    pub object: String,
    /// What was to be done with it.
    pub way: Way,
    /// What kind of answer it is.
    pub kind: Failure,
    /// Its words.
    pub message: String,
}

/// A way to write an object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Way {
    /// As it should be.
    #[default]
    Apply,
    /// A pod, to be deleted first.
    Mark,
    /// A Secret, its owner alone.
    Adopt,
    /// For the last time.
    Delete,
}
