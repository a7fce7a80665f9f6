//! Who serves `custom.metrics.k8s.io`: somebody else, who is left alone; or nobody any more, once the operator is gone.

mod watch;

use std::time::{Duration, Instant};

use anyhow::ensure;
use cluster::{
    Cluster, Story,
    devices::{Devices, Group, Losses},
    installed::Installed,
    world::{Fleet, World, condition},
};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use self::watch::Watch;

const CONNECTED_TIMEOUT: Duration = Duration::from_mins(2);
const SCALED_TIMEOUT: Duration = Duration::from_mins(3);
/// Devices per second that may be told to reconnect.
const BUDGET: u64 = 10;
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
    let spec = "{replicas: 1, reconnects: {perSecond: 10, drainTimeout: 60s}, \
         scaling: {minReplicas: 1, maxReplicas: 4, connectionsPerReplica: 20, scaleDownAfter: 20s}}";
    let fleet = world.gateway("gw", spec).await?;
    fleet.ready().await?;
    let says = |object: &Value| {
        condition(object, "MetricsApiAvailable")
            .is_some_and(|condition| condition["status"] == "False" && condition["reason"] == "Conflict")
    };
    fleet.until("status tells of the foreign provider", CONNECTED_TIMEOUT, says).await?;
    let watch = Watch::begin(story, "gw");
    // whoever comes later, and slowly, finds more pods: those that stay are on several
    let leave = fleet.devices(40, &Group::default()).await?;
    fleet.until("two pods are ready", SCALED_TIMEOUT, has_pods(2)).await?;
    let stay = fleet.devices(20, &Group { per_second: 20.0, connects_per_second: 2.0, ..Group::default() }).await?;
    fleet.until("three pods are ready", SCALED_TIMEOUT, has_pods(3)).await?;
    for group in [&leave, &stay] {
        group.all_connected(CONNECTED_TIMEOUT).await?;
        ensure!(group.lost() == 0, "growing disconnected somebody");
    }
    ensure!(watch.ended().await.is_empty(), "a pod went although three are wanted");
    fleet.finish(leave).await?;
    shrinks(&fleet, &watch, stay).await
}

fn has_pods(wanted: i64) -> impl Fn(&Value) -> bool {
    move |object| {
        let (spec, status) = (&object["spec"], &object["status"]);
        [&spec["replicas"], &status["replicas"], &status["readyReplicas"]].into_iter().all(|count| *count == wanted)
    }
}

/// 20 devices at 20 a pod leave one pod: the others are emptied before they go, no faster than is allowed.
async fn shrinks(fleet: &Fleet<'_>, watch: &Watch, stay: Devices) -> anyhow::Result<()> {
    let begun = Instant::now();
    fleet.until("one pod is left", SCALED_TIMEOUT, has_pods(1)).await?;
    let took = begun.elapsed().as_secs_f64();
    stay.all_connected(CONNECTED_TIMEOUT).await?;
    watch.all_left_empty().await?;
    let (ordered, went) = (watch.ordered().await, watch.ended().await.len());
    let (_, stayed) = fleet.finish(stay).await?;
    let losses = Losses::since(begun, &[&stayed]);
    let moved = losses.all;
    xtask::step::say(&format!(
        "one pod {took:.1} s after 40 had left; {went} pods went; of 20 devices {losses}, of {BUDGET} allowed"
    ));
    ensure!(went == 2, "{went} pods were told to stop");
    ensure!(moved > 0 && moved == ordered, "{moved} connections were lost, and drains were to let {ordered} go");
    losses.within(BUDGET)
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
