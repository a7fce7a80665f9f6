//! A change that comes half way: what pods that run need stays as long as they do.

use std::collections::BTreeSet;

use anyhow::ensure;
use cluster::Story;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::DeleteParams};
use serde_json::{Value, json};

use crate::{
    bad_input::in_force,
    hook::Hook,
    pretend::{self, Pretend},
    support::{Operator, at_rest, condition, declare, find, kind, pair, same, secret, spec, story, until},
};

const AS_DESIRED: (&str, &str) = ("False", "AsDesired");

/// The same fleet with another admin port, another port of its hub, another name of its listener, and the certificate in another
/// Secret.
fn shapes() -> [(Value, u16); 2] {
    let port = 20000 + std::process::id() as u16 % 10000;
    let shape = |change: Value, admin: u16| {
        let mut shape = spec(json!({"replicas": 1, "admin": {"port": admin}, "service": {"type": "ClusterIP"}}));
        crate::support::merge(&mut shape, change);
        (shape, admin)
    };
    let change = json!({"tls": {"secretName": "own"}, "upstream": {"iotHub": {"transport": "AMQPWebSocket"}},
        "listeners": [{"name": "devices", "protocol": "MQTT", "port": 8883}]});
    [shape(json!({}), port), shape(change, port + 1)]
}

async fn service(story: &Story) -> anyhow::Result<Value> {
    Ok(find(story, kind("Service"), "gw").await?.unwrap_or_default()["spec"]["ports"].clone())
}

/// TCP ports that the policy lets through, in and out.
fn let_through(policy: &Value) -> [BTreeSet<u64>; 2] {
    ["ingress", "egress"].map(|way| {
        let rules = policy["spec"][way].as_array().cloned().unwrap_or_default();
        let ports = rules.iter().flat_map(|rule| rule["ports"].as_array().cloned().unwrap_or_default());
        ports.filter(|port| port["protocol"] == "TCP").filter_map(|port| port["port"].as_u64()).collect()
    })
}

async fn policy(story: &Story) -> anyhow::Result<[BTreeSet<u64>; 2]> {
    Ok(let_through(&find(story, kind("NetworkPolicy"), "gw").await?.unwrap_or_default()))
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn what_pods_in_force_need_stays_until_the_deployment_is_taken_and_they_are_gone() {
    story("half", async |story: &Story| {
        let operator = Operator::start(story);
        let (certificate, key) = pair("gw.example");
        secret(story, "own", &[("tls.crt", &certificate), ("tls.key", &key)]).await?;
        let [(before, old_port), (after, new_port)] = shapes();
        declare(story, "gw", before).await?;
        condition(story, "gw", "Degraded", AS_DESIRED).await?;
        let old = pretend::pods(story, "gw", 1).await?.remove(0);
        let _old = Pretend::run(story, ("gw", &old), ([127, 77, 13, 1], old_port).into(), 7).await?;
        condition(story, "gw", "Ready", ("True", "PodsReady")).await?;
        at_rest(story).await?;
        let good = (in_force(story, "gw").await?, service(story).await?);

        let hook = Hook::before(story, "Deployment").await?;
        declare(story, "gw", after).await?;
        let message = condition(story, "gw", "Degraded", ("True", "ApiFailing")).await?;
        ensure!(message.contains("Deployment gw was not taken"), "{message}");
        at_rest(story).await?;
        same(&(in_force(story, "gw").await?, service(story).await?), &good, "what the pod runs by")?;
        ensure!(find(story, kind("Secret"), "gw-tls").await?.is_some(), "the Deployment in force mounts it");
        let [ingress, egress] = policy(story).await?;
        ensure!(ingress.contains(&u64::from(old_port)) && egress.contains(&5671), "{ingress:?} {egress:?}");

        hook.goes(story).await?;
        condition(story, "gw", "Degraded", AS_DESIRED).await?;
        let names: BTreeSet<String> = pretend::pods(story, "gw", 2).await?.into_iter().collect();
        let new = names.into_iter().find(|name| *name != old).expect("there are two");
        at_rest(story).await?;
        let (config, deployment) = in_force(story, "gw").await?;
        ensure!(config.to_string().contains("secretName: own") && config != good.0.0, "{config}");
        ensure!(!deployment.to_string().contains("gw-tls"), "{deployment}");
        let port = &service(story).await?[0];
        same(
            &[&port["name"], &port["targetPort"]],
            &[&json!("devices"), &json!(8883)],
            "the Service's port, of both pods",
        )?;
        ensure!(find(story, kind("Secret"), "gw-tls").await?.is_some(), "the old pod mounts it");
        let both = [[8883, old_port, new_port].map(u64::from).into(), [53, 443, 5671].into()];
        same(&policy(story).await?, &both, "ports of the old pod and the new one")?;

        let _new = Pretend::run(story, ("gw", &new), ([127, 77, 13, 2], new_port).into(), 0).await?;
        let pods: Api<Pod> = Api::namespaced(story.client.clone(), &story.namespace);
        // its controller lets it go once the new one was ready for long enough
        let begun = std::time::Instant::now();
        while pods.get_opt(&old).await?.is_some_and(|pod| pod.metadata.deletion_timestamp.is_none()) {
            ensure!(begun.elapsed() < crate::support::SOON, "{old} goes");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        if let Some(pod) = pods.get_opt(&old).await? {
            // nobody runs it, so nobody says that it has ended
            pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await?;
        }
        until(story, kind("Secret"), "gw-tls", "it goes with the last pod that mounts it", |found| found.is_none())
            .await?;
        let new = [[8883, u64::from(new_port)].into(), [53, 443].into()];
        until(story, kind("NetworkPolicy"), "gw", "it is for the new pods alone", |found| {
            found.map(let_through) == Some(new.clone())
        })
        .await?;
        at_rest(story).await?;
        same(&service(story).await?[0]["targetPort"], &json!("devices"), "the Service's port, of the new pod")?;
        operator.stop().await
    })
    .await;
}
