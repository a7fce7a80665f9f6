//! `cluster`: runs a command with a Kubernetes beside it, or leaves one running.

use std::{
    io::Write,
    process::{Command, ExitCode},
    sync::{Arc, atomic::AtomicBool},
};

use anyhow::Context;
use clap::{Parser, Subcommand};
use cluster::{
    Instance,
    instance::{self, Level},
    programs::{self, KUBERNETES_VERSION},
    up,
};
use xtask::{process::shown, step::say};

/// A real Kubernetes on this machine, for tests.
#[derive(Parser)]
#[command(name = "cluster", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run a command with KUBECONFIG naming an API server without nodes, which ends with the command
    Api {
        /// The command and its arguments
        #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Run a command with KUBECONFIG naming a cluster of two nodes, which ends with the command
    Nodes {
        /// The command and its arguments
        #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Keep a cluster until the input ends, and print the path of its kubeconfig
    Serve {
        /// How much of a Kubernetes
        level: Level,
    },
    /// Leave a cluster of two nodes with operator, hub and a fleet running, if there is none yet, and say how to use it
    Up(up::Arguments),
    /// Remove every trace of clusters that no process holds
    Down,
    /// Build the programs that are not in the cache yet
    Build,
}

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run() -> anyhow::Result<ExitCode> {
    match Arguments::parse().task {
        Task::Api { command } => beside(Level::Api, &command),
        Task::Nodes { command } => beside(Level::Nodes, &command),
        Task::Serve { level } => serve(level),
        Task::Up(arguments) => up::up(&arguments).map(|()| ExitCode::SUCCESS),
        Task::Down => down(),
        Task::Build => build(),
    }
}

/// Runs `words` as a command beside an instance; what it returns, this returns.
fn beside(level: Level, words: &[String]) -> anyhow::Result<ExitCode> {
    // Ctrl-C reaches the command too: it ends, then the cluster does, in order
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    let (program, arguments) = words.split_first().context("a command is required")?;
    let mut command = Command::new(program);
    command.args(arguments);
    let own = std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty());
    let _instance = if let Some(path) = own {
        say(&format!("using the cluster that KUBECONFIG names: {}", path.display()));
        None
    } else {
        let instance = Instance::start(level)?;
        command.env("KUBECONFIG", &instance.cluster.kubeconfig);
        Some(instance)
    };
    let status = command.status().with_context(|| format!("cannot start {}", shown(&command)))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// Whoever started this holds the other end of the input, and wants the cluster as long as that.
fn serve(level: Level) -> anyhow::Result<ExitCode> {
    let instance = Instance::start(level)?;
    // an error: whoever wanted it is gone already
    if writeln!(std::io::stdout(), "{}", instance.cluster.kubeconfig.display()).is_ok() {
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn down() -> anyhow::Result<ExitCode> {
    match instance::down()? {
        0 => println!("there was nothing to remove"),
        removed => println!("removed {removed} cluster(s)"),
    }
    Ok(ExitCode::SUCCESS)
}

fn build() -> anyhow::Result<ExitCode> {
    println!("Kubernetes {KUBERNETES_VERSION}");
    for program in programs::ALL {
        println!("{:24} {}", program.name, program.path()?.display());
    }
    Ok(ExitCode::SUCCESS)
}
