//! What goes into a step and what comes out.

use std::collections::BTreeMap;

use crate::{budget::Ledger, notes::Note, upstream::Upstream};

/// Milliseconds: a time since the Unix epoch, or a length of time.
pub type Millis = i64;

/// What a step is decided from.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    /// When.
    pub now: Millis,
    /// Which leader decides; pods refuse what earlier ones order.
    pub epoch: i64,
    /// What is wanted.
    pub spec: Spec,
    /// The Deployment, if there is one.
    pub deployment: Option<Deployment>,
    /// The fleet's pods, those that end too; not those whose containers are over for good.
    pub pods: &'a [Pod],
    /// The plan as it is persisted.
    pub drains: &'a [Drain],
    /// How the last rebalance ended, as it is persisted.
    pub rebalanced: Rebalanced,
    /// How the fleet gets on with the upstream: [`crate::upstream::of`].
    pub upstream: Upstream,
    /// What this leader ordered so far.
    pub ledger: &'a Ledger,
}

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spec {
    /// Pods.
    pub replicas: u32,
    /// Devices that may be let go per second, over the whole fleet. 0 lets nobody go.
    pub per_second: u32,
    /// What a pod lets go per second where nobody orders anything, as it was written last: [`crate::budget::alone_share`].
    pub self_per_second: f64,
    /// How long one pod may take to drain.
    pub drain_timeout: Millis,
    /// Devices are moved away from pods that hold more than this many times the mean.
    pub skew_max: Option<f64>,
}

/// What the Deployment is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deployment {
    /// Pods that it was told to keep.
    pub replicas: u32,
    /// Pods that it says it has, those that end not counted.
    pub running: u32,
    /// Its pods are being replaced by those of a newer template.
    pub rolling: bool,
    /// It has not seen yet what it was told last.
    pub behind: bool,
    /// Pods that it is to have are refused to it: by a quota, or by somebody who is asked.
    pub refused: bool,
}

/// One pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Pod {
    /// Its name; never given twice.
    pub name: String,
    /// Its container runs. One that does not holds no device.
    pub running: bool,
    /// Load balancers send new connections to it.
    pub ready: bool,
    /// When `ready` became what it is.
    pub ready_changed: Millis,
    /// It was told to stop: when its own time to let devices go is over, which is [`Spec::drain_timeout`] after that. It is
    /// killed later, when it had time to settle and to end.
    pub ends: Option<Millis>,
    /// Its template is not the newest.
    pub outdated: bool,
    /// `controller.kubernetes.io/pod-deletion-cost`.
    pub deletion_cost: Option<i32>,
    /// What it said last; absent if it never said anything that makes sense.
    pub load: Option<Load>,
}

/// What a pod said.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// Devices connected or about to be.
    pub connections: u64,
    /// How long ago it said so.
    pub age: Millis,
    /// How it gets on with the upstream; `None`: it has no need of it, and knows nothing.
    pub upstream: Option<Upstream>,
    /// What it is letting go, whoever ordered it.
    pub drain: Option<Ordered>,
    /// Devices that it lets go per second, or is about to, because the upstream did nothing for them for too long; 0: none.
    pub forsaken_per_second: f64,
}

/// A drain as the pod sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ordered {
    /// Why; `None` if it was told to stop and nobody ordered anything.
    pub cause: Option<Cause>,
    /// By which leader; 0 if by itself.
    pub epoch: i64,
    /// Devices that it lets go per second at most, 0 while it pauses.
    pub per_second: u32,
    /// Devices that are still to go.
    pub remaining: u64,
}

/// One pod's drain: the persisted plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    /// Name of the pod.
    pub pod: String,
    /// Why.
    pub cause: Cause,
    /// What it is at.
    pub state: State,
    /// Since when.
    pub started_at: Millis,
    /// Until when; ends then, whoever is left.
    pub deadline: Millis,
    /// Devices still to go.
    pub remaining: u64,
    /// Devices per second that the pod may have been told, at most: whoever takes over counts with it.
    pub per_second: u32,
    /// Nobody is let go when only so many devices are left.
    pub down_to: u64,
    /// Which leader wrote this.
    pub epoch: i64,
}

/// Why devices are let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The pod was told to stop, its template being current: its node is emptied, or somebody deleted it.
    Eviction,
    /// The pod is replaced by one of a newer template.
    Upgrade,
    /// Fewer pods are wanted.
    ScaleIn,
    /// The CA that vouched for them is trusted no more.
    CertificateAuthority,
    /// Other pods have fewer devices.
    Rebalance,
}

//  Leaving ──out of the Service, its turn──► Draining ──empty, or too late──► Done ──► (the pod goes)
//     └───────────────┴── wanted again ──┴──► Undoing ──the pod knows──► (no drain)
/// What a drain is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Taken out of the Service; lets nobody go yet.
    Leaving,
    /// Lets devices go.
    Draining,
    /// Nobody is left, or the time is up.
    Done,
    /// Not wanted any more; the pod has not heard of it yet.
    Undoing,
}

/// How the last rebalance ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rebalanced {
    /// When.
    pub ended_at: Option<Millis>,
    /// How many in a row were not even when their time was up.
    pub failures: u32,
}

/// What to do: persist `drains` and `rebalanced` first; the rest follows from what was persisted before.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The plan from now on, by pod.
    pub drains: Vec<Drain>,
    /// How the last rebalance ended.
    pub rebalanced: Rebalanced,
    /// What pods are to be told.
    pub orders: Vec<(String, Order)>,
    /// Devices per second that pods let go without having been told, for [`crate::budget::Ledger::looked`].
    pub alone: BTreeMap<String, u32>,
    /// What the Deployment is to be told, if there is one.
    pub replicas: Option<u32>,
    /// Annotations to write: `None` takes ours away.
    pub deletion_costs: Vec<(String, Option<i32>)>,
    /// What is to be said.
    pub notes: Vec<Note>,
    /// When to look again even if nothing happens.
    pub again_in: Option<Millis>,
}

/// What a pod is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Let devices go.
    Drain(DrainOrder),
    /// Let nobody go any more, and be ready.
    Undrain,
}

impl Order {
    /// Devices per second that it allows.
    pub fn per_second(&self) -> u32 {
        match self {
            Self::Drain(order) => order.per_second,
            Self::Undrain => 0,
        }
    }
}

/// The order to let devices go; it holds for [`crate::budget::LEASE`] unless it is given again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainOrder {
    /// Why.
    pub cause: Cause,
    /// Devices per second, 0: nobody for now.
    pub per_second: u32,
    /// Not when only so many are left.
    pub down_to: u64,
    /// Be not ready, so that load balancers send nobody.
    pub leave: bool,
}
