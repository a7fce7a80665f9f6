//! What the hub is, without any I/O: identities, twins, messages, methods, tokens, faults and the ledger.
//!
//! Synchronous and shared: each part has its own lock, none is held across an `await`, none takes another part's lock
//! while it holds its own (but cloud-to-device messages report to feedback). Times are arguments, in Unix milliseconds.

mod c2d;
mod clock;
mod connections;
mod error;
mod faults;
mod feedback;
mod glob;
mod hex;
mod identity;
mod ledger;
mod lock_queue;
mod mailbox;
mod methods;
mod policy;
mod registry;
mod sas;
mod sequence;
mod telemetry;
mod twin;
mod twin_document;
mod x509;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

pub use c2d::{Ack, C2d, C2dMessage, C2dSettings, LockLost, QueueFull};
pub use clock::{Clock, iso8601, parse_iso8601};
pub use connections::{ConnectionInfo, Connections, Order};
pub use error::{ErrorCode, HubError, tracking_id};
pub use faults::{Action, Fault, FaultStatus, Faults, Point, Redirect, device_fits};
pub use feedback::{Feedback, FeedbackBatch, FeedbackRecord, FeedbackSettings, FeedbackStatus};
pub use identity::{Identity, is_legal_id};
pub use ledger::{DeviceCounts, Entry as LedgerEntry, Kind, Ledger, Outcome, Query, Summary, Transfer};
pub use lock_queue::{LockToken, Locked};
pub use mailbox::{LinkKey, Listener, Mailbox};
pub use methods::{MethodCall, MethodError, MethodRequest, MethodResult, Methods, PAYLOAD_BYTES_MAX};
pub use policy::{Permissions, Policies, Policy, SharedKey};
pub use registry::{Authentication, IfMatch, Record, Registration, Registry, Stamp, Statistics, Status};
pub use sas::{AuthError, Claims, Proof, Resource, Scope, sign, verify, verify_plain};
pub use sequence::Sequence;
pub use telemetry::{Appended, Cursor, Event, Keep, StoredEvent, TelemetryLog, TelemetrySettings, id_text};
pub use twin::{Notification, Twin, TwinChange, Twins};
pub use twin_document::{Document, Object};
pub use x509::{ClientCertificate, DeviceAuthorities, parse_thumbprint};

/// The bounds and habits of a hub.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A token is taken so long after its `se`.
    pub sas_skew: Duration,
    /// Keys of policies by name, base64; random where none is given.
    pub policy_keys: BTreeMap<String, String>,
    /// Authorities of device certificates.
    pub device_authorities: Vec<CertificateDer<'static>>,
    /// Cloud-to-device queues.
    pub c2d: C2dSettings,
    /// Feedback batches.
    pub feedback: FeedbackSettings,
    /// The telemetry log.
    pub telemetry: TelemetrySettings,
    /// Entries of the ledger.
    pub ledger_entries_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sas_skew: Duration::from_mins(5),
            policy_keys: BTreeMap::new(),
            device_authorities: Vec::new(),
            c2d: C2dSettings::default(),
            feedback: FeedbackSettings::default(),
            telemetry: TelemetrySettings::default(),
            ledger_entries_max: 1_000_000,
        }
    }
}

/// The hub's state, shared by all its connections.
#[derive(Debug)]
pub struct Domain {
    /// The hub's name, as in connection strings and `sr` of tokens.
    pub host_name: String,
    /// Bounds and habits.
    pub settings: Settings,
    /// Time.
    pub clock: Clock,
    /// Devices and modules.
    pub registry: Registry,
    /// Shared access policies.
    pub policies: Policies,
    /// Whose certificates identify devices.
    pub authorities: DeviceAuthorities,
    /// Twins.
    pub twins: Twins,
    /// Cloud-to-device messages.
    pub c2d: C2d,
    /// Direct methods.
    pub methods: Methods,
    /// Device-to-cloud messages.
    pub telemetry: TelemetryLog,
    /// Feedback about cloud-to-device messages.
    pub feedback: Arc<Feedback>,
    /// Misbehaviour on request.
    pub faults: Faults,
    /// What the hub saw.
    pub ledger: Ledger,
    /// Open AMQP connections.
    pub connections: Connections,
    refuse_until_ms: watch::Sender<u64>,
    /// Serialises changes of the registry with what must follow in the other parts.
    registering: Mutex<()>,
}

impl Domain {
    /// An empty hub.
    ///
    /// # Errors
    /// Which key of a policy or which device authority is not usable.
    pub fn new(host_name: &str, settings: Settings) -> Result<Arc<Self>, String> {
        let feedback = Arc::new(Feedback::new(settings.feedback.clone()));
        Ok(Arc::new(Self {
            host_name: host_name.to_owned(),
            clock: Clock::default(),
            registry: Registry::default(),
            policies: Policies::new(&settings.policy_keys)?,
            authorities: DeviceAuthorities::new(&settings.device_authorities)?,
            twins: Twins::default(),
            c2d: C2d::new(settings.c2d.clone(), feedback.clone()),
            methods: Methods::default(),
            telemetry: TelemetryLog::new(settings.telemetry.clone()),
            feedback,
            faults: Faults::default(),
            ledger: Ledger::new(settings.telemetry.keep, settings.ledger_entries_max),
            connections: Connections::default(),
            refuse_until_ms: watch::Sender::new(0),
            registering: Mutex::default(),
            settings,
        }))
    }

    /// Registers an identity and gives it an empty twin.
    ///
    /// # Errors
    /// As [`Registry::create`].
    pub fn create_identity(&self, registration: Registration) -> Result<Record, HubError> {
        let _registering = self.registering.lock().unwrap_or_else(PoisonError::into_inner);
        let now_ms = self.clock.now_ms();
        let record = self.registry.create(registration, now_ms)?;
        self.twins.create(&record.registration.identity, now_ms);
        Ok(record)
    }

    /// Changes an identity; the links of one that is disabled now are detached.
    ///
    /// # Errors
    /// As [`Registry::update`].
    pub fn update_identity(&self, registration: Registration, if_match: &IfMatch) -> Result<Record, HubError> {
        let _registering = self.registering.lock().unwrap_or_else(PoisonError::into_inner);
        let record = self.registry.update(registration, if_match, self.clock.now_ms())?;
        if record.registration.status == Status::Disabled {
            let identity = record.registration.identity.clone();
            self.connections.order(&Order::Drop { identity, error: AuthError::Disabled.into() });
        }
        Ok(record)
    }

    /// Removes an identity with all that belongs to it: modules, twin, messages; its links are detached.
    ///
    /// # Errors
    /// As [`Registry::delete`].
    pub fn delete_identity(&self, identity: &Identity, if_match: &IfMatch) -> Result<(), HubError> {
        let _registering = self.registering.lock().unwrap_or_else(PoisonError::into_inner);
        for removed in self.registry.delete(identity, if_match)? {
            self.twins.delete(&removed);
            self.c2d.purge(&removed, self.clock.now_ms());
            let error = registry::not_found(&removed);
            self.connections.order(&Order::Drop { identity: removed, error });
        }
        Ok(())
    }

    /// Lets a fault stand, or, at [`Point::Now`], strike once at what is there. Returns its number; 0 for the latter,
    /// `None` if too many stand.
    pub fn inject(&self, fault: Fault) -> Option<u64> {
        if fault.point != Point::Now {
            return self.faults.add(fault);
        }
        if let Action::RefuseListen { ms } = fault.action {
            self.refuse_until_ms.send_replace(self.clock.now_ms() + ms);
        } else {
            self.connections.order(&Order::Fault { action: fault.action, device: fault.device });
        }
        Some(0)
    }

    /// The time until which new TCP connections are refused; changes wake the listeners.
    pub fn refuse_until_ms(&self) -> watch::Receiver<u64> {
        self.refuse_until_ms.subscribe()
    }

    /// Lets time pass: locks lapse, messages expire, feedback batches close. To be called a few times a second.
    pub fn tick(&self) {
        let now_ms = self.clock.now_ms();
        self.c2d.tick(now_ms);
        self.feedback.tick(now_ms);
    }
}
