//! The APIServices of `custom.metrics.k8s.io`. Both versions are one: if either is somebody else's, neither is ours.
//!
//! An APIService that nobody serves keeps namespaces from being deleted, in the whole cluster: ours are made only when this
//! operator serves, belong to an object that goes when it is uninstalled, and are removed when it is switched off.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt, stream::select};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    ByteString,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    kube_aggregator::pkg::apis::apiregistration::v1::{APIService, APIServiceSpec, ServiceReference},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    runtime::{WatchStreamExt, watcher::watch_object},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

use super::{
    Settings,
    owner::Owner,
    paths::{GROUP, Version},
};
use crate::{lease::Leadership, names, observe::CustomMetrics};

/// Label of what the operator made.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// After a write that failed.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// A look without a reason.
const LOOK_EVERY: Duration = Duration::from_mins(5);

/// While one of ours is not available.
const LOOK_AGAIN: Duration = Duration::from_secs(15);
/// For so long an HorizontalPodAutoscaler is left to wait.
const UNREACHABLE_AFTER: SignedDuration = SignedDuration::from_mins(2);

/// Name of a version's APIService.
pub fn name(version: Version) -> String {
    format!("{}.{GROUP}", version.name())
}

/// The APIServices that there are, by version.
pub type Existing = BTreeMap<Version, APIService>;

/// One write.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make one where there is none.
    Create(Box<APIService>),
    /// Put one of ours right.
    Apply(Box<APIService>),
    /// Remove one of ours, and no other.
    Remove {
        /// Its name.
        name: String,
        /// Its uid.
        uid: Option<String>,
    },
}

/// Where the API server finds this operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Namespace of the Service.
    pub namespace: String,
    /// The Service.
    pub service: String,
    /// Its port.
    pub port: u16,
}

/// What is to be registered.
#[derive(Debug, Clone, PartialEq)]
pub enum Wanted {
    /// Nothing: it is switched off.
    Nothing,
    /// Both versions, but not yet: this operator does not serve.
    Later,
    /// Both versions.
    Both {
        /// CA certificates to trust, PEM.
        bundle: Vec<u8>,
        /// Who owns them.
        owner: OwnerReference,
    },
}

/// Who serves the API, and what to write. `place` tells ours from those of others, other installations of this operator
/// among them; without one, none is ours. Pure.
pub fn decide(
    existing: &Existing,
    place: Option<&Place>,
    wanted: &Wanted,
    now: Timestamp,
) -> (CustomMetrics, Vec<Action>) {
    let is_ours = |service: &APIService| place.is_some_and(|place| is_ours(service, place));
    let (ours, foreign): (Vec<_>, Vec<_>) = existing.iter().partition(|(_, service)| is_ours(service));
    let remove = || ours.iter().map(|(_, service)| Action::Remove { name: service.name_any(), uid: service.uid() });
    if !foreign.is_empty() {
        return (CustomMetrics::Foreign, remove().collect());
    }
    let whole = Version::ALL.iter().all(|version| existing.contains_key(version));
    let who = match whole {
        true if existing.values().any(|service| is_unreachable(service, now)) => CustomMetrics::Unreachable,
        true => CustomMetrics::Ours,
        false => CustomMetrics::Nobody,
    };
    let (bundle, owner, place) = match (wanted, place) {
        (Wanted::Nothing, _) => return (CustomMetrics::Off, remove().collect()),
        (Wanted::Later, _) | (_, None) => return (who, Vec::new()),
        (Wanted::Both { bundle, owner }, Some(place)) => (bundle, owner, place),
    };
    let action = |version| {
        let target = service(version, place, bundle, owner);
        match existing.get(&version) {
            None => Some(Action::Create(Box::new(target))),
            Some(is) if is_as(is, &target) => None,
            Some(is) => {
                let resource_version = is.resource_version();
                let metadata = ObjectMeta { resource_version, ..target.metadata.clone() };
                Some(Action::Apply(Box::new(APIService { metadata, ..target })))
            }
        }
    };
    (who, Version::ALL.into_iter().filter_map(action).collect())
}

/// What has been served by nobody for longer than a registration takes cannot be registered: no HorizontalPodAutoscaler is left to
/// wait for it. Pure.
fn lasting(who: CustomMetrics, unserved_since: Option<Timestamp>, now: Timestamp) -> CustomMetrics {
    match unserved_since {
        Some(since) if is_unserved(who) && now >= since + UNREACHABLE_AFTER => CustomMetrics::Unregistered,
        _ => who,
    }
}

fn is_unserved(who: CustomMetrics) -> bool {
    matches!(who, CustomMetrics::Nobody | CustomMetrics::Unknown)
}

/// Made by this installation: with its label, and towards its Service.
fn is_ours(service: &APIService, place: &Place) -> bool {
    let labelled = service.labels().get(MANAGED_BY).is_some_and(|manager| manager == names::FIELD_MANAGER);
    let reference = service.spec.as_ref().and_then(|spec| spec.service.as_ref());
    labelled
        && reference.is_some_and(|reference| {
            reference.namespace.as_deref() == Some(&place.namespace)
                && reference.name.as_deref() == Some(&place.service)
        })
}

/// Why the API server does not pass requests on, since when. One that was just made was not looked at yet.
fn unavailable_since(service: &APIService) -> Option<Timestamp> {
    let conditions = service.status.as_ref()?.conditions.as_ref()?;
    let available =
        conditions.iter().find(|condition| condition.type_ == "Available" && condition.status == "False")?;
    available.last_transition_time.as_ref().map(|time| time.0)
}

/// Not reached for longer than a restart of the operator takes.
fn is_unreachable(service: &APIService, now: Timestamp) -> bool {
    unavailable_since(service).is_some_and(|since| now >= since + UNREACHABLE_AFTER)
}

fn is_as(is: &APIService, target: &APIService) -> bool {
    let uid =
        |service: &APIService| service.owner_references().iter().map(|owner| owner.uid.clone()).collect::<Vec<_>>();
    is.spec == target.spec && uid(is) == uid(target)
}

fn service(version: Version, place: &Place, bundle: &[u8], owner: &OwnerReference) -> APIService {
    let labels = [("app.kubernetes.io/name", names::OPERATOR_APP), (MANAGED_BY, names::FIELD_MANAGER)];
    APIService {
        metadata: ObjectMeta {
            name: Some(name(version)),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            owner_references: Some(vec![owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: Some(APIServiceSpec {
            group: Some(GROUP.to_owned()),
            version: Some(version.name().to_owned()),
            group_priority_minimum: 100,
            version_priority: if version == Version::V1Beta2 { 200 } else { 100 },
            service: Some(ServiceReference {
                namespace: Some(place.namespace.clone()),
                name: Some(place.service.clone()),
                port: Some(place.port.into()),
            }),
            ca_bundle: Some(ByteString(bundle.to_vec())),
            insecure_skip_tls_verify: None,
        }),
        status: None,
    }
}

/// Keeps the APIServices as [`decide`] says. Every replica looks; the leader writes.
pub(super) struct Registrar {
    pub(super) client: Client,
    pub(super) leadership: Leadership,
    pub(super) settings: Settings,
    pub(super) owner: Owner,
    /// Whom the API server must trust: PEM; known when this operator serves.
    pub(super) trusted: watch::Receiver<Option<Vec<u8>>>,
    /// Whether there should be any.
    pub(super) wanted: bool,
    pub(super) custom_metrics: watch::Sender<CustomMetrics>,
    /// Since when nobody serves it, or nothing is known of that.
    pub(super) unserved_since: Option<Timestamp>,
}

impl Registrar {
    /// Runs until dropped.
    pub(super) async fn run(mut self) {
        let api: Api<APIService> = Api::all(self.client.clone());
        let changes = |version| {
            let changes = watch_object(api.clone(), &name(version)).default_backoff();
            changes.map(move |change| (version, change)).boxed()
        };
        let [newer, older] = Version::ALL.map(changes);
        let mut changes = select(newer, older);
        let mut seen: BTreeMap<Version, Option<APIService>> = BTreeMap::new();
        let (mut leadership, mut trusts) = (self.leadership.clone(), true);
        let mut again = Instant::now() + LOOK_EVERY;
        loop {
            tokio::select! {
                Some((version, change)) = changes.next() => match change {
                    Ok(service) => drop(seen.insert(version, service)),
                    Err(error) => warn!(%error, "the APIServices of the metrics API cannot be watched"),
                },
                changed = self.trusted.changed(), if trusts => trusts = changed.is_ok(),
                _ = leadership.changed() => {}
                () = sleep_until(again) => {}
            }
            // nothing is said or written before both are known
            if seen.len() < Version::ALL.len() {
                self.tell(CustomMetrics::Unknown, &Existing::new());
                again = Instant::now() + LOOK_AGAIN;
                continue;
            }
            let existing = seen.iter().filter_map(|(version, service)| Some((*version, service.clone()?))).collect();
            let done = self.keep(&api, &existing).await;
            let unavailable = seen.values().flatten().any(|service| unavailable_since(service).is_some());
            let waits = unavailable || self.unserved_since.is_some();
            again = Instant::now()
                + match done {
                    false => RETRY_AFTER,
                    true if waits => LOOK_AGAIN,
                    true => LOOK_EVERY,
                };
        }
    }

    /// Says who serves, and writes what is to be written; whether nothing is left to do.
    async fn keep(&mut self, api: &Api<APIService>, existing: &Existing) -> bool {
        let leads = self.leadership.epoch().is_some();
        // Who does not lead does not write: who owns what it would write does not matter. That it is switched off does, from
        // the first moment of leading on.
        let wanted = if leads || !self.wanted { self.wanted().await } else { Ok(Wanted::Later) };
        let (wanted, mut done) = match wanted {
            Ok(wanted) => (wanted, true),
            Err(problem) => {
                warn!(problem, "the metrics API cannot be registered");
                (Wanted::Later, false)
            }
        };
        let (who, actions) = decide(existing, self.place().as_ref(), &wanted, Timestamp::now());
        self.tell(who, existing);
        for action in actions {
            if !leads {
                break;
            }
            match self.leadership.write(write(api, &action)).await {
                Ok(Ok(true)) => info!(action = action.name(), "the metrics API is registered anew"),
                Ok(Ok(false)) => debug!(action = action.name(), "somebody did it before"),
                Ok(Err(error)) => {
                    warn!(%error, action = action.name(), "the metrics API cannot be registered");
                    done = false;
                }
                Err(_) => return false,
            }
        }
        done
    }

    fn tell(&mut self, who: CustomMetrics, existing: &Existing) {
        let now = Timestamp::now();
        self.unserved_since = is_unserved(who).then(|| self.unserved_since.unwrap_or(now));
        let who = lasting(who, self.unserved_since, now);
        let changed = self.custom_metrics.send_if_modified(|before| std::mem::replace(before, who) != who);
        if changed && who == CustomMetrics::Unregistered {
            warn!("nobody serves custom.metrics.k8s.io and it cannot be registered: fleets are scaled through /scale");
        }
        if changed && who == CustomMetrics::Foreign {
            let served_by = existing.values().find_map(|service| service.spec.as_ref()?.service.as_ref());
            let served_by = served_by.map(|by| {
                format!("{}/{}", by.namespace.as_deref().unwrap_or_default(), by.name.as_deref().unwrap_or_default())
            });
            warn!(served_by, "custom.metrics.k8s.io is somebody else's and is left alone");
        }
    }

    fn place(&self) -> Option<Place> {
        let service = self.settings.service.clone()?;
        Some(Place { namespace: self.settings.namespace.clone(), service, port: self.settings.service_port })
    }

    async fn wanted(&self) -> Result<Wanted, String> {
        if !self.wanted {
            return Ok(Wanted::Nothing);
        }
        let Some(bundle) = self.trusted.borrow().clone() else { return Ok(Wanted::Later) };
        let owner = self.owner.reference().await.map_err(|error| format!("its owner: {error}"))?;
        let owner = owner.ok_or("there is no ClusterRole to own it: it would outlive the operator")?;
        Ok(Wanted::Both { bundle, owner })
    }
}

impl Action {
    fn name(&self) -> String {
        match self {
            Self::Create(service) => format!("create {}", service.name_any()),
            Self::Apply(service) => format!("apply {}", service.name_any()),
            Self::Remove { name, .. } => format!("remove {name}"),
        }
    }
}

/// `false`: somebody else did it before. The watch tells whose it is.
async fn write(api: &Api<APIService>, action: &Action) -> kube::Result<bool> {
    let manager = names::FIELD_MANAGER.to_owned();
    match action {
        // not applied: that would take over one that somebody made meanwhile
        Action::Create(service) => {
            let parameters = PostParams { field_manager: Some(manager), ..PostParams::default() };
            unless(api.create(&parameters, service).await, 409)
        }
        Action::Apply(service) => {
            let parameters = PatchParams::apply(&manager).force();
            api.patch(&service.name_any(), &parameters, &Patch::Apply(service)).await.map(|_| true)
        }
        Action::Remove { name, uid } => {
            let preconditions = Some(Preconditions { uid: uid.clone(), resource_version: None });
            unless(api.delete(name, &DeleteParams { preconditions, ..DeleteParams::default() }).await, 404)
        }
    }
}

fn unless<T>(answer: kube::Result<T>, done_before: u16) -> kube::Result<bool> {
    match answer {
        Err(kube::Error::Api(status)) if status.code == done_before => Ok(false),
        answer => answer.map(|_| true),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        apimachinery::pkg::apis::meta::v1::Time,
        kube_aggregator::pkg::apis::apiregistration::v1::{APIServiceCondition, APIServiceStatus},
    };

    use super::*;

    #[test]
    fn what_nobody_serves_for_two_minutes_is_not_waited_for() {
        let since = Timestamp::UNIX_EPOCH;
        let check = |who, since: Option<Timestamp>, seconds, expected| {
            let now = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds);
            assert_eq!(lasting(who, since, now), expected, "{who:?} since {since:?}, {seconds} s");
        };
        check(CustomMetrics::Nobody, None, 600, CustomMetrics::Nobody);
        check(CustomMetrics::Nobody, Some(since), 119, CustomMetrics::Nobody);
        check(CustomMetrics::Nobody, Some(since), 120, CustomMetrics::Unregistered);
        check(CustomMetrics::Unknown, Some(since), 120, CustomMetrics::Unregistered);
        for who in [CustomMetrics::Ours, CustomMetrics::Foreign, CustomMetrics::Off, CustomMetrics::Unreachable] {
            check(who, Some(since), 600, who);
        }
    }

    fn place(service: &str) -> Place {
        Place { namespace: "operators".to_owned(), service: service.to_owned(), port: 443 }
    }

    fn owner(uid: &str) -> OwnerReference {
        OwnerReference { kind: "ClusterRole".to_owned(), uid: uid.to_owned(), ..OwnerReference::default() }
    }

    fn both() -> Wanted {
        Wanted::Both { bundle: b"ca".to_vec(), owner: owner("1") }
    }

    fn ours(version: Version, bundle: &str, uid: &str) -> (Version, APIService) {
        (version, service(version, &place("operator"), bundle.as_bytes(), &owner(uid)))
    }

    /// Made by hand, as adapters are.
    fn foreign(version: Version) -> (Version, APIService) {
        let mut service = service(version, &place("adapter"), b"ca", &owner("2"));
        service.metadata.labels = None;
        (version, service)
    }

    fn check(existing: &[(Version, APIService)], wanted: &Wanted, who: CustomMetrics, actions: &[&str]) {
        let (found, decided) =
            decide(&existing.iter().cloned().collect(), Some(&place("operator")), wanted, Timestamp::UNIX_EPOCH);
        let names: Vec<String> = decided.iter().map(Action::name).collect();
        assert_eq!((found, names), (who, actions.iter().map(|&name| name.to_owned()).collect()));
    }

    const NEWER: Version = Version::V1Beta2;
    const OLDER: Version = Version::V1Beta1;

    #[test]
    fn both_versions_are_made_where_there_are_none_once_this_operator_serves() {
        let create = ["create v1beta2.custom.metrics.k8s.io", "create v1beta1.custom.metrics.k8s.io"];
        check(&[], &both(), CustomMetrics::Nobody, &create);
        check(&[], &Wanted::Later, CustomMetrics::Nobody, &[]);
        let existing = [ours(NEWER, "ca", "1"), ours(OLDER, "ca", "1")];
        check(&existing, &both(), CustomMetrics::Ours, &[]);
        check(&existing, &Wanted::Later, CustomMetrics::Ours, &[]);
        check(&existing[..1], &both(), CustomMetrics::Nobody, &create[1..]);
    }

    #[test]
    fn ours_follow_the_certificates_and_the_owner() {
        let apply = ["apply v1beta2.custom.metrics.k8s.io"];
        check(&[ours(NEWER, "old", "1"), ours(OLDER, "ca", "1")], &both(), CustomMetrics::Ours, &apply);
        check(&[ours(NEWER, "ca", "0"), ours(OLDER, "ca", "1")], &both(), CustomMetrics::Ours, &apply);
    }

    #[test]
    fn a_foreign_one_is_left_alone_and_ours_beside_it_goes() {
        check(&[foreign(OLDER)], &both(), CustomMetrics::Foreign, &[]);
        check(&[foreign(NEWER), foreign(OLDER)], &both(), CustomMetrics::Foreign, &[]);
        let mixed = [ours(NEWER, "ca", "1"), foreign(OLDER)];
        check(&mixed, &both(), CustomMetrics::Foreign, &["remove v1beta2.custom.metrics.k8s.io"]);
    }

    #[test]
    fn another_installation_of_this_operator_is_somebody_else() {
        let theirs = Existing::from([ours(NEWER, "ca", "1"), ours(OLDER, "ca", "1")]);
        for (place, wanted) in
            [(Some(place("another")), both()), (Some(place("another")), Wanted::Nothing), (None, Wanted::Nothing)]
        {
            let decided = decide(&theirs, place.as_ref(), &wanted, Timestamp::UNIX_EPOCH);
            assert_eq!(decided, (CustomMetrics::Foreign, Vec::new()), "{place:?}");
        }
    }

    #[test]
    fn what_somebody_did_before_is_done() {
        let answer =
            |code| Err::<(), _>(kube::Error::Api(kube::core::Status::failure("no", "Reason").with_code(code).boxed()));
        assert!(unless(Ok(()), 409).is_ok_and(|done| done));
        assert!(unless(answer(409), 409).is_ok_and(|done| !done), "another replica made it a moment ago");
        assert!(unless(answer(403), 409).is_err());
        assert!(unless(answer(409), 404).is_err(), "it is another one now");
    }

    #[test]
    fn switched_off_it_removes_its_own() {
        check(&[foreign(NEWER)], &Wanted::Nothing, CustomMetrics::Foreign, &[]);
        let remove = ["remove v1beta2.custom.metrics.k8s.io", "remove v1beta1.custom.metrics.k8s.io"];
        let both = [ours(NEWER, "ca", "1"), ours(OLDER, "ca", "1")];
        check(&both, &Wanted::Nothing, CustomMetrics::Off, &remove);
        check(&[], &Wanted::Nothing, CustomMetrics::Off, &[]);
    }

    #[test]
    fn what_the_api_server_does_not_reach_for_a_while_is_no_base_for_autoscalers() {
        let condition = |status: &str| APIServiceCondition {
            type_: "Available".to_owned(),
            status: status.to_owned(),
            last_transition_time: Some(Time(Timestamp::UNIX_EPOCH)),
            ..APIServiceCondition::default()
        };
        let check = |status: &str, after_s: i64, who: CustomMetrics| {
            let mut newer = ours(NEWER, "ca", "1");
            newer.1.status = Some(APIServiceStatus { conditions: Some(vec![condition(status)]) });
            let existing = Existing::from([newer, ours(OLDER, "ca", "1")]);
            let now = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(after_s);
            assert_eq!(
                decide(&existing, Some(&place("operator")), &both(), now),
                (who, Vec::new()),
                "{status} {after_s}"
            );
        };
        check("True", 3600, CustomMetrics::Ours);
        check("False", 119, CustomMetrics::Ours);
        check("False", 120, CustomMetrics::Unreachable);
    }
}
