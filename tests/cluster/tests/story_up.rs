//! `cargo xtask up` and `down`, as a user types them: what is printed works, a crash is no end, and nothing stays.
//!
//! Beside the cluster that stories share, in a network of its own. Where somebody's `up` runs on this machine already, it
//! is theirs, and this test refuses to begin: it would end it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use cluster::instance;
use rustix::process::{Pid, Signal, kill_process};
use xtask::{
    process::{is_there, workspace_root},
    step::{say, step},
};

/// Few: they are a proof, not a load.
const DEVICES: &str = "3";
/// The processes of a cluster: etcd, API server, controllers, scheduler, name server, three for each node, and the hub.
const PROCESSES: usize = 12;
/// Killed processes are gone after that.
const GONE_TIMEOUT: Duration = Duration::from_secs(10);

#[test]
#[ignore = "level cluster: cargo xtask test cluster"]
fn up_works_again_after_a_crash_and_down_leaves_nothing() {
    let left = instance::left_running().expect("a look at what is left running");
    assert!(
        left.is_none(),
        "a cluster of `cargo xtask up` runs here, which this test would end: `cargo xtask down` first"
    );
    let end = Down;
    let test = || -> anyhow::Result<()> {
        let first = step("cargo xtask up", up)?;
        first.commands_work()?;
        let killed = first.crash()?;
        say(&format!("{killed} processes were killed"));
        ensure!(first.kubectl(&["get", "nodes"]).is_err(), "it does not look like a crash");
        let again = step("cargo xtask up, after a crash", up)?;
        again.commands_work()?;
        let sockets = again.sockets();
        ensure!(!sockets.is_empty(), "containers run");
        step("cargo xtask down", || xtask(&["down"]))?;
        for each in [&first, &again] {
            let traces = each.traces(&sockets)?;
            ensure!(traces.is_empty(), "there remain {traces:#?}");
        }
        Ok(())
    };
    test().unwrap_or_else(|error| panic!("{error:?}"));
    std::mem::forget(end);
}

/// However the test ends.
struct Down;

impl Drop for Down {
    fn drop(&mut self) {
        if let Err(error) = xtask(&["down"]) {
            eprintln!("{error:#}");
        }
    }
}

/// What `cargo xtask` prints.
fn xtask(arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(env!("CARGO"));
    command.arg("xtask").args(arguments).current_dir(workspace_root());
    // as a user who has no cluster
    said(command.env_remove("KUBECONFIG"))
}

fn said(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output()?;
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{} ended with {}\n{out}{error}", xtask::process::shown(command), output.status);
    Ok(out.into_owned())
}

fn up() -> anyhow::Result<Left> {
    Left::printed(&xtask(&["up", "--devices", DEVICES])?)
}

/// What `up` leaves, by what it printed.
struct Left {
    kubeconfig: PathBuf,
    path: String,
    commands: Vec<String>,
}

impl Left {
    fn printed(text: &str) -> anyhow::Result<Self> {
        let lines = || text.lines().filter_map(|line| line.strip_prefix("  "));
        let exported = |name: &str| {
            let value = lines().find_map(|line| line.strip_prefix("export ")?.strip_prefix(name)?.strip_prefix('='));
            value.map(str::to_owned).with_context(|| format!("no {name} in {text}"))
        };
        let runs =
            |line: &&str| ["kubectl", "helm", "mosquitto_pub"].contains(&line.split(' ').next().unwrap_or_default());
        let commands = lines().filter(runs).map(str::to_owned).collect();
        Ok(Self { kubeconfig: exported("KUBECONFIG")?.into(), path: exported("PATH")?, commands })
    }

    /// In a shell, as if both exports had been typed before.
    fn shell(&self, line: &str) -> anyhow::Result<String> {
        let typed = format!("export KUBECONFIG={}; export PATH={}; {line}", self.kubeconfig.display(), self.path);
        said(Command::new("sh").args(["-c", &typed]).env_remove("KUBECONFIG"))
    }

    fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.shell(&format!("kubectl --request-timeout=5s {}", arguments.join(" ")))
    }

    fn commands_work(&self) -> anyhow::Result<()> {
        let programs: BTreeSet<&str> = self.commands.iter().filter_map(|line| line.split(' ').next()).collect();
        ensure!(programs == ["helm", "kubectl", "mosquitto_pub"].into(), "{:?}", self.commands);
        for line in &self.commands {
            if line.starts_with("mosquitto_pub") && !is_there("mosquitto_pub") {
                say("mosquitto_pub is not on this machine");
                continue;
            }
            // it would follow for ever
            self.shell(&line.replace(" --follow", "")).with_context(|| format!("printed: {line}"))?;
        }
        let nodes = self.kubectl(&["get", "nodes", "--no-headers"])?;
        ensure!(nodes.lines().filter(|node| node.contains(" Ready ")).count() == 2, "{nodes}");
        let fleet = self.kubectl(&["get", "pgw", "--namespace=plant", "--no-headers"])?;
        ensure!(fleet.split_whitespace().take(2).eq(["plant-a", "True"]), "{fleet}");
        Ok(())
    }

    /// Where everything is that belongs to this cluster; its last part is the number in its names.
    fn directory(&self) -> &Path {
        self.kubeconfig.parent().expect("a kubeconfig stands in a directory")
    }

    /// What the names of its interfaces, namespaces and cgroups begin with.
    fn prefix(&self) -> String {
        format!("pgw-{}", self.directory().file_name().unwrap_or_default().to_string_lossy())
    }

    /// Kills every process that has a path of the cluster among its arguments, and leaves containers to themselves.
    fn crash(&self) -> anyhow::Result<usize> {
        let below = format!("{}/", self.directory().display());
        let found = processes("cmdline", &below)?;
        ensure!(found.len() >= PROCESSES, "there are only {found:?}");
        for &process in &found {
            // an error means that it has ended already, or else the time-out tells
            let _ = kill_process(process, Signal::KILL);
        }
        let begun = Instant::now();
        while !processes("cmdline", &below)?.is_empty() {
            ensure!(begun.elapsed() < GONE_TIMEOUT, "killed processes live on");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(found.len())
    }

    /// The sockets of its containers' shims, which are elsewhere.
    fn sockets(&self) -> Vec<PathBuf> {
        let tasks =
            ["a", "b"].map(|node| self.directory().join(node).join("state/io.containerd.runtime.v2.task/k8s.io"));
        let tasks = tasks.iter().flat_map(|tasks| entries(tasks));
        let addresses = tasks.filter_map(|task| fs::read_to_string(task.join("address")).ok());
        addresses.filter_map(|address| address.trim().strip_prefix("unix://").map(PathBuf::from)).collect()
    }

    /// What the machine still shows of it.
    fn traces(&self, sockets: &[PathBuf]) -> anyhow::Result<Vec<String>> {
        let directory = self.directory().display().to_string();
        let (below, prefix) = (format!("{directory}/"), self.prefix());
        let mut traces = Vec::new();
        for (file, part) in [("cmdline", &below), ("cgroup", &format!("/{prefix}-"))] {
            traces.extend(processes(file, part)?.iter().map(|process| format!("process {process:?} by its {file}")));
        }
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let is_ours = |mount: &&str| mount.contains(&below) || mount.contains(&format!("/{prefix}-"));
        traces.extend(mounts.lines().filter(is_ours).map(|mount| format!("mount {mount}")));
        let hierarchies =
            mounts.lines().filter(|mount| mount.split(' ').nth(2).is_some_and(|kind| kind.starts_with("cgroup")));
        let hierarchies = hierarchies.filter_map(|mount| mount.split(' ').nth(1)).map(Path::new);
        let places = ["/run/netns", "/sys/class/net", "/var/lib/cni/results"].map(Path::new).into_iter();
        for place in places.chain(hierarchies) {
            let named = entries(place).into_iter().filter(|entry| is_named(entry, &prefix));
            traces.extend(named.map(|entry| entry.display().to_string()));
        }
        let links = entries(Path::new("/var/log/containers"));
        let links = links.iter().filter(|link| fs::read_link(link).is_ok_and(|to| to.starts_with(&directory)));
        traces.extend(
            links.chain(sockets.iter().filter(|socket| socket.exists())).map(|path| path.display().to_string()),
        );
        traces.extend(self.directory().exists().then_some(directory));
        Ok(traces)
    }
}

/// Living processes whose file in /proc contains that.
fn processes(file: &str, part: &str) -> anyhow::Result<Vec<Pid>> {
    let own = rustix::process::getpid();
    let of = |entry: fs::DirEntry| {
        let id = entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw)?;
        let text = fs::read(entry.path().join(file)).ok()?;
        // one that has ended and waits for init to see it has no arguments
        let lives = !fs::read(entry.path().join("cmdline")).ok()?.is_empty();
        (lives && id != own && String::from_utf8_lossy(&text).contains(part)).then_some(id)
    };
    Ok(fs::read_dir("/proc")?.filter_map(Result::ok).filter_map(of).collect())
}

/// `PREFIX` alone, or with more after a hyphen: `pgw-1` is not a name of the cluster `pgw-11`.
fn is_named(entry: &Path, prefix: &str) -> bool {
    let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path()).collect()
}
