//! What an image really holds: its archive is read back, and everything that must not be shipped so is said.
//!
//! It takes nothing from how the image was made but what the image is to be called by.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use serde_json::Value;
use tar::{Archive, EntryType};

use crate::{
    build, image, process,
    product::{CA_CERTIFICATES, Product},
};

/// A file or directory of the layer.
#[derive(Debug)]
struct Shipped {
    kind: EntryType,
    mode: u32,
    owner: (u64, u64),
    bytes: Vec<u8>,
}

/// An image as it was read.
#[derive(Debug)]
struct Contents {
    /// The `config` of the image's configuration: who runs what.
    run: Value,
    /// By path, without the leading slash.
    layer: BTreeMap<String, Shipped>,
}

/// Where a build in `target` is on this machine, of which a program that is shipped must not tell. Of one word, such as
/// `/src` in a container, any path may hold; it tells of no machine.
///
/// # Errors
/// A target that has no absolute path.
pub fn unnamed(target: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let target = std::path::absolute(target)?;
    let places = build::places(&target).into_iter().map(|(place, _name)| place);
    Ok(places.filter(|place| place.components().count() > 2).collect())
}

/// Everything for which the image of `product` in `archive` must not be shipped; what it holds must tell of no place
/// that is `unnamed`.
///
/// # Errors
/// A file that is no archive of one OCI image, or whose digests are not those of its contents.
pub fn faults(product: &Product, archive: &Path, unnamed: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let contents = read(archive).with_context(|| format!("{} is no image", archive.display()))?;
    let mut faults = faults_of_the_configuration(product, &contents);
    for (path, shipped) in &contents.layer {
        faults.extend(faults_of_a_file(path, shipped));
        let told = unnamed.iter().filter(|place| holds(&shipped.bytes, place.as_os_str().as_encoded_bytes()));
        faults.extend(told.map(|place| format!("{path} tells of {}", place.display())));
    }
    let certificates = contents.layer.get(CA_CERTIFICATES.trim_start_matches('/'));
    if !certificates.is_some_and(|file| holds(&file.bytes, b"-----BEGIN CERTIFICATE-----")) {
        faults.push(format!("{CA_CERTIFICATES} holds no certificate"));
    }
    let lock =
        std::fs::read_to_string(process::workspace_root().join("Cargo.lock")).context("cannot read Cargo.lock")?;
    faults.extend(faults_of_the_bill(product.program, &contents, &locked(&lock)));
    Ok(faults)
}

fn faults_of_the_configuration(product: &Product, Contents { run, layer }: &Contents) -> Vec<String> {
    let mut faults = Vec::new();
    let user = format!("{0}:{0}", image::USER);
    if run["User"] != user {
        faults.push(format!("it runs as {}, not {user}", run["User"]));
    }
    let entrypoint = run["Entrypoint"][0].as_str().unwrap_or_default();
    let program = layer.get(entrypoint.trim_start_matches('/'));
    if entrypoint != format!("/{}", product.program) || program.is_none_or(|file| file.mode & 0o111 != 0o111) {
        faults.push(format!("the entrypoint {entrypoint:?} is no program of it"));
    }
    for label in ["title", "description", "version", "licenses"] {
        let key = format!("org.opencontainers.image.{label}");
        if run["Labels"][&key].as_str().is_none_or(str::is_empty) {
            faults.push(format!("no label {key}"));
        }
    }
    faults
}

/// Owned and written by root alone, and nobody's who runs it.
fn faults_of_a_file(path: &str, shipped: &Shipped) -> Vec<String> {
    let mut faults = Vec::new();
    let mut fault = |is: bool, what: &str| {
        if is {
            faults.push(format!("{path} {what} ({:o})", shipped.mode));
        }
    };
    fault(!matches!(shipped.kind, EntryType::Regular | EntryType::Directory), "is no file");
    fault(shipped.mode & 0o7000 != 0, "is setuid, setgid or sticky");
    fault(shipped.mode & 0o022 != 0, "may be written by others");
    fault(shipped.mode & 0o444 != 0o444, "may not be read");
    fault(shipped.owner != (0, 0), "is not root's");
    faults
}

/// The bill names every other file by its hash, every crate that the program itself tells of, and no crate that was
/// not locked.
fn faults_of_the_bill(program: &str, contents: &Contents, locked: &BTreeSet<String>) -> Vec<String> {
    let path = format!("usr/share/sbom/{program}.cdx.json");
    let bill = contents.layer.get(&path).and_then(|file| serde_json::from_slice::<Value>(&file.bytes).ok());
    let Some(bill) = bill else {
        return vec![format!("{path} is no bill of materials")];
    };
    let components = bill["components"].as_array().map(Vec::as_slice).unwrap_or_default();
    let hash = |each: &Value| format!("sha256:{}", each["hashes"][0]["content"].as_str().unwrap_or_default());
    let of_kind = |kind: &'static str| components.iter().filter(move |each| each["type"] == kind);
    let files: BTreeMap<_, _> =
        of_kind("file").map(|each| (each["name"].as_str().unwrap_or_default(), hash(each))).collect();
    let name = |each: &Value| Some(format!("{}-{}", each["name"].as_str()?, each["version"].as_str()?));
    let crates: BTreeSet<String> = of_kind("library").filter_map(name).collect();

    let others = contents
        .layer
        .iter()
        .filter(|(each, file)| file.kind != EntryType::Directory && ![program, path.as_str()].contains(&each.as_str()));
    let unlisted = others.filter(|(path, file)| files.get(&*format!("/{path}")) != Some(&image::sha256(&file.bytes)));
    let unlisted = unlisted.map(|(path, _)| format!("the bill does not hold {path} as it is"));
    let linked = contents.layer.get(program).map(|file| crates_in(&file.bytes)).unwrap_or_default();
    let unbilled = linked.difference(&crates).map(|each| format!("the bill does not hold {each}, which is linked"));
    let unlocked = crates.difference(locked).map(|each| format!("the bill holds {each}, which Cargo.lock does not"));
    let mut faults: Vec<_> = unlisted.chain(unbilled).chain(unlocked).collect();
    if linked.is_empty() {
        faults.push(format!("{program} tells of no crate"));
    }
    faults
}

/// The crates, as `name-version`, whose sources a program names as the place of a panic: not all that are linked, but
/// none that is not.
fn crates_in(program: &[u8]) -> BTreeSet<String> {
    const SOURCES: &[u8] = b"/registry/src/";
    let mut crates = BTreeSet::new();
    let mut rest = program;
    while let Some(at) = find(rest, SOURCES) {
        rest = &rest[at + SOURCES.len()..];
        let mut parts = rest.splitn(3, |byte| *byte == b'/');
        let (_index, name) = (parts.next(), parts.next());
        // there is something below it, and it is not the next text of the program
        let name = name.filter(|_| parts.next().is_some()).and_then(|name| str::from_utf8(name).ok());
        crates.extend(name.filter(|name| name.bytes().all(|byte| byte.is_ascii_graphic())).map(str::to_owned));
    }
    crates
}

/// Every package of a lock file, as `name-version`.
fn locked(lock: &str) -> BTreeSet<String> {
    let field = |package: &str, key: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "))?;
        Some(line.trim_matches('"').to_owned())
    };
    let packages = lock.split("[[package]]").skip(1);
    packages.filter_map(|each| Some(format!("{}-{}", field(each, "name")?, field(each, "version")?))).collect()
}

/// Follows an archive's digests from its index to its only layer, and checks each.
fn read(archive: &Path) -> anyhow::Result<Contents> {
    let mut files = BTreeMap::new();
    for (path, shipped) in entries(File::open(archive)?)? {
        files.insert(path, shipped.bytes);
    }
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().context("a descriptor without a digest")?;
        let bytes =
            files.get(&format!("blobs/{}", digest.replace(':', "/"))).with_context(|| format!("no {digest}"))?;
        ensure!(image::sha256(bytes) == digest, "{digest} is not what it is called");
        ensure!(descriptor["size"].as_u64() == Some(bytes.len() as u64), "{digest} has another size");
        Ok(bytes)
    };
    let index: Value = serde_json::from_slice(files.get("index.json").context("no index.json")?)?;
    let manifest: Value = serde_json::from_slice(blob(&index["manifests"][0])?)?;
    let config: Value = serde_json::from_slice(blob(&manifest["config"])?)?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    ensure!(layers.len() == 1, "{} layers", layers.len());
    let layer = blob(&layers[0])?;
    let compressed = layers[0]["mediaType"].as_str().is_some_and(|kind| kind.ends_with("+gzip"));
    let layer = if compressed { image::gzip(&["--decompress"], layer)? } else { layer.clone() };
    ensure!(
        config["rootfs"]["diff_ids"][0] == image::sha256(&layer),
        "the layer is another than that of the configuration"
    );
    Ok(Contents { run: config["config"].clone(), layer: entries(&layer[..])? })
}

fn entries(archive: impl Read) -> anyhow::Result<BTreeMap<String, Shipped>> {
    let mut entries = BTreeMap::new();
    for entry in Archive::new(archive).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().trim_end_matches('/').to_owned();
        let header = entry.header();
        let (kind, mode, owner) = (header.entry_type(), header.mode()?, (header.uid()?, header.gid()?));
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        ensure!(entries.insert(path.clone(), Shipped { kind, mode, owner, bytes }).is_none(), "{path} is there twice");
    }
    Ok(entries)
}

fn holds(bytes: &[u8], text: &[u8]) -> bool {
    find(bytes, text).is_some()
}

/// Where `text` begins, looking only where its first byte is: a program has tens of megabytes.
fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    let first = *text.first()?;
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|byte| *byte == first) {
        from += at;
        if bytes[from..].starts_with(text) {
            return Some(from);
        }
        from += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::{
        image::{Content, Entry, Image},
        product::labels,
    };

    fn entry(path: &str, bytes: &[u8], mode: u32) -> Entry {
        Entry { path: path.to_owned(), content: Content::Bytes(bytes.to_vec()), mode }
    }

    /// A small one that is as it should be, with a crate that is locked.
    fn good() -> Product {
        let program = b"\x7fELF /cargo/registry/src/index.crates.io-0/bytes-VERSION/src/lib.rs";
        let lock = fs::read_to_string(process::workspace_root().join("Cargo.lock")).expect("a lock file");
        let bytes = locked(&lock).into_iter().find(|each| each.starts_with("bytes-")).expect("bytes is locked");
        let program = String::from_utf8_lossy(program).replace("bytes-VERSION", &bytes);
        let library = b"a library";
        let certificates = b"-----BEGIN CERTIFICATE-----";
        let file = |name: &str, bytes: &[u8]| json!({"type": "file", "name": name, "hashes": [{"content": image::sha256(bytes).trim_start_matches("sha256:")}]});
        let (name, version) = bytes.split_once('-').expect("a version");
        let bill = json!({"components": [
            {"type": "library", "name": name, "version": version},
            file("/lib/libc.so.6", library),
            file(CA_CERTIFICATES, certificates),
        ]});
        let image = Image {
            name: "protocolgateway.io/gateway:0".to_owned(),
            entrypoint: "/gateway".to_owned(),
            files: vec![
                entry("gateway", program.as_bytes(), 0o755),
                entry("lib/libc.so.6", library, 0o755),
                entry(CA_CERTIFICATES.trim_start_matches('/'), certificates, 0o644),
                entry("usr/share/sbom/gateway.cdx.json", bill.to_string().as_bytes(), 0o644),
            ],
            labels: labels("gateway"),
            created: None,
            compress: true,
        };
        Product { program: "gateway", image, bill: bill.to_string() }
    }

    fn found(name: &str, product: &Product, unnamed: &[PathBuf]) -> Vec<String> {
        let path = std::env::temp_dir().join(format!("inspect-{name}-{}.tar", std::process::id()));
        product.image.write(&path).expect("written");
        let found = faults(product, &path, unnamed);
        fs::remove_file(path).expect("removed");
        found.expect("an image")
    }

    #[test]
    fn an_image_as_it_should_be_has_no_fault() {
        assert_eq!(found("good", &good(), &["/home/builder".into()]), Vec::<String>::new());
    }

    #[test]
    fn every_fault_is_found_and_named() {
        let check = |change: fn(&mut Product), expected: &str| {
            let mut product = good();
            change(&mut product);
            let name: String = expected.chars().filter(char::is_ascii_alphanumeric).collect();
            let found = found(&name, &product, &["/home/builder".into()]);
            assert!(found.iter().any(|fault| fault.contains(expected)), "{expected}: {found:?}");
        };
        check(|it| it.image.files[0].mode = 0o4755, "gateway is setuid");
        check(|it| it.image.files[1].mode = 0o775, "lib/libc.so.6 may be written by others");
        check(|it| it.image.files[3].mode = 0o600, "gateway.cdx.json may not be read");
        check(|it| it.image.files[0].mode = 0o644, "the entrypoint \"/gateway\"");
        check(|it| it.image.entrypoint = "/bin/sh".to_owned(), "the entrypoint \"/bin/sh\"");
        check(
            |it| drop(it.image.labels.remove("org.opencontainers.image.licenses")),
            "no label org.opencontainers.image.licenses",
        );
        check(|it| drop(it.image.files.remove(2)), "holds no certificate");
        check(|it| drop(it.image.files.remove(3)), "is no bill of materials");
        check(
            |it| it.image.files[1].content = Content::Bytes(b"another".to_vec()),
            "does not hold lib/libc.so.6 as it is",
        );
        check(|it| it.image.files.push(entry("lib/libm.so.6", b"m", 0o755)), "does not hold lib/libm.so.6 as it is");
        let other = |it: &mut Product| {
            it.image.files[0].content = Content::Bytes(b"/registry/src/index/left-pad-1.0.0/src/lib.rs".to_vec());
        };
        check(other, "does not hold left-pad-1.0.0, which is linked");
        let more = |it: &mut Product| {
            let bill = json!({"components": [{"type": "library", "name": "left-pad", "version": "1.0.0"}]});
            it.image.files[3].content = Content::Bytes(bill.to_string().into_bytes());
        };
        check(more, "holds left-pad-1.0.0, which Cargo.lock does not");
        check(|it| it.image.files[0].content = Content::Bytes(b"static".to_vec()), "gateway tells of no crate");
        let told = |it: &mut Product| it.image.files[0].content = Content::Bytes(b" /home/builder/x.rs".to_vec());
        check(told, "gateway tells of /home/builder");
    }

    #[test]
    fn an_archive_that_was_changed_is_no_image() {
        let product = good();
        let path = std::env::temp_dir().join(format!("inspect-changed-{}.tar", std::process::id()));
        product.image.write(&path).expect("written");
        let mut bytes = fs::read(&path).expect("an archive");
        let at = find(&bytes, b"65532:65532").expect("the user");
        bytes[at..at + 5].copy_from_slice(b"00000");
        fs::write(&path, bytes).expect("written");
        let found = faults(&product, &path, &[]);
        fs::remove_file(path).expect("removed");
        assert!(format!("{:#}", found.expect_err("no image")).contains("is not what it is called"));
    }
}
