//! The level `cluster` does what the stories rely on.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, ensure};
use cluster::{Cluster, Image, Story, programs};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Service},
};
use kube::{
    Api,
    api::{LogParams, Patch, PatchParams},
};
use serde_json::json;

const IMAGE: &str = "protocolgateway.io/hello:test";
const READY_TIMEOUT: Duration = Duration::from_secs(90);

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn pods_run_confined_on_both_nodes_and_answer_at_a_node_port() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let image = Image::of_program(IMAGE, &programs::HELLO.path().expect("built")).expect("an image");
    cluster.import(&image).expect("imported");
    let test = async |story: &Story| {
        deploy(story).await?;
        let port = expose(story).await?;
        for node in &story.cluster.nodes {
            let answer = get(node.address, port, "/?resolve=kubernetes.default.svc.cluster.local").await?;
            ensure!(answer.contains("user=65532\nwritable=false\n"), "{answer}");
            ensure!(answer.contains("resolved=[10.96.0.1] error=<nil>"), "{answer}");
        }
        let mut hosts = std::collections::BTreeSet::new();
        for _attempt in 0..50 {
            let answer = get(story.cluster.nodes[0].address, port, "/").await?;
            hosts.extend(answer.lines().find(|line| line.starts_with("host=")).map(str::to_owned));
        }
        ensure!(hosts.len() == 2, "both pods answer behind one port: {hosts:?}");
        Ok(())
    };
    cluster.story("hello", test).await;
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn a_program_with_shared_libraries_runs_from_an_image_without_a_base() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let image = Image::of_program("protocolgateway.io/echo:test", "/bin/echo".as_ref()).expect("an image");
    assert!(image.files.len() > 1, "echo has shared libraries: {:?}", image.files);
    cluster.import(&image).expect("imported");
    let test = async |story: &Story| {
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "echo"},
            "spec": {"restartPolicy": "Never", "containers": [{
                "name": "echo", "image": image.name, "imagePullPolicy": "Never", "args": ["it runs"],
            }]},
        });
        let pods: Api<Pod> = Api::namespaced(story.client.clone(), &story.namespace);
        pods.patch("echo", &PatchParams::apply("test"), &Patch::Apply(pod)).await?;
        let ended = |pod: Option<&Pod>| {
            let phase = pod.and_then(|pod| pod.status.as_ref()).and_then(|status| status.phase.as_deref());
            matches!(phase, Some("Succeeded" | "Failed"))
        };
        story.until(pods.clone(), "echo", "the pod ends", READY_TIMEOUT, ended).await?;
        // through the kubelet: the API server trusts its certificate
        ensure!(pods.logs("echo", &LogParams::default()).await? == "it runs\n");
        Ok(())
    };
    cluster.story("echo", test).await;
}

/// Two pods, one on each node, confined as the gateway's are.
async fn deploy(story: &Story) -> anyhow::Result<()> {
    let labels = json!({"app": "hello"});
    let confined = json!({
        "runAsNonRoot": true, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    });
    let container = json!({
        "name": "hello", "image": IMAGE, "imagePullPolicy": "Never", "securityContext": confined,
        "ports": [{"containerPort": 8080}], "readinessProbe": {"httpGet": {"port": 8080, "path": "/"}, "periodSeconds": 1},
    });
    let spread = json!({
        "topologyKey": "kubernetes.io/hostname", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": labels},
    });
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "hello"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [container], "topologySpreadConstraints": [spread], "terminationGracePeriodSeconds": 1},
            },
        },
    });
    let deployments: Api<Deployment> = Api::namespaced(story.client.clone(), &story.namespace);
    deployments.patch("hello", &PatchParams::apply("test"), &Patch::Apply(deployment)).await?;
    let ready = |deployment: Option<&Deployment>| {
        deployment.and_then(|each| each.status.as_ref()).and_then(|status| status.ready_replicas) == Some(2)
    };
    story.until(deployments, "hello", "both pods are ready", READY_TIMEOUT, ready).await
}

/// The node port of a new Service.
async fn expose(story: &Story) -> anyhow::Result<u16> {
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "hello"},
        "spec": {"type": "NodePort", "selector": {"app": "hello"}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    let services: Api<Service> = Api::namespaced(story.client.clone(), &story.namespace);
    let made = services.patch("hello", &PatchParams::apply("test"), &Patch::Apply(service)).await?;
    let ports = made.spec.and_then(|spec| spec.ports).unwrap_or_default();
    let port = ports.first().and_then(|port| port.node_port).context("the Service has a node port")?;
    Ok(u16::try_from(port)?)
}

/// What a node port answers; kube-proxy may learn of it a moment after us.
async fn get(address: Ipv4Addr, port: u16, path: &'static str) -> anyhow::Result<String> {
    let once = move || -> anyhow::Result<String> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, port)), Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: hello\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let begun = std::time::Instant::now();
    loop {
        match tokio::task::spawn_blocking(once).await? {
            Ok(answer) => return Ok(answer),
            Err(error) if begun.elapsed() > READY_TIMEOUT => return Err(error.context("the node port does not answer")),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}
