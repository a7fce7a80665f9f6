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
    desired,
    metrics_api::{self, Reading},
    names,
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
        let reading = self.pods.measured(&fleet).map(Reading::from);
        self.meter.note(&name, gateway, observed, reading);
    }
}

/// How to ask a pod, once it has an address.
fn target(pod: &SeenPod, gateway: &ProtocolGateway, tls: &[String], host: &str) -> Option<Target> {
    let said = gateway.status.iter().flat_map(|status| &status.pods).find(|said| said.name == pod.facts.name);
    Some(Target {
        pod: pod.facts.name.clone(),
        uid: pod.uid.clone(),
        address: pod.address?,
        admin_port: *pod.facts.ports.get(desired::ADMIN_PORT)?,
        listeners_tls_ports: tls.iter().filter_map(|listener| pod.facts.ports.get(listener).copied()).collect(),
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
        upstream_unknown: said.upstream.connected == Some(false) && said.upstream.failing.is_none(),
        upstream_throttled: said.upstream.throttled,
        drain,
        config_in_force: Some(said.config.in_force.clone()).filter(|hash| !hash.is_empty()),
        forsaken_per_second: said.upstream.let_go_per_second.unwrap_or(0.0),
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
    /// Whether every pod said how it gets on with the upstream.
    heard: bool,
    /// What was read before the upstream became the bottleneck.
    last_well: Reading,
}

impl Held {
    /// What was seen of a fleet that is read so, after what was `before`.
    fn new(gateway: &ProtocolGateway, observed: &Observed, reading: Option<Reading>, before: Option<Self>) -> Self {
        let mut running = observed.pods.iter().filter(|pod| !pod.stopped).peekable();
        let heard = running.peek().is_some() && running.all(|pod| pod.load.is_some());
        let mut held = Self {
            upstream: scaling::upstream(gateway, observed),
            replicas: u32::try_from(gateway.spec.replicas).unwrap_or(0),
            target: scaling::bounds(gateway).map(|bounds| bounds.target),
            heard,
            last_well: before.map_or_else(|| read_before(gateway), |before| before.last_well),
        };
        held.read(reading);
        held
    }

    /// What is read while all is well is kept.
    fn read(&mut self, reading: Option<Reading>) {
        if let Some(reading) = reading.filter(|_| self.heard && self.upstream == Upstream::Well) {
            self.last_well = reading;
        }
    }

    fn connections(&self, connections: u64) -> Option<u64> {
        let Self { upstream, replicas, target, last_well, .. } = *self;
        upstream::reported(connections, upstream, replicas, target, last_well.connections)
    }

    /// What autoscalers are told of what is read.
    fn told(&self, reading: Reading) -> Reading {
        let rate = |now: Option<f64>, before| upstream::held(now?, self.upstream, before);
        Reading {
            connections: reading.connections.and_then(|connections| self.connections(connections)),
            messages_per_second: rate(reading.messages_per_second, self.last_well.messages_per_second),
            connects_per_second: rate(reading.connects_per_second, self.last_well.connects_per_second),
            age: reading.age,
        }
    }
}

/// What the last status says, if the upstream was well then: connections that came since are no reason for more pods.
fn read_before(gateway: &ProtocolGateway) -> Reading {
    let connections = gateway.status.as_ref().and_then(|status| u64::try_from(status.connections?).ok());
    let connections = connections.filter(|_| scaling::upstream_before(gateway) == Upstream::Well);
    Reading { connections, ..Reading::default() }
}

impl Meters {
    fn fleets(&self) -> MutexGuard<'_, HashMap<Name, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, name: &Name, gateway: &ProtocolGateway, observed: &Observed, reading: Option<Reading>) {
        let mut fleets = self.fleets();
        let held = Held::new(gateway, observed, reading, fleets.get(name).copied());
        fleets.insert(name.clone(), held);
    }

    pub(super) fn forget(&self, name: &Name) {
        self.fleets().remove(name);
    }

    /// What an autoscaler is told where so many devices are connected or about to come back; `None`: nothing.
    pub fn reported(&self, fleet: &Fleet, connections: u64) -> Option<u64> {
        let held = self.fleets().get(&Name::new(&fleet.namespace, &fleet.name)).copied();
        held.map_or(Some(connections), |held| held.connections(connections))
    }

    /// What the metrics API says of a fleet now.
    pub fn meter(&self, pods: &Pods) -> metrics_api::Meter {
        let (meters, pods) = (self.clone(), pods.clone());
        Arc::new(move |fleet| {
            let reading = Reading::from(pods.measured(fleet)?);
            let mut fleets = meters.fleets();
            let Some(held) = fleets.get_mut(&Name::new(&fleet.namespace, &fleet.name)) else { return Some(reading) };
            held.read(Some(reading));
            Some(held.told(reading))
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::observe::PodFacts;

    fn gateway(spec: &Value, status: &Value) -> ProtocolGateway {
        let mut gateway = json!({
            "apiVersion": crds::API_VERSION, "kind": crds::KIND, "metadata": {"name": "a"},
            "spec": {"upstream": {"iotHub": {"hostName": "hub.azure-devices.net"}}, "replicas": 3},
            "status": status,
        });
        gateway["spec"]["scaling"] = spec.clone();
        serde_json::from_value(gateway).expect("it is one")
    }

    fn status(saturated: &str, connections: i64) -> Value {
        let reason = if saturated == "True" { "Throttled" } else { "NotSaturated" };
        let time = "2026-11-21T12:00:00Z";
        let condition = json!({
            "type": "UpstreamSaturated", "status": saturated, "reason": reason, "message": "", "lastTransitionTime": time,
        });
        json!({"conditions": [condition], "connections": connections})
    }

    /// One pod: `None`, it said nothing yet; or whether it is throttled.
    fn observed(throttled: Option<bool>) -> Observed {
        let load = throttled.map(|upstream_throttled| Load { upstream_throttled, ..Load::default() });
        Observed { pods: vec![PodFacts { load, ..PodFacts::default() }], ..Observed::default() }
    }

    fn reading(connections: u64, rate: f64) -> Reading {
        let rate = Some(rate);
        Reading {
            connections: Some(connections),
            messages_per_second: rate,
            connects_per_second: rate,
            ..Reading::default()
        }
    }

    /// What is told after each look of an operator that begins anew.
    fn run(gateway: &ProtocolGateway, looks: &[(Option<bool>, Reading)]) -> Vec<Reading> {
        let mut held = None;
        let look = |(throttled, reading): &(Option<bool>, Reading)| {
            let now = Held::new(gateway, &observed(*throttled), Some(*reading), held);
            held = Some(now);
            now.told(*reading)
        };
        looks.iter().map(look).collect()
    }

    #[test]
    fn rates_and_connections_do_not_grow_while_the_hub_throttles() {
        let gateway = gateway(&Value::Null, &Value::Null);
        let looks =
            [(Some(false), reading(250, 10.0)), (Some(true), reading(900, 90.0)), (Some(true), reading(90, 1.0))];
        assert_eq!(run(&gateway, &looks), [reading(250, 10.0), reading(250, 10.0), reading(90, 1.0)]);
        assert_eq!(run(&gateway, &[(Some(false), reading(900, 90.0))]), [reading(900, 90.0)]);
    }

    #[test]
    fn an_operator_that_begins_while_the_hub_throttles_tells_nothing_that_makes_pods() {
        let throttled = [(None, reading(900, 0.0)), (Some(true), reading(900, 90.0))];
        let check = |gateway: &ProtocolGateway, connections: [Option<u64>; 2]| {
            let told = run(gateway, &throttled);
            assert_eq!(told.iter().map(|told| told.connections).collect::<Vec<_>>(), connections);
            assert_eq!((told[1].messages_per_second, told[1].connects_per_second), (None, None));
        };
        // it throttled before, so what the status says is too many
        check(&gateway(&Value::Null, &status("True", 900)), [None, None]);
        check(&gateway(&Value::Null, &status("False", 250)), [Some(900), Some(250)]);
        check(&gateway(&Value::Null, &Value::Null), [Some(900), None]);
        let scaling = json!({"minReplicas": 1, "maxReplicas": 9, "connectionsPerReplica": 100});
        check(&gateway(&scaling, &status("True", 900)), [Some(300), Some(300)]);
    }
}
