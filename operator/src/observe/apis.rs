//! What this cluster can do beyond what every one can: asked at the start and every few minutes, never assumed.

use std::time::Duration;

use kube::Client;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{Apis, CustomMetrics};
use crate::kinds::{CERTIFICATE, Kind, POD_MONITOR};

/// How often it is asked. What is installed later is used after this time.
const PERIOD: Duration = Duration::from_mins(3);
/// How soon it is asked again after an answer that says nothing.
const RETRY: Duration = Duration::from_secs(10);

/// How long to wait at the start until it is known who serves the custom metrics.
const LOOK_TIMEOUT: Duration = Duration::from_secs(30);

/// Keeps `apis` true, for ever. Whoever serves the custom metrics is told by `metrics`.
pub async fn follow(client: Client, metrics: watch::Receiver<CustomMetrics>, apis: watch::Sender<Apis>) {
    let (mut metrics, mut told) = (metrics, false);
    // whoever takes it for nobody's would take away what was made for it
    let looked = metrics.wait_for(|who| *who != CustomMetrics::Unknown);
    if tokio::time::timeout(LOOK_TIMEOUT, looked).await.is_err() {
        warn!("cannot tell who serves custom.metrics.k8s.io");
    }
    loop {
        let before = apis.borrow().clone();
        let (pod_monitor, cert_manager) = (has(&client, &POD_MONITOR).await, has(&client, &CERTIFICATE).await);
        let unknown = pod_monitor.is_none() || cert_manager.is_none();
        let now = Apis {
            pod_monitor: pod_monitor.unwrap_or(before.pod_monitor),
            cert_manager: cert_manager.unwrap_or(before.cert_manager),
            custom_metrics: *metrics.borrow_and_update(),
        };
        // the first answer is told, whatever it is: somebody waits for it
        if now != before || (!told && !unknown) {
            told = true;
            info!(pod_monitor = now.pod_monitor, cert_manager = now.cert_manager, metrics = ?now.custom_metrics, "apis");
            apis.send_replace(now);
        }
        let pause = tokio::time::sleep(if unknown { RETRY } else { PERIOD });
        tokio::select! {
            () = pause => {}
            Ok(()) = metrics.changed() => {}
        }
    }
}

/// Whether the API is there; `None` if that cannot be said now.
pub async fn has(client: &Client, kind: &Kind) -> Option<bool> {
    match client.list_api_group_resources(&kind.api_version()).await {
        Ok(list) => Some(list.resources.iter().any(|resource| resource.kind == kind.name)),
        Err(kube::Error::Api(status)) if status.code == 404 => Some(false),
        Err(error) => {
            warn!(api = kind.api_version(), %error, "cannot tell whether an api is there");
            None
        }
    }
}
