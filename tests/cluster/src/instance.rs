//! A cluster that this process starts, and that ends with it.

use std::{
    io::{BufRead, BufReader},
    net::Ipv4Addr,
    os::unix::process::CommandExt,
    path::Path,
    process::{ChildStdin, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, bail};
use xtask::step::step;

use crate::{
    Cluster,
    control::{self, ControlPlane},
    daemon::{Daemon, Starter},
    dns, network,
    node::{self, NodeStart},
    programs,
    run::Run,
    sysctl,
};

/// How much of a Kubernetes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Level {
    /// etcd, kube-apiserver, kube-controller-manager, on a loopback address.
    Api,
    /// Two nodes that run containers as well.
    Nodes,
}

/// A running cluster; dropping it ends the cluster and removes every trace.
#[derive(Debug)]
pub struct Instance {
    /// How to reach it.
    pub cluster: Cluster,
    daemons: Vec<Daemon>,
    run: Option<Run>,
}

/// Loopback addresses that are tried before it is said that there is none; each belongs to one run.
const CLAIMS_MAX: usize = 8;

/// How long a cluster that was left running may take to answer before it is started anew.
const WORKS_TIMEOUT: Duration = Duration::from_secs(10);

impl Instance {
    /// Starts a cluster and waits until it works. Call it on a thread that lives as long as the cluster is to.
    ///
    /// # Errors
    /// A program that cannot be built or does not start, with its last words; who lacks the rights for nodes.
    pub fn start(level: Level) -> anyhow::Result<Self> {
        match level {
            Level::Api => Self::start_api(),
            Level::Nodes => Self::start_nodes(false),
        }
    }

    /// Starts a cluster of two nodes that stays when this process ends, until [`down`] ends it.
    ///
    /// # Errors
    /// As [`Instance::start`]; then nothing of it stays.
    pub fn leave_nodes() -> anyhow::Result<Cluster> {
        let mut instance = Self::start_nodes(true)?;
        instance.daemons.clear();
        instance.run.take().expect("an instance has a run until it is dropped").detach()?;
        Ok(instance.cluster.clone())
    }

    fn start_api() -> anyhow::Result<Self> {
        // before the step that says how long the start takes: the first build takes minutes
        for program in [programs::ETCD, programs::APISERVER, programs::CONTROLLER_MANAGER, programs::KUBECTL] {
            program.path()?;
        }
        let (run, address) = claim_loopback()?;
        step(&format!("start the Kubernetes API {} at {address}", programs::KUBERNETES_VERSION), || {
            let (mut instance, starter) = Self::new(run, false);
            let control = ControlPlane { starter: &starter, address, network: None, nodes: false };
            let started = control.start()?;
            instance.daemons = started.daemons;
            instance.cluster.describe()?;
            block_on(async {
                control.start_controllers(&started.authority, &instance.cluster, &mut instance.daemons).await?;
                control::ready(&instance.cluster, &mut instance.daemons).await
            })?;
            Ok(instance)
        })
    }

    fn start_nodes(detached: bool) -> anyhow::Result<Self> {
        node::prepare()?;
        let run = Run::claim()?;
        step(&format!("start a Kubernetes {} of two nodes", programs::KUBERNETES_VERSION), || {
            sysctl::remember(&run)?;
            let number = run.number;
            let (mut instance, starter) = Self::new(run, detached);
            network::make(number)?;
            let places = network::places(number);
            let [first, _second] = &places;
            let control =
                ControlPlane { starter: &starter, address: first.address, network: Some(&first.network), nodes: true };
            let started = control.start()?;
            instance.daemons = started.daemons;
            for place in &places {
                let start = NodeStart { starter: &starter, control: &control, authority: &started.authority, place };
                let (node, daemons) = start.start()?;
                instance.cluster.nodes.push(node);
                instance.daemons.extend(daemons);
            }
            instance.cluster.describe()?;
            block_on(async {
                control.start_controllers(&started.authority, &instance.cluster, &mut instance.daemons).await?;
                control::ready(&instance.cluster, &mut instance.daemons).await?;
                let mut dns = dns::start(&control, &started.authority)?;
                dns::ready(&control, &mut dns).await?;
                instance.daemons.push(dns);
                dns::publish(instance.cluster.client().await?, &control).await?;
                node::ready(&instance.cluster, &mut instance.daemons).await
            })?;
            Ok(instance)
        })
    }

    /// Nothing runs yet; dropped before its time, it leaves nothing.
    fn new(run: Run, detached: bool) -> (Self, Starter) {
        let starter = Starter { directory: run.directory.clone(), detached };
        let cluster = Cluster { kubeconfig: run.directory.join("kubeconfig"), nodes: Vec::new() };
        (Self { cluster, daemons: Vec::new(), run: Some(run) }, starter)
    }
}

/// The cluster that was left running on purpose, if it is there and works.
pub fn left_running() -> anyhow::Result<Option<Cluster>> {
    let Some(directory) = Run::detached()? else { return Ok(None) };
    let works = || {
        let cluster = Cluster::named_by(&directory.join("kubeconfig"))?;
        let answer = async { tokio::time::timeout(WORKS_TIMEOUT, node::are_ready(&cluster)).await };
        let works = block_on(answer)??;
        anyhow::Ok(works.then_some(cluster))
    };
    // whatever keeps it from working, it is not there
    Ok(works().unwrap_or_default())
}

/// Removes every trace of clusters that no process holds, and returns how many there were.
///
/// # Errors
/// What cannot be removed.
pub fn down() -> anyhow::Result<usize> {
    Run::remove_all()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime needs a few file descriptors").block_on(future)
}

impl Drop for Instance {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            daemon.kill();
        }
        if let Some(run) = self.run.take()
            && let Err(error) = crate::clean::remove(&run)
        {
            eprintln!("the cluster left traces, which the next one or `cargo xtask down` removes: {error:#}");
        }
    }
}

/// A run and the loopback address of its own: every address of 127.0.0.0/8 is this machine's.
fn claim_loopback() -> anyhow::Result<(Run, Ipv4Addr)> {
    // held until the end: else the next claim is the same number again
    let mut taken = Vec::new();
    while taken.len() < CLAIMS_MAX {
        let run = Run::claim()?;
        let address = Ipv4Addr::new(127, 77, 0, run.number + 1);
        if control::is_free(address) {
            return Ok((run, address));
        }
        taken.push(run);
    }
    bail!("the ports of the API server are taken at {CLAIMS_MAX} loopback addresses")
}

/// The cluster of this process, started by the first who asks.
pub(crate) fn shared(level: Level) -> anyhow::Result<Cluster> {
    static API: OnceLock<Result<Served, String>> = OnceLock::new();
    static NODES: OnceLock<Result<Served, String>> = OnceLock::new();
    let cell = match level {
        Level::Api => &API,
        Level::Nodes => &NODES,
    };
    let shared = cell.get_or_init(|| serve(level).map_err(|error| format!("{error:#}")));
    shared.as_ref().map(|served| served.cluster.clone()).map_err(|error| anyhow::Error::msg(error.clone()))
}

/// A cluster that another process keeps for this one.
#[derive(Debug)]
struct Served {
    cluster: Cluster,
    /// Ends the other process when it closes, in whatever way this process ends.
    _life: ChildStdin,
}

/// Has the program `cluster` keep an instance: a test that is killed could not remove what its own has left.
fn serve(level: Level) -> anyhow::Result<Served> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["run", "--quiet", "--package", "cluster", "--", "serve"]).arg(match level {
        Level::Api => "api",
        Level::Nodes => "nodes",
    });
    let mut child = command
        .current_dir(xtask::process::workspace_root())
        // Ctrl-C is for the tests
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the program that keeps the cluster")?;
    let life = child.stdin.take().expect("its input is a pipe");
    let mut answer = String::new();
    BufReader::new(child.stdout.take().expect("its output is a pipe")).read_line(&mut answer)?;
    if answer.is_empty() {
        bail!("the cluster does not start; why is said above");
    }
    Ok(Served { cluster: Cluster::named_by(Path::new(answer.trim_end()))?, _life: life })
}
