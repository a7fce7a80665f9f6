//! The images that are shipped: `gateway` and `operator`, each with its libraries, CA certificates, labels and bill.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;

use crate::{
    build::{self, Profile},
    image::{self, Content, Entry, Image},
    process,
    sbom::Crates,
};

/// Where the images are said to come from; a user pushes them to a registry of their own.
pub const REGISTRY: &str = "protocolgateway.io";
/// The programs, each in the package of its name.
pub const PROGRAMS: [&str; 2] = ["gateway", "operator"];
/// Whom the programs trust where they are told nothing.
pub(crate) const CA_CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// An image that was not written yet, and what its program is made of.
#[derive(Debug)]
pub struct Product {
    /// `gateway` or `operator`.
    pub program: &'static str,
    /// The image.
    pub image: Image,
    /// Its bill of materials, CycloneDX.
    pub bill: String,
}

/// As they are shipped, from a build in `target` that holds no path of this machine.
///
/// # Errors
/// A build that fails, a tool or file of the system that is missing.
pub fn shipped(target: &Path) -> anyhow::Result<Vec<Product>> {
    let made = PROGRAMS.into_iter().map(|program| {
        let [path] = build::build_anywhere_alike(target, [program], Profile::Release)?;
        product(program, &path, env!("CARGO_PKG_VERSION"), true)
    });
    made.collect()
}

/// As tests use them: quick to make, and called by what is in them, so that another build is another image.
///
/// # Errors
/// As [`shipped`].
pub fn for_tests() -> anyhow::Result<Vec<Product>> {
    let made = PROGRAMS.into_iter().map(|program| {
        let [path] = build::build([program], Profile::Dev)?;
        let mut product = product(program, &path, "test", false)?;
        let hashes = product.image.files.iter().map(|file| Ok(image::sha256(&file.content.read()?)));
        let hashes = hashes.collect::<anyhow::Result<Vec<_>>>()?.join(" ");
        let hash = image::sha256(hashes.as_bytes());
        product.image.name = format!("{REGISTRY}/{program}:test-{}", &hash["sha256:".len()..][..12]);
        Ok(product)
    });
    made.collect()
}

/// One program is built, and counted up, without the other: it holds no feature that only the other needs.
fn product(program: &'static str, path: &Path, tag: &str, compress: bool) -> anyhow::Result<Product> {
    let stripped = stripped(path)?;
    let mut image = Image::of_program(&format!("{REGISTRY}/{program}:{tag}"), &stripped)?;
    let certificates = PathBuf::from(CA_CERTIFICATES);
    anyhow::ensure!(
        certificates.exists(),
        "{CA_CERTIFICATES} is missing; install it with: sudo apt-get install --yes ca-certificates"
    );
    let path = CA_CERTIFICATES.trim_start_matches('/').to_owned();
    image.files.push(Entry { path, content: Content::File(certificates), mode: 0o644 });
    let bill = Crates::of(program)?.bill(&of_the_system(&image, &stripped))?;
    let bill = serde_json::to_string_pretty(&bill)?;
    let path = format!("usr/share/sbom/{program}.cdx.json");
    image.files.push(Entry { path, content: Content::Bytes(bill.clone().into_bytes()), mode: 0o644 });
    image.labels = labels(program);
    image.created = git(&["log", "-1", "--format=%cI"]);
    image.compress = compress;
    Ok(Product { program, image, bill })
}

/// The files of the image that are not ours.
fn of_the_system<'a>(image: &'a Image, program: &Path) -> Vec<&'a Path> {
    let files = image.files.iter().filter_map(|file| match &file.content {
        Content::File(path) if path != program => Some(path.as_path()),
        _ => None,
    });
    files.collect()
}

/// Without the tables for debuggers: the names of functions stay, for backtraces.
fn stripped(program: &Path) -> anyhow::Result<PathBuf> {
    let directory = program.with_file_name("stripped");
    fs::create_dir_all(&directory)?;
    let to = directory.join(program.file_name().context("a program has a name")?);
    // whoever reads the one of before, reads it to its end
    let new = to.with_extension(std::process::id().to_string());
    process::run_quietly(Command::new("strip").args(["--strip-debug", "-o"]).arg(&new).arg(program))
        .context("strip comes with the C compiler's package binutils")?;
    fs::rename(new, &to)?;
    Ok(to)
}

/// The labels of a program's image, by their full names.
pub fn labels(program: &str) -> std::collections::BTreeMap<String, String> {
    let description = match program {
        "operator" => "Kubernetes operator for fleets of IoT protocol gateways",
        _ => "MQTT to AMQP 1.0 protocol gateway",
    };
    let mut labels = vec![
        ("title", program.to_owned()),
        ("description", description.to_owned()),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("licenses", "Apache-2.0".to_owned()),
    ];
    if let Some(revision) = git(&["rev-parse", "HEAD"]) {
        // what is not committed is in nobody else's hands
        let clean = git(&["status", "--porcelain", "--untracked-files=no"]).is_none();
        labels.push(("revision", if clean { revision } else { format!("{revision}-dirty") }));
    }
    labels.into_iter().map(|(key, value)| (format!("org.opencontainers.image.{key}"), value)).collect()
}

/// One line that git says of this checkout, if there is git, and a checkout, and something to say.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).current_dir(process::workspace_root()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    text.lines().next().map(str::to_owned)
}
