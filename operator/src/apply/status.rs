//! Writes `/status`, with a field manager of its own, only where it differs.

use crds::{ProtocolGateway, ProtocolGatewayStatus};
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::Writer;
use crate::{
    error::{ReconcileError, Step},
    kinds::GATEWAY,
    names,
};

impl Writer {
    /// Whether it was written.
    pub async fn status(
        &self,
        gateway: &ProtocolGateway,
        status: &ProtocolGatewayStatus,
    ) -> Result<bool, ReconcileError> {
        if gateway.status.as_ref() == Some(status) {
            return Ok(false);
        }
        let namespace = gateway.namespace().unwrap_or_default();
        self.raw_status(&namespace, &gateway.name_any(), gateway.metadata.uid.as_deref(), &json!(status)).await?;
        Ok(true)
    }

    /// Writes a status that may be of a form that this program does not know.
    pub async fn raw_status(
        &self,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
        status: &Value,
    ) -> Result<(), ReconcileError> {
        let patch = json!({
            "apiVersion": crds::API_VERSION,
            "kind": crds::KIND,
            // another one of this name has another status
            "metadata": {"name": name, "namespace": namespace, "uid": uid},
            "status": status,
        });
        let title = format!("{} {name}", crds::KIND);
        let api = GATEWAY.api(&self.client, Some(namespace));
        let parameters = PatchParams::apply(names::STATUS_MANAGER).force();
        let patch = Patch::Apply(patch);
        let answer = self.write(Step::Status, &title, api.patch_status(name, &parameters, &patch)).await?;
        self.metrics.writes.with_label_values(&[crds::KIND]).inc();
        self.mirror.put(&GATEWAY, answer);
        Ok(())
    }
}
