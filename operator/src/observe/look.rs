//! Looks: fills [`Observed`] from what is watched and from the Secrets that the ProtocolGateway names.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crds::ProtocolGateway;
use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::DeploymentStatus, core::v1::ServiceStatus};
use kube::{Client, ResourceExt};
use prometheus::IntCounter;
use rustls::ClientConfig;
use serde_json::Value;

use super::{
    Apis, DeploymentFacts, LetThrough, Observed,
    mirror::{Mirror, Mirrored, Name, Owner},
    secrets::{Looked, Secrets},
};
use crate::{
    desired,
    error::{Kind as Failure, ReconcileError, Step},
    kinds::{CONFIG_MAP, Kind, OWNED},
    names,
};

/// Where to look.
pub struct Sources<'a> {
    /// For Secrets.
    pub client: &'a Client,
    /// What is watched.
    pub mirror: &'a Mirror,
    /// What was seen of Secrets.
    pub secrets: &'a Secrets,
    /// What this cluster can do.
    pub apis: Apis,
    /// Counts Secrets that could not be read for want of rights.
    pub refusals: &'a IntCounter,
}

/// Everything a decision needs about `gateway`, but for what its pods say and what earlier writes were answered; and how to ask
/// its pods.
pub async fn look(
    sources: &Sources<'_>,
    gateway: &ProtocolGateway,
    now: Timestamp,
) -> Result<(Observed, Option<Arc<ClientConfig>>), ReconcileError> {
    let name = Name::of(&gateway.metadata);
    let (ours, foreign) = sort(sources.mirror, gateway)?;
    let (config_in_force, config_written) = configuration(sources.mirror, gateway);
    let deployment = ours.get(&("Deployment", name.name.clone())).map(|deployment| deployment_facts(deployment));
    let service = ours.get(&("Service", name.name.clone())).map(|service| status::<ServiceStatus>(&service.body()));
    let policy = ours.get(&("NetworkPolicy", name.name.clone()));
    let let_through = policy.map(|policy| let_through(&policy.body()));
    let wanted = Arc::new(desired::references(gateway, config_in_force.as_deref()));
    let seen = sources.secrets.look(sources.client, &name, &wanted).await;
    let Looked { seen, forbidden, refusals } =
        seen.map_err(|(object, error)| ReconcileError::of(Step::Observe, object, &error))?;
    sources.refusals.inc_by(refusals);
    let mut observed = Observed {
        now,
        apis: sources.apis.clone(),
        forbidden,
        config_in_force,
        config_written,
        deployment,
        service,
        let_through,
        pods: sources.mirror.pods(&name).iter().map(|pod| pod.facts.clone()).collect(),
        foreign,
        autoscalers: sources.mirror.autoscalers(&name),
        ..Observed::default()
    };
    let made = names::secrets(&name.name);
    let mut client = None;
    for (secret, seen) in seen {
        if made.contains(&secret) && is_made(gateway, &secret) && !is_ours(&seen.owner, gateway) {
            let title = format!("Secret {secret}");
            if is_left_over(&seen.owner, gateway) {
                return Err(left_over(title));
            }
            observed.foreign.insert(title);
            continue;
        }
        observed.authority = observed.authority.or(seen.authority);
        client = client.or(seen.client);
        observed.secrets.insert(secret, seen.facts);
    }
    Ok((observed, client))
}

/// The configuration that is written for pods, and when that was.
pub fn configuration(mirror: &Mirror, gateway: &ProtocolGateway) -> (Option<String>, Option<Timestamp>) {
    let config = mirror.get(&CONFIG_MAP, &Name::of(&gateway.metadata)).filter(|config| is_ours(&config.owner, gateway));
    let text = |config: &Mirrored| config.body()["data"][desired::CONFIG_FILE].as_str().map(str::to_owned);
    config.map(|config| (text(&config), config.written)).unwrap_or_default()
}

/// Whether the operator fills it: the listeners' certificate may be cert-manager's or the user's, whatever its name.
fn is_made(gateway: &ProtocolGateway, secret: &str) -> bool {
    gateway.spec.tls.self_signed.is_some() || secret != names::serving(&gateway.name_any())
}

/// Whether an object may be written for this ProtocolGateway.
pub fn is_ours(owner: &Owner, gateway: &ProtocolGateway) -> bool {
    match owner {
        Owner::Gateway { uid, .. } => gateway.metadata.uid.as_ref() == Some(uid),
        Owner::Orphan { instance } => *instance == gateway.name_any(),
        Owner::Other => false,
    }
}

/// Whether an object is what is left of an earlier ProtocolGateway of the same name: it is about to be collected.
pub fn is_left_over(owner: &Owner, gateway: &ProtocolGateway) -> bool {
    matches!(owner, Owner::Gateway { name, .. } if *name == gateway.name_any()) && !is_ours(owner, gateway)
}

type Ours = BTreeMap<(&'static str, String), Arc<Mirrored>>;

/// Watched objects that have a name of this ProtocolGateway's: its own, and those of others as `Kind name`.
fn sort(mirror: &Mirror, gateway: &ProtocolGateway) -> Result<(Ours, BTreeSet<String>), ReconcileError> {
    let (mut ours, mut foreign) = (BTreeMap::new(), BTreeSet::new());
    for (kind, name, object) in named(mirror, gateway) {
        let title = format!("{} {name}", kind.name);
        if is_left_over(&object.owner, gateway) {
            return Err(left_over(title));
        }
        if is_ours(&object.owner, gateway) {
            ours.insert((kind.name, name), object);
        } else {
            foreign.insert(title);
        }
    }
    Ok((ours, foreign))
}

/// Every watched object that has a name of this ProtocolGateway's.
pub fn named(mirror: &Mirror, gateway: &ProtocolGateway) -> Vec<(&'static Kind, String, Arc<Mirrored>)> {
    let namespace = gateway.namespace().unwrap_or_default();
    let mut found = Vec::new();
    for kind in OWNED {
        for name in names::objects(&gateway.name_any()) {
            found.extend(mirror.get(kind, &Name::new(&namespace, &name)).map(|object| (kind, name, object)));
        }
    }
    found
}

/// Waits for the garbage collector: what it is about to delete is neither ours nor somebody else's.
pub fn left_over(object: String) -> ReconcileError {
    let message = "is left of an earlier ProtocolGateway of this name and about to be deleted".to_owned();
    ReconcileError { step: Step::Observe, kind: Failure::Conflict, object, message }
}

fn deployment_facts(deployment: &Mirrored) -> DeploymentFacts {
    let body = deployment.body();
    let replicas = body["spec"]["replicas"].as_i64().and_then(|replicas| replicas.try_into().ok());
    DeploymentFacts {
        generation: deployment.generation,
        replicas: replicas.unwrap_or(0),
        status: status::<DeploymentStatus>(&body),
    }
}

fn let_through(policy: &Value) -> LetThrough {
    let ports = |way: &str| {
        let rules = policy["spec"][way].as_array().into_iter().flatten();
        let ports = rules.flat_map(|rule| rule["ports"].as_array().into_iter().flatten());
        let tcp = ports.filter(|port| port["protocol"] == "TCP");
        tcp.filter_map(|port| u16::try_from(port["port"].as_u64()?).ok()).collect()
    };
    let (ingress, mut egress): (_, BTreeSet<u16>) = (ports("ingress"), ports("egress"));
    egress.remove(&desired::DNS_PORT);
    LetThrough { ingress, egress }
}

fn status<T: Default + serde::de::DeserializeOwned>(object: &Value) -> T {
    serde_json::from_value(object["status"].clone()).unwrap_or_default()
}
