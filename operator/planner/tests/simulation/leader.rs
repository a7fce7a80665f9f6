//! The operator: one step of the planner at a time, what it decided carried out one thing after the other. It may die before
//! and after each of them.

use planner::{
    Cause, Decision, Deployment, Drain, Input, Ledger, Millis, Order, Pod, Rebalanced, Spec, State,
    budget::ORDER_TIMEOUT,
    plan,
    upstream::{self, Upstream},
};

use crate::{
    cluster::{Cluster, SimPod},
    judge::Judge,
    random::Random,
    world::{TICK, log},
};

/// What is persisted.
#[derive(Default)]
pub(crate) struct Store {
    pub(crate) drains: Vec<Drain>,
    pub(crate) rebalanced: Rebalanced,
    pub(crate) upstream: Upstream,
}

/// An order on its way of a leader that is no more.
pub(crate) struct Late {
    pub(crate) at: Millis,
    pod: String,
    order: Order,
    epoch: i64,
}

/// The one that leads.
pub(crate) struct Leader {
    pub(crate) epoch: i64,
    ledger: Ledger,
    next: Millis,
    /// It has not heard of the pods' loads yet.
    blind_until: Millis,
    /// One step in so many kills it; 0: it lives.
    pub(crate) mortality: usize,
    /// How the fleet gets on with the upstream.
    upstream: Upstream,
    /// It decided to do something at its last step.
    pub(crate) is_busy: bool,
}

/// What a leader works with.
pub(crate) struct Around<'a> {
    pub(crate) cluster: &'a mut Cluster,
    pub(crate) store: &'a mut Store,
    pub(crate) judge: &'a mut Judge,
    pub(crate) late: &'a mut Vec<Late>,
    pub(crate) random: &'a mut Random,
}

pub(crate) struct Dead;

impl Leader {
    pub(crate) fn new(epoch: i64, now: Millis, mortality: usize, plan: &[Drain], random: &mut Random) -> Self {
        let blind_until = now + random.between(0, 6) * TICK;
        Self {
            epoch,
            ledger: Ledger::new(now, plan),
            next: now,
            blind_until,
            mortality,
            upstream: Upstream::Well,
            is_busy: true,
        }
    }

    fn survives(&self, random: &mut Random) -> Result<(), Dead> {
        if self.mortality > 0 && random.one_in(self.mortality) { Err(Dead) } else { Ok(()) }
    }

    pub(crate) fn step(&mut self, now: Millis, spec: Spec, around: &mut Around<'_>) -> Result<(), Dead> {
        if now < self.next {
            return Ok(());
        }
        around.judge.tally.plans += 1;
        let decision = self.decide(now, spec, around);
        self.survives(around.random)?;
        let persists = persist(now, self.epoch, &decision, around);
        around.store.upstream = self.upstream;
        for (pod, order) in &decision.orders {
            if let Err(dead) = self.survives(around.random) {
                // it was sent, and arrives when another leads
                let at = now + around.random.between(0, ORDER_TIMEOUT / TICK) * TICK;
                around.late.push(Late { at, pod: pod.clone(), order: *order, epoch: self.epoch });
                return Err(dead);
            }
            self.tell(now, around.cluster, pod, *order);
        }
        for (pod, cost) in &decision.deletion_costs {
            self.survives(around.random)?;
            around.cluster.pods.iter_mut().filter(|there| &there.name == pod).for_each(|there| there.cost = *cost);
        }
        self.survives(around.random)?;
        let replicas = decision.replicas.unwrap_or(around.cluster.replicas);
        let scales = replicas != around.cluster.replicas;
        if scales {
            log(around.cluster.loud, now, || format!("Deployment {} -> {replicas}", around.cluster.replicas));
        }
        around.cluster.replicas = replicas;
        self.is_busy = persists || scales || !decision.orders.is_empty() || !decision.deletion_costs.is_empty();
        // what is written is seen at once, and looked at again
        self.next =
            now + if self.is_busy { around.random.between(0, 3) * TICK } else { around.random.between(1, 5) * TICK };
        Ok(())
    }

    fn decide(&mut self, now: Millis, spec: Spec, around: &Around<'_>) -> Decision {
        let (cluster, store) = (&around.cluster, &around.store);
        let pods: Vec<Pod> = cluster.pods.iter().map(|pod| self.see(now, pod, cluster.template)).collect();
        self.ledger.see(pods.iter().map(|pod| (pod.name.as_str(), pod.deletion_cost)), now);
        let deployment = Deployment {
            replicas: cluster.replicas,
            running: cluster.alive_count(),
            rolling: cluster.is_rolling(),
            behind: cluster.is_behind(),
            refused: cluster.is_refused(now),
        };
        self.upstream = upstream::of(pods.iter().filter_map(|pod| pod.load.as_ref()), store.upstream);
        let decision = plan(&Input {
            now,
            epoch: self.epoch,
            spec,
            deployment: Some(deployment),
            pods: &pods,
            drains: &store.drains,
            rebalanced: store.rebalanced,
            upstream: self.upstream,
            ledger: &self.ledger,
        });
        self.ledger.looked(&decision.alone, now);
        if moving(&decision.drains) && !moving(&store.drains) {
            Judge::rebalance_begins(now, spec.skew_max, &pods, store.rebalanced);
        }
        decision
    }

    fn tell(&mut self, now: Millis, cluster: &mut Cluster, pod: &str, order: Order) {
        self.ledger.sending(pod, order, now);
        let Some(pod) = cluster.pods.iter_mut().find(|there| there.name == pod) else { return };
        if !pod.runs(now) || now < pod.silent_until {
            return;
        }
        let taken = pod.gateway.take(order, self.epoch, now);
        if taken && now >= pod.mute_until {
            self.ledger.confirmed(&pod.name, now);
        }
        log(cluster.loud, now, || format!("{} is told by {}: {order:?}: {taken}", pod.name, self.epoch));
    }

    fn see(&self, now: Millis, pod: &SimPod, template: u32) -> Pod {
        let heard = pod.said(now).filter(|load| now >= self.blind_until || now - load.age > self.blind_until);
        Pod {
            name: pod.name.clone(),
            running: pod.runs(now),
            ready: pod.ready,
            ready_changed: pod.ready_changed,
            ends: pod.gateway.stop.map(|stop| stop.deadline),
            outdated: pod.template != template,
            deletion_cost: pod.cost,
            load: heard,
        }
    }
}

/// Whether there was anything new.
fn persist(now: Millis, epoch: i64, decision: &Decision, around: &mut Around<'_>) -> bool {
    let (store, tally) = (&mut *around.store, &mut around.judge.tally);
    if store.drains == decision.drains && store.rebalanced == decision.rebalanced {
        return false;
    }
    tally.undone += u64::from(count(&decision.drains, State::Undoing) > count(&store.drains, State::Undoing));
    tally.rebalances += u64::from(moving(&decision.drains) && !moving(&store.drains));
    let short = |drain: &Drain| {
        let Drain { pod, cause, state, remaining, per_second, .. } = drain;
        format!("{pod} {cause:?} {state:?} {remaining}@{per_second}")
    };
    let plan = || decision.drains.iter().map(short).collect::<Vec<_>>().join(", ");
    log(around.cluster.loud, now, || format!("plan {epoch}: {}", plan()));
    store.drains.clone_from(&decision.drains);
    store.rebalanced = decision.rebalanced;
    true
}

fn moving(drains: &[Drain]) -> bool {
    drains.iter().any(|drain| drain.cause == Cause::Rebalance)
}

fn count(drains: &[Drain], state: State) -> usize {
    drains.iter().filter(|drain| drain.state == state).count()
}

impl Late {
    /// Arrives at last.
    pub(crate) fn arrive(&self, now: Millis, cluster: &mut Cluster, judge: &mut Judge) {
        let Some(pod) = cluster.pods.iter_mut().find(|pod| pod.name == self.pod) else { return };
        let taken = pod.gateway.take(self.order, self.epoch, now);
        judge.tally.stale_orders_refused += u64::from(!taken);
        log(cluster.loud, now, || format!("{} is told late by {}: {:?}: {taken}", pod.name, self.epoch, self.order));
    }
}
