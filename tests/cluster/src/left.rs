//! What a failed story leaves: logs, Events and objects of its namespace and of the operator's, in one directory.
//!
//! Each file holds what kubectl said, its errors too: whatever the cluster is in, all that can be had is there. Of Secrets
//! there is what they are made of, never a value.

use std::{
    fs,
    path::{Path, PathBuf},
};

use xtask::process::workspace_root;

use crate::{Cluster, Story, installed};

/// Where the directories of failed stories are, below the workspace's root.
const FAILED: &str = "target/cluster/failed";

/// Everything that tells why the story `name` failed, in a directory that is made anew.
pub(crate) fn gather(story: &Story, name: &str) -> anyhow::Result<PathBuf> {
    let directory = workspace_root().join(FAILED).join(name);
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    for namespace in [&story.namespace, installed::NAMESPACE] {
        let place = Place { cluster: &story.cluster, namespace, directory: directory.join(namespace) };
        if place.kubectl(&["get", "namespace", namespace])?.success {
            place.gather()?;
        }
    }
    if let Some(logs) = story.cluster.logs() {
        let to = directory.join("cluster");
        fs::create_dir_all(&to)?;
        for entry in fs::read_dir(logs)? {
            let entry = entry?;
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(directory)
}

/// Every kind of object that a namespace may hold and that can be listed. Events are told of by themselves, and what is
/// measured is not stored.
pub(crate) fn kinds(cluster: &Cluster, namespace: &str) -> anyhow::Result<Vec<String>> {
    let place = Place { cluster, namespace, directory: PathBuf::new() };
    let listed = place.kubectl(&["api-resources", "--verbs=list", "--namespaced", "--output=name"])?.out;
    let kinds = listed.lines().filter(|kind| !kind.starts_with("events") && !kind.contains("metrics.k8s.io"));
    Ok(kinds.map(str::to_owned).collect())
}

/// A namespace, and where what is in it is written.
struct Place<'a> {
    cluster: &'a Cluster,
    namespace: &'a str,
    directory: PathBuf,
}

/// What kubectl said.
struct Said {
    success: bool,
    out: String,
    error: String,
}

impl Place<'_> {
    fn gather(&self) -> anyhow::Result<()> {
        fs::create_dir_all(&self.directory)?;
        self.save("events.txt", &["get", "events", "--sort-by=.lastTimestamp"])?;
        self.save("pods.txt", &["describe", "pods"])?;
        self.save("secrets.txt", &["describe", "secrets"])?;
        let kinds = kinds(self.cluster, self.namespace)?;
        let kinds = kinds.iter().filter(|kind| *kind != "secrets").map(String::as_str).collect::<Vec<_>>().join(",");
        self.save("objects.yaml", &["get", &kinds, "--output=yaml", "--ignore-not-found"])?;
        let pods = self.kubectl(&["get", "pods", "--output=name"])?.out;
        pods.lines().filter_map(|line| line.strip_prefix("pod/")).try_for_each(|pod| self.logs(pod))
    }

    /// From the first line on; of the process before this one too, if there was one.
    fn logs(&self, pod: &str) -> anyhow::Result<()> {
        let arguments = ["logs", pod, "--all-containers", "--prefix", "--timestamps"];
        self.save(&format!("{pod}.log"), &arguments)?;
        let previous = self.kubectl(&[&arguments[..], &["--previous"]].concat())?;
        if previous.success {
            fs::write(self.directory.join(format!("{pod}.previous.log")), previous.out)?;
        }
        Ok(())
    }

    fn save(&self, file: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let said = self.kubectl(arguments)?;
        Ok(fs::write(Path::new(&self.directory).join(file), said.out + &said.error)?)
    }

    fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<Said> {
        let output = self.cluster.kubectl()?.args(["--namespace", self.namespace]).args(arguments).output()?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Said { success: output.status.success(), out: text(output.stdout), error: text(output.stderr) })
    }
}
