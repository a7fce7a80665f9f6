//! Packages beyond the base image, installed by name: Debian's, Python's and Node's.
//!
//! Debian packages go to the system and need root; where that is missing, the exact command is the error.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

use crate::{cache, process, step};

/// Makes sure that `program` can be run, from Debian's `package` if need be.
pub fn debian(program: &str, package: &str) -> anyhow::Result<()> {
    if process::is_there(program) {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        bail!("{program} is missing; install it with: sudo apt-get install --yes --no-install-recommends {package}");
    }
    step::step(&format!("install the Debian package {package}"), || {
        let install = || {
            process::run_quietly(
                Command::new("apt-get")
                    .args(["install", "--yes", "--no-install-recommends", package])
                    .env("DEBIAN_FRONTEND", "noninteractive"),
            )
        };
        // the package lists of a fresh machine are empty or old
        install().or_else(|_| process::run_quietly(Command::new("apt-get").arg("update")).and_then(|()| install()))
    })
}

/// The Python of a virtual environment that holds what `requirements` (a pip file with exact versions) names.
pub fn python(requirements: &Path) -> anyhow::Result<PathBuf> {
    let wanted = fs::read_to_string(requirements).with_context(|| format!("cannot read {}", requirements.display()))?;
    if !process::is_there("python3") {
        bail!("python3 is missing; install it with: sudo apt-get install --yes python3 python3-venv");
    }
    // a virtual environment belongs to the Python that made it
    let version = Command::new("python3").arg("--version").output()?;
    let key = format!("{}{wanted}", String::from_utf8_lossy(&version.stdout));
    let made = cache::directory("python", &key, |directory| {
        step::step("install the Python packages of the client tests", || {
            process::run_quietly(Command::new("python3").args(["-m", "venv"]).arg(directory))?;
            process::run_quietly(
                Command::new(directory.join("bin/python"))
                    .args(["-m", "pip", "install", "--quiet", "--requirement"])
                    .arg(requirements),
            )
        })
    })?;
    Ok(made.join("bin/python"))
}

/// A directory with the scripts of `source` and, beside them, the `node_modules` that its lock file names.
pub fn node(source: &Path) -> anyhow::Result<PathBuf> {
    for program in ["node", "npm"] {
        if !process::is_there(program) {
            bail!("{program} is missing; install it with: sudo apt-get install --yes nodejs npm");
        }
    }
    let lock = source.join("package-lock.json");
    let wanted = fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    let made = cache::directory("node", &wanted, |directory| {
        step::step("install the Node packages of the client tests", || {
            for file in ["package.json", "package-lock.json"] {
                fs::copy(source.join(file), directory.join(file))?;
            }
            process::run_quietly(
                Command::new("npm")
                    .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])
                    .current_dir(directory),
            )
        })
    })?;
    for entry in fs::read_dir(source)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "mjs") {
            let name = path.file_name().expect("a directory entry has a name");
            fs::copy(&path, made.join(name))?;
        }
    }
    Ok(made)
}
