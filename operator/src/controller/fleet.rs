//! A fleet's pods: whom to ask, what they said, and what they are told.

use std::sync::Arc;

use crds::{ProtocolGateway, status::Drain};
use gateway_core::settings::{Protocol, Settings};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{Api, ResourceExt};
use rustls::ClientConfig;
use tracing::{debug, warn};

use super::World;
use crate::{
    apply::Memory,
    certificates, desired,
    error::{ReconcileError, Step},
    names,
    observe::{Observed, SecretFacts, mirror::Name, pods::SeenPod},
    orders,
    pods::{Fleet, Target},
    scaling::{self, Plan},
};

/// As whom a fleet's pods are asked.
#[derive(Debug, Default)]
pub struct Identity {
    /// The Secret that it was made of, as it was seen.
    of: Option<SecretFacts>,
    client: Option<Arc<ClientConfig>>,
}

impl World {
    /// Sets whom of the fleet to ask, and fills in what those said who were asked. Every replica asks.
    pub(super) async fn hear(
        &self,
        gateway: &ProtocolGateway,
        observed: &mut Observed,
        memory: &mut Memory,
    ) -> Result<(), ReconcileError> {
        let name = Name::of(&gateway.metadata);
        let fleet = Fleet::new(&name.namespace, &name.name);
        let pods = self.mirror.pods(&name);
        if pods.is_empty() {
            self.pods.forget(&fleet);
            return Ok(());
        }
        self.identify(&name, observed, &mut memory.identity).await?;
        let settings = desired::references(gateway, observed.config_in_force.as_deref()).settings;
        if let (Some(client), Some(settings)) = (&memory.identity.client, &settings) {
            let targets = pods.iter().filter_map(|pod| target(gateway, settings, pod)).collect();
            self.pods.watch(&fleet, targets, client);
        }
        let reports = self.pods.reports(&fleet);
        for pod in &mut observed.pods {
            let report = reports.get(&pod.name);
            pod.load = report.and_then(orders::heard);
            pod.served = report.and_then(|report| report.served.clone());
        }
        Ok(())
    }

    /// Reads the Secret of the control client again when it is seen to have changed.
    async fn identify(&self, name: &Name, observed: &Observed, identity: &mut Identity) -> Result<(), ReconcileError> {
        let secret = names::control_client(&name.name);
        let seen = observed.secrets.get(&secret);
        if identity.of.as_ref() == seen {
            return Ok(());
        }
        let api: Api<Secret> = Api::namespaced(self.writer.client.clone(), &name.namespace);
        let found = api.get_opt(&secret).await;
        let found = found.map_err(|error| ReconcileError::of(Step::Observe, format!("Secret {secret}"), &error))?;
        match found.as_ref().map(certificates::control_client).transpose() {
            Ok(client) => *identity = Identity { of: seen.cloned(), client: client.or(identity.client.take()) },
            Err(error) => warn!(gateway = %name, %error, "pods cannot be asked"),
        }
        Ok(())
    }

    /// Carries out what the plan orders, once it is persisted: marks pods that were drained, and tells pods.
    pub(super) async fn order(
        &self,
        gateway: &ProtocolGateway,
        plan: &Plan,
        epoch: i64,
        memory: &mut Memory,
    ) -> Result<(), ReconcileError> {
        let name = Name::of(&gateway.metadata);
        self.count(&name, gateway, &plan.drains);
        let api: Api<Pod> = Api::namespaced(self.writer.client.clone(), &name.namespace);
        for (pod, cost) in &plan.deletion_costs {
            let mark = orders::mark(&api, pod, *cost);
            self.writer.write(Step::Apply, &format!("Pod {pod}"), mark).await?;
            self.metrics.writes.with_label_values(&["Pod"]).inc();
        }
        if plan.orders.is_empty() {
            return Ok(());
        }
        let fleet = Fleet::new(&name.namespace, &name.name);
        let status = gateway.status.as_ref();
        let persisted = status.map_or(&[][..], |status| &status.drains);
        let ledger = memory.book.ledger(epoch, persisted, None, Timestamp::now());
        let tell = |pod: String, order: planner::Order| {
            let (pods, fleet, leads) = (&self.pods, &fleet, self.writer.leadership.epoch() == Some(epoch));
            async move {
                if !leads {
                    return Err("another replica leads".to_owned());
                }
                let told = pods.order(fleet, &pod, orders::message(order, epoch)).await;
                told.map(drop).map_err(|error| error.to_string())
            }
        };
        let clock = || scaling::millis(Timestamp::now());
        let carried = orders::carry_out(plan, ledger, clock, tell).await;
        for (pod, problem) in &carried.failed {
            warn!(gateway = %name, pod, problem, "an order was not taken; it is given again");
        }
        debug!(gateway = %name, taken = carried.taken, "orders given");
        Ok(())
    }

    fn count(&self, name: &Name, gateway: &ProtocolGateway, drains: &[Drain]) {
        let (namespace, fleet) = (name.namespace.as_str(), name.name.as_str());
        for cause in scaling::CAUSES {
            let count = drains.iter().filter(|drain| drain.cause == cause).count();
            let labels = [namespace, fleet, &format!("{cause:?}")];
            if count > 0 {
                self.metrics.drains.with_label_values(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
            } else {
                // an error: there was none before either
                let _ = self.metrics.drains.remove_label_values(&labels);
            }
        }
        let taken: i64 = drains.iter().map(|drain| drain.rate_per_second).sum();
        let left = gateway.spec.reconnects.per_second.saturating_sub(taken).max(0);
        self.metrics.reconnect_budget.with_label_values(&[namespace, fleet]).set(left as f64);
    }
}

/// `None` while it has no address.
fn target(gateway: &ProtocolGateway, settings: &Settings, pod: &SeenPod) -> Option<Target> {
    let name = &pod.facts.name;
    let status = gateway.status.as_ref();
    let known = status.and_then(|status| status.pods.iter().find(|known| known.name == *name)?.connections);
    let tls = settings.listeners.iter().filter(|listener| listener.protocol != Protocol::MqttPlain);
    Some(Target {
        pod: name.clone(),
        uid: pod.uid.clone(),
        address: pod.address?,
        admin_port: settings.admin.port,
        listeners_tls_ports: tls.map(|listener| listener.port).collect(),
        server_name: names::control_host(&gateway.name_any(), &gateway.namespace().unwrap_or_default()),
        known: known.and_then(|known| u64::try_from(known).ok()),
    })
}
