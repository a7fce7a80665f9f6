//! `custom.metrics.k8s.io`, served by every replica out of what pods say: a HorizontalPodAutoscaler on connections needs
//! nothing else installed.
//!
//! [`paths`] and [`bodies`] are what is asked and answered; `server` is HTTPS with a certificate of an own CA, which `serving`
//! keeps; [`front_proxy`] and `access` say who asks and whether they may; [`registration`] makes the APIServices, if nobody
//! else has. There is one such API in a cluster: where it is somebody else's it is left alone.

mod access;
pub mod bodies;
mod cache;
mod counters;
pub mod front_proxy;
mod owner;
pub mod paths;
pub mod registration;
mod server;
mod serving;
mod tls;

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher::watch_object},
};
use tokio::{net::TcpListener, sync::watch};
use tracing::{info, warn};

use self::{
    access::Access, counters::Counters, front_proxy::FrontProxy, owner::Owner, registration::Registrar, server::Server,
    serving::Keeper, tls::InUse,
};
use crate::{
    http::Health,
    lease::Leadership,
    metrics::Metrics,
    observe::CustomMetrics,
    pods::{Fleet, Measured},
};

/// Part of [`Health`].
const PART: &str = "metrics-api";

/// What the metrics API says of a fleet. `None`: nothing that an autoscaler should act upon.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Reading {
    /// Devices connected or on their way back.
    pub connections: Option<u64>,
    /// Messages per second, both directions.
    pub messages_per_second: Option<f64>,
    /// Devices that connect per second.
    pub connects_per_second: Option<f64>,
    /// How old the oldest of what it is made of is.
    pub age: Duration,
}

impl From<Measured> for Reading {
    fn from(measured: Measured) -> Self {
        Self {
            connections: Some(measured.connections + measured.handshaking + measured.owed),
            messages_per_second: Some(measured.messages_per_second),
            connects_per_second: Some(measured.connects_per_second),
            age: measured.age,
        }
    }
}

/// What is said of a fleet now; `None` if nothing is known.
pub type Meter = Arc<dyn Fn(&Fleet) -> Option<Reading> + Send + Sync>;

/// How it is installed.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Namespace of the operator, its Service and its Secrets.
    pub namespace: String,
    /// Service in front of the operator's replicas.
    pub service: Option<String>,
    /// Port of that Service.
    pub service_port: u16,
    /// ClusterRole that owns the APIServices: they go when the operator is uninstalled, however that is done.
    pub owner: Option<String>,
}

/// What it is made of.
pub struct Inputs {
    /// To the API server.
    pub client: Client,
    /// Whether this replica may write.
    pub leadership: Leadership,
    /// Whether this replica is ready: not before it has a certificate.
    pub health: Health,
    /// What it counts.
    pub metrics: Metrics,
    /// What it says.
    pub meter: Meter,
    /// How it is installed.
    pub settings: Settings,
    /// Where it listens; `None`: it is switched off, and APIServices of ours are removed.
    pub listener: Option<TcpListener>,
}

/// Takes the port on every address of this machine; none for 0.
///
/// # Errors
/// The port is taken, for one.
pub async fn bind(port: u16) -> io::Result<Option<TcpListener>> {
    if port == 0 {
        return Ok(None);
    }
    // where there is IPv6, this takes IPv4, too
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await.map(Some),
    }
}

/// Serves until dropped, and keeps `custom_metrics` true.
pub async fn run(inputs: Inputs, custom_metrics: watch::Sender<CustomMetrics>) {
    let Inputs { client, leadership, health, metrics, meter, settings, listener } = inputs;
    let counters = Counters::new(&metrics);
    let owner = Owner::new(client.clone(), settings.owner.clone());
    let (bundle, trusted) = watch::channel(None);
    let registrar = Registrar {
        client: client.clone(),
        leadership: leadership.clone(),
        settings: settings.clone(),
        owner: owner.clone(),
        trusted,
        wanted: listener.is_some() && settings.service.is_some(),
        custom_metrics,
        unserved_since: Some(Timestamp::now()),
    };
    let (Some(listener), Some(service)) = (listener, settings.service) else {
        info!("the metrics API is switched off, or there is no Service in front of it");
        return registrar.run().await;
    };
    health.waits(PART, "no certificate yet");
    let front_proxy = Arc::new(ArcSwap::from_pointee(FrontProxy::default()));
    let in_use = Arc::new(InUse::default());
    let keeper =
        Keeper::new(client.clone(), leadership, health, owner, settings.namespace, service, in_use.clone(), bundle);
    let access = Access::new(client.clone(), counters.clone());
    let server = Arc::new(Server { meter, access, front_proxy: front_proxy.clone(), counters });
    info!(address = ?listener.local_addr().ok(), "the metrics API is served");
    tokio::join!(
        follow_front_proxy(client, front_proxy),
        keeper.run(),
        server.run(listener, tls::config(in_use)),
        registrar.run(),
    );
}

/// Keeps whose word is taken: it changes when the API server's certificates do. What cannot be read changes nothing.
async fn follow_front_proxy(client: Client, front_proxy: Arc<ArcSwap<FrontProxy>>) {
    let configs: Api<ConfigMap> = Api::namespaced(client, "kube-system");
    let mut changes = watch_object(configs, "extension-apiserver-authentication").default_backoff().boxed();
    while let Some(change) = changes.next().await {
        match change {
            Ok(config) => match FrontProxy::read(&config.and_then(|config| config.data).unwrap_or_default()) {
                Ok(now) => front_proxy.store(Arc::new(now)),
                Err(problem) => warn!(problem, "extension-apiserver-authentication cannot be read"),
            },
            Err(error) => warn!(%error, "extension-apiserver-authentication cannot be watched"),
        }
    }
}
