//! Carries out what the plan orders: pods are told, and pods that were drained are marked to be deleted first. Only what is
//! persisted is carried out, only by the one that leads, and everything that may have reached a pod is in the ledger.

use std::future::Future;

use crds::status::Drain;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use planner::{Ledger, Millis, Order, autoscale::History};
use serde_json::json;

use crate::{
    observe::PodFacts,
    scaling::{self, Plan},
};

/// Annotation by which a ReplicaSet chooses whom to delete.
pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// Pods told at a time: more than that would have to wait, and their orders' leases with them.
const CONCURRENCY: usize = 256;

/// What this replica told the pods of a fleet since it leads; another epoch begins anew.
#[derive(Debug, Default)]
pub struct Book {
    /// What was recommended lately, where the operator is the fleet's autoscaler.
    pub history: History,
    of: Option<(i64, Ledger)>,
}

impl Book {
    /// The ledger of this epoch; `persisted` are the drains in status, which a new leader takes over.
    pub fn ledger(&mut self, epoch: i64, persisted: &[Drain], now: Timestamp) -> &mut Ledger {
        if self.of.as_ref().is_none_or(|(of, _)| *of != epoch) {
            *self = Self::default();
        }
        let inherit = || {
            let plan: Vec<planner::Drain> = persisted.iter().map(scaling::read_drain).collect();
            (epoch, Ledger::new(scaling::millis(now), &plan))
        };
        &mut self.of.get_or_insert_with(inherit).1
    }

    /// To be called before each plan with the pods that there are; `now` is not rounded.
    pub fn see(&mut self, pods: &[PodFacts], now: Timestamp) {
        if let Some((_, ledger)) = &mut self.of {
            ledger.see(pods.iter().map(|pod| (pod.name.as_str(), pod.deletion_cost)), scaling::millis(now));
        }
    }

    /// To be called after each plan; `now` is not rounded.
    pub fn looked(&mut self, plan: &Plan, now: Timestamp) {
        if let Some((_, ledger)) = &mut self.of {
            ledger.looked(&plan.alone, scaling::millis(now));
        }
    }
}

/// How carrying out went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried<Failure> {
    /// Orders that pods took.
    pub taken: usize,
    /// Pods that did not take theirs, by name, with the reason. They are told again.
    pub failed: Vec<(String, Failure)>,
}

/// Tells the pods what the plan orders, all of them at once as far as there is room. `tell` gives one
/// pod its order and gives up before [`planner::budget::ORDER_TIMEOUT`].
pub async fn carry_out<Told, Failure>(
    plan: &Plan,
    ledger: &mut Ledger,
    clock: impl Fn() -> Millis,
    tell: impl Fn(String, Order) -> Told,
) -> Carried<Failure>
where
    Told: Future<Output = Result<(), Failure>>,
{
    let mut carried = Carried { taken: 0, failed: Vec::new() };
    for orders in plan.orders.chunks(CONCURRENCY) {
        for (pod, order) in orders {
            ledger.sending(pod, *order, clock());
        }
        let mut answers: FuturesUnordered<_> = orders
            .iter()
            .map(|(pod, order)| {
                let answer = tell(pod.clone(), *order);
                async move { (pod, answer.await) }
            })
            .collect();
        while let Some((pod, answer)) = answers.next().await {
            match answer {
                Ok(()) => {
                    ledger.confirmed(pod, clock());
                    carried.taken += 1;
                }
                Err(failure) => carried.failed.push((pod.clone(), failure)),
            }
        }
    }
    carried.failed.sort_by(|(a, _), (b, _)| a.cmp(b));
    carried
}

/// Writes or takes away a pod's deletion cost.
///
/// # Errors
/// What the API server says, but for a pod that is gone.
pub async fn mark(pods: &Api<Pod>, name: &str, cost: Option<i32>) -> Result<(), kube::Error> {
    let value = cost.map(|cost| cost.to_string());
    let patch = json!({"metadata": {"annotations": {DELETION_COST: value}}});
    match pods.patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        answer => answer.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, future};

    use super::*;

    const EPOCH: i64 = 3;

    fn plan() -> Plan {
        Plan { orders: vec![("a".to_owned(), Order::Undrain), ("b".to_owned(), Order::Undrain)], ..Plan::default() }
    }

    fn block<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
    }

    #[test]
    fn what_a_pod_did_not_confirm_stays_in_the_ledger() {
        let mut book = Book::default();
        let ledger = book.ledger(EPOCH, &[], Timestamp::UNIX_EPOCH);
        let told = RefCell::new(Vec::new());
        let tell = |pod: String, order: Order| {
            told.borrow_mut().push((pod.clone(), order));
            future::ready(if pod == "a" { Ok(()) } else { Err("no answer") })
        };
        let carried = block(carry_out(&plan(), ledger, || 1000, tell));
        assert_eq!(carried, Carried { taken: 1, failed: vec![("b".to_owned(), "no answer")] });
        assert_eq!(told.into_inner().len(), 2);
    }

    #[test]
    fn another_epoch_begins_a_new_ledger() {
        let mut book = Book::default();
        let at = |second| Timestamp::from_second(second).expect("a time");
        assert_eq!(book.ledger(1, &[], at(5)).since(), 5000);
        assert_eq!(book.ledger(1, &[], at(9)).since(), 5000);
        assert_eq!(book.ledger(2, &[], at(9)).since(), 9000);
    }
}
