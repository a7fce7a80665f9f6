//! The operator as the fleet's autoscaler, on a real API server: pods that the real controllers made, whose admin port is a
//! fake one on loopback that the operator asks with the certificates it made.

mod support;

use std::{sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use cluster::{Cluster, Story};
use crds::ProtocolGateway;
use k8s_openapi::{
    api::core::v1::{Pod, Secret},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use operator::{
    controller::{self, Inputs, Meters},
    desired::Installation,
    http::Health,
    lease::Leadership,
    metrics::Metrics,
    observe::CustomMetrics,
    pods::{Counters, Pods},
    shutdown,
};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::json;
use support::{
    admin::{FakePod, load},
    pki,
};
use tokio::{net::TcpListener, sync::watch};

/// Everything here takes a second or two; a busy machine takes longer.
const PATIENCE: Duration = Duration::from_mins(1);

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn where_the_metrics_api_is_somebody_elses_the_operator_scales_by_the_connections_itself() {
    let cluster = Cluster::api().await.expect("a cluster");
    cluster
        .story("scale", async |story: &Story| {
            define(story).await?;
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let (trigger, shutdown) = shutdown::channel();
            let (custom_metrics, known) = watch::channel(CustomMetrics::Foreign);
            let operator = tokio::spawn(controller::run(inputs(story, known), shutdown));
            let gateways: Api<ProtocolGateway> = Api::namespaced(story.client.clone(), &story.namespace);
            let spec = json!({
                "upstream": {"iotHub": {"hostName": "hub.azure-devices.net"}},
                "replicas": 1,
                "admin": {"port": listener.local_addr()?.port()},
                "scaling": {"minReplicas": 1, "maxReplicas": 10, "connectionsPerReplica": 50},
            });
            let gateway = json!({
                "apiVersion": crds::API_VERSION, "kind": crds::KIND, "metadata": {"name": "gw"}, "spec": spec,
            });
            let user = PatchParams::apply("user").force();
            let declared = gateways.patch("gw", &user, &Patch::Apply(gateway)).await?;
            let pod = admin_port(story, listener).await?;
            pod.say(&load(200));
            runs(story).await?;
            let connected = |gateway: Option<&ProtocolGateway>| {
                gateway.and_then(|gateway| gateway.status.as_ref()?.connections) == Some(200)
            };
            story.until(gateways.clone(), "gw", "the operator asks the pod", PATIENCE, connected).await?;
            let four = |gateway: Option<&ProtocolGateway>| gateway.is_some_and(|gateway| gateway.spec.replicas == 4);
            story.until(gateways.clone(), "gw", "200 connections at 50 a pod ask for 4", PATIENCE, four).await?;
            ensure!(pod.connections() == 1, "over one connection");

            // whoever decided on what is not so any more does not write
            let version = declared.resource_version();
            let late = json!({"metadata": {"resourceVersion": version}, "spec": {"replicas": 9}});
            let late = gateways.patch_scale("gw", &PatchParams::default(), &Patch::Merge(late)).await;
            ensure!(matches!(&late, Err(kube::Error::Api(status)) if status.code == 409), "{late:?}");

            // this operator's own API again: an autoscaler of Kubernetes' takes over, and the number stays
            custom_metrics.send_replace(CustomMetrics::Ours);
            let autoscalers = Api::namespaced(story.client.clone(), &story.namespace);
            let made = |found: Option<&k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler>| found.is_some();
            story.until(autoscalers, "gw", "there is an autoscaler", PATIENCE, made).await?;
            pod.say(&load(500));
            tokio::time::sleep(Duration::from_secs(3)).await;
            let replicas = gateways.get("gw").await?.spec.replicas;
            ensure!(replicas == 4, "two autoscalers: {replicas}");
            trigger.request();
            tokio::time::timeout(PATIENCE, operator).await??;
            Ok(())
        })
        .await;
}

async fn define(story: &Story) -> anyhow::Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(story.client.clone());
    let definition = crds::definition();
    let parameters = PatchParams::apply("test").force();
    definitions.patch(&definition.name_any(), &parameters, &Patch::Apply(&definition)).await?;
    let established = kube::runtime::conditions::is_crd_established();
    story.until(definitions, &definition.name_any(), "the API is there", PATIENCE, established).await
}

fn inputs(story: &Story, custom_metrics: watch::Receiver<CustomMetrics>) -> Inputs {
    let metrics = Metrics::new();
    Inputs {
        client: story.client.clone(),
        installation: Installation { gateway_image: "registry.example/gateway:1.0.0".to_owned(), lease_seconds: 15 },
        namespaces: vec![story.namespace.clone()],
        pod_name: Some("operator-0".to_owned()),
        leadership: Leadership::fixed(Some(1)),
        pods: Pods::new(Counters::new(&metrics)),
        meters: Meters::default(),
        custom_metrics,
        metrics,
        health: Health::new(),
    }
}

/// An admin port with the certificate that the operator made for it.
async fn admin_port(story: &Story, listener: TcpListener) -> anyhow::Result<FakePod> {
    let secrets: Api<Secret> = Api::namespaced(story.client.clone(), &story.namespace);
    let filled = |secret: Option<&Secret>| file(secret, "tls.crt").is_some() && file(secret, "ca.crt").is_some();
    story.until(secrets.clone(), "gw-control", "the admin port has a certificate", PATIENCE, filled).await?;
    let secret = secrets.get("gw-control").await?;
    let file = |name| file(Some(&secret), name).context("it is filled");
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(file("ca.crt")?) {
        roots.add(certificate?)?;
    }
    let chain = CertificateDer::pem_slice_iter(file("tls.crt")?).collect::<Result<_, _>>()?;
    let config = pki::server(Arc::new(roots), chain, PrivateKeyDer::from_pem_slice(file("tls.key")?)?);
    Ok(FakePod::serve("gw", listener, (config, String::new())))
}

fn file<'a>(secret: Option<&'a Secret>, name: &str) -> Option<&'a [u8]> {
    Some(&secret?.data.as_ref()?.get(name)?.0)
}

/// Says of the fleet's first pod what a kubelet would, were there one.
async fn runs(story: &Story) -> anyhow::Result<()> {
    let pods: Api<Pod> = Api::namespaced(story.client.clone(), &story.namespace);
    let fleet = ListParams::default().labels("app.kubernetes.io/instance=gw");
    let begun = std::time::Instant::now();
    let name = loop {
        if let Some(pod) = pods.list(&fleet).await?.items.first() {
            break pod.name_any();
        }
        ensure!(begun.elapsed() < PATIENCE, "the Deployment makes no pod");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let status = json!({"status": {
        "phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }});
    pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}
