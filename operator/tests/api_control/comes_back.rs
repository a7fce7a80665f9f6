//! An API that not every cluster has: it comes, goes, and comes back.

use anyhow::Context;
use cluster::Story;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
    runtime::{
        conditions::is_crd_established,
        wait::{await_condition, conditions::is_deleted},
    },
};
use operator::observe::CustomMetrics;
use serde_json::json;

use crate::support::{Operator, SOON, condition, declare, find, kind, spec, story, until};

const NAME: &str = "certificates.cert-manager.io";

async fn install(definitions: &Api<CustomResourceDefinition>) -> anyhow::Result<()> {
    let of = kind("Certificate");
    let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let version = json!({"name": of.version, "served": true, "storage": true, "schema": schema});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": NAME},
        "spec": {"group": of.group, "scope": "Namespaced", "versions": [version],
            "names": {"kind": of.name, "plural": of.plural, "singular": "certificate"}},
    });
    definitions.patch(NAME, &PatchParams::apply("test").force(), &Patch::Apply(&definition)).await?;
    let established = await_condition(definitions.clone(), NAME, is_crd_established());
    tokio::time::timeout(SOON, established).await.context("it is established")??;
    Ok(())
}

async fn remove(definitions: &Api<CustomResourceDefinition>) -> anyhow::Result<()> {
    let Some(definition) = definitions.get_opt(NAME).await? else { return Ok(()) };
    definitions.delete(NAME, &DeleteParams::default()).await?;
    let deleted = is_deleted(definition.metadata.uid.as_deref().context("it has a uid")?);
    tokio::time::timeout(SOON, await_condition(definitions.clone(), NAME, deleted)).await.context("it goes")??;
    Ok(())
}

/// What a cluster can do is looked at anew when somebody else serves the metrics.
async fn until_seen(operator: &Operator, story: &Story, reason: &str) -> anyhow::Result<()> {
    let mut seen = std::pin::pin!(condition(story, "gw", "Degraded", ("True", reason)));
    loop {
        for who in [CustomMetrics::Foreign, CustomMetrics::Ours] {
            operator.custom_metrics.send_replace(who);
            let second = std::time::Duration::from_secs(1);
            if let Ok(seen) = tokio::time::timeout(second, &mut seen).await {
                return seen.map(drop);
            }
        }
    }
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn an_api_that_goes_and_comes_back_is_watched_again() {
    story("comes-back", async |story: &Story| {
        let definitions: Api<CustomResourceDefinition> = Api::all(story.client.clone());
        // another test may have left it
        remove(&definitions).await?;
        let operator = Operator::start(story);
        declare(story, "gw", spec(json!({"tls": {"certManager": {"issuerRef": {"name": "company"}}}}))).await?;
        until_seen(&operator, story, "CertManagerMissing").await?;
        for _ in 0..2 {
            install(&definitions).await?;
            until_seen(&operator, story, "CertificatePending").await?;
            let certificates = kind("Certificate");
            let made = until(story, certificates, "gw-tls", "it is made", |found| found.is_some()).await?;
            certificates.api(&story.client, Some(&story.namespace)).delete("gw-tls", &DeleteParams::default()).await?;
            until(story, certificates, "gw-tls", "what was deleted is made again", |found| {
                found.is_some_and(|found| found["metadata"]["uid"] != made["metadata"]["uid"])
            })
            .await?;
            remove(&definitions).await?;
            until_seen(&operator, story, "CertManagerMissing").await?;
        }
        assert!(find(story, kind("Deployment"), "gw").await?.is_none(), "there was never a certificate");
        operator.stop().await
    })
    .await;
}
