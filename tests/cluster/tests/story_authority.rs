//! The fleet's own CA: what it signs is renewed without a disconnect.

use std::time::Duration;

use anyhow::{Context, ensure};
use cluster::{
    Cluster, Story,
    devices::{Devices, Group, Target},
    world::{Fleet, World, condition},
};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};

const CONNECTED_TIMEOUT: Duration = Duration::from_mins(1);
/// The kubelet writes a changed Secret within some seconds, the gateway looks every few, the operator asks the port.
const SERVED_TIMEOUT: Duration = Duration::from_mins(1);

fn secrets(story: &Story) -> Api<Secret> {
    Api::namespaced(story.client.clone(), &story.namespace)
}

/// The one certificate that every pod serves, by its serial number.
fn served(object: &Value) -> Option<&str> {
    let holds = condition(object, "CertificateServed").is_some_and(|each| each["status"] == "True");
    let all = object["status"]["servedCertificates"].as_array()?;
    let every = all.len() == 1 && all[0]["pods"] == object["spec"]["replicas"];
    all.first().filter(|_| holds && every)?["serial"].as_str()
}

/// Waits until every pod serves another certificate than that, and says which.
async fn next_served(fleet: &Fleet<'_>, before: &str) -> anyhow::Result<String> {
    let another = |object: &Value| served(object).is_some_and(|serial| serial != before);
    let object = fleet.until("another certificate is served and in status", SERVED_TIMEOUT, another).await?;
    Ok(served(&object).context("it was there")?.to_owned())
}

/// New devices that trust these CAs connect, and go.
async fn some_connect(world: &World<'_>, target: &Target, trusted: &str) -> anyhow::Result<()> {
    let target = Target { ca_pem: trusted.as_bytes().to_vec(), ..target.clone() };
    let devices = Devices::start(&target, world.register(5)?, &Group::default())?;
    devices.all_connected(CONNECTED_TIMEOUT).await?;
    devices.finish().await?;
    Ok(())
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn the_certificate_of_the_own_ca_is_renewed_under_120_devices_and_none_is_disconnected() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let fleet = world.gateway("gw", "replicas: 2").await?;
        fleet.ready().await?;
        let first = next_served(&fleet, "").await?;
        let target = fleet.target("mqtts").await?;
        let devices = fleet.devices(120, &Group { per_second: 120.0, ..Group::default() }).await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;

        let begun = std::time::Instant::now();
        secrets(story).delete("gw-tls", &DeleteParams::default()).await?;
        let second = next_served(&fleet, &first).await?;
        let deleted = begun.elapsed().as_secs_f64();
        // signed by another, as far as anybody knows
        let unknown = json!({"metadata": {"annotations": {"protocolgateway.io/authority": "00"}}});
        secrets(story).patch("gw-tls", &PatchParams::default(), &Patch::Merge(unknown)).await?;
        next_served(&fleet, &second).await?;
        xtask::step::say(&format!("served {deleted:.1} s after it was deleted"));

        // the CA is the same: who trusted it still does
        some_connect(&world, &target, &String::from_utf8(target.ca_pem.clone())?).await?;
        ensure!(devices.lost() == 0, "{} devices were disconnected", devices.lost());
        let verdict = fleet.none_lost(devices).await?;
        ensure!(verdict.duplicated == 0, "{verdict}");
        Ok(())
    };
    cluster.story("own-ca", test).await;
}
