//! The level `api` does what the tests of the operator rely on.

use std::{collections::BTreeMap, time::Duration};

use anyhow::ensure;
use cluster::{Cluster, Story, programs};
use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

/// The garbage collector looks after a few hundred milliseconds; a busy machine takes longer.
const COLLECTED_TIMEOUT: Duration = Duration::from_secs(30);

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn the_api_server_has_the_version_that_was_built() {
    let cluster = Cluster::api().await.expect("a cluster");
    let version = cluster.client().await.expect("a client").apiserver_version().await.expect("a version");
    assert_eq!(version.git_version, format!("v{}", programs::KUBERNETES_VERSION));
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn what_is_applied_twice_changes_once() {
    let cluster = Cluster::api().await.expect("a cluster");
    let test = async |story: &Story| {
        let first = apply(story, "settings", "1", None).await?;
        let again = apply(story, "settings", "1", None).await?;
        ensure!(first.resource_version() == again.resource_version(), "an apply without a change wrote");
        let changed = apply(story, "settings", "2", None).await?;
        ensure!(first.resource_version() != changed.resource_version());
        let managers = changed.managed_fields().iter().filter_map(|each| each.manager.clone()).collect::<Vec<_>>();
        ensure!(managers == ["test"], "{managers:?}");
        Ok(())
    };
    cluster.story("apply", test).await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn what_an_object_owns_goes_with_it() {
    let cluster = Cluster::api().await.expect("a cluster");
    let test = async |story: &Story| {
        let owner = apply(story, "owner", "1", None).await?;
        apply(story, "owned", "1", Some(&owner)).await?;
        apply(story, "free", "1", None).await?;
        let configs: Api<ConfigMap> = Api::namespaced(story.client.clone(), &story.namespace);
        configs.delete("owner", &DeleteParams::background()).await?;
        let gone = |config: Option<&ConfigMap>| config.is_none();
        story.until(configs.clone(), "owned", "the owned object is collected", COLLECTED_TIMEOUT, gone).await?;
        ensure!(configs.get_opt("free").await?.is_some(), "an object without an owner was collected");
        Ok(())
    };
    cluster.story("collect", test).await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn writes_are_in_the_audit_log_and_reads_are_not() {
    let cluster = Cluster::api().await.expect("a cluster");
    let Some(log) = cluster.audit_log() else { return };
    let test = async |story: &Story| {
        apply(story, "audited", "1", None).await?;
        let configs: Api<ConfigMap> = Api::namespaced(story.client.clone(), &story.namespace);
        configs.get("audited").await?;
        let text = std::fs::read_to_string(log)?;
        let mine = text.lines().filter(|line| line.contains(&story.namespace) && line.contains("/audited"));
        let verbs = mine
            .map(|line| Ok(serde_json::from_str::<serde_json::Value>(line)?["verb"].to_string()))
            .collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(verbs == ["\"patch\""], "{verbs:?}");
        Ok(())
    };
    cluster.story("audit", test).await;
}

async fn apply(story: &Story, name: &str, value: &str, owner: Option<&ConfigMap>) -> anyhow::Result<ConfigMap> {
    let configs: Api<ConfigMap> = Api::namespaced(story.client.clone(), &story.namespace);
    let owners: Vec<OwnerReference> = owner.into_iter().filter_map(|owner| owner.controller_owner_ref(&())).collect();
    let config = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "ownerReferences": owners},
        "data": BTreeMap::from([("value", value)]),
    });
    Ok(configs.patch(name, &PatchParams::apply("test"), &Patch::Apply(config)).await?)
}
