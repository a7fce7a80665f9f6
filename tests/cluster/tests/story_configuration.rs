//! What running pods follow, and what they are replaced for.

use std::time::Duration;

use anyhow::{Context, ensure};
use cluster::{
    Cluster, Story,
    devices::Group,
    world::{Fleet, World},
};

const CONNECTED_TIMEOUT: Duration = Duration::from_mins(1);
/// The kubelet writes a changed ConfigMap within some seconds, and the gateway looks every few.
const FOLLOWED_TIMEOUT: Duration = Duration::from_mins(1);
/// Pods are replaced one by one, and drained.
const ROLLED_TIMEOUT: Duration = Duration::from_mins(3);

/// One message of more bytes than the first limit allows: answered only by a gateway that follows the second.
async fn big_message_passes(fleet: &Fleet<'_>) -> anyhow::Result<bool> {
    let group = Group { per_second: 5.0, payload_bytes: 8000, ..Group::default() };
    let devices = fleet.devices(1, &group).await?;
    let acknowledged = |devices: &cluster::devices::Devices| devices.total(|second| second.acknowledged) > 0;
    let passes = devices.until("a message is acknowledged", Duration::from_secs(4), acknowledged).await.is_ok();
    drop(devices);
    Ok(passes)
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn a_limit_is_followed_without_a_restart_and_a_new_listener_rolls_the_pods() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let reconnects = "reconnects: {perSecond: 100, drainTimeout: 30s}";
        let fleet =
            world.gateway("gw", &format!("{{replicas: 2, limits: {{messageBytesMax: 4KiB}}, {reconnects}}}")).await?;
        fleet.ready().await?;
        let devices = fleet.devices(50, &Group { per_second: 50.0, ..Group::default() }).await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        ensure!(devices.lost() == 0, "a device was disconnected while it came");
        let before = fleet.pod_names().await?;
        ensure!(!big_message_passes(&fleet).await?, "the first limit is not in force");

        ensure!(devices.lost() == 0, "a device was disconnected by another's message");

        fleet.declare(&format!("{{replicas: 2, limits: {{messageBytesMax: 16KiB}}, {reconnects}}}")).await?;
        let begun = std::time::Instant::now();
        // devices come to either pod: all of some in a row must pass
        let mut in_a_row = 0;
        while in_a_row < 4 {
            ensure!(begun.elapsed() < FOLLOWED_TIMEOUT, "the new limit is not followed after {FOLLOWED_TIMEOUT:?}");
            in_a_row = if big_message_passes(&fleet).await? { in_a_row + 1 } else { 0 };
        }
        xtask::step::say(&format!("the new limit was in force within {:.1} s", begun.elapsed().as_secs_f64()));
        ensure!(fleet.pod_names().await? == before, "pods were replaced for a limit");
        ensure!(devices.lost() == 0, "a device was disconnected by the change");

        let listeners =
            "listeners: [{name: mqtts, protocol: MQTT, port: 8883}, {name: wss, protocol: MQTTWebSocket, port: 8443}]";
        let wanted = format!("{{replicas: 2, limits: {{messageBytesMax: 16KiB}}, {reconnects}, {listeners}}}");
        fleet.declare(&wanted).await?;
        let rolled = begun.elapsed() + ROLLED_TIMEOUT;
        while !fleet.pod_names().await?.is_disjoint(&before) || fleet.pods().await?.len() != 2 {
            ensure!(begun.elapsed() < rolled, "the pods are not replaced after {ROLLED_TIMEOUT:?}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        fleet.ready().await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        fleet.target("wss").await.context("the new listener")?;
        fleet.none_lost(devices).await?;
        Ok(())
    };
    cluster.story("configuration", test).await;
}
