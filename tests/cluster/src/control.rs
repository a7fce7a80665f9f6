//! The control plane: etcd, kube-apiserver, the controllers and, where there are nodes, the scheduler.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::bail;
use k8s_openapi::api::{core::v1::ServiceAccount, rbac::v1::ClusterRoleBinding};
use kube::Api;
use serde_json::json;

use crate::{
    Cluster,
    daemon::{Daemon, Starter},
    pki::{self, Authority},
    programs,
};

/// What some clusters have beside what all have: there an owner is named only by who may delete what it is to own, and may touch
/// the owner's finalizers if its deletion is to wait.
const STRICT_PLUGINS: &str = "NodeRestriction,OwnerReferencesPermissionEnforcement";
/// Not the usual ports: a cluster of the user's own may listen on those at every address.
const ETCD_PORT: u16 = 21379;
const ETCD_PEER_PORT: u16 = 21380;
const APISERVER_PORT: u16 = 21443;

/// Addresses of Services.
pub(crate) const SERVICE_NETWORK: &str = "10.96.0.0/16";
/// The API server as pods see it.
const APISERVER_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The name server as pods see it.
pub(crate) const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Addresses of pods; each node has a part of it.
pub(crate) const POD_NETWORK: &str = "10.244.0.0/16";

/// From the start of the processes until the API answers and the controllers work. Measured: 4 s; a busy machine 30 s.
const READY_TIMEOUT: Duration = Duration::from_mins(3);

/// Where a control plane runs and what it is for.
pub(crate) struct ControlPlane<'a> {
    pub(crate) starter: &'a Starter,
    /// It listens on this address only, but for etcd's, which is a loopback address.
    pub(crate) address: Ipv4Addr,
    pub(crate) network: Option<&'a str>,
    /// Whether there are nodes, so pods are to be placed.
    pub(crate) nodes: bool,
}

/// What a started control plane is reached by.
pub(crate) struct Started {
    pub(crate) authority: Authority,
    pub(crate) daemons: Vec<Daemon>,
}

/// Whether the API server's ports are free at `address`.
pub(crate) fn is_free(address: Ipv4Addr) -> bool {
    [ETCD_PORT, ETCD_PEER_PORT, APISERVER_PORT]
        .iter()
        .all(|&port| TcpListener::bind(SocketAddr::from((address, port))).is_ok())
}

impl ControlPlane<'_> {
    /// Starts the store and the API server, which waits for it.
    pub(crate) fn start(&self) -> anyhow::Result<Started> {
        let directory = &self.starter.directory;
        let authority = pki::write(&directory.join("pki"), self.address, APISERVER_SERVICE)?;
        fs::write(directory.join("audit-policy.json"), serde_json::to_string(&audit_policy())?)?;
        self.kubeconfig(&authority, "kubeconfig", "kubernetes-admin", Some("system:masters"))?;
        let daemons = vec![
            self.daemon("etcd", programs::ETCD, &self.etcd())?,
            self.daemon("kube-apiserver", programs::APISERVER, &self.apiserver())?,
        ];
        Ok(Started { authority, daemons })
    }

    /// Waits until the API answers, then starts who works with it: the controllers end by themselves if they may not ask
    /// for its health within 10 s, and a busy machine takes longer to make the roles that allow it.
    pub(crate) async fn start_controllers(
        &self,
        authority: &Authority,
        cluster: &Cluster,
        daemons: &mut Vec<Daemon>,
    ) -> anyhow::Result<()> {
        answers(cluster, daemons).await?;
        let user = "system:kube-controller-manager";
        let kubeconfig = self.kubeconfig(authority, "controller-manager.kubeconfig", user, None)?;
        let arguments = self.controller_manager(&kubeconfig);
        daemons.push(self.daemon("kube-controller-manager", programs::CONTROLLER_MANAGER, &arguments)?);
        if self.nodes {
            let kubeconfig = self.kubeconfig(authority, "scheduler.kubeconfig", "system:kube-scheduler", None)?;
            daemons.push(self.daemon("kube-scheduler", programs::SCHEDULER, &self.scheduler(&kubeconfig)?)?);
        }
        Ok(())
    }

    /// The URL of the API server.
    pub(crate) fn server(&self) -> String {
        format!("https://{}:{APISERVER_PORT}", self.address)
    }

    /// Writes a kubeconfig for `user` into the run's directory.
    pub(crate) fn kubeconfig(
        &self,
        authority: &Authority,
        file: &str,
        user: &str,
        group: Option<&str>,
    ) -> anyhow::Result<PathBuf> {
        let path = self.starter.directory.join(file);
        pki::save(&path, &authority.kubeconfig(&self.server(), user, group)?)?;
        Ok(path)
    }

    fn daemon(&self, name: &str, program: programs::Program, arguments: &[String]) -> anyhow::Result<Daemon> {
        self.starter.start(name, self.network, &program.path()?, arguments)
    }

    /// In a network namespace of its own the store is on loopback; else it is at the run's address, a loopback one too.
    fn etcd_address(&self) -> Ipv4Addr {
        if self.network.is_some() { Ipv4Addr::LOCALHOST } else { self.address }
    }

    fn etcd(&self) -> Vec<String> {
        let client = format!("http://{}:{ETCD_PORT}", self.etcd_address());
        let peer = format!("http://{}:{ETCD_PEER_PORT}", self.etcd_address());
        flags(&[
            ("data-dir", &self.path("etcd")),
            ("listen-client-urls", &client),
            ("advertise-client-urls", &client),
            ("listen-peer-urls", &peer),
            ("initial-advertise-peer-urls", &peer),
            ("initial-cluster", &format!("default={peer}")),
            // a machine that crashes takes the tests with it
            ("unsafe-no-fsync", "true"),
            ("log-level", "warn"),
        ])
    }

    fn apiserver(&self) -> Vec<String> {
        let pki = |file: &str| self.path(&format!("pki/{file}"));
        let address = self.address.to_string();
        let mut arguments = flags(&[
            ("etcd-servers", &format!("http://{}:{ETCD_PORT}", self.etcd_address())),
            ("bind-address", &address),
            ("advertise-address", &address),
            ("secure-port", &APISERVER_PORT.to_string()),
            ("cert-dir", &self.path("pki")),
            ("tls-cert-file", &pki("apiserver.crt")),
            ("tls-private-key-file", &pki("apiserver.key")),
            ("client-ca-file", &pki("ca.crt")),
            ("kubelet-certificate-authority", &pki("ca.crt")),
            ("kubelet-client-certificate", &pki("apiserver-to-kubelet.crt")),
            ("kubelet-client-key", &pki("apiserver-to-kubelet.key")),
            ("kubelet-preferred-address-types", "InternalIP"),
            ("service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
            ("service-account-key-file", &pki("service-account.pub")),
            ("service-account-signing-key-file", &pki("service-account.key")),
            ("service-cluster-ip-range", SERVICE_NETWORK),
            ("authorization-mode", "Node,RBAC"),
            ("enable-admission-plugins", if self.nodes { "NodeRestriction" } else { STRICT_PLUGINS }),
            ("allow-privileged", "true"),
            ("audit-policy-file", &self.path("audit-policy.json")),
            ("audit-log-path", &self.path("audit.log")),
        ]);
        // aggregation: the API server speaks for its users to the servers of other APIs
        arguments.extend(flags(&[
            ("requestheader-client-ca-file", &pki("front-proxy-ca.crt")),
            ("requestheader-allowed-names", "front-proxy-client"),
            ("requestheader-username-headers", "X-Remote-User"),
            ("requestheader-group-headers", "X-Remote-Group"),
            ("requestheader-extra-headers-prefix", "X-Remote-Extra-"),
            ("proxy-client-cert-file", &pki("front-proxy.crt")),
            ("proxy-client-key-file", &pki("front-proxy.key")),
        ]));
        if self.nodes {
            arguments.extend(flags(&[("enable-aggregator-routing", "true")]));
        } else {
            // Endpoints refuse a loopback address, and nobody asks for these. For the same reason servers of other APIs are
            // found by Services of type ExternalName, which the routing by Endpoints does not know
            arguments.extend(flags(&[("endpoint-reconciler-type", "none")]));
        }
        arguments
    }

    fn controller_manager(&self, kubeconfig: &Path) -> Vec<String> {
        flags(&[
            ("kubeconfig", &kubeconfig.to_string_lossy()),
            ("service-account-private-key-file", &self.path("pki/service-account.key")),
            ("root-ca-file", &self.path("pki/ca.crt")),
            // a role for each controller: the one of all together may not do their work
            ("use-service-account-credentials", "true"),
            ("leader-elect", "false"),
            // serves nothing
            ("secure-port", "0"),
            // the nodes' parts of the pod network are fixed
            ("allocate-node-cidrs", "false"),
            ("service-cluster-ip-range", SERVICE_NETWORK),
            // the times of stories, not of production
            ("horizontal-pod-autoscaler-sync-period", &autoscaler_period()),
            ("horizontal-pod-autoscaler-downscale-stabilization", "10s"),
            ("node-monitor-period", "2s"),
            ("node-monitor-grace-period", "20s"),
        ])
    }

    fn scheduler(&self, kubeconfig: &Path) -> anyhow::Result<Vec<String>> {
        let configuration = json!({
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": {"kubeconfig": kubeconfig},
            "leaderElection": {"leaderElect": false},
        });
        fs::write(self.path("scheduler.json"), serde_json::to_string(&configuration)?)?;
        Ok(flags(&[("config", &self.path("scheduler.json")), ("secure-port", "0")]))
    }

    fn path(&self, file: &str) -> String {
        self.starter.directory.join(file).to_string_lossy().into_owned()
    }
}

/// Who may ask for the API server's health: one of the last things that it makes at its start.
const MAY_ASK_FOR_HEALTH: &str = "system:public-info-viewer";

/// Waits until the API server has made the roles of those who work with it.
async fn answers(cluster: &Cluster, daemons: &mut [Daemon]) -> anyhow::Result<()> {
    let begun = Instant::now();
    let bindings: Api<ClusterRoleBinding> = Api::all(cluster.client().await?);
    loop {
        let last = match bindings.get_opt(MAY_ASK_FOR_HEALTH).await {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => "it has made no roles".to_owned(),
            Err(error) => error.to_string(),
        };
        for daemon in daemons.iter_mut() {
            daemon.still_runs()?;
        }
        if begun.elapsed() > READY_TIMEOUT {
            bail!("the API server is not ready after {READY_TIMEOUT:?}: {last}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A story that measures may want production's 15 s.
fn autoscaler_period() -> String {
    std::env::var("AUTOSCALER_PERIOD").unwrap_or_else(|_unset| "2s".to_owned())
}

/// Waits until the API answers and the controllers work: they have made the service account that every pod needs.
pub(crate) async fn ready(cluster: &Cluster, daemons: &mut [Daemon]) -> anyhow::Result<()> {
    let begun = Instant::now();
    let client = cluster.client().await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client, "default");
    loop {
        let last = match accounts.get_opt("default").await {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => "the controllers have made no service account".to_owned(),
            Err(error) => error.to_string(),
        };
        for daemon in daemons.iter_mut() {
            daemon.still_runs()?;
        }
        if begun.elapsed() > READY_TIMEOUT {
            bail!("the control plane is not ready after {READY_TIMEOUT:?}: {last}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Every write and nothing else: tests count what an idle operator writes.
fn audit_policy() -> serde_json::Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "verbs": ["get", "list", "watch"]},
            {"level": "Metadata"},
        ],
    })
}

/// `--name=value` of each.
pub(crate) fn flags(pairs: &[(&str, &str)]) -> Vec<String> {
    pairs.iter().map(|(name, value)| format!("--{name}={value}")).collect()
}
