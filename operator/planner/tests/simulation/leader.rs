//! The operator: one step of the planner at a time, what it decided carried out one thing after the other. It may die before
//! and after each of them.

use planner::{
    Deployment, Drain, Input, Ledger, Millis, Order, Pod, Rebalanced, Spec, State, budget::ORDER_TIMEOUT, plan,
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
    /// It decided to do something at its last step.
    pub(crate) is_busy: bool,
}

pub(crate) struct Dead;

impl Leader {
    pub(crate) fn new(epoch: i64, now: Millis, mortality: usize, random: &mut Random) -> Self {
        let blind_until = now + random.between(0, 6) * TICK;
        Self { epoch, ledger: Ledger::new(now), next: now, blind_until, mortality, is_busy: true }
    }

    fn survives(&self, random: &mut Random) -> Result<(), Dead> {
        if self.mortality > 0 && random.one_in(self.mortality) { Err(Dead) } else { Ok(()) }
    }

    pub(crate) fn step(
        &mut self,
        now: Millis,
        spec: Spec,
        cluster: &mut Cluster,
        store: &mut Store,
        judge: &mut Judge,
        late: &mut Vec<Late>,
        random: &mut Random,
    ) -> Result<(), Dead> {
        if now < self.next {
            return Ok(());
        }
        judge.tally.plans += 1;
        let pods: Vec<Pod> = cluster.pods.iter().map(|pod| self.see(now, pod, cluster.template)).collect();
        self.ledger.retain(|name| pods.iter().any(|pod| pod.name == name), now);
        let deployment = Deployment {
            replicas: cluster.replicas,
            running: cluster.alive_count(),
            rolling: cluster.is_rolling(),
            behind: cluster.is_behind(),
        };
        let input = Input {
            now,
            epoch: self.epoch,
            spec,
            deployment: Some(deployment),
            pods: &pods,
            drains: &store.drains,
            rebalanced: store.rebalanced,
            ledger: &self.ledger,
        };
        let decision = plan(&input);
        let told: Vec<(Option<Drain>, String, Order)> = decision
            .orders
            .iter()
            .map(|(pod, order)| (store.drains.iter().find(|drain| &drain.pod == pod).cloned(), pod.clone(), *order))
            .collect();
        self.survives(random)?;
        judge.tally.undone += u64::from(count(&decision.drains, State::Undoing) > count(&store.drains, State::Undoing));
        let moving = |drains: &[Drain]| drains.iter().any(|drain| drain.cause == planner::Cause::Rebalance);
        judge.tally.rebalances += u64::from(moving(&decision.drains) && !moving(&store.drains));
        let persists = store.drains != decision.drains || store.rebalanced != decision.rebalanced;
        if store.drains != decision.drains {
            log(cluster.loud, now, || {
                let short = |drain: &Drain| {
                    format!(
                        "{} {:?} {:?} {}@{}",
                        drain.pod, drain.cause, drain.state, drain.remaining, drain.per_second
                    )
                };
                format!("plan {}: {}", self.epoch, decision.drains.iter().map(short).collect::<Vec<_>>().join(", "))
            });
        }
        store.drains = decision.drains;
        store.rebalanced = decision.rebalanced;
        for (drain, pod, order) in told.iter() {
            if let Err(dead) = self.survives(random) {
                let at = now + random.between(0, ORDER_TIMEOUT / TICK) * TICK;
                late.push(Late { at, pod: pod.clone(), order: *order, epoch: self.epoch });
                return Err(dead);
            }
            self.tell(now, cluster, drain.as_ref(), pod, *order);
        }
        for (pod, cost) in &decision.deletion_costs {
            self.survives(random)?;
            cluster.pods.iter_mut().filter(|there| &there.name == pod).for_each(|there| there.cost = *cost);
        }
        self.survives(random)?;
        let replicas = decision.replicas.unwrap_or(cluster.replicas);
        self.is_busy =
            persists || !told.is_empty() || !decision.deletion_costs.is_empty() || replicas != cluster.replicas;
        if replicas != cluster.replicas {
            log(cluster.loud, now, || format!("Deployment {} -> {replicas}", cluster.replicas));
        }
        cluster.replicas = replicas;
        self.next = now + if self.is_busy { TICK } else { random.between(1, 5) * TICK };
        Ok(())
    }

    fn tell(&mut self, now: Millis, cluster: &mut Cluster, drain: Option<&Drain>, pod: &str, order: Order) {
        self.ledger.sending(drain, pod, order, now);
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
        let heard = pod.report.as_ref().filter(|(_, at)| now >= self.blind_until || *at > self.blind_until);
        Pod {
            name: pod.name.clone(),
            running: pod.runs(now),
            ready: pod.ready,
            ready_changed: pod.ready_changed,
            ends: pod.ends,
            outdated: pod.template != template,
            deletion_cost: pod.cost,
            load: heard.map(|(load, at)| planner::Load { age: now - at, ..load.clone() }),
        }
    }
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
