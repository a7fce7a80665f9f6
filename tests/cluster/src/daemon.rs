//! The processes of a run: started with a log of their own, and bound to the life of who starts them.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, bail};

/// How much of a log an error shows.
const LOG_TAIL_BYTES: i64 = 2_000;

/// Where processes start, and how long they may live.
#[derive(Clone, Debug)]
pub(crate) struct Starter {
    /// Directory of the run: each of its processes has a path below it among its arguments.
    pub(crate) directory: PathBuf,
    /// Whether they outlive this process.
    pub(crate) detached: bool,
}

/// A process that was started.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Starter {
    /// Starts `program`, in a network namespace if one is named. Its output goes to `logs/NAME.log` of the run.
    ///
    /// Not detached, it is killed when the *thread* that calls this ends: that thread must live as long as the run.
    pub(crate) fn start(
        &self,
        name: &str,
        network: Option<&str>,
        program: &Path,
        arguments: &[String],
    ) -> anyhow::Result<Daemon> {
        let log = self.directory.join(format!("logs/{name}.log"));
        let output = OpenOptions::new().create(true).append(true).open(&log).context("cannot open a log")?;
        // a wrapper instead of `pre_exec`, which is unsafe: both become the program by `exec`
        let mut command = if self.detached {
            Command::new("setsid")
        } else {
            let mut command = Command::new("setpriv");
            // Ctrl-C is for us, who end it in order
            command.args(["--pdeathsig", "KILL", "--"]).process_group(0);
            command
        };
        if let Some(network) = network {
            // not `ip netns exec`: that mounts a new /sys, without the tree of the cgroups
            command.args(["nsenter", &format!("--net=/run/netns/{network}"), "--"]);
        }
        command.arg(program).args(arguments);
        let child = command
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Daemon { name: name.to_owned(), log, child })
    }
}

impl Daemon {
    /// An early end is an error with the last lines of the log.
    pub(crate) fn still_runs(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{} ended with {status}; its last words:\n{}", self.name, self.last_words()),
            None => Ok(()),
        }
    }

    /// Kills it and waits until it is gone. There is nothing to save: a run's data ends with it.
    pub(crate) fn kill(&mut self) {
        // an error means that it has ended already
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn last_words(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&self.log)?;
            let length = i64::try_from(fs::metadata(&self.log)?.len()).unwrap_or(i64::MAX);
            file.seek(SeekFrom::End(-length.min(LOG_TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_else(|error| format!("(no log: {error})"))
    }
}
