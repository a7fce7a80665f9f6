//! A configuration is on its way to pods until each says that it follows it.

use anyhow::ensure;
use cluster::Story;
use operator::kinds::GATEWAY;
use serde_json::{Value, json};

use crate::{
    pretend::{self, Pretend},
    support::{Operator, at_rest, condition, declare, spec, story, until},
};

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn how_many_pods_follow_a_new_configuration_is_told_until_all_do() {
    story("spread", async |story: &Story| {
        let operator = Operator::start(story);
        let port = 20000 + std::process::id() as u16 % 10000;
        let shape = |connects: i32| {
            spec(json!({"replicas": 2, "admin": {"port": port}, "service": {"type": "ClusterIP"},
                "limits": {"connectsPerSecond": connects}}))
        };
        declare(story, "gw", shape(77)).await?;
        let mut pods = Vec::new();
        for (name, host) in pretend::pods(story, "gw", 2).await?.iter().zip(1..) {
            pods.push(Pretend::run(story, ("gw", name), ([127, 77, 9, host], port).into(), 10).await?);
        }
        condition(story, "gw", "Ready", ("True", "PodsReady")).await?;
        condition(story, "gw", "Progressing", ("False", "Settled")).await?;
        declare(story, "gw", shape(78)).await?;
        let message = condition(story, "gw", "Progressing", ("True", "ConfigurationSpreading")).await?;
        ensure!(message.starts_with("0 of 2 pods follow"), "{message}");
        at_rest(story).await?;
        pods[0].follow(story, "gw").await?;
        until(story, &GATEWAY, "gw", "one follows", |gateway| {
            let said =
                |condition: &Value| condition["message"].as_str().is_some_and(|text| text.starts_with("1 of 2 pods"));
            gateway
                .and_then(|gateway| gateway["status"]["conditions"].as_array())
                .is_some_and(|all| all.iter().any(said))
        })
        .await?;
        pods[1].follow(story, "gw").await?;
        condition(story, "gw", "Progressing", ("False", "Settled")).await?;
        condition(story, "gw", "Degraded", ("False", "AsDesired")).await?;
        operator.stop().await
    })
    .await;
}
