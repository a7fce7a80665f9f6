//! The operator with rights in named namespaces only: it does all of its work there, and none elsewhere.

use std::time::Duration;

use anyhow::ensure;
use cluster::{
    Cluster, Story,
    devices::Group,
    installed,
    world::{World, condition},
};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::Api;

const TIMEOUT: Duration = Duration::from_mins(1);
/// Long enough for an operator that looked there to have written something.
const QUIET: Duration = Duration::from_secs(5);

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn an_operator_of_named_namespaces_serves_and_scales_there_and_leaves_others_alone() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let outside = async |other: &Story| {
        let test = async |story: &Story| {
            let world = World::begin(story).await?;
            world.installed.upgrade(&installed::chart(), &[&format!("watchNamespaces={{{}}}", story.namespace)])?;
            let elsewhere = World::begin(other).await?;
            let ignored = elsewhere.gateway("gw", "replicas: 1").await?;
            let fleet =
                world.gateway("gw", "scaling: {minReplicas: 2, maxReplicas: 4, connectionsPerReplica: 10}").await?;
            fleet.ready().await?;
            let devices = fleet.devices(25, &Group { per_second: 25.0, ..Group::default() }).await?;
            devices.all_connected(TIMEOUT).await?;
            // 25 devices need three pods of ten: the metrics API is asked, and answers
            let three = |gateway: &serde_json::Value| gateway["spec"]["replicas"] == 3;
            let gateway = fleet.until("the autoscaler asks for three pods", TIMEOUT, three).await?;
            let served = condition(&gateway, "MetricsApiAvailable").is_some_and(|each| each["status"] == "True");
            ensure!(served, "{}", gateway["status"]);
            let autoscalers: Api<HorizontalPodAutoscaler> = Api::namespaced(story.client.clone(), &story.namespace);
            ensure!(autoscalers.get_opt("gw").await?.is_some());
            fleet.none_lost(devices).await?;

            tokio::time::sleep(QUIET).await;
            let object = ignored.object().await?;
            ensure!(object["status"].is_null(), "somebody looked after it: {}", object["status"]);
            let log = world
                .installed
                .kubectl()?
                .args(["logs", "deployment/protocol-gateway-operator", "--all-pods"])
                .output()?;
            let log = String::from_utf8_lossy(&log.stdout).into_owned();
            ensure!(!log.contains("forbidden"), "a right is missing: {log}");
            world.installed.upgrade(&installed::chart(), &[])
        };
        other.cluster.story("named", test).await;
        Ok(())
    };
    cluster.story("elsewhere", outside).await;
}
