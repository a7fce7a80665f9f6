//! An operator at rest: whatever it asks and answers, it writes nothing but its Lease.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
    time::Duration,
};

use anyhow::{Context, ensure};
use cluster::{
    Cluster, Story,
    devices::Group,
    installed::NAMESPACE,
    world::{World, condition},
};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::Api;
use serde_json::Value;

const CONNECTED_TIMEOUT: Duration = Duration::from_mins(1);
/// After the last device came, what is counted is written down.
const SETTLED: Duration = Duration::from_secs(20);
const MINUTE: Duration = Duration::from_mins(1);
/// A leader renews three times in the 15 s of its lease.
const RENEWALS: std::ops::RangeInclusive<u32> = 10..=14;
/// Whether the autoscaler may ask for metrics is asked by a request that creates something, which nobody stores.
const MAY_ASK: &str = "create subjectaccessreviews";

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn with_devices_that_send_and_an_autoscaler_that_asks_an_operator_writes_its_lease_only() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let log = story.cluster.audit_log().context("only this harness's API server tells of writes")?;
        let spec = "{replicas: 2, scaling: {minReplicas: 2, maxReplicas: 4, connectionsPerReplica: 100}}";
        let fleet = world.gateway("gw", spec).await?;
        fleet.ready().await?;
        let devices = fleet.devices(100, &Group { per_second: 100.0, ..Group::default() }).await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        fleet
            .until("the autoscaler is told", CONNECTED_TIMEOUT, |object| object["status"]["connections"] == 100)
            .await?;
        tokio::time::sleep(SETTLED).await;

        let from = std::fs::metadata(&log)?.len();
        let (before, object) = (devices.total(|second| second.acknowledged), fleet.object().await?);
        tokio::time::sleep(MINUTE).await;
        let mut writes = writes(&log, from, &story.namespace)?;
        let acknowledged = devices.total(|second| second.acknowledged) - before;
        xtask::step::say(&format!("in a minute with {acknowledged} messages the operators wrote {writes:?}"));
        let lease = writes.iter().filter(|(write, _)| write.ends_with(" leases")).map(|(_, count)| count).sum::<u32>();
        ensure!(RENEWALS.contains(&lease), "the lease was written {lease} times");
        writes.retain(|write, _| write != MAY_ASK);
        ensure!(writes.len() == 1, "an operator at rest wrote {writes:?}");

        // that was no rest for want of work
        ensure!(acknowledged > 3000, "{acknowledged} messages");
        ensure!(fleet.object().await?["metadata"]["resourceVersion"] == object["metadata"]["resourceVersion"]);
        let served = condition(&object, "MetricsApiAvailable").is_some_and(|each| each["status"] == "True");
        ensure!(served, "{}", object["status"]);
        let autoscalers: Api<HorizontalPodAutoscaler> = Api::namespaced(story.client.clone(), &story.namespace);
        let active = autoscalers.get("gw").await?.status.and_then(|status| status.conditions).unwrap_or_default();
        ensure!(active.iter().any(|each| each.type_ == "ScalingActive" && each.status == "True"), "{active:?}");
        ensure!(devices.lost() == 0, "a device was disconnected");
        fleet.none_lost(devices).await?;
        Ok(())
    };
    cluster.story("rest", test).await;
}

/// What the operator's service accounts wrote since the log was `from` bytes long, and how often. Fleets in namespaces of other
/// stories may still be on their way out: what is tried for those is no rest, and not counted.
fn writes(log: &Path, from: u64, namespace: &str) -> anyhow::Result<BTreeMap<String, u32>> {
    let mut text = String::new();
    let mut file = File::open(log)?;
    file.seek(SeekFrom::Start(from))?;
    file.read_to_string(&mut text)?;
    // the last line may be on its way
    let complete = text.rsplit_once('\n').map_or("", |(complete, _rest)| complete);
    let mut writes = BTreeMap::new();
    for line in complete.lines() {
        let event: Value = serde_json::from_str(line).context("the audit log has a JSON event in each line")?;
        let user = event["user"]["username"].as_str().unwrap_or_default();
        let of = |key: &str| event["objectRef"][key].as_str().unwrap_or_default();
        let is_here = ["", NAMESPACE, namespace].contains(&of("namespace"));
        if is_here && user.starts_with(&format!("system:serviceaccount:{NAMESPACE}:")) {
            let resource = [of("resource"), of("subresource")].join("/");
            let write = format!("{} {}", event["verb"].as_str().unwrap_or_default(), resource.trim_end_matches('/'));
            *writes.entry(write).or_default() += 1;
        }
    }
    Ok(writes)
}
