//! Writes `/status`, with a field manager of its own, only where it differs, and only over the version that was decided about:
//! the late write of a leader that was, or one that has not seen what a user changed, is refused and decided anew.

use std::time::{Duration, Instant};

use crds::{ProtocolGateway, ProtocolGatewayStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::{Memory, Writer};
use crate::{
    error::{ReconcileError, Step},
    kinds::GATEWAY,
    names,
};

/// How often numbers of devices, and of pods in messages, are written, if nothing else changed: they change all the time.
const COUNTS_EVERY: Duration = Duration::from_secs(10);

/// What became of a status.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    /// It was written; the ProtocolGateway's version is this, if its spec is still the one that was read.
    Written(Option<String>),
    /// It is there already.
    Same,
    /// Only numbers differ, and these were written lately: come again after this time.
    Later(Duration),
}

impl Writer {
    /// Writes it if it is due.
    pub async fn status(
        &self,
        gateway: &ProtocolGateway,
        status: &ProtocolGatewayStatus,
        memory: &mut Memory,
    ) -> Result<Told, ReconcileError> {
        let since = memory.status_at.map(|at| at.elapsed());
        let told = due(gateway.status.as_ref(), status, since);
        if told != Told::Written(None) {
            return Ok(told);
        }
        let answer = self.raw_status(&gateway.metadata, &json!(status)).await?;
        memory.status_at = Some(Instant::now());
        Ok(Told::Written(answer.resource_version.filter(|_| answer.generation == gateway.metadata.generation)))
    }

    /// Writes a status that may be of a form that this program does not know, over the version of `about`.
    pub async fn raw_status(&self, about: &ObjectMeta, status: &Value) -> Result<ObjectMeta, ReconcileError> {
        let (namespace, name) = (about.namespace.as_deref(), about.name.as_deref().unwrap_or_default());
        let patch = json!({
            "apiVersion": crds::API_VERSION,
            "kind": crds::KIND,
            "metadata": {
                "name": name,
                "namespace": namespace,
                // another one of this name has another status
                "uid": about.uid,
                // somebody else may have written since
                "resourceVersion": about.resource_version,
            },
            "status": status,
        });
        let title = format!("{} {name}", crds::KIND);
        let api = GATEWAY.api(&self.client, namespace);
        let parameters = PatchParams::apply(names::STATUS_MANAGER).force();
        let patch = Patch::Apply(patch);
        let answer = self.write(Step::Status, &title, api.patch_status(name, &parameters, &patch)).await?;
        self.metrics.writes.with_label_values(&[crds::KIND]).inc();
        let metadata = answer.metadata.clone();
        self.mirror.put(&GATEWAY, answer);
        Ok(metadata)
    }
}

/// Whether a status is to be written, so long after the last one was.
fn due(before: Option<&ProtocolGatewayStatus>, now: &ProtocolGatewayStatus, since: Option<Duration>) -> Told {
    let Some(before) = before else { return Told::Written(None) };
    if before == now {
        return Told::Same;
    }
    let left = since.and_then(|since| COUNTS_EVERY.checked_sub(since)).filter(|left| !left.is_zero());
    match left {
        Some(left) if without_counts(before) == without_counts(now) => Told::Later(left),
        _ => Told::Written(None),
    }
}

fn without_counts(status: &ProtocolGatewayStatus) -> ProtocolGatewayStatus {
    let mut status = status.clone();
    status.connections = None;
    status.pods.iter_mut().for_each(|pod| pod.connections = None);
    status.drains.iter_mut().for_each(|drain| drain.remaining = 0);
    status.outlook = None;
    // their messages count devices, pods and seconds; their reasons say what is
    let counting = ["Progressing", "CertificateServed", "Draining", "Rebalancing", "ScalingLimited"];
    let counts = |condition: &&mut Condition| counting.contains(&condition.type_.as_str());
    status.conditions.iter_mut().filter(counts).for_each(|condition| condition.message.clear());
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_devices_are_written_now_and_then_and_all_else_at_once() {
        let status = |connections, replicas| ProtocolGatewayStatus {
            connections: Some(connections),
            replicas,
            ..ProtocolGatewayStatus::default()
        };
        let before = status(1, 1);
        let check = |now: &ProtocolGatewayStatus, since: Option<u64>, expected: Told| {
            assert_eq!(due(Some(&before), now, since.map(Duration::from_secs)), expected, "{now:?} {since:?}");
        };
        check(&before, Some(100), Told::Same);
        check(&status(2, 1), Some(3), Told::Later(Duration::from_secs(7)));
        check(&status(2, 1), Some(10), Told::Written(None));
        check(&status(2, 1), None, Told::Written(None));
        check(&status(2, 2), Some(3), Told::Written(None));
        assert_eq!(due(None, &before, None), Told::Written(None));
    }
}
