//! The operator on a cluster: images of this checkout on every node, and the chart.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use anyhow::{Context, bail, ensure};
use k8s_openapi::api::{
    coordination::v1::{Lease, LeaseSpec},
    core::v1::Pod,
};
use kube::{Api, ResourceExt, api::ListParams};
use xtask::{
    process::{self, run_quietly},
    product,
    step::{say, step},
};

use crate::{Cluster, cgroup};

/// Namespace of the operator.
pub const NAMESPACE: &str = "protocol-gateway-system";
/// Name of the release, and of everything that the chart makes.
pub const RELEASE: &str = "protocol-gateway-operator";

/// The operator, installed by its chart.
#[derive(Clone, Debug)]
pub struct Installed {
    cluster: Cluster,
    /// Image by program.
    pub images: BTreeMap<&'static str, String>,
}

impl Installed {
    /// Builds gateway and operator as tests do, brings their images to the nodes and installs the chart, or upgrades what
    /// an earlier test installed; returns when the operators are ready. Once for each process.
    ///
    /// # Errors
    /// A build that fails, a node that does not take an image; what Helm says, with what the operators' pods say.
    pub async fn operator(cluster: &Cluster) -> anyhow::Result<Self> {
        static ONCE: OnceLock<Result<Installed, String>> = OnceLock::new();
        let cluster = cluster.clone();
        let installed = move || {
            let once = || Self::install(&cluster).map_err(|error| format!("{error:#}"));
            ONCE.get_or_init(once).clone().map_err(anyhow::Error::msg)
        };
        tokio::task::spawn_blocking(installed).await?
    }

    /// As [`Installed::operator`], each time anew.
    ///
    /// # Errors
    /// As [`Installed::operator`].
    pub fn install(cluster: &Cluster) -> anyhow::Result<Self> {
        let images = step("bring this checkout's images to the nodes", || bring_images(cluster))?;
        let installed = Self { cluster: cluster.clone(), images };
        step("install the operator", || installed.upgrade(&chart(), &[]))?;
        Ok(installed)
    }

    /// Installs or upgrades from a chart, with further values as Helm's `--set` takes them; waits until it is ready.
    ///
    /// # Errors
    /// What Helm says, with what the operators' pods say.
    pub fn upgrade(&self, chart: &Path, values: &[&str]) -> anyhow::Result<()> {
        let mut helm = self.cluster.helm()?;
        helm.args(["upgrade", "--install", RELEASE]).arg(chart);
        helm.args(["--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout", "3m"]);
        // the definition may have been applied by another test before
        helm.args(["--take-ownership", "--force-conflicts"]);
        let (operator, gateway) = (split(&self.images["operator"])?, split(&self.images["gateway"])?);
        for (prefix, (repository, tag)) in [("image", operator), ("gateway.image", gateway)] {
            helm.args(["--set", &format!("{prefix}.repository={repository},{prefix}.tag={tag}")]);
        }
        helm.args(["--set", "image.pullPolicy=Never"]);
        for value in values {
            helm.args(["--set", value]);
        }
        run_quietly(&mut helm).with_context(|| self.state())
    }

    /// `helm uninstall`, waiting until what it removes is gone.
    ///
    /// # Errors
    /// What Helm says.
    pub fn uninstall(&self) -> anyhow::Result<()> {
        let mut helm = self.cluster.helm()?;
        run_quietly(helm.args(["uninstall", RELEASE, "--namespace", NAMESPACE, "--wait", "--timeout", "3m"]))
    }

    /// `helm test`.
    ///
    /// # Errors
    /// What the chart's test says.
    pub fn test(&self) -> anyhow::Result<()> {
        let mut helm = self.cluster.helm()?;
        run_quietly(helm.args(["test", RELEASE, "--namespace", NAMESPACE, "--logs", "--timeout", "3m"]))
            .with_context(|| self.state())
    }

    /// The lease by which operators agree who writes.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn lease(&self) -> anyhow::Result<LeaseSpec> {
        let leases: Api<Lease> = Api::namespaced(self.cluster.client().await?, NAMESPACE);
        leases.get(RELEASE).await?.spec.context("the lease says nothing")
    }

    /// Who holds the lease: a name that begins with that of its pod.
    ///
    /// # Errors
    /// Nobody does.
    pub async fn leader(&self) -> anyhow::Result<String> {
        self.lease().await?.holder_identity.filter(|holder| !holder.is_empty()).context("nobody leads")
    }

    /// The operator's pods.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn pods(&self) -> anyhow::Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.cluster.client().await?, NAMESPACE);
        let ours = ListParams::default()
            .labels(&format!("app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=operator"));
        Ok(pods.list(&ours).await?.items)
    }

    /// The pod of [`Installed::leader`].
    ///
    /// # Errors
    /// As [`Installed::leader`]; a pod that is gone.
    pub async fn leader_pod(&self) -> anyhow::Result<Pod> {
        let holder = self.leader().await?;
        let pods = self.pods().await?;
        // after the name comes what tells one process in it from the next
        let leads = |pod: &Pod| holder.strip_prefix(&pod.name_any()).is_some_and(|rest| !rest.starts_with('-'));
        pods.into_iter().find(leads).with_context(|| format!("{holder} is no pod"))
    }

    /// Waits until all operators are ready.
    ///
    /// # Errors
    /// The time is over, with what the operators' pods say.
    pub fn all_ready(&self) -> anyhow::Result<()> {
        let arguments = ["rollout", "status", "--timeout=3m", &format!("deployment/{RELEASE}")];
        run_quietly(self.kubectl()?.args(arguments)).with_context(|| self.state())
    }

    /// Kills the process in the pod, as the kernel does when memory is short: nothing of it is done in order, and the
    /// kubelet starts another in the same pod.
    ///
    /// # Errors
    /// No process is found: on another machine, or not started.
    pub fn crash(pod: &Pod) -> anyhow::Result<()> {
        let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
        let ids = containers.into_iter().flatten().filter_map(|container| container.container_id.as_deref());
        let mut killed = 0;
        for id in ids.filter_map(|id| id.split_once("://")) {
            killed += cgroup::kill_container(id.1)?;
        }
        ensure!(killed > 0, "{} has no process on this machine", pod.name_any());
        Ok(())
    }

    /// `kubectl` in the operator's namespace.
    ///
    /// # Errors
    /// A build that fails.
    pub fn kubectl(&self) -> anyhow::Result<Command> {
        let mut command = self.cluster.kubectl()?;
        command.args(["--namespace", NAMESPACE]);
        Ok(command)
    }

    /// Pods, Events and logs of the operator, for people who look for a reason.
    pub fn state(&self) -> String {
        let said = |arguments: &[&str]| -> anyhow::Result<String> {
            let output = self.kubectl()?.args(arguments).output()?;
            Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
        };
        let selector = format!("--selector=app.kubernetes.io/instance={RELEASE}");
        let each: [&[&str]; 3] = [
            &["get", "pods", "--output=wide"],
            &["get", "events", "--sort-by=.lastTimestamp"],
            &["logs", &selector, "--prefix", "--tail=40"],
        ];
        let each = each.map(|arguments| said(arguments).unwrap_or_else(|error| format!("{error:#}\n")));
        format!("in {NAMESPACE} there is:\n{}", each.join("\n"))
    }
}

/// The chart of this checkout.
pub fn chart() -> PathBuf {
    process::workspace_root().join("charts/protocol-gateway-operator")
}

/// A copy of the chart whose definition knows one more field, for who tries an upgrade. It is removed with the value.
///
/// # Errors
/// A definition in which that field has no place; a directory that cannot be written.
pub fn chart_with_another_field() -> anyhow::Result<ChartCopy> {
    static COPIES: AtomicU32 = AtomicU32::new(0);
    let name = format!("protocol-gateway-chart-{}-{}", std::process::id(), COPIES.fetch_add(1, Relaxed));
    let copy = ChartCopy(std::env::temp_dir().join(name));
    run_quietly(Command::new("cp").arg("-r").arg(chart()).arg(&copy.0))?;
    let file = copy.0.join("files/protocolgateway.yaml");
    let text = fs::read_to_string(&file)?;
    let anchor = "              replicas:\n                default: 2\n";
    ensure!(text.matches(anchor).count() == 1, "the definition's replicas stand elsewhere");
    let field = format!(
        "              anotherField:\n                description: {ANOTHER_FIELD}\n                type: string\n"
    );
    fs::write(&file, text.replace(anchor, &format!("{field}{anchor}")))?;
    Ok(copy)
}

/// What the field that [`chart_with_another_field`] adds says of itself.
pub const ANOTHER_FIELD: &str = "Of a later version.";

/// A chart in a directory that goes with this value.
#[derive(Debug)]
pub struct ChartCopy(PathBuf);

impl AsRef<Path> for ChartCopy {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for ChartCopy {
    fn drop(&mut self) {
        // what cannot be removed is the system's to remove
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A full name without its tag, and the tag.
fn split(image: &str) -> anyhow::Result<(&str, &str)> {
    image.rsplit_once(':').with_context(|| format!("{image} has no tag"))
}

/// What a node has already is not brought again: the name of an image says what is in it.
fn bring_images(cluster: &Cluster) -> anyhow::Result<BTreeMap<&'static str, String>> {
    if cluster.nodes.is_empty() {
        bail!("no node of this cluster is known here: stories need the cluster of `cargo xtask up`, or their own");
    }
    let mut images = BTreeMap::new();
    for product in product::for_tests()? {
        let name = product.image.name.clone();
        if !cluster.has(&name)? {
            say(&name);
            cluster.import(&product.image)?;
        }
        images.insert(product.program, name);
    }
    Ok(images)
}
