//! Which of the operator's replicas writes: the one that holds the Lease. All others watch and serve.
//!
//! [`election`] decides; here are the requests. An operator at rest writes this Lease and nothing else: every third of its
//! duration, 12 times a minute at 15 s.

pub mod election;

use std::{
    future::Future,
    time::{Duration, Instant},
};

use aws_lc_rs::rand;
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, ResourceExt as _, api::PostParams};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep_until, timeout, timeout_at},
};
use tracing::{debug, info, warn};

use self::election::{Action, Election, Failure, Record, Settings, Term, Write};
use crate::{metrics::Metrics, secrets::hex};

/// How long giving the Lease back may take.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);
/// A failure is told in the log when so many came in a row: one is nothing.
const FAILURES_TOLD: u32 = 3;

/// Whether this replica leads. Cheap to clone; does not believe in a term longer than it lasts, whoever is asleep.
#[derive(Debug, Clone)]
pub struct Leadership {
    term: watch::Receiver<Option<Term>>,
    /// A write that is begun in the last moment of a term may take this long.
    margin: Duration,
}

/// This replica does not lead, or did not until the end of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another replica leads")]
pub struct NotLeading;

impl Leadership {
    /// What grows from leader to leader, if this replica leads now. Every write is preceded by a look at it.
    pub fn epoch(&self) -> Option<i64> {
        self.current().map(|term| term.epoch)
    }

    /// Waits until leadership comes, goes or changes its epoch; says which it is then.
    pub async fn changed(&mut self) -> Option<i64> {
        match self.term.changed().await {
            Ok(()) => self.epoch(),
            // the election ended: nothing comes any more, and what is goes by itself
            Err(_) => std::future::pending().await,
        }
    }

    /// Carries out a write of the leader, and gives up on it before another replica may lead.
    ///
    /// # Errors
    /// [`NotLeading`]: it was not begun, or it may have been done or not.
    pub async fn write<T>(&self, write: impl Future<Output = T>) -> Result<T, NotLeading> {
        let term = self.current().ok_or(NotLeading)?;
        timeout_at((term.until + self.margin).into(), write).await.map_err(|_| NotLeading)
    }

    /// One that never changes: for programs without replicas, and tests.
    pub fn fixed(epoch: Option<i64>) -> Self {
        let until = Instant::now() + Duration::from_hours(24 * 365);
        let (_, term) = watch::channel(epoch.map(|epoch| Term { epoch, renewal: until, until }));
        Self { term, margin: Duration::ZERO }
    }

    fn current(&self) -> Option<Term> {
        self.term.borrow().filter(|term| Instant::now() < term.until)
    }
}

/// A replica that stands for election, on a task of its own.
#[must_use = "the Lease is given back by release only"]
pub struct Candidacy {
    resign: watch::Sender<bool>,
    task: JoinHandle<Candidate>,
}

/// Stands for election by the Lease `name` for as long as [`Candidacy`] lives.
pub fn stand(leases: Api<Lease>, name: &str, settings: Settings, metrics: Metrics) -> (Leadership, Candidacy) {
    let (publish, term) = watch::channel(None);
    let (resign, resigned) = watch::channel(false);
    info!(identity = %settings.identity, lease = name, "stands for election");
    // half of it, so that clocks may differ in speed
    let margin = settings.patience.saturating_sub(settings.renew_deadline) / 2;
    let candidate = Candidate {
        leases,
        name: name.to_owned(),
        election: Election::new(settings),
        lease: None,
        publish,
        metrics,
        failures: 0,
    };
    let task = tokio::spawn(candidate.run(resigned));
    (Leadership { term, margin }, Candidacy { resign, task })
}

impl Candidacy {
    /// Leads no more from now on; the Lease is kept, so nobody else does before [`Candidacy::release`].
    pub fn resign(&self) {
        self.resign.send_replace(true);
    }

    /// Gives the Lease back, so that another replica leads at once. Bounded.
    pub async fn release(self) {
        self.resign();
        let Ok(candidate) = self.task.await else { return warn!("the election ended by itself") };
        if timeout(RELEASE_TIMEOUT, candidate.release()).await.is_err() {
            warn!("the Lease could not be given back: another replica leads when its time is over");
        }
    }

    /// Ends if the election does, which it never should.
    pub async fn ended(&mut self) {
        let _ = (&mut self.task).await;
    }
}

/// An identity that no other process has: name of the pod and 64 random bits.
///
/// # Panics
/// Without a source of chance there are no keys either.
pub fn identity(pod: &str) -> String {
    let mut bytes = [0; 8];
    rand::fill(&mut bytes).expect("the system has a source of chance");
    format!("{pod}_{}", hex(&bytes))
}

struct Candidate {
    leases: Api<Lease>,
    name: String,
    election: Election,
    /// As last seen: what others wrote into its metadata stays.
    lease: Option<Lease>,
    publish: watch::Sender<Option<Term>>,
    metrics: Metrics,
    /// In a row.
    failures: u32,
}

impl Candidate {
    async fn run(mut self, mut resigned: watch::Receiver<bool>) -> Self {
        loop {
            tokio::select! {
                biased;
                () = told(&mut resigned) => break,
                () = self.step() => {}
            }
        }
        self.election.resign();
        self.tell();
        self
    }

    async fn step(&mut self) {
        self.tell();
        let (now, minutes) = (Instant::now(), Timestamp::now().as_second() / 60);
        match self.election.next(now, chance(), minutes) {
            Action::Wait(until) => sleep_until(until.into()).await,
            Action::Read => {
                let (leases, name) = (self.leases.clone(), self.name.clone());
                match self.request("read", async move { leases.get_opt(&name).await }).await {
                    Ok(lease) => {
                        self.election.handle_record(lease.as_ref().map(record), Instant::now());
                        self.lease = lease;
                    }
                    Err(failure) => self.election.handle_failure(failure, Instant::now()),
                }
            }
            Action::Write(write) => self.write(&write, now).await,
        }
    }

    async fn write(&mut self, write: &Write, sent: Instant) {
        let held = self.held(write);
        let (leases, name, creates) = (self.leases.clone(), self.name.clone(), write.over.is_none());
        let request = async move {
            let parameters = PostParams::default();
            if creates {
                leases.create(&parameters, &held).await
            } else {
                leases.replace(&name, &parameters, &held).await
            }
        };
        match self.request("write", request).await {
            Ok(lease) => {
                let version = lease.resource_version().unwrap_or_default();
                self.election.handle_written(write, version, sent, Instant::now());
                self.lease = Some(lease);
            }
            Err(failure) => self.election.handle_failure(failure, Instant::now()),
        }
    }

    /// The Lease, held by us.
    fn held(&self, write: &Write) -> Lease {
        let now = MicroTime(Timestamp::now());
        let settings = self.election.settings();
        let before = self.lease.as_ref().filter(|_| write.over.is_some());
        let acquired = before.and_then(|lease| lease.spec.as_ref()?.acquire_time.clone()).filter(|_| !write.takes);
        let spec = LeaseSpec {
            acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
            holder_identity: Some(settings.identity.clone()),
            lease_duration_seconds: Some(settings.duration.as_secs() as i32),
            lease_transitions: Some(i32::try_from(write.transitions).unwrap_or(i32::MAX)),
            renew_time: Some(now),
            ..LeaseSpec::default()
        };
        Lease { metadata: self.metadata(before, write.over.clone()), spec: Some(spec) }
    }

    fn metadata(&self, before: Option<&Lease>, version: Option<String>) -> ObjectMeta {
        let before = before.map(|lease| lease.metadata.clone()).unwrap_or_default();
        ObjectMeta { name: Some(self.name.clone()), resource_version: version, managed_fields: None, ..before }
    }

    /// Makes a request within its time, and says meanwhile if the term ends.
    async fn request<T>(
        &mut self,
        kind: &'static str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Failure> {
        let request = timeout(self.election.settings().request_timeout, request);
        tokio::pin!(request);
        let term = self.election.term(Instant::now());
        let in_term = match term {
            Some(term) => timeout_at(term.until.into(), request.as_mut()).await.ok(),
            None => None,
        };
        let answer = if let Some(answer) = in_term {
            answer
        } else {
            self.tell();
            request.await
        };
        let (result, answer) = match answer {
            Err(_) => ("timeout", Err("no answer in time".to_owned())),
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => ("conflict", Ok(None)),
            Ok(Err(error)) => ("failed", Err(error.to_string())),
            Ok(Ok(answer)) => ("ok", Ok(Some(answer))),
        };
        self.metrics.lease_requests.with_label_values(&[kind, result]).inc();
        match answer {
            Ok(Some(answer)) => {
                self.failures = 0;
                Ok(answer)
            }
            Ok(None) => Err(Failure::Conflict),
            Err(error) => {
                self.tell_failure(kind, &error);
                Err(Failure::Unknown)
            }
        }
    }

    fn tell_failure(&mut self, kind: &'static str, error: &str) {
        self.failures = self.failures.saturating_add(1);
        if self.failures == FAILURES_TOLD {
            warn!(request = kind, error, "the Lease cannot be reached");
        } else {
            debug!(request = kind, error, "request about the Lease failed");
        }
    }

    /// Publishes whether we lead.
    fn tell(&mut self) {
        let term = self.election.term(Instant::now());
        let epoch = |term: &Option<Term>| term.map(|term| term.epoch);
        let changed = self.publish.send_if_modified(|told| {
            let changed = epoch(told) != epoch(&term);
            *told = term;
            changed
        });
        if changed {
            self.metrics.leader.set(i64::from(term.is_some()));
            if let Some(term) = term {
                info!(epoch = term.epoch, "leads");
            } else {
                info!("does not lead any more");
            }
        }
    }

    /// Writes that nobody holds the Lease, if we do: looks first, for a write of ours may have come late.
    async fn release(mut self) {
        let identity = self.election.settings().identity.clone();
        loop {
            let lease = match self.leases.get_opt(&self.name).await {
                Ok(Some(lease)) if record(&lease).holder.as_ref() == Some(&identity) => lease,
                Ok(_) => return,
                Err(error) => {
                    self.tell_failure("release", &error.to_string());
                    tokio::time::sleep(self.election.settings().retry).await;
                    continue;
                }
            };
            let released = released(lease);
            let written = self.leases.replace(&self.name, &PostParams::default(), &released).await;
            let result = if written.is_ok() { "ok" } else { "failed" };
            self.metrics.lease_requests.with_label_values(&["release", result]).inc();
            match written {
                Ok(_) => return info!("the Lease is given back"),
                Err(error) => self.tell_failure("release", &error.to_string()),
            }
        }
    }
}

async fn told(resigned: &mut watch::Receiver<bool>) {
    // an error: nobody is left to give the Lease back
    let _ = resigned.wait_for(|resigned| *resigned).await;
}

/// The Lease, held by nobody. It keeps the count of its holders.
fn released(mut lease: Lease) -> Lease {
    lease.metadata.managed_fields = None;
    if let Some(spec) = &mut lease.spec {
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
    }
    lease
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or_default()).unwrap_or_default();
    Record {
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
        duration: Duration::from_secs(seconds),
        transitions: spec.lease_transitions.unwrap_or_default().into(),
        version: lease.resource_version().unwrap_or_default(),
    }
}

/// From 0 to 1.
fn chance() -> f64 {
    let mut bytes = [0; 2];
    // without chance all look at the same time, which is no harm
    let _ = rand::fill(&mut bytes);
    f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX)
}
