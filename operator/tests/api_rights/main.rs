//! Level api: the operator under the rights that its chart gives it. What it asks for and may not is refused by the API
//! server; what it may and never asks for is found by comparing the chart's rules with what went through a recorder.

mod recorder;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use cluster::{Cluster, Story};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
    discovery,
};
use operator::kinds::GATEWAY;
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio::time::sleep;

use self::recorder::{Recorder, Right};

const RELEASE: &str = "op";
const SOON: Duration = Duration::from_mins(1);

/// Rights whose use this test does not bring about, and why they are there: verbs, group and resource, reason.
const NOT_SEEN_HERE: [(&str, &str, &str); 9] = [
    ("get list watch create patch delete", "monitoring.coreos.com/podmonitors", "this cluster does not know them"),
    ("get list watch create patch delete", "apiregistration.k8s.io/apiservices", "the metrics API is off here"),
    ("get", "rbac.authorization.k8s.io/clusterroles", "owns the APIServices: the metrics API is off here"),
    ("get create patch delete", "autoscaling/horizontalpodautoscalers", "made where the metrics API is on"),
    ("get patch", "protocolgateway.io/protocolgateways/scale", "where another provider owns the metrics API"),
    ("patch", "/pods", "what the deletion of a pod costs: there are no pods at this level"),
    ("patch", "events.k8s.io/events", "an Event that comes again: a series"),
    ("delete", "/configmaps /services /serviceaccounts /secrets", "what a later version does not make any more"),
    (
        "delete",
        "apps/deployments networking.k8s.io/networkpolicies policy/poddisruptionbudgets",
        "what a later version does not make any more",
    ),
];

fn not_seen_here() -> BTreeSet<String> {
    let mut rights = BTreeSet::new();
    for (verbs, resources, _) in NOT_SEEN_HERE {
        for resource in resources.split(' ') {
            rights.extend(verbs.split(' ').map(|verb| format!("{verb} {resource}")));
        }
    }
    rights
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // an error: it ended before
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `helm template` makes of the chart for this namespace.
fn rendered(story: &Story) -> anyhow::Result<Vec<Value>> {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/protocol-gateway-operator");
    let mut helm = story.cluster.helm()?;
    let namespaces = format!("watchNamespaces={{{}}}", story.namespace);
    helm.arg("template").arg(RELEASE).arg(chart).args(["--namespace", &story.namespace, "--set", &namespaces]);
    let output = helm.args(["--set", "metricsApi.enabled=false"]).output()?;
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

fn start(story: &Story, address: std::net::SocketAddr) -> anyhow::Result<(Process, std::path::PathBuf)> {
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
    let listen = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let fullname = format!("{RELEASE}-protocol-gateway-operator");
    let child = Command::new(env!("CARGO_BIN_EXE_operator"))
        .args(["run", "--gateway-image=registry.example/gateway:1", "--metrics-api-port=0", "--pod-name=rights"])
        .args([format!("--namespace={}", story.namespace), format!("--watch-namespaces={}", story.namespace)])
        .args([format!("--listen={listen}"), format!("--lease-name={fullname}")])
        .args(["--log-level=operator=debug"])
        .env("KUBECONFIG", file)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stderr(File::create(&log)?)
        .spawn()?;
    Ok((Process(child), log))
}

async fn declare(story: &Story, name: &str, spec: Value) -> anyhow::Result<()> {
    let object = json!({"apiVersion": crds::API_VERSION, "kind": crds::KIND, "metadata": {"name": name}, "spec": spec});
    let api = GATEWAY.api(&story.client, Some(&story.namespace));
    api.patch(name, &PatchParams::apply("user").force(), &Patch::Apply(object)).await?;
    Ok(())
}

/// Changes the spec as `kubectl edit` does.
async fn change(story: &Story, spec: Value) -> anyhow::Result<()> {
    let api = GATEWAY.api(&story.client, Some(&story.namespace));
    api.patch("gw", &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await?;
    Ok(())
}

/// Waits until `holds`; says what was waited for, and what the operator said.
async fn until(what: &str, log: &Path, mut holds: impl AsyncFnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !holds().await? {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        ensure!(begun.elapsed() < SOON, "{what}: not after {SOON:?}\n{text}");
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// A minimal definition of cert-manager's Certificate: its API exists, and nobody behind it.
fn certificate_definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "certificates.cert-manager.io"},
        "spec": {
            "group": "cert-manager.io",
            "names": {"kind": "Certificate", "listKind": "CertificateList", "plural": "certificates", "singular": "certificate"},
            "scope": "Namespaced",
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    })
}

async fn object(story: &Story, group: &str, version: &str, kind: &str, name: &str) -> anyhow::Result<Option<Value>> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    let api: Api<DynamicObject> = Api::namespaced_with(story.client.clone(), &story.namespace, &resource);
    Ok(api.get_opt(name).await?.map(|object| json!(object)))
}

/// Waits for a condition of a ProtocolGateway.
async fn until_condition(story: &Story, log: &Path, name: &str, status: &str, reason: &str) -> anyhow::Result<()> {
    let what = format!("{name}: Degraded {status}, {reason}");
    let holds = async || {
        let found = object(story, crds::GROUP, "v1alpha1", crds::KIND, name).await?;
        Ok(found.and_then(|found| condition(&found, "Degraded")) == Some((status.to_owned(), reason.to_owned())))
    };
    until(&what, log, holds).await
}

/// Status and reason of a condition.
fn condition(gateway: &Value, type_: &str) -> Option<(String, String)> {
    let all = gateway["status"]["conditions"].as_array()?;
    let found = all.iter().find(|condition| condition["type"] == type_)?;
    Some((found["status"].as_str()?.to_owned(), found["reason"].as_str()?.to_owned()))
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn the_operator_has_the_rights_that_it_needs_and_no_others() {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let cluster = Cluster::api().await.expect("a cluster");
    let test = async |story: &Story| {
        apply(&story.client, &json!(crds::definition()), "").await?;
        apply(&story.client, &certificate_definition(), "").await?;
        let documents = rendered(story)?;
        let rights = ["ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"];
        for document in &documents {
            if rights.contains(&document["kind"].as_str().unwrap_or_default()) {
                apply(&story.client, document, &story.namespace).await?;
            }
        }
        let account = format!("{RELEASE}-protocol-gateway-operator");
        let recorder = Recorder::start(&story.cluster, &story.namespace, &account).await?;
        let (_operator, log) = start(story, recorder.address)?;

        declare(story, "gw", json!({"upstream": upstream(), "replicas": 2})).await?;
        until_condition(story, &log, "gw", "False", "AsDesired").await?;
        taken_over_by_cert_manager(story, &log).await?;
        made_by_cert_manager(story, &log).await?;
        let renewed = || recorder.used().contains("update coordination.k8s.io/leases");
        until("the Lease is renewed", &log, async || Ok(renewed())).await?;
        compare(&documents, &recorder, &log)
    };
    cluster.story("rights", test).await;
}

fn upstream() -> Value {
    json!({"iotHub": {"hostName": "h.azure-devices.net"}})
}

async fn certificate(story: &Story, name: &str) -> anyhow::Result<Option<Value>> {
    object(story, "cert-manager.io", "v1", "Certificate", name).await
}

/// What cert-manager does once it has a certificate; any pair will do.
async fn fill(story: &Story, name: &str) -> anyhow::Result<Option<BTreeMap<String, ByteString>>> {
    let mut parameters = rcgen::CertificateParams::new([format!("{name}.example")])?;
    parameters.not_after = rcgen::date_time_ymd(2500, 1, 1);
    let key = rcgen::KeyPair::generate()?;
    let files = [("tls.crt", parameters.self_signed(&key)?.pem()), ("tls.key", key.serialize_pem())];
    let data: BTreeMap<String, ByteString> =
        files.into_iter().map(|(file, text)| (file.to_owned(), ByteString(text.into_bytes()))).collect();
    let metadata = json!({"name": name, "annotations": {"cert-manager.io/certificate-name": name}});
    let metadata = serde_json::from_value(metadata)?;
    let type_ = Some("kubernetes.io/tls".to_owned());
    let secret = Secret { metadata, data: Some(data), type_, ..Secret::default() };
    let secrets: Api<Secret> = Api::namespaced(story.client.clone(), &story.namespace);
    Ok(secrets.patch(name, &PatchParams::apply("cert-manager").force(), &Patch::Apply(&secret)).await?.data)
}

/// A fleet that had a certificate of the operator's own is to have one of cert-manager's, and then its own again.
async fn taken_over_by_cert_manager(story: &Story, log: &Path) -> anyhow::Result<()> {
    let secrets: Api<Secret> = Api::namespaced(story.client.clone(), &story.namespace);
    let issuer = json!({"name": "company", "kind": "ClusterIssuer"});
    let theirs = json!({"selfSigned": null, "certManager": {"issuerRef": issuer, "dnsNames": ["gw.example"]}});
    change(story, json!({"tls": theirs})).await?;
    until("the Certificate is there", log, async || Ok(certificate(story, "gw-tls").await?.is_some())).await?;
    let asked = certificate(story, "gw-tls").await?.context("it was there")?;
    ensure!(asked["spec"]["secretName"] == "gw-tls" && asked["spec"]["issuerRef"]["name"] == "company", "{asked}");
    ensure!(asked["spec"]["dnsNames"].as_array().is_some_and(|names| names.contains(&json!("gw.example"))), "{asked}");
    ensure!(secrets.get_opt("gw-tls").await?.is_some(), "what is served stays until cert-manager has something");

    let filled = fill(story, "gw-tls").await?;
    sleep(Duration::from_secs(2)).await;
    ensure!(secrets.get("gw-tls").await?.data == filled, "the operator leaves it alone");
    until_condition(story, log, "gw", "False", "AsDesired").await?;

    change(story, json!({"tls": {"selfSigned": {}, "certManager": null}})).await?;
    until("the Certificate goes", log, async || Ok(certificate(story, "gw-tls").await?.is_none())).await?;
    until_condition(story, log, "gw", "True", "NameTaken").await?;
    ensure!(secrets.get("gw-tls").await?.data == filled, "it is not the operator's to write");
    secrets.delete("gw-tls", &DeleteParams::default()).await?;
    until("the operator makes its own", log, async || Ok(secrets.get_opt("gw-tls").await?.is_some())).await?;
    until_condition(story, log, "gw", "False", "AsDesired").await
}

/// A fleet that has cert-manager's from the start waits for it, and says so.
async fn made_by_cert_manager(story: &Story, log: &Path) -> anyhow::Result<()> {
    let tls = json!({"certManager": {"issuerRef": {"name": "company", "kind": "Issuer"}}});
    declare(story, "new", json!({"upstream": upstream(), "replicas": 2, "tls": tls})).await?;
    until_condition(story, log, "new", "True", "CertificatePending").await?;
    let deployment = async || object(story, "apps", "v1", "Deployment", "new").await;
    ensure!(deployment().await?.is_none(), "no pod could start");
    fill(story, "new-tls").await?;
    until("pods are made", log, async || Ok(deployment().await?.is_some())).await?;
    until_condition(story, log, "new", "False", "AsDesired").await
}

fn compare(documents: &[Value], recorder: &Recorder, log: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(log)?;
    ensure!(recorder.forbidden().is_empty(), "refused: {:?}\n{text}", recorder.forbidden());
    let (granted, used) = (granted(documents), recorder.used());
    let excused = not_seen_here();
    let superfluous: Vec<_> = granted.difference(&used).filter(|right| !excused.contains(*right)).collect();
    ensure!(superfluous.is_empty(), "given and never used: {superfluous:#?}\nused: {used:#?}");
    let stale: Vec<_> = excused.iter().filter(|right| !granted.contains(*right)).collect();
    ensure!(stale.is_empty(), "excused, and not given: {stale:#?}");
    Ok(())
}
