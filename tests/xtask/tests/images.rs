//! The images, from the build that tests use: by the same road as those that are shipped, whole, and twice the same.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use xtask::{
    build, inspect,
    product::{self, Product},
};

static PRODUCTS: LazyLock<Vec<Product>> = LazyLock::new(|| product::for_tests().expect("products"));

#[test]
fn the_images_of_this_build_are_whole_and_twice_the_same() {
    let directory = Scratch::new("images");
    let products = &*PRODUCTS;
    let programs: Vec<_> = products.iter().map(|product| product.program).collect();
    assert_eq!(programs, product::PROGRAMS);
    for product in products {
        let [one, two] = ["one", "two"].map(|name| directory.0.join(format!("{}-{name}.tar", product.program)));
        let written = product.image.write(&one).expect("written");
        assert_eq!(inspect::faults(product, &one, &[]).expect("an image"), Vec::<String>::new());
        // what is read back is the check's own proof: this build was not made for others, and says where it is from
        let told = inspect::faults(product, &one, &inspect::unnamed(&build::target()).expect("places"));
        assert!(told.expect("an image").iter().any(|fault| fault.contains(" tells of ")), "{}", product.program);

        assert_eq!(product.image.write(&two).expect("written"), written);
        assert!(fs::read(&one).expect("one") == fs::read(&two).expect("two"), "{} is another", product.program);
    }
    let again = product::for_tests().expect("products");
    let names = |products: &[Product]| products.iter().map(|each| each.image.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&again), names(products), "they are called by what is in them");
}

/// The dynamic linker of the image finds every library in the image, and the program runs with them.
#[test]
fn every_program_runs_with_the_libraries_of_its_image_alone() {
    let directory = Scratch::new("roots");
    for product in &*PRODUCTS {
        let root = directory.0.join(product.program);
        product.image.unpack(&root).expect("written");
        let files: Vec<PathBuf> = product.image.files.iter().map(|file| root.join(&file.path)).collect();
        let linker = files.iter().find(|path| name(path).starts_with("ld-linux")).expect("a dynamic linker");
        let libraries = files.iter().filter(|path| name(path).contains(".so")).filter_map(|path| path.parent());
        let libraries = libraries.map(|path| path.display().to_string()).collect::<Vec<_>>().join(":");
        let ask = |arguments: &[&str]| {
            let mut command = Command::new(linker);
            command.args(["--inhibit-cache", "--library-path", &libraries]).args(arguments).env_clear();
            let output = command.output().expect("the program runs");
            assert!(output.status.success(), "{output:?}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let program = root.join(product.program).display().to_string();
        let found = ask(&["--list", &program]);
        let paths: Vec<_> = found.lines().filter_map(|line| line.split_once("=> ")).map(|(_name, path)| path).collect();
        assert!(paths.iter().any(|path| path.contains("libc.so")), "{found}");
        let of_the_image = |path: &&str| path.starts_with(&root.display().to_string());
        assert!(paths.iter().all(of_the_image), "{found}");
        assert!(ask(&[&program, "--version"]).contains(env!("CARGO_PKG_VERSION")));
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = build::target().join("tmp").join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // a test that fails for this would hide its own failure
        let _ = fs::remove_dir_all(&self.0);
    }
}
