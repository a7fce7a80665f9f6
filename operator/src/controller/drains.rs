//! Carries out what the plan orders, once it is persisted: pods are marked and told.

use crds::ProtocolGateway;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Resource};
use planner::budget;
use tracing::{debug, info, warn};

use super::World;
use crate::{
    apply::Memory,
    error::{Kind as Failure, ReconcileError, Step},
    events,
    kinds::POD,
    observe::{Observed, Way, mirror::Name},
    orders::{self, Book},
    pods::{Fleet, Lost, Order, OrderError},
    scaling::{self, Plan},
};

impl World {
    /// Marks the pods that are to go first, before the Deployment is told of fewer; whether all are.
    pub(super) async fn mark(
        &self,
        gateway: &ProtocolGateway,
        plan: &Plan,
        memory: &mut Memory,
    ) -> Result<bool, ReconcileError> {
        let mut all = true;
        let name = Name::of(&gateway.metadata);
        let pods: Api<Pod> = Api::namespaced(self.writer.client.clone(), &name.namespace);
        for (pod, cost) in &plan.deletion_costs {
            let title = format!("Pod {pod}");
            let ended = self.writer.write(Step::Apply, &title, orders::mark(&pods, pod, *cost)).await;
            if memory.ended((Way::Mark, &title), "", ended)? {
                self.metrics.writes.with_label_values(&[POD.name]).inc();
                info!(gateway = %name, pod, cost, "deletion cost written");
            } else {
                all = false;
            }
        }
        memory.keep(Way::Mark, |title| plan.deletion_costs.iter().any(|(pod, _)| title == format!("Pod {pod}")));
        Ok(all)
    }

    /// Tells the pods. One that does not take its order is told again.
    pub(super) async fn order(
        &self,
        gateway: &ProtocolGateway,
        epoch: i64,
        plan: &Plan,
        book: &mut Book,
    ) -> Result<(), ReconcileError> {
        let name = Name::of(&gateway.metadata);
        let fleet = Fleet::from(&name);
        let persisted = gateway.status.as_ref().map_or(&[][..], |status| &status.drains);
        let ledger = book.ledger(epoch, persisted, Timestamp::now());
        let tell = |pod: String, order: planner::Order| {
            let (fleet, order) = (fleet.clone(), translated(order, epoch));
            async move {
                if self.writer.leadership.epoch() != Some(epoch) {
                    return Err(NotTaken::NotLeading);
                }
                debug!(%fleet, pod, ?order, "told");
                self.pods.order(&fleet, &pod, order).await.map(drop).map_err(NotTaken::Pod)
            }
        };
        let carried = orders::carry_out(plan, ledger, || scaling::millis(Timestamp::now()), tell).await;
        for (pod, why) in carried.failed {
            if let NotTaken::Pod(OrderError::Unknown) = why {
                // it starts, or is gone already
                debug!(gateway = %name, pod, %why, "an order was not taken");
            } else {
                warn!(gateway = %name, pod, %why, "an order was not taken");
            }
        }
        if self.writer.leadership.epoch() == Some(epoch) {
            return Ok(());
        }
        let message = "another replica leads".to_owned();
        Err(ReconcileError { step: Step::Apply, kind: Failure::NotLeader, object: "orders".to_owned(), message })
    }

    /// Pods that went with devices since the last look.
    pub(super) fn lost(&self, gateway: &ProtocolGateway, observed: &Observed) -> Vec<Lost> {
        let budget = u64::try_from(gateway.spec.reconnects.per_second).unwrap_or(0);
        let is_ready = |name: &str| observed.pods.iter().any(|pod| pod.name == name && pod.ready);
        self.pods.lost(&Fleet::from(&Name::of(&gateway.metadata)), budget, is_ready)
    }

    /// Says what could not be held to the budget.
    pub(super) async fn report(&self, gateway: &ProtocolGateway, lost: &[Lost]) {
        let name = Name::of(&gateway.metadata);
        let count = lost.iter().map(|lost| lost.connections).sum();
        self.metrics.connections_lost.with_label_values(&[&name.namespace, &name.name]).inc_by(count);
        let Some(news) = events::lost(lost) else { return };
        warn!(gateway = %name, connections = count, ?lost, "pods went with connections");
        self.events.publish(&gateway.object_ref(&()), vec![news]).await;
    }

    /// Which drains are under way, and what of the budget nobody uses.
    pub(super) fn count(&self, gateway: &ProtocolGateway, plan: &Plan) {
        let name = Name::of(&gateway.metadata);
        self.metrics.forget_drains(&name.namespace, &name.name);
        for drain in &plan.drains {
            let cause = format!("{:?}", drain.cause);
            self.metrics.drains.with_label_values(&[&name.namespace, &name.name, &cause]).inc();
        }
        let left = unused(gateway.spec.reconnects.per_second, plan);
        self.metrics.reconnect_budget.with_label_values(&[&name.namespace, &name.name]).set(left as f64);
    }
}

/// What nobody uses of a budget: neither by a drain nor, beside it, alone.
fn unused(per_second: i64, plan: &Plan) -> i64 {
    let is_drained = |pod: &str| plan.drains.iter().any(|drain| drain.pod == pod);
    let drained: i64 = plan.drains.iter().map(|drain| drain.rate_per_second).sum();
    let alone = plan.alone.iter().filter(|(pod, _)| !is_drained(pod)).map(|(_, rate)| i64::from(*rate));
    (per_second - drained - alone.sum::<i64>()).max(0)
}

/// Why an order was not taken.
#[derive(Debug, thiserror::Error)]
enum NotTaken {
    #[error("another replica leads")]
    NotLeading,
    #[error(transparent)]
    Pod(OrderError),
}

/// An order in the words of pods.
fn translated(order: planner::Order, epoch: i64) -> Order {
    match order {
        planner::Order::Undrain => Order::Undrain { epoch },
        planner::Order::Drain(drain) => Order::Drain {
            cause: scaling::cause(drain.cause),
            epoch,
            per_second: f64::from(drain.per_second),
            lease_seconds: budget::LEASE as f64 / 1000.0,
            down_to: drain.down_to,
            leave: drain.leave,
        },
    }
}

#[cfg(test)]
mod tests {
    use crds::status::Drain;
    use serde_json::json;

    use super::*;

    fn drain(pod: &str, rate_per_second: i64) -> Drain {
        let time = "2026-01-01T00:00:00Z";
        let drain = json!({
            "pod": pod, "cause": "ScaleIn", "state": "Draining", "startedAt": time, "deadline": time, "remaining": 5,
            "ratePerSecond": rate_per_second, "downTo": 0, "epoch": 1,
        });
        serde_json::from_value(drain).expect("it is a drain")
    }

    #[test]
    fn what_pods_let_go_alone_is_used_and_counts_once() {
        let check = |drains: &[(&str, i64)], alone: &[(&str, u32)], expected: i64| {
            let plan = Plan {
                drains: drains.iter().map(|(pod, rate)| drain(pod, *rate)).collect(),
                alone: alone.iter().map(|(pod, rate)| ((*pod).to_owned(), *rate)).collect(),
                ..Plan::default()
            };
            assert_eq!(unused(10, &plan), expected, "{drains:?} {alone:?}");
        };
        check(&[], &[], 10);
        check(&[("a", 4)], &[], 6);
        check(&[("a", 4)], &[("b", 3)], 3);
        check(&[("a", 4)], &[("a", 3)], 6);
        check(&[("a", 8)], &[("b", 3)], 0);
    }
}
