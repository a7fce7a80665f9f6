//! Removing every trace of a run: processes, containers, mounts, namespaces, cgroups, files.
//!
//! It works from what the machine shows and not from what the run remembers, so it serves a run that was killed as well.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::{
    mount::{UnmountFlags, unmount},
    process::{Pid, Signal, geteuid, kill_process},
};

use crate::{
    cgroup, network,
    run::{self, Run},
    sysctl,
};

/// The programs a run starts. A user's `kubectl` or editor that names a file of the run is not one of them.
const PROGRAMS: [&str; 10] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "coredns",
    "containerd",
    "containerd-shim-runc-v2",
    "hub",
];

/// How long killed processes may take to be gone.
const GONE_TIMEOUT: Duration = Duration::from_secs(30);

/// Removes the run's traces; nothing to remove is not an error.
pub(crate) fn remove(run: &Run) -> anyhow::Result<()> {
    kill_processes(&run.directory)?;
    // without root there were no nodes
    if geteuid().is_root() {
        remove_nodes(run)?;
    }
    if run.directory.exists() {
        fs::remove_dir_all(&run.directory).with_context(|| format!("cannot remove {}", run.directory.display()))?;
    }
    Ok(())
}

/// What nodes leave outside the run's directory, and what keeps that directory from being removed.
fn remove_nodes(run: &Run) -> anyhow::Result<()> {
    let places = network::places(run.number);
    for place in &places {
        cgroup::remove(&place.network)?;
    }
    // those who shared a directory with a container are gone now
    unmount_below(&run.directory)?;
    network::remove(run.number)?;
    for place in &places {
        remove_sockets_of_shims(&run.directory.join(place.name).join("state"));
        remove_cni_results(Path::new("/var/lib/cni/results"), &place.network);
    }
    remove_links_into(Path::new("/var/log/containers"), &run.directory);
    if sysctl::is_remembered(&run.directory) && !run::others_have_nodes(run)? {
        remove_shared_places();
    }
    sysctl::restore(&run.directory)
}

/// Where programs of any run write whatever they are told. What is not empty is somebody else's and stays.
fn remove_shared_places() {
    for file in ["kubelet.sock", "DEPRECATION"] {
        let _ = fs::remove_file(Path::new("/var/lib/kubelet/device-plugins").join(file));
    }
    let is_empty = |path: &str| fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    if is_empty("/run/netns") {
        // `ip netns` mounts it on itself
        let _ = unmount("/run/netns", UnmountFlags::empty());
    }
    let directories = ["/run/netns", "/run/containerd/s", "/run/containerd", "/var/lib/cni/results", "/var/lib/cni"];
    let directories = directories.iter().chain(&["/var/lib/kubelet/device-plugins", "/var/lib/kubelet"]);
    for directory in directories.chain(&["/var/log/containers"]) {
        let _ = fs::remove_dir(directory);
    }
}

/// Unmounts everything below `directory`, the innermost first.
fn unmount_below(directory: &Path) -> anyhow::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let mut points: Vec<PathBuf> = points.filter(|point| point.starts_with(directory)).collect();
    points.sort();
    for point in points.iter().rev() {
        unmount(point, UnmountFlags::DETACH).with_context(|| format!("cannot unmount {}", point.display()))?;
    }
    Ok(())
}

/// The sockets of killed shims: each wrote the address of its own beside its container.
fn remove_sockets_of_shims(state: &Path) {
    let tasks = state.join("io.containerd.runtime.v2.task/k8s.io");
    for task in entries(&tasks) {
        let address = fs::read_to_string(task.join("address")).unwrap_or_default();
        if let Some(socket) = address.trim().strip_prefix("unix://") {
            let _ = fs::remove_file(socket);
        }
    }
}

/// What CNI keeps of pods that were not taken down in order: `NETWORK-CONTAINER-eth0`, `cni-loopback-CONTAINER-lo`.
fn remove_cni_results(results: &Path, network: &str) {
    for path in entries(results) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some(container) = name.strip_prefix(network).and_then(|name| name.strip_prefix('-')) else { continue };
        let container = container.split('-').next().unwrap_or_default();
        let _ = fs::remove_file(results.join(format!("cni-loopback-{container}-lo")));
        let _ = fs::remove_file(&path);
    }
}

/// The links that the kubelet makes for collectors of logs.
fn remove_links_into(links: &Path, directory: &Path) {
    for link in entries(links) {
        if fs::read_link(&link).is_ok_and(|target| target.starts_with(directory)) {
            let _ = fs::remove_file(link);
        }
    }
}

/// The paths in a directory; none if it is not there.
fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path()).collect()
}

/// Kills the run's processes and waits until they are gone.
fn kill_processes(directory: &Path) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let found = processes_of(directory)?;
        if found.is_empty() {
            return Ok(());
        }
        for &process in &found {
            // an error means that it has ended already, or belongs to somebody else, which the time-out tells
            let _ = kill_process(process, Signal::KILL);
        }
        if begun.elapsed() > GONE_TIMEOUT {
            bail!("processes of {} do not end: {found:?}", directory.display());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Living processes that run one of [`PROGRAMS`] with a path below `directory` among their arguments.
fn processes_of(directory: &Path) -> anyhow::Result<Vec<Pid>> {
    let below = format!("{}/", directory.display());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        // it may end while we look; a zombie has no arguments
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if is_one_of_ours(&String::from_utf8_lossy(&arguments), &below) {
            found.push(id);
        }
    }
    Ok(found)
}

/// `arguments` as /proc shows them: each ended by a zero byte.
fn is_one_of_ours(arguments: &str, below: &str) -> bool {
    let mut words = arguments.split('\0');
    let program = words.next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    PROGRAMS.contains(&program) && words.any(|word| word.contains(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(arguments: &[&str], expected: bool) {
        let shown = [arguments.join("\0"), String::new()].join("\0");
        assert_eq!(is_one_of_ours(&shown, "/tmp/runs/1/"), expected, "{arguments:?}");
    }

    #[test]
    fn only_our_programs_with_a_path_of_the_run_are_killed() {
        check(&["/cache/etcd/etcd", "--data-dir=/tmp/runs/1/etcd"], true);
        check(&["/usr/bin/containerd-shim-runc-v2", "-address", "/tmp/runs/1/a/containerd.sock"], true);
        check(&["/target/debug/hub", "--describe", "/tmp/runs/1/hub.json"], true);
        check(&["/target/debug/hub", "--describe", "/elsewhere/hub.json"], false);
        check(&["/cache/etcd/etcd", "--data-dir=/tmp/runs/11/etcd"], false);
        check(&["/usr/bin/kubectl", "--kubeconfig=/tmp/runs/1/kubeconfig"], false);
        check(&["/usr/bin/etcd", "--data-dir=/var/lib/etcd"], false);
        check(&["vi", "/tmp/runs/1/logs/etcd.log"], false);
        check(&[""], false);
    }
}
