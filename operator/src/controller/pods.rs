//! Pods, as they tell themselves: whom to ask, and what of their answers decisions look at.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crds::ProtocolGateway;
use planner::upstream::{self, Upstream};
use rustls::ClientConfig;

use super::World;
use crate::{
    desired, metrics_api, names,
    observe::{DrainFacts, Load, Observed, mirror::Name, pods::SeenPod},
    pods::{DrainState, Fleet, Pods, Report, Target},
    scaling,
};

impl From<&Name> for Fleet {
    fn from(name: &Name) -> Self {
        Self::new(&name.namespace, &name.name)
    }
}

impl World {
    /// Says whom of a fleet to ask, and fills in what they said.
    pub(super) fn ask(&self, gateway: &ProtocolGateway, observed: &mut Observed, client: Option<&Arc<ClientConfig>>) {
        let name = Name::of(&gateway.metadata);
        let fleet = Fleet::from(&name);
        if let Some(client) = client {
            let tls = desired::tls_listeners(observed.config_in_force.as_deref());
            let host = names::control_host(&name.name, &name.namespace);
            let seen = self.mirror.pods(&name);
            let targets = seen.iter().filter_map(|pod| target(pod, gateway, &tls, &host)).collect();
            self.pods.watch(&fleet, targets, client);
        }
        let reports = self.pods.reports(&fleet);
        for pod in &mut observed.pods {
            if let Some(report) = reports.get(&pod.name) {
                pod.load = load(report);
                pod.silent = report.silence().map(str::to_owned);
                pod.served.clone_from(&report.served);
            }
        }
        self.meter.note(&name, gateway, observed);
    }
}

/// How to ask a pod, once it has an address.
fn target(pod: &SeenPod, gateway: &ProtocolGateway, tls: &[String], host: &str) -> Option<Target> {
    let said = gateway.status.iter().flat_map(|status| &status.pods).find(|said| said.name == pod.facts.name);
    Some(Target {
        pod: pod.facts.name.clone(),
        uid: pod.uid.clone(),
        address: pod.address?,
        admin_port: *pod.ports.get(desired::ADMIN_PORT)?,
        listeners_tls_ports: tls.iter().filter_map(|listener| pod.ports.get(listener).copied()).collect(),
        server_name: host.to_owned(),
        known: said.and_then(|said| u64::try_from(said.connections?).ok()),
    })
}

/// A pod that is silent counts by what it said last.
fn load(report: &Report) -> Option<Load> {
    let said = report.load.as_ref()?;
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let drain = said.drain.as_ref().map(|drain| DrainFacts {
        cause: drain.cause,
        epoch: drain.epoch,
        per_second: if drain.state == DrainState::Draining { drain.per_second } else { 0.0 },
        remaining: number(drain.remaining),
    });
    Some(Load {
        connections: number(said.connections.saturating_add(said.handshaking)),
        age_s: number(report.stale_for.as_secs()),
        upstream_failing: said.upstream.failing.clone(),
        upstream_throttled: said.upstream.throttled,
        drain,
        config_problem: said.config.problem.clone(),
        secrets_problem: said.secrets_problem.clone(),
    })
}

/// What the metrics API needs of each fleet beside what its pods say: an upstream that is the bottleneck must not make more
/// pods. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Meters(Arc<Mutex<HashMap<Name, Held>>>);

#[derive(Debug, Clone, Copy)]
struct Held {
    upstream: Upstream,
    replicas: u32,
    /// Connections that a pod is to hold.
    target: Option<u64>,
    /// Connections before the upstream became the bottleneck.
    last_well: Option<u64>,
}

impl Meters {
    fn fleets(&self) -> MutexGuard<'_, HashMap<Name, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, name: &Name, gateway: &ProtocolGateway, observed: &Observed) {
        let connections: i64 = observed.pods.iter().filter_map(|pod| Some(pod.load.as_ref()?.connections)).sum();
        let mut fleets = self.fleets();
        let upstream = scaling::upstream(observed);
        let last_well = match upstream {
            Upstream::Well => u64::try_from(connections).ok(),
            _ => fleets.get(name).and_then(|held| held.last_well),
        };
        let replicas = u32::try_from(gateway.spec.replicas).unwrap_or(0);
        let target = scaling::bounds(gateway).map(|bounds| bounds.target);
        fleets.insert(name.clone(), Held { upstream, replicas, target, last_well });
    }

    pub(super) fn forget(&self, name: &Name) {
        self.fleets().remove(name);
    }

    /// What an autoscaler is told where so many devices are connected or about to come back.
    pub fn reported(&self, fleet: &Fleet, connections: u64) -> u64 {
        let held = self.fleets().get(&Name::new(&fleet.namespace, &fleet.name)).copied();
        held.map_or(connections, |held| {
            upstream::reported(connections, held.upstream, held.replicas, held.target, held.last_well)
        })
    }

    /// What the metrics API says of a fleet now.
    pub fn meter(&self, pods: &Pods) -> metrics_api::Meter {
        let (meters, pods) = (self.clone(), pods.clone());
        Arc::new(move |fleet| {
            let mut reading = metrics_api::Reading::from(pods.measured(fleet)?);
            reading.connections = meters.reported(fleet, reading.connections);
            Some(reading)
        })
    }
}
