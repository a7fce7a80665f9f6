//! Level api: replicas of the program itself, each a user of its own so that the audit log tells them apart.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use cluster::{Cluster, Story};
use k8s_openapi::api::{
    coordination::v1::Lease,
    rbac::v1::{Role, RoleBinding},
};
use kube::{Api, api::PostParams, config::Kubeconfig};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::time::sleep;

const LEASE: &str = "protocol-gateway-operator";
const LEASE_SECONDS: u64 = 3;
/// The machine that runs the tests is busy with other things, too.
const SLACK: Duration = Duration::from_millis(1500);
const PATIENCE: Duration = Duration::from_secs(30);

/// A process; killed when it is dropped.
struct Replica {
    name: &'static str,
    child: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Drop for Replica {
    fn drop(&mut self) {
        // an error: it ended before
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Replica {
    fn start(story: &Story, name: &'static str) -> anyhow::Result<Self> {
        let directory = story.cluster.kubeconfig.with_file_name(format!("{}-{name}", story.namespace));
        std::fs::create_dir_all(&directory)?;
        let mut kubeconfig = Kubeconfig::read_from(&story.cluster.kubeconfig)?;
        for user in kubeconfig.auth_infos.iter_mut().filter_map(|user| user.auth_info.as_mut()) {
            user.impersonate = Some(user_of(story, name));
        }
        // JSON is YAML
        let file = directory.join("kubeconfig");
        std::fs::write(&file, serde_json::to_string(&kubeconfig)?)?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = directory.join("log");
        let child = Command::new(env!("CARGO_BIN_EXE_operator"))
            .args(["run", "--gateway-image=none", "--metrics-api-port=0", "--log-level=operator=debug"])
            .args([format!("--namespace={}", story.namespace), format!("--pod-name={name}")])
            .args([format!("--listen={address}"), format!("--lease-seconds={LEASE_SECONDS}")])
            .arg(format!("--watch-namespaces={}", story.namespace))
            .env("KUBECONFIG", file)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        Ok(Self { name, child, address, log })
    }

    /// Value of `operator_leader`.
    fn leads(&self) -> anyhow::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text.lines().any(|line| line == "operator_leader 1"))
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(begin.elapsed() < PATIENCE, "{} does not end: {}", self.name, self.log());
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

fn user_of(story: &Story, name: &str) -> String {
    format!("{}:{name}", story.namespace)
}

/// Two replicas with the rights that election needs, one of them leading: that one first.
async fn pair(story: &Story) -> anyhow::Result<(Replica, Replica)> {
    let names = ["a", "b"];
    allow(story, &names).await?;
    let [a, b] = names.map(|name| Replica::start(story, name));
    let (a, b) = (a?, b?);
    let holder = until_held(story, "one of them leads", PATIENCE, |_| true).await?;
    Ok(if holder.starts_with("a_") { (a, b) } else { (b, a) })
}

async fn allow(story: &Story, names: &[&str]) -> anyhow::Result<()> {
    let metadata = json!({"name": "operator", "namespace": story.namespace});
    let role: Role = serde_json::from_value(json!({
        "metadata": metadata,
        "rules": [
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
            {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
        ],
    }))?;
    let subjects: Vec<Value> = names.iter().map(|name| json!({"kind": "User", "name": user_of(story, name)})).collect();
    let binding: RoleBinding = serde_json::from_value(json!({
        "metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"},
        "subjects": subjects,
    }))?;
    let parameters = PostParams::default();
    Api::namespaced(story.client.clone(), &story.namespace).create(&parameters, &role).await?;
    Api::namespaced(story.client.clone(), &story.namespace).create(&parameters, &binding).await?;
    Ok(())
}

fn leases(story: &Story) -> Api<Lease> {
    Api::namespaced(story.client.clone(), &story.namespace)
}

fn holder(lease: Option<&Lease>) -> Option<String> {
    lease?.spec.as_ref()?.holder_identity.clone().filter(|holder| !holder.is_empty())
}

/// Waits until somebody of whom `is` holds has the Lease; says who.
async fn until_held(
    story: &Story,
    what: &str,
    limit: Duration,
    is: impl Fn(&str) -> bool + Send,
) -> anyhow::Result<String> {
    let found = move |lease: Option<&Lease>| holder(lease).is_some_and(|holder| is(&holder));
    story.until(leases(story), LEASE, what, limit, found).await?;
    holder(Some(&leases(story).get(LEASE).await?)).context("it was held")
}

async fn transitions(story: &Story) -> anyhow::Result<i32> {
    let spec = leases(story).get(LEASE).await?.spec;
    spec.and_then(|spec| spec.lease_transitions).context("it counts its holders")
}

/// Writes of one replica: (resource, verb, code).
fn writes(story: &Story, name: &str) -> anyhow::Result<Vec<(String, String, u64)>> {
    let Some(log) = story.cluster.audit_log() else { return Ok(Vec::new()) };
    let user = user_of(story, name);
    let text = std::fs::read_to_string(log)?;
    let mut found = Vec::new();
    for line in text.lines().filter(|line| line.contains(&user)) {
        let event: Value = serde_json::from_str(line)?;
        let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let code = event.pointer("/responseStatus/code").and_then(Value::as_u64);
        if let Some(code) = code.filter(|_| text("/impersonatedUser/username") == user) {
            found.push((text("/objectRef/resource"), text("/verb"), code));
        }
    }
    Ok(found)
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn one_of_two_replicas_leads_and_the_other_writes_nothing() {
    let cluster = Cluster::api().await.expect("a cluster");
    let test = async |story: &Story| {
        let (leader, other) = pair(story).await?;
        sleep(Duration::from_secs(2 * LEASE_SECONDS)).await;
        ensure!(leader.leads()?, "who holds the Lease leads: {}", leader.log());
        ensure!(!other.leads()?, "the other does not: {}", other.log());
        if story.cluster.audit_log().is_some() {
            let by_leader = writes(story, leader.name)?;
            let renewals =
                by_leader.iter().filter(|(resource, verb, _)| resource == "leases" && verb == "update").count();
            ensure!((4..=8).contains(&renewals), "renewed every second: {by_leader:?}");
            let strange = by_leader.iter().find(|(resource, ..)| !["leases", "events"].contains(&resource.as_str()));
            ensure!(strange.is_none(), "{strange:?}");
            // both may have tried to create it
            let by_other = writes(story, other.name)?;
            let attempts = by_other.iter().all(|(resource, _, code)| resource == "leases" && *code == 409);
            ensure!(attempts && by_other.len() <= 1, "{by_other:?}");
        }
        Ok(())
    };
    cluster.story("lease-one", test).await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn another_leads_within_the_lease_when_the_leader_is_killed() {
    let cluster = Cluster::api().await.expect("a cluster");
    let test = async |story: &Story| {
        let (mut leader, other) = pair(story).await?;
        // it has seen the Lease
        sleep(Duration::from_secs(1)).await;
        let before = transitions(story).await?;
        leader.child.kill()?;
        let begin = Instant::now();
        let limit = Duration::from_secs(LEASE_SECONDS) + SLACK;
        let is_other = |holder: &str| holder.starts_with(&format!("{}_", other.name));
        until_held(story, "the other leads", limit, is_other).await?;
        eprintln!("killed: another led after {:?}", begin.elapsed());
        ensure!(transitions(story).await? == before + 1, "the epoch grows by one");
        Ok(())
    };
    cluster.story("lease-kill", test).await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn another_leads_at_once_when_the_leader_exits() {
    let cluster = Cluster::api().await.expect("a cluster");
    let test = async |story: &Story| {
        let (mut leader, other) = pair(story).await?;
        sleep(Duration::from_secs(1)).await;
        leader.signal(Signal::TERM)?;
        let begin = Instant::now();
        let is_other = |holder: &str| holder.starts_with(&format!("{}_", other.name));
        until_held(story, "the other leads", Duration::from_millis(1500), is_other).await?;
        eprintln!("exit: another led after {:?}", begin.elapsed());
        let status = leader.ended().await?;
        ensure!(status.code() == Some(0), "{status}: {}", leader.log());
        Ok(())
    };
    cluster.story("lease-exit", test).await;
}

#[tokio::test]
#[ignore = "level api: cargo xtask test api"]
async fn a_leader_that_stood_still_knows_that_it_leads_no_more() {
    let cluster = Cluster::api().await.expect("a cluster");
    let test = async |story: &Story| {
        let (leader, other) = pair(story).await?;
        sleep(Duration::from_secs(1)).await;
        leader.signal(Signal::STOP)?;
        let limit = Duration::from_secs(LEASE_SECONDS) + SLACK;
        let is_other = |holder: &str| holder.starts_with(&format!("{}_", other.name));
        until_held(story, "the other leads", limit, is_other).await?;
        let before = writes(story, leader.name)?;
        leader.signal(Signal::CONT)?;
        sleep(Duration::from_secs(2)).await;
        ensure!(!leader.leads()?, "it leads still: {}", leader.log());
        ensure!(other.leads()?, "the other leads: {}", other.log());
        let since: Vec<_> = writes(story, leader.name)?.split_off(before.len());
        let taken: Vec<_> = since.iter().filter(|(.., code)| *code < 300).collect();
        ensure!(taken.is_empty(), "it wrote: {taken:?}");
        Ok(())
    };
    cluster.story("lease-still", test).await;
}
