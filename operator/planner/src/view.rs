//! What was seen, with the questions that every part of a step asks.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Cause, Drain, Input, Millis, Pod, State};

/// A pod that said nothing for so long is not counted upon.
pub(crate) const FRESH: Millis = 10_000;
/// From not ready to nobody coming: load balancers have to hear of it.
pub(crate) const SETTLE: Millis = 5_000;

/// One step's input, indexed.
pub(crate) struct View<'a> {
    pub(crate) input: &'a Input<'a>,
    pods: BTreeMap<&'a str, &'a Pod>,
    leaving: BTreeSet<&'a str>,
}

impl<'a> View<'a> {
    pub(crate) fn new(input: &'a Input<'a>) -> Self {
        let pods = input.pods.iter().map(|pod| (pod.name.as_str(), pod)).collect();
        let leaves = |drain: &&Drain| drain.cause == Cause::ScaleIn && drain.state != State::Undoing;
        let leaving = input.drains.iter().filter(leaves).map(|drain| drain.pod.as_str()).collect();
        Self { input, pods, leaving }
    }

    pub(crate) fn now(&self) -> Millis {
        self.input.now
    }

    pub(crate) fn pod(&self, name: &str) -> Option<&'a Pod> {
        self.pods.get(name).copied()
    }

    /// Pods that were not told to stop.
    pub(crate) fn staying(&self) -> impl Iterator<Item = &'a Pod> + use<'a> {
        self.input.pods.iter().filter(|pod| pod.ends.is_none())
    }

    pub(crate) fn staying_count(&self) -> u32 {
        u32::try_from(self.staying().count()).unwrap_or(u32::MAX)
    }

    pub(crate) fn rolling(&self) -> bool {
        self.input.deployment.is_some_and(|deployment| deployment.rolling) || self.staying().any(|pod| pod.outdated)
    }

    /// Somewhere to go: a pod that takes devices and is to stay.
    pub(crate) fn has_place(&self) -> bool {
        self.staying().any(|pod| pod.ready && !self.leaving.contains(pod.name.as_str()))
    }

    /// Devices that are let go now may come to a pod that will have to let them go again.
    pub(crate) fn has_outdated_place(&self) -> bool {
        self.staying().any(|pod| pod.ready && pod.outdated)
    }

    /// What was persisted for this pod by this leader: only that may be acted upon.
    pub(crate) fn persisted(&self, pod: &str) -> Option<&'a Drain> {
        self.input.drains.iter().find(|drain| drain.pod == pod && drain.epoch == self.input.epoch)
    }
}

impl Pod {
    /// It answers.
    pub(crate) fn is_fresh(&self) -> bool {
        self.load.as_ref().is_some_and(|load| load.age <= FRESH)
    }

    /// Devices on it as last seen; `None` if nobody knows.
    pub(crate) fn devices(&self) -> Option<u64> {
        if self.running { self.load.as_ref().map(|load| load.connections) } else { Some(0) }
    }

    /// For certain nobody is on it.
    pub(crate) fn is_empty(&self) -> bool {
        !self.running || (self.is_fresh() && self.devices() == Some(0))
    }
}
