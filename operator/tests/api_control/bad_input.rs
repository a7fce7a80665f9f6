//! Bad input: a condition says what is wrong and what to do, an Event tells of it, what was in force stays in force, the
//! neighbour notices nothing, and putting it right clears it.

use anyhow::ensure;
use cluster::Story;
use futures_util::future::try_join_all;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{
    api::{DeleteParams, Patch, PatchParams},
    core::DynamicObject,
};
use operator::{
    kinds::{GATEWAY, Kind, OWNED, SECRET},
    names,
    observe::CustomMetrics,
};
use serde_json::{Value, json};

use crate::{
    hook::Hook,
    pretend::{self, Pretend},
    support::{self, Operator, condition, declare, events, find, kind, pair, same, spec, story, until},
};

/// One thing that is wrong with one ProtocolGateway.
struct Row {
    /// Of the ProtocolGateway.
    name: &'static str,
    /// Laid over a spec that works.
    change: Value,
    /// What is made before that.
    wrong: Vec<Value>,
    /// Type, status and reason of the condition; the Event has the reason, too.
    condition: (&'static str, &'static str, &'static str),
    /// What its message says; the last is what to do.
    says: &'static [&'static str],
    right: Right,
    /// The condition then.
    cleared: (&'static str, &'static str),
}

/// What puts it right.
enum Right {
    Apply(Value),
    Delete(&'static Kind, &'static str),
}

const AS_DESIRED: (&str, &str) = ("False", "AsDesired");

fn degraded(
    name: &'static str,
    change: Value,
    wrong: Vec<Value>,
    reason: &'static str,
    says: &'static [&'static str],
    right: Value,
) -> Row {
    Row {
        name,
        change,
        wrong,
        condition: ("Degraded", "True", reason),
        says,
        right: Right::Apply(right),
        cleared: AS_DESIRED,
    }
}

fn secret(name: &str, files: &[(&str, &str)]) -> Value {
    let files: std::collections::BTreeMap<_, _> = files.iter().copied().collect();
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": files})
}

fn certificate(secret_name: &str, (certificate, key): &(String, String)) -> Value {
    secret(secret_name, &[("tls.crt", certificate), ("tls.key", key)])
}

/// A certificate whose life begins and ends so many days from now, and its key.
fn pair_of_days(from: i64, to: i64) -> (String, String) {
    let date = |days: i64| {
        let day = (Timestamp::now() + SignedDuration::from_hours(24 * days)).strftime("%Y %m %d").to_string();
        let parts: Vec<i32> = day.split(' ').map(|part| part.parse().expect("it is a number")).collect();
        let small = |number: i32| u8::try_from(number).expect("it is of a date");
        rcgen::date_time_ymd(parts[0], small(parts[1]), small(parts[2]))
    };
    let key = rcgen::KeyPair::generate().expect("a key can be made");
    let mut parameters = rcgen::CertificateParams::new(["gw.example".to_owned()]).expect("it is a name");
    (parameters.not_before, parameters.not_after) = (date(from), date(to));
    (parameters.self_signed(&key).expect("it signs itself").pem(), key.serialize_pem())
}

fn tls(secret_name: &str) -> Value {
    json!({"tls": {"secretName": secret_name}})
}

/// What needs a policy, with one that is right.
fn with_policy(authentication: &Value, policy: &str) -> Value {
    let hub = json!({"policy": {"name": "device", "secretName": policy}});
    json!({"authentication": authentication, "upstream": {"iotHub": hub}})
}

const FILES: &[&str] = &["it must hold tls.crt, a PEM certificate chain, and tls.key, its key"];
const KEY: &str = "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3I=";

fn certificates() -> Vec<Row> {
    let (good, other) = (pair("gw.example"), pair("gw.example"));
    let right = |name: &str| certificate(name, &good);
    let wrong = |name: &'static str, secret_name: &'static str, made: Value| {
        degraded(name, tls(secret_name), vec![made], "SecretInvalid", FILES, right(secret_name))
    };
    vec![
        degraded(
            "key-of-another",
            tls("key-of-another-own"),
            vec![certificate("key-of-another-own", &(good.0.clone(), other.1))],
            "SecretInvalid",
            &["Secret key-of-another-own has a tls.key that is not the key of its tls.crt", "it must hold"],
            right("key-of-another-own"),
        ),
        wrong("empty", "empty-own", certificate("empty-own", &(String::new(), good.1.clone()))),
        wrong("no-key", "no-key-own", secret("no-key-own", &[("tls.crt", &good.0)])),
        wrong("key-is-text", "key-is-text-own", certificate("key-is-text-own", &(good.0.clone(), KEY.to_owned()))),
        degraded(
            "expired",
            tls("expired-own"),
            vec![certificate("expired-own", &pair_of_days(-30, -2))],
            "CertificateExpired",
            &["Secret expired-own has a certificate that expired at", "renew it"],
            right("expired-own"),
        ),
        degraded(
            "too-early",
            tls("too-early-own"),
            vec![certificate("too-early-own", &pair_of_days(2, 30))],
            "CertificateNotYetValid",
            &["Secret too-early-own has a certificate that begins at", "wait, or check the clock"],
            right("too-early-own"),
        ),
        degraded(
            "missing",
            tls("missing-own"),
            Vec::new(),
            "SecretMissing",
            &["spec.tls: Secret missing-own is missing", "create it with tls.crt"],
            right("missing-own"),
        ),
        degraded(
            "device-ca",
            with_policy(&json!({"x509": {"clientCASecretName": "device-ca-own"}}), "device-ca-policy"),
            vec![secret("device-ca-policy", &[("key", KEY)]), secret("device-ca-own", &[("ca.crt", "no PEM")])],
            "SecretInvalid",
            &[
                "spec.authentication.x509: Secret device-ca-own has a ca.crt that",
                "it must hold ca.crt, PEM certificates",
            ],
            secret("device-ca-own", &[("ca.crt", &good.0)]),
        ),
    ]
}

fn keys() -> Vec<Row> {
    let local = |more: Value| {
        let mut sas = json!({"verify": "Local"});
        support::merge(&mut sas, more);
        json!({"sas": sas})
    };
    let devices = local(json!({"deviceKeys": {"secretName": "devices-own"}}));
    let groups = local(json!({"enrollmentGroups": [{"name": "sensors", "secretName": "groups-own"}]}));
    vec![
        degraded(
            "policy",
            with_policy(&json!({}), "policy-own"),
            vec![secret("policy-own", &[("key", "not in base64!")])],
            "SecretInvalid",
            &["Secret policy-own has a key that is not in base64", "it must hold key, the policy's key in base64"],
            secret("policy-own", &[("key", KEY)]),
        ),
        degraded(
            "devices",
            with_policy(&devices, "devices-policy"),
            vec![
                secret("devices-policy", &[("key", KEY)]),
                secret("devices-own", &[("devices", "device-1 not-in-base64!\n")]),
            ],
            "SecretInvalid",
            &[
                "spec.authentication.sas.deviceKeys: Secret devices-own has a file devices that",
                "it must hold files with lines",
            ],
            secret("devices-own", &[("devices", &format!("device-1 {KEY}\n"))]),
        ),
        degraded(
            "groups",
            with_policy(&groups, "groups-policy"),
            vec![secret("groups-policy", &[("key", KEY)]), secret("groups-own", &[("primary", "not in base64!")])],
            "SecretInvalid",
            &[
                "spec.authentication.sas.enrollmentGroups[0]: Secret groups-own has a primary or secondary",
                "keys in base64",
            ],
            secret("groups-own", &[("primary", KEY)]),
        ),
    ]
}

fn what_others_have() -> Vec<Row> {
    let port = support::node_port(1);
    let service = json!({"service": {"type": "NodePort", "nodePorts": {"mqtts": port}}});
    let first = json!({"apiVersion": crds::API_VERSION, "kind": crds::KIND, "metadata": {"name": "port-first"}, "spec": spec(service.clone())});
    let autoscaler = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "mine"},
        "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "autoscaled"}, "maxReplicas": 3},
    });
    vec![
        Row {
            name: "port",
            change: service,
            wrong: vec![first],
            condition: ("Degraded", "True", "Refused"),
            says: &["Service port was not taken", "provided port is already allocated"],
            right: Right::Delete(&GATEWAY, "port-first"),
            cleared: AS_DESIRED,
        },
        Row {
            name: "autoscaled",
            change: json!({}),
            wrong: vec![autoscaler],
            condition: ("ScalingLimited", "True", "AutoscalerOfDeployment"),
            says: &[
                "HorizontalPodAutoscaler mine aims at Deployment autoscaled",
                "let it aim at ProtocolGateway autoscaled",
            ],
            right: Right::Delete(kind("HorizontalPodAutoscaler"), "mine"),
            cleared: ("False", "NotLimited"),
        },
    ]
}

async fn apply(story: &Story, object: &Value) -> anyhow::Result<()> {
    let (kind_name, name) = (object["kind"].as_str().unwrap_or_default(), object["metadata"]["name"].as_str());
    let (of_kind, name) = (if kind_name == crds::KIND { &GATEWAY } else { kind(kind_name) }, name.unwrap_or_default());
    let api = of_kind.api(&story.client, Some(&story.namespace));
    let _: DynamicObject = api.patch(name, &PatchParams::apply("user").force(), &Patch::Apply(object)).await?;
    if *of_kind == GATEWAY {
        condition(story, name, "Degraded", AS_DESIRED).await?;
    }
    Ok(())
}

/// What pods run by, and what they are.
pub(crate) async fn in_force(story: &Story, name: &str) -> anyhow::Result<(Value, Value)> {
    let there = |found: Option<&Value>| found.is_some();
    let config = until(story, kind("ConfigMap"), name, "it is made", there).await?;
    let deployment = until(story, kind("Deployment"), name, "it is made", there).await?;
    Ok((config["data"].clone(), deployment["spec"].clone()))
}

pub(crate) async fn told(story: &Story, name: &str, event: &str) -> anyhow::Result<()> {
    let begun = std::time::Instant::now();
    loop {
        let told = events(story, name).await?;
        if told.iter().any(|told| told == event) {
            return Ok(());
        }
        ensure!(begun.elapsed() < support::SOON, "{name}: no Event {event}: {told:?}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

async fn check(story: &Story, row: &Row) -> anyhow::Result<()> {
    let Row { name, change, wrong, condition: (type_, status, reason), says, right, cleared } = row;
    declare(story, name, spec(json!({}))).await?;
    condition(story, name, "Degraded", AS_DESIRED).await?;
    let good = in_force(story, name).await?;
    for object in wrong {
        apply(story, object).await?;
    }
    declare(story, name, spec(change.clone())).await?;
    let message = condition(story, name, type_, (status, reason)).await?;
    for part in *says {
        ensure!(message.contains(part), "{name}: not `{part}`: {message}");
    }
    told(story, name, &format!("Warning {reason}")).await?;
    same(&in_force(story, name).await?, &good, &format!("{name}: what was in force"))?;
    match right {
        Right::Apply(object) => apply(story, object).await?,
        Right::Delete(kind, name) => {
            kind.api(&story.client, Some(&story.namespace)).delete(name, &DeleteParams::background()).await?;
        }
    }
    condition(story, name, type_, *cleared).await?;
    told(story, name, &format!("Normal {}", cleared.1)).await?;
    if type_ == &"Degraded" && reason != &"Refused" {
        ensure!(in_force(story, name).await?.0 != good.0, "{name}: what is right is in force");
    }
    Ok(())
}

/// Version of the ProtocolGateway, and of every object that it owns.
async fn versions(story: &Story, name: &str) -> anyhow::Result<Vec<(String, Value)>> {
    let mut versions = Vec::new();
    let owned = OWNED.into_iter().filter(|kind| kind.everywhere).map(|kind| (kind, name.to_owned()));
    let secrets = names::secrets(name).map(|secret| (&SECRET, secret));
    for (kind, name) in owned.chain([(&GATEWAY, name.to_owned())]).chain(secrets) {
        if let Some(found) = find(story, kind, &name).await? {
            versions.push((format!("{} {name}", kind.name), found["metadata"]["resourceVersion"].clone()));
        }
    }
    Ok(versions)
}

/// A fleet of one pod that is ready and as it should be, and its versions once nothing moves any more.
async fn fleet(story: &Story, name: &str, host: u8) -> anyhow::Result<(Pretend, Vec<(String, Value)>)> {
    let port = 20000 + std::process::id() as u16 % 10000;
    // a Service of type LoadBalancer waits for an address
    let change = json!({"replicas": 1, "admin": {"port": port}, "service": {"type": "ClusterIP"}});
    declare(story, name, spec(change)).await?;
    condition(story, name, "Degraded", AS_DESIRED).await?;
    let pods = pretend::pods(story, name, 1).await?;
    let pod = Pretend::run(story, (name, &pods[0]), ([127, 77, 8, host], port).into(), 7).await?;
    condition(story, name, "Ready", ("True", "PodsReady")).await?;
    condition(story, name, "UpstreamConnected", ("True", "Connected")).await?;
    until(story, kind("Deployment"), name, "its pod is available", |found| {
        found.is_some_and(|found| found["status"]["availableReplicas"] == 1)
    })
    .await?;
    let mut before = versions(story, name).await?;
    loop {
        tokio::time::sleep(support::QUIET).await;
        let now = versions(story, name).await?;
        if now == before {
            return Ok((pod, now));
        }
        before = now;
    }
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn what_is_wrong_with_one_is_said_and_can_be_put_right_and_its_neighbour_notices_nothing() {
    story("bad", async |story: &Story| {
        let operator = Operator::start(story);
        let (_pod, before) = fleet(story, "beside", 1).await?;
        ensure!(before.len() >= 11, "{before:?}");
        let rows: Vec<Row> = [certificates(), keys(), what_others_have()].into_iter().flatten().collect();
        try_join_all(rows.iter().map(|row| check(story, row))).await?;
        println!("{} things were wrong and are right", rows.len());
        metrics_of_somebody_else(story, &operator).await?;
        two_autoscalers(story).await?;
        condition(story, "beside", "Ready", ("True", "PodsReady")).await?;
        same(&versions(story, "beside").await?, &before, "what is beside it")?;
        operator.stop().await
    })
    .await;
}

/// Another provider of the custom metrics comes, and goes.
async fn metrics_of_somebody_else(story: &Story, operator: &Operator) -> anyhow::Result<()> {
    let scaling = json!({"scaling": {"minReplicas": 1, "maxReplicas": 4, "connectionsPerReplica": 100}});
    declare(story, "scaled", spec(scaling)).await?;
    condition(story, "scaled", "MetricsApiAvailable", ("True", "Served")).await?;
    let good = in_force(story, "scaled").await?;
    operator.custom_metrics.send_replace(CustomMetrics::Foreign);
    let message = condition(story, "scaled", "MetricsApiAvailable", ("False", "Conflict")).await?;
    ensure!(message.contains("is served by somebody else: the operator scales through /scale itself"), "{message}");
    told(story, "scaled", "Warning Conflict").await?;
    same(&in_force(story, "scaled").await?, &good, "what was in force")?;
    until(story, kind("HorizontalPodAutoscaler"), "scaled", "it goes", |found| found.is_none()).await?;
    operator.custom_metrics.send_replace(CustomMetrics::Ours);
    condition(story, "scaled", "MetricsApiAvailable", ("True", "Served")).await?;
    told(story, "scaled", "Normal Served").await?;
    until(story, kind("HorizontalPodAutoscaler"), "scaled", "it is made again", |found| found.is_some()).await?;
    Ok(())
}

/// The user's own comes beside that of `spec.scaling`, and goes.
async fn two_autoscalers(story: &Story) -> anyhow::Result<()> {
    let theirs = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "keda"},
        "spec": {"scaleTargetRef": {"apiVersion": crds::API_VERSION, "kind": crds::KIND, "name": "scaled"}, "maxReplicas": 3},
    });
    apply(story, &theirs).await?;
    let message = condition(story, "scaled", "ScalingLimited", ("True", "TwoAutoscalers")).await?;
    ensure!(message.contains("HorizontalPodAutoscaler keda aims at this ProtocolGateway"), "{message}");
    ensure!(message.contains("delete it, or leave out spec.scaling"), "{message}");
    told(story, "scaled", "Warning TwoAutoscalers").await?;
    until(story, kind("HorizontalPodAutoscaler"), "scaled", "ours is withdrawn", |found| found.is_none()).await?;
    let autoscalers = kind("HorizontalPodAutoscaler").api(&story.client, Some(&story.namespace));
    autoscalers.delete("keda", &DeleteParams::default()).await?;
    condition(story, "scaled", "ScalingLimited", ("False", "NotLimited")).await?;
    until(story, kind("HorizontalPodAutoscaler"), "scaled", "ours is made again", |found| found.is_some()).await?;
    Ok(())
}

/// What pods say of a name that nobody knows.
const NO_SUCH_HUB: &str = "hub.azure-devices.net: failed to lookup address information: Name or service not known";

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn a_hub_that_does_not_exist_is_said_as_pods_say_it_and_with_what_to_do() {
    story("no-hub", async |story: &Story| {
        let operator = Operator::start(story);
        let (_pod, before) = fleet(story, "beside", 2).await?;
        let (away, _) = fleet(story, "away", 3).await?;
        let good = in_force(story, "away").await?;
        away.fails(Some(NO_SUCH_HUB));
        for type_ in ["UpstreamConnected", "Ready"] {
            let message = condition(story, "away", type_, ("False", "UpstreamFailing")).await?;
            ensure!(message.contains(NO_SUCH_HUB), "{message}");
            ensure!(message.contains("see that spec.upstream names a hub or broker that is there"), "{message}");
        }
        told(story, "away", "Warning UpstreamFailing").await?;
        same(&in_force(story, "away").await?, &good, "what was in force")?;
        away.fails(None);
        condition(story, "away", "UpstreamConnected", ("True", "Connected")).await?;
        condition(story, "away", "Ready", ("True", "PodsReady")).await?;
        told(story, "away", "Normal Connected").await?;
        condition(story, "beside", "Ready", ("True", "PodsReady")).await?;
        same(&versions(story, "beside").await?, &before, "what is beside it")?;
        operator.stop().await
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn a_webhook_that_does_not_answer_keeps_back_one_object_and_is_said() {
    story("webhook", async |story: &Story| {
        let operator = Operator::start(story);
        let (_pod, before) = fleet(story, "beside", 4).await?;
        let hook = Hook::before(story, "Service").await?;
        let scaling = json!({"scaling": {"minReplicas": 1, "maxReplicas": 4, "connectionsPerReplica": 100}});
        declare(story, "gw", spec(scaling)).await?;
        let message = condition(story, "gw", "Degraded", ("True", "ApiFailing")).await?;
        for part in ["Service gw was not taken", "failed calling webhook", "it is tried again by itself"] {
            ensure!(message.contains(part), "not `{part}`: {message}");
        }
        told(story, "gw", "Warning ApiFailing").await?;
        for made in ["ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "HorizontalPodAutoscaler"] {
            until(story, kind(made), "gw", "it is made nevertheless", |found| found.is_some()).await?;
        }
        ensure!(find(story, kind("Service"), "gw").await?.is_none());
        same(&versions(story, "beside").await?, &before, "what is beside it")?;
        hook.goes(story).await?;
        condition(story, "gw", "Degraded", AS_DESIRED).await?;
        told(story, "gw", "Normal AsDesired").await?;
        ensure!(find(story, kind("Service"), "gw").await?.is_some());
        operator.stop().await
    })
    .await;
}
