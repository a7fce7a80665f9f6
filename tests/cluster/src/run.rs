//! A run of the harness: a number that its addresses and names carry, a directory, and a lock that tells who is alive.
//!
//! The lock ends with the process, however that ends. So a directory whose lock can be had is what a killed run left,
//! or a cluster that was left running on purpose: then it holds the file `detached`.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use crate::{clean, sysctl};

/// More clusters than this one machine does not carry.
const RUNS_MAX: u8 = 64;

/// One run. Whoever holds this value holds its lock.
#[derive(Debug)]
pub(crate) struct Run {
    /// Below [`RUNS_MAX`], no other run's at the same time.
    pub(crate) number: u8,
    /// What it writes, all of it.
    pub(crate) directory: PathBuf,
    _lock: File,
}

impl Run {
    /// The lowest free number, with an empty directory; what killed runs left is removed on the way.
    pub(crate) fn claim() -> anyhow::Result<Self> {
        let root = root()?;
        for number in 0..RUNS_MAX {
            let Some(run) = Self::lock(&root, number)? else { continue };
            if run.is_detached() {
                continue;
            }
            clean::remove(&run)?;
            fs::create_dir_all(run.directory.join("logs"))?;
            return Ok(run);
        }
        bail!("{RUNS_MAX} clusters of this user run already: `cargo xtask down` ends those that nobody uses")
    }

    /// Removes every run that no process holds, those left running on purpose too; returns how many.
    pub(crate) fn remove_all() -> anyhow::Result<usize> {
        let root = root()?;
        let mut removed = 0;
        for number in 0..RUNS_MAX {
            if !root.join(number.to_string()).exists() {
                continue;
            }
            match Self::lock(&root, number)? {
                Some(run) => {
                    clean::remove(&run)?;
                    removed += 1;
                }
                None => xtask::step::say(&format!("cluster {number} belongs to a process that runs: left alone")),
            }
        }
        Ok(removed)
    }

    /// The directory of a cluster that was left running on purpose, if there is one.
    pub(crate) fn detached() -> anyhow::Result<Option<PathBuf>> {
        let root = root()?;
        let directories = (0..RUNS_MAX).map(|number| root.join(number.to_string()));
        Ok(directories.into_iter().find(|directory| directory.join("detached").exists()))
    }

    /// Lets the run outlive this process.
    pub(crate) fn detach(&self) -> anyhow::Result<()> {
        fs::write(self.directory.join("detached"), "").context("cannot mark the cluster as left running")
    }

    /// The directories of the other runs, alive or not.
    pub(crate) fn others(&self) -> anyhow::Result<Vec<PathBuf>> {
        let root = root()?;
        let others = (0..RUNS_MAX).filter(|&number| number != self.number).map(|number| root.join(number.to_string()));
        Ok(others.filter(|directory| directory.exists()).collect())
    }

    fn is_detached(&self) -> bool {
        self.directory.join("detached").exists()
    }

    /// `None` if a living process has it.
    fn lock(root: &Path, number: u8) -> anyhow::Result<Option<Self>> {
        let path = root.join(format!("{number}.lock"));
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.with_context(|| format!("cannot open {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self { number, directory: root.join(number.to_string()), _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }
}

/// Whether another run has nodes.
pub(crate) fn others_have_nodes(run: &Run) -> anyhow::Result<bool> {
    Ok(run.others()?.iter().any(|directory| sysctl::is_remembered(directory)))
}

/// Where the runs of this user are: short, for the paths of sockets end after 107 bytes; closed to others, for keys.
fn root() -> anyhow::Result<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let root = PathBuf::from(format!("/tmp/protocol-gateway-cluster-{user}"));
    DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
    let found = fs::symlink_metadata(&root)?;
    if !found.is_dir() || found.uid() != user || found.mode() & 0o077 != 0 {
        bail!("{} is not a directory that only this user can enter: remove it", root.display());
    }
    Ok(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_runs_have_different_numbers_and_a_dropped_one_is_free_again() {
        let first = Run::claim().expect("a run");
        let second = Run::claim().expect("another run");
        assert_ne!(first.number, second.number);
        let number = second.number;
        clean::remove(&second).expect("removed");
        drop(second);
        let root = root().expect("a root");
        assert!(Run::lock(&root, number).expect("a lock file").is_some());
        clean::remove(&first).expect("removed");
        assert!(!first.directory.exists());
    }
}
