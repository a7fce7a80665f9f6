//! The cgroups of a run: each node's containers below one of their own, so two kubelets do not meet.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long killed containers may take to be gone.
const GONE_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes the cgroup `name` in every hierarchy of the machine, of version 1 and 2.
pub(crate) fn make(name: &str) -> anyhow::Result<()> {
    for hierarchy in hierarchies()? {
        let cgroup = hierarchy.join(name);
        fs::create_dir_all(&cgroup).with_context(|| format!("cannot make the cgroup {}", cgroup.display()))?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            // version 1: empty in a new cgroup, and then nothing may run in it
            let parent = fs::read_to_string(hierarchy.join(file)).unwrap_or_default();
            if !parent.trim().is_empty() {
                fs::write(cgroup.join(file), parent.trim()).context("cannot set up a cpuset")?;
            }
        }
        if hierarchy.join("cgroup.controllers").exists() {
            let controllers = fs::read_to_string(hierarchy.join("cgroup.controllers"))?;
            for controller in controllers.split_whitespace() {
                for at in [&hierarchy, &cgroup] {
                    // one that cannot be had here is said by the kubelet, if it needs it
                    let _ = fs::write(at.join("cgroup.subtree_control"), format!("+{controller}"));
                }
            }
        }
    }
    Ok(())
}

/// Kills what runs below the cgroup `name` and removes it everywhere. Nothing to remove is not an error.
pub(crate) fn remove(name: &str) -> anyhow::Result<()> {
    let begun = Instant::now();
    let cgroups: Vec<PathBuf> = hierarchies()?.into_iter().map(|hierarchy| hierarchy.join(name)).collect();
    loop {
        let mut left = Vec::new();
        for cgroup in cgroups.iter().filter(|cgroup| cgroup.exists()) {
            kill(cgroup);
            // busy until the last process is gone
            if let Err(error) = remove_tree(cgroup) {
                left.push(format!("{}: {error}", cgroup.display()));
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > GONE_TIMEOUT {
            bail!("cgroups cannot be removed: {}", left.join(", "));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Kills the processes of a container, at once and without a word to them; returns how many there were.
pub(crate) fn kill_container(id: &str) -> anyhow::Result<usize> {
    let mut killed = 0;
    for entry in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
        // one that ends meanwhile is in no cgroup
        let cgroups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if cgroups.lines().any(|line| is_container(line, id)) && kill_process(process, Signal::KILL).is_ok() {
            killed += 1;
        }
    }
    Ok(killed)
}

/// Whether a line of /proc/PID/cgroup is of that container: the last part of its path is the id.
fn is_container(line: &str, id: &str) -> bool {
    !id.is_empty() && line.rsplit_once('/').is_some_and(|(_pod, last)| last == id)
}

/// Kills every process below `cgroup`; one that ends meanwhile is not an error.
fn kill(cgroup: &Path) {
    let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    for process in processes.lines().filter_map(|line| line.parse().ok()).filter_map(Pid::from_raw) {
        let _ = kill_process(process, Signal::KILL);
    }
    for below in children(cgroup).unwrap_or_default() {
        kill(&below);
    }
}

/// A cgroup is removed as a directory without children; its files are the kernel's.
fn remove_tree(cgroup: &Path) -> io::Result<()> {
    for below in children(cgroup)? {
        remove_tree(&below)?;
    }
    match fs::remove_dir(cgroup) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn children(cgroup: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(cgroup)?.filter_map(Result::ok);
    Ok(entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect())
}

/// The mount points of the hierarchies.
fn hierarchies() -> anyhow::Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    Ok(mounts.lines().filter_map(hierarchy).map(PathBuf::from).collect())
}

/// The mount point in a line of /proc/self/mounts, if it is a hierarchy.
fn hierarchy(line: &str) -> Option<&str> {
    let mut words = line.split(' ');
    let (_device, point, kind) = (words.next()?, words.next()?, words.next()?);
    (kind == "cgroup" || kind == "cgroup2").then_some(point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_of_the_container_that_its_cgroup_ends_with() {
        let check = |line: &str, expected: bool| assert_eq!(is_container(line, "c1"), expected, "{line}");
        check("4:memory:/pgw-0-a/kubepods/besteffort/pod7/c1", true);
        check("0::/kubepods/pod7/c1", true);
        check("4:memory:/pgw-0-a/kubepods/besteffort/pod7/c11", false);
        check("4:memory:/pgw-0-a/kubepods/besteffort/c1/pause", false);
        check("4:memory:/", false);
        assert!(!is_container("4:memory:/", ""));
    }

    #[test]
    fn hierarchies_are_mounts_of_the_kinds_cgroup_and_cgroup2() {
        assert_eq!(hierarchy("cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0"), Some("/sys/fs/cgroup/cpu"));
        assert_eq!(hierarchy("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0"), Some("/sys/fs/cgroup"));
        assert_eq!(hierarchy("tmpfs /sys/fs/cgroup tmpfs rw,mode=755 0 0"), None);
        assert_eq!(hierarchy(""), None);
    }
}
