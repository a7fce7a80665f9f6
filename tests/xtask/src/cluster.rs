//! The levels that need a Kubernetes: the program `cluster` starts it and runs the tests beside it.

use std::process::Command;

use crate::{local, process};

/// Runs the ignored tests of the files that match `pattern`, in all packages, beside one instance that they share.
pub(crate) fn test(instance: &str, pattern: &str) -> anyhow::Result<()> {
    let tests = ["test", "--workspace", "--locked", "--no-fail-fast", "--test", pattern];
    // the cluster need not wait for the compiler; and this builds the program itself, for the tests of its package
    process::run(Command::new(env!("CARGO")).args(tests).arg("--no-run"))?;
    let program = local::target().join("debug/cluster");
    let mut command = Command::new(program);
    command.args([instance, "--", env!("CARGO")]).args(tests).args(["--", "--ignored"]);
    if instance == "nodes" {
        // a story has the nodes, and this machine's cores, for itself: it holds rates and times against bounds
        command.arg("--test-threads=1");
    }
    process::run(&mut command)
}

/// `cluster`, built if need be; its arguments are to follow.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.args(["run", "--quiet", "--locked", "--package", "cluster", "--"]);
    command
}

/// Why this machine cannot run a Kubernetes API, if so.
pub(crate) fn missing() -> Option<String> {
    let have = process::is_there("go") || names_a_cluster();
    (!have).then(|| "go is missing, which Kubernetes is built with: https://go.dev/dl".to_owned())
}

/// Why this machine cannot run nodes beyond that, if so.
pub(crate) fn missing_for_nodes() -> Option<String> {
    let have = rustix::process::geteuid().is_root() || names_a_cluster();
    (!have).then(|| "nodes need root, or a KUBECONFIG that names a cluster".to_owned())
}

fn names_a_cluster() -> bool {
    std::env::var_os("KUBECONFIG").is_some_and(|path| !path.is_empty())
}
