//! Secrets that change on disk while the gateway runs: looked at every few seconds, checked, swapped; a bad one changes
//! nothing but a counter and a log line.

use std::{path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use gateway_core::settings::{Sas, Settings, Upstream};
use rustls::ServerConfig;
use tracing::{info, warn};

use crate::{
    core::Order,
    secrets::{Credentials, Directory, Fingerprint, SecretError, TlsSource},
    server::Shared,
    tls::config::ClientAuth,
    upstream::UpstreamSecrets,
};

/// How often the files are looked at. A mounted secret itself arrives within a minute.
const EVERY: Duration = Duration::from_secs(3);

/// Everything that was read at start.
pub struct Loaded {
    /// For listeners and CONNECTs.
    pub credentials: Credentials,
    /// For the hub's side.
    pub upstream: Arc<UpstreamSecrets>,
    /// For the admin port, if it has TLS.
    pub admin: Option<Arc<ServerConfig>>,
}

/// The one that looks.
pub struct Watcher {
    directory: Directory,
    settings: Arc<Settings>,
    listeners: Option<TlsSource>,
    admin: Option<TlsSource>,
    groups: Vec<Group>,
    /// Ends of certificates' lives, told to the metrics when they begin.
    not_after: Vec<(String, i64)>,
}

/// Secrets that are loaded together.
struct Group {
    kind: Kind,
    seen: Fingerprint,
    failing: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Listeners,
    Keys,
    Upstream,
    Admin,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Listeners, Self::Keys, Self::Upstream, Self::Admin];
}

impl Watcher {
    /// Will read what `settings` name below `directory`.
    pub fn new(settings: Arc<Settings>, directory: Directory) -> Self {
        let client_ca = settings.authentication.client_ca_secret_name.as_deref().map(|ca| (ca, ClientAuth::Optional));
        let listeners = settings.tls_secret_name.as_deref().map(|secret| TlsSource::new(secret, client_ca));
        let admin = settings.admin.tls.as_ref();
        let admin =
            admin.map(|tls| TlsSource::new(&tls.secret_name, Some((&tls.client_ca_secret_name, ClientAuth::Required))));
        Self { directory, settings, listeners, admin, groups: Vec::new(), not_after: Vec::new() }
    }

    /// Reads everything for the first time; all errors at once.
    pub fn load(&mut self) -> Result<Loaded, Vec<String>> {
        // before reading: what changes while we read is found again
        let groups = Kind::ALL.map(|kind| Group { kind, seen: self.fingerprint(kind), failing: false });
        self.groups = groups.into();
        let mut errors = Vec::new();
        let tls = self.load_tls(Kind::Listeners);
        let admin = self.load_tls(Kind::Admin);
        let keys = self.directory.keys(&self.settings);
        let upstream = UpstreamSecrets::load(&self.settings, self.directory.root());
        let mut note = |error: String| errors.push(error);
        let tls = tls.unwrap_or_else(|error| {
            note(error.to_string());
            None
        });
        let admin = admin.unwrap_or_else(|error| {
            note(error.to_string());
            None
        });
        match (keys, upstream) {
            (Ok(keys), Ok(upstream)) if errors.is_empty() => Ok(Loaded {
                credentials: Credentials { tls, keys: Arc::new(keys) },
                upstream: Arc::new(upstream),
                admin,
            }),
            (keys, upstream) => {
                errors.extend(keys.err().map(|error| error.to_string()));
                errors.extend(upstream.err().map(|error| error.to_string()));
                Err(errors)
            }
        }
    }

    /// Looks, for ever. `admin` is swapped when the admin port's certificate changes.
    pub async fn watch(mut self, shared: Arc<Shared>, admin: Option<Arc<ArcSwap<ServerConfig>>>) {
        for (secret, not_after) in self.not_after.drain(..) {
            shared.registry.process.secret_loaded(&secret, Some(not_after));
        }
        loop {
            tokio::time::sleep(EVERY).await;
            for index in 0..self.groups.len() {
                let kind = self.groups[index].kind;
                let seen = self.fingerprint(kind);
                let changed = seen != self.groups[index].seen;
                // a failed one is tried again: a certificate may have become valid
                if changed || self.groups[index].failing {
                    self.groups[index].seen = seen;
                    self.groups[index].failing = !self.reload(kind, &shared, admin.as_deref(), changed).await;
                }
            }
        }
    }

    async fn reload(&mut self, kind: Kind, shared: &Shared, admin: Option<&ArcSwap<ServerConfig>>, tell: bool) -> bool {
        let name = self.name(kind);
        let loaded = match kind {
            Kind::Listeners => self
                .load_tls(kind)
                .map(|tls| {
                    let keys = Arc::clone(&shared.credentials.load().keys);
                    shared.credentials.store(Arc::new(Credentials { tls, keys }));
                })
                .map_err(|error| error.to_string()),
            Kind::Admin => self
                .load_tls(kind)
                .map(|tls| {
                    if let (Some(tls), Some(admin)) = (tls, admin) {
                        admin.store(tls);
                    }
                })
                .map_err(|error| error.to_string()),
            Kind::Keys => self
                .directory
                .keys(&self.settings)
                .map(|keys| {
                    let tls = shared.credentials.load().tls.clone();
                    shared.credentials.store(Arc::new(Credentials { tls, keys: Arc::new(keys) }));
                })
                .map_err(|error| error.to_string()),
            Kind::Upstream => self.reload_upstream(shared).await,
        };
        let not_after = self.not_after.pop().map(|(_, not_after)| not_after);
        match &loaded {
            Ok(()) => {
                shared.registry.process.secret_loaded(&name, not_after);
                info!(secret = name, "secret reloaded");
            }
            Err(error) if tell => {
                shared.registry.process.secret_failed(&name);
                warn!(secret = name, error, "secret changed and cannot be used; the last good one stays in force");
            }
            Err(_) => {}
        }
        loaded.is_ok()
    }

    async fn reload_upstream(&self, shared: &Shared) -> Result<(), String> {
        let secrets =
            UpstreamSecrets::load(&self.settings, self.directory.root()).map_err(|error| error.to_string())?;
        let secrets = Arc::new(secrets);
        for core in &shared.cores {
            // a core that is gone needs no secrets
            let _gone = core.send(Order::Secrets(Arc::clone(&secrets))).await;
        }
        Ok(())
    }

    fn load_tls(&mut self, kind: Kind) -> Result<Option<Arc<ServerConfig>>, SecretError> {
        let source = if kind == Kind::Admin { &mut self.admin } else { &mut self.listeners };
        let Some(source) = source else { return Ok(None) };
        let (config, not_after) = source.load(&self.directory)?;
        self.not_after.push((source.secret().to_owned(), not_after));
        Ok(Some(config))
    }

    fn fingerprint(&self, kind: Kind) -> Fingerprint {
        self.directory.fingerprint(self.secrets(kind).iter().map(String::as_str))
    }

    /// The name that logs and metrics give a group: that of its first secret.
    fn name(&self, kind: Kind) -> String {
        self.secrets(kind).into_iter().next().unwrap_or_default()
    }

    fn secrets(&self, kind: Kind) -> Vec<String> {
        let of_source = |source: &Option<TlsSource>| {
            source.iter().flat_map(|source| source.secrets().map(str::to_owned)).collect::<Vec<_>>()
        };
        match kind {
            Kind::Listeners => of_source(&self.listeners),
            Kind::Admin => of_source(&self.admin),
            Kind::Keys => match &self.settings.authentication.sas {
                Sas::Hub => Vec::new(),
                Sas::Local { device_keys_secret_name, enrollment_groups } => {
                    let groups = enrollment_groups.iter().map(|group| group.secret_name.clone());
                    device_keys_secret_name.iter().cloned().chain(groups).collect()
                }
            },
            Kind::Upstream => upstream_secrets(&self.settings.upstream),
        }
    }
}

fn upstream_secrets(upstream: &Upstream) -> Vec<String> {
    let names: Vec<Option<&String>> = match upstream {
        Upstream::IotHub(hub) => {
            vec![hub.policy.as_ref().map(|policy| &policy.secret_name), hub.ca_secret_name.as_ref()]
        }
        Upstream::Amqp(broker) => vec![
            broker.sasl_plain_secret_name.as_ref(),
            broker.client_certificate_secret_name.as_ref(),
            broker.ca_secret_name.as_ref(),
        ],
    };
    names.into_iter().flatten().cloned().collect()
}

/// Whether `path` is where secrets could be: for a message that helps.
pub fn check_root(path: &Path) -> Result<(), String> {
    if path.is_dir() { Ok(()) } else { Err(format!("--secrets {}: not a directory", path.display())) }
}
