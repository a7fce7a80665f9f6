//! A test on a cluster: a namespace of its own, and what it leaves if it fails.

use std::{
    fmt::Debug,
    fs,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context;
use futures::FutureExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, ObjectMeta, PostParams},
    runtime::wait::{Condition, await_condition},
};
use serde::de::DeserializeOwned;

use crate::Cluster;

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

    /// Everything that tells why a test failed, in one directory that is made anew.
    fn gather(&self, name: &str) -> anyhow::Result<PathBuf> {
        let directory = xtask::process::workspace_root().join("target/cluster/failed").join(name);
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)?;
        self.save(&directory, "events.txt", &["get", "events", "--sort-by=.lastTimestamp"])?;
        self.save(&directory, "pods.txt", &["describe", "pods"])?;
        let kinds = self.output(&["api-resources", "--verbs=list", "--namespaced", "--output=name"])?;
        // events are there already, and some kinds of metrics cannot be listed without pods
        let kinds = kinds.lines().filter(|kind| !kind.starts_with("events") && !kind.contains("metrics.k8s.io"));
        let kinds = kinds.collect::<Vec<_>>().join(",");
        self.save(&directory, "objects.yaml", &["get", &kinds, "--output=yaml", "--ignore-not-found"])?;
        for pod in self.output(&["get", "pods", "--output=name"])?.lines() {
            let file = format!("{}.log", pod.trim_start_matches("pod/"));
            self.save(&directory, &file, &["logs", pod, "--all-containers", "--prefix", "--timestamps"])?;
        }
        if let Some(logs) = self.cluster.logs() {
            let to = directory.join("cluster");
            fs::create_dir_all(&to)?;
            for entry in fs::read_dir(logs)? {
                let entry = entry?;
                fs::copy(entry.path(), to.join(entry.file_name()))?;
            }
        }
        Ok(directory)
    }

    fn save(&self, directory: &Path, file: &str, arguments: &[&str]) -> anyhow::Result<()> {
        fs::write(directory.join(file), self.output(arguments)?)?;
        Ok(())
    }

    /// What kubectl says in the test's namespace, its errors too.
    fn output(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.kubectl()?.args(arguments).output()?;
        Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
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
