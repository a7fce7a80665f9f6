//! What a real API server says to the table `specs.yaml`: the same as `specs.rs` says without one.

#[path = "support/table.rs"]
mod table;

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cluster::{Cluster, Story};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Resource,
    api::{GetParams, Patch, PatchParams, PostParams, Request},
};
use serde_json::Value;
use table::{Case, Table};

/// A definition is established after some hundred milliseconds; a busy machine takes longer.
const ESTABLISHED_TIMEOUT: Duration = Duration::from_secs(30);

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn the_api_server_takes_what_works_and_refuses_the_rest_with_words_that_help() {
    let cluster = Cluster::api().await.expect("a cluster");
    let test = async |story: &Story| {
        define(story).await?;
        let table = Table::read();
        let judged = table.cases().count();
        ensure!(judged >= 60, "the table holds only {judged} cases");
        let mut wrong = Vec::new();
        for case in table.cases() {
            let answer = create(story, case).await;
            let refused = answer.as_ref().err();
            let right = match (case.error.as_str(), refused) {
                ("", None) => true,
                ("", Some(_)) | (_, None) => false,
                (error, Some(said)) => said.contains(error),
            };
            if !right {
                wrong.push(format!("{}: expected `{}`, got {refused:?}", case.title, case.error));
            }
        }
        ensure!(wrong.is_empty(), "{} of {judged} cases:\n{}", wrong.len(), wrong.join("\n"));
        println!("{judged} specs judged");
        Ok(())
    };
    cluster.story("specs", test).await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn kubectl_explains_every_field() {
    let cluster = Cluster::api().await.expect("a cluster");
    let test = async |story: &Story| {
        define(story).await?;
        let (fields, silent) = described(story).await?;
        ensure!(silent.is_empty(), "of {fields} fields not described: {silent:#?}");
        ensure!(fields >= 250, "only {fields} fields are published");
        println!("{fields} fields are described");
        for field in ["pgw.spec", "pgw.spec.reconnects", "pgw.spec.tls.selfSigned", "pgw.spec.upstream", "pgw.status"] {
            let text = explain(&cluster, field).await?;
            ensure!(text.contains("DESCRIPTION:") && !text.contains("<empty>"), "{field} is not described:\n{text}");
        }
        Ok(())
    };
    cluster.story("explain", test).await;
}

/// How many fields the API server publishes, which is what `kubectl explain` shows, and those without a description.
async fn described(story: &Story) -> anyhow::Result<(usize, Vec<String>)> {
    let (group, version) = crds::API_VERSION.split_once('/').expect("the API has a group");
    let schema = format!("{}.{version}.{}", group.split('.').rev().collect::<Vec<_>>().join("."), crds::KIND);
    let begun = Instant::now();
    loop {
        let request = Request::new(format!("/openapi/v3/apis/{group}")).get(version, &GetParams::default())?;
        let answer = story.client.request::<Value>(request).await;
        if let Ok(found) = answer.as_ref().map(|document| &document["components"]["schemas"][&schema])
            && found["properties"]["spec"].is_object()
        {
            let (mut fields, mut silent) = (0, Vec::new());
            look(found, "", &mut fields, &mut silent);
            return Ok((fields, silent));
        }
        ensure!(begun.elapsed() < ESTABLISHED_TIMEOUT, "{schema} is not published: {answer:?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

fn look(schema: &Value, path: &str, fields: &mut usize, silent: &mut Vec<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        *fields += 1;
        if field["description"].as_str().is_none_or(|text| text.trim().is_empty()) {
            silent.push(path.clone());
        }
        look(field, &path, fields, silent);
    }
    for inner in ["items", "additionalProperties"].into_iter().filter_map(|key| schema.get(key)) {
        look(inner, &format!("{path}[]"), fields, silent);
    }
}

/// The API server publishes a new definition's fields a moment after it is established.
async fn explain(cluster: &Cluster, field: &str) -> anyhow::Result<String> {
    let begun = Instant::now();
    loop {
        let output = cluster.kubectl()?.args(["explain", field]).output().context("kubectl")?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(begun.elapsed() < ESTABLISHED_TIMEOUT, "{field}: {said}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

async fn define(story: &Story) -> anyhow::Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(story.client.clone());
    let name = format!("{}.{}", crds::PLURAL, crds::GROUP);
    definitions.patch(&name, &PatchParams::apply("specs").force(), &Patch::Apply(crds::definition())).await?;
    let established = |definition: Option<&CustomResourceDefinition>| {
        let status = definition.and_then(|definition| definition.status.as_ref());
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        conditions.iter().any(|condition| condition.type_ == "Established" && condition.status == "True")
    };
    story.until(definitions, &name, "the definition is established", ESTABLISHED_TIMEOUT, established).await
}

/// As `kubectl create --dry-run=server` would: unknown fields are refused.
async fn create(story: &Story, case: &Case) -> Result<(), String> {
    let url = crds::ProtocolGateway::url_path(&(), Some(&story.namespace));
    let parameters = PostParams { dry_run: true, ..PostParams::default() };
    let mut request = Request::new(url)
        .create(&parameters, case.object().to_string().into_bytes())
        .expect("the parameters are in form");
    // kube has no word for it
    let strict = format!("{}&fieldValidation=Strict", request.uri());
    *request.uri_mut() = strict.parse().expect("a query can be longer");
    let answer = story.client.request::<Value>(request).await;
    answer.map(drop).map_err(|error| match error {
        kube::Error::Api(status) => status.message,
        other => format!("no answer: {other}"),
    })
}
