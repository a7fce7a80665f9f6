//! The program put together: what runs from the start to the signal that ends it, and in which order it ends.

use std::{io, net::Ipv6Addr, time::Duration};

use kube::{Api, Client, Config};
use tokio::{net::TcpListener, sync::watch, time::timeout};
use tracing::{info, warn};

use crate::{
    api,
    cli::Run,
    controller::{self, Meters},
    desired::Installation,
    http::{self, Health},
    lease::{self, Leadership, election::Settings},
    metrics::Metrics,
    metrics_api::{self, Meter},
    observe::CustomMetrics,
    pods::{Counters, Pods},
    shutdown::Shutdown,
};

/// Writes that run when the signal comes have this long before the Lease is given back.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait for the API server's address to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Port of the operator's Service by which the API server reaches the metrics API.
const METRICS_SERVICE_PORT: u16 = 443;

/// Why the program could not run on.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// Neither a cluster around it nor a kubeconfig.
    #[error("no way to an API server: {0}")]
    Config(#[from] kube::config::InferConfigError),
    /// What leads there is wrong.
    #[error("no client of the API server: {0}")]
    Client(#[from] kube::Error),
    /// The port is taken, for one.
    #[error("cannot listen on {0}: {1}")]
    Listen(std::net::SocketAddr, io::Error),
    /// A task ended that never should.
    #[error("the {0} ended by itself")]
    Ended(&'static str),
}

/// What every part of the program is given.
#[derive(Clone)]
pub struct Parts {
    /// To the API server.
    pub client: Client,
    /// Namespace of the operator itself.
    pub namespace: String,
    /// Flags.
    pub flags: Run,
    /// Whether this replica may write.
    pub leadership: Leadership,
    /// Whether it lives and is ready.
    pub health: Health,
    /// What it counts.
    pub metrics: Metrics,
    /// When to stop.
    pub shutdown: Shutdown,
}

/// Runs until told to stop.
///
/// # Errors
/// What keeps it from starting, or ended it.
pub async fn run(flags: Run, shutdown: Shutdown) -> Result<(), ProgramError> {
    let mut config = Config::infer().await?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    let namespace = flags.namespace.clone().filter(|name| !name.is_empty()).unwrap_or(config.default_namespace.clone());
    let client = Client::try_from(config)?;
    let (health, metrics) = (Health::new(), Metrics::new());
    health.waits("operator", "it starts");
    let listener = TcpListener::bind(flags.listen).await.map_err(|error| ProgramError::Listen(flags.listen, error))?;
    let port = flags.metrics_api_port;
    let taken = |error| ProgramError::Listen((Ipv6Addr::UNSPECIFIED, port).into(), error);
    let metrics_port = metrics_api::bind(port).await.map_err(taken)?;
    tokio::spawn(http::serve(listener, health.clone(), metrics.clone()));
    let duration = Duration::from_secs(flags.lease_seconds.into());
    let settings = Settings::new(lease::identity(&flags.pod_name), duration);
    let leases = Api::namespaced(client.clone(), &namespace);
    let (leadership, mut candidacy) = lease::stand(leases, &flags.lease_name, settings, metrics.clone());
    let parts = Parts { client, namespace, flags, leadership, health, metrics, shutdown };

    let mut work = tokio::spawn(work(parts.clone(), metrics_port));
    tokio::select! {
        // first: what is told to stop ends, too, and is no fault then
        biased;
        () = parts.shutdown.requested() => {}
        _ = &mut work => return Err(ProgramError::Ended("controller")),
        () = candidacy.ended() => return Err(ProgramError::Ended("election")),
    }
    parts.health.waits("operator", "it stops");
    // nothing new is written from here on; who leads next must not meet what is still being written
    candidacy.resign();
    if timeout(FINISH_TIMEOUT, work).await.is_err() {
        warn!("not everything that ran came to its end");
    }
    candidacy.release().await;
    info!("stopped");
    Ok(())
}

/// Waits for the API, then keeps what it declares, until told to stop.
async fn work(parts: Parts, metrics_port: Option<TcpListener>) {
    tokio::select! {
        () = api::known(&parts) => {}
        () = parts.shutdown.requested() => return,
    }
    parts.health.is_ready("operator");
    let (tell, custom_metrics) = watch::channel(CustomMetrics::Unknown);
    let (pods, meters) = (Pods::new(Counters::new(&parts.metrics)), Meters::default());
    let inputs = controller::Inputs {
        client: parts.client.clone(),
        installation: Installation {
            gateway_image: parts.flags.gateway_image.clone(),
            lease_seconds: parts.flags.lease_seconds,
        },
        namespaces: parts.flags.namespaces(),
        pod_name: Some(parts.flags.pod_name.clone()),
        leadership: parts.leadership.clone(),
        pods: pods.clone(),
        meters: meters.clone(),
        custom_metrics,
        metrics: parts.metrics.clone(),
        health: parts.health.clone(),
    };
    tokio::select! {
        () = controller::run(inputs, parts.shutdown.clone()) => {}
        // it serves until the controller has stopped
        () = metrics_api::run(metrics_api(&parts, metrics_port, meters.meter(&pods)), tell) => {}
    }
}

fn metrics_api(parts: &Parts, listener: Option<TcpListener>, meter: Meter) -> metrics_api::Inputs {
    metrics_api::Inputs {
        client: parts.client.clone(),
        leadership: parts.leadership.clone(),
        health: parts.health.clone(),
        metrics: parts.metrics.clone(),
        meter,
        settings: metrics_api::Settings {
            namespace: parts.namespace.clone(),
            service: parts.flags.service().map(str::to_owned),
            service_port: METRICS_SERVICE_PORT,
            owner: parts.flags.owner().map(str::to_owned),
        },
        listener,
    }
}
