//! Gives Secrets that lost their owner to the ProtocolGateway that they are for: they would stay when it goes, keys and all.
//!
//! All else is applied as a whole, and its owner with it. Secrets are written when a step with certificates is due.

use std::collections::BTreeSet;

use crds::ProtocolGateway;
use kube::{ResourceExt, api::Patch};
use serde_json::json;
use tracing::info;

use super::{Memory, Writer, merging};
use crate::{
    desired::Desired,
    error::{ReconcileError, Step},
    kinds::SECRET,
    names,
    observe::{
        Way,
        look::is_ours,
        mirror::{Mirrored, Name, Owner},
    },
};

impl Writer {
    /// Writes the owner of those that are wanted and nobody's.
    pub async fn adopt(
        &self,
        gateway: &ProtocolGateway,
        desired: &Desired,
        memory: &mut Memory,
    ) -> Result<(), ReconcileError> {
        let namespace = gateway.namespace().unwrap_or_default();
        let mut due = BTreeSet::new();
        for secret in &desired.secrets {
            let found = self.mirror.versioned(&SECRET, &Name::new(&namespace, secret));
            if let Some((_, version)) = found.filter(|(found, _)| is_lost(found, gateway)) {
                let title = format!("Secret {secret}");
                let ended = self.own(gateway, &namespace, secret, version).await;
                memory.ended((Way::Adopt, &title), "", ended)?;
                due.insert(title);
            }
        }
        memory.keep(Way::Adopt, |title| due.contains(title));
        Ok(())
    }

    async fn own(
        &self,
        gateway: &ProtocolGateway,
        namespace: &str,
        secret: &str,
        version: String,
    ) -> Result<(), ReconcileError> {
        let title = format!("Secret {secret}");
        let api = SECRET.api(&self.client, Some(namespace));
        // not applied: that would say that there are to be no keys in it
        let owner = json!({"metadata": {"resourceVersion": version, "ownerReferences": [names::owner(gateway)]}});
        let patch = Patch::Merge(&owner);
        let mut written = self.write(Step::Apply, &title, api.patch(secret, &merging(), &patch)).await?;
        self.metrics.writes.with_label_values(&[SECRET.name]).inc();
        info!(namespace, object = title, "its owner is written");
        // no data of a Secret is kept
        written.data = json!({});
        self.mirror.put(&SECRET, written);
        Ok(())
    }
}

fn is_lost(secret: &Mirrored, gateway: &ProtocolGateway) -> bool {
    !secret.ends && matches!(secret.owner, Owner::Orphan { .. }) && is_ours(&secret.owner, gateway)
}
