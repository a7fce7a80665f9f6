//! The programs a cluster is made of, each built once per version into the cache outside the checkout.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};
use xtask::{cache, process, step::step};

/// The version that everything of Kubernetes has here. Not above 1.34: 1.35 refuses cgroup v1, 1.36 wants containerd 2.
pub const KUBERNETES_VERSION: &str = "1.34.4";

/// One program and what it is built from.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// What it is called, here and as a file.
    pub name: &'static str,
    source: Source,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    /// A main package that the module in `go/DIRECTORY` requires by exact versions and sums.
    Go { directory: &'static str, package: &'static str },
    /// One file below `go/`, linked statically.
    C { file: &'static str },
}

/// The store behind the API server.
pub const ETCD: Program = go("etcd", "etcd", "go.etcd.io/etcd/server/v3");
/// The API server.
pub const APISERVER: Program = go("kube-apiserver", "kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver");
/// Garbage collection, Deployments, service accounts and the other controllers.
pub const CONTROLLER_MANAGER: Program =
    go("kube-controller-manager", "kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager");
/// Places pods on nodes.
pub const SCHEDULER: Program = go("kube-scheduler", "kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler");
/// Runs the pods of a node.
pub const KUBELET: Program = go("kubelet", "kubernetes", "k8s.io/kubernetes/cmd/kubelet");
/// Makes Services reachable on a node.
pub const KUBE_PROXY: Program = go("kube-proxy", "kubernetes", "k8s.io/kubernetes/cmd/kube-proxy");
/// The user's tool, of the cluster's version.
pub const KUBECTL: Program = go("kubectl", "kubernetes", "k8s.io/kubernetes/cmd/kubectl");
/// Resolves the names of Services.
pub const COREDNS: Program = go("coredns", "coredns", "github.com/coredns/coredns");
/// Installs charts.
pub const HELM: Program = go("helm", "helm", "helm.sh/helm/v4/cmd/helm");
/// Holds the namespaces of a pod.
pub const PAUSE: Program = Program { name: "pause", source: Source::C { file: "pause/pause.c" } };
/// Answers HTTP with what it sees of its pod: for the harness's own test.
pub const HELLO: Program = go("hello", "hello", ".");

/// cert-manager's controllers, for tests of what they and the operator do to the same Secret.
pub const CERT_MANAGER: Program = go("cert-manager", "cert-manager", ".");

/// All that a cluster is made of, those needed first at the front.
pub const ALL: [Program; 11] =
    [ETCD, APISERVER, CONTROLLER_MANAGER, KUBECTL, SCHEDULER, KUBELET, KUBE_PROXY, PAUSE, HELLO, COREDNS, HELM];

const fn go(name: &'static str, directory: &'static str, package: &'static str) -> Program {
    Program { name, source: Source::Go { directory, package } }
}

impl Program {
    /// Where it stands, built before if need be.
    ///
    /// # Errors
    /// A build that fails, with the compiler's words; Go or a C compiler that is missing.
    pub fn path(self) -> anyhow::Result<PathBuf> {
        let made = cache::directory(self.name, &self.recipe()?, |directory| {
            step(&format!("build {} (once per version; Kubernetes takes minutes)", self.name), || {
                process::run_quietly(&mut self.build(&directory.join(self.name)))
            })
        })?;
        Ok(made.join(self.name))
    }

    /// Everything that a build depends on, as the cache's key.
    fn recipe(self) -> anyhow::Result<String> {
        let read = |path: PathBuf| fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()));
        let build = process::shown(&self.build(Path::new(self.name))).replace(&*root().to_string_lossy(), "go");
        Ok(match self.source {
            Source::Go { directory, package } => {
                need_go()?;
                let directory = root().join(directory);
                // only a module with requirements has sums, only the local package has a source
                let sums = fs::read_to_string(directory.join("go.sum")).unwrap_or_default();
                let main = if package == "." { read(directory.join("main.go"))? } else { String::new() };
                [build, read(directory.join("go.mod"))?, sums, main].join("\n")
            }
            Source::C { file } => {
                need("cc", "install it with: sudo apt-get install --yes gcc libc6-dev")?;
                [build, read(root().join(file))?].join("\n")
            }
        })
    }

    /// At the lowest priority: a build of minutes must not take the machine from whoever waits for it.
    fn build(self, to: &Path) -> Command {
        let mut command = Command::new("nice");
        command.args(["-n", "19"]);
        match self.source {
            Source::Go { directory, package } => {
                command.args(["go", "build", "-trimpath", "-buildvcs=false", "-ldflags", &linker_flags(directory)]);
                command.arg("-o").arg(to).arg(package).current_dir(root().join(directory));
                command.envs([("CGO_ENABLED", "0"), ("GOFLAGS", ""), ("GOWORK", "off")]);
            }
            Source::C { file } => {
                command.args(["cc", "-Os", "-static", "-s", "-Wall", "-o"]).arg(to).arg(root().join(file));
            }
        }
        command
    }
}

/// Without the stamp the API server calls itself v0.0.0 and clients refuse it.
fn linker_flags(directory: &str) -> String {
    let mut flags = vec!["-s -w".to_owned()];
    if directory == "kubernetes" {
        let (minor, _patch) = KUBERNETES_VERSION[2..].split_once('.').expect("a version has three parts");
        for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
            flags.push(format!("-X {package}.gitVersion=v{KUBERNETES_VERSION} -X {package}.gitMajor=1"));
            flags.push(format!("-X {package}.gitMinor={minor} -X {package}.gitTreeState=clean"));
        }
    }
    flags.join(" ")
}

/// The wrapper modules of this crate.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("go")
}

pub(crate) fn need_go() -> anyhow::Result<()> {
    need("go", "install Go, 1.26 or later: https://go.dev/dl")
}

fn need(program: &str, remedy: &str) -> anyhow::Result<()> {
    if !process::is_there(program) {
        bail!("{program} is missing; {remedy}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubernetes_is_stamped_with_the_version_that_its_module_requires() {
        let module = fs::read_to_string(root().join("kubernetes/go.mod")).expect("a module");
        let required = ["k8s.io/kubernetes".to_owned(), format!("v{KUBERNETES_VERSION}")];
        assert!(module.lines().any(|line| line.split_whitespace().take(2).eq(&required)), "{module}");
        assert!(linker_flags("kubernetes").contains("gitVersion=v1.34.4 "));
        assert!(linker_flags("kubernetes").contains("gitMinor=34 "));
        assert!(!linker_flags("etcd").contains("gitVersion"));
    }

    #[test]
    fn the_place_of_the_checkout_is_not_part_of_the_key() {
        let recipe = PAUSE.recipe().expect("a recipe");
        assert!(!recipe.contains(env!("CARGO_MANIFEST_DIR")), "{recipe}");
    }
}
