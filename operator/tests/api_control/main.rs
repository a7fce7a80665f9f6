//! The operator on a real API server: what is declared is made, kept, changed and taken away; nothing else is touched, and
//! nothing is written where nothing changes.

mod bad_input;
mod comes_back;
mod configuration;
mod forbidden;
mod half;
mod hook;
mod missing;
mod named;
mod pretend;
mod support;
mod writers;

use anyhow::ensure;
use cluster::Story;
use kube::api::{DeleteParams, Patch, PatchParams};
use operator::{
    kinds::{GATEWAY, OWNED},
    lease::Leadership,
    observe::CustomMetrics,
};
use serde_json::{Value, json};

use self::pretend::Pretend;
use self::support::{
    Operator, QUIET, at_rest, condition, declare, events, find, kind, pair, same, secret, spec, story, until, writes,
    writes_at_rest,
};

const MADE: [(&str, &str); 12] = [
    ("ServiceAccount", "gw"),
    ("ConfigMap", "gw"),
    ("Deployment", "gw"),
    ("Service", "gw"),
    ("NetworkPolicy", "gw"),
    ("PodDisruptionBudget", "gw"),
    ("HorizontalPodAutoscaler", "gw"),
    ("Secret", "gw-ca"),
    ("Secret", "gw-control"),
    ("Secret", "gw-control-client"),
    ("Secret", "gw-tls"),
    ("ReplicaSet", ""),
];

/// With everything that the operator can make.
fn full() -> Value {
    spec(json!({"scaling": {"minReplicas": 1, "maxReplicas": 4, "connectionsPerReplica": 100}, "replicas": 2,
        // written by the API server in another form
        "pod": {"resources": {"requests": {"cpu": "0.5", "memory": "1024Mi"}}}}))
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn what_a_gateway_needs_is_made_and_owned_and_written_once() {
    story("made", async |story: &Story| {
        let operator = Operator::start(story);
        declare(story, "gw", full()).await?;
        condition(story, "gw", "Degraded", ("False", "AsDesired")).await?;
        let gateway = find(story, &GATEWAY, "gw").await?.expect("it was declared");
        for (kind_name, name) in MADE.into_iter().filter(|(_, name)| !name.is_empty()) {
            let object =
                until(story, kind(kind_name), name, &format!("{kind_name} {name} is made"), |found| found.is_some())
                    .await?;
            let owner = &object["metadata"]["ownerReferences"][0];
            same(&owner["uid"], &gateway["metadata"]["uid"], "the owner")?;
            same(&owner["controller"], &json!(true), "it controls")?;
        }
        condition(story, "gw", "Ready", ("False", "PodsNotReady")).await?;
        at_rest(story).await?;
        let mut applied = writes(story)?;
        applied.retain(|write| write.contains(" gw") && !write.contains("status") && !write.contains("events"));
        applied.sort();
        let mut once = applied.clone();
        once.dedup();
        same(&applied, &once, "each object is written once")?;
        operator.stop().await
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn a_reconcile_that_changes_nothing_writes_nothing() {
    story("noop", async |story: &Story| {
        let operator = Operator::start(story);
        declare(story, "gw", full()).await?;
        condition(story, "gw", "Degraded", ("False", "AsDesired")).await?;
        at_rest(story).await?;
        let before = operator.reconciles();
        let touch = json!({"metadata": {"annotations": {"touched": "yes"}}});
        let api = GATEWAY.api(&story.client, Some(&story.namespace));
        api.patch("gw", &PatchParams::default(), &Patch::Merge(&touch)).await?;
        let written = writes_at_rest(story).await?;
        ensure!(operator.reconciles() > before, "there was a reconcile");
        let own = ["patch protocolgateways gw".to_owned()].to_vec();
        ensure!(written.is_empty() || written == own, "{written:?}");
        operator.stop().await?;
        // one that remembers nothing
        let again = Operator::start(story);
        let written = writes_at_rest(story).await?;
        ensure!(again.reconciles() > 0, "there was a reconcile");
        // but for values that the API server writes in another form: these are applied once to be known
        ensure!(written.iter().all(|write| write == "patch deployments gw") && written.len() <= 1, "{written:?}");
        again.stop().await
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn what_somebody_changes_or_deletes_is_put_right() {
    story("drift", async |story: &Story| {
        let operator = Operator::start(story);
        declare(story, "gw", full()).await?;
        condition(story, "gw", "Degraded", ("False", "AsDesired")).await?;
        at_rest(story).await?;
        let change = async |kind_name: &str, patch: Value| {
            let api = kind(kind_name).api(&story.client, Some(&story.namespace));
            api.patch("gw", &PatchParams::default(), &Patch::Merge(&patch)).await
        };
        change("Deployment", json!({"spec": {"replicas": 7, "paused": true}})).await?;
        until(story, kind("Deployment"), "gw", "replicas are put right", |found| {
            found.is_some_and(|found| found["spec"]["replicas"] == 2 && found["spec"]["paused"] == true)
        })
        .await?;
        change("ConfigMap", json!({"data": {"gateway.yaml": "{}"}})).await?;
        until(story, kind("ConfigMap"), "gw", "the configuration is put right", |found| {
            found.is_some_and(|found| {
                found["data"]["gateway.yaml"].as_str().is_some_and(|text| text.contains("hub.azure"))
            })
        })
        .await?;
        let serving = kind("Secret").api(&story.client, Some(&story.namespace));
        serving.patch("gw-tls", &PatchParams::default(), &Patch::Merge(json!({"data": {"ca.crt": null}}))).await?;
        until(story, kind("Secret"), "gw-tls", "whom to trust is put right", |found| {
            found.is_some_and(|found| found["data"]["ca.crt"].is_string())
        })
        .await?;
        // without the label no watch tells of it
        change("NetworkPolicy", json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": null}}})).await?;
        until(story, kind("NetworkPolicy"), "gw", "labels are put right", |found| {
            found.is_some_and(|found| {
                found["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "protocol-gateway-operator"
            })
        })
        .await?;
        for (kind_name, name) in [("Service", "gw"), ("Secret", "gw-tls"), ("Secret", "gw-control")] {
            let before = find(story, kind(kind_name), name).await?.expect("it is there");
            let api = kind(kind_name).api(&story.client, Some(&story.namespace));
            api.delete(name, &DeleteParams::default()).await?;
            until(story, kind(kind_name), name, "what was deleted is made again", |found| {
                found.is_some_and(|found| found["metadata"]["uid"] != before["metadata"]["uid"])
            })
            .await?;
        }
        at_rest(story).await?;
        operator.stop().await
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn what_the_spec_does_not_ask_for_any_more_goes() {
    story("prune", async |story: &Story| {
        let operator = Operator::start(story);
        declare(story, "gw", full()).await?;
        condition(story, "gw", "Degraded", ("False", "AsDesired")).await?;
        until(story, kind("HorizontalPodAutoscaler"), "gw", "it is made", |found| found.is_some()).await?;
        let (certificate, key) = pair("gw.example");
        secret(story, "own", &[("tls.crt", &certificate), ("tls.key", &key)]).await?;
        let listeners = json!([{"name": "local", "protocol": "MQTTPlain", "address": "127.0.0.1", "port": 1883}]);
        declare(story, "gw", spec(json!({"tls": {"secretName": "own"}, "listeners": listeners}))).await?;
        for (kind_name, name) in [("HorizontalPodAutoscaler", "gw"), ("Service", "gw"), ("Secret", "gw-tls")] {
            until(story, kind(kind_name), name, &format!("{kind_name} {name} goes"), |found| found.is_none()).await?;
        }
        ensure!(find(story, kind("Secret"), "own").await?.is_some(), "the user's Secret stays");
        ensure!(find(story, kind("Deployment"), "gw").await?.is_some(), "what is asked for stays");
        at_rest(story).await?;
        // who serves the metric decides whether there is an autoscaler
        declare(story, "gw", full()).await?;
        until(story, kind("HorizontalPodAutoscaler"), "gw", "it is made", |found| found.is_some()).await?;
        operator.custom_metrics.send_replace(CustomMetrics::Foreign);
        until(story, kind("HorizontalPodAutoscaler"), "gw", "it goes", |found| found.is_none()).await?;
        condition(story, "gw", "MetricsApiAvailable", ("False", "Conflict")).await?;
        operator.stop().await
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn objects_of_somebody_else_are_left_alone_and_named() {
    story("foreign", async |story: &Story| {
        let theirs =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "gw"}, "data": {"theirs": "1"}});
        let configs = kind("ConfigMap").api(&story.client, Some(&story.namespace));
        configs.patch("gw", &PatchParams::apply("them"), &Patch::Apply(&theirs)).await?;
        secret(story, "gw-control", &[("theirs", "1")]).await?;
        let before = (find(story, kind("ConfigMap"), "gw").await?, find(story, kind("Secret"), "gw-control").await?);
        let operator = Operator::start(story);
        declare(story, "gw", full()).await?;
        let message = condition(story, "gw", "Degraded", ("True", "NameTaken")).await?;
        ensure!(message.contains("ConfigMap gw belongs to somebody else"), "{message}");
        ensure!(message.contains("Secret gw-control belongs to somebody else"), "{message}");
        at_rest(story).await?;
        let after = (find(story, kind("ConfigMap"), "gw").await?, find(story, kind("Secret"), "gw-control").await?);
        same(&after, &before, "objects of somebody else")?;
        ensure!(find(story, kind("Deployment"), "gw").await?.is_none(), "pods do not run with what is somebody else's");
        ensure!(events(story, "gw").await?.contains(&"Warning NameTaken".to_owned()));
        configs.delete("gw", &DeleteParams::default()).await?;
        kind("Secret")
            .api(&story.client, Some(&story.namespace))
            .delete("gw-control", &DeleteParams::default())
            .await?;
        // a change of the spec is reason enough to look again
        declare(story, "gw", spec(json!({"replicas": 1}))).await?;
        condition(story, "gw", "Degraded", ("False", "AsDesired")).await?;
        until(story, kind("Deployment"), "gw", "it is made", |found| found.is_some()).await?;
        operator.stop().await
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn a_wrong_secret_is_told_the_last_good_configuration_stays_and_the_right_one_is_taken() {
    story("wrong", async |story: &Story| {
        let operator = Operator::start(story);
        declare(story, "gw", spec(json!({}))).await?;
        condition(story, "gw", "Degraded", ("False", "AsDesired")).await?;
        let good = until(story, kind("ConfigMap"), "gw", "it is made", |found| found.is_some()).await?;
        declare(story, "gw", spec(json!({"tls": {"secretName": "own"}}))).await?;
        condition(story, "gw", "Degraded", ("True", "SecretMissing")).await?;
        let ((certificate, key), (_, other)) = (pair("gw.example"), pair("gw.example"));
        secret(story, "own", &[("tls.crt", &certificate), ("tls.key", &other)]).await?;
        let message = condition(story, "gw", "Degraded", ("True", "SecretInvalid")).await?;
        ensure!(message.contains("Secret own has a tls.key that is not the key of its tls.crt"), "{message}");
        at_rest(story).await?;
        same(
            &find(story, kind("ConfigMap"), "gw").await?.expect("it stays")["data"],
            &good["data"],
            "what is in force",
        )?;
        ensure!(find(story, kind("Secret"), "gw-tls").await?.is_some(), "what is in force has its certificate");
        secret(story, "own", &[("tls.crt", &certificate), ("tls.key", &key)]).await?;
        condition(story, "gw", "Degraded", ("False", "AsDesired")).await?;
        until(story, kind("ConfigMap"), "gw", "the new configuration is in force", |found| {
            found.is_some_and(|found| {
                found["data"]["gateway.yaml"].as_str().is_some_and(|text| text.contains("secretName: own"))
            })
        })
        .await?;
        until(story, kind("Secret"), "gw-tls", "it goes", |found| found.is_none()).await?;
        let told = events(story, "gw").await?;
        for event in ["Warning SecretMissing", "Warning SecretInvalid", "Normal AsDesired"] {
            same(&told.iter().filter(|told| *told == event).count(), &1, event)?;
        }
        operator.stop().await
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn nothing_remains_of_a_gateway_that_is_deleted_and_another_of_its_name_begins_anew() {
    story("gone", async |story: &Story| {
        let operator = Operator::start(story);
        declare(story, "gw", full()).await?;
        condition(story, "gw", "Degraded", ("False", "AsDesired")).await?;
        let gateways = GATEWAY.api(&story.client, Some(&story.namespace));
        gateways.delete("gw", &DeleteParams::background()).await?;
        // at once, while the first one's objects are still being collected
        declare(story, "gw", full()).await?;
        let second = find(story, &GATEWAY, "gw").await?.expect("it was declared");
        for (kind_name, name) in MADE.into_iter().filter(|(_, name)| !name.is_empty()) {
            until(story, kind(kind_name), name, "it is the second one's", |found| {
                found.is_some_and(|found| found["metadata"]["ownerReferences"][0]["uid"] == second["metadata"]["uid"])
            })
            .await?;
        }
        condition(story, "gw", "Degraded", ("False", "AsDesired")).await?;
        gateways.delete("gw", &DeleteParams::background()).await?;
        for kind in OWNED.into_iter().filter(|kind| kind.everywhere) {
            until(story, kind, "gw", &format!("{} goes", kind.name), |found| found.is_none()).await?;
        }
        for name in operator::names::secrets("gw") {
            until(story, kind("Secret"), &name, "it goes", |found| found.is_none()).await?;
        }
        operator.stop().await
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn of_two_gateways_with_one_node_port_the_second_is_told_and_gets_it_when_it_is_free() {
    story("ports", async |story: &Story| {
        let operator = Operator::start(story);
        let port = support::node_port(0);
        let service = spec(json!({"service": {"type": "NodePort", "nodePorts": {"mqtts": port}}}));
        declare(story, "a", service.clone()).await?;
        condition(story, "a", "Degraded", ("False", "AsDesired")).await?;
        declare(story, "b", service).await?;
        let message = condition(story, "b", "Degraded", ("True", "Refused")).await?;
        ensure!(message.contains("Service b was not taken") && message.contains("already allocated"), "{message}");
        ensure!(find(story, kind("Deployment"), "b").await?.is_some(), "the rest of it is made");
        condition(story, "a", "Degraded", ("False", "AsDesired")).await?;
        at_rest(story).await?;
        GATEWAY.api(&story.client, Some(&story.namespace)).delete("a", &DeleteParams::background()).await?;
        condition(story, "b", "Degraded", ("False", "AsDesired")).await?;
        let service = until(story, kind("Service"), "b", "it is made", |found| found.is_some()).await?;
        same(&service["spec"]["ports"][0]["nodePort"], &json!(port), "its port")?;
        operator.stop().await
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn one_that_cannot_be_read_is_told_and_stops_no_other() {
    story("unreadable", async |story: &Story| {
        let operator = Operator::start(story);
        // the definition here has a field that this program does not know
        declare(story, "broken", spec(json!({"limits": {"future": "x"}}))).await?;
        declare(story, "gw", spec(json!({}))).await?;
        condition(story, "gw", "Degraded", ("False", "AsDesired")).await?;
        let message = condition(story, "broken", "Degraded", ("True", "Unreadable")).await?;
        ensure!(message.contains("the spec cannot be read"), "{message}");
        ensure!(find(story, kind("Deployment"), "broken").await?.is_none());
        same(&events(story, "broken").await?, &vec!["Warning Unreadable".to_owned()], "Events")?;
        at_rest(story).await?;
        declare(story, "broken", spec(json!({}))).await?;
        condition(story, "broken", "Degraded", ("False", "AsDesired")).await?;
        operator.stop().await
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn a_replica_that_does_not_lead_writes_nothing() {
    story("follower", async |story: &Story| {
        let follower = Operator::start_as(story, Leadership::fixed(None));
        declare(story, "gw", full()).await?;
        tokio::time::sleep(QUIET).await;
        ensure!(follower.reconciles() > 0, "it observes");
        same(&writes(story)?, &vec!["patch protocolgateways gw".to_owned()], "only the user wrote")?;
        let leader = Operator::start(story);
        condition(story, "gw", "Degraded", ("False", "AsDesired")).await?;
        leader.stop().await?;
        follower.stop().await
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn what_pods_say_is_in_the_status_and_one_is_drained_before_there_are_fewer() {
    story("drain", async |story: &Story| {
        let operator = Operator::start(story);
        let port = 20000 + std::process::id() as u16 % 10000;
        let shape = |replicas: i32| spec(json!({"replicas": replicas, "admin": {"port": port}}));
        declare(story, "gw", shape(3)).await?;
        let mut pods = Vec::new();
        for (name, host) in pretend::pods(story, "gw", 3).await?.iter().zip(1..) {
            let address = ([127, 77, 7, host], port).into();
            pods.push(Pretend::run(story, ("gw", name), address, 10 * u64::from(host)).await?);
        }
        condition(story, "gw", "Ready", ("True", "PodsReady")).await?;
        condition(story, "gw", "UpstreamConnected", ("True", "Connected")).await?;
        let of = |gateway: Option<&Value>, field: &str| gateway.map(|gateway| gateway["status"][field].clone()).unwrap_or_default();
        until(story, &GATEWAY, "gw", "devices are counted", |gateway| of(gateway, "connections") == 60).await?;
        declare(story, "gw", shape(2)).await?;
        let victim = &pods[0];
        let gateway = until(story, &GATEWAY, "gw", "a drain is planned", |gateway| of(gateway, "drains")[0].is_object()).await?;
        same(&gateway["status"]["drains"][0]["pod"], &json!(victim.name), "the pod with the fewest devices")?;
        let begun = std::time::Instant::now();
        while victim.orders().is_empty() {
            ensure!(begun.elapsed() < support::SOON, "it is told to leave");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        let order = victim.orders().remove(0);
        same(&(order["path"].clone(), order["cause"].clone(), order["leave"].clone(), order["epoch"].clone()),
            &(json!("/drain"), json!("ScaleIn"), json!(true), json!(1)), "its order")?;
        victim.ready(story, false).await?;
        same(&find(story, kind("Deployment"), "gw").await?.expect("it is there")["spec"]["replicas"], &json!(3), "pods while it has devices")?;
        let done = json!({"cause": "ScaleIn", "epoch": 1, "state": "Done", "perSecond": 10.0, "downTo": 0, "remaining": 0, "letGo": 10});
        victim.say(0, &done);
        until(story, kind("Deployment"), "gw", "there are fewer", |found| found.is_some_and(|found| found["spec"]["replicas"] == 2)).await?;
        let left = pretend::pods(story, "gw", 2).await?;
        ensure!(!left.contains(&victim.name), "the one that was drained went: {left:?}");
        until(story, &GATEWAY, "gw", "nothing drains", |gateway| of(gateway, "drains").is_null() && of(gateway, "connections") == 50).await?;
        ensure!(pods[1..].iter().all(|pod| pod.orders().is_empty()), "nobody else was told anything");
        at_rest(story).await?;
        operator.stop().await
    })
    .await;
}
