//! Who serves `custom.metrics.k8s.io`: somebody else, who is left alone; or nobody any more, once the operator is gone.

use std::time::{Duration, Instant};

use anyhow::ensure;
use cluster::{
    Cluster, Story,
    devices::Group,
    installed::Installed,
    world::{World, condition},
};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::sync::Mutex;

const CONNECTED_TIMEOUT: Duration = Duration::from_mins(2);
const SCALED_TIMEOUT: Duration = Duration::from_mins(3);
const NAMES: [&str; 2] = ["v1beta1.custom.metrics.k8s.io", "v1beta2.custom.metrics.k8s.io"];

/// Both stories change what the whole cluster has.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

fn services(story: &Story) -> Api<APIService> {
    Api::all(story.client.clone())
}

async fn gone(story: &Story) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let mut left = Vec::new();
        for name in NAMES {
            left.extend(services(story).get_opt(name).await?.map(|_| name));
        }
        if left.is_empty() {
            return Ok(());
        }
        ensure!(begun.elapsed() < SCALED_TIMEOUT, "{left:?} outlived the operator");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn a_foreign_provider_is_left_alone_and_the_fleet_scales_all_the_same() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        world.installed.uninstall()?;
        gone(story).await?;
        // somebody else's, of one version only; nobody answers there, which is not our matter
        let foreign = json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": NAMES[0], "labels": {"app": "somebody-elses-adapter"}},
            "spec": {
                "group": "custom.metrics.k8s.io", "version": "v1beta1",
                "groupPriorityMinimum": 100, "versionPriority": 100, "insecureSkipTLSVerify": true,
                "service": {"name": "adapter", "namespace": story.namespace, "port": 443},
            },
        });
        services(story).patch(NAMES[0], &PatchParams::apply("somebody-else"), &Patch::Apply(&foreign)).await?;
        let before = services(story).get(NAMES[0]).await?;
        let outcome = scales_by_itself(&world, story).await;
        let after = services(story).get(NAMES[0]).await?;
        let other = services(story).get_opt(NAMES[1]).await?;
        services(story).delete(NAMES[0], &DeleteParams::default()).await?;
        outcome?;
        ensure!(before.spec == after.spec, "the foreign provider was changed: {after:?}");
        ensure!(other.is_none(), "the operator serves the other version of somebody else's API");
        Ok(())
    };
    cluster.story("foreign-provider", test).await;
}

async fn scales_by_itself(world: &World<'_>, story: &Story) -> anyhow::Result<()> {
    Installed::install(&story.cluster)?;
    let spec =
        "{replicas: 1, scaling: {minReplicas: 1, maxReplicas: 4, connectionsPerReplica: 20, scaleDownAfter: 20s}}";
    let fleet = world.gateway("gw", spec).await?;
    fleet.ready().await?;
    let says = |object: &Value| {
        condition(object, "MetricsApiAvailable")
            .is_some_and(|condition| condition["status"] == "False" && condition["reason"] == "Conflict")
    };
    fleet.until("status tells of the foreign provider", CONNECTED_TIMEOUT, says).await?;
    let devices = fleet.devices(60, &Group::default()).await?;
    devices.all_connected(CONNECTED_TIMEOUT).await?;
    fleet.until("three pods are asked for", SCALED_TIMEOUT, |object| object["spec"]["replicas"] == 3).await?;
    Ok(())
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn helm_uninstall_in_the_middle_of_a_drain_leaves_namespaces_deletable_and_devices_served() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        Installed::install(&story.cluster)?;
        let spec = |replicas: u32| format!("{{replicas: {replicas}, reconnects: {{perSecond: 2, drainTimeout: 5m}}}}");
        let fleet = world.gateway("gw", &spec(2)).await?;
        fleet.ready().await?;
        let devices = fleet.devices(100, &Group { per_second: 20.0, ..Group::default() }).await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        fleet.declare(&spec(1)).await?;
        let begun = |devices: &cluster::devices::Devices| devices.lost() >= 4;
        devices.until("devices are let go", CONNECTED_TIMEOUT, begun).await?;
        world.installed.uninstall()?;
        gone(story).await?;
        // the pod pauses: its orders have lapsed
        tokio::time::sleep(Duration::from_secs(20)).await;
        let paused = devices.lost();
        tokio::time::sleep(Duration::from_secs(10)).await;
        ensure!(devices.lost() == paused, "a pod drains on although nobody orders it");
        namespace_can_be_deleted(story)?;
        ensure!(fleet.pods().await?.len() == 2, "a pod went with the operator");
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        fleet.none_lost(devices).await?;
        Installed::install(&story.cluster)?;
        Ok(())
    };
    cluster.story("uninstall-in-drain", test).await;
}

fn namespace_can_be_deleted(story: &Story) -> anyhow::Result<()> {
    let name = format!("{}-other", story.namespace);
    for arguments in [&["create", "namespace", &name][..], &["delete", "namespace", &name, "--timeout=60s"]] {
        let output = story.kubectl()?.args(arguments).output()?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
