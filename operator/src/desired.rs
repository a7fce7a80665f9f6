//! What there should be: (ProtocolGateway, what was observed) → objects and certificates, or why there can be none.
//!
//! A function: no client, no clock. A reference that is wrong degrades what depends on it: the configuration in force stays
//! in force, and the rest of the fleet's objects follow the spec.

mod config;
mod network;
mod scaling;
pub mod tls;
mod workload;

use std::collections::{BTreeMap, BTreeSet};

use crds::ProtocolGateway;
use gateway_core::{
    config::{ConfigError, GatewayConfig},
    settings::{Protocol, Settings},
};
use kube::{ResourceExt, core::DynamicObject};
use serde::{Deserialize, Serialize};

pub use self::{
    config::{FILE as CONFIG_FILE, drain_per_second as self_drain_per_second, hash as config_hash},
    network::DNS_PORT,
    workload::{ADMIN_PORT, GRACE_MARGIN_S, MIN_READY_S},
};
use crate::{
    names,
    observe::{Observed, Refusal, Use, Way},
    scaling::Plan,
    secrets,
};

/// What the operator itself was installed with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Installation {
    /// Image of the gateway where the spec names none.
    pub gateway_image: String,
    /// How long the operator's Lease is held, in seconds: pods wait for orders for as long as that may make them late.
    pub lease_seconds: u16,
}

/// What there should be.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Desired {
    /// Objects to apply, owner first used first.
    pub objects: Vec<DynamicObject>,
    /// Steps to take with certificates; each is one write of one Secret.
    pub certificates: Vec<tls::Step>,
    /// Secrets of the operator's that are needed; others of its own go.
    pub secrets: BTreeSet<String>,
    /// What keeps the fleet from being what the spec says.
    pub problems: Vec<Problem>,
    /// What the Deployment is told, if there is to be one.
    pub replicas: Option<i32>,
    /// Objects as `Kind name` that are left as they are, not pruned, although they are not among `objects`.
    pub kept: BTreeSet<String>,
}

/// Why there can be nothing: everything stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Invalid(pub Vec<ConfigError>);

/// Something that keeps the fleet from being what the spec says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// For the condition: one word in CamelCase.
    pub reason: &'static str,
    /// What is wrong, and what to do.
    pub message: String,
}

/// What every part of the decision is made from.
pub(crate) struct Context<'a> {
    gateway: &'a ProtocolGateway,
    observed: &'a Observed,
    plan: &'a Plan,
    installation: &'a Installation,
    name: String,
    namespace: String,
}

/// A configuration that passed its check.
pub(crate) struct Checked {
    config: GatewayConfig,
    settings: Settings,
}

/// Decides.
///
/// # Errors
/// What the gateway would refuse in the spec and its schema let pass, where no configuration is in force.
pub fn desired(
    gateway: &ProtocolGateway,
    observed: &Observed,
    plan: &Plan,
    installation: &Installation,
) -> Result<Desired, Invalid> {
    let name = gateway.name_any();
    let namespace = gateway.namespace().unwrap_or_default();
    let context = Context { gateway, observed, plan, installation, name, namespace };
    let choice = choose(&context)?;
    let mut problems = choice.problems;
    let configured = choice.in_force.as_ref().or(choice.wanted.as_ref());
    let mut objects = vec![network::service_account(&context)];
    if let Some(checked) = &choice.in_force {
        objects.push(config::config_map(&context, checked));
        objects.push(workload::deployment(&context, checked));
    }
    objects.extend(configured.into_iter().flat_map(|checked| network::objects(&context, checked)));
    objects.extend(scaling::objects(&context));
    objects.extend(tls::objects(&context));
    let certificates = tls::certificates(&context, choice.in_force.as_ref());
    let (objects, taken) = leave_foreign(objects, observed, certificates.taken);
    problems.extend(tls::unread(&context));
    problems.extend(taken.iter().map(|title| name_taken(title)));
    problems.extend(observed.refused.iter().map(not_taken));
    let workload = ["ConfigMap", "Deployment"].map(|kind| format!("{kind} {}", context.name));
    let applied: BTreeSet<String> = objects.iter().map(title).collect();
    let kept =
        workload.into_iter().filter(|title| !applied.contains(title) && !observed.foreign.contains(title)).collect();
    let replicas = applied.contains(&format!("Deployment {}", context.name)).then(|| scaling::replicas(&context));
    Ok(Desired { objects, certificates: certificates.steps, secrets: certificates.secrets, problems, replicas, kept })
}

/// The Secrets that a decision looks at.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct References {
    /// What for, by name.
    pub uses: BTreeMap<String, BTreeSet<Use>>,
    /// How keys are read; absent where there is no configuration at all, and nothing to look at.
    pub settings: Option<Settings>,
}

/// Every Secret that [`desired`] will look at: those of the spec, those of the configuration in force, and the operator's.
pub fn references(gateway: &ProtocolGateway, config_in_force: Option<&str>) -> References {
    let observed = Observed { config_in_force: config_in_force.map(str::to_owned), ..Observed::default() };
    let installation = Installation { gateway_image: String::new(), lease_seconds: 0 };
    let (name, namespace) = (gateway.name_any(), gateway.namespace().unwrap_or_default());
    let plan = Plan::default();
    let context = Context { gateway, observed: &observed, plan: &plan, installation: &installation, name, namespace };
    let configured: Vec<Checked> =
        config::wanted(&context).ok().into_iter().chain(config::in_force(&observed)).collect();
    let mut uses: BTreeMap<String, BTreeSet<Use>> = BTreeMap::new();
    for reference in configured.iter().flat_map(|checked| secrets::referenced(&checked.config)) {
        uses.entry(reference.secret_name).or_default().insert(reference.usage);
    }
    if !configured.is_empty() {
        uses.entry(names::authority(&context.name)).or_default();
        // what is there is made whole; gateways read no more than the certificate and its key
        if context.gateway.spec.tls.self_signed.is_some() {
            uses.entry(names::serving(&context.name)).or_default().extend([Use::Serving, Use::Authority]);
        }
        uses.entry(names::control_client(&context.name)).or_default().extend([Use::Client, Use::Authority]);
    }
    References { uses, settings: configured.into_iter().next().map(|checked| checked.settings) }
}

/// Names of the listeners that speak TLS and can be reached, in a configuration that is in force.
pub fn tls_listeners(config_in_force: Option<&str>) -> Vec<String> {
    let observed = Observed { config_in_force: config_in_force.map(str::to_owned), ..Observed::default() };
    let Some(checked) = config::in_force(&observed) else { return Vec::new() };
    let listeners = workload::reachable(&checked.settings);
    listeners
        .filter(|listener| listener.protocol != Protocol::MqttPlain)
        .map(|listener| listener.name.clone())
        .collect()
}

/// Which configuration pods run by.
struct Choice {
    /// The spec's, if a gateway would take it.
    wanted: Option<Checked>,
    /// The one to apply: the spec's, or the last good one with the budget of the spec; none if neither will do.
    in_force: Option<Checked>,
    problems: Vec<Problem>,
}

fn choose(context: &Context<'_>) -> Result<Choice, Invalid> {
    let last_good = config::last_good(context);
    let wanted = match (config::wanted(context), last_good.is_some()) {
        (Ok(wanted), _) => wanted,
        (Err(invalid), false) => return Err(invalid),
        (Err(invalid), true) => {
            let message = format!("{invalid}\nthe last good configuration stays in force");
            let problems = vec![Problem { reason: "InvalidSpec", message }];
            return Ok(Choice { wanted: None, in_force: last_good, problems });
        }
    };
    let mut problems = config::references(context, &wanted);
    problems.extend(tls::problem(context));
    Ok(if problems.is_empty() {
        Choice { wanted: None, in_force: Some(wanted), problems }
    } else {
        Choice { wanted: Some(wanted), in_force: last_good, problems }
    })
}

/// An object of somebody else's is not taken over, whatever its name; pods do not run with what is somebody else's.
fn leave_foreign(
    objects: Vec<DynamicObject>,
    observed: &Observed,
    secrets: Vec<String>,
) -> (Vec<DynamicObject>, Vec<String>) {
    let (foreign, mut ours): (Vec<_>, Vec<_>) =
        objects.into_iter().partition(|object| observed.foreign.contains(&title(object)));
    let taken: Vec<String> = foreign.iter().map(title).chain(secrets).collect();
    let mounted = ["ConfigMap ", "ServiceAccount ", "Secret "];
    if taken.iter().any(|title| mounted.iter().any(|kind| title.starts_with(kind))) {
        ours.retain(|object| !title(object).starts_with("Deployment "));
    }
    (ours, taken)
}

fn not_taken(refusal: &Refusal) -> Problem {
    let what = match refusal.way {
        Way::Apply => "was not taken",
        Way::Mark => "was not marked to go before others",
        Way::Adopt => "was not given its owner",
        Way::Delete => "is not needed any more and was not deleted",
    };
    let advice = refusal.kind.advice().map(|advice| format!("; {advice}")).unwrap_or_default();
    let message = format!("{} {what}: {}{advice}", refusal.object, refusal.message);
    Problem { reason: refusal.kind.reason(), message }
}

fn name_taken(title: &str) -> Problem {
    let message = format!("{title} belongs to somebody else: rename or delete it, or rename this ProtocolGateway");
    Problem { reason: "NameTaken", message }
}

/// `Kind name` of an object.
pub fn title(object: &DynamicObject) -> String {
    let kind = object.types.as_ref().map_or("", |types| types.kind.as_str());
    format!("{kind} {}", object.name_any())
}

/// How many there are, as Kubernetes counts.
pub(crate) fn count<T>(list: impl Iterator<Item = T>) -> i32 {
    i32::try_from(list.count()).unwrap_or(i32::MAX)
}

/// A typed object as the one type that applying knows.
pub(crate) fn object<K: Serialize>(typed: &K) -> DynamicObject {
    let value = serde_json::to_value(typed).expect("an object of Kubernetes is JSON");
    serde_json::from_value(value).expect("it has a kind and metadata")
}
