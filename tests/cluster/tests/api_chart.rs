//! The chart, against a real API server: what it makes is taken, what it is told wrong is refused, what is the users' stays.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use cluster::{Cluster, Story, installed, programs};
use k8s_openapi::{
    api::rbac::v1::{ClusterRole, Role},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, api::ListParams};
use serde_json::Value;
use xtask::process::workspace_root;

const DEFINITION: &str = "protocolgateways.protocolgateway.io";

/// Everything that the chart can make, in named namespaces.
const EVERYTHING: &[&str] = &[
    "networkPolicy.enabled=true",
    "monitoring.podMonitor.enabled=true",
    "monitoring.rules.enabled=true",
    "monitoring.dashboards.enabled=true",
    "watchNamespaces={default,kube-public}",
    "hostNetwork=true",
    "priorityClassName=system-cluster-critical",
    "imagePullSecrets[0].name=pull",
    "podLabels.team=iot",
    "podAnnotations.note=x",
    "nodeSelector.pool=system",
    "tolerations[0].operator=Exists",
    "tolerations[1].key=pool",
    "tolerations[1].value=system",
    "tolerations[1].effect=NoExecute",
    "tolerations[1].tolerationSeconds=60",
    "topologySpreadConstraints[0].maxSkew=1",
    "topologySpreadConstraints[0].minDomains=2",
    "topologySpreadConstraints[0].topologyKey=kubernetes.io/hostname",
    "topologySpreadConstraints[0].whenUnsatisfiable=DoNotSchedule",
    "topologySpreadConstraints[0].labelSelector.matchLabels.team=iot",
    "topologySpreadConstraints[0].nodeTaintsPolicy=Honor",
    "affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey=kubernetes.io/hostname",
    "affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].labelSelector.matchLabels.team=iot",
    "affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight=1",
    "affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].preference.matchExpressions[0].key=a",
    "affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].preference.matchExpressions[0].operator=In",
    "affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].preference.matchExpressions[0].values={b}",
    "resources.limits.cpu=2",
    "podDisruptionBudget.maxUnavailable=50%",
    "serviceAccount.name=own",
];

#[test]
#[ignore = "level api: cargo xtask test api"]
fn helm_finds_nothing_to_improve() {
    let output = helm(&["lint", "--strict"]).arg(installed::chart()).output().expect("helm runs");
    assert!(output.status.success(), "{}", said(&output));
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn a_real_api_server_takes_everything_that_the_chart_makes() {
    let cluster = Cluster::api().await.expect("a cluster");
    let test = async |story: &Story| {
        for values in [&[][..], EVERYTHING, &["metricsApi.enabled=false", "podDisruptionBudget.enabled=false"]] {
            let rendered = template(&story.namespace, values)?;
            // operator/tests/api_strict.rs judges these, by their own definitions
            let known = rendered.iter().filter(|each| !of(each, "apiVersion").starts_with("monitoring.coreos.com"));
            for object in known {
                let file = scratch(&story.namespace, &object.to_string())?;
                let arguments =
                    ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict"];
                // each says itself where it belongs
                let output = story.cluster.kubectl()?.args(arguments).arg("-f").arg(&file).output()?;
                fs::remove_file(file)?;
                ensure!(output.status.success(), "{} {}: {}", of(object, "kind"), name(object), said(&output));
            }
        }
        Ok(())
    };
    cluster.story("chart-taken", test).await;
}

#[test]
#[ignore = "level api: cargo xtask test api"]
fn values_that_cannot_work_are_refused_with_their_name() {
    let check = |value: &str, expected: &str| {
        let output =
            helm(&["template", "x"]).arg(installed::chart()).args(["--set", value]).output().expect("helm runs");
        let said = said(&output);
        assert!(!output.status.success(), "{value} was taken");
        assert!(said.contains(expected), "{value}: {said}");
    };
    check("replica=3", "'replica' not allowed");
    check("replicas=-1", "/replicas");
    check("replicas=many", "/replicas");
    check("image.tag=a b", "/image/tag");
    check("image.digest=sha256:abc", "/image/digest");
    check("image.repository=", "/image/repository");
    check("image.pullPolicy=Sometimes", "/image/pullPolicy");
    check("gateway.image.repository=Upper/case", "/gateway/image/repository");
    check("gateway.replicas=2", "'replicas' not allowed");
    check("watchNamespaces=default", "/watchNamespaces");
    check("watchNamespaces={a,a}", "/watchNamespaces");
    check("watchNamespaces={A_b}", "/watchNamespaces/0");
    check("metricsApi.port=0", "/metricsApi/port");
    check("metricsApi.port=8080", "/metricsApi/port");
    check("metricsApi.port=70000", "/metricsApi/port");
    check("lease.seconds=1", "/lease/seconds");
    check("log.format=xml", "/log/format");
    check("log.level=", "/log/level");
    check("podDisruptionBudget.maxUnavailable=200%", "/podDisruptionBudget/maxUnavailable");
    check("podDisruptionBudget.maxUnavailable=0", "got 0, want 1");
    check("podDisruptionBudget.maxUnavailable=0%", "'0%' does not match");
    check("networkPolicy.apiServerPorts={}", "/networkPolicy/apiServerPorts");
    check("monitoring.podMonitor.interval=often", "/monitoring/podMonitor/interval");
    check("fullnameOverride=No_Name", "/fullnameOverride");
    // the chart's own labels and annotations: a key twice is no YAML
    check(r"podLabels.app\.kubernetes\.io/name=x", "'/podLabels/app.kubernetes.io~1name'");
    check(r"podLabels.app\.kubernetes\.io/part-of=x", "'/podLabels/app.kubernetes.io~1part-of'");
    check(r"podLabels.helm\.sh/chart=x", "'/podLabels/helm.sh~1chart'");
    check(r"monitoring.rules.labels.helm\.sh/chart=x", "'/monitoring/rules/labels/helm.sh~1chart'");
    check(
        r"podAnnotations.kubectl\.kubernetes\.io/default-container=x",
        "'/podAnnotations/kubectl.kubernetes.io~1default-container'",
    );
    check("podLabels.team=i o t", "/podLabels/team");
    check("podLabels.te am=iot", "invalid propertyName 'te am'");
    check("nodeSelector.pool=-", "/nodeSelector/pool");
    check("tolerations[0].operater=Exists", "'operater' not allowed");
    check("tolerations[0].effect=NoStart", "/tolerations/0/effect");
    check("topologySpreadConstraints[0].maxSkew=1", "missing properties 'topologyKey', 'whenUnsatisfiable'");
    check("topologySpreadConstraints[0].maxSkew=0", "/topologySpreadConstraints/0/maxSkew");
    check("topologySpreadConstraints[0].topology=zone", "'topology' not allowed");
    check("affinity.nodeAfinity.x=1", "'nodeAfinity' not allowed");
    check("affinity.podAntiAffinity.required=1", "'required' not allowed");
    check("priorityClassName=Very High", "/priorityClassName");
    check("resources.limits.memory=lots", "/resources/limits/memory");
    check("resources.request.cpu=1", "'request' not allowed");
}

#[test]
#[ignore = "level api: cargo xtask test api"]
fn an_image_is_named_by_tag_or_digest() {
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let check = |values: &[&str], operator: &str, gateway: &str| {
        let rendered = template("default", values).expect("a chart");
        let container = &find(&rendered, "Deployment", "")["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], operator, "{values:?}");
        let wanted = format!("--gateway-image={gateway}");
        assert!(container["args"].as_array().expect("arguments").contains(&wanted.clone().into()), "{wanted}");
    };
    let (operator, gateway) = ("protocolgateway.io/operator:0.1.0", "protocolgateway.io/gateway:0.1.0");
    check(&[], operator, gateway);
    check(&["image.tag=v7", "gateway.image.tag=v8"], "protocolgateway.io/operator:v7", "protocolgateway.io/gateway:v8");
    check(
        &[&format!("image.digest={digest}"), "image.tag=v7", "gateway.image.repository=registry.example:5000/gw"],
        &format!("protocolgateway.io/operator@{digest}"),
        "registry.example:5000/gw:0.1.0",
    );
}

#[test]
#[ignore = "level api: cargo xtask test api"]
fn with_named_namespaces_there_is_no_right_in_others() {
    let everywhere = template("iot", &[]).expect("a chart");
    assert!(rules(find(&everywhere, "ClusterRole", ":fleets")).contains("secrets"));
    let named = template("iot", &["watchNamespaces={plant-a,plant-b}"]).expect("a chart");
    let cluster_wide = named.iter().filter(|each| of(each, "kind") == "ClusterRole" && !name(each).ends_with("edit"));
    for role in cluster_wide {
        assert!(!rules(role).contains("secrets") && !rules(role).contains("deployments"), "{role}");
    }
    let fleets: Vec<_> =
        named.iter().filter(|each| of(each, "kind") == "Role" && name(each).ends_with(":fleets")).collect();
    let namespaces = fleets.iter().map(|role| role["metadata"]["namespace"].as_str().unwrap_or_default());
    assert_eq!(namespaces.collect::<Vec<_>>(), ["plant-a", "plant-b"]);
    let same = |role: &&Value| role["rules"] == find(&everywhere, "ClusterRole", ":fleets")["rules"];
    assert!(fleets.iter().all(same), "the same rights, in fewer places");
}

#[test]
#[ignore = "level api: cargo xtask test api"]
fn the_operator_is_confined_and_spread() {
    let rendered = template("iot", &[]).expect("a chart");
    let deployment = find(&rendered, "Deployment", "");
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(deployment["spec"]["replicas"], 2);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    let container = &pod["containers"][0]["securityContext"];
    assert_eq!(container["readOnlyRootFilesystem"], true);
    assert_eq!(container["allowPrivilegeEscalation"], false);
    assert_eq!(container["capabilities"]["drop"], serde_json::json!(["ALL"]));
    assert!(pod["affinity"]["podAntiAffinity"].is_object());
    assert_eq!(find(&rendered, "PodDisruptionBudget", "")["spec"]["maxUnavailable"], 1);
}

/// What the level `cluster` shows with pods that run, here with all that an API server knows.
#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn uninstalled_and_installed_again_the_chart_leaves_what_users_have() {
    let cluster = Cluster::api().await.expect("a cluster");
    let test = async |story: &Story| {
        install(story, "first", &installed::chart(), &[])?;
        let gateways = examples()?;
        for example in &gateways {
            apply(story, &fs::read_to_string(example)?)?;
        }
        let before = uids(story)?;
        ensure!(before.len() == gateways.len(), "{before:?}");

        let changed = installed::chart_with_another_field()?;
        install(story, "first", changed.as_ref(), &[])?;
        ensure!(explains_another_field(story)?, "the definition was upgraded with the chart");
        ensure!(uids(story)? == before, "an upgrade changed the users' resources");

        uninstall(story, "first")?;
        let definitions: Api<CustomResourceDefinition> = Api::all(story.client.clone());
        ensure!(definitions.get_opt(DEFINITION).await?.is_some(), "the definition went with the chart");
        ensure!(uids(story)? == before, "the users' resources went with the chart");
        let roles: Api<ClusterRole> = Api::all(story.client.clone());
        ensure!(roles.get_opt(&format!("{}:first-protocol-gateway-operator", story.namespace)).await?.is_none());
        let own: Api<Role> = Api::namespaced(story.client.clone(), &story.namespace);
        ensure!(own.list(&ListParams::default()).await?.items.is_empty());

        // by another name, even
        install(story, "second", &installed::chart(), &["watchNamespaces={default}"])?;
        ensure!(uids(story)? == before);
        uninstall(story, "second")
    };
    cluster.story("chart-stays", test).await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn the_notes_and_the_examples_of_the_chart_show_what_the_api_server_takes() {
    let cluster = Cluster::api().await.expect("a cluster");
    let test = async |story: &Story| {
        let definition = workspace_root().join("crds/protocolgateway.yaml");
        run(story.kubectl()?.args(["apply", "--server-side", "--force-conflicts", "-f"]).arg(definition))?;
        let established = ["wait", "--for=condition=Established", "--timeout=30s", "crd", DEFINITION];
        run(story.kubectl()?.args(established))?;
        let mut install = helm(&["install", "x"]);
        install.arg(installed::chart()).args(["--dry-run=client", "--namespace", &story.namespace]);
        let output = install.output()?;
        let notes = String::from_utf8_lossy(&output.stdout).into_owned();
        let shown = notes.split_once("<<EOF\n").and_then(|(_before, after)| after.split_once("\nEOF\n"));
        let shown =
            shown.context("the notes show a ProtocolGateway")?.0.replace("namespace: default", "namespace: null");
        apply(story, &shown)?;
        for example in examples()? {
            let text = fs::read_to_string(&example)?;
            apply(story, &text).with_context(|| example.display().to_string())?;
        }
        Ok(())
    };
    cluster.story("chart-notes", test).await;
}

fn helm(arguments: &[&str]) -> Command {
    let mut command = Command::new(programs::HELM.path().expect("helm is built"));
    command.args(arguments);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output()?;
    if !output.status.success() {
        bail!("{}", said(&output));
    }
    Ok(said(&output))
}

/// What the chart makes of these values, its tests included.
fn template(namespace: &str, values: &[&str]) -> anyhow::Result<Vec<Value>> {
    let mut command = helm(&["template", "x"]);
    command.arg(installed::chart()).args(["--namespace", namespace]);
    for value in values {
        command.args(["--set", value]);
    }
    let text = run(&mut command)?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).context("the chart makes YAML")?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

fn of<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn find<'a>(rendered: &'a [Value], kind: &str, ending: &str) -> &'a Value {
    let found = rendered.iter().find(|each| of(each, "kind") == kind && name(each).ends_with(ending));
    found.unwrap_or_else(|| panic!("no {kind} …{ending}"))
}

fn rules(role: &Value) -> String {
    role["rules"].to_string()
}

fn examples() -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(workspace_root().join("charts/examples"))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<Vec<_>>>()?;
    paths.sort();
    ensure!(!paths.is_empty());
    Ok(paths)
}

fn install(story: &Story, release: &str, chart: &Path, values: &[&str]) -> anyhow::Result<()> {
    let mut command = story.cluster.helm()?;
    command.args(["upgrade", "--install", release]).arg(chart).args(["--namespace", &story.namespace]);
    // other tests of this API server apply the definition, too
    command.args(["--take-ownership", "--force-conflicts", "--wait=hookOnly"]);
    for value in values {
        command.args(["--set", value]);
    }
    run(&mut command)?;
    let established = ["wait", "--for=condition=Established", "--timeout=30s", "crd", DEFINITION];
    run(story.kubectl()?.args(established)).map(drop)
}

fn uninstall(story: &Story, release: &str) -> anyhow::Result<()> {
    let limit = format!("{}s", Duration::from_mins(1).as_secs());
    let arguments = ["uninstall", release, "--namespace", &story.namespace, "--wait", "--timeout", &limit];
    run(story.cluster.helm()?.args(arguments)).map(drop)
}

fn explains_another_field(story: &Story) -> anyhow::Result<bool> {
    let arguments = ["get", "crd", DEFINITION, "--output=json"];
    Ok(run(story.kubectl()?.args(arguments))?.contains(installed::ANOTHER_FIELD))
}

/// Applies text to the story's namespace, strictly.
fn apply(story: &Story, text: &str) -> anyhow::Result<()> {
    let file = scratch(&story.namespace, text)?;
    let applied = run(story.kubectl()?.args(["apply", "--server-side", "--validate=strict", "-f"]).arg(&file));
    fs::remove_file(file)?;
    applied.map(drop)
}

/// The ProtocolGateways of the story by name, with what tells a new one of the same name.
fn uids(story: &Story) -> anyhow::Result<BTreeMap<String, String>> {
    let list: Value = serde_json::from_str(&run(story.kubectl()?.args(["get", "pgw", "--output=json"]))?)?;
    let items = list["items"].as_array().context("a list")?;
    let uid = |item: &Value| (name(item).to_owned(), item["metadata"]["uid"].as_str().unwrap_or_default().to_owned());
    Ok(items.iter().map(uid).collect())
}

fn scratch(name: &str, text: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::temp_dir().join(format!("{name}-{}.yaml", std::process::id()));
    fs::write(&path, text)?;
    Ok(path)
}
