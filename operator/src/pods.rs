//! What the fleets' pods say themselves: every pod is asked every second, over one connection that is kept.
//!
//! One task per pod asks its admin port for `/load`, carries orders to it and looks at the certificate that its listeners
//! serve; what it hears goes into the fleet's [`book`]. Every replica of the operator asks, since every one serves metrics.
//! A pod that does not answer keeps its last values, with their age: it never counts as empty because it is silent.

mod book;
mod counters;
mod driver;
mod line;
mod load;
mod lost;
mod order;
mod owed;
mod probe;
mod rates;
mod told;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustls::ClientConfig;
use tokio::sync::{Notify, Semaphore, mpsc, watch};

use self::{
    book::Book,
    driver::{Driver, Goal, Task},
    order::Posted,
};
pub use self::{
    book::{Measured, Report},
    counters::Counters,
    load::{ConfigReport, DrainReport, DrainState, Load, Nonsense, Upstream},
    lost::Lost,
    order::{Order, OrderError},
};
use crate::observe::Certificate;

/// TLS handshakes with pods at a time: thousands of pods are not met all at once when the operator starts.
const HANDSHAKES_MAX: usize = 64;
/// Orders that wait for one pod; it carries out one at a time, and renewals come seconds apart.
const ORDERS_MAX: usize = 4;

/// A ProtocolGateway's namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fleet {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Fleet {
    /// Of these two.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A pod to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub pod: String,
    /// Its uid: a pod of the same name and another uid is another pod.
    pub uid: String,
    /// Where it is.
    pub address: IpAddr,
    /// Port of `/load`, `/drain` and `/undrain`.
    pub admin_port: u16,
    /// Ports whose certificate is looked at.
    pub listeners_tls_ports: Vec<u16>,
    /// Name in its admin port's certificate, and the one asked for at its listeners.
    pub server_name: String,
    /// Devices it had by the last status: counted until it answers for the first time.
    pub known: Option<u64>,
}

/// Asks the pods of all fleets. Cheap to clone; the last clone that goes ends every task.
#[derive(Debug, Clone)]
pub struct Pods(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fleets: Mutex<BTreeMap<Fleet, Watched>>,
    /// Fleets about which there is something new.
    news: Mutex<BTreeSet<Fleet>>,
    told: Notify,
    handshakes: Semaphore,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Watched {
    tasks: BTreeMap<String, Task>,
    book: Book,
}

impl Pods {
    /// Asks nobody yet.
    pub fn new(counters: Counters) -> Self {
        Self(Arc::new(Inner {
            fleets: Mutex::default(),
            news: Mutex::default(),
            told: Notify::new(),
            handshakes: Semaphore::new(HANDSHAKES_MAX),
            counters,
        }))
    }

    /// Sets whom of a fleet to ask, and as whom. Pods that are not among `targets` are forgotten; nothing else is disturbed:
    /// open connections stay, a new identity is shown by the next one. Must be called within a runtime.
    pub fn watch(&self, fleet: &Fleet, targets: Vec<Target>, client: &Arc<ClientConfig>) {
        let mut fleets = self.0.fleets();
        let watched = fleets.entry(fleet.clone()).or_default();
        let wanted: BTreeSet<&str> = targets.iter().map(|target| target.pod.as_str()).collect();
        let gone: Vec<String> = watched.tasks.keys().filter(|pod| !wanted.contains(pod.as_str())).cloned().collect();
        for pod in gone {
            watched.tasks.remove(&pod);
            watched.book.forget(&pod, Instant::now());
        }
        for target in targets {
            match watched.tasks.get(&target.pod) {
                Some(task) if task.is_for(&target) => task.aim(target, client),
                _ => {
                    watched.book.begin(&target.pod, target.known, Instant::now());
                    watched.tasks.insert(target.pod.clone(), self.start(fleet, target, client));
                }
            }
        }
        let count: usize = fleets.values().map(|watched| watched.tasks.len()).sum();
        self.0.counters.watched.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    fn start(&self, fleet: &Fleet, target: Target, client: &Arc<ClientConfig>) -> Task {
        let pod = target.pod.clone();
        let (goals, goal) = watch::channel(Goal { target, client: client.clone(), rechecks: 0 });
        let (posts, posted) = mpsc::channel(ORDERS_MAX);
        let driver = Driver::new(Arc::downgrade(&self.0), fleet.clone(), pod, goal, posted);
        Task::new(goals, posts, tokio::spawn(driver.run()))
    }

    /// Asks nobody of a fleet any more, and forgets it.
    pub fn forget(&self, fleet: &Fleet) {
        let mut fleets = self.0.fleets();
        fleets.remove(fleet);
        let count: usize = fleets.values().map(|watched| watched.tasks.len()).sum();
        self.0.counters.watched.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Looks at the certificates that a fleet's pods serve soon, and often for a while: they are to change.
    pub fn recheck(&self, fleet: &Fleet) {
        if let Some(watched) = self.0.fleets().get(fleet) {
            watched.tasks.values().for_each(Task::recheck);
        }
    }

    /// What is known of each pod of a fleet, by name.
    pub fn reports(&self, fleet: &Fleet) -> BTreeMap<String, Report> {
        self.0.fleets().get(fleet).map(|watched| watched.book.reports(Instant::now())).unwrap_or_default()
    }

    /// A fleet's pods together, for the metrics API. `None` if nobody has said whom to ask.
    pub fn measured(&self, fleet: &Fleet) -> Option<Measured> {
        Some(self.0.fleets().get_mut(fleet)?.book.measured(Instant::now()))
    }

    /// Pods of a fleet that went, since this was asked the last time, with devices that no drain had let go at `per_second`
    /// or less: killed, started anew, cut off by their deadline; or not ready and not heard of for long.
    pub fn lost(&self, fleet: &Fleet, per_second: u64, is_ready: impl Fn(&str) -> bool) -> Vec<Lost> {
        let mut fleets = self.0.fleets();
        let book = fleets.get_mut(fleet).map(|watched| &mut watched.book);
        book.map(|book| book.lost(per_second, is_ready, Instant::now())).unwrap_or_default()
    }

    /// A fleet about which there is something new that a reconcile should see; each at most once a second. One caller at a
    /// time.
    pub async fn changed(&self) -> Fleet {
        loop {
            let told = self.0.told.notified();
            if let Some(fleet) = self.0.news().pop_first() {
                return fleet;
            }
            told.await;
        }
    }

    /// Carries an order to a pod, over the connection that it is asked by. The answer is the pod's `/load` after it.
    ///
    /// # Errors
    /// Why the pod does not follow it.
    pub async fn order(&self, fleet: &Fleet, pod: &str, order: Order) -> Result<Load, OrderError> {
        let posts = self.0.fleets().get(fleet).and_then(|watched| Some(watched.tasks.get(pod)?.posts.clone()));
        let result = match posts {
            Some(posts) => Posted::post(&posts, order).await,
            None => Err(OrderError::Unknown),
        };
        let label = result.as_ref().map_or_else(OrderError::label, |_| "taken");
        self.0.counters.orders.with_label_values(&[label]).inc();
        result
    }
}

impl Inner {
    fn fleets(&self) -> MutexGuard<'_, BTreeMap<Fleet, Watched>> {
        self.fleets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn news(&self) -> MutexGuard<'_, BTreeSet<Fleet>> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod answered.
    fn answered(&self, fleet: &Fleet, pod: &str, load: &Load) {
        self.note(fleet, pod, |book, now| book.answered(pod, load.clone(), now));
    }

    /// A pod did not answer, or with nonsense.
    fn failed(&self, fleet: &Fleet, pod: &str, problem: &str) {
        self.note(fleet, pod, |book, now| book.failed(pod, problem, now));
    }

    /// A listener of a pod was seen to serve a certificate.
    fn served(&self, fleet: &Fleet, pod: &str, served: Vec<(u16, Certificate)>, ports: &[u16]) {
        self.note(fleet, pod, |book, _| book.served(pod, served, ports));
    }

    fn note(&self, fleet: &Fleet, pod: &str, what: impl FnOnce(&mut Book, Instant)) {
        let now = Instant::now();
        let mut fleets = self.fleets();
        let Some(watched) = fleets.get_mut(fleet) else { return };
        what(&mut watched.book, now);
        if watched.book.tell(pod, now) {
            drop(fleets);
            self.news().insert(fleet.clone());
            self.told.notify_one();
        }
    }
}

/// Between 0 and 1, another one each time.
fn chance() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    (RandomState::new().hash_one(0) >> 11) as f64 / (1u64 << 53) as f64
}

/// `duration`, give or take a tenth: those who wait alike do not act together.
fn about(duration: Duration) -> Duration {
    duration.mul_f64(0.9 + 0.2 * chance())
}
