//! Kubernetes as far as a fleet notices it: a Deployment that surges by one, a ReplicaSet that chooses whom to delete, kubelets
//! that probe, a load balancer of connections.

use planner::{Cause, Load, Millis, Ordered, upstream::Upstream};

use crate::{
    gateway::{Excuse, Gateway, Stop},
    random::Random,
    world::{ALONE_AFTER, TICK, log},
};

/// How long a new pod must be ready before an old one goes.
const MIN_READY: Millis = 4_000;

/// How long a kubelet may take to write a file anew.
pub(crate) const CONFIGURED_MAX: Millis = 90_000;

/// A pod and the process in it.
pub(crate) struct SimPod {
    pub(crate) name: String,
    pub(crate) template: u32,
    pub(crate) created: Millis,
    /// When its process listens.
    pub(crate) runs_at: Millis,
    pub(crate) ready: bool,
    pub(crate) ready_changed: Millis,
    pub(crate) next_probe: Millis,
    pub(crate) ends: Option<Millis>,
    pub(crate) cost: Option<i32>,
    /// What the ReplicaSet's controller knows: a moment behind.
    seen_cost: i32,
    seen_ready: bool,
    pub(crate) gateway: Gateway,
    /// A share of the budget that its file will say, and when.
    reconfigured: Option<(Millis, f64)>,
    /// What was last heard of it, and when.
    pub(crate) report: Option<(Load, Millis)>,
    /// It neither answers nor takes orders until then.
    pub(crate) silent_until: Millis,
    /// It takes orders, but its answers are lost until then.
    pub(crate) mute_until: Millis,
    /// Its answers are wrong until then.
    pub(crate) lies_until: Millis,
    /// Its probe fails until then.
    pub(crate) blinks_until: Millis,
    /// That it was told to stop was judged.
    pub(crate) reckoned: bool,
    /// Why it may be late.
    pub(crate) excuse: Option<Excuse>,
    /// Devices per second that it had to let go in the tick before.
    pub(crate) must_before: u32,
}

/// How long after a pod was out of order what comes of it may still be seen: it is asked anew, its probe is late, and what was
/// ordered meanwhile holds on.
pub(crate) const RECOVERS: Millis = ALONE_AFTER;

impl SimPod {
    /// It misbehaves, or did a moment ago.
    pub(crate) fn is_out_of_order(&self, now: Millis) -> bool {
        let until = self.silent_until.max(self.mute_until).max(self.lies_until).max(self.blinks_until);
        until > 0 && now < until + RECOVERS
    }

    /// It says what is not so, or did a moment ago.
    pub(crate) fn is_unbelieved(&self, now: Millis) -> bool {
        self.lies_until > 0 && now < self.lies_until + RECOVERS
    }

    pub(crate) fn runs(&self, now: Millis) -> bool {
        now >= self.runs_at
    }

    fn is_available(&self, now: Millis) -> bool {
        self.ready && now - self.ready_changed >= MIN_READY
    }

    pub(crate) fn probe(&mut self, now: Millis, random: &mut Random) {
        if now < self.next_probe {
            return;
        }
        self.next_probe = now + random.between(1, 5) * TICK;
        let ready = self.runs(now) && self.gateway.wants_devices() && now >= self.blinks_until;
        if ready != self.ready {
            self.ready = ready;
            self.ready_changed = now;
        }
    }

    pub(crate) fn reload(&mut self, now: Millis) {
        if let Some((_, share)) = self.reconfigured.take_if(|(at, _)| now >= *at) {
            self.gateway.reconfigure(share);
        }
    }

    pub(crate) fn scrape(&mut self, now: Millis, upstream: Upstream) {
        if !self.runs(now) || now < self.silent_until.max(self.mute_until) {
            return;
        }
        // who has no device has no need of the upstream
        let upstream = (!self.gateway.devices.is_empty()).then_some(upstream);
        let load = self.gateway.load(now, upstream);
        if now >= self.lies_until {
            self.report = Some((load, now));
        } else if let Some(lie) = self.lie(&load) {
            self.report = Some((lie, now));
        }
    }

    /// What was last heard of it.
    pub(crate) fn said(&self, now: Millis) -> Option<Load> {
        self.report.as_ref().map(|(load, at)| Load { age: now - at, ..load.clone() })
    }

    /// `None`: it makes no sense at all. Which one it is follows from when it ends.
    fn lie(&self, truth: &Load) -> Option<Load> {
        let connections = truth.connections;
        let ordered =
            |per_second| Ordered { cause: Some(Cause::ScaleIn), epoch: 0, per_second, remaining: connections };
        match self.lies_until / 1000 % 5 {
            0 => None,
            1 => Some(Load { connections: 0, drain: None, ..truth.clone() }),
            2 => Some(Load { connections: connections * 10 + 50, ..truth.clone() }),
            3 => Some(Load { connections: connections / 2, drain: None, ..truth.clone() }),
            _ => Some(Load { drain: Some(ordered(30)), ..truth.clone() }),
        }
    }
}

/// The Deployment with its controllers.
pub(crate) struct Cluster {
    pub(crate) pods: Vec<SimPod>,
    pub(crate) replicas: u32,
    pub(crate) template: u32,
    /// What its controller has seen of both.
    seen: (u32, u32),
    next_pod: u32,
    /// What new pods let go per second alone.
    share: f64,
    /// New pods do not become ready while this holds.
    pub(crate) stuck_until: Millis,
    /// The next one alone does not before.
    pub(crate) next_stuck_until: Millis,
    /// A quota refuses the last pod while this holds.
    pub(crate) refused_until: Millis,
    pub(crate) loud: bool,
}

/// What a told pod gets.
#[derive(Clone, Copy)]
pub(crate) struct Grace {
    pub(crate) drain_timeout: Millis,
    /// Until it is killed.
    pub(crate) beyond: Millis,
}

impl Cluster {
    pub(crate) fn new(replicas: u32, share: f64, loud: bool) -> Self {
        let seen = (replicas, 0);
        Self {
            pods: Vec::new(),
            replicas,
            template: 0,
            seen,
            next_pod: 0,
            share,
            stuck_until: 0,
            next_stuck_until: 0,
            refused_until: 0,
            loud,
        }
    }

    pub(crate) fn is_behind(&self) -> bool {
        self.seen != (self.replicas, self.template)
    }

    pub(crate) fn is_refused(&self, now: Millis) -> bool {
        now < self.refused_until && self.alive_count() < self.replicas
    }

    fn alive(&self) -> impl Iterator<Item = &SimPod> {
        self.pods.iter().filter(|pod| pod.ends.is_none())
    }

    pub(crate) fn alive_count(&self) -> u32 {
        self.alive().count() as u32
    }

    pub(crate) fn is_rolling(&self) -> bool {
        self.alive().any(|pod| pod.template != self.template)
    }

    pub(crate) fn control(&mut self, now: Millis, grace: Grace, random: &mut Random) -> Vec<usize> {
        self.seen = (self.replicas, self.template);
        let mut deleted = Vec::new();
        if self.alive().any(|pod| pod.template != self.template) {
            self.roll(now, grace, random);
        } else {
            let (alive, wanted) = (self.alive_count(), self.replicas);
            let granted = if now < self.refused_until { wanted.saturating_sub(1) } else { wanted };
            (alive..granted).for_each(|_| self.create(now, random));
            for _ in wanted..alive {
                let index = self.first_to_go(|_| true).expect("more are alive than wanted");
                self.stop(index, now, grace);
                deleted.push(index);
            }
        }
        for pod in &mut self.pods {
            (pod.seen_cost, pod.seen_ready) = (pod.cost.unwrap_or(0), pod.ready);
        }
        deleted
    }

    /// One more than wanted at most, none fewer available; old pods that are not ready go first.
    fn roll(&mut self, now: Millis, grace: Grace, random: &mut Random) {
        let (template, wanted) = (self.template, self.replicas);
        let new = self.alive().filter(|pod| pod.template == template).count() as u32;
        let new_unavailable =
            self.alive().filter(|pod| pod.template == template && !pod.is_available(now)).count() as u32;
        if new < wanted && self.alive_count() <= wanted {
            self.create(now, random);
        }
        let sick = |pod: &SimPod| pod.template != template && !pod.seen_ready;
        while self.alive_count() > wanted + new_unavailable {
            let Some(index) = self.first_to_go(sick) else { break };
            self.stop(index, now, grace);
        }
        let available = self.alive().filter(|pod| pod.is_available(now)).count() as u32;
        if available > wanted || wanted == 0 {
            let index = self.first_to_go(|pod| pod.template != template);
            if let Some(index) = index {
                self.stop(index, now, grace);
            }
        }
    }

    /// Not ready before ready, cheap before dear, recently ready before long ready, young before old.
    fn first_to_go(&self, of: impl Fn(&SimPod) -> bool) -> Option<usize> {
        let candidates =
            (0..self.pods.len()).filter(|index| self.pods[*index].ends.is_none() && of(&self.pods[*index]));
        candidates.min_by_key(|index| {
            let pod = &self.pods[*index];
            (pod.seen_ready, pod.seen_cost, -pod.ready_changed, -pod.created)
        })
    }

    fn create(&mut self, now: Millis, random: &mut Random) {
        let name = format!("p{}", self.next_pod);
        self.next_pod += 1;
        log(self.loud, now, || format!("{name} is made of template {}", self.template));
        self.pods.push(SimPod {
            name,
            template: self.template,
            created: now,
            runs_at: (now + random.between(1, 10) * TICK)
                .max(self.stuck_until)
                .max(std::mem::take(&mut self.next_stuck_until)),
            ready: false,
            ready_changed: now,
            next_probe: now,
            ends: None,
            cost: None,
            seen_cost: 0,
            seen_ready: false,
            gateway: Gateway::new(self.share, random.below(1000) as f64 / 1000.0),
            reconfigured: None,
            report: None,
            silent_until: 0,
            mute_until: 0,
            lies_until: 0,
            blinks_until: 0,
            reckoned: false,
            excuse: None,
            must_before: 0,
        });
    }

    pub(crate) fn stop(&mut self, index: usize, now: Millis, grace: Grace) {
        let pod = &mut self.pods[index];
        let devices = pod.gateway.devices.len();
        log(self.loud, now, || format!("{} is told to stop with {devices} devices", pod.name));
        pod.ends = Some(now + grace.drain_timeout + grace.beyond);
        pod.ready = false;
        pod.ready_changed = now;
        pod.gateway.stop(Stop { at: now, deadline: now + grace.drain_timeout });
    }

    /// What pods let go per second alone is written; each reads it when its kubelet gets to it.
    pub(crate) fn configure(&mut self, share: f64, now: Millis, random: &mut Random) {
        if share.total_cmp(&self.share).is_eq() {
            return;
        }
        self.share = share;
        for pod in &mut self.pods {
            pod.reconfigured = Some((now + random.between(0, CONFIGURED_MAX / TICK) * TICK, share));
        }
    }

    /// Where the load balancer sends a connection; it hears of changes a moment late.
    pub(crate) fn place(&self, random: &mut Random) -> Option<usize> {
        let ready = |index: &usize| self.pods[*index].seen_ready && self.pods[*index].ends.is_none();
        let places: Vec<usize> = (0..self.pods.len()).filter(ready).collect();
        (!places.is_empty()).then(|| places[random.below(places.len())])
    }
}
