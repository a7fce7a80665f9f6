//! A Secret that the operator may not read: what depends on it stays as it is and says so, and all else goes on.

use anyhow::ensure;
use cluster::Story;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use operator::lease::Leadership;
use serde_json::json;

use crate::support::{
    Operator, at_rest, client_of, condition, declare, events, find, kind, pair, same, secret, spec, story, until,
};

const AS_DESIRED: (&str, &str) = ("False", "AsDesired");
const FORBIDDEN: (&str, &str) = ("True", "SecretForbidden");
const OWN: [&str; 4] = ["gw-ca", "gw-control", "gw-control-client", "gw-tls"];

/// Gives `user` every right in the test's namespace, but to read other Secrets than `readable`.
async fn allow(story: &Story, user: &str, readable: &[&str]) -> anyhow::Result<()> {
    let group = "rbac.authorization.k8s.io";
    let groups = ["apps", "autoscaling", "policy", "networking.k8s.io", "events.k8s.io", crds::GROUP];
    let core = ["configmaps", "services", "serviceaccounts", "pods", "events"];
    let role = json!({
        "apiVersion": format!("{group}/v1"), "kind": "Role", "metadata": {"name": "operator"},
        "rules": [
            {"apiGroups": groups, "resources": ["*"], "verbs": ["*"]},
            {"apiGroups": [""], "resources": core, "verbs": ["*"]},
            {"apiGroups": [""], "resources": ["secrets"], "verbs": ["list", "watch", "create", "patch", "delete"]},
            {"apiGroups": [""], "resources": ["secrets"], "resourceNames": readable, "verbs": ["get"]},
        ],
    });
    let binding = json!({
        "apiVersion": format!("{group}/v1"), "kind": "RoleBinding", "metadata": {"name": "operator"},
        "roleRef": {"apiGroup": group, "kind": "Role", "name": "operator"},
        "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
    });
    let parameters = PatchParams::apply("test").force();
    let roles: Api<Role> = Api::namespaced(story.client.clone(), &story.namespace);
    roles.patch("operator", &parameters, &Patch::Apply(&role)).await?;
    let bindings: Api<RoleBinding> = Api::namespaced(story.client.clone(), &story.namespace);
    bindings.patch("operator", &parameters, &Patch::Apply(&binding)).await?;
    Ok(())
}

async fn start(story: &Story, user: &str) -> anyhow::Result<Operator> {
    let client = client_of(story, user).await?;
    Ok(Operator::start_in(client, vec![story.namespace.clone()], Leadership::fixed(Some(1))))
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn a_secret_that_may_not_be_read_degrades_what_names_it_and_keeps_back_nothing_else() {
    story("forbidden", async |story: &Story| {
        let user = format!("operator-of-{}", story.namespace);
        allow(story, &user, &OWN).await?;
        let operator = start(story, &user).await?;
        declare(story, "gw", spec(json!({}))).await?;
        condition(story, "gw", "Degraded", AS_DESIRED).await?;
        let good = until(story, kind("ConfigMap"), "gw", "it is made", |found| found.is_some()).await?;
        let (certificate, key) = pair("gw.example");
        secret(story, "own", &[("tls.crt", &certificate), ("tls.key", &key)]).await?;
        let changed = spec(json!({"tls": {"secretName": "own"}, "service": {"annotations": {"example/new": "yes"}}}));
        declare(story, "gw", changed).await?;
        let message = condition(story, "gw", "Degraded", FORBIDDEN).await?;
        for part in ["spec.tls: Secret own", user.as_str(), "resources: [secrets], resourceNames: [own], verbs: [get]"]
        {
            ensure!(message.contains(part), "{part} is not in: {message}");
        }
        until(story, kind("Service"), "gw", "what does not depend on it follows the spec", |found| {
            found.is_some_and(|found| found["metadata"]["annotations"]["example/new"] == "yes")
        })
        .await?;
        at_rest(story).await?;
        let data = |found: Option<serde_json::Value>| found.unwrap_or_default()["data"].clone();
        same(&data(find(story, kind("ConfigMap"), "gw").await?), &good["data"], "what is in force")?;
        ensure!(find(story, kind("Secret"), "gw-tls").await?.is_some(), "what is in force has its certificate");
        let told = events(story, "gw").await?;
        same(&told.iter().filter(|told| *told == "Warning SecretForbidden").count(), &1, "Events")?;
        // nothing tells of a role that changed: it is asked again
        allow(story, &user, &[&OWN[..], &["own"]].concat()).await?;
        condition(story, "gw", "Degraded", AS_DESIRED).await?;
        until(story, kind("ConfigMap"), "gw", "the new configuration is in force", |found| {
            found.is_some_and(|found| {
                found["data"]["gateway.yaml"].as_str().is_some_and(|text| text.contains("secretName: own"))
            })
        })
        .await?;
        operator.stop().await
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn what_the_operator_made_and_may_not_read_any_more_is_left_as_it_is_and_the_rest_follows_the_spec() {
    story("unread", async |story: &Story| {
        let user = format!("operator-of-{}", story.namespace);
        allow(story, &user, &OWN).await?;
        let operator = start(story, &user).await?;
        declare(story, "gw", spec(json!({}))).await?;
        condition(story, "gw", "Degraded", AS_DESIRED).await?;
        at_rest(story).await?;
        operator.stop().await?;
        let version = async |name: &str| {
            anyhow::Ok(
                find(story, kind("Secret"), name).await?.unwrap_or_default()["metadata"]["resourceVersion"].clone(),
            )
        };
        let before = (version("gw-ca").await?, version("gw-tls").await?, version("gw-control").await?);
        allow(story, &user, &["gw-control", "gw-control-client"]).await?;
        let operator = start(story, &user).await?;
        let message = condition(story, "gw", "Degraded", FORBIDDEN).await?;
        ensure!(message.contains("Secret gw-ca") && message.contains("Secret gw-tls"), "{message}");
        declare(story, "gw", spec(json!({"pod": {"priorityClassName": "system-node-critical"}}))).await?;
        until(story, kind("Deployment"), "gw", "it follows the spec", |found| {
            found.is_some_and(|found| found["spec"]["template"]["spec"]["priorityClassName"] == "system-node-critical")
        })
        .await?;
        at_rest(story).await?;
        let after = (version("gw-ca").await?, version("gw-tls").await?, version("gw-control").await?);
        same(&after, &before, "Secrets that nobody wrote")?;
        allow(story, &user, &OWN).await?;
        condition(story, "gw", "Degraded", AS_DESIRED).await?;
        operator.stop().await
    })
    .await;
}
