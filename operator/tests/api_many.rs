//! What many ProtocolGateways cost the operator: time from a cold start until all are reconciled, memory, and writes at rest.
//! Reconciled is a fleet whose objects and status are those of its spec, which changed while no operator ran.
//!
//! A hundred, unless `GATEWAYS` says how many:
//! `GATEWAYS=1000 cluster api -- cargo test --release --package operator --test api_many -- --ignored --nocapture`

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use cluster::{Cluster, Story};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    core::DynamicObject,
    runtime::{conditions::is_crd_established, wait::await_condition},
};
use operator::{
    kinds::{GATEWAY, Kind},
    names,
};
use serde_json::{Value, json};

const GATEWAYS: usize = 100;
const START_MAX: Duration = Duration::from_secs(30);
const MEMORY_KIB_MAX: u64 = 100 << 10;

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn many_gateways_are_reconciled_in_half_a_minute_and_cost_little() {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let count: usize = std::env::var("GATEWAYS").ok().map_or(GATEWAYS, |count| count.parse().expect("a number"));
    Cluster::api().await.expect("a cluster").story("scale", async |story: &Story| measure(story, count).await).await;
}

async fn measure(story: &Story, count: usize) -> anyhow::Result<()> {
    // the more there are, the longer the cluster's own controllers take
    let (quiet, rest) = if count > GATEWAYS { (20, 60) } else { (3, 5) };
    let (quiet, rest) = (Duration::from_secs(quiet), Duration::from_secs(rest));
    declare(story, count, 100).await?;
    let first = Running::start(story)?;
    let made = first.reconciled(story, count, Duration::from_mins(10)).await?;
    settled(&first, quiet).await?;
    println!(
        "{count} gateways: all made after {made:?}, {} KiB at most, {} writes",
        first.memory("VmHWM")?,
        first.writes()?
    );
    first.stop()?;
    // what is found as it was left proves nothing: every one asks for something else when the next operator starts
    declare(story, count, 200).await?;
    let second = Running::start(story)?;
    let start = second.reconciled(story, count, Duration::from_mins(5)).await?;
    println!(
        "{count} gateways: cold start {start:?}, {} KiB at most, {} writes",
        second.memory("VmHWM")?,
        second.writes()?
    );
    settled(&second, quiet).await?;
    let (writes, cpu, log) = (second.writes()?, second.cpu()?, audit(story)?);
    tokio::time::sleep(rest).await;
    let (written, cpu) = (second.writes()? - writes, second.cpu()?.saturating_sub(cpu));
    let mut logged = audit(story)?.split_off(log.len());
    let (memory, high) = (second.memory("VmRSS")?, second.memory("VmHWM")?);
    println!(
        "{count} gateways at rest for {rest:?}: {written} writes of objects, {} of all kinds, {cpu:?} of CPU, {memory} KiB",
        logged.len()
    );
    second.stop()?;
    ensure!(written == 0, "{written} objects are written at rest");
    logged.retain(|line| !line.contains("/leases/"));
    ensure!(logged.is_empty(), "an operator at rest writes nothing but its Lease: {:#?}", logged.first());
    ensure!(start < START_MAX, "a cold start takes {start:?}");
    ensure!(high < MEMORY_KIB_MAX, "it takes {high} KiB");
    Ok(())
}

/// What is made is followed by answers of the cluster's controllers, which take their time, and these by statuses.
async fn settled(operator: &Running, quiet: Duration) -> anyhow::Result<()> {
    let (begun, mut writes, mut since) = (Instant::now(), 0, Instant::now());
    while since.elapsed() < quiet {
        let now = operator.writes()?;
        if now != writes {
            (writes, since) = (now, Instant::now());
        }
        ensure!(begun.elapsed() < Duration::from_mins(10), "it never comes to rest");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

/// So many fleets that take `connects_per_second`, which is followed without a restart.
async fn declare(story: &Story, count: usize, connects_per_second: u32) -> anyhow::Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(story.client.clone());
    let (definition, name) = (crds::definition(), "protocolgateways.protocolgateway.io");
    definitions.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(&definition)).await?;
    tokio::time::timeout(Duration::from_mins(1), await_condition(definitions, name, is_crd_established())).await??;
    let api = GATEWAY.api(&story.client, Some(&story.namespace));
    let declare = |index: usize| {
        let api = api.clone();
        async move {
            let name = format!("gw-{index}");
            let spec = json!({"upstream": {"iotHub": {"hostName": "hub.azure-devices.net"}}, "replicas": 0,
                "limits": {"connectsPerSecond": connects_per_second}});
            let object =
                json!({"apiVersion": crds::API_VERSION, "kind": crds::KIND, "metadata": {"name": name}, "spec": spec});
            api.patch(&name, &PatchParams::apply("user"), &Patch::Apply(object)).await.map(drop)
        }
    };
    stream::iter(0..count).map(declare).buffer_unordered(16).try_collect::<()>().await?;
    Ok(())
}

/// What is missing until all fleets are as their specs say: statuses first, then objects, then what is in these.
async fn missing(story: &Story, count: usize) -> anyhow::Result<Vec<String>> {
    let all = async |kind: &Kind| kind.api(&story.client, Some(&story.namespace)).list(&ListParams::default()).await;
    let gateways = all(&GATEWAY).await?.items;
    ensure!(gateways.len() == count, "there are {} fleets", gateways.len());
    let is_told = |gateway: &&DynamicObject| {
        gateway.data["status"]["observedGeneration"].as_i64() == gateway.metadata.generation
            && is_as_desired(&gateway.data["status"]["conditions"])
    };
    let mut missing: Vec<String> = gateways
        .iter()
        .filter(|gateway| !is_told(gateway))
        .map(|gateway| format!("status of {}", gateway.name_any()))
        .collect();
    if !missing.is_empty() {
        return Ok(missing);
    }
    for kind_name in ["ServiceAccount", "Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget", "Secret"] {
        let kind = Kind::owned(kind_name).context("the operator makes it")?;
        let api = kind.api(&story.client, Some(&story.namespace));
        let there = api.list_metadata(&ListParams::default()).await?.items;
        let there: HashSet<String> = there.into_iter().filter_map(|object| object.metadata.name).collect();
        let wanted = gateways.iter().flat_map(|gateway| match kind_name {
            "Secret" => names::secrets(&gateway.name_any()).into(),
            _ => vec![gateway.name_any()],
        });
        missing.extend(wanted.filter(|name| !there.contains(name)).map(|name| format!("{kind_name} {name}")));
    }
    let configs = all(Kind::owned("ConfigMap").context("the operator makes it")?).await?.items;
    let configs: HashMap<String, DynamicObject> =
        configs.into_iter().map(|config| (config.name_any(), config)).collect();
    for gateway in &gateways {
        let asked = format!("connectsPerSecond: {}\n", gateway.data["spec"]["limits"]["connectsPerSecond"]);
        let config = configs.get(&gateway.name_any()).and_then(|config| config.data["data"]["gateway.yaml"].as_str());
        if !config.is_some_and(|config| config.contains(&asked)) {
            missing.push(format!("configuration of {}", gateway.name_any()));
        }
    }
    Ok(missing)
}

fn is_as_desired(conditions: &Value) -> bool {
    let degraded = conditions.as_array().and_then(|all| all.iter().find(|condition| condition["type"] == "Degraded"));
    degraded.is_some_and(|degraded| degraded["status"] == "False")
}

fn audit(story: &Story) -> anyhow::Result<Vec<String>> {
    let log = story.cluster.audit_log().context("a cluster of the harness has an audit log")?;
    let written = fs::read_to_string(log)?;
    let ours = |line: &&str| {
        line.contains(&story.namespace)
            && serde_json::from_str::<Value>(line)
                .is_ok_and(|event| !event["userAgent"].as_str().is_some_and(|agent| agent.starts_with("kube-")))
    };
    Ok(written.lines().filter(ours).map(str::to_owned).collect())
}

/// The program, in the test's namespace.
struct Running {
    child: Child,
    begun: Instant,
    listen: SocketAddr,
}

impl Running {
    fn start(story: &Story) -> anyhow::Result<Self> {
        let listen = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = Command::new(env!("CARGO_BIN_EXE_operator"))
            .env("KUBECONFIG", &story.cluster.kubeconfig)
            .args(["run", "--gateway-image", "registry.example/gateway:1.0.0", "--pod-name", "operator-0"])
            .args(["--namespace", &story.namespace, "--watch-namespaces", &story.namespace])
            .args(["--listen", &listen.to_string(), "--metrics-api-port", "0", "--lease-seconds", "3"])
            .args(["--log-level", "warn"])
            .stdout(Stdio::inherit())
            .spawn()?;
        Ok(Self { child, begun: Instant::now(), listen })
    }

    /// Time until `count` fleets are as their specs say, and their statuses say so.
    async fn reconciled(&self, story: &Story, count: usize, limit: Duration) -> anyhow::Result<Duration> {
        loop {
            let missing = missing(story, count).await?;
            if missing.is_empty() {
                return Ok(self.begun.elapsed());
            }
            let first = missing.first();
            ensure!(self.begun.elapsed() < limit, "not after {limit:?}: {} are missing: {first:?}", missing.len());
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    fn writes(&self) -> anyhow::Result<u64> {
        Ok(sum(&self.metrics()?, "operator_writes_total") as u64)
    }

    fn metrics(&self) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(self.listen)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }

    /// KiB.
    fn memory(&self, field: &str) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with(field)).context("the kernel tells")?;
        Ok(line.split_whitespace().nth(1).context("a number")?.parse()?)
    }

    fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().context("fields")?.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_millis(ticks * 10))
    }

    fn stop(mut self) -> anyhow::Result<()> {
        ensure!(Command::new("kill").arg(self.child.id().to_string()).status()?.success());
        let begun = Instant::now();
        ensure!(self.child.wait()?.success(), "it ends well");
        println!("stopped after {:?}", begun.elapsed());
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sum(metrics: &str, name: &str) -> f64 {
    let lines = metrics.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}
