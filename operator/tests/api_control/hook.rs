//! A webhook that nobody serves: it stands before everything that is done to one kind of objects in the test's namespace.

use anyhow::ensure;
use cluster::Story;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use operator::kinds::Kind;
use serde_json::{Value, json};

use crate::support::{SOON, kind};

/// Stands until it [`goes`](Self::goes).
pub(crate) struct Hook {
    hooks: Api<ValidatingWebhookConfiguration>,
    of: &'static Kind,
    name: String,
}

impl Hook {
    /// Before every write of an object of this kind; gives back once the API server asks it.
    pub(crate) async fn before(story: &Story, kind_name: &str) -> anyhow::Result<Self> {
        let hooks: Api<ValidatingWebhookConfiguration> = Api::all(story.client.clone());
        let (of, name) = (kind(kind_name), story.namespace.clone());
        let selector = json!({"matchLabels": {"kubernetes.io/metadata.name": story.namespace}});
        let rule = json!({"apiGroups": [of.group], "apiVersions": [of.version], "resources": [of.plural],
            "operations": ["CREATE", "UPDATE"]});
        let hook = json!({
            "name": "nobody.example.com", "failurePolicy": "Fail", "sideEffects": "None", "timeoutSeconds": 1,
            "admissionReviewVersions": ["v1"], "namespaceSelector": selector,
            "clientConfig": {"service": {"namespace": story.namespace, "name": "nobody"}}, "rules": [rule],
        });
        let object = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": name}, "webhooks": [hook],
        });
        hooks.patch(&name, &PatchParams::apply("user").force(), &Patch::Apply(&object)).await?;
        let hook = Self { hooks, of, name };
        hook.stands(story, true).await?;
        Ok(hook)
    }

    /// Gives back once the API server does not ask it any more.
    pub(crate) async fn goes(self, story: &Story) -> anyhow::Result<()> {
        self.hooks.delete(&self.name, &DeleteParams::default()).await?;
        self.stands(story, false).await
    }

    async fn stands(&self, story: &Story, expected: bool) -> anyhow::Result<()> {
        let begun = std::time::Instant::now();
        let api = self.of.api(&story.client, Some(&story.namespace));
        let mut probe = probe(self.of);
        probe["apiVersion"] = json!(self.of.api_version());
        probe["kind"] = json!(self.of.name);
        probe["metadata"] = json!({"name": "probe"});
        let dry = PatchParams::apply("user").force().dry_run();
        while api.patch("probe", &dry, &Patch::Apply(&probe)).await.is_err() != expected {
            ensure!(begun.elapsed() < SOON, "the webhook does not come to stand: {expected}");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

/// An object that is right but for its webhook.
fn probe(kind: &Kind) -> Value {
    let labels = json!({"probe": "yes"});
    let pod = json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "a", "image": "a"}]}});
    match kind.name {
        "Deployment" => json!({"spec": {"selector": {"matchLabels": labels}, "template": pod}}),
        "ConfigMap" | "Secret" => json!({"data": {}}),
        _ => json!({"spec": {"ports": [{"port": 1}]}}),
    }
}
