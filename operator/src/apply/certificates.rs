//! Carries out steps with certificates: each reads what it is about, makes keys, and writes one Secret.

use crds::ProtocolGateway;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Map, Value, json};
use tracing::info;

use super::{Memory, Writer, merging};
use crate::{
    certificates::{self, MintError},
    desired::tls,
    error::{Kind as Failure, ReconcileError, Step},
    kinds::SECRET,
    names,
    observe::{Way, mirror::Name},
};

impl Writer {
    /// Carries them out, one after another; whether any was. One that cannot be is remembered as not taken, and not tried again
    /// before its time or a change of what it is about.
    pub async fn certificates(
        &self,
        gateway: &ProtocolGateway,
        steps: &[tls::Step],
        now: Timestamp,
        memory: &mut Memory,
    ) -> Result<bool, ReconcileError> {
        let mut done = false;
        for step in steps {
            let (title, about) = (format!("Secret {}", step.secret()), self.about(gateway, step));
            if !memory.is_refused(&title, &about) {
                let ended = self.certificate(gateway, step, now).await;
                done |= memory.ended((Way::Apply, &title), &about, ended)?;
            }
        }
        Ok(done)
    }

    /// What a step is about: itself, and the versions of the Secret that it writes and of the CA.
    fn about(&self, gateway: &ProtocolGateway, step: &tls::Step) -> String {
        let name = Name::of(&gateway.metadata);
        let version = |secret: &str| Some(self.mirror.versioned(&SECRET, &Name::new(&name.namespace, secret))?.1);
        json!([step, version(step.secret()), version(&names::authority(&name.name))]).to_string()
    }

    async fn certificate(
        &self,
        gateway: &ProtocolGateway,
        step: &tls::Step,
        now: Timestamp,
    ) -> Result<(), ReconcileError> {
        let name = Name::of(&gateway.metadata);
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &name.namespace);
        let title = format!("Secret {}", step.secret());
        let get = async |secret: &str| {
            let found = api.get_opt(secret).await;
            found.map_err(|error| ReconcileError::of(Step::Apply, format!("Secret {secret}"), &error))
        };
        let authority_name = names::authority(&name.name);
        let authority = get(&authority_name).await?;
        let current = if *step.secret() == authority_name { authority.clone() } else { get(step.secret()).await? };
        let metadata = names::owned(gateway, step.secret());
        let minted = certificates::mint(step, authority.as_ref(), current.as_ref(), metadata, now);
        let minted = minted.map_err(|error| ReconcileError {
            step: Step::Apply,
            kind: if matches!(error, MintError::Outdated(_)) { Failure::Conflict } else { Failure::Refused },
            object: title.clone(),
            message: error.to_string(),
        })?;
        self.has_owner(&minted.metadata, &title)?;
        let parameters = PatchParams::apply(names::FIELD_MANAGER).force();
        let patch = Patch::Apply(&minted);
        let written = self.write(Step::Apply, &title, api.patch(step.secret(), &parameters, &patch)).await?;
        let written = self.drop_left(&api, &title, &minted, written).await?;
        self.metrics.writes.with_label_values(&[SECRET.name]).inc();
        info!(gateway = %name, secret = step.secret(), step = step.name(), "certificates: a step is done");
        self.secrets.put(&name, &written);
        Ok(())
    }

    /// What is not applied any more goes, unless somebody else has written it too (`kubectl edit`, a backup): then it is taken
    /// away by name, or the step would be due again at once and for ever.
    async fn drop_left(
        &self,
        api: &Api<Secret>,
        title: &str,
        minted: &Secret,
        written: Secret,
    ) -> Result<Secret, ReconcileError> {
        let has = |secret: &Secret, file: &str| secret.data.as_ref().is_some_and(|data| data.contains_key(file));
        let left = certificates::PASSING_FILES.iter().filter(|file| has(&written, file) && !has(minted, file));
        let none: Map<String, Value> = left.map(|file| ((*file).to_owned(), Value::Null)).collect();
        if none.is_empty() {
            return Ok(written);
        }
        let patch = json!({"metadata": {"resourceVersion": written.metadata.resource_version}, "data": none});
        let name = written.metadata.name.as_deref().unwrap_or_default();
        self.write(Step::Apply, title, api.patch(name, &merging(), &Patch::Merge(&patch))).await
    }
}
