//! Whether the cluster knows ProtocolGateways. The operator may be installed before its CustomResourceDefinition.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::{names, program::Parts};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// For one look.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits until the API server knows ProtocolGateways; says so once, in the log and as an Event of the leader's, if it does not.
pub async fn known(parts: &Parts) {
    let (mut told, mut told_by_event) = (false, false);
    loop {
        match timeout(LOOK_TIMEOUT, look(&parts.client)).await {
            Ok(Ok(true)) => return info!(api = crds::API_VERSION, "the API is known"),
            Ok(Ok(false)) => {
                let message = format!("the cluster does not know {}: install the CustomResourceDefinition", crds::KIND);
                if !std::mem::replace(&mut told, true) {
                    warn!("{message}");
                }
                if !told_by_event && parts.leadership.epoch().is_some() {
                    told_by_event = tell(parts, &message).await;
                }
                parts.health.waits("operator", message);
            }
            Ok(Err(error)) => not_answered(parts, &error.to_string()),
            Err(_) => not_answered(parts, "no answer in time"),
        }
        sleep(LOOK_EVERY).await;
    }
}

fn not_answered(parts: &Parts, error: &str) {
    debug!(error, "the API server does not answer");
    parts.health.waits("operator", format!("the API server does not answer: {error}"));
}

async fn look(client: &kube::Client) -> kube::Result<bool> {
    match client.list_api_group_resources(crds::API_VERSION).await {
        Ok(list) => Ok(list.resources.iter().any(|resource| resource.name == crds::PLURAL)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(error),
    }
}

/// An Event about the operator's own pod; whether it was written.
async fn tell(parts: &Parts, message: &str) -> bool {
    let reporter = Reporter { controller: names::FIELD_MANAGER.into(), instance: Some(parts.flags.pod_name.clone()) };
    let pod = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(parts.flags.pod_name.clone()),
        namespace: Some(parts.namespace.clone()),
        ..ObjectReference::default()
    };
    let event = Event {
        type_: EventType::Warning,
        reason: "ApiMissing".into(),
        note: Some(message.to_owned()),
        action: "Starting".into(),
        secondary: None,
    };
    let recorder = Recorder::new(parts.client.clone(), reporter);
    let written = parts.leadership.write(recorder.publish(&event, &pod)).await;
    let written = written.is_ok_and(|written| written.is_ok());
    if !written {
        debug!("the Event about the missing API could not be written");
    }
    written
}
