//! The identity registry: devices and modules, how they prove themselves, whether they are connected.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use percent_encoding::percent_decode_str;

use super::error::{ErrorCode, HubError};
use super::identity::{Identity, is_legal_id};
use super::policy::SharedKey;
use super::sas::AuthError;

/// At most this many modules per device, as in the real hub.
const MODULES_PER_DEVICE_MAX: usize = 50;

/// Whether an identity may connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    /// It may.
    #[default]
    Enabled,
    /// It may not.
    Disabled,
}

/// How an identity proves itself.
#[derive(Clone, Debug)]
pub enum Authentication {
    /// A token signed with one of two keys.
    SymmetricKey {
        /// First key.
        primary: SharedKey,
        /// Second key, for rotation.
        secondary: SharedKey,
    },
    /// A certificate with one of these thumbprints (SHA-1 or SHA-256, hex digits, upper case).
    SelfSigned {
        /// First thumbprint.
        primary: Option<String>,
        /// Second thumbprint, for rotation.
        secondary: Option<String>,
    },
    /// A certificate issued by one of the hub's device authorities, with the device id as its common name.
    CertificateAuthority,
}

impl Authentication {
    /// A symmetric key pair, random.
    pub fn generated() -> Self {
        Self::SymmetricKey { primary: SharedKey::generate(), secondary: SharedKey::generate() }
    }
}

/// What one may say about an identity when creating or updating it.
#[derive(Clone, Debug)]
pub struct Registration {
    /// Which.
    pub identity: Identity,
    /// May it connect?
    pub status: Status,
    /// Text for people.
    pub status_reason: Option<String>,
    /// How it proves itself.
    pub authentication: Authentication,
    /// `capabilities.iotEdge`
    pub iot_edge: bool,
    /// `managedBy` of a module.
    pub managed_by: Option<String>,
}

impl Registration {
    /// An enabled identity with random keys.
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            status: Status::Enabled,
            status_reason: None,
            authentication: Authentication::generated(),
            iot_edge: false,
            managed_by: None,
        }
    }
}

/// An identity in the registry. Times are Unix milliseconds, 0 = never.
#[derive(Clone, Debug)]
pub struct Record {
    /// What was registered.
    pub registration: Registration,
    /// New with every creation of the same id.
    pub generation_id: Arc<str>,
    /// Changes with every update.
    pub etag: String,
    /// When `status` changed last.
    pub status_updated_ms: u64,
    /// How many links are attached now; "connected" is more than none.
    pub links: usize,
    /// When it became connected or disconnected.
    pub connection_updated_ms: u64,
    /// When it attached, detached or sent last.
    pub last_activity_ms: u64,
}

/// `If-Match` of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IfMatch {
    /// Header absent.
    Absent,
    /// `*`
    Any,
    /// This ETag, without quotes.
    Tag(String),
}

impl IfMatch {
    /// Whether an existing entity with this ETag may be changed; absent counts as any.
    pub fn admits(&self, etag: &str) -> bool {
        match self {
            Self::Absent | Self::Any => true,
            Self::Tag(tag) => tag == etag,
        }
    }
}

/// The identities, ordered by id; a device comes before its modules.
#[derive(Debug, Default)]
pub struct Registry {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<Identity, Record>,
    /// Counts creations and updates: generation ids and ETags come from it.
    changes: u64,
}

impl Registry {
    /// Creates an identity.
    ///
    /// # Errors
    /// `ArgumentInvalid` for an illegal id, `DeviceAlreadyExists`, `ModuleAlreadyExistsOnDevice`, `DeviceNotFound` for a
    /// module without its device.
    pub fn create(&self, registration: Registration, now_ms: u64) -> Result<Record, HubError> {
        let identity = registration.identity.clone();
        check_ids(&identity)?;
        let mut state = self.lock();
        if state.records.contains_key(&identity) {
            return Err(already_exists(&identity));
        }
        if identity.module.is_some() {
            if !state.records.contains_key(&identity.parent()) {
                return Err(not_found(&identity.parent()));
            }
            if modules_of(&state.records, &identity.device).count() >= MODULES_PER_DEVICE_MAX {
                return Err(HubError::new(ErrorCode::ArgumentInvalid, "a device has at most 50 modules"));
            }
        }
        state.changes += 1;
        let record = Record {
            registration,
            // the real one is the creation time in 100 ns steps; the counter keeps two creations in one ms apart
            generation_id: format!("6{:017}", now_ms * 100 + state.changes % 100).into(),
            etag: etag(state.changes),
            status_updated_ms: 0,
            links: 0,
            connection_updated_ms: 0,
            last_activity_ms: 0,
        };
        state.records.insert(identity, record.clone());
        Ok(record)
    }

    /// Replaces what is registered about an existing identity.
    ///
    /// # Errors
    /// `DeviceNotFound` / `ModuleNotFound`, `PreconditionFailed`.
    pub fn update(&self, registration: Registration, if_match: &IfMatch, now_ms: u64) -> Result<Record, HubError> {
        let mut state = self.lock();
        let change = state.changes + 1;
        let identity = registration.identity.clone();
        let record = state.records.get_mut(&identity).ok_or_else(|| not_found(&identity))?;
        check_etag(if_match, &record.etag)?;
        if record.registration.status != registration.status {
            record.status_updated_ms = now_ms;
        }
        record.registration = registration;
        record.etag = etag(change);
        let record = record.clone();
        state.changes = change;
        Ok(record)
    }

    /// Removes an identity, and the modules of a device. Returns all that were removed.
    ///
    /// # Errors
    /// `DeviceNotFound` / `ModuleNotFound`, `PreconditionFailed`.
    pub fn delete(&self, identity: &Identity, if_match: &IfMatch) -> Result<Vec<Identity>, HubError> {
        let mut state = self.lock();
        let record = state.records.get(identity).ok_or_else(|| not_found(identity))?;
        check_etag(if_match, &record.etag)?;
        let mut removed = vec![identity.clone()];
        if identity.module.is_none() {
            removed.extend(modules_of(&state.records, &identity.device).map(|(module, _)| module.clone()));
        }
        for identity in &removed {
            state.records.remove(identity);
        }
        Ok(removed)
    }

    /// The identity's record.
    pub fn get(&self, identity: &Identity) -> Option<Record> {
        self.lock().records.get(identity).cloned()
    }

    /// Whether the identity is registered.
    pub fn contains(&self, identity: &Identity) -> bool {
        self.lock().records.contains_key(identity)
    }

    /// # Errors
    /// `DeviceNotFound` / `ModuleNotFound`
    pub fn expect_registered(&self, identity: &Identity) -> Result<(), HubError> {
        if self.contains(identity) { Ok(()) } else { Err(not_found(identity)) }
    }

    /// The identity's status, if it is registered.
    pub fn status(&self, identity: &Identity) -> Option<Status> {
        self.lock().records.get(identity).map(|record| record.registration.status)
    }

    /// Whether the identity may use the hub now: it and its device are registered and enabled.
    ///
    /// # Errors
    /// `UnknownDevice`, `UnknownModule`, `Disabled`.
    pub fn admit(&self, identity: &Identity) -> Result<Stamp, AuthError> {
        let state = self.lock();
        let record = state.records.get(identity).ok_or_else(|| unknown(identity))?;
        let parent = state.records.get(&identity.parent()).ok_or(AuthError::UnknownDevice)?;
        if [record, parent].iter().any(|record| record.registration.status == Status::Disabled) {
            return Err(AuthError::Disabled);
        }
        Ok(Stamp { generation_id: record.generation_id.clone() })
    }

    /// The keys that may sign the identity's tokens; none for an identity with certificates.
    ///
    /// # Errors
    /// `UnknownDevice`, `UnknownModule`.
    pub fn keys(&self, identity: &Identity) -> Result<Vec<SharedKey>, AuthError> {
        let state = self.lock();
        let record = state.records.get(identity).ok_or_else(|| unknown(identity))?;
        Ok(match &record.registration.authentication {
            Authentication::SymmetricKey { primary, secondary } => vec![primary.clone(), secondary.clone()],
            _ => Vec::new(),
        })
    }

    /// The identity that these path segments name. Some clients encode special characters once too often
    /// (contract §5.1): an id that is not registered as given, but is when decoded once more, is the latter.
    pub fn resolve(&self, device: &str, module: Option<&str>) -> Identity {
        let identity = |device: &str, module: Option<&str>| match module {
            None => Identity::device(device),
            Some(module) => Identity::module(device, module),
        };
        let given = identity(device, module);
        if self.contains(&given) {
            return given;
        }
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let again = identity(&decoded(device), module.map(decoded).as_deref());
        if self.contains(&again) { again } else { given }
    }

    /// The first `count` devices by id.
    pub fn devices(&self, count: usize) -> Vec<Record> {
        let state = self.lock();
        state
            .records
            .values()
            .filter(|record| record.registration.identity.module.is_none())
            .take(count)
            .cloned()
            .collect()
    }

    /// The modules of a device.
    pub fn modules(&self, device: &str) -> Vec<Record> {
        modules_of(&self.lock().records, device).map(|(_, record)| record.clone()).collect()
    }

    /// One more link of this identity is attached.
    pub fn link_attached(&self, identity: &Identity, now_ms: u64) {
        if let Some(record) = self.lock().records.get_mut(identity) {
            record.links += 1;
            record.last_activity_ms = now_ms;
            if record.links == 1 {
                record.connection_updated_ms = now_ms;
            }
        }
    }

    /// A link of this identity is gone. Exactly one call for every [`Self::link_attached`].
    pub fn link_detached(&self, identity: &Identity, now_ms: u64) {
        if let Some(record) = self.lock().records.get_mut(identity) {
            // an identity that was deleted and created again starts at none while old links still go away
            record.links = record.links.saturating_sub(1);
            record.last_activity_ms = now_ms;
            if record.links == 0 {
                record.connection_updated_ms = now_ms;
            }
        }
    }

    /// Counts over all devices (modules apart).
    pub fn statistics(&self) -> Statistics {
        let state = self.lock();
        let mut statistics = Statistics::default();
        let mut connected = None;
        for (identity, record) in &state.records {
            if identity.module.is_none() {
                match record.registration.status {
                    Status::Enabled => statistics.enabled += 1,
                    Status::Disabled => statistics.disabled += 1,
                }
            }
            // a device and its modules are neighbours: count the device once
            if record.links > 0 && connected != Some(&identity.device) {
                connected = Some(&identity.device);
                statistics.connected += 1;
            }
        }
        statistics
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the hub stamps on an admitted identity's messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// `iothub-connection-auth-generation-id`
    pub generation_id: Arc<str>,
}

/// Numbers of devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Enabled ones.
    pub enabled: usize,
    /// Disabled ones.
    pub disabled: usize,
    /// Those with at least one link, their own or of a module.
    pub connected: usize,
}

/// `DeviceNotFound` or `ModuleNotFound`.
pub(super) fn not_found(identity: &Identity) -> HubError {
    unknown(identity).into()
}

pub(super) fn unknown(identity: &Identity) -> AuthError {
    if identity.module.is_some() { AuthError::UnknownModule } else { AuthError::UnknownDevice }
}

fn already_exists(identity: &Identity) -> HubError {
    match identity.module {
        None => HubError::new(ErrorCode::DeviceAlreadyExists, "a device with this id is already registered"),
        Some(_) => HubError::new(
            ErrorCode::ModuleAlreadyExistsOnDevice,
            "a module with this id is already registered on device",
        ),
    }
}

fn check_ids(identity: &Identity) -> Result<(), HubError> {
    let legal = is_legal_id(&identity.device) && identity.module.as_deref().is_none_or(is_legal_id);
    if legal { Ok(()) } else { Err(HubError::new(ErrorCode::ArgumentInvalid, "the id is not legal")) }
}

/// # Errors
/// `PreconditionFailed` if the ETag given is not the present one.
pub(super) fn check_etag(if_match: &IfMatch, etag: &str) -> Result<(), HubError> {
    if if_match.admits(etag) {
        return Ok(());
    }
    Err(HubError::new(ErrorCode::PreconditionFailed, "the ETag given is not the present one"))
}

fn etag(change: u64) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(change.to_be_bytes())
}

fn modules_of<'a>(
    records: &'a BTreeMap<Identity, Record>,
    device: &str,
) -> impl Iterator<Item = (&'a Identity, &'a Record)> + use<'a> {
    let device = Identity::device(device);
    let from = Bound::Excluded(device.clone());
    records.range((from, Bound::Unbounded)).take_while(move |(identity, _)| identity.device == device.device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(ids: &[Identity]) -> Registry {
        let registry = Registry::default();
        for id in ids {
            registry.create(Registration::new(id.clone()), 1_000).expect("new");
        }
        registry
    }

    #[test]
    fn modules_belong_to_their_device_only() {
        let registry = with(&[
            Identity::device("a"),
            Identity::device("ab"),
            Identity::module("a", "m1"),
            Identity::module("a", "m2"),
            Identity::module("ab", "m3"),
        ]);
        let names: Vec<_> = registry.modules("a").iter().map(|r| r.registration.identity.to_string()).collect();
        assert_eq!(names, ["a/m1", "a/m2"]);
        let removed = registry.delete(&Identity::device("a"), &IfMatch::Any).expect("there");
        assert_eq!(removed.len(), 3);
        assert!(registry.contains(&Identity::module("ab", "m3")));
    }

    #[test]
    fn an_id_registered_again_has_another_generation() {
        let registry = with(&[Identity::device("a")]);
        let first = registry.get(&Identity::device("a")).expect("there").generation_id;
        registry.delete(&Identity::device("a"), &IfMatch::Any).expect("there");
        let second = registry.create(Registration::new(Identity::device("a")), 1_000).expect("new").generation_id;
        assert_ne!(first, second);
    }

    #[test]
    fn a_stale_etag_does_not_update() {
        let registry = with(&[Identity::device("a")]);
        let stale = registry.get(&Identity::device("a")).expect("there").etag;
        let registration = Registration::new(Identity::device("a"));
        let tag = IfMatch::Tag(stale);
        registry.update(registration.clone(), &tag, 1_000).expect("first");
        let error = registry.update(registration, &tag, 1_000).expect_err("second");
        assert_eq!(error.code, ErrorCode::PreconditionFailed);
    }

    #[test]
    fn a_module_of_a_disabled_device_is_not_admitted() {
        let registry = with(&[Identity::device("a"), Identity::module("a", "m")]);
        assert!(registry.admit(&Identity::module("a", "m")).is_ok());
        let disabled = Registration { status: Status::Disabled, ..Registration::new(Identity::device("a")) };
        registry.update(disabled, &IfMatch::Any, 2_000).expect("there");
        assert_eq!(registry.admit(&Identity::module("a", "m")), Err(AuthError::Disabled));
        assert_eq!(registry.admit(&Identity::module("a", "x")), Err(AuthError::UnknownModule));
    }

    #[test]
    fn an_id_encoded_once_too_often_is_found() {
        let registry = with(&[Identity::device("dev+1=a:b"), Identity::device("50%25")]);
        assert_eq!(registry.resolve("dev%2B1%3Da%3Ab", None), Identity::device("dev+1=a:b"));
        assert_eq!(registry.resolve("50%25", None), Identity::device("50%25"));
    }

    #[test]
    fn a_device_is_counted_connected_once() {
        let registry = with(&[Identity::device("a"), Identity::module("a", "m"), Identity::device("b")]);
        registry.link_attached(&Identity::device("a"), 5);
        registry.link_attached(&Identity::module("a", "m"), 6);
        assert_eq!(registry.statistics(), Statistics { enabled: 2, disabled: 0, connected: 1 });
        registry.link_detached(&Identity::device("a"), 7);
        registry.link_detached(&Identity::module("a", "m"), 7);
        assert_eq!(registry.statistics().connected, 0);
    }
}
