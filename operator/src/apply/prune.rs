//! Deletes what is not wanted any more: of the operator's kinds, with a name that it gives, owned by this ProtocolGateway, and not
//! needed by a pod that is still there.

use std::{collections::BTreeSet, sync::Arc};

use crds::ProtocolGateway;
use kube::{
    ResourceExt,
    api::{DeleteParams, Preconditions},
};
use serde_json::Value;
use tracing::info;

use super::{Memory, Writer, order::Held};
use crate::{
    desired::{self, Desired},
    error::{ReconcileError, Step},
    kinds::{Kind, SECRET},
    names,
    observe::{
        Way,
        look::{is_ours, named},
        mirror::{Mirrored, Name},
    },
};

type Unwanted = (&'static Kind, String, Arc<Mirrored>, Option<String>);

impl Writer {
    /// Deletes what is neither wanted nor kept nor held.
    pub async fn prune(
        &self,
        gateway: &ProtocolGateway,
        desired: &Desired,
        held: &Held,
        memory: &mut Memory,
    ) -> Result<(), ReconcileError> {
        let mut due = BTreeSet::new();
        let unwanted = self.unwanted(gateway, desired);
        for (kind, name, object, version) in unwanted.into_iter().filter(|(kind, ..)| !held.holds(kind.name)) {
            let title = format!("{} {name}", kind.name);
            let ended = self.delete(gateway, kind, &name, &object, version).await;
            memory.ended((Way::Delete, &title), "", ended)?;
            due.insert(title);
        }
        memory.keep(Way::Delete, |title| due.contains(title));
        Ok(())
    }

    /// With the version of those that may have become somebody else's since they were seen.
    fn unwanted(&self, gateway: &ProtocolGateway, desired: &Desired) -> Vec<Unwanted> {
        let wanted: BTreeSet<String> = desired.objects.iter().map(desired::title).collect();
        let is_wanted = |title: &String| wanted.contains(title) || desired.kept.contains(title);
        let mut unwanted: Vec<Unwanted> = named(&self.mirror, gateway)
            .into_iter()
            .filter(|(kind, name, _)| !is_wanted(&format!("{} {name}", kind.name)))
            .map(|(kind, name, object)| (kind, name, object, None))
            .collect();
        let namespace = gateway.namespace().unwrap_or_default();
        let mounted = self.mounted(&Name::of(&gateway.metadata));
        for name in names::secrets(&gateway.name_any()) {
            let secret = self.mirror.versioned(&SECRET, &Name::new(&namespace, &name));
            let is_needed = desired.secrets.contains(&name) || mounted.contains(&name);
            if let Some((secret, version)) = secret.filter(|_| !is_needed) {
                // keys are gone for good: whoever wrote to it since may have made it theirs
                unwanted.push((&SECRET, name, secret, Some(version)));
            }
        }
        unwanted
    }

    /// Secrets that the Deployment in force mounts, or a pod that is still there: without them none of these starts again.
    fn mounted(&self, fleet: &Name) -> BTreeSet<String> {
        let deployment = Kind::owned("Deployment").and_then(|kind| self.mirror.get(kind, fleet));
        let volumes = deployment.map(|deployment| deployment.body()["spec"]["template"]["spec"]["volumes"].take());
        let of_volume = |volume: &Value| volume["secret"]["secretName"].as_str().map(str::to_owned);
        let by_deployment: Vec<String> =
            volumes.iter().filter_map(Value::as_array).flatten().filter_map(of_volume).collect();
        let by_pods = self.mirror.pods(fleet);
        by_deployment.into_iter().chain(by_pods.iter().flat_map(|pod| pod.secrets.iter().cloned())).collect()
    }

    async fn delete(
        &self,
        gateway: &ProtocolGateway,
        kind: &'static Kind,
        name: &str,
        object: &Mirrored,
        resource_version: Option<String>,
    ) -> Result<(), ReconcileError> {
        if object.ends || !is_ours(&object.owner, gateway) {
            return Ok(());
        }
        let namespace = gateway.namespace().unwrap_or_default();
        let title = format!("{} {name}", kind.name);
        // another object of that name is not the one that was looked at
        let preconditions = Preconditions { uid: Some(object.uid.clone()), resource_version };
        let parameters = DeleteParams::background().preconditions(preconditions);
        let api = kind.api(&self.client, Some(&namespace));
        let deleted = self.write(Step::Apply, &title, async {
            match api.delete(name, &parameters).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                other => other.map(drop),
            }
        });
        deleted.await?;
        self.metrics.writes.with_label_values(&[kind.name]).inc();
        info!(namespace, object = title, "deleted: not wanted any more");
        self.mirror.remove(kind, &Name::new(&namespace, name));
        Ok(())
    }
}
