//! What is on the API server, as the watches tell it: of each object only what a decision needs, in as little memory.
//!
//! It holds no data of a Secret. A ProtocolGateway that cannot be read is held as it is: reading comes later.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DynamicObject;
use serde_json::{Value, json};

use super::{Autoscalers, pods::SeenPod};
use crate::{
    kinds::{CONFIG_MAP, GATEWAY, Kind},
    names,
};

/// Namespace and name of an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// Namespace.
    pub namespace: String,
    /// Name in it.
    pub name: String,
}

impl Name {
    /// Of these two.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Of an object.
    pub fn of(metadata: &ObjectMeta) -> Self {
        Self::new(metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Whose an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A ProtocolGateway's, by name and uid.
    Gateway {
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
    },
    /// Labelled as the operator's and nobody's: an owner went and left it.
    Orphan {
        /// The ProtocolGateway that its labels name.
        instance: String,
    },
    /// Somebody else's.
    Other,
}

/// Whose an object of this metadata is.
pub fn owner(metadata: &ObjectMeta) -> Owner {
    // a Secret that the operator made and cert-manager took over
    if metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(names::CERT_MANAGER)) {
        return Owner::Other;
    }
    let controller = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    match controller {
        Some(owner) if owner.kind == crds::KIND && owner.api_version.starts_with(crds::GROUP) => {
            Owner::Gateway { name: owner.name.clone(), uid: owner.uid.clone() }
        }
        Some(_) => Owner::Other,
        None => {
            let label = |key: &str| metadata.labels.as_ref()?.get(key).cloned();
            let ours = label(names::MANAGED_BY).as_deref() == Some(names::FIELD_MANAGER);
            match label(names::INSTANCE).filter(|_| ours) {
                Some(instance) => Owner::Orphan { instance },
                None => Owner::Other,
            }
        }
    }
}

/// One object.
#[derive(Debug, PartialEq, Eq)]
pub struct Mirrored {
    /// Its uid.
    pub uid: String,
    /// Whose it is.
    pub owner: Owner,
    /// `metadata.generation`, 0 where there is none.
    pub generation: i64,
    /// Whether it is being deleted.
    pub ends: bool,
    /// When its data was written last, if that is known: of a ConfigMap.
    pub written: Option<Timestamp>,
    /// The object as JSON, without what changes by itself.
    body: Box<[u8]>,
}

impl Mirrored {
    fn new(kind: &Kind, object: DynamicObject) -> Self {
        let DynamicObject { metadata, mut data, .. } = object;
        if let Value::Object(fields) = &mut data {
            fields.insert("metadata".to_owned(), kept(&metadata, kind));
            if !kind.status {
                fields.remove("status");
            }
        }
        Self {
            owner: owner(&metadata),
            generation: metadata.generation.unwrap_or(0),
            ends: metadata.deletion_timestamp.is_some(),
            written: written(&metadata).filter(|_| *kind == CONFIG_MAP),
            uid: metadata.uid.unwrap_or_default(),
            body: data.to_string().into_bytes().into(),
        }
    }

    /// The object: metadata that is asked about, and all else.
    pub fn body(&self) -> Value {
        serde_json::from_slice(&self.body).expect("it was written from JSON")
    }
}

/// What is looked at of metadata. A ProtocolGateway's is read as a whole, others' is compared with what is applied.
fn kept(metadata: &ObjectMeta, kind: &Kind) -> Value {
    let mut kept = json!({"name": metadata.name, "namespace": metadata.namespace});
    let mut keep = |key: &str, value: Value| {
        if !value.is_null() {
            kept[key] = value;
        }
    };
    keep("annotations", json!(metadata.annotations));
    keep("labels", json!(metadata.labels));
    keep("ownerReferences", json!(metadata.owner_references));
    if *kind == crate::kinds::GATEWAY {
        keep("uid", json!(metadata.uid));
        keep("generation", json!(metadata.generation));
        keep("deletionTimestamp", json!(metadata.deletion_timestamp));
    }
    kept
}

/// When somebody wrote `data` so that it changed.
fn written(metadata: &ObjectMeta) -> Option<Timestamp> {
    let of_data = metadata.managed_fields.iter().flatten().filter(|entry| {
        let fields = entry.fields_v1.as_ref();
        fields.is_some_and(|fields| fields.0.get("f:data").is_some())
    });
    of_data.filter_map(|entry| Some(entry.time.as_ref()?.0)).max()
}

/// `metadata.resourceVersion` as the number that it is; 0 where it is none.
fn version(metadata: &ObjectMeta) -> u64 {
    metadata.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// So many objects that are gone are remembered of each kind: the answer to a write may come after the word that what was
/// written is gone, while the request lasts and no longer.
const GONE_MAX: usize = 512;

/// Everything that is watched. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Mirror(Arc<Mutex<Tables>>);

#[derive(Debug, Default)]
struct Tables {
    objects: HashMap<&'static str, HashMap<Name, Entry>>,
    /// Those that went last, with the version that they had then.
    gone: HashMap<&'static str, VecDeque<(Name, u64)>>,
    pods: HashMap<Name, BTreeMap<String, Arc<SeenPod>>>,
    /// What autoscalers that are not ours aim at, as kind and name.
    aims: HashMap<Name, (String, String)>,
}

#[derive(Debug)]
struct Entry {
    version: u64,
    object: Arc<Mirrored>,
}

impl Mirror {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The object, if it is there.
    pub fn get(&self, kind: &'static Kind, name: &Name) -> Option<Arc<Mirrored>> {
        Some(self.tables().objects.get(kind.name)?.get(name)?.object.clone())
    }

    /// The object with its `metadata.resourceVersion`, if it is there.
    pub fn versioned(&self, kind: &'static Kind, name: &Name) -> Option<(Arc<Mirrored>, String)> {
        let tables = self.tables();
        let entry = tables.objects.get(kind.name)?.get(name)?;
        Some((entry.object.clone(), entry.version.to_string()))
    }

    /// Names of all objects of a kind.
    pub fn names(&self, kind: &'static Kind) -> Vec<Name> {
        self.tables().objects.get(kind.name).map(|objects| objects.keys().cloned().collect()).unwrap_or_default()
    }

    /// Takes an object that was watched, or that a write was answered with. `Some` if that changes anything: the object
    /// before, if there was one, and as it is now. What is older than what is here is dropped.
    pub fn put(&self, kind: &'static Kind, object: DynamicObject) -> Option<(Option<Arc<Mirrored>>, Arc<Mirrored>)> {
        let (name, version) = (Name::of(&object.metadata), version(&object.metadata));
        let now = Arc::new(Mirrored::new(kind, object));
        let mut tables = self.tables();
        if tables.gone.get(kind.name).is_some_and(|gone| gone.iter().any(|(was, at)| *was == name && *at >= version)) {
            return None;
        }
        let objects = tables.objects.entry(kind.name).or_default();
        match objects.get_mut(&name) {
            Some(entry) if entry.version > version => None,
            Some(entry) => {
                entry.version = version;
                let before = std::mem::replace(&mut entry.object, now.clone());
                (before != now).then_some((Some(before), now))
            }
            None => {
                objects.insert(name, Entry { version, object: now.clone() });
                Some((None, now))
            }
        }
    }

    /// An object that was watched going, as it was then, if it was known. What it was before is not taken any more.
    pub fn went(&self, kind: &'static Kind, metadata: &ObjectMeta) -> Option<Arc<Mirrored>> {
        let name = Name::of(metadata);
        let mut tables = self.tables();
        let gone = tables.gone.entry(kind.name).or_default();
        gone.retain(|(was, _)| *was != name);
        gone.truncate(GONE_MAX - 1);
        gone.push_front((name.clone(), version(metadata)));
        Some(tables.objects.get_mut(kind.name)?.remove(&name)?.object)
    }

    /// Whether the ProtocolGateway that owns an object of this metadata is there, and not about to go.
    pub fn has_owner(&self, metadata: &ObjectMeta) -> bool {
        let Owner::Gateway { name, uid } = owner(metadata) else { return false };
        let gateway = self.get(&GATEWAY, &Name::new(metadata.namespace.as_deref().unwrap_or_default(), name));
        gateway.is_some_and(|gateway| gateway.uid == uid && !gateway.ends)
    }

    /// An object that is gone, if it was known.
    pub fn remove(&self, kind: &'static Kind, name: &Name) -> Option<Arc<Mirrored>> {
        Some(self.tables().objects.get_mut(kind.name)?.remove(name)?.object)
    }

    /// Takes an autoscaler that is not ours, or is gone, with what it aims at; the fleets that this concerns.
    pub fn put_autoscaler(&self, autoscaler: &Name, aim: Option<(String, String)>) -> Vec<Name> {
        let mut tables = self.tables();
        let before = match aim.clone() {
            Some(aim) => tables.aims.insert(autoscaler.clone(), aim),
            None => tables.aims.remove(autoscaler),
        };
        if before == aim {
            return Vec::new();
        }
        let concerned = before.into_iter().chain(aim);
        concerned.map(|(_, name)| Name::new(&autoscaler.namespace, name)).collect()
    }

    /// Names of all autoscalers that are not ours.
    pub fn autoscaler_names(&self) -> Vec<Name> {
        self.tables().aims.keys().cloned().collect()
    }

    /// Autoscalers that are not ours and aim at a fleet. There are few of them.
    pub fn autoscalers(&self, fleet: &Name) -> Autoscalers {
        let tables = self.tables();
        let mut found = Autoscalers::default();
        for (autoscaler, (kind, name)) in &tables.aims {
            let title = || format!("HorizontalPodAutoscaler {}", autoscaler.name);
            match kind.as_str() {
                _ if autoscaler.namespace != fleet.namespace || *name != fleet.name => {}
                "Deployment" => drop(found.of_deployment.insert(title())),
                crds::KIND => drop(found.of_gateway.insert(title())),
                _ => {}
            }
        }
        found
    }

    /// Takes a pod of a fleet; whether that changes anything.
    pub fn put_pod(&self, fleet: &Name, pod: SeenPod) -> bool {
        let mut tables = self.tables();
        let pods = tables.pods.entry(fleet.clone()).or_default();
        let same = pods.get(&pod.facts.name).is_some_and(|before| **before == pod);
        if !same {
            pods.insert(pod.facts.name.clone(), Arc::new(pod));
        }
        !same
    }

    /// A pod that is gone; whether it was known.
    pub fn remove_pod(&self, fleet: &Name, pod: &str) -> bool {
        let mut tables = self.tables();
        let Some(pods) = tables.pods.get_mut(fleet) else { return false };
        let known = pods.remove(pod).is_some();
        if pods.is_empty() {
            tables.pods.remove(fleet);
        }
        known
    }

    /// A fleet's pods, by name.
    pub fn pods(&self, fleet: &Name) -> Vec<Arc<SeenPod>> {
        self.tables().pods.get(fleet).map(|pods| pods.values().cloned().collect()).unwrap_or_default()
    }

    /// Every pod that is known, by fleet and name.
    pub fn pod_names(&self) -> Vec<(Name, String)> {
        let tables = self.tables();
        let all = tables.pods.iter();
        all.flat_map(|(fleet, pods)| pods.keys().map(|pod| (fleet.clone(), pod.clone()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    fn config_map(version: &str, value: &str) -> DynamicObject {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "a", "namespace": "n", "uid": "u", "resourceVersion": version, "managedFields": []},
            "data": {"k": value},
        });
        serde_json::from_value(object).expect("it is an object")
    }

    #[test]
    fn what_is_older_than_what_is_known_is_dropped_and_what_is_the_same_changes_nothing() {
        let mirror = Mirror::default();
        let kind = kinds::Kind::owned("ConfigMap").expect("it is owned");
        let name = Name::new("n", "a");
        assert!(mirror.put(kind, config_map("5", "x")).is_some());
        assert!(mirror.put(kind, config_map("6", "x")).is_none(), "only its version is new");
        assert!(mirror.put(kind, config_map("5", "y")).is_none(), "it is older");
        assert_eq!(mirror.get(kind, &name).expect("it is there").body()["data"]["k"], "x");
        let (before, now) = mirror.put(kind, config_map("10", "y")).expect("it is newer, by number and not by text");
        assert_eq!(
            (before.expect("it was there").body()["data"]["k"].as_str(), now.body()["data"]["k"].as_str()),
            (Some("x"), Some("y"))
        );
        assert!(mirror.remove(kind, &name).is_some());
        assert!(mirror.remove(kind, &name).is_none());
    }

    #[test]
    fn an_answer_that_comes_after_the_word_that_its_object_is_gone_is_dropped() {
        let mirror = Mirror::default();
        let kind = kinds::Kind::owned("ConfigMap").expect("it is owned");
        let name = Name::new("n", "a");
        mirror.put(kind, config_map("5", "x"));
        assert!(mirror.went(kind, &config_map("7", "x").metadata).is_some());
        assert!(mirror.put(kind, config_map("6", "y")).is_none());
        assert!(mirror.get(kind, &name).is_none(), "it would stay for ever");
        assert!(mirror.put(kind, config_map("8", "z")).is_some(), "it is made anew");
        assert!(mirror.went(kind, &config_map("9", "z").metadata).is_some());
        for number in 0..GONE_MAX {
            let mut other = config_map("20", "");
            other.metadata.name = Some(number.to_string());
            assert!(mirror.went(kind, &other.metadata).is_none());
        }
        assert_eq!(mirror.tables().gone[kind.name].len(), GONE_MAX);
    }

    #[test]
    fn nothing_is_written_for_a_gateway_that_is_gone_or_about_to_go() {
        let mirror = Mirror::default();
        let mut object = config_map("5", "x").metadata;
        let owner = json!([{"apiVersion": crds::API_VERSION, "kind": crds::KIND, "name": "gw", "uid": "1", "controller": true}]);
        object.owner_references = serde_json::from_value(owner).expect("it is an owner");
        assert!(!mirror.has_owner(&object), "it is not there yet");
        for (version, uid, ends, expected) in
            [("6", "1", None, true), ("7", "1", Some("2026-01-01T00:00:00Z"), false), ("8", "2", None, false)]
        {
            let metadata = json!({
                "name": "gw", "namespace": "n", "uid": uid, "resourceVersion": version, "deletionTimestamp": ends,
            });
            let gateway = json!({"apiVersion": crds::API_VERSION, "kind": crds::KIND, "metadata": metadata});
            mirror.put(&GATEWAY, serde_json::from_value(gateway).expect("it is an object"));
            assert_eq!(mirror.has_owner(&object), expected, "{uid} {ends:?}");
        }
    }

    #[test]
    fn it_is_known_when_a_config_map_was_written_and_not_when_it_was_labelled() {
        let entry = |field: &str, time: &str| json!({"manager": "m", "operation": "Update", "time": time, "fieldsV1": {field: {}}});
        let mut object = config_map("1", "x");
        let fields = [
            entry("f:data", "2026-01-01T00:00:00Z"),
            entry("f:data", "2026-01-02T00:00:00Z"),
            entry("f:metadata", "2026-01-03T00:00:00Z"),
        ];
        object.metadata.managed_fields = serde_json::from_value(json!(fields)).expect("they are entries");
        let written = |kind| Mirrored::new(kind, object.clone()).written.map(|time| time.to_string());
        assert_eq!(written(&CONFIG_MAP).as_deref(), Some("2026-01-02T00:00:00Z"));
        assert_eq!(written(&kinds::SECRET), None);
    }

    #[test]
    fn autoscalers_of_others_are_known_by_what_they_aim_at() {
        let (mirror, fleet, own) = (Mirror::default(), Name::new("n", "gw"), Name::new("n", "own"));
        let aim = |kind: &str| Some((kind.to_owned(), "gw".to_owned()));
        assert_eq!(mirror.put_autoscaler(&own, aim("Deployment")), std::slice::from_ref(&fleet));
        assert_eq!(mirror.put_autoscaler(&own, aim("Deployment")), []);
        let expected = ["HorizontalPodAutoscaler own".to_owned()].into();
        assert_eq!(mirror.autoscalers(&fleet), Autoscalers { of_deployment: expected, ..Autoscalers::default() });
        assert_eq!(mirror.autoscalers(&Name::new("m", "gw")), Autoscalers::default());
        assert!(!mirror.put_autoscaler(&own, aim(crds::KIND)).is_empty());
        assert_eq!(mirror.autoscalers(&fleet).of_gateway.len(), 1);
        assert_eq!(mirror.put_autoscaler(&own, None), std::slice::from_ref(&fleet));
        assert_eq!(mirror.autoscalers(&fleet), Autoscalers::default());
    }

    #[test]
    fn an_object_is_its_controllers_or_that_of_its_labels_if_it_has_none() {
        let metadata = |value: Value| serde_json::from_value::<ObjectMeta>(value).expect("it is metadata");
        let reference = |kind: &str, version: &str| json!([{"apiVersion": version, "kind": kind, "name": "gw", "uid": "1", "controller": true}]);
        let labels = json!({"app.kubernetes.io/managed-by": names::FIELD_MANAGER, "app.kubernetes.io/instance": "gw"});
        let check = |value: Value, expected: Owner| assert_eq!(owner(&metadata(value)), expected);
        let gateway = Owner::Gateway { name: "gw".to_owned(), uid: "1".to_owned() };
        check(json!({"ownerReferences": reference(crds::KIND, crds::API_VERSION)}), gateway);
        check(json!({"ownerReferences": reference("Other", "v1"), "labels": labels}), Owner::Other);
        check(json!({"labels": labels}), Owner::Orphan { instance: "gw".to_owned() });
        check(json!({"labels": {"app.kubernetes.io/managed-by": "Helm"}}), Owner::Other);
        check(json!({}), Owner::Other);
    }
}
