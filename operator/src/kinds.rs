//! The kinds of objects that the operator makes: what is watched, applied and pruned.

use kube::{
    Api, Client,
    core::{ApiResource, DynamicObject},
};

/// A kind of Kubernetes.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// As in `kind`.
    pub name: &'static str,
    /// API group; empty for the core.
    pub group: &'static str,
    /// Version of the group.
    pub version: &'static str,
    /// As in paths.
    pub plural: &'static str,
    /// Whether a decision looks at its status.
    pub status: bool,
    /// Whether every cluster knows it.
    pub everywhere: bool,
}

const fn kind(name: &'static str, group: &'static str, version: &'static str, plural: &'static str) -> Kind {
    Kind { name, group, version, plural, status: false, everywhere: true }
}

/// What users write.
pub static GATEWAY: Kind = Kind { status: true, ..kind(crds::KIND, crds::GROUP, "v1alpha1", crds::PLURAL) };
/// Watched and pruned by their metadata alone.
pub static SECRET: Kind = kind("Secret", "", "v1", "secrets");
/// Watched by what a decision needs of them.
pub static POD: Kind = kind("Pod", "", "v1", "pods");
/// Where its API exists.
pub static POD_MONITOR: Kind =
    Kind { everywhere: false, ..kind("PodMonitor", "monitoring.coreos.com", "v1", "podmonitors") };
/// cert-manager's, where its API exists.
pub static CERTIFICATE: Kind =
    Kind { everywhere: false, ..kind("Certificate", "cert-manager.io", "v1", "certificates") };

static DEPLOYMENT: Kind = Kind { status: true, ..kind("Deployment", "apps", "v1", "deployments") };
static SERVICE: Kind = Kind { status: true, ..kind("Service", "", "v1", "services") };
/// Of one it is known when its data was written.
pub static CONFIG_MAP: Kind = kind("ConfigMap", "", "v1", "configmaps");
static SERVICE_ACCOUNT: Kind = kind("ServiceAccount", "", "v1", "serviceaccounts");
static AUTOSCALER: Kind = kind("HorizontalPodAutoscaler", "autoscaling", "v2", "horizontalpodautoscalers");
static DISRUPTION_BUDGET: Kind = kind("PodDisruptionBudget", "policy", "v1", "poddisruptionbudgets");
static NETWORK_POLICY: Kind = kind("NetworkPolicy", "networking.k8s.io", "v1", "networkpolicies");

/// Every kind that is applied as a whole, in the order in which it is pruned: what is used goes after what uses it.
pub static OWNED: [&Kind; 9] = [
    &AUTOSCALER,
    &POD_MONITOR,
    &DISRUPTION_BUDGET,
    &NETWORK_POLICY,
    &SERVICE,
    &DEPLOYMENT,
    &CERTIFICATE,
    &CONFIG_MAP,
    &SERVICE_ACCOUNT,
];

impl Kind {
    /// The one of this name among those that are applied.
    pub fn owned(name: &str) -> Option<&'static Self> {
        OWNED.into_iter().chain([&SECRET]).find(|kind| kind.name == name)
    }

    /// `group/version`, or `version` of the core.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// As kube knows kinds that have no type.
    pub fn resource(&self) -> ApiResource {
        ApiResource {
            group: self.group.to_owned(),
            version: self.version.to_owned(),
            api_version: self.api_version(),
            kind: self.name.to_owned(),
            plural: self.plural.to_owned(),
        }
    }

    /// Its objects in a namespace, or in all.
    pub fn api(&self, client: &Client, namespace: Option<&str>) -> Api<DynamicObject> {
        match namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &self.resource()),
            None => Api::all_with(client.clone(), &self.resource()),
        }
    }
}
