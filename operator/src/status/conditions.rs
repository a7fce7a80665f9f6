//! The conditions: each says in its message what is, and what to do where something must be done.

mod certificate;
mod configuration;
mod missing;
mod scaling;

use crds::{ProtocolGateway, cluster::ServiceType};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use self::missing::trouble;
use crate::{
    desired::{Desired, Invalid, count},
    observe::{CustomMetrics, DeploymentFacts, Observed, PodFacts},
    scaling::Plan,
};

/// What a condition says.
struct Verdict {
    /// `None`: not known.
    holds: Option<bool>,
    reason: String,
    message: String,
}

fn verdict(holds: impl Into<Option<bool>>, reason: &str, message: impl Into<String>) -> Verdict {
    Verdict { holds: holds.into(), reason: reason.to_owned(), message: message.into() }
}

type Decided = Result<Desired, Invalid>;

pub(super) fn conditions(
    gateway: &ProtocolGateway,
    observed: &Observed,
    plan: &Plan,
    decided: &Decided,
) -> Vec<Condition> {
    let mut verdicts = vec![
        ("Ready", ready(gateway, observed, decided)),
        ("Progressing", progressing(gateway, observed, plan, decided)),
        ("Degraded", degraded(gateway, observed, plan, decided)),
        ("CertificateServed", certificate::served(gateway, observed)),
        ("UpstreamConnected", upstream_connected(observed)),
    ];
    if gateway.spec.scaling.is_some() {
        verdicts.push(("MetricsApiAvailable", metrics_api(gateway, observed)));
    }
    verdicts.extend(scaling::verdicts(gateway, observed, plan));
    verdicts.into_iter().map(|(type_, verdict)| condition(gateway, observed, type_, verdict)).collect()
}

/// When they may say something else although nothing changes.
pub(super) fn due(gateway: &ProtocolGateway, observed: &Observed) -> impl Iterator<Item = Timestamp> {
    missing::due(gateway, observed).chain(configuration::due(observed))
}

/// The time is that of the last change of `status`, whatever else changes.
fn condition(gateway: &ProtocolGateway, observed: &Observed, type_: &str, verdict: Verdict) -> Condition {
    let status = match verdict.holds {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let before = gateway.status.iter().flat_map(|status| &status.conditions);
    let same = before.into_iter().find(|before| before.type_ == type_ && before.status == status);
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason,
        message: clip(verdict.message),
        observed_generation: gateway.metadata.generation,
        last_transition_time: same.map_or(Time(observed.now), |before| before.last_transition_time.clone()),
    }
}

/// A condition's message has at most 32768 bytes.
fn clip(mut message: String) -> String {
    const BYTES_MAX: usize = 32_768;
    if message.len() > BYTES_MAX {
        let end = (0..=BYTES_MAX - 3).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    message
}

fn ready(gateway: &ProtocolGateway, observed: &Observed, decided: &Decided) -> Verdict {
    let wanted = gateway.spec.replicas;
    let ready = count(observed.pods.iter().filter(|pod| pod.ready && !pod.terminating));
    if wanted == 0 {
        return verdict(false, "Paused", "replicas is 0: there are no pods, and autoscaling rests");
    }
    if ready == 0 {
        return not_ready(observed, decided);
    }
    if let Some(trouble) = upstream_trouble(observed) {
        return verdict(false, "UpstreamFailing", trouble);
    }
    let words = if ready < wanted { trouble(observed) } else { String::new() };
    let message = format!("pods ready: {ready}, wanted: {wanted}{words}");
    // one may be missing at any time: a rollout, a node that is emptied
    if ready + 1 >= wanted { verdict(true, "PodsReady", message) } else { verdict(false, "PodsNotReady", message) }
}

fn not_ready(observed: &Observed, decided: &Decided) -> Verdict {
    match (decided, &observed.deployment) {
        (Err(invalid), None) => verdict(false, "InvalidSpec", invalid.to_string()),
        (Ok(desired), None) if !desired.problems.is_empty() => {
            let problem = &desired.problems[0];
            verdict(false, problem.reason, problem.message.clone())
        }
        _ => verdict(false, "PodsNotReady", format!("no pod is ready yet{}", trouble(observed))),
    }
}

fn progressing(gateway: &ProtocolGateway, observed: &Observed, plan: &Plan, decided: &Decided) -> Verdict {
    let Some(deployment) = &observed.deployment else {
        let blocked = decided.as_ref().map_or(true, |desired| desired.replicas.is_none());
        return if blocked {
            verdict(false, "Blocked", BLOCKED)
        } else {
            verdict(true, "Creating", "the pods are being made")
        };
    };
    let status = &deployment.status;
    let (updated, replicas) = (status.updated_replicas.unwrap_or(0), status.replicas.unwrap_or(0));
    if let Some(message) = missing::stuck(observed) {
        return verdict(false, "RolloutStuck", message);
    }
    if is_rolling(deployment) || replicas < deployment.replicas {
        let message = format!("{updated} of {} pods are new{}", deployment.replicas, trouble(observed));
        return verdict(true, "RollingOut", message);
    }
    if gateway.spec.replicas != deployment.replicas {
        let (from, to) = (deployment.replicas, gateway.spec.replicas);
        let how = if to < from { ": pods are drained before they go" } else { "" };
        return verdict(true, "Scaling", format!("from {from} to {to} pods{how}"));
    }
    let starting = starting(gateway, observed, plan);
    if let Some(verdict) = starting.or_else(|| configuration::spreading(observed)) {
        return verdict;
    }
    if gateway.spec.service.type_ == ServiceType::LoadBalancer && !has_address(observed) {
        return verdict(
            true,
            "LoadBalancerPending",
            "the Service has no address yet: where no load balancer is installed there will be none; use service.type NodePort",
        );
    }
    verdict(false, "Settled", "nothing is under way")
}

/// All pods are of the newest template, and not all are ready.
fn starting(gateway: &ProtocolGateway, observed: &Observed, plan: &Plan) -> Option<Verdict> {
    if missing::problem(gateway, observed, plan).is_some() {
        return Some(verdict(false, "Blocked", BLOCKED));
    }
    let ready = count(observed.pods.iter().filter(|pod| pod.ready && !pod.terminating));
    let wanted = gateway.spec.replicas;
    (ready < wanted)
        .then(|| verdict(true, "PodsStarting", format!("{ready} of {wanted} pods are ready{}", trouble(observed))))
}

fn has_address(observed: &Observed) -> bool {
    let balancer = observed.service.as_ref().and_then(|service| service.load_balancer.as_ref());
    balancer.and_then(|balancer| balancer.ingress.as_ref()).is_some_and(|ingress| !ingress.is_empty())
}

const BLOCKED: &str = "waits for what Degraded says";

fn degraded(gateway: &ProtocolGateway, observed: &Observed, plan: &Plan, decided: &Decided) -> Verdict {
    let problems: Vec<(&str, String)> = match decided {
        Err(invalid) => vec![("InvalidSpec", invalid.to_string())],
        Ok(desired) => desired.problems.iter().map(|problem| (problem.reason, problem.message.clone())).collect(),
    };
    let not_followed = [not_followed(observed), configuration::not_reached(observed)].into_iter().flatten();
    let not_followed = not_followed.map(|message| ("ConfigNotFollowed", message));
    let (reasons, messages): (Vec<_>, Vec<_>) =
        problems.into_iter().chain(missing::problem(gateway, observed, plan)).chain(not_followed).unzip();
    match reasons.first() {
        None => verdict(false, "AsDesired", "nothing keeps the fleet from being what the spec says"),
        Some(first) => verdict(true, first, messages.join("\n")),
    }
}

/// So many pods are quoted: those of one fleet are given the same.
const QUOTED_MAX: usize = 3;

/// What pods say they cannot follow. While pods are replaced, those that go are given what only those that come can follow.
fn not_followed(observed: &Observed) -> Option<String> {
    if observed.deployment.as_ref().is_some_and(is_rolling) {
        return None;
    }
    let mut said: Vec<String> = observed.pods.iter().filter(|pod| !pod.terminating).filter_map(refuses).collect();
    said.sort();
    let count = said.len();
    said.truncate(QUOTED_MAX);
    let more = if count > said.len() { format!("\n… and {} pods more", count - said.len()) } else { String::new() };
    (count > 0).then(|| {
        format!(
            "pods go on with the last configuration and Secrets that they could use:\n{}{more}\ncorrect what they name; a field \
             that they do not know needs a newer image (spec.pod.image); Secrets and configuration reach pods up to two \
             minutes after a change",
            said.join("\n")
        )
    })
}

fn refuses(pod: &PodFacts) -> Option<String> {
    let load = pod.load.as_ref()?;
    let words: Vec<&str> =
        [&load.config_problem, &load.secrets_problem].into_iter().flatten().map(String::as_str).collect();
    (!words.is_empty()).then(|| format!("{}: {}", pod.name, words.join("; ")))
}

/// Whether there are pods of an older template.
fn is_rolling(deployment: &DeploymentFacts) -> bool {
    let status = &deployment.status;
    is_behind(deployment) || status.updated_replicas.unwrap_or(0) < status.replicas.unwrap_or(0)
}

/// Whether its controller has not seen yet what it is to be.
fn is_behind(deployment: &DeploymentFacts) -> bool {
    deployment.status.observed_generation.unwrap_or(0) < deployment.generation
}

/// The pod's words say what failed and not what to do.
const UPSTREAM_ADVICE: &str = "see that spec.upstream names a hub or broker that is there, and that the cluster's DNS and \
                               firewalls let pods reach it";

fn upstream_connected(observed: &Observed) -> Verdict {
    let loads = observed.pods.iter().filter_map(|pod| Some((pod, pod.load.as_ref()?)));
    let failing: Vec<String> = loads
        .clone()
        .filter_map(|(pod, load)| Some(format!("{}: {}", pod.name, load.upstream_failing.as_ref()?)))
        .collect();
    match (loads.count(), failing.len()) {
        (0, _) => verdict(None, "NotSeen", format!("no pod could be asked{}", silence(observed))),
        (_, 0) => verdict(true, "Connected", "no pod's connections to the upstream fail"),
        _ => verdict(false, "UpstreamFailing", format!("{}\n{UPSTREAM_ADVICE}", failing.join("\n"))),
    }
}

/// Why pods cannot be asked: the first of it.
fn silence(observed: &Observed) -> String {
    let silent = observed.pods.iter().filter(|pod| !pod.terminating);
    let first = silent.filter_map(|pod| Some((&pod.name, pod.silent.as_ref()?))).min();
    first.map(|(pod, why)| format!("; {pod}: {why}")).unwrap_or_default()
}

/// If no pod that wants the upstream reaches it, no message arrives.
fn upstream_trouble(observed: &Observed) -> Option<String> {
    let loads: Vec<_> =
        observed.pods.iter().filter_map(|pod| pod.load.as_ref()).filter(|load| !load.upstream_unknown).collect();
    let first = loads.iter().find_map(|load| load.upstream_failing.as_ref())?;
    let all = loads.iter().all(|load| load.upstream_failing.is_some());
    all.then(|| format!("no pod reaches the upstream: {first}; {UPSTREAM_ADVICE}"))
}

fn metrics_api(gateway: &ProtocolGateway, observed: &Observed) -> Verdict {
    let mut verdict = who_scales(observed);
    let cpu = gateway.spec.scaling.as_ref().and_then(|scaling| scaling.cpu_utilization);
    if cpu.is_some() && verdict.holds == Some(false) {
        verdict.message.push_str("; scaling.cpuUtilization is not looked at meanwhile");
    }
    verdict
}

fn who_scales(observed: &Observed) -> Verdict {
    match observed.apis.custom_metrics {
        CustomMetrics::Ours => verdict(true, "Served", "this operator serves custom.metrics.k8s.io"),
        CustomMetrics::Foreign => verdict(
            false,
            "Conflict",
            "custom.metrics.k8s.io is served by somebody else: the operator scales through /scale itself",
        ),
        CustomMetrics::Off => verdict(
            false,
            "Off",
            "this operator was installed without its metrics API: it scales through /scale itself",
        ),
        CustomMetrics::Unreachable => verdict(
            false,
            "Unreachable",
            "the API server does not reach this operator's metrics API (`kubectl describe apiservice \
             v1beta2.custom.metrics.k8s.io` says why; a firewall between control plane and nodes?): the operator scales \
             through /scale itself",
        ),
        CustomMetrics::Unregistered => verdict(
            false,
            "NotRegistered",
            "custom.metrics.k8s.io is served by nobody, and this operator has not been able to register it for two minutes (its \
             log says why): it scales through /scale itself",
        ),
        CustomMetrics::Nobody | CustomMetrics::Unknown => {
            verdict(false, "NotServed", "custom.metrics.k8s.io is not served yet")
        }
    }
}
