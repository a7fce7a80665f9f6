//! What named Secrets hold, as far as it is not secret; asked for once, and again when a watch of their metadata says that
//! they changed. Only Secrets that a ProtocolGateway names are ever read, and no data of theirs is kept.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use rustls::ClientConfig;
use tracing::warn;

use super::{
    Authority, SecretFacts,
    mirror::{Name, Owner, owner},
};
use crate::{certificates, desired::References, error, names, secrets};

/// How many Secrets of one ProtocolGateway are asked for at a time.
const ASKED_MAX: usize = 4;
const RETRY_MARGIN: Duration = Duration::from_millis(100);

/// What was seen of one Secret.
#[derive(Debug, Clone)]
pub struct SeenSecret {
    /// Whose it is.
    pub owner: Owner,
    /// What it holds, without what is secret of it.
    pub facts: SecretFacts,
    /// The CA in it, where it is the fleet's own.
    pub authority: Option<Authority>,
    /// How to ask the fleet's pods, where it is the certificate for that.
    pub client: Option<Arc<ClientConfig>>,
}

/// What is known of the Secrets that a ProtocolGateway names. Those that are missing are in neither.
#[derive(Debug, Default)]
pub struct Looked {
    /// Those that are there, by name.
    pub seen: BTreeMap<String, SeenSecret>,
    /// Those that the operator may not read, by name, with the API server's words.
    pub forbidden: BTreeMap<String, String>,
    /// How many requests were answered so now.
    pub refusals: u64,
}

/// Which Secrets are named by whom, and what was seen of them. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Secrets(Arc<Mutex<Tables>>);

#[derive(Debug, Default)]
struct Tables {
    named: HashMap<Name, Named>,
    seen: HashMap<Name, OfGateway>,
}

#[derive(Debug, Default)]
struct Named {
    gateways: BTreeSet<String>,
    /// Counts the changes told by watches: an answer that was under way meanwhile may be old.
    changes: u64,
}

#[derive(Debug, Default)]
struct OfGateway {
    /// What the Secrets were looked at for.
    wanted: Arc<References>,
    /// By name; `None` is missing.
    secrets: HashMap<String, (Option<String>, Option<SeenSecret>)>,
    /// Those that may not be read: no watch tells when they may.
    forbidden: HashMap<String, Forbidden>,
}

/// What may not be read.
#[derive(Debug)]
struct Forbidden {
    words: String,
    at: Instant,
    /// In a row.
    failures: u32,
}

impl Forbidden {
    /// Until it is asked for again.
    fn wait(&self, now: Instant) -> Duration {
        error::backoff(self.failures, 1.0).saturating_sub(now.saturating_duration_since(self.at))
    }
}

/// What the API server answers: the Secret with its version, none, or that it may not be read.
type Answer = Result<(Option<String>, Option<SeenSecret>), String>;

impl Secrets {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at every Secret that `wanted` names. One that may not be read keeps back no other.
    pub async fn look(
        &self,
        client: &Client,
        gateway: &Name,
        wanted: &Arc<References>,
    ) -> Result<Looked, (String, kube::Error)> {
        let unknown = self.name(gateway, wanted, Instant::now());
        let api: Api<Secret> = Api::namespaced(client.clone(), &gateway.namespace);
        let ask = |(secret, changes): (String, u64)| {
            let api = &api;
            async move {
                let answer = match api.get_opt(&secret).await {
                    Ok(answer) => {
                        let version = answer.as_ref().and_then(|secret| secret.metadata.resource_version.clone());
                        Ok((version, answer.map(|answer| see(&answer, gateway, wanted))))
                    }
                    Err(kube::Error::Api(status)) if status.code == 403 => Err(status.message.clone()),
                    Err(error) => return Err((format!("Secret {secret}"), error)),
                };
                Ok((secret, changes, answer))
            }
        };
        let answers: Vec<_> = stream::iter(unknown).map(ask).buffered(ASKED_MAX).try_collect().await?;
        Ok(self.take(gateway, answers, Instant::now()))
    }

    /// Takes what was answered; all that is known then.
    fn take(&self, gateway: &Name, answers: Vec<(String, u64, Answer)>, now: Instant) -> Looked {
        let mut tables = self.tables();
        let Tables { named, seen: known } = &mut *tables;
        let mut looked = Looked::default();
        for (secret, changes, answer) in answers {
            let is_news =
                named.get(&Name::new(&gateway.namespace, &secret)).is_some_and(|named| named.changes == changes);
            let known = known.get_mut(gateway);
            match answer {
                Ok((version, seen)) => {
                    looked.seen.extend(seen.clone().map(|seen| (secret.clone(), seen)));
                    if let Some(known) = known {
                        known.forbidden.remove(&secret);
                        if is_news {
                            known.secrets.insert(secret, (version, seen));
                        }
                    }
                }
                Err(words) => {
                    looked.refusals += 1;
                    warn!(%gateway, secret, words, "a Secret may not be read");
                    if let Some(known) = known {
                        let failures = known.forbidden.get(&secret).map_or(0, |before| before.failures);
                        let forbidden = Forbidden { words, at: now, failures: failures.saturating_add(1) };
                        known.forbidden.insert(secret, forbidden);
                    }
                }
            }
        }
        if let Some(known) = known.get(gateway) {
            for (secret, (_, seen)) in &known.secrets {
                looked.seen.extend(seen.clone().map(|seen| (secret.clone(), seen)));
            }
            let words = |(secret, forbidden): (&String, &Forbidden)| (secret.clone(), forbidden.words.clone());
            looked.forbidden = known.forbidden.iter().map(words).collect();
        }
        looked
    }

    /// When a Secret that `gateway` names is to be asked for again because it may not be read, if there is one.
    pub fn waits(&self, gateway: &Name) -> Option<Duration> {
        let (tables, now) = (self.tables(), Instant::now());
        let forbidden = tables.seen.get(gateway)?.forbidden.values();
        // a little later, so that its time has come then
        forbidden.map(|forbidden| forbidden.wait(now) + RETRY_MARGIN).min()
    }

    /// Notes whom `gateway` names; which of these must be asked for, and how often each was told to have changed.
    fn name(&self, gateway: &Name, wanted: &Arc<References>, now: Instant) -> Vec<(String, u64)> {
        let mut tables = self.tables();
        let Tables { named, seen } = &mut *tables;
        let known = seen.entry(gateway.clone()).or_default();
        if known.wanted != *wanted {
            let before = std::mem::replace(known, OfGateway { wanted: wanted.clone(), ..OfGateway::default() });
            let gone = before.wanted.uses.keys().filter(|secret| !wanted.uses.contains_key(*secret));
            gone.for_each(|secret| unname(named, gateway, secret));
        }
        let mut unknown = Vec::new();
        for secret in wanted.uses.keys() {
            let entry = named.entry(Name::new(&gateway.namespace, secret)).or_default();
            entry.gateways.insert(gateway.name.clone());
            let waits = known.forbidden.get(secret).is_some_and(|forbidden| !forbidden.wait(now).is_zero());
            if !waits && !known.secrets.contains_key(secret) {
                unknown.push((secret.clone(), entry.changes));
            }
        }
        unknown
    }

    /// A watch told that a Secret is now of this version, or gone: which ProtocolGateways that concerns.
    pub fn changed(&self, secret: &Name, version: Option<&str>) -> Vec<Name> {
        let mut tables = self.tables();
        let Tables { named, seen } = &mut *tables;
        let Some(entry) = named.get_mut(secret) else { return Vec::new() };
        entry.changes += 1;
        let gateways = entry.gateways.iter().map(|gateway| Name::new(&secret.namespace, gateway));
        let concerned = gateways.filter(|gateway| {
            let Some(known) = seen.get_mut(gateway) else { return false };
            let same = known.secrets.get(&secret.name).is_some_and(|(seen, _)| seen.as_deref() == version);
            if !same {
                known.secrets.remove(&secret.name);
            }
            !same
        });
        concerned.collect()
    }

    /// Secrets of a namespace, or of all, that are known to be there: a watch that begins anew must name them again.
    pub fn present(&self, namespace: Option<&str>) -> Vec<Name> {
        let tables = self.tables();
        let here =
            tables.seen.iter().filter(|(gateway, _)| namespace.is_none_or(|namespace| gateway.namespace == namespace));
        let there = here.flat_map(|(gateway, known)| {
            let secrets = known.secrets.iter().filter(|(_, (version, _))| version.is_some());
            secrets.map(|(secret, _)| Name::new(&gateway.namespace, secret))
        });
        there.collect()
    }

    /// Takes the answer to a write.
    pub fn put(&self, gateway: &Name, secret: &Secret) {
        let mut tables = self.tables();
        let Some(known) = tables.seen.get_mut(gateway) else { return };
        let wanted = known.wanted.clone();
        let name = secret.metadata.name.clone().unwrap_or_default();
        let version = secret.metadata.resource_version.clone();
        known.forbidden.remove(&name);
        known.secrets.insert(name, (version, Some(see(secret, gateway, &wanted))));
    }

    /// A ProtocolGateway is gone.
    pub fn forget(&self, gateway: &Name) {
        let mut tables = self.tables();
        let Tables { named, seen } = &mut *tables;
        if let Some(known) = seen.remove(gateway) {
            known.wanted.uses.keys().for_each(|secret| unname(named, gateway, secret));
        }
    }
}

fn unname(named: &mut HashMap<Name, Named>, gateway: &Name, secret: &str) {
    let key = Name::new(&gateway.namespace, secret);
    if let Some(entry) = named.get_mut(&key) {
        entry.gateways.remove(&gateway.name);
        if entry.gateways.is_empty() {
            named.remove(&key);
        }
    }
}

fn see(secret: &Secret, gateway: &Name, wanted: &References) -> SeenSecret {
    let name = secret.metadata.name.as_deref().unwrap_or_default();
    let uses = wanted.uses.get(name).cloned().unwrap_or_default();
    SeenSecret {
        owner: owner(&secret.metadata),
        facts: wanted.settings.as_ref().map(|settings| secrets::facts(secret, &uses, settings)).unwrap_or_default(),
        authority: (name == names::authority(&gateway.name)).then(|| certificates::authority(secret)).flatten(),
        client: (name == names::control_client(&gateway.name)).then(|| control_client(secret, gateway)).flatten(),
    }
}

/// How to ask this fleet's pods; a Secret that does not say is renewed.
fn control_client(secret: &Secret, gateway: &Name) -> Option<Arc<ClientConfig>> {
    match certificates::control_client(secret) {
        Ok(client) => Some(client),
        Err(error) => {
            warn!(%gateway, %error, "pods cannot be asked");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(secrets: &[&str]) -> Arc<References> {
        let uses = secrets.iter().map(|secret| ((*secret).to_owned(), BTreeSet::new())).collect();
        Arc::new(References { uses, settings: None })
    }

    fn secret(name: &str, version: &str) -> Secret {
        let mut secret = Secret::default();
        secret.metadata.name = Some(name.to_owned());
        secret.metadata.resource_version = Some(version.to_owned());
        secret
    }

    #[test]
    fn a_change_concerns_those_who_name_the_secret_and_know_another_version() {
        let secrets = Secrets::default();
        let (a, b) = (Name::new("n", "a"), Name::new("n", "b"));
        secrets.name(&a, &wanted(&["own", "keys"]), Instant::now());
        secrets.name(&b, &wanted(&["own"]), Instant::now());
        secrets.put(&a, &secret("own", "5"));
        let own = Name::new("n", "own");
        assert_eq!(secrets.changed(&own, Some("5")), std::slice::from_ref(&b), "a wrote it, b has not looked yet");
        assert_eq!(secrets.changed(&own, Some("6")), [a.clone(), b.clone()]);
        assert_eq!(secrets.changed(&Name::new("n", "other"), Some("1")), []);
        assert_eq!(secrets.changed(&Name::new("m", "own"), Some("1")), []);
        secrets.forget(&a);
        assert_eq!(secrets.changed(&own, None), [b]);
    }

    #[test]
    fn what_is_not_named_any_more_concerns_nobody() {
        let secrets = Secrets::default();
        let a = Name::new("n", "a");
        secrets.name(&a, &wanted(&["own"]), Instant::now());
        assert_eq!(secrets.name(&a, &wanted(&["keys"]), Instant::now()), [("keys".to_owned(), 0)]);
        assert_eq!(secrets.changed(&Name::new("n", "own"), None), []);
        assert!(secrets.tables().named.keys().eq([&Name::new("n", "keys")]));
    }

    #[test]
    fn a_watch_that_begins_anew_is_asked_for_what_is_there() {
        let secrets = Secrets::default();
        let a = Name::new("n", "a");
        secrets.name(&a, &wanted(&["own", "keys"]), Instant::now());
        secrets.put(&a, &secret("own", "5"));
        assert_eq!(secrets.present(None), [Name::new("n", "own")]);
        assert_eq!(secrets.present(Some("m")), []);
    }

    #[test]
    fn what_may_not_be_read_is_asked_for_again_later_each_time_and_keeps_back_no_other() {
        let (secrets, a, begin) = (Secrets::default(), Name::new("n", "a"), Instant::now());
        let refused = |secrets: &Secrets, at| {
            let answers = vec![("own".to_owned(), 0, Err("no".to_owned())), ("keys".to_owned(), 0, Ok((None, None)))];
            secrets.take(&a, answers, at)
        };
        let asked = |at| secrets.name(&a, &wanted(&["own", "keys"]), at).into_iter().map(|(secret, _)| secret);
        assert!(asked(begin).eq(["keys", "own"]));
        let mut at = begin;
        for wait in [1, 2, 4, 8, 16, 32, 64, 120, 120].map(Duration::from_secs) {
            let looked = refused(&secrets, at);
            assert_eq!((looked.seen.len(), looked.refusals), (0, 1));
            assert_eq!(looked.forbidden, [("own".to_owned(), "no".to_owned())].into());
            assert!(asked(at + wait.saturating_sub(RETRY_MARGIN)).eq([""; 0]), "before {wait:?}");
            at += wait;
            assert!(asked(at).eq(["own"]), "after {wait:?}");
        }
        assert!(secrets.waits(&a).is_some());
        secrets.take(&a, vec![("own".to_owned(), 0, Ok((None, None)))], at);
        assert!(asked(at).eq([""; 0]));
        assert_eq!(secrets.waits(&a), None);
    }
}
