//! Level api: the operator under the rights that its chart gives it. What it asks for and may not is refused by the API
//! server; what it may and never asks for is found by comparing the chart's rules with what went through a recorder.

mod cert_manager;
mod exercise;
mod recorder;
#[path = "../support/mod.rs"]
mod support;

use std::{
    collections::BTreeSet,
    fs::File,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use cluster::{
    Cluster, Story,
    definitions::{CERT_MANAGER, PROMETHEUS_OPERATOR},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
    discovery,
};
use serde::Deserialize as _;
use serde_json::{Value, json};

use self::recorder::{Recorder, Right};

const RELEASE: &str = "op";
const SOON: Duration = Duration::from_mins(1);

/// Rights that no request of the operator's names, and why they are there: verbs, group and resource, reason.
const ASKED_FOR_ON_THE_WAY: [(&str, &str, &str); 1] = [(
    "delete",
    "/configmaps /serviceaccounts apps/deployments networking.k8s.io/networkpolicies policy/poddisruptionbudgets \
         monitoring.coreos.com/podmonitors",
    "an owner is given to what has lost it",
)];

fn asked_for_on_the_way() -> BTreeSet<String> {
    let mut rights = BTreeSet::new();
    for (verbs, resources, _) in ASKED_FOR_ON_THE_WAY {
        for resource in resources.split(' ') {
            rights.extend(verbs.split(' ').map(|verb| format!("{verb} {resource}")));
        }
    }
    rights
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // an error: it ended before
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How the chart is installed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Installed {
    /// As it is by default: everywhere, with the metrics API.
    Everywhere,
    /// For named namespaces, without the metrics API.
    Here,
}

/// What `helm template` makes of the chart.
fn rendered(story: &Story, installed: Installed) -> anyhow::Result<Vec<Value>> {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/protocol-gateway-operator");
    let mut helm = story.cluster.helm()?;
    helm.arg("template").arg(RELEASE).arg(chart).args(["--namespace", &story.namespace]);
    if installed == Installed::Here {
        let namespaces = format!("watchNamespaces={{{}}}", story.namespace);
        helm.args(["--set", &namespaces, "--set", "metricsApi.enabled=false"]);
    }
    let output = helm.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let documents = serde_yaml::Deserializer::from_slice(&output.stdout).map(Value::deserialize);
    Ok(documents.collect::<Result<Vec<_>, _>>()?.into_iter().filter(|document| !document.is_null()).collect())
}

async fn apply(client: &Client, object: &Value, namespace: &str) -> anyhow::Result<()> {
    let object: DynamicObject = serde_json::from_value(object.clone())?;
    let types = object.types.clone().context("it has a kind")?;
    let kind = GroupVersionKind::try_from(&types)?;
    let (resource, capabilities) = discovery::pinned_kind(client, &kind).await?;
    let api: Api<DynamicObject> = match capabilities.scope {
        discovery::Scope::Cluster => Api::all_with(client.clone(), &resource),
        discovery::Scope::Namespaced => {
            let namespace = object.namespace().unwrap_or_else(|| namespace.to_owned());
            Api::namespaced_with(client.clone(), &namespace, &resource)
        }
    };
    api.patch(&object.name_any(), &PatchParams::apply("test").force(), &Patch::Apply(&object)).await?;
    Ok(())
}

/// Rights that rules give.
fn granted(documents: &[Value]) -> BTreeSet<String> {
    let mut granted = BTreeSet::new();
    let list = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
    };
    let of_operator = |document: &&Value| {
        let labels = &document["metadata"]["labels"];
        let aggregated = labels.as_object().is_some_and(|all| all.keys().any(|key| key.contains("aggregate-to")));
        ["Role", "ClusterRole"].contains(&document["kind"].as_str().unwrap_or_default()) && !aggregated
    };
    for rule in documents.iter().filter(of_operator).flat_map(|role| role["rules"].as_array().into_iter().flatten()) {
        for group in list(&rule["apiGroups"]) {
            for resource in list(&rule["resources"]) {
                let one =
                    |verb: &String| Right { verb: verb.clone(), group: group.clone(), resource: resource.clone() };
                granted.extend(list(&rule["verbs"]).iter().map(|verb| one(verb).to_string()));
            }
        }
    }
    granted
}

/// Gives the operator the rights of the chart, and takes away those that it had by another installation of it.
async fn grant(story: &Story, documents: &[Value], before: &[Value]) -> anyhow::Result<()> {
    let rights = ["ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"];
    let are_rights = |document: &&Value| rights.contains(&document["kind"].as_str().unwrap_or_default());
    let key = |document: &Value| (document["kind"].clone(), document["metadata"]["name"].clone());
    for document in documents.iter().filter(are_rights) {
        apply(&story.client, document, &story.namespace).await?;
    }
    for gone in before.iter().filter(are_rights).filter(|gone| !documents.iter().any(|kept| key(kept) == key(gone))) {
        let kind = gone["kind"].as_str().unwrap_or_default();
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("rbac.authorization.k8s.io", "v1", kind));
        let api: Api<DynamicObject> = match gone["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(story.client.clone(), namespace, &resource),
            None => Api::all_with(story.client.clone(), &resource),
        };
        api.delete(gone["metadata"]["name"].as_str().unwrap_or_default(), &DeleteParams::default()).await?;
    }
    Ok(())
}

fn start(story: &Story, address: SocketAddr, installed: Installed) -> anyhow::Result<(Process, std::path::PathBuf)> {
    let directory = story.cluster.kubeconfig.with_file_name(story.namespace.clone());
    std::fs::create_dir_all(&directory)?;
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "recorder",
        "clusters": [{"name": "recorder", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "recorder", "user": {}}],
        "contexts": [{"name": "recorder", "context": {"cluster": "recorder", "user": "recorder"}}],
    });
    let file = directory.join("kubeconfig");
    std::fs::write(&file, kubeconfig.to_string())?;
    let log = directory.join("log");
    let listen = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    let fullname = format!("{RELEASE}-protocol-gateway-operator");
    let child = Command::new(env!("CARGO_BIN_EXE_operator"))
        .args(["run", "--gateway-image=registry.example/gateway:1", "--pod-name=rights", "--lease-seconds=3"])
        .args([format!("--namespace={}", story.namespace), format!("--service-name={fullname}")])
        .args([format!("--listen={listen}"), format!("--lease-name={fullname}")])
        .args([format!("--owner={}:{fullname}", story.namespace)])
        .args(
            match installed {
                Installed::Everywhere => [format!("--metrics-api-port={}", free_port()?), String::new()],
                Installed::Here => {
                    ["--metrics-api-port=0".to_owned(), format!("--watch-namespaces={}", story.namespace)]
                }
            }
            .into_iter()
            .filter(|flag| !flag.is_empty()),
        )
        .args(["--log-level=operator=debug"])
        .env("KUBECONFIG", file)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stderr(File::create(&log)?)
        .spawn()?;
    Ok((Process(child), log))
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn the_operator_has_the_rights_that_it_needs_and_no_others() {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let cluster = Cluster::api().await.expect("a cluster");
    let test = async |story: &Story| {
        apply(&story.client, &json!(crds::definition()), "").await?;
        PROMETHEUS_OPERATOR.install(&story.client).await?;
        CERT_MANAGER.install(&story.client).await?;
        // built on first use, which no operator that leads must wait for
        let _cert_manager = cert_manager::start(story)?;
        let result = both(story).await;
        // while nobody answers there, no namespace can be deleted
        exercise::unregister(story).await?;
        result
    };
    cluster.story("rights", test).await;
}

/// As the chart is installed by default, then as another may choose; each does what needs its rights.
async fn both(story: &Story) -> anyhow::Result<()> {
    let account = format!("{RELEASE}-protocol-gateway-operator");
    let everywhere = rendered(story, Installed::Everywhere)?;
    grant(story, &everywhere, &[]).await?;
    let recorder = Recorder::start(&story.cluster, &story.namespace, &account).await?;
    let (operator, log) = start(story, recorder.address, Installed::Everywhere)?;
    exercise::with_metrics(story, &log, &recorder).await?;
    drop(operator);
    let mut used = used(&recorder, &log)?;

    let here = rendered(story, Installed::Here)?;
    grant(story, &here, &everywhere).await?;
    let recorder = Recorder::start(&story.cluster, &story.namespace, &account).await?;
    let (operator, log) = start(story, recorder.address, Installed::Here)?;
    exercise::without_metrics(story, &log).await?;
    drop(operator);
    used.extend(self::used(&recorder, &log)?);

    let mut given = granted(&everywhere);
    given.extend(granted(&here));
    compare(&given, &used)
}

/// What was asked for; none of it may have been refused.
fn used(recorder: &Recorder, log: &Path) -> anyhow::Result<BTreeSet<String>> {
    let text = std::fs::read_to_string(log)?;
    ensure!(recorder.forbidden().is_empty(), "refused: {:?}\n{text}", recorder.forbidden());
    Ok(recorder.used())
}

fn compare(given: &BTreeSet<String>, used: &BTreeSet<String>) -> anyhow::Result<()> {
    let excused = asked_for_on_the_way();
    let superfluous: Vec<_> = given.difference(used).filter(|right| !excused.contains(*right)).collect();
    ensure!(superfluous.is_empty(), "given and never used: {superfluous:#?}\nused: {used:#?}");
    let stale: Vec<_> = excused.iter().filter(|right| !given.contains(*right) || used.contains(*right)).collect();
    ensure!(stale.is_empty(), "excused, and not given or used: {stale:#?}");
    println!("{} rights are given and used", given.len());
    Ok(())
}
