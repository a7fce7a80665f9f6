//! `cargo xtask image`: the images of gateway and operator as files, without a daemon or a registry.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::ensure;
use xtask::{
    build,
    image::Written,
    inspect,
    product::{self, Product},
    step::{say, step},
};

/// Where to, and how sure.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where to write the archives [default: target/images]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Write each image's files, too, as a directory for a container engine to copy
    #[arg(long)]
    unpacked: bool,
    /// From the build that tests use: quick, large and slow
    #[arg(long)]
    dev: bool,
    /// Build everything a second time, from nothing and elsewhere, and fail unless the images are the same
    #[arg(long, conflicts_with = "dev")]
    check: bool,
}

/// Builds, writes, says what there is.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let directory = arguments.output.clone().unwrap_or_else(|| build::target().join("images"));
    let target = build::target().join("image");
    let products = step("build gateway and operator", || {
        if arguments.dev { product::for_tests() } else { product::shipped(&target) }
    })?;
    let unnamed = if arguments.dev { Vec::new() } else { inspect::unnamed(&target)? };
    let written = write(&products, &directory, &unnamed)?;
    for (product, written) in products.iter().zip(&written) {
        println!("{}  {}  {:.1} MiB", product.image.name, written.digest, written.bytes as f64 / f64::from(1 << 20));
        say(&format!("{}", archive(&directory, product).display()));
        if arguments.unpacked {
            product.image.unpack(&directory.join(product.program))?;
        }
    }
    if arguments.check {
        check(&directory, &written)?;
    }
    Ok(())
}

/// From nothing: what an earlier build left would be its own proof.
fn check(directory: &Path, expected: &[Written]) -> anyhow::Result<()> {
    let target = build::target().join("image-check");
    if target.exists() {
        fs::remove_dir_all(&target)?;
    }
    let again = step("build them once more, elsewhere", || product::shipped(&target))?;
    let again = write(&again, &directory.join("check"), &inspect::unnamed(&target)?)?;
    fs::remove_dir_all(&target)?;
    ensure!(again == expected, "the second build made other images: {again:?}, not {expected:?}");
    fs::remove_dir_all(directory.join("check"))?;
    println!("the second build made the same images");
    Ok(())
}

/// Writes the images and reads them back; what a build for others must not name is `unnamed`.
fn write(products: &[Product], directory: &Path, unnamed: &[PathBuf]) -> anyhow::Result<Vec<Written>> {
    fs::create_dir_all(directory)?;
    let each = products.iter().map(|product| {
        fs::write(directory.join(format!("{}.cdx.json", product.program)), &product.bill)?;
        let archive = archive(directory, product);
        let written = product.image.write(&archive)?;
        let faults = inspect::faults(product, &archive, unnamed)?;
        ensure!(faults.is_empty(), "{} must not be shipped: {}", archive.display(), faults.join("; "));
        Ok(written)
    });
    each.collect()
}

fn archive(directory: &Path, product: &Product) -> PathBuf {
    directory.join(format!("{}.tar", product.program))
}
