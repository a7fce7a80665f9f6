//! Device and module twins: desired and reported properties, tags, notifications (contract §2.9, §3.7, §4.3).

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::error::{ErrorCode, HubError};
use super::identity::Identity;
use super::mailbox::Listener;
use super::registry::{IfMatch, check_etag, not_found};
use super::twin_document::{Document, Object, without_system_keys};

const PROPERTIES_BYTES_MAX: usize = 32 * 1024;
const TAGS_BYTES_MAX: usize = 8 * 1024;
/// Notifications that wait for one link; the oldest are dropped: they are never promised (contract trap 16).
const NOTIFICATIONS_MAX: usize = 64;

/// A change of desired properties, for a device that subscribed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// `version` annotation.
    pub version: u64,
    /// The patch as JSON text, `$version` included.
    pub body: String,
}

/// A twin as the service sees it, without what the registry adds.
#[derive(Clone, Debug)]
pub struct Twin {
    /// Set by the service.
    pub desired: Document,
    /// Set by the device.
    pub reported: Document,
    /// Set by the service, never seen by the device.
    pub tags: Document,
    /// Rises by one with every change of desired properties or tags.
    pub version: u64,
    /// DTDL model the device named when it attached.
    pub model_id: Option<String>,
}

impl Twin {
    /// Changes with desired properties and tags.
    pub fn etag(&self) -> String {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(self.version.to_be_bytes())
    }
}

/// What the service wants changed; absent parts stay.
#[derive(Clone, Debug, Default)]
pub struct TwinChange {
    /// New tags (patch or whole).
    pub tags: Option<Object>,
    /// New desired properties (patch or whole).
    pub desired: Option<Object>,
}

/// All twins.
#[derive(Debug, Default)]
pub struct Twins {
    entries: Mutex<HashMap<Identity, Entry>>,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    twin: Twin,
    subscriber: Option<Listener>,
    notifications: VecDeque<Notification>,
}

impl Twins {
    /// A new, empty twin. An older one of the same identity is forgotten.
    pub fn create(&self, identity: &Identity, now_ms: u64) {
        let twin = Twin {
            desired: Document::new(PROPERTIES_BYTES_MAX, now_ms),
            reported: Document::new(PROPERTIES_BYTES_MAX, now_ms),
            tags: Document::new(TAGS_BYTES_MAX, now_ms),
            version: 1,
            model_id: None,
        };
        let entry = Entry { twin, subscriber: None, notifications: VecDeque::new() };
        self.lock().insert(identity.clone(), entry);
    }

    /// Forgets the twin.
    pub fn delete(&self, identity: &Identity) {
        self.lock().remove(identity);
    }

    /// The device's `GET`: `{"desired":{…,"$version":n},"reported":{…,"$version":m}}`.
    ///
    /// # Errors
    /// `DeviceNotFound` / `ModuleNotFound`
    pub fn device_json(&self, identity: &Identity) -> Result<String, HubError> {
        self.with(identity, |entry| {
            let twin = &entry.twin;
            json!({"desired": twin.desired.device_json(), "reported": twin.reported.device_json()}).to_string()
        })
    }

    /// The device's `PATCH /properties/reported` with its body. `if_version` is the optional version it builds on.
    /// Returns the new version.
    ///
    /// # Errors
    /// `ArgumentInvalid`, `MessageTooLarge`, `PreconditionFailed` if `if_version` is not the present one, `…NotFound`.
    /// The twin status is the code's HTTP status, the body its description.
    pub fn patch_reported(
        &self,
        identity: &Identity,
        body: &[u8],
        if_version: Option<u64>,
        now_ms: u64,
    ) -> Result<u64, HubError> {
        let patch = parse_object(body)?;
        self.with(identity, |entry| {
            let reported = &mut entry.twin.reported;
            if if_version.is_some_and(|version| version != reported.version) {
                return Err(HubError::new(ErrorCode::PreconditionFailed, "the version given is not the present one"));
            }
            reported.merge(&patch, now_ms)
        })?
    }

    /// The twin.
    ///
    /// # Errors
    /// `DeviceNotFound` / `ModuleNotFound`
    pub fn get(&self, identity: &Identity) -> Result<Twin, HubError> {
        self.with(identity, |entry| entry.twin.clone())
    }

    /// The service's `PATCH`: merges, and notifies the device of changed desired properties.
    ///
    /// # Errors
    /// `ArgumentInvalid`, `MessageTooLarge`, `PreconditionFailed`, `…NotFound`; nothing is changed then.
    pub fn patch(
        &self,
        identity: &Identity,
        change: &TwinChange,
        if_match: &IfMatch,
        now_ms: u64,
    ) -> Result<Twin, HubError> {
        self.change(identity, change, if_match, |document, part| {
            document.merge(part, now_ms)?;
            Ok(part.clone())
        })
    }

    /// The service's `PUT`: replaces. The device is notified of the whole document, removed keys as null.
    ///
    /// # Errors
    /// As [`Self::patch`].
    pub fn replace(
        &self,
        identity: &Identity,
        change: &TwinChange,
        if_match: &IfMatch,
        now_ms: u64,
    ) -> Result<Twin, HubError> {
        self.change(identity, change, if_match, |document, part| document.replace(part, now_ms))
    }

    /// The device named its DTDL model.
    pub fn set_model_id(&self, identity: &Identity, model_id: &str) {
        // a twin deleted meanwhile has no model
        let _ = self.with(identity, |entry| entry.twin.model_id = Some(model_id.to_owned()));
    }

    /// From now on this link gets notifications. Returns the link that got them before, if it is another.
    ///
    /// # Errors
    /// `DeviceNotFound` / `ModuleNotFound`
    pub fn subscribe(&self, identity: &Identity, subscriber: Listener) -> Result<Option<Listener>, HubError> {
        self.with(identity, |entry| {
            let previous =
                entry.subscriber.replace(subscriber).filter(|previous| Some(previous) != entry.subscriber.as_ref());
            if previous.is_some() {
                entry.notifications.clear();
            }
            previous
        })
    }

    /// This link gets no more notifications; those that wait are dropped.
    pub fn unsubscribe(&self, identity: &Identity, subscriber: &Listener) {
        // a twin deleted meanwhile has no subscriber
        let _ = self.with(identity, |entry| {
            if entry.subscriber.take_if(|present| present == subscriber).is_some() {
                entry.notifications.clear();
            }
        });
    }

    /// The notifications that wait for this link, oldest first.
    pub fn take_notifications(&self, identity: &Identity, subscriber: &Listener) -> Vec<Notification> {
        self.with(identity, |entry| match &entry.subscriber {
            Some(present) if present == subscriber => entry.notifications.drain(..).collect(),
            _ => Vec::new(),
        })
        .unwrap_or_default()
    }

    /// Notifications dropped because a link did not take them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn change(
        &self,
        identity: &Identity,
        change: &TwinChange,
        if_match: &IfMatch,
        apply: impl Fn(&mut Document, &Object) -> Result<Object, HubError>,
    ) -> Result<Twin, HubError> {
        self.with(identity, |entry| {
            check_etag(if_match, &entry.twin.etag())?;
            let mut twin = entry.twin.clone();
            if let Some(tags) = &change.tags {
                apply(&mut twin.tags, &without_system_keys(tags))?;
            }
            let desired = change.desired.as_ref().map(without_system_keys);
            let patch = desired.map(|desired| apply(&mut twin.desired, &desired)).transpose()?;
            twin.version += 1;
            entry.twin = twin;
            if let Some(patch) = patch {
                self.notify(entry, patch);
            }
            Ok(entry.twin.clone())
        })?
    }

    fn notify(&self, entry: &mut Entry, mut patch: Object) {
        let Some(subscriber) = &entry.subscriber else { return };
        let version = entry.twin.desired.version;
        patch.insert("$version".to_owned(), json!(version));
        if entry.notifications.len() >= NOTIFICATIONS_MAX {
            entry.notifications.pop_front();
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        entry.notifications.push_back(Notification { version, body: Value::Object(patch).to_string() });
        subscriber.wake();
    }

    fn with<T>(&self, identity: &Identity, f: impl FnOnce(&mut Entry) -> T) -> Result<T, HubError> {
        self.lock().get_mut(identity).map(f).ok_or_else(|| not_found(identity))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Identity, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse_object(body: &[u8]) -> Result<Object, HubError> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(without_system_keys(&object)),
        Ok(_) => Err(HubError::new(ErrorCode::ArgumentInvalid, "the body is not a JSON object")),
        Err(_) => Err(HubError::new(ErrorCode::ArgumentInvalid, "the body is not JSON")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::mailbox::{LinkKey, Mailbox};

    fn twins() -> (Twins, Identity) {
        let (twins, device) = (Twins::default(), Identity::device("a"));
        twins.create(&device, 1_000);
        (twins, device)
    }

    fn desired(json: &Value) -> TwinChange {
        TwinChange { desired: json.as_object().cloned(), tags: None }
    }

    fn subscribed(twins: &Twins, device: &Identity) -> (Arc<Mailbox>, Listener) {
        let mailbox = Mailbox::new();
        let link = Listener::new(&mailbox, LinkKey(1));
        assert_eq!(twins.subscribe(device, link.clone()), Ok(None));
        (mailbox, link)
    }

    #[test]
    fn a_change_with_a_stale_etag_is_refused_and_changes_nothing() {
        let (twins, device) = twins();
        let stale = IfMatch::Tag(twins.get(&device).expect("there").etag());
        twins.patch(&device, &desired(&json!({"a": 1})), &stale, 2_000).expect("fresh then");
        let refused = twins.patch(&device, &desired(&json!({"a": 2})), &stale, 3_000).expect_err("stale now");
        assert_eq!(refused.code, ErrorCode::PreconditionFailed);
        let twin = twins.get(&device).expect("there");
        assert_eq!((twin.version, twin.desired.version, &twin.desired.properties["a"]), (2, 2, &json!(1)));
        twins.replace(&device, &desired(&json!({})), &IfMatch::Any, 4_000).expect("any");
    }

    #[test]
    fn a_change_that_fails_in_one_part_changes_no_part() {
        let (twins, device) = twins();
        let tags = json!({"t": 1}).as_object().cloned();
        let bad = TwinChange { tags, desired: json!({"a.b": 1}).as_object().cloned() };
        assert!(twins.patch(&device, &bad, &IfMatch::Absent, 2_000).is_err());
        assert!(twins.get(&device).expect("there").tags.properties.is_empty());
    }

    #[test]
    fn the_device_sees_desired_and_reported_but_no_tags() {
        let (twins, device) = twins();
        let change = TwinChange { tags: json!({"t": 1}).as_object().cloned(), ..desired(&json!({"d": 2})) };
        twins.patch(&device, &change, &IfMatch::Absent, 2_000).expect("legal");
        assert_eq!(twins.patch_reported(&device, br#"{"r":3}"#, None, 3_000), Ok(2));
        let json: Value = serde_json::from_str(&twins.device_json(&device).expect("there")).expect("JSON");
        assert_eq!(json, json!({"desired": {"d": 2, "$version": 2}, "reported": {"r": 3, "$version": 2}}));
    }

    #[test]
    fn a_reported_patch_is_checked_for_form_and_version() {
        let (twins, device) = twins();
        for (body, version, expected) in [
            (&b"[1]"[..], None, Err(ErrorCode::ArgumentInvalid)),
            (b"", None, Err(ErrorCode::ArgumentInvalid)),
            (br#"{"a":1}"#, Some(7), Err(ErrorCode::PreconditionFailed)),
            (br#"{"a":1}"#, Some(1), Ok(2)),
            (br#"{"a":null}"#, None, Ok(3)),
        ] {
            let result = twins.patch_reported(&device, body, version, 2_000).map_err(|error| error.code);
            assert_eq!(result, expected, "{body:?}");
        }
        let unknown = twins.patch_reported(&Identity::device("b"), b"{}", None, 2_000).map_err(|error| error.code);
        assert_eq!(unknown, Err(ErrorCode::DeviceNotFound));
    }

    #[test]
    fn a_subscribed_device_hears_of_each_change_with_its_version() {
        let (twins, device) = twins();
        let (mailbox, link) = subscribed(&twins, &device);
        twins.patch(&device, &desired(&json!({"a": 1, "b": 2})), &IfMatch::Absent, 2_000).expect("legal");
        twins.replace(&device, &desired(&json!({"b": 3})), &IfMatch::Absent, 3_000).expect("legal");
        assert_eq!(mailbox.take(), [LinkKey(1)]);
        let bodies: Vec<Value> = twins
            .take_notifications(&device, &link)
            .iter()
            .map(|notification| serde_json::from_str(&notification.body).expect("JSON"))
            .collect();
        assert_eq!(bodies, [json!({"a": 1, "b": 2, "$version": 2}), json!({"a": null, "b": 3, "$version": 3})]);
        assert!(twins.take_notifications(&device, &link).is_empty());
    }

    #[test]
    fn changes_of_tags_and_changes_while_away_are_not_notified() {
        let (twins, device) = twins();
        twins.patch(&device, &desired(&json!({"a": 1})), &IfMatch::Absent, 2_000).expect("legal");
        let (mailbox, link) = subscribed(&twins, &device);
        let tags = TwinChange { tags: json!({"t": 1}).as_object().cloned(), desired: None };
        twins.patch(&device, &tags, &IfMatch::Absent, 2_000).expect("legal");
        assert!(mailbox.take().is_empty());
        twins.unsubscribe(&device, &link);
        twins.patch(&device, &desired(&json!({"a": 2})), &IfMatch::Absent, 2_000).expect("legal");
        assert!(mailbox.take().is_empty());
    }

    #[test]
    fn a_link_that_takes_nothing_loses_the_oldest_notifications() {
        let (twins, device) = twins();
        let (_mailbox, link) = subscribed(&twins, &device);
        for n in 0..70 {
            twins.patch(&device, &desired(&json!({"n": n})), &IfMatch::Absent, 2_000).expect("legal");
        }
        let waiting = twins.take_notifications(&device, &link);
        assert_eq!((waiting.len(), twins.dropped()), (64, 6));
        assert_eq!(waiting.last().map(|notification| notification.version), Some(71));
    }
}
