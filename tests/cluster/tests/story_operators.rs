//! Operators die as processes do, without a word: another leads in time, and what was begun is brought to its end.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use cluster::{
    Cluster, Story,
    devices::{Devices, Group, Losses},
    installed::Installed,
    world::{Fleet, World},
};
use kube::ResourceExt;
use serde_json::Value;

const CONNECTED_TIMEOUT: Duration = Duration::from_mins(1);
/// From another one leading until it has looked at everything and written; and what a busy machine takes.
const WRITES_WITHIN: Duration = Duration::from_secs(5);
/// Pods are replaced one by one, and drained.
const ROLLED_TIMEOUT: Duration = Duration::from_mins(5);
/// Disconnects in a second that the user allows while the pods are replaced.
const BUDGET: u64 = 20;

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn the_leader_is_killed_and_another_writes_within_the_lease() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let operators = &world.installed;
        operators.all_ready()?;
        let fleet = world.gateway("gw", "{replicas: 1, limits: {messageBytesMax: 4KiB}}").await?;
        fleet.ready().await?;
        let (leader, before) = (operators.leader_pod().await?.name_any(), operators.lease().await?);
        let seconds = before.lease_duration_seconds.context("the lease says how long it is held")?;
        let limit = Duration::from_secs(seconds.unsigned_abs().into()) + WRITES_WITHIN;

        Installed::crash(&operators.leader_pod().await?)?;
        let killed = Instant::now();
        fleet.declare("{replicas: 1, limits: {messageBytesMax: 8KiB}}").await?;
        let written = |object: &Value| object["status"]["observedGeneration"] == object["metadata"]["generation"];
        fleet.until("another has written", limit, written).await?;
        xtask::step::say(&format!("another wrote {:.1} s after the kill", killed.elapsed().as_secs_f64()));

        let after = operators.lease().await?;
        ensure!(operators.leader_pod().await?.name_any() != leader, "the one that was killed leads again");
        ensure!(after.lease_transitions == before.lease_transitions.map(|count| count + 1), "{before:?} {after:?}");
        fleet.ready().await?;
        operators.all_ready()
    };
    cluster.story("leader-killed", test).await;
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn all_operators_are_killed_in_the_middle_of_a_rollout_and_it_ends_within_the_budget() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let operators = &world.installed;
        operators.all_ready()?;
        let spec = |release: &str| {
            format!(
                "{{replicas: 3, reconnects: {{perSecond: {BUDGET}, drainTimeout: 90s}}, \
                 pod: {{labels: {{release: {release}}}}}}}"
            )
        };
        let fleet = world.gateway("gw", &spec("one")).await?;
        fleet.ready().await?;
        let devices = fleet.devices(120, &Group { per_second: 120.0, ..Group::default() }).await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        let before = fleet.pod_names().await?;
        let leader = operators.leader().await?;

        fleet.declare(&spec("two")).await?;
        let begun = Instant::now();
        rolled(&fleet, "an old pod is told to end", |pods| !before.is_subset(pods)).await?;
        ensure!(!fleet.pod_names().await?.is_disjoint(&before), "this is the end and not the middle");
        for pod in operators.pods().await? {
            Installed::crash(&pod)?;
        }
        let (killed, moved_before) = (Instant::now(), devices.lost());
        while operators.leader().await.map_or(true, |holder| holder == leader) {
            ensure!(killed.elapsed() < ROLLED_TIMEOUT, "nobody leads after {ROLLED_TIMEOUT:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let (leaderless, moved) = (killed.elapsed().as_secs_f64(), devices.lost() - moved_before);
        // by orders whose lease still ran; by itself a pod goes only when none of another's can
        xtask::step::say(&format!("for {leaderless:.1} s nobody led, and {moved} devices moved"));

        rolled(&fleet, "all pods are new", |pods| pods.is_disjoint(&before) && pods.len() == 3).await?;
        fleet.ready().await?;
        settled(&devices).await?;
        let took = begun.elapsed().as_secs_f64();
        let (_, outcome) = fleet.finish(devices).await?;
        let losses = Losses::since(begun, &[&outcome]);
        xtask::step::say(&format!("rolled in {took:.1} s; of 120 devices {losses}, of {BUDGET} allowed"));
        losses.within(BUDGET)?;
        operators.all_ready()
    };
    cluster.story("operators-killed", test).await;
}

/// Waits until it `holds` for the names of the pods that are to stay.
async fn rolled(fleet: &Fleet<'_>, what: &str, holds: impl Fn(&BTreeSet<String>) -> bool) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !holds(&fleet.pod_names().await?) {
        ensure!(begun.elapsed() < ROLLED_TIMEOUT, "{what}: not after {ROLLED_TIMEOUT:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Waits until pods that end have let go of the last device: all are connected, and for some seconds nobody moves.
async fn settled(devices: &Devices) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let moved = devices.lost();
        tokio::time::sleep(Duration::from_secs(5)).await;
        if devices.lost() == moved && devices.connected() == devices.count {
            return Ok(());
        }
        ensure!(begun.elapsed() < ROLLED_TIMEOUT, "devices are moved even after {ROLLED_TIMEOUT:?}");
    }
}
