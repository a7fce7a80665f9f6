//! What a program is made of, as CycloneDX: every crate that is linked into it, and every file that is shipped with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{image, process};

/// The crates behind a program.
#[derive(Debug)]
pub struct Crates {
    program: Crate,
    /// By crate, those that it is linked with.
    edges: BTreeMap<Crate, BTreeSet<Crate>>,
    licenses: BTreeMap<Crate, String>,
    checksums: BTreeMap<Crate, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Crate {
    name: String,
    version: String,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
}

impl Crates {
    /// Asks cargo: only what is linked counts, not what runs at build time or in tests, and only the features in use.
    ///
    /// # Errors
    /// What cargo says.
    pub fn of(program: &str) -> anyhow::Result<Self> {
        let tree = ["tree", "--locked", "--edges", "normal,no-proc-macro", "--prefix", "depth", "--format", " {p}"];
        let tree = cargo(&[&tree[..], &["--package", program]].concat())?;
        let metadata = cargo(&["metadata", "--locked", "--format-version", "1"])?;
        let metadata: Metadata = serde_json::from_str(&metadata).context("cargo metadata is not as expected")?;
        let license = |package: Package| {
            // the old way to write a choice
            let license = package.license?.replace('/', " OR ");
            Some((Crate { name: package.name, version: package.version }, license))
        };
        let lock =
            fs::read_to_string(process::workspace_root().join("Cargo.lock")).context("cannot read Cargo.lock")?;
        let (program, edges) = edges(&tree)?;
        Ok(Self {
            program,
            edges,
            licenses: metadata.packages.into_iter().filter_map(license).collect(),
            checksums: checksums(&lock),
        })
    }

    /// The bill, with the `files` that are shipped beside the program. It holds no time: the same is the same.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn bill(&self, files: &[&Path]) -> anyhow::Result<Value> {
        let root = &self.program;
        let others = self.edges.keys().filter(|each| *each != root).map(|each| self.component(each, "library"));
        let files = files.iter().map(|file| component_of_file(file)).collect::<anyhow::Result<Vec<_>>>()?;
        let dependencies = self.edges.iter().map(|(each, on)| {
            let on: Vec<String> = on.iter().map(reference).collect();
            json!({"ref": reference(each), "dependsOn": on})
        });
        Ok(json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {"component": self.component(root, "application")},
            "components": others.chain(files).collect::<Vec<_>>(),
            "dependencies": dependencies.collect::<Vec<_>>(),
        }))
    }

    fn component(&self, each: &Crate, kind: &str) -> Value {
        let mut component = json!({
            "type": kind, "bom-ref": reference(each), "name": each.name, "version": each.version,
            "purl": reference(each),
        });
        if let Some(license) = self.licenses.get(each) {
            component["licenses"] = json!([{"expression": license}]);
        }
        // those without are ours
        if let Some(checksum) = self.checksums.get(each) {
            component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
        }
        component
    }
}

fn reference(each: &Crate) -> String {
    format!("pkg:cargo/{}@{}", each.name, each.version)
}

/// A file of the system, with the Debian package that it is from.
fn component_of_file(file: &Path) -> anyhow::Result<Value> {
    let content = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut component = json!({
        "type": "file",
        "name": file,
        "hashes": [{"alg": "SHA-256", "content": image::sha256(&content).trim_start_matches("sha256:")}],
    });
    if let Some((package, version)) = debian_package(file) {
        let architecture = image::architecture();
        component["version"] = json!(version);
        component["purl"] = json!(format!("pkg:deb/debian/{package}@{version}?arch={architecture}"));
    }
    Ok(component)
}

/// Name and version of the package that owns a file; `None` elsewhere than on Debian, and for files of nobody.
fn debian_package(file: &Path) -> Option<(String, String)> {
    let ask = |arguments: &[&str]| {
        let output =
            Command::new("dpkg-query").args(arguments).output().ok().filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok()
    };
    let owner = ask(&["--search", file.to_str()?])?;
    let package = owner.split_once(": ")?.0.split(',').next()?;
    let version = ask(&["--show", "--showformat=${Version}", package])?;
    let name = package.split_once(':').map_or(package, |(name, _architecture)| name);
    Some((name.to_owned(), version))
}

fn cargo(arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let output = command.args(arguments).current_dir(process::workspace_root()).output()?;
    if !output.status.success() {
        bail!("{} ended with {}\n{}", process::shown(&command), output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Reads `cargo tree --prefix depth`: `2 name v1.2.3 (path) (*)`, where the number is the depth. What has a star stands
/// with its own dependencies further up.
fn edges(tree: &str) -> anyhow::Result<(Crate, BTreeMap<Crate, BTreeSet<Crate>>)> {
    let mut edges: BTreeMap<Crate, BTreeSet<Crate>> = BTreeMap::new();
    let mut path: Vec<Crate> = Vec::new();
    for line in tree.lines().filter(|line| !line.is_empty()) {
        let mut words = line.split_whitespace();
        let depth = words.next().and_then(|depth| depth.parse::<usize>().ok());
        let name = words.next().map(str::to_owned);
        let version = words.next().and_then(|version| version.strip_prefix('v')).map(str::to_owned);
        let (Some(depth), Some(name), Some(version)) = (depth, name, version) else {
            bail!("cargo tree says what is not understood: {line}");
        };
        let each = Crate { name, version };
        path.truncate(depth);
        if let Some(parent) = path.last() {
            edges.entry(parent.clone()).or_default().insert(each.clone());
        }
        edges.entry(each.clone()).or_default();
        path.push(each);
    }
    Ok((path.into_iter().next().context("cargo tree says nothing")?, edges))
}

/// `checksum` of every package of a lock file that has one.
fn checksums(lock: &str) -> BTreeMap<Crate, String> {
    let field = |package: &str, key: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "))?;
        Some(line.trim_matches('"').to_owned())
    };
    let packages = lock.split("[[package]]").skip(1);
    let read = packages.filter_map(|package| {
        let each = Crate { name: field(package, "name")?, version: field(package, "version")? };
        Some((each, field(package, "checksum")?))
    });
    read.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &str = "0 gateway v0.1.0 (/source/gateway)\n1 a v1.0.0\n2 b v2.0.0\n1 c v3.0.0\n2 a v1.0.0 (*)\n";

    fn crates() -> Crates {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nchecksum = \"ab\"\n\n\
                    [[package]]\nname = \"gateway\"\nversion = \"0.1.0\"\ndependencies = [\n \"a\",\n]\n";
        let (program, edges) = edges(TREE).expect("a tree");
        Crates { program, edges, licenses: BTreeMap::new(), checksums: checksums(lock) }
    }

    fn names(bill: &Value) -> Vec<&str> {
        bill["components"].as_array().expect("a list").iter().filter_map(|each| each["name"].as_str()).collect()
    }

    #[test]
    fn a_bill_holds_every_crate_once_with_those_that_it_is_linked_with() {
        let bill = crates().bill(&[]).expect("a bill");
        assert_eq!(bill["metadata"]["component"]["name"], "gateway");
        assert_eq!(names(&bill), ["a", "b", "c"]);
        assert_eq!(bill["dependencies"][2], json!({"ref": "pkg:cargo/c@3.0.0", "dependsOn": ["pkg:cargo/a@1.0.0"]}));
    }

    #[test]
    fn what_cargo_says_otherwise_is_not_taken_for_a_tree() {
        assert!(edges("").is_err());
        assert!(edges("gateway v0.1.0\n").is_err());
    }

    #[test]
    fn a_component_that_was_loaded_has_the_checksum_of_the_lock_file() {
        let bill = crates().bill(&[]).expect("a bill");
        assert_eq!(bill["components"][0]["hashes"][0]["content"], "ab");
        assert_eq!(bill["metadata"]["component"]["hashes"], Value::Null);
        assert_eq!(bill["dependencies"][0], json!({"ref": "pkg:cargo/a@1.0.0", "dependsOn": ["pkg:cargo/b@2.0.0"]}));
    }

    #[test]
    fn a_shipped_file_is_in_the_bill_with_its_hash() {
        let own = std::env::current_exe().expect("this test");
        let bill = crates().bill(&[&own]).expect("a bill");
        let file = bill["components"].as_array().and_then(|all| all.last()).expect("a component");
        assert_eq!(file["type"], "file");
        assert_eq!(file["hashes"][0]["content"].as_str().map(str::len), Some(64));
    }
}
