//! The Containerfile makes the images of `cargo xtask image`: held against what those are, for no engine is needed here.

use std::{collections::BTreeMap, fs, process::Command};

use xtask::{image::USER, process::workspace_root, product};

/// What a `FROM` begins: its base, its name, and what follows.
struct Stage {
    base: String,
    name: String,
    instructions: Vec<(String, String)>,
}

impl Stage {
    /// The arguments of every instruction of this name.
    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.instructions.iter().filter(move |(each, _)| each == name).map(|(_, arguments)| &**arguments)
    }

    fn only<'a>(&'a self, name: &'a str) -> &'a str {
        let mut all = self.all(name);
        let only = all.next().unwrap_or_else(|| panic!("{} has no {name}", self.name));
        assert!(all.next().is_none(), "{} has more than one {name}", self.name);
        only
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(workspace_root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The values of the arguments before the first stage, and the stages.
fn containerfile() -> (BTreeMap<String, String>, Vec<Stage>) {
    let text = read("Containerfile").replace("\\\n", " ");
    let (mut values, mut stages) = (BTreeMap::new(), Vec::<Stage>::new());
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (instruction, arguments) = line.split_once(' ').expect("an instruction has arguments");
        let arguments = arguments.trim();
        match (instruction, stages.last_mut()) {
            ("FROM", _) => {
                let (base, name) = arguments.split_once(" AS ").expect("a stage has a name");
                stages.push(Stage { base: base.to_owned(), name: name.to_owned(), instructions: Vec::new() });
            }
            (_, Some(stage)) => stage.instructions.push((instruction.to_owned(), arguments.to_owned())),
            ("ARG", None) => {
                let (name, value) = arguments.split_once('=').expect("an argument has a value");
                values.insert(name.to_owned(), value.trim_matches('"').to_owned());
            }
            _ => panic!("{line} stands before every stage"),
        }
    }
    (values, stages)
}

/// `key="value" key="value"`, with the arguments that the stage asks for put in.
fn labels(stage: &Stage, values: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut text = stage.only("LABEL").to_owned();
    for name in stage.all("ARG") {
        text = text.replace(&format!("${name}"), &values[name]);
    }
    let mut words = text.split('"');
    let mut labels = BTreeMap::new();
    while let (Some(key), Some(value)) = (words.next(), words.next()) {
        labels.insert(key.trim().trim_end_matches('=').to_owned(), value.to_owned());
    }
    labels
}

#[test]
fn each_image_runs_as_those_of_xtask_do_and_is_labelled_alike() {
    let (mut values, stages) = containerfile();
    for program in product::PROGRAMS {
        let mut expected = product::labels(program);
        let revision = expected.entry("org.opencontainers.image.revision".to_owned()).or_default();
        values.insert("REVISION".to_owned(), revision.clone());
        let stage = stages.iter().find(|stage| stage.name == program).unwrap_or_else(|| panic!("no {program}"));
        assert_eq!(stage.base, "scratch");
        assert_eq!(labels(stage, &values), expected);
        assert_eq!(stage.only("USER"), format!("{USER}:{USER}"));
        assert_eq!(stage.only("WORKDIR"), "/");
        assert_eq!(stage.only("ENTRYPOINT"), format!("[\"/{program}\"]"));
        assert_eq!(stage.only("COPY"), format!("--from={} /images/{program} /", stages[0].name));
    }
    assert_eq!(stages.len(), 1 + product::PROGRAMS.len());
}

#[test]
fn they_are_built_by_the_compiler_of_the_workspace_with_the_same_command() {
    let (_, stages) = containerfile();
    let toolchain = read("rust-toolchain.toml");
    let version = toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).expect("a channel");
    assert_eq!(stages[0].base, format!("docker.io/library/rust:{}-bookworm", version.trim_matches('"')));
    // all of the checkout, but for what is built and for the history
    assert_eq!(stages[0].only("COPY"), ". .");
    let left_out = read(".containerignore");
    assert!(["/target/", "/.git/"].iter().all(|each| left_out.lines().any(|line| line == *each)), "{left_out}");

    let command = stages[0].only("RUN").strip_prefix("cargo xtask ").expect("xtask makes the images");
    assert!(command.ends_with(" --output /images"), "{command}");
    let output = Command::new(env!("CARGO_BIN_EXE_xtask")).args(command.split(' ')).arg("--help").output();
    let output = output.expect("xtask runs");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    let help = String::from_utf8_lossy(&output.stdout);
    assert!(help.contains("Usage: cargo xtask image "), "{help}");
}
