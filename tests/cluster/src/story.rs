//! A test on a cluster: a namespace of its own, and what it leaves if it fails.

use std::{
    collections::BTreeSet, fmt::Debug, panic::AssertUnwindSafe, path::PathBuf, process::Command, time::Duration,
};

use anyhow::{Context, ensure};
use futures::FutureExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, ObjectMeta, PostParams},
    runtime::wait::{Condition, await_condition},
};
use serde::de::DeserializeOwned;

use crate::{Cluster, left};

/// What Kubernetes makes in a new namespace, a moment after it.
const OF_EVERY_NAMESPACE: [&str; 2] = ["configmap/kube-root-ca.crt", "serviceaccount/default"];

/// What a test has of the cluster.
pub struct Story {
    /// The cluster that it shares with other tests.
    pub cluster: Cluster,
    /// A client of the administrator.
    pub client: Client,
    /// The namespace that only this test uses.
    pub namespace: String,
}

impl Cluster {
    /// Runs `test` in a new namespace. If it ends well the namespace is deleted, without waiting for that; if it fails
    /// or panics, logs, events and objects are gathered in `target/cluster/failed/NAME` and the namespace stays.
    ///
    /// # Panics
    /// When the test does, or returns an error.
    pub async fn story(&self, name: &str, test: impl AsyncFnOnce(&Story) -> anyhow::Result<()>) {
        let story = self.begin(name).await.expect("a namespace for the test");
        let ended = AssertUnwindSafe(test(&story)).catch_unwind().await;
        if !matches!(ended, Ok(Ok(()))) {
            match story.gather(name) {
                Ok(directory) => eprintln!("what {name} left is in {}", directory.display()),
                Err(error) => eprintln!("what {name} left cannot be gathered: {error:#}"),
            }
        }
        match ended {
            Ok(Ok(())) => story.end().await.expect("the namespace is deleted"),
            Ok(Err(error)) => panic!("{name}: {error:?}"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    async fn begin(&self, name: &str) -> anyhow::Result<Story> {
        let client = self.client().await?;
        let metadata = ObjectMeta { generate_name: Some(format!("{name}-")), ..ObjectMeta::default() };
        let namespace = Namespace { metadata, ..Namespace::default() };
        let made = Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await?;
        let namespace = made.metadata.name.context("the API server named the namespace")?;
        Ok(Story { cluster: self.clone(), client, namespace })
    }
}

impl Story {
    async fn end(&self) -> anyhow::Result<()> {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        namespaces.delete(&self.namespace, &DeleteParams::background()).await?;
        Ok(())
    }

    /// Waits until `condition` holds for the object `name`, at most for `limit`; `what` is said when it does not.
    ///
    /// # Errors
    /// The time is over, or the API server refuses the watch.
    pub async fn until<K>(
        &self,
        objects: Api<K>,
        name: &str,
        what: &str,
        limit: Duration,
        condition: impl Condition<K>,
    ) -> anyhow::Result<()>
    where
        K: Clone + Debug + Send + DeserializeOwned + Resource + 'static,
    {
        let holds = tokio::time::timeout(limit, await_condition(objects, name, condition)).await;
        holds.with_context(|| format!("{what}: not after {limit:?}"))??;
        Ok(())
    }

    /// Everything that tells why a test failed, in one directory that is made anew: `target/cluster/failed/NAME`.
    ///
    /// # Errors
    /// A directory that cannot be written. What the cluster does not tell is no error.
    pub fn gather(&self, name: &str) -> anyhow::Result<PathBuf> {
        left::gather(self, name)
    }

    /// Every object in the namespace, of whatever kind, as `KIND/NAME`; without Events, and without what Kubernetes puts
    /// into every namespace.
    ///
    /// # Errors
    /// What kubectl says.
    pub fn objects(&self) -> anyhow::Result<BTreeSet<String>> {
        let kinds = left::kinds(&self.cluster, &self.namespace)?.join(",");
        let output = self.kubectl()?.args(["get", &kinds, "--output=name", "--ignore-not-found"]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let listed = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(listed.lines().filter(|object| !OF_EVERY_NAMESPACE.contains(object)).map(str::to_owned).collect())
    }

    /// `kubectl` in the test's namespace.
    ///
    /// # Errors
    /// A build that fails.
    pub fn kubectl(&self) -> anyhow::Result<Command> {
        let mut command = self.cluster.kubectl()?;
        command.args(["--namespace", &self.namespace]);
        Ok(command)
    }
}
