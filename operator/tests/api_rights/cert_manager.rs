//! cert-manager's own controllers beside the operator, and issuers for them. What its webhook would refuse nobody refuses here:
//! that code is not published as a module.

use std::{
    fs::File,
    process::{Command, Stdio},
};

use cluster::{Story, programs};
use serde_json::json;

use super::{Process, apply};

/// Starts them in the story's namespace, with the rights of the administrator.
pub(super) fn start(story: &Story) -> anyhow::Result<Process> {
    let program = programs::CERT_MANAGER.path()?;
    let log = story.cluster.kubeconfig.with_file_name(format!("{}-cert-manager.log", story.namespace));
    let child = Command::new(program)
        .arg(&story.cluster.kubeconfig)
        .arg(&story.namespace)
        .stdin(Stdio::null())
        .stderr(File::create(log)?)
        .spawn()?;
    Ok(Process(child))
}

/// From now on certificates of this issuer are made: each signs itself.
pub(super) async fn issuer(story: &Story, name: &str) -> anyhow::Result<()> {
    let issuer = json!({
        "apiVersion": "cert-manager.io/v1", "kind": "Issuer",
        "metadata": {"name": name}, "spec": {"selfSigned": {}},
    });
    apply(&story.client, &issuer, &story.namespace).await
}
