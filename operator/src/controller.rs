//! THE loop. Read this first.
//!
//! ```text
//!  watches ──► mirror ──► queue ──► reconcile: observe ─► desired ─► apply ─► status ─► when to look again
//! ```
//!
//! Every replica watches and observes; only the one that leads applies and writes status. One ProtocolGateway is never
//! reconciled twice at a time, and what is wrong with one keeps back no other. A reconcile that changes nothing writes nothing.

mod autoscale;
mod degraded;
mod drains;
mod lists;
mod pods;
mod queue;
mod unreadable;
mod watches;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crds::{ProtocolGateway, ProtocolGatewayStatus};
use jiff::Timestamp;
use kube::{Client, Resource};
use prometheus::{IntCounterVec, Opts};
use serde_json::Value;
use tokio::{
    sync::watch,
    task::{Id, JoinError, JoinSet},
    time::{sleep_until, timeout},
};
use tracing::{debug, error, info, warn};

pub use self::pods::Meters;
use self::{lists::Lists, queue::Work};
use crate::{
    apply::{Memory, Writer, status::Told},
    desired::{self, Desired, Installation, Invalid},
    error::{Kind as Failure, ReconcileError},
    events::{self, Events},
    http::Health,
    kinds::{GATEWAY, Kind},
    lease::Leadership,
    metrics::Metrics,
    observe::{
        Apis, CustomMetrics, Observed, apis,
        look::{self, Sources},
        mirror::{Mirror, Mirrored, Name},
        secrets::Secrets,
    },
    orders::Book,
    pods::{Fleet, Pods},
    scaling::{self, Plan},
    shutdown::Shutdown,
    status::{self, status},
};

/// Reconciles at a time: they wait for the API server most of their life.
const CONCURRENCY: usize = 16;
/// How often a reconcile decides anew because of what it did itself: a CA, what it signs, objects of somebody else's.
const PASSES_MAX: usize = 6;
/// So many times in a row somebody else may have written first.
const CONFLICTS_MAX: u32 = 3;
/// How long a ProtocolGateway is left alone if nothing changes: certificates come due, and watches may have missed something.
const REST: Duration = Duration::from_mins(10);
/// The loop turns at least this often: a sign of life.
const TURN: Duration = Duration::from_secs(10);
/// Without a turn for so long the loop is dead.
const DEAD_AFTER: Duration = Duration::from_secs(90);
/// How long what runs may take when the program stops.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// What the controller is given.
#[derive(Clone)]
pub struct Inputs {
    /// The API server.
    pub client: Client,
    /// What the operator was installed with.
    pub installation: Installation,
    /// Namespaces to watch; empty for all.
    pub namespaces: Vec<String>,
    /// Name of this replica's pod, for Events.
    pub pod_name: Option<String>,
    /// Whether this replica writes.
    pub leadership: Leadership,
    /// Asks the pods.
    pub pods: Pods,
    /// What the metrics API is told beside what pods say.
    pub meters: Meters,
    /// Who serves the custom metrics.
    pub custom_metrics: watch::Receiver<CustomMetrics>,
    /// What it counts.
    pub metrics: Metrics,
    /// Whether it lives and has seen everything once.
    pub health: Health,
}

/// What reconciles and watches share.
struct World {
    writer: Writer,
    mirror: Mirror,
    secrets: Secrets,
    work: Work,
    namespaces: Vec<String>,
    installation: Installation,
    pods: Pods,
    meter: Meters,
    apis: watch::Receiver<Apis>,
    /// Which are not whole yet.
    lists: Lists,
    memories: Mutex<HashMap<Name, (Memory, Book)>>,
    /// Counts objects that went and may have been in the way: one whose reconcile runs then has to be told after it.
    freed: AtomicU64,
    events: Events,
    metrics: Metrics,
    own: Own,
}

/// Metrics of this part alone.
struct Own {
    watch_failures: IntCounterVec,
    conflicts: IntCounterVec,
    panics: prometheus::IntCounter,
    secret_refusals: prometheus::IntCounter,
    given_up: prometheus::IntGauge,
    served: prometheus::IntGauge,
}

impl Own {
    fn new(metrics: &Metrics) -> Self {
        let watch = Opts::new("operator_watch_failures_total", "Watches that failed and were begun anew, by kind.");
        let panics =
            prometheus::IntCounter::new("operator_panics_total", "Reconciles that ended by a fault of the program.");
        let secret_refusals = prometheus::IntCounter::new(
            "operator_secret_refusals_total",
            "Requests for a Secret that were refused for want of rights.",
        );
        let given_up = prometheus::IntGauge::new(
            "operator_lists_given_up",
            "Lists that the operator may not make: in their namespaces nothing is reconciled.",
        );
        let served = prometheus::IntGauge::new(
            "operator_namespaces_served",
            "Namespaces of which everything is watched; 1 where all namespaces are watched together.",
        );
        let conflicts = Opts::new(
            "operator_conflicts_total",
            "Reconciles that were begun anew because somebody else wrote first, by step.",
        );
        Self {
            watch_failures: metrics.add(IntCounterVec::new(watch, &["kind"])),
            conflicts: metrics.add(IntCounterVec::new(conflicts, &["step"])),
            panics: metrics.add(panics),
            secret_refusals: metrics.add(secret_refusals),
            given_up: metrics.add(given_up),
            served: metrics.add(served),
        }
    }
}

/// Watches and reconciles until told to stop, or until a watch ends: what it would have told is not known any more.
pub async fn run(inputs: Inputs, shutdown: Shutdown) {
    let (tell_apis, apis) = watch::channel(Apis::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(apis::follow(inputs.client.clone(), inputs.custom_metrics.clone(), tell_apis));
    let health = inputs.health.clone();
    health.waits("controller", "lists are not whole yet");
    let leadership = inputs.leadership.clone();
    let world = Arc::new(World::new(inputs, apis));
    watches::begin(&world, &mut tasks);
    tasks.spawn(watches::optional(world.clone()));
    tasks.spawn(news(world.clone()));
    let mut awaited = world.lists.awaited();
    let mut known = world.apis.clone();
    let begun = Instant::now();
    tokio::select! {
        // the first answer about apis too, so that nothing is pruned for want of it
        () = async { drop((awaited.wait_for(|awaited| *awaited == 0).await.map(drop), known.changed().await)) } => {}
        () = shutdown.requested() => return,
        why = watches::ended(&mut tasks) => return error!("{why}"),
    }
    health.is_ready("controller");
    info!(gateways = world.mirror.names(&GATEWAY).len(), after = ?begun.elapsed(), "everything is listed");
    let pulse = health.pulse("controller", DEAD_AFTER);
    let running = JoinSet::new();
    Loop { world, tasks, running, names: HashMap::new() }.run(leadership, &shutdown, || pulse.beat()).await;
}

/// What pods say is looked at, too.
async fn news(world: Arc<World>) {
    loop {
        let fleet = world.pods.changed().await;
        world.work.add(&Name::new(fleet.namespace, fleet.name));
    }
}

impl World {
    fn new(inputs: Inputs, apis: watch::Receiver<Apis>) -> Self {
        let Inputs { client, installation, namespaces, pod_name, leadership, metrics, pods, meters: meter, .. } =
            inputs;
        let (mirror, secrets, own) = (Mirror::default(), Secrets::default(), Own::new(&metrics));
        let writer = Writer {
            client: client.clone(),
            mirror: mirror.clone(),
            secrets: secrets.clone(),
            leadership,
            metrics: metrics.clone(),
        };
        Self {
            writer,
            mirror,
            secrets,
            work: Work::default(),
            namespaces,
            installation,
            pods,
            meter,
            apis,
            lists: Lists::new(own.given_up.clone(), own.served.clone()),
            memories: Mutex::default(),
            freed: AtomicU64::default(),
            events: Events::new(client, pod_name),
            own,
            metrics,
        }
    }

    fn all(&self) {
        self.mirror.names(&GATEWAY).iter().for_each(|name| self.work.add(name));
    }

    fn memories(&self) -> std::sync::MutexGuard<'_, HashMap<Name, (Memory, Book)>> {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object of this kind is gone: it may have been in the way of what was not taken.
    fn went(&self, kind: &Kind) {
        if kind.name == "Service" {
            let mut memories = self.memories();
            self.freed.fetch_add(1, Ordering::Relaxed);
            for (name, (memory, _)) in memories.iter_mut().filter(|(_, (memory, _))| !memory.refused().is_empty()) {
                memory.retry();
                self.work.add(name);
            }
        }
    }
}

/// The loop's own state.
struct Loop {
    world: Arc<World>,
    /// Those that watch: none ever ends.
    tasks: JoinSet<()>,
    running: JoinSet<Ended>,
    names: HashMap<Id, Name>,
}

type Ended = Result<Next, ReconcileError>;

/// When to look again, if nothing changes before.
enum Next {
    After(Duration),
    /// It is gone.
    Never,
}

impl Loop {
    async fn run(mut self, mut leadership: Leadership, shutdown: &Shutdown, beat: impl Fn()) {
        let world = self.world.clone();
        let mut apis = world.apis.clone();
        world.all();
        loop {
            self.start();
            beat();
            let due = world.work.queue().next_due().filter(|_| self.running.len() < CONCURRENCY);
            let turn = Instant::now() + TURN;
            tokio::select! {
                biased;
                () = shutdown.requested() => break,
                why = watches::ended(&mut self.tasks) => {
                    error!("{why}");
                    break;
                }
                // what was decided without leading is to be written now
                epoch = leadership.changed() => if epoch.is_some() { world.all() },
                Some(ended) = self.running.join_next_with_id() => self.end(ended),
                Ok(()) = apis.changed() => world.all(),
                () = world.work.added() => {}
                () = sleep_until(due.map_or(turn, |due| due.min(turn)).into()) => {}
            }
        }
        if timeout(FINISH_TIMEOUT, async { while self.running.join_next().await.is_some() {} }).await.is_err() {
            warn!(running = self.running.len(), "reconciles are cut short");
        }
    }

    /// Starts what is due, as far as there is room.
    fn start(&mut self) {
        let now = Instant::now();
        while self.running.len() < CONCURRENCY {
            let Some(name) = self.world.work.queue().next(now) else { break };
            let (world, running) = (self.world.clone(), name.clone());
            let handle = self.running.spawn(async move { world.one(&running).await });
            self.names.insert(handle.id(), name);
        }
        let depth = self.world.work.queue().depth(now);
        self.world.metrics.queue_depth.set(i64::try_from(depth).unwrap_or(i64::MAX));
    }

    fn end(&mut self, ended: Result<(Id, Ended), JoinError>) {
        let (id, ended) = match ended {
            Ok((id, ended)) => (id, Ok(ended)),
            Err(error) => (error.id(), Err(error)),
        };
        let Some(name) = self.names.remove(&id) else { return };
        let mut queue = self.world.work.queue();
        let now = Instant::now();
        match ended {
            Ok(Ok(Next::Never)) => queue.gone(&name),
            Ok(Ok(Next::After(rest))) => queue.done(&name, false, Some(now + rest)),
            Ok(Err(failure)) => {
                let failures = queue.failures(&name).saturating_add(1);
                let again = failure.kind.retry_after(failures, chance());
                queue.done(&name, failure.kind != Failure::NotLeader, again.map(|wait| now + wait));
            }
            Err(fault) => {
                error!(gateway = %name, %fault, "a reconcile ended by a fault of the program");
                self.world.own.panics.inc();
                let again = Failure::Unavailable.retry_after(queue.failures(&name).saturating_add(1), chance());
                queue.done(&name, true, again.map(|wait| now + wait));
            }
        }
    }
}

impl World {
    /// One reconcile, measured.
    async fn one(&self, name: &Name) -> Result<Next, ReconcileError> {
        let begun = Instant::now();
        let freed = self.freed.load(Ordering::Relaxed);
        let (mut memory, mut book) = self.memories().remove(name).unwrap_or_default();
        let ended = self.reconcile(name, &mut memory, &mut book).await;
        match &ended {
            Ok(Next::Never) => {
                self.secrets.forget(name);
                self.pods.forget(&Fleet::from(name));
                self.meter.forget(name);
                self.metrics.forget(&name.namespace, &name.name);
            }
            _ => self.remember(name, (memory, book), freed),
        }
        if let Err(failure) = &ended {
            self.failed(name, failure, Timestamp::now()).await;
        }
        let result = if ended.is_ok() { "ok" } else { "error" };
        self.metrics.reconcile_seconds.with_label_values(&[result]).observe(begun.elapsed().as_secs_f64());
        match &ended {
            Err(failure) if failure.kind == Failure::NotLeader => debug!(gateway = %name, "another replica leads"),
            // one that does not pass is an error
            Err(failure) if failure.kind == Failure::Conflict && self.work.queue().failures(name) < CONFLICTS_MAX => {
                self.own.conflicts.with_label_values(&[&failure.step.to_string()]).inc();
                info!(gateway = %name, %failure, "decided anew");
            }
            Err(failure) => {
                self.metrics.reconcile_errors.with_label_values(&[&failure.step.to_string()]).inc();
                warn!(gateway = %name, %failure, "reconcile failed");
            }
            Ok(_) => debug!(gateway = %name, took = ?begun.elapsed(), "reconciled"),
        }
        ended
    }

    /// `freed`: as it was counted before the reconcile.
    fn remember(&self, name: &Name, (mut memory, book): (Memory, Book), freed: u64) {
        let mut memories = self.memories();
        if self.freed.load(Ordering::Relaxed) != freed && !memory.refused().is_empty() {
            memory.retry();
            self.work.add(name);
        }
        memories.insert(name.clone(), (memory, book));
    }

    async fn reconcile(&self, name: &Name, memory: &mut Memory, book: &mut Book) -> Result<Next, ReconcileError> {
        let Some((mirrored, version)) = self.mirror.versioned(&GATEWAY, name) else { return Ok(Next::Never) };
        // what it owns goes with it; and of a view that has holes nothing is decided: it comes again when they are filled
        if mirrored.ends || !self.lists.are_whole(&name.namespace) {
            return Ok(Next::After(REST));
        }
        let mut gateway = match read(&mirrored) {
            Ok(gateway) => gateway,
            Err(why) => return self.unreadable(name, (&mirrored.body(), version), &why, Timestamp::now()).await,
        };
        gateway.metadata.resource_version = Some(version);
        memory.is_about(&gateway);
        let mut seen = self.observe(&gateway, memory).await?;
        let lost = self.lost(&gateway, &seen);
        let Some(epoch) = self.writer.leadership.epoch() else {
            return Ok(Next::After(self.rest(&gateway, &seen, memory)));
        };
        self.report(&gateway, &lost).await;
        // what there should be follows from certificates, and from objects that turn out to be somebody else's
        let mut passes = 1;
        let (mut plan, mut decided) = self.decide(&gateway, &seen, epoch, book);
        while passes < PASSES_MAX && !self.prepare(&gateway, &decided, memory).await? {
            passes += 1;
            seen = self.observe(&gateway, memory).await?;
            (plan, decided) = self.decide(&gateway, &seen, epoch, book);
        }
        // the plan is persisted before anything is done by it
        if scaling::is_news(&gateway, &plan) {
            self.tell(&mut gateway, &seen, &plan, &decided, memory).await?;
        }
        if let Ok(desired) = &decided {
            // a Deployment that is told of fewer takes whom it likes of those that are not marked
            let are_marked = self.mark(&gateway, &plan, memory).await?;
            let held = self.writer.objects(desired, memory, are_marked).await?;
            // what is written now is what pods are to follow
            (seen.config_in_force, seen.config_written) = look::configuration(&self.mirror, &gateway);
            self.writer.adopt(&gateway, desired, memory).await?;
            self.writer.prune(&gateway, desired, &held, memory).await?;
            self.order(&gateway, epoch, &plan, book).await?;
        }
        let scaled = self.autoscale(&mut gateway, &seen, book).await?;
        self.count(&gateway, &plan);
        // what was not taken is known now
        if memory.refused() != seen.refused {
            seen.refused = memory.refused();
            decided = desired::desired(&gateway, &seen, &plan, &self.installation);
        }
        let later = self.tell(&mut gateway, &seen, &plan, &decided, memory).await?;
        let due = [Some(self.rest(&gateway, &seen, memory)), later, plan.again_in, scaled];
        Ok(Next::After(due.into_iter().flatten().min().unwrap_or(REST)))
    }

    /// Everything that a decision needs. Replicas that do not lead look, too: they serve what pods say.
    async fn observe(&self, gateway: &ProtocolGateway, memory: &mut Memory) -> Result<Observed, ReconcileError> {
        let sources = Sources {
            client: &self.writer.client,
            mirror: &self.mirror,
            secrets: &self.secrets,
            apis: self.apis.borrow().clone(),
            refusals: &self.own.secret_refusals,
        };
        let (mut observed, client) = look::look(&sources, gateway, Timestamp::now()).await?;
        observed.foreign.extend(memory.foreign());
        observed.refused = memory.refused();
        self.ask(gateway, &mut observed, client.as_ref());
        if memory.serves_another(&observed, gateway) {
            self.pods.recheck(&Fleet::from(&Name::of(&gateway.metadata)));
        }
        Ok(observed)
    }

    /// How long to leave it alone if nothing changes.
    fn rest(&self, gateway: &ProtocolGateway, observed: &Observed, memory: &Memory) -> Duration {
        let rest = rest(gateway, observed, memory);
        self.secrets.waits(&Name::of(&gateway.metadata)).map_or(rest, |waits| waits.min(rest))
    }

    fn decide(&self, gateway: &ProtocolGateway, observed: &Observed, epoch: i64, book: &mut Book) -> (Plan, Decided) {
        let persisted = gateway.status.as_ref().map_or(&[][..], |status| &status.drains);
        book.see(&observed.pods, Timestamp::now());
        let plan = scaling::plan(gateway, observed, epoch, book.ledger(epoch, persisted, observed.now));
        book.looked(&plan, Timestamp::now());
        let decided = desired::desired(gateway, observed, &plan, &self.installation);
        (plan, decided)
    }

    /// Makes certificates, and looks whose the objects are that are about to be made. `false`: decide anew.
    async fn prepare(
        &self,
        gateway: &ProtocolGateway,
        decided: &Decided,
        memory: &mut Memory,
    ) -> Result<bool, ReconcileError> {
        let Ok(desired) = decided else { return Ok(true) };
        let moved_on = self.writer.certificates(gateway, &desired.certificates, Timestamp::now(), memory).await?;
        Ok(!moved_on && self.writer.are_free(gateway, desired, memory).await?)
    }

    /// Writes the status, and tells what changed in it; or says after what time to come again for that.
    async fn tell(
        &self,
        gateway: &mut ProtocolGateway,
        observed: &Observed,
        plan: &Plan,
        decided: &Decided,
        memory: &mut Memory,
    ) -> Result<Option<Duration>, ReconcileError> {
        let now = status(gateway, observed, plan, decided);
        match self.writer.status(gateway, &now, memory).await? {
            Told::Written(version) => {
                gateway.metadata.resource_version = version.or(gateway.metadata.resource_version.take());
                let before = gateway.status.replace(now).unwrap_or_default();
                let after = gateway.status.iter().flat_map(|status| &status.conditions).cloned().collect::<Vec<_>>();
                self.events.publish(&gateway.object_ref(&()), events::news(&before.conditions, &after)).await;
                Ok(None)
            }
            Told::Same => Ok(None),
            Told::Later(after) => Ok(Some(after)),
        }
    }
}

type Decided = Result<Desired, Invalid>;

/// Reads what a user wrote. A status of a form that is not known is as none.
fn read(mirrored: &Mirrored) -> Result<ProtocolGateway, serde_json::Error> {
    let mut body = mirrored.body();
    let status = body.get_mut("status").map(Value::take).unwrap_or_default();
    body["apiVersion"] = crds::API_VERSION.into();
    body["kind"] = crds::KIND.into();
    let mut gateway: ProtocolGateway = serde_json::from_value(body)?;
    gateway.status = serde_json::from_value::<ProtocolGatewayStatus>(status).ok();
    Ok(gateway)
}

/// Until the first time that something comes due: a certificate's renewal or end, patience with a pod, or what waits for a
/// time to pass.
fn rest(gateway: &ProtocolGateway, observed: &Observed, memory: &Memory) -> Duration {
    let leaves = observed.secrets.values().filter_map(|facts| facts.certificate.as_ref());
    let authorities = observed.authority.iter().map(|authority| &authority.current);
    let times = leaves
        .chain(authorities)
        .flat_map(|certificate| [certificate.not_before, desired::tls::two_thirds(certificate), certificate.not_after]);
    let moves = observed.authority.iter().map(|authority| desired::tls::due(authority, std::iter::empty()));
    let until = |time: Timestamp| Duration::try_from(observed.now.duration_until(time)).ok();
    // a second more: times are whole seconds here
    let due = times
        .chain(moves)
        .chain(status::due(gateway, observed))
        .filter(|time| *time > observed.now)
        .filter_map(until)
        .map(|due| due + Duration::from_secs(1));
    // not all at the same time
    let rest = REST.mul_f64(0.8 + 0.4 * chance());
    due.chain(memory.waits()).min().map_or(rest, |due| due.min(rest))
}

/// From 0 to 1.
fn chance() -> f64 {
    let mut bytes = [0; 2];
    // without chance all look at the same time, which is no harm
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX)
}
