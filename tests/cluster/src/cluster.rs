//! A cluster as a test sees it, whoever started it.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::{Deserialize, Serialize};

use crate::{
    Image,
    instance::{self, Level},
    programs,
};

/// How to reach a cluster, and what is known of it beyond its API if this harness started it.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Names the cluster and an administrator; complete in one file.
    pub kubeconfig: PathBuf,
    /// Its nodes; none at the level `api`, and none are known of a cluster that is not this harness's.
    pub nodes: Vec<Node>,
}

/// A node that this harness started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Node {
    /// Its name in the API.
    pub name: String,
    /// Its address, reachable from this machine: NodePorts answer there.
    pub address: Ipv4Addr,
    /// The network namespace in which its processes run.
    pub network: String,
    /// The socket of its containerd.
    pub containerd: PathBuf,
}

impl Cluster {
    /// The API of a real Kubernetes: no nodes, so pods stay pending. Shared by all tests of this process.
    ///
    /// # Errors
    /// A program that cannot be built or does not start, with its last words.
    pub async fn api() -> anyhow::Result<Self> {
        Self::shared(Level::Api).await
    }

    /// A real Kubernetes with two nodes that run containers. Shared by all tests of this process.
    ///
    /// # Errors
    /// As [`Cluster::api`]; also who is not root, and a `KUBECONFIG` that names an instance of the level `api`.
    pub async fn nodes() -> anyhow::Result<Self> {
        Self::shared(Level::Nodes).await
    }

    async fn shared(level: Level) -> anyhow::Result<Self> {
        let Some(path) = std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty()) else {
            return tokio::task::spawn_blocking(move || instance::shared(level)).await?;
        };
        let cluster = Self::named_by(Path::new(&path))?;
        if level == Level::Nodes && cluster.nodes.is_empty() && cluster.is_ours() {
            bail!("the cluster that KUBECONFIG names has no nodes: unset it, or run `cargo xtask up`");
        }
        Ok(cluster)
    }

    /// The cluster of a kubeconfig; what stands beside the file says whether this harness started it.
    pub(crate) fn named_by(kubeconfig: &Path) -> anyhow::Result<Self> {
        let kubeconfig = std::path::absolute(kubeconfig)?;
        let description = kubeconfig.with_file_name("nodes.json");
        let nodes = if description.exists() {
            let text = fs::read_to_string(&description)?;
            serde_json::from_str(&text).with_context(|| format!("cannot read {}", description.display()))?
        } else {
            Vec::new()
        };
        Ok(Self { kubeconfig, nodes })
    }

    /// Writes what [`Cluster::named_by`] reads.
    pub(crate) fn describe(&self) -> anyhow::Result<()> {
        fs::write(self.kubeconfig.with_file_name("nodes.json"), serde_json::to_string(&self.nodes)?)?;
        Ok(())
    }

    fn is_ours(&self) -> bool {
        self.kubeconfig.with_file_name("nodes.json").exists()
    }

    /// A client for the runtime that calls this: each test makes its own.
    ///
    /// # Errors
    /// A kubeconfig that cannot be read.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig)?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }

    /// `kubectl` of the cluster's version, speaking to this cluster.
    ///
    /// # Errors
    /// A build that fails.
    pub fn kubectl(&self) -> anyhow::Result<Command> {
        self.command(programs::KUBECTL)
    }

    /// `helm`, speaking to this cluster.
    ///
    /// # Errors
    /// A build that fails.
    pub fn helm(&self) -> anyhow::Result<Command> {
        self.command(programs::HELM)
    }

    /// A directory with `kubectl` and `helm`, for a user's `PATH`.
    ///
    /// # Errors
    /// A build that fails.
    pub fn programs(&self) -> anyhow::Result<PathBuf> {
        let directory = self.kubeconfig.with_file_name("bin");
        fs::create_dir_all(&directory)?;
        for program in [programs::KUBECTL, programs::HELM] {
            let link = directory.join(program.name);
            if !link.exists() {
                std::os::unix::fs::symlink(program.path()?, link)?;
            }
        }
        Ok(directory)
    }

    fn command(&self, program: programs::Program) -> anyhow::Result<Command> {
        let mut command = Command::new(program.path()?);
        command.env("KUBECONFIG", &self.kubeconfig);
        Ok(command)
    }

    /// Brings an image to every node, so pods with `imagePullPolicy: Never` can run it.
    ///
    /// # Errors
    /// What a node says; a cluster that is not this harness's has a registry of its own, to which users push.
    pub fn import(&self, image: &Image) -> anyhow::Result<()> {
        if self.nodes.is_empty() {
            bail!("no node of this cluster is known here: push {} to a registry that it reaches", image.name);
        }
        let name = image.name.replace(['/', ':'], "-");
        let archive = self.kubeconfig.with_file_name(format!("{name}-{}.tar", std::process::id()));
        image.write(&archive)?;
        let imported = self.nodes.iter().try_for_each(|node| node.import(&archive));
        fs::remove_file(&archive)?;
        imported
    }

    /// Whether every node has an image of this name.
    ///
    /// # Errors
    /// What a node says.
    pub fn has(&self, image: &str) -> anyhow::Result<bool> {
        self.nodes.iter().try_fold(true, |all, node| Ok(all && node.has(image)?))
    }

    /// The address of this machine as its pods see it; `None` if this harness did not start the nodes.
    pub fn machine(&self) -> Option<Ipv4Addr> {
        // the first node is joined to the machine, which has the first address of their network
        let [a, b, c, _node] = self.nodes.first()?.address.octets();
        Some(Ipv4Addr::new(a, b, c, 1))
    }

    /// Every write to the API, one JSON event (`audit.k8s.io/v1`) a line; `None` if this harness did not start it.
    pub fn audit_log(&self) -> Option<PathBuf> {
        self.is_ours().then(|| self.kubeconfig.with_file_name("audit.log"))
    }

    /// What the processes of the cluster say; `None` if this harness did not start it.
    pub fn logs(&self) -> Option<PathBuf> {
        self.is_ours().then(|| self.kubeconfig.with_file_name("logs"))
    }
}
