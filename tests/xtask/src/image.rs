//! OCI images written by hand: one layer, no base, no daemon, no registry, the same bytes from the same files.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    io::{BufWriter, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail};
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

/// Who the program of an image runs as: nobody's user and group on every system.
pub const USER: u32 = 65532;

/// What is in an image.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its full name, with a registry and a tag: `protocolgateway.io/hello:test`.
    pub name: String,
    /// The program, as a path in the image.
    pub entrypoint: String,
    /// What it holds, in any order.
    pub files: Vec<Entry>,
    /// Its labels (`org.opencontainers.image.…`).
    pub labels: BTreeMap<String, String>,
    /// When, as RFC 3339. Not the time of the build: that would make every build another image.
    pub created: Option<String>,
    /// Compress the layer: smaller to carry, slower to make.
    pub compress: bool,
}

/// A file of an image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Path in the image, without the leading slash.
    pub path: String,
    /// What is in it.
    pub content: Content,
    /// Permissions.
    pub mode: u32,
}

/// What is in a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Content {
    /// What this file of the machine holds.
    File(PathBuf),
    /// These bytes.
    Bytes(Vec<u8>),
}

/// An image as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// `sha256:…` of its manifest: what a registry calls it by.
    pub digest: String,
    /// Size of the archive.
    pub bytes: u64,
}

impl Image {
    /// An image of one program and the shared libraries that it needs, if any.
    ///
    /// # Errors
    /// A program that is missing, or a library of it that is.
    pub fn of_program(name: &str, program: &Path) -> anyhow::Result<Self> {
        let file = program.file_name().context("a program has a name")?.to_string_lossy().into_owned();
        let mut files = vec![Entry { path: file.clone(), content: Content::File(program.to_path_buf()), mode: 0o755 }];
        files.extend(libraries(program)?.into_iter().map(|path| Entry {
            path: path.to_string_lossy().trim_start_matches('/').to_owned(),
            content: Content::File(path),
            mode: 0o755,
        }));
        Ok(Self {
            name: name.to_owned(),
            entrypoint: format!("/{file}"),
            files,
            labels: BTreeMap::new(),
            created: None,
            compress: false,
        })
    }

    /// Writes the image to `path`, as the tar archive of an OCI layout.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn write(&self, path: &Path) -> anyhow::Result<Written> {
        let layer = self.layer()?;
        let config = serde_json::to_vec(&self.config(&layer))?;
        let (layer, kind) = if self.compress {
            // without name and time, so that the same bytes give the same bytes
            (gzip(&["--no-name", "-9"], &layer)?, "application/vnd.oci.image.layer.v1.tar+gzip")
        } else {
            (layer, "application/vnd.oci.image.layer.v1.tar")
        };
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor(kind, &layer)],
        }))?;
        let tag = self.name.rsplit_once(':').map_or("latest", |(_name, tag)| tag);
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        entry["annotations"] = json!({"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": tag});
        let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry]}))?;

        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut archive = Builder::new(BufWriter::new(file));
        add(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
        add(&mut archive, "index.json", &index, 0o644)?;
        for blob in [&config, &layer, &manifest] {
            add(&mut archive, &format!("blobs/{}", sha256(blob).replace(':', "/")), blob, 0o644)?;
        }
        archive.into_inner()?.flush()?;
        Ok(Written { digest: sha256(&manifest), bytes: fs::metadata(path)?.len() })
    }

    /// Writes the files of the image below `root`, in place of what is there.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn unpack(&self, root: &Path) -> anyhow::Result<()> {
        if root.exists() {
            fs::remove_dir_all(root)?;
        }
        for file in &self.files {
            let path = root.join(&file.path);
            fs::create_dir_all(path.parent().context("a file stands in a directory")?)?;
            fs::write(&path, file.content.read()?).with_context(|| format!("cannot write {}", path.display()))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
        }
        Ok(())
    }

    fn config(&self, layer: &[u8]) -> Value {
        let mut run = json!({"Entrypoint": [self.entrypoint], "User": format!("{USER}:{USER}"), "WorkingDir": "/"});
        if !self.labels.is_empty() {
            run["Labels"] = json!(self.labels);
        }
        let mut config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": run,
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer)]},
        });
        if let Some(created) = &self.created {
            config["created"] = json!(created);
        }
        config
    }

    /// The layer: every directory, then every file, sorted.
    fn layer(&self) -> anyhow::Result<Vec<u8>> {
        let mut files = self.files.clone();
        files.sort();
        let mut directories: Vec<&Path> =
            files.iter().flat_map(|file| Path::new(&file.path).ancestors().skip(1)).collect();
        directories.sort();
        directories.dedup();
        let mut layer = Builder::new(Vec::new());
        for directory in directories.into_iter().filter(|directory| !directory.as_os_str().is_empty()) {
            let mut header = header(0o755, 0);
            header.set_entry_type(EntryType::Directory);
            layer.append_data(&mut header, directory, std::io::empty())?;
        }
        for file in &files {
            add(&mut layer, &file.path, &file.content.read()?, file.mode)?;
        }
        Ok(layer.into_inner()?)
    }
}

impl Content {
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn read(&self) -> anyhow::Result<Vec<u8>> {
        match self {
            Self::File(path) => fs::read(path).with_context(|| format!("cannot read {}", path.display())),
            Self::Bytes(bytes) => Ok(bytes.clone()),
        }
    }
}

/// `sha256:…` in lower-case hexadecimal, as OCI writes digests.
pub fn sha256(bytes: &[u8]) -> String {
    let mut shown = "sha256:".to_owned();
    for byte in digest(&SHA256, bytes).as_ref() {
        write!(shown, "{byte:02x}").expect("a string grows");
    }
    shown
}

/// As Go calls it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The shared libraries of `program` as `ldd` finds them, with the dynamic linker; none if it is static.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if said.contains("not found") || !program.exists() {
        bail!("{} cannot run here: {said}", program.display());
    }
    Ok(said.lines().filter_map(library).map(PathBuf::from).collect())
}

/// The path in a line of ldd: `libc.so.6 => /lib/libc.so.6 (0x…)` or `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn library(line: &str) -> Option<&str> {
    let path = line.split_once("=>").map_or(line, |(_name, path)| path);
    let path = path.split_once('(').map(|(path, _address)| path.trim())?;
    path.starts_with('/').then_some(path)
}

/// What gzip makes of these bytes.
pub(crate) fn gzip(arguments: &[&str], bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut child = Command::new("gzip")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start gzip")?;
    let mut input = child.stdin.take().expect("its input is a pipe");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // gzip's own end says what went wrong
            let _ = input.write_all(bytes);
        });
        child.wait_with_output()
    })?;
    anyhow::ensure!(output.status.success(), "gzip ended with {}", output.status);
    Ok(output.stdout)
}

fn add<W: Write>(archive: &mut Builder<W>, path: &str, content: &[u8], mode: u32) -> anyhow::Result<()> {
    archive.append_data(&mut header(mode, content.len()), path, content)?;
    Ok(())
}

/// Time, owner and all else are 0, so the same files make the same image.
fn header(mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(mode);
    header.set_size(u64::try_from(size).expect("a size in memory"));
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn descriptor(kind: &str, blob: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": sha256(blob), "size": blob.len()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_of_a_program_are_the_paths_that_ldd_prints() {
        assert_eq!(
            library("\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x01)"),
            Some("/lib/x86_64-linux-gnu/libc.so.6")
        );
        assert_eq!(library("\t/lib64/ld-linux-x86-64.so.2 (0x01)"), Some("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(library("\tlinux-vdso.so.1 (0x01)"), None);
        assert_eq!(library("\tnot a dynamic executable"), None);
    }

    #[test]
    fn the_same_files_make_the_same_image() {
        let own = std::env::current_exe().expect("this test");
        let mut image = Image::of_program("protocolgateway.io/self:test", &own).expect("an image");
        assert!(image.files.iter().any(|file| file.path.contains("libc.so")), "{:?}", image.files);
        let note = Content::Bytes(b"a note".to_vec());
        image.files.push(Entry { path: "usr/share/note".to_owned(), content: note, mode: 0o644 });
        image.labels.insert("org.opencontainers.image.title".to_owned(), "self".to_owned());
        for compress in [false, true] {
            image.compress = compress;
            let mut reversed = image.clone();
            reversed.files.reverse();
            let directory = std::env::temp_dir();
            let [one, two] = ["one", "two"].map(|name| directory.join(format!("image-{name}-{}", std::process::id())));
            let digests = [image.write(&one).expect("written"), reversed.write(&two).expect("written")];
            let same = fs::read(&one).expect("one") == fs::read(&two).expect("two");
            fs::remove_file(one).expect("removed");
            fs::remove_file(two).expect("removed");
            assert!(same && digests[0] == digests[1], "{digests:?}");
        }
    }

    #[test]
    fn digests_are_written_as_oci_wants_them() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256(b""), empty);
    }
}
