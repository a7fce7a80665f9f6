//! The definitions of kinds that are other projects', as those publish them: each file got once per version into the cache
//! outside the checkout.
//!
//! They come with the Go module that `go/DIRECTORY` requires by exact version and sum. What a test takes for granted about
//! such a kind is then what its own API server would say.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, Patch, PatchParams},
    runtime::{conditions::is_crd_established, wait::await_condition},
};
use serde::Deserialize;
use xtask::{cache, process, step::step};

use crate::programs;

const ESTABLISHED_TIMEOUT: Duration = Duration::from_mins(1);

/// Definitions of one project.
#[derive(Clone, Copy, Debug)]
pub struct Definitions {
    /// The module in `go/` that requires the project's.
    directory: &'static str,
    module: &'static str,
    /// Where they stand in the project's module.
    under: &'static str,
    files: &'static [&'static str],
}

/// `monitoring.coreos.com`: what an operator of Prometheus reads.
pub const PROMETHEUS_OPERATOR: Definitions = Definitions {
    directory: "prometheus-operator",
    module: "github.com/prometheus-operator/prometheus-operator",
    under: "example/prometheus-operator-crd",
    files: &[
        "monitoring.coreos.com_podmonitors.yaml",
        "monitoring.coreos.com_prometheusrules.yaml",
        "monitoring.coreos.com_servicemonitors.yaml",
    ],
};

/// `cert-manager.io`: certificates, who issues them, and what is asked of an issuer.
pub const CERT_MANAGER: Definitions = Definitions {
    directory: "cert-manager",
    module: "github.com/cert-manager/cert-manager",
    under: "deploy/crds",
    files: &[
        "cert-manager.io_certificaterequests.yaml",
        "cert-manager.io_certificates.yaml",
        "cert-manager.io_clusterissuers.yaml",
        "cert-manager.io_issuers.yaml",
    ],
};

/// What `go mod download` says of a module.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Downloaded {
    version: String,
    sum: String,
    dir: PathBuf,
}

impl Definitions {
    /// All of them, got before if need be.
    ///
    /// # Errors
    /// Go that is missing; a module that cannot be had, or is not what its sum says; a file that is no YAML.
    pub fn read(&self) -> anyhow::Result<Vec<DynamicObject>> {
        let directory = self.path()?;
        let read = |file: &&str| {
            let path = directory.join(file);
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            serde_saphyr::from_str(&text).with_context(|| format!("{file} is no definition"))
        };
        self.files.iter().map(read).collect()
    }

    /// Has the API server know these kinds, and waits until it serves them. What a cluster has of them already stays as it is:
    /// it may be in use.
    ///
    /// # Errors
    /// As [`Definitions::read`]; what the API server says.
    pub async fn install(&self, client: &Client) -> anyhow::Result<()> {
        let all: Api<CustomResourceDefinition> = Api::all(client.clone());
        for definition in self.read()? {
            let name = definition.name_any();
            if all.get_metadata_opt(&name).await?.is_none() {
                all.patch(&name, &PatchParams::apply("cluster").force(), &Patch::Apply(&definition)).await?;
            }
            let established = await_condition(all.clone(), &name, is_crd_established());
            let limit = tokio::time::timeout(ESTABLISHED_TIMEOUT, established).await;
            limit.with_context(|| format!("{name} is not served after {ESTABLISHED_TIMEOUT:?}"))??;
        }
        Ok(())
    }

    fn path(&self) -> anyhow::Result<PathBuf> {
        let (module, sums) = self.pinned()?;
        let recipe = [&[self.module, self.under], self.files, &[&*module, &*sums]].concat().join("\n");
        cache::directory(&format!("{}-definitions", self.directory), &recipe, |directory| {
            step(&format!("get the definitions of {} (once per version)", self.directory), || {
                let downloaded = self.download(&sums)?;
                for file in self.files {
                    let from = downloaded.dir.join(self.under).join(file);
                    fs::copy(&from, directory.join(file)).with_context(|| format!("cannot copy {}", from.display()))?;
                }
                Ok(())
            })
        })
    }

    /// Where go is told what to get: `go.mod` and `go.sum`.
    fn pinned(&self) -> anyhow::Result<(String, String)> {
        let read = |name: &str| {
            let path = self.wrapper().join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        Ok((read("go.mod")?, read("go.sum")?))
    }

    /// Go compares what it gets with `go.sum`, unless the line is missing: that is no pinned version, either.
    fn download(&self, sums: &str) -> anyhow::Result<Downloaded> {
        programs::need_go()?;
        let mut command = Command::new("go");
        command.args(["mod", "download", "-json", self.module]).current_dir(self.wrapper());
        command.envs([("GOFLAGS", ""), ("GOWORK", "off")]);
        let output = command.output().with_context(|| format!("cannot start {}", process::shown(&command)))?;
        let said = || [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
        ensure!(output.status.success(), "{} ended with {}\n{}", process::shown(&command), output.status, said());
        let downloaded: Downloaded = serde_json::from_slice(&output.stdout).with_context(said)?;
        let line = format!("{} {} {}", self.module, downloaded.version, downloaded.sum);
        ensure!(sums.lines().any(|known| known == line), "not in go/{}/go.sum: {line}", self.directory);
        Ok(downloaded)
    }

    fn wrapper(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("go").join(self.directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_of_every_project_is_pinned_by_version_and_sum() {
        for definitions in [PROMETHEUS_OPERATOR, CERT_MANAGER] {
            let (module, sums) = definitions.pinned().expect("a module");
            let line = module.lines().find(|line| line.contains(definitions.module)).expect("it is required");
            let version = line.split_whitespace().last().expect("it has a version");
            let pinned = format!("{} {version} h1:", definitions.module);
            assert!(sums.lines().any(|line| line.starts_with(&pinned)), "{pinned}");
        }
    }
}
