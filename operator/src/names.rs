//! What things are called: objects, labels, annotations. A ProtocolGateway's name has at most 40 characters, so that every
//! name made of it fits a label (63).

use std::collections::BTreeMap;

use crds::ProtocolGateway;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};

/// Field manager of everything that is applied.
pub const FIELD_MANAGER: &str = "protocol-gateway-operator";
/// Field manager of `/status`.
pub const STATUS_MANAGER: &str = "protocol-gateway-operator-status";
/// Value of `app.kubernetes.io/name` of gateways.
pub const APP: &str = "protocol-gateway";
/// Value of `app.kubernetes.io/name` of the operator itself.
pub const OPERATOR_APP: &str = "protocol-gateway-operator";

/// Annotation of pods: hash of what they were started with and cannot change while they run.
pub const STARTED_WITH: &str = "protocolgateway.io/started-with";
/// Annotation of Secrets that the operator fills: serial number of the CA that signed.
pub const AUTHORITY: &str = "protocolgateway.io/authority";
/// Annotation of Secrets that the operator fills: serial numbers of the CAs in `ca.crt`.
pub const TRUST: &str = "protocolgateway.io/trust";

/// Annotation of applied objects: hash of what was applied.
pub const APPLIED: &str = "protocolgateway.io/applied";
/// Label of every object that the operator makes: who does.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Label of every object that the operator makes: for which ProtocolGateway.
pub const INSTANCE: &str = "app.kubernetes.io/instance";

/// Names of the objects that the operator makes, of whatever kind but Secrets.
pub fn objects(gateway: &str) -> [String; 2] {
    [gateway.to_owned(), serving(gateway)]
}

/// Names of the Secrets that the operator fills.
pub fn secrets(gateway: &str) -> [String; 4] {
    [authority(gateway), serving(gateway), control(gateway), control_client(gateway)]
}

/// Annotation of Secrets that cert-manager fills.
pub const CERT_MANAGER: &str = "cert-manager.io/certificate-name";

/// Secret with the fleet's own CA and its key. Never mounted.
pub fn authority(gateway: &str) -> String {
    format!("{gateway}-ca")
}

/// Secret with the listeners' certificate, where the operator or cert-manager makes it.
pub fn serving(gateway: &str) -> String {
    format!("{gateway}-tls")
}

/// Secret with the admin port's certificate, and the CA of those who may ask there.
pub fn control(gateway: &str) -> String {
    format!("{gateway}-control")
}

/// Secret with the certificate of those who ask the admin port: the operator, and Prometheus.
pub fn control_client(gateway: &str) -> String {
    format!("{gateway}-control-client")
}

/// Name in the admin port's certificate; pods are asked by address.
pub fn control_host(gateway: &str, namespace: &str) -> String {
    format!("control.{gateway}.{namespace}")
}

/// What tells this fleet's pods from all others, and never changes.
pub fn selector(gateway: &str) -> BTreeMap<String, String> {
    [("app.kubernetes.io/name", APP), (INSTANCE, gateway)].map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

/// [`selector`] as Kubernetes objects hold it.
pub fn label_selector(gateway: &str) -> LabelSelector {
    LabelSelector { match_labels: Some(selector(gateway)), ..LabelSelector::default() }
}

/// [`selector`] as `status.selector` shows it.
pub fn selector_text(gateway: &str) -> String {
    let parts: Vec<String> = selector(gateway).into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    parts.join(",")
}

/// Labels of every object that the operator makes.
pub fn labels(gateway: &str) -> BTreeMap<String, String> {
    let mut labels = selector(gateway);
    labels.insert("app.kubernetes.io/component".to_owned(), "gateway".to_owned());
    labels.insert(MANAGED_BY.to_owned(), FIELD_MANAGER.to_owned());
    labels
}

/// Metadata of an owned object. It goes when its ProtocolGateway goes.
pub fn owned(gateway: &ProtocolGateway, name: impl Into<String>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        namespace: gateway.namespace(),
        labels: Some(labels(&gateway.name_any())),
        owner_references: owner(gateway).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

/// `None` for a ProtocolGateway that was never on an API server.
pub fn owner(gateway: &ProtocolGateway) -> Option<OwnerReference> {
    gateway.controller_owner_ref(&())
}
