//! What moves devices although nobody asked for fewer pods: a rollout under load, a node that is emptied, a leader that dies
//! in the middle of a drain. All of it within the budget.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use cluster::{
    Cluster, Story,
    devices::{Devices, Group},
    world::World,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::Value;

const CONNECTED_TIMEOUT: Duration = Duration::from_mins(2);
const DRAINED_TIMEOUT: Duration = Duration::from_mins(5);

/// Waits until none of these pods is left, not even one that ends.
async fn gone(story: &Story, names: &BTreeSet<String>) -> anyhow::Result<()> {
    let api: Api<Pod> = Api::namespaced(story.client.clone(), &story.namespace);
    let begun = Instant::now();
    loop {
        let there: BTreeSet<String> =
            api.list(&ListParams::default()).await?.iter().map(ResourceExt::name_any).collect();
        if there.is_disjoint(names) {
            return Ok(());
        }
        ensure!(begun.elapsed() < DRAINED_TIMEOUT, "after {DRAINED_TIMEOUT:?} there are still {there:?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn a_rolling_update_under_load_moves_every_device_once_within_the_budget() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let spec = |label: &str| {
            format!(
                "{{replicas: 3, reconnects: {{perSecond: 20, drainTimeout: 2m}}, pod: {{labels: {{release: \"{label}\"}}}}}}"
            )
        };
        let fleet = world.gateway("gw", &spec("one")).await?;
        fleet.ready().await?;
        let devices = fleet.devices(150, &Group { per_second: 150.0, ..Group::default() }).await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        let before = fleet.pod_names().await?;
        fleet.declare(&spec("two")).await?;
        let begun = Instant::now();
        tokio::time::sleep(Duration::from_secs(2)).await;
        gone(story, &before).await?;
        fleet.ready().await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        let (rate, moved) = (devices.highest_rate(), devices.lost());
        xtask::step::say(&format!(
            "rolled in {:.1} s; {moved} moves of 150 devices, at most {rate} in a second of 20 allowed",
            begun.elapsed().as_secs_f64()
        ));
        ensure!(rate <= 20, "{rate} devices were disconnected in a second");
        ensure!((150..=165).contains(&moved), "{moved} moves for 150 devices");
        fleet.none_lost(devices).await?;
        Ok(())
    };
    cluster.story("rolling-update", test).await;
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn a_leader_is_killed_in_the_middle_of_a_drain_and_the_next_one_goes_on() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let spec = |replicas: u32| format!("{{replicas: {replicas}, reconnects: {{perSecond: 2, drainTimeout: 4m}}}}");
        let fleet = world.gateway("gw", &spec(2)).await?;
        fleet.ready().await?;
        let before = fleet.pod_names().await?;
        let devices = fleet.devices(160, &Group { per_second: 40.0, ..Group::default() }).await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        fleet.declare(&spec(1)).await?;
        let begun = |devices: &Devices| devices.lost() >= 10;
        devices.until("devices are let go", CONNECTED_TIMEOUT, begun).await?;
        let epoch = |object: &Value| object["status"]["drains"][0]["epoch"].as_i64();
        let first = epoch(&fleet.object().await?).context("a drain is planned")?;
        world.installed.kill_leader().await?;
        fleet
            .until("the next leader goes on", CONNECTED_TIMEOUT, |object| {
                epoch(object).is_some_and(|next| next > first)
            })
            .await?;
        let left: BTreeSet<String> = {
            let object =
                fleet.until("one pod is left", DRAINED_TIMEOUT, |object| object["status"]["replicas"] == 1).await?;
            object["status"]["pods"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|pod| pod["name"].as_str().map(str::to_owned))
                .collect()
        };
        ensure!(!left.is_disjoint(&before), "none of the pods of before is left: {left:?}");
        let rate = devices.highest_rate();
        ensure!(rate <= 2, "{rate} devices were disconnected in a second of 2 allowed");
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        fleet.none_lost(devices).await?;
        Ok(())
    };
    cluster.story("leader-in-drain", test).await;
}
