//! What moves devices although nobody asked for fewer pods: a rollout under load, a node that is emptied, a leader that dies
//! in the middle of a drain. All of it within the budget.

mod watch;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use cluster::{
    Cluster, Story,
    devices::{Devices, Group, Losses},
    installed::Installed,
    world::World,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::Value;

use self::watch::Watch;

const CONNECTED_TIMEOUT: Duration = Duration::from_mins(2);
/// 200 messages at 40 a second; the Lease of the leader that is dead holds longer.
const SERVES_TIMEOUT: Duration = Duration::from_secs(9);
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
        let took = begun.elapsed().as_secs_f64();
        let (_, outcome) = fleet.finish(devices).await?;
        let losses = Losses::since(begun, &[&outcome]);
        xtask::step::say(&format!("rolled in {took:.1} s; of 150 devices {losses}, of 20 allowed"));
        losses.within(20)?;
        ensure!((150..=165).contains(&losses.all), "{} moves for 150 devices", losses.all);
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
        let (watch, drains) = (Watch::begin(story, "gw"), Instant::now());
        fleet.declare(&spec(1)).await?;
        let begun = |devices: &Devices| devices.lost() >= 10;
        devices.until("devices are let go", CONNECTED_TIMEOUT, begun).await?;
        let epoch = |object: &Value| object["status"]["drains"][0]["epoch"].as_i64();
        let first = epoch(&fleet.object().await?).context("a drain is planned")?;
        Installed::crash(&world.installed.leader_pod().await?)?;
        // nobody orders anything: the pods serve on
        let acknowledged = devices.total(|second| second.acknowledged);
        let serve = |devices: &Devices| devices.total(|second| second.acknowledged) > acknowledged + 200;
        devices.until("messages go on without a leader", SERVES_TIMEOUT, serve).await?;
        ensure!(epoch(&fleet.object().await?) == Some(first), "the next leader was there too soon to show anything");
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
        watch.all_left_empty().await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        let ordered = watch.ordered().await;
        let (_, outcome) = fleet.finish(devices).await?;
        let losses = Losses::since(drains, &[&outcome]);
        xtask::step::say(&format!("{ordered} devices were to be let go; {losses}, of 2 allowed"));
        losses.within(2)?;
        // one that connects while the pod leaves the Service may come to it once more
        ensure!((ordered..=ordered + 5).contains(&losses.all), "{losses}, and {ordered} were to be let go");
        Ok(())
    };
    cluster.story("leader-in-drain", test).await;
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn a_pod_that_is_deleted_in_its_grace_lets_its_devices_go_within_the_budget() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let fleet = world.gateway("gw", "{replicas: 2, reconnects: {perSecond: 5, drainTimeout: 90s}}").await?;
        fleet.ready().await?;
        let devices = fleet.devices(100, &Group { per_second: 50.0, ..Group::default() }).await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        let counted = |object: &Value| object["status"]["connections"] == 100;
        let object = fleet.until("all devices are counted", CONNECTED_TIMEOUT, counted).await?;
        let pods = object["status"]["pods"].as_array().into_iter().flatten();
        let fullest = pods.max_by_key(|pod| pod["connections"].as_u64()).context("there are pods")?;
        let (name, had) = (fullest["name"].as_str().context("it has a name")?, fullest["connections"].as_u64());

        let begun = Instant::now();
        let deleted = story.kubectl()?.args(["delete", "pod", name, "--wait=false"]).output()?;
        ensure!(deleted.status.success(), "{}", String::from_utf8_lossy(&deleted.stderr));
        gone(story, &BTreeSet::from([name.to_owned()])).await?;
        let took = begun.elapsed().as_secs_f64();
        fleet.ready().await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        let (_, outcome) = fleet.finish(devices).await?;
        let losses = Losses::since(begun, &[&outcome]);
        xtask::step::say(&format!("gone after {took:.1} s; of its {had:?} devices {losses}, of 5 allowed"));
        ensure!(losses.all >= 20, "only {} devices moved: nothing is shown by that", losses.all);
        losses.within(5)
    };
    cluster.story("pod-deleted", test).await;
}
