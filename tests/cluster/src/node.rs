//! A node: containerd, kubelet and kube-proxy in its network namespace.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use kube::{Api, api::ListParams};
use serde_json::json;
use xtask::{image::Image, packages, process::run_quietly};

use crate::{
    Cluster,
    cluster::Node,
    control::{ControlPlane, DNS_SERVICE, POD_NETWORK, flags},
    daemon::{Daemon, Starter},
    network::Place,
    pki::Authority,
    programs,
};

/// Debian's place for CNI plugins.
const CNI_PLUGINS: &str = "/usr/lib/cni";
/// The image that holds the namespaces of pods.
const PAUSE_IMAGE: &str = "protocolgateway.io/pause:test";
/// From the start of containerd until it answers. Measured: 0.3 s.
const CONTAINERD_TIMEOUT: Duration = Duration::from_mins(1);
/// From the API being ready until the nodes are. Measured: a few seconds.
const READY_TIMEOUT: Duration = Duration::from_mins(3);
/// The domain of the cluster's names.
pub(crate) const DOMAIN: &str = "cluster.local";

/// The programs that are Debian's, with their packages.
const PACKAGES: [(&str, &str); 7] = [
    ("ip", "iproute2"),
    ("sysctl", "procps"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("runc", "runc"),
    ("containerd", "containerd"),
    ("/usr/lib/cni/ptp", "containernetworking-plugins"),
];

/// Makes sure of everything that nodes need, so that a start fails before it has begun.
pub(crate) fn prepare() -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("nodes that run containers need root; the level `api` does not");
    }
    for (program, package) in PACKAGES {
        packages::debian(program, package)?;
    }
    for program in programs::ALL {
        program.path()?;
    }
    Ok(())
}

/// A node that is to be started.
pub(crate) struct NodeStart<'a> {
    pub(crate) starter: &'a Starter,
    pub(crate) control: &'a ControlPlane<'a>,
    pub(crate) authority: &'a Authority,
    pub(crate) place: &'a Place,
}

impl NodeStart<'_> {
    /// Starts the node's processes, with the image for pods in its containerd; it registers itself.
    pub(crate) fn start(&self) -> anyhow::Result<(Node, Vec<Daemon>)> {
        let directory = self.directory();
        for name in ["cni", "kubelet", "plugins", "pods"] {
            fs::create_dir_all(directory.join(name))?;
        }
        crate::cgroup::make(&self.place.network)?;
        fs::write(directory.join("cni/10-pods.conflist"), self.cni().to_string())?;
        let mut containerd = self.start_containerd()?;
        let node = Node {
            name: self.place.name.to_owned(),
            address: self.place.address,
            network: self.place.network.clone(),
            containerd: directory.join("containerd.sock"),
        };
        wait_for(&node, &mut containerd)?;
        let archive = directory.join("pause.tar");
        Image::of_program(PAUSE_IMAGE, &programs::PAUSE.path()?)?.write(&archive)?;
        node.import(&archive)?;
        let kubelet = self.start_kubelet()?;
        let proxy = self.start_proxy()?;
        Ok((node, vec![containerd, kubelet, proxy]))
    }

    fn directory(&self) -> PathBuf {
        self.starter.directory.join(self.place.name)
    }

    fn daemon(&self, name: &str, program: &Path, arguments: &[String]) -> anyhow::Result<Daemon> {
        self.starter.start(&format!("{name}-{}", self.place.name), Some(&self.place.network), program, arguments)
    }

    fn start_containerd(&self) -> anyhow::Result<Daemon> {
        let directory = self.directory();
        let at = |name: &str| directory.join(name).to_string_lossy().into_owned();
        // `restrict_oom_score_adj`: without CAP_SYS_RESOURCE the kernel denies −998 and no pod starts
        let config = format!(
            r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{opt}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_PLUGINS}"
conf_dir = "{cni}"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "{runc}"
"#,
            runc = at("runc"),
            root = at("containerd"),
            state = at("state"),
            socket = at("containerd.sock"),
            opt = at("opt"),
            cni = at("cni"),
        );
        fs::write(directory.join("containerd.toml"), config)?;
        self.daemon("containerd", Path::new("containerd"), &flags(&[("config", &at("containerd.toml"))]))
    }

    /// `ptp` and not `bridge`: every packet is routed, so Services work between pods of one node whatever the kernel
    /// was built with.
    fn cni(&self) -> serde_json::Value {
        json!({
            "cniVersion": "0.4.0",
            "name": self.place.network,
            "plugins": [
                {
                    "type": "ptp",
                    "ipam": {
                        "type": "host-local",
                        "dataDir": self.directory().join("addresses"),
                        "ranges": [[{"subnet": self.place.pods}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        })
    }

    fn start_kubelet(&self) -> anyhow::Result<Daemon> {
        let directory = self.directory();
        let at = |name: &str| directory.join(name).to_string_lossy().into_owned();
        let (name, address) = (self.place.name, self.place.address.to_string());
        self.authority.server(name, &[name.to_owned(), address.clone()])?.save(&directory, "kubelet")?;
        let user = format!("system:node:{name}");
        let file = format!("{name}/kubelet.kubeconfig");
        let kubeconfig = self.control.kubeconfig(self.authority, &file, &user, Some("system:nodes"))?;
        fs::write(directory.join("kubelet.json"), self.kubelet_config().to_string())?;
        let arguments = flags(&[
            ("config", &at("kubelet.json")),
            ("root-dir", &at("kubelet")),
            ("kubeconfig", &kubeconfig.to_string_lossy()),
            ("hostname-override", name),
            ("node-ip", &address),
            ("node-labels", &format!("topology.kubernetes.io/zone={name}")),
        ]);
        self.daemon("kubelet", &programs::KUBELET.path()?, &arguments)
    }

    fn kubelet_config(&self) -> serde_json::Value {
        let directory = self.directory();
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": self.starter.directory.join("pki/ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": directory.join("kubelet.crt"),
            "tlsPrivateKeyFile": directory.join("kubelet.key"),
            "containerRuntimeEndpoint": format!("unix://{}", directory.join("containerd.sock").display()),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", self.place.network),
            "clusterDNS": [DNS_SERVICE.to_string()],
            "clusterDomain": DOMAIN,
            "resolvConf": "",
            "podLogsDir": directory.join("pods"),
            "volumePluginDir": directory.join("plugins"),
            // the machine's disk and swap are its own business
            "failSwapOn": false,
            "localStorageCapacityIsolation": false,
            "evictionHard": {
                "memory.available": "50Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
                "imagefs.available": "0%", "imagefs.inodesFree": "0%",
            },
            "imageGCHighThresholdPercent": 100,
            "oomScoreAdj": 0,
            // a changed Secret is in the pod after about as long
            "syncFrequency": "5s",
            "nodeStatusUpdateFrequency": "4s",
        })
    }

    fn start_proxy(&self) -> anyhow::Result<Daemon> {
        let file = format!("{}/proxy.kubeconfig", self.place.name);
        let kubeconfig = self.control.kubeconfig(self.authority, &file, "system:kube-proxy", None)?;
        let arguments = flags(&[
            ("kubeconfig", &kubeconfig.to_string_lossy()),
            ("hostname-override", self.place.name),
            ("proxy-mode", "iptables"),
            ("cluster-cidr", POD_NETWORK),
            ("oom-score-adj", "0"),
            // these are of the machine, and may not be written here
            ("conntrack-max-per-core", "0"),
            ("conntrack-tcp-timeout-established", "0s"),
            ("conntrack-tcp-timeout-close-wait", "0s"),
        ]);
        self.daemon("kube-proxy", &programs::KUBE_PROXY.path()?, &arguments)
    }
}

impl Node {
    /// Brings the images of an archive (OCI layout or docker-archive, as a tar) to the node.
    ///
    /// # Errors
    /// What containerd says.
    pub fn import(&self, archive: &Path) -> anyhow::Result<()> {
        run_quietly(self.ctr().args(["images", "import"]).arg(archive)).context("the node does not take the image")
    }

    /// Whether it has an image of this name.
    ///
    /// # Errors
    /// What containerd says.
    pub fn has(&self, image: &str) -> anyhow::Result<bool> {
        let output = self.ctr().args(["images", "list", "--quiet", &format!("name=={image}")]).output()?;
        if !output.status.success() {
            bail!("the node does not list its images: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(!output.stdout.is_empty())
    }

    /// `ctr` on the images and containers of this node's pods.
    pub fn ctr(&self) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&self.containerd).args(["--namespace", "k8s.io"]);
        command
    }

    /// A command that runs in the network of this node, where Services and pods have addresses.
    pub fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args([&format!("--net=/run/netns/{}", self.network), "--", program]);
        command
    }
}

/// Waits until every node says that it can take pods.
pub(crate) async fn ready(cluster: &Cluster, daemons: &mut [Daemon]) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !are_ready(cluster).await? {
        for daemon in daemons.iter_mut() {
            daemon.still_runs()?;
        }
        if begun.elapsed() > READY_TIMEOUT {
            bail!("the nodes are not ready after {READY_TIMEOUT:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Whether every node of the cluster can take pods now.
pub(crate) async fn are_ready(cluster: &Cluster) -> anyhow::Result<bool> {
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(cluster.client().await?);
    let nodes = nodes.list(&ListParams::default()).await?.items;
    let is_ready = |node: &k8s_openapi::api::core::v1::Node| {
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        let ready = conditions.into_iter().flatten().any(|each| each.type_ == "Ready" && each.status == "True");
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).is_some_and(|taints| !taints.is_empty());
        ready && !taints
    };
    Ok(nodes.len() >= cluster.nodes.len() && nodes.iter().all(is_ready))
}

/// Waits until the node's containerd answers.
fn wait_for(node: &Node, containerd: &mut Daemon) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let answer = run_quietly(node.ctr().arg("version"));
        let Err(error) = answer else { return Ok(()) };
        containerd.still_runs()?;
        if begun.elapsed() > CONTAINERD_TIMEOUT {
            return Err(error.context("containerd does not answer"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
