//! The programs of this workspace, built by cargo.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::process;

/// How a program is built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Profile {
    /// As `cargo test` builds it: nothing is built twice for the tests.
    Dev,
    /// As it is shipped and measured.
    Release,
}

/// Builds programs of the workspace, each in the package of its name, and returns their paths.
///
/// # Errors
/// A build that fails; its words are on the terminal.
pub fn build<const N: usize>(programs: [&str; N], profile: Profile) -> anyhow::Result<[PathBuf; N]> {
    build_with(&mut cargo(), &target(), programs, profile)
}

/// As [`build`], but the programs hold no path of this machine and this checkout: equal sources make equal programs,
/// wherever they are built. In `target`, for they share nothing with other builds.
///
/// # Errors
/// As [`build`].
pub fn build_anywhere_alike<const N: usize>(
    target: &Path,
    programs: [&str; N],
    profile: Profile,
) -> anyhow::Result<[PathBuf; N]> {
    let target = std::path::absolute(target)?;
    // one argument a line: paths may hold blanks
    let remap = places(&target).into_iter().map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()));
    let mut command = cargo();
    command.env("CARGO_ENCODED_RUSTFLAGS", remap.collect::<Vec<_>>().join("\u{1f}"));
    command.env("CARGO_TARGET_DIR", &target).env("CARGO_INCREMENTAL", "0");
    build_with(&mut command, &target, programs, profile)
}

/// Where this machine has what programs in `target` are built from, and what such programs call it.
pub fn places(target: &Path) -> Vec<(PathBuf, &'static str)> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cargo")));
    let places =
        [(Some(target.to_path_buf()), "/target"), (Some(process::workspace_root()), "/source"), (home, "/cargo")];
    places.into_iter().filter_map(|(from, to)| Some((from?, to))).collect()
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--locked"]).current_dir(process::workspace_root());
    command
}

fn build_with<const N: usize>(
    command: &mut Command,
    target: &Path,
    programs: [&str; N],
    profile: Profile,
) -> anyhow::Result<[PathBuf; N]> {
    let directory = match profile {
        // features of dependencies are those of the whole workspace: only so is what `cargo test` compiled used again
        Profile::Dev => {
            command.arg("--workspace").args(programs.iter().flat_map(|program| ["--bin", program]));
            "debug"
        }
        // and only so are they those that are shipped
        Profile::Release => {
            command.arg("--release").args(programs.iter().flat_map(|program| ["--package", program]));
            "release"
        }
    };
    process::run(command)?;
    let target = std::path::absolute(target.join(directory))?;
    let paths = programs.map(|program| target.join(program));
    for path in &paths {
        anyhow::ensure!(path.exists(), "{} was not built", path.display());
    }
    Ok(paths)
}

/// Where cargo builds to.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| process::workspace_root().join("target"), PathBuf::from)
}
