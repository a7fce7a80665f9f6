//! The metrics API behind a real API server, which finds it by a Service of type ExternalName on loopback.

mod support;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use cluster::{Cluster, Story};
use crds::ProtocolGateway;
use k8s_openapi::{
    api::{
        authentication::v1::{TokenRequest, TokenRequestSpec},
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{ConfigMap, Namespace, Secret, Service, ServiceAccount},
        rbac::v1::{ClusterRole, Role, RoleBinding},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use operator::{
    http::Health,
    lease::Leadership,
    metrics::Metrics,
    metrics_api::{self, Inputs, Meter, Reading, Settings},
    names,
    observe::CustomMetrics,
    pods::Fleet,
};
use rcgen::ExtendedKeyUsagePurpose;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use support::{https, pki::Pki};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

/// The API server looks after a second or two at what is new, the garbage collector too; a busy machine takes longer.
const PATIENCE: Duration = Duration::from_mins(1);
const VERSIONS: [&str; 2] = ["v1beta2", "v1beta1"];
const GROUP: &str = "custom.metrics.k8s.io";
const RESOURCE: &str = "protocolgateways.protocolgateway.io";

/// There is one such API in a cluster: the tests of this file take turns.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Runs a test alone, and removes the APIServices after it, whatever came of it: broken ones hold up every other test.
async fn alone(name: &str, test: impl AsyncFnOnce(&Story) -> anyhow::Result<()>) {
    let _turn = TURN.lock().await;
    let cluster = Cluster::api().await.expect("a cluster");
    let client = cluster.client().await.expect("a client");
    let test = async |story: &Story| {
        let result = test(story).await;
        for version in VERSIONS {
            delete(&services(&client), &service_name(version)).await?;
        }
        result
    };
    cluster.story(name, test).await;
}

/// One replica of the operator, as far as metrics go; it ends with this.
struct Replica {
    address: SocketAddr,
    readings: Arc<Mutex<BTreeMap<Fleet, Reading>>>,
    custom_metrics: watch::Receiver<CustomMetrics>,
    metrics: Metrics,
    task: JoinHandle<()>,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Replica {
    async fn start(story: &Story, leads: bool, listens: bool) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let readings: Arc<Mutex<BTreeMap<Fleet, Reading>>> = Arc::default();
        let read = readings.clone();
        let meter: Meter = Arc::new(move |fleet| read.lock().expect("no panic").get(fleet).copied());
        let (tell, custom_metrics) = watch::channel(CustomMetrics::Nobody);
        let metrics = Metrics::new();
        let inputs = Inputs {
            client: story.client.clone(),
            leadership: Leadership::fixed(leads.then_some(1)),
            health: Health::new(),
            metrics: metrics.clone(),
            meter,
            settings: Settings {
                namespace: story.namespace.clone(),
                service: Some("operator".to_owned()),
                service_port: address.port(),
                owner: Some(owner(story)),
            },
            listener: listens.then_some(listener),
        };
        let task = tokio::spawn(metrics_api::run(inputs, tell));
        Ok(Self { address, readings, custom_metrics, metrics, task })
    }

    /// A leader that serves, whose API is available.
    async fn available(story: &Story) -> anyhow::Result<Self> {
        installed(story).await?;
        let replica = Self::start(story, true, true).await?;
        replica.is_available(story).await?;
        Ok(replica)
    }

    async fn is_available(&self, story: &Story) -> anyhow::Result<()> {
        for version in VERSIONS {
            let available = |service: Option<&APIService>| is_available(service);
            let what = format!("{version} is available");
            story.until(services(&story.client), &service_name(version), &what, PATIENCE, available).await?;
        }
        let mut who = self.custom_metrics.clone();
        tokio::time::timeout(PATIENCE, who.wait_for(|who| *who == CustomMetrics::Ours)).await??;
        Ok(())
    }

    fn says(&self, story: &Story, name: &str, reading: Reading) {
        let fleet = Fleet::new(story.namespace.clone(), name);
        self.readings.lock().expect("no panic").insert(fleet, reading);
    }

    /// Asks it past the API server.
    async fn get(&self, story: &Story, path: &str, headers: &[(&str, &str)]) -> anyhow::Result<(u16, Value)> {
        let bundle = bundle(story).await?;
        let name = format!("operator.{}.svc", story.namespace);
        let (status, body, _) = https::get(self.address, &name, &bundle, None, path, headers).await?;
        Ok((status, body))
    }
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn both_versions_are_available_and_answer_what_clients_ask() {
    alone("metrics", async |story| {
        let replica = Replica::available(story).await?;
        let reading = Reading {
            connections: Some(41_500),
            messages_per_second: Some(1.5),
            connects_per_second: Some(0.0),
            ..Reading::default()
        };
        replica.says(story, "a", reading);
        for (version, name) in [("v1beta2", "/items/0/metric/name"), ("v1beta1", "/items/0/metricName")] {
            let list = raw(&story.client, &path(version, &story.namespace, "a", "gateway_connections")).await?;
            ensure!(list["apiVersion"] == json!(format!("{GROUP}/{version}")), "{list}");
            ensure!(list["items"].as_array().map(Vec::len) == Some(1), "{list}");
            ensure!(list.pointer(name) == Some(&json!("gateway_connections")), "{list}");
            ensure!(list["items"][0]["value"] == json!("41500"), "{list}");
            let rate = raw(&story.client, &path(version, &story.namespace, "a", "gateway_messages_per_second")).await?;
            ensure!(rate["items"][0]["value"] == json!("1500m"), "{rate}");
            let resources = story.client.list_api_group_resources(&format!("{GROUP}/{version}")).await?;
            ensure!(resources.resources.len() == 3, "{resources:?}");
            ensure!(resources.resources[0].name == format!("{RESOURCE}/gateway_connections"), "{resources:?}");
        }
        let groups = story.client.list_api_groups().await?;
        let group = groups.groups.iter().find(|group| group.name == GROUP).context("the group is known")?;
        let preferred = group.preferred_version.as_ref().map(|version| version.version.as_str());
        ensure!(preferred == Some("v1beta2"), "{group:?}");
        for (name, metric) in [("b", "gateway_connections"), ("a", "gateway_unknown")] {
            let answer = raw(&story.client, &path("v1beta2", &story.namespace, name, metric)).await;
            ensure!(code(&answer) == Some(404), "{answer:?}");
        }
        // a client of HorizontalPodAutoscalers is kubectl, too: it must find the group by discovery
        let kinds = story.kubectl()?.args(["api-versions"]).output()?;
        let kinds = String::from_utf8_lossy(&kinds.stdout).into_owned();
        ensure!(VERSIONS.iter().all(|version| kinds.contains(&format!("{GROUP}/{version}"))), "{kinds}");
        ensure!(replica.metrics.text().contains("operator_metrics_api_requests_total{code=\"404\"}"));
        Ok(())
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn discovery_is_for_everybody_and_metrics_are_for_those_who_may() {
    alone("access", async |story| {
        let replica = Replica::available(story).await?;
        replica.says(story, "a", Reading { connections: Some(7), ..Reading::default() });
        for (path, status) in [
            ("/apis", 406),
            ("/apis/custom.metrics.k8s.io", 200),
            ("/apis/custom.metrics.k8s.io/v1beta2", 200),
            ("/openapi/v2", 200),
            ("/openapi/v3", 200),
            ("/healthz", 200),
            ("/secrets", 404),
        ] {
            let answer = replica.get(story, path, &[]).await?;
            ensure!(answer.0 == status, "{path}: {answer:?}");
        }
        let path = path("v1beta2", &story.namespace, "a", "gateway_connections");
        let forged = [("x-remote-user", "system:admin"), ("x-remote-group", "system:masters")];
        ensure!(replica.get(story, &path, &[]).await?.0 == 401, "nobody asks");
        ensure!(replica.get(story, &path, &forged).await?.0 == 401, "only the API server speaks for others");
        ensure!(replica.get(story, &path, &[("authorization", "Bearer no.such.token")]).await?.0 == 401);
        let (may, may_not) = (token(story, "may").await?, token(story, "may-not").await?);
        let role = json!({"rules": [{
            "apiGroups": [GROUP], "resources": [format!("{RESOURCE}/gateway_connections")], "resourceNames": ["a"],
            "verbs": ["get"],
        }]});
        apply::<Role>(story, "reader", role).await?;
        apply::<RoleBinding>(
            story,
            "reader",
            json!({
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
                "subjects": [{"kind": "ServiceAccount", "name": "may", "namespace": story.namespace}],
            }),
        )
        .await?;
        let begun = Instant::now();
        // a refusal is remembered for ten seconds
        let allowed = loop {
            let answer = replica.get(story, &path, &[("authorization", &may)]).await?;
            if answer.0 == 200 || begun.elapsed() > PATIENCE {
                break answer;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        ensure!(allowed.0 == 200 && allowed.1["items"][0]["value"] == json!("7"), "{allowed:?}");
        let denied = replica.get(story, &path, &[("authorization", &may_not)]).await?;
        ensure!(denied.0 == 403 && denied.1["reason"] == json!("Forbidden"), "{denied:?}");
        let other = path.replace("/a/", "/b/");
        ensure!(replica.get(story, &other, &[("authorization", &may)]).await?.0 == 403, "only the one that is named");
        let with_selector = format!("{path}?metricLabelSelector=cause%3Dx");
        ensure!(replica.get(story, &with_selector, &[("authorization", &may)]).await?.0 == 400);
        // the API server speaks for one who may not
        let request =
            http_get(&path, &[("impersonate-user", "nobody"), ("impersonate-group", "system:authenticated")])?;
        let answer = story.client.request::<Value>(request).await;
        ensure!(code(&answer) == Some(403), "{answer:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn who_has_a_certificate_of_the_front_proxys_ca_speaks_for_others_as_soon_as_the_ca_is_known() {
    alone("front-proxy", async |story| {
        let replica = Replica::available(story).await?;
        replica.says(story, "a", Reading { connections: Some(7), ..Reading::default() });
        let path = path("v1beta2", &story.namespace, "a", "gateway_connections");
        let (name, bundle) = (format!("operator.{}.svc", story.namespace), bundle(story).await?);
        let another = Pki::new();
        let ask = async |common_name: &str| {
            let pair = another.issue(common_name, &[], ExtendedKeyUsagePurpose::ClientAuth);
            let headers = [("x-remote-user", "jane"), ("x-remote-group", "system:masters")];
            https::get(replica.address, &name, &bundle, Some(pair), &path, &headers).await.map(|(status, ..)| status)
        };
        ensure!(ask("front-proxy-client").await? == 401, "its CA is not known");
        let configs: Api<ConfigMap> = Api::namespaced(story.client.clone(), "kube-system");
        let before = configs.get("extension-apiserver-authentication").await?;
        let key = "requestheader-client-ca-file";
        let was = before.data.as_ref().and_then(|data| data.get(key)).context("it names a CA")?.clone();
        let set = async |pem: &str| {
            let patch = json!({"data": {key: pem}});
            configs.patch("extension-apiserver-authentication", &PatchParams::default(), &Patch::Merge(patch)).await
        };
        set(&format!("{was}{}", another.pem())).await?;
        let begun = Instant::now();
        let mut status = ask("front-proxy-client").await?;
        while status != 200 && begun.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(200)).await;
            status = ask("front-proxy-client").await?;
        }
        let somebody = ask("somebody").await;
        set(&was).await?;
        ensure!(status == 200, "{status}");
        ensure!(somebody? == 401, "its name is not among those allowed");
        raw(&story.client, &path).await.context("the API server is still believed")?;
        Ok(())
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn a_real_autoscaler_follows_the_connections() {
    alone("autoscaler", async |story| {
        let replica = Replica::available(story).await?;
        replica.says(story, "a", Reading { connections: Some(300), ..Reading::default() });
        let definitions: Api<CustomResourceDefinition> = Api::all(story.client.clone());
        let definition = crds::definition();
        let parameters = PatchParams::apply("test").force();
        definitions.patch(&definition.name_any(), &parameters, &Patch::Apply(&definition)).await?;
        let established = kube::runtime::conditions::is_crd_established();
        story.until(definitions, &definition.name_any(), "the API is there", PATIENCE, established).await?;
        let gateways: Api<ProtocolGateway> = Api::namespaced(story.client.clone(), &story.namespace);
        let gateway = json!({
            "apiVersion": crds::API_VERSION, "kind": crds::KIND, "metadata": {"name": "a"},
            "spec": {
                "listeners": [{"name": "mqtts", "protocol": "MQTT", "port": 8883}],
                "authentication": {"sas": {"verify": "Hub"}},
                "upstream": {"iotHub": {"hostName": "contoso.azure-devices.net", "policy": {"name": "device", "secretName": "hub-policy"}}},
                "replicas": 2,
            },
        });
        gateways.create(&PostParams::default(), &serde_json::from_value(gateway)?).await?;
        let status = json!({"status": {"replicas": 2, "selector": "app.kubernetes.io/instance=a"}});
        gateways.patch_status("a", &PatchParams::default(), &Patch::Merge(status)).await?;
        let object = json!({"apiVersion": crds::API_VERSION, "kind": crds::KIND, "name": "a"});
        let autoscaler = json!({"spec": {
            "scaleTargetRef": object, "minReplicas": 2, "maxReplicas": 40,
            "metrics": [{"type": "Object", "object": {
                "describedObject": object, "metric": {"name": "gateway_connections"},
                "target": {"type": "AverageValue", "averageValue": "50"},
            }}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        }});
        apply::<HorizontalPodAutoscaler>(story, "a", autoscaler).await?;
        let begun = Instant::now();
        let asks_for = |replicas| move |gateway: Option<&ProtocolGateway>| gateway.is_some_and(|is| is.spec.replicas == replicas);
        story.until(gateways.clone(), "a", "300 connections at 50 a pod ask for 6", PATIENCE, asks_for(6)).await?;
        println!("the autoscaler asked for 6 pods {:?} after it was made", begun.elapsed());
        let status = json!({"status": {"replicas": 6}});
        gateways.patch_status("a", &PatchParams::default(), &Patch::Merge(status)).await?;
        replica.says(story, "a", Reading { connections: Some(100), ..Reading::default() });
        story.until(gateways, "a", "100 connections ask for 2", PATIENCE, asks_for(2)).await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn an_api_of_somebody_else_is_left_alone_and_taken_when_it_is_free() {
    alone("foreign", async |story| {
        installed(story).await?;
        let foreign = apply_foreign(story, "v1beta1").await?;
        let replica = Replica::start(story, true, true).await?;
        let mut who = replica.custom_metrics.clone();
        tokio::time::timeout(PATIENCE, who.wait_for(|who| *who == CustomMetrics::Foreign)).await??;
        bundle_is_there(story).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let services = services(&story.client);
        ensure!(services.get_opt(&service_name("v1beta2")).await?.is_none(), "ours would be preferred to theirs");
        let still = services.get(&service_name("v1beta1")).await?;
        let managers: Vec<_> = still.managed_fields().iter().filter_map(|each| each.manager.as_deref()).collect();
        ensure!(
            still.spec == foreign.spec && !managers.contains(&names::FIELD_MANAGER),
            "it was touched: {managers:?}"
        );
        services.delete(&service_name("v1beta1"), &DeleteParams::default()).await?;
        replica.is_available(story).await?;
        // somebody takes one of ours over: both go their way
        apply_foreign(story, "v1beta1").await?;
        tokio::time::timeout(PATIENCE, who.wait_for(|who| *who == CustomMetrics::Foreign)).await??;
        let gone = |service: Option<&APIService>| service.is_none();
        story.until(services.clone(), &service_name("v1beta2"), "ours goes", PATIENCE, gone).await?;
        let theirs = services.get(&service_name("v1beta1")).await?;
        let spec = theirs.spec.and_then(|spec| spec.service).and_then(|service| service.name);
        ensure!(spec.as_deref() == Some("adapter"), "{spec:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn namespaces_can_be_deleted_while_it_serves_and_after_it_is_gone() {
    alone("uninstall", async |story| {
        let replica = Replica::available(story).await?;
        namespace_comes_and_goes(story).await.context("while it serves")?;
        drop(replica);
        // what an aborted uninstall leaves: nobody serves, and the role is gone
        let roles: Api<ClusterRole> = Api::all(story.client.clone());
        roles.delete(&owner(story), &DeleteParams::background()).await?;
        for version in VERSIONS {
            let gone = |service: Option<&APIService>| service.is_none();
            story
                .until(services(&story.client), &service_name(version), "it goes with its owner", PATIENCE, gone)
                .await?;
        }
        namespace_comes_and_goes(story).await.context("after it")?;
        Ok(())
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn switched_off_it_removes_its_own() {
    alone("off", async |story| {
        let replica = Replica::available(story).await?;
        drop(replica);
        let _off = Replica::start(story, true, false).await?;
        for version in VERSIONS {
            let gone = |service: Option<&APIService>| service.is_none();
            story.until(services(&story.client), &service_name(version), "it is removed", PATIENCE, gone).await?;
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn every_replica_serves_and_only_the_leader_writes() {
    alone("replicas", async |story| {
        installed(story).await?;
        let follower = Replica::start(story, false, true).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let secrets: Api<Secret> = Api::namespaced(story.client.clone(), &story.namespace);
        ensure!(secrets.get_opt("operator-tls").await?.is_none(), "it wrote");
        ensure!(services(&story.client).get_opt(&service_name("v1beta2")).await?.is_none(), "it wrote");
        let leader = Replica::start(story, true, true).await?;
        leader.is_available(story).await?;
        follower.says(story, "a", Reading { connections: Some(9), ..Reading::default() });
        let mut who = follower.custom_metrics.clone();
        tokio::time::timeout(PATIENCE, who.wait_for(|who| *who == CustomMetrics::Ours)).await??;
        let (status, _) = follower.get(story, "/readyz", &[]).await?;
        ensure!(status == 200, "with the same certificate");
        Ok(())
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn a_lost_certificate_is_made_anew_and_served_without_a_break() {
    alone("renewed", async |story| {
        let replica = Replica::available(story).await?;
        replica.says(story, "a", Reading { connections: Some(9), ..Reading::default() });
        let name = format!("operator.{}.svc", story.namespace);
        let bundle = bundle(story).await?;
        let served = async || {
            let (_, _, leaf) = https::get(replica.address, &name, &bundle, None, "/healthz", &[]).await?;
            anyhow::Ok(leaf)
        };
        let before = served().await?;
        let secrets: Api<Secret> = Api::namespaced(story.client.clone(), &story.namespace);
        secrets.delete("operator-tls", &DeleteParams::default()).await?;
        let path = path("v1beta2", &story.namespace, "a", "gateway_connections");
        let begun = Instant::now();
        while served().await? == before {
            raw(&story.client, &path).await.context("it serves meanwhile")?;
            ensure!(begun.elapsed() < PATIENCE, "no new certificate");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        raw(&story.client, &path).await.context("it serves the new one")?;
        Ok(())
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn a_lost_ca_is_made_anew_and_the_api_server_trusts_the_new_one() {
    alone("new-ca", async |story| {
        let replica = Replica::available(story).await?;
        replica.says(story, "a", Reading { connections: Some(9), ..Reading::default() });
        let trusted = async || {
            let service = services(&story.client).get(&service_name("v1beta2")).await?;
            anyhow::Ok(service.spec.and_then(|spec| spec.ca_bundle).context("it says whom to trust")?.0)
        };
        let before = trusted().await?;
        ensure!(before == bundle(story).await?);
        let secrets: Api<Secret> = Api::namespaced(story.client.clone(), &story.namespace);
        secrets.delete("operator-ca", &DeleteParams::default()).await?;
        let path = path("v1beta2", &story.namespace, "a", "gateway_connections");
        let begun = Instant::now();
        // nobody can overlap with a CA that is gone: until the new one is known there may be a break
        while trusted().await? == before || raw(&story.client, &path).await.is_err() {
            ensure!(begun.elapsed() < PATIENCE, "no new CA, or it is not trusted");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        ensure!(trusted().await? == bundle(story).await?);
        replica.is_available(story).await
    })
    .await;
}

/// What Helm installs: the Service and the role that owns.
async fn installed(story: &Story) -> anyhow::Result<()> {
    apply::<Service>(story, "operator", json!({"spec": {"type": "ExternalName", "externalName": "127.0.0.1"}})).await?;
    let roles: Api<ClusterRole> = Api::all(story.client.clone());
    let role = ClusterRole {
        metadata: kube::api::ObjectMeta { name: Some(owner(story)), ..Default::default() },
        ..Default::default()
    };
    roles.create(&PostParams::default(), &role).await?;
    Ok(())
}

fn owner(story: &Story) -> String {
    format!("operator-{}", story.namespace)
}

fn services(client: &Client) -> Api<APIService> {
    Api::all(client.clone())
}

fn service_name(version: &str) -> String {
    format!("{version}.{GROUP}")
}

fn is_available(service: Option<&APIService>) -> bool {
    let conditions = service.and_then(|service| service.status.as_ref()?.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Available" && condition.status == "True")
}

/// As an adapter's chart makes it.
async fn apply_foreign(story: &Story, version: &str) -> anyhow::Result<APIService> {
    let service = json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": service_name(version)},
        "spec": {
            "group": GROUP, "version": version, "groupPriorityMinimum": 100, "versionPriority": 100,
            "insecureSkipTLSVerify": true, "caBundle": null,
            "service": {"namespace": story.namespace, "name": "adapter", "port": 443},
        },
    });
    let name = service_name(version);
    let services = services(&story.client);
    if services.get_opt(&name).await?.is_some() {
        return Ok(services.patch(&name, &PatchParams::default(), &Patch::Merge(service)).await?);
    }
    Ok(services.create(&PostParams::default(), &serde_json::from_value(service)?).await?)
}

async fn namespace_comes_and_goes(story: &Story) -> anyhow::Result<()> {
    let namespaces: Api<Namespace> = Api::all(story.client.clone());
    let name = format!("{}-passing", story.namespace);
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    namespaces.create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
    namespaces.delete(&name, &DeleteParams::default()).await?;
    let gone = |namespace: Option<&Namespace>| namespace.is_none();
    story.until(namespaces, &name, "the namespace is gone", PATIENCE, gone).await
}

async fn delete<K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug>(
    api: &Api<K>,
    name: &str,
) -> anyhow::Result<()> {
    match api.delete(name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        result => Ok(result.map(drop)?),
    }
}

async fn apply<K>(story: &Story, name: &str, mut object: Value) -> anyhow::Result<K>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + serde::Serialize
        + std::fmt::Debug,
{
    object["apiVersion"] = json!(K::api_version(&()));
    object["kind"] = json!(K::kind(&()));
    object["metadata"] = json!({"name": name});
    let api: Api<K> = Api::namespaced(story.client.clone(), &story.namespace);
    Ok(api.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(object)).await?)
}

/// `Bearer …` of a new service account.
async fn token(story: &Story, name: &str) -> anyhow::Result<String> {
    apply::<ServiceAccount>(story, name, json!({})).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(story.client.clone(), &story.namespace);
    let request = TokenRequest { spec: TokenRequestSpec::default(), ..TokenRequest::default() };
    let answer = accounts.create_token_request(name, &PostParams::default(), &request).await?;
    Ok(format!("Bearer {}", answer.status.context("it has a status")?.token))
}

async fn bundle(story: &Story) -> anyhow::Result<Vec<u8>> {
    let secrets: Api<Secret> = Api::namespaced(story.client.clone(), &story.namespace);
    let secret = secrets.get("operator-tls").await?;
    Ok(secret.data.and_then(|data| data.get("ca.crt").cloned()).context("it says whom to trust")?.0)
}

async fn bundle_is_there(story: &Story) -> anyhow::Result<()> {
    let begun = Instant::now();
    while bundle(story).await.is_err() {
        if begun.elapsed() > PATIENCE {
            bail!("no certificate was made");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

fn path(version: &str, namespace: &str, name: &str, metric: &str) -> String {
    format!("/apis/{GROUP}/{version}/namespaces/{namespace}/{RESOURCE}/{name}/{metric}")
}

fn http_get(path: &str, headers: &[(&str, &str)]) -> anyhow::Result<hyper::Request<Vec<u8>>> {
    let mut request = hyper::Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Ok(request.body(Vec::new())?)
}

/// Through the API server.
async fn raw(client: &Client, path: &str) -> kube::Result<Value> {
    client.request(http_get(path, &[]).expect("a request")).await
}

fn code<T>(answer: &kube::Result<T>) -> Option<u16> {
    match answer {
        Err(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}
