//! The configuration file: read and checked as a whole, and looked at again while the gateway runs.
//!
//! Where it is mounted, a link is swapped and the file under it is another one; elsewhere it may be written in place, and is
//! not read before it has been left alone for a moment.

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest;
use gateway_core::{config::GatewayConfig, settings::Settings};

use crate::secrets::Stamp;

/// More than any configuration; Kubernetes holds no more in a ConfigMap.
const BYTES_MAX: u64 = 1 << 20;
/// A file that was written so recently may not be written to its end.
const SETTLED: Duration = Duration::from_secs(1);

/// The file, as of the last time that it was read.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    path: PathBuf,
    seen: Option<Stamp>,
}

/// A file that is right.
#[derive(Debug)]
pub struct Configuration {
    /// What it says.
    pub settings: Settings,
    /// Names its text.
    pub hash: String,
}

impl ConfigFile {
    /// The file at `path`, not read yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), seen: None }
    }

    /// Reads and checks it.
    ///
    /// # Errors
    /// All that is wrong with it, each with the file's name.
    pub fn read(&mut self) -> Result<Configuration, Vec<String>> {
        // before reading: what changes while we read is found again
        self.seen = stamp(&self.path);
        let name = self.path.display();
        let text = read_text(&self.path).map_err(|problem| vec![format!("{name}: {problem}")])?;
        let named = |errors: Vec<_>| errors.iter().map(|error| format!("{name}: {error}")).collect::<Vec<_>>();
        let settings = GatewayConfig::read(&text).map_err(named)?;
        Ok(Configuration { settings, hash: hash(&text) })
    }

    /// Whether it is another one than was read last, and complete as far as one can see.
    pub fn changed(&self, now: SystemTime) -> bool {
        let stamp = stamp(&self.path);
        // a clock that was set back must not hide a change
        let age = stamp.as_ref().and_then(Stamp::modified).map(|modified| now.duration_since(modified));
        stamp != self.seen && !age.is_some_and(|age| age.is_ok_and(|age| age < SETTLED))
    }
}

/// What names a text: the first 8 bytes of its SHA-256 in lower-case hex.
pub fn hash(text: &str) -> String {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_ref()[..8]);
    format!("{:016x}", u64::from_be_bytes(first))
}

fn stamp(path: &Path) -> Option<Stamp> {
    fs::metadata(path).ok().map(|file| Stamp::of(&file))
}

fn read_text(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > BYTES_MAX {
        return Err(format!("is longer than {BYTES_MAX} bytes, and no configuration is"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::PathBuf,
        time::{Duration, SystemTime},
    };

    use super::{BYTES_MAX, ConfigFile, SETTLED, hash};

    const YAML: &str = "{upstream: {iotHub: {hostName: h}}, listeners: [{name: plain, protocol: MQTTPlain}]}";

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("gateway-config-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn file(&self, text: &str) -> PathBuf {
            let path = self.0.join("gateway.yaml");
            fs::write(&path, text).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    #[test]
    fn a_text_is_named_by_the_first_bytes_of_its_sha_256() {
        assert_eq!(hash("abc"), "ba7816bf8f01cfea");
    }

    #[test]
    fn a_file_is_read_again_once_it_is_another_and_was_left_alone() {
        let folder = Folder::new("change");
        let mut file = ConfigFile::new(folder.file(YAML));
        let first = file.read().unwrap();
        let later = || SystemTime::now() + SETTLED * 2;
        assert!(!file.changed(later()));
        folder.file(&format!("{YAML} # more"));
        assert!(!file.changed(SystemTime::now()), "it may not be written to its end");
        assert!(file.changed(later()));
        assert!(file.changed(SystemTime::now() - Duration::from_hours(1)), "the clock was set back");
        let second = file.read().unwrap();
        assert_eq!(second.settings, first.settings);
        assert_ne!(second.hash, first.hash);
        assert!(!file.changed(later()));
    }

    #[test]
    fn what_is_wrong_is_told_with_the_files_name() {
        let folder = Folder::new("wrong");
        for text in ["{", "{surprise: 1}", &format!("# {}", "x".repeat(BYTES_MAX as usize))] {
            let errors = ConfigFile::new(folder.file(text)).read().unwrap_err();
            assert!(!errors.is_empty() && errors.iter().all(|error| error.contains("gateway.yaml: ")), "{errors:?}");
        }
        let errors = ConfigFile::new(folder.0.join("nowhere")).read().unwrap_err();
        assert!(errors[0].contains("nowhere"), "{errors:?}");
    }
}
