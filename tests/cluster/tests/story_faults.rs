//! Who goes, and what goes on all the same: a pod, the ProtocolGateway itself, a hub that was never there.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use cluster::{
    Cluster, Story,
    devices::Group,
    world::{Fleet, World, condition},
};
use k8s_openapi::api::{core::v1::Pod, events::v1::Event};
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use serde_json::Value;

const CONNECTED_TIMEOUT: Duration = Duration::from_mins(1);
/// A pod tries to reach its hub once a device comes.
const UPSTREAM_TIMEOUT: Duration = Duration::from_mins(1);
/// The operator sees at once that a pod is gone.
const TOLD_TIMEOUT: Duration = Duration::from_secs(20);
/// The garbage collector goes through everything that is owned; pods drain within their bound.
const COLLECTED_TIMEOUT: Duration = Duration::from_mins(2);

/// What a fleet of two pods is made of, at least.
const OBJECTS: [(&str, usize); 13] = [
    ("configmap", 1),
    ("deployment.apps", 1),
    ("endpointslice.discovery.k8s.io", 1),
    ("endpoints", 1),
    ("horizontalpodautoscaler.autoscaling", 1),
    ("networkpolicy.networking.k8s.io", 1),
    ("pod", 2),
    ("poddisruptionbudget.policy", 1),
    ("protocolgateway.protocolgateway.io", 1),
    ("replicaset.apps", 1),
    // its own CA, the listeners' certificate, and one for each end of the admin port
    ("secret", 4),
    ("service", 1),
    ("serviceaccount", 1),
];

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
        told_as_lost(story, &victim).await?;
        fleet.ready().await?;
        ensure!(!fleet.pod_names().await?.contains(&victim), "the pod came back under its name");
        fleet.none_lost(devices).await?;
        Ok(())
    };
    cluster.story("pod-killed", test).await;
}

/// What no drain let go is told: an Event about the ProtocolGateway that names the pod and how many.
async fn told_as_lost(story: &Story, pod: &str) -> anyhow::Result<()> {
    let events: Api<Event> = Api::namespaced(story.client.clone(), &story.namespace);
    let begun = Instant::now();
    loop {
        let all = events.list(&ListParams::default()).await?.items;
        let lost: Vec<String> = all
            .into_iter()
            .filter(|event| event.reason.as_deref() == Some("ConnectionsLost"))
            .filter(|event| event.type_.as_deref() == Some("Warning"))
            .filter(|event| event.regarding.as_ref().is_some_and(|about| about.kind.as_deref() == Some(crds::KIND)))
            .filter_map(|event| event.note)
            .collect();
        if let Some(note) = lost.iter().find(|note| note.contains(&format!("pod {pod} with "))) {
            xtask::step::say(note);
            return Ok(());
        }
        ensure!(begun.elapsed() < TOLD_TIMEOUT, "no Event tells of the connections of pod {pod}: {lost:?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn a_protocol_gateway_is_deleted_and_nothing_of_it_remains() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let spec = "{replicas: 2, reconnects: {perSecond: 100, drainTimeout: 10s}, scaling: {minReplicas: 2, maxReplicas: 4, connectionsPerReplica: 50}}";
        let before = story.objects()?;
        let fleet = world.gateway("gw", spec).await?;
        fleet.ready().await?;
        let devices = fleet.devices(20, &Group::default()).await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        let made: BTreeSet<String> = story.objects()?.difference(&before).cloned().collect();
        xtask::step::say(&format!("it made {} objects", made.len()));
        for (kind, least) in OBJECTS {
            let found = made.iter().filter(|object| object.starts_with(&format!("{kind}/"))).count();
            ensure!(found >= least, "{found} of {kind} among {made:#?}");
        }
        fleet.api().delete(&fleet.name, &DeleteParams::background()).await?;
        let begun = Instant::now();
        loop {
            let after = story.objects()?;
            ensure!(before.is_subset(&after), "what the user made went along: {:?}", before.difference(&after));
            if after == before {
                break;
            }
            let left = after.difference(&before).collect::<Vec<_>>();
            ensure!(begun.elapsed() < COLLECTED_TIMEOUT, "after {COLLECTED_TIMEOUT:?} there are still {left:#?}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        xtask::step::say(&format!("nothing remained after {:.1} s", begun.elapsed().as_secs_f64()));
        drop(devices);
        Ok(())
    };
    cluster.story("deleted", test).await;
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn a_hub_that_does_not_exist_is_told_with_advice_and_another_fleet_goes_on() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let well = world.gateway("well", "replicas: 1").await?;
        // its devices know the hub by the name that they were made for
        let known = &world.hub.domain().host_name;
        let nowhere = format!("hostName: no-such-hub.example, hostNameAliases: [{known}]");
        let away = world.gateway("away", &format!("{{replicas: 1, upstream: {{iotHub: {{{nowhere}}}}}}}")).await?;
        for fleet in [&well, &away] {
            fleet.ready().await?;
        }
        let group = Group { per_second: 20.0, ..Group::default() };
        let others = well.devices(20, &group).await?;
        others.all_connected(CONNECTED_TIMEOUT).await?;

        let devices = away.devices(20, &group).await?;
        let fails = |each: &Value| {
            let says = |words: &str| each["message"].as_str().is_some_and(|message| message.contains(words));
            each["status"] == "False"
                && each["reason"] == "UpstreamFailing"
                && says("spec.upstream names a hub or broker")
        };
        for type_ in ["UpstreamConnected", "Ready"] {
            let told = |object: &Value| condition(object, type_).is_some_and(fails);
            let object = away.until(&format!("{type_} says that there is no hub"), UPSTREAM_TIMEOUT, told).await?;
            xtask::step::say(condition(&object, type_).and_then(|each| each["message"].as_str()).unwrap_or_default());
        }
        let events = story.kubectl()?.args(["get", "events", "--field-selector=reason=UpstreamFailing"]).output()?;
        let events = String::from_utf8_lossy(&events.stdout).into_owned();
        ensure!(events.contains("Warning") && events.contains("away"), "no Event tells of it: {events}");
        ensure!(devices.connected() == 0, "devices were taken without a hub");
        goes_on_well(&well).await?;
        ensure!(others.lost() == 0, "a device of the other fleet was disconnected");

        away.declare("replicas: 1").await?;
        let well_again =
            |object: &Value| condition(object, "UpstreamConnected").is_some_and(|each| each["status"] == "True");
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        away.until("the hub is reached", UPSTREAM_TIMEOUT, well_again).await?;
        away.ready().await?;
        goes_on_well(&well).await?;
        ensure!(others.lost() == 0, "a device of the other fleet was disconnected");
        away.none_lost(devices).await?;
        well.none_lost(others).await?;
        Ok(())
    };
    cluster.story("hub-away", test).await;
}

async fn goes_on_well(fleet: &Fleet<'_>) -> anyhow::Result<()> {
    let object = fleet.object().await?;
    for type_ in ["Ready", "UpstreamConnected"] {
        ensure!(
            condition(&object, type_).is_some_and(|each| each["status"] == "True"),
            "{type_}: {}",
            object["status"]
        );
    }
    Ok(())
}
