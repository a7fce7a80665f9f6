//! Misbehaviour on request: what, where, to whom, how often. The connections ask at each point and do as told.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::glob;
use super::identity::Identity;

/// Faults that may stand at once.
const FAULTS_MAX: usize = 1000;

/// Where in the hub a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Point {
    /// At once, on connections and links that are there: each counts as one that fits.
    Now,
    /// A transfer on a telemetry link.
    Telemetry,
    /// A cloud-to-device message about to be sent.
    C2d,
    /// A twin request.
    Twin,
    /// A method call about to be sent.
    Method,
    /// An ATTACH.
    Attach,
    /// A token on `$cbs`.
    Cbs,
    /// An OPEN (there is no identity yet).
    Open,
}

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// All goes on, later.
    Delay {
        /// By so many milliseconds.
        ms: u64,
    },
    /// `rejected` with this condition.
    Reject {
        /// AMQP condition.
        condition: Arc<str>,
    },
    /// `released`
    Release,
    /// `modified`
    Modify,
    /// Stored, but no disposition ever.
    NeverSettle,
    /// The link gets no more credit (a sender of the hub: sends no more).
    NoCredit,
    /// The hub's throttling: the answer is late, then an error with 429001, then the link is detached.
    Throttle {
        /// How late, in milliseconds.
        ms: u64,
    },
    /// The links are detached as stolen, as if the device had connected elsewhere.
    Steal,
    /// The link is detached, closed, with this condition.
    Detach {
        /// AMQP condition.
        condition: Arc<str>,
        /// With `amqp:link:redirect`: where to.
        redirect: Option<Redirect>,
    },
    /// The connection ends.
    CloseConnection {
        /// With an AMQP CLOSE of this condition; without one, the socket is just closed.
        condition: Option<Arc<str>>,
    },
    /// The connection stays open and does nothing any more: reads nothing, writes nothing.
    HalfOpen,
    /// New TCP connections are refused.
    RefuseListen {
        /// For so many milliseconds.
        ms: u64,
    },
    /// `$cbs` answers late or with this status.
    Cbs {
        /// `status-code`; 0 = as it would be, 403 = as if the connection had had all its tokens.
        status: u16,
        /// So many milliseconds later.
        ms: u64,
    },
}

/// Where a redirected client shall go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Redirect {
    /// `hostname` of `error.info`.
    pub hostname: String,
    /// `network-host`
    pub network_host: String,
    /// `port`
    pub port: u16,
    /// `address`
    pub address: Option<String>,
}

/// A fault and when it strikes.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// What happens.
    pub action: Action,
    /// Where.
    pub point: Point,
    /// Pattern of device ids (`*`, `?`); `None` = everyone.
    pub device: Option<Arc<str>>,
    /// Of those that fit, this share, from 0 to 1.
    pub probability: f64,
    /// Decides which ones: the same seed strikes the same ones in the same order of arrival.
    pub seed: u64,
    /// How often it strikes before it is over; `None` = for ever.
    pub count: Option<u32>,
    /// So many that fit pass unharmed first.
    pub skip: u32,
}

impl Fault {
    /// A fault that strikes always, everyone, at the action's usual point.
    pub fn new(action: Action) -> Self {
        let point = action.usual_point();
        Self { action, point, device: None, probability: 1.0, seed: 0, count: None, skip: 0 }
    }

    /// Strikes here instead.
    #[must_use]
    pub fn at(self, point: Point) -> Self {
        Self { point, ..self }
    }

    /// Strikes these devices only (`*`, `?`).
    #[must_use]
    pub fn device(self, pattern: &str) -> Self {
        Self { device: Some(pattern.into()), ..self }
    }

    /// Strikes so many times.
    #[must_use]
    pub fn count(self, count: u32) -> Self {
        Self { count: Some(count), ..self }
    }

    /// Lets so many pass first.
    #[must_use]
    pub fn skip(self, skip: u32) -> Self {
        Self { skip, ..self }
    }

    /// Strikes this share, chosen by the seed.
    #[must_use]
    pub fn probability(self, probability: f64, seed: u64) -> Self {
        Self { probability, seed, ..self }
    }
}

impl Action {
    /// Whether it does anything there.
    pub fn strikes_at(&self, point: Point) -> bool {
        use Point::{Attach, Cbs, Now, Open, Telemetry, Twin};
        match self {
            Self::Delay { .. } => !matches!(point, Now | Open),
            Self::Reject { .. } => matches!(point, Telemetry | Twin | Cbs | Attach | Open),
            Self::Release | Self::Modify => matches!(point, Telemetry | Twin | Cbs),
            Self::NeverSettle => matches!(point, Telemetry | Twin | Cbs | Attach),
            Self::NoCredit | Self::Steal => point != Open,
            Self::Throttle { .. } | Self::Detach { .. } | Self::CloseConnection { .. } | Self::HalfOpen => true,
            Self::Cbs { .. } => point == Cbs,
            Self::RefuseListen { .. } => point == Now,
        }
    }

    fn usual_point(&self) -> Point {
        match self {
            Self::Delay { .. }
            | Self::Reject { .. }
            | Self::Release
            | Self::Modify
            | Self::NeverSettle
            | Self::NoCredit
            | Self::Throttle { .. } => Point::Telemetry,
            Self::Cbs { .. } => Point::Cbs,
            Self::Steal
            | Self::Detach { .. }
            | Self::CloseConnection { .. }
            | Self::HalfOpen
            | Self::RefuseListen { .. } => Point::Now,
        }
    }
}

/// The faults that stand.
#[derive(Debug, Default)]
pub struct Faults {
    /// How many stand: asked before every message, without the lock.
    standing: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    faults: Vec<Standing>,
    next_id: u64,
}

#[derive(Debug)]
struct Standing {
    id: u64,
    fault: Fault,
    chance: Chance,
    skipped: u32,
    struck: u32,
}

/// A fault that strikes at once, shared by all connections: together they heed its probability, skip and count.
#[derive(Clone, Debug)]
pub struct Strike {
    /// What happens.
    pub action: Action,
    /// Pattern of device ids; `None` = all.
    pub device: Option<Arc<str>>,
    standing: Arc<Mutex<Standing>>,
}

impl Strike {
    /// The strike that this fault is.
    pub fn new(fault: Fault) -> Self {
        let (action, device) = (fault.action.clone(), fault.device.clone());
        Self { action, device, standing: Arc::new(Mutex::new(Standing::new(0, fault))) }
    }

    /// Whether it hits this one: a link of the identity, or a connection (`None`, or one of its identities that fits).
    pub fn hits(&self, identity: Option<&Identity>) -> bool {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let point = standing.fault.point;
        standing.decide(point, identity).is_some()
    }
}

/// A fault as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultStatus {
    /// Its number.
    pub id: u64,
    /// The fault.
    pub fault: Fault,
    /// How often it struck.
    pub struck: u32,
}

impl Faults {
    /// Adds a fault (not one at [`Point::Now`]: see [`super::Domain::inject`]). Returns its number; `None` if 1000 stand.
    pub fn add(&self, fault: Fault) -> Option<u64> {
        let mut state = self.lock();
        if state.faults.len() >= FAULTS_MAX {
            return None;
        }
        state.next_id += 1;
        let id = state.next_id;
        state.faults.push(Standing::new(id, fault));
        self.standing.store(state.faults.len(), Ordering::Relaxed);
        Some(id)
    }

    /// Takes a fault away. False if it is not there.
    pub fn remove(&self, id: u64) -> bool {
        let mut state = self.lock();
        let before = state.faults.len();
        state.faults.retain(|standing| standing.id != id);
        self.standing.store(state.faults.len(), Ordering::Relaxed);
        state.faults.len() < before
    }

    /// Takes all faults away.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.faults.clear();
        self.standing.store(0, Ordering::Relaxed);
    }

    /// All faults that were added, those that are over (count reached) included until they are removed.
    pub fn list(&self) -> Vec<FaultStatus> {
        let status = |s: &Standing| FaultStatus { id: s.id, fault: s.fault.clone(), struck: s.struck };
        self.lock().faults.iter().map(status).collect()
    }

    /// Whether something strikes here, and what: the oldest fault that fits and whose chance comes.
    pub fn decide(&self, point: Point, identity: Option<&Identity>) -> Option<Action> {
        if self.standing.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut state = self.lock();
        state.faults.iter_mut().find_map(|standing| standing.decide(point, identity))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Standing {
    fn new(id: u64, fault: Fault) -> Self {
        Self { id, chance: Chance(fault.seed), fault, skipped: 0, struck: 0 }
    }

    fn decide(&mut self, point: Point, identity: Option<&Identity>) -> Option<Action> {
        let fault = &self.fault;
        let over = fault.count.is_some_and(|count| self.struck >= count);
        if over || fault.point != point || !device_fits(fault.device.as_deref(), identity) {
            return None;
        }
        if self.skipped < fault.skip {
            self.skipped += 1;
            return None;
        }
        if self.chance.next() >= fault.probability {
            return None;
        }
        self.struck += 1;
        Some(fault.action.clone())
    }
}

/// Whether the device of this identity fits the pattern; without a pattern everyone does.
pub fn device_fits(pattern: Option<&str>, identity: Option<&Identity>) -> bool {
    match (pattern, identity) {
        (None, _) => true,
        (Some(pattern), Some(identity)) => glob::fits(pattern, &identity.device),
        (Some(_), None) => false,
    }
}

/// SplitMix64: numbers in [0, 1) that depend on the seed alone.
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(fault: Fault, asks: usize) -> String {
        let faults = Faults::default();
        faults.add(fault).expect("few stand");
        let device = Identity::device("dev-1");
        let ask = |_| if faults.decide(Point::Telemetry, Some(&device)).is_some() { 'x' } else { '.' };
        (0..asks).map(ask).collect()
    }

    #[test]
    fn a_fault_strikes_after_skip_and_count_times() {
        for (fault, expected) in [
            (Fault::new(Action::Release), "xxxxxx"),
            (Fault::new(Action::Release).count(2), "xx...."),
            (Fault::new(Action::Release).skip(1).count(2), ".xx..."),
            (Fault::new(Action::Release).device("dev-?"), "xxxxxx"),
            (Fault::new(Action::Release).device("other"), "......"),
            (Fault::new(Action::Release).at(Point::Twin), "......"),
            (Fault::new(Action::Release).probability(0.0, 1), "......"),
        ] {
            assert_eq!(pattern(fault.clone(), 6), expected, "{fault:?}");
        }
    }

    #[test]
    fn the_seed_alone_decides_which_ones_are_struck() {
        let fault = |seed| Fault::new(Action::Release).probability(0.3, seed);
        assert_eq!(pattern(fault(7), 1000), pattern(fault(7), 1000));
        assert_ne!(pattern(fault(7), 1000), pattern(fault(8), 1000));
        let struck = pattern(fault(7), 10_000).matches('x').count();
        assert!((2_800..3_200).contains(&struck), "{struck}");
    }

    #[test]
    fn a_removed_fault_strikes_no_more() {
        let faults = Faults::default();
        let id = faults.add(Fault::new(Action::Release)).expect("few stand");
        assert!(faults.remove(id));
        assert!(!faults.remove(id));
        assert_eq!(faults.decide(Point::Telemetry, None), None);
    }
}
