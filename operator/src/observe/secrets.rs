//! What named Secrets hold, as far as it is not secret; asked for once, and again when a watch of their metadata says that
//! they changed. Only Secrets that a ProtocolGateway names are ever read, and no data of theirs is kept.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
use crate::{certificates, desired::References, names, secrets};

/// How many Secrets of one ProtocolGateway are asked for at a time.
const ASKED_MAX: usize = 4;

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
}

impl Secrets {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at every Secret that `wanted` names; those that are missing are absent from the answer.
    pub async fn look(
        &self,
        client: &Client,
        gateway: &Name,
        wanted: &Arc<References>,
    ) -> Result<BTreeMap<String, SeenSecret>, (String, kube::Error)> {
        let unknown = self.name(gateway, wanted);
        let api: Api<Secret> = Api::namespaced(client.clone(), &gateway.namespace);
        let ask = |(secret, changes): (String, u64)| {
            let api = &api;
            async move {
                let answer = api.get_opt(&secret).await.map_err(|error| (format!("Secret {secret}"), error))?;
                let version = answer.as_ref().and_then(|secret| secret.metadata.resource_version.clone());
                let seen = answer.map(|answer| see(&answer, gateway, wanted));
                Ok::<_, (String, kube::Error)>((secret, changes, version, seen))
            }
        };
        let answers: Vec<_> = stream::iter(unknown).map(ask).buffered(ASKED_MAX).try_collect().await?;
        let mut tables = self.tables();
        let mut found = BTreeMap::new();
        for (secret, changes, version, seen) in answers {
            found.extend(seen.clone().map(|seen| (secret.clone(), seen)));
            let key = Name::new(&gateway.namespace, &secret);
            if tables.named.get(&key).is_some_and(|named| named.changes == changes)
                && let Some(known) = tables.seen.get_mut(gateway)
            {
                known.secrets.insert(secret, (version, seen));
            }
        }
        for (secret, (_, seen)) in tables.seen.get(gateway).iter().flat_map(|known| &known.secrets) {
            found.extend(seen.clone().map(|seen| (secret.clone(), seen)));
        }
        Ok(found)
    }

    /// Notes whom `gateway` names; which of these must be asked for, and how often each was told to have changed.
    fn name(&self, gateway: &Name, wanted: &Arc<References>) -> Vec<(String, u64)> {
        let mut tables = self.tables();
        let Tables { named, seen } = &mut *tables;
        let known = seen.entry(gateway.clone()).or_default();
        if known.wanted != *wanted {
            let before = std::mem::replace(known, OfGateway { wanted: wanted.clone(), secrets: HashMap::new() });
            let gone = before.wanted.uses.keys().filter(|secret| !wanted.uses.contains_key(*secret));
            gone.for_each(|secret| unname(named, gateway, secret));
        }
        let mut unknown = Vec::new();
        for secret in wanted.uses.keys() {
            let entry = named.entry(Name::new(&gateway.namespace, secret)).or_default();
            entry.gateways.insert(gateway.name.clone());
            if !known.secrets.contains_key(secret) {
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
        secrets.name(&a, &wanted(&["own", "keys"]));
        secrets.name(&b, &wanted(&["own"]));
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
        secrets.name(&a, &wanted(&["own"]));
        assert_eq!(secrets.name(&a, &wanted(&["keys"])), [("keys".to_owned(), 0)]);
        assert_eq!(secrets.changed(&Name::new("n", "own"), None), []);
        assert!(secrets.tables().named.keys().eq([&Name::new("n", "keys")]));
    }

    #[test]
    fn a_watch_that_begins_anew_is_asked_for_what_is_there() {
        let secrets = Secrets::default();
        let a = Name::new("n", "a");
        secrets.name(&a, &wanted(&["own", "keys"]));
        secrets.put(&a, &secret("own", "5"));
        assert_eq!(secrets.present(None), [Name::new("n", "own")]);
        assert_eq!(secrets.present(Some("m")), []);
    }
}
