//! Pods that do not come: the fleet says how many and why, although it may be ready.

use std::time::Duration;

use anyhow::ensure;
use cluster::Story;
use k8s_openapi::{
    api::core::v1::{Pod, ResourceQuota},
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    bad_input::told,
    pretend,
    support::{self, Operator, condition, declare, spec, story},
};

/// Longer than anybody has patience with a pod, and than it takes to believe that it stays.
const LONG_AGO: Duration = Duration::from_mins(20);

/// What the kubelet says of a pod for long.
async fn say(story: &Story, pod: &str, ready: bool, container: Value) -> anyhow::Result<()> {
    let since = (Timestamp::now() - LONG_AGO).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let holds = if ready { "True" } else { "False" };
    let conditions = json!([{"type": "Ready", "status": holds, "lastTransitionTime": since}]);
    let mut status = json!({"name": "gateway", "image": "i", "imageID": "i", "ready": ready, "restartCount": 5});
    support::merge(&mut status, container);
    let status = json!({"status": {"phase": "Running", "conditions": conditions, "containerStatuses": [status]}});
    let api: Api<Pod> = Api::namespaced(story.client.clone(), &story.namespace);
    api.patch_status(pod, &PatchParams::default(), &Patch::Merge(&status)).await?;
    Ok(())
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn a_pod_that_is_missing_for_long_is_said_although_the_fleet_is_ready() {
    story("missing", async |story: &Story| {
        let operator = Operator::start(story);
        declare(story, "gw", spec(json!({"replicas": 2, "service": {"type": "ClusterIP"}}))).await?;
        let pods = pretend::pods(story, "gw", 2).await?;
        let runs = json!({"state": {"running": {}}, "lastState": {"terminated": {"exitCode": 2}}});
        say(story, &pods[0], true, runs.clone()).await?;
        condition(story, "gw", "Ready", ("True", "PodsReady")).await?;
        condition(story, "gw", "Progressing", ("True", "PodsStarting")).await?;

        let waits =
            json!({"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"exitCode": 2}}});
        say(story, &pods[1], false, waits).await?;
        let message = condition(story, "gw", "Degraded", ("True", "PodsMissing")).await?;
        let expected =
            format!("pods missing for more than 3 minutes: 1 of 2; {}: CrashLoopBackOff; ended with code 2", pods[1]);
        ensure!(message == expected, "{message}");
        told(story, "gw", "Warning PodsMissing").await?;
        condition(story, "gw", "Progressing", ("False", "Blocked")).await?;
        let message = condition(story, "gw", "Ready", ("True", "PodsReady")).await?;
        ensure!(message.contains("pods ready: 1, wanted: 2") && message.contains("CrashLoopBackOff"), "{message}");

        say(story, &pods[1], true, runs).await?;
        condition(story, "gw", "Degraded", ("False", "AsDesired")).await?;
        condition(story, "gw", "Progressing", ("False", "Settled")).await?;
        told(story, "gw", "Normal AsDesired").await?;
        operator.stop().await
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn a_quota_that_allows_no_pod_is_said_with_its_words() {
    story("quota", async |story: &Story| {
        let quotas: Api<ResourceQuota> = Api::namespaced(story.client.clone(), &story.namespace);
        let none = json!({"metadata": {"name": "no-pods"}, "spec": {"hard": {"pods": "0"}}});
        quotas.create(&PostParams::default(), &serde_json::from_value(none)?).await?;
        let begun = std::time::Instant::now();
        // before, everything is forbidden in other words
        while quotas.get("no-pods").await?.status.and_then(|status| status.hard).is_none() {
            ensure!(begun.elapsed() < support::SOON, "the quota is not in force");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let operator = Operator::start(story);
        declare(story, "gw", spec(json!({"replicas": 2, "service": {"type": "ClusterIP"}}))).await?;
        let says = "no pod is ready yet; pods cannot be made: ";
        support::until(story, &operator::kinds::GATEWAY, "gw", "the quota is said", |gateway| {
            let conditions = gateway.and_then(|gateway| gateway["status"]["conditions"].as_array());
            let words = conditions.into_iter().flatten().filter(|each| each["type"] == "Ready");
            words
                .filter_map(|ready| ready["message"].as_str())
                .any(|words| words.contains(says) && words.contains("no-pods"))
        })
        .await?;
        operator.stop().await
    })
    .await;
}
