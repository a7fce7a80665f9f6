//! The name server of the cluster: CoreDNS beside the control plane, behind the address that pods ask.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::bail;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::net::TcpStream;

use crate::{
    control::{ControlPlane, DNS_SERVICE},
    daemon::Daemon,
    node::DOMAIN,
    pki::Authority,
    programs,
};

/// What server-side apply calls the harness.
const FIELD_MANAGER: &str = "protocol-gateway-test-cluster";

/// Measured: 0.3 s.
const READY_TIMEOUT: Duration = Duration::from_mins(1);

/// Starts CoreDNS at the control plane's address.
pub(crate) fn start(control: &ControlPlane<'_>, authority: &Authority) -> anyhow::Result<Daemon> {
    let kubeconfig = control.kubeconfig(authority, "coredns.kubeconfig", "coredns", Some("system:masters"))?;
    let file = control.starter.directory.join("Corefile");
    // names outside the cluster do not exist here, and saying so at once is better than a time-out
    let corefile = format!(
        "{DOMAIN} in-addr.arpa ip6.arpa {{
    bind {address}
    errors
    kubernetes {DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        ttl 5
    }}
}}
. {{
    bind {address}
    errors
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
",
        address = control.address,
        kubeconfig = kubeconfig.display(),
    );
    fs::write(&file, corefile)?;
    let arguments = ["-conf".to_owned(), file.to_string_lossy().into_owned()];
    control.starter.start("coredns", control.network, &programs::COREDNS.path()?, &arguments)
}

/// Waits until it answers: it listens once it knows the cluster's Services.
pub(crate) async fn ready(control: &ControlPlane<'_>, daemon: &mut Daemon) -> anyhow::Result<()> {
    let begun = Instant::now();
    while TcpStream::connect((control.address, 53)).await.is_err() {
        daemon.still_runs()?;
        if begun.elapsed() > READY_TIMEOUT {
            bail!("the name server is not ready after {READY_TIMEOUT:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Makes it known as the Service that the kubelets name to their pods.
pub(crate) async fn publish(client: Client, control: &ControlPlane<'_>) -> anyhow::Result<()> {
    let ports =
        json!([{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]);
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns"},
        "spec": {"clusterIP": DNS_SERVICE.to_string(), "ports": ports},
    });
    let endpoints = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "kube-dns", "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [control.address.to_string()]}],
        "ports": ports,
    });
    let apply = PatchParams::apply(FIELD_MANAGER);
    let system = "kube-system";
    Api::<Service>::namespaced(client.clone(), system).patch("kube-dns", &apply, &Patch::Apply(service)).await?;
    let slices = Api::<EndpointSlice>::namespaced(client, system);
    slices.patch("kube-dns", &apply, &Patch::Apply(endpoints)).await?;
    Ok(())
}
