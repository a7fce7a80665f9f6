//! An operator in the test's process, watching the test's namespace, and what it wrote.

use std::{collections::BTreeMap, fmt::Debug, path::PathBuf, sync::Once, time::Duration};

use anyhow::{Context, ensure};
use cluster::{Cluster, Story};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::DynamicObject,
    runtime::{conditions::is_crd_established, wait::await_condition},
};
use operator::{
    controller::{self, Inputs, Meters},
    desired::Installation,
    http::Health,
    kinds::{GATEWAY, Kind},
    lease::Leadership,
    metrics::Metrics,
    observe::CustomMetrics,
    pods::{Counters, Pods},
    shutdown::{self, Trigger},
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

/// A busy machine takes its time.
pub(crate) const SOON: Duration = Duration::from_mins(1);
/// Longer than an operator takes to write what it is about to.
pub(crate) const QUIET: Duration = Duration::from_secs(3);

/// Runs `test` in a namespace of its own, with the definition installed.
pub(crate) async fn story(name: &str, test: impl AsyncFnOnce(&Story) -> anyhow::Result<()>) {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().init();
    });
    let cluster = Cluster::api().await.expect("a cluster");
    define(&cluster.client().await.expect("a client")).await.expect("the definition is taken");
    cluster.story(name, test).await;
}

async fn define(client: &Client) -> anyhow::Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let (mut definition, name) = (json!(crds::definition()), "protocolgateways.protocolgateway.io");
    // a field of a version to come
    let limits = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/limits/properties";
    definition.pointer_mut(limits).context("the spec has limits")?["future"] = json!({"type": "string"});
    definitions.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(&definition)).await?;
    tokio::time::timeout(SOON, await_condition(definitions, name, is_crd_established())).await??;
    Ok(())
}

/// A client that may no more than `user` may.
pub(crate) async fn client_of(story: &Story, user: &str) -> anyhow::Result<Client> {
    let mut kubeconfig = Kubeconfig::read_from(&story.cluster.kubeconfig)?;
    for auth in kubeconfig.auth_infos.iter_mut().filter_map(|auth| auth.auth_info.as_mut()) {
        auth.impersonate = Some(user.to_owned());
    }
    Ok(Client::try_from(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)?)
}

/// An operator that runs.
pub(crate) struct Operator {
    trigger: Trigger,
    task: JoinHandle<()>,
    pub(crate) metrics: Metrics,
    pub(crate) custom_metrics: watch::Sender<CustomMetrics>,
}

impl Operator {
    /// One that leads.
    pub(crate) fn start(story: &Story) -> Self {
        Self::start_as(story, Leadership::fixed(Some(1)))
    }

    pub(crate) fn start_as(story: &Story, leadership: Leadership) -> Self {
        Self::start_in(story.client.clone(), vec![story.namespace.clone()], leadership)
    }

    /// One that watches `namespaces`, with the rights of `client`.
    pub(crate) fn start_in(client: Client, namespaces: Vec<String>, leadership: Leadership) -> Self {
        let (trigger, shutdown) = shutdown::channel();
        let (custom_metrics, receiver) = watch::channel(CustomMetrics::Ours);
        let metrics = Metrics::new();
        let inputs = Inputs {
            client,
            installation: Installation {
                gateway_image: "registry.example/gateway:1.0.0".to_owned(),
                lease_seconds: 15,
            },
            namespaces,
            pod_name: Some("operator-0".to_owned()),
            leadership,
            pods: Pods::new(Counters::new(&metrics)),
            meters: Meters::default(),
            custom_metrics: receiver,
            metrics: metrics.clone(),
            health: Health::new(),
        };
        let task = tokio::spawn(controller::run(inputs, shutdown));
        Self { trigger, task, metrics, custom_metrics }
    }

    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.trigger.request();
        tokio::time::timeout(SOON, self.task).await.context("it does not stop")??;
        Ok(())
    }

    /// Reconciles that ended well so far.
    pub(crate) fn reconciles(&self) -> u64 {
        self.metrics.reconcile_seconds.with_label_values(&["ok"]).get_sample_count()
    }
}

/// A node port for the test `number`, 0 or 1. Of the ports up to 30085 the API server gives none to a Service that asks for
/// any, for its health checks, say; the golden cases have 30083.
pub(crate) fn node_port(number: u16) -> u16 {
    30000 + 40 * number + std::process::id() as u16 % 40
}

/// A spec that works, with `change` laid over it.
pub(crate) fn spec(change: Value) -> Value {
    let mut spec = json!({"upstream": {"iotHub": {"hostName": "hub.azure-devices.net"}}, "replicas": 0});
    merge(&mut spec, change);
    spec
}

pub(crate) fn merge(into: &mut Value, change: Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            change.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, change) => *into = change,
    }
}

/// Declares a ProtocolGateway as a user does.
pub(crate) async fn declare(story: &Story, name: &str, spec: Value) -> anyhow::Result<()> {
    let object = json!({"apiVersion": crds::API_VERSION, "kind": crds::KIND, "metadata": {"name": name}, "spec": spec});
    let api = GATEWAY.api(&story.client, Some(&story.namespace));
    api.patch(name, &PatchParams::apply("user").force(), &Patch::Apply(object)).await?;
    Ok(())
}

/// Writes a Secret as a user does.
pub(crate) async fn secret(story: &Story, name: &str, files: &[(&str, &str)]) -> anyhow::Result<()> {
    let data: BTreeMap<_, _> = files.iter().copied().collect();
    let object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data});
    let api = kind("Secret").api(&story.client, Some(&story.namespace));
    api.patch(name, &PatchParams::apply("user").force(), &Patch::Apply(object)).await?;
    Ok(())
}

pub(crate) fn kind(name: &str) -> &'static Kind {
    Kind::owned(name).expect("the operator makes it")
}

/// The object, if it is there.
pub(crate) async fn find(story: &Story, kind: &Kind, name: &str) -> anyhow::Result<Option<Value>> {
    let found: Option<DynamicObject> = kind.api(&story.client, Some(&story.namespace)).get_opt(name).await?;
    Ok(found.map(|found| json!(found)))
}

/// Waits until `holds` for the object, `None` if it is missing; gives it.
pub(crate) async fn until(
    story: &Story,
    kind: &Kind,
    name: &str,
    what: &str,
    mut holds: impl FnMut(Option<&Value>) -> bool,
) -> anyhow::Result<Value> {
    let begun = std::time::Instant::now();
    loop {
        let found = find(story, kind, name).await?;
        if holds(found.as_ref()) {
            return Ok(found.unwrap_or_default());
        }
        ensure!(begun.elapsed() < SOON, "{what}: not after {SOON:?}: {found:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until a condition has this status and reason; gives its message.
pub(crate) async fn condition(
    story: &Story,
    name: &str,
    type_: &str,
    expected: (&str, &str),
) -> anyhow::Result<String> {
    let what = format!("condition {type_} of {name} is {expected:?}");
    let gateway = until(story, &GATEWAY, name, &what, |gateway| {
        let now = gateway.and_then(|gateway| of_type(gateway, type_));
        now.is_some_and(|now| (now["status"].as_str(), now["reason"].as_str()) == (Some(expected.0), Some(expected.1)))
    });
    let gateway = gateway.await?;
    Ok(of_type(&gateway, type_)
        .map(|found| found["message"].as_str().unwrap_or_default().to_owned())
        .unwrap_or_default())
}

fn of_type<'a>(gateway: &'a Value, type_: &str) -> Option<&'a Value> {
    gateway["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == type_)
}

/// Reasons of the Events about a ProtocolGateway, with their types.
pub(crate) async fn events(story: &Story, name: &str) -> anyhow::Result<Vec<String>> {
    let api: Api<k8s_openapi::api::events::v1::Event> = Api::namespaced(story.client.clone(), &story.namespace);
    let all = api.list(&kube::api::ListParams::default()).await?;
    let about = all.items.into_iter().filter(|event| {
        event
            .regarding
            .as_ref()
            .is_some_and(|about| about.kind.as_deref() == Some(crds::KIND) && about.name.as_deref() == Some(name))
    });
    Ok(about.map(|event| format!("{} {}", event.type_.unwrap_or_default(), event.reason.unwrap_or_default())).collect())
}

/// Every write in the test's namespace that is not one of the cluster's own controllers.
pub(crate) fn writes(story: &Story) -> anyhow::Result<Vec<String>> {
    let log: PathBuf = story.cluster.audit_log().context("a cluster of the harness has an audit log")?;
    let text = std::fs::read_to_string(log)?;
    let mut writes = Vec::new();
    for line in text.lines().filter(|line| line.contains(&story.namespace)) {
        let event: Value = serde_json::from_str(line)?;
        let ours = !event["userAgent"].as_str().is_some_and(|agent| agent.starts_with("kube-"));
        if ours && event["objectRef"]["namespace"] == story.namespace.as_str() {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let about = &event["objectRef"];
            writes.push(format!(
                "{} {} {}{}",
                text(&event["verb"]),
                text(&about["resource"]),
                text(&about["name"]),
                text(&about["subresource"])
            ));
        }
    }
    Ok(writes)
}

/// What is written while nothing happens.
pub(crate) async fn writes_at_rest(story: &Story) -> anyhow::Result<Vec<String>> {
    let before = writes(story)?.len();
    tokio::time::sleep(QUIET).await;
    Ok(writes(story)?.split_off(before))
}

/// Waits until nothing was written for a while.
pub(crate) async fn at_rest(story: &Story) -> anyhow::Result<()> {
    let begun = std::time::Instant::now();
    loop {
        let written = writes_at_rest(story).await?;
        if written.is_empty() {
            return Ok(());
        }
        ensure!(begun.elapsed() < SOON, "it never comes to rest: {written:#?}");
    }
}

pub(crate) fn same<T: PartialEq + Debug>(found: &T, expected: &T, what: &str) -> anyhow::Result<()> {
    ensure!(found == expected, "{what}: {found:#?}, not {expected:#?}");
    Ok(())
}

/// A certificate for `name` and its key.
pub(crate) fn pair(name: &str) -> (String, String) {
    let key = rcgen::KeyPair::generate().expect("a key can be made");
    let certificate =
        rcgen::CertificateParams::new([name.to_owned()]).and_then(|certificate| certificate.self_signed(&key));
    (certificate.expect("it signs itself").pem(), key.serialize_pem())
}
