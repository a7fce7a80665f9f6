//! Secrets as files: `<secrets>/<secretName>/<key>`, read whole, checked before they are used, never shown.
//!
//! Each [`Kind`] of secret is loaded on its own, so that a bad one leaves the others in force.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use gateway_core::{
    auth::Keys,
    settings::{Sas, Settings},
};
use rustls::{
    ServerConfig,
    server::{ProducesTickets, danger::ClientCertVerifier},
};
use rustls_pki_types::TrustAnchor;

use crate::tls::config::{self, ClientAuth, Serving, TlsError};

/// Everything a new connection or a CONNECT is judged by. Swapped as a whole.
pub struct Credentials {
    /// TLS of the listeners; `None` if all of them are plain.
    pub tls: Option<Arc<ServerConfig>>,
    /// Who signs devices' certificates, if any may; as in `tls`.
    pub client_ca: Option<Arc<dyn ClientCertVerifier>>,
    /// Keys of devices and groups.
    pub keys: Arc<Keys>,
}

/// Why a secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file or directory is missing or cannot be read.
    #[error("{}: {error}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Certificate, key or CA.
    #[error("{}: {error}", path.display())]
    Tls {
        /// The secret's directory.
        path: PathBuf,
        /// What is wrong.
        error: TlsError,
    },
    /// Device or group keys.
    #[error("{}: {error}", path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// What is wrong, without any key.
        error: String,
    },
}

/// Where secrets are.
#[derive(Debug, Clone)]
pub struct Directory(PathBuf);

impl Directory {
    /// Secrets below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// The root itself.
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// One file of one secret.
    pub fn file(&self, secret: &str, key: &str) -> Result<Vec<u8>, SecretError> {
        let path = self.0.join(secret).join(key);
        fs::read(&path).map_err(|error| SecretError::Unreadable { path, error })
    }

    /// A certificate chain and its key, checked against each other and the clock.
    pub fn serving(&self, secret: &str) -> Result<Serving, SecretError> {
        let (chain, key) = (self.file(secret, "tls.crt")?, self.file(secret, "tls.key")?);
        Serving::from_pem(&chain, &key, unix_now()).map_err(|error| self.tls_error(secret, error))
    }

    /// All keys that `settings` name.
    pub fn keys(&self, settings: &Settings) -> Result<Keys, SecretError> {
        let mut keys = Keys::new(settings);
        let Sas::Local { device_keys_secret_name, enrollment_groups } = &settings.authentication.sas else {
            return Ok(keys);
        };
        if let Some(secret) = device_keys_secret_name {
            for path in self.files(secret)? {
                let file = fs::read(&path).map_err(|error| SecretError::Unreadable { path: path.clone(), error })?;
                keys.add_devices(&file).map_err(|error| SecretError::Keys { path, error: error.to_string() })?;
            }
        }
        for group in enrollment_groups {
            let primary = self.file(&group.secret_name, "primary")?;
            let secondary = self.file(&group.secret_name, "secondary").ok();
            keys.add_group(&primary, secondary.as_deref()).map_err(|error| {
                let path = self.0.join(&group.secret_name);
                SecretError::Keys { path, error: error.to_string() }
            })?;
        }
        Ok(keys)
    }

    /// What tells one state of these secrets from the next: every file's identity, size and time, links followed.
    pub fn fingerprint<'a>(&self, secrets: impl Iterator<Item = &'a str>) -> Fingerprint {
        let mut seen = Vec::new();
        for secret in secrets {
            for path in self.files(secret).unwrap_or_default() {
                let stamp = fs::metadata(&path).ok().map(|file| Stamp::of(&file));
                seen.push((path, stamp));
            }
        }
        Fingerprint(seen)
    }

    /// The regular files of one secret, in order; `..data` and its like are how a mounted secret is swapped, not files.
    fn files(&self, secret: &str) -> Result<Vec<PathBuf>, SecretError> {
        let directory = self.0.join(secret);
        let unreadable = |error| SecretError::Unreadable { path: directory.clone(), error };
        let mut files = Vec::new();
        for entry in fs::read_dir(&directory).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if !is_hidden && path.is_file() {
                files.push(path);
            }
        }
        files.sort_unstable();
        Ok(files)
    }

    fn tls_error(&self, secret: &str, error: TlsError) -> SecretError {
        SecretError::Tls { path: self.0.join(secret), error }
    }
}

/// State of some secrets on disk. Equal: nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fingerprint(Vec<(PathBuf, Option<Stamp>)>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp {
    inode: u64,
    bytes: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    /// When it was written last, if the file system knows.
    pub(crate) fn modified(&self) -> Option<SystemTime> {
        self.modified
    }

    pub(crate) fn of(file: &fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self { inode: file.ino(), bytes: file.len(), modified: file.modified().ok() }
    }
}

/// TLS of some listener, rebuilt from its secrets. Keeps the ticket keys as long as the client CA stays the same.
pub struct TlsSource {
    secret: String,
    client_ca: Option<(String, ClientAuth)>,
    /// Keys of tickets and the PEM of the CA that they go with.
    tickets: Option<(Vec<u8>, Arc<dyn ProducesTickets>)>,
    /// Who signs clients' certificates, as of the last load.
    anchors: Vec<TrustAnchor<'static>>,
}

/// What a [`TlsSource`] makes.
pub struct LoadedTls {
    /// For new connections.
    pub config: Arc<ServerConfig>,
    /// End of the certificate's life, in Unix seconds.
    pub not_after: i64,
    /// Judges clients' certificates, as `config` does; `None` if none are asked for.
    pub client_ca: Option<Arc<dyn ClientCertVerifier>>,
}

impl TlsSource {
    /// `secret` has `tls.crt` and `tls.key`, that of `client_ca` has `ca.crt`.
    pub fn new(secret: &str, client_ca: Option<(&str, ClientAuth)>) -> Self {
        let client_ca = client_ca.map(|(secret, auth)| (secret.to_owned(), auth));
        Self { secret: secret.to_owned(), client_ca, tickets: None, anchors: Vec::new() }
    }

    /// Takes over the ticket keys of the one before it, for as long as the client CA is the same.
    #[must_use]
    pub fn succeeding(self, before: Option<&Self>) -> Self {
        Self { tickets: before.and_then(|before| before.tickets.clone()), ..self }
    }

    /// The serving secret's name.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// Whether `other`, if there is one, trusts everybody whom this one trusts.
    pub fn anchors_are_in(&self, other: Option<&Self>) -> bool {
        let trusted = other.map_or(&[][..], |other| other.anchors.as_slice());
        self.anchors.iter().all(|anchor| trusted.contains(anchor))
    }

    /// Reads and checks everything.
    pub fn load(&mut self, directory: &Directory) -> Result<LoadedTls, SecretError> {
        let serving = directory.serving(&self.secret)?;
        let (mut ca_pem, mut anchors, mut client_ca) = (Vec::new(), Vec::new(), None);
        if let Some((secret, auth)) = &self.client_ca {
            ca_pem = directory.file(secret, "ca.crt")?;
            let failed = |error| directory.tls_error(secret, error);
            let roots = config::client_ca(&ca_pem).map_err(failed)?;
            anchors.clone_from(&roots.roots);
            client_ca = Some(config::verifier(roots, *auth).map_err(failed)?);
        }
        let failed = |error| directory.tls_error(&self.secret, error);
        // a resumed session is not verified again: what another CA let in must shake hands anew
        let ticketer = match &self.tickets {
            Some((pem, ticketer)) if *pem == ca_pem => Arc::clone(ticketer),
            _ => config::new_ticketer().map_err(failed)?,
        };
        let config = config::server_config(&serving, client_ca.clone(), Arc::clone(&ticketer)).map_err(failed)?;
        self.tickets = Some((ca_pem, ticketer));
        self.anchors = anchors;
        Ok(LoadedTls { config, not_after: serving.not_after, client_ca })
    }
}

fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf, sync::Arc};

    use super::{ClientAuth, Directory, TlsSource};

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("gateway-secrets-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn write(&self, file: &str, text: &str) {
            let path = self.0.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn write_pair(&self, secret: &str) {
            let (chain, key) = pair();
            self.write(&format!("{secret}/tls.crt"), &chain);
            self.write(&format!("{secret}/tls.key"), &key);
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn pair() -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(["gw".to_owned()]).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    #[test]
    fn a_renewed_leaf_keeps_the_tickets_and_another_ca_ends_them() {
        let folder = Folder::new("tickets");
        let directory = Directory::new(&folder.0);
        folder.write_pair("tls");
        folder.write("ca/ca.crt", &pair().0);
        let mut source = TlsSource::new("tls", Some(("ca", ClientAuth::Optional)));
        let mut ticketer = || source.load(&directory).unwrap().config.ticketer.clone();
        let first = ticketer();
        folder.write_pair("tls");
        let renewed = ticketer();
        assert!(Arc::ptr_eq(&first, &renewed));
        folder.write("ca/ca.crt", &pair().0);
        assert!(!Arc::ptr_eq(&first, &ticketer()));
    }

    #[test]
    fn who_is_not_trusted_any_more_is_known() {
        let folder = Folder::new("anchors");
        let directory = Directory::new(&folder.0);
        folder.write_pair("tls");
        let (one, other) = (pair().0, pair().0);
        let load = |pem: &str| {
            folder.write("ca/ca.crt", pem);
            let mut source = TlsSource::new("tls", Some(("ca", ClientAuth::Optional)));
            source.load(&directory).unwrap();
            source
        };
        let (old, both, new) = (load(&one), load(&format!("{one}{other}")), load(&other));
        assert!(old.anchors_are_in(Some(&both)) && new.anchors_are_in(Some(&both)));
        assert!(!both.anchors_are_in(Some(&new)) && !old.anchors_are_in(Some(&new)) && !old.anchors_are_in(None));
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = Folder::new("missing");
        folder.write("tls/tls.crt", "x");
        let error = TlsSource::new("tls", None).load(&Directory::new(&folder.0)).err().unwrap().to_string();
        assert!(error.contains("tls/tls.key"), "{error}");
    }

    #[test]
    fn a_swapped_link_changes_the_fingerprint_as_a_mounted_secret_does() {
        let folder = Folder::new("links");
        let directory = Directory::new(&folder.0);
        folder.write("tls/..1/tls.crt", "one");
        folder.write("tls/..2/tls.crt", "two");
        let link = |to: &str, at: &str| {
            let (at, new) = (folder.0.join("tls").join(at), folder.0.join("new-link"));
            std::os::unix::fs::symlink(to, &new).unwrap();
            fs::rename(new, at).unwrap();
        };
        link("..1", "..data");
        link("..data/tls.crt", "tls.crt");
        let now = || directory.fingerprint(["tls"].into_iter());
        let before = now();
        assert_eq!(before.0.len(), 1);
        assert_eq!(now(), before);
        link("..2", "..data");
        assert_ne!(now(), before);
    }
}
