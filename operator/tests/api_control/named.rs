//! Named namespaces: one in which the operator has no rights, or that is gone, keeps back no other.

use anyhow::ensure;
use cluster::Story;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use operator::{kinds::GATEWAY, lease::Leadership};
use serde_json::json;

use crate::support::{Operator, client_of, condition, declare, find, same, spec, story};

const AS_DESIRED: (&str, &str) = ("False", "AsDesired");

/// Gives `user` every right in the test's namespace.
async fn allow(story: &Story, user: &str) -> anyhow::Result<()> {
    let bindings: Api<RoleBinding> = Api::namespaced(story.client.clone(), &story.namespace);
    let group = "rbac.authorization.k8s.io";
    let binding = json!({
        "apiVersion": format!("{group}/v1"), "kind": "RoleBinding", "metadata": {"name": "operator"},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
    });
    bindings.patch("operator", &PatchParams::apply("test").force(), &Patch::Apply(&binding)).await?;
    Ok(())
}

/// Lists that are given up, and namespaces that are served.
fn counted(operator: &Operator) -> (u64, u64) {
    let text = operator.metrics.text();
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    (value("operator_lists_given_up ").unwrap_or(u64::MAX), value("operator_namespaces_served ").unwrap_or(u64::MAX))
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn a_named_namespace_without_rights_keeps_back_no_other_and_is_served_once_there_are_some() {
    story("may", async |here: &Story| {
        let test = async |there: &Story| {
            let user = format!("operator-of-{}", here.namespace);
            allow(here, &user).await?;
            declare(here, "gw", spec(json!({}))).await?;
            declare(there, "gw", spec(json!({}))).await?;
            let namespaces = vec![here.namespace.clone(), there.namespace.clone()];
            let operator = Operator::start_in(client_of(here, &user).await?, namespaces, Leadership::fixed(Some(1)));
            condition(here, "gw", "Degraded", AS_DESIRED).await?;
            let (given_up, served) = counted(&operator);
            ensure!(given_up > 0 && served == 1, "{}", operator.metrics.text());
            let left = find(there, &GATEWAY, "gw").await?.unwrap_or_default();
            ensure!(left["status"].is_null(), "{left:#?}");
            allow(there, &user).await?;
            condition(there, "gw", "Degraded", AS_DESIRED).await?;
            same(&counted(&operator), &(0, 2), "lists that are given up, and namespaces that are served")?;
            operator.stop().await
        };
        story("may-not", test).await;
        Ok(())
    })
    .await;
}
