//! Writes the difference between what there should be and what is there: server-side apply with one field manager.
//!
//! What stands as it should is not written. Never an object of somebody else's, and never without leading. What the API server
//! refuses, or fails at, is remembered, and is tried again when it or the time changes. It keeps back nothing else, but for what
//! pods in force need: that is changed with them ([`order`]).

pub mod adopt;
pub mod certificates;
pub mod drift;
pub mod order;
pub mod prune;
pub mod status;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use crds::ProtocolGateway;
use futures_util::future::try_join_all;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Client, ResourceExt,
    api::{Patch, PatchParams},
    core::DynamicObject,
};
use tracing::{debug, info, warn};

use self::order::Held;

use crate::{
    desired::{self, Desired},
    error::{Kind as Failure, ReconcileError, Step},
    kinds::Kind,
    lease::Leadership,
    metrics::Metrics,
    names,
    observe::{
        Observed, Refusal, Way,
        look::{is_left_over, is_ours, left_over},
        mirror::{Mirror, Name, owner},
        secrets::Secrets,
    },
};

/// How soon an object that belongs to somebody else is looked at again: nothing tells when it goes.
pub const FOREIGN_RECHECK: Duration = Duration::from_mins(1);
/// How soon the API server is asked again to take what it refused: nothing tells when what is in the way goes. What it failed at
/// is tried again sooner, and later each time.
pub const REFUSED_RETRY: Duration = Duration::from_mins(2);

/// How soon if what is in the way just went: a node port is free a moment after its Service is gone.
const MOVED_RETRY: Duration = Duration::from_secs(2);

const RETRY_MARGIN: Duration = Duration::from_millis(100);

/// What writing needs. Cheap to clone.
#[derive(Clone)]
pub struct Writer {
    /// The API server.
    pub client: Client,
    /// What is watched; the answers to writes go there, too.
    pub mirror: Mirror,
    /// What was seen of Secrets; the answers to writes go there, too.
    pub secrets: Secrets,
    /// Whether this replica writes.
    pub leadership: Leadership,
    /// Counts writes.
    pub metrics: Metrics,
}

/// What is remembered of one ProtocolGateway between its reconciles. Lost, it costs requests and nothing else.
#[derive(Debug, Default)]
pub struct Memory {
    /// `metadata.generation` of the spec that it is about.
    generation: Option<i64>,
    /// Objects that no watch tells of, as they were found a moment ago.
    unwatched: BTreeMap<String, Unwatched>,
    /// Objects of somebody else's that no watch tells of, as `Kind name`, and when they were seen.
    foreign: BTreeMap<String, Instant>,
    /// What was not taken, by what was to be done and `Kind name`.
    refused: BTreeMap<(Way, String), Refused>,
    /// Serial number of the listeners' certificate.
    serving: Option<String>,
    /// When the status was written last.
    status_at: Option<Instant>,
    /// What stands as it should although it reads otherwise: hash of what was applied and of what came of it.
    settled: HashMap<String, String>,
}

#[derive(Debug)]
struct Refused {
    /// Hash of what was applied.
    applied: String,
    kind: Failure,
    message: String,
    at: Instant,
    /// In a row.
    failures: u32,
    /// What was in the way may have gone a moment before this answer.
    moved: bool,
    /// It is to be tried again for that.
    retried: bool,
}

impl Refused {
    fn wait(&self) -> Duration {
        if self.moved {
            return MOVED_RETRY;
        }
        let failing = self.kind == Failure::Failing;
        failing.then(|| self.kind.retry_after(self.failures, 1.0)).flatten().unwrap_or(REFUSED_RETRY)
    }
}

impl Memory {
    /// Somebody who changes the spec may have changed what was in the way, too: all of it is looked at again.
    pub fn is_about(&mut self, gateway: &ProtocolGateway) {
        if self.generation != gateway.metadata.generation {
            self.generation = gateway.metadata.generation;
            self.foreign.clear();
            self.retry();
        }
    }

    /// Whether the listeners' certificate is another than when this was asked last: pods are to serve it soon.
    pub fn serves_another(&mut self, observed: &Observed, gateway: &ProtocolGateway) -> bool {
        let own = || names::serving(&gateway.name_any());
        let secret = gateway.spec.tls.secret_name.clone().unwrap_or_else(own);
        let certificate = observed.secrets.get(&secret).and_then(|facts| facts.certificate.as_ref());
        let now = certificate.map(|certificate| certificate.serial.clone());
        let before = std::mem::replace(&mut self.serving, now);
        before.is_some() && before != self.serving
    }

    /// Objects of somebody else's; those that were seen long ago are to be looked at again.
    pub fn foreign(&self) -> BTreeSet<String> {
        let lately = self.foreign.iter().filter(|(_, seen)| seen.elapsed() < FOREIGN_RECHECK);
        lately.map(|(title, _)| title.clone()).collect()
    }

    /// What the API server did not take.
    pub fn refused(&self) -> Vec<Refusal> {
        let refusal = |((way, object), refused): (&(Way, String), &Refused)| Refusal {
            object: object.clone(),
            way: *way,
            kind: refused.kind,
            message: refused.message.clone(),
        };
        self.refused.iter().map(refusal).collect()
    }

    /// Remembers how a write ended, of `applied` if it was one of a whole object; whether it was taken.
    ///
    /// # Errors
    /// What is not about this one object.
    pub(crate) fn ended(
        &mut self,
        (way, title): (Way, &str),
        applied: &str,
        ended: Result<(), ReconcileError>,
    ) -> Result<bool, ReconcileError> {
        let key = (way, title.to_owned());
        match ended {
            Ok(()) => {
                self.refused.remove(&key);
                Ok(true)
            }
            Err(error) if error.kind.is_of_one() => {
                warn!(object = title, ?way, error = error.message, "not taken");
                let before = self.refused.get(&key);
                let failures = before.map_or(0, |refused| refused.failures).saturating_add(1);
                // once: what is in the way still is there to stay
                let moved = before.is_some_and(|refused| refused.retried);
                let (applied, at) = (applied.to_owned(), Instant::now());
                let (kind, message) = (error.kind, error.message);
                self.refused.insert(key, Refused { applied, kind, message, at, failures, moved, retried: false });
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Forgets answers to writes of this way that are not to be done any more.
    pub(crate) fn keep(&mut self, way: Way, is_due: impl Fn(&str) -> bool) {
        self.refused.retain(|(of, title), _| *of != way || is_due(title));
    }

    fn is_refused(&self, title: &str, applied: &str) -> bool {
        let refused = self.refused.get(&(Way::Apply, title.to_owned()));
        refused.is_some_and(|refused| refused.applied == applied && refused.at.elapsed() < refused.wait())
    }

    /// What was in the way may have gone: tries again at once.
    pub fn retry(&mut self) {
        for refused in self.refused.values_mut() {
            refused.applied.clear();
            refused.retried = true;
        }
    }

    /// Whether something waits for a time to pass.
    pub fn waits(&self) -> Option<Duration> {
        let foreign = (!self.foreign.is_empty()).then_some(FOREIGN_RECHECK);
        // a little later, so that its time has come then
        let left = |refused: &Refused| refused.wait().saturating_sub(refused.at.elapsed()) + RETRY_MARGIN;
        foreign.into_iter().chain(self.refused.values().map(left)).min()
    }
}

impl Writer {
    /// Whether no object that is about to be made is there already and somebody else's. If one is, it is remembered, and what
    /// there should be is to be decided anew.
    pub async fn are_free(
        &self,
        gateway: &ProtocolGateway,
        desired: &Desired,
        memory: &mut Memory,
    ) -> Result<bool, ReconcileError> {
        memory.foreign.retain(|_, seen| seen.elapsed() < FOREIGN_RECHECK);
        memory.unwatched = self.unwatched(gateway, &desired.objects).await?;
        let foreign = memory.unwatched.iter().filter(|(_, what)| **what == Unwatched::Foreign);
        let foreign: Vec<_> = foreign.map(|(title, _)| (title.clone(), Instant::now())).collect();
        let are_free = foreign.is_empty();
        memory.foreign.extend(foreign);
        Ok(are_free)
    }

    /// Applies every object that does not stand as it should, after it was found to be free; but for those that are held,
    /// which it gives back. `are_marked`: the Deployment may be told of fewer pods.
    pub async fn objects(
        &self,
        desired: &Desired,
        memory: &mut Memory,
        are_marked: bool,
    ) -> Result<Held, ReconcileError> {
        let wanted: BTreeSet<String> = desired.objects.iter().map(desired::title).collect();
        let is_step =
            |title: &str| desired.certificates.iter().any(|step| *title == format!("Secret {}", step.secret()));
        memory.keep(Way::Apply, |title| wanted.contains(title) || is_step(title));
        memory.settled.retain(|title, _| wanted.contains(title));
        let unwatched = std::mem::take(&mut memory.unwatched);
        let mut held = self.held(desired, memory, are_marked).await?;
        let is_in_force = desired.objects.iter().any(|object| order::is_deployment(object) && self.is_watched(object));
        for object in &desired.objects {
            let (title, kind) = (desired::title(object), kind_of(object)?);
            let what = unwatched.get(&title);
            // what nobody looked for may be somebody else's
            if what == Some(&Unwatched::Foreign)
                || (what.is_none() && !self.is_watched(object))
                || held.holds(kind.name)
            {
                continue;
            }
            let is_new = what == Some(&Unwatched::Missing);
            let (object, applied) = drift::stamped(object.clone());
            let mut is_taken = false;
            if !memory.is_refused(&title, &applied) {
                let ended = self.object(&object, &title, is_new, memory).await;
                is_taken = memory.ended((Way::Apply, &title), &applied, ended)?;
            }
            if !is_taken {
                held.not_taken(kind.name, is_in_force);
            }
        }
        Ok(held)
    }

    fn is_watched(&self, object: &DynamicObject) -> bool {
        kind_of(object).is_ok_and(|kind| self.mirror.get(kind, &Name::of(&object.metadata)).is_some())
    }

    async fn object(
        &self,
        object: &DynamicObject,
        title: &str,
        is_new: bool,
        memory: &mut Memory,
    ) -> Result<(), ReconcileError> {
        let kind = kind_of(object)?;
        if self.settled(kind, object, title, memory) {
            return Ok(());
        }
        self.has_owner(&object.metadata, title)?;
        let answer = self.apply(kind, object, title, !is_new).await?;
        match drift::settled(object, &drift::comparable(&answer)).differs() {
            Some(hash) => drop(memory.settled.insert(title.to_owned(), hash.clone())),
            None => drop(memory.settled.remove(title)),
        }
        self.mirror.put(kind, answer);
        Ok(())
    }

    /// Its ProtocolGateway may go between two writes, and leave what it owned (`--cascade=orphan`): what then is written in its
    /// name is deleted with it after all.
    fn has_owner(&self, metadata: &ObjectMeta, title: &str) -> Result<(), ReconcileError> {
        if self.mirror.has_owner(metadata) {
            return Ok(());
        }
        let message = "its ProtocolGateway is about to go".to_owned();
        Err(ReconcileError { step: Step::Apply, kind: Failure::Conflict, object: title.to_owned(), message })
    }

    /// Whether an object, which is [`drift::stamped`], stands as it was applied.
    fn settled(&self, kind: &'static Kind, object: &DynamicObject, title: &str, memory: &Memory) -> bool {
        let Some(live) = self.mirror.get(kind, &Name::of(&object.metadata)) else { return false };
        let standing = drift::settled(object, &live.body());
        let is_known = |hash| memory.settled.get(title) == Some(hash);
        // what is being deleted will be made anew when it is gone
        let settled = live.ends || standing.differs().is_none_or(is_known);
        if !settled {
            debug!(namespace = object.metadata.namespace, object = title, "does not stand as it was applied");
        }
        settled
    }

    /// What those objects are that no watch tells of: missing, somebody else's, or ours without their labels.
    async fn unwatched(
        &self,
        gateway: &ProtocolGateway,
        objects: &[DynamicObject],
    ) -> Result<BTreeMap<String, Unwatched>, ReconcileError> {
        let mut unknown = Vec::new();
        for object in objects {
            let (kind, name) = (kind_of(object)?, Name::of(&object.metadata));
            if self.mirror.get(kind, &name).is_none() {
                unknown.push((desired::title(object), kind, name));
            }
        }
        // one for each kind at most
        let asked = unknown.into_iter().map(|(title, kind, name)| self.what_is(gateway, title, kind, name));
        Ok(try_join_all(asked).await?.into_iter().collect())
    }

    async fn what_is(
        &self,
        gateway: &ProtocolGateway,
        title: String,
        kind: &Kind,
        name: Name,
    ) -> Result<(String, Unwatched), ReconcileError> {
        let found = kind.api(&self.client, Some(&name.namespace)).get_metadata_opt(&name.name).await;
        let found = found.map_err(|error| ReconcileError::of(Step::Apply, title.clone(), &error))?;
        let Some(found) = found else { return Ok((title, Unwatched::Missing)) };
        let owner = owner(&found.metadata);
        if is_left_over(&owner, gateway) {
            return Err(left_over(title));
        }
        let what = if is_ours(&owner, gateway) { Unwatched::Ours } else { Unwatched::Foreign };
        Ok((title, what))
    }

    /// One write. Without `force` a field that somebody else manages is a conflict: for what should not be there yet.
    pub(crate) async fn apply(
        &self,
        kind: &Kind,
        object: &DynamicObject,
        title: &str,
        force: bool,
    ) -> Result<DynamicObject, ReconcileError> {
        let api = kind.api(&self.client, object.metadata.namespace.as_deref());
        let parameters = PatchParams { force, ..PatchParams::apply(names::FIELD_MANAGER) };
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let patch = Patch::Apply(object);
        let answer = self.write(Step::Apply, title, api.patch(name, &parameters, &patch)).await?;
        self.metrics.writes.with_label_values(&[kind.name]).inc();
        info!(namespace = object.metadata.namespace, object = title, "applied");
        Ok(answer)
    }

    /// Carries out a write of the leader's, and none of anybody else.
    pub(crate) async fn write<T>(
        &self,
        step: Step,
        title: &str,
        write: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ReconcileError> {
        let answer = self.leadership.write(write).await.map_err(|not_leading| ReconcileError {
            step,
            kind: Failure::NotLeader,
            object: title.to_owned(),
            message: not_leading.to_string(),
        })?;
        answer.map_err(|error| ReconcileError::of(step, title.to_owned(), &error))
    }
}

/// What an object is that no watch tells of.
#[derive(Debug, PartialEq, Eq)]
enum Unwatched {
    Missing,
    Ours,
    Foreign,
}

/// For a merge in the operator's name: some fields of an object that is not applied as a whole.
pub(crate) fn merging() -> PatchParams {
    PatchParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

fn kind_of(object: &DynamicObject) -> Result<&'static Kind, ReconcileError> {
    let kind = object.types.as_ref().and_then(|types| Kind::owned(&types.kind));
    kind.ok_or_else(|| ReconcileError {
        step: Step::Apply,
        kind: Failure::Refused,
        object: desired::title(object),
        message: "is of a kind that the operator does not make".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(kind: Failure) -> Result<(), ReconcileError> {
        let (object, message) = ("Service gw".to_owned(), "no".to_owned());
        Err(ReconcileError { step: Step::Apply, kind, object, message })
    }

    fn check(kind: Failure, is_remembered: bool) {
        let mut memory = Memory::default();
        let ended = memory.ended((Way::Apply, "Service gw"), "hash", answered(kind));
        assert_eq!(ended.ok(), is_remembered.then_some(false), "{kind:?}");
        assert_eq!(memory.refused().len(), usize::from(is_remembered), "{kind:?}");
        assert_eq!(memory.is_refused("Service gw", "hash"), is_remembered, "{kind:?}");
        assert!(!memory.is_refused("Service gw", "another hash"), "{kind:?}");
    }

    #[test]
    fn what_is_about_one_object_is_remembered_and_keeps_back_no_other() {
        check(Failure::Refused, true);
        check(Failure::Forbidden, true);
        check(Failure::Failing, true);
        check(Failure::Unavailable, false);
        check(Failure::Conflict, false);
        check(Failure::Gone, false);
        check(Failure::NotLeader, false);
    }

    #[test]
    fn what_fails_is_tried_again_soon_and_later_each_time_until_it_is_taken() {
        let mut memory = Memory::default();
        let second = Duration::from_secs(1);
        for most in [1, 2, 4, 8] {
            let taken = memory.ended((Way::Apply, "Service gw"), "hash", answered(Failure::Failing));
            assert_eq!(taken, Ok(false));
            let waits = memory.waits().expect("it is tried again");
            assert!(waits <= second * most + RETRY_MARGIN && waits > second * most / 2, "{waits:?} of {most} s");
        }
        assert_eq!(memory.ended((Way::Delete, "Service gw"), "", Ok(())), Ok(true));
        assert_eq!(memory.refused().len(), 1, "another way of writing it");
        assert_eq!(memory.ended((Way::Apply, "Service gw"), "hash", Ok(())), Ok(true));
        assert_eq!((memory.refused(), memory.waits()), (Vec::new(), None));
    }

    #[test]
    fn what_was_in_the_way_may_go_a_moment_later_than_it_is_told() {
        let mut memory = Memory::default();
        let mut waits = |retries: bool| {
            if retries {
                memory.retry();
            }
            let taken = memory.ended((Way::Apply, "Service gw"), "hash", answered(Failure::Refused));
            assert_eq!(taken, Ok(false));
            memory.waits().expect("it is tried again")
        };
        assert!(waits(false) > REFUSED_RETRY / 2);
        assert!(waits(true) <= MOVED_RETRY + RETRY_MARGIN);
        assert!(waits(false) > REFUSED_RETRY / 2, "once");
    }

    #[test]
    fn what_is_refused_waits_for_somebody_to_act_and_is_forgotten_when_it_is_not_due() {
        let mut memory = Memory::default();
        assert_eq!(memory.ended((Way::Delete, "Service gw"), "", answered(Failure::Forbidden)), Ok(false));
        assert!(memory.waits().is_some_and(|waits| waits > REFUSED_RETRY / 2));
        memory.keep(Way::Apply, |_| false);
        assert_eq!(memory.refused().len(), 1);
        memory.keep(Way::Delete, |_| false);
        assert_eq!(memory.refused(), []);
    }
}
