//! The certificate of the metrics API, of a CA of its own: both live in Secrets beside the operator, made and renewed by the
//! leader in the steps of [`crate::desired::tls`], and used by every replica as soon as they are there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::Secret,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, watcher::watch_object},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use super::{PART, owner::Owner, tls::InUse};
use crate::{
    certificates,
    desired::tls::{self, Leaf, Purpose, Step},
    http::Health,
    lease::Leadership,
    names,
    observe::Observed,
    secrets,
};

/// Whether a step is due is looked at so often.
const LOOK_EVERY: Duration = Duration::from_mins(1);
/// After a write that failed.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Steps that follow one another at once: CA and certificate, or certificate and trust.
const STEPS_MAX: usize = 4;
/// Label of what the operator made.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// Keeps the certificate.
pub(super) struct Keeper {
    secrets: Api<Secret>,
    leadership: Leadership,
    health: Health,
    owner: Owner,
    namespace: String,
    service: String,
    in_use: Arc<InUse>,
    /// Whom the API server must trust: PEM.
    bundle: watch::Sender<Option<Vec<u8>>>,
    authority: Seen,
    serving: Seen,
}

/// A Secret as it was seen; `None` before the first look.
type Seen = Option<Option<Secret>>;

impl Keeper {
    #[expect(clippy::too_many_arguments, reason = "each is another thing that it holds")]
    pub(super) fn new(
        client: Client,
        leadership: Leadership,
        health: Health,
        owner: Owner,
        namespace: String,
        service: String,
        in_use: Arc<InUse>,
        bundle: watch::Sender<Option<Vec<u8>>>,
    ) -> Self {
        let secrets = Api::namespaced(client, &namespace);
        Self { secrets, leadership, health, owner, namespace, service, in_use, bundle, authority: None, serving: None }
    }

    /// Runs until dropped.
    pub(super) async fn run(mut self) {
        let changes = |name: &str| watch_object(self.secrets.clone(), name).default_backoff().boxed();
        let mut authority = changes(&names::authority(&self.service));
        let mut serving = changes(&names::serving(&self.service));
        let mut leadership = self.leadership.clone();
        let mut again = Instant::now() + LOOK_EVERY;
        loop {
            tokio::select! {
                Some(change) = authority.next() => match change {
                    Ok(secret) => self.authority = Some(secret),
                    Err(error) => warn!(%error, "the CA of the metrics API cannot be watched"),
                },
                Some(change) = serving.next() => match change {
                    Ok(secret) => self.serving = Some(secret),
                    Err(error) => warn!(%error, "the certificate of the metrics API cannot be watched"),
                },
                _ = leadership.changed() => {}
                () = sleep_until(again) => {}
            }
            self.take();
            let done = self.keep().await;
            again = Instant::now() + if done { LOOK_EVERY } else { RETRY_AFTER };
        }
    }

    /// Serves what is there, if it will do; what served before stays otherwise.
    fn take(&self) {
        if let Some(taken) = self.taken() {
            let problem = format!("Secret {} belongs to somebody else: rename or delete it", taken.name_any());
            warn!(problem, "the metrics API has no certificate");
            return self.health.waits(PART, problem);
        }
        let Some(Some(secret)) = &self.serving else { return };
        match secrets::certified_key(secret).map_err(|wrong| format!("Secret {} {wrong}", secret.name_any())) {
            Ok(pair) => {
                self.in_use.0.store(Some(Arc::new(pair)));
                self.health.is_ready(PART);
                let trust = secret.data.as_ref().and_then(|data| data.get("ca.crt")).map(|pem| pem.0.clone());
                self.bundle.send_if_modified(|bundle| {
                    let changed = *bundle != trust;
                    *bundle = trust;
                    changed
                });
            }
            Err(problem) => warn!(problem, "the metrics API keeps its last certificate"),
        }
    }

    /// A Secret of our name that is somebody else's.
    fn taken(&self) -> Option<&Secret> {
        let secrets = [&self.authority, &self.serving].into_iter().flatten().flatten();
        secrets.into_iter().find(|secret| !is_ours(secret))
    }

    /// Takes the steps that are due, if this replica leads; whether none is left.
    async fn keep(&mut self) -> bool {
        for _ in 0..STEPS_MAX {
            if self.leadership.epoch().is_none() {
                return true;
            }
            let Some(step) = self.due() else { return true };
            match self.carry_out(&step).await {
                Ok(()) => info!(secret = step.secret(), "the certificate of the metrics API: a step is done"),
                Err(problem) => {
                    warn!(problem, secret = step.secret(), "the certificate of the metrics API cannot be kept");
                    return false;
                }
            }
            self.take();
        }
        false
    }

    fn due(&self) -> Option<Step> {
        let (authority, serving) = (self.authority.as_ref()?.as_ref(), self.serving.as_ref()?.as_ref());
        if self.taken().is_some() {
            return None;
        }
        let leaf = self.leaf();
        let facts = serving.map(|secret| (leaf.secret.clone(), secrets::own_facts(secret)));
        let observed = Observed {
            now: Timestamp::now(),
            authority: authority.and_then(certificates::authority),
            secrets: facts.into_iter().collect(),
            ..Observed::default()
        };
        tls::steps(&observed, vec![leaf], names::authority(&self.service)).into_iter().next()
    }

    fn leaf(&self) -> Leaf {
        let (service, namespace) = (&self.service, &self.namespace);
        let names = [format!("{service}.{namespace}.svc"), format!("{service}.{namespace}"), service.clone()];
        Leaf {
            secret: names::serving(service),
            purpose: Purpose::Server,
            dns_names: BTreeSet::from(names),
            ip_addresses: BTreeSet::new(),
            life_s: tls::LEAF_LIFE.as_secs(),
            authority: String::new(),
            trust: Vec::new(),
        }
    }

    async fn carry_out(&mut self, step: &Step) -> Result<(), String> {
        let owner = self.owner.reference().await.map_err(|error| format!("its owner: {error}"))?;
        let (authority, serving) = (self.authority.clone().flatten(), self.serving.clone().flatten());
        let is_authority = *step.secret() == names::authority(&self.service);
        let current = if is_authority { authority.as_ref() } else { serving.as_ref() };
        let metadata = metadata(step.secret(), &self.namespace, owner);
        let minted = certificates::mint(step, authority.as_ref(), current, metadata, Timestamp::now());
        let minted = minted.map_err(|error| error.to_string())?;
        let parameters = PatchParams::apply(names::FIELD_MANAGER).force();
        let patch = Patch::Apply(&minted);
        let written = self.leadership.write(self.secrets.patch(step.secret(), &parameters, &patch)).await;
        let written = written.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let seen = if is_authority { &mut self.authority } else { &mut self.serving };
        *seen = Some(Some(written));
        Ok(())
    }
}

fn is_ours(secret: &Secret) -> bool {
    secret.labels().get(MANAGED_BY).is_some_and(|manager| manager == names::FIELD_MANAGER)
}

fn metadata(name: &str, namespace: &str, owner: Option<OwnerReference>) -> ObjectMeta {
    let labels = [("app.kubernetes.io/name", names::OPERATOR_APP), (MANAGED_BY, names::FIELD_MANAGER)];
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        labels: Some(BTreeMap::from(labels.map(|(key, value)| (key.to_owned(), value.to_owned())))),
        owner_references: owner.map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}
