//! What a story leaves if it fails, shown by one that does.

use std::{
    collections::BTreeSet,
    fs,
    panic::AssertUnwindSafe,
    path::Path,
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use cluster::{
    Cluster, Story,
    installed::{Installed, NAMESPACE},
    world::World,
};
use futures::FutureExt;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{Api, ResourceExt, api::DeleteParams};
use xtask::process::workspace_root;

const RESTARTED_TIMEOUT: Duration = Duration::from_mins(1);
/// The first thing that each operator says.
const FIRST_WORDS: &str = "stands for election";

/// What the story was about.
struct About {
    namespace: String,
    gateways: BTreeSet<String>,
    operators: BTreeSet<String>,
    restarted: String,
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn a_story_that_fails_leaves_logs_events_and_objects_in_one_directory() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let about: Mutex<Option<About>> = Mutex::default();
    let fails = async |story: &Story| {
        let world = World::begin(story).await?;
        let fleet = world.gateway("gw", "replicas: 2").await?;
        fleet.ready().await?;
        let restarted = restart_an_operator(&world.installed).await?;
        let operators = world.installed.pods().await?.iter().map(ResourceExt::name_any).collect();
        let gateways = fleet.pod_names().await?;
        let namespace = story.namespace.clone();
        about.lock().expect("nobody panics with it").replace(About { namespace, gateways, operators, restarted });
        bail!("this story fails on purpose")
    };
    let told = AssertUnwindSafe(cluster.story("on-purpose", fails)).catch_unwind().await.expect_err("the story fails");
    let told = told.downcast_ref::<String>().expect("it says why");
    assert!(told.contains("this story fails on purpose"), "{told}");
    let about = about.into_inner().expect("nobody panicked with it").expect("the story came to its end");
    check(&about).expect("everything is there");
    let client = cluster.client().await.expect("a client");
    let deleted = Api::<Namespace>::all(client).delete(&about.namespace, &DeleteParams::background()).await;
    deleted.expect("its namespace was left, too");
}

/// So that there is the log of a process that has ended; returns the name of its pod.
async fn restart_an_operator(operators: &Installed) -> anyhow::Result<String> {
    operators.all_ready()?;
    let pod = operators.pods().await?.pop().context("there are operators")?;
    Installed::crash(&pod)?;
    let begun = Instant::now();
    loop {
        let pods = operators.pods().await?;
        let now = pods.iter().find(|each| each.name_any() == pod.name_any()).context("the pod stays")?;
        if restarts(now) > restarts(&pod) && operators.all_ready().is_ok() {
            return Ok(pod.name_any());
        }
        ensure!(begun.elapsed() < RESTARTED_TIMEOUT, "no other process after {RESTARTED_TIMEOUT:?}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

fn restarts(pod: &Pod) -> i32 {
    let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    containers.into_iter().flatten().map(|container| container.restart_count).sum()
}

fn check(about: &About) -> anyhow::Result<()> {
    let directory = workspace_root().join("target/cluster/failed/on-purpose");
    let (story, operator) = (directory.join(&about.namespace), directory.join(NAMESPACE));
    for gateway in &about.gateways {
        holds(&story.join(format!("{gateway}.log")), &[gateway])?;
    }
    for name in &about.operators {
        // from its beginning on
        holds(&operator.join(format!("{name}.log")), &[name, FIRST_WORDS])?;
    }
    holds(&operator.join(format!("{}.previous.log", about.restarted)), &[FIRST_WORDS])?;
    for gateway in &about.gateways {
        holds(&story.join("events.txt"), &[gateway])?;
    }
    holds(&operator.join("events.txt"), &[&about.restarted])?;
    let kinds = ["ConfigMap", "Deployment", "EndpointSlice", "NetworkPolicy", "Pod", "ProtocolGateway", "ReplicaSet"];
    holds(&story.join("objects.yaml"), &kinds.map(|kind| format!("  kind: {kind}\n")))?;
    let kinds = ["ConfigMap", "Deployment", "Lease", "Pod", "PodDisruptionBudget", "Service"];
    holds(&operator.join("objects.yaml"), &kinds.map(|kind| format!("  kind: {kind}\n")))?;
    let names = ["gw-ca", "gw-tls", "gw-control", "hub-ca"].map(|name| format!("Name:         {name}\n"));
    holds(&story.join("secrets.txt"), &names)?;
    let etcd = fs::metadata(directory.join("cluster/etcd.log")).context("the log of a process of the cluster")?;
    ensure!(etcd.is_file());
    no_key(&directory)
}

/// Whether the file has all of these words.
fn holds(file: &Path, words: &[impl AsRef<str>]) -> anyhow::Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("{} is missing", file.display()))?;
    let missing: Vec<&str> = words.iter().map(AsRef::as_ref).filter(|word| !text.contains(word)).collect();
    ensure!(missing.is_empty(), "{} says nothing of {missing:?}", file.display());
    Ok(())
}

/// What is sent to others for help must not hold a key: neither as PEM nor in the Base64 of a Secret.
fn no_key(directory: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            no_key(&path)?;
            continue;
        }
        let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
        for key in ["PRIVATE KEY", "tls.key: LS0t", "ca.key: LS0t"] {
            ensure!(!text.contains(key), "{} holds a key", path.display());
        }
    }
    Ok(())
}
