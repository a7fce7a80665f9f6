//! Configuration and secrets that change on disk while the gateway runs: looked at every few seconds, checked, swapped.
//!
//! What cannot be used changes nothing: the last good one stays in force, a counter and one log line say so, and it is tried
//! again. Nobody is disconnected for any of it.

mod groups;

use std::{
    collections::BTreeSet,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use gateway_core::settings::{Changes, Settings};
use rustls::ServerConfig;
use tracing::{error, info, warn};

use self::groups::{Group, Kind};
use crate::{
    config_file::{ConfigFile, Configuration},
    core::Order,
    secrets::{Credentials, Directory, Fingerprint, LoadedTls, SecretError, TlsSource},
    server::Shared,
    standing::Standing,
    upstream::UpstreamSecrets,
};

/// How often to look. A mounted file itself arrives within a minute.
pub const EVERY: Duration = Duration::from_secs(3);

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
    /// In force.
    settings: Arc<Settings>,
    listeners: Option<TlsSource>,
    admin: Option<TlsSource>,
    /// In force; `None` before the first load.
    upstream: Option<Arc<UpstreamSecrets>>,
    groups: Vec<Group>,
    /// Ends of certificates' lives at the start, told to the metrics when they begin.
    not_after: Vec<(String, i64)>,
    file: Option<ConfigFile>,
    /// The file is right, and some secret that it names is not: it is tried again although it does not change.
    waits_for_secrets: bool,
}

/// What was loaded and is not in force yet; `None` where nothing was asked for.
#[derive(Default)]
struct Fresh {
    listeners: Option<FreshTls>,
    admin: Option<FreshTls>,
    keys: Option<Arc<gateway_core::auth::Keys>>,
    upstream: Option<Arc<UpstreamSecrets>>,
}

/// TLS of the listeners or of the admin port; both `None` if there is none.
struct FreshTls {
    source: Option<TlsSource>,
    loaded: Option<LoadedTls>,
}

impl Watcher {
    /// Will read what `settings` name below `directory`.
    pub fn new(settings: Arc<Settings>, directory: Directory) -> Self {
        let groups = Kind::ALL.map(|kind| Group::new(kind, &settings)).into();
        Self {
            directory,
            settings,
            listeners: None,
            admin: None,
            upstream: None,
            groups,
            not_after: Vec::new(),
            file: None,
            waits_for_secrets: false,
        }
    }

    /// Will look at the configuration file, too; it was read by its owner.
    #[must_use]
    pub fn with_file(self, file: Option<ConfigFile>) -> Self {
        Self { file, ..self }
    }

    /// Reads every secret for the first time; all errors at once.
    pub fn load(&mut self) -> Result<Loaded, Vec<String>> {
        // before reading: what changes while we read is found again
        for group in &mut self.groups {
            group.seen = self.directory.fingerprint(group.secrets.iter().map(String::as_str));
        }
        let fresh = self.read(&self.settings, &Kind::ALL)?;
        let Fresh { listeners: Some(listeners), admin: Some(admin), keys: Some(keys), upstream: Some(upstream) } =
            fresh
        else {
            unreachable!("everything was asked for")
        };
        self.upstream = Some(Arc::clone(&upstream));
        for tls in [&listeners, &admin] {
            self.not_after.extend(tls.not_after());
        }
        self.listeners = listeners.source;
        self.admin = admin.source;
        let tls = listeners.loaded;
        let client_ca = tls.as_ref().and_then(|tls| tls.client_ca.clone());
        Ok(Loaded {
            credentials: Credentials { tls: tls.map(|tls| tls.config), client_ca, keys },
            upstream,
            admin: admin.loaded.map(|tls| tls.config),
        })
    }

    /// Looks, for ever. `admin` is swapped when the admin port's certificate changes.
    pub async fn watch(mut self, every: Duration, shared: Arc<Shared>, admin: Option<Arc<ArcSwap<ServerConfig>>>) {
        for (secret, not_after) in self.not_after.drain(..) {
            shared.registry.process.secret_loaded(&secret, Some(not_after));
        }
        loop {
            tokio::time::sleep(every).await;
            self.look_at_file(&shared, admin.as_deref()).await;
            self.look_at_secrets(&shared, admin.as_deref()).await;
        }
    }

    async fn look_at_secrets(&mut self, shared: &Shared, admin: Option<&ArcSwap<ServerConfig>>) {
        for index in 0..self.groups.len() {
            let group = &self.groups[index];
            let seen = self.directory.fingerprint(group.secrets.iter().map(String::as_str));
            let changed = seen != group.seen;
            // a failed one is tried again: a certificate may have become valid
            if !changed && !group.failing {
                continue;
            }
            let (kind, name) = (group.kind, group.name());
            self.groups[index].seen = seen;
            let settings = Arc::clone(&self.settings);
            let problem = match self.read(&settings, &[kind]) {
                Ok(fresh) => {
                    info!(secret = name, "secret reloaded");
                    self.put_in_force(fresh, shared, admin, None).await;
                    None
                }
                Err(errors) => errors.into_iter().next(),
            };
            self.groups[index].failing = problem.is_some();
            if let (Some(error), true) = (&problem, changed) {
                shared.registry.process.secret_failed(&name);
                warn!(secret = name, error, "secret changed and cannot be used; the last good one stays in force");
            }
            shared.stand(|standing| match problem {
                Some(error) => drop(standing.secrets.insert(name, error)),
                None => drop(standing.secrets.remove(&name)),
            });
        }
    }

    async fn look_at_file(&mut self, shared: &Shared, admin: Option<&ArcSwap<ServerConfig>>) {
        let Some(file) = &mut self.file else { return };
        let changed = file.changed(SystemTime::now());
        if !changed && !self.waits_for_secrets {
            return;
        }
        self.waits_for_secrets = false;
        let followed = match file.read() {
            Ok(configuration) => self.follow(configuration, shared, admin).await,
            Err(errors) => Err(errors.join("\n")),
        };
        if let Err(problem) = followed {
            let known = shared.standing.load().problem.as_ref() == Some(&problem);
            if changed || !known {
                shared.registry.process.config_reloaded(false);
                warn!(problem, "configuration changed and cannot be used; the last good one stays in force");
            }
            shared.stand(|standing| standing.problem = Some(problem));
        }
    }

    /// Runs by the file from now on, as far as that goes without a restart.
    async fn follow(
        &mut self,
        configuration: Configuration,
        shared: &Shared,
        admin: Option<&ArcSwap<ServerConfig>>,
    ) -> Result<(), String> {
        let Configuration { settings, hash } = configuration;
        let next = Arc::new(self.settings.followed_by(&settings));
        let changes = Changes::between(&self.settings, &next);
        let needs_restart = Changes::between(&next, &settings).all();
        let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| kind.differs(&self.settings, &next)).collect();
        let seen: Vec<_> = kinds.iter().map(|kind| (*kind, self.fingerprint_of(*kind, &next))).collect();
        let fresh = self.read(&next, &kinds).map_err(|errors| {
            self.waits_for_secrets = true;
            errors.join("\n")
        })?;
        self.regroup(&next, seen, shared);
        self.put_in_force(fresh, shared, admin, Some(next)).await;
        let before = shared.standing.load();
        if !changes.is_empty() || before.problem.is_some() {
            info!(config = hash, changed = ?changes.live, "configuration reloaded");
        }
        if !needs_restart.is_empty() && before.needs_restart != needs_restart {
            warn!(fields = ?needs_restart, "these fields of the configuration wait for a restart");
        }
        shared.registry.process.config_reloaded(true);
        shared.stand(|standing| {
            *standing = Standing { in_force: hash, problem: None, needs_restart, ..std::mem::take(standing) };
        });
        Ok(())
    }

    /// The groups of other settings: what is read for them already counts as seen, and what nobody names is forgotten.
    fn regroup(&mut self, next: &Settings, seen: Vec<(Kind, Fingerprint)>, shared: &Shared) {
        for (kind, seen) in seen {
            self.groups.retain(|group| group.kind != kind);
            self.groups.push(Group { seen, ..Group::new(kind, next) });
        }
        let names: BTreeSet<String> = self.groups.iter().flat_map(|group| group.secrets.clone()).collect();
        shared.registry.process.keep_secrets(&names);
        let failing: BTreeSet<String> = self.groups.iter().filter(|group| group.failing).map(Group::name).collect();
        shared.stand(|standing| standing.secrets.retain(|name, _| failing.contains(name)));
    }

    fn fingerprint_of(&self, kind: Kind, settings: &Settings) -> Fingerprint {
        self.directory.fingerprint(kind.secrets(settings).iter().map(String::as_str))
    }

    /// Reads and checks secrets as `settings` name them; all errors at once.
    fn read(&self, settings: &Settings, kinds: &[Kind]) -> Result<Fresh, Vec<String>> {
        let (mut fresh, mut errors) = (Fresh::default(), Vec::new());
        for kind in kinds {
            let text = |error: SecretError| error.to_string();
            let read = match kind {
                Kind::Listeners => self.read_tls(*kind, settings).map(|tls| fresh.listeners = Some(tls)).map_err(text),
                Kind::Admin => self.read_tls(*kind, settings).map(|tls| fresh.admin = Some(tls)).map_err(text),
                Kind::Keys => self.directory.keys(settings).map(|keys| fresh.keys = Some(Arc::new(keys))).map_err(text),
                Kind::Upstream => UpstreamSecrets::load(settings, self.directory.root())
                    .map(|secrets| fresh.upstream = Some(Arc::new(secrets)))
                    .map_err(|error| error.to_string()),
            };
            errors.extend(read.err());
        }
        if errors.is_empty() { Ok(fresh) } else { Err(errors) }
    }

    fn read_tls(&self, kind: Kind, settings: &Settings) -> Result<FreshTls, SecretError> {
        let before = if kind == Kind::Admin { &self.admin } else { &self.listeners };
        let Some((secret, client_ca)) = kind.tls(settings) else {
            return Ok(FreshTls { source: None, loaded: None });
        };
        let mut source = TlsSource::new(secret, client_ca).succeeding(before.as_ref());
        let loaded = source.load(&self.directory)?;
        Ok(FreshTls { source: Some(source), loaded: Some(loaded) })
    }

    /// From here on nothing can fail.
    async fn put_in_force(
        &mut self,
        fresh: Fresh,
        shared: &Shared,
        admin: Option<&ArcSwap<ServerConfig>>,
        settings: Option<Arc<Settings>>,
    ) {
        let Fresh { listeners, admin: fresh_admin, keys, upstream } = fresh;
        for tls in [&listeners, &fresh_admin].into_iter().flatten() {
            if let Some((secret, not_after)) = tls.not_after() {
                shared.registry.process.secret_loaded(&secret, Some(not_after));
            }
        }
        for (kind, is_fresh) in [(Kind::Keys, keys.is_some()), (Kind::Upstream, upstream.is_some())] {
            let group = self.groups.iter().find(|group| group.kind == kind && !group.secrets.is_empty());
            if let Some(group) = group.filter(|_| is_fresh) {
                shared.registry.process.secret_loaded(&group.name(), None);
            }
        }
        if let Some(settings) = &settings {
            shared.settings.store(Arc::clone(settings));
            shared.gate.set_limits(&settings.limits);
            self.settings = Arc::clone(settings);
        }
        // those who were marked may be trusted again
        let marked = shared.registry.cores.iter().any(|core| core.distrusted.get() > 0);
        let distrusts = |tls: &FreshTls| marked || tls.distrusts(self.listeners.as_ref());
        let check_trust = listeners.as_ref().is_some_and(distrusts);
        self.put_credentials(listeners, keys, shared);
        if let Some(FreshTls { source, loaded }) = fresh_admin {
            self.admin = source;
            if let (Some(loaded), Some(admin)) = (loaded, admin) {
                admin.store(loaded.config);
            }
        }
        let other_upstream = upstream.is_some();
        self.upstream = upstream.or_else(|| self.upstream.take());
        let Some(secrets) = self.upstream.clone() else { return error!("secrets are swapped before they were loaded") };
        let order = || match &settings {
            Some(settings) => Some(Order::Settings(Arc::clone(settings), Arc::clone(&secrets))),
            None => other_upstream.then(|| Order::Secrets(Arc::clone(&secrets))),
        };
        for core in &shared.cores {
            for order in [order(), check_trust.then_some(Order::CheckTrust)].into_iter().flatten() {
                // a core that is gone needs no orders
                let _gone = core.send(order).await;
            }
        }
    }

    fn put_credentials(
        &mut self,
        listeners: Option<FreshTls>,
        keys: Option<Arc<gateway_core::auth::Keys>>,
        shared: &Shared,
    ) {
        if listeners.is_none() && keys.is_none() {
            return;
        }
        let now = shared.credentials.load_full();
        let (mut tls, mut client_ca) = (now.tls.clone(), now.client_ca.clone());
        if let Some(FreshTls { source, loaded }) = listeners {
            self.listeners = source;
            client_ca = loaded.as_ref().and_then(|loaded| loaded.client_ca.clone());
            tls = loaded.map(|loaded| loaded.config);
        }
        let keys = keys.unwrap_or_else(|| Arc::clone(&now.keys));
        shared.credentials.store(Arc::new(Credentials { tls, client_ca, keys }));
    }
}

impl FreshTls {
    fn not_after(&self) -> Option<(String, i64)> {
        Some((self.source.as_ref()?.secret().to_owned(), self.loaded.as_ref()?.not_after))
    }

    /// Whether certificates that `before` let in are not trusted any more.
    fn distrusts(&self, before: Option<&TlsSource>) -> bool {
        before.is_some_and(|before| !before.anchors_are_in(self.source.as_ref()))
    }
}

/// Whether `path` is where secrets could be: for a message that helps.
pub fn check_root(path: &Path) -> Result<(), String> {
    if path.is_dir() { Ok(()) } else { Err(format!("--secrets {}: not a directory", path.display())) }
}
