//! Who dies, and what goes on all the same: an operator, the leader, a pod, the ProtocolGateway itself.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cluster::{Cluster, Story, devices::Group, world::World};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::DeleteParams};

const CONNECTED_TIMEOUT: Duration = Duration::from_mins(1);
/// Pods are replaced one by one, and drained.
const ROLLED_TIMEOUT: Duration = Duration::from_mins(4);
/// The lease's time, its retry, and a busy machine.
const TAKEN_OVER_TIMEOUT: Duration = Duration::from_secs(15 + 2 + 8);
/// The garbage collector goes through everything that is owned; pods drain within their bound.
const COLLECTED_TIMEOUT: Duration = Duration::from_mins(2);

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn the_leader_is_killed_in_a_rollout_and_another_finishes_it_within_the_lease() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let spec = |port: u16| {
            format!(
                "{{replicas: 3, reconnects: {{perSecond: 50, drainTimeout: 30s}}, \
                 listeners: [{{name: mqtts, protocol: MQTT, port: {port}}}]}}"
            )
        };
        let fleet = world.gateway("gw", &spec(8883)).await?;
        fleet.ready().await?;
        let devices = fleet.devices(60, &Group { per_second: 60.0, ..Group::default() }).await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        let before = fleet.pod_names().await?;

        fleet.declare(&spec(8884)).await?;
        let begun = Instant::now();
        while fleet.pod_names().await?.is_subset(&before) {
            ensure!(begun.elapsed() < ROLLED_TIMEOUT, "the rollout does not begin");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let killed = Instant::now();
        let old = world.installed.kill_leader().await?;
        while world.installed.leader().await.map_or(true, |holder| holder == old) {
            ensure!(killed.elapsed() < TAKEN_OVER_TIMEOUT, "nobody takes over after {TAKEN_OVER_TIMEOUT:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        xtask::step::say(&format!("another led {:.1} s after the kill", killed.elapsed().as_secs_f64()));
        // the other one writes: something new is carried out
        let scaled = spec(8884).replace("replicas: 3", "replicas: 4");
        fleet.declare(&scaled).await?;
        while fleet.pod_names().await?.len() != 4 || !fleet.pod_names().await?.is_disjoint(&before) {
            ensure!(killed.elapsed() < ROLLED_TIMEOUT, "the rollout is not finished after {ROLLED_TIMEOUT:?}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        fleet.ready().await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        fleet.none_lost(devices).await?;
        Ok(())
    };
    cluster.story("leader-killed", test).await;
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn a_pod_is_killed_and_its_devices_come_back_with_nothing_lost() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let fleet = world.gateway("gw", "replicas: 2").await?;
        fleet.ready().await?;
        let devices = fleet.devices(100, &Group { per_second: 200.0, ..Group::default() }).await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        let victim = fleet.pod_names().await?.pop_first().context("there are pods")?;
        let api: Api<Pod> = Api::namespaced(story.client.clone(), &story.namespace);
        api.delete(&victim, &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }).await?;
        let lost = |devices: &cluster::devices::Devices| devices.lost() > 0;
        devices.until("the devices of the pod notice", CONNECTED_TIMEOUT, lost).await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        let so_far = devices.total(|second| second.acknowledged);
        let goes_on = |devices: &cluster::devices::Devices| devices.total(|second| second.acknowledged) > so_far + 1000;
        devices.until("messages go on", CONNECTED_TIMEOUT, goes_on).await?;
        fleet.ready().await?;
        ensure!(!fleet.pod_names().await?.contains(&victim), "the pod came back under its name");
        fleet.none_lost(devices).await?;
        Ok(())
    };
    cluster.story("pod-killed", test).await;
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn a_protocol_gateway_is_deleted_and_nothing_of_it_remains() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let spec = "{replicas: 2, reconnects: {perSecond: 100, drainTimeout: 10s}, scaling: {minReplicas: 2, maxReplicas: 4, connectionsPerReplica: 50}}";
        let fleet = world.gateway("gw", spec).await?;
        fleet.ready().await?;
        let devices = fleet.devices(20, &Group::default()).await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        let made = remains(story)?;
        for kind in [
            "configmap",
            "deployment",
            "networkpolicy",
            "pod/",
            "poddisruptionbudget",
            "secret",
            "service/",
            "serviceaccount",
        ] {
            ensure!(made.iter().any(|name| name.starts_with(kind)), "there is no {kind} among {made:#?}");
        }
        fleet.api().delete(&fleet.name, &DeleteParams::background()).await?;
        let begun = Instant::now();
        loop {
            let left = remains(story)?;
            if left.is_empty() {
                break;
            }
            ensure!(begun.elapsed() < COLLECTED_TIMEOUT, "after {COLLECTED_TIMEOUT:?} there are still {left:#?}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        xtask::step::say(&format!("nothing remained after {:.1} s", begun.elapsed().as_secs_f64()));
        drop(devices);
        Ok(())
    };
    cluster.story("deleted", test).await;
}

/// Everything in the namespace that carries the fleet's label, and its endpoints.
fn remains(story: &Story) -> anyhow::Result<Vec<String>> {
    let kinds = "configmaps,deployments.apps,replicasets.apps,pods,secrets,services,serviceaccounts,\
                 horizontalpodautoscalers.autoscaling,poddisruptionbudgets.policy,networkpolicies.networking.k8s.io,\
                 endpointslices.discovery.k8s.io,protocolgateways.protocolgateway.io";
    let selector = "--selector=app.kubernetes.io/instance=gw";
    let output = story.kubectl()?.args(["get", kinds, selector, "--output=name"]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}
