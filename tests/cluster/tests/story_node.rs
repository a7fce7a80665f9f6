//! A node is emptied with `kubectl drain`: its pods' devices are let go within the budget, and it ends in time.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cluster::{
    Cluster, Story,
    devices::{Group, Losses},
    world::World,
};
use kube::ResourceExt as _;
use serde_json::Value;

const CONNECTED_TIMEOUT: Duration = Duration::from_mins(2);
/// As the fleet is declared.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(90);

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn kubectl_drain_empties_a_node_within_the_budget_and_the_timeout() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let fleet = world.gateway("gw", "{replicas: 4, reconnects: {perSecond: 10, drainTimeout: 90s}}").await?;
        fleet.ready().await?;
        let devices = fleet.devices(100, &Group { per_second: 50.0, ..Group::default() }).await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        // the fullest pod's
        let counted = |object: &Value| object["status"]["connections"] == 100;
        let object = fleet.until("all devices are counted", CONNECTED_TIMEOUT, counted).await?;
        let fullest = object["status"]["pods"].as_array().into_iter().flatten();
        let fullest = fullest.max_by_key(|pod| pod["connections"].as_i64()).context("there are pods")?["name"].clone();
        let pods = fleet.pods().await?;
        let pod = pods.iter().find(|pod| fullest == pod.name_any()).context("the fullest pod is there")?;
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).context("the pod is on a node")?;
        let there = pods.iter().filter(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()) == Some(&node));
        let there = there.count();
        ensure!(there >= 2, "of four pods there is only {there} on {node}");
        let begun = Instant::now();
        let drain = story
            .kubectl()?
            .args(["drain", &node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=150s"])
            .spawn()?;
        let drained = tokio::task::spawn_blocking(move || drain.wait_with_output()).await??;
        let uncordoned = story.kubectl()?.args(["uncordon", &node]).output()?;
        ensure!(uncordoned.status.success(), "{}", String::from_utf8_lossy(&uncordoned.stderr));
        ensure!(drained.status.success(), "kubectl drain failed after {:.1} s", begun.elapsed().as_secs_f64());
        let took = begun.elapsed();
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        let (_, outcome) = fleet.finish(devices).await?;
        let losses = Losses::since(begun, &[&outcome]);
        let seconds = took.as_secs_f64();
        xtask::step::say(&format!("{node} with {there} pods drained in {seconds:.1} s; {losses}, of 10 allowed"));
        ensure!(took <= DRAIN_TIMEOUT, "{took:?} is more than the drain timeout");
        ensure!(losses.all >= 40, "only {} devices were on that node", losses.all);
        losses.within(10)?;
        Ok(())
    };
    cluster.story("node-drain", test).await;
}
