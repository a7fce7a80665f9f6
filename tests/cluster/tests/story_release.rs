//! The life of a release: the chart is upgraded, uninstalled and installed again; what users have stays, and serves.

use std::time::Duration;

use anyhow::{Context, ensure};
use cluster::{
    Cluster, Story,
    devices::Group,
    installed::{self, ANOTHER_FIELD, RELEASE},
    world::World,
};
use xtask::process::run_quietly;

const TIMEOUT: Duration = Duration::from_mins(1);

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn a_chart_with_a_changed_definition_upgrades_and_uninstalled_it_leaves_what_users_have() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let fleet = world.gateway("gw", "replicas: 2").await?;
        let before = fleet.ready().await?;
        let devices = fleet.devices(20, &Group { per_second: 20.0, ..Group::default() }).await?;
        devices.all_connected(TIMEOUT).await?;
        let pods = fleet.pod_names().await?;

        let changed = installed::chart_with_another_field()?;
        world.installed.upgrade(changed.as_ref(), &[])?;
        let explained = story.kubectl()?.args(["explain", "pgw.spec.anotherField"]).output()?;
        ensure!(String::from_utf8_lossy(&explained.stdout).contains(ANOTHER_FIELD), "{explained:?}");
        fleet.ready().await?;

        world.installed.uninstall()?;
        let after = fleet.object().await?;
        ensure!(after["metadata"]["uid"] == before["metadata"]["uid"], "the ProtocolGateway was made anew");
        ensure!(fleet.pod_names().await? == pods, "its pods changed");
        let roles = world.installed.kubectl()?.args(["get", "clusterroles", "--output=name"]).output()?;
        ensure!(!String::from_utf8_lossy(&roles.stdout).contains(RELEASE), "rights stayed: {roles:?}");
        ensure!(no_api_of_ours(story)?, "an API that nobody serves keeps namespaces from being deleted");

        // devices neither know nor care; who installs again finds everything as it was
        world.installed.upgrade(&installed::chart(), &[])?;
        fleet.ready().await?;
        ensure!(fleet.pod_names().await? == pods, "its pods changed");
        ensure!(devices.lost() == 0, "a device was disconnected");
        fleet.none_lost(devices).await?;
        Ok(())
    };
    cluster.story("release", test).await;
}

/// Whether no metrics API is registered; what the chart removed takes it along, a moment later.
fn no_api_of_ours(story: &Story) -> anyhow::Result<bool> {
    let wait = ["wait", "--for=delete", "--timeout=30s", "apiservice"];
    for version in ["v1beta1", "v1beta2"] {
        let name = format!("{version}.custom.metrics.k8s.io");
        run_quietly(story.cluster.kubectl()?.args(wait).arg(&name)).context("the metrics API stays")?;
    }
    Ok(true)
}
