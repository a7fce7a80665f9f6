//! Where installed and built tools are kept: outside the checkout, keyed by what they were made from.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::Context;

/// The cache's root: `PROTOCOL_GATEWAY_CACHE`, or `$XDG_CACHE_HOME/protocol-gateway`, or `~/.cache/protocol-gateway`.
pub fn root() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("PROTOCOL_GATEWAY_CACHE") {
        return Ok(path.into());
    }
    if let Some(path) = std::env::var_os("XDG_CACHE_HOME") {
        return Ok(Path::new(&path).join("protocol-gateway"));
    }
    let home = std::env::var_os("HOME").context("HOME is not set: set PROTOCOL_GATEWAY_CACHE to a directory")?;
    Ok(Path::new(&home).join(".cache/protocol-gateway"))
}

/// The directory `name-<digest of what>`; `make` fills it once, while any other process that wants it waits.
///
/// # Errors
/// What `make` says, or a cache that cannot be written. A directory half made is made anew by the next call.
pub fn directory(name: &str, what: &str, make: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<PathBuf> {
    let done = root()?.join(format!("{name}-{:016x}", digest(what)));
    let complete = done.join(".complete");
    if complete.exists() {
        return Ok(done);
    }
    fs::create_dir_all(done.parent().expect("the entry was joined to the root"))?;
    let lock = File::create(done.with_extension("lock")).context("cannot lock the cache")?;
    lock.lock().context("cannot lock the cache")?;
    if complete.exists() {
        return Ok(done);
    }
    if done.exists() {
        fs::remove_dir_all(&done).with_context(|| format!("cannot remove the half-made {}", done.display()))?;
    }
    fs::create_dir_all(&done).with_context(|| format!("cannot create {}", done.display()))?;
    crate::step::say(&format!("into {}", done.display()));
    make(&done)?;
    fs::write(&complete, what)?;
    Ok(done)
}

/// FNV-1a, 64 bits: names a cache entry, protects nothing.
fn digest(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_contents_are_different_entries() {
        assert_ne!(digest("rhea 3.0.5"), digest("rhea 3.0.6"));
    }

    #[test]
    fn two_that_want_the_same_entry_make_it_once() {
        let name = format!("test-of-the-cache-{}", std::process::id());
        let made = std::sync::atomic::AtomicUsize::new(0);
        let want = || {
            directory(&name, "", |_| {
                made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_millis(20));
                Ok(())
            })
        };
        let entry = std::thread::scope(|scope| {
            let other = scope.spawn(want);
            want().expect("made once");
            other.join().expect("does not panic").expect("made once")
        });
        assert_eq!(made.into_inner(), 1);
        fs::remove_dir_all(&entry).expect("an entry");
        fs::remove_file(entry.with_extension("lock")).expect("its lock");
    }

    #[test]
    fn the_digest_is_fnv_1a() {
        assert_eq!(digest("a"), 0xaf63_dc4c_8601_ec8c, "test vector of the FNV authors");
    }
}
