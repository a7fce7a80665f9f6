//! Level api: what the operator makes, judged by a real API server that has the definitions of other projects' kinds as those
//! publish them. A field that it does not know, or takes for another, is refused or missing when the object is read back.

#[path = "support/cases.rs"]
mod cases;

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use cluster::{
    Cluster, Story,
    definitions::{CERT_MANAGER, PROMETHEUS_OPERATOR},
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, ValidationDirective},
};
use operator::{
    desired,
    kinds::{CERTIFICATE, Kind, OWNED, POD_MONITOR},
};
use serde::Deserialize as _;
use serde_json::{Value, json};

use self::cases::{cases, decide};

async fn story(name: &str, test: impl AsyncFnOnce(&Story) -> anyhow::Result<()>) {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let cluster = Cluster::api().await.expect("a cluster");
    let test = async |story: &Story| {
        PROMETHEUS_OPERATOR.install(&story.client).await?;
        CERT_MANAGER.install(&story.client).await?;
        test(story).await
    };
    cluster.story(name, test).await;
}

/// Applies an object as the operator does, and refuses what the API server would pass over.
async fn apply(api: &Api<DynamicObject>, object: &DynamicObject) -> anyhow::Result<DynamicObject> {
    let strictly =
        PatchParams { field_validation: Some(ValidationDirective::Strict), ..PatchParams::apply("test").force() };
    let name = object.metadata.name.as_deref().context("it has a name")?;
    api.patch(name, &strictly, &Patch::Apply(object)).await?;
    Ok(api.get(name).await?)
}

/// Where `live` is not what was applied, by path. What others added is theirs.
fn lost(applied: &Value, live: &Value, path: &str, into: &mut Vec<String>) {
    match (applied, live) {
        (Value::Object(applied), Value::Object(live)) => {
            for (key, value) in applied {
                lost(value, live.get(key).unwrap_or(&Value::Null), &format!("{path}.{key}"), into);
            }
        }
        (Value::Array(applied), Value::Array(live)) if applied.len() == live.len() => {
            for (index, (applied, live)) in applied.iter().zip(live).enumerate() {
                lost(applied, live, &format!("{path}[{index}]"), into);
            }
        }
        _ if applied == live => {}
        // the API server has one way of writing each quantity
        (Value::String(applied), Value::String(live))
            if quantity(applied).is_some_and(|_| quantity(applied) == quantity(live)) => {}
        _ => into.push(format!("{path}: applied {applied}, found {live}")),
    }
}

/// How many thousandths a quantity is.
fn quantity(text: &str) -> Option<u128> {
    let units = [("m", 1), ("k", 1_000_000), ("Ki", 1_024_000), ("Mi", 1_048_576_000), ("Gi", 1_073_741_824_000)];
    let unit = units.into_iter().find_map(|(unit, is)| Some((text.strip_suffix(unit)?, is)));
    let (number, is) = unit.unwrap_or((text, 1_000));
    number.parse::<u128>().ok()?.checked_mul(is)
}

/// Applies an object strictly in the story's namespace; it must read back as it was.
async fn stands(story: &Story, kind: &Kind, mut object: DynamicObject) -> anyhow::Result<Api<DynamicObject>> {
    let api = kind.api(&story.client, Some(&story.namespace));
    object.metadata.namespace = Some(story.namespace.clone());
    // of an owner that is not there it would be collected
    object.metadata.owner_references = None;
    let live = apply(&api, &object).await?;
    let mut wrong = Vec::new();
    lost(&json!(object), &json!(live), "", &mut wrong);
    ensure!(wrong.is_empty(), "it is not what was applied: {wrong:#?}");
    Ok(api)
}

/// Everything that the cases come to, one case after the other.
async fn everything(story: &Story) -> anyhow::Result<BTreeSet<&'static str>> {
    let mut kinds = BTreeSet::new();
    for case in cases() {
        let Ok(desired) = decide(&case).3 else { continue };
        let case = case.file_name().context("it has a name")?.to_string_lossy().into_owned();
        let mut made = Vec::new();
        for object in desired.objects {
            let (title, name) = (desired::title(&object), object.name_any());
            let kind =
                object.types.as_ref().and_then(|types| Kind::owned(&types.kind)).context("it is one of OWNED")?;
            let api = stands(story, kind, object).await.with_context(|| format!("{case}: {title}"))?;
            kinds.insert(kind.name);
            made.push((api, name));
        }
        for (api, name) in made {
            api.delete(&name, &DeleteParams::background()).await?;
        }
    }
    Ok(kinds)
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn every_object_of_every_case_is_taken_strictly_and_stands_as_it_was_applied() {
    story("strict", async |story: &Story| {
        let kinds = everything(story).await?;
        let all: BTreeSet<_> = OWNED.into_iter().map(|kind| kind.name).collect();
        ensure!(kinds == all, "no case has {:?}", all.difference(&kinds));
        Ok(())
    })
    .await;
}

/// What the chart makes of other projects' kinds.
fn of_others(story: &Story) -> anyhow::Result<Vec<DynamicObject>> {
    let mut helm = story.cluster.helm()?;
    helm.arg("template").arg("x").arg(cluster::installed::chart());
    helm.args(["--set", "monitoring.podMonitor.enabled=true,monitoring.rules.enabled=true"]);
    let output = helm.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let documents = serde_yaml::Deserializer::from_slice(&output.stdout).map(Value::deserialize);
    let documents = documents.collect::<Result<Vec<_>, _>>()?.into_iter();
    let group =
        |document: &Value| document["apiVersion"].as_str().is_some_and(|version| version.contains(".coreos.com/"));
    Ok(documents.filter(group).map(serde_json::from_value).collect::<Result<_, _>>()?)
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn what_the_chart_makes_for_prometheus_is_taken_strictly_and_stands_as_it_was_applied() {
    story("strict-chart", async |story: &Story| {
        let rule = Kind { name: "PrometheusRule", plural: "prometheusrules", ..POD_MONITOR };
        let mut made = Vec::new();
        for object in of_others(story)? {
            let title = desired::title(&object);
            let kind = [&POD_MONITOR, &rule].into_iter().find(|kind| title.starts_with(kind.name));
            stands(story, kind.with_context(|| title.clone())?, object).await.with_context(|| title.clone())?;
            made.push(title);
        }
        ensure!(made.len() == 2, "{made:?}");
        Ok(())
    })
    .await;
}

/// Without which the tests above would show nothing.
#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn a_field_that_the_definitions_of_others_do_not_have_is_refused() {
    story("unknown-field", async |story: &Story| {
        for kind in [&POD_MONITOR, &CERTIFICATE] {
            let object = json!({
                "apiVersion": kind.api_version(), "kind": kind.name,
                "metadata": {"name": "wrong"}, "spec": {"noSuchField": "x"},
            });
            let api = kind.api(&story.client, Some(&story.namespace));
            let answer = apply(&api, &serde_json::from_value(object)?).await;
            let refused = answer.err().with_context(|| format!("{} with spec.noSuchField was taken", kind.name))?;
            ensure!(format!("{refused:#}").contains("noSuchField"), "{refused:#}");
        }
        Ok(())
    })
    .await;
}
