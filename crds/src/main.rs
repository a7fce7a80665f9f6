//! `crds FILE [--check]`: writes the CustomResourceDefinition to FILE, or fails if FILE differs from it.

use std::{env, fs, process::ExitCode};

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let Some(path) = arguments.next().filter(|path| !path.starts_with('-')) else {
        eprintln!("usage: crds FILE [--check]");
        return ExitCode::from(2);
    };
    let check = arguments.next().is_some_and(|argument| argument == "--check");
    let made = crds::yaml();
    if fs::read_to_string(&path).is_ok_and(|committed| committed == made) {
        println!("{path} is up to date");
        return ExitCode::SUCCESS;
    }
    if check {
        eprintln!("{path} is stale: run `cargo xtask crds`");
        return ExitCode::FAILURE;
    }
    match fs::write(&path, made) {
        Ok(()) => println!("{path} written"),
        Err(error) => {
            eprintln!("cannot write {path}: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
