//! Who writes late, over what somebody else wrote since, is refused; it looks again, and nothing is lost.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cluster::Story;
use crds::{ProtocolGateway, ProtocolGatewayStatus};
use jiff::Timestamp;
use kube::{
    Api,
    api::{Patch, PatchParams},
    core::DynamicObject,
};
use operator::{
    apply::{Memory, Writer, order::Held, status::Told},
    desired::{Desired, tls::Step as CaStep},
    error::{Kind as Failure, Step},
    kinds::{GATEWAY, SECRET},
    lease::Leadership,
    metrics::Metrics,
    names,
    observe::{mirror::Mirror, secrets::Secrets},
};
use serde_json::{Value, json};

use crate::{
    hook::Hook,
    support::{Operator, at_rest, condition, declare, find, same, spec, story, until, writes},
};

fn writer(story: &Story, epoch: i64) -> Writer {
    Writer {
        client: story.client.clone(),
        mirror: Mirror::default(),
        secrets: Secrets::default(),
        leadership: Leadership::fixed(Some(epoch)),
        metrics: Metrics::new(),
    }
}

fn status(replicas: i32) -> ProtocolGatewayStatus {
    ProtocolGatewayStatus { replicas, ..ProtocolGatewayStatus::default() }
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn a_status_is_written_only_over_what_was_decided_about() {
    Box::pin(story("late", async |story: &Story| {
        let gateways: Api<ProtocolGateway> = Api::namespaced(story.client.clone(), &story.namespace);
        let replicas = async || Ok::<_, kube::Error>(gateways.get("gw").await?.status.map(|status| status.replicas));
        declare(story, "gw", spec(json!({}))).await?;
        let seen = gateways.get("gw").await?;
        let (mut late, mut memory) = (seen.clone(), Memory::default());
        let (old, new) = (writer(story, 1), writer(story, 2));

        let told = new.status(&seen, &status(5), &mut Memory::default()).await?;
        ensure!(matches!(told, Told::Written(Some(_))), "{told:?}");
        let refused = old.status(&late, &status(9), &mut memory).await.err().context("it is late")?;
        same(&(refused.step, refused.kind), &(Step::Status, Failure::Conflict), "the refusal")?;
        same(&replicas().await?, &Some(5), "what the new leader wrote")?;

        // a spec that it has not seen yet
        late = gateways.get("gw").await?;
        declare(story, "gw", spec(json!({"limits": {"inflightMax": 8}}))).await?;
        let refused = old.status(&late, &status(9), &mut memory).await.err().context("it is late again")?;
        same(&refused.kind, &Failure::Conflict, "the refusal")?;

        let told = old.status(&gateways.get("gw").await?, &status(9), &mut memory).await?;
        ensure!(matches!(told, Told::Written(Some(_))), "{told:?}");
        same(&replicas().await?, &Some(9), "what was decided about what is there")
    }))
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn who_writes_at_the_same_time_makes_the_operator_look_again_and_no_more() {
    story("busy", async |story: &Story| {
        let operator = Operator::start(story);
        let gateways = GATEWAY.api(&story.client, Some(&story.namespace));
        let mut last = 0;
        // a round is enough, as a rule
        while conflicts(&operator) == 0 {
            last += 1;
            ensure!(last <= 50, "nobody was ever in the way");
            declare(story, "gw", spec(json!({"limits": {"inflightMax": last}}))).await?;
            for touch in 0..20 {
                // one who is in the way again and again is an error in the end
                if conflicts(&operator) > 0 {
                    break;
                }
                let touch = json!({"metadata": {"annotations": {"touched": format!("{last} {touch}")}}});
                gateways.patch("gw", &PatchParams::default(), &Patch::Merge(&touch)).await?;
            }
        }
        let told = |found: Option<&Value>| {
            found.is_some_and(|found| found["status"]["observedGeneration"] == found["metadata"]["generation"])
        };
        until(story, &GATEWAY, "gw", "the last spec is the one that the status is about", told).await?;
        condition(story, "gw", "Degraded", ("False", "AsDesired")).await?;
        at_rest(story).await?;
        println!("{} conflicts in {last} rounds", conflicts(&operator));
        ensure!(!operator.metrics.text().contains("operator_reconcile_errors_total{"), "none of them is an error");
        operator.stop().await
    })
    .await;
}

fn conflicts(operator: &Operator) -> u64 {
    let text = operator.metrics.text();
    let counted = text.lines().filter(|line| line.starts_with("operator_conflicts_total{step=\"status\"}"));
    counted.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn a_secret_that_somebody_wrote_to_since_it_was_looked_at_is_not_deleted() {
    story("keys", async |story: &Story| {
        let operator = Operator::start(story);
        declare(story, "gw", spec(json!({}))).await?;
        condition(story, "gw", "Degraded", ("False", "AsDesired")).await?;
        operator.stop().await?;
        let gateways: Api<ProtocolGateway> = Api::namespaced(story.client.clone(), &story.namespace);
        let gateway = gateways.get("gw").await?;
        let secrets = SECRET.api(&story.client, Some(&story.namespace));
        let writer = writer(story, 1);
        let see = |secret: DynamicObject| drop(writer.mirror.put(&SECRET, secret));
        see(secrets.get("gw-tls").await?);
        let theirs = json!({"metadata": {"annotations": {"theirs": "now"}}});
        secrets.patch("gw-tls", &PatchParams::default(), &Patch::Merge(&theirs)).await?;

        let others = names::secrets("gw").into_iter().filter(|name| name != "gw-tls");
        let desired = Desired {
            objects: Vec::new(),
            certificates: Vec::new(),
            secrets: others.collect(),
            problems: Vec::new(),
            replicas: None,
            kept: std::collections::BTreeSet::new(),
        };
        let refused = writer
            .prune(&gateway, &desired, &Held::default(), &mut Memory::default())
            .await
            .err()
            .context("it is another one now")?;
        same(&refused.kind, &Failure::Conflict, "the refusal")?;
        see(secrets.get("gw-tls").await?);
        writer.prune(&gateway, &desired, &Held::default(), &mut Memory::default()).await?;
        ensure!(find(story, &SECRET, "gw-tls").await?.is_none(), "it goes once it was looked at");
        ensure!(find(story, &SECRET, "gw-control").await?.is_some(), "what is wanted stays");
        Ok(())
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn a_ca_moves_on_although_somebody_else_wrote_its_successor() {
    story("successor", async |story: &Story| {
        declare(story, "gw", spec(json!({}))).await?;
        let gateways: Api<ProtocolGateway> = Api::namespaced(story.client.clone(), &story.namespace);
        let gateway = gateways.get("gw").await?;
        let (writer, name) = (writer(story, 1), names::authority("gw"));
        writer.mirror.put(&GATEWAY, GATEWAY.api(&story.client, Some(&story.namespace)).get("gw").await?);
        let step = async |step: CaStep| {
            let mut memory = Memory::default();
            let done = writer.certificates(&gateway, &[step], Timestamp::now(), &mut memory).await?;
            ensure!(done && memory.refused().is_empty(), "{:?}", memory.refused());
            let secret = find(story, &SECRET, &name).await?.context("there is a CA")?;
            Ok::<_, anyhow::Error>(secret["data"].clone())
        };
        let first = step(CaStep::CreateAuthority { secret: name.clone(), life_s: 1000 }).await?;
        let both = step(CaStep::AddNextAuthority { secret: name.clone(), life_s: 1000 }).await?;
        // as an editor or a backup does: other bytes, so that they are its own
        let theirs = json!({"data": {"next.crt": first["ca.crt"], "next.key": first["ca.key"]}});
        let secrets = SECRET.api(&story.client, Some(&story.namespace));
        let editor = PatchParams { field_manager: Some("editor".to_owned()), ..PatchParams::default() };
        secrets.patch(&name, &editor, &Patch::Merge(&theirs)).await?;
        let theirs = json!({"data": {"next.crt": both["next.crt"], "next.key": both["next.key"]}});
        secrets.patch(&name, &editor, &Patch::Merge(&theirs)).await?;

        let files = |data: &Value| -> Vec<String> {
            data.as_object().into_iter().flat_map(|data| data.keys().cloned()).collect()
        };
        let promoted = step(CaStep::PromoteNextAuthority { secret: name.clone() }).await?;
        same(&files(&promoted), &["ca.crt", "ca.key", "previous.crt"].map(String::from).to_vec(), "after promotion")?;
        same(&promoted["ca.crt"], &both["next.crt"], "the CA that signs")?;
        let theirs = json!({"data": {"previous.crt": promoted["ca.crt"]}});
        secrets.patch(&name, &editor, &Patch::Merge(&theirs)).await?;
        let dropped = step(CaStep::DropPreviousAuthority { secret: name.clone() }).await?;
        same(&files(&dropped), &["ca.crt", "ca.key"].map(String::from).to_vec(), "after dropping")
    })
    .await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn a_certificate_that_is_not_taken_is_made_again_in_its_time_and_not_before() {
    story("unminted", async |story: &Story| {
        let operator = Operator::start(story);
        let hook = Hook::before(story, "Secret").await?;
        declare(story, "gw", spec(json!({}))).await?;
        let message = condition(story, "gw", "Degraded", ("True", "ApiFailing")).await?;
        ensure!(message.contains("Secret gw-ca was not taken"), "{message}");
        let asked =
            || Ok::<_, anyhow::Error>(writes(story)?.iter().filter(|write| *write == "patch secrets gw-ca").count());
        let (before, reconciles, begun) = (asked()?, operator.reconciles(), Instant::now());
        for touch in 0..15 {
            let touch = json!({"metadata": {"annotations": {"touched": format!("{touch}")}}});
            let gateways = GATEWAY.api(&story.client, Some(&story.namespace));
            gateways.patch("gw", &PatchParams::default(), &Patch::Merge(&touch)).await?;
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        let (asked, reconciles) = (asked()? - before, operator.reconciles() - reconciles);
        println!("{asked} times in {reconciles} reconciles, {:?}", begun.elapsed());
        ensure!(reconciles >= 8, "{reconciles} reconciles");
        // after one second, two, four
        ensure!(asked <= 2 + begun.elapsed().as_secs() as usize / 2, "asked {asked} times");
        hook.goes(story).await?;
        condition(story, "gw", "Degraded", ("False", "AsDesired")).await?;
        operator.stop().await
    })
    .await;
}
