//! What the operator does with the rights of its chart: everything that needs one of them.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Instant};

use anyhow::{Context as _, ensure};
use cluster::Story;
use k8s_openapi::{
    ByteString,
    api::core::v1::{Pod, Secret},
    kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    core::GroupVersionKind,
};
use operator::kinds::{GATEWAY, OWNED, SECRET};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    time::{Duration, sleep},
};

use super::{
    SOON, cert_manager,
    recorder::Recorder,
    support::{
        admin::{FakePod, load},
        pki,
    },
};

const METRICS: [&str; 2] = ["v1beta1.custom.metrics.k8s.io", "v1beta2.custom.metrics.k8s.io"];

/// With the metrics API, and every API that not all clusters know.
pub(super) async fn with_metrics(story: &Story, log: &Path, recorder: &Recorder) -> anyhow::Result<()> {
    let scaling = json!({"minReplicas": 1, "maxReplicas": 4});
    declare(story, "gw", json!({"upstream": upstream(), "replicas": 2, "scaling": scaling})).await?;
    until_condition(story, log, "gw", "False", "AsDesired").await?;
    for (group, version, kind) in
        [("autoscaling", "v2", "HorizontalPodAutoscaler"), ("monitoring.coreos.com", "v1", "PodMonitor")]
    {
        until(kind, log, async || Ok(object(story, group, version, kind, "gw").await?.is_some())).await?;
    }
    registered_as_it_should_be(story, log).await?;
    marked_and_taken_away(story, log, recorder).await?;
    taken_over_by_cert_manager(story, log).await?;
    made_by_cert_manager(story, log).await?;
    told_again(story, log, recorder).await?;
    not_wanted_any_more(story, log).await?;
    lost_and_found(story, log).await?;
    until("the Lease is renewed", log, async || Ok(recorder.used().contains("update coordination.k8s.io/leases"))).await
}

/// Where it does not serve the metrics any more, and looks after this namespace alone.
pub(super) async fn without_metrics(story: &Story, log: &Path) -> anyhow::Result<()> {
    let services: Api<APIService> = Api::all(story.client.clone());
    for name in METRICS {
        until(name, log, async || Ok(services.get_opt(name).await?.is_none())).await?;
    }
    let autoscaler = async || object(story, "autoscaling", "v2", "HorizontalPodAutoscaler", "gw").await;
    until("its autoscaler goes", log, async || Ok(autoscaler().await?.is_none())).await?;
    scaled_by_itself(story, log).await
}

/// Removes what would keep every namespace from being deleted.
pub(super) async fn unregister(story: &Story) -> anyhow::Result<()> {
    let services: Api<APIService> = Api::all(story.client.clone());
    for name in METRICS {
        match services.delete(name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            answer => drop(answer?),
        }
    }
    Ok(())
}

/// Somebody changes an APIService, and it is put right.
async fn registered_as_it_should_be(story: &Story, log: &Path) -> anyhow::Result<()> {
    let services: Api<APIService> = Api::all(story.client.clone());
    for name in METRICS {
        until(name, log, async || Ok(services.get_opt(name).await?.is_some())).await?;
    }
    let change = json!({"spec": {"groupPriorityMinimum": 99}});
    services.patch(METRICS[0], &PatchParams::default(), &Patch::Merge(change)).await?;
    let priority =
        async || Ok::<_, kube::Error>(services.get(METRICS[0]).await?.spec.map(|spec| spec.group_priority_minimum));
    until("the APIService is put right", log, async || Ok(priority().await? == Some(100))).await
}

/// Fewer pods are wanted: the one that goes is marked before.
async fn marked_and_taken_away(story: &Story, log: &Path, recorder: &Recorder) -> anyhow::Result<()> {
    change(story, json!({"replicas": 1})).await?;
    let deployment = async || object(story, "apps", "v1", "Deployment", "gw").await;
    let one = async || Ok(deployment().await?.is_some_and(|found| found["spec"]["replicas"] == 1));
    until("there is one pod less", log, one).await?;
    ensure!(recorder.used().contains("patch /pods"), "the pod that goes is marked");
    Ok(())
}

/// What is wrong is put right and wrong again: an Event that comes again is written to.
async fn told_again(story: &Story, log: &Path, recorder: &Recorder) -> anyhow::Result<()> {
    for _ in 0..2 {
        change(story, json!({"tls": {"selfSigned": null, "secretName": "missing"}})).await?;
        until_condition(story, log, "gw", "True", "SecretMissing").await?;
        change(story, json!({"tls": {"selfSigned": {}, "secretName": null}})).await?;
        until_condition(story, log, "gw", "False", "AsDesired").await?;
    }
    until("the Event is told again", log, async || Ok(recorder.used().contains("patch events.k8s.io/events"))).await
}

/// The spec does not ask for it any more, and it goes.
async fn not_wanted_any_more(story: &Story, log: &Path) -> anyhow::Result<()> {
    fill(story, "own").await?;
    let local = json!([{"name": "local", "protocol": "MQTTPlain", "address": "127.0.0.1", "port": 1883}]);
    let tls = json!({"selfSigned": null, "secretName": "own"});
    // pods that nobody runs are never replaced, and what they mount stays as long as they do
    change(story, json!({"listeners": local, "scaling": null, "tls": tls, "replicas": 0})).await?;
    for (group, version, kind, name) in [
        ("autoscaling", "v2", "HorizontalPodAutoscaler", "gw"),
        ("", "v1", "Service", "gw"),
        ("", "v1", "Secret", "gw-tls"),
    ] {
        let what = format!("{kind} {name} goes");
        until(&what, log, async || Ok(object(story, group, version, kind, name).await?.is_none())).await?;
    }
    let scaling = json!({"minReplicas": 1, "maxReplicas": 4});
    let tls = json!({"selfSigned": {}, "secretName": null});
    change(story, json!({"listeners": null, "scaling": scaling, "tls": tls, "replicas": 1})).await?;
    until("the Service is made again", log, async || Ok(object(story, "", "v1", "Service", "gw").await?.is_some()))
        .await
}

/// The ProtocolGateway goes and leaves what it owned; another of its name takes it over.
async fn lost_and_found(story: &Story, log: &Path) -> anyhow::Result<()> {
    until_condition(story, log, "gw", "False", "AsDesired").await?;
    let gateways = GATEWAY.api(&story.client, Some(&story.namespace));
    let spec = gateways.get("gw").await?.data["spec"].clone();
    gateways.delete("gw", &DeleteParams::orphan()).await?;
    until("it is gone", log, async || Ok(gateways.get_opt("gw").await?.is_none())).await?;
    declare(story, "gw", spec).await?;
    let uid = gateways.get("gw").await?.uid();
    let secrets = operator::names::secrets("gw").map(|name| (&SECRET, name));
    let owned = OWNED.into_iter().filter(|kind| kind.name != "Certificate").map(|kind| (kind, "gw".to_owned()));
    for (kind, name) in owned.chain(secrets) {
        let api = kind.api(&story.client, Some(&story.namespace));
        let owner = async || {
            Ok::<_, kube::Error>(
                api.get_opt(&name).await?.and_then(|found| Some(found.owner_references().first()?.uid.clone())),
            )
        };
        let what = format!("{} {name} has an owner again", kind.name);
        until(&what, log, async || Ok(owner().await? == uid)).await?;
    }
    until_condition(story, log, "gw", "False", "AsDesired").await
}

/// 200 devices at 50 a pod ask for 4.
async fn scaled_by_itself(story: &Story, log: &Path) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let scaling = json!({"minReplicas": 1, "maxReplicas": 4, "connectionsPerReplica": 50});
    declare(
        story,
        "scaled",
        json!({"upstream": upstream(), "replicas": 1, "admin": {"port": port}, "scaling": scaling}),
    )
    .await?;
    until_condition(story, log, "scaled", "False", "AsDesired").await?;
    let pod = admin_port(story, "scaled", listener).await?;
    pod.say(&load(200));
    let pods: Api<Pod> = Api::namespaced(story.client.clone(), &story.namespace);
    let fleet = ListParams::default().labels(&operator::names::selector_text("scaled"));
    let first = async || Ok::<_, kube::Error>(pods.list(&fleet).await?.items.first().map(ResourceExt::name_any));
    until("there is a pod", log, async || Ok(first().await?.is_some())).await?;
    let status = json!({"status": {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}});
    let name = first().await?.context("it was there")?;
    pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
    let gateways = GATEWAY.api(&story.client, Some(&story.namespace));
    until("it asks for 4", log, async || Ok(gateways.get("scaled").await?.data["spec"]["replicas"] == 4)).await
}

/// An admin port with the certificate that the operator made for it.
async fn admin_port(story: &Story, gateway: &str, listener: TcpListener) -> anyhow::Result<FakePod> {
    let secrets: Api<Secret> = Api::namespaced(story.client.clone(), &story.namespace);
    let data = secrets.get(&operator::names::control(gateway)).await?.data.context("it is filled")?;
    let file = |name: &str| data.get(name).map(|bytes| bytes.0.as_slice()).context("it is filled");
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(file("ca.crt")?) {
        roots.add(certificate?)?;
    }
    let chain = CertificateDer::pem_slice_iter(file("tls.crt")?).collect::<Result<_, _>>()?;
    let config = pki::server(Arc::new(roots), chain, PrivateKeyDer::from_pem_slice(file("tls.key")?)?);
    Ok(FakePod::serve(gateway, listener, (config, String::new())))
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

fn upstream() -> Value {
    json!({"iotHub": {"hostName": "h.azure-devices.net"}})
}

async fn certificate(story: &Story, name: &str) -> anyhow::Result<Option<Value>> {
    object(story, "cert-manager.io", "v1", "Certificate", name).await
}

/// A Secret with a certificate of the user's own; any pair will do.
async fn fill(story: &Story, name: &str) -> anyhow::Result<()> {
    let mut parameters = rcgen::CertificateParams::new([format!("{name}.example")])?;
    parameters.not_after = rcgen::date_time_ymd(2500, 1, 1);
    let key = rcgen::KeyPair::generate()?;
    let files = json!({"tls.crt": parameters.self_signed(&key)?.pem(), "tls.key": key.serialize_pem()});
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
        "type": "kubernetes.io/tls", "stringData": files,
    });
    super::apply(&story.client, &secret, &story.namespace).await
}

/// The Secret's files, once it holds what cert-manager made for the Certificate of its name.
async fn issued(story: &Story, log: &Path, name: &str) -> anyhow::Result<Option<BTreeMap<String, ByteString>>> {
    let secrets: Api<Secret> = Api::namespaced(story.client.clone(), &story.namespace);
    let is_issued = |secret: &Secret| {
        let by = secret.annotations().get("cert-manager.io/certificate-name");
        by.is_some_and(|by| by == name)
    };
    let filled = async || Ok(secrets.get_opt(name).await?.as_ref().is_some_and(is_issued));
    until("cert-manager fills the Secret", log, filled).await?;
    let ready = async || {
        let found = certificate(story, name).await?.and_then(|found| condition(&found, "Ready"));
        Ok(found.is_some_and(|(status, _)| status == "True"))
    };
    until("cert-manager calls the Certificate ready", log, ready).await?;
    Ok(secrets.get(name).await?.data)
}

/// A fleet that had a certificate of the operator's own is to have one of cert-manager's, and then its own again.
async fn taken_over_by_cert_manager(story: &Story, log: &Path) -> anyhow::Result<()> {
    let secrets: Api<Secret> = Api::namespaced(story.client.clone(), &story.namespace);
    let before = secrets.get("gw-tls").await?.data;
    let issuer = json!({"name": "company", "kind": "Issuer"});
    let theirs = json!({"selfSigned": null, "certManager": {"issuerRef": issuer, "dnsNames": ["gw.example"]}});
    change(story, json!({"tls": theirs})).await?;
    until("the Certificate is there", log, async || Ok(certificate(story, "gw-tls").await?.is_some())).await?;
    let asked = certificate(story, "gw-tls").await?.context("it was there")?;
    ensure!(asked["spec"]["secretName"] == "gw-tls" && asked["spec"]["issuerRef"]["name"] == "company", "{asked}");
    ensure!(asked["spec"]["dnsNames"].as_array().is_some_and(|names| names.contains(&json!("gw.example"))), "{asked}");
    ensure!(secrets.get("gw-tls").await?.data == before, "what is served stays until cert-manager has something");

    cert_manager::issuer(story, "company").await?;
    let filled = issued(story, log, "gw-tls").await?;
    ensure!(filled != before, "cert-manager left what the operator had made");
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
    let tls = json!({"certManager": {"issuerRef": {"name": "plant", "kind": "Issuer"}}});
    declare(story, "new", json!({"upstream": upstream(), "replicas": 2, "tls": tls})).await?;
    until_condition(story, log, "new", "True", "CertificatePending").await?;
    let deployment = async || object(story, "apps", "v1", "Deployment", "new").await;
    ensure!(deployment().await?.is_none(), "no pod could start");
    cert_manager::issuer(story, "plant").await?;
    issued(story, log, "new-tls").await?;
    until("pods are made", log, async || Ok(deployment().await?.is_some())).await?;
    until_condition(story, log, "new", "False", "AsDesired").await
}
